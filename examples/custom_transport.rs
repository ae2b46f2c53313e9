//! A custom transport: a bus on which every connection receives all messages, and any connection may send any message.
//!
//! A bus does not authenticate senders, so each message travels in a signed envelope. This is the one duty of a
//! transport: the `from` of a delivered message is its sender. The machines handle reordering, repeats and losses.
//!
//! `cargo run --release --example custom_transport`

#[path = "support/mod.rs"]
mod support;

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use btcr2_aggregation::{
    actors::{
        runtime::Clock,
        supervision::End,
        transport::{ConnectError, Connection, Delivery, Inbox, Outbound, Transport, connection},
    },
    protocol::{
        did::Did,
        envelope::{Expected, ParsedEnvelope, SealedEnvelope},
        identity::Identity,
        message::Message,
    },
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use tokio::sync::{
    broadcast::{Sender, error::RecvError},
    mpsc::Receiver,
};

/// The bus. Clones share it.
#[derive(Clone)]
struct Bus {
    wire: Sender<Arc<str>>,
    clock: Clock,
}

#[async_trait]
impl Transport for Bus {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        let stop = Stop { identity: identity.clone(), bus: self.clone(), seen: BTreeSet::new() };
        Ok(connection::spawn(64, |outbox| stop.run(outbox, inbox)))
    }
}

/// One identity on the bus.
struct Stop {
    identity: Identity,
    bus: Bus,
    /// The envelopes that were received: an outsider that receives one can send it again. A real transport drops old
    /// entries.
    seen: BTreeSet<(Did, [u8; 16])>,
}

impl Stop {
    async fn run(mut self, mut outbox: Receiver<Outbound>, inbox: Inbox) -> End {
        let mut wire = self.bus.wire.subscribe();
        loop {
            tokio::select! {
                text = wire.recv() => match text {
                    Ok(text) => if let Some(message) = self.open(&text)
                        && inbox.deliver(Delivery::Message(message.into())).await.is_err()
                    {
                        break;
                    },
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => break,
                },
                Some(outbound) = outbox.recv() => if let Some(text) = self.seal(outbound) {
                    // Without a receiver on the bus there is no peer to notify.
                    let _ = self.bus.wire.send(text);
                },
            }
        }
        // The link connects again, if the owner of the inbox still needs it.
        End::Stopped
    }

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

    fn seal(&self, outbound: Outbound) -> Option<Arc<str>> {
        let (to, body) = match outbound {
            Outbound::Direct { to, body, .. } => (Some(to), body),
            Outbound::Broadcast { body } => (None, body),
            // For transports that store adverts for later participants.
            Outbound::WithdrawAdvert { .. } => return None,
        };
        let message = Message::new(self.identity.did().clone(), to, body);
        let (key, now) = (self.identity.secret_key(), self.bus.clock.now());
        let envelope = SealedEnvelope::seal_with_rng(&message, key, now, &mut ChaCha20Rng::from_os_rng());
        envelope.ok().map(|envelope| envelope.to_json().into())
    }
}

#[actix_rt::main]
async fn main() -> support::Outcome<()> {
    let bus = Arc::new(Bus { wire: Sender::new(1024), clock: Clock::system() });
    let tap = bus.wire.subscribe();
    let mut cohort = support::Cohort::of(3);
    (cohort.server, cohort.client) = (bus.clone(), bus);
    let result = cohort.start().await?.round().await?;
    println!("signed over the bus: {}", result.signed.transaction.compute_txid());
    println!("a service and 3 members wrote {} signed envelopes on it", tap.len());
    Ok(())
}
