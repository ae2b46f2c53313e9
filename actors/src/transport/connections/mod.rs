//! Limits on connections: every socket of a server is counted by network address, and none waits for a slow one.
//!
//! ```text
//! accepted ─ opening ─ (handshake done, first answer begun) ─ open ─ (inbox of a member) ─ member's
//! ```
//!
//! If there are too many, a new connection is not refused. Instead the **oldest** connection of that kind of the
//! network with the most is closed. A peer that opens connections and sends nothing therefore only uses its own share,
//! and an honest handshake from the same address, which takes milliseconds, is over before its turn comes. Connections
//! of members are never closed for those of others, and a part of the capacity is reserved for them.

mod classes;
mod guarded;
mod network;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use btcr2_aggregation_protocol::did::Did;
use futures::task::AtomicWaker;
use tokio::time::Instant;

pub(in crate::transport) use self::classes::Class;
pub use self::{
    guarded::Guarded,
    network::{Network, Prefix, PrefixError, Proxies},
};

/// The limits on connections. Connections that are not a member's have a common maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// The maximum number of connections.
    pub total: usize,
    /// The maximum number that are not members'; the rest is reserved for members.
    pub outsiders: usize,
    /// The maximum number of one network (an IPv4 address, an IPv6 /48) that are not members'.
    pub per_network: usize,
    /// The maximum number whose TLS handshake or first request is not complete.
    pub opening: usize,
    /// The same for one network.
    pub opening_per_network: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long the head of a request may take.
    pub header: Duration,
}

impl ConnectionLimits {
    /// The limits for a process that may have `files` files open. An eighth, from 64 to 1,024 files, is reserved for
    /// the operator (the database, the node, metrics, results), and a quarter of the rest for members.
    pub fn of_files(files: u64) -> Self {
        let files = usize::try_from(files).unwrap_or(usize::MAX).min(100_000);
        let total = files.saturating_sub((files / 8).clamp(64, 1024)).max(16);
        let outsiders = total - total / 4;
        Self {
            total,
            outsiders,
            per_network: outsiders - outsiders / 4,
            opening: (outsiders / 2).min(8_192),
            opening_per_network: (outsiders / 4).min(4_096),
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(10),
        }
    }
}

impl Default for ConnectionLimits {
    /// The limits for 65,536 open files.
    fn default() -> Self {
        Self::of_files(65_536)
    }
}

/// The current connections, and counts of closed ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionsReport {
    /// Connections whose handshake or first request is not complete.
    pub opening: usize,
    /// Other connections that are not members'.
    pub open: usize,
    /// Connections of members, and of trusted proxies.
    pub members: usize,
    /// Connections that were evicted so far.
    pub evicted: u64,
    /// Connections that were refused so far because members had all of them.
    pub refused: u64,
    /// Connections that sent neither TLS nor HTTP so far.
    pub malformed: u64,
    /// Connections so far whose handshake, or the head of a later request, took too long.
    pub late: u64,
}

/// The connections of a server. Clones share them.
#[derive(Clone)]
pub struct Connections(Arc<Inner>);

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connections").field(&self.report()).finish()
    }
}

struct Inner {
    limits: ConnectionLimits,
    state: Mutex<State>,
    next: AtomicU64,
    evicted: AtomicU64,
    refused: AtomicU64,
    malformed: AtomicU64,
    late: AtomicU64,
}

#[derive(Default)]
struct State {
    seats: HashMap<u64, Arc<Seat>>,
    opening: Class,
    open: Class,
    members: BTreeSet<u64>,
    /// The connections on which a DID that is not a member yet reads its inbox.
    readers: BTreeMap<Did, BTreeSet<u64>>,
    /// When a malformed connection of a network was last logged, and the number of those since then.
    logged: HashMap<Network, (Instant, u64)>,
}

/// The maximum number of networks in `logged`.
const MOST_LOGGED: usize = 1_024;

/// How often malformed connections of one network are logged.
const LOG_EVERY: Duration = Duration::from_secs(60);

impl Connections {
    /// Without connections.
    pub fn new(limits: ConnectionLimits) -> Self {
        Self(Arc::new(Inner {
            limits,
            state: Mutex::default(),
            next: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            late: AtomicU64::new(0),
        }))
    }

    /// The limits.
    pub fn limits(&self) -> &ConnectionLimits {
        &self.0.limits
    }

