//! The announcements of cohorts: an actor for each, from the first deposit at the beacon address to a final signal.
//!
//! A host holds [`Announcements`]. It starts the actors, continues those of a previous run, and passes requests to them.
//! Each actor drives the machine of [`btcr2_aggregation_protocol::announcement`] on the engine of all machines, and
//! is the only one that writes its stream of the journal, `announcement/COHORT`.
//!
//! - `actor`: its state, its requests, and in which order it works; `driven`: the consequences of its events.
//! - `errands`: what it does at the chain, one thing at a time, while it continues to receive messages.
//! - `prepare`: the answers to requests for a transaction.
//! - [`claims`]: the coins and transactions of the announcements of one address.
//! - [`notice`]: what subscribers receive; `source`: the ends of announcements from the journal, for a host that missed them.

mod actor;
mod announcements;
pub mod claims;
mod driven;
mod errands;
mod look;
pub mod notice;
mod prepare;
mod source;

use std::{sync::Arc, time::Duration};

use bitcoin::ScriptBuf;
use btcr2_aggregation_protocol::{
    announcement::{NotFunded, change::ChangeKey},
    network::Network,
    output::BeaconOutput,
};

pub use self::announcements::Announcements;
use self::{claims::Claims, notice::AnnouncementNotice};
use crate::{
    chain::Chain,
    journal::{Journal, JournalError, StreamId},
    notice::Notices,
    runtime::Clock,
    supervision::{RestartIntensity, Vitals},
};

/// How often the chain is queried by default.
const POLL: Duration = Duration::from_secs(30);

/// How many notices a subscriber may fall behind.
const NOTICES: usize = 1 << 12;

/// The settings of announcements. [`Self::new`] has the defaults.
#[derive(Clone)]
#[non_exhaustive]
pub struct AnnouncementSettings {
    /// The chain.
    pub chain: Arc<dyn Chain>,
    /// Its network.
    pub network: Network,
    /// The key that can spend change, for bumps; `None` if change goes elsewhere.
    pub change_key: Option<Arc<ChangeKey>>,
    /// The journal, with the facts in the stream `announcement/<cohort id>`.
    pub journal: Arc<dyn Journal>,
    /// The clock.
    pub clock: Clock,
    /// The poll interval.
    pub poll: Duration,
    /// The claims of the announcements of one address, shared by all of them.
    pub claims: Arc<Claims>,
    /// Where notices are published.
    pub notices: Notices<AnnouncementNotice>,
    /// How often an actor that panics is restarted.
    pub restarts: RestartIntensity,
    /// Where it is recorded that an announcement has ended unexpectedly.
    pub vitals: Vitals,
}

impl AnnouncementSettings {
    /// Announcements on `chain`, which is `network`'s, with their facts in `journal`: the system's clock, a query every 30
    /// seconds, and no key that can spend change.
    pub fn new(chain: Arc<dyn Chain>, network: Network, journal: Arc<dyn Journal>) -> Self {
        Self {
            chain,
            network,
            change_key: None,
            journal,
            clock: Clock::system(),
            poll: POLL,
            claims: Arc::default(),
            notices: Notices::new(NOTICES),
            restarts: RestartIntensity::default(),
            vitals: Vitals::default(),
        }
    }
}

/// The address to watch.
#[derive(Clone, Debug)]
pub enum Address {
    /// By its script.
    Script(ScriptBuf),
    /// By its output, from which the required amounts of a deposit follow.
    Output(BeaconOutput),
}

/// Why there is no transaction to sign.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// There will be none.
    #[error("{0}")]
    Never(String),
    /// Not yet.
    #[error(transparent)]
    NotFunded(#[from] NotFunded),
    /// Unknown: the known state of the chain is out of date.
    #[error("the chain cannot be queried now: {0}")]
    Unreachable(String),
    /// The announcement was interrupted. A repeated request may succeed.
    #[error(transparent)]
    Interrupted(#[from] AnnouncementError),
}

/// Why a request to an announcement was not carried out.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnnouncementError {
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The journal was read, and cannot be replayed.
    #[error("journal stream {stream}: {problem}")]
    Replay {
        /// The stream.
        stream: StreamId,
        /// What is wrong.
        problem: String,
    },
    /// The actor ended, or restarted, before it answered.
    #[error("the announcement stood still")]
    StoodStill,
    /// All announcements are stopping. The caller repeats the request after a restart.
    #[error("the announcements are stopping")]
    Stopping,
}
