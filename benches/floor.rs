//! The work that a round cannot avoid, to compare with `round`. `examples/scaling` measures both in one run.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

#[path = "../examples/support/mod.rs"]
mod support;

use btcr2_aggregation::protocol::beacon::BeaconType;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use support::Cohort;

fn floor(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("floor");
    group.sample_size(10);
    for size in [2, 10, 50, 100, 200, 500, 1000] {
        for (name, shared) in [("shared", true), ("direct", false)] {
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                let members = Cohort::of(size).members;
                bencher.iter(|| support::floor::floor(&members, &BeaconType::cas(), shared).unwrap());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, floor);
criterion_main!(benches);
