//! The coordinator's signing session: collect nonces, collect partial signatures, aggregate; or take the fallback path.
//!
//! One latch decides the path. [`SessionEvent::PathChosen`] closes it: once the fallback is chosen no partial signature is
//! taken any more, and once the key path is signed the session is over. `key_path` and `fallback` hold the decisions of the
//! two paths.

mod fallback;
mod key_path;

use std::{collections::BTreeMap, fmt, sync::Arc};

use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};

use super::{Signed, SigningOutcome, SigningTask};
use crate::{
    cohort::event::SpendPath,
    did::Did,
    error::{Fault, Faults, Reject, RejectCode, Slot},
    hash::MessageDigest,
    key::Signature,
    machine::Machine,
    message::{
        Body, Bytes, Message, SharedBody,
        sign::{AggregatedNonce, AuthorizationRequest, FallbackAuthorizationRequest},
    },
    time::Timestamp,
};

/// What can happen to a signing session.
#[derive(Clone, Debug)]
pub enum SessionInput {
    /// The cohort starts it.
    Open,
    /// A message arrived from a sender that the transport has authenticated.
    Message(Message),
    /// The host wants the fallback path now.
    Fallback(String),
    /// Time has passed.
    Tick,
}

/// A fact in the life of a signing session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SessionEvent {
    /// It began; the members are asked for nonces.
    SessionOpened {
        /// When.
        at: Timestamp,
    },
    /// A member's public nonce arrived.
    NonceReceived {
        /// Whose.
        did: Did,
        /// The nonce.
        nonce: Bytes<66>,
        /// Of the message.
        digest: MessageDigest,
    },
    /// All nonces are there.
    NoncesAggregated {
        /// When.
        at: Timestamp,
        /// The aggregate nonce.
        nonce: Bytes<66>,
    },
    /// A member's partial signature arrived; it is verified with all others, when the aggregate is.
    PartialSignatureReceived {
        /// Whose.
        did: Did,
        /// The partial signature.
        signature: Bytes<32>,
        /// Of the message.
        digest: MessageDigest,
    },
    /// A member did wrong.
    FaultRecorded {
        /// What it did.
        fault: Fault,
    },
    /// The latch: from here on only this path can finish.
    PathChosen {
        /// When.
        at: Timestamp,
        /// The path.
        path: SpendPath,
        /// Why it is not the key path, in words.
        reason: Option<String>,
        /// Who was missing when the fallback was chosen.
        holdouts: Vec<Did>,
    },
    /// A member's signature on the fallback leaf was verified.
    FallbackSignatureReceived {
        /// Whose.
        did: Did,
        /// The signature.
        signature: Signature,
        /// Of the message.
        digest: MessageDigest,
    },
    /// The transaction is signed.
    SessionCompleted {
        /// When.
        at: Timestamp,
        /// The signed transaction.
        signed: Arc<Signed>,
    },
    /// Neither path can finish.
    SessionFailed {
        /// When.
        at: Timestamp,
        /// Why, in words.
        reason: String,
        /// Who kept silent.
        holdouts: Vec<Did>,
    },
}

/// What the world must do for a signing session.
#[derive(Clone, Debug, PartialEq)]
pub enum SessionEffect {
    /// Tell one member.
    Send {
        /// Whom.
        to: Did,
        /// What.
        body: SharedBody,
    },
    /// Tell the cohort how it ended.
    Finished(SigningOutcome),
}

/// What is known in each phase.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the fields say what they hold")]
pub enum SessionPhase {
    /// Not opened yet.
    Planned,
    /// Members send nonces.
    CollectingNonces { nonces: BTreeMap<Did, Bytes<66>>, deadline: Timestamp },
    /// Members send partial signatures.
    CollectingPartialSignatures {
        nonces: BTreeMap<Did, Bytes<66>>,
        aggregated: Bytes<66>,
        partials: BTreeMap<Did, Bytes<32>>,
        deadline: Timestamp,
    },
    /// The latch fell to the key path: the aggregate signature is valid.
    KeyPath,
    /// The latch fell to the fallback: members sign on its leaf.
    Fallback { signatures: BTreeMap<Did, Signature>, holdouts: Vec<Did>, deadline: Timestamp },
    /// It ended.
    Ended(SigningOutcome),
}

