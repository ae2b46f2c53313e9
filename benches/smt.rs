//! The sparse Merkle tree: the tree with all its proofs, and the check of one.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

#[path = "../examples/support/mod.rs"]
mod support;

use std::hint::black_box;

use btcr2_aggregation::protocol::{
    beacon::{AggregateBeacon, Slots, SmtBeacon},
    did::Did,
    hash::{DocumentHash, sha256},
    network::Network,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

/// Members without keys: a DID and the hash of an update each.
fn slots(members: u32) -> Slots {
    (0..members)
        .map(|index| {
            let hash = sha256(&index.to_be_bytes());
            (Did::from_genesis_hash(hash, Network::Regtest), Some(DocumentHash::from_bytes(hash)))
        })
        .collect()
}

fn smt(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("smt");
    group.sample_size(10);
    for size in [10, 100, 1000, 10_000, 100_000] {
        group.bench_function(BenchmarkId::new("tree_and_proofs", size), |bencher| {
            let slots = slots(size);
            let mut rng = support::seeded(1).for_actor("nonces");
            bencher.iter(|| SmtBeacon.aggregate(black_box(&slots), &mut rng).unwrap());
        });
    }
    group.bench_function("proof_check/10000", |bencher| {
        let slots = slots(10_000);
        let aggregation = SmtBeacon.aggregate(&slots, &mut support::seeded(1).for_actor("nonces")).unwrap();
        let (did, slot) = slots.iter().next().unwrap();
        let data = aggregation.data.for_member(did).unwrap();
        bencher.iter(|| SmtBeacon.verify(did, slot.as_ref(), black_box(data)).unwrap());
    });
    group.finish();
}

criterion_group!(benches, smt);
criterion_main!(benches);
