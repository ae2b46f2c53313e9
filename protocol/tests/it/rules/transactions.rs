//! T: the beacon transaction, as a member checks it before it opens a nonce. T-4, T-6 and T-7 concern the choice of
//! coins: see the host's `tests/it/funding.rs`.

use std::sync::Arc;

use bitcoin::{
    Amount, FeeRate, OutPoint, PubkeyHash, ScriptBuf, ScriptHash, Sequence, Transaction, TxOut, WPubkeyHash,
    Witness,
    absolute::LockTime,
    hashes::Hash,
    opcodes::{
        Opcode,
        all::{OP_CHECKMULTISIG, OP_PUSHNUM_1, OP_PUSHNUM_3, OP_PUSHNUM_4},
    },
    script::Builder,
    transaction::Version,
};
use btcr2_aggregation_protocol::{
    document::beacon_address,
    hash::SignalBytes,
    network::Network,
    output::{
        BeaconOutput, Change, Coin, DEFAULT_MAX_FEE_RATE, KeyAggregation, ScriptTree, TransactionFault,
        build_beacon_transaction, check_beacon_transaction, check_fee, fallback_vsize, key_path_vsize,
    },
};

use super::controller::key;

const VALUE: Amount = Amount::from_sat(100_000);

fn output(members: u8) -> BeaconOutput {
    let keys = (1..=members).map(|n| key(n).public_key());
    let aggregation = Arc::new(KeyAggregation::new(keys).unwrap());
    let recovery_key = key(99).public_key().x_only().to_string();
    let tree = ScriptTree::from_terms(&recovery_key, 144, None).unwrap();
    BeaconOutput::new(aggregation, Network::Regtest, &tree).unwrap()
}

fn signal() -> SignalBytes {
    SignalBytes::from_bytes([7; 32])
}

fn good(output: &BeaconOutput) -> Transaction {
    let coin = Coin { outpoint: OutPoint::default(), value: VALUE };
    build_beacon_transaction(output, &coin, &signal(), FeeRate::from_sat_per_vb_u32(2), &Change::Beacon).unwrap()
}

fn fault(change: impl FnOnce(&mut Transaction)) -> Result<(), TransactionFault> {
    let output = output(3);
    let mut tx = good(&output);
    change(&mut tx);
    check_beacon_transaction(&tx, &output, output.script_pubkey(), VALUE, &signal())
}

#[test]
fn t_01_the_signal_is_the_last_output() {
    assert_eq!(fault(|_| {}), Ok(()));
    assert_eq!(fault(|tx| tx.output.reverse()), Err(TransactionFault::LastOutputNotOpReturn));
    let pushdata = ScriptBuf::from([&[0x6a, 0x4c, 0x20], [7; 32].as_slice()].concat());
    assert_eq!(fault(|tx| tx.output[1].script_pubkey = pushdata), Err(TransactionFault::MalformedSignal));
    let longer = ScriptBuf::from([&[0x6a, 0x20], [7; 32].as_slice(), &[0]].concat());
    assert_eq!(fault(|tx| tx.output[1].script_pubkey = longer), Err(TransactionFault::MalformedSignal));
}

#[test]
fn t_02_the_coin_is_one_of_the_beacon() {
    let (ours, other) = (output(3), output(2));
    let checked = check_beacon_transaction(&good(&ours), &ours, other.script_pubkey(), VALUE, &signal());
    assert_eq!(checked, Err(TransactionFault::PrevoutScript));
}

#[test]
fn t_03_one_transaction_has_one_signal() {
    let second = TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::new_op_return([7; 32]) };
    assert_eq!(fault(|tx| tx.output.insert(0, second)), Err(TransactionFault::SecondOpReturn { index: 0 }));
}

#[test]
fn t_04_a_cohort_transaction_has_one_input() {
    let input_count = |tx: &mut Transaction| tx.input.push(tx.input[0].clone());
    assert!(matches!(fault(input_count), Err(TransactionFault::InputCount(_))));
}

