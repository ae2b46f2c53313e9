//! A transport of one's own: a bus on which everybody hears everybody, and anybody may write anything.
//!
//! Nobody vouches for a sender on a bus, so each message travels in a signed envelope. That is the one duty of a transport:
//! the `from` of what it delivers is the one who said it. Order, repeats and losses it may leave to the machines.
//!
//! `cargo run --release --example custom_transport`

#[path = "support/mod.rs"]
mod support;

use std::{collections::BTreeSet, error::Error, sync::Arc};

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, Recipient, StreamHandler};
use async_trait::async_trait;
use btcr2_aggregation::{
    actors::{
        runtime::Clock,
        supervisor::EndGuard,
        transport::{ConnectError, Delivery, Disconnected, Outbound, Transport},
    },
    protocol::{
        did::Did,
        envelope::{Expected, ParsedEnvelope, SealedEnvelope},
        identity::Identity,
        message::Message,
    },
};
use futures::{Stream, stream};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use tokio::sync::broadcast::{Receiver, Sender, error::RecvError};

/// The bus. Clones are the same bus.
#[derive(Clone)]
struct Bus {
    wire: Sender<Arc<str>>,
    clock: Clock,
}

#[async_trait]
impl Transport for Bus {
    async fn connect(
        &self,
        identity: &Identity,
        inbox: Recipient<Delivery>,
        keeper: Recipient<Disconnected>,
        connection: u64,
    ) -> Result<Recipient<Outbound>, ConnectError> {
        let connection = Connection {
            identity: identity.clone(),
            bus: self.clone(),
            inbox,
            seen: BTreeSet::new(),
            rng: ChaCha20Rng::from_os_rng(),
            // Tells however this ends, a panic included; a link then connects again.
            _guard: EndGuard::new(move |end| keeper.do_send(Disconnected { connection, end })),
        };
        Ok(connection.start().recipient())
    }
}

/// One identity on the bus.
struct Connection {
    identity: Identity,
    bus: Bus,
    inbox: Recipient<Delivery>,
    /// Envelopes that came before: whoever hears one can write it again. A real transport forgets those that are too old.
    seen: BTreeSet<(Did, [u8; 16])>,
    rng: ChaCha20Rng,
    _guard: EndGuard,
}

impl Connection {
    /// What an envelope says to us, if it says something and its sender is who it says.
    fn open(&mut self, text: &str) -> Option<Message> {
        let envelope = ParsedEnvelope::parse(text).ok()?;
        let me = self.identity.did();
        if envelope.from() == me.as_str() || envelope.to().is_some_and(|to| to != me.as_str()) {
            return None;
        }
        // The key of a KEY DID is in it; one of an EXTERNAL DID would have to be learnt from its genesis document.
        let from = Did::parse(envelope.from()).ok()?;
        let verified = envelope.verify(&from.key()?.x_only(), self.bus.clock.now(), &Expected::default()).ok()?;
        let message = envelope.message().ok().filter(|message| message.from == from)?;
        self.seen.insert((from, verified.nonce)).then_some(message)
    }
}

impl Actor for Connection {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.add_stream(heard(self.bus.wire.subscribe()));
    }
}

/// What is written on the bus from now on.
fn heard(bus: Receiver<Arc<str>>) -> impl Stream<Item = Arc<str>> {
    stream::unfold(bus, async |mut bus| {
        loop {
            match bus.recv().await {
                Ok(text) => return Some((text, bus)),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    })
}

impl StreamHandler<Arc<str>> for Connection {
    fn handle(&mut self, text: Arc<str>, _: &mut Self::Context) {
        if let Some(message) = self.open(&text) {
            self.inbox.do_send(Delivery::Message(message.into()));
        }
    }
}

impl Handler<Outbound> for Connection {
    type Result = ();

    fn handle(&mut self, outbound: Outbound, ctx: &mut Self::Context) {
        let (to, body) = match outbound {
            Outbound::Direct { to, body, .. } => (Some(to), body),
            Outbound::Broadcast { body } => (None, body),
            // For transports that keep adverts for those who come later.
            Outbound::WithdrawAdvert { .. } => return,
        };
        let message = Message::new(self.identity.did().clone(), to, body);
        let now = self.bus.clock.now();
        match SealedEnvelope::seal_with_rng(&message, self.identity.secret_key(), now, &mut self.rng) {
            // Without anybody on the bus there is nobody to tell.
            Ok(envelope) => drop(self.bus.wire.send(envelope.to_json().into())),
            Err(_) => ctx.stop(),
        }
    }
}

#[actix_rt::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let bus = Arc::new(Bus { wire: Sender::new(1024), clock: Clock::system() });
    let tap = bus.wire.subscribe();
    let mut cohort = support::Cohort::of(3);
    (cohort.server, cohort.client) = (bus.clone(), bus);
    let result = cohort.start().await?.round().await?;
    println!("signed over the bus: {}", result.signed.transaction.compute_txid());
    println!("a service and 3 members wrote {} signed envelopes on it", tap.len());
    Ok(())
}
