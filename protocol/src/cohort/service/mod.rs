//! The service's side of a cohort: enrolling members, collecting and aggregating updates, having every member
//! validate, and passing the beacon transaction to a signing session.
//!
//! [`phase`] is the state in each phase; `enrollment`, `updates` and `validation` hold the decisions of those phases.
//! The signing session is a machine of its own: [`crate::signing::session`].

mod config;
mod effects;
mod enrollment;
pub mod phase;
mod reformation;
pub mod rules;
mod updates;
mod validation;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use bitcoin::{Amount, Transaction};
use rand_core::CryptoRng;

pub use self::config::{CohortTerms, Limits, Lineage, ServiceConfig, ServiceConfigError};
use self::{
    phase::{Enrolling, Phase},
    rules::TimedPhase,
};
use super::{
    Member, Undelivered,
    event::{CohortFailure, ServiceEvent},
};
use crate::{
    did::Did,
    error::{Fatal, Faults, Reject, RejectCode, Retry},
    hash::{MessageDigest, SignalBytes},
    machine::Machine,
    message::{Body, Message, SharedBody},
    output::BeaconOutput,
    signing::{SigningOutcome, SigningTask},
    time::Timestamp,
    update::Edition,
};

/// An input of a cohort at its service.
#[derive(Clone, Debug)]
pub enum ServiceInput {
    /// The host opens the cohort.
    Advertise,
    /// A message arrived from a sender that the transport has authenticated.
    Message(Message),
    /// The host's answer to [`ServiceEffect::AskAdmission`].
    AdmissionDecided {
        /// The candidate.
        did: Did,
        /// `Err` refuses, with the reason.
        admission: Result<(), String>,
    },
    /// The host requests that the cohort forms with its current members: in answer to
    /// [`ServiceEffect::AskFinalization`], or on its own initiative.
    Finalize,
    /// The host's answer to [`ServiceEffect::AskTransaction`].
    TransactionProvided {
        /// The unsigned beacon transaction.
        transaction: Transaction,
        /// The value of the output that it spends.
        value: Amount,
    },
    /// The host cannot provide the transaction now.
    TransactionUnavailable(Retry),
    /// The host will never provide the transaction.
    TransactionRefused(Fatal),
    /// The signing session ended.
    SigningFinished {
        /// How.
        outcome: SigningOutcome,
        /// The transcript digests of its messages, in order.
        digests: Vec<MessageDigest>,
    },
    /// The signing session was lost and cannot be restored.
    SigningLost(Fatal),
    /// Our own side cannot continue the cohort.
    Abort(Fatal),
    /// The host ends the cohort.
    Cancel(String),
    /// The host gives the current phase more time.
    Extend {
        /// How much, from its deadline on.
        by: Duration,
    },
    /// The service has restarted after a time in which no member could reach it. Fed once, before the effects of
    /// [`Machine::resume`] are performed. Not fed after a panic of an actor, which could otherwise postpone its
    /// deadline without limit.
    Resumed,
    /// Time has passed.
    Tick,
    /// Time has passed, and the last request did not reach these members.
    Lapsed {
        /// The members that it did not reach, and why.
        undelivered: BTreeMap<Did, Undelivered>,
    },
}

/// An action that the driver must perform for a cohort at its service.
#[derive(Clone, Debug, PartialEq)]
pub enum ServiceEffect {
    /// Send a message to every peer.
    Broadcast(SharedBody),
    /// Stop broadcasting the advert.
    WithdrawAdvert,
    /// Send a message to one member.
    Send {
        /// The member.
        to: Did,
        /// The message.
        body: SharedBody,
    },
    /// Ask the host whether to admit a candidate.
    AskAdmission(Arc<Member>),
    /// Ask the host whether to form the cohort now; it has enough members.
    AskFinalization {
        /// The number of admitted members.
        admitted: usize,
    },
    /// Ask the host for the beacon transaction.
    AskTransaction {
        /// The output that it spends.
        output: BeaconOutput,
        /// The signal that its last output carries.
        signal: SignalBytes,
    },
    /// Start the signing session. After a restart, continue it from its own journal if it was started before.
    StartSigning(Arc<SigningTask>),
    /// Open a cohort that replaces this one, unless it is open already.
    FormAgain(Arc<CohortTerms>),
}

