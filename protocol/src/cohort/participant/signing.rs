//! Signing: the transaction is checked first, the secret nonce is used once, and the fallback is signed on request.

use std::sync::Arc;

use bitcoin::{Amount, Script, Transaction};
use musig2::AggNonce;

use super::{
    ParticipantCohort,
    phase::{Phase, Request, Round, Stage},
};
use crate::{
    cohort::event::{ParticipantEvent, SessionEnd, SpendPath},
    did::Did,
    envelope::CLOCK_SKEW,
    error::{Reject, RejectCode},
    id::SessionId,
    message::{
        Body, Bytes, Message,
        control::SignedTransaction,
        sign::{AggregatedNonce, AuthorizationRequest, FallbackAuthorizationRequest},
    },
    output::{TransactionFault, check_beacon_transaction, check_fee, check_signed, unsigned},
    time::Timestamp,
};

impl ParticipantCohort {
    pub(super) fn on_authorization_request(
        &self,
        now: Timestamp,
        from: &Did,
        body: &AuthorizationRequest,
    ) -> Result<Vec<ParticipantEvent>, Reject> {
        let round = match &self.phase {
            Phase::Approved { round, .. } => round,
            Phase::Signing { request, .. } => {
                let same = request.is(&body.session_id, &body.pending_tx, body.prev_out_value);
                return if same { Ok(Vec::new()) } else { Err(spent(from)) };
            }
            _ => {
                return Err(Reject::new(RejectCode::WrongPhase, from, "we have not approved any data to announce"));
            }
        };
        self.check(from, round, &body.pending_tx, &body.prev_out_script_hex, body.prev_out_value)?;
        Ok(vec![ParticipantEvent::SigningRequested {
            at: now,
            session_id: body.session_id.clone(),
            transaction: body.pending_tx.clone(),
            value: body.prev_out_value,
            path: SpendPath::KeyPath,
            until: body.session_deadline.map(|until| self.bounded(now, until)),
        }])
    }

    pub(super) fn on_signing_decided(&self, now: Timestamp, approved: bool) -> Vec<ParticipantEvent> {
        match &self.phase {
            Phase::Signing { request, stage: Stage::Deciding(path), .. } if approved => {
                let spent = *path == SpendPath::KeyPath && self.is_spent(&request.session_id);
                let mut events = vec![ParticipantEvent::SigningApproved { at: now }];
                events.extend(spent.then_some(ParticipantEvent::NonceLost { at: now }));
                events
            }
            Phase::Signing { stage: Stage::Deciding(_), .. } => {
                vec![ParticipantEvent::SessionEnded { at: now, reason: SessionEnd::SigningRefused }]
            }
            _ => self.out_of_date(),
        }
    }

    pub(super) fn on_nonce_opened(&self, now: Timestamp, nonce: Bytes<66>) -> Vec<ParticipantEvent> {
        match &self.phase {
            Phase::Signing { request, stage: Stage::Approved(SpendPath::KeyPath), .. }
                if !self.is_spent(&request.session_id) =>
            {
                vec![ParticipantEvent::NonceSent { at: now, nonce }]
            }
            _ => self.out_of_date(),
        }
    }

    pub(super) fn on_aggregated_nonce(
        &self,
        now: Timestamp,
        from: &Did,
        body: &AggregatedNonce,
    ) -> Result<Vec<ParticipantEvent>, Reject> {
        let (request, stage) = match &self.phase {
            Phase::Signing { request, stage, .. } => (request, stage),
            // As below, from an even older backup: the key path of that session is spent, whatever is requested
            // later.
            Phase::Approved { .. } => return Ok(self.on_nonce_seen(now, &body.session_id)),
            _ => return Err(Reject::new(RejectCode::WrongPhase, from, "no signing session is open")),
        };
        if request.session_id != body.session_id {
            return Err(Reject::new(RejectCode::WrongCohort, from, "the message is about another signing session"));
        }
        match stage {
            // An attempt to sign consumes the secret nonce, so an invalid aggregate nonce must not get that far.
            Stage::NonceSent(_) if AggNonce::from_bytes(&body.aggregated_nonce.0).is_err() => {
                Err(Reject::new(RejectCode::InvalidNonce, from, "aggregatedNonce is not two points or infinity"))
            }
            Stage::NonceSent(_) => {
                Ok(vec![ParticipantEvent::AggregatedNonceReceived { at: now, nonce: body.aggregated_nonce }])
            }
            // The aggregate nonce includes a nonce of ours that we do not know: we were restored from a backup.
            Stage::Deciding(SpendPath::KeyPath) | Stage::Approved(SpendPath::KeyPath) => {
                Ok(self.on_nonce_seen(now, &body.session_id))
            }
            Stage::Signing(first) | Stage::PartialSent { aggregated: first } if *first == body.aggregated_nonce => {
                Ok(Vec::new())
            }
            // Two signatures with one nonce would reveal our key.
            Stage::Signing(_) | Stage::PartialSent { .. } => {
                Err(Reject::new(RejectCode::Equivocation, from, "another aggregate nonce was received before"))
            }
            _ => Err(Reject::new(RejectCode::WrongPhase, from, "we are not waiting for an aggregate nonce")),
        }
    }

