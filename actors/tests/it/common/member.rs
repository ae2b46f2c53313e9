//! The start of a participant.

use std::sync::Arc;

use btcr2_aggregation_actors::{
    handle::Participant,
    journal::Journal,
    notice::{Notices, ParticipantNotice},
    policy::ParticipantPolicy,
    runtime::{Clock, Randomness},
    transport::Transport,
};
use btcr2_aggregation_protocol::{beacon::BeaconRegistry, identity::Identity, output::KeyAggregator};

use super::WAITING;

/// The settings of a participant, which a test may change before it starts the participant.
pub struct ParticipantSettings {
    pub identity: Identity,
    pub transport: Arc<dyn Transport>,
    pub policy: Arc<dyn ParticipantPolicy>,
    pub max_sessions: usize,
    pub beacons: BeaconRegistry,
    pub aggregator: Arc<dyn KeyAggregator>,
    pub journal: Arc<dyn Journal>,
    /// Whether the journal of an ended membership is removed.
    pub is_transient: bool,
    pub clock: Clock,
    pub randomness: Randomness,
    pub notices: Notices<ParticipantNotice>,
}

impl ParticipantSettings {
    /// Starts the participant; ready when its memberships are restored.
    pub async fn start(self) -> Participant {
        let builder = Participant::builder(self.identity, self.transport, self.policy);
        let builder = match self.is_transient {
            true => builder.transient_journal(self.journal),
            false => builder.journal(self.journal),
        };
        let builder = builder.max_sessions(self.max_sessions).beacons(self.beacons).aggregator(self.aggregator);
        let builder = builder.clock(self.clock).randomness(self.randomness).notices(self.notices);
        builder.waiting_events(WAITING).start().await.expect("it starts")
    }
}
