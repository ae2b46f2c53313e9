//! Finding who sent a bad partial signature, after the aggregate failed to verify.
//!
//! The equation that one partial signature must satisfy (BIP-327, `PartialSigVerifyInternal`) is linear, so a group's sum
//! must satisfy the sum of its members' equations, at the price of three point multiplications however large the group.
//! Halving the failing groups finds a few culprits among many members quickly. Past n/2 group checks there are so many
//! culprits that checking the rest one by one is cheaper.

use std::collections::BTreeMap;

use musig2::{
    AggNonce, PartialSignature, PubNonce, compute_challenge_hash_tweak,
    secp::{G, MaybePoint, MaybeScalar, Point},
    verify_partial,
};

use super::SigningTask;
use crate::{did::Did, message::Bytes};

/// One member's part of the equation.
struct Share<'a> {
    did: &'a Did,
    key: Point,
    nonce: PubNonce,
    signature: PartialSignature,
}

struct Equation<'a> {
    task: &'a SigningTask,
    aggregated: AggNonce,
    sighash: [u8; 32],
    /// The nonce coefficient `b`.
    nonce_coefficient: MaybeScalar,
    /// The challenge `e`.
    challenge: MaybeScalar,
    /// Whether the final nonce has odd y, which negates every member's nonce.
    negate_nonce: bool,
    /// `g * gacc` of BIP-327: whether every member's key counts negated.
    negate_key: bool,
}

/// The members whose partial signatures are invalid, in the order of their DIDs. Every one named is guilty by its own
/// equation; members whose errors cancel each other within one group may go unnamed.
///
/// Members without a nonce or a partial signature, or with one that does not parse, are not looked at.
pub fn culprits(
    task: &SigningTask,
    nonces: &BTreeMap<Did, Bytes<66>>,
    aggregated: &Bytes<66>,
    partials: &BTreeMap<Did, Bytes<32>>,
) -> Vec<Did> {
    let Ok(aggregated) = AggNonce::from_bytes(&aggregated.0) else { return Vec::new() };
    let shares: Vec<Share<'_>> = partials
        .iter()
        .filter_map(|(did, signature)| {
            Some(Share {
                did,
                key: Point::try_from(&task.members.get(did)?.to_bytes()).ok()?,
                nonce: PubNonce::from_bytes(&nonces.get(did)?.0).ok()?,
                signature: PartialSignature::from_slice(&signature.0).ok()?,
            })
        })
        .collect();
    let equation = Equation::new(task, aggregated);
    let mut guilty = equation.search(&shares);
    guilty.sort();
    guilty
}

impl<'a> Equation<'a> {
    fn new(task: &'a SigningTask, aggregated: AggNonce) -> Self {
        let context = task.output.musig2_context();
        let sighash = *task.key_path_sighash();
        let output_key: Point = context.aggregated_pubkey();
        let internal_key: Point = context.aggregated_pubkey_untweaked();
        let nonce_coefficient: MaybeScalar = aggregated.nonce_coefficient(output_key, sighash);
        let final_nonce: Point = aggregated.final_nonce(nonce_coefficient);
        let challenge = compute_challenge_hash_tweak(&final_nonce.serialize_xonly(), &output_key, sighash);
        Self {
            task,
            aggregated,
            sighash,
            nonce_coefficient,
            challenge,
            negate_nonce: final_nonce.has_odd_y(),
            // The one tweak is x-only: it negates the internal key when that has odd y.
            negate_key: output_key.has_odd_y() ^ internal_key.has_odd_y(),
        }
    }

