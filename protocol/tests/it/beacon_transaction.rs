//! Beacon transactions: fees, change, what a member refuses to sign, and key path spends.

use std::collections::BTreeMap;

use crate::bitcoin_support::{
    cohort_output, coin, consensus_accepts, hex, list, members, output, prevout, rng, text, transaction, tree,
};
use bitcoin::{
    Amount, FeeRate, PubkeyHash, ScriptBuf, Sequence, Transaction, TxOut, WPubkeyHash, Witness, absolute::LockTime,
    consensus::encode::serialize_hex, hashes::Hash, script::PushBytesBuf, transaction::Version,
};
use btcr2_aggregation_protocol::{
    hash::SignalBytes,
    key::{PublicKey, Signature},
    output::{
        BeaconOutput, BuildError, Change, InputCountError, ScriptTree, TransactionFault, build_beacon_transaction,
        check_beacon_transaction, fallback_vsize, finalize_key_path, key_path_sighash, key_path_vsize,
    },
};
use musig2::{
    AggNonce, PartialSignature, SecNonce,
    secp::{Point, Scalar},
};

const SIGNAL: SignalBytes = SignalBytes::from_bytes([7; 32]);

const VALUE: Amount = Amount::from_sat(100_000);

fn build(output: &BeaconOutput, sat: u64, rate: FeeRate, change: &Change) -> Result<Transaction, BuildError> {
    build_beacon_transaction(output, &coin(sat), &SIGNAL, rate, change)
}

fn sat_per_vb(rate: u32) -> FeeRate {
    FeeRate::from_sat_per_vb_u32(rate)
}

fn fee(tx: &Transaction, sat: u64) -> u64 {
    sat - tx.output.iter().map(|output| output.value.to_sat()).sum::<u64>()
}

fn small_cohort() -> BeaconOutput {
    output(&members(3), &tree(None))
}

#[test]
fn recorded_beacon_transactions_pass_the_check_and_consensus() {
    let vectors = crate::common::vectors("musig2_round");
    for (index, case) in list(&vectors["cases"]).iter().enumerate() {
        let output = cohort_output(&case["cohort"]);
        let (tx, spent) = (transaction(&case["unsignedTx"]), prevout(case));
        let signal: SignalBytes = text(&case["signalBytes"]).parse().unwrap();
        assert_eq!(
            check_beacon_transaction(&tx, &output, &spent.script_pubkey, spent.value, &signal),
            Ok(()),
            "case {index}"
        );
        assert_eq!(output.output_key().to_string(), text(&case["outputKey"]), "case {index}");

        let digest = key_path_sighash(&tx, &spent).unwrap();
        assert_eq!(hex(digest), text(&case["sighash"]), "case {index}");
        let signature: Signature = text(&case["finalSignature"]).parse().unwrap();
        assert!(output.output_key().verify(&digest, &signature), "case {index}");
        let signed = finalize_key_path(&tx, &signature).unwrap();
        assert_eq!(serialize_hex(&signed), text(&case["signedTx"]), "case {index}");
        assert_eq!(signed.compute_txid().to_string(), text(&case["txid"]), "case {index}");
        assert!(consensus_accepts(&signed, &spent), "case {index}");
        assert_eq!(signed.vsize() as u64, key_path_vsize(&tx), "case {index}");

        let broken = finalize_key_path(&tx, &Signature::from_bytes(&[1; 64])).unwrap();
        assert!(!consensus_accepts(&broken, &spent), "case {index}: a broken signature");
    }
}

#[test]
fn the_built_transaction_has_the_shape_of_the_wire_format() {
    let output = small_cohort();
    let tx = build(&output, 100_000, sat_per_vb(5), &Change::Beacon).unwrap();
    assert_eq!((tx.version, tx.lock_time), (Version::TWO, LockTime::ZERO));
    assert_eq!(tx.input.len(), 1);
    assert_eq!(tx.input[0].previous_output, coin(100_000).outpoint);
    assert_eq!(tx.input[0].sequence, Sequence(0xffff_ffff));
    assert!(tx.input[0].script_sig.is_empty() && tx.input[0].witness.is_empty());
    assert_eq!(tx.output.len(), 2);
    assert_eq!(tx.output[0].script_pubkey.as_script(), output.script_pubkey());
    assert_eq!(tx.output[1].value, Amount::ZERO);
    assert_eq!(hex(&tx.output[1].script_pubkey), format!("6a20{}", "07".repeat(32)));
    assert_eq!(check_beacon_transaction(&tx, &output, output.script_pubkey(), VALUE, &SIGNAL), Ok(()));
}

