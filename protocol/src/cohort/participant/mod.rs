//! A participant's side of one cohort: joining, submitting or declining, validating, and signing.
//!
//! It trusts the service with nothing but liveness. It derives the address from keys and terms, recomputes the signal
//! from the data, and checks the transaction against both; the host's policy can only be stricter. [`phase`] is the
//! state; `joining`, `data` and `signing` hold the decisions, `effects` their effects. [`membership`] is the participant in
//! all its cohorts.

mod data;
mod effects;
mod joining;
pub mod membership;
pub mod phase;
mod signing;

use std::{collections::BTreeSet, fmt, sync::Arc};

use bitcoin::{Amount, FeeRate, Transaction};
use rand_core::CryptoRng;
use serde_json::Value;

use self::phase::{Phase, Round};
pub use super::Advert;
use super::{
    Timing,
    event::{ParticipantEvent, SessionEnd, SpendPath},
};
use crate::{
    beacon::{BeaconData, BeaconRegistry},
    did::Did,
    envelope::CLOCK_SKEW,
    error::{Fatal, Reject, RejectCode},
    hash::SignalBytes,
    id::SessionId,
    invite::InviteToken,
    key::PublicKey,
    machine::Machine,
    message::{Body, Bytes, Message, SharedBody, control::CohortEnded},
    output::{BeaconOutput, KeyAggregator},
    sidecar::MemberRecord,
    time::Timestamp,
    update::Submission,
};

/// A participant's identity and settings, for every cohort that it joins.
#[derive(Clone, Debug)]
pub struct ParticipantConfig {
    /// Its identifier.
    pub did: Did,
    /// The key that it signs beacon transactions with.
    pub participant_key: PublicKey,
    /// The key that its DID proves.
    pub communication_key: PublicKey,
    /// The genesis document of an EXTERNAL DID.
    pub genesis_document: Option<Arc<Value>>,
    /// An invite, for services that require one.
    pub invite: Option<InviteToken>,
    /// How long to wait for the service.
    pub timing: Timing,
    /// The highest fee rate of a transaction that it signs; see
    /// [`DEFAULT_MAX_FEE_RATE`](crate::output::DEFAULT_MAX_FEE_RATE).
    pub max_fee_rate: FeeRate,
    /// The beacon types that the host knows.
    pub beacons: BeaconRegistry,
    /// Aggregates keys: directly, or behind a cache shared with other machines.
    pub aggregator: Arc<dyn KeyAggregator>,
}

/// An input of a participant in a cohort.
#[derive(Clone, Debug)]
pub enum ParticipantInput {
    /// The advert was read.
    Discover,
    /// The host's answer to [`ParticipantEffect::AskJoin`].
    JoinDecided(bool),
    /// A message arrived from a sender that the transport has authenticated.
    Message(Message),
    /// A message that the transport had stored before it was connected. A message from before our opt-in belongs to a
    /// previous run of this identity and is ignored.
    Stored {
        /// The message.
        message: Message,
        /// When it was sent, as its sender states it.
        said: Timestamp,
    },
    /// The host's answer to [`ParticipantEffect::AskUpdate`]: its update, or `None` to decline. An update that breaks a rule
    /// is not submitted.
    UpdateDecided(Option<Submission>),
    /// The host's answer to [`ParticipantEffect::AskValidation`]. Data that fails our checks is rejected even if the
    /// host approves.
    ValidationDecided(bool),
    /// The host's answer to [`ParticipantEffect::AskSigning`].
    SigningDecided(bool),
    /// The nonce that [`ParticipantEffect::OpenNonce`] asked for.
    NonceOpened(Bytes<66>),
    /// The partial signature that [`ParticipantEffect::SignPartial`] asked for.
    PartialSigned(Bytes<32>),
    /// The session was replayed from a journal, which an earlier version of the software may have written. Fed before
    /// any other input.
    Resumed,
    /// The secret nonce is lost, e.g. in a restart after it was sent. Changes nothing where no nonce was open. After
    /// a restart it comes before the effects of [`Machine::resume`], which may open a new one.
    NonceLost,
    /// A message of our own was received from a transport that stores every party's messages. After a restart the
    /// stored messages come before the effects of [`Machine::resume`]: a journal from a backup does not know which
    /// nonces have been sent since.
    Seen(Message),
    /// The signature that [`ParticipantEffect::SignFallback`] asked for.
    FallbackSigned(Bytes<64>),
    /// The host leaves the cohort.
    Leave,
    /// Our side cannot continue the session.
    Abort(Fatal),
    /// Time has passed.
    Tick,
}