#[test]
fn t_05_change_is_first_and_not_dust() {
    let output = output(3);
    let tx = good(&output);
    assert_eq!(tx.output[0].script_pubkey.as_script(), output.script_pubkey());
    assert_eq!(tx.output[1].value, Amount::ZERO);
    let dust = Amount::from_sat(329);
    assert_eq!(fault(|tx| tx.output[0].value = dust), Err(TransactionFault::DustOutput { index: 0, value: dust }));
    assert_eq!(fault(|tx| tx.output[0].value = Amount::from_sat(330)), Ok(()));
}

#[test]
fn t_06_outputs_are_within_the_value() {
    let inflated = Err(TransactionFault::Inflation { value: VALUE });
    assert_eq!(fault(|tx| tx.output[0].value = VALUE + Amount::ONE_SAT), inflated);
    assert_eq!(fault(|tx| tx.output[0].value = Amount::MAX), inflated, "no overflow");
    assert_eq!(fault(|tx| tx.output[0].value = VALUE), Ok(()), "a fee of zero is not relayed, and harmless");
}

#[test]
fn t_08_the_address_ends_at_the_parameters() {
    assert_eq!(beacon_address("bitcoin:bcrt1qxyz"), Some("bcrt1qxyz"));
    assert_eq!(beacon_address("bitcoin:bcrt1qxyz?amount=1&label=a:b"), Some("bcrt1qxyz"));
    for none in ["bitcoin:", "bitcoin:?amount=1", "bcrt1qxyz", "https://example.org", ""] {
        assert_eq!(beacon_address(none), None, "{none}");
    }
}

#[test]
fn a_delayed_transaction_is_not_signed() {
    let height = LockTime::from_height(800_000).unwrap();
    assert_eq!(fault(|tx| tx.lock_time = height), Ok(()), "the sequence is final, so the lock time does not apply");
    let rbf = Sequence::ENABLE_RBF_NO_LOCKTIME;
    assert_eq!(fault(|tx| tx.input[0].sequence = rbf), Ok(()));
    let locked = |tx: &mut Transaction| {
        tx.lock_time = height;
        tx.input[0].sequence = Sequence::ENABLE_LOCKTIME_NO_RBF;
    };
    assert_eq!(fault(locked), Err(TransactionFault::LockTime(height)));
    for sequence in
        [Sequence::from_height(1), Sequence::from_height(0xffff), Sequence::from_512_second_intervals(1)]
    {
        let delayed = fault(|tx| tx.input[0].sequence = sequence);
        assert_eq!(delayed, Err(TransactionFault::RelativeLockTime(sequence.to_consensus_u32())));
    }
    assert_eq!(fault(|tx| tx.input[0].sequence = Sequence::ZERO), Ok(()), "zero blocks have always passed");
    assert_eq!(fault(|tx| tx.version = Version(3)), Err(TransactionFault::Version(3)));
}

fn bitcoin_key(n: u8) -> bitcoin::PublicKey {
    bitcoin::PublicKey::from_slice(&key(n).public_key().to_bytes()).unwrap()
}

/// A bare script of one signature of `n` keys.
fn multisig(n: u8, count: Opcode) -> ScriptBuf {
    let one = Builder::new().push_opcode(OP_PUSHNUM_1);
    let keys = (1..=n).fold(one, |script, n| script.push_key(&bitcoin_key(n)));
    keys.push_opcode(count).push_opcode(OP_CHECKMULTISIG).into_script()
}

#[test]
fn change_may_go_to_every_standard_script() {
    let p2wpkh = ScriptBuf::new_p2wpkh(&WPubkeyHash::all_zeros());
    for script in [
        ScriptBuf::new_p2pkh(&PubkeyHash::all_zeros()),
        ScriptBuf::new_p2sh(&ScriptHash::all_zeros()),
        ScriptBuf::new_p2wsh(&p2wpkh.wscript_hash()),
        p2wpkh,
        output(2).script_pubkey().to_owned(),
        ScriptBuf::new_p2pk(&bitcoin_key(1)),
        multisig(1, OP_PUSHNUM_1),
        multisig(3, OP_PUSHNUM_3),
    ] {
        assert_eq!(fault(|tx| tx.output[0].script_pubkey = script.clone()), Ok(()), "{script}");
    }
}

