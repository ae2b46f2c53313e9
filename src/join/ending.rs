//! How a cohort ended for the member: whether its transaction is signed and confirmed, and what resolvers return then.

use std::sync::Arc;

use futures::future::LocalBoxFuture;
use serde_json::{Value, json};

use super::{
    MemberPolicy,
    confirmations::Sighting,
    member::{Member, Turn},
    report::on_chain,
};
use crate::{
    actors::notice::Known,
    controller::CurrentError,
    error::ProgramError,
    protocol::{id::CohortId, sidecar::MemberRecord, update::SignedUpdate},
};

/// What resolvers return after an announcement.
pub(super) enum Resolvable {
    /// The update is in force; the current version.
    Yes(u64),
    /// It will be, as far as is known: why not yet, and the current version.
    NotYet(u64, String),
    /// It is not: why, and the current version if the DID resolves.
    No(Option<u64>, String),
    /// That is not known, for this reason.
    Unknown(String),
}

/// A resolution after an announcement.
pub(super) struct Resolved {
    /// `result`, or `earlier` for a cohort of an earlier run.
    event: &'static str,
    cohort_id: CohortId,
    known: Known,
    resolvable: Resolvable,
}

impl Resolvable {
    /// Resolves the member's DID after the announcement of `update` at an address.
    async fn of(policy: &MemberPolicy, cohort_id: &CohortId, update: &SignedUpdate, address: &str) -> Self {
        let current = match policy.resolve().await {
            Ok(Some(current)) => current,
            Ok(None) => return Self::Unknown("there is no chain".to_owned()),
            Err(CurrentError::Deactivated { version, by }) if by == Some(*update.hash()) => {
                return Self::Yes(version);
            }
            Err(error) if error.is_transient() => return Self::Unknown(error.to_string()),
            Err(error) => return Self::No(None, error.to_string()),
        };
        let version = current.version;
        if policy.is_in_force(cohort_id, update) {
            return Self::Yes(version);
        }
        match &current.young {
            Some(young) if young.applied.iter().any(|applied| applied.hash == *update.hash()) => {
                let (found, needed) = (young.confirmations, policy.min_conf());
                Self::NotYet(version, format!("it has {found} of {needed} confirmations (--min-conf)"))
            }
            _ if update.target_version().is_some_and(|target| target <= version) => {
                Self::No(Some(version), "another update led to that version".to_owned())
            }
            _ => Self::No(
                Some(version),
                format!(
                    "they did not find the update by the beacons of that document; it was announced at {address}"
                ),
            ),
        }
    }

    fn add_to(&self, result: &mut Value) {
        let version = match self {
            Self::Yes(version) | Self::NotYet(version, _) => Some(*version),
            Self::No(version, _) => *version,
            Self::Unknown(_) => None,
        };
        if !matches!(self, Self::Unknown(_)) {
            result["resolvable"] = json!(matches!(self, Self::Yes(_)));
        }
        if let Some(version) = version {
            result["versionId"] = json!(version.to_string());
        }
        if let Self::NotYet(_, reason) | Self::No(_, reason) | Self::Unknown(reason) = self {
            result["reason"] = json!(reason);
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Yes(version) => format!("resolvers return version {version}, with our update"),
            Self::NotYet(version, reason) => format!("resolvers return version {version} still: {reason}"),
            Self::No(Some(version), reason) => {
                format!("but resolvers return version {version}, WITHOUT our update: {reason}")
            }
            Self::No(None, reason) => format!("but the DID does NOT resolve: {reason}"),
            Self::Unknown(reason) => format!("whether resolvers find it is not known: {reason}"),
        }
    }
}

/// A resolution that runs beside everything else: it may take long.
pub(super) type Resolution = LocalBoxFuture<'static, Resolved>;

