//! A relay in this process, for demonstrations, tests and closed groups: it keeps events in memory.
//!
//! The library's relay takes what it is given, from any number of sockets, and messages of 64 MB. So the sockets are ours: each has a
//! place among [`Connections`], and its messages are measured before the relay sees them (`door`); and what the relay stores is bounded
//! by `shelf`.

mod door;
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
    door::Head,
    shelf::{Policy, Shelf},
};
use crate::transport::connections::{ConnectionLimits, Connections, ConnectionsReport, Guarded, Ticket};

/// Events a minute from one connection. The relay's default of sixty ends a cohort of ten in mid-round.
const NOTES_PER_MINUTE: u32 = 1_000_000;

/// What may be under way between a socket and the relay.
const PIPE: usize = 64 << 10;

/// How long the listener waits when no connection can be accepted, because too many files are open, say.
const PAUSE: Duration = Duration::from_millis(100);

/// What a relay holds at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayLimits {
    /// Most bytes of one event. The largest message of a cohort takes 90,000.
    pub event_bytes: usize,
    /// Most bytes of all events; beyond that the oldest of strangers go, then the oldest.
    pub bytes: usize,
    /// Most bytes of all events of strangers: authors to whom no operator has written.
    pub strangers_bytes: usize,
    /// Most bytes of events of one member.
    pub member_bytes: usize,
    /// Most bytes of events of one stranger.
    pub stranger_bytes: usize,
    /// Most events.
    pub events: usize,
    /// How many sockets there may be.
    pub sockets: ConnectionLimits,
}

impl RelayLimits {
    /// Most bytes of a message of a client: an event within its frame, with what may be in a request beside it.
    const fn message_bytes(&self) -> usize {
        self.event_bytes + (64 << 10)
    }

    /// Most characters of an event's content; the rest of the event is for its tags and what it takes besides.
    const fn content_chars(&self) -> usize {
        self.event_bytes.saturating_sub(1024)
    }
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            event_bytes: 128 << 10,
            bytes: 256 << 20,
            strangers_bytes: 32 << 20,
            member_bytes: 8 << 20,
            stranger_bytes: 256 << 10,
            events: 75_000,
            sockets: ConnectionLimits::of_files(4_096),
        }
    }
}

/// A relay that runs as long as a clone of it is kept.
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
    /// Starts a relay on this address; port 0 is any free port. Nobody is preferred.
    ///
    /// # Errors
    /// [`EmbeddedRelayError`] when the address cannot be listened on.
    pub async fn start(address: SocketAddr) -> Result<Self, EmbeddedRelayError> {
        Self::start_with(address, RelayLimits::default(), &[]).await
    }

    /// Starts a relay with these limits. What the `operators` publish stays, and those that they write to are members, whose events
    /// and sockets are preferred to strangers'.
    ///
    /// # Errors
    /// [`EmbeddedRelayError`] when the address cannot be listened on.
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
        let rate = RateLimit { max_reqs: door::SUBSCRIPTIONS, notes_per_minute: NOTES_PER_MINUTE };
        let builder = RelayBuilder::default().addr(bound.ip()).port(bound.port()).rate_limit(rate);
        let builder = builder.database(database).write_policy(policy).default_filter_limit(limits.events);
        let builder = builder.max_filter_limit(limits.events).max_subid_length(door::SUBSCRIPTION_ID);
        let relay = LocalRelay::new(builder);
        let (stop, stopped) = watch::channel(false);
        let sockets = Sockets { relay: relay.clone(), shelf: Arc::clone(&shelf), limits, stopped };
        let connections = Connections::new(limits.sockets);
        tokio::spawn(sockets.accept(listener, connections.clone()));
        Ok(Self { relay, address: bound, url: format!("ws://{bound}"), shelf, connections, stop: Arc::new(stop) })
    }

    /// Where the relay listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where clients connect to, `ws://127.0.0.1:7777` say.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How many bytes of events it holds.
    pub fn bytes(&self) -> usize {
        self.shelf.bytes()
    }

    /// How many events it holds.
    pub fn events(&self) -> usize {
        self.shelf.events()
    }

    /// Its sockets.
    pub fn connections(&self) -> ConnectionsReport {
        self.connections.report()
    }

    /// Stops listening, and closes every connection. What was stored is gone.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        self.relay.shutdown();
        // Each connection has a task of its own, which ends at its next turn.
        self.stop.closed().await;
    }
}

/// The ways in.
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
                // Also when nobody is left who could stop it.
                () = stop(&mut stopped) => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        // Closed at once when there is no place left.
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
                door::inform(&mut guarded, &self.limits).await?;
                return Ok(None);
            }
            accept_async_with_config(head.before(guarded), Some(limits)).await.map(Some)
        };
        let outer = match timeout(connections.limits().handshake, opening).await {
            Ok(Ok(Some(outer))) => outer,
            // Nor is HTTP without an upgrade wrong.
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
            () = pass(from_peer, to_relay, door::is_passed_on) => {}
            () = pass(from_relay, to_peer, |_| true) => {}
        }
        self.shelf.gone(peer);
    }
}

/// Ready when everything is to end.
async fn stop(stopped: &mut watch::Receiver<bool>) {
    // An error is that nobody is left who could say so.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Passes messages on until one side is gone, or says what may not be said.
async fn pass(
    mut from: impl Stream<Item = Result<Message, Error>> + Unpin,
    mut to: impl Sink<Message, Error = Error> + Unpin,
    is_passed_on: impl Fn(&str) -> bool,
) {
    while let Some(Ok(message)) = from.next().await {
        let passed = match message {
            Message::Text(text) if !is_passed_on(&text) => return,
            Message::Text(_) | Message::Binary(_) => to.send(message).await,
            // Each side answers these by itself, when it is written to.
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => to.flush().await,
            Message::Close(_) => return,
        };
        if passed.is_err() {
            return;
        }
    }
}
