//! The fallback spends of `fallback.json`, and Bitcoin Core's verdict on them.

use std::collections::BTreeMap;

use crate::bitcoin_support::{
    cohort_output, coin, consensus_accepts, consensus_accepts_with, hex, list, members, output, prevout, rng,
    secret_key, text, transaction, tree,
};
use bitcoin::{Amount, FeeRate, Transaction, TxOut, consensus::encode::serialize_hex};
use btcr2_aggregation_protocol::{
    hash::SignalBytes,
    key::{SecretKey, Signature, XOnlyKey},
    output::{
        BeaconOutput, Change, FallbackLeaf, SpendPath, TransactionFault, build_beacon_transaction, check_signed,
    },
};
use serde_json::{Value, json};

/// The signatures of a case; for a signer that occurs twice, the last one.
fn signatures(case: &Value) -> BTreeMap<XOnlyKey, Signature> {
    list(&case["signatures"])
        .iter()
        .map(|entry| (text(&entry["signerPk"]).parse().unwrap(), text(&entry["signature"]).parse().unwrap()))
        .collect()
}

/// A pending beacon transaction of an output, and the coin's output.
fn pending(output: &BeaconOutput) -> (Transaction, TxOut) {
    let coin = coin(1_000_000);
    let signal = SignalBytes::from_bytes([7; 32]);
    let rate = FeeRate::from_sat_per_vb_u32(1);
    (build_beacon_transaction(output, &coin, &signal, rate, &Change::Beacon).unwrap(), coin.prevout(output))
}

fn sign<'a>(
    leaf: &FallbackLeaf,
    tx: &Transaction,
    prevout: &TxOut,
    signers: impl IntoIterator<Item = &'a SecretKey>,
) -> BTreeMap<XOnlyKey, Signature> {
    let digest = leaf.sighash(tx, prevout).unwrap();
    signers.into_iter().map(|key| (key.public_key().x_only(), key.sign(&digest, &mut rng()))).collect()
}

#[test]
fn every_fallback_spend_is_as_recorded_and_passes_consensus() {
    let vectors = crate::common::vectors("fallback");
    for (index, case) in list(&vectors["cases"]).iter().enumerate() {
        let output = cohort_output(&case["cohort"]);
        let leaf = output.fallback().unwrap();
        let (tx, prevout) = (transaction(&case["unsignedTx"]), prevout(case));
        assert_eq!(output.keys().len(), case["n"].as_u64().unwrap() as usize, "case {index}");
        assert_eq!(hex(output.script_pubkey()), text(&case["prevOutScript"]), "case {index}");
        assert_eq!(hex(leaf.script()), text(&case["fallbackLeafScript"]), "case {index}");
        assert_eq!(hex(leaf.leaf_hash()), text(&case["fallbackLeafHash"]), "case {index}");
        assert_eq!(hex(leaf.control_block()), text(&case["controlBlock"]), "case {index}");

        let digest = leaf.sighash(&tx, &prevout).unwrap();
        assert_eq!(hex(digest), text(&case["sighash"]), "case {index}");
        let signatures = signatures(case);
        for (signer, signature) in &signatures {
            assert!(signer.verify(&digest, signature), "case {index}: signature of {signer}");
        }

        let signed = leaf.assemble(&tx, &prevout, &signatures).unwrap();
        let witness: Vec<String> = signed.input[0].witness.iter().map(hex).collect();
        assert_eq!(json!(witness), case["witness"], "case {index}");
        assert_eq!(serialize_hex(&signed), text(&case["signedTx"]), "case {index}");
        assert_eq!(signed.compute_txid().to_string(), text(&case["txid"]), "case {index}");
        assert!(consensus_accepts(&signed, &prevout), "case {index}");

        // The members' keys, in any order, give the same result.
        let keys: Vec<SecretKey> =
            list(&case["participants"]).iter().map(|member| secret_key(&member["secretKey"])).collect();
        let ours = leaf.assemble(&tx, &prevout, &sign(leaf, &tx, &prevout, &keys)).unwrap();
        assert!(consensus_accepts(&ours, &prevout), "case {index}: all members signed");
        assert_eq!(
            ours.input[0].witness.iter().filter(|element| element.len() == 64).count(),
            leaf.threshold(),
            "case {index}: exactly k of them are used"
        );
    }
}

#[test]
fn rejections_have_the_code_of_the_vector() {
    let vectors = crate::common::vectors("fallback");
    let cohort = &vectors["rejections"]["cohort"];
    for case in list(&vectors["rejections"]["cases"]) {
        let name = text(&case["name"]);
        let mut terms = cohort.clone();
        assert!(case["fallbackThreshold"].is_null(), "{name}: the cohort's own threshold");
        terms["fallbackThreshold"] = case["fallbackThreshold"].clone();
        let leaf = cohort_output(&terms).fallback().unwrap().clone();
        let spent = prevout(case);
        let result = leaf.assemble(&transaction(&case["unsignedTx"]), &spent, &signatures(case));
        match case.get("signedTx") {
            Some(signed) => {
                let ours = result.unwrap();
                assert_eq!(serialize_hex(&ours), text(signed), "{name}");
                assert!(consensus_accepts(&ours, &spent), "{name}");
            }
            None => assert_eq!(result.unwrap_err().code(), text(&case["errorName"]), "{name}"),
        }
    }
}

