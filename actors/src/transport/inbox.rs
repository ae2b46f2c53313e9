//! The receiving end of a connection: where a transport delivers what arrives for an identity.

use std::{fmt, sync::Arc, time::Duration};

use actix::{Actor, AsyncContext, Context, Recipient, prelude::SendError};
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use super::{Delivery, Receipt, Received};

/// An identity's inbox. It has a bound: a connection that delivers faster than the owner reads waits. Clones share it.
#[derive(Clone)]
pub struct Inbox(Arc<dyn Sink>);

/// The owner of the inbox has ended: its connections are not needed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the owner of the inbox has ended")]
pub struct InboxClosed;

/// Why a delivery is not in the inbox.
#[derive(Debug)]
pub(crate) enum Undelivered {
    /// There is no space.
    Full(Delivery),
    /// The owner has ended.
    Closed,
}

/// Where the deliveries go.
trait Sink: Send + Sync {
    /// Accepts a delivery if there is space.
    fn try_send(&self, delivery: Delivery) -> Result<(), Undelivered>;

    /// Accepts a delivery when there is space.
    fn send(&self, delivery: Delivery) -> BoxFuture<'static, Result<(), InboxClosed>>;

    fn is_closed(&self) -> bool;
}

/// How often the delivery of a message is repeated whose receipt was dropped: as often as an actor that panics is
/// restarted.
const AGAIN: u32 = 5;

/// The first pause before a repetition; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

impl Inbox {
    /// An inbox of at most `capacity` deliveries, and the end at which its owner reads them. The owner confirms the
    /// [`Receipt`] of each message.
    ///
    /// # Panics
    /// When `capacity` is 0.
    pub fn channel(capacity: usize) -> (Self, mpsc::Receiver<Delivery>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (Self(Arc::new(sender)), receiver)
    }

    /// The mailbox of an actor.
    pub(crate) fn of(owner: Recipient<Delivery>) -> Self {
        Self(Arc::new(owner))
    }

    /// This inbox behind `change`, through which every delivery passes first: for a transport around another one. A
    /// delivery for which there was no space passes again.
    #[must_use]
    pub fn map(self, change: impl Fn(Delivery) -> Delivery + Send + Sync + 'static) -> Self {
        Self(Arc::new(Mapped { inner: self, change }))
    }

    /// Delivers, as soon as there is space. A connection that awaits this preserves the order.
    ///
    /// If nothing waits for the receipt of a message, and it is dropped because the actor that had it failed, the
    /// delivery is repeated a few times.
    ///
    /// # Errors
    /// [`InboxClosed`]: the connection should end.
    pub async fn deliver(&self, delivery: Delivery) -> Result<(), InboxClosed> {
        self.deliver_then(delivery, || ()).await
    }

    /// Whether the owner has ended.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Delivers if there is space now.
    pub(crate) fn try_deliver(&self, delivery: Delivery) -> Result<(), Undelivered> {
        self.0.try_send(delivery)
    }

    /// Delivers a report about our own messages. If there is no space, `A` does nothing else until there is: the owner
    /// of an inbox never waits for a connection, so this ends.
    pub(crate) fn report<A: Actor<Context = Context<A>>>(&self, delivery: Delivery, ctx: &mut Context<A>) {
        if let Err(Undelivered::Full(delivery)) = self.try_deliver(delivery) {
            let delivered = self.0.send(delivery);
            // An owner that has ended needs no report.
            ctx.wait(actix::fut::wrap_future::<_, A>(delivered.map(drop)));
        }
    }

