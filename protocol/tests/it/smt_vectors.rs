//! The SMT beacon against `smt.json`, and its tree against a naive reference.

use std::collections::BTreeMap;

use crate::common::vectors;
use btcr2_aggregation_protocol::{
    beacon::{
        AggregateBeacon, AggregatedData, BeaconData, BeaconError, BeaconMismatch, DuplicateIndex, RawProof, Slots,
        SmtBeacon, SmtNonce, SmtProof, SparseMerkleTree, smt_index, smt_leaf, zero_hash,
    },
    did::Did,
    hash::{DocumentHash, SmtHash, sha256, sha256_concat},
    jcs,
};
use data_encoding::HEXLOWER;
use proptest::prelude::*;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::{Value, json};

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    let items = value[name].as_array().unwrap_or_else(|| panic!("{name} is not a list"));
    assert!(!items.is_empty(), "{name} is empty");
    items
}

fn hex(value: &Value) -> [u8; 32] {
    HEXLOWER.decode(value.as_str().expect("hex").as_bytes()).expect("hex").try_into().expect("32 bytes")
}

fn did(value: &Value) -> Did {
    value.as_str().expect("a DID").parse().expect("a valid DID")
}

fn slot(entry: &Value) -> Option<DocumentHash> {
    let update = &entry["signedUpdate"];
    assert_eq!(entry["included"], !update.is_null());
    (!update.is_null()).then(|| jcs::document_hash(update).expect("an update"))
}

#[test]
fn zero_hashes_are_the_recorded_ones() {
    let vectors = vectors("smt");
    let zeros = &vectors["zeroHashes"];
    for (n, expected) in list(zeros, "first5").iter().enumerate() {
        assert_eq!(zero_hash(n), Some(hex(expected)), "zero hash {n}");
    }
    assert_eq!(zero_hash(255), Some(hex(&zeros["index255"])));
    assert_eq!(zero_hash(256), Some(hex(&zeros["index256"])));
    assert_eq!(zero_hash(257), None);
    assert_eq!(zeros["count"], 257);
    let empty = SparseMerkleTree::build(vec![]).unwrap();
    assert_eq!((empty.root, empty.proofs), (hex(&vectors["emptyTreeRoot"]), vec![]));
}

#[test]
fn recorded_trees_are_reproduced_and_proofs_accepted() {
    for (number, tree) in list(&vectors("smt"), "trees").iter().enumerate() {
        let entries = list(tree, "entries");
        assert_eq!(tree["n"], entries.len(), "tree {number}");
        let slots: Slots = entries.iter().map(|entry| (did(&entry["did"]), slot(entry))).collect();
        let nonces: BTreeMap<Did, [u8; 32]> =
            entries.iter().map(|entry| (did(&entry["did"]), hex(&entry["nonce"]))).collect();
        let made = SmtBeacon::aggregate_with_nonces(&slots, &nonces).unwrap();
        assert_eq!(made.signal.to_string(), tree["root"], "tree {number}");

        for entry in entries {
            let did = did(&entry["did"]);
            let name = format!("tree {number}: {did}");
            let slot = slots[&did].as_ref();
            assert_eq!(smt_index(&did), hex(&entry["index"]), "{name}");
            assert_eq!(smt_leaf(Some(&nonces[&did]), slot), hex(&entry["leaf"]), "{name}");
            assert_eq!(entry["verified"], true, "{name}");
            assert_eq!(entry["participantView"]["matches"], true, "{name}");

            let BeaconData::Smt(proof) = &**made.data.for_member(&did).expect(&name) else { panic!("{name}") };
            assert_eq!(
                serde_json::to_string(proof).unwrap(),
                entry["proof"].to_string(),
                "{name}: the same text, field order included"
            );
            let received: SmtProof = serde_json::from_value(entry["proof"].clone()).expect(&name);
            assert_eq!(proof.id.to_string(), tree["rootBase64url"], "{name}");
            assert_eq!(received.root_for(&hex(&entry["index"]), &hex(&entry["leaf"])), Ok(received.id), "{name}");
            assert_eq!(SmtBeacon.verify(&did, slot, &BeaconData::Smt(received)), Ok(made.signal), "{name}");
        }
    }
}

