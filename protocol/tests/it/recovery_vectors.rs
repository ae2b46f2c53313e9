//! The recovery spends of `recovery.json`, and Bitcoin Core's verdict on them.

use std::sync::Arc;

use crate::bitcoin_support::{
    amount, cohort_output, coin, consensus_accepts, hex, list, members, output, rng, script_tree, secret_key, text,
    transaction, tree,
};
use bitcoin::{Amount, OutPoint, Sequence, TxOut, consensus::encode::serialize_hex};
use btcr2_aggregation_protocol::{
    key::{PublicKey, Signature},
    network::Network,
    output::{
        BeaconOutput, Coin, KeyAggregation, RecoverySpend, ScriptTree, build_recovery_transaction,
        sign_recovery_transaction,
    },
};
use serde_json::{Value, json};

fn utxo(utxo: &Value) -> Coin {
    let vout = utxo["vout"].as_u64().unwrap().try_into().unwrap();
    Coin { outpoint: OutPoint::new(text(&utxo["txid"]).parse().unwrap(), vout), value: amount(&utxo["value"]) }
}

#[test]
fn every_recovery_is_as_recorded_and_passes_consensus() {
    let vectors = crate::common::vectors("recovery");
    for (index, case) in list(&vectors["cases"]).iter().enumerate() {
        let output = cohort_output(&case["cohort"]);
        assert_eq!(output.keys().len(), case["n"].as_u64().unwrap() as usize, "case {index}");
        let leaf = output.recovery().unwrap();
        let spend = RecoverySpend {
            coin: utxo(&case["utxo"]),
            destination: text(&case["destinationAddress"]),
            fee: amount(&case["fee"]),
            expected_address: Some(text(&case["cohort"]["beaconAddress"])),
        };
        let prevout = spend.coin.prevout(&output);
        assert_eq!(hex(&prevout.script_pubkey), text(&case["prevOutScript"]), "case {index}");
        assert_eq!(hex(leaf.script()), text(&case["recoveryLeafScript"]), "case {index}");
        assert_eq!(hex(leaf.leaf_hash()), text(&case["recoveryLeafHash"]), "case {index}");
        assert_eq!(hex(leaf.control_block()), text(&case["controlBlock"]), "case {index}");

        let tx = build_recovery_transaction(&output, &spend).unwrap();
        assert_eq!(tx, transaction(&case["unsignedTx"]), "case {index}");
        assert_eq!(serialize_hex(&tx), text(&case["unsignedTx"]), "case {index}");
        assert_eq!(json!(tx.input[0].sequence.to_consensus_u32()), case["inputSequence"], "case {index}");
        let digest = leaf.sighash(&tx, &prevout).unwrap();
        assert_eq!(hex(digest), text(&case["sighash"]), "case {index}");

        let signature: Signature = text(&case["signature"]).parse().unwrap();
        assert_eq!(json!(leaf.key().verify(&digest, &signature)), case["signatureValid"], "case {index}");
        let signed = leaf.assemble(&tx, &prevout, &signature).unwrap();
        let witness: Vec<String> = signed.input[0].witness.iter().map(hex).collect();
        assert_eq!(json!(witness), case["witness"], "case {index}");
        assert_eq!(serialize_hex(&signed), text(&case["signedTx"]), "case {index}");
        assert_eq!(signed.compute_txid().to_string(), text(&case["txid"]), "case {index}");
        assert!(consensus_accepts(&signed, &prevout), "case {index}");

        let key = secret_key(&case["cohort"]["recoverySecretKey"]);
        let ours = sign_recovery_transaction(&output, &spend, &key, &mut rng()).unwrap();
        assert_eq!(ours.compute_txid(), signed.compute_txid(), "case {index}");
        assert!(consensus_accepts(&ours, &prevout), "case {index}: our own signature");

        // One block too early: the script's lock time is above the input's.
        let mut early = signed.clone();
        early.input[0].sequence = Sequence::from_height(leaf.sequence().blocks() - 1);
        assert!(!consensus_accepts(&early, &prevout), "case {index}: too early");
    }
}

