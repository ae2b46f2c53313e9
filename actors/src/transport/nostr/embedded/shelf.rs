//! The account of the relay's stored events: by author, by kind of author, and in all. It decides which events are
//! removed for a new one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use btcr2_aggregation_protocol::{key::XOnlyKey, remembered::Remembered};
use nostr_relay_builder::{
    builder::{PolicyResult, WritePolicy},
    prelude::{MemoryDatabase, NostrDatabase},
};
use nostr_sdk::{Event, EventId, Filter, PublicKey, util::BoxedFuture};

use super::RelayLimits;
use crate::transport::connections::Ticket;

/// The maximum number of remembered members.
const MEMBERS: usize = 65_536;

/// The memory of an event in addition to its text, in bytes.
const OVERHEAD: usize = 512;

/// The kind of an event's author.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Author {
    Operator,
    /// An author to which an operator has written.
    Member,
    Outsider,
}

struct StoredEvent {
    id: EventId,
    author: PublicKey,
    bytes: usize,
}

#[derive(Default)]
struct OfAuthor {
    bytes: usize,
    events: BTreeSet<u64>,
}

struct State {
    members: Remembered<PublicKey>,
    /// In the order of their arrival.
    events: BTreeMap<u64, StoredEvent>,
    ids: HashSet<EventId>,
    authors: HashMap<PublicKey, OfAuthor>,
    bytes: usize,
    /// The events of outsiders among them.
    outsiders: BTreeSet<u64>,
    outsiders_bytes: usize,
    next: u64,
    /// The connections; all of an author's become a member's when the author does.
    sockets: HashMap<SocketAddr, Ticket>,
}

/// The account of the stored events.
pub(super) struct Shelf {
    limits: RelayLimits,
    operators: BTreeSet<PublicKey>,
    state: Mutex<State>,
}

impl fmt::Debug for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

impl Shelf {
    pub(super) fn new(mut limits: RelayLimits, operators: &[XOnlyKey]) -> Self {
        // Without operators every author is an outsider.
        if operators.is_empty() {
            (limits.outsiders_bytes, limits.outsider_bytes) = (limits.bytes, limits.bytes);
        }
        let operators = operators.iter().map(|key| PublicKey::from_byte_array(key.to_bytes())).collect();
        let state = State {
            members: Remembered::new(MEMBERS),
            events: BTreeMap::new(),
            ids: HashSet::new(),
            authors: HashMap::new(),
            bytes: 0,
            outsiders: BTreeSet::new(),
            outsiders_bytes: 0,
            next: 0,
            sockets: HashMap::new(),
        };
        Self { limits, operators, state: Mutex::new(state) }
    }

    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    pub(super) fn events(&self) -> usize {
        self.lock().events.len()
    }

    pub(super) fn connected(&self, peer: SocketAddr, ticket: Ticket) {
        self.lock().sockets.insert(peer, ticket);
    }

