//! What a signing session is fed, what happens in it, and what it asks for.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    cohort::{Undelivered, Unreached, service::rules::TimedPhase},
    did::Did,
    error::Fault,
    hash::MessageDigest,
    key::Signature,
    message::{Bytes, Message, SharedBody},
    output::SpendPath,
    signing::{Signed, SigningOutcome},
    time::Timestamp,
};

/// An input of a signing session.
#[derive(Clone, Debug)]
pub enum SessionInput {
    /// The cohort starts it.
    Open,
    /// A message arrived from a sender that the transport has authenticated.
    Message(Message),
    /// The host requests the fallback path now, with its reason.
    Fallback(String),
    /// The service has restarted after a time in which no member could reach it. Fed once, before the effects of
    /// [`Machine::resume`](crate::machine::Machine::resume) are performed. Not fed after a panic of an actor.
    Resumed,
    /// Time has passed.
    Tick,
    /// Time has passed, and the last request did not reach these members.
    Lapsed {
        /// The members that it did not reach, and why.
        undelivered: BTreeMap<Did, Undelivered>,
    },
}

/// An event of a signing session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SessionEvent {
    /// The session was started; the members are asked for nonces.
    SessionOpened {
        /// When.
        at: Timestamp,
    },
    /// A phase was extended.
    PhaseExtended {
        /// When.
        at: Timestamp,
        /// The phase.
        phase: TimedPhase,
        /// The new deadline.
        until: Timestamp,
    },
    /// A phase had lapsed while the service was down. Its members get this time to respond. Not counted as an
    /// extension.
    GraceGiven {
        /// When.
        at: Timestamp,
        /// The phase.
        phase: TimedPhase,
        /// The new deadline.
        until: Timestamp,
    },
    /// A member's public nonce arrived.
    NonceReceived {
        /// The member.
        did: Did,
        /// The nonce.
        nonce: Bytes<66>,
        /// The digest of the message.
        digest: MessageDigest,
    },
    /// All nonces have arrived.
    NoncesAggregated {
        /// When.
        at: Timestamp,
        /// The aggregate nonce.
        nonce: Bytes<66>,
    },
    /// A member's partial signature was verified. (Journals of versions before 0.2.0 also have unverified ones.)
    PartialSignatureReceived {
        /// The member.
        did: Did,
        /// The partial signature.
        signature: Bytes<32>,
        /// The digest of the message.
        digest: MessageDigest,
    },
    /// A fault of a member was recorded.
    FaultRecorded {
        /// The fault.
        fault: Fault,
    },
    /// The latch was closed: from here on only this path can complete.
    PathChosen {
        /// When.
        at: Timestamp,
        /// The path.
        path: SpendPath,
        /// The reason why it is not the key path, as text.
        reason: Option<String>,
        /// The members that had received the request and had not responded when the fallback was chosen.
        holdouts: Vec<Did>,
        /// The members that had not received it.
        #[serde(default, skip_serializing_if = "Unreached::is_empty")]
        unreached: Unreached,
    },
    /// A member's signature on the fallback leaf was verified.
    FallbackSignatureReceived {
        /// The member.
        did: Did,
        /// The signature.
        signature: Signature,
        /// The digest of the message.
        digest: MessageDigest,
    },
    /// The transaction is signed.
    SessionCompleted {
        /// When.
        at: Timestamp,
        /// The signed transaction.
        signed: Arc<Signed>,
    },
    /// Neither path can complete.
    SessionFailed {
        /// When.
        at: Timestamp,
        /// The phase in which it failed.
        phase: TimedPhase,
        /// The reason, as text.
        reason: String,
        /// The members that did not respond.
        holdouts: Vec<Did>,
        /// The members that were not reached.
        #[serde(default, skip_serializing_if = "Unreached::is_empty")]
        unreached: Unreached,
    },
}

/// An action that the driver must perform for a signing session.
#[derive(Clone, Debug, PartialEq)]
pub enum SessionEffect {
    /// Send a message to one member.
    Send {
        /// The member.
        to: Did,
        /// The message.
        body: SharedBody,
    },
    /// Report the outcome to the cohort.
    Finished(SigningOutcome),
}
