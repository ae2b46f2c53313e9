//! M: the sparse Merkle tree.

use btcr2_aggregation_protocol::{
    beacon::{
        AggregateBeacon, BeaconData, BeaconMismatch, SmtBeacon, SmtNonce, SmtProof, SparseMerkleTree, smt_index,
        smt_leaf, zero_hash,
    },
    hash::{DocumentHash, SmtHash, sha256, sha256_concat},
};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde_json::{Value, json};

use super::controller::{Controller, rng};

type Leaf = ([u8; 32], [u8; 32]);

/// The three leaves of the rules' test values.
fn example() -> [Leaf; 3] {
    let index = |name: &str| sha256(format!("did:btcr2:example-{name}").as_bytes());
    let update = |byte| DocumentHash::from_bytes([byte; 32]);
    [
        (index("a"), smt_leaf(Some(&[1; 32]), Some(&update(0x11)))),
        (index("b"), smt_leaf(Some(&[2; 32]), None)),
        (index("c"), smt_leaf(None, Some(&update(0x33)))),
    ]
}

fn proof_of(tree: &SparseMerkleTree, leaf: usize, nonce: Option<&[u8]>, update: Option<DocumentHash>) -> SmtProof {
    let raw = &tree.proofs[leaf];
    SmtProof {
        id: SmtHash::from_bytes(tree.root),
        collapsed: SmtHash::from_bytes(raw.collapsed),
        hashes: raw.hashes.iter().map(|hash| SmtHash::from_bytes(*hash)).collect(),
        nonce: nonce.map(SmtNonce::from),
        update_id: update,
    }
}

fn example_proof() -> ([u8; 32], SmtProof) {
    let tree = SparseMerkleTree::build(example().to_vec()).unwrap();
    (example()[0].0, proof_of(&tree, 0, Some(&[1; 32]), Some(DocumentHash::from_bytes([0x11; 32]))))
}

#[test]
fn m_01_index_is_the_hash_of_the_did() {
    let did = Controller::new().did().clone();
    assert_eq!(smt_index(&did), sha256(did.as_str().as_bytes()));
}

#[test]
fn m_02_bits_count_from_the_most_significant() {
    // Two indices that differ only in the first bit meet under the root: one sibling, at level 0.
    let (left, mut right) = ([0; 32], [0; 32]);
    right[0] = 0x80;
    let tree = SparseMerkleTree::build(vec![(left, [1; 32]), (right, [2; 32])]).unwrap();
    let mut collapsed = [0xff; 32];
    collapsed[0] = 0x7f;
    assert_eq!(tree.proofs[0].collapsed, collapsed);
    // Only in the last bit: beside the leaf.
    right = [0; 32];
    right[31] = 1;
    let tree = SparseMerkleTree::build(vec![(left, [1; 32]), (right, [2; 32])]).unwrap();
    let mut collapsed = [0xff; 32];
    collapsed[31] = 0xfe;
    assert_eq!((tree.proofs[0].collapsed, &tree.proofs[0].hashes), (collapsed, &vec![[2; 32]]));
}

#[test]
fn m_03_leaves_have_four_forms() {
    let update = DocumentHash::from_bytes([3; 32]);
    assert_eq!(smt_leaf(Some(b"n"), Some(&update)), sha256_concat(&[&sha256(b"n"), &[3; 32]]));
    assert_eq!(smt_leaf(Some(b""), None), sha256(&sha256(b"")), "an empty nonce is a nonce");
    assert_eq!(smt_leaf(None, Some(&update)), [3; 32]);
    assert_eq!(Some(smt_leaf(None, None)), zero_hash(0));
}

#[test]
fn m_04_zero_hashes_are_cached() {
    let hex = |n| HEXLOWER.encode(&zero_hash(n).unwrap());
    assert_eq!(hex(0), "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b");
    assert_eq!(hex(1), "db56114e00fdd4c1f85c892bf35ac9a89289aaecb1ebd0a96cde606a748b5d71");
    assert_eq!(hex(255), "b178c245c947ea7e21ecede07728941a6ab1b706143c06873baff8ebd6de6308");
    assert_eq!(hex(256), "a94774f83825bcbbe43db3998d4c7ad041a742d8a805a620811e49727e279748");
    assert_eq!(Some(SparseMerkleTree::build(Vec::new()).unwrap().root), zero_hash(256));
}

