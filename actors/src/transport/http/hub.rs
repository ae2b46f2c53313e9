//! The hub: the actor that owns the adverts board and the inboxes.

use std::{collections::BTreeMap, sync::Arc};

use actix::{
    Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message as ActixMessage, MessageResult,
    ResponseFuture, Supervised, dev::ContextFut,
};
use btcr2_aggregation_protocol::{did::Did, id::CohortId, message::SharedBody};
use rand_chacha::ChaCha20Rng;

use super::{
    adverts::Adverts,
    config::HttpConfig,
    directory::Local,
    inbox::{Close, Feed, InboxActor, InboxesShared, IsRead, Put, PutBack},
    stream::{EventStream, Events},
    waiting::Waiting,
};
use crate::transport::connections::Network;
use crate::{
    runtime::{Clock, Randomness},
    span,
    supervision::{Attempt, End, EndGuard, InTree, Lease, RestartIntensity, Restarts, start_leased},
    transport::{Delivery, is_for_a_member},
    tree::{self, Row},
};

/// `from` sends `body` to `to`.
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

/// An advert has ended.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Withdraw {
    pub(super) from: Did,
    pub(super) cohort_id: CohortId,
}

/// An identity has connected: its messages from before a restart of the server can be delivered.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Arrived(pub(super) Arc<Local>);

/// The connection with this number has ended.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Gone(pub(super) u64);

/// Read an inbox. `false` if there are too many.
#[derive(ActixMessage)]
#[rtype(result = "bool")]
pub(super) struct OpenInbox {
    pub(super) owner: Did,
    pub(super) stream: EventStream,
    pub(super) after: Option<u64>,
}

/// Read the adverts. `None` if there are too many readers.
#[derive(ActixMessage)]
#[rtype(result = "Option<Events>")]
pub(super) struct OpenAdverts {
    /// The network by which the stream is counted.
    pub(super) network: Option<Network>,
}

/// Close every stream and stop.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Shutdown;

/// Whether every recipient for which messages wait is reading its inbox now.
#[derive(ActixMessage)]
#[rtype(result = "bool")]
pub(super) struct AllRead;

#[derive(ActixMessage)]
#[rtype(result = "()")]
struct InboxGone {
    owner: Did,
    number: u64,
    end: End,
}

/// An inbox.
struct InboxSlot {
    inbox: Addr<InboxActor>,
    /// The inbox stops when this is dropped.
    lease: Lease,
    /// Distinguishes the inboxes that the owner has had: the identifier after which this one counts.
    number: u64,
    /// Whether an identity of this server has written to it. Any peer can open an inbox; those without a writer are
    /// evicted for those of members.
    written_to: bool,
}

impl InboxSlot {
    fn close(self) {
        self.inbox.do_send(Close(self.lease));
    }
}

pub(super) struct Hub {
    config: Arc<HttpConfig>,
    clock: Clock,
    randomness: Randomness,
    rng: ChaCha20Rng,
    adverts: Adverts,
    inboxes: BTreeMap<Did, InboxSlot>,
    shared: InboxesShared,
    /// The identities of this server, by connection.
    locals: BTreeMap<u64, Arc<Local>>,
    restarts: Restarts,
}

impl Hub {
    pub(super) fn new(
        config: Arc<HttpConfig>,
        clock: Clock,
        randomness: Randomness,
        shared: InboxesShared,
    ) -> Self {
        Self {
            config,
            clock,
            randomness,
            rng: randomness.for_actor("http hub"),
            adverts: Adverts::new(Arc::clone(&shared.counts)),
            inboxes: BTreeMap::new(),
            shared,
            locals: BTreeMap::new(),
            restarts: Restarts::default(),
        }
    }

    fn inbox(&mut self, owner: &Did, write: bool, ctx: &Context<Self>) -> Option<Addr<InboxActor>> {
        // An inbox that has just ended accepts nothing any more, although its end is not reported yet.
        if let Some(slot) = self.inboxes.get_mut(owner).filter(|slot| slot.inbox.connected()) {
            slot.written_to |= write;
            return Some(slot.inbox.clone());
        }
        if self.inboxes.len() >= self.config.inboxes && !(write && self.make_room()) {
            return None;
        }
        let number = self.shared.next_number(self.clock.now());
        let (hub, did) = (ctx.address(), owner.clone());
        let guard = EndGuard::new(move |end| hub.do_send(InboxGone { owner: did, number, end }));
        let rng = self.randomness.for_actor(&format!("http inbox {owner} {number}"));
        let (config, shared) = (Arc::clone(&self.config), self.shared.clone());
        let inbox = InboxActor::new(owner.clone(), config, self.clock, rng, number, shared, guard);
        let (inbox, lease) = start_leased(span::inbox(owner), |_, _| inbox);
        let slot = InboxSlot { inbox: inbox.clone(), lease, number, written_to: write };
        self.inboxes.insert(owner.clone(), slot);
        Some(inbox)
    }

