//! The coordinator's signing session: collect nonces, collect partial signatures, aggregate; or take the fallback
//! path.
//!
//! One latch decides the path. [`SessionEvent::PathChosen`] closes it: once the fallback is chosen no partial
//! signature is accepted any more, and once the key path is signed the session is over. `key_path` and `fallback`
//! hold the decisions of the two paths.

mod effects;
mod event;
mod fallback;
mod key_path;
mod phase;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, OnceLock},
};

use rand_core::CryptoRng;

pub use self::{
    event::{SessionEffect, SessionEvent, SessionInput},
    phase::SessionPhase,
};
use super::{SigningOutcome, SigningTask, partial::PartialVerifier};
use crate::{
    cohort::{
        Undelivered, Unreached,
        service::rules::{Answer, TimedPhase},
    },
    did::Did,
    error::{Faults, Reject, RejectCode, Slot},
    hash::MessageDigest,
    machine::Machine,
    message::{Body, Message},
    output::SpendPath,
    time::Timestamp,
};

/// The coordinator's signing session.
#[derive(Clone)]
pub struct SigningSession {
    task: Arc<SigningTask>,
    phase: SessionPhase,
    /// The number of times that the current phase was extended.
    extensions: u32,
    faults: Faults,
    /// Computed from the aggregate nonce when the first partial signature arrives.
    verifier: OnceLock<Option<PartialVerifier>>,
}

impl PartialEq for SigningSession {
    fn eq(&self, other: &Self) -> bool {
        self.task == other.task
            && self.phase == other.phase
            && self.extensions == other.extensions
            && self.faults == other.faults
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
        let (phase, faults) = (SessionPhase::Planned, Faults::default());
        Self { task, phase, extensions: 0, faults, verifier: OnceLock::new() }
    }

    /// The transaction to sign and the members that sign it.
    pub fn task(&self) -> &Arc<SigningTask> {
        &self.task
    }

    /// The current phase.
    pub fn phase(&self) -> &SessionPhase {
        &self.phase
    }

    /// The recorded faults.
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

    /// The latest time at which this session can end, with all extensions and whichever members are missing. Members
    /// are notified of it, so that they are present for the fallback.
    pub(super) fn last_deadline(&self) -> Option<Timestamp> {
        const PHASES: [TimedPhase; 3] = [TimedPhase::Nonces, TimedPhase::PartialSignatures, TimedPhase::Fallback];
        let deadline = self.deadline()?;
        let longest = |phase| self.task.rules.longest(phase, &self.task.timing);
        Some(PHASES.into_iter().fold(deadline, |end, phase| end + longest(phase)))
    }

    /// Whether deciding `input` takes so much curve work that it should not block other actors: the aggregation of a
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

    /// The transcript digests of `event` and its effects, in order.
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

    /// The members that sent two different contributions for one slot, and are not among the culprits. They are listed
    /// separately, so that each member is blamed only for what it did.
    fn equivocators(&self, culprits: &[Did]) -> Vec<Did> {
        let faults = self.faults.iter().filter(|fault| fault.code == RejectCode::Equivocation);
        let guilty: BTreeSet<&Did> = faults.map(|fault| &fault.did).collect();
        guilty.into_iter().filter(|did| !culprits.contains(did)).cloned().collect()
    }

    /// The members that have sent only invalid contributions in the current phase. A later valid contribution clears
    /// its sender.
    fn culprits(&self) -> Vec<Did> {
        let slot = match &self.phase {
            SessionPhase::CollectingNonces { .. } => Slot::Nonce,
            SessionPhase::CollectingPartialSignatures { .. } => Slot::PartialSignature,
            SessionPhase::Fallback { .. } => Slot::FallbackSignature,
            SessionPhase::Planned | SessionPhase::KeyPath | SessionPhase::Ended(_) => return Vec::new(),
        };
        let missing: BTreeSet<Did> = self.holdouts().into_iter().collect();
        let invalid =
            self.faults.iter().filter(|fault| fault.slot == slot && fault.code != RejectCode::Equivocation);
        invalid.map(|fault| fault.did.clone()).filter(|did| missing.contains(did)).collect()
    }