    /// Handles a message of our own that the transport has stored. It shows nonces that were sent after the journal
    /// that we have was written. A session with such a nonce is spent, whatever our journal has of it.
    pub(super) fn on_own_message(&self, now: Timestamp, message: &Message) -> Vec<ParticipantEvent> {
        let Body::NonceContribution(body) = &*message.body else { return Vec::new() };
        if body.cohort_id != self.advert.cohort_id || message.from != self.config.did {
            return Vec::new();
        }
        match &self.phase {
            Phase::Signing { request, stage, .. } if request.session_id == body.session_id => match stage {
                Stage::NonceSent(ours) if *ours != body.nonce_contribution => {
                    self.on_nonce_seen(now, &body.session_id)
                }
                Stage::Deciding(SpendPath::KeyPath) | Stage::Approved(SpendPath::KeyPath) => {
                    self.on_nonce_seen(now, &body.session_id)
                }
                _ => Vec::new(),
            },
            Phase::Signing { .. } | Phase::Ended { .. } => Vec::new(),
            _ => self.on_nonce_seen(now, &body.session_id),
        }
    }

    fn on_nonce_seen(&self, now: Timestamp, session_id: &SessionId) -> Vec<ParticipantEvent> {
        if self.is_spent(session_id) {
            return Vec::new();
        }
        let mut events = vec![ParticipantEvent::NonceSeen { at: now, session_id: session_id.clone() }];
        if let Phase::Signing { stage: Stage::Approved(SpendPath::KeyPath) | Stage::NonceSent(_), .. } = &self.phase
        {
            events.push(ParticipantEvent::NonceLost { at: now });
        }
        events
    }

    pub(super) fn on_presence_request(&self) -> Vec<ParticipantEvent> {
        match &self.phase {
            Phase::Approved { present: false, .. } => vec![ParticipantEvent::PresenceConfirmed],
            // Confirmed already, or not expected in this phase: harmless.
            _ => Vec::new(),
        }
    }

    pub(super) fn on_partial_signed(&self, now: Timestamp, signature: Bytes<32>) -> Vec<ParticipantEvent> {
        match &self.phase {
            Phase::Signing { stage: Stage::Signing(_), .. } => {
                vec![ParticipantEvent::PartialSignatureSent { at: now, signature }]
            }
            _ => self.out_of_date(),
        }
    }

    pub(super) fn on_nonce_lost(&self, now: Timestamp) -> Vec<ParticipantEvent> {
        match &self.phase {
            Phase::Signing { stage: Stage::NonceSent(_) | Stage::Signing(_), .. } => {
                vec![ParticipantEvent::NonceLost { at: now }]
            }
            _ => self.out_of_date(),
        }
    }

