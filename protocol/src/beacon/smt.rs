//! The SMT beacon (did:btcr2, "SMT Beacon"): a sparse Merkle tree with a leaf for every member. The signal is its
//! root, and each member receives only its own path, which reveals nothing about the other members' updates.
//!
//! The tree has 2^256 leaves. Bit `i` of an index chooses the child at level `i`: bit 0 is the most significant bit
//! of byte 0, level 0 is under the root, level 255 is the leaves' (rule M-2). The leaves are therefore in the order
//! of their indices, and indices with a common prefix share ancestors. An empty subtree whose leaves are `n` levels
//! down has the hash [`zero_hash`]`(n)`, which is also the empty sibling at level `255 - n`.
//!
//! The rules named here (M-1 to M-13) are those of the specification's edition of October 2026. Trees of earlier editions
//! counted bits from the least significant one; their proofs do not verify here.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock},
};

use data_encoding::BASE64URL_NOPAD;
use rand_core::CryptoRng;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    AggregateBeacon, AggregatedData, Aggregation, BeaconData, BeaconError, BeaconMismatch, BeaconType, Slots,
};
use crate::{
    did::Did,
    hash::{DidIndex, DocumentHash, SignalBytes, SmtHash, sha256, sha256_concat},
};

/// Levels of the tree, one for each bit of an index.
pub(super) const LEVELS: usize = 256;

pub(super) fn zeros() -> &'static [[u8; 32]; LEVELS + 1] {
    static ZEROS: OnceLock<[[u8; 32]; LEVELS + 1]> = OnceLock::new();
    ZEROS.get_or_init(|| {
        let mut zero = [0; 32];
        std::array::from_fn(|_| {
            zero = node(&zero, &zero);
            zero
        })
    })
}

/// The hash of an empty subtree `n` levels above the leaves: `zero_hash(0) = H(0^32 || 0^32)`, `zero_hash(n) =
/// H(zero_hash(n-1) || zero_hash(n-1))`. `zero_hash(256)` is the root of the empty tree; a greater `n` gives `None`.
pub fn zero_hash(n: usize) -> Option<[u8; 32]> {
    zeros().get(n).copied()
}

/// The index of a DID's leaf: SHA-256 of the DID's text.
pub fn smt_index(did: &Did) -> [u8; 32] {
    smt_index_of(did.as_str())
}

/// The same, as standing cohorts name a DID.
pub fn did_index(did: &Did) -> DidIndex {
    DidIndex::from_bytes(smt_index(did))
}

/// The index of the DID with this text (rule M-1).
pub(crate) fn smt_index_of(did: &str) -> [u8; 32] {
    sha256(did.as_bytes())
}

/// The leaf of an index (rule M-3). With a nonce and an update `H(H(nonce) || update hash)`, with a nonce only
/// `H(H(nonce))`, with an update only the update's hash itself, with neither the empty leaf, [`zero_hash`]`(0)`.
///
/// A nonce hides from other members, who see the leaf as a sibling, whether it holds an update.
pub fn smt_leaf(nonce: Option<&[u8]>, update: Option<&DocumentHash>) -> [u8; 32] {
    match (nonce, update) {
        (Some(nonce), Some(update)) => sha256_concat(&[&sha256(nonce), update.as_bytes()]),
        (Some(nonce), None) => sha256(&sha256(nonce)),
        (None, Some(update)) => *update.as_bytes(),
        (None, None) => zeros()[0],
    }
}

pub(super) fn node(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    sha256_concat(&[left, right])
}

/// The parent of `hash`, which is the right child when `bit` is set.
fn parent(bit: bool, hash: &[u8; 32], sibling: &[u8; 32]) -> [u8; 32] {
    if bit { node(sibling, hash) } else { node(hash, sibling) }
}

/// Bit `i` of a 256-bit number, `i` in `0..256`, from the most significant bit on (rule M-2).
fn bit(number: &[u8; 32], i: usize) -> bool {
    number[i / 8] & (0x80 >> (i % 8)) != 0
}

/// Two leaves were given for one index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("two leaves have the index {}", SmtHash::from_bytes(self.0))]
pub struct DuplicateIndex(
    /// The index.
    pub [u8; 32],
);

