//! The events of a participant's memberships.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{CohortKey, Facts, Successor};
use crate::{cohort::Advert, error::Reject, id::CohortId, time::Timestamp};

/// Why a participant is left without a cohort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WithoutCohort {
    /// The last cohort that it was in failed, and has no successor.
    CohortFailed,
    /// The successor of the last cohort that it was in was not joined in time.
    SuccessorMissed,
}

/// An event of a participant's memberships. The first group are facts about cohorts that we joined, and are journaled. The
/// others can be caused by any peer, and are not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MembershipEvent {
    /// We opted in.
    CohortJoined {
        /// When.
        at: Timestamp,
        /// The cohort's advert.
        advert: Arc<Advert>,
    },
    /// A cohort that we joined has formed.
    CohortFormed {
        /// When.
        at: Timestamp,
        /// The cohort.
        cohort: CohortKey,
    },
    /// A cohort that we joined is over for us.
    CohortEnded {
        /// When.
        at: Timestamp,
        /// The cohort.
        cohort: CohortKey,
        /// The cohort that replaces it, if there is one that we have not joined yet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        successor: Option<Successor>,
    },
    /// The successor of one of our cohorts was not joined in time. It may still be.
    SuccessorMissed {
        /// When.
        at: Timestamp,
        /// The successor.
        cohort: CohortKey,
    },
    /// The journal of a cohort that we joined is not here any more: it was moved elsewhere, or archived.
    CohortLost {
        /// When.
        at: Timestamp,
        /// The cohort.
        cohort: CohortKey,
    },
    /// All facts so far, in place of the events before.
    Compacted(Box<Facts>),

    /// An advert was read that is new to us; the host is asked whether to consider it.
    AdvertRead {
        /// The advert.
        advert: Arc<Advert>,
    },
    /// The host does not consider the advert.
    AdvertPassedOver {
        /// The cohort.
        cohort: CohortKey,
    },
    /// A session was started.
    SessionStarted {
        /// The cohort's advert.
        advert: Arc<Advert>,
        /// Whether the cohort replaces one that we were in, on the same terms.
        rejoins: bool,
        /// Whether it is the session of a previous run.
        resumed: bool,
    },
    /// A session has ended, and we had not joined.
    SessionDeclined {
        /// The cohort.
        cohort: CohortKey,
    },
    /// The driver of an ended session has stopped.
    SessionClosed {
        /// The cohort.
        cohort: CohortKey,
    },
    /// The journal of a previous run has a session that ended without our joining.
    SessionDiscarded {
        /// The cohort.
        cohort: CohortKey,
    },
    /// The service of a cohort that we joined claims that another one replaces it. The end of the session will confirm
    /// that.
    SuccessorClaimed {
        /// Our cohort.
        cohort: CohortKey,
        /// The other one.
        next: CohortId,
    },
    /// A session cannot continue, although it has not ended.
    CohortHalted {
        /// The cohort.
        cohort: CohortKey,
        /// Whether we had joined, or may have.
        joined: bool,
        /// The reason, as text.
        reason: String,
    },
    /// A message shows that a cohort has formed in which we have no session.
    FormedWithoutUs {
        /// The cohort.
        cohort: CohortKey,
        /// Why the message was refused, unless it was stored: then it is of a previous run.
        reject: Option<Reject>,
    },
    /// The journal has an archived session of this cohort.
    ArchiveRead {
        /// The cohort.
        cohort: CohortKey,
    },
    /// No cohort is left that could announce anything for us.
    LeftWithoutCohort {
        /// The cohort that failed, or the successor that was missed.
        cohort: CohortKey,
        /// Why.
        cause: WithoutCohort,
    },
}

impl MembershipEvent {
    /// Whether it is about a cohort that we joined, and is journaled.
    pub const fn is_fact(&self) -> bool {
        matches!(
            self,
            Self::CohortJoined { .. }
                | Self::CohortFormed { .. }
                | Self::CohortEnded { .. }
                | Self::SuccessorMissed { .. }
                | Self::CohortLost { .. }
                | Self::Compacted(_)
        )
    }
}