#[test]
fn consensus_refuses_broken_and_surplus_signatures() {
    let keys = members(3);
    let output = output(&keys, &tree(Some(2)));
    let leaf = output.fallback().unwrap();
    let (unsigned, spent) = pending(&output);
    let signatures = sign(leaf, &unsigned, &spent, &keys);
    let good = leaf.assemble(&unsigned, &spent, &signatures).unwrap();
    assert!(consensus_accepts(&good, &spent));
    assert_eq!(check_signed(&good, &output, spent.value), Ok(SpendPath::ScriptPath));
    let assert_refused = |tx: &Transaction, why: &str| {
        assert!(!consensus_accepts(tx, &spent), "{why}");
        assert_eq!(check_signed(tx, &output, spent.value), Err(TransactionFault::NotSigned), "{why}");
    };

    let with_witness = |elements: Vec<Vec<u8>>| {
        let mut tx = good.clone();
        tx.input[0].witness = elements.into();
        tx
    };
    let elements = good.input[0].witness.to_vec();
    let mut broken = elements.clone();
    let signature = broken.iter_mut().find(|element| element.len() == 64).unwrap();
    signature[40] ^= 1;
    let broken = with_witness(broken);
    assert_refused(&broken, "one bit off");
    // The check is meaningful: without the taproot rules the broken transaction is accepted.
    assert!(consensus_accepts_with(&broken, &spent, bitcoinconsensus::VERIFY_ALL_PRE_TAPROOT));

    let mut three = elements.clone();
    let third = output.keys()[2].x_only();
    assert!(three[0].is_empty(), "the third key, the first element, was not needed");
    three[0] = signatures[&third].to_bytes().to_vec();
    assert_refused(&with_witness(three), "OP_NUMEQUAL takes exactly k");

    let mut key_order = elements.clone();
    key_order[..3].reverse();
    assert_refused(&with_witness(key_order), "the stack is in reverse key order");

    let other = self::output(&members(2), &tree(None));
    let other = other.fallback().unwrap();
    for (position, element) in [(3, other.script().to_bytes()), (4, other.control_block().to_vec())] {
        let mut altered = elements.clone();
        assert_ne!(std::mem::replace(&mut altered[position], element), altered[position]);
        assert_refused(&with_witness(altered), "script and control block are those of the output");
    }
}

#[test]
fn outsiders_and_invalid_signatures_do_not_affect_a_spend() {
    let keys = members(4);
    let output = output(&keys, &tree(Some(2)));
    let leaf = output.fallback().unwrap();
    let (tx, spent) = pending(&output);
    let mut signatures = sign(leaf, &tx, &spent, members(8).iter());
    let first = leaf.keys().next().unwrap();
    signatures.insert(first, Signature::from_bytes(&[0xff; 64]));
    let signed = leaf.assemble(&tx, &spent, &signatures).unwrap();
    assert!(consensus_accepts(&signed, &spent));
    // Stack order: fourth, third, second, first key.
    let used: Vec<bool> = signed.input[0].witness.iter().take(4).map(|element| !element.is_empty()).collect();
    assert_eq!(used, [false, true, true, false], "the first two that signed validly, in key order");
}

#[test]
fn a_signature_commits_to_value_and_transaction() {
    let keys = members(2);
    let output = output(&keys, &tree(Some(1)));
    let leaf = output.fallback().unwrap();
    let (tx, spent) = pending(&output);
    let signatures = sign(leaf, &tx, &spent, &keys);
    let other_value = TxOut { value: spent.value + Amount::from_sat(1), ..spent.clone() };
    let error = leaf.assemble(&tx, &other_value, &signatures).unwrap_err();
    assert_eq!(error.code(), "NOT_ENOUGH_FALLBACK_SIGNATURES");

    let mut two_inputs = tx.clone();
    two_inputs.input.push(tx.input[0].clone());
    let mut no_inputs = tx.clone();
    no_inputs.input.clear();
    for odd in [two_inputs, no_inputs] {
        assert_eq!(leaf.assemble(&odd, &spent, &signatures).unwrap_err().code(), "INPUT_COUNT");
    }
}

/// A fallback spend of n members with one signature.
fn one_of(n: usize) -> bool {
    let keys = members(n);
    let output = output(&keys, &tree(Some(1)));
    let leaf = output.fallback().unwrap();
    let (tx, spent) = pending(&output);
    let signed = leaf.assemble(&tx, &spent, &sign(leaf, &tx, &spent, keys.iter().take(1))).unwrap();
    let accepted = consensus_accepts(&signed, &spent);
    assert_eq!(accepted, output.fallback_spendable(), "{n} members: our result is that of consensus");
    accepted
}

#[test]
fn consensus_allows_fallbacks_of_999_members_but_not_1000() {
    assert!(one_of(999));
    assert!(!one_of(1000));
}
