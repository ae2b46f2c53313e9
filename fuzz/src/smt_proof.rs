//! SMT proofs: one from an unauthenticated peer, and all those of a tree.

use std::collections::BTreeSet;

use btcr2_aggregation_protocol::{
    beacon::{SmtNonce, SmtProof, SparseMerkleTree, smt_leaf, zero_hash},
    hash::{SmtHash, sha256},
};

/// The first byte of an input that is the leaves of a tree.
const TREE: u8 = b'#';

/// Proofs of 64 leaves are quadratic work for this check, though not for the tree.
const MAX_LEAVES: usize = 64;

/// A proof leads to a root exactly when it has as many siblings as it claims, and to another root for any other leaf or
/// sibling. The proofs of a tree lead to its root.
pub fn check(data: &[u8]) {
    match data.split_first() {
        Some((&TREE, leaves)) => check_tree(leaves),
        _ => check_proof(data),
    }
}

fn check_proof(data: &[u8]) {
    let Ok(proof) = serde_json::from_slice::<SmtProof>(data) else { return };
    let text = serde_json::to_string(&proof).expect("a proof serializes");
    assert_eq!(serde_json::from_str::<SmtProof>(&text).expect("what we write is a proof"), proof);

    let index = sha256(data);
    let leaf = smt_leaf(proof.nonce.as_ref().map(SmtNonce::as_bytes), proof.update_id.as_ref());
    let needed: u32 = proof.collapsed.as_bytes().iter().map(|byte| byte.count_zeros()).sum();
    let Ok(root) = proof.root_for(&index, &leaf) else {
        let zeros: BTreeSet<[u8; 32]> = (0..256).filter_map(zero_hash).collect();
        let lists_a_zero = proof.hashes.iter().any(|hash| zeros.contains(hash.as_bytes()));
        assert!(proof.hashes.len() != needed as usize || lists_a_zero);
        return;
    };
    assert_eq!(proof.verify(&index).is_ok(), root == proof.id);
    assert_eq!(proof.hashes.len(), needed as usize);
    assert_ne!(proof.root_for(&index, &sha256(&leaf)), Ok(root));
    if let Some(sibling) = proof.hashes.first().copied() {
        let mut other = proof.clone();
        other.hashes[0] = SmtHash::from_bytes(sha256(sibling.as_bytes()));
        assert_ne!(other.root_for(&index, &leaf), Ok(root));
        other.hashes.push(sibling);
        assert!(other.root_for(&index, &leaf).is_err());
    }
}

/// Leaves of three bytes: which byte of the index is set, and to which value, starting from the last index (so that indices
/// share most of their bits, as hashes never do), and the content of the leaf.
fn check_tree(data: &[u8]) {
    let mut index = [0; 32];
    let leaves: Vec<([u8; 32], [u8; 32])> = data
        .chunks_exact(3)
        .take(MAX_LEAVES)
        .map(|leaf| {
            index[usize::from(leaf[0]) % 32] = leaf[1];
            (index, sha256(&leaf[2..]))
        })
        .collect();
    let indices: BTreeSet<[u8; 32]> = leaves.iter().map(|(index, _)| *index).collect();
    let Ok(tree) = SparseMerkleTree::build(leaves.clone()) else {
        assert!(indices.len() < leaves.len(), "refused, without an index that comes twice");
        return;
    };
    assert_eq!(indices.len(), leaves.len(), "an index comes twice");
    assert_eq!(tree.proofs.len(), leaves.len());
    for ((index, leaf), proof) in leaves.iter().zip(&tree.proofs) {
        assert_eq!(proof.root_for(index, leaf), Ok(tree.root));
        assert_ne!(proof.root_for(index, &sha256(leaf)), Ok(tree.root));
    }
    // The order does not matter.
    let mut backwards = leaves;
    backwards.reverse();
    assert_eq!(SparseMerkleTree::build(backwards).map(|tree| tree.root), Ok(tree.root));
}
