//! A transport on which one listens, and on which some messages get lost.

use std::sync::{Arc, Mutex};

use actix::{Actor, Context, Handler, Recipient};
use async_trait::async_trait;
use btcr2_aggregation_actors::transport::{ConnectError, Delivery, Disconnected, Outbound, Transport};
use btcr2_aggregation_protocol::{identity::Identity, message::Body};

type Passes = fn(&Body) -> bool;

/// Connections of one identity on a network, tapped.
#[derive(Clone)]
pub struct Tap {
    network: Arc<dyn Transport>,
    passes: Passes,
    said: Arc<Mutex<Vec<&'static str>>>,
}

impl Tap {
    /// A tap that only listens.
    pub fn listening(network: &(impl Transport + Clone + 'static)) -> Self {
        Self::losing(network, |_| true)
    }

    /// A tap that lets through only what `passes`.
    pub fn losing(network: &(impl Transport + Clone + 'static), passes: Passes) -> Self {
        Self { network: Arc::new(network.clone()), passes, said: Arc::default() }
    }

    /// The types of the messages that were sent here, lost ones included, in order.
    pub fn said(&self) -> Vec<&'static str> {
        self.said.lock().expect("nobody panics with the lock").clone()
    }
}

/// What is left of a member that goes silent after the nonces.
pub fn no_signatures(body: &Body) -> bool {
    !matches!(body, Body::SignatureAuthorization(_) | Body::FallbackSignature(_))
}

#[async_trait]
impl Transport for Tap {
    async fn connect(
        &self,
        identity: &Identity,
        inbox: Recipient<Delivery>,
        keeper: Recipient<Disconnected>,
        connection: u64,
    ) -> Result<Recipient<Outbound>, ConnectError> {
        let onward = self.network.connect(identity, inbox, keeper, connection).await?;
        Ok(Tapped { tap: self.clone(), onward }.start().recipient())
    }
}

struct Tapped {
    tap: Tap,
    onward: Recipient<Outbound>,
}

impl Actor for Tapped {
    type Context = Context<Self>;
}

impl Handler<Outbound> for Tapped {
    type Result = ();

    fn handle(&mut self, outbound: Outbound, _: &mut Self::Context) {
        let (Outbound::Direct { body, .. } | Outbound::Broadcast { body }) = &outbound else {
            return self.onward.do_send(outbound);
        };
        self.tap.said.lock().expect("nobody panics with the lock").push(body.short_type());
        if (self.tap.passes)(body) {
            self.onward.do_send(outbound);
        }
    }
}
