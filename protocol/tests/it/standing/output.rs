//! The output without a recovery leaf: against rust-bitcoin's own builder, and Bitcoin Core's consensus code.

use std::collections::BTreeMap;

use bitcoin::{Amount, FeeRate, key::UntweakedPublicKey, secp256k1::SECP256K1, taproot::TaprootBuilder};
use btcr2_aggregation_protocol::{
    hash::SignalBytes,
    key::{Signature, XOnlyKey},
    output::{
        BeaconOutput, Change, FallbackError, OutputError, ScriptTree, build_beacon_transaction, check_signed,
    },
};

use crate::bitcoin_support::{aggregation, coin, consensus_accepts, member, members, output, rng};

#[test]
fn a_fallback_without_recovery_is_a_tree_of_one_leaf() {
    for (n, k) in [(2, 1), (3, 2), (15, 10), (17, 16), (17, 17)] {
        let keys = members(n);
        let output = output(&keys, &ScriptTree::FallbackOnly { threshold: k });
        let leaf = output.fallback().unwrap();
        assert!(output.recovery().is_none() && output.fallback_spendable());
        let internal: UntweakedPublicKey = *output.internal_key().as_inner();
        let builder = TaprootBuilder::new().add_leaf(0, leaf.script().to_owned()).unwrap();
        let spend = builder.finalize(SECP256K1, internal).unwrap();
        assert_eq!(spend.output_key().to_x_only_public_key(), *output.output_key().as_inner(), "{k} of {n}");
        let control = spend.control_block(&(leaf.script().to_owned(), bitcoin::taproot::LeafVersion::TapScript));
        assert_eq!(control.unwrap().serialize(), leaf.control_block());
        assert_eq!(leaf.control_block().len(), 33, "no sibling");

        let coin = coin(1_000_000);
        let signal = SignalBytes::from_bytes([7; 32]);
        let rate = FeeRate::from_sat_per_vb_u32(1);
        let tx = build_beacon_transaction(&output, &coin, &signal, rate, &Change::Beacon).unwrap();
        let prevout = coin.prevout(&output);
        let digest = leaf.sighash(&tx, &prevout).unwrap();
        let signatures: BTreeMap<XOnlyKey, Signature> =
            keys.iter().map(|key| (key.public_key().x_only(), key.sign(&digest, &mut rng()))).collect();
        let signed = leaf.assemble(&tx, &prevout, &signatures).unwrap();
        assert!(consensus_accepts(&signed, &prevout), "{k} of {n}");
        check_signed(&signed, &output, Amount::from_sat(1_000_000)).unwrap();
        let fewer = signatures.into_iter().take(usize::from(k) - 1).collect();
        assert!(matches!(leaf.assemble(&tx, &prevout, &fewer), Err(FallbackError::NotEnoughSignatures { .. })));
    }
    for threshold in [0, 4] {
        let tree = ScriptTree::FallbackOnly { threshold };
        let refused = BeaconOutput::new(aggregation(&members(3)), super::cohort::NETWORK, &tree);
        assert_eq!(refused.unwrap_err(), OutputError::InvalidFallbackThreshold);
    }
}

#[test]
fn an_output_without_recovery_survives_its_journal() {
    let output = output(&[member(1), member(2), member(3)], &ScriptTree::FallbackOnly { threshold: 2 });
    let text = serde_json::to_string(&output).unwrap();
    assert_eq!(serde_json::from_str::<BeaconOutput>(&text).unwrap(), output);
    assert!(text.contains(r#""scriptTree":{"fallbackOnly":{"threshold":2}}"#), "{text}");
}