/// An action that the driver must perform for a participant in a cohort.
#[derive(Clone, Debug, PartialEq)]
pub enum ParticipantEffect {
    /// Send a message to the service.
    Send {
        /// The service.
        to: Did,
        /// The message.
        body: SharedBody,
    },
    /// Ask the host whether to join.
    AskJoin,
    /// Ask the host for its update. It may announce a beacon at the cohort's address.
    AskUpdate {
        /// The cohort's output.
        output: BeaconOutput,
    },
    /// Ask the host whether the aggregated data is correct.
    AskValidation {
        /// The data.
        data: Arc<BeaconData>,
        /// The signal recomputed from it, or why it is wrong.
        verdict: Result<SignalBytes, String>,
    },
    /// Ask the host whether to sign. The transaction has been checked.
    AskSigning {
        /// The unsigned transaction.
        transaction: Transaction,
        /// The value of the output that it spends.
        value: Amount,
        /// The path that the signature is for.
        path: SpendPath,
    },
    /// Open a nonce and answer with [`ParticipantInput::NonceOpened`].
    OpenNonce {
        /// The session.
        session_id: SessionId,
        /// The output, with the keys to sign under.
        output: BeaconOutput,
    },
    /// Sign with the open nonce and answer with [`ParticipantInput::PartialSigned`] or
    /// [`NonceLost`](ParticipantInput::NonceLost).
    SignPartial {
        /// The session.
        session_id: SessionId,
        /// The output, with the keys to sign under.
        output: BeaconOutput,
        /// The aggregate nonce.
        aggregated: Bytes<66>,
        /// The signature hash.
        sighash: [u8; 32],
    },
    /// Sign on the fallback leaf, wipe any open nonce, and answer with [`ParticipantInput::FallbackSigned`].
    SignFallback {
        /// The signature hash.
        sighash: [u8; 32],
    },
}

/// The number of phase timeouts that a participant waits for the service. The service waits a whole phase for other
/// members before it moves on, between the verdicts and the transaction even two, and its message takes time to
/// arrive. A member that gave up after one phase could not serve the fallback that its own service requests at that
/// very time. A service that waits longer (it may extend its phases without notice) finds the member gone; the host
/// sets its timing accordingly.
const PATIENCE: u32 = 3;

/// A participant in one cohort.
#[derive(Clone)]
pub struct ParticipantCohort {
    config: Arc<ParticipantConfig>,
    advert: Arc<Advert>,
    timing: Timing,
    started: Timestamp,
    /// The sessions for which a nonce of ours was sent that this journal does not know.
    spent: BTreeSet<SessionId>,
    /// When we opted in. No answer can be older.
    opted_in: Timestamp,
    phase: Phase,
    /// The signed transaction, once it was seen and verified.
    seen: Option<Arc<Transaction>>,
}

/// The number of spent sessions that are recorded. A cohort has one session, and a few more if its service was
/// restored from a backup too. Beyond this number every session counts as spent.
const MOST_SPENT: usize = 16;

/// Two are equal when everything that events can change is equal; the configuration is the host's.
impl PartialEq for ParticipantCohort {
    fn eq(&self, other: &Self) -> bool {
        self.config.did == other.config.did
            && self.advert == other.advert
            && self.timing == other.timing
            && self.started == other.started
            && self.spent == other.spent
            && self.opted_in == other.opted_in
            && self.phase == other.phase
            && self.seen == other.seen
    }
}

