//! The facts of an announcement, which are its journal.

use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Transaction, Txid};
use serde::{Deserialize, Serialize};

use super::{
    change::{BumpError, Child},
    funding::Prepared,
};
use crate::{
    chain::{BlockId, Deposit, Rejection, Spend, Tip},
    time::Timestamp,
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
        /// The reason.
        reason: String,
    },
    /// Another transaction spent the coin, and is final.
    #[error("transaction {by} spent the coin instead")]
    CoinSpent {
        /// That transaction.
        by: Txid,
    },
    /// The coin is no longer in the chain, and no transaction is seen to spend it, e.g. because its deposit was
    /// replaced after a reorganization.
    #[error("the coin is not in the chain any more")]
    CoinGone,
}

impl AnnouncementFailure {
    /// Whether it can end a signed announcement: only the loss of its coin can.
    pub(super) fn ends_what_is_signed(&self) -> bool {
        matches!(self, Self::CoinSpent { .. } | Self::CoinGone)
    }
}

/// A fact of an announcement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
#[allow(missing_docs, reason = "`at` is when it became known; the names and types describe the other fields")]
pub enum AnnouncementEvent {
    /// The beacon address is watched from now on.
    WatchStarted { at: Timestamp, script: ScriptBuf, deadline: Timestamp },
    /// The tip changed.
    TipSeen { at: Timestamp, tip: Tip },
    /// A deposit appeared, or moved between mempool and blocks.
    DepositSeen { at: Timestamp, deposit: Deposit },
    /// A deposit disappeared: replaced, reorganized away, or one of too many.
    DepositGone { at: Timestamp, outpoint: OutPoint },
    /// A deposit is being spent, or the spending transaction moved between mempool and blocks.
    SpendSeen { at: Timestamp, spend: Spend },
    /// A deposit is no longer being spent.
    SpendGone { at: Timestamp, outpoint: OutPoint },
    /// A transaction that no member was asked to sign spends from the beacon address: it may be a signal that no member
    /// approved.
    ForeignSpendSeen { at: Timestamp, spend: Spend },
    /// A transaction of another cohort with the same address spends from it. The members of that cohort were asked.
    SiblingSpendSeen { at: Timestamp, spend: Spend },
    /// The members are asked to sign this transaction.
    TransactionPrepared { at: Timestamp, prepared: Box<Prepared>, deadline: Timestamp },
    /// The members have signed it.
    TransactionSigned {
        at: Timestamp,
        transaction: Transaction,
        #[serde(with = "bitcoin::amount::serde::as_sat")]
        value: Amount,
    },
    /// The chain accepted the announcement, or its child.
    HandInAccepted { at: Timestamp, txid: Txid },
    /// The chain refused it.
    HandInRefused { at: Timestamp, txid: Txid, rejection: Rejection },
    /// The announcement is not in sight and is submitted again.
    Rebroadcast { at: Timestamp },
    /// A child will pay for the announcement.
    ChildPlanned { at: Timestamp, child: Child, rate: FeeRate },
    /// The announcement is stuck and cannot be bumped, for this reason.
    BumpImpossible { at: Timestamp, reason: BumpError },
    /// The announcement is confirmed at this depth.
    Confirmed { at: Timestamp, block: BlockId, depth: u32 },
    /// The block that confirmed the announcement was reorganized away.
    Unconfirmed { at: Timestamp, block: BlockId },
    /// The host holds the signed transaction back, or releases it.
    Held { at: Timestamp, held: bool },
    /// The chain does not grow.
    Stalled { at: Timestamp },
    /// The announcement reached its final depth.
    Finalized { at: Timestamp, block: BlockId },
    /// The announcement failed.
    Failed { at: Timestamp, failure: AnnouncementFailure },
}
