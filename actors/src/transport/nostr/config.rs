//! The transport's settings and limits, each with its reason.

use std::time::Duration;

use nostr_sdk::RelayUrl;

use crate::{
    backoff::Backoff,
    transport::{
        contact::Contacts,
        tls::{TlsError, Trust},
    },
};

/// How an identity uses its relays.
#[derive(Clone, Debug)]
pub struct NostrConfig {
    /// The relays: messages are published to all of them, and read from all of them.
    pub relays: Vec<String>,
    /// The maximum age of adverts. Zero means no limit: every advert that a relay has stored is read.
    pub look_back: Duration,
    /// The timeout for connecting to a relay.
    pub connect_timeout: Duration,
    /// The timeout for a relay's answer to an event. At most ten seconds.
    pub publish_timeout: Duration,
    /// How long to wait for the end of a relay's stored events, which are sorted, and delivered before adverts.
    pub stored_timeout: Duration,
    /// The delay before the second attempt to connect, or to publish an event that no relay has accepted. It doubles
    /// from then on.
    pub first_backoff: Duration,
    /// The maximum delay between attempts.
    pub longest_backoff: Duration,
    /// The maximum number of events that wait for one relay's answer; others are queued. Relays drop events that arrive
    /// too fast.
    pub in_flight: usize,
    /// The maximum number of our events that are stored to be published again: to a relay that reconnects, or if none
    /// accepted them.
    pub outbox: usize,
    /// How long an accepted event is stored for relays that reconnect, if it has no deadline itself.
    pub keep: Duration,
    /// The maximum number of remembered events. Copies from several relays, and from later connections to one, are read
    /// once.
    pub seen_events: usize,
    /// The maximum number of peers whose conversation keys are cached: deriving one costs fifteen times as much as an
    /// encryption.
    pub conversations: usize,
    /// The maximum number of EXTERNAL DIDs whose keys are stored from their opt-ins; beyond it the oldest are removed.
    pub external_keys: usize,
    /// The certificates that are trusted.
    pub trust: Trust,
    /// The channel on which it is reported whether the relays can be reached.
    pub contacts: Contacts,
}

impl NostrConfig {
    /// The delays between attempts.
    pub(super) const fn backoff(&self) -> Backoff {
        Backoff { first: self.first_backoff, longest: self.longest_backoff }
    }

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
#[non_exhaustive]
pub enum NostrConfigError {
    /// No peer could be reached.
    #[error("no relays: at least one is needed")]
    NoRelays,
    /// TLS cannot be set up.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// Not the address of a relay.
    #[error("{url}: {problem} (a relay's URL starts with wss:// or ws://)")]
    Url {
        /// The given text.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
}
