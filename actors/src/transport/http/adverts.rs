//! The live adverts, and the streams of their readers.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use btcr2_aggregation_protocol::{
    did::Did,
    envelope::SealedEnvelope,
    id::CohortId,
    message::{Message, SharedBody},
    time::Timestamp,
};
use rand_chacha::ChaCha20Rng;

use super::{
    config::HttpConfig,
    directory::Local,
    report::Counts,
    stream::{Event, EventStream, Events, event, heartbeat},
};
use crate::transport::connections::{Class, Network};

/// How many events, and bytes of them, a reader of adverts may be behind, in addition to the adverts that were live
/// when it connected.
const READ_AHEAD: usize = 256;
const READ_AHEAD_BYTES: usize = 1 << 20;

/// The adverts board.
pub(super) struct Adverts {
    live: BTreeMap<(Did, CohortId), (Arc<Local>, SharedBody)>,
    streams: Streams,
}

/// The readers' streams, oldest first.
struct Streams {
    by_number: BTreeMap<u64, (Option<Network>, EventStream)>,
    by_network: Class,
    next: u64,
    counts: Arc<Counts>,
}

impl Streams {
    fn len(&self) -> usize {
        self.by_number.len()
    }

    fn remove(&mut self, number: u64) {
        if let Some((Some(network), _)) = self.by_number.remove(&number) {
            self.by_network.remove(network, number);
        }
        self.count();
    }

    fn count(&self) {
        self.counts.advert_streams.store(self.by_number.len(), Ordering::Relaxed);
    }

    /// Removes the streams for which `keep` is false.
    fn retain(&mut self, keep: impl Fn(&EventStream) -> bool) {
        let gone = self.by_number.iter().filter(|(_, (_, stream))| !keep(stream)).map(|(number, _)| *number);
        for number in gone.collect::<Vec<_>>() {
            self.remove(number);
        }
    }

    /// Adds a stream. If its network has `most` already, the oldest of those is closed: its reader has received the
    /// adverts.
    fn insert(&mut self, network: Option<Network>, stream: EventStream, most: usize) {
        if let Some(network) = network {
            if self.by_network.of(network) >= most
                && let Some(oldest) = self.by_network.oldest_of(network)
            {
                self.remove(oldest);
                self.counts.advert_streams_closed.fetch_add(1, Ordering::Relaxed);
            }
            self.by_network.insert(network, self.next);
        }
        self.by_number.insert(self.next, (network, stream));
        self.next += 1;
        self.count();
    }
}

impl Adverts {
    pub(super) fn new(counts: Arc<Counts>) -> Self {
        let streams = Streams { by_number: BTreeMap::new(), by_network: Class::default(), next: 0, counts };
        Self { live: BTreeMap::new(), streams }
    }

    /// A cohort is advertised, or its advert repeated: every reader gets it, signed now.
    pub(super) fn publish(&mut self, from: &Arc<Local>, body: &SharedBody, now: Timestamp, rng: &mut ChaCha20Rng) {
        let key = (from.identity.did().clone(), body.cohort_id().clone());
        self.live.insert(key, (Arc::clone(from), body.clone()));
        if let Some(event) = sealed(from, body, now, rng) {
            self.streams.retain(|stream| stream.send(event.clone()));
        }
    }

    /// A cohort does not admit members any more.
    pub(super) fn withdraw(&mut self, from: &Did, cohort_id: &CohortId) {
        self.live.remove(&(from.clone(), cohort_id.clone()));
    }

    /// A connection has ended, which withdraws its adverts; not those of a later connection of the same identity.
    pub(super) fn withdraw_all(&mut self, connection: u64) {
        self.live.retain(|_, (advertiser, _)| advertiser.connection != connection);
    }

    /// The bodies of at most `most` live adverts, and the number of all.
    pub(super) fn list(&self, most: usize) -> (Vec<SharedBody>, usize) {
        (self.live.values().take(most).map(|(_, body)| body.clone()).collect(), self.live.len())
    }

    /// A new reader gets every live advert, signed now, and later adverts. `None` if there are too many readers.
    pub(super) fn feed(
        &mut self,
        network: Option<Network>,
        config: &HttpConfig,
        now: Timestamp,
        rng: &mut ChaCha20Rng,
    ) -> Option<Events> {
        let HttpConfig { advert_streams, advert_streams_per_address, .. } = *config;
        let of_network = |streams: &Streams| network.map_or(0, |network| streams.by_network.of(network));
        if self.streams.len() >= advert_streams || of_network(&self.streams) >= advert_streams_per_address {
            self.streams.retain(EventStream::is_open);
        }
        if self.streams.len() >= advert_streams && of_network(&self.streams) < advert_streams_per_address {
            return None;
        }
        let adverts: Vec<_> = self.live.values().filter_map(|(from, body)| sealed(from, body, now, rng)).collect();
        // Space for all live adverts, and for some repeats while the client reads them.
        let bytes: usize = adverts.iter().map(Event::len).sum();
        let (stream, events) = EventStream::open(2 * adverts.len() + READ_AHEAD, 2 * bytes + READ_AHEAD_BYTES);
        if adverts.into_iter().all(|advert| stream.send(advert)) {
            self.streams.insert(network, stream, advert_streams_per_address);
        }
        Some(events)
    }

    pub(super) fn beat(&mut self) {
        self.streams.retain(|stream| stream.send(heartbeat()));
    }

    pub(super) fn close(&mut self) {
        self.streams.retain(|_| false);
    }
}

fn sealed(from: &Local, body: &SharedBody, now: Timestamp, rng: &mut ChaCha20Rng) -> Option<Event> {
    let message = Message::new(from.identity.did().clone(), None, body.clone());
    let envelope = SealedEnvelope::seal_with_rng(&message, from.identity.secret_key(), now, rng).ok()?;
    Some(event("advert", None, &envelope))
}