/// The coordinator's signing session.
#[derive(Clone)]
pub struct SigningSession {
    task: Arc<SigningTask>,
    phase: SessionPhase,
    faults: Faults,
}

impl PartialEq for SigningSession {
    fn eq(&self, other: &Self) -> bool {
        self.task == other.task && self.phase == other.phase && self.faults == other.faults
    }
}

impl fmt::Debug for SigningSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningSession")
            .field("session_id", &self.task.session_id)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl SigningSession {
    /// A session that is not opened yet.
    pub fn new(task: Arc<SigningTask>) -> Self {
        Self { task, phase: SessionPhase::Planned, faults: Faults::default() }
    }

    /// What it is to sign.
    pub fn task(&self) -> &Arc<SigningTask> {
        &self.task
    }

    /// What is known now.
    pub fn phase(&self) -> &SessionPhase {
        &self.phase
    }

    /// The misdeeds on record.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The members whose contribution the current phase still waits for.
    pub fn holdouts(&self) -> Vec<Did> {
        let missing = |filled: &dyn Fn(&Did) -> bool| {
            self.task.members.keys().filter(|did| !filled(did)).cloned().collect::<Vec<_>>()
        };
        match &self.phase {
            SessionPhase::CollectingNonces { nonces, .. } => missing(&|did| nonces.contains_key(did)),
            SessionPhase::CollectingPartialSignatures { partials, .. } => {
                missing(&|did| partials.contains_key(did))
            }
            SessionPhase::Fallback { signatures, .. } => missing(&|did| signatures.contains_key(did)),
            SessionPhase::Planned | SessionPhase::KeyPath | SessionPhase::Ended(_) => Vec::new(),
        }
    }

    /// Whether deciding `input` takes so much curve work that it should not run beside other actors: the aggregation of a
    /// large cohort's nonces and partial signatures.
    pub fn is_heavy(&self, input: &SessionInput) -> bool {
        const LARGE: usize = 32;
        matches!(input, SessionInput::Message(_))
            && self.task.members.len() >= LARGE
            && match &self.phase {
                SessionPhase::CollectingNonces { nonces, .. } => nonces.len() + 1 == self.task.members.len(),
                SessionPhase::CollectingPartialSignatures { partials, .. } => {
                    partials.len() + 1 == self.task.members.len()
                }
                _ => false,
            }
    }

    /// The transcript digests that `event` and its effects stand for, in order.
    pub fn transcript_entries(&self, event: &SessionEvent, effects: &[SessionEffect]) -> Vec<MessageDigest> {
        let mut entries = Vec::new();
        if let SessionEvent::NonceReceived { digest, .. }
        | SessionEvent::PartialSignatureReceived { digest, .. }
        | SessionEvent::FallbackSignatureReceived { digest, .. } = event
        {
            entries.push(*digest);
        }
        for effect in effects {
            if let SessionEffect::Send { to, body } = effect {
                entries.push(Message::new(self.task.service.clone(), Some(to.clone()), body.clone()).digest());
            }
        }
        entries
    }

    fn culprits(&self) -> Vec<Did> {
        let guilty = self.faults.iter().filter(|fault| fault.code == RejectCode::BadPartialSignature);
        guilty.map(|fault| fault.did.clone()).collect()
    }

    fn on_message(&self, now: Timestamp, message: &Message) -> Result<Vec<SessionEvent>, Reject> {
        let from = &message.from;
        if message.body.cohort_id() != &self.task.cohort_id {
            return Err(Reject::new(RejectCode::WrongCohort, from, "the message is about another cohort"));
        }
        if !self.task.members.contains_key(from) {
            return Err(Reject::new(RejectCode::NotAMember, from, "the sender is not a member of this cohort"));
        }
        let session_id = match &*message.body {
            Body::NonceContribution(body) => &body.session_id,
            Body::SignatureAuthorization(body) => &body.session_id,
            Body::FallbackSignature(body) => &body.session_id,
            _ => return Err(Reject::new(RejectCode::WrongPhase, from, "the cohort is signing")),
        };
        if *session_id != self.task.session_id {
            return Err(Reject::new(RejectCode::WrongCohort, from, "the message is about another signing session"));
        }
        if let SessionPhase::Ended(SigningOutcome::Signed(_)) = self.phase {
            // k members were enough, and this is one more who did its part: late is no fault.
            return Ok(Vec::new());
        }
        match &*message.body {
            Body::NonceContribution(body) => self.on_nonce(now, from, body.nonce_contribution, message),
            Body::SignatureAuthorization(body) => self.on_partial(now, from, body.partial_signature, message),
            Body::FallbackSignature(body) => self.on_fallback_signature(now, from, body, message),
            _ => Err(Reject::new(RejectCode::WrongPhase, from, "the cohort is signing")),
        }
    }

    fn on_filled_slot(&self, from: &Did, slot: Slot, same: bool) -> Result<Vec<SessionEvent>, Reject> {
        if same {
            return Ok(Vec::new());
        }
        let fault = self.faults.equivocation(from, slot)?;
        Ok(vec![SessionEvent::FaultRecorded { fault }])
    }

    fn on_tick(&self, now: Timestamp) -> Vec<SessionEvent> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        let holdouts = self.holdouts();
        match &self.phase {
            SessionPhase::CollectingNonces { .. } => {
                vec![self.leave_key_path(now, "nonces are missing".to_owned(), holdouts)]
            }
            SessionPhase::CollectingPartialSignatures { .. } => {
                vec![self.leave_key_path(now, "partial signatures are missing".to_owned(), holdouts)]
            }
            SessionPhase::Fallback { .. } => {
                let reason = "fallback signatures are missing".to_owned();
                vec![SessionEvent::SessionFailed { at: now, reason, holdouts }]
            }
            SessionPhase::Planned | SessionPhase::KeyPath | SessionPhase::Ended(_) => Vec::new(),
        }
    }

    fn send_all(&self, body: SharedBody) -> Vec<SessionEffect> {
        let to_all = self.task.members.keys();
        to_all.map(|did| SessionEffect::Send { to: did.clone(), body: body.clone() }).collect()
    }
}

