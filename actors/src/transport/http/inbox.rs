//! One recipient's inbox: its waiting messages, and the streams on which it is read.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use actix::{
    Actor, ActorContext, AsyncContext, Context, Handler, Message as ActixMessage, Supervised, dev::ContextFut,
};
use btcr2_aggregation_protocol::{
    did::Did,
    envelope::SealedEnvelope,
    id::CohortId,
    message::{Body, Message, SharedBody},
    time::Timestamp,
};
use rand_chacha::ChaCha20Rng;

use super::{
    config::HttpConfig,
    directory::Local,
    report::Counts,
    stream::{Event, EventStream, event, heartbeat, too_slow},
    waiting::{InboxStore, Waiting},
};
use crate::{
    runtime::Clock,
    supervision::{EndGuard, InTree, Lease},
    transport::Delivery,
    tree::{self, Row},
};

/// Put a message of `from` into the inbox.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Put {
    pub(super) from: Arc<Local>,
    pub(super) body: SharedBody,
}

/// Restore the messages from before the server's start, in the order of the identifiers.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct PutBack {
    pub(super) from: Arc<Local>,
    pub(super) waiting: Vec<Waiting>,
}

/// Feed a stream: the messages after `after`, or all that are stored, and then new ones.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Feed {
    pub(super) stream: EventStream,
    pub(super) after: Option<u64>,
}

/// Whether there is a reader, or no message waits: a reader whose connection broke reconnects for the messages that it
/// missed.
#[derive(ActixMessage)]
#[rtype(result = "bool")]
pub(super) struct IsRead;

/// Close the streams, and end once everything that was sent before is stored. Until then the inbox runs under this
/// lease.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Close(pub(super) Lease);

/// The state that all inboxes share.
#[derive(Clone)]
pub(super) struct InboxesShared {
    /// The highest identifier that any ended inbox has assigned, and that any inbox started after.
    last_id: Arc<AtomicU64>,
    /// The counts of all inboxes.
    pub(super) counts: Arc<Counts>,
    /// The store of their messages.
    pub(super) store: Arc<dyn InboxStore>,
}

impl InboxesShared {
    /// For a server that starts at `now`. Milliseconds since 1970 exceed any number of messages, so the numbers also
    /// increase over a restart of a server that stores nothing; one that stores messages does not depend on its clock.
    pub(super) fn new(now: Timestamp, store: Arc<dyn InboxStore>, counts: Arc<Counts>) -> Self {
        let last_id = store.last_id().max(now.as_millis());
        Self { last_id: Arc::new(AtomicU64::new(last_id)), counts, store }
    }

    /// The identifier after which a new inbox counts: after all that the owner's previous inbox has assigned, and, as
    /// far as the clock can determine, after those of a server that ran before this one.
    pub(super) fn next_number(&self, now: Timestamp) -> u64 {
        let now = now.as_millis();
        let next = |last: u64| Some(last.max(now).saturating_add(1));
        // The closure always returns a value, so both arms have the previous number.
        let (Ok(last) | Err(last)) = self.last_id.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        last.max(now).saturating_add(1)
    }
}

struct Entry {
    id: u64,
    at: Timestamp,
    from: Arc<Local>,
    body: SharedBody,
}

impl Entry {
    fn is_end(&self) -> bool {
        matches!(&*self.body, Body::CohortEnded(_))
    }
}

/// The dropped messages of a cohort.
struct Missed {
    /// The highest identifier among them.
    id: u64,
    at: Timestamp,
    from: Arc<Local>,
}

/// The maximum number of cohorts in `missed`.
const MOST_MISSED: usize = 1_024;

pub(super) struct InboxActor {
    owner: Did,
    config: Arc<HttpConfig>,
    clock: Clock,
    rng: ChaCha20Rng,
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The cohorts with dropped messages: what the owner still needs of them is sent again when it reads.
    missed: BTreeMap<CohortId, Missed>,
    last_id: u64,
    shared: InboxesShared,
    streams: VecDeque<EventStream>,
    /// The highest identifier that the owner has confirmed.
    confirmed: u64,
    /// The number of heartbeats without readers and waiting messages.
    idle: u32,
    guard: EndGuard,
}

impl InboxActor {
    /// An inbox whose messages are numbered from `last_id` + 1.
    pub(super) fn new(
        owner: Did,
        config: Arc<HttpConfig>,
        clock: Clock,
        rng: ChaCha20Rng,
        last_id: u64,
        shared: InboxesShared,
        guard: EndGuard,
    ) -> Self {
        shared.counts.inboxes.fetch_add(1, Ordering::Relaxed);
        Self {
            owner,
            config,
            clock,
            rng,
            entries: VecDeque::new(),
            bytes: 0,
            missed: BTreeMap::new(),
            last_id,
            shared,
            streams: VecDeque::new(),
            confirmed: 0,
            idle: 0,
            guard,
        }
    }

