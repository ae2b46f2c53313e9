//! The listeners of a service: a web server, relays, or both.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{
    ServeConfig,
    public::{About, Origins, Public, PublicSite},
    tls::Loaded,
    web::{self, Opening, Running},
};
use crate::{
    actors::{
        runtime::{Clock, Randomness},
        supervision::Vitals,
        transport::{
            Transport,
            combined::CombinedTransport,
            contact::Contacts,
            http::{HttpServer, history::History, server::HttpServerParts},
            nostr::{NostrConfig, NostrTransport, embedded::EmbeddedRelay},
        },
    },
    error::ProgramError,
    events::Printer,
    metrics::sources::Sources,
    storage::Storage,
};

/// The transports of a service.
pub(super) struct Listeners {
    /// All of them as one transport.
    pub(super) transport: Arc<dyn Transport>,
    /// The URL at which HTTP is served.
    pub(super) url: Option<String>,
    /// The relays.
    pub(super) relays: Vec<String>,
    /// Certificate and key, for https.
    pub(super) tls: Option<Loaded>,
    /// The transport over relays, which reports how many are connected.
    pub(super) nostr: Option<NostrTransport>,
    /// What is shown to everyone, if something is.
    public: Option<Public>,
    web: Option<Web>,
    embedded: Option<EmbeddedRelay>,
}

/// A web server: first its socket, on which connections wait, then the server behind it.
enum Web {
    Closed { server: HttpServer, open: Opening },
    Open { server: HttpServer, running: Running },
}

impl Listeners {
    /// Creates the transports. No message is received before [`open`](Self::open).
    pub(super) async fn build(
        config: &ServeConfig,
        storage: &Storage,
        clock: Clock,
        printer: &Printer,
        sources: &Sources,
        contacts: &Contacts,
        vitals: &Vitals,
    ) -> Result<Self, ProgramError> {
        let mut transports: Vec<Arc<dyn Transport>> = Vec::new();
        let (mut url, mut opened, mut relays, mut embedded, mut over_relays) = (None, None, Vec::new(), None, None);
        let mut public = None;
        let tls = config.tls.as_ref().map(Loaded::new).transpose()?;
        if let Some(listening) = &config.listen {
            if config.limits.update_bytes > config.http.max_body {
                printer.warn(&format!(
                    "updates may have {} bytes, but a request body only {}: larger updates cannot arrive over HTTP",
                    config.limits.update_bytes, config.http.max_body
                ));
            }
            let mut parts = HttpServerParts::new(config.http.clone(), clock);
            parts.update_bytes = config.limits.update_bytes;
            parts.connections = config.connections;
            parts.vitals = vitals.clone();
            storage.configure_server(&mut parts, clock).await?;
            let server = HttpServer::start(parts);
            let shown = config.directory.then(|| Public::new(server.clone(), config.public_page.clone()));
            let site = PublicSite { server: server.clone(), public: shown.clone() };
            let (address, open) = web::bind(tls.as_ref(), listening, &site)?;
            let scheme = if tls.is_some() { "https" } else { "http" };
            url = Some(format!("{scheme}://{address}"));
            public = match shown {
                Some(shown) => Some((shown, public_url(config, scheme, address)?)),
                None => None,
            };
            sources.http(server.clone());
            transports.push(Arc::new(server.clone()));
            opened = Some(Web::Closed { server, open });
        }
        if config.nostr.is_some() || config.embedded_relay.is_some() {
            let mut nostr = config.nostr.clone().unwrap_or_else(|| NostrConfig::new([]));
            if let Some(address) = config.embedded_relay {
                let key = config.identity.public_key().x_only();
                let relay =
                    EmbeddedRelay::start_with(address, config.relay_limits, &[key]).await.map_err(|error| {
                        ProgramError::Io {
                            what: "--embedded-relay".to_owned(),
                            error: std::io::Error::other(error),
                        }
                    })?;
                nostr.relays.push(relay.url().to_owned());
                sources.embedded_relay(relay.clone());
                embedded = Some(relay);
            }
            relays.clone_from(&nostr.relays);
            nostr.contacts = contacts.clone();
            let nostr = NostrTransport::new(nostr, clock, Randomness::System)
                .map_err(|error| ProgramError::Usage(error.to_string()))?;
            nostr.learn().await;
            sources.nostr(nostr.clone());
            over_relays = Some(nostr.clone());
            transports.push(Arc::new(nostr));
        }
        let transport: Arc<dyn Transport> = match transports.len() {
            1 => transports.remove(0),
            _ => Arc::new(CombinedTransport::new(transports).ok_or_else(|| {
                ProgramError::Usage("nothing to serve over: neither an address to listen on nor a relay".to_owned())
            })?),
        };
        let public = public.map(|(public, url): (Public, String)| {
            let (did, relays) = (config.identity.did().clone(), relays.clone());
            public.introduce(About { did, network: config.network, url, relays });
            public
        });
        Ok(Self { transport, url, relays, tls, nostr: over_relays, public, web: opened, embedded })
    }

    /// Serves what standing cohorts have announced, if there is a web server.
    pub(super) fn serve_history(&self, history: Arc<dyn History>) {
        if let Some(Web::Closed { server, .. } | Web::Open { server, .. }) = &self.web {
            server.serve_history(history);
        }
    }

    /// Sets where it comes from what is shown to everyone.
    pub(super) fn show(&self, origins: Origins) {
        if let Some(public) = &self.public {
            public.open(origins);
        }
    }

    /// Opens the web server. Called when every cohort that runs is restored and knows its members.
    pub(super) fn open(&mut self) {
        self.web = self.web.take().map(|web| match web {
            Web::Closed { server, open } => Web::Open { server, running: open() },
            open @ Web::Open { .. } => open,
        });
    }

    /// Gives members with broken connections up to `patience` to return for the last messages.
    pub(super) async fn wait_for_members(&self, patience: Duration) {
        if let Some(Web::Open { server, .. }) = &self.web {
            server.heard(patience).await;
        }
    }

    /// Refuses new work, closes the streams, then the connections.
    pub(super) async fn close(self) {
        match self.web {
            Some(Web::Open { server, running }) => {
                server.shutdown().await;
                running.stop().await;
            }
            Some(Web::Closed { server, .. }) => server.shutdown().await,
            None => {}
        }
        if let Some(relay) = self.embedded {
            relay.shutdown().await;
        }
    }
}

/// The URL by which everyone reaches the service.
fn public_url(config: &ServeConfig, scheme: &str, bound: SocketAddr) -> Result<String, ProgramError> {
    match &config.public_url {
        Some(url) => Ok(url.clone()),
        None if bound.ip().is_unspecified() => Err(ProgramError::Usage(format!(
            "--directory and --public-page need --public-url URL here: {bound} is every address of this machine, and they name one"
        ))),
        None => Ok(format!("{scheme}://{bound}")),
    }
}