    fn search(&self, shares: &[Share<'_>]) -> Vec<Did> {
        let mut guilty = Vec::new();
        let mut checks = 0;
        // Groups that are known to fail, or not known to hold.
        let mut suspects = vec![shares];
        while let Some(group) = suspects.pop() {
            if group.len() <= 1 || checks > shares.len() / 2 {
                guilty.extend(group.iter().filter(|share| !self.holds_alone(share)).map(|share| share.did.clone()));
                continue;
            }
            let (left, right) = group.split_at(group.len() / 2);
            for half in [left, right] {
                checks += 1;
                if !self.holds(half) {
                    suspects.push(half);
                }
            }
        }
        guilty
    }

    /// Whether the sum of the group's equations holds.
    fn holds(&self, group: &[Share<'_>]) -> bool {
        let context = self.task.output.musig2_context();
        let signatures: MaybeScalar = group.iter().map(|share| share.signature).sum();
        let first = MaybePoint::sum(group.iter().map(|share| MaybePoint::from(share.nonce.R1)));
        let second = MaybePoint::sum(group.iter().map(|share| MaybePoint::from(share.nonce.R2)));
        let keys = MaybePoint::sum(
            group.iter().map(|share| context.effective_pubkey(share.key).unwrap_or(MaybePoint::Infinity)),
        );
        let nonces = first + self.nonce_coefficient * second;
        let nonces = if self.negate_nonce { -nonces } else { nonces };
        let keys = self.challenge * keys;
        let keys = if self.negate_key { -keys } else { keys };
        signatures * G == nonces + keys
    }

    fn holds_alone(&self, share: &Share<'_>) -> bool {
        let context = self.task.output.musig2_context();
        verify_partial(context, share.signature, &self.aggregated, share.key, &share.nonce, self.sighash).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bitcoin::{Amount, Transaction, TxIn, absolute::LockTime, transaction::Version};

    use super::*;
    use crate::{
        cohort::{Timing, service::rules::PhaseRules},
        hash::sha256,
        id::{CohortId, SessionId},
        key::SecretKey,
        network::Network,
        output::{BeaconOutput, KeyAggregation, ScriptTree},
        signing::{SigningTerms, nonce::SecretNonce},
    };

    /// A group that wrongly fails its sum costs speed only, since its members are then checked alone, so no result would
    /// show it. The rounds differ in the signs of nonce, internal key and output key.
    #[test]
    fn a_groups_sum_holds_exactly_when_its_members_are_honest() {
        let mut signs = std::collections::BTreeSet::new();
        for round in 0..32_u8 {
            let key = |n: u8| SecretKey::from_bytes(&sha256(&[round, n])).unwrap();
            let keys: Vec<SecretKey> = (0..4).map(key).collect();
            let aggregation = KeyAggregation::new(keys.iter().map(SecretKey::public_key)).unwrap();
            let output =
                BeaconOutput::new(Arc::new(aggregation), Network::Regtest, &ScriptTree::KeyPathOnly).unwrap();
            let dids = keys.iter().map(|key| Did::from_key(key.public_key(), Network::Regtest));
            let dids: Vec<Did> = dids.collect();
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
            })
            .unwrap();
            let (secret, public): (Vec<_>, Vec<_>) = keys
                .iter()
                .zip(0..)
                .map(|(key, n)| SecretNonce::from_seed(key, &output, &sha256(&[n, round])))
                .unzip();
            let nonces: Vec<PubNonce> =
                public.iter().map(|nonce| PubNonce::from_bytes(&nonce.0).unwrap()).collect();
            let aggregated = AggNonce::sum(&nonces);
            let sent = Bytes(aggregated.clone().into());
            let mut shares: Vec<Share<'_>> = secret
                .into_iter()
                .zip(&keys)
                .zip(nonces)
                .zip(&dids)
                .map(|(((secret, key), nonce), did)| {
                    let signature = secret.sign(key, &output, &sent, task.key_path_sighash()).unwrap();
                    Share {
                        did,
                        key: Point::try_from(&key.public_key().to_bytes()).unwrap(),
                        nonce,
                        signature: PartialSignature::from_slice(&signature.0).unwrap(),
                    }
                })
                .collect();
            let equation = Equation::new(&task, aggregated);
            signs.insert((equation.negate_nonce, equation.negate_key));
            for group in [&shares[..], &shares[..2], &shares[1..], &shares[3..]] {
                assert!(equation.holds(group), "round {round}, {} members", group.len());
            }
            shares[2].signature = shares[1].signature;
            assert!(!equation.holds(&shares), "round {round}");
            assert!(equation.holds(&shares[..2]), "round {round}");
        }
        assert_eq!(signs.len(), 4, "every combination of signs occurs");
    }
}