impl Machine for SigningSession {
    type Input = SessionInput;
    type Event = SessionEvent;
    type Effect = SessionEffect;

    fn decide(
        &self,
        now: Timestamp,
        input: &SessionInput,
        _rng: &mut dyn CryptoRng,
    ) -> Result<Vec<SessionEvent>, Reject> {
        match (input, &self.phase) {
            (SessionInput::Open, SessionPhase::Planned) => Ok(vec![SessionEvent::SessionOpened { at: now }]),
            (SessionInput::Open, _) => Err(Reject::out_of_phase("opening", "signing")),
            (SessionInput::Message(message), _) => self.on_message(now, message),
            (
                SessionInput::Fallback(reason),
                SessionPhase::CollectingNonces { .. } | SessionPhase::CollectingPartialSignatures { .. },
            ) => Ok(vec![self.leave_key_path(now, reason.clone(), self.holdouts())]),
            (SessionInput::Fallback(_), _) => Ok(Vec::new()),
            (SessionInput::Tick, _) => Ok(self.on_tick(now)),
        }
    }

    fn apply(&mut self, event: &SessionEvent) {
        let deadline_from = |at: Timestamp| at + self.task.phase_timeout;
        match (event, &mut self.phase) {
            (SessionEvent::SessionOpened { at }, phase) => {
                *phase = SessionPhase::CollectingNonces { nonces: BTreeMap::new(), deadline: deadline_from(*at) };
            }
            (SessionEvent::NonceReceived { did, nonce, .. }, SessionPhase::CollectingNonces { nonces, .. }) => {
                nonces.insert(did.clone(), *nonce);
            }
            (SessionEvent::NoncesAggregated { at, nonce }, SessionPhase::CollectingNonces { nonces, .. }) => {
                self.phase = SessionPhase::CollectingPartialSignatures {
                    nonces: std::mem::take(nonces),
                    aggregated: *nonce,
                    partials: BTreeMap::new(),
                    deadline: deadline_from(*at),
                };
            }
            (
                SessionEvent::PartialSignatureReceived { did, signature, .. },
                SessionPhase::CollectingPartialSignatures { partials, .. },
            ) => {
                partials.insert(did.clone(), *signature);
            }
            (SessionEvent::FaultRecorded { fault }, _) => self.faults.record(fault),
            (SessionEvent::PathChosen { path: SpendPath::KeyPath, .. }, phase) => *phase = SessionPhase::KeyPath,
            (SessionEvent::PathChosen { at, holdouts, .. }, phase) => {
                *phase = SessionPhase::Fallback {
                    signatures: BTreeMap::new(),
                    holdouts: holdouts.clone(),
                    deadline: deadline_from(*at),
                };
            }
            (
                SessionEvent::FallbackSignatureReceived { did, signature, .. },
                SessionPhase::Fallback { signatures, .. },
            ) => {
                signatures.insert(did.clone(), *signature);
            }
            (SessionEvent::SessionCompleted { signed, .. }, phase) => {
                *phase = SessionPhase::Ended(SigningOutcome::Signed(Arc::clone(signed)));
            }
            (SessionEvent::SessionFailed { reason, holdouts, .. }, _) => {
                self.phase = SessionPhase::Ended(SigningOutcome::Failed {
                    reason: reason.clone(),
                    holdouts: holdouts.clone(),
                    culprits: self.culprits(),
                });
            }
            _ => {}
        }
    }