#[test]
fn the_weight_may_be_the_largest_standard_one_and_no_more() {
    let output = output(3);
    let value = Amount::from_sat(10_000_000);
    let size = |tx: &Transaction| key_path_vsize(tx).max(fallback_vsize(tx, output.fallback().unwrap()));
    let check = |tx: &Transaction| check_beacon_transaction(tx, &output, output.script_pubkey(), value, &signal());
    // Outputs of 31 bytes, and some of 32 in their place, until the size is exactly the limit.
    let pay = |script_pubkey| TxOut { value: Amount::from_sat(600), script_pubkey };
    let p2wpkh = pay(ScriptBuf::new_p2wpkh(&WPubkeyHash::all_zeros()));
    let p2sh = pay(ScriptBuf::new_p2sh(&ScriptHash::all_zeros()));
    let mut tx = good(&output);
    tx.output.splice(0..0, std::iter::repeat_n(p2wpkh.clone(), 300));
    let missing = (100_000 - size(&tx)) / 31;
    tx.output.splice(0..0, std::iter::repeat_n(p2wpkh, missing as usize));
    let missing = 100_000 - size(&tx);
    tx.output[..missing as usize].fill(p2sh.clone());
    assert_eq!((size(&tx), check(&tx)), (100_000, Ok(())));
    tx.output[missing as usize] = p2sh;
    assert_eq!(check(&tx), Err(TransactionFault::Weight(400_004)));
}

#[test]
fn a_transaction_that_nodes_do_not_relay_is_not_signed() {
    let four = multisig(4, OP_PUSHNUM_4);
    for script in [ScriptBuf::new(), ScriptBuf::from(vec![0x51]), ScriptBuf::from(vec![0x00, 0x01]), four] {
        let non_standard = fault(|tx| tx.output[0].script_pubkey = script.clone());
        assert_eq!(non_standard, Err(TransactionFault::NonStandardOutput { index: 0 }), "{script}");
    }
    let heavy = fault(|tx| {
        let one = TxOut { value: Amount::from_sat(330), script_pubkey: tx.output[0].script_pubkey.clone() };
        tx.output[0].value = Amount::from_sat(330);
        for _ in 0..300 {
            tx.output.insert(0, one.clone());
        }
    });
    assert_eq!(heavy, Ok(()), "300 outputs are within the weight");
    let output = output(3);
    let mut tx = good(&output);
    let one = TxOut { value: Amount::from_sat(330), script_pubkey: output.script_pubkey().to_owned() };
    for _ in 0..2_400 {
        tx.output.insert(0, one.clone());
    }
    let value = Amount::from_sat(10_000_000);
    let checked = check_beacon_transaction(&tx, &output, output.script_pubkey(), value, &signal());
    assert!(matches!(checked, Err(TransactionFault::Weight(weight)) if weight > 400_000), "{checked:?}");
    assert_eq!(fault(|tx| tx.input[0].witness = Witness::from(vec![vec![1]])), Err(TransactionFault::Witness));
}

#[test]
fn the_fee_is_bounded_by_the_members_terms() {
    let output = output(3);
    let rate = |rate| FeeRate::from_sat_per_vb_u32(rate);
    let mut tx = good(&output);
    let pay = |tx: &mut Transaction, fee: u64| tx.output[0].value = VALUE - Amount::from_sat(fee);
    let size = key_path_vsize(&tx);
    pay(&mut tx, 10 * size);
    assert_eq!(check_fee(&tx, &output, VALUE, rate(10)), Ok(()));
    pay(&mut tx, 10 * size + 1);
    let refused = check_fee(&tx, &output, VALUE, rate(10)).unwrap_err();
    assert!(matches!(refused, TransactionFault::Fee { rate: 10, .. }), "{refused}");
    assert!(refused.to_string().contains("10 sat/vB"), "{refused}");
    assert_eq!(check_fee(&tx, &output, VALUE, DEFAULT_MAX_FEE_RATE), Ok(()));
    // The fee that the fallback needs to be relayed is accepted at any rate.
    let fallback = fallback_vsize(&tx, output.fallback().unwrap());
    pay(&mut tx, fallback);
    assert_eq!(check_fee(&tx, &output, VALUE, rate(0)), Ok(()));
}
