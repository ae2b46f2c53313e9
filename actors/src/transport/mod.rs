//! Transports (port): how messages travel between authenticated identities.
//!
//! A [`Connection`] accepts [`Outbound`] messages of one identity and delivers what arrives for it to its [`Inbox`],
//! each from a sender that the transport has authenticated. It does not have to be an actor: [`connection::spawn`] runs
//! an async function. [`memory`] connects identities in one process, [`http`] through a server, [`nostr`] through
//! relays; [`combined`] combines several of them. An identity uses a connection through its [`link`], which replaces a
//! connection that has ended.

pub mod combined;
pub mod connection;
pub mod connections;
pub mod contact;
pub(crate) mod external;
pub mod http;
mod inbox;
pub mod link;
pub mod memory;
pub mod nostr;
mod received;
pub mod tls;

use actix::{
    Actor, Addr, AsyncContext, Context, Handler, Message as ActixMessage, WeakAddr, dev::ToEnvelope,
    prelude::SendError,
};
use async_trait::async_trait;
use serde_json::Value;

use btcr2_aggregation_protocol::{
    beacon::BeaconType,
    cohort::standing::message::StandingMessage,
    did::Did,
    error::{Reject, RejectCode},
    id::CohortId,
    identity::Identity,
    message::{Body, DecodeError, Message, SharedBody, control::CohortEnded},
    time::Timestamp,
};

pub(crate) use self::inbox::Undelivered;
pub use self::{
    connection::{Connection, Unsent},
    inbox::{Inbox, InboxClosed},
    received::{Evidence, Receipt, Received},
};

/// A message to send, in the name of the connection's identity.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "()")]
pub enum Outbound {
    /// To one identity.
    Direct {
        /// The recipient.
        to: Did,
        /// The message.
        body: SharedBody,
        /// Until when the sender waits for it; a transport that has to try again gives up then.
        until: Option<Timestamp>,
    },
    /// To all, now and, if the transport stores adverts, to peers that connect later.
    Broadcast {
        /// The message: an advert.
        body: SharedBody,
    },
    /// The cohort's advert has ended: peers that connect later do not receive it.
    WithdrawAdvert {
        /// The cohort.
        cohort_id: CohortId,
    },
}

/// Sends `message` to another actor. If its mailbox is full, `A` does nothing else until there is space.
pub(crate) fn send_in_turn<A, B, M>(to: &Addr<B>, message: M, ctx: &mut Context<A>)
where
    A: Actor<Context = Context<A>>,
    B: Handler<M>,
    B::Context: ToEnvelope<B, M>,
    M: ActixMessage + Send + 'static,
    M::Result: Send,
{
    if let Err(SendError::Full(message)) = to.try_send(message) {
        let sent = to.send(message);
        ctx.wait(actix::fut::wrap_future::<_, A>(async move {
            // An actor that has ended needs no message.
            let _ = sent.await;
        }));
    }
}

/// Notifies an actor; ready when it has processed that, or has ended. The reference is not held while this waits.
pub(crate) fn notify<A, M>(to: &WeakAddr<A>, message: M) -> impl Future<Output = ()> + use<A, M>
where
    A: Actor<Context = Context<A>> + Handler<M>,
    M: ActixMessage<Result = ()> + Send + 'static,
{
    let sent = to.upgrade().map(|to| to.send(message));
    async move {
        if let Some(sent) = sent {
            let _ = sent.await;
        }
    }
}

/// Whether a message with this body makes its recipient a member. The sender of a message to an unknown cohort need not
/// be one, and must not take a member's space.
pub(crate) fn is_for_a_member(body: &Body) -> bool {
    match body {
        Body::CohortEnded(ended) => ended.code != CohortEnded::UNKNOWN,
        Body::Standing(message) => !matches!(**message, StandingMessage::SeatRefused(_)),
        _ => true,
    }
}

