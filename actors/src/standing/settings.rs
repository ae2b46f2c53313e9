//! What standing cohorts need of their host.

use std::{sync::Arc, time::Duration};

use btcr2_aggregation_protocol::cohort::standing::{BoardReader, SharedBoards};

use super::{
    boards::{BoardStore, MemoryBoards},
    history::{HistoryStore, MemoryHistory, StandingHistory},
    notice::StandingNotice,
    policy::{DefaultStandingPolicy, StandingServicePolicy},
};
use crate::{chain::Chain, notice::Notices};

/// How many notices a subscriber may fall behind.
const NOTICES: usize = 1 << 14;

/// The chain as standing cohorts look at it.
#[derive(Clone)]
pub struct ChainView {
    /// The chain.
    pub chain: Arc<dyn Chain>,
    /// The number of confirmations at which a transaction is final.
    pub min_confirmations: u32,
    /// The time between two looks.
    pub poll: Duration,
    /// How many blocks before the tip the first look begins.
    pub look_back: u32,
    /// After how many blocks a submitted transaction that is in none of them is reported, again and again.
    pub patience: u32,
}

impl ChainView {
    /// Looks every ten seconds, and counts a transaction as final with six confirmations.
    pub const fn new(chain: Arc<dyn Chain>) -> Self {
        Self { chain, min_confirmations: 6, poll: Duration::from_secs(10), look_back: 1_008, patience: 6 }
    }
}

/// What a service needs for standing cohorts.
#[derive(Clone)]
pub struct StandingSettings {
    /// The decisions of its operator.
    pub policy: Arc<dyn StandingServicePolicy>,
    /// Where boards are stored.
    pub boards: Arc<dyn BoardStore>,
    /// Where it is stored what was announced.
    pub history: Arc<dyn HistoryStore>,
    /// Reads boards.
    pub reader: Arc<dyn BoardReader>,
    /// The chain; without one the host reports coins itself.
    pub chain: Option<ChainView>,
    /// Where notices are published.
    pub notices: Notices<StandingNotice>,
}

impl StandingSettings {
    /// The history that a service with these settings stores, to be served.
    pub fn served_history(&self) -> StandingHistory {
        StandingHistory::new(Arc::clone(&self.boards), Arc::clone(&self.history), Arc::clone(&self.policy))
    }
}

impl Default for StandingSettings {
    /// Boards in memory, no chain, and [`DefaultStandingPolicy`].
    fn default() -> Self {
        Self {
            policy: Arc::new(DefaultStandingPolicy::default()),
            boards: Arc::new(MemoryBoards::default()),
            history: Arc::new(MemoryHistory::default()),
            reader: Arc::new(SharedBoards::default()),
            chain: None,
            notices: Notices::new(NOTICES),
        }
    }
}
