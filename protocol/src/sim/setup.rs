//! What is simulated.

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

/// When every simulation starts.
pub const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The network of identifiers and addresses.
    pub network: Network,
    /// What the advert promises.
    pub conditions: Conditions,
    /// How long everybody waits.
    pub timing: Timing,
    /// What the service does when a phase cannot be completed.
    pub rules: PhaseRules,
    /// The beacon types that everybody knows.
    pub beacons: BeaconRegistry,
    /// Who aggregates keys.
    pub aggregator: Arc<dyn KeyAggregator>,
    /// The participants and how they behave.
    pub roles: Vec<Role>,
    /// What the network does.
    pub faults: Faults,
    /// How often peers die.
    pub crashes: Crashes,
    /// Which opt-ins the operator refuses, counted from 0 in the order in which they arrive.
    pub refuses: BTreeSet<usize>,
    /// With how many members the operator forms the cohort before its enrollment ends; `None` waits for the end.
    pub finalize_at: Option<usize>,
    /// How many times the operator has no transaction yet.
    pub defer_transaction: u32,
}

impl Setup {
    /// A CAS cohort of these participants on regtest, with both leaves and a faultless network, that is formed when all
    /// of them are in.
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
        }
    }

    /// The same with another beacon type.
    #[must_use]
    pub fn with_beacon(mut self, beacon_type: BeaconType) -> Self {
        self.conditions.beacon_type = beacon_type;
        self
    }
}
