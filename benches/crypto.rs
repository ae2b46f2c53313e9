//! What MuSig2 costs: keys, nonces, partial signatures, and finding out whose is wrong.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

#[path = "../examples/support/mod.rs"]
mod support;

use std::{hint::black_box, sync::Arc};

use btcr2_aggregation::protocol::{
    identity::Identity,
    message::Bytes,
    network::Network,
    output::{BeaconOutput, KeyAggregation, RecoverySequence, ScriptTree},
    signing::nonce::SecretNonce,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use musig2::{AggNonce, CompactSignature, PartialSignature, PubNonce};

const SIZES: [usize; 6] = [2, 10, 100, 500, 1000, 5000];
const DIGEST: [u8; 32] = [7; 32];

/// A session up to its partial signatures.
struct Session {
    members: Vec<Identity>,
    output: BeaconOutput,
    nonces: Vec<PubNonce>,
    aggregate: AggNonce,
    partials: Vec<PartialSignature>,
}

impl Session {
    fn of(members: usize) -> Self {
        let randomness = support::seeded(1);
        let members: Vec<_> = (0..members).map(|index| support::identity(randomness, &index.to_string())).collect();
        let tree = ScriptTree::FallbackAndRecovery {
            recovery_key: members[0].public_key().x_only(),
            recovery_sequence: RecoverySequence::try_from(144).unwrap(),
            // The leaf of a large cohort could not be spent with all keys; it has no part in this.
            fallback_threshold: None,
        };
        let keys = KeyAggregation::new(members.iter().map(Identity::public_key)).unwrap();
        let output = BeaconOutput::new(Arc::new(keys), Network::Regtest, &tree).unwrap();
        let mut rng = randomness.for_actor("nonces");
        let made: Vec<_> =
            members.iter().map(|member| SecretNonce::generate(member.secret_key(), &output, &mut rng)).collect();
        let nonces: Vec<_> = made.iter().map(|(_, public)| PubNonce::from_bytes(&public.0).unwrap()).collect();
        let aggregate = AggNonce::sum(&nonces);
        let said = Bytes(aggregate.serialize());
        let partials = members
            .iter()
            .zip(made)
            .map(|(member, (nonce, _))| nonce.sign(member.secret_key(), &output, &said, &DIGEST).unwrap())
            .map(|partial| PartialSignature::from_slice(&partial.0).unwrap())
            .collect();
        Self { members, output, nonces, aggregate, partials }
    }

    fn verify(&self, index: usize) -> bool {
        let key: musig2::secp::Point =
            musig2::secp::Point::from_slice(&self.members[index].public_key().to_bytes()).unwrap();
        let (context, partial) = (self.output.musig2_context(), self.partials[index]);
        musig2::verify_partial(context, partial, &self.aggregate, key, &self.nonces[index], DIGEST).is_ok()
    }
}

fn crypto(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("crypto");
    group.sample_size(10);
    for size in SIZES {
        let session = std::cell::LazyCell::new(|| Session::of(size));
        group.bench_function(BenchmarkId::new("key_aggregation", size), |bencher| {
            let keys = session.output.keys().to_vec();
            bencher.iter(|| KeyAggregation::new(black_box(&keys).iter().copied()).unwrap());
        });
        group.bench_function(BenchmarkId::new("nonce_aggregation", size), |bencher| {
            let nonces = &session.nonces;
            bencher.iter(|| AggNonce::sum(black_box(nonces)));
        });
        group.bench_function(BenchmarkId::new("aggregate_optimistic", size), |bencher| {
            let session = &*session;
            bencher.iter(|| {
                let partials = session.partials.iter().copied();
                let context = session.output.musig2_context();
                musig2::aggregate_partial_signatures::<_, CompactSignature>(
                    context,
                    &session.aggregate,
                    partials,
                    DIGEST,
                )
                .unwrap()
            });
        });
        group.bench_function(BenchmarkId::new("aggregate_blaming", size), |bencher| {
            let session = &*session;
            bencher.iter(|| (0..size).filter(|&index| session.verify(index)).count());
        });
    }
    let session = std::cell::LazyCell::new(|| Session::of(10));
    group.bench_function("partial_check", |bencher| {
        let session = &*session;
        bencher.iter(|| assert!(session.verify(black_box(3))));
    });
    group.finish();
}

criterion_group!(benches, crypto);
criterion_main!(benches);
