//! A number: the opportunity, responses, the request, confirmations, the end.

use std::collections::BTreeMap;

use bitcoin::Transaction;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cohort::standing::limits::{MAX_PART_ENTRIES, json_len, pieces};
use crate::{
    cohort::standing::{
        context::CohortContext,
        opportunity::{Opportunity, TransactionHex},
        response::{Entry, Response},
        transaction::Mode,
    },
    hash::{DidIndex, DocumentHash},
    id::CohortId,
    key::Signature,
    message::{Bytes, unsigned},
};

/// `standing/pending`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// The cohort.
    pub cohort_id: CohortId,
}

/// `standing/opportunity`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpportunityOpened {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The opportunity, signed by the service.
    #[serde(flatten)]
    pub opportunity: Opportunity,
}

/// An update that the service receives in full. It is for the service only, and on no board.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FullUpdate {
    /// The signed update.
    pub update: Value,
    /// SHA-256 of the leaf's nonce, in an SMT cohort: the service can then check the leaf without the nonce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce_hash: Option<DocumentHash>,
}

/// `standing/response`: a part of a response. The last one has everything but entries that the seat signs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResponsePart {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The number.
    pub number: u64,
    /// From 1.
    pub part: u32,
    /// How many there are.
    pub parts: u32,
    /// [`Response::hash`] of the whole.
    pub response_hash: DocumentHash,
    /// At most [`MAX_PART_ENTRIES`].
    pub entries: Vec<Entry>,
    /// The updates of these entries, where the service receives them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub updates: Vec<FullUpdate>,
    /// The roster that it answers for; in the last part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roster_hash: Option<DocumentHash>,
    /// Whether there is an update; in the last part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has_updates: Option<bool>,
    /// A nonce for each input; in the last part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce_contributions: Option<Vec<Bytes<66>>>,
    /// The seat's signature; in the last part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

impl ResponsePart {
    /// A response in as few parts as it fits into, each with the updates of its entries.
    pub fn split(
        context: &CohortContext,
        response: &Response,
        updates: &BTreeMap<DidIndex, FullUpdate>,
    ) -> Vec<Self> {
        let hash = response.hash(context);
        let entries = response.entries.iter().map(|entry| (entry.clone(), updates.get(&entry.index())));
        let mut pieces =
            pieces(entries, MAX_PART_ENTRIES, |(entry, update)| json_len(entry) + update.map_or(0, json_len) + 2);
        if pieces.is_empty() {
            pieces.push(Vec::new());
        }
        let parts = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        let part = |(part, piece): (u32, Vec<(Entry, Option<&FullUpdate>)>)| {
            let last = part == parts;
            let (entries, updates): (Vec<Entry>, Vec<_>) = piece.into_iter().unzip();
            Self {
                cohort_id: context.cohort_id.clone(),
                number: response.number,
                part,
                parts,
                response_hash: hash,
                entries,
                updates: updates.into_iter().flatten().cloned().collect(),
                roster_hash: last.then_some(response.roster_hash),
                has_updates: last.then_some(response.has_updates),
                nonce_contributions: last.then(|| response.nonce_contributions.clone()),
                signature: last.then_some(response.signature),
            }
        };
        (1..).zip(pieces).map(part).collect()
    }
}

/// `standing/confirmation_request`. The fallback script is never sent: a seat builds it from the roster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfirmationRequest {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The number.
    pub number: u64,
    /// The board, which a seat fetches by this hash.
    pub board_hash: DocumentHash,
    /// How the transaction is signed.
    pub mode: Mode,
    /// The unsigned transaction.
    #[serde(with = "unsigned")]
    pub pending_tx: Transaction,
    /// Until when a seat may confirm, in Unix seconds.
    pub confirm_by: u64,
    /// The aggregate nonce of each input; empty for a fallback.
    pub aggregated_nonces: Vec<Bytes<66>>,
}

/// `standing/confirmation`: one of partial signatures, fallback signatures, and a refusal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Confirmation {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The number.
    pub number: u64,
    /// The board that it confirms.
    pub board_hash: DocumentHash,
    /// One for each input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial_signatures: Option<Vec<Bytes<32>>>,
    /// One for each input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_signatures: Option<Vec<Signature>>,
    /// Why it does not sign; [`NONCE_LOST`](Self::NONCE_LOST) if it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
}

impl Confirmation {
    /// The refusal of a seat that was restarted: the next number can be signed by all again.
    pub const NONCE_LOST: &str = "nonceLost";
}

/// `standing/number_ended`: `idle`, `failed` with its reason, `announced` with the signed transaction, or `void` when another transaction
/// has spent its coin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NumberEndedNotice {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The number.
    pub number: u64,
    /// How it ended.
    pub end: EndKind,
    /// Why it failed or is void.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The signed transaction of an announced number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<TransactionHex>,
    /// The board of an announced number, also for a seat that was absent; of an idle one, which shows the roster that the seats have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub board_hash: Option<DocumentHash>,
}

/// How a number ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EndKind {
    /// No seat had an update.
    Idle,
    /// There is no signed transaction. The next number spends the same coins.
    Failed,
    /// Its transaction is signed.
    Announced,
    /// Another transaction has spent its coin: it can never be mined.
    Void,
}
