//! The hub: the actor that keeps the adverts board and the inboxes.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message as ActixMessage, MessageResult};
use btcr2_aggregation_protocol::{did::Did, id::CohortId, message::SharedBody};
use rand_chacha::ChaCha20Rng;

use super::{
    adverts::Adverts,
    config::HttpConfig,
    directory::Local,
    inbox::{Feed, InboxActor, Put},
    stream::EventStream,
};
use crate::{
    runtime::{Clock, Randomness},
    supervisor::{End, EndGuard},
};

/// How many requests may wait for the hub.
const MAILBOX: usize = 8192;

/// `from` says `body` to `to`.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Post {
    pub(super) from: Arc<Local>,
    pub(super) to: Did,
    pub(super) body: SharedBody,
}

/// `from` advertises `body`.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Advertise {
    pub(super) from: Arc<Local>,
    pub(super) body: SharedBody,
}

/// An advert is over.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Withdraw {
    pub(super) from: Did,
    pub(super) cohort_id: CohortId,
}

/// The connection with this number is gone.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Gone(pub(super) u64);

/// Read an inbox. `false` when there are too many.
#[derive(ActixMessage)]
#[rtype(result = "bool")]
pub(super) struct OpenInbox {
    pub(super) owner: Did,
    pub(super) stream: EventStream,
    pub(super) after: Option<u64>,
}

/// Read the adverts. `false` when there are too many readers.
#[derive(ActixMessage)]
#[rtype(result = "bool")]
pub(super) struct OpenAdverts(pub(super) EventStream);

/// Close every stream and stop.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Shutdown;

#[derive(ActixMessage)]
#[rtype(result = "()")]
struct InboxGone {
    owner: Did,
    end: End,
}

pub(super) struct Hub {
    config: Arc<HttpConfig>,
    clock: Clock,
    randomness: Randomness,
    rng: ChaCha20Rng,
    adverts: Adverts,
    inboxes: BTreeMap<Did, Addr<InboxActor>>,
    /// The highest identifier that any inbox has given out: an inbox that comes back goes on counting from here.
    last_id: Arc<AtomicU64>,
}

impl Hub {
    pub(super) fn new(config: Arc<HttpConfig>, clock: Clock, randomness: Randomness) -> Self {
        Self {
            config,
            clock,
            randomness,
            rng: randomness.for_actor("http hub"),
            adverts: Adverts::default(),
            inboxes: BTreeMap::new(),
            // Milliseconds since 1970 are beyond any number of messages, so that a restarted server goes on counting too.
            last_id: Arc::new(AtomicU64::new(clock.now().as_millis())),
        }
    }

    fn inbox(&mut self, owner: &Did, ctx: &Context<Self>) -> Option<Addr<InboxActor>> {
        if let Some(inbox) = self.inboxes.get(owner) {
            return Some(inbox.clone());
        }
        if self.inboxes.len() >= self.config.inboxes {
            return None;
        }
        // Each inbox starts a good way behind the one before, so that it never gives an identifier out again.
        let step = 1 + u64::try_from(self.config.inbox_messages).unwrap_or(u64::MAX >> 1);
        let now = self.clock.now().as_millis();
        let last_id = self.last_id.fetch_max(now, Ordering::Relaxed).max(now).saturating_add(step);
        self.last_id.store(last_id, Ordering::Relaxed);
        let (hub, did) = (ctx.address(), owner.clone());
        let guard = EndGuard::new(move |end| hub.do_send(InboxGone { owner: did, end }));
        let rng = self.randomness.for_actor(&format!("http inbox {owner} {last_id}"));
        let config = Arc::clone(&self.config);
        let inbox = InboxActor::new(owner.clone(), config, self.clock, rng, last_id, guard).start();
        self.inboxes.insert(owner.clone(), inbox.clone());
        Some(inbox)
    }
}

impl Actor for Hub {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        ctx.run_interval(self.config.heartbeat, |hub, _| hub.adverts.beat());
    }
}

impl Handler<Post> for Hub {
    type Result = ();

    fn handle(&mut self, Post { from, to, body }: Post, ctx: &mut Self::Context) {
        match self.inbox(&to, ctx) {
            // Not lossy: what an inbox does with too much is its own affair.
            Some(inbox) => inbox.do_send(Put { from, body }),
            None => tracing::warn!(%to, "there are too many inboxes, a message is dropped"),
        }
    }
}

impl Handler<Advertise> for Hub {
    type Result = ();

    fn handle(&mut self, Advertise { from, body }: Advertise, _: &mut Self::Context) {
        self.adverts.publish(&from, &body, self.clock.now(), &mut self.rng);
    }
}

impl Handler<Withdraw> for Hub {
    type Result = ();

    fn handle(&mut self, Withdraw { from, cohort_id }: Withdraw, _: &mut Self::Context) {
        self.adverts.withdraw(&from, &cohort_id);
    }
}

impl Handler<Gone> for Hub {
    type Result = ();

    fn handle(&mut self, Gone(connection): Gone, _: &mut Self::Context) {
        self.adverts.withdraw_all(connection);
    }
}

impl Handler<OpenInbox> for Hub {
    type Result = bool;

    fn handle(&mut self, OpenInbox { owner, stream, after }: OpenInbox, ctx: &mut Self::Context) -> bool {
        match self.inbox(&owner, ctx) {
            Some(inbox) => {
                inbox.do_send(Feed { stream, after });
                true
            }
            None => false,
        }
    }
}

impl Handler<OpenAdverts> for Hub {
    type Result = MessageResult<OpenAdverts>;

    fn handle(&mut self, OpenAdverts(stream): OpenAdverts, _: &mut Self::Context) -> Self::Result {
        let now = self.clock.now();
        MessageResult(self.adverts.feed(stream, self.config.advert_streams, now, &mut self.rng))
    }
}

impl Handler<Shutdown> for Hub {
    type Result = ();

    fn handle(&mut self, _: Shutdown, ctx: &mut Self::Context) {
        self.adverts.close();
        // The streams of an inbox close with the inbox, which ends when nobody holds its address.
        self.inboxes.clear();
        ctx.stop();
    }
}

impl Handler<InboxGone> for Hub {
    type Result = ();

    fn handle(&mut self, InboxGone { owner, end }: InboxGone, _: &mut Self::Context) {
        self.inboxes.remove(&owner);
        if let Some(reason) = end.failure() {
            tracing::error!(%owner, reason, "an inbox is lost");
        }
    }
}