#[test]
fn the_fee_is_the_rate_times_the_signed_size() {
    let output = small_cohort();
    for (rate, expected) in [(0, None), (1, None), (2, Some(2)), (10, Some(10)), (1000, Some(1000))] {
        let tx = build(&output, 1_000_000, sat_per_vb(rate), &Change::Beacon).unwrap();
        let signed = finalize_key_path(&tx, &Signature::from_bytes(&[1; 64])).unwrap();
        let fallback = fallback_vsize(&tx, output.fallback().unwrap());
        // At 0 and 1 sat/vB the larger fallback witness determines the fee.
        let expected = expected.map_or(fallback, |rate| (rate * signed.vsize() as u64).max(fallback));
        assert_eq!(fee(&tx, 1_000_000), expected, "{rate} sat/vB");
    }
    // Fractions of a satoshi are rounded up: 154 vB at 2.002 sat/vB.
    let key_path_only = self::output(&members(3), &ScriptTree::KeyPathOnly);
    let tx = build(&key_path_only, 1_000_000, FeeRate::from_sat_per_kwu(501), &Change::Beacon).unwrap();
    let vsize = key_path_vsize(&tx);
    assert_eq!(fee(&tx, 1_000_000), (vsize * 2004).div_ceil(1000));
    assert!(!(vsize * 2004).is_multiple_of(1000), "the case needs rounding");
    // Without a fallback leaf only the key path determines the fee, with the relay minimum as its floor.
    let tx = build(&key_path_only, 1_000_000, sat_per_vb(0), &Change::Beacon).unwrap();
    assert_eq!(fee(&tx, 1_000_000), vsize);
}

#[test]
fn the_fee_lets_the_fallback_spend_be_relayed() {
    for n in [10, 30, 100] {
        let keys = members(n);
        let output = output(&keys, &tree(None));
        let leaf = output.fallback().unwrap();
        for rate in [0, 1, 3] {
            let tx = build(&output, 1_000_000, sat_per_vb(rate), &Change::Beacon).unwrap();
            let spent = coin(1_000_000).prevout(&output);
            let digest = leaf.sighash(&tx, &spent).unwrap();
            let signatures: BTreeMap<_, _> =
                keys.iter().map(|key| (key.public_key().x_only(), key.sign(&digest, &mut rng()))).collect();
            let signed = leaf.assemble(&tx, &spent, &signatures).unwrap();
            assert!(consensus_accepts(&signed, &spent), "{n} members");
            assert_eq!(signed.vsize() as u64, fallback_vsize(&tx, leaf), "{n} members");
            assert!(signed.vsize() as u64 <= fee(&tx, 1_000_000), "{n} members at {rate} sat/vB");
        }
    }
}

#[test]
fn the_fee_ignores_a_fallback_that_cannot_be_spent() {
    let output = output(&members(1000), &tree(None));
    let tx = build(&output, 1_000_000, sat_per_vb(1), &Change::Beacon).unwrap();
    assert_eq!(fee(&tx, 1_000_000), key_path_vsize(&tx));
}

