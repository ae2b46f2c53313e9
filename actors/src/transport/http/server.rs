//! The server: the transport of the identities of this server.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actix::{Addr, prelude::SendError};
use async_trait::async_trait;
use btcr2_aggregation_protocol::{
    cohort::service::Limits,
    did::Did,
    document::{self, DocumentError},
    identity::Identity,
    message::SharedBody,
    time::Timestamp,
};
use serde_json::Value;

use super::{
    config::HttpConfig,
    directory::{Directory, Local},
    gate::Gate,
    history::History,
    hub::{AllRead, Arrived, Gone, Hub, ListAdverts, Sent, Shutdown},
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
    supervision::{End, Vitals, start},
    transport::{ConnectError, Connection, Inbox, Outbound, Transport, Unsent, connection::Ended, is_for_a_member},
};

/// An HTTP server's state. Clones share it: pass one to [`configure`](super::configure) in each `App`, and use another
/// as the [`Transport`] of the server's service.
#[derive(Clone)]
pub struct HttpServer(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) gate: Gate,
    pub(super) hub: Addr<Hub>,
    hub_ended: Ended,
    pub(super) counts: Arc<Counts>,
    pub(super) seats: Arc<Seats>,
    pub(super) clock: Clock,
    /// The largest update that the service accepts, for the well-known document.
    pub(super) update_bytes: usize,
    /// The sockets, if the host registers them.
    pub(super) sockets: Connections,
    connections: AtomicU64,
    /// What standing cohorts have announced, once the host serves it.
    history: OnceLock<Arc<dyn History>>,
}

/// The parts of an [`HttpServer`].
pub struct HttpServerParts {
    /// The limits.
    pub config: HttpConfig,
    /// The largest update that the service accepts, in bytes of canonical JSON; published in the well-known document.
    pub update_bytes: usize,
    /// The time.
    pub clock: Clock,
    /// The randomness.
    pub randomness: Randomness,
    /// The store of nonces.
    pub nonces: Arc<dyn NonceStore>,
    /// The counters of requests.
    pub rates: Arc<dyn RateLimitStore>,
    /// The store of the inboxes' messages over a restart.
    pub inboxes: Arc<dyn InboxStore>,
    /// The limits on sockets, if the host registers them in [`HttpServer::connections`].
    pub connections: ConnectionLimits,
    /// Where the end of the server's actors is reported, if they are given up after too many panics. The service may share
    /// it ([`ServiceBuilder::vitals`](crate::handle::ServiceBuilder::vitals)), so that a host observes one value.
    pub vitals: Vitals,
}

impl HttpServerParts {
    /// A server with these limits and stores in memory.
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
            vitals: Vitals::default(),
        }
    }
}

impl HttpServer {
    /// Starts the server's actors on the current arbiter.
    ///
    /// # Panics
    /// When called outside of an actix `System`.
    pub fn start(parts: HttpServerParts) -> Self {
        let HttpServerParts {
            config,
            update_bytes,
            clock,
            randomness,
            nonces,
            rates,
            inboxes,
            connections,
            vitals,
        } = parts;
        let sockets = Connections::new(connections);
        let counts = Arc::<Counts>::default();
        let shared = InboxesShared::new(clock.now(), inboxes, Arc::clone(&counts));
        let (guard, hub_ended) = Ended::guard_with(move |end| match end {
            // It was shut down, or the host has dropped the server.
            End::Finished | End::Stopped => {}
            End::JournalFailed | End::Panicked | End::Failed(_) => {
                let reason = end.failure().unwrap_or_default().into_owned();
                tracing::error!(reason, "the HTTP server's hub has ended unexpectedly");
                vitals.record("HTTP server".to_owned(), reason);
            }
        });
        let hub = Hub::new(Arc::new(config.clone()), clock, randomness, shared, guard);
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
        let history = OnceLock::new();
        Self(Arc::new(Inner {
            gate,
            hub,
            hub_ended,
            counts,
            seats,
            clock,
            update_bytes,
            sockets,
            connections,
            history,
        }))
    }

    /// Its limits and settings.
    pub fn config(&self) -> &HttpConfig {
        &self.0.gate.config
    }

    /// The sockets of the web server around it: a host that accepts them itself registers each here.
    pub fn connections(&self) -> &Connections {
        &self.0.sockets
    }

    /// The current contents and the refusals so far.
    pub fn report(&self) -> HttpReport {
        self.0.counts.report(self.0.seats.taken())
    }

