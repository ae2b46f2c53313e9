//! A received message: with the receipt that its sender waits for, and the evidence that it was sent.
//!
//! A sender that waits for the receipt repeats a message that was not accepted. If no sender waits,
//! [`Inbox::deliver`](super::Inbox::deliver) does that.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

use btcr2_aggregation_protocol::message::Message;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

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

    /// Whether a sender waits for it.
    pub(super) fn is_awaited(&self) -> bool {
        self.0.is_some()
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
