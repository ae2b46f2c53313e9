//! Announcements of Singleton beacons that spend several coins (rules T-1, T-5 to T-7).

use std::collections::BTreeSet;

use crate::bitcoin_support::{consensus_accepts_all, member, rng};
use bitcoin::{
    Address, Amount, BlockHash, FeeRate, OutPoint, Psbt, ScriptBuf, Sequence, Transaction, TxOut, Txid,
    absolute::LockTime, hashes::Hash, transaction::Version,
};
use btcr2_aggregation_protocol::{
    chain::{Activity, BlockId, Deposit, Place, Spend, Tip},
    hash::SignalBytes,
    network::Network,
    output::{
        Change, Coin, InitialBeacon, InitialBeaconKind, MAX_SINGLETON_INPUTS, SingletonAnnouncement,
        SingletonBeacon, SingletonError, eligible_coins, select_coins,
    },
};
use proptest::prelude::*;

const SIGNAL: SignalBytes = SignalBytes::from_bytes([0xab; 32]);
const TIP: u32 = 300;

fn beacon(kind: InitialBeaconKind) -> InitialBeacon {
    InitialBeacon::new(member(1).public_key(), Network::Regtest, kind)
}

fn kinds() -> impl Strategy<Value = InitialBeaconKind> {
    prop::sample::select(InitialBeaconKind::ALL.to_vec())
}

fn rates() -> impl Strategy<Value = FeeRate> {
    (250u64..25_000).prop_map(FeeRate::from_sat_per_kwu)
}

fn block(height: u32) -> Place {
    Place::Block(BlockId { height, hash: BlockHash::all_zeros() })
}

fn outpoint(n: u32) -> OutPoint {
    OutPoint::new(Txid::hash(&(n / 2).to_be_bytes()), n % 2)
}

fn coins(values: &[u64]) -> Vec<Coin> {
    let coin = |(n, value): (usize, &u64)| Coin { outpoint: outpoint(n as u32), value: Amount::from_sat(*value) };
    values.iter().enumerate().map(coin).collect()
}

fn activity(deposits: Vec<Deposit>, spends: Vec<Spend>) -> Activity {
    let tip = Tip { block: BlockId { height: TIP, hash: BlockHash::all_zeros() }, median_time: 0 };
    Activity { tip, deposits, spends }
}

/// What a coin adds to the fee (rule T-6).
fn own_input(kind: InitialBeaconKind) -> u64 {
    match kind {
        InitialBeaconKind::P2pkh => 149,
        InitialBeaconKind::P2wpkh => 69,
        InitialBeaconKind::P2tr => 58,
    }
}

fn fee(rate: FeeRate, vsize: u64) -> u64 {
    (rate.to_sat_per_kwu() * vsize * 4).div_ceil(1000)
}

/// A deposit: value, height (0 for the mempool), whether it is a coinbase output, whether the mempool spends it.
type Given = (u64, u32, bool, bool);

fn deposits() -> impl Strategy<Value = Vec<Given>> {
    let one = (prop_oneof![1u64..2_000, 500u64..60_000], 0..=TIP, any::<bool>(), prop::bool::weighted(0.2));
    prop::collection::vec(one, 0..60)
}

fn deposit(n: usize, (value, height, coinbase, _): Given) -> Deposit {
    let place = if height == 0 { Place::Mempool } else { block(height) };
    Deposit { coinbase, ..Deposit::new(outpoint(n as u32), Amount::from_sat(value), place) }
}

