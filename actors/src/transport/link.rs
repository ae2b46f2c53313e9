//! A link: one identity's permanent endpoint on a transport, which outlives its connections.
//!
//! Owners hold the link's address. When the connection actor ends, for any reason, the link connects again, with
//! exponential backoff, and sends the messages that waited in the meantime.

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

/// The number of messages that may wait for a connection; the oldest are dropped first.
const BACKLOG: usize = tree::LINK.mailbox;

/// The owner is ready: connect, unless that was done already.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct Connect;

/// The keeper of one identity's connection on one transport. Accepts [`Outbound`] messages; ends when its inbox does.
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
    /// Whether the last connection failed and may have lost messages.
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

    /// A link that connects when it receives [`Connect`]: its owner must be ready for messages first.
    pub(crate) fn waiting(transport: Arc<dyn Transport>, identity: Identity, inbox: Recipient<Delivery>) -> Self {
        Self { waits: true, ..Self::new(transport, identity, inbox) }
    }

    /// Starts it in its own span.
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
                    // An unbounded send: there is one for each failure.
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
        // `do_send` is unbounded: the connection's mailbox accepts the message, and the connection bounds its queue
        // itself.
        match &self.connection {
            Some(connection) if connection.connected() => connection.do_send(outbound),
            _ => {
                if self.backlog.len() >= BACKLOG {
                    self.backlog.pop_front();
                    tracing::warn!(did = %self.identity.did(), "too many messages wait for a connection, dropped one");
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
        // Waiting messages are sent by the next connection, which has another number.
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
        // Received again when the owner replays its journal after a panic.
        if std::mem::take(&mut self.waits) {
            self.connect(ctx);
        }
    }
}

impl Handler<Outbound> for Link {
    type Result = ();

    fn handle(&mut self, outbound: Outbound, _: &mut Self::Context) {
        if self.connection.as_ref().is_some_and(Recipient::connected) {
            // A connection that delivers a message works.
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use async_trait::async_trait;
    use btcr2_aggregation_protocol::{id::CohortId, key::SecretKey, network::Network};
    use tokio::sync::mpsc;

    use super::*;
    use crate::{runtime::Randomness, supervision::EndGuard};

    /// A transport whose connections end at the first message.
    struct Failing;

    struct Connection {
        _guard: EndGuard,
    }

    impl Actor for Connection {
        type Context = Context<Self>;
    }

    impl Handler<Outbound> for Connection {
        type Result = ();

        fn handle(&mut self, _: Outbound, ctx: &mut Self::Context) {
            ctx.stop();
        }
    }

    #[async_trait]
    impl Transport for Failing {
        async fn connect(
            &self,
            _: &Identity,
            _: Recipient<Delivery>,
            keeper: Recipient<Disconnected>,
            connection: u64,
        ) -> Result<Recipient<Outbound>, ConnectError> {
            let guard = EndGuard::new(move |end| keeper.do_send(Disconnected { connection, end }));
            Ok(Connection { _guard: guard }.start().recipient())
        }
    }

    struct Owner(mpsc::UnboundedSender<Delivery>);

    impl Actor for Owner {
        type Context = Context<Self>;
    }

    impl Handler<Delivery> for Owner {
        type Result = ();

        fn handle(&mut self, delivery: Delivery, _: &mut Self::Context) {
            self.0.send(delivery).unwrap();
        }
    }

    #[test]
    fn a_failed_connection_is_reported_once_it_is_replaced() {
        actix_rt::System::new().block_on(async {
            let (sender, mut deliveries) = mpsc::unbounded_channel();
            let key = SecretKey::generate(&mut Randomness::System.for_actor("owner"));
            let owner = Owner(sender).start().recipient();
            let link =
                Link::new(Arc::new(Failing), Identity::from_key(key, Network::Regtest), owner).start_in_span();
            let cohort_id = CohortId::parse("11111111-1111-4111-8111-111111111111").unwrap();
            link.do_send(Outbound::WithdrawAdvert { cohort_id });
            let delivery = tokio::time::timeout(Duration::from_secs(30), deliveries.recv()).await.unwrap().unwrap();
            assert!(matches!(delivery, Delivery::Interrupted { to: None }), "{delivery:?}");
        });
    }
}
