//! Inputs, events and effects of a number.

use std::{collections::BTreeMap, sync::Arc};

use bitcoin::{FeeRate, Transaction, TxOut};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    cohort::standing::{
        board::Board,
        message::{ResponsePart, StandingMessage},
        response::Response,
        transaction::Mode,
    },
    did::Did,
    hash::{DidIndex, DocumentHash, SignalBytes},
    key::{PublicKey, Signature},
    message::Bytes,
    time::Timestamp,
};

/// An input of a number.
#[derive(Clone, Debug, PartialEq)]
pub enum NumberInput {
    /// Begin.
    Open,
    /// A seat's message.
    Message {
        /// The sender.
        from: Did,
        /// The message.
        message: Box<StandingMessage>,
    },
    /// The host's answer to [`NumberEffect::CheckUpdates`].
    UpdatesChecked {
        /// The seat.
        seat: PublicKey,
        /// Its response.
        response_hash: DocumentHash,
        /// What is wrong with an update of it, if anything.
        problem: Option<String>,
    },
    /// The host's answer to [`NumberEffect::AskPrice`].
    Priced {
        /// The fee rate.
        rate: FeeRate,
        /// The operator's own output, if any.
        operator: Option<TxOut>,
    },
    /// The host gives it up.
    Abandoned {
        /// Why.
        reason: String,
    },
    /// Time has passed.
    Tick,
}

/// What a seat has confirmed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confirmed {
    /// By valid partial signatures, one for each input.
    Partials(Vec<Bytes<32>>),
    /// By valid fallback signatures, one for each input.
    Fallback(Vec<Signature>),
    /// Nothing: it refuses, for this reason.
    Refused(String),
}

/// An event of a number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum NumberEvent {
    /// The opportunity was sent.
    Opened {
        /// When.
        at: Timestamp,
    },
    /// A part of a response, not the last one.
    PartReceived {
        /// When.
        at: Timestamp,
        /// The seat.
        seat: PublicKey,
        /// The part.
        part: Box<ResponsePart>,
    },
    /// A whole response whose updates the host checks.
    ResponseHeld {
        /// When.
        at: Timestamp,
        /// The response.
        response: Arc<Response>,
        /// Each update with the index of its DID.
        updates: Vec<(DidIndex, Value)>,
    },
    /// An update of a seat's response is not one that resolvers accept: the response does not count.
    ResponseRefused {
        /// When.
        at: Timestamp,
        /// The seat.
        seat: PublicKey,
        /// Why.
        reason: String,
    },
    /// A whole response that counts.
    ResponseReceived {
        /// When.
        at: Timestamp,
        /// The response.
        response: Arc<Response>,
    },
    /// No further response counts: the board is made of those received.
    BoardClosed {
        /// When.
        at: Timestamp,
        /// How the transaction is signed.
        mode: Mode,
    },
    /// No seat has an update: the board is closed, and nothing follows.
    BoardIdle {
        /// When.
        at: Timestamp,
    },
    /// The transaction was built.
    RequestMade {
        /// When.
        at: Timestamp,
        /// Until when seats may confirm.
        until: Timestamp,
        /// The transaction.
        transaction: Transaction,
        /// The aggregate nonce of each input; empty for a fallback.
        aggregated: Vec<Bytes<66>>,
    },
    /// A seat has confirmed or refused.
    ConfirmationReceived {
        /// When.
        at: Timestamp,
        /// The seat.
        seat: PublicKey,
        /// What.
        confirmed: Confirmed,
    },
    /// The number has ended.
    Ended {
        /// When.
        at: Timestamp,
        /// How.
        end: NumberEnd,
    },
}

/// Why a number failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Too few seats responded.
    #[error("too few seats responded in time")]
    Absent,
    /// Too few seats confirmed.
    #[error("too few seats confirmed in time")]
    Unconfirmed,
    /// A seat refused.
    #[error("a seat refused to sign")]
    Refused,
    /// A seat has lost its nonces.
    #[error("a seat has lost its nonces")]
    NonceLost,
    /// The coin does not pay for the announcement.
    #[error("{0}")]
    Unfunded(String),
    /// The host gave it up.
    #[error("{0}")]
    Abandoned(String),
    /// The signatures, each of them valid, do not give a valid transaction.
    #[error("valid signatures do not give a valid transaction")]
    Unverified,
}

/// How a number ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NumberEnd {
    /// No seat had an update.
    Idle {
        /// The board of the responses.
        board_hash: DocumentHash,
        /// The seats that were silent.
        absent: Vec<PublicKey>,
    },
    /// There is no signed transaction here. Seats may have signed: the next number spends the same coins.
    Failed {
        /// Why.
        why: Why,
        /// The seats that were silent.
        absent: Vec<PublicKey>,
        /// The seats that refused, with their reasons.
        refused: BTreeMap<PublicKey, String>,
    },
    /// There is a signed transaction.
    Signed {
        /// The transaction.
        transaction: Arc<Transaction>,
        /// How it is signed.
        mode: Mode,
        /// The board that it announces.
        board_hash: DocumentHash,
        /// The seats whose signatures are in it.
        signers: Vec<PublicKey>,
        /// The seats that were silent.
        absent: Vec<PublicKey>,
    },
}

impl NumberEnd {
    pub(super) const fn failed(why: Why, absent: Vec<PublicKey>, refused: BTreeMap<PublicKey, String>) -> Self {
        Self::Failed { why, absent, refused }
    }
}

/// What a number needs done.
#[derive(Clone, Debug)]
pub enum NumberEffect {
    /// Check the updates of a response by rules U, and store them; answer with [`NumberInput::UpdatesChecked`].
    CheckUpdates {
        /// The seat.
        seat: PublicKey,
        /// Its response.
        response_hash: DocumentHash,
        /// Each update with the index of its DID.
        updates: Vec<(DidIndex, Value)>,
    },
    /// Report to the operator that a response does not count.
    ResponseRefused {
        /// The seat.
        seat: PublicKey,
        /// Why.
        reason: String,
    },
    /// Answer with [`NumberInput::Priced`].
    AskPrice {
        /// How the transaction is signed: by fallback it is larger.
        mode: Mode,
        /// What is announced; nothing by a refresh.
        signal: Option<SignalBytes>,
    },
    /// Store the board, durably, before what follows: it is served without end.
    StoreBoard(Arc<Board>),
    /// Send to a seat.
    Send {
        /// The seat's DID.
        to: Did,
        /// The message.
        message: StandingMessage,
    },
    /// Give the end to the cohort.
    Report(NumberEnd),
}

impl PartialEq for NumberEffect {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::AskPrice { mode, signal }, Self::AskPrice { mode: other_mode, signal: other_signal }) => {
                (mode, signal) == (other_mode, other_signal)
            }
            (Self::StoreBoard(one), Self::StoreBoard(other)) => one.hash() == other.hash(),
            (
                Self::CheckUpdates { seat, response_hash, .. },
                Self::CheckUpdates { seat: other_seat, response_hash: other_hash, .. },
            ) => (seat, response_hash) == (other_seat, other_hash),
            (
                Self::ResponseRefused { seat, reason },
                Self::ResponseRefused { seat: other_seat, reason: other_reason },
            ) => (seat, reason) == (other_seat, other_reason),
            (Self::Send { to, message }, Self::Send { to: other_to, message: other }) => {
                (to, message) == (other_to, other)
            }
            (Self::Report(one), Self::Report(other)) => one == other,
            _ => false,
        }
    }
}
