//! A sparse Merkle tree whose inner nodes are stored: the proof of any index, with a leaf or without one, takes at most 256 hashes.
//!
//! [`SparseMerkleTree`](super::SparseMerkleTree) makes the proofs of all leaves at once and stores no node. This one is for a tree that is
//! asked for single proofs, long after it was announced.

use super::smt::{DuplicateIndex, LEVELS, RawProof, first_difference, lift, node, zeros};

/// A subtree: a leaf by its place, or a joint by its place.
#[derive(Clone, Copy, Debug)]
enum Subtree {
    Leaf(usize),
    Joint(usize),
}

/// One side of a joint.
#[derive(Clone, Copy, Debug)]
struct Side {
    subtree: Subtree,
    /// Its hash directly below the joint's level.
    hash: [u8; 32],
}

/// Two subtrees whose indices first differ at `level`.
#[derive(Clone, Copy, Debug)]
struct Joint {
    level: usize,
    left: Side,
    right: Side,
    /// Any leaf below it: all of them have the same bits above `level`.
    leaf: usize,
}

impl Joint {
    fn hash(&self) -> [u8; 32] {
        node(&self.left.hash, &self.right.hash)
    }
}

/// A sparse Merkle tree with its inner nodes.
#[derive(Clone, Debug)]
pub struct SmtPaths {
    /// In the order of their indices.
    leaves: Vec<([u8; 32], [u8; 32])>,
    joints: Vec<Joint>,
    /// The subtree of all leaves; none of a tree without leaves.
    top: Option<Subtree>,
    root: [u8; 32],
}

/// The path of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafPath {
    /// The siblings.
    pub proof: RawProof,
    /// The leaf at the index; none if there is none, which the path proves with the empty leaf (rule M-11).
    pub leaf: Option<[u8; 32]>,
}

/// A complete subtree that is not joined with its right neighbour yet.
struct Waiting {
    split: usize,
    side: Side,
    leaf: usize,
}

impl SmtPaths {
    /// Builds the tree from `(index, leaf)` pairs in any order.
    ///
    /// # Errors
    /// [`DuplicateIndex`] when two leaves have one index.
    pub fn build(mut leaves: Vec<([u8; 32], [u8; 32])>) -> Result<Self, DuplicateIndex> {
        leaves.sort_unstable();
        let mut joints: Vec<Joint> = Vec::with_capacity(leaves.len().saturating_sub(1));
        let mut waiting: Vec<Waiting> = Vec::new();
        let (mut top, mut root) = (None, zeros()[LEVELS]);
        for (place, (index, leaf)) in leaves.iter().enumerate() {
            let next_split = match leaves.get(place + 1) {
                Some((next, _)) => Some(first_difference(index, next).ok_or(DuplicateIndex(*index))?),
                None => None,
            };
            // `hash` is that of `subtree`, its top directly below `level - 1`.
            let (mut subtree, mut level, mut hash) = (Subtree::Leaf(place), LEVELS, *leaf);
            // A subtree whose split is below the split of the next leaf is complete.
            while let Some(left) = waiting.pop_if(|left| next_split.is_none_or(|next| left.split > next)) {
                let right = Side { subtree, hash: lift(hash, index, level, left.split + 1) };
                let joint = Joint { level: left.split, left: left.side, right, leaf: left.leaf };
                (subtree, level, hash) = (Subtree::Joint(joints.len()), left.split, joint.hash());
                joints.push(joint);
            }
            match next_split {
                Some(split) => {
                    let side = Side { subtree, hash: lift(hash, index, level, split + 1) };
                    waiting.push(Waiting { split, side, leaf: place });
                }
                None => (top, root) = (Some(subtree), lift(hash, index, level, 0)),
            }
        }
        Ok(Self { leaves, joints, top, root })
    }

    /// The root; [`zero_hash`](super::zero_hash)`(256)` for a tree without leaves.
    pub const fn root(&self) -> &[u8; 32] {
        &self.root
    }