/// The path of one leaf, without what identifies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawProof {
    /// Bit `i` is set where the sibling at level `i` is an empty subtree.
    pub collapsed: [u8; 32],
    /// The other siblings, from the leaf to the root.
    pub hashes: Vec<[u8; 32]>,
}

impl RawProof {
    /// The root that follows from `leaf` at `index`.
    ///
    /// # Errors
    /// [`BeaconMismatch::SiblingCount`] unless there is exactly one sibling for each level that needs one (rule M-7), and
    /// [`BeaconMismatch::ListedZero`] when one of them is an empty subtree (rule M-8): one path has one proof.
    pub fn root_for(&self, index: &[u8; 32], leaf: &[u8; 32]) -> Result<[u8; 32], BeaconMismatch> {
        walk(&self.collapsed, self.hashes.len(), self.hashes.iter(), index, leaf)
    }
}

fn walk<'a>(
    collapsed: &[u8; 32],
    found: usize,
    mut siblings: impl Iterator<Item = &'a [u8; 32]>,
    index: &[u8; 32],
    leaf: &[u8; 32],
) -> Result<[u8; 32], BeaconMismatch> {
    let expected = collapsed.iter().map(|byte| byte.count_zeros() as usize).sum();
    let miscounted = BeaconMismatch::SiblingCount { expected, found };
    if found != expected {
        return Err(miscounted);
    }
    let mut hash = *leaf;
    for (n, zero) in zeros()[..LEVELS].iter().enumerate() {
        let level = LEVELS - 1 - n;
        let sibling = if bit(collapsed, level) {
            zero
        } else {
            let sibling = siblings.next().ok_or(miscounted.clone())?;
            if sibling == zero {
                return Err(BeaconMismatch::ListedZero { level });
            }
            sibling
        };
        hash = parent(bit(index, level), &hash, sibling);
    }
    Ok(hash)
}

/// A sparse Merkle tree, reduced to what a round needs of it: the root, and the proof of every leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseMerkleTree {
    /// The root; [`zero_hash`]`(256)` for a tree without leaves.
    pub root: [u8; 32],
    /// The proofs, in the order in which the leaves were given.
    pub proofs: Vec<RawProof>,
}

/// A complete subtree that is not joined with its right neighbour yet.
struct Waiting {
    /// Its first leaf, as a position in the sorted order.
    first: usize,
    /// The level of the split that separates it from its neighbour.
    split: usize,
    /// Its hash directly below that split.
    hash: [u8; 32],
}

impl SparseMerkleTree {
    /// Builds the tree from `(index, leaf)` pairs in any order. A leaf that is the empty one, `smt_leaf(None, None)`, changes
    /// nothing in the tree and gets the proof that its index has no leaf (rule M-11).
    ///
    /// The loop takes the leaves from left to right. Neighbours are joined at the level where their indices first
    /// differ. Between two joins a subtree has only empty siblings and is hashed with [`zero_hash`]es. For `n`
    /// indices that are hashes, this takes about `256 n` hashes and gives `n log n` proof siblings. No node of the
    /// tree is stored.
    pub fn build(leaves: Vec<([u8; 32], [u8; 32])>) -> Result<Self, DuplicateIndex> {
        // Left to right is the bytewise order of the indices, because level 0 is the most significant bit.
        let mut order: Vec<([u8; 32], usize)> =
            leaves.iter().enumerate().map(|(given, (index, _))| (*index, given)).collect();
        order.sort_unstable();

        let mut proofs = vec![RawProof { collapsed: [0xff; 32], hashes: Vec::new() }; leaves.len()];
        let mut root = zeros()[LEVELS];
        let mut waiting: Vec<Waiting> = Vec::new();
        for (position, (key, given)) in order.iter().enumerate() {
            let (index, leaf) = &leaves[*given];
            let next_split = match order.get(position + 1) {
                Some((next, _)) => Some(first_difference(key, next).ok_or(DuplicateIndex(*index))?),
                None => None,
            };
            // `hash` is the subtree of the leaves `first..=position`, its top directly below `level - 1`.
            let (mut first, mut level, mut hash) = (position, LEVELS, *leaf);
            // A subtree whose split is below the split of the next leaf is complete.
            while let Some(left) = waiting.pop_if(|left| next_split.is_none_or(|next| left.split > next)) {
                let right = lift(hash, index, level, left.split + 1);
                for (_, member) in &order[left.first..first] {
                    add_sibling(&mut proofs[*member], left.split, right);
                }
                for (_, member) in &order[first..=position] {
                    add_sibling(&mut proofs[*member], left.split, left.hash);
                }
                (first, level, hash) = (left.first, left.split, node(&left.hash, &right));
            }
            match next_split {
                Some(split) => waiting.push(Waiting { first, split, hash: lift(hash, index, level, split + 1) }),
                None => root = lift(hash, index, level, 0),
            }
        }
        for proof in &mut proofs {
            proof.hashes.shrink_to_fit();
        }
        Ok(Self { root, proofs })
    }
}

