//! The updates that the member has approved so far, and therefore may announce next.
//!
//! Two different updates of one version end a DID. An approved update can be announced from then on, whether the member
//! receives the result or not: a transaction that others have signed never expires. An approved update therefore counts
//! as possibly announced, until its transaction was seen, or until its controller states that it never will be
//! (`--supersede`). Meanwhile only the identical update is submitted again, which every resolver ignores as a duplicate
//! (rule R-8).

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::{
    actors::state::vault::VaultEntry,
    protocol::{
        hash::{DocumentHash, SignalBytes},
        id::CohortId,
        patch::Patch,
        update::SignedUpdate,
    },
};

/// An update that was approved in a cohort.
#[derive(Clone, Debug)]
struct Approval {
    version: u64,
    update: SignedUpdate,
    cohort_id: CohortId,
    standing: Standing,
}

/// The progress of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Its data was approved: it may be announced from now on.
    Approved,
    /// Its transaction is signed, and there is a chain to confirm it.
    Signed,
    /// It counts as announced: confirmed where there is a chain to ask, else signed.
    Announced,
}

/// What the member may announce next.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum NextUpdate {
    /// Its update is announced: nothing is left to announce.
    Done {
        /// The cohort.
        cohort_id: CohortId,
        /// The version to which it led.
        version: u64,
    },
    /// Its update is signed, and not confirmed yet: nothing is to be announced now.
    Waiting {
        /// The cohort.
        cohort_id: CohortId,
    },
    /// This update is possibly announced: it may be submitted again, and no other.
    Again {
        /// The update.
        update: SignedUpdate,
        /// The document that it starts from.
        document: Value,
        /// The version of the document.
        version: u64,
    },
    /// An update of this document and version may be announced.
    Next {
        /// The current document, as far as known.
        document: Value,
        /// Its version.
        version: u64,
    },
    /// Another update of the next version is possibly announced.
    Blocked(String),
}

/// The name that stands for the cohort of an update that is announced without one.
const ALONE: &str = "singleton";

/// Where an update was approved, for people.
fn of(cohort_id: &CohortId) -> String {
    match cohort_id.as_str() {
        ALONE => "without a cohort (`singleton`)".to_owned(),
        _ => format!("in cohort {cohort_id}"),
    }
}

/// The updates of one member: those in its vault, and those of this run.
pub(crate) struct Ledger {
    /// The initial document of the DID.
    initial: Value,
    /// Cohorts whose updates will never be announced, according to the controller.
    superseded: Vec<CohortId>,
    approvals: Mutex<Vec<Approval>>,
}

impl Ledger {
    /// The ledger of the vault's entries, of a member whose DID starts with the `initial` document.
    pub(crate) fn new(
        initial: Value,
        superseded: Vec<CohortId>,
        entries: impl IntoIterator<Item = (VaultEntry, Standing)>,
    ) -> Self {
        let ledger = Self { initial, superseded, approvals: Mutex::default() };
        for (VaultEntry { record, .. }, standing) in entries {
            if let Some(update) = &record.update {
                ledger.approved(&record.cohort_id, update);
            }
            ledger.advance(&record.cohort_id, standing);
        }
        ledger
    }

    fn approvals(&self) -> MutexGuard<'_, Vec<Approval>> {
        // No code panics while the list is half changed.
        self.approvals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member approved data with this update.
    pub(crate) fn approved(&self, cohort_id: &CohortId, update: &SignedUpdate) {
        let Some(version) = update.target_version() else { return };
        if self.superseded.contains(cohort_id) {
            return;
        }
        let mut approvals = self.approvals();
        if !approvals.iter().any(|known| known.cohort_id == *cohort_id && known.version == version) {
            approvals.push(Approval {
                version,
                update: update.clone(),
                cohort_id: cohort_id.clone(),
                standing: Standing::Approved,
            });
        }
    }