impl fmt::Debug for ParticipantCohort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParticipantCohort")
            .field("did", &self.config.did)
            .field("cohort_id", &self.advert.cohort_id)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl ParticipantCohort {
    /// A participant that has not read the advert yet.
    pub fn new(config: Arc<ParticipantConfig>, advert: Arc<Advert>) -> Self {
        let timing = config.timing;
        Self {
            config,
            advert,
            timing,
            started: Timestamp::default(),
            opted_in: Timestamp::NEVER,
            spent: BTreeSet::new(),
            phase: Phase::Planned,
            seen: None,
        }
    }

    /// The advert that it answers.
    pub fn advert(&self) -> &Arc<Advert> {
        &self.advert
    }

    /// The current phase.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The signed transaction, once it was seen and verified.
    pub fn seen(&self) -> Option<&Arc<Transaction>> {
        self.seen.as_ref()
    }

    /// The member's record of the round. Present from its first signature on, since the path does not change it; or
    /// once the service reports that the other members have signed without it.
    pub fn record(&self) -> Option<MemberRecord> {
        let round = match &self.phase {
            Phase::Signing { round, stage, .. } if stage.has_signed() => round,
            Phase::Ended { signed: Some(round), .. } => round,
            _ => return None,
        };
        Some(self.record_of(round))
    }

    /// What the member has approved, present from its approval on. From then on the other members may announce it
    /// without a signature of this member, and without notice to it.
    pub fn approved(&self) -> Option<MemberRecord> {
        match &self.phase {
            Phase::Approved { round, .. }
            | Phase::Signing { round, .. }
            | Phase::Ended { signed: Some(round), .. } => Some(self.record_of(round)),
            _ => None,
        }
    }

    fn record_of(&self, round: &Round) -> MemberRecord {
        MemberRecord {
            did: self.config.did.clone(),
            service: self.advert.service.clone(),
            cohort_id: self.advert.cohort_id.clone(),
            conditions: self.advert.conditions.clone(),
            output: round.output.clone(),
            signal: round.signal,
            update: round.update.clone(),
            data: (*round.data).clone(),
        }
    }

    /// Whether the key path of a session must not be signed, because a nonce of ours for it was sent that must not be
    /// used any more.
    fn is_spent(&self, session_id: &SessionId) -> bool {
        self.spent.len() >= MOST_SPENT || self.spent.contains(session_id)
    }

    /// Whether deciding `input` takes so much curve work that it should not block other actors: key aggregation of a
    /// large cohort.
    pub fn is_heavy(&self, input: &ParticipantInput) -> bool {
        const LARGE: usize = 32;
        match input {
            ParticipantInput::Message(message) | ParticipantInput::Stored { message, .. } => {
                matches!(&*message.body, Body::CohortReady(ready) if ready.cohort_keys.len() >= LARGE)
            }
            _ => false,
        }
    }

    /// Whether a message sent at that time can be an answer to our opt-in, within the skew of two clocks.
    pub fn may_answer_us(&self, sent: Timestamp) -> bool {
        sent >= self.opted_in - CLOCK_SKEW
    }

    fn on_message(&self, now: Timestamp, message: &Message) -> Result<Vec<ParticipantEvent>, Reject> {
        let from = &message.from;
        if *from != self.advert.service {
            return Err(Reject::new(RejectCode::WrongSender, from, "the sender is not the service of the advert"));
        }
        if message.body.cohort_id() != &self.advert.cohort_id {
            return Err(Reject::new(RejectCode::WrongCohort, from, "the message is about another cohort"));
        }
        match &*message.body {
            // A repeated advert adds nothing to a cohort that we know.
            Body::CohortAdvert(_) => Ok(Vec::new()),
            Body::CohortOptInAccept(_) => self.on_accept(from),
            Body::CohortReady(body) => self.on_ready(now, from, body),
            Body::DistributeAggregatedData(body) => self.on_data(now, from, body),
            Body::AuthorizationRequest(body) => self.on_authorization_request(now, from, body),
            Body::AggregatedNonce(body) => self.on_aggregated_nonce(now, from, body),
            Body::FallbackAuthorizationRequest(body) => self.on_fallback_request(now, from, body),
            Body::PresenceRequest(_) => Ok(self.on_presence_request()),
            Body::CohortEnded(body) => self.on_ended(now, from, body),
            _ => Err(Reject::new(RejectCode::WrongSender, from, "only a member sends this type")),
        }
    }

    /// The service reports that the cohort has ended for us. It is trusted with liveness, so it may.
    fn on_ended(&self, now: Timestamp, from: &Did, body: &CohortEnded) -> Result<Vec<ParticipantEvent>, Reject> {
        /// The service's texts are stored, but only this many characters.
        const LONGEST: usize = 500;
        let short = |text: &str| text.chars().take(LONGEST).collect::<String>();
        if body.opt_in.is_some_and(|refused| refused != self.opt_in_digest()) {
            // A carrier that stores messages delivered it late: it is about a previous opt-in.
            return Ok(Vec::new());
        }
        let completed = body.signed.as_ref().filter(|_| body.code == CohortEnded::COMPLETED);
        let reason = match (&self.phase, completed) {
            (Phase::Ended { .. }, _) => return Ok(Vec::new()),
            (Phase::Approved { .. } | Phase::Signing { .. }, Some(signed)) => {
                return self.on_signed(now, from, signed);
            }
            // We did not join, so nothing has failed, whatever the sender of the advert reports.
            (Phase::Planned | Phase::Invited { .. }, _) => SessionEnd::NotJoined,
            _ => SessionEnd::EndedByService {
                code: short(&body.code),
                reason: short(&body.reason),
                at_fault: body.at_fault,
                next: body.next_cohort_id.clone(),
            },
        };
        Ok(vec![ParticipantEvent::SessionEnded { at: now, reason }])
    }

    fn on_tick(&self, now: Timestamp) -> Vec<ParticipantEvent> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        let reason = match &self.phase {
            Phase::Planned | Phase::Invited { .. } => SessionEnd::NotJoined,
            Phase::Signing { stage, .. } if stage.has_signed() => SessionEnd::Signed,
            phase => SessionEnd::TimedOut { phase: phase.name().to_owned() },
        };
        vec![ParticipantEvent::SessionEnded { at: now, reason }]
    }

    /// An input that came too late, e.g. our host's answer after the deadline of the phase. Harmless.
    fn out_of_date(&self) -> Vec<ParticipantEvent> {
        Vec::new()
    }
}

