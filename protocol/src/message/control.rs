//! Our extensions beside the round: the end of a cohort, and presence. The TypeScript implementation ignores them,
//! and each of them works when only one of the two parties supports it.

use std::sync::Arc;

use bitcoin::{Amount, Transaction};
use serde::{Deserialize, Serialize};

use super::{bytes::present, sign::satoshi_text, transaction_hex::signed};
use crate::{hash::MessageDigest, id::CohortId};

/// `control/cohort_ended`: the cohort has ended for the recipient, which need not wait for it any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CohortEnded {
    /// The cohort.
    pub cohort_id: CohortId,
    /// How it ended, as a code: [`COMPLETED`](Self::COMPLETED), [`UNKNOWN`](Self::UNKNOWN),
    /// [`NOT_ADMITTED`](Self::NOT_ADMITTED), or a [`CohortFailure::code`](crate::cohort::event::CohortFailure::code).
    pub code: String,
    /// How it ended, as text.
    pub reason: String,
    /// Whether the recipient was at fault.
    pub at_fault: bool,
    /// The cohort that replaces it, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub next_cohort_id: Option<CohortId>,
    /// The signed transaction of a completed cohort, for the member to verify. Absent where it is too large for one
    /// message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<SignedTransaction>,
    /// For a participant that is not admitted: the digest of the rejected opt-in. A participant that has opted in
    /// again since, e.g. with an invite, waits for the decision on the new opt-in.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub opt_in: Option<MessageDigest>,
}

/// A signed beacon transaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignedTransaction {
    /// The transaction with its witness, as nodes exchange it.
    #[serde(with = "signed")]
    pub tx: Arc<Transaction>,
    /// The value of the output that it spends, a decimal string of satoshi. Signatures commit to it.
    #[serde(with = "satoshi_text")]
    pub prev_out_value: Amount,
}

impl CohortEnded {
    /// The code of a cohort whose transaction is signed.
    pub const COMPLETED: &str = "COMPLETED";
    /// The code of a cohort that the service does not run, or no longer runs.
    pub const UNKNOWN: &str = "UNKNOWN_COHORT";
    /// The code for a participant that the operator does not admit; the cohort continues without it.
    pub const NOT_ADMITTED: &str = "NOT_ADMITTED";
}

/// `control/presence_request`: the service is about to request nonces and asks whether the member is present.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PresenceRequest {
    /// The cohort.
    pub cohort_id: CohortId,
}

/// `control/presence`: the member confirms its presence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Presence {
    /// The cohort.
    pub cohort_id: CohortId,
}
