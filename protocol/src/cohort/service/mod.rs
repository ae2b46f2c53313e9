//! The service's side of a cohort: enrolling members, collecting and aggregating updates, having every member validate,
//! and handing the beacon transaction to a signing session.
//!
//! [`phase`] is what is known in each phase; `enrollment`, `updates` and `validation` hold the decisions of the phases
//! by those names. The signing session is a machine of its own: [`crate::signing::session`].

mod config;
mod enrollment;
pub mod phase;
mod updates;
mod validation;

use std::{collections::BTreeMap, fmt, sync::Arc};

use bitcoin::{Amount, Transaction};
use rand_core::CryptoRng;

pub use self::config::{Limits, ServiceConfig, ServiceConfigError};
use self::phase::{Enrolling, Phase};
use super::{
    Member,
    event::{CohortFailure, ServiceEvent},
};
use crate::{
    beacon::{AggregatedData, BeaconData},
    did::Did,
    error::{Fatal, Faults, Reject, RejectCode, Retry},
    hash::{MessageDigest, SignalBytes},
    machine::Machine,
    message::{
        Body, Bytes, Message, SharedBody,
        keygen::{CohortOptInAccept, CohortReady},
        update::DistributeAggregatedData,
    },
    output::BeaconOutput,
    signing::{SigningOutcome, SigningTask},
    time::Timestamp,
};

/// What can happen to a cohort at its service.
#[derive(Clone, Debug)]
pub enum ServiceInput {
    /// The host opens the cohort.
    Advertise,
    /// A message arrived from a sender that the transport has authenticated.
    Message(Message),
    /// The host's answer to [`ServiceEffect::AskAdmission`].
    AdmissionDecided {
        /// About whom.
        did: Did,
        /// `Err` refuses, with the reason.
        admission: Result<(), String>,
    },
    /// The host wants the cohort formed with the members that it has: its answer to
    /// [`ServiceEffect::AskFinalization`], or of its own accord.
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
    /// The signing session was lost and cannot be brought back.
    SigningLost(Fatal),
    /// The host ends the cohort.
    Cancel(String),
    /// Time has passed.
    Tick,
}

/// What the world must do for a cohort at its service.
#[derive(Clone, Debug, PartialEq)]
pub enum ServiceEffect {
    /// Tell everybody.
    Broadcast(SharedBody),
    /// The advert is over: tell nobody any more.
    WithdrawAdvert,
    /// Tell one member.
    Send {
        /// Whom.
        to: Did,
        /// What.
        body: SharedBody,
    },
    /// Ask the host whether to admit a candidate.
    AskAdmission(Arc<Member>),
    /// Ask the host whether to form the cohort now; it has enough members.
    AskFinalization {
        /// How many members it has.
        admitted: usize,
    },
    /// Ask the host for the beacon transaction.
    AskTransaction {
        /// The output whose coin it spends.
        output: BeaconOutput,
        /// The signal that its last output carries.
        signal: SignalBytes,
    },
    /// Start the signing session.
    StartSigning(Arc<SigningTask>),
}

/// A cohort at its Aggregation Service.
#[derive(Clone)]
pub struct ServiceCohort {
    config: Arc<ServiceConfig>,
    started: Timestamp,
    phase: Phase,
    faults: Faults,
}

/// Two cohorts are equal when everything that events can change is equal; the configuration is the host's.
impl PartialEq for ServiceCohort {
    fn eq(&self, other: &Self) -> bool {
        self.config.cohort_id == other.config.cohort_id
            && self.started == other.started
            && self.phase == other.phase
            && self.faults == other.faults
    }
}

