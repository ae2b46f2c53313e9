//! Announcing without a cohort, from a KEY identifier's initial beacons.

use crate::bitcoin_support::{coin, consensus_accepts, list, rng, secret_key, text};
use bitcoin::{
    Amount, EcdsaSighashType, FeeRate, OutPoint, Psbt, ScriptBuf, Sequence, TapSighashType, Transaction, TxOut,
    Witness,
    absolute::LockTime,
    ecdsa,
    key::TapTweak,
    script::Builder,
    sighash::{Prevouts, SighashCache},
    taproot,
    transaction::Version,
};
use btcr2_aggregation_protocol::{
    did::Did,
    hash::DocumentHash,
    key::SecretKey,
    network::Network,
    output::{BuildError, Change, Coin, InitialBeacon, InitialBeaconKind, SingletonAnnouncement, SingletonError},
    update::SignedUpdate,
};
use secp256k1::{Keypair, SECP256K1};
use serde_json::json;

const RATE: FeeRate = FeeRate::from_sat_per_vb_u32(3);

fn update() -> SignedUpdate {
    SignedUpdate::from_value(json!({ "targetVersionId": 2 })).unwrap()
}

/// A secret key whose public key has an even (2) or an odd (3) y.
fn key_with_parity(parity: u8) -> SecretKey {
    (0..).map(crate::bitcoin_support::member).find(|key| key.public_key().to_bytes()[0] == parity).unwrap()
}

fn beacon(key: &SecretKey, kind: InitialBeaconKind) -> InitialBeacon {
    InitialBeacon::new(key.public_key(), Network::Regtest, kind)
}

fn announcement(beacon: InitialBeacon, sat: u64) -> Result<SingletonAnnouncement, SingletonError> {
    SingletonAnnouncement::new(beacon, &[coin(sat)], &update(), RATE, &Change::Beacon)
}

/// A transaction that pays the beacon, and the coin that it creates.
fn funding(beacon: &InitialBeacon, sat: u64) -> (Transaction, Coin) {
    let pay = |script_pubkey, sat| TxOut { value: Amount::from_sat(sat), script_pubkey };
    let funding = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: Vec::new(),
        output: vec![pay(ScriptBuf::new(), 1), pay(beacon.script_pubkey(), sat)],
    };
    let coin = Coin { outpoint: OutPoint::new(funding.compute_txid(), 1), value: Amount::from_sat(sat) };
    (funding, coin)
}

#[test]
fn initial_beacons_are_those_of_the_recorded_documents() {
    let vectors = crate::common::vectors("update");
    let mut seen = 0;
    for case in list(&vectors["cases"]) {
        let did = Did::parse(text(&case["did"])).unwrap();
        for kind in InitialBeaconKind::ALL {
            let Some(beacon) = InitialBeacon::of(&did, kind) else {
                assert!(did.key().is_none());
                continue;
            };
            let id = format!("{did}#{}", kind.service());
            let service = list(&case["initialDocument"]["service"])
                .iter()
                .find(|service| service["id"] == json!(id))
                .unwrap();
            assert_eq!(text(&service["serviceEndpoint"]), format!("bitcoin:{}", beacon.address()), "{id}");
            seen += 1;
        }
    }
    assert!(seen >= 9);
}

#[test]
fn recorded_updates_are_announced_with_the_identifiers_key() {
    let vectors = crate::common::vectors("update");
    for case in list(&vectors["cases"]) {
        let did = Did::parse(text(&case["did"])).unwrap();
        let update = SignedUpdate::from_value(case["signedUpdate"].clone()).unwrap();
        for kind in InitialBeaconKind::ALL {
            let Some(beacon) = InitialBeacon::of(&did, kind) else { continue };
            let announcement =
                SingletonAnnouncement::new(beacon, &[coin(10_000)], &update, RATE, &Change::Beacon).unwrap();
            let signed = announcement.sign(&secret_key(&case["secretKey"]), &mut rng()).unwrap();
            assert!(consensus_accepts(&signed, &announcement.prevouts()[0]), "{did} {kind}");
            // What a resolver reads: OP_RETURN, a push of 32 bytes, and the hash that the TypeScript implementation
            // computed.
            let hash: DocumentHash = text(&case["signedUpdateHash"]).parse().unwrap();
            let signal = [&[0x6a, 0x20], hash.as_bytes().as_slice()].concat();
            assert_eq!(signed.output.last().unwrap().script_pubkey.as_bytes(), signal);
        }
    }
}