    pub(super) fn gone(&self, peer: SocketAddr) {
        // Dropped after the lock is released: it has its own lock.
        let ticket = self.lock().sockets.remove(&peer);
        drop(ticket);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while the value is partly changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kind_of(&self, state: &State, author: &PublicKey) -> Author {
        if self.operators.contains(author) {
            Author::Operator
        } else if state.members.contains(author) {
            Author::Member
        } else {
            Author::Outsider
        }
    }

    /// Makes space for an event: returns the events that must be removed for it, or why it is refused.
    fn admit(&self, event: &Event, peer: &SocketAddr) -> Result<Vec<EventId>, String> {
        let tags: usize = event.tags.iter().flat_map(|tag| tag.as_slice()).map(|part| part.len() + 3).sum();
        let bytes = event.content.len() + tags + OVERHEAD;
        if bytes > self.limits.event_bytes {
            return Err(format!("event too large, at most {} bytes", self.limits.event_bytes));
        }
        let most = self.limits.content_chars();
        if event.content.len() > most && event.content.chars().count() > most {
            return Err(format!("content too long, at most {most} characters"));
        }
        let mut state = self.lock();
        let author = self.kind_of(&state, &event.pubkey);
        if author != Author::Outsider
            && let Some(ticket) = state.sockets.get(peer).cloned()
        {
            ticket.keep();
        }
        if author == Author::Operator {
            let own = event.pubkey;
            for key in event.tags.public_keys().filter(|key| **key != own) {
                state.promote(*key);
            }
        }
        if event.kind.is_ephemeral() || state.ids.contains(&event.id) {
            return Ok(Vec::new());
        }
        let mut gone = Vec::new();
        let share = match author {
            Author::Operator => usize::MAX,
            Author::Member => self.limits.member_bytes,
            Author::Outsider => self.limits.outsider_bytes,
        };
        while let Some(of_author) = state.authors.get(&event.pubkey)
            && of_author.bytes.saturating_add(bytes) > share
            && let Some(oldest) = of_author.events.first().copied()
        {
            gone.extend(state.remove(oldest));
        }
        if author == Author::Outsider {
            while state.outsiders_bytes + bytes > self.limits.outsiders_bytes
                && let Some(oldest) = state.outsiders.first().copied()
            {
                gone.extend(state.remove(oldest));
            }
        }
        while (state.bytes + bytes > self.limits.bytes || state.events.len() >= self.limits.events)
            && let Some(oldest) = state.outsiders.first().copied().or_else(|| state.events.keys().next().copied())
        {
            gone.extend(state.remove(oldest));
        }
        state.insert(StoredEvent { id: event.id, author: event.pubkey, bytes }, author == Author::Outsider);
        Ok(gone)
    }
}

impl State {
    /// Its events do not count as an outsider's any more.
    fn promote(&mut self, member: PublicKey) {
        if !self.members.insert(member) {
            return;
        }
        let events = self.authors.get(&member).map(|author| author.events.clone()).unwrap_or_default();
        for number in events {
            if self.outsiders.remove(&number) {
                self.outsiders_bytes -= self.events.get(&number).map_or(0, |stored| stored.bytes);
            }
        }
    }

    fn insert(&mut self, stored: StoredEvent, outsider: bool) {
        let number = self.next;
        self.next += 1;
        if outsider {
            self.outsiders.insert(number);
            self.outsiders_bytes += stored.bytes;
        }
        let author = self.authors.entry(stored.author).or_default();
        author.bytes += stored.bytes;
        author.events.insert(number);
        self.bytes += stored.bytes;
        self.ids.insert(stored.id);
        self.events.insert(number, stored);
    }

    fn remove(&mut self, number: u64) -> Option<EventId> {
        let stored = self.events.remove(&number)?;
        self.bytes -= stored.bytes;
        if self.outsiders.remove(&number) {
            self.outsiders_bytes -= stored.bytes;
        }
        self.ids.remove(&stored.id);
        if let Some(author) = self.authors.get_mut(&stored.author) {
            author.bytes -= stored.bytes;
            author.events.remove(&number);
            if author.events.is_empty() {
                self.authors.remove(&stored.author);
            }
        }
        Some(stored.id)
    }
}

/// Makes the relay store the events for which the shelf has space, and remove the others.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) shelf: Arc<Shelf>,
    pub(super) database: MemoryDatabase,
}