proptest! {
    #[test]
    fn every_input_is_signed_and_the_signal_is_last(
        kind in kinds(), rate in rates(), values in prop::collection::vec(20_000u64..200_000, 1..=20), away in any::<bool>(),
    ) {
        let coins = coins(&values);
        let change = if away { Change::To(beacon(InitialBeaconKind::P2tr).script_pubkey()) } else { Change::Beacon };
        let made = SingletonAnnouncement::of_signal(beacon(kind), &coins, SIGNAL, rate, &change);
        let announcement = match made {
            Ok(announcement) => announcement,
            Err(error) => {
                // Only for want of funds.
                let least = fee(rate, 100 + own_input(kind) * values.len() as u64);
                prop_assert!(values.iter().sum::<u64>() <= least, "{error}");
                return Ok(());
            }
        };
        let signed = announcement.sign(&member(1), &mut rng()).unwrap();
        let prevouts = announcement.prevouts();
        prop_assert!(consensus_accepts_all(&signed, &prevouts));
        prop_assert!(!consensus_accepts_all(announcement.unsigned(), &prevouts));

        // The coins in their order, each replaceable.
        let spent: Vec<_> = signed.input.iter().map(|input| input.previous_output).collect();
        prop_assert_eq!(spent, coins.iter().map(|coin| coin.outpoint).collect::<Vec<_>>());
        prop_assert!(signed.input.iter().all(|input| input.sequence == Sequence::ENABLE_RBF_NO_LOCKTIME));
        let total: u64 = values.iter().sum();
        prop_assert_eq!(prevouts.iter().map(|prevout| prevout.value.to_sat()).sum::<u64>(), total);

        // Rules T-1 and T-5: the signal is last, and it is the only output besides the change.
        let (last, others) = signed.output.split_last().unwrap();
        prop_assert_eq!(last.script_pubkey.as_bytes(), [&[0x6a, 0x20], SIGNAL.as_bytes().as_slice()].concat());
        prop_assert_eq!(last.value, Amount::ZERO);
        prop_assert!(others.len() <= 1);

        // The fee is that of the largest signatures, at the rate; what is more was too little for an output.
        let (bound, vsize) = (announcement.max_vsize(), signed.weight().to_vbytes_ceil());
        prop_assert!(vsize <= bound && bound <= vsize + 2 * values.len() as u64, "{} of {}", vsize, bound);
        let paid = announcement.fee().to_sat();
        prop_assert_eq!(paid, total - others.iter().map(|output| output.value.to_sat()).sum::<u64>());
        match others {
            [change] => {
                prop_assert_eq!(paid, fee(rate, bound));
                prop_assert!(change.value >= change.script_pubkey.minimal_non_dust());
            }
            _ => prop_assert!(paid > fee(rate, bound)),
        }
    }

    #[test]
    fn the_largest_eligible_coins_are_spent_the_deepest_first(
        kind in kinds(), rate in rates(), given in deposits(),
    ) {
        let deposits: Vec<_> = given.iter().enumerate().map(|(n, given)| deposit(n, *given)).collect();
        let spent = given.iter().zip(&deposits).filter(|((.., spent), _)| *spent).map(|(_, deposit)| Spend {
            outpoint: deposit.outpoint, by: Txid::all_zeros(), place: Place::Mempool,
        });
        let activity = activity(deposits.clone(), spent.collect());
        let script = beacon(kind).script_pubkey();
        let selected = select_coins(&activity, &script, rate);

        let eligible: Vec<_> = given.iter().zip(&deposits).filter(|((value, height, coinbase, spent), _)| {
            *height > 0 && !spent && (!coinbase || TIP + 1 - height >= 100) && *value > fee(rate, own_input(kind))
        }).map(|(_, deposit)| *deposit).collect();
        let listed: Vec<_> = eligible_coins(&activity, &script, rate).copied().collect();
        prop_assert_eq!(&listed, &eligible);

        prop_assert_eq!(selected.len(), eligible.len().min(MAX_SINGLETON_INPUTS));
        let chosen: BTreeSet<_> = selected.iter().map(|coin| coin.outpoint).collect();
        let least = selected.iter().map(|coin| coin.value).min();
        let left_out = eligible.iter().filter(|deposit| !chosen.contains(&deposit.outpoint));
        prop_assert!(left_out.into_iter().all(|deposit| Some(deposit.value) <= least));
        let place = |coin: &Coin| {
            let deposit = eligible.iter().find(|deposit| deposit.outpoint == coin.outpoint).unwrap();
            let height = deposit.place.block().unwrap().height;
            (height, coin.outpoint.txid.to_string(), coin.outpoint.vout)
        };
        prop_assert!(selected.windows(2).all(|pair| place(&pair[0]) < place(&pair[1])));
        // The order of the chain's answer does not matter.
        let mut other = activity;
        other.deposits.reverse();
        prop_assert_eq!(select_coins(&other, &script, rate), selected);
    }
}

#[test]
fn the_node_relays_no_fee_below_one_sat_per_vb() {
    for kind in InitialBeaconKind::ALL {
        let coins = coins(&[10_000, 20_000, 30_000]);
        let rate = FeeRate::from_sat_per_kwu(1);
        let announcement =
            SingletonAnnouncement::of_signal(beacon(kind), &coins, SIGNAL, rate, &Change::Beacon).unwrap();
        assert_eq!(announcement.fee().to_sat(), announcement.max_vsize());
    }
}

