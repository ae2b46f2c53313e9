//! Verification of results, by their own content only.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{
    Address, ScriptBuf, Transaction, Txid,
    consensus::{encode::deserialize_hex, serialize},
    hashes::{Hash, sha256},
    hex::{DisplayHex, FromHex},
};
use btcr2_aggregation::protocol::{
    beacon::{SmtNonce, SmtProof, smt_index, smt_leaf},
    did::Did,
    document, jcs,
    update::{SignedUpdate, UpdateContext, violations},
};
use serde_json::{Value, json};

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("text expected, not {value}"))
}

fn fields(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// A service's result: a transaction that Bitcoin Core's code accepts, on `path`, and that announces the signal.
pub fn service_result(result: &Value, path: &str) {
    for field in
        ["cohortId", "beaconAddress", "signature", "txHex", "txid", "path", "prevout", "signalHex", "verified"]
    {
        assert!(fields(result).contains(field), "{field} is missing in {result}");
    }
    assert_eq!(result["verified"], json!({ "bip340": true, "consensus": true }));
    assert_eq!((&result["ok"], &result["path"]), (&json!(true), &json!(path)));
    let transaction: Transaction = deserialize_hex(text(&result["txHex"])).unwrap();
    assert_eq!(transaction.compute_txid(), text(&result["txid"]).parse::<Txid>().unwrap());
    let script = ScriptBuf::from_hex(text(&result["prevout"]["scriptHex"])).unwrap();
    let address = Address::from_script(&script, bitcoin::params::Params::REGTEST).unwrap();
    assert_eq!(address.to_string(), text(&result["beaconAddress"]));
    let signal: [u8; 32] = Vec::from_hex(text(&result["signalHex"])).unwrap().try_into().unwrap();
    assert_eq!(transaction.output.last().unwrap().script_pubkey, ScriptBuf::new_op_return(signal));
    let value = result["prevout"]["value"].as_u64().unwrap();
    let spent = bitcoinconsensus::Utxo {
        script_pubkey: script.as_bytes().as_ptr(),
        script_pubkey_len: script.len().try_into().unwrap(),
        value: value.try_into().unwrap(),
    };
    let flags = bitcoinconsensus::VERIFY_ALL_PRE_TAPROOT | bitcoinconsensus::VERIFY_TAPROOT;
    let verify = |transaction: &Transaction| {
        let bytes = serialize(transaction);
        bitcoinconsensus::verify_with_flags(
            script.as_bytes(),
            value,
            &bytes,
            Some(std::slice::from_ref(&spent)),
            0,
            flags,
        )
    };
    verify(&transaction).unwrap();
    let mut changed = transaction.clone();
    changed.output[0].value -= bitcoin::Amount::from_sat(1);
    assert!(verify(&changed).is_err());
    match path {
        "key-path" => {
            let witness = &transaction.input[0].witness;
            assert_eq!((witness.len(), witness[0].to_lower_hex_string().as_str()), (1, text(&result["signature"])));
        }
        _ => assert_eq!(text(&result["signature"]), ""),
    }
}

/// A participant's result: its sidecar proves its slot in the signal of the service's result.
pub fn participant_result(result: &Value, did: &str, service: &Value) {
    for field in ["cohortId", "beaconAddress"] {
        assert_eq!(result[field], service[field]);
    }
    assert_eq!(result["ok"], true);
    sidecar(&result["sidecar"], did, result["included"].as_bool().unwrap(), text(&service["signalHex"]));
}

/// The updates of a sidecar are first updates that a resolver of today applies, rule by rule.
pub fn updates(sidecar: &Value, did: &str) {
    let did: Did = did.parse().unwrap();
    let initial = document::initial_document(&did, sidecar.get("genesisDocument")).unwrap();
    let context = UpdateContext { did: &did, document: &initial, version: 1, block: None };
    for update in sidecar.get("updates").and_then(Value::as_array).into_iter().flatten() {
        let broken = violations(&SignedUpdate::from_value(update.clone()).unwrap(), &context);
        assert!(broken.is_empty(), "{did}: {broken:?}");
    }
}

/// Asserts that a sidecar results in `signal`, with what `did` submitted in its slot.
pub fn sidecar(sidecar: &Value, did: &str, included: bool, signal: &str) {
    let update = sidecar.get("updates").map(|updates| jcs::document_hash(&updates[0]).unwrap());
    assert_eq!(update.is_some(), included);
    updates(sidecar, did);
    if let Some(announcement) = sidecar.get("casUpdates") {
        let announcement: BTreeMap<String, String> = serde_json::from_value(announcement[0].clone()).unwrap();
        // DIDs and base64url are plain ASCII: sorted and without white space, this is JCS.
        let canonical = serde_json::to_vec(&announcement).unwrap();
        assert_eq!(sha256::Hash::hash(&canonical).to_byte_array().to_lower_hex_string(), signal);
        assert_eq!(announcement.get(did).cloned(), update.map(|hash| hash.to_string()));
    } else {
        let proof: SmtProof = serde_json::from_value(sidecar["smtProofs"][0].clone()).unwrap();
        let parsed: Did = did.parse().unwrap();
        let leaf = smt_leaf(proof.nonce.as_ref().map(SmtNonce::as_bytes), update.as_ref());
        let root = proof.root_for(&smt_index(&parsed), &leaf).unwrap();
        assert_eq!(root.as_bytes().to_lower_hex_string(), signal);
    }
    assert_eq!(sidecar.get("genesisDocument").is_some(), did.starts_with("did:btcr2:x1"));
}
