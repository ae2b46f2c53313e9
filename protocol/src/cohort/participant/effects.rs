//! The effects of a participant's events: once when an event happens, and again after a restart until they are
//! answered.

use std::sync::Arc;

use super::{
    ParticipantCohort, ParticipantEffect,
    phase::{Phase, Request, Round, Stage},
};
use crate::{
    cohort::event::{ParticipantEvent, SpendPath},
    hash::MessageDigest,
    message::{
        Bytes, Message, SharedBody,
        control::Presence,
        keygen::CohortOptIn,
        sign::{FallbackSignature, NonceContribution, SignatureAuthorization},
        update::{SubmitNonIncluded, SubmitUpdate, ValidationAck},
    },
    output::key_path_sighash,
    update::SignedUpdate,
};

impl ParticipantCohort {
    pub(super) fn effects_of(&self, event: &ParticipantEvent) -> Vec<ParticipantEffect> {
        match (event, &self.phase) {
            (ParticipantEvent::CohortDiscovered { .. }, _) => vec![ParticipantEffect::AskJoin],
            (ParticipantEvent::OptedIn { .. }, _) => vec![self.opt_in()],
            (ParticipantEvent::CohortReady { output, .. }, _) => {
                vec![ParticipantEffect::AskUpdate { output: output.clone() }]
            }
            (ParticipantEvent::UpdateSubmitted { update, .. }, _) => vec![self.submission(Some(update))],
            (ParticipantEvent::UpdateDeclined { .. }, _) => vec![self.submission(None)],
            (ParticipantEvent::DataReceived { data, verdict, .. }, _) => {
                vec![ParticipantEffect::AskValidation { data: Arc::clone(data), verdict: verdict.clone() }]
            }
            (ParticipantEvent::ValidationSent { approved, .. }, _) => vec![self.verdict(*approved)],
            (ParticipantEvent::PresenceConfirmed, _) => vec![self.presence()],
            (ParticipantEvent::SigningRequested { transaction, value, path, .. }, _) => {
                vec![ParticipantEffect::AskSigning { transaction: transaction.clone(), value: *value, path: *path }]
            }
            (
                ParticipantEvent::SigningApproved { .. } | ParticipantEvent::FallbackRequested { .. },
                Phase::Signing { round, request, stage, .. },
            ) => self.make_signature(round, request, stage),
            (ParticipantEvent::NonceSent { nonce, .. }, Phase::Signing { request, .. }) => {
                vec![self.send(NonceContribution {
                    cohort_id: self.advert.cohort_id.clone(),
                    session_id: request.session_id.clone(),
                    nonce_contribution: *nonce,
                })]
            }
            (ParticipantEvent::AggregatedNonceReceived { nonce, .. }, Phase::Signing { round, request, .. }) => {
                let prevout = crate::signing::prevout(&round.output, request.value);
                // The request was checked to have exactly one input, so it has a signature hash.
                let Ok(sighash) = key_path_sighash(&request.transaction, &prevout) else { return Vec::new() };
                vec![ParticipantEffect::SignPartial {
                    session_id: request.session_id.clone(),
                    output: round.output.clone(),
                    aggregated: *nonce,
                    sighash,
                }]
            }
            (ParticipantEvent::PartialSignatureSent { signature, .. }, Phase::Signing { request, .. }) => {
                vec![self.send(SignatureAuthorization {
                    cohort_id: self.advert.cohort_id.clone(),
                    session_id: request.session_id.clone(),
                    partial_signature: *signature,
                })]
            }
            (ParticipantEvent::FallbackSignatureSent { signature, .. }, Phase::Signing { request, .. }) => {
                vec![self.fallback_signature(request, *signature)]
            }
            _ => Vec::new(),
        }
    }