#[test]
fn coins_that_cannot_be_spent_together_are_refused() {
    let make = |coins: &[Coin]| {
        let rate = FeeRate::BROADCAST_MIN;
        SingletonAnnouncement::of_signal(beacon(InitialBeaconKind::P2tr), coins, SIGNAL, rate, &Change::Beacon)
    };
    let twice = [coins(&[10_000]), coins(&[10_000])].concat();
    assert_eq!(make(&[]).unwrap_err(), SingletonError::NoCoin);
    assert_eq!(make(&twice).unwrap_err(), SingletonError::CoinTwice(outpoint(0)));
    let most = Amount::MAX_MONEY.to_sat();
    assert_eq!(make(&coins(&[most, 1])).unwrap_err(), SingletonError::CoinSum);
    assert_eq!(make(&coins(&[u64::MAX, u64::MAX])).unwrap_err(), SingletonError::CoinSum);
    assert!(make(&coins(&[most - 1, 1])).is_ok());
}

#[test]
fn a_beacon_is_known_by_its_address_and_signed_with_its_key() {
    let keys = || (0..4).map(|n| member(n).public_key());
    for kind in InitialBeaconKind::ALL {
        let known = SingletonBeacon::from(beacon(kind));
        let found = SingletonBeacon::at(known.address()).unwrap();
        assert_eq!((found.kind(), found.key()), (kind, None));
        assert_eq!(found.clone().with_key_among(keys().skip(2), Network::Regtest).key(), None);
        // Without the key the transaction is the same, and only a wallet can sign it.
        let (rate, coins) = (FeeRate::from_sat_per_vb_u32(3), coins(&[9_000, 8_000]));
        let make =
            |beacon| SingletonAnnouncement::of_signal(beacon, &coins, SIGNAL, rate, &Change::Beacon).unwrap();
        let foreign = make(found.clone());
        assert_eq!(foreign.sign(&member(1), &mut rng()), Err(SingletonError::KeyMismatch));
        assert!(
            foreign
                .to_psbt()
                .inputs
                .iter()
                .all(|input| { input.bip32_derivation.is_empty() && input.tap_internal_key.is_none() })
        );
        let own = found.with_key_among(keys(), Network::Regtest);
        assert_eq!(own, known);
        let own = make(own);
        assert_eq!((own.unsigned(), own.max_vsize()), (foreign.unsigned(), foreign.max_vsize()));
        assert!(consensus_accepts_all(&own.sign(&member(1), &mut rng()).unwrap(), &own.prevouts()));
    }
    let script = ScriptBuf::new_p2wsh(&ScriptBuf::new().wscript_hash());
    let address = Address::from_script(&script, Network::Regtest.to_bitcoin()).unwrap();
    assert_eq!(SingletonBeacon::at(&address), None);
}

#[test]
fn each_input_of_a_psbt_has_its_own_coin_and_funding() {
    for kind in InitialBeaconKind::ALL {
        let beacon = beacon(kind);
        let pay = |sat| TxOut { value: Amount::from_sat(sat), script_pubkey: beacon.script_pubkey() };
        let funding = |values: &[u64]| Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: Vec::new(),
            output: values.iter().map(|value| pay(*value)).collect(),
        };
        let (two, one) = (funding(&[5_000, 6_000]), funding(&[7_000]));
        let coin = |made: &Transaction, vout: u32| Coin {
            outpoint: OutPoint::new(made.compute_txid(), vout),
            value: made.output[vout as usize].value,
        };
        let coins = [coin(&one, 0), coin(&two, 1), coin(&two, 0)];
        let rate = FeeRate::from_sat_per_vb_u32(1);
        let announcement =
            SingletonAnnouncement::of_signal(beacon.clone(), &coins, SIGNAL, rate, &Change::Beacon).unwrap();
        let announcement = announcement.with_funding(two.clone()).unwrap().with_funding(one).unwrap();
        assert_eq!(announcement.clone().with_funding(funding(&[1])).unwrap_err(), SingletonError::FundingTxid);
        let psbt = Psbt::deserialize(&announcement.to_psbt().serialize()).unwrap();
        for (index, prevout) in announcement.prevouts().iter().enumerate() {
            assert_eq!(psbt.spend_utxo(index).unwrap(), prevout, "{kind} {index}");
        }
        // One stated value of several is wrong.
        let wrong = [coins[0], Coin { value: Amount::from_sat(9_000), ..coins[1] }, coins[2]];
        let announcement = SingletonAnnouncement::of_signal(beacon, &wrong, SIGNAL, rate, &Change::Beacon).unwrap();
        let stated = SingletonError::CoinValue { stated: Amount::from_sat(9_000), found: Amount::from_sat(6_000) };
        assert_eq!(announcement.with_funding(two).unwrap_err(), stated);
    }
}