/// The level at which two indices first differ; `None` if they are equal.
pub(super) fn first_difference(a: &[u8; 32], b: &[u8; 32]) -> Option<usize> {
    let byte = a.iter().zip(b).position(|(a, b)| a != b)?;
    Some(byte * 8 + (a[byte] ^ b[byte]).leading_zeros() as usize)
}

/// Hashes the subtree around `index` from below level `from - 1` up to below level `to - 1`, where all siblings are
/// empty.
pub(super) fn lift(mut hash: [u8; 32], index: &[u8; 32], from: usize, to: usize) -> [u8; 32] {
    for level in (to..from).rev() {
        hash = parent(bit(index, level), &hash, &zeros()[LEVELS - 1 - level]);
    }
    hash
}

/// Adds `sibling` to the proof, unless it is the hash of an empty subtree, which must stay collapsed (rules M-8 and
/// M-12). Only leaves that were passed as empty produce such a sibling.
fn add_sibling(proof: &mut RawProof, level: usize, sibling: [u8; 32]) {
    if sibling != zeros()[LEVELS - 1 - level] {
        proof.collapsed[level / 8] &= !(0x80 >> (level % 8));
        proof.hashes.push(sibling);
    }
}

/// The nonce of a leaf: 32 random bytes where this crate generates it, any length where it verifies one (rule M-6).
/// Serialized as base64url without padding.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SmtNonce(Box<[u8]>);

impl SmtNonce {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for SmtNonce {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Display for SmtNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for SmtNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SmtNonce({self})")
    }
}

impl Serialize for SmtNonce {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SmtNonce {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes());
        bytes.map(|bytes| Self(bytes.into())).map_err(|_| de::Error::custom("base64url without padding expected"))
    }
}

/// A member's SMT Proof, in the specification's JSON form (rule M-6). Deserialization refuses a null, and any text that is
/// not base64url without padding of as many bytes as the field has (rule M-9).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SmtProof {
    /// The root of the tree.
    pub id: SmtHash,
    /// Bit `i` (0 the most significant) is set where the sibling at level `i` is an empty subtree.
    pub collapsed: SmtHash,
    /// The other siblings, from the leaf to the root.
    pub hashes: Vec<SmtHash>,
    /// The nonce of the leaf. A member stores it for as long as it uses its DID: without the nonce it cannot present
    /// the proof of this signal (rule M-13).
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "not_null")]
    pub nonce: Option<SmtNonce>,
    /// The hash of the member's signed update; absent if it declined.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "not_null")]
    pub update_id: Option<DocumentHash>,
}

