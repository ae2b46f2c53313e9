//! A link: one identity's permanent endpoint on a transport, which outlives its connections.
//!
//! Owners send on the link. A message goes to the connection at once, without a mailbox in between; if there is no
//! connection, or it has no space, the message waits in the link. When the connection ends, for any reason, the link's
//! actor connects again, with exponential backoff, and sends the messages that waited in the meantime.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Supervised, WrapFuture, dev::ContextFut,
};
use btcr2_aggregation_protocol::identity::Identity;
use tokio::sync::Notify;

use super::{Connection, Delivery, Inbox, Outbound, Transport, Unsent};
use crate::{
    backoff::Backoff,
    span,
    supervision::{End, InTree, Lease, start_leased},
    tree::{self, Row},
};

const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(30) };

/// The number of messages that may wait for a connection; the oldest are dropped first.
const BACKLOG: usize = tree::LINK.mailbox;

/// One identity's endpoint on one transport. Clones share it; the connection ends when the last one is dropped.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
    /// Held by the owners, not by the link's actor: without its address it would not be restarted.
    _actor: Arc<(Addr<LinkActor>, Lease)>,
}

struct Shared {
    identity: Identity,
    state: Mutex<State>,
    /// There are messages in the backlog, or the owner is ready.
    changed: Notify,
}

struct State {
    connection: Option<Arc<dyn Connection>>,
    backlog: VecDeque<Outbound>,
    /// Whether a message of the backlog is being sent: later ones must not overtake it.
    flushing: bool,
    /// Whether it waits for [`Link::connect`].
    waits: bool,
    /// Whether it does not connect again.
    over: bool,
    /// How many attempts in a row have failed.
    failures: u32,
    /// Whether the last connection failed and may have lost messages.
    interrupted: bool,
}

impl Link {
    /// Starts a link of `identity` on `transport` that delivers to `inbox`, on the current arbiter.
    ///
    /// # Panics
    /// Outside of an actix `System`.
    pub fn start(transport: Arc<dyn Transport>, identity: Identity, inbox: Inbox) -> Self {
        Self::launch(transport, identity, inbox, false)
    }

    /// Starts a link that connects at [`Self::connect`]: its owner must be ready for messages first.
    pub(crate) fn waiting(transport: Arc<dyn Transport>, identity: Identity, inbox: Inbox) -> Self {
        Self::launch(transport, identity, inbox, true)
    }

    fn launch(transport: Arc<dyn Transport>, identity: Identity, inbox: Inbox, waits: bool) -> Self {
        let state = State {
            connection: None,
            backlog: VecDeque::new(),
            flushing: false,
            waits,
            over: false,
            failures: 0,
            interrupted: false,
        };
        let shared = Arc::new(Shared { identity, state: Mutex::new(state), changed: Notify::new() });
        let actor = LinkActor { shared: Arc::clone(&shared), transport, inbox };
        let started = start_leased(span::link(shared.identity.did()), |_, _| actor);
        Self { shared, _actor: Arc::new(started) }
    }

    /// The owner is ready: connect, unless that was done already.
    pub(crate) fn connect(&self) {
        self.shared.lock().waits = false;
        self.shared.changed.notify_one();
    }

    /// Sends a message, on this connection or, when that does not accept it, as soon as possible. If too many wait, the
    /// oldest is dropped.
    pub fn send(&self, outbound: Outbound) {
        let mut state = self.shared.lock();
        if state.over {
            return;
        }
        let mut outbound = outbound;
        if state.backlog.is_empty()
            && !state.flushing
            && let Some(connection) = &state.connection
        {
            match connection.try_send(outbound) {
                Ok(()) => {
                    // A connection that accepts a message works.
                    state.failures = 0;
                    return;
                }
                Err(unsent) => outbound = unsent.into_outbound(),
            }
        }
        if state.backlog.len() >= BACKLOG {
            state.backlog.pop_front();
            let did = self.shared.identity.did();
            tracing::warn!(%did, "too many messages wait for a connection, dropped one");
        }
        state.backlog.push_back(outbound);
        self.shared.changed.notify_one();
    }

