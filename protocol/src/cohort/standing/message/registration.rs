//! Registration: rows of the roster on their way to the service and back.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cohort::standing::limits::{MAX_PART_ENTRIES, MAX_PART_ROWS, json_len, pieces};
use crate::{
    cohort::standing::roster::{Row, RowAction},
    hash::DidIndex,
    id::CohortId,
    key::Signature,
};

/// A row that a seat asks for, with what a service needs that registers proven DIDs only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AskedRow {
    /// The index.
    pub did_index: DidIndex,
    /// What to do.
    pub action: RowAction,
    /// The serial.
    pub serial: u64,
    /// The seat's signature.
    pub signature: Signature,
    /// The DID, with proven registration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub did: Option<String>,
    /// A method of the DID's `capabilityInvocation`, and its signature of the same row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<ControlProof>,
    /// The genesis document of an EXTERNAL DID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub genesis_document: Option<Value>,
    /// The Sidecar Data with which the service resolves a DID that has been updated, with proven registration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<Value>,
}

/// A proof that the sender controls a DID.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlProof {
    /// The verification method.
    pub verification_method: String,
    /// Its signature of the row.
    pub signature: Signature,
}

/// `standing/register`. Each message is answered by [`RowsAnswered`]; a part that got no answer is sent again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegisterRows {
    /// The cohort.
    pub cohort_id: CohortId,
    /// At most [`MAX_PART_ENTRIES`].
    pub rows: Vec<AskedRow>,
}

impl RegisterRows {
    /// Rows in as few messages as they fit into. A row with a larger genesis document is alone in its message.
    pub fn split(cohort_id: &CohortId, rows: &[AskedRow]) -> Vec<Self> {
        let parts = pieces(rows.iter().cloned(), MAX_PART_ENTRIES, json_len);
        parts.into_iter().map(|rows| Self { cohort_id: cohort_id.clone(), rows }).collect()
    }
}

/// `standing/rows_returned`: rows that seats have signed, from a place of the roster on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RowsReturned {
    /// The cohort.
    pub cohort_id: CohortId,
    /// How many rows of the roster are before these.
    pub after: u64,
    /// At most [`MAX_PART_ROWS`].
    pub rows: Vec<Row>,
}

impl RowsReturned {
    /// The rows after the first `after` of the roster, in as few messages as they fit into.
    pub(crate) fn split(cohort_id: &CohortId, after: u64, rows: &[Row]) -> Vec<Self> {
        let parts = (after..).step_by(MAX_PART_ROWS).zip(rows.chunks(MAX_PART_ROWS));
        parts.map(|(after, rows)| Self { cohort_id: cohort_id.clone(), after, rows: rows.to_vec() }).collect()
    }
}

/// `standing/rows_request`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RowsRequest {
    /// The cohort.
    pub cohort_id: CohortId,
    /// How many rows of the roster are before these.
    pub after: u64,
}

/// `standing/rows`: rows of the roster from that place on. A seat asks again for those after them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RowsGiven {
    /// The cohort.
    pub cohort_id: CohortId,
    /// How many rows of the roster are before these.
    pub after: u64,
    /// At most [`MAX_PART_ROWS`].
    pub rows: Vec<Row>,
}

/// What became of a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RowAnswer {
    /// The index.
    pub did_index: DidIndex,
    /// The serial.
    pub serial: u64,
    /// Why it is not registered; absent if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// `standing/registered`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RowsAnswered {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The first number that covers what is registered by it.
    pub from_number: u64,
    /// One for each row, in their order.
    pub rows: Vec<RowAnswer>,
}