    /// Registers an accepted connection; `trusted` if it is that of a proxy for many clients. `None` if it must be
    /// closed at once, because members have all connections.
    pub fn admit(&self, peer: IpAddr, trusted: bool) -> Option<Ticket> {
        let limits = &self.0.limits;
        let network = Network::of_connection(peer);
        let mut state = self.0.lock();
        if !trusted {
            if state.opening.of(network) >= limits.opening_per_network {
                let oldest = state.opening.oldest_of(network);
                self.0.evict(&mut state, oldest);
            }
            if state.opening.len() >= limits.opening {
                let oldest = state.opening.oldest_of_largest();
                self.0.evict(&mut state, oldest);
            }
            if state.opening.of(network) + state.open.of(network) >= limits.per_network {
                let oldest = state.open.oldest_of(network).or_else(|| state.opening.oldest_of(network));
                self.0.evict(&mut state, oldest);
            }
        }
        let outsiders = state.opening.len() + state.open.len();
        if (!trusted && outsiders >= limits.outsiders) || state.members.len() + outsiders >= limits.total {
            let oldest = state.open.oldest_of_largest().or_else(|| state.opening.oldest_of_largest());
            if oldest.is_none() {
                self.0.refused.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            self.0.evict(&mut state, oldest);
        }
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let seat = Arc::new(Seat {
            id,
            network,
            evicted: AtomicBool::new(false),
            opened: AtomicBool::new(trusted),
            reader: OnceLock::new(),
            waker: AtomicWaker::new(),
        });
        state.seats.insert(id, Arc::clone(&seat));
        if trusted {
            state.members.insert(id);
        } else {
            state.opening.insert(network, id);
        }
        Some(Ticket(Arc::new(Taken { seat, inner: Arc::clone(&self.0) })))
    }

    /// `did` has become a member: its connections are not evicted for those of others any more.
    pub(crate) fn promote(&self, did: &Did) {
        let mut state = self.0.lock();
        for id in state.readers.remove(did).unwrap_or_default() {
            if let Some(network) = state.seats.get(&id).map(|seat| seat.network) {
                state.opening.remove(network, id);
                state.open.remove(network, id);
                state.members.insert(id);
            }
        }
    }

    /// Counts a connection that was closed because its handshake, or the head of a request, took too long.
    pub fn late(&self) {
        self.0.late.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that spoke neither TLS nor HTTP, and logs it, at most once a minute for each network.
    pub fn malformed(&self, peer: SocketAddr, problem: &dyn fmt::Display) {
        self.0.malformed.fetch_add(1, Ordering::Relaxed);
        let network = Network::of_connection(peer.ip());
        let mut state = self.0.lock();
        let now = Instant::now();
        if state.logged.len() >= MOST_LOGGED && !state.logged.contains_key(&network) {
            state.logged.retain(|_, (at, _)| now.duration_since(*at) < LOG_EVERY);
            if state.logged.len() >= MOST_LOGGED {
                return;
            }
        }
        match state.logged.get_mut(&network) {
            Some((at, more)) if now.duration_since(*at) < LOG_EVERY => *more += 1,
            known => {
                let more = known.map_or(0, |(_, more)| *more);
                state.logged.insert(network, (now, 0));
                drop(state);
                // The text of the library, which may contain text of the peer.
                let problem: String = problem.to_string().chars().filter(|c| !c.is_control()).take(200).collect();
                tracing::warn!(%network, problem, more, "a connection that speaks neither TLS nor HTTP was closed");
            }
        }
    }

    /// The current counts.
    pub fn report(&self) -> ConnectionsReport {
        let state = self.0.lock();
        ConnectionsReport {
            opening: state.opening.len(),
            open: state.open.len(),
            members: state.members.len(),
            evicted: self.0.evicted.load(Ordering::Relaxed),
            refused: self.0.refused.load(Ordering::Relaxed),
            malformed: self.0.malformed.load(Ordering::Relaxed),
            late: self.0.late.load(Ordering::Relaxed),
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while the value is partly changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn evict(&self, state: &mut State, id: Option<u64>) {
        let Some(id) = id else { return };
        let Some(seat) = state.seats.remove(&id) else { return };
        state.opening.remove(seat.network, id);
        state.open.remove(seat.network, id);
        self.evicted.fetch_add(1, Ordering::Relaxed);
        seat.evicted.store(true, Ordering::Release);
        seat.waker.wake();
    }
}

struct Seat {
    id: u64,
    network: Network,
    evicted: AtomicBool,
    opened: AtomicBool,
    /// The DID whose inbox is read on the connection.
    reader: OnceLock<Did>,
    /// The waker of the task that reads and writes the socket.
    waker: AtomicWaker,
}

/// A registered connection, which is removed on drop.
struct Taken {
    seat: Arc<Seat>,
    inner: Arc<Inner>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Seat { id, network, .. } = *self.seat;
        let mut state = self.inner.lock();
        state.seats.remove(&id);
        state.opening.remove(network, id);
        state.open.remove(network, id);
        state.members.remove(&id);
        if let Some(reader) = self.seat.reader.get()
            && let Some(connections) = state.readers.get_mut(reader)
        {
            connections.remove(&id);
            if connections.is_empty() {
                state.readers.remove(reader);
            }
        }
    }
}

/// The registration of a connection, which lasts as long as a clone of it exists.
#[derive(Clone)]
pub struct Ticket(Arc<Taken>);

impl Ticket {
    /// The handshake, if there is one, is complete, and the first answer begins.
    pub fn opened(&self) {
        let seat = &self.0.seat;
        if seat.opened.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut state = self.0.inner.lock();
        if state.opening.remove(seat.network, seat.id) {
            state.open.insert(seat.network, seat.id);
        }
    }

    /// The connection is a member's: it is not evicted for those of others any more.
    pub(crate) fn keep(&self) {
        let seat = &self.0.seat;
        let mut state = self.0.inner.lock();
        if state.seats.contains_key(&seat.id) {
            state.opening.remove(seat.network, seat.id);
            state.open.remove(seat.network, seat.id);
            state.members.insert(seat.id);
        }
    }

    /// The inbox of `did`, whose signature was verified, is read on the connection.
    pub(crate) fn read_by(&self, did: &Did, is_member: bool) {
        // A proxy may use one connection for several DIDs; the first one counts.
        if self.0.seat.reader.set(did.clone()).is_err() {
            return;
        }
        self.0.inner.lock().readers.entry(did.clone()).or_default().insert(self.0.seat.id);
        if is_member {
            Connections(Arc::clone(&self.0.inner)).promote(did);
        }
    }

    /// Ready with an error once the connection is evicted; until then the task is woken when that happens.
    fn poll_evicted(&self, cx: &Context<'_>) -> Poll<io::Error> {
        self.0.seat.waker.register(cx.waker());
        if self.0.seat.evicted.load(Ordering::Acquire) {
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "closed to make room"));
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use btcr2_aggregation_protocol::{identity::Identity, key::SecretKey, network::Network as Chain};

    use super::*;
    use crate::runtime::Randomness;

    fn connections() -> Connections {
        Connections::new(ConnectionLimits {
            total: 8,
            outsiders: 6,
            per_network: 4,
            opening: 4,
            opening_per_network: 3,
            ..ConnectionLimits::default()
        })
    }

    fn admit(connections: &Connections, address: &str) -> Ticket {
        connections.admit(address.parse().unwrap(), false).expect("room")
    }

    fn is_closed(ticket: &Ticket) -> bool {
        ticket.0.seat.evicted.load(Ordering::Acquire)
    }

    #[test]
    fn silent_connections_only_use_their_own_share() {
        let connections = connections();
        let honest = admit(&connections, "192.0.2.1");
        let silent: Vec<_> = (0..100).map(|_| admit(&connections, "203.0.113.9")).collect();
        assert!(!is_closed(&honest));
        assert_eq!(silent.iter().filter(|ticket| !is_closed(ticket)).count(), 3);
        assert!(!is_closed(&silent[99]), "the newest remains: it may be an honest one of the same address");
        assert_eq!(connections.report().evicted, 97);
        drop(silent);
        assert_eq!(connections.report().opening, 1);
    }

    #[test]
    fn the_network_with_the_most_connections_is_evicted_from() {
        let connections = connections();
        let flood: Vec<_> = (0..4).map(|_| admit(&connections, "203.0.113.9")).inspect(Ticket::opened).collect();
        let honest = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|address| admit(&connections, address));
        honest.iter().for_each(Ticket::opened);
        assert_eq!(flood.iter().filter(|ticket| !is_closed(ticket)).count(), 3);
        assert!(honest.iter().all(|ticket| !is_closed(ticket)));
    }

    #[test]
    fn a_members_connection_is_never_evicted() {
        let connections = connections();
        let mut rng = Randomness::System.for_actor("test");
        let did = Identity::from_key(SecretKey::generate(&mut rng), Chain::Regtest).did().clone();
        let member = admit(&connections, "203.0.113.9");
        member.opened();
        member.read_by(&did, false);
        let other = admit(&connections, "203.0.113.9");
        other.opened();
        connections.promote(&did);
        let flood: Vec<_> = (0..100).map(|_| admit(&connections, "203.0.113.9")).inspect(Ticket::opened).collect();
        assert!(!is_closed(&member) && is_closed(&other));
        assert_eq!(connections.report().members, 1);
        drop((member, other, flood));
        assert_eq!(connections.report(), ConnectionsReport { evicted: 97, ..ConnectionsReport::default() });
    }

    #[test]
    fn a_connection_is_refused_when_members_have_all() {
        let connections = connections();
        let proxy = || connections.admit("10.0.0.1".parse().unwrap(), true);
        let proxied: Vec<_> = (0..8).map(|_| proxy().expect("room")).collect();
        assert!(connections.admit("192.0.2.1".parse().unwrap(), false).is_none() && proxy().is_none());
        drop(proxied);
        assert!(proxy().is_some());
    }

    #[test]
    fn files_are_reserved_for_members_and_the_operator() {
        for files in [64, 256, 1_024, 4_096, 65_536, u64::MAX] {
            let limits = ConnectionLimits::of_files(files);
            assert!(limits.outsiders < limits.total && limits.per_network < limits.outsiders, "{files}");
            assert!(u64::try_from(limits.total).unwrap() < files, "{files}");
        }
    }
}
