//! Which notices are decisive, and what they are about.

use btcr2_aggregation_protocol::cohort::participant::phase::PhaseKind;
use serde::{Deserialize, Serialize};

use crate::{
    journal::StreamId,
    notice::{ParticipantNotice, ServiceNotice},
};

/// A step of a cohort, a membership or an announcement that a host must not miss, in the order of the protocol. The names are
/// a journal format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Step {
    /// It continues after a restart, or replaces another cohort.
    Began,
    /// The cohort has formed, or its data was approved.
    Formed,
    /// The member's signature was sent.
    Signed,
    /// The signed transaction was seen.
    Seen,
    /// The announcement has failed; a signed transaction may be announced nevertheless.
    Unannounced,
    /// It has ended.
    Ended,
}

impl Step {
    /// Whether it may be taken more than once. Only the last report matters.
    pub(crate) const fn is_repeatable(self) -> bool {
        matches!(self, Self::Began | Self::Unannounced)
    }
}

/// The position of a decisive event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// The journal stream that the event is derived from.
    pub(crate) stream: StreamId,
    pub(crate) step: Step,
}

/// A notice of which some are decisive for the host.
pub(crate) trait Decisive: Send + Sync + 'static {
    /// The position of a decisive notice.
    fn position(&self) -> Option<Position>;

    /// Whether anyone can cause such notices, e.g. by a message that is not processed or not delivered, or by a deposit: they
    /// must not take the space of the others.
    fn is_caused_by_anyone(&self) -> bool;
}

impl Decisive for ServiceNotice {
    fn position(&self) -> Option<Position> {
        let (cohort_id, step) = match self {
            Self::CohortRecovered { cohort_id, .. } | Self::CohortReformed { cohort_id, .. } => {
                (cohort_id, Step::Began)
            }
            Self::KeygenComplete { cohort_id, .. } => (cohort_id, Step::Formed),
            Self::SigningComplete { cohort_id, .. } | Self::CohortFailed { cohort_id, .. } => {
                (cohort_id, Step::Ended)
            }
            _ => return None,
        };
        Some(Position { stream: StreamId::of_cohort(cohort_id), step })
    }

    fn is_caused_by_anyone(&self) -> bool {
        matches!(self, Self::MessageRejected { .. } | Self::MessageUndelivered { .. })
    }
}

impl Decisive for ParticipantNotice {
    fn position(&self) -> Option<Position> {
        let (did, service, cohort_id, step) = match self {
            Self::CohortJoined { did, cohort_id, service } => (did, service, cohort_id, Step::Began),
            Self::SessionRecovered { did, cohort_id, service, phase } => match phase {
                // It is not a member yet.
                PhaseKind::Planned | PhaseKind::Invited => return None,
                _ => (did, service, cohort_id, Step::Began),
            },
            Self::DataApproved { did, cohort_id, record } => (did, &record.service, cohort_id, Step::Formed),
            Self::SignatureSent { did, cohort_id, record, .. } => (did, &record.service, cohort_id, Step::Signed),
            Self::CohortComplete { did, cohort_id, record, .. } => (did, &record.service, cohort_id, Step::Seen),
            Self::CohortOver { did, cohort_id, service, .. }
            | Self::CohortFailed { did, cohort_id, service, .. } => (did, service, cohort_id, Step::Ended),
            _ => return None,
        };
        Some(Position { stream: StreamId::of_session(did, service, cohort_id), step })
    }

    fn is_caused_by_anyone(&self) -> bool {
        matches!(
            self,
            Self::MessageRejected { .. } | Self::MessageUnverified { .. } | Self::MessageUndelivered { .. }
        )
    }
}