    /// Whether it does not connect again: the owner of its inbox has ended, or the transport was shut down.
    pub(crate) fn is_over(&self) -> bool {
        self.shared.lock().over
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is no connection any more, and it may have lost messages.
    fn disconnected(&self) {
        let mut state = self.lock();
        (state.connection, state.flushing, state.interrupted) = (None, false, true);
    }

    /// The next message of the backlog, if there is one.
    fn next(&self) -> Option<Outbound> {
        let mut state = self.lock();
        let next = state.backlog.pop_front();
        state.flushing = next.is_some();
        next
    }

    /// Sends the messages of the backlog, now and whenever there are some.
    async fn flush(&self, connection: &dyn Connection) -> Infallible {
        loop {
            while let Some(outbound) = self.next() {
                let sent = match connection.try_send(outbound) {
                    Err(Unsent::Full(outbound)) => connection.send(outbound).await,
                    sent => sent,
                };
                if let Err(unsent) = sent {
                    // The next connection sends it.
                    self.lock().backlog.push_front(unsent.into_outbound());
                    return std::future::pending().await;
                }
            }
            self.changed.notified().await;
        }
    }

    /// Connects, again and again; returns when no connection is needed any more.
    async fn run(&self, transport: &dyn Transport, inbox: &Inbox) {
        while self.lock().waits {
            self.changed.notified().await;
        }
        let did = self.identity.did();
        loop {
            match transport.connect(&self.identity, inbox.clone()).await {
                Ok(connection) => {
                    let connection: Arc<dyn Connection> = Arc::from(connection);
                    let interrupted = {
                        let mut state = self.lock();
                        state.connection = Some(Arc::clone(&connection));
                        std::mem::take(&mut state.interrupted)
                    };
                    let report = async {
                        if interrupted {
                            // An owner that has ended needs no report.
                            let _ = inbox.deliver(Delivery::Interrupted { to: None }).await;
                        }
                        std::future::pending::<Infallible>().await
                    };
                    let end = tokio::select! {
                        // In this order: the messages of the backlog are older than the consequences of the report.
                        biased;
                        never = self.flush(&*connection) => match never {},
                        never = report => match never {},
                        end = connection.ended() => end,
                    };
                    self.disconnected();
                    if end == End::Finished || inbox.is_closed() {
                        return;
                    }
                    tracing::info!(%did, ?end, "connection ended, connecting again");
                }
                Err(error) => tracing::warn!(%did, %error, "cannot connect"),
            }
            let pause = {
                let mut state = self.lock();
                state.failures = state.failures.saturating_add(1);
                BACKOFF.delay(state.failures)
            };
            tokio::time::sleep(pause).await;
        }
    }
}

/// Connects the link again and again.
struct LinkActor {
    shared: Arc<Shared>,
    transport: Arc<dyn Transport>,
    inbox: Inbox,
}

impl Actor for LinkActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let (shared, transport, inbox) =
            (Arc::clone(&self.shared), Arc::clone(&self.transport), self.inbox.clone());
        let running = async move { shared.run(&*transport, &inbox).await };
        ctx.spawn(running.into_actor(self).map(|(), _, ctx| ctx.stop()));
    }
}

impl Drop for LinkActor {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.over = true;
        state.backlog.clear();
        state.connection = None;
    }
}

impl Supervised for LinkActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        // Waiting messages are sent by the next connection.
        self.shared.disconnected();
    }
}

impl InTree for LinkActor {
    const ROW: &'static Row = &tree::LINK;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use async_trait::async_trait;
    use btcr2_aggregation_protocol::{id::CohortId, key::SecretKey, network::Network};
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::{
        runtime::Randomness,
        transport::{ConnectError, connection},
    };

    fn owner() -> Identity {
        Identity::from_key(SecretKey::generate(&mut Randomness::System.for_actor("owner")), Network::Regtest)
    }

