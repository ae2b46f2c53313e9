//! Validation by every member, the operator's transaction, and the end of signing.

use std::sync::Arc;

use bitcoin::{Amount, Transaction};
use rand_core::CryptoRng;

use super::{ServiceCohort, phase::Phase, rules::TimedPhase};
use crate::{
    cohort::{
        Unreached,
        event::{CohortFailure, ServiceEvent},
    },
    did::Did,
    error::{Reject, RejectCode, Retry, Slot},
    hash::MessageDigest,
    id::SessionId,
    message::{Message, update::ValidationAck},
    output::check_beacon_transaction,
    signing::SigningOutcome,
    time::Timestamp,
};

/// How long to wait before the transaction is requested from the operator again.
const TRANSACTION_RETRY: std::time::Duration = std::time::Duration::from_secs(15);

impl ServiceCohort {
    pub(super) fn on_validation(
        &self,
        now: Timestamp,
        from: &Did,
        body: &ValidationAck,
        message: &Message,
        rng: &mut dyn CryptoRng,
    ) -> Result<Vec<ServiceEvent>, Reject> {
        self.member(from)?;
        let (formed, approvals) = match &self.phase {
            Phase::Validating { formed, approvals, .. } => (formed, approvals),
            // After validation every member has approved: a second approval is harmless, a rejection is equivocation.
            Phase::AwaitingTransaction { .. }
            | Phase::CheckingPresence { .. }
            | Phase::Signing { .. }
            | Phase::Completed { .. } => {
                return self.on_repeated_validation(from, body.approved);
            }
            _ => return Err(Reject::new(RejectCode::WrongPhase, from, "there is nothing to validate now")),
        };
        if approvals.contains(from) {
            return self.on_repeated_validation(from, body.approved);
        }
        let received = ServiceEvent::ValidationReceived {
            did: from.clone(),
            approved: body.approved,
            digest: message.digest(),
        };
        let mut events = vec![received];
        if !body.approved {
            let rejected = CohortFailure::ValidationRejected { by: from.clone() };
            events.extend(self.give_up(now, TimedPhase::Validation, rejected, rng));
        } else if approvals.len() + 1 == formed.members.len() {
            events.push(ServiceEvent::ValidationCompleted { at: now });
        }
        Ok(events)
    }

    fn on_repeated_validation(&self, from: &Did, approved: bool) -> Result<Vec<ServiceEvent>, Reject> {
        if approved {
            return Ok(Vec::new());
        }
        let fault = self.faults.equivocation(from, Slot::Validation)?;
        Ok(vec![ServiceEvent::FaultRecorded { fault }])
    }

    pub(super) fn on_transaction(
        &self,
        now: Timestamp,
        transaction: &Transaction,
        value: Amount,
        rng: &mut dyn CryptoRng,
    ) -> Result<Vec<ServiceEvent>, Reject> {
        let Phase::AwaitingTransaction { formed, aggregated, .. } = &self.phase else {
            return Err(Reject::out_of_phase("providing a transaction", self.phase.name()));
        };
        let output = &formed.output;
        let signal = &aggregated.aggregation.signal;
        // Every member would refuse a wrong transaction of our own operator. The cohort fails here instead, with the
        // reason.
        if let Err(fault) = check_beacon_transaction(transaction, output, output.script_pubkey(), value, signal) {
            return Ok(self.fail(now, CohortFailure::Transaction { reason: fault.to_string() }));
        }
        if self.config.terms.rules.presence_check {
            return Ok(vec![ServiceEvent::PresenceRequested { at: now, transaction: transaction.clone(), value }]);
        }
        Ok(vec![self.start_signing(now, transaction, value, Vec::new(), Unreached::default(), rng)])
    }

    pub(super) fn on_presence(
        &self,
        now: Timestamp,
        from: &Did,
        rng: &mut dyn CryptoRng,
    ) -> Result<Vec<ServiceEvent>, Reject> {
        self.member(from)?;
        let Phase::CheckingPresence { formed, transaction, value, present, .. } = &self.phase else {
            // Late: the presence check is over.
            return Ok(Vec::new());
        };
        if present.contains(from) {
            return Ok(Vec::new());
        }
        let mut events = vec![ServiceEvent::PresenceConfirmed { did: from.clone() }];
        if present.len() + 1 == formed.members.len() {
            events.push(self.start_signing(now, transaction, *value, Vec::new(), Unreached::default(), rng));
        }
        Ok(events)
    }

    pub(super) fn start_signing(
        &self,
        at: Timestamp,
        transaction: &Transaction,
        value: Amount,
        absent: Vec<Did>,
        unreached: Unreached,
        rng: &mut dyn CryptoRng,
    ) -> ServiceEvent {
        let session_id = SessionId::generate(rng);
        ServiceEvent::SigningStarted { at, session_id, transaction: transaction.clone(), value, absent, unreached }
    }

    pub(super) fn on_transaction_deferred(
        &self,
        now: Timestamp,
        Retry(reason): &Retry,
    ) -> Result<Vec<ServiceEvent>, Reject> {
        match self.phase {
            Phase::AwaitingTransaction { .. } => Ok(vec![ServiceEvent::TransactionDeferred {
                retry_at: now + TRANSACTION_RETRY,
                reason: reason.clone(),
            }]),
            _ => Err(Reject::out_of_phase("deferring a transaction", self.phase.name())),
        }
    }

    pub(super) fn on_signing_finished(
        &self,
        now: Timestamp,
        outcome: &SigningOutcome,
        digests: &[MessageDigest],
        rng: &mut dyn CryptoRng,
    ) -> Result<Vec<ServiceEvent>, Reject> {
        if self.has_ended() {
            // The cohort ended at the same time, e.g. because the host cancelled it.
            return Ok(Vec::new());
        }
        let Phase::Signing { .. } = &self.phase else {
            return Err(Reject::out_of_phase("the end of signing", self.phase.name()));
        };
        Ok(match outcome {
            SigningOutcome::Signed(signed) => vec![ServiceEvent::CohortCompleted {
                at: now,
                outcome: Arc::clone(signed),
                digests: digests.to_vec(),
            }],
            SigningOutcome::Failed { phase, reason, holdouts, culprits, equivocators, unreached } => {
                let failure = CohortFailure::Signing {
                    reason: reason.clone(),
                    holdouts: holdouts.clone(),
                    culprits: culprits.clone(),
                    equivocators: equivocators.clone(),
                    unreached: unreached.clone(),
                };
                self.give_up(now, *phase, failure, rng)
            }
        })
    }
}