    /// The members that have sent nothing in the current phase.
    fn silent(&self) -> Vec<Did> {
        let culprits = self.culprits();
        self.holdouts().into_iter().filter(|did| !culprits.contains(did)).collect()
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
            // k signatures were enough; one more is late, which is not a fault.
            return Ok(Vec::new());
        }
        match &*message.body {
            Body::NonceContribution(body) => self.on_nonce(now, from, body.nonce_contribution, message),
            Body::SignatureAuthorization(body) => self.on_partial(now, from, body.partial_signature, message),
            Body::FallbackSignature(body) => self.on_fallback_signature(now, from, body, message),
            _ => Err(Reject::new(RejectCode::WrongPhase, from, "the cohort is signing")),
        }
    }

    /// Handles a contribution that fails its check: it is not stored, and its sender may send a valid one until the
    /// deadline.
    fn on_invalid(
        &self,
        from: &Did,
        code: RejectCode,
        slot: Slot,
        detail: &str,
    ) -> Result<Vec<SessionEvent>, Reject> {
        let fault = self.faults.observe(from, code, slot, detail.to_owned())?;
        Ok(vec![SessionEvent::FaultRecorded { fault }])
    }

    fn on_filled_slot(&self, from: &Did, slot: Slot, same: bool) -> Result<Vec<SessionEvent>, Reject> {
        if same {
            return Ok(Vec::new());
        }
        let fault = self.faults.equivocation(from, slot)?;
        Ok(vec![SessionEvent::FaultRecorded { fault }])
    }

    /// A phase that lapsed while the service was down is not a fault of its members: they get a grace period to
    /// answer the repeated request.
    fn on_resumed(&self, now: Timestamp) -> Vec<SessionEvent> {
        let Some(phase) = self.phase.timed().filter(|_| self.deadline().is_some_and(|deadline| deadline <= now))
        else {
            return Vec::new();
        };
        vec![SessionEvent::GraceGiven {
            at: now,
            phase,
            until: now + self.task.rules.grace(phase, &self.task.timing),
        }]
    }

    fn on_tick(&self, now: Timestamp, undelivered: &BTreeMap<Did, Undelivered>) -> Vec<SessionEvent> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        let Some(phase) = self.phase.timed() else { return Vec::new() };
        let rule = self.task.rules.rule(phase);
        let until = now + self.task.rules.timeout(phase, &self.task.timing);
        if self.extensions < rule.extensions && until > now {
            return vec![SessionEvent::PhaseExtended { at: now, phase, until }];
        }
        let missing = match phase {
            TimedPhase::Nonces => "nonces are missing",
            TimedPhase::PartialSignatures => "partial signatures are missing",
            _ => "fallback signatures are missing",
        };
        // Who was not reached could not answer.
        let (holdouts, unreached) = Unreached::among(self.silent(), undelivered);
        let reason = if unreached.is_empty() { missing.to_owned() } else { format!("{missing}; {unreached}") };
        match rule.then {
            Answer::FallBack if phase != TimedPhase::Fallback => {
                vec![self.leave_key_path(now, reason, holdouts, unreached)]
            }
            _ => vec![SessionEvent::SessionFailed { at: now, phase, reason, holdouts, unreached }],
        }
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
            (SessionInput::Open, SessionPhase::Planned) => {
                let (absent, unreached) = (&self.task.absent, &self.task.unreached);
                Ok(vec![if absent.is_empty() && unreached.is_empty() {
                    SessionEvent::SessionOpened { at: now }
                } else {
                    let gone = "members did not confirm their presence";
                    let reason =
                        if unreached.is_empty() { gone.to_owned() } else { format!("{gone}; {unreached}") };
                    self.leave_key_path(now, reason, absent.clone(), unreached.clone())
                }])
            }
            (SessionInput::Open, _) => Err(Reject::out_of_phase("opening", "signing")),
            (SessionInput::Message(message), _) => self.on_message(now, message),
            (
                SessionInput::Fallback(reason),
                SessionPhase::CollectingNonces { .. } | SessionPhase::CollectingPartialSignatures { .. },
            ) => Ok(vec![self.leave_key_path(now, reason.clone(), self.silent(), Unreached::default())]),
            (SessionInput::Fallback(_), _) => Ok(Vec::new()),
            (SessionInput::Resumed, _) => Ok(self.on_resumed(now)),
            (SessionInput::Tick, _) => Ok(self.on_tick(now, &BTreeMap::new())),
            (SessionInput::Lapsed { undelivered }, _) => Ok(self.on_tick(now, undelivered)),
        }
    }

    fn apply(&mut self, event: &SessionEvent) {
        let before = std::mem::discriminant(&self.phase);
        let task = Arc::clone(&self.task);
        let deadline_from = |phase, at: Timestamp| at + task.rules.timeout(phase, &task.timing);
        match (event, &mut self.phase) {
            (
                SessionEvent::PhaseExtended { until, .. } | SessionEvent::GraceGiven { until, .. },
                SessionPhase::CollectingNonces { deadline, .. }
                | SessionPhase::CollectingPartialSignatures { deadline, .. }
                | SessionPhase::Fallback { deadline, .. },
            ) => *deadline = *until,
            (SessionEvent::SessionOpened { at }, phase) => {
                *phase = SessionPhase::CollectingNonces {
                    nonces: BTreeMap::new(),
                    deadline: deadline_from(TimedPhase::Nonces, *at),
                };
            }
            (SessionEvent::NonceReceived { did, nonce, .. }, SessionPhase::CollectingNonces { nonces, .. }) => {
                nonces.insert(did.clone(), *nonce);
            }
            (SessionEvent::NoncesAggregated { at, nonce }, SessionPhase::CollectingNonces { nonces, .. }) => {
                self.phase = SessionPhase::CollectingPartialSignatures {
                    nonces: std::mem::take(nonces),
                    aggregated: *nonce,
                    partials: BTreeMap::new(),
                    deadline: deadline_from(TimedPhase::PartialSignatures, *at),
                };
            }
            (
                SessionEvent::PartialSignatureReceived { did, signature, .. },
                SessionPhase::CollectingPartialSignatures { partials, .. },
            ) => {
                partials.insert(did.clone(), *signature);
            }
            (SessionEvent::FaultRecorded { fault }, phase) => {
                self.faults.record(fault);
                // From a journal of an earlier version, which stored it unverified.
                if let SessionPhase::CollectingPartialSignatures { partials, .. } = phase
                    && fault.code == RejectCode::BadPartialSignature
                {
                    partials.remove(&fault.did);
                }
            }
            (SessionEvent::PathChosen { path: SpendPath::KeyPath, .. }, phase) => *phase = SessionPhase::KeyPath,
            (SessionEvent::PathChosen { at, holdouts, unreached, .. }, _) => {
                let culprits = self.culprits();
                self.phase = SessionPhase::Fallback {
                    signatures: BTreeMap::new(),
                    holdouts: holdouts.clone(),
                    culprits,
                    unreached: unreached.clone(),
                    deadline: deadline_from(TimedPhase::Fallback, *at),
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
            (SessionEvent::SessionFailed { phase, reason, holdouts, unreached, .. }, _) => {
                let mut culprits = self.culprits();
                if let SessionPhase::Fallback { culprits: of_key_path, .. } = &self.phase {
                    culprits.extend(of_key_path.iter().cloned());
                    culprits.sort();
                    culprits.dedup();
                }
                self.phase = SessionPhase::Ended(SigningOutcome::Failed {
                    phase: *phase,
                    reason: reason.clone(),
                    holdouts: holdouts.clone(),
                    equivocators: self.equivocators(&culprits),
                    culprits,
                    unreached: unreached.clone(),
                });
            }
            _ => {}
        }
        if std::mem::discriminant(&self.phase) != before {
            self.extensions = 0;
        } else if let SessionEvent::PhaseExtended { .. } = event {
            self.extensions = self.extensions.saturating_add(1);
        }
    }

    fn effects(&self, event: &SessionEvent) -> Vec<SessionEffect> {
        self.effects_of(event)
    }

    fn resume(&self) -> Vec<SessionEffect> {
        self.owed()
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