impl fmt::Debug for ServiceCohort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceCohort")
            .field("cohort_id", &self.config.cohort_id)
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
        if config.service.key() != Some(config.service_key) {
            return Err(ServiceConfigError::NotAKeyDid);
        }
        if config.service.network() != config.network {
            return Err(ServiceConfigError::Network);
        }
        let problems = config.conditions.problems(&config.beacons);
        if !problems.is_empty() {
            return Err(ServiceConfigError::Conditions(problems));
        }
        Ok(Self { config, started: Timestamp::default(), phase: Phase::Planned, faults: Faults::default() })
    }

    /// What does not change.
    pub fn config(&self) -> &ServiceConfig {
        &self.config
    }

    /// What is known now.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The misdeeds on record.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Whether the cohort has ended, one way or the other.
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Completed { .. } | Phase::Failed { .. })
    }

    /// The members whose contribution the current phase still waits for. While signing, ask the session.
    pub fn holdouts(&self) -> Vec<Did> {
        match &self.phase {
            Phase::CollectingUpdates { formed, slots, .. } => formed.missing(|did| slots.contains_key(did)),
            Phase::Validating { formed, approvals, .. } => formed.missing(|did| approvals.contains(did)),
            _ => Vec::new(),
        }
    }

    /// Whether deciding `input` takes so much curve or hash work that it should not run beside other actors: key
    /// aggregation, and the last update of a large cohort.
    pub fn is_heavy(&self, input: &ServiceInput) -> bool {
        const LARGE: usize = 32;
        match &self.phase {
            Phase::Enrolling(enrolling) => {
                let admitted = enrolling.admitted();
                let last = self.config.conditions.max_participants.is_some_and(|max| admitted + 1 >= max as usize);
                admitted + 1 >= LARGE
                    && match input {
                        ServiceInput::AdmissionDecided { .. } => last,
                        ServiceInput::Finalize | ServiceInput::Tick => true,
                        _ => false,
                    }
            }
            Phase::CollectingUpdates { formed, slots, .. } => {
                formed.members.len() >= LARGE && slots.len() + 1 == formed.members.len()
            }
            _ => false,
        }
    }

    /// The transcript digests that `event` and its effects stand for, in order: the message that caused it, then the
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
                ServiceEffect::Send { to, body } => (Some(to.clone()), body),
                _ => continue,
            };
            entries.push(Message::new(self.config.service.clone(), to, body.clone()).digest());
        }
        entries
    }

    fn deadline_from(&self, at: Timestamp) -> Timestamp {
        (at + self.config.timing.phase_timeout).min(self.started + self.config.timing.cohort_ttl)
    }

    fn fail(&self, at: Timestamp, reason: CohortFailure) -> Vec<ServiceEvent> {
        vec![ServiceEvent::CohortFailed { at, reason }]
    }

    fn on_message(
        &self,
        now: Timestamp,
        message: &Message,
        rng: &mut dyn CryptoRng,
    ) -> Result<Vec<ServiceEvent>, Reject> {
        let from = &message.from;
        if message.body.cohort_id() != &self.config.cohort_id {
            return Err(Reject::new(RejectCode::WrongCohort, from, "the message is about another cohort"));
        }
        match &*message.body {
            Body::CohortOptIn(body) => self.on_opt_in(from, body, message),
            Body::SubmitUpdate(body) => self.on_update(now, from, body, message, rng),
            Body::SubmitNonIncluded(_) => self.on_decline(now, from, message, rng),
            Body::ValidationAck(body) => self.on_validation(now, from, body, message),
            Body::NonceContribution(_) | Body::SignatureAuthorization(_) | Body::FallbackSignature(_) => {
                self.member(from)?;
                match self.phase {
                    // k members were enough, and this is one more who did its part: late is no fault.
                    Phase::Completed { .. } => Ok(Vec::new()),
                    _ => Err(Reject::new(RejectCode::WrongPhase, from, "no signing session is waiting for this")),
                }
            }
            _ => Err(Reject::new(RejectCode::WrongSender, from, "only the service sends this type")),
        }
    }

    /// The member that `from` is, once the cohort is formed.
    fn member(&self, from: &Did) -> Result<&Arc<Member>, Reject> {
        self.phase
            .formed()
            .and_then(|formed| formed.members.get(from))
            .ok_or_else(|| Reject::new(RejectCode::NotAMember, from, "the sender is not a member of this cohort"))
    }

    fn on_tick(&self, now: Timestamp) -> Vec<ServiceEvent> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        match &self.phase {
            Phase::Enrolling(enrolling) if now < enrolling.deadline => {
                vec![ServiceEvent::AdvertRepeated { at: now }]
            }
            Phase::Enrolling(enrolling) if self.can_form(enrolling.admitted()) => self.form(now, None),
            Phase::Enrolling(enrolling) => {
                self.fail(now, CohortFailure::EnrollmentExpired { admitted: enrolling.admitted() })
            }
            Phase::CollectingUpdates { .. } => {
                self.fail(now, CohortFailure::UpdatesMissing { holdouts: self.holdouts() })
            }
            Phase::Validating { .. } => {
                self.fail(now, CohortFailure::ValidationMissing { holdouts: self.holdouts() })
            }
            Phase::AwaitingTransaction { deadline, .. } if now < *deadline => {
                vec![ServiceEvent::TransactionRequested { at: now }]
            }
            Phase::AwaitingTransaction { .. } => {
                let reason = "the operator did not provide it in time".to_owned();
                self.fail(now, CohortFailure::Transaction { reason })
            }
            Phase::Signing { .. } => {
                let reason = "the signing session did not end in time".to_owned();
                self.fail(now, CohortFailure::Internal { reason })
            }
            Phase::Planned | Phase::Completed { .. } | Phase::Failed { .. } => Vec::new(),
        }
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
                Phase::Planned => Ok(vec![ServiceEvent::CohortAdvertised { at: now }]),
                _ => Err(Reject::out_of_phase("advertising", self.phase.name())),
            },
            ServiceInput::Message(message) => self.on_message(now, message, rng),
            ServiceInput::AdmissionDecided { did, admission } => Ok(self.on_admission(now, did, admission)),
            ServiceInput::Finalize => match &self.phase {
                Phase::Enrolling(enrolling) if self.can_form(enrolling.admitted()) => Ok(self.form(now, None)),
                Phase::Enrolling(_) => Err(Reject::out_of_phase("finalizing", "enrolling, with too few members")),
                // The host's answer may cross with the cohort being formed already.
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
            ServiceInput::SigningFinished { outcome, digests } => self.on_signing_finished(now, outcome, digests),
            ServiceInput::SigningLost(Fatal(reason)) => match self.phase {
                Phase::Signing { .. } => Ok(self.fail(now, CohortFailure::Internal { reason: reason.clone() })),
                _ => Ok(Vec::new()),
            },
            ServiceInput::Cancel(reason) if !self.has_ended() => {
                Ok(self.fail(now, CohortFailure::Cancelled { reason: reason.clone() }))
            }
            ServiceInput::Cancel(_) => Ok(Vec::new()),
            ServiceInput::Tick => Ok(self.on_tick(now)),
        }
    }

    fn apply(&mut self, event: &ServiceEvent) {
        match event {
            ServiceEvent::CohortAdvertised { at } => {
                self.started = *at;
                self.phase = Phase::Enrolling(Enrolling {
                    candidates: BTreeMap::new(),
                    keys: BTreeMap::new(),
                    deadline: self.deadline_from(*at),
                    next_advert: *at + self.config.timing.advert_repeat,
                });
            }
            ServiceEvent::FaultRecorded { fault } => self.faults.record(fault),
            ServiceEvent::OptInDisplaced { fault, .. } => {
                self.faults.record(fault);
                self.phase.apply(event, &self.config, self.started);
            }
            _ => self.phase.apply(event, &self.config, self.started),
        }
    }

    fn effects(&self, event: &ServiceEvent) -> Vec<ServiceEffect> {
        let cohort_id = || self.config.cohort_id.clone();
        match (event, &self.phase) {
            (ServiceEvent::CohortAdvertised { .. } | ServiceEvent::AdvertRepeated { .. }, _) => {
                let ServiceConfig { conditions, network, service_key, .. } = &*self.config;
                vec![ServiceEffect::Broadcast(conditions.to_advert(cohort_id(), *network, service_key).into())]
            }
            (ServiceEvent::OptInReceived { member, .. }, _) => {
                vec![ServiceEffect::AskAdmission(Arc::clone(member))]
            }
            (ServiceEvent::MemberAdmitted { did }, phase) => {
                let body = CohortOptInAccept { cohort_id: cohort_id() }.into();
                let mut effects = vec![ServiceEffect::Send { to: did.clone(), body }];
                if let Phase::Enrolling(enrolling) = phase
                    && self.can_form(enrolling.admitted())
                {
                    effects.push(ServiceEffect::AskFinalization { admitted: enrolling.admitted() });
                }
                effects
            }
            (ServiceEvent::KeysAggregated { .. }, Phase::CollectingUpdates { formed, .. }) => {
                let body: SharedBody = CohortReady {
                    cohort_id: cohort_id(),
                    beacon_address: formed.output.address().to_owned(),
                    cohort_keys: formed.output.keys().iter().map(|key| Bytes(key.to_bytes())).collect(),
                }
                .into();
                let mut effects = formed.send_all(|_| body.clone());
                effects.push(ServiceEffect::WithdrawAdvert);
                effects
            }
            (ServiceEvent::CohortFailed { .. }, Phase::Failed { formed: None, .. }) => {
                vec![ServiceEffect::WithdrawAdvert]
            }
            (ServiceEvent::UpdatesAggregated { .. }, Phase::Validating { formed, aggregated, .. }) => {
                let aggregation = &aggregated.aggregation;
                let distribute = |data: &BeaconData| -> SharedBody {
                    let beacon_type = self.config.conditions.beacon_type.clone();
                    DistributeAggregatedData::new(cohort_id(), beacon_type, aggregation.signal, data).into()
                };
                match &aggregation.data {
                    AggregatedData::Shared(data) => {
                        let body = distribute(data);
                        formed.send_all(|_| body.clone())
                    }
                    AggregatedData::PerMember(data) => data
                        .iter()
                        .map(|(did, data)| ServiceEffect::Send { to: did.clone(), body: distribute(data) })
                        .collect(),
                }
            }
            (
                ServiceEvent::ValidationCompleted { .. } | ServiceEvent::TransactionRequested { .. },
                Phase::AwaitingTransaction { formed, aggregated, .. },
            ) => vec![ServiceEffect::AskTransaction {
                output: formed.output.clone(),
                signal: aggregated.aggregation.signal,
            }],
            (ServiceEvent::SigningStarted { .. }, Phase::Signing { task, .. }) => {
                vec![ServiceEffect::StartSigning(Arc::clone(task))]
            }
            _ => Vec::new(),
        }
    }

    fn deadline(&self) -> Option<Timestamp> {
        match &self.phase {
            Phase::Planned | Phase::Completed { .. } | Phase::Failed { .. } => None,
            Phase::Enrolling(enrolling) => Some(enrolling.deadline.min(enrolling.next_advert)),
            Phase::AwaitingTransaction { deadline, retry_at, .. } => {
                Some(retry_at.map_or(*deadline, |retry_at| retry_at.min(*deadline)))
            }
            Phase::CollectingUpdates { deadline, .. }
            | Phase::Validating { deadline, .. }
            | Phase::Signing { deadline, .. } => Some(*deadline),
        }
    }
}

/// A session is given at most this many phases (nonces, partial signatures, fallback) before it must have ended.
const SIGNING_PHASES: u32 = 3;

fn signing_deadline(config: &ServiceConfig, at: Timestamp) -> Timestamp {
    // One phase more than the session can take: its own deadlines come first.
    at + config.timing.signing_timeout * (SIGNING_PHASES + 1)
}
