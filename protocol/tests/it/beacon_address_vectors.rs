//! The beacon output of every cohort of `beacon_address.json`, and the cohorts that have no output.

use std::{sync::Arc, thread};

use crate::bitcoin_support::{aggregation, hex, list, member, members, output, script_tree, text, tree, unhex};
use btcr2_aggregation_protocol::{
    key::PublicKey,
    network::Network,
    output::{
        BeaconOutput, DirectAggregator, KeyAggregation, KeyAggregationError, KeyAggregator, MAX_FALLBACK_KEYS,
        MemoizedAggregator, OutputError, RecoverySequence, ScriptTree,
    },
};
use serde_json::{Value, json};

fn derive(case: &Value, keys: &Value) -> Result<BeaconOutput, String> {
    let keys: Vec<[u8; 33]> = keys
        .as_array()
        .unwrap()
        .iter()
        .map(|key| unhex(key).try_into().map_err(|_| "KEY_LENGTH"))
        .collect::<Result<_, _>>()?;
    let network: Network = text(&case["network"]).parse().map_err(|_| "NETWORK")?;
    let aggregation = DirectAggregator.aggregate(&keys).map_err(|error| error.code())?;
    let tree = script_tree(case).map_err(|error| error.code())?;
    Ok(BeaconOutput::new(aggregation, network, &tree).map_err(|error| error.code())?)
}

#[test]
fn every_cohort_gives_the_output_of_the_vector() {
    let vectors = crate::common::vectors("beacon_address");
    for (index, case) in list(&vectors["cases"]).iter().enumerate() {
        let output = derive(case, &case["keysUnsorted"]).unwrap();
        let (fallback, recovery) = (output.fallback().unwrap(), output.recovery().unwrap());
        let derived = json!({
            "n": output.keys().len(),
            "network": output.network().name(),
            "keysUnsorted": case["keysUnsorted"],
            "keysSorted": output.keys(),
            "recoveryKey": recovery.key(),
            "recoverySequence": recovery.sequence(),
            "fallbackThreshold": case["fallbackThreshold"],
            "effectiveFallbackThreshold": fallback.threshold(),
            "internalKey": output.internal_key(),
            "fallbackLeafScript": hex(fallback.script()),
            "fallbackLeafHash": hex(fallback.leaf_hash()),
            "recoveryLeafScript": hex(recovery.script()),
            "recoveryLeafHash": hex(recovery.leaf_hash()),
            "tapMerkleRoot": hex(output.merkle_root().unwrap()),
            "tapTweak": hex(output.tap_tweak()),
            "outputKey": output.output_key(),
            "outputScript": hex(output.script_pubkey()),
            "address": output.address(),
            "fallbackControlBlock": hex(fallback.control_block()),
            "recoveryControlBlock": hex(recovery.control_block()),
        });
        assert_eq!(&derived, case, "case {index}");

        let signers: musig2::secp::Point = output.musig2_context().aggregated_pubkey();
        assert_eq!(signers.serialize_xonly(), output.output_key().to_bytes(), "case {index}: MuSig2 signs for Q");
        assert!(output.fallback_spendable(), "case {index}");
        let members: Vec<String> = fallback.keys().map(|key| key.to_string()).collect();
        let of_keys: Vec<String> = output.keys().iter().map(|key| key.x_only().to_string()).collect();
        assert_eq!(members, of_keys, "case {index}");
    }
}

#[test]
fn invalid_cohorts_are_refused_with_a_stable_code() {
    let vectors = crate::common::vectors("beacon_address");
    for case in list(&vectors["invalid"]) {
        let name = text(&case["name"]);
        let derived = derive(case, &case["keys"]);
        let expected = match name {
            // Where the TypeScript implementation throws without a code, or accepts an unspendable output, the code
            // is our own.
            "recovery key not on curve" => "INVALID_RECOVERY_KEY",
            "x-only cohort key" | "uncompressed cohort key" => "KEY_LENGTH",
            "duplicate cohort key" => "DUPLICATE_COHORT_KEY",
            "same x, other parity" => "SHARED_X_COORDINATE",
            "cohort key not on curve" => "INVALID_COHORT_KEY",
            "network mainnet" | "network testnet" => "NETWORK",
            "recovery key equal to a cohort key" => {
                assert_eq!(derived.unwrap().address(), text(&case["address"]), "{name}");
                continue;
            }
            _ => text(&case["errorName"]),
        };
        assert_eq!(derived.unwrap_err(), expected, "{name}");
    }
}