    /// Like [`Self::deliver`]. `over` is called when nothing more will be attempted: the message is confirmed, or given
    /// up, or it is not a message. If a delivery is repeated, the message arrives after later ones, which every machine
    /// accepts.
    pub(crate) fn deliver_then(
        &self,
        delivery: Delivery,
        over: impl FnOnce() + Send + 'static,
    ) -> BoxFuture<'static, Result<(), InboxClosed>> {
        let Some((first, mut confirmed)) = with_receipt(&delivery) else {
            over();
            return self.0.send(delivery);
        };
        let sent = self.0.send(first);
        let inbox = self.clone();
        // Separate from the connection, which continues, and may end earlier.
        let trying = async move {
            let mut pause = FIRST_PAUSE;
            for _ in 0..AGAIN {
                if confirmed.await.is_ok() {
                    return over();
                }
                tokio::time::sleep(pause).await;
                pause *= 2;
                let Some((again, receipt)) = with_receipt(&delivery) else { return };
                if inbox.0.send(again).await.is_err() {
                    // The owner of the inbox has ended. The delivery is not over: a new owner requests it again, if the
                    // transport can repeat it.
                    return;
                }
                confirmed = receipt;
            }
            if confirmed.await.is_err()
                && let Delivery::Message(Received { message, .. })
                | Delivery::Stored { message: Received { message, .. }, .. } = &delivery
            {
                // Not the message itself: messages of members do not belong in a log.
                let (from, kind) = (&message.from, message.body.short_type());
                tracing::warn!(%from, kind, "a message was delivered several times and never accepted, and was dropped");
            }
            over();
        };
        tokio::spawn(trying.in_current_span());
        sent
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_closed() { "Inbox(closed)" } else { "Inbox" })
    }
}

/// The same message with a new receipt; `None` if it is not a message, or its sender waits for its receipt already.
fn with_receipt(delivery: &Delivery) -> Option<(Delivery, oneshot::Receiver<()>)> {
    let mut delivery = delivery.clone();
    let (Delivery::Message(received) | Delivery::Stored { message: received, .. }) = &mut delivery else {
        return None;
    };
    if received.receipt.is_awaited() {
        return None;
    }
    let (receipt, confirmed) = Receipt::new();
    received.receipt = receipt;
    Some((delivery, confirmed))
}

impl Sink for Recipient<Delivery> {
    fn try_send(&self, delivery: Delivery) -> Result<(), Undelivered> {
        Self::try_send(self, delivery).map_err(|error| match error {
            SendError::Full(delivery) => Undelivered::Full(delivery),
            SendError::Closed(_) => Undelivered::Closed,
        })
    }

    fn send(&self, delivery: Delivery) -> BoxFuture<'static, Result<(), InboxClosed>> {
        // Ready when the actor has processed it: a mailbox has space for one message of each sender that waits.
        Self::send(self, delivery).map(|sent| sent.map_err(|_| InboxClosed)).boxed()
    }

    fn is_closed(&self) -> bool {
        !self.connected()
    }
}

impl Sink for mpsc::Sender<Delivery> {
    fn try_send(&self, delivery: Delivery) -> Result<(), Undelivered> {
        Self::try_send(self, delivery).map_err(|error| match error {
            mpsc::error::TrySendError::Full(delivery) => Undelivered::Full(delivery),
            mpsc::error::TrySendError::Closed(_) => Undelivered::Closed,
        })
    }

    fn send(&self, delivery: Delivery) -> BoxFuture<'static, Result<(), InboxClosed>> {
        let sender = self.clone();
        async move { Self::send(&sender, delivery).await.map_err(|_| InboxClosed) }.boxed()
    }

    fn is_closed(&self) -> bool {
        Self::is_closed(self)
    }
}

struct Mapped<F> {
    inner: Inbox,
    change: F,
}

impl<F: Fn(Delivery) -> Delivery + Send + Sync> Sink for Mapped<F> {
    fn try_send(&self, delivery: Delivery) -> Result<(), Undelivered> {
        self.inner.0.try_send((self.change)(delivery))
    }

    fn send(&self, delivery: Delivery) -> BoxFuture<'static, Result<(), InboxClosed>> {
        self.inner.0.send((self.change)(delivery))
    }

    fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }
}