impl Member<'_> {
    /// Reports the end of a cohort, and returns whether it is the one that was asked for. `None`: our update is announced by it, and
    /// it is reported after a resolution.
    pub(super) fn end(&mut self, event: &'static str, cohort_id: &CohortId, known: Known) -> Option<bool> {
        if let Some((record, _)) = self.known.get(cohort_id)
            && let Some(update) = record.update.clone()
            && self.policy.resolves()
            && self.is_confirmed(cohort_id)
        {
            let (policy, record, cohort_id) = (self.policy.clone(), Arc::clone(record), cohort_id.clone());
            self.resolving.insert(cohort_id.clone(), known);
            self.resolutions.push(Box::pin(async move {
                let resolvable = Resolvable::of(&policy, &cohort_id, &update, record.output.address()).await;
                Resolved { event, cohort_id, known, resolvable }
            }));
            return None;
        }
        Some(self.report_as(event, cohort_id, known, None))
    }

    /// A resolution after an announcement is done.
    pub(super) async fn resolved(&mut self, resolved: Resolved) -> Result<Turn, ProgramError> {
        let Resolved { event, cohort_id, known, resolvable } = resolved;
        self.settle().await?;
        if self.resolving.remove(&cohort_id).is_none() {
            // It was reported when the time to stay was over.
            return Ok(Turn::GoOn);
        }
        let ok = self.report_as(event, &cohort_id, known, Some(&resolvable));
        self.forget(&cohort_id);
        Ok(self.reported(ok))
    }

    /// Persists what is settled of our updates.
    pub(super) async fn settle(&self) -> Result<(), ProgramError> {
        self.storage.settle(&self.policy.settled()).await
    }

    fn is_confirmed(&self, cohort_id: &CohortId) -> bool {
        let Some(confirmations) = &self.confirmations else { return false };
        let sighting = confirmations.sighting(cohort_id);
        matches!(sighting, Some(sighting @ Sighting::Block { .. }) if confirmations.is_settled(sighting))
    }

    /// An end that a previous run received is not the result of this run.
    pub(super) fn event_of(&self, cohort_id: &CohortId) -> &'static str {
        if self.memberships.had_ended(cohort_id) { "earlier" } else { "result" }
    }

    /// Reports how a cohort ended: whether its signed transaction was seen and, with a chain, confirmed.
    pub(super) fn report(&self, cohort_id: &CohortId, known: Known) -> bool {
        self.report_as(self.event_of(cohort_id), cohort_id, known, None)
    }

    pub(super) fn report_as(
        &self,
        event: &str,
        cohort_id: &CohortId,
        known: Known,
        resolvable: Option<&Resolvable>,
    ) -> bool {
        let Some((record, txid)) = self.known.get(cohort_id) else {
            let text = "the cohort is over, and we have approved nothing in it";
            let result =
                json!({ "event": event, "ok": false, "known": known, "cohortId": cohort_id, "reason": text });
            self.printer.result(&result, &format!("cohort {cohort_id}: {text}"));
            return false;
        };
        let mut result = json!({
            "event": event,
            "ok": false,
            "known": known,
            "cohortId": cohort_id,
            "beaconAddress": record.output.address(),
            "included": record.included(),
            "sidecar": record.sidecar(self.config.identity.genesis_document().map(|document| &**document)),
        });
        if let Some(txid) = txid {
            result["txid"] = json!(txid);
        }
        let what = if record.included() { "our update is in" } else { "we declined; our proof of that is in" };
        let (ok, mut text) = self.state_of(record, known, &mut result, what);
        let mut ok = ok;
        if let Some(resolvable) = resolvable {
            resolvable.add_to(&mut result);
            text = format!("{text}; {}", resolvable.text());
            ok &= !matches!(resolvable, Resolvable::No(..)) || self.policy.allows_unlisted();
        }
        if let Some(reason) = self.policy.lacks(record) {
            result["reason"] = json!(reason);
            text = format!("{text}; our update is NOT announced: {reason}");
            ok = false;
        }
        result["ok"] = json!(ok);
        self.printer.result(&result, &format!("cohort {cohort_id}: {text}"));
        ok
    }

    /// Whether the announcement of a cohort is as final as this member asks for, and that in words.
    fn state_of(&self, record: &MemberRecord, known: Known, result: &mut Value, what: &str) -> (bool, String) {
        let cohort_id = &record.cohort_id;
        let (signal, txid) = (&record.signal, self.known.get(cohort_id).and_then(|(_, txid)| *txid));
        match (&self.confirmations, known, txid) {
            (Some(confirmations), ..) => {
                let (ok, known, text) = on_chain(confirmations, cohort_id, known);
                result["known"] = json!(known);
                if let Some(Sighting::Block { txid, height, confirmations }) = confirmations.sighting(cohort_id) {
                    (result["txid"], result["height"]) = (json!(txid), json!(height));
                    result["confirmations"] = json!(confirmations);
                }
                (ok, format!("{what} the signal {signal}; {text}"))
            }
            (None, Known::Seen, Some(txid)) => (
                true,
                format!(
                    "{what} the signal {signal}, and its transaction {txid} is signed; see the chain for its confirmations \
                     (--chain)"
                ),
            ),
            (None, Known::Reported, _) => (
                false,
                format!(
                    "{what} the signal {signal}; the service reports that its transaction is signed, but \
                     has not sent it"
                ),
            ),
            _ => (
                false,
                format!(
                    "{what} the signal {signal}, and our signature was sent; whether it is announced is NOT known. \
                     Watch {} (btcr2-aggregation watch)",
                    record.output.address()
                ),
            ),
        }
    }
}
