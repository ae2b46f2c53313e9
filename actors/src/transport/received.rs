//! A received message: with the receipt that its sender waits for, and the evidence that it was sent.
//!
//! A sender that waits for the receipt repeats a message that was not accepted. If no sender waits, [`deliver`] does
//! that.

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
    /// The signed form in which it arrived, to prove to other parties that it was sent.
    pub evidence: Option<Evidence>,
    /// The sender's address, if the transport knows it.
    pub address: Option<NetworkAddress>,
}

impl From<Message> for Received {
    /// A message whose sender does not wait.
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

/// What the sender of a message signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// A signed HTTP envelope (wire format, section 5), as JSON.
    Envelope(Arc<str>),
    /// A Nostr event, as JSON. Its content may be encrypted to the service, which alone can decrypt it.
    NostrEvent(Arc<str>),
}

impl Evidence {
    /// The signed data, with its signature: JSON.
    pub fn text(&self) -> &str {
        match self {
            Self::Envelope(text) | Self::NostrEvent(text) => text,
        }
    }
}

/// The receipt for which the sender of a message waits: it is confirmed when everything that the message caused is
/// durable. Clones share it.
///
/// Dropping it unconfirmed, e.g. because an actor failed, notifies the sender that nothing is promised.
#[derive(Clone, Default)]
pub struct Receipt(Option<Arc<Waiting>>);

struct Waiting(Mutex<Option<oneshot::Sender<()>>>);

impl Receipt {
    /// A receipt, and a channel that is ready when it is confirmed or dropped.
    pub fn new() -> (Self, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        (Self(Some(Arc::new(Waiting(Mutex::new(Some(sender)))))), receiver)
    }

    /// Everything that the message caused is durable, or it caused nothing.
    pub fn confirm(self) {
        let waiting = self.0.as_ref().and_then(|waiting| {
            // No code panics while it holds the lock.
            waiting.0.lock().unwrap_or_else(PoisonError::into_inner).take()
        });
        if let Some(sender) = waiting {
            // The sender may have stopped waiting.
            let _ = sender.send(());
        }
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Receipt" } else { "Receipt(no sender waits)" })
    }
}

/// How often the delivery of a message is repeated whose receipt was dropped: as often as an actor that panics is
/// restarted.
const AGAIN: u32 = 5;

/// The first pause before a repetition; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Delivers `delivery` to `inbox`, for a transport whose sender does not wait for a receipt. The returned future is
/// ready when there was space for it, so that a connection that awaits it preserves the order.
///
/// If the receipt of a message is dropped, because the actor that had it failed, the delivery is repeated a few times;
/// the message then arrives after later ones, which every machine accepts. `over` is called when nothing more will be
/// attempted: the message is confirmed, or given up, or it is not a message.
pub(crate) fn deliver<F: FnOnce() + 'static>(
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
            if inbox.send(again).await.is_err() {
                // The owner of the inbox is gone. The delivery is not over: a new owner requests it again, if the
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
    actix_rt::spawn(trying.in_current_span());
    sent
}

/// The same message with a new receipt; `None` if it is not a message, or its sender waits for its receipt already.
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
    async fn a_receipt_reports_whether_it_was_confirmed_or_lost() {
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
