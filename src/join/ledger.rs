//! What the member has said so far, and so what it may say next.
//!
//! Two different updates of one version end a DID. What a member has approved can be announced from then on, whether it hears of it
//! or not: a transaction that others have signed never expires. So an update that was approved counts as possibly announced,
//! until its transaction was seen, or its controller says that it never will be (`--supersede`); meanwhile only the identical
//! update is submitted again, which every resolver passes over (rule R-8).

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::{
    actors::state::vault::VaultEntry,
    protocol::{id::CohortId, patch::Patch, update::SignedUpdate},
};

/// An update that was approved in a cohort.
#[derive(Clone, Debug)]
struct Said {
    version: u64,
    update: SignedUpdate,
    cohort_id: CohortId,
    standing: Standing,
}

/// How far an update is.
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
pub(super) enum Outlook {
    /// Its update is announced: there is nothing to say.
    Done {
        /// In which cohort.
        cohort_id: CohortId,
        /// To which version it led.
        version: u64,
    },
    /// Its update is signed, and not confirmed yet: there is nothing to say.
    Waiting {
        /// In which cohort.
        cohort_id: CohortId,
    },
    /// This very update is possibly announced: it may be submitted again, and no other.
    Again {
        /// The update.
        update: SignedUpdate,
        /// The document that it starts from.
        document: Value,
        /// The version of that.
        version: u64,
    },
    /// Nothing stands in the way of an update of this document and version.
    Next {
        /// The current document, as far as is known.
        document: Value,
        /// Its version.
        version: u64,
    },
    /// Another update of the next version is possibly announced.
    Blocked(String),
}

/// What stands for the cohort of an update that is announced without one.
const ALONE: &str = "singleton";

/// Where an update was approved.
fn of(cohort_id: &CohortId) -> String {
    match cohort_id.as_str() {
        ALONE => "without a cohort (`singleton`)".to_owned(),
        _ => format!("in cohort {cohort_id}"),
    }
}

/// The updates of one member, by what its vault holds and what happened since.
pub(crate) struct Ledger {
    /// The document that the DID begins with.
    initial: Value,
    /// Cohorts whose updates its controller says will never be announced.
    superseded: Vec<CohortId>,
    said: Mutex<Vec<Said>>,
}

impl Ledger {
    /// With what the vault holds of a member whose DID begins with the `initial` document.
    pub(crate) fn new(
        initial: Value,
        superseded: Vec<CohortId>,
        entries: impl IntoIterator<Item = (VaultEntry, Standing)>,
    ) -> Self {
        let ledger = Self { initial, superseded, said: Mutex::default() };
        for (VaultEntry { record, .. }, standing) in entries {
            if let Some(update) = &record.update {
                ledger.approved(&record.cohort_id, update);
            }
            ledger.advance(&record.cohort_id, standing);
        }
        ledger
    }

    fn said(&self) -> MutexGuard<'_, Vec<Said>> {
        // Nothing that could panic happens while the list is half changed.
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member approved data that holds this update.
    pub(crate) fn approved(&self, cohort_id: &CohortId, update: &SignedUpdate) {
        let Some(version) = update.target_version() else { return };
        if self.superseded.contains(cohort_id) {
            return;
        }
        let mut said = self.said();
        if !said.iter().any(|known| known.cohort_id == *cohort_id && known.version == version) {
            said.push(Said {
                version,
                update: update.clone(),
                cohort_id: cohort_id.clone(),
                standing: Standing::Approved,
            });
        }
    }

    /// The update of that cohort is at least so far.
    pub(crate) fn advance(&self, cohort_id: &CohortId, standing: Standing) {
        for said in self.said().iter_mut().filter(|said| said.cohort_id == *cohort_id) {
            said.standing = said.standing.max(standing);
        }
    }

    /// The coin of that cohort was spent by another transaction: its update will never be announced.
    pub(super) fn never(&self, cohort_id: &CohortId) {
        self.said().retain(|said| said.cohort_id != *cohort_id);
    }

    /// The document that the announced updates lead to, one after the other, and its version.
    pub(crate) fn current(&self) -> (Value, u64) {
        let mut document = self.initial.clone();
        let mut version = 1;
        let said = self.said();
        while let Some(next) =
            said.iter().find(|said| said.standing == Standing::Announced && said.version == version + 1)
        {
            let patched = next.update.value().get("patch").map(Patch::from_value);
            let Some(Ok(target)) = patched.and_then(Result::ok).map(|patch| patch.apply(&document)) else { break };
            (document, version) = (target, version + 1);
        }
        (document, version)
    }

    /// The update was handed to the controller, to be announced without a cohort.
    pub(crate) fn prepared(&self, update: &SignedUpdate) {
        if let Ok(alone) = CohortId::parse(ALONE) {
            self.approved(&alone, update);
        }
    }