#[test]
fn consensus_accepts_every_kind_of_beacon_and_key() {
    for parity in [2, 3] {
        let key = key_with_parity(parity);
        for kind in InitialBeaconKind::ALL {
            let announcement = announcement(beacon(&key, kind), 10_000).unwrap();
            let signed = announcement.sign(&key, &mut rng()).unwrap();
            let prevout = announcement.prevouts().remove(0);
            assert!(consensus_accepts(&signed, &prevout), "{kind} {parity}");
            assert!(!consensus_accepts(announcement.unsigned(), &prevout), "{kind} unsigned");
            // Everything is signed: neither the outputs nor, where the signature covers it, the value may differ.
            let mut altered = signed.clone();
            altered.output[0].value -= Amount::ONE_SAT;
            assert!(!consensus_accepts(&altered, &prevout), "{kind} altered");
            if kind != InitialBeaconKind::P2pkh {
                let other = TxOut { value: prevout.value + Amount::ONE_SAT, ..prevout };
                assert!(!consensus_accepts(&signed, &other), "{kind} value");
            }
        }
    }
}

#[test]
fn the_transaction_is_an_announcement_at_the_requested_rate() {
    let key = key_with_parity(3);
    for kind in InitialBeaconKind::ALL {
        let announcement = announcement(beacon(&key, kind), 10_000).unwrap();
        let tx = announcement.unsigned();
        assert_eq!((tx.version, tx.lock_time, tx.input.len()), (Version::TWO, LockTime::ZERO, 1));
        assert_eq!(tx.input[0].previous_output, coin(10_000).outpoint);
        assert_eq!(tx.input[0].sequence, Sequence::ENABLE_RBF_NO_LOCKTIME);
        let [change, signal] = tx.output.as_slice() else { panic!("two outputs expected") };
        assert_eq!(change.script_pubkey, announcement.beacon().script_pubkey());
        assert!(signal.script_pubkey.is_op_return() && signal.value == Amount::ZERO);
        assert_eq!(announcement.signal().as_bytes(), update().hash().as_bytes());

        // The signed transaction has the requested rate, and does not pay for much more than its size.
        let signed = announcement.sign(&key, &mut rng()).unwrap();
        let (bound, vsize) = (announcement.max_vsize(), signed.weight().to_vbytes_ceil());
        assert!((bound - 2..=bound).contains(&vsize), "{kind}: {vsize} of {bound}");
        assert_eq!(announcement.fee().to_sat(), 3 * bound, "{kind}");
    }
}

#[test]
fn change_has_a_floor_and_the_coin_exceeds_the_fee() {
    let key = key_with_parity(2);
    let beacon = |kind| beacon(&key, kind);
    for kind in InitialBeaconKind::ALL {
        // At 3 sat/vB: the cost of spending it and one satoshi, or the dust limit (rule T-5).
        let floor = match kind {
            InitialBeaconKind::P2pkh => 546,
            InitialBeaconKind::P2wpkh => 294,
            InitialBeaconKind::P2tr => 330,
        };
        let fee = announcement(beacon(kind), 10_000).unwrap().fee().to_sat();
        let with_change = announcement(beacon(kind), fee + floor).unwrap();
        assert_eq!(with_change.unsigned().output.len(), 2, "{kind}");
        let without = announcement(beacon(kind), fee + floor - 1).unwrap();
        assert_eq!(without.unsigned().output.len(), 1, "{kind}");
        assert_eq!(without.fee().to_sat(), fee + floor - 1, "{kind}");

        let needed = 3 * without.max_vsize();
        assert!(announcement(beacon(kind), needed + 1).is_ok());
        assert_eq!(
            announcement(beacon(kind), needed).unwrap_err(),
            SingletonError::Build(BuildError::InsufficientFunds {
                needed: Amount::from_sat(needed),
                available: Amount::from_sat(needed)
            })
        );
    }
    let burnt = Change::To(ScriptBuf::new_op_return([]));
    let refused =
        SingletonAnnouncement::new(beacon(InitialBeaconKind::P2tr), &[coin(10_000)], &update(), RATE, &burnt);
    assert_eq!(refused.unwrap_err(), SingletonError::Build(BuildError::ChangeIsOpReturn));
}

#[test]
fn another_key_does_not_sign() {
    let (key, other) = (key_with_parity(2), key_with_parity(3));
    for kind in InitialBeaconKind::ALL {
        let announcement = announcement(beacon(&key, kind), 10_000).unwrap();
        assert_eq!(announcement.sign(&other, &mut rng()), Err(SingletonError::KeyMismatch));
    }
}

#[test]
fn a_coin_of_another_funding_transaction_is_refused() {
    let key = key_with_parity(2);
    let beacon = beacon(&key, InitialBeaconKind::P2wpkh);
    let (tx, coin) = funding(&beacon, 10_000);
    let with = |coin, tx: &Transaction| {
        SingletonAnnouncement::new(beacon.clone(), &[coin], &update(), RATE, &Change::Beacon)
            .unwrap()
            .with_funding(tx.clone())
    };
    assert!(with(coin, &tx).is_ok());

    let at = |vout| Coin { outpoint: OutPoint { vout, ..coin.outpoint }, ..coin };
    assert_eq!(with(at(0), &tx).unwrap_err(), SingletonError::CoinScript);
    assert_eq!(with(at(2), &tx).unwrap_err(), SingletonError::FundingOutput(2));
    assert_eq!(
        with(Coin { value: Amount::from_sat(10_001), ..coin }, &tx).unwrap_err(),
        SingletonError::CoinValue { stated: Amount::from_sat(10_001), found: Amount::from_sat(10_000) }
    );
    let (another, _) = funding(&beacon, 9_999);
    assert_eq!(with(coin, &another).unwrap_err(), SingletonError::FundingTxid);
    assert_eq!(SingletonError::FundingTxid.code(), "FUNDING_TXID_MISMATCH");
    assert_eq!(SingletonError::Build(BuildError::ChangeIsOpReturn).code(), "CHANGE_IS_OP_RETURN");
}

