//! Connections within one process. Every message is serialized to text and parsed again, as on any other transport.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message as ActixMessage, Recipient,
    WrapFuture,
};
use async_trait::async_trait;
use btcr2_aggregation_protocol::{
    did::Did,
    identity::Identity,
    message::{DecodeError, Message},
};

use super::{ConnectError, Delivery, Disconnected, Outbound, Transport};
use crate::supervisor::EndGuard;

/// How many messages may wait at one connection in either direction. A peer that is so far behind loses what comes next,
/// as it would on a network; nobody else waits for it.
const QUEUE: usize = 8192;

/// A network in memory. Clones are the same network.
#[derive(Clone, Default)]
pub struct MemoryTransport(Arc<Mutex<BTreeMap<Did, Addr<MemoryConnection>>>>);

impl MemoryTransport {
    /// A network without anybody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Breaks the connection of `did`, as a network would. For tests of what happens then.
    pub fn sever(&self, did: &Did) {
        if let Some(connection) = self.peers().get(did) {
            connection.do_send(Sever);
        }
    }

    /// Hands `text` to the connection of `to` as something that `from` has said, whatever it is. For tests of what peers can
    /// say that our own connections never would.
    pub fn inject(&self, from: &Did, to: &Did, text: &str) {
        if let Some(connection) = self.peers().get(to) {
            connection.do_send(Wire { from: from.clone(), text: text.into() });
        }
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<Did, Addr<MemoryConnection>>> {
        // No code panics while it holds the lock, and the map is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Transport for MemoryTransport {
    async fn connect(
        &self,
        identity: &Identity,
        inbox: Recipient<Delivery>,
        keeper: Recipient<Disconnected>,
        connection: u64,
    ) -> Result<Recipient<Outbound>, ConnectError> {
        let did = identity.did().clone();
        let guard = EndGuard::new(move |end| keeper.do_send(Disconnected { connection, end }));
        let actor = MemoryConnection { did: did.clone(), network: self.clone(), inbox, _guard: guard };
        let address = actor.start();
        self.peers().insert(did, address.clone());
        Ok(address.recipient())
    }
}

/// The connection of one identity.
struct MemoryConnection {
    did: Did,
    network: MemoryTransport,
    inbox: Recipient<Delivery>,
    _guard: EndGuard,
}

impl Actor for MemoryConnection {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(QUEUE);
    }
}

/// What travels: text, and the sender that the network vouches for.
#[derive(Clone, ActixMessage)]
#[rtype(result = "()")]
struct Wire {
    from: Did,
    text: Arc<str>,
}

#[derive(ActixMessage)]
#[rtype(result = "()")]
struct Sever;

impl Handler<Outbound> for MemoryConnection {
    type Result = ();

    fn handle(&mut self, outbound: Outbound, _: &mut Self::Context) {
        let (to, body) = match outbound {
            Outbound::Direct { to, body, .. } => (Some(to), body),
            Outbound::Broadcast { body } => (None, body),
            // Nothing is kept for those who come later: they wait for the advert's repeat.
            Outbound::WithdrawAdvert { .. } => return,
        };
        let message = Message::new(self.did.clone(), to, body);
        let wire = Wire { from: self.did.clone(), text: message.to_json().into() };
        let peers = self.network.peers();
        let recipients: Vec<_> = match &message.to {
            Some(to) => peers.get_key_value(to).into_iter().collect(),
            None => peers.iter().filter(|(did, _)| **did != self.did).collect(),
        };
        if recipients.is_empty() {
            tracing::debug!(from = %self.did, to = ?message.to, "nobody is connected to receive this");
        }
        for (did, peer) in recipients {
            if let Err(error) = peer.try_send(wire.clone()) {
                tracing::warn!(from = %self.did, to = %did, %error, "the recipient is too far behind, a message is lost");
            }
        }
    }
}

impl Handler<Wire> for MemoryConnection {
    type Result = ();

    fn handle(&mut self, Wire { from, text }: Wire, ctx: &mut Self::Context) {
        let delivery = match Message::from_json(&text) {
            Ok(message) if message.from == from => Delivery::Message(message),
            Ok(message) => {
                let problem = format!("{} is not the sender", message.from);
                Delivery::Undecodable { from, error: DecodeError::Field { field: "from".to_owned(), problem } }
            }
            Err(error) => Delivery::Undecodable { from, error },
        };
        // Waits for room in the inbox: order is kept, and what waits is bounded by this connection's own queue.
        let delivered = self.inbox.send(delivery);
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
        ctx.stop();
    }
}
