//! The transport's settings and limits, each with its reason.

use std::time::Duration;

use nostr_sdk::RelayUrl;

use crate::transport::{
    contact::Contacts,
    tls::{TlsError, Trust},
};

/// How an identity uses its relays.
#[derive(Clone, Debug)]
pub struct NostrConfig {
    /// The relays: messages go to all of them, and are read from all of them.
    pub relays: Vec<String>,
    /// How old adverts may be. Zero is no limit: every advert that a relay still keeps is read.
    pub look_back: Duration,
    /// How long a relay may take to accept a connection.
    pub connect_timeout: Duration,
    /// How long a relay may take to say what became of an event. At most ten seconds.
    pub publish_timeout: Duration,
    /// How long stored events are waited for, to be put in order and before adverts, when a relay does not say that it has
    /// sent them all.
    pub stored_timeout: Duration,
    /// Before the second attempt to connect, or to publish what no relay has accepted. Doubles from then on.
    pub first_backoff: Duration,
    /// The longest time between attempts.
    pub longest_backoff: Duration,
    /// Most events that wait for one relay's answer at once; others wait their turn. Relays drop what comes in too fast.
    pub in_flight: usize,
    /// Most events of ours that are kept to be published again, to a relay that comes back or when none accepted them.
    pub outbox: usize,
    /// How long an event that was accepted is kept for relays that come back, when it does not say how long it matters.
    pub keep: Duration,
    /// Most events that are remembered, so that the copies of several relays, and of later connections to one, are read
    /// once.
    pub seen_events: usize,
    /// Most peers whose conversation keys are remembered: deriving one costs fifteen times what encrypting does.
    pub conversations: usize,
    /// Most EXTERNAL DIDs whose keys are remembered from their opt-ins; beyond that the oldest are forgotten.
    pub external_keys: usize,
    /// Whose certificates are trusted.
    pub trust: Trust,
    /// Where it is reported whether the relays can be reached.
    pub contacts: Contacts,
}

impl NostrConfig {
    /// These relays, and defaults.
    pub fn new(relays: impl IntoIterator<Item = String>) -> Self {
        Self {
            relays: relays.into_iter().collect(),
            look_back: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(10),
            publish_timeout: Duration::from_secs(10),
            stored_timeout: Duration::from_secs(5),
            first_backoff: Duration::from_secs(1),
            longest_backoff: Duration::from_secs(30),
            in_flight: 32,
            outbox: 8_192,
            keep: Duration::from_secs(600),
            seen_events: 65_536,
            conversations: 4_096,
            external_keys: 20_000,
            trust: Trust::system(),
            contacts: Contacts::default(),
        }
    }

    /// The relays' addresses, each once.
    pub(super) fn urls(&self) -> Result<Vec<RelayUrl>, NostrConfigError> {
        let mut urls = Vec::new();
        for relay in &self.relays {
            let url = RelayUrl::parse(relay)
                .map_err(|error| NostrConfigError::Url { url: relay.clone(), problem: error.to_string() })?;
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        if urls.is_empty() { Err(NostrConfigError::NoRelays) } else { Ok(urls) }
    }
}

/// Settings that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NostrConfigError {
    /// Nobody could hear us.
    #[error("no relays: at least one is needed")]
    NoRelays,
    /// TLS cannot be set up.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// Not the address of a relay.
    #[error("{url}: {problem} (a relay's URL starts with wss:// or ws://)")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
}