    /// Notifies the identities of this server that messages of theirs may be lost.
    fn interrupted(&self, to: Option<Did>) {
        for local in self.locals.values() {
            // An unbounded send: there is one for each failure.
            local.inbox.do_send(Delivery::Interrupted { to: to.clone() });
        }
    }

    /// Closes an inbox to which no identity has written, if there is one.
    fn make_room(&mut self) -> bool {
        let unused = self.inboxes.iter().find(|(_, slot)| !slot.written_to).map(|(owner, _)| owner.clone());
        let closed = unused.and_then(|owner| self.inboxes.remove(&owner));
        closed.map(InboxSlot::close).is_some()
    }
}

impl Actor for Hub {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(self.config.heartbeat, |hub, _| hub.adverts.beat());
    }
}

impl Supervised for Hub {
    fn restarting(&mut self, ctx: &mut Self::Context) {
        // Their streams end, so that every reader connects again, to an inbox that this hub knows.
        self.inboxes.clear();
        self.interrupted(None);
        match self.restarts.next(self.clock.now(), RestartIntensity::default()) {
            Attempt::Again(_) => {
                tracing::error!(restarts = self.restarts.count(), "the hub panicked and restarts")
            }
            Attempt::Last(reason) => {
                tracing::error!(reason, "the hub is given up");
                ctx.stop();
            }
            Attempt::GivenUp => ctx.stop(),
        }
    }
}

impl InTree for Hub {
    const ROW: &'static Row = &tree::HUB;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

impl Handler<Post> for Hub {
    type Result = ();

    fn handle(&mut self, Post { from, to, body }: Post, ctx: &mut Self::Context) {
        match self.inbox(&to, is_for_a_member(&body), ctx) {
            // An unbounded send: the inbox bounds its messages itself.
            Some(inbox) => inbox.do_send(Put { from, body }),
            None => {
                tracing::warn!(%to, "there are too many inboxes, a message is dropped");
                self.shared.counts.dropped();
            }
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

impl Handler<Arrived> for Hub {
    type Result = ();

    fn handle(&mut self, Arrived(from): Arrived, ctx: &mut Self::Context) {
        self.locals.insert(from.connection, Arc::clone(&from));
        let mut by_owner: BTreeMap<Did, Vec<Waiting>> = BTreeMap::new();
        for waiting in self.shared.store.take(from.identity.did()) {
            if let Some(owner) = &waiting.message.to {
                by_owner.entry(owner.clone()).or_default().push(waiting);
            }
        }
        for (owner, mut waiting) in by_owner {
            waiting.sort_by_key(|waiting| waiting.id);
            match self.inbox(&owner, true, ctx) {
                Some(inbox) => inbox.do_send(PutBack { from: Arc::clone(&from), waiting }),
                None => {
                    tracing::warn!(%owner, "there are too many inboxes, the stored messages of this one are dropped")
                }
            }
        }
    }
}

impl Handler<Gone> for Hub {
    type Result = ();

    fn handle(&mut self, Gone(connection): Gone, _: &mut Self::Context) {
        self.locals.remove(&connection);
        self.adverts.withdraw_all(connection);
    }
}

impl Handler<OpenInbox> for Hub {
    type Result = bool;

    fn handle(&mut self, OpenInbox { owner, stream, after }: OpenInbox, ctx: &mut Self::Context) -> bool {
        match self.inbox(&owner, false, ctx) {
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

    fn handle(&mut self, OpenAdverts { network }: OpenAdverts, _: &mut Self::Context) -> Self::Result {
        let now = self.clock.now();
        MessageResult(self.adverts.feed(network, &self.config, now, &mut self.rng))
    }
}

impl Handler<AllRead> for Hub {
    type Result = ResponseFuture<bool>;

    fn handle(&mut self, _: AllRead, _: &mut Self::Context) -> Self::Result {
        let inboxes: Vec<_> =
            self.inboxes.values().filter(|slot| slot.written_to).map(|slot| slot.inbox.clone()).collect();
        Box::pin(async move {
            for inbox in inboxes {
                // An inbox that has ended has no messages.
                if !inbox.send(IsRead).await.unwrap_or(true) {
                    return false;
                }
            }
            true
        })
    }
}

impl Handler<Shutdown> for Hub {
    type Result = ();

    fn handle(&mut self, _: Shutdown, ctx: &mut Self::Context) {
        self.adverts.close();
        std::mem::take(&mut self.inboxes).into_values().for_each(InboxSlot::close);
        ctx.stop();
    }
}

impl Handler<InboxGone> for Hub {
    type Result = ();

    fn handle(&mut self, InboxGone { owner, number, end }: InboxGone, _: &mut Self::Context) {
        if self.inboxes.get(&owner).is_some_and(|slot| slot.number == number) {
            self.inboxes.remove(&owner);
        }
        if let Some(reason) = end.failure() {
            tracing::error!(%owner, %reason, "an inbox has ended");
            self.interrupted(Some(owner));
        }
    }
}
