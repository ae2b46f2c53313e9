//! What the service knows in each phase of a cohort, and how events change it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{CohortTerms, ServiceEffect, rules::TimedPhase};
use bitcoin::{Amount, Transaction};

use crate::{
    beacon::{Aggregation, Slots},
    cohort::{
        Member,
        event::{CohortFailure, ServiceEvent},
    },
    did::Did,
    key::XOnlyKey,
    message::SharedBody,
    names::named,
    output::BeaconOutput,
    signing::{Signed, SigningTask, SigningTerms},
    time::Timestamp,
};

/// Whether a candidate is a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The operator has not answered yet.
    Pending,
    /// The candidate is a member.
    Admitted,
    /// The candidate is not a member.
    Refused,
}

/// The candidates of an enrolling cohort.
#[derive(Clone, Debug, PartialEq)]
pub struct Enrolling {
    /// The candidates that opted in, and whether they were admitted.
    pub candidates: BTreeMap<Did, (Arc<Member>, Admission)>,
    /// The number of admitted candidates. Counted, because it is needed at every opt-in.
    pub(super) admitted: usize,
    /// The owner of each participant key, of all candidates that were not refused. By x coordinate: the fallback leaf
    /// has no more of a key.
    pub keys: BTreeMap<XOnlyKey, Did>,
    /// When to form the cohort with its admitted members, or fail.
    pub deadline: Timestamp,
    /// When to form the cohort with its admitted members, once it has its minimum and its rules let it wait for more.
    pub settled_at: Option<Timestamp>,
    /// When to repeat the advert.
    pub next_advert: Timestamp,
}

impl Enrolling {
    /// Whether the operator has decided about `did`.
    pub(super) fn has_decided(&self, did: &Did) -> bool {
        self.candidates.get(did).is_some_and(|(_, admission)| *admission != Admission::Pending)
    }

    /// The number of admitted candidates.
    pub fn admitted(&self) -> usize {
        self.admitted
    }
}

/// A formed cohort.
#[derive(Clone, Debug, PartialEq)]
pub struct Formed {
    /// Its members.
    pub members: BTreeMap<Did, Arc<Member>>,
    /// Its beacon output.
    pub output: BeaconOutput,
}

impl Formed {
    /// The members for whom `filled` is false.
    pub(super) fn missing(&self, filled: impl Fn(&Did) -> bool) -> Vec<Did> {
        self.members.keys().filter(|did| !filled(did)).cloned().collect()
    }

    /// A message to each member for whom `to` is true.
    pub(super) fn send(&self, to: impl Fn(&Did) -> bool, body: impl Fn(&Did) -> SharedBody) -> Vec<ServiceEffect> {
        let members = self.members.keys().filter(|did| to(did));
        members.map(|did| ServiceEffect::Send { to: did.clone(), body: body(did) }).collect()
    }
}

/// The filled slots and what they aggregate to.
#[derive(Clone, Debug, PartialEq)]
pub struct Aggregated {
    /// The hash of each member's update, `None` for one that declined.
    pub slots: Slots,
    /// The signal and each member's data.
    pub aggregation: Arc<Aggregation>,
}

/// The phases of a cohort.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the fields are explained where their types are")]
pub enum Phase {
    /// Configured, not advertised.
    Planned,
    /// Advertised: participants opt in, the operator admits.
    Enrolling(Enrolling),
    /// Formed: members submit or decline.
    CollectingUpdates { formed: Arc<Formed>, slots: Slots, deadline: Timestamp },
    /// Aggregated: members check their slots.
    Validating { formed: Arc<Formed>, aggregated: Arc<Aggregated>, approvals: BTreeSet<Did>, deadline: Timestamp },
    /// Approved by every member: the operator provides the transaction.
    AwaitingTransaction {
        formed: Arc<Formed>,
        aggregated: Arc<Aggregated>,
        deadline: Timestamp,
        retry_at: Option<Timestamp>,
    },
    /// The transaction has arrived: the members are asked to confirm their presence.
    CheckingPresence {
        formed: Arc<Formed>,
        aggregated: Arc<Aggregated>,
        transaction: Transaction,
        value: Amount,
        present: BTreeSet<Did>,
        deadline: Timestamp,
    },
    /// A signing session has the transaction.
    Signing { formed: Arc<Formed>, aggregated: Arc<Aggregated>, task: Arc<SigningTask>, deadline: Timestamp },
    /// The transaction is signed.
    Completed { formed: Arc<Formed>, aggregated: Arc<Aggregated>, outcome: Arc<Signed> },
    /// The cohort ended without a transaction. `waiting` are its members or, before it formed, its candidates.
    Failed {
        formed: Option<Arc<Formed>>,
        waiting: Vec<Did>,
        reason: CohortFailure,
        successor: Option<Arc<CohortTerms>>,
    },
}