    /// Advances the update of that cohort to at least this standing.
    pub(crate) fn advance(&self, cohort_id: &CohortId, standing: Standing) {
        for approval in self.approvals().iter_mut().filter(|approval| approval.cohort_id == *cohort_id) {
            approval.standing = approval.standing.max(standing);
        }
    }

    /// Another transaction spent the coin of that cohort: its update will never be announced.
    pub(super) fn never(&self, cohort_id: &CohortId) {
        self.approvals().retain(|approval| approval.cohort_id != *cohort_id);
    }

    /// The document to which the announced updates lead, one after the other, and its version.
    pub(crate) fn current(&self) -> (Value, u64) {
        let mut document = self.initial.clone();
        let mut version = 1;
        let approvals = self.approvals();
        while let Some(next) = approvals
            .iter()
            .find(|approval| approval.standing == Standing::Announced && approval.version == version + 1)
        {
            let patched = next.update.value().get("patch").map(Patch::from_value);
            let Some(Ok(target)) = patched.and_then(Result::ok).map(|patch| patch.apply(&document)) else { break };
            (document, version) = (target, version + 1);
        }
        (document, version)
    }

    /// The update was given to the controller, to be announced without a cohort.
    pub(crate) fn prepared(&self, update: &SignedUpdate) {
        if let Ok(alone) = CohortId::parse(ALONE) {
            self.approved(&alone, update);
        }
    }

    /// What is wrong with an update that starts from that document and version, as far as known; `None` if no update is
    /// announced.
    pub(crate) fn doubts(&self, document: &Value, version: u64) -> Option<String> {
        let (current, known) = self.current();
        if known == 1 && !self.approvals().iter().any(|approval| approval.standing == Standing::Announced) {
            return None;
        }
        if version != known {
            return Some(format!(
                "it starts from version {version}, and the announced updates in the vault lead to version {known}"
            ));
        }
        (*document != current)
            .then(|| format!("it starts from another document than that to which the announced updates in the vault lead (version {known})"))
    }

    /// Whether this update may already be announced.
    pub(crate) fn knows(&self, update: &SignedUpdate) -> bool {
        self.approvals().iter().any(|approval| approval.update == *update)
    }

    /// The update with this unsigned hash that may already be announced.
    pub(crate) fn equal(&self, unsigned: &DocumentHash) -> Option<SignedUpdate> {
        let approvals = self.approvals();
        let equal = approvals.iter().find(|known| known.update.unsigned_hash().is_ok_and(|hash| hash == *unsigned));
        equal.map(|known| known.update.clone())
    }

    /// The update that a Singleton beacon announces by that signal.
    pub(crate) fn announced_by(&self, signal: &SignalBytes) -> Option<SignedUpdate> {
        let approvals = self.approvals();
        let known = approvals.iter().find(|known| known.update.hash().as_bytes() == signal.as_bytes());
        known.map(|known| known.update.clone())
    }

    /// Why this signed update must not be announced: another update of its version may be.
    pub(crate) fn contradiction(&self, update: &SignedUpdate) -> Option<String> {
        let version = update.target_version()?;
        let approvals = self.approvals();
        let other = approvals.iter().find(|approval| approval.version == version && approval.update != *update)?;
        let what = match other.standing {
            Standing::Approved => "may be announced",
            Standing::Signed => "is signed",
            Standing::Announced => "is announced",
        };
        let place = of(&other.cohort_id);
        Some(format!(
            "another update of version {version} {what} {place}; two different updates of one version end a DID"
        ))
    }