/// An optional field is absent, never null.
fn not_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl SmtProof {
    /// The root that follows from `leaf` at `index` and this proof's siblings, whatever root the proof names; see
    /// [`RawProof::root_for`].
    ///
    /// # Errors
    /// Those of [`RawProof::root_for`].
    pub fn root_for(&self, index: &[u8; 32], leaf: &[u8; 32]) -> Result<SmtHash, BeaconMismatch> {
        let siblings = self.hashes.iter().map(SmtHash::as_bytes);
        walk(self.collapsed.as_bytes(), self.hashes.len(), siblings, index, leaf).map(SmtHash::from_bytes)
    }

    /// Verifies the proof for the leaf that the proof itself describes, at `index`, as the specification defines it.
    /// The caller checks that [`id`](Self::id) is a signal, and that [`update_id`](Self::update_id) is an update of
    /// the DID.
    ///
    /// # Errors
    /// Those of [`RawProof::root_for`], and [`BeaconMismatch::Root`].
    pub fn verify(&self, index: &[u8; 32]) -> Result<(), BeaconMismatch> {
        self.verify_leaf(index, self.update_id.as_ref())
    }

    fn verify_leaf(&self, index: &[u8; 32], update: Option<&DocumentHash>) -> Result<(), BeaconMismatch> {
        let leaf = smt_leaf(self.nonce.as_ref().map(SmtNonce::as_bytes), update);
        let computed = self.root_for(index, &leaf)?;
        if computed == self.id { Ok(()) } else { Err(BeaconMismatch::Root { claimed: self.id, computed }) }
    }
}

/// The SMT beacon. Every member has a leaf, including a member that declined.
#[derive(Clone, Copy, Debug, Default)]
pub struct SmtBeacon;

impl SmtBeacon {
    /// Aggregates with the given nonces, to reproduce a recorded round. Nonces of non-members are ignored.
    ///
    /// # Errors
    /// [`BeaconError::MissingNonce`] if a member has no nonce.
    pub fn aggregate_with_nonces(
        slots: &Slots,
        nonces: &BTreeMap<Did, [u8; 32]>,
    ) -> Result<Aggregation, BeaconError> {
        let nonces = slots
            .keys()
            .map(|did| nonces.get(did).copied().ok_or_else(|| BeaconError::MissingNonce(did.clone())))
            .collect::<Result<Vec<_>, _>>()?;
        aggregate(slots, nonces)
    }
}

/// `nonces` are in the order of `slots`.
fn aggregate(slots: &Slots, nonces: Vec<[u8; 32]>) -> Result<Aggregation, BeaconError> {
    let leaves = slots
        .iter()
        .zip(&nonces)
        .map(|((did, slot), nonce)| (smt_index(did), smt_leaf(Some(nonce), slot.as_ref())))
        .collect();
    let SparseMerkleTree { root, proofs } = SparseMerkleTree::build(leaves)?;
    let data = slots
        .iter()
        .zip(nonces)
        .zip(proofs)
        .map(|(((did, slot), nonce), proof)| {
            let proof = SmtProof {
                id: SmtHash::from_bytes(root),
                collapsed: SmtHash::from_bytes(proof.collapsed),
                hashes: proof.hashes.into_iter().map(SmtHash::from_bytes).collect(),
                nonce: Some(SmtNonce::from(nonce.as_slice())),
                update_id: *slot,
            };
            (did.clone(), Arc::new(BeaconData::Smt(proof)))
        })
        .collect();
    Ok(Aggregation { signal: SignalBytes::from_bytes(root), data: AggregatedData::PerMember(data) })
}

impl AggregateBeacon for SmtBeacon {
    fn beacon_type(&self) -> BeaconType {
        BeaconType::smt()
    }

    fn aggregate(&self, slots: &Slots, rng: &mut dyn CryptoRng) -> Result<Aggregation, BeaconError> {
        let nonces = slots
            .keys()
            .map(|_| {
                let mut nonce = [0; 32];
                rng.fill_bytes(&mut nonce);
                nonce
            })
            .collect();
        aggregate(slots, nonces)
    }

    fn verify(
        &self,
        did: &Did,
        slot: Option<&DocumentHash>,
        data: &BeaconData,
    ) -> Result<SignalBytes, BeaconMismatch> {
        let BeaconData::Smt(proof) = data else {
            return Err(BeaconMismatch::WrongKind { expected: self.beacon_type() });
        };
        super::check_slot(slot, proof.update_id.as_ref())?;
        // The leaf is computed from the member's own contribution, never from what the proof claims.
        proof.verify_leaf(&smt_index(did), slot)?;
        Ok(SignalBytes::from_bytes(*proof.id.as_bytes()))
    }
}
