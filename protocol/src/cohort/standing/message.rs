//! The messages of standing cohorts (docs/standing.md, "Messages"). Field names are binding; byte strings and transactions are encoded as in
//! one-time cohorts.

use bitcoin::Transaction;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    context::CohortContext,
    opportunity::{Opportunity, TransactionHex},
    response::{Entry, Response},
    roster::{Row, RowAction},
    terms::StandingTerms,
    transaction::Mode,
};
use crate::{
    hash::{DidIndex, DocumentHash},
    id::CohortId,
    key::{PublicKey, SecretKey, Signature},
    message::{Bytes, sign::transaction_hex},
};

const POSSESSION: &str = "btcr2-aggregation/standing/possession/1";

/// The most entries of one part of a response, and rows of one part of a registration: a part with hashes alone then fits into one HTTP
/// message.
pub const MAX_PART_ENTRIES: usize = 256;

macro_rules! messages {
    ($($(#[$doc:meta])* $variant:ident = $kind:literal;)*) => {
        /// A message between a service and a seat.
        #[derive(Clone, Debug, PartialEq)]
        pub enum StandingMessage {
            $($(#[$doc])* $variant($variant),)*
        }

        impl StandingMessage {
            /// The names of all types, without the common prefix.
            pub const TYPES: &[&str] = &[$($kind),*];

            /// The name of the type, without the common prefix.
            pub const fn short_type(&self) -> &'static str {
                match self { $(Self::$variant(_) => $kind,)* }
            }

            /// The cohort.
            pub const fn cohort_id(&self) -> &CohortId {
                match self { $(Self::$variant(message) => &message.cohort_id,)* }
            }

            /// The body's JSON.
            pub fn to_value(&self) -> Value {
                match self { $(Self::$variant(message) => serde_json::to_value(message),)* }
                    .expect("messages have text keys and numbers that JSON has")
            }

            /// Reads a body of the type with this name.
            ///
            /// # Errors
            /// Why it is not one; `None` for an unknown type.
            pub fn from_value(short_type: &str, body: Value) -> Option<Result<Self, serde_json::Error>> {
                match short_type {
                    $($kind => Some(serde_json::from_value(body).map(Self::$variant)),)*
                    _ => None,
                }
            }
        }

        $(impl From<$variant> for StandingMessage {
            fn from(message: $variant) -> Self {
                Self::$variant(message)
            }
        })*
    };
}

messages! {
    /// The service advertises a standing cohort to every peer.
    StandingAdvert = "standing/cohort_advert";
    /// A participant asks for a seat.
    SeatOptIn = "standing/opt_in";
    /// The service gives it the seat, if the cohort forms.
    SeatAccept = "standing/opt_in_accept";
    /// The cohort has formed.
    StandingReady = "standing/cohort_ready";
    /// A seat registers and unregisters indexes.
    RegisterRows = "standing/register";
    /// What became of its rows.
    RowsAnswered = "standing/registered";
    /// A seat returns rows to a service that has lost them.
    RowsReturned = "standing/rows_returned";
    /// A seat has updates.
    Pending = "standing/pending";
    /// The service opens a number. A seat sends it back to a service that has opened the number otherwise before.
    OpportunityOpened = "standing/opportunity";
    /// A seat's response, in parts.
    ResponsePart = "standing/response";
    /// The service asks for confirmation.
    ConfirmationRequest = "standing/confirmation_request";
    /// A seat confirms, refuses, or has lost its nonces.
    Confirmation = "standing/confirmation";
    /// A number has ended.
    NumberEndedNotice = "standing/number_ended";
}

/// `standing/cohort_advert`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StandingAdvert {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The key of the service's DID.
    pub communication_pk: Bytes<33>,
    /// Its terms.
    pub terms: StandingTerms,
}

/// `standing/opt_in`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeatOptIn {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The seat key.
    pub participant_pk: PublicKey,
    /// A signature by the seat key of who asks for the seat: [`possession_digest`].
    pub possession: Signature,
}

/// What a participant signs with its seat key to prove that it has it: the tagged hash of service DID, cohort id, and the
/// participant's DID.
pub fn possession_digest(service: &crate::did::Did, cohort_id: &CohortId, from: &crate::did::Did) -> [u8; 32] {
    let parts = [service.as_str().as_bytes(), cohort_id.as_str().as_bytes(), from.as_str().as_bytes()];
    super::context::tagged(POSSESSION, parts)
}

/// `standing/opt_in_accept`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeatAccept {
    /// The cohort.
    pub cohort_id: CohortId,
}

/// `standing/cohort_ready`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StandingReady {
    /// The cohort.
    pub cohort_id: CohortId,
    /// Its beacon address; a seat derives it itself.
    pub beacon_address: String,
    /// The seat keys, in KeySort order.
    pub cohort_keys: Vec<PublicKey>,
}

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

/// The most bytes of JSON that the rows of one message take: it fits into one HTTP message. Fewer than [`MAX_PART_ENTRIES`] rows
/// fit into them.
const MAX_PART_BYTES: usize = 48 << 10;

impl RegisterRows {
    /// Rows in as few messages as they fit into. A row with a larger genesis document is alone in its message.
    pub fn split(cohort_id: &CohortId, rows: &[AskedRow]) -> Vec<Self> {
        let mut parts: Vec<Self> = Vec::new();
        let mut bytes = 0;
        for row in rows {
            let size = serde_json::to_string(row).map_or(0, |text| text.len());
            match parts.last_mut() {
                Some(part) if bytes + size <= MAX_PART_BYTES => {
                    part.rows.push(row.clone());
                    bytes += size;
                }
                _ => {
                    parts.push(Self { cohort_id: cohort_id.clone(), rows: vec![row.clone()] });
                    bytes = size;
                }
            }
        }
        parts
    }
}

/// `standing/rows_returned`: rows that seats have signed, from a place of the roster on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RowsReturned {
    /// The cohort.
    pub cohort_id: CohortId,
    /// After so many rows.
    pub from: u64,
    /// At most [`MAX_PART_ENTRIES`].
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
    /// A response in as few parts as it fits into.
    pub fn split(context: &CohortContext, response: &Response) -> Vec<Self> {
        let hash = response.hash(context);
        let mut pieces: Vec<&[Entry]> = response.entries.chunks(MAX_PART_ENTRIES).collect();
        if pieces.is_empty() {
            pieces.push(&[]);
        }
        let parts = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        let part = |(part, entries): (u32, &[Entry])| {
            let last = part == parts;
            Self {
                cohort_id: context.cohort_id.clone(),
                number: response.number,
                part,
                parts,
                response_hash: hash,
                entries: entries.to_vec(),
                updates: Vec::new(),
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
    #[serde(with = "transaction_hex")]
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

impl SeatOptIn {
    /// A request for a seat by `from`.
    pub fn sign(
        service: &crate::did::Did,
        cohort_id: &CohortId,
        from: &crate::did::Did,
        key: &SecretKey,
        rng: &mut dyn rand_core::CryptoRng,
    ) -> Self {
        let possession = key.sign(&possession_digest(service, cohort_id, from), rng);
        Self { cohort_id: cohort_id.clone(), participant_pk: key.public_key(), possession }
    }

    /// Whether `from` has the seat key.
    pub fn is_proven(&self, service: &crate::did::Did, from: &crate::did::Did) -> bool {
        let digest = possession_digest(service, &self.cohort_id, from);
        self.participant_pk.x_only().verify(&digest, &self.possession)
    }
}
