//! Our extensions beside the round: how a cohort ended, and signs of life. The TypeScript implementation ignores them, and each
//! works when only our side speaks it.

use std::sync::Arc;

use bitcoin::{Amount, Transaction};
use serde::{Deserialize, Serialize};

use super::{
    present,
    sign::{satoshi_text, signed_transaction_hex},
};
use crate::{hash::MessageDigest, id::CohortId};

/// `control/cohort_ended`: the cohort is over; nobody need wait for it any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CohortEnded {
    /// The cohort.
    pub cohort_id: CohortId,
    /// How it ended, for machines: [`COMPLETED`](Self::COMPLETED), [`UNKNOWN`](Self::UNKNOWN),
    /// [`NOT_ADMITTED`](Self::NOT_ADMITTED), or a [`CohortFailure::code`](crate::cohort::event::CohortFailure::code).
    pub code: String,
    /// How it ended, in words.
    pub reason: String,
    /// Whether the recipient was at fault.
    pub at_fault: bool,
    /// The cohort that is formed in its place, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub next_cohort_id: Option<CohortId>,
    /// Of a completed cohort: the transaction that was signed, so that the member can verify it. Absent where it is too large
    /// for one message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<SignedTransaction>,
    /// Of a participant that is not admitted: the digest of the opt-in that is refused. One that has opted in again meanwhile, with
    /// an invite say, waits for what becomes of that.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub opt_in: Option<MessageDigest>,
}

/// A signed beacon transaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignedTransaction {
    /// The transaction with its witness, as nodes exchange it.
    #[serde(with = "signed_transaction_hex")]
    pub tx: Arc<Transaction>,
    /// The value of the output that it spends, a decimal string of satoshi: signatures commit to it.
    #[serde(with = "satoshi_text")]
    pub prev_out_value: Amount,
}

impl CohortEnded {
    /// The code of a cohort whose transaction is signed.
    pub const COMPLETED: &str = "COMPLETED";
    /// The code of a cohort that the service does not run (any more).
    pub const UNKNOWN: &str = "UNKNOWN_COHORT";
    /// The code for a participant that the cohort goes on without: its operator does not admit it.
    pub const NOT_ADMITTED: &str = "NOT_ADMITTED";
}

/// `control/presence_request`: the service is about to ask for nonces; is the member there?
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PresenceRequest {
    /// The cohort.
    pub cohort_id: CohortId,
}

/// `control/presence`: the member is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Presence {
    /// The cohort.
    pub cohort_id: CohortId,
}