/// A cohort at its Aggregation Service.
#[derive(Clone)]
pub struct ServiceCohort {
    config: Arc<ServiceConfig>,
    started: Timestamp,
    /// The number of times that the current phase was extended.
    extensions: u32,
    phase: Phase,
    faults: Faults,
    /// Whether an update or the aggregated data was accepted under rules that no resolver applies any more.
    outdated: bool,
}

/// Two cohorts are equal when everything that events can change is equal; the configuration is the host's.
impl PartialEq for ServiceCohort {
    fn eq(&self, other: &Self) -> bool {
        self.config.terms == other.config.terms
            && self.started == other.started
            && self.extensions == other.extensions
            && self.phase == other.phase
            && self.faults == other.faults
            && self.outdated == other.outdated
    }
}

impl fmt::Debug for ServiceCohort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceCohort")
            .field("cohort_id", &self.config.terms.cohort_id)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl ServiceCohort {
    /// A cohort that is not advertised yet.
    ///
    /// # Errors
    /// [`ServiceConfigError`] when members could not accept its advert.
    pub fn new(config: Arc<ServiceConfig>) -> Result<Self, ServiceConfigError> {
        let terms = &config.terms;
        if terms.service.key() != Some(terms.service_key) {
            return Err(ServiceConfigError::NotAKeyDid);
        }
        if terms.service.network() != terms.network {
            return Err(ServiceConfigError::Network);
        }
        let problems = terms.conditions.problems(&config.beacons);
        if !problems.is_empty() {
            return Err(ServiceConfigError::Conditions(problems));
        }
        Ok(Self {
            config,
            started: Timestamp::default(),
            extensions: 0,
            phase: Phase::Planned,
            faults: Faults::default(),
            outdated: false,
        })
    }

    /// The configuration, which does not change.
    pub fn config(&self) -> &ServiceConfig {
        &self.config
    }

    /// The configuration, to make another machine of the same cohort.
    pub fn shared_config(&self) -> Arc<ServiceConfig> {
        Arc::clone(&self.config)
    }

    /// The current phase.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The recorded faults.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Whether the cohort has ended, with or without a transaction.
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Completed { .. } | Phase::Failed { .. })
    }

    /// Whether a signing session has the transaction.
    pub fn is_signing(&self) -> bool {
        matches!(self.phase, Phase::Signing { .. })
    }

    /// The members whose contribution the current phase still waits for. While signing, ask the session.
    pub fn holdouts(&self) -> Vec<Did> {
        match &self.phase {
            Phase::CollectingUpdates { formed, slots, .. } => formed.missing(|did| slots.contains_key(did)),
            Phase::Validating { formed, approvals, .. } => formed.missing(|did| approvals.contains(did)),
            Phase::CheckingPresence { formed, present, .. } => formed.missing(|did| present.contains(did)),
            _ => Vec::new(),
        }
    }

    /// Whether deciding `input` takes so much curve or hash work that it should not block other actors: key
    /// aggregation, and the last update of a large cohort.
    pub fn is_heavy(&self, input: &ServiceInput) -> bool {
        const LARGE: usize = 32;
        match &self.phase {
            Phase::Enrolling(enrolling) => {
                let admitted = enrolling.admitted();
                let last =
                    self.config.terms.conditions.max_participants.is_some_and(|max| admitted + 1 >= max as usize);
                admitted + 1 >= LARGE
                    && match input {
                        ServiceInput::AdmissionDecided { .. } => last,
                        ServiceInput::Finalize | ServiceInput::Tick | ServiceInput::Lapsed { .. } => true,
                        _ => false,
                    }
            }
            Phase::CollectingUpdates { formed, slots, .. } => {
                formed.members.len() >= LARGE && slots.len() + 1 == formed.members.len()
            }
            _ => false,
        }
    }

    /// The transcript digests of `event` and its effects, in order: the message that caused the event, then the
    /// messages that it causes.
    pub fn transcript_entries(&self, event: &ServiceEvent, effects: &[ServiceEffect]) -> Vec<MessageDigest> {
        let mut entries = Vec::new();
        match event {
            ServiceEvent::OptInReceived { digest, .. }
            | ServiceEvent::UpdateReceived { digest, .. }
            | ServiceEvent::UpdateDeclined { digest, .. }
            | ServiceEvent::ValidationReceived { digest, .. } => entries.push(*digest),
            ServiceEvent::CohortCompleted { digests, .. } => entries.extend(digests),
            _ => {}
        }
        for effect in effects {
            let (to, body) = match effect {
                ServiceEffect::Broadcast(body) => (None, body),
                ServiceEffect::Send { to, body } if !body.is_control() => (Some(to.clone()), body),
                _ => continue,
            };
            entries.push(Message::new(self.config.terms.service.clone(), to, body.clone()).digest());
        }
        entries
    }

    fn deadline_of_phase(&self) -> Option<Timestamp> {
        match &self.phase {
            Phase::Planned | Phase::Completed { .. } | Phase::Failed { .. } => None,
            Phase::Enrolling(enrolling) => {
                let settled_at = enrolling.settled_at.unwrap_or(enrolling.deadline);
                Some(enrolling.deadline.min(enrolling.next_advert).min(settled_at))
            }
            Phase::AwaitingTransaction { deadline, retry_at, .. } => {
                Some(retry_at.map_or(*deadline, |retry_at| retry_at.min(*deadline)))
            }
            Phase::CollectingUpdates { deadline, .. }
            | Phase::Validating { deadline, .. }
            | Phase::CheckingPresence { deadline, .. }
            | Phase::Signing { deadline, .. } => Some(*deadline),
        }
    }

    fn on_message(
        &self,
        now: Timestamp,
        message: &Message,
        rng: &mut dyn CryptoRng,
    ) -> Result<Vec<ServiceEvent>, Reject> {
        let from = &message.from;
        if message.body.cohort_id() != &self.config.terms.cohort_id {
            return Err(Reject::new(RejectCode::WrongCohort, from, "the message is about another cohort"));
        }
        match &*message.body {
            Body::CohortOptIn(body) => self.on_opt_in(from, body, message),
            Body::SubmitUpdate(body) => self.on_update(now, from, body, message, rng),
            Body::SubmitNonIncluded(_) => self.on_decline(now, from, message, rng),
            Body::ValidationAck(body) => self.on_validation(now, from, body, message, rng),
            Body::Presence(_) => self.on_presence(now, from, rng),
            Body::NonceContribution(_) | Body::SignatureAuthorization(_) | Body::FallbackSignature(_) => {
                self.member(from)?;
                match self.phase {
                    // k signatures were enough; one more is late, which is not a fault.
                    Phase::Completed { .. } => Ok(Vec::new()),
                    _ => Err(Reject::new(RejectCode::WrongPhase, from, "no signing session is waiting for this")),
                }
            }
            _ => Err(Reject::new(RejectCode::WrongSender, from, "only the service sends this type")),
        }
    }

    /// The member `from`, once the cohort is formed.
    fn member(&self, from: &Did) -> Result<&Arc<Member>, Reject> {
        self.phase
            .formed()
            .and_then(|formed| formed.members.get(from))
            .ok_or_else(|| Reject::new(RejectCode::NotAMember, from, "the sender is not a member of this cohort"))
    }
}

