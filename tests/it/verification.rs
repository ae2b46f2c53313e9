//! The two checks of a signed transaction, [`bip340_accepts`] and [`consensus_accepts`]: each of them refuses an invalid one by
//! itself.

use bitcoin::{Amount, Witness};
use btcr2_aggregation::{
    bitcoin::verify::{bip340_accepts, consensus_accepts},
    demo::{self, DemoConfig, DemoTransport, Report},
    protocol::{beacon::BeaconType, cohort::event::SpendPath, signing::Signed},
};

fn signed_on(path: SpendPath) -> Report {
    let (beacon, transport) = (BeaconType::cas(), DemoTransport::Memory);
    let config = DemoConfig { participants: 3, decline: 0, beacon, path, transport, seed: Some(1) };
    let report = actix_rt::System::new().block_on(demo::run(&config, |_| {})).unwrap();
    assert_eq!(report.signed.path, path);
    report
}

/// The results of both checks for the report's transaction after `change`: BIP-340, consensus.
fn opinions(report: &Report, change: impl FnOnce(&mut Signed)) -> (bool, bool) {
    let mut signed = Signed::clone(&report.signed);
    change(&mut signed);
    (
        bip340_accepts(&signed, &report.output, &report.prevout),
        consensus_accepts(&signed.transaction, &report.prevout),
    )
}

fn opinions_on_witness(report: &Report, change: impl FnOnce(&mut Vec<Vec<u8>>)) -> (bool, bool) {
    opinions(report, |signed| {
        let mut witness = signed.transaction.input[0].witness.to_vec();
        change(&mut witness);
        signed.transaction.input[0].witness = Witness::from_slice(&witness);
    })
}

#[test]
fn a_bad_key_path_signature_is_refused_by_both() {
    let report = signed_on(SpendPath::KeyPath);
    assert_eq!(opinions(&report, |_| {}), (true, true));
    for byte in [0, 31, 32, 63] {
        let flipped = opinions_on_witness(&report, |witness| witness[0][byte] ^= 0x80);
        assert_eq!(flipped, (false, false), "byte {byte}");
    }
    assert_eq!(opinions_on_witness(&report, |witness| witness[0].truncate(63)), (false, false));
    assert_eq!(opinions_on_witness(&report, |witness| witness[0].push(0)), (false, false));
    assert_eq!(opinions_on_witness(&report, |witness| witness.clear()), (false, false));
    // One more element makes it a script path spend, or one with an annex.
    assert_eq!(opinions_on_witness(&report, |witness| witness.push(vec![0x50])), (false, false));
}

#[test]
fn a_changed_transaction_or_coin_is_refused_by_both() {
    for path in [SpendPath::KeyPath, SpendPath::ScriptPath] {
        let mut report = signed_on(path);
        let less_change = opinions(&report, |signed| signed.transaction.output[0].value -= Amount::from_sat(1));
        assert_eq!(less_change, (false, false));
        assert_eq!(opinions(&report, |signed| signed.transaction.input.clear()), (false, false));
        report.prevout.value += Amount::from_sat(1);
        assert_eq!(opinions(&report, |_| {}), (false, false), "the signature hash covers the coin's value");
    }
}

#[test]
fn a_bad_fallback_signature_is_refused_by_both() {
    let report = signed_on(SpendPath::ScriptPath);
    assert_eq!(opinions(&report, |_| {}), (true, true));
    let slots: Vec<usize> = report.signed.transaction.input[0].witness.iter().map(<[u8]>::len).take(3).collect();
    assert_eq!(slots.iter().filter(|length| **length == 64).count(), 2, "two signed, one was silent: {slots:?}");
    for (slot, _) in slots.iter().enumerate().filter(|(_, length)| **length == 64) {
        assert_eq!(
            opinions_on_witness(&report, |witness| witness[slot][5] ^= 1),
            (false, false),
            "flipped: {slot}"
        );
        assert_eq!(opinions_on_witness(&report, |witness| witness[slot].clear()), (false, false), "absent: {slot}");
    }
    // A valid signature in another member's place counts for no member.
    assert_eq!(opinions_on_witness(&report, |witness| witness[..3].rotate_left(1)), (false, false));
}

#[test]
fn each_check_finds_what_the_other_does_not() {
    let fallback = signed_on(SpendPath::ScriptPath);
    // BIP-340 is about signatures; only the consensus code checks that the leaf belongs to the output.
    let control_block = |witness: &mut Vec<Vec<u8>>| witness.last_mut().unwrap()[40] ^= 1;
    assert_eq!(opinions_on_witness(&fallback, control_block), (true, false));
    // The consensus code does not know which path was meant.
    assert_eq!(opinions(&fallback, |signed| signed.path = SpendPath::KeyPath), (false, true));
    let key_path = signed_on(SpendPath::KeyPath);
    assert_eq!(opinions(&key_path, |signed| signed.path = SpendPath::ScriptPath), (false, true));
}
