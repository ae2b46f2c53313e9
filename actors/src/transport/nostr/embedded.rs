//! A relay in this process, for demonstrations, tests and closed groups: it keeps events in memory.

use std::{net::SocketAddr, time::Duration};

use nostr_relay_builder::{LocalRelay, RelayBuilder, builder::RateLimit};
use tokio::net::TcpListener;

/// Most events that one subscription gets of what is stored: all that the relay keeps by default.
const MOST_STORED: usize = 75_000;

/// Events a minute from one connection. The relay's default of sixty ends a cohort of ten in mid-round.
const NOTES_PER_MINUTE: u32 = 1_000_000;

/// How often a free port is looked for: somebody may take it between the question and the answer.
const ATTEMPTS: usize = 8;

/// A relay that runs as long as a clone of it is kept.
#[derive(Clone, Debug)]
pub struct EmbeddedRelay {
    relay: LocalRelay,
    address: SocketAddr,
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
        let refuse = |problem: String| EmbeddedRelayError { address, problem };
        let mut problem = String::new();
        for _ in 0..ATTEMPTS {
            // The relay wants to know its port beforehand.
            let bound = match address.port() {
                0 => TcpListener::bind(address).await.and_then(|listener| listener.local_addr()),
                _ => Ok(address),
            };
            let bound = bound.map_err(|error| refuse(error.to_string()))?;
            let rate = RateLimit { max_reqs: 1_000, notes_per_minute: NOTES_PER_MINUTE };
            let builder = RelayBuilder::default().addr(bound.ip()).port(bound.port()).rate_limit(rate);
            let relay = LocalRelay::new(builder.default_filter_limit(MOST_STORED));
            match relay.run().await {
                Ok(()) => return Ok(Self { relay, address: bound, url: format!("ws://{bound}") }),
                Err(error) if address.port() == 0 => problem = error.to_string(),
                Err(error) => return Err(refuse(error.to_string())),
            }
        }
        Err(refuse(problem))
    }

    /// Where the relay listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where clients connect to, `ws://127.0.0.1:7777` say.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stops listening, and closes every connection. What was stored is gone.
    pub async fn shutdown(&self) {
        // Only a connection that waits for something to do hears of it: one that is busy has to be told again.
        for _ in 0..20 {
            self.relay.shutdown();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
