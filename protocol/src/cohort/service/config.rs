//! What does not change in the life of a cohort, and what makes a cohort impossible from the start.

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

/// What strangers and members can make grow, bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Most bytes of canonical JSON in an update, checked before any signature.
    pub update_bytes: usize,
    /// Most candidates, admitted or not, that an enrolling cohort keeps.
    pub candidates: usize,
}

impl Default for Limits {
    /// 256 KiB an update, 10,000 candidates.
    fn default() -> Self {
        Self { update_bytes: 256 * 1024, candidates: 10_000 }
    }
}

/// Where a cohort comes from, when it was formed in the place of one that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The cohort that failed.
    pub predecessor: Option<CohortId>,
    /// How many failed before it, in a row.
    pub generation: u32,
    /// Its members that were not at fault: enrollment waits for them before it is offered to end.
    pub invited: BTreeSet<Did>,
    /// Its members that were, and those of the cohorts before it: they are not admitted.
    pub excluded: BTreeSet<Did>,
}

/// What is decided when a cohort is opened. It is journaled with the first fact, so that the journal alone brings a cohort
/// back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CohortTerms {
    /// The service's identifier, a KEY DID.
    pub service: Did,
    /// The key in it.
    pub service_key: PublicKey,
    /// The cohort.
    pub cohort_id: CohortId,
    /// The network of the beacon address.
    pub network: Network,
    /// What the advert promises.
    pub conditions: Conditions,
    /// How long to wait.
    pub timing: Timing,
    /// What is too much.
    pub limits: Limits,
    /// What to do when a phase cannot be completed.
    #[serde(default)]
    pub rules: PhaseRules,
    /// Where it comes from.
    #[serde(default)]
    pub lineage: Lineage,
}

impl CohortTerms {
    /// Whether a cohort of `members` satisfies the conditions and its own fallback threshold.
    pub(super) fn can_form(&self, members: usize) -> bool {
        let threshold = match self.conditions.script_tree {
            ScriptTree::FallbackAndRecovery { fallback_threshold, .. } => fallback_threshold.unwrap_or(1),
            ScriptTree::KeyPathOnly => 1,
        };
        self.conditions.admits_size(members) && members >= usize::from(threshold)
    }

    /// Until when `phase` is waited for when its wait begins at `at`, in a cohort that was advertised at `started`.
    pub(super) fn deadline(&self, phase: TimedPhase, at: Timestamp, started: Timestamp) -> Timestamp {
        let until = at + self.rules.timeout(phase, &self.timing);
        match phase {
            // The TTL ends with the start of signing.
            TimedPhase::Presence => until,
            _ => until.min(started + self.timing.cohort_ttl),
        }
    }

    /// Until when a session that starts at `at` must have ended: its own deadlines come first.
    pub(super) fn signing_deadline(&self, at: Timestamp) -> Timestamp {
        [TimedPhase::Nonces, TimedPhase::PartialSignatures, TimedPhase::Fallback]
            .into_iter()
            .fold(at + self.timing.signing_timeout, |end, phase| end + self.rules.longest(phase, &self.timing))
    }
}

/// What does not change in the life of a cohort: its terms, and what its host puts at its disposal.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// What was decided.
    pub terms: Arc<CohortTerms>,
    /// The beacon types that the host knows.
    pub beacons: BeaconRegistry,
    /// Who aggregates keys: directly, or behind a cache shared with others.
    pub aggregator: Arc<dyn KeyAggregator>,
}

/// A cohort that cannot be advertised.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceConfigError {
    /// The service's DID does not prove its key by itself.
    #[error("the service needs a KEY DID, so that members can verify its key")]
    NotAKeyDid,
    /// The service's DID lives on another network than the cohort.
    #[error("the service's DID is on another network than the cohort")]
    Network,
    /// Conditions that nobody could meet.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Conditions(Vec<ConditionProblem>),
    /// A cohort whose announcement the transport could not carry.
    #[error(transparent)]
    TooManyMembers(#[from] TooManyMembers),
}
