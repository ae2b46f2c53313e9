//! The transactions of a standing cohort: what a seat signs, what it refuses, and Bitcoin Core's verdict.

use std::collections::BTreeMap;

use bitcoin::{Amount, FeeRate, OutPoint, PubkeyHash, ScriptBuf, Sequence, Transaction, TxOut, hashes::Hash};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        Destinations, Mode, StandingBeacon, StandingBuildError, StandingFault, StandingTerms, TransactionCheck,
        announcement_vsize, build_announcement, build_refresh, prevouts, refresh_vsize, sighashes, signed_vsize,
        with_fallback_signatures,
    },
    hash::SignalBytes,
    key::{Signature, XOnlyKey},
    output::Coin,
};

use super::cohort::{Cohort, NETWORK, rng};
use crate::bitcoin_support::consensus_accepts_all;

const SIGNAL: SignalBytes = SignalBytes::from_bytes([0x5a; 32]);

fn rate(rate: u32) -> FeeRate {
    FeeRate::from_sat_per_vb_u32(rate)
}

fn operator(sat: u64) -> TxOut {
    let script = ScriptBuf::from_hex("00140102030405060708090a0b0c0d0e0f1011121314").unwrap();
    TxOut { value: Amount::from_sat(sat), script_pubkey: script }
}

fn cohort(seats: usize, k: u16) -> Cohort {
    Cohort::new(StandingTerms::new(StandingBeacon::Cas, NETWORK, k + 1, 100).proceeding(k), seats, 1)
}

fn destinations(cohort: &Cohort) -> Destinations {
    Destinations { change: cohort.output.script_pubkey().to_owned(), operator: Some(operator(1_000)) }
}

fn check(
    cohort: &Cohort,
    coins: &[Coin],
    signal: Option<&SignalBytes>,
    mode: Mode,
    tx: &Transaction,
) -> Result<(), StandingFault> {
    let change = cohort.output.script_pubkey();
    TransactionCheck { terms: &cohort.terms, output: &cohort.output, coins, signal, change, mode }.check(tx)
}

#[test]
fn a_seat_signs_exactly_the_announcement_of_its_board() {
    let cohort = cohort(5, 3);
    let coin = cohort.coin(100_000, 0);
    let build =
        |mode| build_announcement(&cohort.output, &coin, &SIGNAL, &destinations(&cohort), mode, rate(5)).unwrap();
    for mode in [Mode::Key, Mode::Fallback] {
        let tx = build(mode);
        assert_eq!(check(&cohort, &[coin], Some(&SIGNAL), mode, &tx), Ok(()));
        let fee = 100_000 - tx.output.iter().map(|output| output.value.to_sat()).sum::<u64>();
        assert_eq!(fee, 5 * signed_vsize(&tx, &cohort.output, mode));
        let refused = |change: &dyn Fn(&mut Transaction)| {
            let mut tx = tx.clone();
            change(&mut tx);
            check(&cohort, &[coin], Some(&SIGNAL), mode, &tx).unwrap_err()
        };
        assert_eq!(refused(&|tx| tx.input[0].previous_output.vout = 9), StandingFault::Inputs);
        assert_eq!(refused(&|tx| tx.input.push(tx.input[0].clone())), StandingFault::Inputs);
        assert!(matches!(refused(&|tx| tx.input[0].sequence = Sequence::ZERO), StandingFault::Form(_)));
        assert!(matches!(
            refused(&|tx| tx.lock_time = bitcoin::absolute::LockTime::from_consensus(7)),
            StandingFault::Form(_)
        ));
        assert_eq!(refused(&|tx| tx.output.reverse()), StandingFault::Signal);
        let other = SignalBytes::from_bytes([1; 32]);
        assert_eq!(check(&cohort, &[coin], Some(&other), mode, &tx), Err(StandingFault::Signal));
        assert_eq!(check(&cohort, &[coin], None, mode, &tx), Err(StandingFault::RefreshAnnounces));
        assert_eq!(refused(&|tx| tx.output[0].script_pubkey = operator(1).script_pubkey), StandingFault::NoChange);
        assert_eq!(refused(&|tx| drop(tx.output.remove(0))), StandingFault::NoChange);
        assert_eq!(refused(&|tx| tx.output.insert(1, operator(1_000))), StandingFault::Output(2));
        let most = Amount::from_sat(10_000);
        let greedy = |tx: &mut Transaction| tx.output[1].value = most + Amount::ONE_SAT;
        assert_eq!(refused(&greedy), StandingFault::OperatorOutput { found: most + Amount::ONE_SAT, most });
        assert_eq!(refused(&|tx| tx.output[1].value = Amount::ONE_SAT), StandingFault::Output(1), "dust");
        assert_eq!(refused(&|tx| tx.output[0].value = Amount::from_sat(99_999)), StandingFault::Inflation);
        assert!(matches!(refused(&|tx| tx.output[0].value = Amount::from_sat(400)), StandingFault::Fee { .. }));
    }
    // A fallback costs more; by key path the same fee would be too high for a member whose terms allow 5 sat/vB.
    assert!(signed_vsize(&build(Mode::Fallback), &cohort.output, Mode::Fallback) > 250);
}

