//! The transcript of a cohort: a Merkle tree over the digests of the round's messages, in order. Its signed head lets
//! a third party check later that a message was part of the round, and that none was added, dropped or changed.
//!
//! Hashes and shape are those of Certificate Transparency (RFC 6962, section 2.1): a leaf is
//! `SHA-256(0x00 || digest)`, a node `SHA-256(0x01 || left || right)`, so that a node cannot be presented as a leaf;
//! the lone last node of a level moves up unchanged. The head has the number of messages besides the root.

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use rand_core::CryptoRng;
use rs_merkle::{MerkleProof, MerkleTree};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    hash::{MessageDigest, sha256, sha256_concat},
    key::{SecretKey, Signature, XOnlyKey},
};

const TAG: &[u8] = b"btcr2-aggregation/transcript";

/// RFC 6962's hashing for `rs_merkle`, whose own algorithms hash nodes and leaves alike.
#[derive(Clone)]
struct Rfc6962;

impl rs_merkle::Hasher for Rfc6962 {
    type Hash = [u8; 32];

    fn hash(digest: &[u8]) -> [u8; 32] {
        sha256_concat(&[&[0x00], digest])
    }

    fn concat_and_hash(left: &[u8; 32], right: Option<&[u8; 32]>) -> [u8; 32] {
        match right {
            Some(right) => sha256_concat(&[&[0x01], left, right]),
            None => *left,
        }
    }
}

fn leaf(digest: &MessageDigest) -> [u8; 32] {
    <Rfc6962 as rs_merkle::Hasher>::hash(digest.as_bytes())
}

/// The digests of a round's messages, in the order in which they were sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Transcript {
    digests: Vec<MessageDigest>,
}

impl Transcript {
    /// Appends a message.
    pub fn push(&mut self, digest: MessageDigest) {
        self.digests.push(digest);
    }

    /// The number of messages.
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// Whether there are no messages.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// The digests, in order.
    pub fn digests(&self) -> &[MessageDigest] {
        &self.digests
    }

    /// The head over all messages so far. Hashes the whole transcript: call it once, at the end of a round.
    pub fn head(&self) -> TranscriptHead {
        // The empty tree's root is the hash of nothing (RFC 6962).
        TranscriptHead { root: self.tree().root().unwrap_or_else(|| sha256(&[])), size: self.digests.len() as u64 }
    }

    /// Proof that message `index` is in the tree of [`Self::head`]; `None` if there is no such message. Hashes the whole
    /// transcript.
    pub fn prove(&self, index: usize) -> Option<InclusionProof> {
        if index >= self.digests.len() {
            return None;
        }
        let hashes = self.tree().proof(&[index]).proof_hashes().to_vec();
        Some(InclusionProof { index: index as u64, hashes })
    }

    /// Built on demand and in one commit: `rs_merkle`'s incremental commits take time quadratic in the number of
    /// messages.
    fn tree(&self) -> MerkleTree<Rfc6962> {
        MerkleTree::from_leaves(&self.digests.iter().map(leaf).collect::<Vec<_>>())
    }
}

/// A commitment to a whole transcript.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TranscriptHead {
    /// The root of the tree, in hex.
    #[serde(with = "hex32")]
    pub root: [u8; 32],
    /// The number of messages.
    pub size: u64,
}

impl TranscriptHead {
    /// Signs the head. `context` is the bytes of the cohort's identifier: a head signed for one cohort is not valid
    /// for another.
    pub fn sign(&self, context: &[u8], key: &SecretKey, rng: &mut dyn CryptoRng) -> SignedTranscriptHead {
        SignedTranscriptHead { head: *self, signature: key.sign(&self.digest(context), rng) }
    }

    /// BIP-340 tagged hash over root, size (8 bytes, big-endian) and context. Only the last part has a variable
    /// length, so the encodings of two different heads always differ.
    fn digest(&self, context: &[u8]) -> [u8; 32] {
        let tag = sha256(TAG);
        sha256_concat(&[&tag, &tag, &self.root, &self.size.to_be_bytes(), context])
    }
}

/// A head and the signature of its author.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedTranscriptHead {
    /// The head.
    pub head: TranscriptHead,
    /// BIP-340 over the tagged hash `btcr2-aggregation/transcript`.
    pub signature: Signature,
}

impl SignedTranscriptHead {
    /// Whether `key` signed this head for `context`.
    pub fn verify(&self, context: &[u8], key: &XOnlyKey) -> bool {
        key.verify(&self.head.digest(context), &self.signature)
    }
}

/// A proof that a message has a certain index in a transcript.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InclusionProof {
    /// The index of the message, counted from 0.
    pub index: u64,
    /// The siblings from the leaf to the root, in hex (RFC 6962's audit path).
    #[serde(with = "hex32_list")]
    pub hashes: Vec<[u8; 32]>,
}

impl InclusionProof {
    /// Whether the message with `digest` has the index [`Self::index`] in the transcript with that head. Returns
    /// false for malformed contents; never panics.
    pub fn verify(&self, head: &TranscriptHead, digest: &MessageDigest) -> bool {
        // `rs_merkle` ignores surplus hashes, and so would accept many encodings of one proof.
        if path_length(self.index, head.size) != Some(self.hashes.len()) {
            return false;
        }
        // A transcript larger than the address space cannot exist on this machine.
        let (Ok(index), Ok(size)) = (usize::try_from(self.index), usize::try_from(head.size)) else {
            return false;
        };
        MerkleProof::<Rfc6962>::new(self.hashes.clone()).verify(head.root, &[index], &[leaf(digest)], size)
    }
}

/// The number of hashes in the audit path of leaf `index` among `size`: one for each level at which the path's node
/// is not the lone last one. `None` if there is no such leaf.
fn path_length(mut index: u64, size: u64) -> Option<usize> {
    // The last node's index, rather than the size, so that no step can overflow.
    let mut last = size.checked_sub(1)?;
    if index > last {
        return None;
    }
    let mut length = 0;
    while last > 0 {
        let lone = index == last && index.is_multiple_of(2);
        length += usize::from(!lone);
        index /= 2;
        last /= 2;
    }
    Some(length)
}

mod hex32 {
    use super::*;

    pub(super) fn serialize<S: Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(hash))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        parse(&String::deserialize(deserializer)?).ok_or_else(|| de::Error::custom("hex of 32 bytes expected"))
    }

    pub(super) fn parse(text: &str) -> Option<[u8; 32]> {
        HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok()
    }
}

mod hex32_list {
    use super::*;

    pub(super) fn serialize<S: Serializer>(hashes: &[[u8; 32]], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(hashes.iter().map(|hash| HEXLOWER.encode(hash)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<[u8; 32]>, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .iter()
            .map(|text| hex32::parse(text).ok_or_else(|| de::Error::custom("hex of 32 bytes expected")))
            .collect()
    }
}
