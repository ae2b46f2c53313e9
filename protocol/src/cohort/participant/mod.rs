//! A participant's side of one cohort: joining, submitting or declining, validating, and signing.
//!
//! It trusts the service with nothing but liveness. The address is derived again from keys and terms, the signal is
//! recomputed from the data, the transaction is checked against both; the host's policy can only be stricter. [`phase`]
//! is what is known when; `joining`, `data` and `signing` hold the decisions, `effects` what they ask of the world.

mod data;
mod effects;
mod joining;
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

/// Who a participant is, in every cohort that it joins.
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
    /// An invite, for services that admit nobody without one.
    pub invite: Option<InviteToken>,
    /// How long to wait for the service.
    pub timing: Timing,
    /// The highest fee rate of a transaction that it signs; see
    /// [`DEFAULT_MAX_FEE_RATE`](crate::output::DEFAULT_MAX_FEE_RATE).
    pub max_fee_rate: FeeRate,
    /// The beacon types that the host knows.
    pub beacons: BeaconRegistry,
    /// Who aggregates keys: directly, or behind a cache shared with others.
    pub aggregator: Arc<dyn KeyAggregator>,
}

/// What can happen to a participant in a cohort.
#[derive(Clone, Debug)]
pub enum ParticipantInput {
    /// The advert was read.
    Discover,
    /// The host's answer to [`ParticipantEffect::AskJoin`].
    JoinDecided(bool),
    /// A message arrived from a sender that the transport has authenticated.
    Message(Message),
    /// A message that the transport had kept since before it was connected. What was said before we opted in is of another
    /// life of this identity, and passed over.
    Stored {
        /// The message.
        message: Message,
        /// When its sender says that it was said.
        said: Timestamp,
    },
    /// The host's answer to [`ParticipantEffect::AskUpdate`]: its update, or `None` to decline. An update that breaks a rule
    /// is not submitted.
    UpdateDecided(Option<Submission>),
    /// The host's answer to [`ParticipantEffect::AskValidation`]. Approving data that does not check out does not help.
    ValidationDecided(bool),
    /// The host's answer to [`ParticipantEffect::AskSigning`].
    SigningDecided(bool),
    /// The nonce that [`ParticipantEffect::OpenNonce`] asked for.
    NonceOpened(Bytes<66>),
    /// The partial signature that [`ParticipantEffect::SignPartial`] asked for.
    PartialSigned(Bytes<32>),
    /// The session was replayed from a journal, which software of an earlier version may have written. Fed before anything
    /// else.
    Resumed,
    /// The secret nonce is gone: a restart after it left, say. Changes nothing where none was open. After a restart it
    /// comes before what [`Machine::resume`] owes, which may open a new one.
    NonceLost,
    /// A message of our own was read on the wire, where everybody's are kept. After a restart what is kept there comes
    /// before what [`Machine::resume`] owes: a journal from a backup does not know which nonces have left since.
    Seen(Message),
    /// The signature that [`ParticipantEffect::SignFallback`] asked for.
    FallbackSigned(Bytes<64>),
    /// The host leaves the cohort.
    Leave,
    /// The session cannot go on on our side.
    Abort(Fatal),
    /// Time has passed.
    Tick,
}

/// What the world must do for a participant in a cohort.
#[derive(Clone, Debug, PartialEq)]
pub enum ParticipantEffect {
    /// Tell the service.
    Send {
        /// The service.
        to: Did,
        /// What.
        body: SharedBody,
    },
    /// Ask the host whether to join.
    AskJoin,
    /// Ask the host for its update. It may announce a beacon at the cohort's address.
    AskUpdate {
        /// The cohort's output.
        output: BeaconOutput,
    },
    /// Ask the host whether the aggregated data is right.
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
        /// For which session.
        session_id: SessionId,
        /// Under which keys.
        output: BeaconOutput,
    },
    /// Sign with the open nonce and answer with [`ParticipantInput::PartialSigned`] or
    /// [`NonceLost`](ParticipantInput::NonceLost).
    SignPartial {
        /// In which session.
        session_id: SessionId,
        /// Under which keys.
        output: BeaconOutput,
        /// The aggregate nonce.
        aggregated: Bytes<66>,
        /// What.
        sighash: [u8; 32],
    },
    /// Sign on the fallback leaf, wipe any open nonce, and answer with [`ParticipantInput::FallbackSigned`].
    SignFallback {
        /// What.
        sighash: [u8; 32],
    },
}