    pub(super) fn on_fallback_request(
        &self,
        now: Timestamp,
        from: &Did,
        body: &FallbackAuthorizationRequest,
    ) -> Result<Vec<ParticipantEvent>, Reject> {
        let round = match &self.phase {
            Phase::Approved { round, .. } | Phase::Signing { round, .. } => round,
            _ => {
                return Err(Reject::new(RejectCode::WrongPhase, from, "we have not approved any data to announce"));
            }
        };
        let leaf = round.output.fallback().map(crate::output::FallbackLeaf::script);
        if leaf != Some(body.fallback_leaf_script_hex.as_script()) {
            let detail = "fallbackLeafScriptHex is not the fallback leaf of the cohort's output";
            return Err(Reject::new(RejectCode::TransactionMismatch, from, detail));
        }
        let Phase::Signing { request, stage, .. } = &self.phase else {
            self.check(from, round, &body.pending_tx, &body.prev_out_script_hex, body.prev_out_value)?;
            return Ok(vec![ParticipantEvent::SigningRequested {
                at: now,
                session_id: body.session_id.clone(),
                transaction: body.pending_tx.clone(),
                value: body.prev_out_value,
                path: SpendPath::ScriptPath,
                until: None,
            }]);
        };
        // The fallback is for the same transaction that the key path was requested for. The script was checked above.
        if !request.is(&body.session_id, &body.pending_tx, body.prev_out_value) {
            return Err(spent(from));
        }
        match stage {
            Stage::Deciding(SpendPath::ScriptPath)
            | Stage::Approved(SpendPath::ScriptPath)
            | Stage::FallbackAfterPartial
            | Stage::FallbackSent(_) => Ok(Vec::new()),
            _ => Ok(vec![ParticipantEvent::FallbackRequested { at: now }]),
        }
    }

    /// The service's own deadline, plus the time that its last message takes. No later than one cohort TTL from now:
    /// otherwise the service could occupy our slot without limit.
    fn bounded(&self, now: Timestamp, until: u64) -> Timestamp {
        (Timestamp::from_secs(until) + CLOCK_SKEW).min(now + self.timing.cohort_ttl)
    }

    /// Verifies the signed transaction that the service sends at the end: it is the one that we were asked to sign
    /// or, if we were not asked, one that announces what we approved; and the cohort has signed it.
    pub(super) fn on_signed(
        &self,
        now: Timestamp,
        from: &Did,
        signed: &SignedTransaction,
    ) -> Result<Vec<ParticipantEvent>, Reject> {
        let (round, request) = match &self.phase {
            Phase::Approved { round, .. } => (round, None),
            Phase::Signing { round, request, .. } => (round, Some(request)),
            _ => {
                return Err(Reject::new(RejectCode::WrongPhase, from, "we have not approved any data to announce"));
            }
        };
        let (tx, value) = (&signed.tx, request.map_or(signed.prev_out_value, |request| request.value));
        let bare = unsigned(tx);
        let is_ours = match request {
            Some(request) if request.transaction == bare => Ok(()),
            Some(_) => Err(TransactionFault::AnotherTransaction),
            None => {
                check_beacon_transaction(&bare, &round.output, round.output.script_pubkey(), value, &round.signal)
            }
        };
        let path = is_ours
            .and_then(|()| check_signed(tx, &round.output, value))
            .map_err(|fault| Reject::new(RejectCode::TransactionMismatch, from, fault))?;
        Ok(vec![
            ParticipantEvent::TransactionSeen { at: now, transaction: Arc::clone(tx), path },
            ParticipantEvent::SessionEnded { at: now, reason: SessionEnd::Completed { txid: tx.compute_txid() } },
        ])
    }

    /// All checks of the transaction, before a nonce is opened for it.
    fn check(
        &self,
        from: &Did,
        round: &Round,
        transaction: &Transaction,
        prevout_script: &Script,
        value: Amount,
    ) -> Result<(), Reject> {
        check_beacon_transaction(transaction, &round.output, prevout_script, value, &round.signal)
            .and_then(|()| check_fee(transaction, &round.output, value, self.config.max_fee_rate))
            .map_err(|fault| Reject::new(RejectCode::TransactionMismatch, from, fault))
    }

    pub(super) fn on_fallback_signed(&self, now: Timestamp, signature: Bytes<64>) -> Vec<ParticipantEvent> {
        match &self.phase {
            Phase::Signing {
                stage: Stage::Approved(SpendPath::ScriptPath) | Stage::FallbackAfterPartial, ..
            } => vec![ParticipantEvent::FallbackSignatureSent { at: now, signature }],
            _ => self.out_of_date(),
        }
    }
}

impl Request {
    fn is(&self, session_id: &SessionId, transaction: &Transaction, value: Amount) -> bool {
        self.session_id == *session_id && self.transaction == *transaction && self.value == value
    }
}

fn spent(from: &Did) -> Reject {
    Reject::new(RejectCode::SessionSpent, from, "we take part in another signing session of this cohort")
}