#[test]
fn the_error_names_a_key_that_is_not_a_point() {
    let mut keys: Vec<[u8; 33]> = members(3).iter().map(|key| key.public_key().to_bytes()).collect();
    keys[1] = [5; 33];
    assert_eq!(KeyAggregation::from_bytes(&keys), Err(KeyAggregationError::NotAPoint { index: 1 }));
    assert_eq!(KeyAggregation::from_bytes(&[]), Err(KeyAggregationError::NoCohortKeys));
}

#[test]
fn without_script_paths_the_tweak_is_the_unspendable_one() {
    let output = output(&members(3), &ScriptTree::KeyPathOnly);
    assert_eq!(output.merkle_root(), None);
    assert!(output.fallback().is_none() && output.recovery().is_none() && !output.fallback_spendable());
    let expected = output.aggregation().context().clone().with_unspendable_taproot_tweak().unwrap();
    let expected: musig2::secp::Point = expected.aggregated_pubkey();
    assert_eq!(output.output_key().to_bytes(), expected.serialize_xonly());
    let signers: musig2::secp::Point = output.musig2_context().aggregated_pubkey();
    assert_eq!(signers, expected);
}

#[test]
fn one_aggregation_serves_outputs_with_different_terms() {
    let aggregation = aggregation(&members(3));
    for terms in [tree(None), tree(Some(1)), ScriptTree::KeyPathOnly, tree(None)] {
        let output = BeaconOutput::new(Arc::clone(&aggregation), Network::Signet, &terms).unwrap();
        let signers: musig2::secp::Point = output.musig2_context().aggregated_pubkey();
        assert_eq!(signers.serialize_xonly(), output.output_key().to_bytes(), "{terms:?}");
    }
}

#[test]
fn an_output_is_stored_by_its_inputs_and_derived_again() {
    for terms in [tree(None), tree(Some(2)), ScriptTree::KeyPathOnly] {
        let output = output(&members(3), &terms);
        let stored = serde_json::to_value(&output).unwrap();
        let again: BeaconOutput = serde_json::from_value(stored.clone()).unwrap();
        assert_eq!(again, output);
        assert_eq!(again.address(), output.address());

        let mut broken = stored;
        broken["keys"][0] = broken["keys"][1].clone();
        let error = serde_json::from_value::<BeaconOutput>(broken).unwrap_err();
        assert!(error.to_string().contains("twice"), "{error}");
    }
    let stored = serde_json::to_value(output(&members(2), &tree(Some(2)))).unwrap();
    let mut broken = stored;
    broken["scriptTree"]["fallbackAndRecovery"]["fallbackThreshold"] = json!(3);
    assert!(serde_json::from_value::<BeaconOutput>(broken).is_err());
}

#[test]
fn a_recovery_sequence_is_a_number_of_blocks() {
    for good in [json!(1), json!(65535)] {
        let sequence: RecoverySequence = serde_json::from_value(good.clone()).unwrap();
        assert_eq!(serde_json::to_value(sequence).unwrap(), good);
    }
    for bad in [json!(0), json!(65536), json!(-1), json!(1.5), json!("1"), json!(null)] {
        assert!(serde_json::from_value::<RecoverySequence>(bad.clone()).is_err(), "{bad}");
    }
    assert_eq!(RecoverySequence::try_from(u64::MAX), Err(OutputError::InvalidRecoverySequence));
}

#[test]
fn a_threshold_is_between_one_and_the_number_of_keys() {
    let aggregation = aggregation(&members(3));
    for (threshold, accepted) in [(0, false), (1, true), (3, true), (4, false), (u16::MAX, false)] {
        let output = BeaconOutput::new(Arc::clone(&aggregation), Network::Signet, &tree(Some(threshold)));
        assert_eq!(output.is_ok(), accepted, "{threshold}");
        if let Err(error) = output {
            assert_eq!(error.code(), "INVALID_FALLBACK_THRESHOLD");
        }
    }
}

