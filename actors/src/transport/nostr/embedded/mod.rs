//! A relay in this process, for demonstrations, tests and closed groups: it stores events in memory.
//!
//! The library's relay accepts any number of sockets, any number of events, and messages of 64 MB. Therefore this
//! module owns the sockets: each is registered with [`Connections`], and its messages are measured before they reach
//! the relay (`filter`); `shelf` bounds the relay's stored events.

mod filter;
mod shelf;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use btcr2_aggregation_protocol::key::XOnlyKey;
use futures::{Sink, SinkExt, Stream, StreamExt};
use nostr_relay_builder::{
    LocalRelay, RelayBuilder,
    builder::RateLimit,
    prelude::{MemoryDatabase, MemoryDatabaseOptions},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, accept_async_with_config,
    tungstenite::{
        Error, Message,
        error::ProtocolError,
        protocol::{Role, WebSocketConfig},
    },
};

use self::{
    filter::Head,
    shelf::{Policy, Shelf},
};
use crate::transport::connections::{ConnectionLimits, Connections, ConnectionsReport, Guarded, Ticket};

/// The maximum number of events a minute from one connection. The relay's default of sixty ends a cohort of ten in the
/// middle of a round.
const NOTES_PER_MINUTE: u32 = 1_000_000;

/// The size of the buffer between a socket and the relay, in bytes.
const PIPE: usize = 64 << 10;

/// How long the listener waits when no connection can be accepted, e.g. because too many files are open.
const PAUSE: Duration = Duration::from_millis(100);

/// The limits of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayLimits {
    /// The maximum size of one event, in bytes. The largest message of a cohort has 90,000.
    pub event_bytes: usize,
    /// The maximum size of all events, in bytes; beyond it the oldest of outsiders are removed first, then the oldest
    /// of others.
    pub bytes: usize,
    /// The maximum size of all events of outsiders, in bytes: authors to which no operator has written.
    pub outsiders_bytes: usize,
    /// The maximum size of the events of one member, in bytes.
    pub member_bytes: usize,
    /// The maximum size of the events of one outsider, in bytes.
    pub outsider_bytes: usize,
    /// The maximum number of events.
    pub events: usize,
    /// The limits on sockets.
    pub sockets: ConnectionLimits,
}

impl RelayLimits {
    /// The maximum size of a client's message, in bytes: an event within its frame, and the rest of a request.
    const fn message_bytes(&self) -> usize {
        self.event_bytes + (64 << 10)
    }

    /// The maximum number of characters in an event's content; the rest of the event is for its tags and other fields.
    const fn content_chars(&self) -> usize {
        self.event_bytes.saturating_sub(1024)
    }
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            event_bytes: 128 << 10,
            bytes: 256 << 20,
            outsiders_bytes: 32 << 20,
            member_bytes: 8 << 20,
            outsider_bytes: 256 << 10,
            events: 75_000,
            sockets: ConnectionLimits::of_files(4_096),
        }
    }
}

/// A relay that runs until its last clone is dropped.
#[derive(Clone, Debug)]
pub struct EmbeddedRelay {
    relay: LocalRelay,
    address: SocketAddr,
    url: String,
    shelf: Arc<Shelf>,
    connections: Connections,
    stop: Arc<watch::Sender<bool>>,
}

/// Why an embedded relay cannot run.
#[derive(Clone, Debug, thiserror::Error)]
#[error("embedded relay on {address}: {problem}")]
pub struct EmbeddedRelayError {
    address: SocketAddr,
    problem: String,
}

impl EmbeddedRelay {
    /// Starts a relay on this address; port 0 is any free port. No author is preferred.
    ///
    /// # Errors
    /// [`EmbeddedRelayError`] when it cannot listen on the address.
    pub async fn start(address: SocketAddr) -> Result<Self, EmbeddedRelayError> {
        Self::start_with(address, RelayLimits::default(), &[]).await
    }

    /// Starts a relay with these limits. Events of the `operators` are not removed, and the authors to which they write
    /// are members, whose events and sockets are preferred to those of outsiders.
    ///
    /// # Errors
    /// [`EmbeddedRelayError`] when it cannot listen on the address.
    pub async fn start_with(
        address: SocketAddr,
        limits: RelayLimits,
        operators: &[XOnlyKey],
    ) -> Result<Self, EmbeddedRelayError> {
        let refuse = |error: io::Error| EmbeddedRelayError { address, problem: error.to_string() };
        let listener = TcpListener::bind(address).await.map_err(refuse)?;
        let bound = listener.local_addr().map_err(refuse)?;
        let options = MemoryDatabaseOptions { events: true, max_events: Some(limits.events) };
        let database = MemoryDatabase::with_opts(options);
        let shelf = Arc::new(Shelf::new(limits, operators));
        let policy = Policy { shelf: Arc::clone(&shelf), database: database.clone() };
        let rate = RateLimit { max_reqs: filter::SUBSCRIPTIONS, notes_per_minute: NOTES_PER_MINUTE };
        let builder = RelayBuilder::default().addr(bound.ip()).port(bound.port()).rate_limit(rate);
        let builder = builder.database(database).write_policy(policy).default_filter_limit(limits.events);
        let builder = builder.max_filter_limit(limits.events).max_subid_length(filter::SUBSCRIPTION_ID);
        let relay = LocalRelay::new(builder);
        let (stop, stopped) = watch::channel(false);
        let sockets = Sockets { relay: relay.clone(), shelf: Arc::clone(&shelf), limits, stopped };
        let connections = Connections::new(limits.sockets);
        tokio::spawn(sockets.accept(listener, connections.clone()));
        Ok(Self { relay, address: bound, url: format!("ws://{bound}"), shelf, connections, stop: Arc::new(stop) })
    }