    /// What is wrong with starting from that document and version, as far as is known here: nothing is, where no update is announced.
    pub(crate) fn doubts(&self, document: &Value, version: u64) -> Option<String> {
        let (current, known) = self.current();
        if known == 1 && !self.said().iter().any(|said| said.standing == Standing::Announced) {
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

    /// Whether this very update may be announced already.
    pub(crate) fn knows(&self, update: &SignedUpdate) -> bool {
        self.said().iter().any(|said| said.update == *update)
    }

    /// Why this signed update must not be announced: another one of its version may be.
    pub(crate) fn contradiction(&self, update: &SignedUpdate) -> Option<String> {
        let version = update.target_version()?;
        let said = self.said();
        let other = said.iter().find(|said| said.version == version && said.update != *update)?;
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

    /// What may be said next by who wants to announce `patch`, made from `source` where that is given. With `is_said`, what
    /// counts as having said it already.
    pub(super) fn outlook(
        &self,
        patch: &Value,
        source: Option<&(Value, u64)>,
        is_said: impl Fn(&SignedUpdate) -> bool,
    ) -> Outlook {
        let (document, version) = source.cloned().unwrap_or_else(|| self.current());
        let said = self.said();
        let best = said.iter().filter(|said| is_said(&said.update)).max_by_key(|said| said.standing);
        match best {
            Some(Said { standing: Standing::Announced, cohort_id, version, .. }) => {
                return Outlook::Done { cohort_id: cohort_id.clone(), version: *version };
            }
            Some(Said { standing: Standing::Signed, cohort_id, .. }) => {
                return Outlook::Waiting { cohort_id: cohort_id.clone() };
            }
            _ => {}
        }
        let next = version.saturating_add(1);
        let open: Vec<&Said> = said.iter().filter(|said| said.version == next).collect();
        let other = open.iter().find(|said| said.update.value().get("patch") != Some(patch));
        match (other, open.first()) {
            (None, None) => Outlook::Next { document, version },
            (None, Some(same)) => Outlook::Again { update: same.update.clone(), document, version },
            (Some(Said { standing: Standing::Signed, cohort_id, .. }), _) => Outlook::Blocked(format!(
                "another update is signed as version {next} in cohort {cohort_id}, and not confirmed yet: what is to be said next \
                 has to start from that version; wait until it is confirmed"
            )),
            (Some(Said { standing: Standing::Announced, cohort_id, .. }), _) => Outlook::Blocked(format!(
                "another update is announced as version {next} in cohort {cohort_id}: what is to be said next has to start from that \
                 version (without --source-document it does)"
            )),
            (Some(Said { cohort_id: other, .. }), _) => Outlook::Blocked(format!(
                "another update of version {next} {} and may still be announced; two different updates of one version end a DID. \
                 {}, say --supersede {other}",
                if other.as_str() == ALONE {
                    "was handed to its controller, to be announced without a cohort,".to_owned()
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

    fn outlook(ledger: &Ledger, patch: &Value) -> Outlook {
        ledger.outlook(patch, None, |update| update.value()["patch"] == *patch)
    }

    #[test]
    fn an_approved_update_is_submitted_again_or_nothing_is() {
        let ledger = Ledger::new(identity().initial_document().unwrap(), Vec::new(), []);
        let first = sign(&identity(), note("one"), &None).unwrap().update;
        assert!(matches!(outlook(&ledger, &note("one")), Outlook::Next { version: 1, .. }));
        ledger.approved(&id("a"), &first);
        let Outlook::Again { update, version, .. } = outlook(&ledger, &note("one")) else { panic!() };
        assert_eq!((update, version), (first.clone(), 1));
        let Outlook::Blocked(reason) = outlook(&ledger, &note("two")) else { panic!() };
        assert!(reason.contains("cohort a") && reason.contains("--supersede a"), "{reason}");
        let superseding = Ledger::new(identity().initial_document().unwrap(), vec![id("a")], []);
        superseding.approved(&id("a"), &first);
        assert!(matches!(outlook(&superseding, &note("two")), Outlook::Next { version: 1, .. }));
    }

    #[test]
    fn with_a_chain_nothing_is_said_while_an_update_is_not_confirmed() {
        let ledger = Ledger::new(identity().initial_document().unwrap(), Vec::new(), []);
        ledger.approved(&id("a"), &sign(&identity(), note("one"), &None).unwrap().update);
        ledger.advance(&id("a"), Standing::Signed);
        assert_eq!(outlook(&ledger, &note("one")), Outlook::Waiting { cohort_id: id("a") });
        let Outlook::Blocked(reason) = outlook(&ledger, &note("two")) else { panic!() };
        assert!(reason.contains("cohort a") && reason.contains("not confirmed"), "{reason}");
        ledger.advance(&id("a"), Standing::Announced);
        ledger.advance(&id("a"), Standing::Signed);
        assert!(matches!(outlook(&ledger, &note("two")), Outlook::Next { version: 2, .. }));
        let replaced = Ledger::new(identity().initial_document().unwrap(), Vec::new(), []);
        replaced.approved(&id("a"), &sign(&identity(), note("one"), &None).unwrap().update);
        replaced.advance(&id("a"), Standing::Signed);
        replaced.never(&id("a"));
        assert!(matches!(outlook(&replaced, &note("two")), Outlook::Next { version: 1, .. }));
    }

    #[test]
    fn what_is_announced_is_not_said_again_and_leads_to_the_next() {
        let ledger = Ledger::new(identity().initial_document().unwrap(), Vec::new(), []);
        let first = sign(&identity(), note("one"), &None).unwrap().update;
        ledger.approved(&id("a"), &first);
        ledger.advance(&id("a"), Standing::Announced);
        assert_eq!(outlook(&ledger, &note("one")), Outlook::Done { cohort_id: id("a"), version: 2 });
        let Outlook::Next { document, version } = outlook(&ledger, &note("two")) else { panic!() };
        assert_eq!((document["note"].as_str(), version), (Some("one"), 2));
        let second = sign(&identity(), note("two"), &Some((document, version))).unwrap().update;
        assert_eq!(second.target_version(), Some(3));
        ledger.approved(&id("b"), &second);
        assert!(matches!(outlook(&ledger, &note("three")), Outlook::Blocked(_)));
        // Submitted again with the document that it starts from: the initial one is another.
        let Outlook::Again { update, document, version } = outlook(&ledger, &note("two")) else { panic!() };
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
        let Outlook::Blocked(reason) = outlook(&ledger, &note("two")) else { panic!() };
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