    fn withdraw(name: &str) -> Outbound {
        Outbound::WithdrawAdvert { cohort_id: CohortId::parse(name).unwrap() }
    }

    /// A transport whose connections end at the first message.
    struct Failing;

    #[async_trait]
    impl Transport for Failing {
        async fn connect(&self, _: &Identity, _: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
            Ok(connection::spawn(1, |mut messages| async move {
                messages.recv().await;
                End::Stopped
            }))
        }
    }

    #[test]
    fn a_failed_connection_is_reported_once_it_is_replaced() {
        actix_rt::System::new().block_on(async {
            let (inbox, mut deliveries) = Inbox::channel(8);
            let link = Link::start(Arc::new(Failing), owner(), inbox);
            link.send(withdraw("one"));
            let delivery = tokio::time::timeout(BACKOFF.longest, deliveries.recv()).await.unwrap().unwrap();
            assert!(matches!(delivery, Delivery::Interrupted { to: None }), "{delivery:?}");
        });
    }

    /// A transport whose connections have space for one message, and read when the test lets them.
    struct Narrow {
        reads: watch::Receiver<bool>,
        read: mpsc::UnboundedSender<String>,
    }

    #[async_trait]
    impl Transport for Narrow {
        async fn connect(&self, _: &Identity, _: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
            let (mut reads, read) = (self.reads.clone(), self.read.clone());
            Ok(connection::spawn(1, |mut messages| async move {
                while reads.wait_for(|reads| *reads).await.is_ok() {
                    let Some(Outbound::WithdrawAdvert { cohort_id }) = messages.recv().await else { break };
                    read.send(cohort_id.to_string()).unwrap();
                }
                End::Stopped
            }))
        }
    }

    #[test]
    fn messages_wait_in_order_when_the_connection_is_full() {
        actix_rt::System::new().block_on(async {
            let (open, reads) = watch::channel(false);
            let (read, mut arrived) = mpsc::unbounded_channel();
            let link = Link::start(Arc::new(Narrow { reads, read }), owner(), Inbox::channel(8).0);
            let names: Vec<_> = (0..50).map(|number| number.to_string()).collect();
            names[..25].iter().for_each(|name| link.send(withdraw(name)));
            tokio::task::yield_now().await;
            names[25..].iter().for_each(|name| link.send(withdraw(name)));
            open.send_replace(true);
            for name in &names {
                assert_eq!(arrived.recv().await.as_ref(), Some(name));
            }
        });
    }

    #[test]
    fn the_oldest_messages_are_dropped_when_too_many_wait() {
        actix_rt::System::new().block_on(async {
            let (open, reads) = watch::channel(false);
            let (read, mut arrived) = mpsc::unbounded_channel();
            let link = Link::waiting(Arc::new(Narrow { reads, read }), owner(), Inbox::channel(8).0);
            for number in 0..BACKLOG + 3 {
                link.send(withdraw(&number.to_string()));
            }
            assert_eq!(link.shared.lock().backlog.len(), BACKLOG);
            open.send_replace(true);
            link.connect();
            assert_eq!(arrived.recv().await.unwrap(), "3");
        });
    }

    #[test]
    fn a_link_ends_its_connection_when_it_is_dropped() {
        struct Watched(mpsc::UnboundedSender<()>);

        #[async_trait]
        impl Transport for Watched {
            async fn connect(&self, _: &Identity, _: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
                let alive = self.0.clone();
                alive.send(()).unwrap();
                Ok(connection::spawn(1, |_| async move {
                    let _alive = alive;
                    std::future::pending().await
                }))
            }
        }

        actix_rt::System::new().block_on(async {
            let (alive, mut connections) = mpsc::unbounded_channel();
            let link = Link::start(Arc::new(Watched(alive)), owner(), Inbox::channel(8).0);
            assert!(connections.recv().await.is_some());
            drop(link);
            assert!(connections.recv().await.is_none(), "the transport and its connection are dropped");
        });
    }
}