/// Verifies the path of a given leaf, and the lengths; also for proofs whose nonce is missing.
fn path_verifies(proof: &Value, index: &Value, leaf: &Value) -> bool {
    let hash = |value: &Value| serde_json::from_value::<SmtHash>(value.clone()).ok().map(|hash| *hash.as_bytes());
    let siblings: Option<Vec<_>> = proof["hashes"].as_array().expect("a list").iter().map(hash).collect();
    let (Some(id), Some(collapsed), Some(hashes)) = (hash(&proof["id"]), hash(&proof["collapsed"]), siblings)
    else {
        return false;
    };
    // A proof with a field that does not decode is not a proof.
    let mut fields = proof.clone();
    fields.as_object_mut().expect("an object").retain(|_, field| !field.is_null());
    serde_json::from_value::<SmtProof>(fields).is_ok()
        && RawProof { collapsed, hashes }.root_for(&hex(index), &hex(leaf)) == Ok(id)
}

#[test]
fn a_member_refuses_every_tampered_proof() {
    let mut judged = 0;
    for (number, tree) in list(&vectors("smt"), "trees").iter().enumerate() {
        let slots: Slots = list(tree, "entries").iter().map(|entry| (did(&entry["did"]), slot(entry))).collect();
        for tampered in list(tree, "tampered") {
            let did = did(&tampered["did"]);
            let name = format!("tree {number}: {} for {did}", tampered["name"]);
            let proof = &tampered["proof"];
            assert_eq!(
                path_verifies(proof, &tampered["index"], &tampered["leaf"]),
                tampered["pathVerifies"].as_bool().expect("a verdict"),
                "{name}"
            );
            // "other index" and "other leaf" are about the path only: a member computes both itself.
            if tampered.get("participantView").is_none() {
                continue;
            }
            assert_eq!(tampered["participantView"]["matches"], false, "{name}");
            judged += 1;
            assert_eq!(tampered["right"], "refused", "{name}");
            if let Ok(proof) = serde_json::from_value::<SmtProof>(proof.clone()) {
                let verifies = proof.verify(&hex(&tampered["index"])).is_ok();
                assert_eq!(verifies, tampered["verifies"] == true, "{name}");
                let verdict = SmtBeacon.verify(&did, slots[&did].as_ref(), &BeaconData::Smt(proof));
                assert!(verdict.is_err(), "{name}: {verdict:?}");
            }
        }
    }
    assert!(judged > 0);
}

#[test]
fn a_mismatch_names_the_difference() {
    let vectors = vectors("smt");
    let find = |name: &str| {
        let trees = list(&vectors, "trees").iter();
        let (tree, tampered) = trees
            .flat_map(|tree| list(tree, "tampered").iter().map(move |tampered| (tree, tampered)))
            .find(|(_, tampered)| tampered["name"] == name)
            .unwrap_or_else(|| panic!("no {name}"));
        let entry = list(tree, "entries").iter().find(|entry| entry["did"] == tampered["did"]).expect("its entry");
        let proof =
            serde_json::from_value::<SmtProof>(tampered["proof"].clone()).map_err(|error| error.to_string())?;
        let verdict = SmtBeacon.verify(&did(&entry["did"]), slot(entry).as_ref(), &BeaconData::Smt(proof));
        Ok::<_, String>(verdict.expect_err(name))
    };
    assert!(matches!(find("root changed"), Ok(BeaconMismatch::Root { .. })));
    assert!(matches!(find("nonce changed"), Ok(BeaconMismatch::Root { .. })));
    assert!(matches!(find("updateId changed"), Ok(BeaconMismatch::OwnUpdateDiffers { .. })));
    assert!(matches!(find("updateId removed"), Ok(BeaconMismatch::OwnUpdateMissing { .. })));
    assert!(matches!(find("updateId added to a non-inclusion proof"), Ok(BeaconMismatch::DeclinerPresent { .. })));
    for name in ["extra sibling appended", "last sibling removed", "collapsed leaf-level bit flipped"] {
        assert!(matches!(find(name), Ok(BeaconMismatch::SiblingCount { .. })), "{name}");
    }
    for name in [
        "cached zero of the leaf level listed in hashes",
        "cached zero of the highest empty level listed in hashes",
        "cached zero of a middle level listed in hashes",
    ] {
        assert!(matches!(find(name), Ok(BeaconMismatch::ListedZero { .. })), "{name}: {:?}", find(name));
    }
    for name in ["nonce removed", "nonce emptied", "nonce with a zero byte appended"] {
        assert!(matches!(find(name), Ok(BeaconMismatch::Root { .. })), "{name}: {:?}", find(name));
    }
    for name in ["root with base64 padding", "root in hex", "collapsed too short", "nonce with a pad bit set"] {
        assert!(find(name).is_err_and(|error| error.contains("base64url")), "{name}");
    }
}