/// An event of the connection.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "()")]
pub enum Delivery {
    /// A message; its `from` is the sender that the transport authenticated.
    Message(Received),
    /// A message that was sent before this connection was made, and that the transport has stored. It is only relevant
    /// to a cohort that still runs; it is not a fault that it arrives when its cohort has ended.
    ///
    /// A transport delivers stored messages before adverts, as far as it can: the messages of a round that has ended
    /// must not reach a session that an old advert has just started.
    Stored {
        /// The message.
        message: Received,
        /// When it was sent, according to its sender.
        said: Timestamp,
    },
    /// A message that this identity itself has sent, stored by the transport: a nonce, which may be missing in a
    /// journal that was restored from a backup.
    Own(Message),
    /// Data of an authenticated sender that is not a message.
    Undecodable {
        /// The sender.
        from: Did,
        /// What is wrong with it.
        error: DecodeError,
    },
    /// Data arrived whose sender or time cannot be verified. None of it is delivered.
    Unverified {
        /// Why, as text.
        reason: String,
    },
    /// A message of ours has reached its recipient as far as can be known: it was fetched over HTTP, or a relay has
    /// accepted it.
    Delivered {
        /// The recipient.
        to: Did,
        /// The message's cohort.
        cohort_id: CohortId,
        /// The short name of the message's type.
        kind: &'static str,
    },
    /// A message of ours has not reached its recipient yet. The attempts continue.
    Delayed {
        /// The recipient.
        to: Did,
        /// The message's cohort.
        cohort_id: CohortId,
        /// The short name of the message's type.
        kind: &'static str,
        /// The carrier that has not accepted it, and why, as text.
        reason: String,
    },
    /// There was no space for all messages of ours to a recipient. It reads now: what it still needs of this cohort
    /// must be sent again.
    Missed {
        /// The recipient.
        to: Did,
        /// The messages' cohort.
        cohort_id: CohortId,
    },
    /// An actor that carried our messages has failed, and some may be lost. What is still needed must be sent again.
    Interrupted {
        /// The recipient of those messages; `None` for all recipients.
        to: Option<Did>,
    },
    /// A message of ours could not be delivered, and will not be sent again.
    Undeliverable {
        /// The recipient.
        to: Did,
        /// The message.
        body: SharedBody,
        /// Why, as text.
        reason: String,
    },
}

/// Why a transport could not connect.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConnectError(pub String);

/// A way for identities to exchange messages.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Connects `identity`. The connection delivers to `inbox`.
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError>;

    /// Introduces a member of a cohort that was restored from its journal: the genesis document proves the key of its
    /// EXTERNAL DID, which the transport would otherwise only learn from an opt-in. Takes effect at once, and for the
    /// transport's lifetime. Does nothing if the transport does not verify DIDs.
    fn introduce(&self, _did: &Did, _genesis_document: &Value) {}

    /// Whether connections send [`Delivery::Delivered`] for delivered messages. If not, every message counts as
    /// delivered.
    fn reports_delivery(&self) -> bool {
        false
    }

    /// The maximum number of members of a cohort with this beacon such that each of its messages can be carried, if a
    /// cohort of `wanted` members is to be opened; `None` if there is no limit. Used when a cohort is opened, and by
    /// [`combined`] when it is advertised.
    fn member_limit(&self, _beacon_type: &BeaconType, _wanted: usize) -> Option<usize> {
        None
    }

    /// The length of the longest message, in bytes of JSON, that can be carried; `None` if there is no limit. Used when a
    /// standing cohort is opened.
    fn message_limit(&self) -> Option<usize> {
        None
    }
}

/// The rejection of data that is not a message. Types of later versions are ignored, as the wire format specifies.
pub(crate) fn undecodable(from: &Did, error: &DecodeError) -> Option<Reject> {
    let code = match error {
        DecodeError::UnknownType(_) => return None,
        DecodeError::Version(_) => RejectCode::WrongVersion,
        DecodeError::Field { .. } => RejectCode::Malformed,
    };
    Some(Reject::new(code, from, error))
}