impl Machine for ParticipantCohort {
    type Input = ParticipantInput;
    type Event = ParticipantEvent;
    type Effect = ParticipantEffect;

    fn decide(
        &self,
        now: Timestamp,
        input: &ParticipantInput,
        _rng: &mut dyn CryptoRng,
    ) -> Result<Vec<ParticipantEvent>, Reject> {
        match input {
            ParticipantInput::Discover => match self.phase {
                Phase::Planned => Ok(vec![ParticipantEvent::CohortDiscovered {
                    at: now,
                    advert: Arc::clone(&self.advert),
                    timing: self.timing,
                }]),
                _ => Ok(self.out_of_date()),
            },
            ParticipantInput::JoinDecided(join) => Ok(self.on_join_decided(now, *join)),
            ParticipantInput::Message(message) => self.on_message(now, message),
            ParticipantInput::Stored { message, said } if self.may_answer_us(*said) => {
                self.on_message(now, message)
            }
            ParticipantInput::Stored { .. } => Ok(self.out_of_date()),
            ParticipantInput::UpdateDecided(update) => Ok(self.on_update_decided(now, update.as_ref())),
            ParticipantInput::ValidationDecided(approved) => Ok(self.on_validation_decided(now, *approved)),
            ParticipantInput::SigningDecided(approved) => Ok(self.on_signing_decided(now, *approved)),
            ParticipantInput::NonceOpened(nonce) => Ok(self.on_nonce_opened(now, *nonce)),
            ParticipantInput::PartialSigned(signature) => Ok(self.on_partial_signed(now, *signature)),
            ParticipantInput::Resumed => Ok(self.on_resumed(now)),
            ParticipantInput::NonceLost => Ok(self.on_nonce_lost(now)),
            ParticipantInput::Seen(message) => Ok(self.on_own_message(now, message)),
            ParticipantInput::FallbackSigned(signature) => Ok(self.on_fallback_signed(now, *signature)),
            ParticipantInput::Leave if !matches!(self.phase, Phase::Ended { .. }) => {
                Ok(vec![ParticipantEvent::SessionEnded { at: now, reason: SessionEnd::Left }])
            }
            ParticipantInput::Abort(Fatal(reason)) if !matches!(self.phase, Phase::Ended { .. }) => {
                let reason = SessionEnd::Internal { reason: reason.clone() };
                Ok(vec![ParticipantEvent::SessionEnded { at: now, reason }])
            }
            ParticipantInput::Leave | ParticipantInput::Abort(_) => Ok(self.out_of_date()),
            ParticipantInput::Tick => Ok(self.on_tick(now)),
        }
    }

    fn apply(&mut self, event: &ParticipantEvent) {
        match event {
            ParticipantEvent::CohortDiscovered { at, timing, .. } => {
                self.started = *at;
                self.timing = *timing;
            }
            ParticipantEvent::NonceSeen { session_id, .. } => {
                self.spent.insert(session_id.clone());
            }
            ParticipantEvent::OptedIn { at } => self.opted_in = *at,
            ParticipantEvent::TransactionSeen { transaction, .. } => self.seen = Some(Arc::clone(transaction)),
            _ => {}
        }
        let timing = self.timing;
        let patience = timing.phase_timeout.saturating_mul(PATIENCE);
        // The TTL ends with the start of signing. The last message before that has one phase timeout to arrive.
        let end = if event.concerns_signing() {
            Timestamp::NEVER
        } else {
            self.started + timing.cohort_ttl + timing.phase_timeout
        };
        // The operator funds the transaction, which may take as long as the cohort may.
        let patience = if matches!(event, ParticipantEvent::ValidationSent { .. }) {
            timing.cohort_ttl.max(patience)
        } else {
            patience
        };
        self.phase.apply(event, |at| (at + patience).min(end));
    }

    fn effects(&self, event: &ParticipantEvent) -> Vec<ParticipantEffect> {
        self.effects_of(event)
    }

    fn resume(&self) -> Vec<ParticipantEffect> {
        self.owed()
    }

    fn deadline(&self) -> Option<Timestamp> {
        self.phase.deadline()
    }
}
