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