#[test]
fn m_05_the_tree_of_the_test_values() {
    let tree = SparseMerkleTree::build(example().to_vec()).unwrap();
    assert_eq!(HEXLOWER.encode(&tree.root), "a07c99150b828d2078974b65e071d3dd6e023ba179f9d3c14d88be24a2d0c179");
    let (index, proof) = example_proof();
    assert_eq!(proof.collapsed.to_string(), "P_________________________________________8");
    let hashes: Vec<String> = proof.hashes.iter().map(ToString::to_string).collect();
    assert_eq!(
        hashes,
        ["d7Jdjeof0Eloa0ABRb8JlSNl-VTxWjr8vZs0QJU2COU", "2NbQqPgMA7v66blxnePv9Bm4ZO-kgJ-Gxc0Ao5AdCdI"]
    );
    assert_eq!(proof.verify(&index), Ok(()));
}

#[test]
fn m_06_proof_members_are_ordered_and_nonces_of_any_length() {
    let (_, proof) = example_proof();
    let text = serde_json::to_string(&proof).unwrap();
    let places =
        ["id", "collapsed", "hashes", "nonce", "updateId"].map(|name| text.find(&format!("\"{name}\"")).unwrap());
    assert!(places.is_sorted(), "{text}");
    let shuffled = json!({
        "updateId": proof.update_id, "nonce": proof.nonce, "hashes": proof.hashes, "collapsed": proof.collapsed, "id": proof.id,
    });
    assert_eq!(serde_json::from_value::<SmtProof>(shuffled).unwrap(), proof, "readers accept any order");
    for nonce in [&b""[..], b"x", &[7; 33], &[9; 1000]] {
        let leaf = smt_leaf(Some(nonce), None);
        let tree = SparseMerkleTree::build(vec![([5; 32], leaf)]).unwrap();
        let proof = proof_of(&tree, 0, Some(nonce), None);
        let read: SmtProof = serde_json::from_str(&serde_json::to_string(&proof).unwrap()).unwrap();
        assert_eq!(read.verify(&[5; 32]), Ok(()), "{} bytes", nonce.len());
    }
    // Generated nonces have 256 bits.
    let did = Controller::new().did().clone();
    let made = SmtBeacon.aggregate(&[(did.clone(), None)].into(), &mut rng()).unwrap();
    let BeaconData::Smt(proof) = &**made.data.for_member(&did).unwrap() else { panic!() };
    assert_eq!(proof.nonce.as_ref().unwrap().as_bytes().len(), 32);
}

#[test]
fn m_07_every_level_has_one_sibling() {
    let (index, proof) = example_proof();
    for change in [
        (|proof: &mut SmtProof| proof.hashes.push(proof.hashes[0])) as fn(&mut SmtProof),
        |proof| proof.hashes.truncate(1),
        |proof| proof.hashes.clear(),
    ] {
        let mut wrong = proof.clone();
        change(&mut wrong);
        assert!(matches!(wrong.verify(&index), Err(BeaconMismatch::SiblingCount { .. })));
    }
}

#[test]
fn m_08_a_proof_with_a_listed_cached_zero_is_refused() {
    let (index, proof) = example_proof();
    for level in [0, 100, 255] {
        // An empty subtree is listed, at the place where the walk reaches it: the root would be the same.
        let bit = |bytes: &[u8; 32], level: usize| bytes[level / 8] & (0x80 >> (level % 8)) != 0;
        if !bit(proof.collapsed.as_bytes(), level) {
            continue;
        }
        let mut collapsed = *proof.collapsed.as_bytes();
        collapsed[level / 8] &= !(0x80 >> (level % 8));
        let before = (level + 1..256).filter(|level| !bit(proof.collapsed.as_bytes(), *level)).count();
        let mut wrong = proof.clone();
        wrong.collapsed = SmtHash::from_bytes(collapsed);
        wrong.hashes.insert(before, SmtHash::from_bytes(zero_hash(255 - level).unwrap()));
        assert_eq!(wrong.verify(&index), Err(BeaconMismatch::ListedZero { level }));
    }
}