    /// The address on which the relay listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL for clients, e.g. `ws://127.0.0.1:7777`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The size of its events, in bytes.
    pub fn bytes(&self) -> usize {
        self.shelf.bytes()
    }

    /// The number of its events.
    pub fn events(&self) -> usize {
        self.shelf.events()
    }

    /// Its sockets.
    pub fn connections(&self) -> ConnectionsReport {
        self.connections.report()
    }

    /// Stops listening, and closes every connection. The stored events are lost.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        self.relay.shutdown();
        // Each connection has its own task, which ends when it runs next.
        self.stop.closed().await;
    }
}

/// The listener's state.
#[derive(Clone)]
struct Sockets {
    relay: LocalRelay,
    shelf: Arc<Shelf>,
    limits: RelayLimits,
    stopped: watch::Receiver<bool>,
}

impl Sockets {
    async fn accept(self, listener: TcpListener, connections: Connections) {
        let mut stopped = self.stopped.clone();
        loop {
            tokio::select! {
                // Also when the last handle that could stop it is dropped.
                () = stop(&mut stopped) => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        // Closed at once if there is no capacity left.
                        let Some(ticket) = connections.admit(peer.ip(), false) else { continue };
                        tokio::spawn(self.clone().serve(stream, peer, ticket, connections.clone()));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the relay cannot accept a connection");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
            }
        }
    }

    async fn serve(mut self, stream: TcpStream, peer: SocketAddr, ticket: Ticket, connections: Connections) {
        // Events are small, and answered one by one.
        let _ = stream.set_nodelay(true);
        let mut guarded = Guarded::new(stream, ticket.clone(), false);
        let most = self.limits.message_bytes();
        let limits = WebSocketConfig::default().max_message_size(Some(most)).max_frame_size(Some(most));
        let opening = async {
            let head = Head::read(&mut guarded).await?;
            if head.asks_for_information() {
                filter::inform(&mut guarded, &self.limits).await?;
                return Ok(None);
            }
            accept_async_with_config(head.before(guarded), Some(limits)).await.map(Some)
        };
        let outer = match timeout(connections.limits().handshake, opening).await {
            Ok(Ok(Some(outer))) => outer,
            // HTTP without an upgrade is not malformed either.
            Ok(
                Ok(None)
                | Err(
                    Error::Io(_)
                    | Error::ConnectionClosed
                    | Error::Protocol(
                        ProtocolError::MissingConnectionUpgradeHeader
                        | ProtocolError::MissingUpgradeWebSocketHeader,
                    ),
                ),
            ) => return,
            Ok(Err(error)) => return connections.malformed(peer, &error),
            Err(_) => return connections.late(),
        };
        ticket.opened();
        self.shelf.connected(peer, ticket);
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let inner = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
        let relay = self.relay.clone();
        let (to_peer, from_peer) = outer.split();
        let (to_relay, from_relay) = inner.split();
        tokio::select! {
            () = stop(&mut self.stopped) => {}
            _ = relay.take_connection(theirs, peer) => {}
            () = pass(from_peer, to_relay, filter::is_forwarded) => {}
            () = pass(from_relay, to_peer, |_| true) => {}
        }
        self.shelf.gone(peer);
    }
}

/// Ready when the relay stops.
async fn stop(stopped: &mut watch::Receiver<bool>) {
    // An error means that the sender is dropped.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Forwards messages until one side closes, or a message is not permitted.
async fn pass(
    mut from: impl Stream<Item = Result<Message, Error>> + Unpin,
    mut to: impl Sink<Message, Error = Error> + Unpin,
    is_forwarded: impl Fn(&str) -> bool,
) {
    while let Some(Ok(message)) = from.next().await {
        let passed = match message {
            Message::Text(text) if !is_forwarded(&text) => return,
            Message::Text(_) | Message::Binary(_) => to.send(message).await,
            // Each side answers these by itself on its next write.
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => to.flush().await,
            Message::Close(_) => return,
        };
        if passed.is_err() {
            return;
        }
    }
}
