//! A link: one identity's lasting place on a transport, whatever becomes of its connections.
//!
//! Owners hold the link's address. When the connection actor ends, however it ends, the link connects again, with
//! exponential backoff, and sends what waited meanwhile.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message as ActixMessage, Recipient,
    Supervised, WrapFuture, dev::ContextFut,
};
use btcr2_aggregation_protocol::identity::Identity;

use super::{ConnectError, Delivery, Disconnected, Outbound, Transport};
use crate::{
    span,
    supervision::{InTree, start},
    tree::{self, Row},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// How many messages may wait for a connection; the oldest are given up first.
const BACKLOG: usize = tree::LINK.mailbox;

/// The owner is ready: connect, if that was not done yet.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct Connect;

/// The keeper of one identity's connection on one transport. Takes [`Outbound`] messages; ends when its inbox does.
pub struct Link {
    transport: Arc<dyn Transport>,
    identity: Identity,
    inbox: Recipient<Delivery>,
    connection: Option<Recipient<Outbound>>,
    number: u64,
    /// Whether it waits for [`Connect`].
    waits: bool,
    backoff: Duration,
    backlog: VecDeque<Outbound>,
    /// Whether the last connection has failed with messages in it.
    interrupted: bool,
}

impl Link {
    /// A link of `identity` on `transport` that delivers to `inbox`.
    pub fn new(transport: Arc<dyn Transport>, identity: Identity, inbox: Recipient<Delivery>) -> Self {
        Self {
            transport,
            identity,
            inbox,
            connection: None,
            number: 0,
            waits: false,
            backoff: FIRST_BACKOFF,
            backlog: VecDeque::new(),
            interrupted: false,
        }
    }

    /// A link that connects when it is told to, with [`Connect`]: its owner has to be ready for what arrives.
    pub(crate) fn waiting(transport: Arc<dyn Transport>, identity: Identity, inbox: Recipient<Delivery>) -> Self {
        Self { waits: true, ..Self::new(transport, identity, inbox) }
    }

    /// Starts it in a span of its own.
    pub(crate) fn start_in_span(self) -> Addr<Self> {
        start(span::link(self.identity.did()), |_| self)
    }

    fn connect(&mut self, ctx: &mut Context<Self>) {
        self.number += 1;
        let number = self.number;
        let transport = Arc::clone(&self.transport);
        let identity = self.identity.clone();
        let (inbox, keeper) = (self.inbox.clone(), ctx.address().recipient());
        let connecting = async move { transport.connect(&identity, inbox, keeper, number).await };
        ctx.spawn(connecting.into_actor(self).map(|connected, link, ctx| link.connected(connected, ctx)));
    }

    fn connected(&mut self, connected: Result<Recipient<Outbound>, ConnectError>, ctx: &mut Context<Self>) {
        match connected {
            Ok(connection) => {
                self.connection = Some(connection);
                for outbound in std::mem::take(&mut self.backlog) {
                    self.forward(outbound);
                }
                if std::mem::take(&mut self.interrupted) {
                    // Not lossy: there is one for each failure.
                    self.inbox.do_send(Delivery::Interrupted { to: None });
                }
            }
            Err(error) => {
                tracing::warn!(did = %self.identity.did(), %error, "cannot connect");
                self.connect_later(ctx);
            }
        }
    }

    fn connect_later(&mut self, ctx: &mut Context<Self>) {
        let delay = self.backoff;
        self.backoff = (delay * 2).min(LONGEST_BACKOFF);
        ctx.run_later(delay, |link, ctx| link.connect(ctx));
    }

    fn forward(&mut self, outbound: Outbound) {
        // `do_send` is not lossy: the connection's mailbox takes it, and what it does when it cannot keep up is its own.
        match &self.connection {
            Some(connection) if connection.connected() => connection.do_send(outbound),
            _ => {
                if self.backlog.len() >= BACKLOG {
                    self.backlog.pop_front();
                    tracing::warn!(did = %self.identity.did(), "too much waits for a connection, a message is lost");
                }
                self.backlog.push_back(outbound);
            }
        }
    }
}

impl Actor for Link {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if !self.waits {
            self.connect(ctx);
        }
    }
}

impl Supervised for Link {
    fn restarting(&mut self, _: &mut Self::Context) {
        // What waits is sent by the next connection; the number tells that from the last one.
        self.connection = None;
        self.interrupted = true;
    }
}

impl InTree for Link {
    const ROW: &'static Row = &tree::LINK;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

impl Handler<Connect> for Link {
    type Result = ();

    fn handle(&mut self, _: Connect, ctx: &mut Self::Context) {
        // Said again when the owner looks through its journal again.
        if std::mem::take(&mut self.waits) {
            self.connect(ctx);
        }
    }
}

impl Handler<Outbound> for Link {
    type Result = ();

    fn handle(&mut self, outbound: Outbound, _: &mut Self::Context) {
        if self.connection.as_ref().is_some_and(Recipient::connected) {
            // A connection that carries something works.
            self.backoff = FIRST_BACKOFF;
        }
        self.forward(outbound);
    }
}

impl Handler<Disconnected> for Link {
    type Result = ();

    fn handle(&mut self, ended: Disconnected, ctx: &mut Self::Context) {
        if ended.connection != self.number {
            return;
        }
        self.connection = None;
        self.interrupted = true;
        if !self.inbox.connected() {
            return ctx.stop();
        }
        tracing::info!(did = %self.identity.did(), end = ?ended.end, "connection ended, connecting again");
        self.connect_later(ctx);
    }
}
