//! Default settings.

use std::sync::Arc;

use btcr2_aggregation_protocol::{
    beacon::BeaconRegistry,
    cohort::Timing,
    cohort::conditions::Conditions,
    cohort::service::Limits,
    cohort::service::rules::PhaseRules,
    identity::Identity,
    network::Network,
    output::{DEFAULT_MAX_FEE_RATE, MemoizedAggregator},
};

use crate::{
    bans::{BanBook, DefaultBans},
    journal::{MemoryJournal, Retention},
    load::Load,
    notice::Notices,
    participant::ParticipantSettings,
    policy::{ParticipantPolicy, ServicePolicy},
    runtime::{Clock, Randomness},
    seats::Seats,
    service::{OpenCohort, ServiceSettings},
    standing::StandingSettings,
    supervision::RestartIntensity,
    transport::Transport,
};

/// How many notices a subscriber may fall behind.
const NOTICES: usize = 1 << 14;

/// The maximum number of cohorts that a participant takes part in at once.
const MAX_SESSIONS: usize = 16;

impl ServiceSettings {
    /// A service that stores nothing beyond the process: its journal and bans are in memory.
    pub(crate) fn new(identity: Identity, transport: Arc<dyn Transport>, policy: Arc<dyn ServicePolicy>) -> Self {
        Self {
            identity,
            transport,
            policy,
            beacons: BeaconRegistry::default(),
            aggregator: Arc::new(MemoizedAggregator::default()),
            journal: Arc::new(MemoryJournal::new()),
            clock: Clock::system(),
            randomness: Randomness::System,
            notices: Notices::new(NOTICES),
            load: Load::default(),
            bans: BanBook::in_memory(Arc::new(DefaultBans)),
            seats: Seats::default(),
            restarts: RestartIntensity::default(),
            retention: Retention::Forget,
            standing: StandingSettings::default(),
        }
    }
}

impl ParticipantSettings {
    /// A participant that stores nothing beyond the process: its journal is in memory.
    pub(crate) fn new(
        identity: Identity,
        transport: Arc<dyn Transport>,
        policy: Arc<dyn ParticipantPolicy>,
    ) -> Self {
        Self {
            identity,
            transport,
            policy,
            timing: Timing::default(),
            max_fee_rate: DEFAULT_MAX_FEE_RATE,
            max_sessions: MAX_SESSIONS,
            beacons: BeaconRegistry::default(),
            aggregator: Arc::new(MemoizedAggregator::default()),
            journal: Arc::new(MemoryJournal::new()),
            clock: Clock::system(),
            randomness: Randomness::System,
            notices: Notices::new(NOTICES),
            restarts: RestartIntensity::default(),
            retention: Retention::Forget,
        }
    }
}

impl OpenCohort {
    /// A cohort on these conditions, with the default times, limits and rules.
    pub fn new(conditions: Conditions, network: Network) -> Self {
        Self {
            conditions,
            network,
            timing: Timing::default(),
            limits: Limits::default(),
            rules: PhaseRules::default(),
        }
    }
}
