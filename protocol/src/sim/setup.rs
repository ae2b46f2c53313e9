//! The setup of a simulation.

use std::{collections::BTreeSet, sync::Arc};

use super::{Crashes, Faults, Role};
use crate::{
    beacon::{BeaconRegistry, BeaconType},
    cohort::{Timing, conditions::Conditions, service::rules::PhaseRules},
    key::SecretKey,
    network::Network,
    output::{KeyAggregator, MemoizedAggregator, RecoverySequence, ScriptTree},
    time::Timestamp,
};

/// The time at which every simulation starts.
pub const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// The setup of a simulation.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The network of identifiers and addresses.
    pub network: Network,
    /// The conditions of the advert.
    pub conditions: Conditions,
    /// How long the service and the participants wait.
    pub timing: Timing,
    /// What the service does when a phase cannot be completed.
    pub rules: PhaseRules,
    /// The beacon types that every peer knows.
    pub beacons: BeaconRegistry,
    /// Aggregates keys.
    pub aggregator: Arc<dyn KeyAggregator>,
    /// The participants, by their roles.
    pub roles: Vec<Role>,
    /// The faults of the network.
    pub faults: Faults,
    /// How often processes crash.
    pub crashes: Crashes,
    /// The opt-ins that the operator refuses, counted from 0 in the order of arrival.
    pub refuses: BTreeSet<usize>,
    /// The number of members with which the operator forms the cohort before its enrollment ends; `None` waits for
    /// the end.
    pub finalize_at: Option<usize>,
    /// The number of times that the operator has no transaction yet.
    pub defer_transaction: u32,
    /// The maximum number of sessions of a participant at once.
    pub max_sessions: usize,
}

impl Setup {
    /// A CAS cohort of these participants on regtest, with both leaves and a faultless network. It is formed when all
    /// of them are admitted.
    pub fn new(roles: Vec<Role>) -> Self {
        let recovery = SecretKey::from_bytes(&[7; 32]).expect("a small number is a scalar").public_key().x_only();
        let tree = ScriptTree::FallbackAndRecovery {
            recovery_key: recovery,
            recovery_sequence: RecoverySequence::try_from(144).expect("in range"),
            fallback_threshold: None,
        };
        Self {
            network: Network::Regtest,
            conditions: Conditions::new(BeaconType::cas(), 1, tree),
            timing: Timing::default(),
            rules: PhaseRules::default(),
            beacons: BeaconRegistry::default(),
            aggregator: Arc::new(MemoizedAggregator::default()),
            finalize_at: Some(roles.len()),
            roles,
            faults: Faults::default(),
            crashes: Crashes::default(),
            refuses: BTreeSet::new(),
            defer_transaction: 0,
            max_sessions: 64,
        }
    }

    /// The same with another beacon type.
    #[must_use]
    pub fn with_beacon(mut self, beacon_type: BeaconType) -> Self {
        self.conditions.beacon_type = beacon_type;
        self
    }
}
