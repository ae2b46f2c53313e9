//! Standing cohorts: one announcement with all seats in this process, and the reading of a board.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

#[path = "../examples/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use btcr2_aggregation::{actors::runtime::Clock, protocol::cohort::standing::StandingBeacon};
use criterion::{BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use support::{
    seeded,
    standing::{START, Standing},
};

const SIZES: [usize; 4] = [5, 25, 100, 999];

/// The time of so many announcements of one cohort, which has formed before.
fn announcements(standing: Standing, iterations: u64) -> Duration {
    let system = actix_rt::System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
    });
    system.block_on(async {
        let mut running = standing.start().await.unwrap();
        let mut elapsed = Duration::ZERO;
        // In the first one the seats check the rows of all others.
        for measured in 0..=iterations {
            running.want(1);
            let began = Instant::now();
            let transaction = running.announce().await.unwrap();
            if measured > 0 {
                elapsed += began.elapsed();
            }
            running.settle(&transaction).await.unwrap();
        }
        running.stop().await;
        elapsed
    })
}

fn bench(criterion: &mut Criterion, name: &str, shares_boards: bool, sizes: &[usize]) {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for beacon in [StandingBeacon::Cas, StandingBeacon::Smt] {
        for &size in sizes {
            group.bench_function(BenchmarkId::new(beacon.as_str(), size), |bencher| {
                bencher.iter_custom(|iterations| {
                    let standing = Standing::of(size, Clock::starting_at(START), seeded(size as u64));
                    announcements(Standing { beacon, shares_boards, ..standing }, iterations)
                });
            });
        }
    }
    group.finish();
}

fn standing(criterion: &mut Criterion) {
    bench(criterion, "standing", true, &SIZES);
}

/// Each seat reads the board itself.
fn standing_direct(criterion: &mut Criterion) {
    bench(criterion, "standing_direct", false, &SIZES[..3]);
}

criterion_group!(benches, standing, standing_direct);
criterion_main!(benches);