#[test]
fn an_absent_field_is_not_null() {
    let zero = SmtHash::from_bytes([0; 32]);
    let proof = json!({"id": zero, "collapsed": zero, "hashes": []});
    assert!(serde_json::from_value::<SmtProof>(proof.clone()).is_ok());
    for field in ["nonce", "updateId"] {
        let mut with_null = proof.clone();
        with_null[field] = Value::Null;
        assert!(serde_json::from_value::<SmtProof>(with_null).is_err(), "{field}");
    }
}

/// Every form of leaf (rule M-3), nonces of any length, and indices that are not in the tree.
#[test]
fn trees_of_every_leaf_form_are_reproduced() {
    let (mut empty, mut lengths) = (0, std::collections::BTreeSet::new());
    for tree in list(&vectors("smt"), "leafForms") {
        let entries = list(tree, "entries");
        let name = tree["name"].as_str().expect("a name");
        let nonce =
            |entry: &Value| entry["nonce"].as_str().map(|hex| HEXLOWER.decode(hex.as_bytes()).expect("hex"));
        let leaves: Vec<_> = entries
            .iter()
            .map(|entry| {
                let leaf = smt_leaf(nonce(entry).as_deref(), slot(entry).as_ref());
                assert_eq!(leaf, hex(&entry["leaf"]), "{name}");
                (hex(&entry["index"]), leaf)
            })
            .collect();
        let built = SparseMerkleTree::build(leaves).unwrap();
        assert_eq!(built.root, hex(&tree["root"]), "{name}");
        for (entry, raw) in entries.iter().zip(&built.proofs) {
            let name = format!("{name}: {}", entry["form"]);
            empty += usize::from(entry["form"] == "neither");
            lengths.extend(nonce(entry).map(|nonce| nonce.len()));
            let proof = SmtProof {
                id: SmtHash::from_bytes(built.root),
                collapsed: SmtHash::from_bytes(raw.collapsed),
                hashes: raw.hashes.iter().map(|hash| SmtHash::from_bytes(*hash)).collect(),
                nonce: nonce(entry).as_deref().map(SmtNonce::from),
                update_id: slot(entry),
            };
            assert_eq!(serde_json::to_string(&proof).unwrap(), entry["proof"].to_string(), "{name}");
            assert_eq!(entry["right"], "accepted", "{name}");
            let did = did(&entry["did"]);
            assert_eq!(proof.verify(&smt_index(&did)), Ok(()), "{name}");
            let verdict = SmtBeacon.verify(&did, slot(entry).as_ref(), &BeaconData::Smt(proof));
            assert_eq!(verdict.is_ok(), entry["participantView"]["matches"] == true, "{name}: {verdict:?}");
        }
        for tampered in list(tree, "tampered") {
            let name = format!("{name}: {}", tampered["name"]);
            let proof = serde_json::from_value::<SmtProof>(tampered["proof"].clone());
            let verifies = proof.as_ref().is_ok_and(|proof| proof.verify(&hex(&tampered["index"])).is_ok());
            assert_eq!(verifies, tampered["verifies"] == true, "{name}");
            let entry = entries.iter().find(|entry| entry["did"] == tampered["did"]).expect("its entry");
            if let Ok(proof) = proof {
                let verdict = SmtBeacon.verify(&did(&entry["did"]), slot(entry).as_ref(), &BeaconData::Smt(proof));
                assert!(verdict.is_err(), "{name}: {verdict:?}");
            }
        }
    }
    assert!(empty > 0);
    assert!(lengths.contains(&0) && lengths.contains(&32) && lengths.contains(&200), "{lengths:?}");
}

#[test]
fn indices_with_shared_bits_give_the_recorded_trees() {
    for (number, tree) in list(&vectors("smt"), "craftedIndexTrees").iter().enumerate() {
        let leaves: Vec<_> =
            list(tree, "leaves").iter().map(|leaf| (hex(&leaf["index"]), hex(&leaf["leaf"]))).collect();
        let built = SparseMerkleTree::build(leaves.clone()).unwrap();
        assert_eq!(built.root, hex(&tree["root"]), "crafted tree {number}");
        let proofs = list(tree, "proofs");
        assert_eq!(proofs.len(), leaves.len(), "crafted tree {number}");
        for expected in proofs {
            let place = leaves.iter().position(|(index, _)| *index == hex(&expected["index"])).expect("its leaf");
            let name = format!("crafted tree {number}, leaf {place}");
            let proof = &built.proofs[place];
            assert_eq!(proof.collapsed, hex(&expected["collapsed"]), "{name}");
            assert_eq!(json!(proof.hashes.map_hex()), expected["hashes"], "{name}");
            assert_eq!(proof.root_for(&leaves[place].0, &leaves[place].1), Ok(built.root), "{name}");
        }
    }
}