impl WritePolicy for Policy {
    fn admit_event<'a>(&'a self, event: &'a Event, peer: &'a SocketAddr) -> BoxedFuture<'a, PolicyResult> {
        Box::pin(async move {
            match self.shelf.admit(event, peer) {
                Ok(gone) => {
                    if !gone.is_empty() {
                        // The database in memory does not fail.
                        let _ = self.database.delete(Filter::new().ids(gone)).await;
                    }
                    PolicyResult::Accept
                }
                Err(reason) => PolicyResult::Reject(reason),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use btcr2_aggregation_protocol::{
        id::CohortId,
        identity::Identity,
        key::SecretKey,
        message::{Message, update::SubmitUpdate},
        network::Network,
        nostr::{Peer, seal},
        time::Timestamp,
    };
    use serde_json::json;

    use super::*;
    use crate::{runtime::Randomness, transport::connections::ConnectionLimits};

    fn identity(byte: u8) -> Identity {
        Identity::from_key(SecretKey::from_bytes(&[byte; 32]).unwrap(), Network::Regtest)
    }

    /// An event of about this size, from one key to another.
    fn event(from: u8, to: u8, bytes: usize, number: u64) -> Event {
        let (from, to) = (identity(from), identity(to));
        let body = SubmitUpdate {
            cohort_id: CohortId::parse("c").unwrap(),
            signed_update: Arc::new(json!({ "filler": "x".repeat(bytes / 4 * 3) })),
        };
        let message = Message::new(from.did().clone(), Some(to.did().clone()), body);
        let peer = Peer::new(from.secret_key(), to.public_key().x_only()).unwrap();
        let mut rng = Randomness::Seeded([number as u8; 32]).for_actor("events");
        seal(&message, from.secret_key(), Some(&peer), Timestamp::from_secs(1_000 + number), &mut rng).unwrap()
    }

    fn shelf() -> Shelf {
        let limits = RelayLimits {
            event_bytes: 20_000,
            bytes: 100_000,
            outsiders_bytes: 50_000,
            member_bytes: 60_000,
            outsider_bytes: 30_000,
            events: 1_000,
            sockets: ConnectionLimits::default(),
        };
        Shelf::new(limits, &[identity(1).public_key().x_only()])
    }

    fn peer() -> SocketAddr {
        ([127, 0, 0, 1], 1).into()
    }

    fn holds(shelf: &Shelf, event: &Event) -> bool {
        shelf.lock().ids.contains(&event.id)
    }

    #[test]
    fn an_outsider_evicts_its_own_events_and_outsiders_each_others() {
        let shelf = shelf();
        let invitation = event(1, 2, 5_000, 0);
        shelf.admit(&invitation, &peer()).unwrap();
        let of_member = event(2, 1, 10_000, 0);
        shelf.admit(&of_member, &peer()).unwrap();
        let honest = event(9, 1, 5_000, 0);
        shelf.admit(&honest, &peer()).unwrap();
        let mut dropped = 0;
        for number in 0..50 {
            dropped += shelf.admit(&event(3, 1, 10_000, number), &peer()).unwrap().len();
        }
        assert!(holds(&shelf, &honest) && dropped > 40);
        for author in 10..20 {
            for number in 0..5 {
                shelf.admit(&event(author, 1, 10_000, number), &peer()).unwrap();
            }
        }
        assert!(!holds(&shelf, &honest), "outsiders share their part");
        assert!(holds(&shelf, &invitation) && holds(&shelf, &of_member));
        assert!(shelf.bytes() <= 100_000 && shelf.lock().outsiders_bytes <= 50_000);
    }

    #[test]
    fn events_from_before_the_membership_remain() {
        let shelf = shelf();
        let opt_in = event(2, 1, 5_000, 0);
        shelf.admit(&opt_in, &peer()).unwrap();
        shelf.admit(&event(1, 2, 1_000, 0), &peer()).unwrap();
        for author in 10..20 {
            for number in 0..5 {
                shelf.admit(&event(author, 1, 10_000, number), &peer()).unwrap();
            }
        }
        assert!(holds(&shelf, &opt_in));
    }

    #[test]
    fn an_event_counts_once_and_a_too_large_one_is_refused() {
        let shelf = shelf();
        let small = event(3, 1, 5_000, 0);
        shelf.admit(&small, &peer()).unwrap();
        let before = shelf.bytes();
        shelf.admit(&small, &peer()).unwrap();
        assert_eq!(shelf.bytes(), before);
        assert!(shelf.admit(&event(3, 1, 30_000, 1), &peer()).unwrap_err().contains("at most 20000 bytes"));
        assert_eq!(shelf.bytes(), before);
    }

    #[test]
    fn the_oldest_are_evicted_when_all_authors_are_members() {
        let shelf = shelf();
        let events: Vec<_> = (0..20).map(|number| event(1, 2, 10_000, number)).collect();
        for event in &events {
            shelf.admit(event, &peer()).unwrap();
        }
        assert!(shelf.bytes() <= 100_000 && !holds(&shelf, &events[0]) && holds(&shelf, &events[19]));
    }
}