impl Machine for ServiceCohort {
    type Input = ServiceInput;
    type Event = ServiceEvent;
    type Effect = ServiceEffect;

    fn decide(
        &self,
        now: Timestamp,
        input: &ServiceInput,
        rng: &mut dyn CryptoRng,
    ) -> Result<Vec<ServiceEvent>, Reject> {
        match input {
            ServiceInput::Advertise => match self.phase {
                Phase::Planned => {
                    let terms = Arc::clone(&self.config.terms);
                    Ok(vec![ServiceEvent::CohortAdvertised { at: now, terms }])
                }
                _ => Err(Reject::out_of_phase("advertising", self.phase.name())),
            },
            ServiceInput::Message(message) => self.on_message(now, message, rng),
            ServiceInput::AdmissionDecided { did, admission } => Ok(self.on_admission(now, did, admission)),
            ServiceInput::Finalize => match &self.phase {
                Phase::Enrolling(_) => self.may_form().map(|()| self.form(now, None)),
                // The host may answer while the cohort is already being formed.
                _ => Ok(Vec::new()),
            },
            ServiceInput::TransactionProvided { transaction, value } => {
                self.on_transaction(now, transaction, *value, rng)
            }
            ServiceInput::TransactionUnavailable(retry) => self.on_transaction_deferred(now, retry),
            ServiceInput::TransactionRefused(Fatal(reason)) => match self.phase {
                Phase::AwaitingTransaction { .. } => {
                    Ok(self.fail(now, CohortFailure::Transaction { reason: reason.clone() }))
                }
                _ => Err(Reject::out_of_phase("refusing a transaction", self.phase.name())),
            },
            ServiceInput::SigningFinished { outcome, digests } => {
                self.on_signing_finished(now, outcome, digests, rng)
            }
            ServiceInput::SigningLost(Fatal(reason)) => match self.phase {
                Phase::Signing { .. } => Ok(self.fail(now, CohortFailure::Internal { reason: reason.clone() })),
                _ => Ok(Vec::new()),
            },
            ServiceInput::Abort(Fatal(reason)) if !self.has_ended() => {
                Ok(self.fail(now, CohortFailure::Internal { reason: reason.clone() }))
            }
            ServiceInput::Cancel(reason) if !self.has_ended() => {
                Ok(self.fail(now, CohortFailure::Cancelled { reason: reason.clone() }))
            }
            ServiceInput::Abort(_) | ServiceInput::Cancel(_) => Ok(Vec::new()),
            ServiceInput::Extend { by } => {
                let (phase, until) = self.extended(*by)?;
                Ok(vec![ServiceEvent::GraceGiven { at: now, phase, until }])
            }
            ServiceInput::Resumed => Ok(self.on_resumed(now)),
            ServiceInput::Tick => Ok(self.on_tick(now, &BTreeMap::new(), rng)),
            ServiceInput::Lapsed { undelivered } => Ok(self.on_tick(now, undelivered, rng)),
        }
    }