#[test]
fn only_a_p2pkh_coin_needs_its_funding_transaction() {
    let key = key_with_parity(2);
    for kind in InitialBeaconKind::ALL {
        let (tx, first) = funding(&beacon(&key, kind), 10_000);
        let second = coin(20_000);
        let both =
            SingletonAnnouncement::new(beacon(&key, kind), &[first, second], &update(), RATE, &Change::Beacon)
                .unwrap();
        assert_eq!(both.coins(), [first, second]);
        let needed = (kind == InitialBeaconKind::P2pkh).then_some(());
        assert_eq!(both.unproven(), needed.map(|()| &first), "{kind}");
        let with_one = both.with_funding(tx).unwrap();
        assert_eq!(with_one.unproven(), needed.map(|()| &second), "{kind}");
        // BIP-174: the spent output alone is for segwit, whose signature commits to its value.
        let segwit = with_one.to_psbt().inputs.iter().all(|input| input.witness_utxo.is_some());
        let legacy = with_one.to_psbt().inputs.iter().all(|input| input.witness_utxo.is_none());
        assert_eq!((segwit, legacy), (needed.is_none(), needed.is_some()), "{kind}");
    }
}

/// A wallet's part: it signs using only the data of the PSBT.
#[test]
fn a_psbt_has_all_data_that_a_signer_needs() {
    let key = key_with_parity(3);
    let pair = Keypair::from_seckey_str(SECP256K1, &key.to_hex()).unwrap();
    for kind in InitialBeaconKind::ALL {
        let beacon = beacon(&key, kind);
        let (tx, coin) = funding(&beacon, 10_000);
        let announcement = SingletonAnnouncement::new(beacon, &[coin], &update(), RATE, &Change::Beacon)
            .unwrap()
            .with_funding(tx)
            .unwrap();
        let psbt = Psbt::deserialize(&announcement.to_psbt().serialize()).unwrap();
        assert_eq!(&psbt.unsigned_tx, announcement.unsigned());
        let spent = psbt.spend_utxo(0).unwrap().clone();
        assert_eq!(spent, announcement.prevouts()[0], "{kind}");
        let keys = psbt.inputs[0].bip32_derivation.keys().map(|key| key.x_only_public_key().0);
        let keys: Vec<_> = keys.chain(psbt.inputs[0].tap_key_origins.keys().copied()).collect();
        assert_eq!(keys, [pair.x_only_public_key().0], "{kind}");

        let mut signed = psbt.unsigned_tx.clone();
        let mut cache = SighashCache::new(&psbt.unsigned_tx);
        let ecdsa = |cache: &mut SighashCache<&Transaction>| {
            let (digest, sighash) = psbt.sighash_ecdsa(0, cache).unwrap();
            assert_eq!(sighash, EcdsaSighashType::All);
            ecdsa::Signature::sighash_all(SECP256K1.sign_ecdsa(&digest, &pair.secret_key()))
        };
        let input = &mut signed.input[0];
        match kind {
            InitialBeaconKind::P2pkh => {
                let signature = ecdsa(&mut cache).serialize();
                input.script_sig =
                    Builder::new().push_slice(signature).push_slice(key.public_key().to_bytes()).into_script();
            }
            InitialBeaconKind::P2wpkh => {
                input.witness = Witness::p2wpkh(&ecdsa(&mut cache), key.public_key().as_inner());
            }
            InitialBeaconKind::P2tr => {
                assert_eq!(psbt.inputs[0].tap_internal_key, Some(pair.x_only_public_key().0));
                let prevouts = Prevouts::All(std::slice::from_ref(&spent));
                let digest = cache.taproot_key_spend_signature_hash(0, &prevouts, TapSighashType::Default).unwrap();
                let tweaked = pair.tap_tweak(SECP256K1, psbt.inputs[0].tap_merkle_root).to_keypair();
                let signature = SECP256K1.sign_schnorr_no_aux_rand(&digest.into(), &tweaked);
                let sighash_type = TapSighashType::Default;
                input.witness = Witness::p2tr_key_spend(&taproot::Signature { signature, sighash_type });
            }
        }
        assert!(consensus_accepts(&signed, &spent), "{kind}");
        assert!(signed.weight().to_vbytes_ceil() <= announcement.max_vsize(), "{kind}");
    }
}
