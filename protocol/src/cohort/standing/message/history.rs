//! What was announced while a seat was away.

use bitcoin::Txid;
use serde::{Deserialize, Serialize};

use crate::{
    hash::{DocumentHash, SignalBytes},
    id::CohortId,
};

/// The most announcements of one message: they fit into one HTTP message.
pub const MAX_HISTORY: usize = 128;

/// `standing/history_request`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryRequest {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The announcements of higher numbers are asked for.
    pub after: u64,
}

/// `standing/history`: the announcements after a number. Fewer than [`MAX_HISTORY`]: there are no more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryGiven {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The number after which they are.
    pub after: u64,
    /// In the order of their numbers, at most [`MAX_HISTORY`]; without those that can never be mined, and without refreshes.
    pub announcements: Vec<PastAnnouncement>,
}

/// An announcement in the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PastAnnouncement {
    /// Its number.
    pub number: u64,
    /// Its transaction.
    pub txid: Txid,
    /// What that announces.
    pub signal: SignalBytes,
    /// The board from which the signal follows.
    pub board_hash: DocumentHash,
}