    /// What the member may announce next that wants to announce `patch`, made from `source` if given. `is_same` selects
    /// the updates that count as the same announcement.
    pub(super) fn next_update(
        &self,
        patch: &Value,
        source: Option<&(Value, u64)>,
        is_same: impl Fn(&SignedUpdate) -> bool,
    ) -> NextUpdate {
        let (document, version) = source.cloned().unwrap_or_else(|| self.current());
        let approvals = self.approvals();
        let best =
            approvals.iter().filter(|approval| is_same(&approval.update)).max_by_key(|approval| approval.standing);
        match best {
            Some(Approval { standing: Standing::Announced, cohort_id, version, .. }) => {
                return NextUpdate::Done { cohort_id: cohort_id.clone(), version: *version };
            }
            Some(Approval { standing: Standing::Signed, cohort_id, .. }) => {
                return NextUpdate::Waiting { cohort_id: cohort_id.clone() };
            }
            _ => {}
        }
        let next = version.saturating_add(1);
        let open: Vec<&Approval> = approvals.iter().filter(|approval| approval.version == next).collect();
        let other = open.iter().find(|approval| approval.update.value().get("patch") != Some(patch));
        match (other, open.first()) {
            (None, None) => NextUpdate::Next { document, version },
            (None, Some(same)) => NextUpdate::Again { update: same.update.clone(), document, version },
            (Some(Approval { standing: Standing::Signed, cohort_id, .. }), _) => NextUpdate::Blocked(format!(
                "another update is signed as version {next} in cohort {cohort_id}, and not confirmed yet: the \
                 next update has to start from that version; wait until it is confirmed"
            )),
            (Some(Approval { standing: Standing::Announced, cohort_id, .. }), _) => NextUpdate::Blocked(format!(
                "another update is announced as version {next} in cohort {cohort_id}: the next update has \
                 to start from that version (without --source-document it does)"
            )),
            (Some(Approval { cohort_id: other, .. }), _) => NextUpdate::Blocked(format!(
                "another update of version {next} {} and may still be announced; two different updates of one version end a DID. \
                 {}, use --supersede {other}",
                if other.as_str() == ALONE {
                    "was given to its controller, to be announced without a cohort,".to_owned()
                } else {
                    format!("was approved in cohort {other}")
                },
                if other.as_str() == ALONE {
                    "If it was never announced and never will be"
                } else {
                    "If that cohort's coin is spent by another confirmed transaction"
                },
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        join::policy::sign,
        protocol::{identity::Identity, key::SecretKey, network::Network},
    };

    fn identity() -> Identity {
        Identity::from_key(SecretKey::from_bytes(&[5; 32]).unwrap(), Network::Regtest)
    }

    fn id(name: &str) -> CohortId {
        CohortId::parse(name).unwrap()
    }

    fn note(text: &str) -> Value {
        json!([{ "op": "add", "path": "/note", "value": text }])
    }

    fn next_update(ledger: &Ledger, patch: &Value) -> NextUpdate {
        ledger.next_update(patch, None, |update| update.value()["patch"] == *patch)
    }

    #[test]
    fn an_approved_update_is_submitted_again_or_nothing_is() {
        let ledger = Ledger::new(identity().initial_document().unwrap(), Vec::new(), []);
        let first = sign(&identity(), note("one"), &None).unwrap().update;
        assert!(matches!(next_update(&ledger, &note("one")), NextUpdate::Next { version: 1, .. }));
        ledger.approved(&id("a"), &first);
        let NextUpdate::Again { update, version, .. } = next_update(&ledger, &note("one")) else { panic!() };
        assert_eq!((update, version), (first.clone(), 1));
        let NextUpdate::Blocked(reason) = next_update(&ledger, &note("two")) else { panic!() };
        assert!(reason.contains("cohort a") && reason.contains("--supersede a"), "{reason}");
        let superseding = Ledger::new(identity().initial_document().unwrap(), vec![id("a")], []);
        superseding.approved(&id("a"), &first);
        assert!(matches!(next_update(&superseding, &note("two")), NextUpdate::Next { version: 1, .. }));
    }

    #[test]
    fn with_a_chain_nothing_is_said_while_an_update_is_not_confirmed() {
        let ledger = Ledger::new(identity().initial_document().unwrap(), Vec::new(), []);
        ledger.approved(&id("a"), &sign(&identity(), note("one"), &None).unwrap().update);
        ledger.advance(&id("a"), Standing::Signed);
        assert_eq!(next_update(&ledger, &note("one")), NextUpdate::Waiting { cohort_id: id("a") });
        let NextUpdate::Blocked(reason) = next_update(&ledger, &note("two")) else { panic!() };
        assert!(reason.contains("cohort a") && reason.contains("not confirmed"), "{reason}");
        ledger.advance(&id("a"), Standing::Announced);
        ledger.advance(&id("a"), Standing::Signed);
        assert!(matches!(next_update(&ledger, &note("two")), NextUpdate::Next { version: 2, .. }));
        let replaced = Ledger::new(identity().initial_document().unwrap(), Vec::new(), []);
        replaced.approved(&id("a"), &sign(&identity(), note("one"), &None).unwrap().update);
        replaced.advance(&id("a"), Standing::Signed);
        replaced.never(&id("a"));
        assert!(matches!(next_update(&replaced, &note("two")), NextUpdate::Next { version: 1, .. }));
    }

    #[test]
    fn what_is_announced_is_not_said_again_and_leads_to_the_next() {
        let ledger = Ledger::new(identity().initial_document().unwrap(), Vec::new(), []);
        let first = sign(&identity(), note("one"), &None).unwrap().update;
        ledger.approved(&id("a"), &first);
        ledger.advance(&id("a"), Standing::Announced);
        assert_eq!(next_update(&ledger, &note("one")), NextUpdate::Done { cohort_id: id("a"), version: 2 });
        let NextUpdate::Next { document, version } = next_update(&ledger, &note("two")) else { panic!() };
        assert_eq!((document["note"].as_str(), version), (Some("one"), 2));
        let second = sign(&identity(), note("two"), &Some((document, version))).unwrap().update;
        assert_eq!(second.target_version(), Some(3));
        ledger.approved(&id("b"), &second);
        assert!(matches!(next_update(&ledger, &note("three")), NextUpdate::Blocked(_)));
        // Submitted again with its own source document, not the initial one.
        let NextUpdate::Again { update, document, version } = next_update(&ledger, &note("two")) else { panic!() };
        assert_eq!((update, document["note"].as_str(), version), (second, Some("one"), 2));
    }
    #[test]
    fn what_a_controller_was_handed_may_be_announced() {
        let ledger = Ledger::new(identity().initial_document().unwrap(), Vec::new(), []);
        let first = sign(&identity(), note("one"), &None).unwrap().update;
        let other = sign(&identity(), note("two"), &None).unwrap().update;
        ledger.prepared(&first);
        assert_eq!(ledger.contradiction(&first), None);
        assert!(ledger.contradiction(&other).unwrap().contains("without a cohort"));
        let NextUpdate::Blocked(reason) = next_update(&ledger, &note("two")) else { panic!() };
        assert!(reason.contains("--supersede singleton"), "{reason}");
        let superseding = Ledger::new(identity().initial_document().unwrap(), vec![id("singleton")], []);
        superseding.prepared(&first);
        assert_eq!(superseding.contradiction(&other), None);
    }

    #[test]
    fn a_document_that_the_vault_does_not_lead_to_is_doubted() {
        let initial = identity().initial_document().unwrap();
        let ledger = Ledger::new(initial.clone(), Vec::new(), []);
        assert_eq!(ledger.doubts(&json!({}), 7), None, "nothing is known here");
        ledger.approved(&id("a"), &sign(&identity(), note("one"), &None).unwrap().update);
        ledger.advance(&id("a"), Standing::Announced);
        let (current, version) = ledger.current();
        assert_eq!((ledger.doubts(&current, version), version), (None, 2));
        assert!(ledger.doubts(&initial, 1).unwrap().contains("version 1"));
        assert!(ledger.doubts(&initial, 2).unwrap().contains("another document"));
    }
}
