//! Transports (port): how messages travel between authenticated identities.
//!
//! A connection is an actor of its own. It takes [`Outbound`] messages for one identity and hands [`Delivery`]s to that
//! identity's inbox, each from a sender that the transport has authenticated. [`memory`] connects identities in one
//! process, [`http`] through a server, [`nostr`] through relays; [`combined`] is
//! several of them as one.

pub mod combined;
pub mod connections;
pub mod contact;
pub(crate) mod external;
pub mod http;
pub mod link;
pub mod memory;
pub mod nostr;
mod received;
pub mod tls;

use actix::{Message as ActixMessage, Recipient};
use async_trait::async_trait;
use serde_json::Value;

use btcr2_aggregation_protocol::{
    beacon::BeaconType,
    did::Did,
    error::{Reject, RejectCode},
    id::CohortId,
    identity::Identity,
    message::{Body, DecodeError, Message, SharedBody, control::CohortEnded},
    time::Timestamp,
};

pub(crate) use self::received::hand_over;
pub use self::received::{Evidence, Receipt, Received};
use crate::supervision::End;

/// Say this, in the name of the connection's identity.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "()")]
pub enum Outbound {
    /// To one identity.
    Direct {
        /// To whom.
        to: Did,
        /// What.
        body: SharedBody,
        /// Until when somebody waits for it; a transport that has to try again gives up then.
        until: Option<Timestamp>,
    },
    /// To everybody, now and, where the transport keeps such things, to everybody who comes later.
    Broadcast {
        /// What: an advert.
        body: SharedBody,
    },
    /// The cohort's advert is over: whoever comes later is not told of it.
    WithdrawAdvert {
        /// The cohort.
        cohort_id: CohortId,
    },
}

/// Whether what is said makes whom it is said to a member of something: who asks for a cohort that is not here need not be one,
/// and must not take the room of one.
pub(crate) fn is_for_a_member(body: &Body) -> bool {
    !matches!(body, Body::CohortEnded(ended) if ended.code == CohortEnded::UNKNOWN)
}

/// Something arrived.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "()")]
pub enum Delivery {
    /// A message; its `from` is the sender that the transport authenticated.
    Message(Received),
    /// A message that was said before this connection was made, kept by the transport since. It is news only to a cohort
    /// that still runs; that it comes when its cohort is over is nobody's fault.
    ///
    /// A transport delivers what it has kept for an identity before adverts, as far as it can tell: the messages of a round
    /// that is over must not meet a session which its old advert has just begun.
    Stored {
        /// The message.
        message: Received,
        /// When its sender says that it was said.
        said: Timestamp,
    },
    /// A message that this identity itself has said, kept by the transport: a nonce, which a journal that was restored from a
    /// backup may not know of.
    Own(Message),
    /// Something from an authenticated sender that is no message.
    Undecodable {
        /// The sender.
        from: Did,
        /// What is wrong with it.
        error: DecodeError,
    },
    /// Something arrived of which nobody knows who said it, or when. None of it is handed over.
    Unverified {
        /// Why, in words.
        reason: String,
    },
    /// A message of ours has reached its recipient as far as anybody can know: it was fetched over HTTP, or a relay has taken it.
    Delivered {
        /// Whom.
        to: Did,
        /// Of which cohort.
        cohort_id: CohortId,
        /// What, by the short name of its type.
        kind: &'static str,
    },
    /// A message of ours has not reached its recipient yet. It is tried again.
    Delayed {
        /// To whom.
        to: Did,
        /// Of which cohort.
        cohort_id: CohortId,
        /// What, by the short name of its type.
        kind: &'static str,
        /// Which carrier has not taken it, and why, in words.
        reason: String,
    },
    /// There was no room for all messages of ours to somebody: what it still needs of this cohort has to be said again, for it
    /// reads now.
    Missed {
        /// To whom.
        to: Did,
        /// Of which cohort.
        cohort_id: CohortId,
    },
    /// An actor that carried our messages has failed, and some may be lost. What is still needed has to be sent again.
    Interrupted {
        /// Whose messages those were; of all peers without it.
        to: Option<Did>,
    },
    /// A message of ours could not be delivered, and will not be.
    Undeliverable {
        /// To whom.
        to: Did,
        /// What.
        body: SharedBody,
        /// Why, in words.
        reason: String,
    },
}

/// Why a transport could not connect.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConnectError(pub String);

/// What a connection tells whoever keeps it: that it has ended, however it ended.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "()")]
pub struct Disconnected {
    /// Which connection of the keeper's: the number that [`Transport::connect`] was given.
    pub connection: u64,
    /// How it ended.
    pub end: End,
}

/// A way for identities to exchange messages.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Connects `identity`: starts its connection actor, which delivers to `inbox` and tells `keeper` when it ends.
    async fn connect(
        &self,
        identity: &Identity,
        inbox: Recipient<Delivery>,
        keeper: Recipient<Disconnected>,
        connection: u64,
    ) -> Result<Recipient<Outbound>, ConnectError>;

    /// A member of a cohort that was brought back from its journal: the genesis document proves the key of its EXTERNAL DID,
    /// which the transport would otherwise only learn from an opt-in. Takes effect at once, and for as long as the transport
    /// lives. Nothing happens where DIDs are believed anyway.
    fn introduce(&self, _did: &Did, _genesis_document: &Value) {}

    /// Whether connections say [`Delivery::Delivered`] of what they have delivered. Where they do not, everything counts as delivered.
    fn reports_delivery(&self) -> bool {
        false
    }

    /// The most members that a cohort with this beacon can have so that each of its messages can be carried, where one of `wanted`
    /// members is to be opened; `None` where there is no limit. Asked when a cohort is opened, and by [`combined`] when it is
    /// advertised.
    fn member_limit(&self, _beacon_type: &BeaconType, _wanted: usize) -> Option<usize> {
        None
    }
}

/// The refusal of what is not a message. Types of later versions are ignored, as the wire format specifies.
pub(crate) fn undecodable(from: &Did, error: &DecodeError) -> Option<Reject> {
    let code = match error {
        DecodeError::UnknownType(_) => return None,
        DecodeError::Version(_) => RejectCode::WrongVersion,
        DecodeError::Field { .. } => RejectCode::Malformed,
    };
    Some(Reject::new(code, from, error))
}
