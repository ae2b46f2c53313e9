//! What does not change in the life of a cohort, and what makes a cohort impossible from the start.

use std::sync::Arc;

use crate::{
    beacon::{BeaconRegistry, BeaconType},
    cohort::{
        Timing,
        conditions::{ConditionProblem, Conditions},
    },
    did::Did,
    id::CohortId,
    key::PublicKey,
    network::Network,
    output::KeyAggregator,
};

/// What strangers and members can make grow, bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// What does not change in the life of a cohort.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
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
    #[error(
        "a {beacon_type} cohort of {asked} members cannot be served over this transport: the announcement would not fit \
         into one message beyond {limit} members (an SMT beacon has no such limit)"
    )]
    TooManyMembers {
        /// The beacon.
        beacon_type: BeaconType,
        /// How many members the cohort could have.
        asked: u32,
        /// How many it can.
        limit: usize,
    },
}
