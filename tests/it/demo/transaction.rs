//! Verifies a cohort's transaction from outside: the signatures by the `bitcoin` crate, the input by Bitcoin Core's consensus
//! code, and that every changed bit of the witness is noticed.

use bitcoin::{
    ScriptBuf, TapLeafHash, TapSighashType, Transaction, TxOut, Witness, XOnlyPublicKey,
    consensus::{deserialize, serialize},
    hex::DisplayHex,
    opcodes::all::OP_NUMEQUAL,
    secp256k1::{Message, Secp256k1, schnorr::Signature},
    sighash::{Prevouts, SighashCache},
    taproot::{ControlBlock, LeafVersion},
};
use serde_json::Value;

use super::text;

fn output_key(prevout: &TxOut) -> XOnlyPublicKey {
    assert!(prevout.script_pubkey.is_p2tr());
    XOnlyPublicKey::from_slice(&prevout.script_pubkey.as_bytes()[2..]).unwrap()
}

fn is_valid(signature: &[u8], message: &Message, key: &XOnlyPublicKey) -> bool {
    let signature = Signature::from_slice(signature).unwrap();
    Secp256k1::verification_only().verify_schnorr(&signature, message, key).is_ok()
}

/// One signature, valid by BIP-340 under the output key.
pub(super) fn verify_key_path(report: &Value, transaction: &Transaction, prevout: &TxOut) {
    let witness = &transaction.input[0].witness;
    assert_eq!(witness.len(), 1);
    assert_eq!(witness[0].len(), 64);
    assert_eq!(witness[0].to_lower_hex_string(), text(&report["signature"]));
    let sighash = SighashCache::new(transaction)
        .taproot_key_spend_signature_hash(0, &Prevouts::All(&[prevout]), TapSighashType::Default)
        .unwrap();
    assert!(is_valid(&witness[0], &sighash.into(), &output_key(prevout)));
}

/// A leaf of the output with every member's key, and a valid signature of all members but the silent one.
pub(super) fn verify_script_path(report: &Value, transaction: &Transaction, prevout: &TxOut) {
    assert_eq!(text(&report["signature"]), "", "no one signature stands for k of them");
    let witness = transaction.input[0].witness.to_vec();
    let [slots @ .., script, control_block] = witness.as_slice() else { panic!("{} elements", witness.len()) };
    let script = ScriptBuf::from(script.clone());
    let control_block = ControlBlock::decode(control_block).unwrap();
    let secp = Secp256k1::verification_only();
    assert!(control_block.verify_taproot_commitment(&secp, output_key(prevout), &script));

    let instructions: Vec<_> = script.instructions().collect::<Result<_, _>>().unwrap();
    let keys: Vec<XOnlyPublicKey> = instructions
        .iter()
        .filter_map(|instruction| instruction.push_bytes())
        .filter_map(|push| XOnlyPublicKey::from_slice(push.as_bytes()).ok())
        .collect();
    let [.., threshold, last] = instructions.as_slice() else { panic!("no script: {script}") };
    let threshold = threshold.script_num().unwrap();
    assert_eq!(last.opcode(), Some(OP_NUMEQUAL));
    let participants = report["participants"].as_u64().unwrap();
    assert_eq!(keys.len() as u64, participants);
    assert_eq!(slots.len(), keys.len());

    let leaf = TapLeafHash::from_script(&script, LeafVersion::TapScript);
    let sighash = SighashCache::new(transaction)
        .taproot_script_spend_signature_hash(0, &Prevouts::All(&[prevout]), leaf, TapSighashType::Default)
        .unwrap();
    // The script takes the first key's signature from the top of the stack, which is the last element.
    let signed: Vec<_> = keys.iter().zip(slots.iter().rev()).filter(|(_, slot)| !slot.is_empty()).collect();
    assert!(signed.iter().all(|(key, slot)| is_valid(slot, &sighash.into(), key)));
    assert_eq!(signed.len() as i64, threshold);
    assert_eq!(signed.len() as u64, participants - 1);
}

/// Bitcoin Core's code accepts the transaction, and refuses it with any one bit of the witness flipped.
pub(super) fn verify_consensus(transaction: &Transaction, prevout: &TxOut) {
    consensus(transaction, prevout).expect("Bitcoin Core accepts the transaction");
    let witness = transaction.input[0].witness.to_vec();
    for (element, length) in witness.iter().map(Vec::len).enumerate().filter(|(_, length)| *length > 0) {
        for byte in [0, length / 2, length - 1] {
            let mut spoiled = witness.clone();
            spoiled[element][byte] ^= 1;
            let mut transaction = transaction.clone();
            transaction.input[0].witness = Witness::from_slice(&spoiled);
            let verdict = consensus(&transaction, prevout);
            assert!(verdict.is_err(), "accepted with bit 0 of byte {byte} of element {element} flipped");
        }
    }
}

fn consensus(transaction: &Transaction, prevout: &TxOut) -> Result<(), bitcoinconsensus::Error> {
    let script = prevout.script_pubkey.as_bytes();
    let value = prevout.value.to_sat();
    let spent = bitcoinconsensus::Utxo {
        script_pubkey: script.as_ptr(),
        script_pubkey_len: script.len().try_into().unwrap(),
        value: value.try_into().unwrap(),
    };
    let bytes = serialize(transaction);
    assert_eq!(&deserialize::<Transaction>(&bytes).unwrap(), transaction);
    let flags = bitcoinconsensus::VERIFY_ALL_PRE_TAPROOT | bitcoinconsensus::VERIFY_TAPROOT;
    bitcoinconsensus::verify_with_flags(script, value, &bytes, Some(&[spent]), 0, flags)
}