    /// The event of a message, signed now: a receiver refuses a signature that is a minute old.
    fn event(&mut self, id: u64, from: &Local, body: &SharedBody) -> Option<Event> {
        let message = Message::new(from.identity.did().clone(), Some(self.owner.clone()), body.clone());
        let key = from.identity.secret_key();
        match SealedEnvelope::seal_with_rng(&message, key, self.clock.now(), &mut self.rng) {
            Ok(envelope) => Some(event("message", Some(id), &envelope)),
            Err(error) => {
                tracing::error!(owner = %self.owner, %error, "a message has no canonical form and cannot be signed");
                None
            }
        }
    }

    /// Notifies the sender that a message was fetched. Whether it has arrived is known later: a reader that reconnects
    /// gets again what it does not confirm.
    fn delivered(&self, Entry { from, body, .. }: &Entry, ctx: &mut Context<Self>) {
        let (cohort_id, kind) = (body.cohort_id().clone(), body.short_type());
        from.inbox.report(Delivery::Delivered { to: self.owner.clone(), cohort_id, kind }, ctx);
    }

    /// Removes an entry, here and in the store.
    fn remove(&mut self, position: usize) -> Option<Entry> {
        let entry = self.entries.remove(position)?;
        let bytes = entry.body.json().len();
        self.bytes -= bytes;
        self.shared.counts.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.shared.counts.messages.fetch_sub(1, Ordering::Relaxed);
        self.shared.store.remove(&self.owner, entry.id);
        Some(entry)
    }

    /// Sends an entry to the readers, and stores it.
    fn take_in(&mut self, entry: Entry, ctx: &mut Context<Self>) {
        if !self.streams.is_empty()
            && let Some(event) = self.event(entry.id, &entry.from, &entry.body)
        {
            self.streams.retain(|stream| stream.send(event.clone()));
            if !self.streams.is_empty() {
                self.delivered(&entry, ctx);
            }
        }
        // A message that is repeated while its recipient does not read is needed once.
        let same = |other: &Entry| other.id < entry.id && other.body.json() == entry.body.json();
        if let Some(position) = self.entries.iter().position(same) {
            self.remove(position);
        }
        let bytes = entry.body.json().len();
        self.bytes += bytes;
        self.shared.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shared.counts.messages.fetch_add(1, Ordering::Relaxed);
        let position = self.entries.partition_point(|other| other.id < entry.id);
        self.entries.insert(position, entry);
        while self.is_too_full() {
            self.make_room();
        }
    }

    /// Drops one message: of a cohort that has ended, unless it is the end itself, or else the oldest. What the owner
    /// still needs of it is sent again when it reads.
    fn make_room(&mut self) {
        self.shared.counts.dropped();
        let ended: BTreeSet<_> = self
            .entries
            .iter()
            .filter(|entry| entry.is_end())
            .map(|entry| entry.body.cohort_id().clone())
            .collect();
        let is_over = |entry: &Entry| !entry.is_end() && ended.contains(entry.body.cohort_id());
        if let Some(position) = self.entries.iter().position(is_over) {
            self.remove(position);
            return;
        }
        if self.missed.is_empty() {
            tracing::info!(owner = %self.owner, "a member reads too slowly, what it misses is sent again when it reads");
        }
        self.miss(0);
    }

    /// Removes an entry that may still be needed.
    fn miss(&mut self, position: usize) {
        let Some(Entry { id, from, body, .. }) = self.remove(position) else { return };
        let at = self.clock.now();
        let known = self.missed.entry(body.cohort_id().clone()).or_insert(Missed { id, at, from });
        known.id = known.id.max(id);
        if self.missed.len() > MOST_MISSED
            && let Some(oldest) =
                self.missed.iter().min_by_key(|(_, missed)| missed.id).map(|(cohort, _)| cohort.clone())
        {
            tracing::warn!(owner = %self.owner, cohort_id = %oldest, "a member's messages of a cohort were dropped");
            self.missed.remove(&oldest);
        }
    }

    /// Requests the repetition of messages that were dropped after `after` and are still needed, and notifies the
    /// reader.
    fn make_again(&mut self, after: Option<u64>, stream: &EventStream, ctx: &mut Context<Self>) {
        let mut missed = std::mem::take(&mut self.missed);
        missed.retain(|_, missed| after.is_none_or(|after| missed.id > after));
        if missed.is_empty() {
            return;
        }
        // If this fails, the stream has ended; repeated messages are then sent to the stream that replaces it.
        stream.send(too_slow(missed.len()));
        for (cohort_id, Missed { from, .. }) in missed {
            from.inbox.report(Delivery::Missed { to: self.owner.clone(), cohort_id }, ctx);
        }
    }

