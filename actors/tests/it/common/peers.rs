//! Identities on a transport whose inboxes the test reads.

use std::{sync::Arc, time::Duration};

use btcr2_aggregation_actors::transport::{Delivery, Inbox, Outbound, Transport, link::Link};
use btcr2_aggregation_protocol::{
    did::Did,
    id::CohortId,
    identity::Identity,
    message::{
        Body, Message, SharedBody,
        keygen::CohortAdvert,
        update::{SubmitNonIncluded, SubmitUpdate},
    },
    time::Timestamp,
};
use serde_json::json;
use tokio::sync::mpsc;

/// The maximum time of an expected event on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for an expected event.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not in {PATIENCE:?}"))
}

/// Passes every delivery to the test: reports of carriers to `carried`.
async fn read(
    mut deliveries: mpsc::Receiver<Delivery>,
    received: mpsc::UnboundedSender<Delivery>,
    carried: mpsc::UnboundedSender<Delivery>,
) {
    while let Some(delivery) = deliveries.recv().await {
        if let Delivery::Message(received) | Delivery::Stored { message: received, .. } = &delivery {
            received.receipt.clone().confirm();
        }
        // Reports of carriers have their own channel; no test needs the notification that a connection was replaced.
        let _ = match &delivery {
            Delivery::Interrupted { .. } => Ok(()),
            Delivery::Delivered { .. } | Delivery::Delayed { .. } => carried.send(delivery),
            _ => received.send(delivery),
        };
    }
}

/// An identity with a link to a transport.
pub struct Peer {
    pub identity: Identity,
    pub link: Link,
    inbox: mpsc::UnboundedReceiver<Delivery>,
    carried: mpsc::UnboundedReceiver<Delivery>,
}

impl Peer {
    pub fn start(identity: Identity, transport: Arc<dyn Transport>) -> Self {
        let (sender, inbox) = mpsc::unbounded_channel();
        let (carriers, carried) = mpsc::unbounded_channel();
        let (deliver_to, deliveries) = Inbox::channel(16);
        actix_rt::spawn(read(deliveries, sender, carriers));
        let link = Link::start(transport, identity.clone(), deliver_to);
        Self { identity, link, inbox, carried }
    }

    pub fn did(&self) -> &Did {
        self.identity.did()
    }

    pub fn send(&self, to: &Did, body: impl Into<SharedBody>) {
        self.send_until(to, body, None);
    }

    pub fn send_until(&self, to: &Did, body: impl Into<SharedBody>, until: Option<Timestamp>) {
        self.link.send(Outbound::Direct { to: to.clone(), body: body.into(), until });
    }

    pub fn broadcast(&self, body: impl Into<SharedBody>) {
        self.link.send(Outbound::Broadcast { body: body.into() });
    }

    /// The next delivery.
    pub async fn next(&mut self) -> Delivery {
        soon("a delivery", self.inbox.recv()).await.expect("the inbox exists")
    }

    /// The next report of a carrier about our messages.
    pub async fn carried(&mut self) -> Delivery {
        soon("a carrier's report", self.carried.recv()).await.expect("the inbox exists")
    }

    /// The deliveries that the test has not read.
    pub fn rest(&mut self) -> Vec<Delivery> {
        std::iter::from_fn(|| self.inbox.try_recv().ok()).collect()
    }

    /// The next delivery, which is a message.
    pub async fn receive(&mut self) -> Message {
        match self.next().await {
            Delivery::Message(received) => received.message,
            other => panic!("a message expected: {other:?}"),
        }
    }

    /// The next delivery, which reports that a message of ours was not delivered: the recipient, the message and the
    /// reason.
    pub async fn undelivered(&mut self) -> (Did, SharedBody, String) {
        match self.next().await {
            Delivery::Undeliverable { to, body, reason } => (to, body, reason),
            other => panic!("an undeliverable message expected: {other:?}"),
        }
    }

    /// The next delivery, which reports an unverified message.
    pub async fn unverified(&mut self) -> String {
        match self.next().await {
            Delivery::Unverified { reason } => reason,
            other => panic!("an unverified message expected: {other:?}"),
        }
    }
}

/// A small message, identified by its name.
pub fn note(name: impl ToString) -> SharedBody {
    Body::from(SubmitNonIncluded { cohort_id: CohortId::parse(&name.to_string()).expect("a name") }).into()
}

/// A message of about this many bytes.
pub fn large(name: &str, bytes: usize) -> SharedBody {
    let signed_update = Arc::new(json!({ "filler": "x".repeat(bytes) }));
    Body::from(SubmitUpdate { cohort_id: CohortId::parse(name).expect("a name"), signed_update }).into()
}

/// An advert of the cohort with that name.
pub fn advert(service: &Identity, name: &str) -> SharedBody {
    let advert: CohortAdvert = serde_json::from_value(json!({
        "cohortId": name,
        "network": "regtest",
        "communicationPk": { "__bytes": service.public_key().to_string() },
        "beaconType": "CASBeacon",
        "minParticipants": 2,
        "recoveryKey": service.public_key().x_only().to_string(),
        "recoverySequence": 144,
    }))
    .expect("an advert");
    Body::from(advert).into()
}

pub fn name_of(message: &Message) -> String {
    message.body.cohort_id().as_str().to_owned()
}
