//! Transports by configuration: [`TransportConfig`] can be part of a host's configuration file.
//!
//! A service that serves HTTP needs more than a configuration: its [`HttpServer`](crate::transport::http::HttpServer) is
//! mounted in the host's web server.

use std::{sync::Arc, time::Duration};

use btcr2_aggregation_protocol::did::Did;
use serde::Deserialize;

use crate::{
    runtime::{Clock, Randomness},
    transport::{
        Transport,
        combined::CombinedTransport,
        contact::Contacts,
        http::{HttpClient, client::BaseUrlError},
        memory::MemoryTransport,
        nostr::{NostrConfig, NostrConfigError, NostrTransport},
        tls::Trust,
    },
};

/// A transport, e.g. `{"type": "http", "url": "https://example.org"}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum TransportConfig {
    /// Within the process: the network of the [`Environment`].
    Memory,
    /// The client of a server.
    Http {
        /// The server's base URL.
        url: String,
        /// The service to listen to; without it, all services of that server.
        #[serde(default)]
        service: Option<Did>,
    },
    /// Over Nostr relays.
    Nostr {
        /// The relays: messages are published to all of them, and read from all of them.
        relays: Vec<String>,
        /// The maximum age of adverts, in seconds; 0 for no limit.
        #[serde(default)]
        look_back: Option<u64>,
    },
    /// Over several transports at once.
    Combined {
        /// The transports.
        transports: Vec<Self>,
    },
}

/// What transports need beside their configuration. Clones share it.
#[derive(Clone)]
#[non_exhaustive]
pub struct Environment {
    /// The time.
    pub clock: Clock,
    /// The randomness.
    pub randomness: Randomness,
    /// The network within the process.
    pub memory: MemoryTransport,
    /// The certificates that servers and relays are trusted by.
    pub trust: Trust,
    /// The channel on which it is reported whether servers and relays can be reached.
    pub contacts: Contacts,
}

impl Default for Environment {
    /// The system's clock and randomness, a new network within the process, and the system's certificates.
    fn default() -> Self {
        Self {
            clock: Clock::system(),
            randomness: Randomness::System,
            memory: MemoryTransport::new(),
            trust: Trust::system(),
            contacts: Contacts::default(),
        }
    }
}

/// A configuration that cannot work.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportConfigError {
    /// The URL of a server is not valid.
    #[error(transparent)]
    Http(#[from] BaseUrlError),
    /// The relays are not valid.
    #[error(transparent)]
    Nostr(#[from] NostrConfigError),
    /// Nothing is combined.
    #[error("no transports to combine: at least one is needed")]
    Empty,
}

impl TransportConfig {
    /// The transport. Nothing is connected before a service or a participant uses it.
    ///
    /// # Errors
    /// [`TransportConfigError`] when the configuration cannot work.
    pub fn build(&self, environment: &Environment) -> Result<Arc<dyn Transport>, TransportConfigError> {
        let Environment { clock, randomness, memory, trust, contacts } = environment;
        Ok(match self {
            Self::Memory => Arc::new(memory.clone()),
            Self::Http { url, service } => {
                let client = HttpClient::new(url, service.clone(), *clock, *randomness)?;
                Arc::new(client.trusting(trust)?.with_contacts(contacts.clone()))
            }
            Self::Nostr { relays, look_back } => {
                let mut config = NostrConfig::new(relays.iter().cloned());
                (config.trust, config.contacts) = (trust.clone(), contacts.clone());
                if let Some(seconds) = look_back {
                    config.look_back = Duration::from_secs(*seconds);
                }
                Arc::new(NostrTransport::new(config, *clock, *randomness)?)
            }
            Self::Combined { transports } => {
                let built: Result<Vec<_>, _> = transports.iter().map(|config| config.build(environment)).collect();
                Arc::new(CombinedTransport::new(built?).ok_or(TransportConfigError::Empty)?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(config: &str) -> Result<Arc<dyn Transport>, String> {
        let config: TransportConfig = serde_json::from_str(config).map_err(|error| error.to_string())?;
        config.build(&Environment::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn each_kind_of_transport_is_built_from_its_configuration() {
        let nostr = r#"{"type": "nostr", "relays": ["wss://relay.example"], "look_back": 60}"#;
        let http = r#"{"type": "http", "url": "https://example.org/agg"}"#;
        let combined = format!(r#"{{"type": "combined", "transports": [{http}, {nostr}]}}"#);
        for config in [r#"{"type": "memory"}"#, http, nostr, &combined] {
            build(config).unwrap_or_else(|error| panic!("{config}: {error}"));
        }
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused_with_the_reason() {
        let refused = |config: &str, reason: &str| {
            let error = build(config).err().unwrap_or_else(|| panic!("{config}"));
            assert!(error.contains(reason), "{config}: {error}");
        };
        refused(r#"{"type": "http", "url": "ftp://example.org"}"#, "http or https URL expected");
        refused(r#"{"type": "nostr", "relays": []}"#, "no relays");
        refused(r#"{"type": "combined", "transports": []}"#, "no transports");
        refused(r#"{"type": "http", "address": "https://example.org"}"#, "unknown field");
        refused(r#"{"type": "didcomm"}"#, "unknown variant");
    }
}
