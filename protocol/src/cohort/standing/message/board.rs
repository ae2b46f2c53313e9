//! Boards on their way to a seat, in parts.

use data_encoding::BASE64URL_NOPAD;
use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};

use crate::{
    cohort::standing::context::CohortContext,
    did::Did,
    hash::DocumentHash,
    id::CohortId,
    key::{PublicKey, SecretKey, Signature},
};

/// The most bytes of a board in one message: 48 KiB as base64url.
pub const MAX_BOARD_PART: usize = 36 << 10;

const REQUEST: &str = "btcr2-aggregation/standing/board-request/1";

/// `standing/board_request`: to the service, or to another seat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BoardRequest {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The board.
    pub board_hash: DocumentHash,
    /// Which part, from 0.
    pub part: u32,
    /// To another seat: the proof that the sender has a seat. The service knows the DIDs of its seats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seat: Option<SeatProof>,
}

/// The proof that the sender of a request has a seat of the cohort.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeatProof {
    /// The seat key.
    pub seat: PublicKey,
    /// Its signature over the sender's DID and the hash of the board, in the cohort's context.
    pub signature: Signature,
}

impl SeatProof {
    fn digest(context: &CohortContext, from: &Did, board: &DocumentHash) -> [u8; 32] {
        context.digest(REQUEST, &[from.as_str().as_bytes(), board.as_bytes()])
    }

    /// The proof of the seat with `key`, whose messages come from `from`.
    pub fn sign(
        context: &CohortContext,
        from: &Did,
        board: &DocumentHash,
        key: &SecretKey,
        rng: &mut dyn CryptoRng,
    ) -> Self {
        let signature = key.sign(&Self::digest(context, from, board), rng);
        Self { seat: key.public_key(), signature }
    }

    /// Whether the seat key has signed for this sender and board.
    pub fn is_of(&self, context: &CohortContext, from: &Did, board: &DocumentHash) -> bool {
        self.seat.x_only().verify(&Self::digest(context, from, board), &self.signature)
    }
}

/// `standing/board_part`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BoardPart {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The board.
    pub board_hash: DocumentHash,
    /// Which part, from 0.
    pub part: u32,
    /// How many there are; 0 if the sender does not have the board.
    pub parts: u32,
    /// [`MAX_BOARD_PART`] bytes of it, in base64url without padding; fewer in the last part.
    pub bytes: String,
}

impl BoardPart {
    /// A part of a board of these bytes; `None` if it has fewer.
    pub fn of(cohort_id: &CohortId, board_hash: DocumentHash, board: &[u8], part: u32) -> Option<Self> {
        let parts = u32::try_from(board.len().div_ceil(MAX_BOARD_PART)).ok()?;
        let bytes = board.chunks(MAX_BOARD_PART).nth(usize::try_from(part).ok()?)?;
        let bytes = BASE64URL_NOPAD.encode(bytes);
        Some(Self { cohort_id: cohort_id.clone(), board_hash, part, parts, bytes })
    }

    /// The answer of a sender that does not have the board.
    pub fn missing(cohort_id: &CohortId, board_hash: DocumentHash) -> Self {
        Self { cohort_id: cohort_id.clone(), board_hash, part: 0, parts: 0, bytes: String::new() }
    }

    /// Its bytes; `None` if the text is not base64url, or too long.
    pub fn decoded(&self) -> Option<Vec<u8>> {
        BASE64URL_NOPAD.decode(self.bytes.as_bytes()).ok().filter(|bytes| bytes.len() <= MAX_BOARD_PART)
    }
}