#[test]
fn change_below_the_floor_of_its_kind_goes_to_the_fee() {
    let output = small_cohort();
    let kinds = [
        // At 1 sat/vB the dust limit applies, at 5 the cost of spending the change (the values of rule T-5).
        ("P2WPKH", Change::To(ScriptBuf::new_p2wpkh(&WPubkeyHash::all_zeros())), 1, 294),
        ("P2WPKH", Change::To(ScriptBuf::new_p2wpkh(&WPubkeyHash::all_zeros())), 5, 346),
        ("P2TR", Change::Beacon, 5, 330),
        ("P2TR", Change::To(output.script_pubkey().to_owned()), 10, 581),
        ("P2PKH", Change::To(ScriptBuf::new_p2pkh(&PubkeyHash::all_zeros())), 1, 546),
        ("P2PKH", Change::To(ScriptBuf::new_p2pkh(&PubkeyHash::all_zeros())), 5, 746),
    ];
    for (kind, change, rate, dust) in kinds {
        let rate = sat_per_vb(rate);
        let fee_with_change = fee(&build(&output, 100_000, rate, &change).unwrap(), 100_000);
        let enough = build(&output, fee_with_change + dust, rate, &change).unwrap();
        assert_eq!(enough.output.len(), 2, "{kind}");
        assert_eq!(enough.output[0].value.to_sat(), dust, "{kind}");

        let short = fee_with_change + dust - 1;
        let without = build(&output, short, rate, &change).unwrap();
        assert_eq!(without.output.len(), 1, "{kind}: only the signal");
        assert_eq!(fee(&without, short), short, "{kind}: the whole value is the fee");
        let value = Amount::from_sat(short);
        let checked = check_beacon_transaction(&without, &output, output.script_pubkey(), value, &SIGNAL);
        assert_eq!(checked, Ok(()), "{kind}");
    }
}

#[test]
fn a_coin_that_does_not_pay_the_fee_is_refused() {
    let output = small_cohort();
    let Err(BuildError::InsufficientFunds { needed, available }) =
        build(&output, 0, sat_per_vb(10), &Change::Beacon)
    else {
        panic!("the build without change has a fee");
    };
    assert_eq!(available, Amount::ZERO);
    // One satoshi above the fee, which is added to it (rule T-6).
    let least = build(&output, needed.to_sat() + 1, sat_per_vb(10), &Change::Beacon).unwrap();
    assert_eq!(needed.to_sat(), 10 * key_path_vsize(&least));
    let error = build(&output, needed.to_sat(), sat_per_vb(10), &Change::Beacon).unwrap_err();
    assert_eq!(error, BuildError::InsufficientFunds { needed, available: needed });
    assert_eq!(error.code(), "INSUFFICIENT_FUNDS");
    // An excessive rate does not overflow.
    assert!(build(&output, 1_000_000, FeeRate::MAX, &Change::Beacon).is_err());
}

#[test]
fn change_to_an_op_return_is_refused() {
    let change = Change::To(ScriptBuf::new_op_return([1; 4]));
    assert_eq!(build(&small_cohort(), 100_000, sat_per_vb(1), &change).unwrap_err().code(), "CHANGE_IS_OP_RETURN");
}

#[test]
fn a_member_signs_nothing_but_the_beacon_transaction() {
    let output = small_cohort();
    let good = build(&output, 100_000, sat_per_vb(2), &Change::Beacon).unwrap();
    let op_return = |data: &[u8]| ScriptBuf::new_op_return(PushBytesBuf::try_from(data.to_vec()).unwrap());
    let fault = |change: &dyn Fn(&mut Transaction)| {
        let mut tx = good.clone();
        change(&mut tx);
        check_beacon_transaction(&tx, &output, output.script_pubkey(), VALUE, &SIGNAL).unwrap_err()
    };

    assert_eq!(fault(&|tx| tx.input.clear()), TransactionFault::InputCount(InputCountError(0)));
    assert_eq!(fault(&|tx| tx.input.push(tx.input[0].clone())), TransactionFault::InputCount(InputCountError(2)));
    let other = self::output(&members(2), &tree(None));
    assert_eq!(
        check_beacon_transaction(&good, &output, other.script_pubkey(), VALUE, &SIGNAL),
        Err(TransactionFault::PrevoutScript)
    );
    assert_eq!(fault(&|tx| tx.version = Version::ONE), TransactionFault::Version(1));
    assert_eq!(fault(&|tx| tx.input[0].script_sig = ScriptBuf::from(vec![0x51])), TransactionFault::ScriptSig);
    assert_eq!(fault(&|tx| tx.input[0].witness = Witness::from(vec![vec![1]])), TransactionFault::Witness);
    assert_eq!(fault(&|tx| tx.output.clear()), TransactionFault::NoOutputs);
    assert_eq!(fault(&|tx| tx.output.reverse()), TransactionFault::LastOutputNotOpReturn);
    assert_eq!(
        fault(&|tx| tx.output[1].script_pubkey = op_return(&[8; 32])),
        TransactionFault::WrongSignal(SignalBytes::from_bytes([8; 32]))
    );
    assert_eq!(
        fault(&|tx| tx.output[1].value = Amount::from_sat(1)),
        TransactionFault::SignalValue(Amount::from_sat(1))
    );
    assert_eq!(
        fault(&|tx| tx.output.insert(0, TxOut { value: Amount::ZERO, script_pubkey: op_return(&[7; 32]) })),
        TransactionFault::SecondOpReturn { index: 0 }
    );

    let pushdata1 = [&[0x6a, 0x4c, 0x20], [7; 32].as_slice()].concat();
    let two_pushes = [&[0x6a, 0x20], [7; 32].as_slice(), &[0x01, 0x07]].concat();
    for malformed in [
        op_return(&[7; 31]),
        op_return(&[7; 33]),
        ScriptBuf::from(vec![0x6a]),
        ScriptBuf::from(pushdata1),
        ScriptBuf::from(two_pushes),
    ] {
        assert_eq!(
            fault(&|tx| tx.output[1].script_pubkey = malformed.clone()),
            TransactionFault::MalformedSignal,
            "{malformed}"
        );
    }
}

