//! The curve and hash operations that a round cannot avoid, without anything else.
//!
//! A member must sign its update, derive the address from all keys, recompute the signal from the received data, and
//! make a nonce and a partial signature. The coordinator must derive the same address, check each update's signature,
//! build the data, check each nonce and each partial signature when it arrives (an invalid one is not stored, so that
//! its sender can send a valid one until the deadline), add them up, and check the result. Where messages travel in signed
//! envelopes, it must check five of each member's and the request for its inbox, and sign five for it; the network in
//! memory has none.
//!
//! Two operations could be cheaper. The `musig2` crate checks a partial signature before it returns it (about 0.09 ms),
//! and our own beacons build and check the data. The first raises the floor by 3% if every member aggregates the keys,
//! and by a quarter if the aggregation is shared; see docs/performance.md.

use std::{num::NonZero, sync::Arc};

use btcr2_aggregation::protocol::{
    beacon::{AggregatedData, BeaconData, BeaconRegistry, BeaconType, Slots},
    hash::{DocumentHash, sha256},
    identity::Identity,
    key::Signature,
    message::Bytes,
    network::Network,
    output::{BeaconOutput, KeyAggregation, RecoverySequence, ScriptTree},
    signing::nonce::SecretNonce,
};
use musig2::{
    AggNonce, CompactSignature, PartialSignature, PubNonce, compute_challenge_hash_tweak,
    secp::{G, MaybePoint, MaybeScalar, Point},
};

use super::{Outcome, seeded};

/// Envelopes each way between the service and a member: opt-in, update, verdict, nonce and partial signature; acceptance, keys,
/// data, request and aggregate nonce.
const ENVELOPES: usize = 5;

const DIGEST: [u8; 32] = [7; 32];

/// The work of members and coordinator, with the keys aggregated once for all (`shared`) or once for each member.
pub fn floor(members: &[Identity], beacon: &BeaconType, shared: bool) -> Outcome<()> {
    let (ours, signatures) = (output(members)?, signatures(members));
    let data = coordinate(members, &signatures, beacon)?;
    if !shared {
        outputs(members)?;
    }
    for member in members {
        check(member, beacon, &data)?;
    }
    sign(members, &ours)
}

/// An address for each member, on all processors as in a round: members that share a core slow each other down, and a
/// floor with a core of its own would not be comparable.
fn outputs(members: &[Identity]) -> Outcome<()> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let derive = |share: &[Identity]| share.iter().all(|_| output(members).is_ok());
    let derived = std::thread::scope(|scope| {
        let shares: Vec<_> = members
            .chunks(members.len().div_ceil(processors))
            .map(|share| scope.spawn(move || derive(share)))
            .collect();
        shares.into_iter().all(|share| share.join().unwrap_or(false))
    });
    if derived { Ok(()) } else { Err("an address cannot be derived".into()) }
}

/// The work of the coordinator, including envelopes. The members' part, which provides the input, is done outside of
/// `measure`.
pub fn coordinator_floor<T>(
    members: &[Identity],
    beacon: &BeaconType,
    measure: impl Fn(&mut dyn FnMut() -> Outcome<()>) -> Outcome<T>,
) -> Outcome<T> {
    let signatures = signatures(members);
    let ours = output(members)?;
    let (nonces, partials) = contributions(members, &ours)?;
    let service = &members[0];
    let mut rng = seeded(2).for_actor("envelopes");
    measure(&mut || {
        let ours = output(members)?;
        coordinate(members, &signatures, beacon)?;
        for (member, signature) in members.iter().zip(&signatures) {
            // The request for its inbox.
            verified(member, signature)?;
            for _ in 0..ENVELOPES {
                verified(member, signature)?;
                service.secret_key().sign(&DIGEST, &mut rng);
            }
        }
        combine(members, &ours, &nonces, &partials)
    })
}

fn output(members: &[Identity]) -> Outcome<BeaconOutput> {
    let aggregation = Arc::new(KeyAggregation::new(members.iter().map(Identity::public_key))?);
    let tree = ScriptTree::FallbackAndRecovery {
        recovery_key: members[0].public_key().x_only(),
        recovery_sequence: RecoverySequence::try_from(144)?,
        fallback_threshold: None,
    };
    Ok(BeaconOutput::new(aggregation, Network::Regtest, &tree)?)
}

fn signatures(members: &[Identity]) -> Vec<Signature> {
    let mut rng = seeded(1).for_actor("signatures");
    members.iter().map(|member| member.secret_key().sign(&DIGEST, &mut rng)).collect()
}

fn verified(member: &Identity, signature: &Signature) -> Outcome<()> {
    let valid = member.public_key().x_only().verify(&DIGEST, signature);
    if valid { Ok(()) } else { Err("a signature is wrong".into()) }
}

