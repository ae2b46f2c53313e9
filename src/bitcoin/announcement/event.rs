//! The facts of an announcement, which are its journal.

use ::bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Transaction, Txid};
use serde::{Deserialize, Serialize};

use super::funding::Prepared;
use crate::{
    bitcoin::{
        chain::{BlockId, Deposit, Rejection, Spend, Tip},
        change::{BumpError, Child},
    },
    protocol::time::Timestamp,
};

/// Why an announcement ended without a signal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum AnnouncementFailure {
    /// No usable deposit arrived in time.
    #[error("the beacon address was not funded in time")]
    NotFunded,
    /// The members did not sign in time.
    #[error("the transaction was not signed in time")]
    NotSigned,
    /// The cohort ended first.
    #[error("the cohort failed: {reason}")]
    Cohort {
        /// Why.
        reason: String,
    },
    /// Another transaction spent the coin, and is final.
    #[error("transaction {by} spent the coin instead")]
    CoinSpent {
        /// That transaction.
        by: Txid,
    },
    /// The coin is not in the chain any more, and nothing is seen to spend it: its deposit was replaced after a
    /// reorganization, say.
    #[error("the coin is not in the chain any more")]
    CoinGone,
}

impl AnnouncementFailure {
    /// Whether it can end an announcement that is signed: only what happened to its coin can.
    pub(super) fn ends_what_is_signed(&self) -> bool {
        matches!(self, Self::CoinSpent { .. } | Self::CoinGone)
    }
}

/// A fact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "`at` is when it became known; the other fields are what their names and types say")]
pub enum AnnouncementEvent {
    /// The beacon address is watched from now on.
    WatchStarted { at: Timestamp, script: ScriptBuf, deadline: Timestamp },
    /// There is another tip.
    TipSeen { at: Timestamp, tip: Tip },
    /// A deposit is there, or moved between mempool and blocks.
    DepositSeen { at: Timestamp, deposit: Deposit },
    /// A deposit is no longer there: replaced, reorganized away, or one of too many.
    DepositGone { at: Timestamp, outpoint: OutPoint },
    /// A deposit is being spent, or the transaction that does moved between mempool and blocks.
    SpendSeen { at: Timestamp, spend: Spend },
    /// A deposit is not being spent any more.
    SpendGone { at: Timestamp, outpoint: OutPoint },
    /// A transaction that nobody was asked to sign spends from the beacon address: it may be a signal that nobody approved.
    ForeignSpendSeen { at: Timestamp, spend: Spend },
    /// A transaction of another cohort with the same address spends from it: its members were asked.
    SiblingSpendSeen { at: Timestamp, spend: Spend },
    /// The members are asked to sign this transaction.
    TransactionPrepared { at: Timestamp, prepared: Box<Prepared>, deadline: Timestamp },
    /// They have.
    TransactionSigned {
        at: Timestamp,
        transaction: Transaction,
        #[serde(with = "::bitcoin::amount::serde::as_sat")]
        value: Amount,
    },
    /// The chain took the announcement, or its child.
    HandInAccepted { at: Timestamp, txid: Txid },
    /// It did not.
    HandInRefused { at: Timestamp, txid: Txid, rejection: Rejection },
    /// The announcement is not in sight and is handed in again.
    Rebroadcast { at: Timestamp },
    /// A child is to pay for the announcement.
    ChildPlanned { at: Timestamp, child: Child, rate: FeeRate },
    /// The announcement is stuck, and this is why nothing can be done about it.
    BumpImpossible { at: Timestamp, reason: BumpError },
    /// The announcement is confirmed, so many blocks deep.
    Confirmed { at: Timestamp, block: BlockId, depth: u32 },
    /// The announcement fell out of the block that confirmed it.
    Unconfirmed { at: Timestamp, block: BlockId },
    /// The chain stands still.
    Stalled { at: Timestamp },
    /// The announcement is as deep as was asked for.
    Finalized { at: Timestamp, block: BlockId },
    /// There will be no announcement.
    Failed { at: Timestamp, failure: AnnouncementFailure },
}
