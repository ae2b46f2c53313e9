//! The phases of a signing session.

use std::collections::BTreeMap;

use crate::{
    cohort::{Unreached, service::rules::TimedPhase},
    did::Did,
    key::Signature,
    message::Bytes,
    signing::SigningOutcome,
    time::Timestamp,
};

/// The state of the session in each phase.
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
    /// The latch is closed on the key path: the aggregate signature is valid.
    KeyPath,
    /// The latch is closed on the fallback: members sign on its leaf. `culprits` had sent only invalid contributions.
    Fallback {
        signatures: BTreeMap<Did, Signature>,
        holdouts: Vec<Did>,
        culprits: Vec<Did>,
        unreached: Unreached,
        deadline: Timestamp,
    },
    /// The session has ended.
    Ended(SigningOutcome),
}

impl SessionPhase {
    /// The phase that the deadline applies to.
    pub fn timed(&self) -> Option<TimedPhase> {
        match self {
            Self::CollectingNonces { .. } => Some(TimedPhase::Nonces),
            Self::CollectingPartialSignatures { .. } => Some(TimedPhase::PartialSignatures),
            Self::Fallback { .. } => Some(TimedPhase::Fallback),
            Self::Planned | Self::KeyPath | Self::Ended(_) => None,
        }
    }
}