#[test]
fn a_refresh_joins_coins_and_announces_nothing() {
    let cohort = cohort(4, 2);
    let coins = [cohort.coin(3_000, 0), cohort.coin(40_000, 1), cohort.coin(500, 2)];
    let digests_of = |tx: &Transaction| sighashes(tx, &cohort.output, &coins, Mode::Fallback).unwrap();
    let tx = build_refresh(&cohort.output, &coins, &destinations(&cohort), Mode::Fallback, rate(2)).unwrap();
    assert_eq!(check(&cohort, &coins, None, Mode::Fallback, &tx), Ok(()));
    assert_eq!(check(&cohort, &coins[..2], None, Mode::Fallback, &tx), Err(StandingFault::Inputs));
    assert!(tx.output.iter().all(|output| !output.script_pubkey.is_op_return()));
    let mut announcing = tx.clone();
    announcing.output.push(TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::new_op_return([1; 32]) });
    assert_eq!(check(&cohort, &coins, None, Mode::Fallback, &announcing), Err(StandingFault::RefreshAnnounces));

    let digests = digests_of(&tx);
    let signatures: BTreeMap<XOnlyKey, Vec<Signature>> = cohort.keys[..2]
        .iter()
        .map(|key| (key.public_key().x_only(), digests.iter().map(|digest| key.sign(digest, &mut rng())).collect()))
        .collect();
    let signed = with_fallback_signatures(&tx, &cohort.output, &digests, &signatures).unwrap();
    assert!(consensus_accepts_all(&signed, &prevouts(&cohort.output, &coins)));
    // A signature of one input is none of another.
    let mixed = signatures
        .into_iter()
        .map(|(key, mut of_inputs)| {
            of_inputs.reverse();
            (key, of_inputs)
        })
        .collect();
    assert!(with_fallback_signatures(&tx, &cohort.output, &digests, &mixed).is_err());
}

#[test]
fn a_coin_has_to_pay_for_a_change_that_can_be_spent() {
    let cohort = cohort(4, 2);
    let build = |sat| {
        build_announcement(
            &cohort.output,
            &cohort.coin(sat, 0),
            &SIGNAL,
            &destinations(&cohort),
            Mode::Key,
            rate(1),
        )
    };
    let needed = match build(1) {
        Err(StandingBuildError::InsufficientFunds { needed, available }) => {
            assert_eq!(available, Amount::from_sat(1));
            needed
        }
        other => panic!("{other:?}"),
    };
    assert!(build(needed.to_sat() - 1).is_err());
    let tx = build(needed.to_sat()).unwrap();
    assert_eq!(tx.output[0].value, Amount::from_sat(330));
    let none = build_refresh(&cohort.output, &[], &destinations(&cohort), Mode::Key, rate(1));
    assert_eq!(none, Err(StandingBuildError::NoCoins));
    assert_eq!(tx.input[0].previous_output, OutPoint { vout: 0, ..cohort.coin(1, 0).outpoint });
}

