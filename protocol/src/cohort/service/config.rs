//! The configuration of a cohort, and the errors that make a cohort impossible from the start.

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

use super::rules::{PhaseRules, TimedPhase};
use crate::{
    beacon::BeaconRegistry,
    cohort::{
        Timing,
        conditions::{ConditionProblem, Conditions, TooManyMembers},
    },
    did::Did,
    id::CohortId,
    key::PublicKey,
    network::Network,
    output::{KeyAggregator, ScriptTree},
    time::Timestamp,
};

/// Bounds on what unauthenticated peers and members can make grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The greatest size of an update, in bytes of canonical JSON. Checked before any signature.
    pub update_bytes: usize,
    /// The greatest number of candidates, admitted or not, that an enrolling cohort stores.
    pub candidates: usize,
}

impl Default for Limits {
    /// 256 KiB an update, 10,000 candidates.
    fn default() -> Self {
        Self { update_bytes: 256 * 1024, candidates: 10_000 }
    }
}

/// The origin of a cohort that was formed to replace one that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The cohort that failed.
    pub predecessor: Option<CohortId>,
    /// The number of cohorts that failed in a row before it.
    pub generation: u32,
    /// The members of the failed cohort that were not at fault. Enrollment waits for them before the host may
    /// finalize it.
    pub invited: BTreeSet<Did>,
    /// The members that were at fault, in any of the failed cohorts. They are not admitted.
    pub excluded: BTreeSet<Did>,
}

/// What is decided when a cohort is opened. It is journaled with the first event, so that the journal alone restores
/// a cohort.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CohortTerms {
    /// The service's identifier, a KEY DID.
    pub service: Did,
    /// The key of that DID.
    pub service_key: PublicKey,
    /// The cohort.
    pub cohort_id: CohortId,
    /// The network of the beacon address.
    pub network: Network,
    /// The conditions that the advert promises.
    pub conditions: Conditions,
    /// How long to wait.
    pub timing: Timing,
    /// The bounds on what peers can make grow.
    pub limits: Limits,
    /// What to do when a phase cannot be completed.
    #[serde(default)]
    pub rules: PhaseRules,
    /// The origin of the cohort.
    #[serde(default)]
    pub lineage: Lineage,
}

impl CohortTerms {
    /// Whether a cohort of `members` satisfies the conditions and its own fallback threshold.
    pub(super) fn can_form(&self, members: usize) -> bool {
        let threshold = match self.conditions.script_tree {
            ScriptTree::FallbackAndRecovery { fallback_threshold, .. } => fallback_threshold.unwrap_or(1),
            ScriptTree::FallbackOnly { threshold } => threshold,
            ScriptTree::KeyPathOnly => 1,
        };
        self.conditions.admits_size(members) && members >= usize::from(threshold)
    }

    /// The deadline of `phase` when its wait begins at `at`, in a cohort that was advertised at `started`.
    pub(super) fn deadline(&self, phase: TimedPhase, at: Timestamp, started: Timestamp) -> Timestamp {
        let until = at + self.rules.timeout(phase, &self.timing);
        match phase {
            // The TTL ends with the start of signing.
            TimedPhase::Presence => until,
            _ => until.min(started + self.timing.cohort_ttl),
        }
    }

    /// When a session that starts at `at` must have ended. The session's own deadlines come first.
    pub(super) fn signing_deadline(&self, at: Timestamp) -> Timestamp {
        [TimedPhase::Nonces, TimedPhase::PartialSignatures, TimedPhase::Fallback]
            .into_iter()
            .fold(at + self.timing.signing_timeout, |end, phase| end + self.rules.longest(phase, &self.timing))
    }
}

/// What does not change while a cohort exists: its terms, and what its host provides.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// The terms of the cohort.
    pub terms: Arc<CohortTerms>,
    /// The beacon types that the host knows.
    pub beacons: BeaconRegistry,
    /// Aggregates keys: directly, or behind a cache shared with other machines.
    pub aggregator: Arc<dyn KeyAggregator>,
}

/// A cohort that cannot be advertised.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceConfigError {
    /// The service's DID does not prove its key by itself.
    #[error("the service needs a KEY DID, so that members can verify its key")]
    NotAKeyDid,
    /// The service's DID is on another network than the cohort.
    #[error("the service's DID is on another network than the cohort")]
    Network,
    /// Conditions that no cohort can meet.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Conditions(Vec<ConditionProblem>),
    /// The transport cannot carry the announcement of the cohort.
    #[error(transparent)]
    TooManyMembers(#[from] TooManyMembers),
}
