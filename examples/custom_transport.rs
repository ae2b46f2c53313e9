//! A custom transport: a bus on which every connection receives all messages, and any connection may send any message.
//!
//! A bus does not authenticate senders, so each message travels in a signed envelope. This is the one duty of a
//! transport: the `from` of a delivered message is its sender. The machines handle reordering, repeats and losses.
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

/// The bus. Clones share it.
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
            // Reports the end in any case, including a panic; the link then connects again.
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
    /// The envelopes that were received: an outsider that receives one can send it again. A real transport drops old
    /// entries.
    seen: BTreeSet<(Did, [u8; 16])>,
    rng: ChaCha20Rng,
    _guard: EndGuard,
}

impl Connection {
    /// The message of an envelope for this identity, if its sender is authentic.
    fn open(&mut self, text: &str) -> Option<Message> {
        let envelope = ParsedEnvelope::parse(text).ok()?;
        let me = self.identity.did();
        if envelope.from() == me.as_str() || envelope.to().is_some_and(|to| to != me.as_str()) {
            return None;
        }
        // A KEY DID contains its key; the key of an EXTERNAL DID would have to come from its genesis document.
        let from = Did::parse(envelope.from()).ok()?;
        let verified = envelope.verify(&from.key()?.x_only(), self.bus.clock.now(), &Expected::default()).ok()?;
        let message = envelope.message().ok().filter(|message| message.from == from)?;
        self.seen.insert((from, verified.nonce)).then_some(message)
    }
}

impl Actor for Connection {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.add_stream(received(self.bus.wire.subscribe()));
    }
}

/// The messages on the bus from now on.
fn received(bus: Receiver<Arc<str>>) -> impl Stream<Item = Arc<str>> {
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
            // For transports that store adverts for later participants.
            Outbound::WithdrawAdvert { .. } => return,
        };
        let message = Message::new(self.identity.did().clone(), to, body);
        let now = self.bus.clock.now();
        match SealedEnvelope::seal_with_rng(&message, self.identity.secret_key(), now, &mut self.rng) {
            // Without a receiver on the bus there is no peer to notify.
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