trait MapHex {
    fn map_hex(&self) -> Vec<String>;
}

impl MapHex for Vec<[u8; 32]> {
    fn map_hex(&self) -> Vec<String> {
        self.iter().map(|hash| HEXLOWER.encode(hash)).collect()
    }
}

#[test]
fn one_index_has_one_leaf() {
    let leaves = vec![([1; 32], [2; 32]), ([3; 32], [4; 32]), ([1; 32], [2; 32])];
    assert_eq!(SparseMerkleTree::build(leaves), Err(DuplicateIndex([1; 32])));
}

#[test]
fn a_replayed_round_needs_every_members_nonce() {
    let did = did(&list(&list(&vectors("smt"), "trees")[0], "entries")[0]["did"]);
    let slots: Slots = [(did.clone(), None)].into();
    assert_eq!(SmtBeacon::aggregate_with_nonces(&slots, &BTreeMap::new()), Err(BeaconError::MissingNonce(did)));
}

#[test]
fn every_member_gets_its_own_nonce() {
    let trees = vectors("smt");
    let entries = list(list(&trees, "trees").last().expect("a tree"), "entries");
    let slots: Slots = entries.iter().map(|entry| (did(&entry["did"]), slot(entry))).collect();
    let made = SmtBeacon.aggregate(&slots, &mut ChaCha20Rng::from_seed([1; 32])).unwrap();
    let AggregatedData::PerMember(data) = &made.data else { panic!("data is per member") };
    let nonces: std::collections::BTreeSet<_> = data
        .values()
        .map(|data| match &**data {
            BeaconData::Smt(proof) => proof.nonce.clone().expect("a nonce is generated"),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(nonces.len(), slots.len());
    let other = SmtBeacon.aggregate(&slots, &mut ChaCha20Rng::from_seed([2; 32])).unwrap();
    assert_ne!(made.signal, other.signal);
    let mut members = slots.iter();
    let (first, second) = (members.next().unwrap(), members.next().unwrap());
    assert!(
        SmtBeacon.verify(second.0, second.1.as_ref(), &data[first.0]).is_err(),
        "another member's proof is refused"
    );
}

/// The tree by its definition: splits the leaves by one bit for each level, down to the leaf.
fn naive_root(leaves: &[([u8; 32], [u8; 32])], level: usize) -> [u8; 32] {
    match leaves {
        [] => (0..=256 - level).fold([0; 32], |zero, _| sha256_concat(&[&zero, &zero])),
        [(_, leaf)] if level == 256 => *leaf,
        _ => {
            let (right, left): (Vec<_>, Vec<_>) =
                leaves.iter().partition(|(index, _)| index[level / 8] & (0x80 >> (level % 8)) != 0);
            sha256_concat(&[&naive_root(&left, level + 1), &naive_root(&right, level + 1)])
        }
    }
}

/// Indices that differ anywhere: hashes, and neighbours that differ in only one or two bits.
fn indices() -> impl Strategy<Value = Vec<[u8; 32]>> {
    let crafted = (prop::collection::vec(0usize..256, 0..3), any::<bool>()).prop_map(|(bits, ones)| {
        let mut index = [if ones { 0xff } else { 0 }; 32];
        for bit in bits {
            index[bit / 8] ^= 1 << (bit % 8);
        }
        index
    });
    prop::collection::btree_set(prop_oneof![any::<[u8; 32]>(), crafted], 0..12)
        .prop_map(|set| set.into_iter().collect::<Vec<_>>())
        .prop_shuffle()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_tree_has_the_naive_root_and_exact_proofs(indices in indices()) {
        let leaves: Vec<_> = indices.iter().map(|index| (*index, sha256(index))).collect();
        let built = SparseMerkleTree::build(leaves.clone()).unwrap();
        prop_assert_eq!(built.root, naive_root(&leaves, 0));
        for ((index, leaf), proof) in leaves.iter().zip(&built.proofs) {
            prop_assert_eq!(proof.root_for(index, leaf), Ok(built.root));
            prop_assert_ne!(proof.root_for(index, &sha256(leaf)), Ok(built.root));
            let mut elsewhere = *index;
            elsewhere[0] ^= 0x80;
            prop_assert_ne!(proof.root_for(&elsewhere, leaf), Ok(built.root));
        }
        let mut sorted = leaves;
        sorted.sort();
        prop_assert_eq!(SparseMerkleTree::build(sorted).unwrap().root, built.root, "independent of the order");
    }
}
