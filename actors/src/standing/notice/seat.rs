//! What the host of a member is notified of.

use std::sync::Arc;

use bitcoin::{OutPoint, Transaction, Txid};
use btcr2_aggregation_protocol::{
    did::Did,
    error::Reject,
    hash::{DidIndex, DocumentHash},
    id::CohortId,
};
use serde::Serialize;
use strum::VariantNames;

/// An event of a member of standing cohorts. `seat` is the seat's own DID.
#[derive(Clone, Debug, Serialize, VariantNames)]
#[strum(serialize_all = "kebab-case")]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
#[non_exhaustive]
pub enum SeatNotice {
    /// A cohort is advertised that this member does not join.
    OfferDeclined {
        /// The service.
        service: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// Why.
        reasons: Vec<String>,
    },
    /// A seat was asked for.
    SeatAsked {
        /// The seat.
        seat: Did,
        /// The service.
        service: Did,
        /// The cohort.
        cohort_id: CohortId,
    },
    /// The service has promised the seat.
    SeatAccepted {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
    },
    /// The service does not give the seat.
    SeatNotGiven {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// Why.
        reason: String,
    },
    /// The cohort has formed.
    SeatFormed {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// The beacon address.
        beacon_address: String,
        /// The number of seats.
        seats: usize,
        /// How many of them together can spend, and can end every DID.
        spenders: usize,
    },
    /// The seat continues after a restart.
    SeatRecovered {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// The beacon address, if it has formed.
        #[serde(skip_serializing_if = "Option::is_none")]
        beacon_address: Option<String>,
        /// The highest number that it has answered.
        number: u64,
    },
    /// Its actor has panicked and continues.
    SeatRestarted {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// How often in the current period.
        restarts: usize,
    },
    /// The service has acknowledged rows. A document must not list the beacon yet: see [`Registered`](Self::Registered).
    RowsAcknowledged {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// The indexes.
        indexes: Vec<DidIndex>,
        /// The first number that covers them.
        from_number: u64,
    },
    /// Rows were refused.
    NotRegistered {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// The indexes, each with the reason.
        refused: Vec<(DidIndex, String)>,
    },
    /// At least k seats have signed that these indexes are this seat's: a document may list the beacon.
    Registered {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// New ones.
        registered: Vec<DidIndex>,
        /// Those that are not this seat's any more.
        released: Vec<DidIndex>,
    },
    /// The service has named the cohort to which this one moves, and its address follows from its keys.
    SuccessorKnown {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// The successor.
        successor: CohortId,
        /// Its beacon address.
        beacon_address: String,
    },
    /// What moves to the successor in the next move, and what does not.
    MovePrepared {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// The successor.
        successor: CohortId,
        /// The indexes that are registered there.
        registered: Vec<DidIndex>,
        /// Those that are left behind.
        left: Vec<DidIndex>,
    },
    /// The seat has responded.
    Responded {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// The number.
        number: u64,
        /// How many updates are in the response.
        updates: usize,
    },
    /// Updates that the host has chosen are not submitted.
    UpdatesRefused {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// The number.
        number: u64,
        /// Why.
        reason: String,
    },
    /// The seat has signed.
    SeatSigned {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// The number.
        number: u64,
        /// The transaction's id.
        txid: Txid,
    },
    /// The seat has refused to sign.
    SeatRefusedToSign {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// The number.
        number: u64,
        /// Why.
        reason: String,
    },
    /// A transaction that this seat has verified is signed.
    Announced {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// The number.
        number: u64,
        /// The transaction's id.
        txid: Txid,
        /// The transaction.
        #[serde(skip)]
        transaction: Arc<Transaction>,
    },
    /// An announcement from which this seat was absent. Its board is stored.
    Missed {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// The number.
        number: u64,
        /// The transaction's id.
        txid: Txid,
        /// The board.
        board_hash: DocumentHash,
    },
    /// The seat was restored from a backup. Until each of these coins is spent by a final transaction, it submits only what the backup shows
    /// that it had submitted.
    SeatRestored {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// The coins that are left.
        coins: Vec<OutPoint>,
    },
    /// All coins are spent that the address had when the seat was restored from a backup: it submits updates again.
    SeatSettled {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
    },
    /// A coin of the cohort was spent, finally.
    CoinSpent {
        /// The seat.
        seat: Did,
        /// The cohort.
        cohort_id: CohortId,
        /// The coin.
        outpoint: OutPoint,
        /// By which transaction.
        by: Txid,
    },
    /// A message of the service was refused.
    SeatRejected {
        /// The seat, if there is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        seat: Option<Did>,
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
    /// A seat cannot continue.
    SeatHalted {
        /// The seat.
        seat: Did,
        /// Why.
        reason: String,
    },
}

impl SeatNotice {
    pub(crate) fn rejected(seat: Option<&Did>, cohort_id: Option<&CohortId>, reject: &Reject) -> Self {
        Self::SeatRejected {
            seat: seat.cloned(),
            cohort_id: cohort_id.cloned(),
            from: reject.peer.clone(),
            code: reject.code.as_str(),
            detail: reject.detail.clone(),
        }
    }
}
