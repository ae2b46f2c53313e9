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
    protocol::{id::CohortId, identity::Identity, patch::Patch, update::SignedUpdate},
};

/// An update that was approved in a cohort.
#[derive(Clone, Debug)]
struct Said {
    version: u64,
    update: SignedUpdate,
    cohort_id: CohortId,
    announced: bool,
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

/// The updates of one member, by what its vault holds and what happened since.
pub(super) struct Ledger {
    identity: Identity,
    /// Cohorts whose updates its controller says will never be announced.
    superseded: Vec<CohortId>,
    said: Mutex<Vec<Said>>,
}

impl Ledger {
    /// With what the vault holds of this member.
    pub(super) fn new(
        identity: Identity,
        superseded: Vec<CohortId>,
        entries: impl IntoIterator<Item = VaultEntry>,
    ) -> Self {
        let ledger = Self { identity, superseded, said: Mutex::default() };
        for entry in entries {
            if let Some(update) = &entry.record.update {
                ledger.approved(&entry.record.cohort_id, update);
            }
            if entry.txid.is_some() {
                ledger.announced(&entry.record.cohort_id);
            }
        }
        ledger
    }

    fn said(&self) -> MutexGuard<'_, Vec<Said>> {
        // Nothing that could panic happens while the list is half changed.
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member approved data that holds this update.
    pub(super) fn approved(&self, cohort_id: &CohortId, update: &SignedUpdate) {
        let Some(version) = update.target_version() else { return };
        if self.superseded.contains(cohort_id) {
            return;
        }
        let mut said = self.said();
        if !said.iter().any(|known| known.cohort_id == *cohort_id) {
            said.push(Said { version, update: update.clone(), cohort_id: cohort_id.clone(), announced: false });
        }
    }

    /// The transaction of that cohort was seen.
    pub(super) fn announced(&self, cohort_id: &CohortId) {
        self.said().iter_mut().filter(|said| said.cohort_id == *cohort_id).for_each(|said| said.announced = true);
    }

    /// The document that the announced updates lead to, one after the other, and its version.
    fn current(&self) -> (Value, u64) {
        // The constructors of an identity have made this document.
        let mut document = self.identity.initial_document().unwrap_or(Value::Null);
        let mut version = 1;
        let said = self.said();
        while let Some(next) = said.iter().find(|said| said.announced && said.version == version + 1) {
            let patched = next.update.value().get("patch").map(Patch::from_value);
            let Some(Ok(target)) = patched.and_then(Result::ok).map(|patch| patch.apply(&document)) else { break };
            (document, version) = (target, version + 1);
        }
        (document, version)
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
        if let Some(done) = said.iter().find(|said| said.announced && is_said(&said.update)) {
            return Outlook::Done { cohort_id: done.cohort_id.clone(), version: done.version };
        }
        let next = version.saturating_add(1);
        let open: Vec<&Said> = said.iter().filter(|said| said.version == next).collect();
        let other = open.iter().find(|said| said.update.value().get("patch") != Some(patch));
        match (other, open.first()) {
            (None, None) => Outlook::Next { document, version },
            (None, Some(same)) => Outlook::Again { update: same.update.clone(), document, version },
            (Some(Said { announced: true, cohort_id, .. }), _) => Outlook::Blocked(format!(
                "another update is announced as version {next} in cohort {cohort_id}: what is to be said next has to start from that \
                 version (without --source-document it does)"
            )),
            (Some(Said { cohort_id: other, .. }), _) => Outlook::Blocked(format!(
                "another update of version {next} was approved in cohort {other} and may still be announced; two different \
                 updates of one version end a DID. If that cohort's coin is spent by another confirmed transaction, say \
                 --supersede {other}"
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
        protocol::{key::SecretKey, network::Network},
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
        let ledger = Ledger::new(identity(), Vec::new(), []);
        let first = sign(&identity(), note("one"), &None).unwrap().update;
        assert!(matches!(outlook(&ledger, &note("one")), Outlook::Next { version: 1, .. }));
        ledger.approved(&id("a"), &first);
        let Outlook::Again { update, version, .. } = outlook(&ledger, &note("one")) else { panic!() };
        assert_eq!((update, version), (first.clone(), 1));
        let Outlook::Blocked(reason) = outlook(&ledger, &note("two")) else { panic!() };
        assert!(reason.contains("cohort a") && reason.contains("--supersede a"), "{reason}");
        let superseding = Ledger::new(identity(), vec![id("a")], []);
        superseding.approved(&id("a"), &first);
        assert!(matches!(outlook(&superseding, &note("two")), Outlook::Next { version: 1, .. }));
    }

    #[test]
    fn what_is_announced_is_not_said_again_and_leads_to_the_next() {
        let ledger = Ledger::new(identity(), Vec::new(), []);
        let first = sign(&identity(), note("one"), &None).unwrap().update;
        ledger.approved(&id("a"), &first);
        ledger.announced(&id("a"));
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
}