/// How many phases' time a participant waits for the service. The service waits a whole phase for other members before it
/// moves on, between the verdicts and the transaction even two, and then its message has to travel: a member that gave up
/// after one phase could not serve the fallback that its own service asks for at that very time. A service that waits
/// longer than that (it may extend its phases, and does not say so) finds it gone; the host sets its timing accordingly.
const PATIENCE: u32 = 3;

/// A participant in one cohort.
#[derive(Clone)]
pub struct ParticipantCohort {
    config: Arc<ParticipantConfig>,
    advert: Arc<Advert>,
    timing: Timing,
    started: Timestamp,
    /// Sessions that a nonce of ours left for, though this journal does not know it.
    spent: BTreeSet<SessionId>,
    /// When we opted in: nobody can answer that earlier.
    opted_in: Timestamp,
    phase: Phase,
    /// The signed transaction, once it was seen and verified.
    seen: Option<Arc<Transaction>>,
}

/// How many spent sessions are remembered. A cohort has one session, and a few more if its service was restored from a
/// backup too. Beyond that every session counts as spent.
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
    /// A participant that has not discovered the cohort yet.
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

    /// What is known now.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The signed transaction, once it was seen and verified.
    pub fn seen(&self) -> Option<&Arc<Transaction>> {
        self.seen.as_ref()
    }

    /// What the member keeps of the round: from its first signature on, for the path does not change it; or from the word
    /// that the others have signed without it.
    pub fn record(&self) -> Option<MemberRecord> {
        let round = match &self.phase {
            Phase::Signing { round, stage, .. } if stage.has_signed() => round,
            Phase::Ended { signed: Some(round), .. } => round,
            _ => return None,
        };
        Some(self.record_of(round))
    }

    /// What the member has approved, from its approval on: from then on the others may announce it without any signature of
    /// this member, and without telling it.
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

    /// Whether the key path of a session must not be signed, because a nonce of ours for it is out that is not ours to
    /// use any more.
    fn is_spent(&self, session_id: &SessionId) -> bool {
        self.spent.len() >= MOST_SPENT || self.spent.contains(session_id)
    }

    /// Whether deciding `input` takes so much curve work that it should not run beside other actors: key aggregation of a
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

    /// Whether something that was said then can be an answer to our opt-in, as far as two clocks agree.
    pub fn may_answer_us(&self, said: Timestamp) -> bool {
        said >= self.opted_in - CLOCK_SKEW
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
            // A repeated advert says nothing new about a cohort that we know.
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

    /// The service says that nobody waits for us any more. It is trusted with liveness, so it may.
    fn on_ended(&self, now: Timestamp, from: &Did, body: &CohortEnded) -> Result<Vec<ParticipantEvent>, Reject> {
        /// The service's words are kept, but only so many of them.
        const LONGEST: usize = 500;
        let short = |text: &str| text.chars().take(LONGEST).collect::<String>();
        if body.opt_in.is_some_and(|refused| refused != self.opt_in_digest()) {
            // A carrier that keeps messages still had it: it is about an earlier opt-in.
            return Ok(Vec::new());
        }
        let reason = match &self.phase {
            Phase::Ended { .. } => return Ok(Vec::new()),
            Phase::Approved { .. } | Phase::Signing { .. }
                if let (CohortEnded::COMPLETED, Some(signed)) = (body.code.as_str(), &body.signed) =>
            {
                return self.on_signed(now, from, signed);
            }
            // Nothing was joined, so nothing has failed: whoever advertises must not be able to tell us otherwise.
            Phase::Planned | Phase::Invited { .. } => SessionEnd::NotJoined,
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

    /// Something that came too late: our host's answer that crossed with the end of the wait, say. Harmless.
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
        // The TTL ends with the start of signing; the last message before that has its time to travel.
        let end = if event.concerns_signing() {
            Timestamp::NEVER
        } else {
            self.started + timing.cohort_ttl + timing.phase_timeout
        };
        // The transaction is the operator's to fund, which may take as long as the cohort may.
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
