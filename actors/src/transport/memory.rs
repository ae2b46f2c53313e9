//! Connections within one process. Every message is serialized to text and parsed again, as on any other transport.
//!
//! A message is stored until its recipient has made it durable: as with HTTP, a recipient that restarts receives the
//! messages that it missed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message as ActixMessage, Supervised,
    WrapFuture, dev::ContextFut, prelude::SendError,
};
use async_trait::async_trait;
use btcr2_aggregation_protocol::{
    did::Did,
    identity::Identity,
    message::{DecodeError, Message},
};

use super::{
    ConnectError, Connection, Delivery, Inbox, Outbound, Transport,
    connection::{ActorConnection, Ended},
};
use crate::{
    span,
    supervision::{EndGuard, InTree, start},
    tree::{self, Row},
};

/// The maximum number of messages that wait at one connection in either direction. A peer that is this far behind loses
/// further messages, as on a network; no other peer waits for it.
const QUEUE: usize = tree::MEMORY_CONNECTION.mailbox;

/// A network in memory. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryTransport(Arc<Mutex<BTreeMap<Did, Peer>>>);

/// An identity that is or was connected.
#[derive(Default)]
struct Peer {
    connection: Option<Addr<MemoryConnection>>,
    /// The messages to it that are not confirmed yet, by number: the next connection receives them again.
    pending: BTreeMap<u64, Wire>,
    last: u64,
}

impl Peer {
    fn deliver(&mut self, to: &Did, from: &Did, text: Arc<str>) {
        if self.pending.len() >= QUEUE {
            self.pending.pop_first();
            tracing::warn!(%from, %to, "the recipient is disconnected or behind for too long, dropped a message");
        }
        self.last += 1;
        let wire = Wire { number: self.last, from: from.clone(), text };
        let sent = self.connection.as_ref().map(|connection| connection.try_send(wire.clone()));
        if let Some(Err(SendError::Full(_))) = sent {
            return tracing::warn!(%from, %to, "the recipient is too far behind, dropped a message");
        }
        self.pending.insert(wire.number, wire);
    }
}

impl MemoryTransport {
    /// A network without identities.
    pub fn new() -> Self {
        Self::default()
    }

    /// Breaks the connection of `did`, as a network would. For tests of the consequences.
    pub fn sever(&self, did: &Did) {
        // All peers see that at once: later messages wait for the next connection.
        if let Some(connection) = self.peers().get_mut(did).and_then(|peer| peer.connection.take()) {
            // If this fails, the connection has ended, or has too much to do; a network would not break it either.
            let _ = connection.try_send(Sever);
        }
    }

    /// Delivers `text` to the connection of `to` as a message of `from`, whatever it contains. For tests of messages
    /// that our own connections never send.
    pub fn inject(&self, from: &Did, to: &Did, text: &str) {
        if let Some(peer) = self.peers().get_mut(to) {
            peer.deliver(to, from, text.into());
        }
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<Did, Peer>> {
        // No code panics while it holds the lock, and the map is valid at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Transport for MemoryTransport {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        let did = identity.did().clone();
        let (guard, ended) = Ended::guard();
        let actor = MemoryConnection { did: did.clone(), network: self.clone(), inbox, _guard: guard };
        let address = start(span::connection("memory", identity.did()), |_| actor);
        let mut peers = self.peers();
        let peer = peers.entry(did).or_default();
        for wire in peer.pending.values() {
            // There is space: the mailbox is empty, and as large as the queue.
            let _ = address.try_send(wire.clone());
        }
        peer.connection = Some(address.clone());
        Ok(ActorConnection::boxed(address.recipient(), ended))
    }
}

/// The connection of one identity.
struct MemoryConnection {
    did: Did,
    network: MemoryTransport,
    inbox: Inbox,
    _guard: EndGuard,
}

impl Actor for MemoryConnection {
    type Context = Context<Self>;
}

impl Supervised for MemoryConnection {}

impl InTree for MemoryConnection {
    const ROW: &'static Row = &tree::MEMORY_CONNECTION;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

/// A message on the network: its text, and its authenticated sender.
#[derive(Clone, ActixMessage)]
#[rtype(result = "()")]
struct Wire {
    number: u64,
    from: Did,
    text: Arc<str>,
}

#[derive(ActixMessage)]
#[rtype(result = "()")]
struct Sever;

impl Handler<Outbound> for MemoryConnection {
    type Result = ();

    fn handle(&mut self, outbound: Outbound, ctx: &mut Self::Context) {
        let (to, body) = match outbound {
            Outbound::Direct { to, body, .. } => (Some(to), body),
            Outbound::Broadcast { body } => (None, body),
            // Adverts are not stored for peers that connect later: they wait for the advert's repeat.
            Outbound::WithdrawAdvert { .. } => return,
        };
        let message = Message::new(self.did.clone(), to, body);
        let text: Arc<str> = message.to_json().into();
        let mut peers = self.network.peers();
        match message.to {
            Some(to) => match peers.get_mut(&to) {
                Some(peer) => peer.deliver(&to, &self.did, text),
                None => {
                    let reason = "no identity with that DID was ever connected".to_owned();
                    self.inbox.report(Delivery::Undeliverable { to, body: message.body, reason }, ctx);
                }
            },
            None => peers
                .iter_mut()
                .filter(|(did, _)| **did != self.did)
                .for_each(|(did, peer)| peer.deliver(did, &self.did, Arc::clone(&text))),
        }
    }
}

impl Handler<Wire> for MemoryConnection {
    type Result = ();

    fn handle(&mut self, Wire { number, from, text }: Wire, ctx: &mut Self::Context) {
        let delivery = match Message::from_json_among(&text, &[&from, &self.did]) {
            Ok(message) if message.from == from => Delivery::Message(message.into()),
            Ok(message) => {
                let problem = format!("{} is not the sender", message.from);
                Delivery::Undecodable { from, error: DecodeError::Field { field: "from".to_owned(), problem } }
            }
            Err(error) => Delivery::Undecodable { from, error },
        };
        // Waits for space in the inbox: the order is preserved, and this connection's own queue bounds the waiting
        // messages.
        let (network, did) = (self.network.clone(), self.did.clone());
        let over = move || {
            if let Some(peer) = network.peers().get_mut(&did) {
                peer.pending.remove(&number);
            }
        };
        let delivered = self.inbox.deliver_then(delivery, over);
        ctx.wait(delivered.into_actor(self).map(|delivered, _, ctx| {
            if delivered.is_err() {
                ctx.stop();
            }
        }));
    }
}

impl Handler<Sever> for MemoryConnection {
    type Result = ();

    fn handle(&mut self, _: Sever, ctx: &mut Self::Context) {
        // After the messages that were sent before the senders could know of the end: they would be lost with our
        // mailbox.
        ctx.spawn(async {}.into_actor(self).map(|(), _, ctx| ctx.stop()));
    }
}