#[test]
fn hashes_and_witnesses_require_exactly_one_input() {
    let output = small_cohort();
    let spent = coin(100_000).prevout(&output);
    let mut tx = build(&output, 100_000, sat_per_vb(2), &Change::Beacon).unwrap();
    tx.input.push(tx.input[0].clone());
    assert_eq!(key_path_sighash(&tx, &spent), Err(InputCountError(2)));
    assert_eq!(finalize_key_path(&tx, &Signature::from_bytes(&[1; 64])), Err(InputCountError(2)));
    tx.input.clear();
    assert_eq!(key_path_sighash(&tx, &spent), Err(InputCountError(0)));
    // The sizes of such a transaction have no meaning, but computing them does not panic.
    assert!(key_path_vsize(&tx) > 0 && fallback_vsize(&tx, output.fallback().unwrap()) > 0);
}

/// All members sign `digest` by MuSig2 under the output's context.
fn musig2_sign(output: &BeaconOutput, n: usize, digest: [u8; 32]) -> Signature {
    let context = output.musig2_context();
    let secrets: BTreeMap<PublicKey, Scalar> = (0..n)
        .map(|index| {
            let bytes = btcr2_aggregation_protocol::hash::sha256(format!("member {index}").as_bytes());
            (crate::bitcoin_support::member(index).public_key(), Scalar::from_slice(&bytes).unwrap())
        })
        .collect();
    let nonce =
        |secret: &Scalar| SecNonce::build_with_seckey(secret.serialize(), *secret).with_message(&digest).build();
    let aggregate = AggNonce::sum(secrets.values().map(|secret| nonce(secret).public_nonce()));
    let partial: Vec<PartialSignature> = output
        .keys()
        .iter()
        .map(|key| musig2::sign_partial(context, secrets[key], nonce(&secrets[key]), &aggregate, digest).unwrap())
        .collect();
    let signature: musig2::CompactSignature =
        musig2::aggregate_partial_signatures(context, &aggregate, partial, digest).unwrap();
    Signature::from_bytes(&signature.serialize())
}

#[test]
fn the_outputs_context_signs_key_path_spends() {
    for n in [1, 2, 5] {
        for terms in [tree(None), ScriptTree::KeyPathOnly] {
            let output = output(&members(n), &terms);
            let tx = build(&output, 100_000, sat_per_vb(2), &Change::Beacon).unwrap();
            let spent = coin(100_000).prevout(&output);
            let digest = key_path_sighash(&tx, &spent).unwrap();
            let signature = musig2_sign(&output, n, digest);
            let q: Point = output.musig2_context().aggregated_pubkey();
            assert_eq!(q.serialize_xonly(), output.output_key().to_bytes());
            assert!(output.output_key().verify(&digest, &signature), "{n} members, {terms:?}");
            let signed = finalize_key_path(&tx, &signature).unwrap();
            assert!(consensus_accepts(&signed, &spent), "{n} members, {terms:?}");
        }
    }
}