    /// Lets an EXTERNAL DID authenticate before its opt-in: its genesis document comes from the configuration.
    ///
    /// # Errors
    /// [`DocumentError`] when the document is not the DID's.
    pub fn introduce(&self, did: &Did, genesis_document: &Value) -> Result<(), DocumentError> {
        let (_, key) = document::genesis_key(did, Some(genesis_document))?;
        self.0.gate.directory.introduce(did, key);
        Ok(())
    }

    /// Waits, for `patience` at most, until every recipient for which messages wait is reading its inbox: a recipient
    /// that was just disconnected reconnects, and could not receive anything from a server that is gone.
    pub async fn heard(&self, patience: Duration) {
        let waiting = async {
            // A write to a broken connection is lost, and only then the connection is known to be broken.
            let mut in_a_row = 0;
            while in_a_row < 3 {
                let read = self.0.hub.send(AllRead).await.unwrap_or(true);
                in_a_row = if read { in_a_row + 1 } else { 0 };
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        // Messages that were not fetched by then are not delivered.
        let _ = tokio::time::timeout(patience, waiting).await;
    }

    /// The adverts that its readers get now: the bodies of at most `most`, and the number of all.
    pub async fn adverts(&self, most: usize) -> (Vec<SharedBody>, usize) {
        // A hub that has ended advertises nothing.
        self.0.hub.send(ListAdverts(most)).await.unwrap_or_default()
    }

    /// Closes every stream and stops the server's actors. Requests are still answered, so that the web server around it
    /// can stop gracefully.
    pub async fn shutdown(&self) {
        self.0.gate.directory.close();
        // If this fails, the hub has ended already.
        let _ = self.0.hub.send(Shutdown).await;
    }

    /// Serves what standing cohorts have announced; only the first call has an effect. Without it there is none.
    pub fn serve_history(&self, history: Arc<dyn History>) {
        // What is served stays the same while it is served.
        let _ = self.0.history.set(history);
    }

    pub(super) fn history(&self) -> Option<&dyn History> {
        self.0.history.get().map(|history| &**history)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }
}

#[async_trait]
impl Transport for HttpServer {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        let number = self.0.connections.fetch_add(1, Ordering::Relaxed);
        let local = Arc::new(Local { identity: identity.clone(), inbox, connection: number });
        self.0.gate.directory.register(Arc::clone(&local));
        // Registered until this is dropped.
        let connection = HubConnection { server: self.clone(), local: Arc::clone(&local) };
        let arrived = self.0.hub.send(Arrived(local)).await;
        arrived.map_err(|_| ConnectError("the HTTP server has ended".to_owned()))?;
        Ok(Box::new(connection))
    }

    fn reports_delivery(&self) -> bool {
        true
    }

    fn introduce(&self, did: &Did, genesis_document: &Value) {
        if let Err(error) = Self::introduce(self, did, genesis_document) {
            tracing::warn!(%did, %error, "the genesis document of a restored member is not valid");
        }
    }
}

/// The connection of an identity of this server: its messages go to the hub at once.
struct HubConnection {
    server: HttpServer,
    local: Arc<Local>,
}

impl HubConnection {
    /// The message for the hub. The recipient of a message of ours is a member from now on.
    fn sent(&self, outbound: Outbound) -> Sent {
        if let Outbound::Direct { to, body, .. } = &outbound
            && is_for_a_member(body)
            && self.server.0.gate.directory.remember_member(to)
        {
            self.server.0.sockets.promote(to);
        }
        Sent { from: Arc::clone(&self.local), outbound }
    }
}

#[async_trait]
impl Connection for HubConnection {
    fn try_send(&self, outbound: Outbound) -> Result<(), Unsent> {
        self.server.0.hub.try_send(self.sent(outbound)).map_err(|error| match error {
            SendError::Full(sent) => Unsent::Full(sent.outbound),
            SendError::Closed(sent) => Unsent::Ended(sent.outbound),
        })
    }

    async fn send(&self, outbound: Outbound) -> Result<(), Unsent> {
        let sent = self.server.0.hub.send(self.sent(outbound.clone())).await;
        sent.map_err(|_| Unsent::Ended(outbound))
    }

    async fn ended(&self) -> End {
        self.server.0.hub_ended.clone().await
    }
}

impl Drop for HubConnection {
    fn drop(&mut self) {
        let Local { identity, connection, .. } = &*self.local;
        self.server.0.gate.directory.unregister(identity.did(), *connection);
        // Beyond the bound of the mailbox: there is one for each connection, and a link has one at a time.
        self.server.0.hub.do_send(Gone(*connection));
    }
}
