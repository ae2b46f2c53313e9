//! The hub: the actor that owns the adverts board and the inboxes.

use std::{collections::BTreeMap, sync::Arc};

use actix::{
    Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message as ActixMessage, MessageResult,
    ResponseFuture, Supervised, WrapFuture, dev::ContextFut,
};
use btcr2_aggregation_protocol::{did::Did, message::SharedBody};
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
    supervision::{End, EndGuard, InTree, Lease, RestartIntensity, Restarts, start_leased},
    transport::{Delivery, Outbound, is_for_a_member, send_in_turn},
    tree::{self, Row},
};

/// An identity of this server sends a message.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Sent {
    pub(super) from: Arc<Local>,
    pub(super) outbound: Outbound,
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

/// The bodies of live adverts, at most so many, and the number of all.
#[derive(ActixMessage)]
#[rtype(result = "(Vec<SharedBody>, usize)")]
pub(super) struct ListAdverts(pub(super) usize);

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
    fn close(self, ctx: &mut Context<Hub>) {
        send_in_turn(&self.inbox, Close(self.lease), ctx);
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
    guard: EndGuard,
}

impl Hub {
    pub(super) fn new(
        config: Arc<HttpConfig>,
        clock: Clock,
        randomness: Randomness,
        shared: InboxesShared,
        guard: EndGuard,
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
            guard,
        }
    }

    /// The inbox of `owner`, started if need be. Not a clone of its address, which would have space of its own.
    fn inbox(&mut self, owner: &Did, write: bool, ctx: &mut Context<Self>) -> Option<&Addr<InboxActor>> {
        // An inbox that has just ended accepts nothing any more, although its end is not reported yet.
        if let Some(slot) = self.inboxes.get_mut(owner)
            && slot.inbox.connected()
        {
            slot.written_to |= write;
            return self.inboxes.get(owner).map(|slot| &slot.inbox);
        }
        if self.inboxes.len() >= self.config.inboxes && !(write && self.make_room(ctx)) {
            return None;
        }
        let number = self.shared.next_number(self.clock.now());
        let (hub, did) = (ctx.address(), owner.clone());
        // Beyond the bound of the mailbox: there is one for each inbox, and they are bounded.
        let guard = EndGuard::new(move |end| hub.do_send(InboxGone { owner: did, number, end }));
        let rng = self.randomness.for_actor(&format!("http inbox {owner} {number}"));
        let (config, shared) = (Arc::clone(&self.config), self.shared.clone());
        let inbox = InboxActor::new(owner.clone(), config, self.clock, rng, number, shared, guard);
        let (inbox, lease) = start_leased(span::inbox(owner), |_, _| inbox);
        self.inboxes.insert(owner.clone(), InboxSlot { inbox, lease, number, written_to: write });
        self.inboxes.get(owner).map(|slot| &slot.inbox)
    }

    /// Notifies the identities of this server that messages of theirs may be lost.
    fn interrupted(&self, to: Option<Did>, ctx: &mut Context<Self>) {
        for local in self.locals.values() {
            local.inbox.report(Delivery::Interrupted { to: to.clone() }, ctx);
        }
    }

    /// Puts a message into an inbox.
    fn post(&mut self, from: Arc<Local>, to: &Did, body: SharedBody, ctx: &mut Context<Self>) {
        match self.inbox(to, is_for_a_member(&body), ctx) {
            // Without space this waits. An inbox may wait for the mailbox of a service, but never for its reader.
            Some(inbox) => send_in_turn(inbox, Put { from, body }, ctx),
            None => {
                tracing::warn!(%to, "there are too many inboxes, a message is dropped");
                self.shared.counts.dropped();
            }
        }
    }

    /// Closes an inbox to which no identity has written, if there is one.
    fn make_room(&mut self, ctx: &mut Context<Self>) -> bool {
        let unused = self.inboxes.iter().find(|(_, slot)| !slot.written_to).map(|(owner, _)| owner.clone());
        let closed = unused.and_then(|owner| self.inboxes.remove(&owner));
        closed.map(|slot| slot.close(ctx)).is_some()
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
        self.interrupted(None, ctx);
        match self.restarts.pause(self.clock.now(), RestartIntensity::default(), &mut self.guard) {
            Some(pause) => {
                tracing::error!(restarts = self.restarts.count(), "the hub panicked and restarts");
                ctx.wait(tokio::time::sleep(pause).into_actor(self));
            }
            // Its guard reports that.
            None => ctx.stop(),
        }
    }
}

impl InTree for Hub {
    const ROW: &'static Row = &tree::HUB;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

impl Handler<Sent> for Hub {
    type Result = ();

    fn handle(&mut self, Sent { from, outbound }: Sent, ctx: &mut Self::Context) {
        match outbound {
            Outbound::Direct { to, body, .. } => self.post(from, &to, body, ctx),
            Outbound::Broadcast { body } => self.adverts.publish(&from, &body, self.clock.now(), &mut self.rng),
            Outbound::WithdrawAdvert { cohort_id } => self.adverts.withdraw(from.identity.did(), &cohort_id),
        }
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
                Some(inbox) => send_in_turn(inbox, PutBack { from: Arc::clone(&from), waiting }, ctx),
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
                send_in_turn(inbox, Feed { stream, after }, ctx);
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

impl Handler<ListAdverts> for Hub {
    type Result = MessageResult<ListAdverts>;

    fn handle(&mut self, ListAdverts(most): ListAdverts, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.adverts.list(most))
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
        std::mem::take(&mut self.inboxes).into_values().for_each(|slot| slot.close(ctx));
        self.guard.finish();
        ctx.stop();
    }
}

impl Handler<InboxGone> for Hub {
    type Result = ();

    fn handle(&mut self, InboxGone { owner, number, end }: InboxGone, ctx: &mut Self::Context) {
        if self.inboxes.get(&owner).is_some_and(|slot| slot.number == number) {
            self.inboxes.remove(&owner);
        }
        if let Some(reason) = end.failure() {
            tracing::error!(%owner, %reason, "an inbox has ended");
            self.interrupted(Some(owner), ctx);
        }
    }
}