    /// The host's open questions, and the messages that may not have reached the service. A nonce and a partial
    /// signature are never sent again: the TypeScript implementation would fail its cohort over them. If a restart
    /// lost one, the service takes the fallback.
    pub(super) fn owed(&self) -> Vec<ParticipantEffect> {
        match &self.phase {
            Phase::Planned | Phase::Ended { .. } | Phase::OptedIn { accepted: true, .. } => Vec::new(),
            Phase::Invited { .. } => vec![ParticipantEffect::AskJoin],
            Phase::OptedIn { .. } => vec![self.opt_in()],
            Phase::Ready { output, .. } => vec![ParticipantEffect::AskUpdate { output: output.clone() }],
            Phase::Submitted { update, .. } => vec![self.submission(update.as_ref())],
            Phase::Validating { data, verdict, .. } => {
                vec![ParticipantEffect::AskValidation { data: Arc::clone(data), verdict: verdict.clone() }]
            }
            Phase::Approved { present, .. } => {
                let mut effects = vec![self.verdict(true)];
                effects.extend(present.then(|| self.presence()));
                effects
            }
            Phase::Signing { request, stage: Stage::Deciding(path), .. } => vec![ParticipantEffect::AskSigning {
                transaction: request.transaction.clone(),
                value: request.value,
                path: *path,
            }],
            Phase::Signing { request, stage: Stage::FallbackSent(signature), .. } => {
                vec![self.fallback_signature(request, *signature)]
            }
            Phase::Signing { round, request, stage, .. } => self.make_signature(round, request, stage),
        }
    }

    /// The effects that make the signature, or the nonce, that the host has approved.
    fn make_signature(&self, round: &Round, request: &Request, stage: &Stage) -> Vec<ParticipantEffect> {
        match stage {
            Stage::Approved(SpendPath::KeyPath) if !self.is_spent(&request.session_id) => {
                let session_id = request.session_id.clone();
                vec![ParticipantEffect::OpenNonce { session_id, output: round.output.clone() }]
            }
            Stage::Approved(SpendPath::ScriptPath) | Stage::FallbackAfterPartial => {
                let sighash = request.fallback_sighash(&round.output);
                sighash.into_iter().map(|sighash| ParticipantEffect::SignFallback { sighash }).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The digest of our opt-in.
    pub(super) fn opt_in_digest(&self) -> MessageDigest {
        Message::new(self.config.did.clone(), Some(self.advert.service.clone()), self.opt_in_body()).digest()
    }

    fn opt_in(&self) -> ParticipantEffect {
        self.send(self.opt_in_body())
    }

    fn opt_in_body(&self) -> CohortOptIn {
        CohortOptIn {
            cohort_id: self.advert.cohort_id.clone(),
            participant_pk: Bytes(self.config.participant_key.to_bytes()),
            communication_pk: Bytes(self.config.communication_key.to_bytes()),
            genesis_document: self.config.genesis_document.clone(),
            invite: self.config.invite.as_ref().map(|token| token.prove(&self.advert.cohort_id, &self.config.did)),
        }
    }

    fn submission(&self, update: Option<&SignedUpdate>) -> ParticipantEffect {
        let cohort_id = self.advert.cohort_id.clone();
        match update {
            Some(update) => self.send(SubmitUpdate { cohort_id, signed_update: Arc::new(update.value().clone()) }),
            None => self.send(SubmitNonIncluded { cohort_id }),
        }
    }

    fn verdict(&self, approved: bool) -> ParticipantEffect {
        self.send(ValidationAck { cohort_id: self.advert.cohort_id.clone(), approved })
    }

    fn presence(&self) -> ParticipantEffect {
        self.send(Presence { cohort_id: self.advert.cohort_id.clone() })
    }

    fn fallback_signature(&self, request: &Request, signature: Bytes<64>) -> ParticipantEffect {
        self.send(FallbackSignature {
            cohort_id: self.advert.cohort_id.clone(),
            session_id: request.session_id.clone(),
            signer_pk: Bytes(self.config.participant_key.x_only().to_bytes()),
            fallback_signature: signature,
        })
    }

    fn send(&self, body: impl Into<SharedBody>) -> ParticipantEffect {
        ParticipantEffect::Send { to: self.advert.service.clone(), body: body.into() }
    }
}