    fn apply(&mut self, event: &ServiceEvent) {
        let before = std::mem::discriminant(&self.phase);
        match event {
            // A running cohort is not started again, whatever the journal holds.
            ServiceEvent::CohortAdvertised { at, .. } if matches!(self.phase, Phase::Planned) => {
                self.started = *at;
                let terms = &self.config.terms;
                self.phase = Phase::Enrolling(Enrolling {
                    candidates: BTreeMap::new(),
                    admitted: 0,
                    keys: BTreeMap::new(),
                    deadline: terms.deadline(TimedPhase::Enrollment, *at, *at),
                    settled_at: None,
                    next_advert: *at + terms.timing.advert_repeat,
                });
            }
            ServiceEvent::FaultRecorded { fault } => self.faults.record(fault),
            ServiceEvent::OptInDisplaced { fault, .. } => {
                self.faults.record(fault);
                self.phase.apply(event, &self.config.terms, self.started);
            }
            ServiceEvent::UpdateReceived { edition, .. } | ServiceEvent::UpdatesAggregated { edition, .. } => {
                self.outdated |= *edition != Edition::CURRENT;
                self.phase.apply(event, &self.config.terms, self.started);
            }
            _ => self.phase.apply(event, &self.config.terms, self.started),
        }
        if std::mem::discriminant(&self.phase) != before {
            self.extensions = 0;
        } else if let ServiceEvent::PhaseExtended { .. } = event {
            self.extensions = self.extensions.saturating_add(1);
        }
    }

    fn effects(&self, event: &ServiceEvent) -> Vec<ServiceEffect> {
        self.effects_of(event)
    }

    fn resume(&self) -> Vec<ServiceEffect> {
        self.owed()
    }

    fn deadline(&self) -> Option<Timestamp> {
        self.deadline_of_phase()
    }
}
