//! Verification of a partial signature on arrival (BIP-327, `PartialSigVerifyInternal`).
//!
//! An invalid partial signature is not stored, so that its sender can still send a valid one, and the stored ones add
//! up to a valid signature. The parts that do not depend on the member are computed once for a session.

use musig2::{
    AggNonce, PartialSignature, PubNonce, compute_challenge_hash_tweak,
    secp::{G, MaybePoint, MaybeScalar, Point},
};

use crate::{key::PublicKey, message::Bytes, output::BeaconOutput};

/// The part of the equation that is the same for every member.
#[derive(Clone, Debug)]
pub(crate) struct PartialVerifier {
    /// The nonce coefficient `b`.
    nonce_coefficient: MaybeScalar,
    /// The challenge `e`.
    challenge: MaybeScalar,
    /// Whether the final nonce has odd y, which negates every member's nonce.
    negate_nonce: bool,
    /// `g * gacc` of BIP-327: whether every member's key counts negated.
    negate_key: bool,
}

impl PartialVerifier {
    /// For signatures on `sighash` of `output` with this aggregate nonce; `None` when the aggregate nonce is not valid.
    pub(crate) fn new(output: &BeaconOutput, sighash: [u8; 32], aggregated: &Bytes<66>) -> Option<Self> {
        let aggregated = AggNonce::from_bytes(&aggregated.0).ok()?;
        let context = output.musig2_context();
        let output_key: Point = context.aggregated_pubkey();
        let internal_key: Point = context.aggregated_pubkey_untweaked();
        let nonce_coefficient: MaybeScalar = aggregated.nonce_coefficient(output_key, sighash);
        let final_nonce: Point = aggregated.final_nonce(nonce_coefficient);
        let challenge = compute_challenge_hash_tweak(&final_nonce.serialize_xonly(), &output_key, sighash);
        Some(Self {
            nonce_coefficient,
            challenge,
            negate_nonce: final_nonce.has_odd_y(),
            // The only tweak is x-only: it negates the internal key when that has odd y.
            negate_key: output_key.has_odd_y() ^ internal_key.has_odd_y(),
        })
    }

    /// Whether `signature` is valid for the member with `key`, which sent `nonce`.
    pub(crate) fn verify(
        &self,
        output: &BeaconOutput,
        key: &PublicKey,
        nonce: &Bytes<66>,
        signature: &Bytes<32>,
    ) -> bool {
        let (Ok(key), Ok(nonce), Ok(signature)) = (
            Point::try_from(&key.to_bytes()),
            PubNonce::from_bytes(&nonce.0),
            PartialSignature::from_slice(&signature.0),
        ) else {
            return false;
        };
        // `None` for a key that is not in the cohort.
        let Some(key) = output.musig2_context().effective_pubkey::<MaybePoint>(key) else { return false };
        let nonce = MaybePoint::from(nonce.R1) + self.nonce_coefficient * MaybePoint::from(nonce.R2);
        let nonce = if self.negate_nonce { -nonce } else { nonce };
        let key = self.challenge * key;
        let key = if self.negate_key { -key } else { key };
        signature * G == nonce + key
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bitcoin::{Amount, Transaction, TxIn, absolute::LockTime, transaction::Version};

    use super::*;
    use crate::{
        cohort::{Timing, service::rules::PhaseRules},
        did::Did,
        hash::sha256,
        id::{CohortId, SessionId},
        key::SecretKey,
        network::Network,
        output::{KeyAggregation, ScriptTree},
        signing::{SigningTask, SigningTerms, nonce::SecretNonce},
    };

    /// The rounds differ in the signs of nonce, internal key and output key. The library's own check confirms each
    /// result.
    #[test]
    fn verifies_exactly_what_the_member_signed() {
        let mut signs = std::collections::BTreeSet::new();
        for round in 0..32_u8 {
            let key = |n: u8| SecretKey::from_bytes(&sha256(&[round, n])).unwrap();
            let keys: Vec<SecretKey> = (0..3).map(key).collect();
            let aggregation = KeyAggregation::new(keys.iter().map(SecretKey::public_key)).unwrap();
            let output =
                BeaconOutput::new(Arc::new(aggregation), Network::Regtest, &ScriptTree::KeyPathOnly).unwrap();
            let dids: Vec<Did> = keys.iter().map(|key| Did::from_key(key.public_key(), Network::Regtest)).collect();
            let task = SigningTask::new(SigningTerms {
                cohort_id: CohortId::parse("cohort").unwrap(),
                session_id: SessionId::parse("session").unwrap(),
                service: dids[0].clone(),
                output: output.clone(),
                members: dids.iter().cloned().zip(keys.iter().map(SecretKey::public_key)).collect(),
                transaction: Transaction {
                    version: Version::TWO,
                    lock_time: LockTime::ZERO,
                    input: vec![TxIn::default()],
                    output: vec![],
                },
                value: Amount::ZERO,
                timing: Timing::default(),
                rules: PhaseRules::default(),
                absent: Vec::new(),
                unreached: crate::cohort::Unreached::default(),
            })
            .unwrap();
            let (secret, public): (Vec<_>, Vec<_>) = keys
                .iter()
                .zip(0..)
                .map(|(key, n)| SecretNonce::from_seed(key, &output, &sha256(&[n, round])))
                .unzip();
            let nonces = public.iter().map(|nonce| PubNonce::from_bytes(&nonce.0).unwrap());
            let aggregated = AggNonce::sum(nonces);
            let sent = Bytes(aggregated.clone().into());
            let verifier = PartialVerifier::new(&output, *task.key_path_sighash(), &sent).unwrap();
            signs.insert((verifier.negate_nonce, verifier.negate_key));
            let signatures: Vec<Bytes<32>> = secret
                .into_iter()
                .zip(&keys)
                .map(|(nonce, key)| nonce.sign(key, &output, &sent, task.key_path_sighash()).unwrap())
                .collect();
            for (signer, signature) in signatures.iter().enumerate() {
                for (member, nonce) in public.iter().enumerate() {
                    let key = keys[member].public_key();
                    let verified = verifier.verify(&output, &key, nonce, signature);
                    assert_eq!(verified, signer == member, "round {round}, {signer} as {member}");
                    let library = musig2::verify_partial(
                        output.musig2_context(),
                        PartialSignature::from_slice(&signature.0).unwrap(),
                        &aggregated,
                        Point::try_from(&key.to_bytes()).unwrap(),
                        &PubNonce::from_bytes(&nonce.0).unwrap(),
                        task.key_path_sighash(),
                    );
                    assert_eq!(library.is_ok(), verified, "round {round}, {signer} as {member}");
                }
            }
            let outsider = SecretKey::from_bytes(&[0x77; 32]).unwrap().public_key();
            assert!(!verifier.verify(&output, &outsider, &public[0], &signatures[0]));
        }
        assert_eq!(signs.len(), 4, "not every combination of signs occurs");
    }
}