#[test]
fn only_999_keys_fit_in_a_fallback_that_can_be_spent() {
    assert!(output(&members(MAX_FALLBACK_KEYS), &tree(None)).fallback_spendable());
    assert!(!output(&members(MAX_FALLBACK_KEYS + 1), &tree(None)).fallback_spendable());
}

#[test]
fn keys_have_their_index_in_key_sort_order() {
    let aggregation = aggregation(&members(20));
    assert!(aggregation.keys().is_sorted_by_key(|key| key.to_bytes()));
    for (index, key) in aggregation.keys().iter().enumerate() {
        assert_eq!(aggregation.index_of(key), Some(index));
    }
    assert_eq!(aggregation.index_of(&member(20).public_key()), None);
}

fn key_list(from: usize) -> Vec<[u8; 33]> {
    (from..from + 3).map(|n| member(n).public_key().to_bytes()).collect()
}

#[test]
fn members_of_one_process_share_one_aggregation() {
    let aggregator = MemoizedAggregator::default();
    let keys = key_list(0);
    let results: Vec<Arc<KeyAggregation>> = thread::scope(|scope| {
        let callers: Vec<_> = (0..8).map(|_| scope.spawn(|| aggregator.aggregate(&keys).unwrap())).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    assert!(results.iter().all(|result| Arc::ptr_eq(result, &results[0])));
    assert_eq!(*results[0], *DirectAggregator.aggregate(&keys).unwrap());
    assert_eq!(aggregator.len(), 1);

    // The copy of the context with the taproot tweak is shared as well.
    let outputs = [(); 2]
        .map(|()| BeaconOutput::new(aggregator.aggregate(&keys).unwrap(), Network::Signet, &tree(None)).unwrap());
    assert!(std::ptr::eq(outputs[0].musig2_context(), outputs[1].musig2_context()));
}

#[test]
fn the_aggregation_cache_is_bounded_and_holds_no_refused_lists() {
    let aggregator = MemoizedAggregator::with_capacity(2);
    assert!(aggregator.is_empty());
    assert_eq!(aggregator.aggregate(&[]), Err(KeyAggregationError::NoCohortKeys));
    assert!(aggregator.is_empty(), "a refused list is not cached");

    let first = aggregator.aggregate(&key_list(0)).unwrap();
    for list in 1..5 {
        aggregator.aggregate(&key_list(list)).unwrap();
    }
    assert_eq!(aggregator.len(), 2);
    let again = aggregator.aggregate(&key_list(0)).unwrap();
    assert!(!Arc::ptr_eq(&first, &again), "the oldest list was evicted");
    assert_eq!(first, again);
    assert!(!aggregator.is_empty());
}

#[test]
fn outputs_of_other_keys_trees_or_networks_differ() {
    let output = |members: usize, network, tree: &ScriptTree| {
        BeaconOutput::new(aggregation(&crate::bitcoin_support::members(members)), network, tree).unwrap()
    };
    let ours = output(3, Network::Signet, &tree(None));
    assert_eq!(ours, output(3, Network::Signet, &tree(None)));
    assert_ne!(ours, output(2, Network::Signet, &tree(None)));
    assert_ne!(ours, output(3, Network::Regtest, &tree(None)));
    assert_ne!(ours, output(3, Network::Signet, &tree(Some(1))));
}

#[test]
fn a_threshold_of_zero_is_refused_before_keys_are_known() {
    let key = crate::bitcoin_support::recovery_key().to_string();
    let refused = ScriptTree::from_terms(&key, 144, Some(0));
    assert_eq!(refused, Err(OutputError::InvalidFallbackThreshold));
    assert_eq!(ScriptTree::from_terms(&key, 144, Some(1)), Ok(tree(Some(1))));
}

#[test]
fn an_aggregation_is_stored_as_its_keys() {
    let aggregation = aggregation(&members(3));
    let stored = serde_json::to_value(&*aggregation).unwrap();
    assert_eq!(stored, json!(aggregation.keys()));
    assert_eq!(serde_json::from_value::<KeyAggregation>(stored).unwrap(), *aggregation);
    let key: PublicKey = member(0).public_key();
    for bad in [json!([]), json!([key, key]), json!(["00"])] {
        assert!(serde_json::from_value::<KeyAggregation>(bad.clone()).is_err(), "{bad}");
    }
}