/// The sizes that docs/standing.md states, without an output of the operator.
#[test]
fn the_price_of_an_announcement_is_as_documented() {
    let vsize = |seats: usize, k: u16, mode| {
        let cohort = cohort(seats, k);
        let destinations = Destinations { operator: None, ..destinations(&cohort) };
        let coin = cohort.coin(1_000_000, 0);
        let tx = build_announcement(&cohort.output, &coin, &SIGNAL, &destinations, mode, rate(1)).unwrap();
        signed_vsize(&tx, &cohort.output, mode)
    };
    let sizes = [(15, 10), (50, 49), (100, 99)].map(|(n, k)| vsize(n, k, Mode::Fallback));
    assert_eq!((vsize(15, 10, Mode::Key), sizes), (154, [439, 1_370, 2_607]));
    // What is computed before a cohort forms is what its transactions have.
    for (seats, k, mode) in [(15, 10, Mode::Key), (15, 10, Mode::Fallback), (100, 99, Mode::Fallback)] {
        let cohort = cohort(seats, k);
        assert_eq!(announcement_vsize(&cohort.terms, seats, mode), vsize(seats, k, mode));
        let coins = [0, 1, 2].map(|vout| cohort.coin(1_000_000, vout));
        let destinations = Destinations { operator: None, ..destinations(&cohort) };
        let tx = build_refresh(&cohort.output, &coins, &destinations, mode, rate(1)).unwrap();
        assert_eq!(refresh_vsize(&cohort.terms, seats, 3, mode), signed_vsize(&tx, &cohort.output, mode));
    }
}

#[test]
fn the_operator_is_paid_on_standard_scripts_up_to_the_terms() {
    let cohort = cohort(3, 2);
    let coin = cohort.coin(100_000, 0);
    let built =
        build_announcement(&cohort.output, &coin, &SIGNAL, &destinations(&cohort), Mode::Key, rate(2)).unwrap();
    let checked = |change: &dyn Fn(&mut Transaction)| {
        let mut tx = built.clone();
        change(&mut tx);
        check(&cohort, &[coin], Some(&SIGNAL), Mode::Key, &tx)
    };
    let p2wpkh = operator(0).script_pubkey;
    for script in [
        ScriptBuf::new_p2wsh(&p2wpkh.wscript_hash()),
        ScriptBuf::new_p2sh(&p2wpkh.script_hash()),
        ScriptBuf::new_p2pkh(&PubkeyHash::all_zeros()),
        cohort.output.script_pubkey().to_owned(),
        p2wpkh,
    ] {
        assert_eq!(checked(&|tx| tx.output[1].script_pubkey = script.clone()), Ok(()), "{script}");
    }
    let any = ScriptBuf::from_hex("51").unwrap();
    assert_eq!(checked(&|tx| tx.output[1].script_pubkey = any.clone()), Err(StandingFault::Output(1)));
    let most = Amount::from_sat(cohort.terms.max_operator_output.into());
    let pay = |tx: &mut Transaction, value: Amount| {
        tx.output[0].value = tx.output[0].value + tx.output[1].value - value;
        tx.output[1].value = value;
    };
    assert_eq!(checked(&|tx| pay(tx, most)), Ok(()));
    let found = most + Amount::ONE_SAT;
    assert_eq!(checked(&|tx| pay(tx, found)), Err(StandingFault::OperatorOutput { found, most }));
    let signed = |tx: &mut Transaction| tx.input[0].witness.push([1]);
    assert!(matches!(checked(&signed), Err(StandingFault::Form(_))));
    let script_sig = |tx: &mut Transaction| tx.input[0].script_sig = any.clone();
    assert!(matches!(checked(&script_sig), Err(StandingFault::Form(_))));
}
