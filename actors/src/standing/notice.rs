//! What the hosts of standing cohorts are notified of.

mod seat;

use std::sync::Arc;

use bitcoin::{OutPoint, Transaction, Txid};
use btcr2_aggregation_protocol::{
    cohort::standing::{Mode, OpportunityKind},
    did::Did,
    error::Reject,
    hash::{DidIndex, DocumentHash},
    id::CohortId,
    key::PublicKey,
    time::Timestamp,
};
use serde::Serialize;
use strum::VariantNames;

pub use self::seat::SeatNotice;
use crate::bans::Offence;

/// An event of a standing cohort at its service.
#[derive(Clone, Debug, Serialize, VariantNames)]
#[strum(serialize_all = "kebab-case")]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
#[non_exhaustive]
pub enum StandingNotice {
    /// It is advertised.
    StandingAdvertised {
        /// The cohort.
        cohort_id: CohortId,
    },
    /// A seat was admitted.
    SeatAdmitted {
        /// The cohort.
        cohort_id: CohortId,
        /// The seat's DID.
        seat: Did,
    },
    /// A seat was refused.
    SeatRefused {
        /// The cohort.
        cohort_id: CohortId,
        /// Who has asked for it.
        seat: Did,
        /// Why.
        reason: String,
    },
    /// A seat was banned after an offence: it is admitted to no cohort until then. It keeps its seat.
    SeatBanned {
        /// The cohort.
        cohort_id: CohortId,
        /// The seat's DID.
        seat: Did,
        /// The offence.
        offence: Offence,
        /// The end of the ban.
        until: Timestamp,
    },
    /// The cohort has formed.
    StandingFormed {
        /// The cohort.
        cohort_id: CohortId,
        /// The beacon address, to which deposits go.
        beacon_address: String,
        /// The number of seats.
        seats: usize,
    },
    /// The cohort to which this one moves has formed.
    SuccessorNamed {
        /// The cohort.
        cohort_id: CohortId,
        /// The successor.
        successor: CohortId,
        /// Its beacon address.
        beacon_address: String,
    },
    /// It continues after a restart.
    StandingRecovered {
        /// The cohort.
        cohort_id: CohortId,
        /// The beacon address, if it has formed.
        #[serde(skip_serializing_if = "Option::is_none")]
        beacon_address: Option<String>,
        /// The highest number that was used.
        number: u64,
    },
    /// Its actor, or that of a number, has panicked and continues.
    StandingRestarted {
        /// The cohort.
        cohort_id: CohortId,
        /// How often in the current period.
        restarts: usize,
    },
    /// Rows of the roster were settled.
    RowsSettled {
        /// The cohort.
        cohort_id: CohortId,
        /// The seat.
        seat: Did,
        /// How many are new.
        registered: usize,
        /// The refused ones, with the reason.
        refused: Vec<(DidIndex, String)>,
    },
    /// A coin for announcements is final.
    CoinArrived {
        /// The cohort.
        cohort_id: CohortId,
        /// The coin.
        outpoint: OutPoint,
        /// Satoshi.
        value: u64,
    },
    /// A number is open.
    NumberOpened {
        /// The cohort.
        cohort_id: CohortId,
        /// The number.
        number: u64,
        /// Whether it announces updates, or joins coins.
        kind: OpportunityKind,
        /// Until when seats may respond, in Unix seconds.
        respond_by: u64,
    },
    /// A response does not count.
    ResponseRefused {
        /// The cohort.
        cohort_id: CohortId,
        /// The number.
        number: u64,
        /// The seat.
        seat: PublicKey,
        /// Why.
        reason: String,
    },
    /// No seat had an update.
    NumberIdle {
        /// The cohort.
        cohort_id: CohortId,
        /// The number.
        number: u64,
        /// The seats that were silent.
        absent: Vec<PublicKey>,
    },
    /// A number has failed. The next one spends the same coin.
    NumberFailed {
        /// The cohort.
        cohort_id: CohortId,
        /// The number.
        number: u64,
        /// Why.
        reason: String,
        /// The seats that were silent.
        absent: Vec<PublicKey>,
        /// The seats that have refused, with their reasons.
        refused: Vec<(PublicKey, String)>,
    },
    /// A number's transaction is signed; it is broadcast until it is final.
    NumberSigned {
        /// The cohort.
        cohort_id: CohortId,
        /// The number.
        number: u64,
        /// The transaction's id.
        txid: Txid,
        /// How it is signed.
        mode: Mode,
        /// The board that it announces.
        board_hash: DocumentHash,
        /// The seats that were silent.
        absent: Vec<PublicKey>,
        /// The transaction.
        #[serde(skip)]
        transaction: Arc<Transaction>,
        /// What the change holds, in satoshi.
        balance: u64,
        /// How many further announcements the change pays for by key path, and by fallback, at the rate of this one.
        announcements_left: (u64, u64),
    },
    /// The coin pays for few further announcements.
    BalanceLow {
        /// The cohort.
        cohort_id: CohortId,
        /// The beacon address, to which a deposit goes.
        beacon_address: String,
        /// What is left, in satoshi.
        balance: u64,
        /// How many announcements it pays for by key path, and by fallback, at the rate of the last one.
        announcements_left: (u64, u64),
    },
    /// A transaction is in no block after some. What can be spent to bump it is an output of the last one of the chain: its fee counts for all.
    NumberUnconfirmed {
        /// The cohort.
        cohort_id: CohortId,
        /// The number: the first of the chain.
        number: u64,
        /// The transaction's id.
        txid: Txid,
        /// For how many blocks it has waited.
        blocks: u32,
        /// Its own fee rate, in sat/vB.
        fee_rate: f64,
        /// The last number of the chain that descends from it; itself if none does.
        last_number: u64,
        /// The operator's output in the transaction of that number.
        #[serde(skip_serializing_if = "Option::is_none")]
        bump: Option<OutPoint>,
        /// What that output holds, in satoshi.
        #[serde(skip_serializing_if = "Option::is_none")]
        bump_value: Option<u64>,
    },
    /// A transaction was not accepted by the chain; it is submitted again.
    SubmissionFailed {
        /// The cohort.
        cohort_id: CohortId,
        /// The transaction's id.
        txid: Txid,
        /// Why.
        problem: String,
    },
    /// An announcement is final.
    NumberConfirmed {
        /// The cohort.
        cohort_id: CohortId,
        /// The number.
        number: u64,
    },
    /// Another transaction has spent the coin of announcements, which can never be mined.
    NumbersVoid {
        /// The cohort.
        cohort_id: CohortId,
        /// The numbers.
        numbers: Vec<u64>,
        /// The transaction that has spent the coin.
        by: Txid,
    },
    /// A message was refused.
    StandingRejected {
        /// The cohort, if it is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        cohort_id: Option<CohortId>,
        /// The sender.
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<Did>,
        /// The reason as a code.
        code: &'static str,
        /// The reason in words.
        detail: String,
    },
    /// The operator has ended a cohort that had not formed.
    StandingCancelled {
        /// The cohort.
        cohort_id: CohortId,
        /// The operator's reason.
        reason: String,
    },
    /// A cohort cannot continue, although it has not ended.
    StandingHalted {
        /// The cohort.
        cohort_id: CohortId,
        /// Why.
        reason: String,
    },
}

impl StandingNotice {
    pub(crate) fn rejected(cohort_id: Option<&CohortId>, reject: &Reject) -> Self {
        Self::StandingRejected {
            cohort_id: cohort_id.cloned(),
            from: reject.peer.clone(),
            code: reject.code.as_str(),
            detail: reject.detail.clone(),
        }
    }
}