named! {
    /// The phase of a cohort, without its data.
    PhaseKind {
        /// Planned.
        Planned = "planned",
        /// Enrolling.
        Enrolling = "enrolling",
        /// Collecting updates.
        CollectingUpdates = "collecting updates",
        /// Validating.
        Validating = "validating",
        /// Awaiting the transaction.
        AwaitingTransaction = "awaiting the transaction",
        /// Checking presence.
        CheckingPresence = "checking presence",
        /// Signing.
        Signing = "signing",
        /// Completed.
        Completed = "completed",
        /// Failed.
        Failed = "failed",
    }
}

impl Phase {
    /// The phase without its data.
    pub const fn kind(&self) -> PhaseKind {
        match self {
            Self::Planned => PhaseKind::Planned,
            Self::Enrolling(_) => PhaseKind::Enrolling,
            Self::CollectingUpdates { .. } => PhaseKind::CollectingUpdates,
            Self::Validating { .. } => PhaseKind::Validating,
            Self::AwaitingTransaction { .. } => PhaseKind::AwaitingTransaction,
            Self::CheckingPresence { .. } => PhaseKind::CheckingPresence,
            Self::Signing { .. } => PhaseKind::Signing,
            Self::Completed { .. } => PhaseKind::Completed,
            Self::Failed { .. } => PhaseKind::Failed,
        }
    }

