//! One recipient's inbox: what waits for it, and the streams that it reads.

use std::{collections::VecDeque, sync::Arc};

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, Message as ActixMessage};
use btcr2_aggregation_protocol::{
    did::Did,
    envelope::SealedEnvelope,
    message::{Message, SharedBody},
    time::Timestamp,
};
use rand_chacha::ChaCha20Rng;

use super::{
    config::HttpConfig,
    directory::Local,
    stream::{EventStream, event, heartbeat},
};
use crate::{runtime::Clock, supervisor::EndGuard};

/// Put a message of `from` into the inbox.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Put {
    pub(super) from: Arc<Local>,
    pub(super) body: SharedBody,
}

/// Feed a stream: what came after `after`, or everything that is held, and then what comes.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Feed {
    pub(super) stream: EventStream,
    pub(super) after: Option<u64>,
}

struct Entry {
    id: u64,
    at: Timestamp,
    from: Arc<Local>,
    body: SharedBody,
}

pub(super) struct InboxActor {
    owner: Did,
    config: Arc<HttpConfig>,
    clock: Clock,
    rng: ChaCha20Rng,
    entries: VecDeque<Entry>,
    bytes: usize,
    last_id: u64,
    streams: VecDeque<EventStream>,
    /// For how many heartbeats nobody has listened and nothing has waited.
    idle: u32,
    guard: EndGuard,
}

impl InboxActor {
    /// An inbox whose messages are numbered from behind `last_id`.
    pub(super) fn new(
        owner: Did,
        config: Arc<HttpConfig>,
        clock: Clock,
        rng: ChaCha20Rng,
        last_id: u64,
        guard: EndGuard,
    ) -> Self {
        Self {
            owner,
            config,
            clock,
            rng,
            entries: VecDeque::new(),
            bytes: 0,
            last_id,
            streams: VecDeque::new(),
            idle: 0,
            guard,
        }
    }

    /// The event of a message, signed at this moment: a receiver refuses what was signed a minute ago.
    fn event(&mut self, id: u64, from: &Local, body: &SharedBody) -> Option<actix_web::web::Bytes> {
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

    fn drop_oldest(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.body.json().len();
        }
    }

    fn drop_expired(&mut self) {
        let now = self.clock.now();
        while self.entries.front().is_some_and(|entry| now.since(entry.at) > self.config.inbox_ttl) {
            self.drop_oldest();
        }
    }

    fn beat(&mut self, ctx: &mut Context<Self>) {
        self.streams.retain(|stream| stream.send(heartbeat()));
        self.drop_expired();
        let idle = self.streams.is_empty() && self.entries.is_empty();
        self.idle = if idle { self.idle + 1 } else { 0 };
        // Once is not enough: a client may be about to come back.
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

impl Handler<Put> for InboxActor {
    type Result = ();

    fn handle(&mut self, Put { from, body }: Put, _: &mut Self::Context) {
        self.last_id += 1;
        let id = self.last_id;
        if !self.streams.is_empty()
            && let Some(event) = self.event(id, &from, &body)
        {
            self.streams.retain(|stream| stream.send(event.clone()));
        }
        self.bytes += body.json().len();
        self.entries.push_back(Entry { id, at: self.clock.now(), from, body });
        let HttpConfig { inbox_messages, inbox_bytes, .. } = *self.config;
        while self.entries.len() > inbox_messages || (self.bytes > inbox_bytes && self.entries.len() > 1) {
            tracing::warn!(owner = %self.owner, "the inbox is full, its oldest message is dropped");
            self.drop_oldest();
        }
    }
}

impl Handler<Feed> for InboxActor {
    type Result = ();

    fn handle(&mut self, Feed { stream, after }: Feed, _: &mut Self::Context) {
        self.idle = 0;
        if let Some(after) = after {
            // The client has these: they need not be kept for it.
            while self.entries.front().is_some_and(|entry| entry.id <= after) {
                self.drop_oldest();
            }
        }
        let held: Vec<_> =
            self.entries.iter().map(|entry| (entry.id, Arc::clone(&entry.from), entry.body.clone())).collect();
        let fed = held
            .into_iter()
            .all(|(id, from, body)| self.event(id, &from, &body).is_none_or(|event| stream.send(event)));
        if fed {
            if self.streams.len() >= self.config.streams_per_inbox {
                self.streams.pop_front();
            }
            self.streams.push_back(stream);
        }
    }
}