    /// The newest message is never dropped, whatever its size: its reader may be about to connect.
    fn is_too_full(&self) -> bool {
        let HttpConfig { inbox_messages, inbox_bytes, inboxes_bytes, .. } = *self.config;
        let all_bytes = self.shared.counts.bytes.load(Ordering::Relaxed);
        self.entries.len() > inbox_messages
            || (self.entries.len() > 1 && (self.bytes > inbox_bytes || all_bytes > inboxes_bytes))
    }

    fn drop_expired(&mut self) {
        let now = self.clock.now();
        while self.entries.front().is_some_and(|entry| now.since(entry.at) > self.config.inbox_ttl) {
            self.miss(0);
        }
        let longest = 2 * self.config.inbox_ttl;
        self.missed.retain(|_, missed| now.since(missed.at) <= longest);
    }

    fn beat(&mut self, ctx: &mut Context<Self>) {
        self.streams.retain(|stream| stream.send(heartbeat()));
        self.drop_expired();
        let idle = self.streams.is_empty() && self.entries.is_empty() && self.missed.is_empty();
        self.idle = if idle { self.idle + 1 } else { 0 };
        // One heartbeat is not enough: a client may be about to reconnect.
        if self.idle > 1 {
            self.guard.finish();
            ctx.stop();
        }
    }
}

impl Actor for InboxActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.config.inbox_messages.max(16));
        ctx.run_interval(self.config.heartbeat, Self::beat);
    }
}

impl Supervised for InboxActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        tracing::error!(owner = %self.owner, "an inbox panicked and restarts");
        // Its readers reconnect, and continue from their positions.
        self.streams.clear();
    }
}

impl InTree for InboxActor {
    const ROW: &'static Row = &tree::INBOX;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

impl Drop for InboxActor {
    fn drop(&mut self) {
        self.shared.last_id.fetch_max(self.last_id, Ordering::Relaxed);
        let counts = &self.shared.counts;
        counts.inboxes.fetch_sub(1, Ordering::Relaxed);
        counts.messages.fetch_sub(self.entries.len(), Ordering::Relaxed);
        counts.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Handler<IsRead> for InboxActor {
    type Result = bool;

    fn handle(&mut self, _: IsRead, _: &mut Self::Context) -> bool {
        // A broken connection is detected by writing to it.
        self.streams.retain(|stream| stream.is_open() && stream.send(heartbeat()));
        self.entries.is_empty() || !self.streams.is_empty()
    }
}

impl Handler<Close> for InboxActor {
    type Result = ();

    fn handle(&mut self, Close(_lease): Close, ctx: &mut Self::Context) {
        self.streams.clear();
        self.guard.finish();
        ctx.stop();
    }
}

impl Handler<Put> for InboxActor {
    type Result = ();

    fn handle(&mut self, Put { from, body }: Put, ctx: &mut Self::Context) {
        self.last_id += 1;
        let (id, at) = (self.last_id, self.clock.now());
        let message = Message::new(from.identity.did().clone(), Some(self.owner.clone()), body.clone());
        self.shared.store.put(&self.owner, &Waiting { id, at, message });
        self.take_in(Entry { id, at, from, body }, ctx);
    }
}

impl Handler<PutBack> for InboxActor {
    type Result = ();

    fn handle(&mut self, PutBack { from, waiting }: PutBack, ctx: &mut Self::Context) {
        let now = self.clock.now();
        for Waiting { id, at, message } in waiting {
            if id <= self.confirmed || now.since(at) > self.config.inbox_ttl {
                self.shared.store.remove(&self.owner, id);
            } else {
                self.take_in(Entry { id, at, from: Arc::clone(&from), body: message.body }, ctx);
            }
        }
    }
}

impl Handler<Feed> for InboxActor {
    type Result = ();

    fn handle(&mut self, Feed { stream, after }: Feed, ctx: &mut Self::Context) {
        self.idle = 0;
        if let Some(after) = after {
            self.confirmed = self.confirmed.max(after);
            // The client has these: they need not be stored any more.
            while self.entries.front().is_some_and(|entry| entry.id <= after) {
                self.remove(0);
            }
        }
        let stored: Vec<_> =
            self.entries.iter().map(|entry| (entry.id, Arc::clone(&entry.from), entry.body.clone())).collect();
        let fed = stored
            .into_iter()
            .all(|(id, from, body)| self.event(id, &from, &body).is_none_or(|event| stream.send(event)));
        if fed {
            self.entries.iter().for_each(|entry| self.delivered(entry, ctx));
            self.make_again(after, &stream, ctx);
            if self.streams.len() >= self.config.streams_per_inbox {
                self.streams.pop_front();
            }
            self.streams.push_back(stream);
        }
    }
}
