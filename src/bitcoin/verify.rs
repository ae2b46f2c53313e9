//! Two independent validations of a signed beacon transaction.

use ::bitcoin::{Transaction, TxOut, consensus};

use crate::protocol::{
    cohort::event::SpendPath,
    key::Signature,
    output::{BeaconOutput, key_path_sighash},
    signing::Signed,
};

/// Every rule that the network enforces on a witness version 1 spend. Without `VERIFY_TAPROOT` the library would accept
/// any witness, because under older rules anyone can spend a Taproot output.
const FLAGS: u32 = bitcoinconsensus::VERIFY_P2SH
    | bitcoinconsensus::VERIFY_DERSIG
    | bitcoinconsensus::VERIFY_NULLDUMMY
    | bitcoinconsensus::VERIFY_CHECKLOCKTIMEVERIFY
    | bitcoinconsensus::VERIFY_CHECKSEQUENCEVERIFY
    | bitcoinconsensus::VERIFY_WITNESS
    | bitcoinconsensus::VERIFY_TAPROOT;

/// Whether Bitcoin Core's consensus code accepts `transaction` as a spend of `prevout` alone.
pub fn consensus_accepts(transaction: &Transaction, prevout: &TxOut) -> bool {
    consensus_accepts_all(transaction, std::slice::from_ref(prevout))
}

/// Whether Bitcoin Core's consensus code accepts every input of `transaction`, which spend `prevouts` in this order.
pub fn consensus_accepts_all(transaction: &Transaction, prevouts: &[TxOut]) -> bool {
    if transaction.input.len() != prevouts.len() || prevouts.is_empty() {
        return false;
    }
    let spent: Option<Vec<_>> = prevouts
        .iter()
        .map(|prevout| {
            let script = prevout.script_pubkey.as_bytes();
            Some(bitcoinconsensus::Utxo {
                script_pubkey: script.as_ptr(),
                script_pubkey_len: u32::try_from(script.len()).ok()?,
                value: i64::try_from(prevout.value.to_sat()).unwrap_or(i64::MAX),
            })
        })
        .collect();
    let Some(spent) = spent else { return false };
    let bytes = consensus::serialize(transaction);
    prevouts.iter().enumerate().all(|(index, prevout)| {
        let script = prevout.script_pubkey.as_bytes();
        let value = prevout.value.to_sat();
        bitcoinconsensus::verify_with_flags(script, value, &bytes, Some(&spent), index, FLAGS).is_ok()
    })
}

/// Whether the signatures of a beacon transaction are valid by BIP-340: the one under the output key, or at least k of those
/// under the keys of the fallback leaf.
pub fn bip340_accepts(signed: &Signed, output: &BeaconOutput, prevout: &TxOut) -> bool {
    let Some(witness) = signed.transaction.input.first().map(|input| input.witness.to_vec()) else { return false };
    match signed.path {
        SpendPath::KeyPath => {
            let Ok(sighash) = key_path_sighash(&signed.transaction, prevout) else { return false };
            matches!(witness.as_slice(), [signature] if parse(signature)
                .is_some_and(|signature| output.output_key().verify(&sighash, &signature)))
        }
        SpendPath::ScriptPath => {
            let Some(leaf) = output.fallback() else { return false };
            let Ok(sighash) = leaf.sighash(&signed.transaction, prevout) else { return false };
            let [signatures @ .., _script, _control_block] = witness.as_slice() else { return false };
            // The witness stack holds the slots in reverse key order, empty where a member did not sign.
            let valid = leaf
                .keys()
                .zip(signatures.iter().rev())
                .filter(|(key, slot)| parse(slot).is_some_and(|signature| key.verify(&sighash, &signature)));
            valid.count() >= leaf.threshold()
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Signature> {
    <&[u8; 64]>::try_from(bytes).ok().map(Signature::from_bytes)
}
