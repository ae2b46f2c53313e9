//! The effects of a session's events: once when an event happens, and again after a restart for the members that have
//! not answered.

use super::{SessionEffect, SessionEvent, SessionPhase, SigningSession};
use crate::{
    did::Did,
    message::{
        Bytes, SharedBody,
        sign::{AggregatedNonce, AuthorizationRequest, FallbackAuthorizationRequest},
    },
    output::SpendPath,
    time::Timestamp,
};

impl SigningSession {
    pub(super) fn effects_of(&self, event: &SessionEvent) -> Vec<SessionEffect> {
        match (event, &self.phase) {
            (SessionEvent::SessionOpened { .. }, _) => self.request_nonces(|_| true),
            (SessionEvent::NoncesAggregated { nonce, .. }, _) => self.request_partial_signatures(nonce, |_| true),
            (SessionEvent::PathChosen { path: SpendPath::ScriptPath, .. }, _) => self.request_fallback(|_| true),
            (
                SessionEvent::SessionCompleted { .. } | SessionEvent::SessionFailed { .. },
                SessionPhase::Ended(outcome),
            ) => vec![SessionEffect::Finished(outcome.clone())],
            _ => Vec::new(),
        }
    }

    /// The unanswered requests. A member that answered is not asked again: the TypeScript implementation would fail
    /// its cohort over a second nonce.
    pub(super) fn owed(&self) -> Vec<SessionEffect> {
        match &self.phase {
            // The key path is chosen and completed in one step.
            SessionPhase::Planned | SessionPhase::KeyPath => Vec::new(),
            SessionPhase::CollectingNonces { nonces, .. } => self.request_nonces(|did| !nonces.contains_key(did)),
            SessionPhase::CollectingPartialSignatures { aggregated, partials, .. } => {
                self.request_partial_signatures(aggregated, |did| !partials.contains_key(did))
            }
            SessionPhase::Fallback { signatures, .. } => self.request_fallback(|did| !signatures.contains_key(did)),
            SessionPhase::Ended(outcome) => vec![SessionEffect::Finished(outcome.clone())],
        }
    }

    fn request_nonces(&self, of: impl Fn(&Did) -> bool) -> Vec<SessionEffect> {
        let task = &*self.task;
        let body = AuthorizationRequest {
            cohort_id: task.cohort_id.clone(),
            session_id: task.session_id.clone(),
            pending_tx: task.transaction.clone(),
            prev_out_script_hex: task.output.script_pubkey().to_owned(),
            prev_out_value: task.value,
            session_deadline: self.last_deadline().map(Timestamp::as_secs),
        };
        self.send(&body.into(), of)
    }

    fn request_partial_signatures(&self, aggregated: &Bytes<66>, of: impl Fn(&Did) -> bool) -> Vec<SessionEffect> {
        let body = AggregatedNonce {
            cohort_id: self.task.cohort_id.clone(),
            session_id: self.task.session_id.clone(),
            aggregated_nonce: *aggregated,
        };
        self.send(&body.into(), of)
    }

    fn request_fallback(&self, of: impl Fn(&Did) -> bool) -> Vec<SessionEffect> {
        let task = &*self.task;
        let Some(leaf) = task.output.fallback() else { return Vec::new() };
        let body = FallbackAuthorizationRequest {
            cohort_id: task.cohort_id.clone(),
            session_id: task.session_id.clone(),
            pending_tx: task.transaction.clone(),
            prev_out_script_hex: task.output.script_pubkey().to_owned(),
            prev_out_value: task.value,
            fallback_leaf_script_hex: leaf.script().to_owned(),
        };
        self.send(&body.into(), of)
    }

    fn send(&self, body: &SharedBody, to: impl Fn(&Did) -> bool) -> Vec<SessionEffect> {
        let members = self.task.members.keys().filter(|did| to(did));
        members.map(|did| SessionEffect::Send { to: did.clone(), body: body.clone() }).collect()
    }
}
