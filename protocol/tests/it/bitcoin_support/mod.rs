//! Shared by the tests of beacon outputs: reading the vectors, deterministic keys, and Bitcoin Core's verdict on a
//! spend.

use std::sync::Arc;

use bitcoin::{
    Amount, OutPoint, ScriptBuf, Transaction, TxOut, Txid,
    consensus::encode::{deserialize_hex, serialize},
    hashes::Hash,
};
use btcr2_aggregation_protocol::{
    hash::sha256,
    key::{PublicKey, SecretKey, XOnlyKey},
    network::Network,
    output::{BeaconOutput, Coin, KeyAggregation, OutputError, ScriptTree},
};
use data_encoding::HEXLOWER;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::Value;

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("text expected, not {value}"))
}

pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    HEXLOWER.encode(bytes.as_ref())
}

pub fn unhex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(text(value).as_bytes()).unwrap()
}

pub fn list(value: &Value) -> &[Value] {
    let list = value.as_array().unwrap_or_else(|| panic!("list expected, not {value}"));
    assert!(!list.is_empty(), "an empty list proves nothing");
    list
}

pub fn amount(value: &Value) -> Amount {
    Amount::from_sat(text(value).parse().unwrap())
}

pub fn transaction(value: &Value) -> Transaction {
    deserialize_hex(text(value)).unwrap()
}

pub fn secret_key(value: &Value) -> SecretKey {
    SecretKey::from_bytes(&unhex(value).try_into().unwrap()).unwrap()
}

pub fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(7)
}

/// The output spent by a case with `prevOutScript` and `prevOutValue`.
pub fn prevout(case: &Value) -> TxOut {
    TxOut { value: amount(&case["prevOutValue"]), script_pubkey: ScriptBuf::from(unhex(&case["prevOutScript"])) }
}

pub fn script_tree(terms: &Value) -> Result<ScriptTree, OutputError> {
    let sequence = &terms["recoverySequence"];
    let threshold = &terms["fallbackThreshold"];
    ScriptTree::from_terms(
        text(&terms["recoveryKey"]),
        sequence.as_u64().ok_or(OutputError::InvalidRecoverySequence)?,
        if threshold.is_null() { None } else { Some(threshold.as_u64().unwrap()) },
    )
}

/// The output of a vector's `cohort`, checked against the fields of the vector.
pub fn cohort_output(cohort: &Value) -> BeaconOutput {
    let keys: Vec<PublicKey> = list(&cohort["cohortKeys"]).iter().map(|key| text(key).parse().unwrap()).collect();
    let network: Network = text(&cohort["network"]).parse().unwrap();
    let aggregation = Arc::new(KeyAggregation::new(keys).unwrap());
    let output = BeaconOutput::new(aggregation, network, &script_tree(cohort).unwrap()).unwrap();
    assert_eq!(output.internal_key().to_string(), text(&cohort["internalKey"]));
    assert_eq!(hex(output.merkle_root().unwrap()), text(&cohort["tapMerkleRoot"]));
    assert_eq!(hex(output.tap_tweak()), text(&cohort["tapTweak"]));
    assert_eq!(output.address(), text(&cohort["beaconAddress"]));
    assert_eq!(
        output.fallback().unwrap().threshold(),
        cohort["effectiveFallbackThreshold"].as_u64().unwrap() as usize
    );
    output
}

/// The n-th of a fixed series of secret keys.
pub fn member(n: usize) -> SecretKey {
    SecretKey::from_bytes(&sha256(format!("member {n}").as_bytes())).unwrap()
}

pub fn members(n: usize) -> Vec<SecretKey> {
    (0..n).map(member).collect()
}

pub fn recovery_key() -> XOnlyKey {
    member(1_000_000).public_key().x_only()
}

pub fn tree(fallback_threshold: Option<u16>) -> ScriptTree {
    ScriptTree::FallbackAndRecovery {
        recovery_key: recovery_key(),
        recovery_sequence: 144.try_into().unwrap(),
        fallback_threshold,
    }
}

pub fn aggregation(members: &[SecretKey]) -> Arc<KeyAggregation> {
    Arc::new(KeyAggregation::new(members.iter().map(SecretKey::public_key)).unwrap())
}

pub fn output(members: &[SecretKey], tree: &ScriptTree) -> BeaconOutput {
    BeaconOutput::new(aggregation(members), Network::Regtest, tree).unwrap()
}

pub fn coin(sat: u64) -> Coin {
    Coin { outpoint: OutPoint::new(Txid::from_byte_array([0x11; 32]), 1), value: Amount::from_sat(sat) }
}

/// Whether Bitcoin Core's consensus rules accept `tx` as a spend of `prevout`, with all soft forks up to taproot.
pub fn consensus_accepts(tx: &Transaction, prevout: &TxOut) -> bool {
    consensus_accepts_with(tx, prevout, bitcoinconsensus::VERIFY_ALL_PRE_TAPROOT | bitcoinconsensus::VERIFY_TAPROOT)
}

pub fn consensus_accepts_with(tx: &Transaction, prevout: &TxOut, flags: u32) -> bool {
    let script = prevout.script_pubkey.as_bytes();
    let spent = bitcoinconsensus::Utxo {
        script_pubkey: script.as_ptr(),
        script_pubkey_len: script.len() as u32,
        value: prevout.value.to_sat() as i64,
    };
    bitcoinconsensus::verify_with_flags(script, prevout.value.to_sat(), &serialize(tx), Some(&[spent]), 0, flags)
        .is_ok()
}

/// The same for a transaction of several inputs, which spend `prevouts` in this order.
pub fn consensus_accepts_all(tx: &Transaction, prevouts: &[TxOut]) -> bool {
    let flags = bitcoinconsensus::VERIFY_ALL_PRE_TAPROOT | bitcoinconsensus::VERIFY_TAPROOT;
    let spent: Vec<_> = prevouts
        .iter()
        .map(|prevout| bitcoinconsensus::Utxo {
            script_pubkey: prevout.script_pubkey.as_bytes().as_ptr(),
            script_pubkey_len: prevout.script_pubkey.len() as u32,
            value: prevout.value.to_sat() as i64,
        })
        .collect();
    let bytes = serialize(tx);
    prevouts.iter().enumerate().all(|(at, prevout)| {
        let script = prevout.script_pubkey.as_bytes();
        let value = prevout.value.to_sat();
        bitcoinconsensus::verify_with_flags(script, value, &bytes, Some(&spent), at, flags).is_ok()
    })
}
