//! A message as it arrived: with what its sender waits for, and what proves that it said so.
//!
//! A sender that waits for the receipt says again what was not taken. Where nobody waits, [`hand_over`] does that.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix::{MailboxError, Recipient};
use btcr2_aggregation_protocol::message::Message;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tracing::Instrument;

use super::Delivery;
use crate::subject::NetworkAddress;

/// A message from a sender that the transport has authenticated.
#[derive(Clone, Debug)]
pub struct Received {
    /// The message; its `from` is the sender.
    pub message: Message,
    /// What the sender waits for.
    pub receipt: Receipt,
    /// The signed form in which it came, for whoever has to be shown that it was said.
    pub evidence: Option<Evidence>,
    /// Where the sender is, where the transport knows that.
    pub address: Option<NetworkAddress>,
}

impl From<Message> for Received {
    /// A message whose sender waits for nothing.
    fn from(message: Message) -> Self {
        Self { message, receipt: Receipt::default(), evidence: None, address: None }
    }
}

impl Deref for Received {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

/// What was signed by the sender of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// A signed HTTP envelope (wire format, section 5), as JSON.
    Envelope(Arc<str>),
    /// A Nostr event, as JSON. Its content may be encrypted to the service, which alone can show what it says.
    NostrEvent(Arc<str>),
}

impl Evidence {
    /// What was signed, with its signature: JSON.
    pub fn text(&self) -> &str {
        match self {
            Self::Envelope(text) | Self::NostrEvent(text) => text,
        }
    }
}

/// What the sender of a message waits for: that what follows from it is durable. Clones are the same receipt.
///
/// Dropped unconfirmed, by an actor that fails say, it tells the sender that nothing is promised.
#[derive(Clone, Default)]
pub struct Receipt(Option<Arc<Waiting>>);

struct Waiting(Mutex<Option<oneshot::Sender<()>>>);

impl Receipt {
    /// A receipt, and what is ready when it is confirmed, or dropped.
    pub fn new() -> (Self, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        (Self(Some(Arc::new(Waiting(Mutex::new(Some(sender)))))), receiver)
    }

    /// What the message brought about is durable, or it brought about nothing.
    pub fn confirm(self) {
        let waiting = self.0.as_ref().and_then(|waiting| {
            // Nothing panics while it holds the lock.
            waiting.0.lock().unwrap_or_else(PoisonError::into_inner).take()
        });
        if let Some(sender) = waiting {
            // It may have given up waiting.
            let _ = sender.send(());
        }
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Receipt" } else { "Receipt(nobody waits)" })
    }
}

/// How often a message is handed over again whose receipt was dropped: as often as an actor that panics is replaced.
const AGAIN: u32 = 5;

/// How long is waited before that, at first; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Hands `delivery` to `inbox`, for a transport whose sender waits for no receipt. What is returned is ready when there was
/// room for it, so that a connection that awaits it keeps the order.
///
/// A message whose receipt is dropped, because the actor that had it failed, is handed over again a few times; it then comes
/// behind what was said after it, which no machine minds. `over` is called when nothing more will be tried: the message is
/// confirmed, or given up, or it was none.
pub(crate) fn hand_over<F: FnOnce() + 'static>(
    inbox: &Recipient<Delivery>,
    delivery: Delivery,
    over: F,
) -> impl Future<Output = Result<(), MailboxError>> + use<F> {
    let Some((first, mut confirmed)) = with_receipt(&delivery) else {
        over();
        return inbox.send(delivery);
    };
    let sent = inbox.send(first);
    let inbox = inbox.clone();
    // Beside the connection, which goes on, and may end before.
    let trying = async move {
        let mut pause = FIRST_PAUSE;
        for _ in 0..AGAIN {
            if confirmed.await.is_ok() {
                return over();
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
            let Some((again, receipt)) = with_receipt(&delivery) else { return };
            if inbox.send(again).await.is_err() {
                // Whose inbox it was is gone. It is not over: a new one asks for it again, where that can be done.
                return;
            }
            confirmed = receipt;
        }
        if confirmed.await.is_err()
            && let Delivery::Message(Received { message, .. })
            | Delivery::Stored { message: Received { message, .. }, .. } = &delivery
        {
            // Not the message itself: what members send is no business of a log.
            let (from, kind) = (&message.from, message.body.short_type());
            tracing::warn!(%from, kind, "a message was handed over several times and never taken, it is lost");
        }
        over();
    };
    actix_rt::spawn(trying.in_current_span());
    sent
}

/// The same message with a receipt of its own; `None` when it is no message, or somebody waits for its receipt already.
fn with_receipt(delivery: &Delivery) -> Option<(Delivery, oneshot::Receiver<()>)> {
    let mut delivery = delivery.clone();
    let (Delivery::Message(received) | Delivery::Stored { message: received, .. }) = &mut delivery else {
        return None;
    };
    if received.receipt.0.is_some() {
        return None;
    }
    let (receipt, confirmed) = Receipt::new();
    received.receipt = receipt;
    Some((delivery, confirmed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_receipt_says_whether_it_was_confirmed_or_lost() {
        let (receipt, confirmed) = Receipt::new();
        let copy = receipt.clone();
        receipt.confirm();
        assert!(confirmed.await.is_ok());
        copy.confirm();

        let (receipt, confirmed) = Receipt::new();
        drop(receipt.clone());
        drop(receipt);
        assert!(confirmed.await.is_err());
    }
}
