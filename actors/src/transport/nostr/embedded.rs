//! A relay in this process, for demonstrations, tests and closed groups: it keeps events in memory.

use std::net::SocketAddr;

use nostr_relay_builder::{LocalRelay, RelayBuilder, builder::RateLimit};

/// Most events that the relay keeps.
const MOST_EVENTS: usize = 75_000;

/// A relay that runs as long as a clone of it is kept.
#[derive(Clone, Debug)]
pub struct EmbeddedRelay {
    relay: LocalRelay,
    url: String,
}

/// Why an embedded relay cannot run.
#[derive(Clone, Debug, thiserror::Error)]
#[error("embedded relay on {address}: {problem}")]
pub struct EmbeddedRelayError {
    address: SocketAddr,
    problem: String,
}

impl EmbeddedRelay {
    /// Starts a relay on this address; port 0 is any free port.
    ///
    /// # Errors
    /// [`EmbeddedRelayError`] when the address cannot be listened on.
    pub async fn start(address: SocketAddr) -> Result<Self, EmbeddedRelayError> {
        Self::start_with(address, RelayBuilder::default()).await
    }

    /// As [`Self::start`], with policies or a database of the caller's.
    ///
    /// # Errors
    /// [`EmbeddedRelayError`] when the address cannot be listened on.
    pub async fn start_with(address: SocketAddr, builder: RelayBuilder) -> Result<Self, EmbeddedRelayError> {
        // The default of sixty notes a minute ends a cohort of ten in mid-round.
        let rate = RateLimit { max_reqs: 1_000, notes_per_minute: u32::MAX };
        let builder = builder.addr(address.ip()).rate_limit(rate).default_filter_limit(MOST_EVENTS);
        let builder = if address.port() == 0 { builder } else { builder.port(address.port()) };
        let relay = LocalRelay::new(builder);
        relay.run().await.map_err(|error| EmbeddedRelayError { address, problem: error.to_string() })?;
        let url = relay.url().await.to_string();
        Ok(Self { relay: relay, url })
    }

    /// Where clients connect to, `ws://127.0.0.1:7777` say.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stops listening, and closes every connection.
    pub fn shutdown(&self) {
        self.relay.shutdown();
    }
}