    /// The phase's name, as text.
    pub const fn name(&self) -> &'static str {
        self.kind().as_str()
    }

    /// The formed cohort, once it is formed.
    pub fn formed(&self) -> Option<&Arc<Formed>> {
        match self {
            Self::Planned | Self::Enrolling(_) => None,
            Self::CollectingUpdates { formed, .. }
            | Self::Validating { formed, .. }
            | Self::AwaitingTransaction { formed, .. }
            | Self::CheckingPresence { formed, .. }
            | Self::Signing { formed, .. }
            | Self::Completed { formed, .. } => Some(formed),
            Self::Failed { formed, .. } => formed.as_ref(),
        }
    }

    /// The aggregated data, once it is aggregated.
    pub fn aggregated(&self) -> Option<&Arc<Aggregated>> {
        match self {
            Self::Validating { aggregated, .. }
            | Self::AwaitingTransaction { aggregated, .. }
            | Self::CheckingPresence { aggregated, .. }
            | Self::Signing { aggregated, .. }
            | Self::Completed { aggregated, .. } => Some(aggregated),
            Self::Planned | Self::Enrolling(_) | Self::CollectingUpdates { .. } | Self::Failed { .. } => None,
        }
    }

    /// The slots filled so far.
    pub(super) fn slots(&self) -> Option<&Slots> {
        match self {
            Self::CollectingUpdates { slots, .. } => Some(slots),
            other => other.aggregated().map(|aggregated| &aggregated.slots),
        }
    }

    /// Whether `did` is a member, or a candidate.
    pub fn concerns(&self, did: &Did) -> bool {
        match self {
            Self::Enrolling(enrolling) => enrolling.candidates.contains_key(did),
            phase => phase.formed().is_some_and(|formed| formed.members.contains_key(did)),
        }
    }

    /// The phase that the deadline applies to.
    pub fn timed(&self) -> Option<TimedPhase> {
        Some(match self {
            Self::Planned | Self::Completed { .. } | Self::Failed { .. } => return None,
            Self::Enrolling(_) => TimedPhase::Enrollment,
            Self::CollectingUpdates { .. } => TimedPhase::Updates,
            Self::Validating { .. } => TimedPhase::Validation,
            Self::AwaitingTransaction { .. } => TimedPhase::Transaction,
            Self::CheckingPresence { .. } => TimedPhase::Presence,
            // The session knows its phase more exactly.
            Self::Signing { .. } => TimedPhase::Fallback,
        })
    }

    /// When the present phase must be complete, if it must.
    pub fn deadline(&self) -> Option<Timestamp> {
        match self {
            Self::Planned | Self::Completed { .. } | Self::Failed { .. } => None,
            Self::Enrolling(enrolling) => Some(enrolling.deadline),
            Self::CollectingUpdates { deadline, .. }
            | Self::Validating { deadline, .. }
            | Self::AwaitingTransaction { deadline, .. }
            | Self::CheckingPresence { deadline, .. }
            | Self::Signing { deadline, .. } => Some(*deadline),
        }
    }

    fn deadline_mut(&mut self) -> Option<&mut Timestamp> {
        match self {
            Self::Planned | Self::Completed { .. } | Self::Failed { .. } => None,
            Self::Enrolling(enrolling) => Some(&mut enrolling.deadline),
            Self::CollectingUpdates { deadline, .. }
            | Self::Validating { deadline, .. }
            | Self::AwaitingTransaction { deadline, .. }
            | Self::CheckingPresence { deadline, .. }
            | Self::Signing { deadline, .. } => Some(deadline),
        }
    }

    /// The members and candidates that wait for this cohort.
    fn waiting(&self) -> Vec<Did> {
        match self {
            Self::Enrolling(enrolling) => {
                let candidates = enrolling.candidates.iter();
                let hopeful = candidates.filter(|(_, (_, admission))| *admission != Admission::Refused);
                hopeful.map(|(did, _)| did.clone()).collect()
            }
            phase => phase.formed().map_or_else(Vec::new, |formed| formed.members.keys().cloned().collect()),
        }
    }

    /// An event that does not fit the phase changes nothing. It cannot be decided, so no journal of ours has one.
    pub(super) fn apply(&mut self, event: &ServiceEvent, terms: &CohortTerms, started: Timestamp) {
        let deadline_from = |phase, at| terms.deadline(phase, at, started);
        match (event, &mut *self) {
            (ServiceEvent::AdvertRepeated { at }, Self::Enrolling(enrolling)) => {
                enrolling.next_advert = *at + terms.timing.advert_repeat;
            }
            (ServiceEvent::PhaseExtended { until, .. } | ServiceEvent::GraceGiven { until, .. }, phase) => {
                if let Some(deadline) = phase.deadline_mut() {
                    *deadline = *until;
                }
            }
            (ServiceEvent::OptInReceived { member, .. }, Self::Enrolling(enrolling)) => {
                enrolling.keys.insert(member.participant_key.x_only(), member.did.clone());
                enrolling.candidates.insert(member.did.clone(), (Arc::clone(member), Admission::Pending));
            }
            (ServiceEvent::OptInDisplaced { fault, .. }, Self::Enrolling(enrolling)) => {
                enrolling.set_admission(&fault.did, Admission::Refused);
                enrolling.settle(None, terms);
            }
            (ServiceEvent::MemberAdmitted { did, at }, Self::Enrolling(enrolling)) => {
                enrolling.set_admission(did, Admission::Admitted);
                enrolling.settle(*at, terms);
            }
            (ServiceEvent::MemberRefused { did, .. }, Self::Enrolling(enrolling)) => {
                enrolling.set_admission(did, Admission::Refused);
            }
            (ServiceEvent::KeysAggregated { at, output }, Self::Enrolling(enrolling)) => {
                let members = enrolling
                    .candidates
                    .iter()
                    .filter(|(_, (_, admission))| *admission == Admission::Admitted)
                    .map(|(did, (member, _))| (did.clone(), Arc::clone(member)))
                    .collect();
                *self = Self::CollectingUpdates {
                    formed: Arc::new(Formed { members, output: output.clone() }),
                    slots: Slots::new(),
                    deadline: deadline_from(TimedPhase::Updates, *at),
                };
            }
            (ServiceEvent::UpdateReceived { did, update, .. }, Self::CollectingUpdates { slots, .. }) => {
                slots.insert(did.clone(), Some(*update.hash()));
            }
            (ServiceEvent::UpdateDeclined { did, .. }, Self::CollectingUpdates { slots, .. }) => {
                slots.insert(did.clone(), None);
            }
            (
                ServiceEvent::UpdatesAggregated { at, aggregation, .. },
                Self::CollectingUpdates { formed, slots, .. },
            ) => {
                *self = Self::Validating {
                    formed: Arc::clone(formed),
                    aggregated: Arc::new(Aggregated {
                        slots: std::mem::take(slots),
                        aggregation: Arc::clone(aggregation),
                    }),
                    approvals: BTreeSet::new(),
                    deadline: deadline_from(TimedPhase::Validation, *at),
                };
            }
            (ServiceEvent::ValidationReceived { did, approved: true, .. }, Self::Validating { approvals, .. }) => {
                approvals.insert(did.clone());
            }
            (ServiceEvent::ValidationCompleted { at }, Self::Validating { formed, aggregated, .. }) => {
                *self = Self::AwaitingTransaction {
                    formed: Arc::clone(formed),
                    aggregated: Arc::clone(aggregated),
                    deadline: deadline_from(TimedPhase::Transaction, *at),
                    retry_at: None,
                };
            }
            (
                ServiceEvent::TransactionDeferred { retry_at: at, .. },
                Self::AwaitingTransaction { retry_at, .. },
            ) => *retry_at = Some(*at),
            (ServiceEvent::TransactionRequested { .. }, Self::AwaitingTransaction { retry_at, .. }) => {
                *retry_at = None;
            }
            (
                ServiceEvent::PresenceRequested { at, transaction, value },
                Self::AwaitingTransaction { formed, aggregated, .. },
            ) => {
                *self = Self::CheckingPresence {
                    formed: Arc::clone(formed),
                    aggregated: Arc::clone(aggregated),
                    transaction: transaction.clone(),
                    value: *value,
                    present: BTreeSet::new(),
                    deadline: deadline_from(TimedPhase::Presence, *at),
                };
            }
            (ServiceEvent::PresenceConfirmed { did }, Self::CheckingPresence { present, .. }) => {
                present.insert(did.clone());
            }
            (
                ServiceEvent::SigningStarted { at, session_id, transaction, value, absent, unreached },
                Self::AwaitingTransaction { formed, aggregated, .. }
                | Self::CheckingPresence { formed, aggregated, .. },
            ) => {
                let task = SigningTask::new(SigningTerms {
                    cohort_id: terms.cohort_id.clone(),
                    session_id: session_id.clone(),
                    service: terms.service.clone(),
                    output: formed.output.clone(),
                    members: formed.members.iter().map(|(did, m)| (did.clone(), m.participant_key)).collect(),
                    transaction: transaction.clone(),
                    value: *value,
                    timing: terms.timing,
                    rules: terms.rules.clone(),
                    absent: absent.clone(),
                    unreached: unreached.clone(),
                });
                // The transaction was checked to have exactly one input before the event was decided.
                let Ok(task) = task else { return };
                *self = Self::Signing {
                    formed: Arc::clone(formed),
                    aggregated: Arc::clone(aggregated),
                    task: Arc::new(task),
                    deadline: terms.signing_deadline(*at),
                };
            }
            (ServiceEvent::CohortCompleted { outcome, .. }, Self::Signing { formed, aggregated, .. }) => {
                *self = Self::Completed {
                    formed: Arc::clone(formed),
                    aggregated: Arc::clone(aggregated),
                    outcome: Arc::clone(outcome),
                };
            }
            (ServiceEvent::CohortFailed { reason, successor, .. }, phase) => {
                *self = Self::Failed {
                    formed: phase.formed().cloned(),
                    waiting: phase.waiting(),
                    reason: reason.clone(),
                    successor: successor.clone(),
                };
            }
            _ => {}
        }
    }
}

impl Enrolling {
    /// The settling time starts when the cohort has its minimum of members. Later members do not postpone its end,
    /// and a cohort below its minimum does not settle.
    fn settle(&mut self, now: Option<Timestamp>, terms: &CohortTerms) {
        self.settled_at = if terms.rules.settle.is_zero() || !terms.can_form(self.admitted) {
            None
        } else {
            self.settled_at.or_else(|| now.map(|now| now + terms.rules.settle))
        };
    }

    fn set_admission(&mut self, did: &Did, to: Admission) {
        if let Some((member, admission)) = self.candidates.get_mut(did) {
            let was = std::mem::replace(admission, to);
            self.admitted += usize::from(to == Admission::Admitted);
            self.admitted -= usize::from(was == Admission::Admitted);
            let key = member.participant_key.x_only();
            if to == Admission::Refused && self.keys.get(&key) == Some(did) {
                self.keys.remove(&key);
            }
        }
    }
}
