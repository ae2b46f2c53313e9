//! A transport that records messages, and drops some of them.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use btcr2_aggregation_actors::{
    supervision::End,
    transport::{ConnectError, Connection, Inbox, Outbound, Transport, Unsent},
};
use btcr2_aggregation_protocol::{identity::Identity, message::Body};

type Passes = fn(&Body) -> bool;

/// Connections of one identity on a network, with a tap.
#[derive(Clone)]
pub struct Tap {
    network: Arc<dyn Transport>,
    passes: Passes,
    sent: Arc<Mutex<Vec<&'static str>>>,
}

impl Tap {
    /// A tap that drops nothing.
    pub fn listening(network: &(impl Transport + Clone + 'static)) -> Self {
        Self::losing(network, |_| true)
    }

    /// A tap that passes only messages for which `passes` is true.
    pub fn losing(network: &(impl Transport + Clone + 'static), passes: Passes) -> Self {
        Self { network: Arc::new(network.clone()), passes, sent: Arc::default() }
    }

    /// The types of the messages that were sent here, dropped ones included, in order.
    pub fn sent(&self) -> Vec<&'static str> {
        self.sent.lock().expect("no code panics with the lock").clone()
    }
}

/// The messages of a member that goes silent after the nonces.
pub fn no_signatures(body: &Body) -> bool {
    !matches!(body, Body::SignatureAuthorization(_) | Body::FallbackSignature(_))
}

#[async_trait]
impl Transport for Tap {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        let onward = self.network.connect(identity, inbox).await?;
        Ok(Box::new(Tapped { tap: self.clone(), onward }))
    }
}

struct Tapped {
    tap: Tap,
    onward: Box<dyn Connection>,
}

#[async_trait]
impl Connection for Tapped {
    fn try_send(&self, outbound: Outbound) -> Result<(), Unsent> {
        let (Outbound::Direct { body, .. } | Outbound::Broadcast { body }) = &outbound else {
            return self.onward.try_send(outbound);
        };
        self.tap.sent.lock().expect("no code panics with the lock").push(body.short_type());
        if (self.tap.passes)(body) { self.onward.try_send(outbound) } else { Ok(()) }
    }

    async fn ended(&self) -> End {
        self.onward.ended().await
    }
}
