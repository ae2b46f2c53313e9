//! A transport that keeps what is sent, and loses what a test wants.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use btcr2_aggregation_actors::{
    supervision::End,
    transport::{ConnectError, Connection, Delivery, Inbox, Outbound, Transport, Unsent},
};
use btcr2_aggregation_protocol::{
    did::Did,
    identity::Identity,
    message::{Body, Message},
};

type Passes = dyn FnMut(&Body) -> bool + Send;

/// Clones are the same filter.
#[derive(Clone)]
pub(super) struct Filter {
    inner: Arc<dyn Transport>,
    sends: Arc<Mutex<Box<Passes>>>,
    reads: Arc<Mutex<Box<Passes>>>,
    sent: Arc<Mutex<Vec<Message>>>,
}

impl Filter {
    /// Messages of which `sends` is false are lost on their way out; those of which `reads` is false are never read.
    pub(super) fn new(
        inner: Arc<dyn Transport>,
        sends: impl FnMut(&Body) -> bool + Send + 'static,
        reads: impl FnMut(&Body) -> bool + Send + 'static,
    ) -> Self {
        let (sends, reads): (Box<Passes>, Box<Passes>) = (Box::new(sends), Box::new(reads));
        Self { inner, sends: Arc::new(Mutex::new(sends)), reads: Arc::new(Mutex::new(reads)), sent: Arc::default() }
    }

    /// What was sent, lost or not, in order.
    pub(super) fn sent(&self) -> Vec<Message> {
        self.sent.lock().unwrap().clone()
    }

    /// How many messages of a type were sent.
    pub(super) fn count(&self, kind: &str) -> usize {
        self.sent().iter().filter(|message| message.body.short_type() == kind).count()
    }
}

/// Whether a message is other than the first `lost` of its type.
pub(super) fn losing_first(kind: &'static str, mut lost: usize) -> impl FnMut(&Body) -> bool + Send {
    move |body| {
        if body.short_type() != kind || lost == 0 {
            return true;
        }
        lost -= 1;
        false
    }
}

#[async_trait]
impl Transport for Filter {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        let reads = Arc::clone(&self.reads);
        let filtered = inbox.map(move |delivery| match &delivery {
            Delivery::Message(received) if !(reads.lock().unwrap())(&received.message.body) => {
                received.receipt.clone().confirm();
                Delivery::Unverified { reason: "lost, as this test wants".to_owned() }
            }
            _ => delivery,
        });
        let onward = self.inner.connect(identity, filtered).await?;
        Ok(Box::new(Filtered { by: identity.did().clone(), filter: self.clone(), onward }))
    }
}

struct Filtered {
    by: Did,
    filter: Filter,
    onward: Box<dyn Connection>,
}

#[async_trait]
impl Connection for Filtered {
    fn try_send(&self, outbound: Outbound) -> Result<(), Unsent> {
        let (to, body) = match &outbound {
            Outbound::Direct { to, body, .. } => (Some(to.clone()), body),
            Outbound::Broadcast { body } => (None, body),
            _ => return self.onward.try_send(outbound),
        };
        self.filter.sent.lock().unwrap().push(Message::new(self.by.clone(), to, body.clone()));
        if (self.filter.sends.lock().unwrap())(body) { self.onward.try_send(outbound) } else { Ok(()) }
    }

    async fn ended(&self) -> End {
        self.onward.ended().await
    }
}
