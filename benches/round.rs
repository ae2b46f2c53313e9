//! A whole cohort through the actors: in memory, with the journal of a state directory, and with one cache of aggregated keys for
//! all of its participants.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

#[path = "../examples/support/mod.rs"]
mod support;

use std::{sync::Arc, time::Duration};

use btcr2_aggregation::{
    actors::state::State,
    protocol::{beacon::BeaconType, output::DirectAggregator},
};
use criterion::{BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use support::Cohort;

const SIZES: [usize; 7] = [2, 10, 50, 100, 200, 500, 1000];
const DURABLE_SIZES: [usize; 4] = [2, 10, 50, 100];

/// The time of so many rounds of one cohort; its members are started before.
fn rounds(cohort: Cohort, iterations: u64) -> Duration {
    actix_rt::System::new().block_on(async {
        let mut running = cohort.start().await.unwrap();
        let mut elapsed = Duration::ZERO;
        for _ in 0..iterations {
            let began = std::time::Instant::now();
            running.round().await.unwrap();
            elapsed += began.elapsed();
        }
        elapsed
    })
}

/// Each member does its own work.
fn direct(size: usize) -> Cohort {
    Cohort { aggregator: Arc::new(DirectAggregator), ..Cohort::of(size) }
}

fn in_memory(criterion: &mut Criterion, name: &str, cohort: fn(usize) -> Cohort) {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for beacon_type in [BeaconType::cas(), BeaconType::smt()] {
        for size in SIZES {
            group.bench_function(BenchmarkId::new(beacon_type.as_str(), size), |bencher| {
                bencher.iter_custom(|iterations| {
                    let beacon_type = beacon_type.clone();
                    rounds(Cohort { beacon_type, ..cohort(size) }, iterations)
                });
            });
        }
    }
    group.finish();
}

fn round(criterion: &mut Criterion) {
    in_memory(criterion, "round", direct);
}

fn round_shared(criterion: &mut Criterion) {
    in_memory(criterion, "round_shared", Cohort::of);
}

fn round_durable(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("round_durable");
    group.sample_size(10);
    for size in DURABLE_SIZES {
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter_custom(|iterations| {
                let directory = tempfile::tempdir().unwrap();
                let state = State::open(directory.path()).unwrap();
                rounds(Cohort { journal: Arc::new(state.journal()), ..direct(size) }, iterations)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, round, round_durable, round_shared);
criterion_main!(benches);
