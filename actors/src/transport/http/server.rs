//! The server: the transport of the identities that live here.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actix::{Actor, Addr, Context, Handler, Recipient, Supervised, dev::ContextFut};
use async_trait::async_trait;
use btcr2_aggregation_protocol::{
    cohort::service::Limits,
    did::Did,
    document::{self, DocumentError},
    identity::Identity,
    time::Timestamp,
};
use serde_json::Value;

use super::{
    config::HttpConfig,
    directory::{Directory, Local},
    gate::Gate,
    hub::{Advertise, AllHeard, Arrived, Gone, Hub, Post, Shutdown, Withdraw},
    inbox::InboxesShared,
    report::{Counts, HttpReport},
    seats::Seats,
    store::{MemoryNonces, MemoryRates, NonceStore, RateLimitStore},
    waiting::{InboxStore, MemoryInboxes},
};
use crate::transport::connections::{ConnectionLimits, Connections};
use crate::{
    runtime::{Clock, Randomness},
    span,
    supervision::{EndGuard, InTree, start},
    transport::{ConnectError, Delivery, Disconnected, Outbound, Transport, is_for_a_member},
    tree::{self, Row},
};

/// An HTTP server's state. Clones are the same server: give one to [`configure`](super::configure) in each `App`, and use
/// another as the [`Transport`] of the service that lives here.
#[derive(Clone)]
pub struct HttpServer(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) gate: Gate,
    pub(super) hub: Addr<Hub>,
    pub(super) counts: Arc<Counts>,
    pub(super) seats: Arc<Seats>,
    pub(super) clock: Clock,
    /// The largest update that the service takes, for the well-known document.
    pub(super) update_bytes: usize,
    /// The sockets, if the host lets them be counted.
    pub(super) sockets: Connections,
    connections: AtomicU64,
}

/// What an [`HttpServer`] is made of.
pub struct HttpServerParts {
    /// The limits.
    pub config: HttpConfig,
    /// The largest update that the service takes, in bytes of canonical JSON; announced in the well-known document.
    pub update_bytes: usize,
    /// The time.
    pub clock: Clock,
    /// The randomness.
    pub randomness: Randomness,
    /// Where nonces are remembered.
    pub nonces: Arc<dyn NonceStore>,
    /// Where requests are counted.
    pub rates: Arc<dyn RateLimitStore>,
    /// Where what the inboxes hold is kept over a restart.
    pub inboxes: Arc<dyn InboxStore>,
    /// How many sockets there may be, where the host takes them from [`HttpServer::connections`].
    pub connections: ConnectionLimits,
}

impl HttpServerParts {
    /// A server with these limits that remembers in memory.
    pub fn new(config: HttpConfig, clock: Clock) -> Self {
        Self {
            config,
            update_bytes: Limits::default().update_bytes,
            clock,
            randomness: Randomness::System,
            nonces: Arc::new(MemoryNonces::default()),
            rates: Arc::new(MemoryRates::default()),
            inboxes: Arc::new(MemoryInboxes),
            connections: ConnectionLimits::default(),
        }
    }
}

impl HttpServer {
    /// Starts the server's actors on the current arbiter.
    ///
    /// # Panics
    /// When called outside of an actix `System`.
    pub fn start(parts: HttpServerParts) -> Self {
        let HttpServerParts { config, update_bytes, clock, randomness, nonces, rates, inboxes, connections } =
            parts;
        let sockets = Connections::new(connections);
        let counts = Arc::<Counts>::default();
        let shared = InboxesShared::new(clock.now(), inboxes, Arc::clone(&counts));
        let hub = Hub::new(Arc::new(config.clone()), clock, randomness, shared);
        let hub = start(span::hub(), |_| hub);
        let seats = Arc::new(Seats::new(config.early_inboxes, config.early_inboxes_per_address));
        let gate = Gate {
            directory: Directory::new(config.external_keys),
            config,
            nonces,
            rates,
            counts: Arc::clone(&counts),
        };
        let connections = AtomicU64::new(0);
        Self(Arc::new(Inner { gate, hub, counts, seats, clock, update_bytes, sockets, connections }))
    }

    /// What is allowed.
    pub fn config(&self) -> &HttpConfig {
        &self.0.gate.config
    }

