//! The transports of a demo.

use std::sync::Arc;

use actix_web::{App, HttpServer as WebServer, dev::ServerHandle};

use super::{DemoError, DemoTransport, internal};
use crate::{
    actors::{
        runtime::{Clock, Randomness},
        transport::{
            Transport,
            http::{self, HttpClient, HttpConfig, HttpServer, server::HttpServerParts, store::Rate},
            memory::MemoryTransport,
            nostr::{NostrConfig, NostrTransport, embedded::EmbeddedRelay},
        },
    },
    protocol::did::Did,
};

/// A running network.
pub(super) struct DemoNetwork {
    /// The transport of the service.
    pub(super) service: Arc<dyn Transport>,
    /// The transport of the members.
    pub(super) members: Arc<dyn Transport>,
    web: Option<(HttpServer, ServerHandle)>,
    relay: Option<EmbeddedRelay>,
}

impl DemoNetwork {
    /// Starts the network; members listen to `service` only.
    pub(super) async fn start(
        transport: DemoTransport,
        service: &Did,
        clock: Clock,
        randomness: Randomness,
    ) -> Result<Self, DemoError> {
        if transport == DemoTransport::Memory {
            let network = MemoryTransport::new();
            let relay = None;
            return Ok(Self { service: Arc::new(network.clone()), members: Arc::new(network), web: None, relay });
        }
        if transport == DemoTransport::Nostr {
            let relay = EmbeddedRelay::start(([127, 0, 0, 1], 0).into()).await.map_err(internal)?;
            let config = NostrConfig::new([relay.url().to_owned()]);
            let nostr = NostrTransport::new(config, clock, randomness).map_err(internal)?;
            let relay = Some(relay);
            return Ok(Self { service: Arc::new(nostr.clone()), members: Arc::new(nostr), web: None, relay });
        }
        // All members have one address here, and connect at once.
        let unlimited = Rate { per_second: 1_000_000, burst: 1_000_000 };
        let config = HttpConfig { did_rate: unlimited, address_rate: unlimited, ..HttpConfig::default() };
        let server = HttpServer::start(HttpServerParts { randomness, ..HttpServerParts::new(config, clock) });
        let mounted = server.clone();
        let web = WebServer::new(move || App::new().configure(http::configure(&mounted)))
            .workers(2)
            .shutdown_timeout(1)
            .disable_signals()
            .bind("127.0.0.1:0")
            .map_err(internal)?;
        let address = *web.addrs().first().ok_or_else(|| internal("no address is bound"))?;
        let running = web.run();
        let handle = running.handle();
        actix_rt::spawn(running);
        let client = HttpClient::new(&format!("http://{address}"), Some(service.clone()), clock, randomness)
            .map_err(internal)?;
        let web = Some((server.clone(), handle));
        Ok(Self { service: Arc::new(server), members: Arc::new(client), web, relay: None })
    }

    /// Closes the network.
    pub(super) async fn stop(self) {
        if let Some((server, web)) = self.web {
            server.shutdown().await;
            // Members would connect again; there is no need to wait for them.
            web.stop(false).await;
        }
        if let Some(relay) = self.relay {
            relay.shutdown().await;
        }
    }
}