    /// The path of an index.
    pub fn path(&self, index: &[u8; 32]) -> LeafPath {
        let mut proof = RawProof { collapsed: [0xff; 32], hashes: Vec::new() };
        let mut found = None;
        let mut next = self.top;
        while let Some(subtree) = next {
            // Where the subtree begins, and a leaf of it.
            let (level, leaf, hash) = match subtree {
                Subtree::Leaf(leaf) => (LEVELS, leaf, self.leaves[leaf].1),
                Subtree::Joint(joint) => {
                    let joint = &self.joints[joint];
                    (joint.level, joint.leaf, joint.hash())
                }
            };
            let known = &self.leaves[leaf].0;
            let differs = first_difference(index, known).filter(|differs| *differs < level);
            if let Some(differs) = differs {
                // The index branches off above: all of the subtree is its sibling, and below it there is nothing.
                add(&mut proof, differs, lift(hash, known, level, differs + 1));
                break;
            }
            next = match subtree {
                Subtree::Leaf(leaf) => {
                    found = Some(self.leaves[leaf].1);
                    None
                }
                Subtree::Joint(joint) => {
                    let Joint { level, left, right, .. } = &self.joints[joint];
                    let is_right = index[level / 8] & (0x80 >> (level % 8)) != 0;
                    let (own, sibling) = if is_right { (right, left) } else { (left, right) };
                    add(&mut proof, *level, sibling.hash);
                    Some(own.subtree)
                }
            };
        }
        // From the leaf to the root.
        proof.hashes.reverse();
        LeafPath { proof, leaf: found }
    }
}

/// Adds a sibling, unless it is the hash of an empty subtree, which stays collapsed (rules M-8 and M-12).
fn add(proof: &mut RawProof, level: usize, sibling: [u8; 32]) {
    if sibling != zeros()[LEVELS - 1 - level] {
        proof.collapsed[level / 8] &= !(0x80 >> (level % 8));
        proof.hashes.push(sibling);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        beacon::{SparseMerkleTree, zero_hash},
        hash::sha256,
    };

    fn leaves(count: u64) -> Vec<([u8; 32], [u8; 32])> {
        let leaf = |at: u64| (sha256(&at.to_be_bytes()), sha256(&(at + 1_000_000).to_be_bytes()));
        (0..count).map(leaf).collect()
    }

    #[test]
    fn paths_are_the_proofs_of_the_whole_tree() {
        for count in [1, 2, 3, 17, 200] {
            let given = leaves(count);
            let whole = SparseMerkleTree::build(given.clone()).unwrap();
            let paths = SmtPaths::build(given.clone()).unwrap();
            assert_eq!(*paths.root(), whole.root);
            for ((index, leaf), proof) in given.iter().zip(whole.proofs) {
                assert_eq!(paths.path(index), LeafPath { proof, leaf: Some(*leaf) });
            }
        }
    }

    #[test]
    fn an_index_without_a_leaf_has_the_path_of_the_empty_one() {
        let empty = zero_hash(0).unwrap();
        for count in [0, 1, 2, 50] {
            let given = leaves(count);
            let paths = SmtPaths::build(given.clone()).unwrap();
            let neighbour = |at: usize, bit: u8| {
                let mut index = given[at].0;
                index[31 - at % 4 * 10] ^= bit;
                index
            };
            let close = (0..given.len()).flat_map(|at| [neighbour(at, 1), neighbour(at, 0x80)]);
            for index in close.chain((0..20_u64).map(|at| sha256(&(at + 5_000).to_be_bytes()))) {
                let path = paths.path(&index);
                let mut with = given.clone();
                with.push((index, empty));
                let expected = SparseMerkleTree::build(with).unwrap();
                assert_eq!(path, LeafPath { proof: expected.proofs[given.len()].clone(), leaf: None });
                assert_eq!(path.proof.root_for(&index, &empty).unwrap(), *paths.root());
            }
        }
    }

    #[test]
    fn leaves_that_are_empty_are_no_siblings() {
        let mut given = leaves(30);
        for (_, leaf) in given.iter_mut().step_by(3) {
            *leaf = zero_hash(0).unwrap();
        }
        let whole = SparseMerkleTree::build(given.clone()).unwrap();
        let paths = SmtPaths::build(given.clone()).unwrap();
        assert_eq!(*paths.root(), whole.root);
        for ((index, _), proof) in given.iter().zip(whole.proofs) {
            assert_eq!(paths.path(index).proof, proof);
        }
        let twice = vec![given[0], given[0]];
        assert_eq!(SmtPaths::build(twice).unwrap_err(), DuplicateIndex(given[0].0));
    }
}