    /// The sockets of the web server around it: a host that accepts them itself asks here for a place for each.
    pub fn connections(&self) -> &Connections {
        &self.0.sockets
    }

    /// What it holds and has refused.
    pub fn report(&self) -> HttpReport {
        self.0.counts.report(self.0.seats.taken())
    }

    /// Lets an EXTERNAL DID authenticate before its opt-in: its genesis document is configured, not shown.
    ///
    /// # Errors
    /// [`DocumentError`] when the document is not the DID's.
    pub fn introduce(&self, did: &Did, genesis_document: &Value) -> Result<(), DocumentError> {
        let (_, key) = document::genesis_key(did, Some(genesis_document))?;
        self.0.gate.directory.introduce(did, key);
        Ok(())
    }

    /// Waits until everybody for whom something waits reads its inbox, for `patience` at most: who was cut off just now comes back,
    /// and would hear nothing more of a server that is gone.
    pub async fn heard(&self, patience: Duration) {
        let waiting = async {
            // What is written to a broken connection is lost, and only then is it known to be broken.
            let mut in_a_row = 0;
            while in_a_row < 3 {
                let heard = self.0.hub.send(AllHeard).await.unwrap_or(true);
                in_a_row = if heard { in_a_row + 1 } else { 0 };
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        // What was not heard by then stays unheard.
        let _ = tokio::time::timeout(patience, waiting).await;
    }

    /// Closes every stream and stops the server's actors. Requests are still answered, so that a graceful stop of the web
    /// server around it is one.
    pub async fn shutdown(&self) {
        self.0.gate.directory.close();
        // It is gone already if this fails.
        let _ = self.0.hub.send(Shutdown).await;
    }

    pub(super) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }
}

#[async_trait]
impl Transport for HttpServer {
    async fn connect(
        &self,
        identity: &Identity,
        inbox: Recipient<Delivery>,
        keeper: Recipient<Disconnected>,
        connection: u64,
    ) -> Result<Recipient<Outbound>, ConnectError> {
        let number = self.0.connections.fetch_add(1, Ordering::Relaxed);
        let local = Local { identity: identity.clone(), inbox, connection: number };
        self.0.gate.directory.register(local);
        let local = self.0.gate.directory.local(identity.did().as_str());
        let local =
            local.ok_or_else(|| ConnectError("another connection has taken the identity's place".to_owned()))?;
        self.0.hub.do_send(Arrived(Arc::clone(&local)));
        let guard = EndGuard::new(move |end| keeper.do_send(Disconnected { connection, end }));
        let endpoint = Endpoint { server: self.clone(), local, _guard: guard };
        Ok(start(span::connection("http", identity.did()), |_| endpoint).recipient())
    }

    fn reports_delivery(&self) -> bool {
        true
    }

    fn introduce(&self, did: &Did, genesis_document: &Value) {
        if let Err(error) = Self::introduce(self, did, genesis_document) {
            tracing::warn!(%did, %error, "a member that was known before is not known any more");
        }
    }
}

/// The connection of an identity that lives here: what it says goes to the board and the inboxes.
struct Endpoint {
    server: HttpServer,
    local: Arc<Local>,
    _guard: EndGuard,
}

impl Actor for Endpoint {
    type Context = Context<Self>;
}

impl Supervised for Endpoint {}

impl InTree for Endpoint {
    const ROW: &'static Row = &tree::ENDPOINT;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

impl Handler<Outbound> for Endpoint {
    type Result = ();

    fn handle(&mut self, outbound: Outbound, _: &mut Self::Context) {
        let hub = &self.server.0.hub;
        let from = Arc::clone(&self.local);
        // Not lossy: the hub bounds each inbox, not its own mailbox.
        match outbound {
            Outbound::Direct { to, body, .. } => {
                if is_for_a_member(&body) && self.server.0.gate.directory.remember_member(&to) {
                    self.server.0.sockets.promote(&to);
                }
                hub.do_send(Post { from, to, body });
            }
            Outbound::Broadcast { body } => hub.do_send(Advertise { from, body }),
            Outbound::WithdrawAdvert { cohort_id } => {
                hub.do_send(Withdraw { from: self.local.identity.did().clone(), cohort_id });
            }
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let did = self.local.identity.did();
        self.server.0.gate.directory.unregister(did, self.local.connection);
        self.server.0.hub.do_send(Gone(self.local.connection));
    }
}