    fn effects(&self, event: &SessionEvent) -> Vec<SessionEffect> {
        let SigningTask { cohort_id, session_id, transaction, value, output, .. } = &*self.task;
        match (event, &self.phase) {
            (SessionEvent::SessionOpened { .. }, _) => self.send_all(
                AuthorizationRequest {
                    cohort_id: cohort_id.clone(),
                    session_id: session_id.clone(),
                    pending_tx: transaction.clone(),
                    prev_out_script_hex: output.script_pubkey().to_owned(),
                    prev_out_value: *value,
                }
                .into(),
            ),
            (SessionEvent::NoncesAggregated { nonce, .. }, _) => self.send_all(
                AggregatedNonce {
                    cohort_id: cohort_id.clone(),
                    session_id: session_id.clone(),
                    aggregated_nonce: *nonce,
                }
                .into(),
            ),
            (SessionEvent::PathChosen { path: SpendPath::ScriptPath, .. }, _) => {
                let Some(leaf) = output.fallback() else { return Vec::new() };
                self.send_all(
                    FallbackAuthorizationRequest {
                        cohort_id: cohort_id.clone(),
                        session_id: session_id.clone(),
                        pending_tx: transaction.clone(),
                        prev_out_script_hex: output.script_pubkey().to_owned(),
                        prev_out_value: *value,
                        fallback_leaf_script_hex: leaf.script().to_owned(),
                    }
                    .into(),
                )
            }
            (
                SessionEvent::SessionCompleted { .. } | SessionEvent::SessionFailed { .. },
                SessionPhase::Ended(outcome),
            ) => vec![SessionEffect::Finished(outcome.clone())],
            _ => Vec::new(),
        }
    }

    fn deadline(&self) -> Option<Timestamp> {
        match &self.phase {
            SessionPhase::CollectingNonces { deadline, .. }
            | SessionPhase::CollectingPartialSignatures { deadline, .. }
            | SessionPhase::Fallback { deadline, .. } => Some(*deadline),
            SessionPhase::Planned | SessionPhase::KeyPath | SessionPhase::Ended(_) => None,
        }
    }
}
