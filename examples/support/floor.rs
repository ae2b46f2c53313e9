//! The curve and hash operations that a round cannot avoid, with nothing around them.
//!
//! What a member must do: sign its update, aggregate the keys and derive the address, make a nonce and a partial signature.
//! What the coordinator must do: the same keys and address, check each update's signature, aggregate the nonces and the
//! partial signatures, check the signature. The network in memory signs no envelopes, so there are none in here.

use std::sync::Arc;

use btcr2_aggregation::protocol::{
    hash::sha256,
    identity::Identity,
    key::Signature,
    message::Bytes,
    network::Network,
    output::{BeaconOutput, KeyAggregation, RecoverySequence, ScriptTree},
    signing::nonce::SecretNonce,
};
use musig2::{AggNonce, CompactSignature, PartialSignature, PubNonce};

use super::{Outcome, seeded};

/// Does it all once for `members`, keys aggregated once for all (`shared`) or by everybody.
pub fn floor(members: &[Identity], shared: bool) -> Outcome<()> {
    let mut rng = seeded(1).for_actor("floor");
    let digest = sha256(b"what is signed");
    let output = || -> Outcome<BeaconOutput> {
        let keys = members.iter().map(Identity::public_key);
        let aggregation = Arc::new(KeyAggregation::new(keys)?);
        let tree = ScriptTree::FallbackAndRecovery {
            recovery_key: members[0].public_key().x_only(),
            recovery_sequence: RecoverySequence::try_from(144)?,
            fallback_threshold: None,
        };
        Ok(BeaconOutput::new(aggregation, Network::Regtest, &tree)?)
    };
    let ours = output()?;
    let mut nonces = Vec::new();
    for member in members {
        if !shared {
            output()?;
        }
        // Its update: signed here, checked by the coordinator.
        let signature = member.secret_key().sign(&digest, &mut rng);
        if !member.public_key().x_only().verify(&digest, &signature) {
            return Err("a signature is wrong".into());
        }
        nonces.push(SecretNonce::generate(member.secret_key(), &ours, &mut rng));
    }
    let publics: Vec<PubNonce> =
        nonces.iter().map(|(_, public)| PubNonce::from_bytes(&public.0)).collect::<Result<_, _>>()?;
    let aggregate = AggNonce::sum(&publics);
    let said = Bytes(aggregate.serialize());
    let mut partials = Vec::new();
    for (member, (nonce, _)) in members.iter().zip(nonces) {
        let partial = nonce.sign(member.secret_key(), &ours, &said, &digest)?;
        partials.push(PartialSignature::from_slice(&partial.0)?);
    }
    // Checks the signature that comes of it.
    let context = ours.musig2_context();
    let signature: CompactSignature = musig2::aggregate_partial_signatures(context, &aggregate, partials, digest)?;
    let signature = Signature::from_bytes(&signature.serialize());
    if ours.output_key().verify(&digest, &signature) { Ok(()) } else { Err("the signature is wrong".into()) }
}