/// Checks the updates and builds the data.
fn coordinate(members: &[Identity], signatures: &[Signature], beacon: &BeaconType) -> Outcome<AggregatedData> {
    for (member, signature) in members.iter().zip(signatures) {
        verified(member, signature)?;
    }
    let slots: Slots =
        members.iter().map(|member| (member.did().clone(), Some(DocumentHash::from_bytes(DIGEST)))).collect();
    let registry = BeaconRegistry::default();
    let beacon = registry.get(beacon).ok_or("no such beacon")?;
    Ok(beacon.aggregate(&slots, &mut seeded(1).for_actor("beacon"))?.data)
}

/// The hashing by which a member computes the signal.
fn check(member: &Identity, beacon: &BeaconType, data: &AggregatedData) -> Outcome<()> {
    let data = data.for_member(member.did()).ok_or("no data for a member")?;
    match &**data {
        // The received bytes: parsing costs more than hashing, and could be avoided.
        BeaconData::Cas(map) => {
            std::hint::black_box(sha256(&vec![b'a'; map.len() * ENTRY]));
        }
        data => {
            let registry = BeaconRegistry::default();
            let beacon = registry.get(beacon).ok_or("no such beacon")?;
            beacon.verify(member.did(), Some(&DocumentHash::from_bytes(DIGEST)), data)?;
        }
    }
    Ok(())
}

/// The length of an entry of a CAS map in canonical JSON: a DID and a hash in base64url, quotes, colon and comma.
const ENTRY: usize = 73 + 43 + 6;

/// The members' contributions to the signature.
fn contributions(members: &[Identity], ours: &BeaconOutput) -> Outcome<(Vec<[u8; 66]>, Vec<PartialSignature>)> {
    let mut rng = seeded(1).for_actor("nonces");
    let nonces: Vec<_> =
        members.iter().map(|member| SecretNonce::generate(member.secret_key(), ours, &mut rng)).collect();
    let publics: Vec<PubNonce> =
        nonces.iter().map(|(_, public)| PubNonce::from_bytes(&public.0)).collect::<Result<_, _>>()?;
    let said = Bytes(AggNonce::sum(&publics).serialize());
    let mut partials = Vec::new();
    let mut sent = Vec::new();
    for (member, (nonce, public)) in members.iter().zip(nonces) {
        let partial = nonce.sign(member.secret_key(), ours, &said, &DIGEST)?;
        partials.push(PartialSignature::from_slice(&partial.0)?);
        sent.push(public.0);
    }
    Ok((sent, partials))
}

/// Checks the contributions, and the resulting signature.
fn combine(
    members: &[Identity],
    ours: &BeaconOutput,
    nonces: &[[u8; 66]],
    partials: &[PartialSignature],
) -> Outcome<()> {
    let nonces: Vec<PubNonce> = nonces.iter().map(|nonce| PubNonce::from_bytes(nonce)).collect::<Result<_, _>>()?;
    let (context, nonce) = (ours.musig2_context(), AggNonce::sum(&nonces));
    // BIP-327, PartialSigVerifyInternal; what is the same for all is computed once.
    let (output_key, internal_key): (Point, Point) =
        (context.aggregated_pubkey(), context.aggregated_pubkey_untweaked());
    let coefficient: MaybeScalar = nonce.nonce_coefficient(output_key, DIGEST);
    let total: Point = nonce.final_nonce(coefficient);
    let challenge: MaybeScalar = compute_challenge_hash_tweak(&total.serialize_xonly(), &output_key, DIGEST);
    let negate_key = output_key.has_odd_y() ^ internal_key.has_odd_y();
    for ((member, own), &partial) in members.iter().zip(&nonces).zip(partials) {
        // The uncompressed form avoids the square root of decompression.
        let key = Point::from_slice(&member.public_key().as_inner().serialize_uncompressed())?;
        let key: MaybePoint = context.effective_pubkey(key).ok_or("no key of the cohort")?;
        let own = MaybePoint::from(own.R1) + coefficient * MaybePoint::from(own.R2);
        let own = if total.has_odd_y() { -own } else { own };
        let key: MaybePoint = challenge * key;
        if partial * G != own + if negate_key { -key } else { key } {
            return Err("a partial signature is wrong".into());
        }
    }
    let signature: CompactSignature =
        musig2::aggregate_partial_signatures(context, &nonce, partials.iter().copied(), DIGEST)?;
    let signature = Signature::from_bytes(&signature.serialize());
    if ours.output_key().verify(&DIGEST, &signature) { Ok(()) } else { Err("the signature is wrong".into()) }
}

fn sign(members: &[Identity], ours: &BeaconOutput) -> Outcome<()> {
    let (nonces, partials) = contributions(members, ours)?;
    combine(members, ours, &nonces, &partials)
}