/// The recovery of the TypeScript implementation in one call: derives the output, then makes the spend.
fn recover(rejections: &Value, case: &Value) -> Result<(BeaconOutput, bitcoin::Transaction), String> {
    let cohort = &rejections["cohort"];
    let keys = case["cohortKeys"].as_array().unwrap().iter().map(|key| text(key).parse::<PublicKey>().unwrap());
    let aggregation = KeyAggregation::new(keys).map_err(|error| error.code())?;
    let network: Network = text(&cohort["network"]).parse().unwrap();
    let output = BeaconOutput::new(Arc::new(aggregation), network, &script_tree(cohort).unwrap())
        .map_err(|error| error.code())?;
    let spend = RecoverySpend {
        coin: utxo(&rejections["utxo"]),
        destination: text(&case["destinationAddress"]),
        fee: amount(&case["fee"]),
        expected_address: case["beaconAddress"].as_str(),
    };
    let tx = sign_recovery_transaction(&output, &spend, &secret_key(&case["recoverySecretKey"]), &mut rng())
        .map_err(|error| error.code())?;
    Ok((output, tx))
}

#[test]
fn rejections_have_the_code_of_the_vector() {
    let vectors = crate::common::vectors("recovery");
    let rejections = &vectors["rejections"];
    cohort_output(&rejections["cohort"]);
    for case in list(&rejections["cases"]) {
        let name = text(&case["name"]);
        let result = recover(rejections, case);
        if case["accepted"] == json!(true) {
            let (output, tx) = result.unwrap_or_else(|code| panic!("{name}: {code}"));
            assert!(consensus_accepts(&tx, &utxo(&rejections["utxo"]).prevout(&output)), "{name}");
            continue;
        }
        // The TypeScript implementation throws an unnamed error for a destination on another network.
        let expected =
            if name == "destination on another network" { "INVALID_DESTINATION" } else { text(&case["errorName"]) };
        assert_eq!(result.unwrap_err(), expected, "{name}");
    }
}

fn spend(fee: u64, destination: &str) -> RecoverySpend<'_> {
    RecoverySpend { coin: coin(10_000), destination, fee: Amount::from_sat(fee), expected_address: None }
}

#[test]
fn the_floor_is_546_for_every_kind_of_destination() {
    let output = output(&members(2), &tree(None));
    let beacon = output.address().to_owned();
    for destination in ["bcrt1qqfvsp53fnxuhzt6f7yf2jzneye2da2h2gg2yn7", beacon.as_str()] {
        assert!(build_recovery_transaction(&output, &spend(10_000 - 546, destination)).is_ok(), "{destination}");
        let error = build_recovery_transaction(&output, &spend(10_000 - 545, destination)).unwrap_err();
        assert_eq!(error.code(), "DUST_OUTPUT", "{destination}");
    }
    for nonsense in ["", "bcrt1", "tb1qzp94ax5ecwjevsxx0ujf9nd3aklzv0nmc9fph4"] {
        let error = build_recovery_transaction(&output, &spend(500, nonsense)).unwrap_err();
        assert_eq!(error.code(), "INVALID_DESTINATION", "{nonsense}");
    }
}

#[test]
fn an_output_without_script_paths_has_no_recovery() {
    let output = output(&members(2), &ScriptTree::KeyPathOnly);
    let address = output.address().to_owned();
    let error = build_recovery_transaction(&output, &spend(500, &address)).unwrap_err();
    assert_eq!(error.code(), "NO_RECOVERY_PARAMS");
}

#[test]
fn a_signature_of_another_key_or_transaction_is_not_assembled() {
    let output = output(&members(2), &tree(None));
    let leaf = output.recovery().unwrap();
    let tx = build_recovery_transaction(&output, &spend(500, output.address())).unwrap();
    let prevout: TxOut = coin(10_000).prevout(&output);
    let digest = leaf.sighash(&tx, &prevout).unwrap();
    let outsider = members(1).remove(0).sign(&digest, &mut rng());
    assert_eq!(leaf.assemble(&tx, &prevout, &outsider).unwrap_err().code(), "INVALID_SIGNATURE");
    let mut no_inputs = tx;
    no_inputs.input.clear();
    assert_eq!(leaf.assemble(&no_inputs, &prevout, &outsider).unwrap_err().code(), "INPUT_COUNT");
}