#[test]
fn m_09_fields_decode_strictly() {
    let (_, proof) = example_proof();
    let good = serde_json::to_value(&proof).unwrap();
    let short = BASE64URL_NOPAD.encode(&[1; 31]);
    let long = BASE64URL_NOPAD.encode(&[1; 33]);
    for field in ["id", "collapsed", "updateId"] {
        let text = good[field].as_str().unwrap();
        let pad_bit = format!("{}{}", &text[..42], "B");
        for bad in [
            json!(format!("{text}=")),
            json!(pad_bit),
            json!(short),
            json!(long),
            json!("+".repeat(43)),
            Value::Null,
        ] {
            let mut wrong = good.clone();
            wrong[field] = bad.clone();
            assert!(serde_json::from_value::<SmtProof>(wrong).is_err(), "{field} {bad}");
        }
    }
    for bad in [json!([short]), json!([long]), json!(["="]), json!([7]), json!("none"), Value::Null] {
        let mut wrong = good.clone();
        wrong["hashes"] = bad.clone();
        assert!(serde_json::from_value::<SmtProof>(wrong).is_err(), "hashes {bad}");
    }
}

#[test]
fn m_10_an_id_with_pad_bits_is_refused() {
    let (_, proof) = example_proof();
    let mut wrong = serde_json::to_value(&proof).unwrap();
    let text = wrong["id"].as_str().unwrap().to_owned();
    let last = BASE64URL_NOPAD.specification().symbols.find(text.chars().last().unwrap()).unwrap();
    let next = BASE64URL_NOPAD.specification().symbols.as_bytes()[last | 1] as char;
    wrong["id"] = json!(format!("{}{next}", &text[..42]));
    assert_ne!(wrong["id"], text);
    assert!(serde_json::from_value::<SmtProof>(wrong).is_err());
}

#[test]
fn m_11_an_index_that_is_not_in_the_tree_has_a_proof() {
    let absent = sha256(b"did:btcr2:example-absent");
    let mut leaves = example().to_vec();
    leaves.push((absent, smt_leaf(None, None)));
    let tree = SparseMerkleTree::build(leaves).unwrap();
    assert_eq!(tree.root, SparseMerkleTree::build(example().to_vec()).unwrap().root, "the tree is the same");
    assert_eq!(proof_of(&tree, 3, None, None).verify(&absent), Ok(()));
    for (leaf, (index, value)) in example().iter().enumerate() {
        assert_eq!(tree.proofs[leaf].root_for(index, value), Ok(tree.root), "and so are the others' proofs");
    }
    // Every member of a cohort has a leaf, including a member that declined.
    let did = Controller::new().did().clone();
    let made = SmtBeacon.aggregate(&[(did.clone(), None)].into(), &mut rng()).unwrap();
    assert!(made.data.for_member(&did).is_some());
}

#[test]
fn m_12_writers_collapse_and_give_every_member_a_nonce() {
    // An empty leaf is not a listed sibling of any other leaf.
    let mut next = example()[0].0;
    next[31] ^= 1;
    let tree = SparseMerkleTree::build(vec![example()[0], (next, smt_leaf(None, None))]).unwrap();
    assert_eq!(tree.proofs[0].collapsed, [0xff; 32]);
    assert!(tree.proofs[0].hashes.is_empty());
    let did = Controller::new().did().clone();
    for slot in [None, Some(DocumentHash::from_bytes([1; 32]))] {
        let made = SmtBeacon.aggregate(&[(did.clone(), slot)].into(), &mut rng()).unwrap();
        let BeaconData::Smt(proof) = &**made.data.for_member(&did).unwrap() else { panic!() };
        assert!(proof.nonce.is_some());
    }
}

#[test]
fn m_13_the_nonce_is_part_of_what_a_member_stores() {
    let did = Controller::new().did().clone();
    let made = SmtBeacon.aggregate(&[(did.clone(), None)].into(), &mut rng()).unwrap();
    let data = made.data.for_member(&did).unwrap();
    let stored = serde_json::to_value(&**data).unwrap();
    assert!(stored["smt"]["nonce"].is_string(), "{stored}");
    let read: BeaconData = serde_json::from_value(stored.clone()).unwrap();
    assert!(SmtBeacon.verify(&did, None, &read).is_ok());
    let mut without = stored;
    without["smt"].as_object_mut().unwrap().remove("nonce");
    let without: BeaconData = serde_json::from_value(without).unwrap();
    assert!(SmtBeacon.verify(&did, None, &without).is_err(), "without the nonce the proof cannot be verified");
}
