//! A message as it arrived: with what its sender waits for, and what proves that it said so.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

use btcr2_aggregation_protocol::message::Message;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// A message from a sender that the transport has authenticated.
#[derive(Clone, Debug)]
pub struct Received {
    /// The message; its `from` is the sender.
    pub message: Message,
    /// What the sender waits for.
    pub receipt: Receipt,
    /// The signed form in which it came, for whoever has to be shown that it was said.
    pub evidence: Option<Evidence>,
}

impl From<Message> for Received {
    /// A message whose sender waits for nothing.
    fn from(message: Message) -> Self {
        Self { message, receipt: Receipt::default(), evidence: None }
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
