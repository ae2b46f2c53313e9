//! Participants that wait: how long it takes to start them, and what they have of the memory.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

#[path = "../examples/support/mod.rs"]
mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Actor, Addr};
use btcr2_aggregation::actors::{
    participant::ParticipantSettings,
    service::LiveCohorts,
    supervisor::{StartParticipant, Supervisor},
    transport::memory::MemoryTransport,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use support::{Cohort, Joiner, identity, memory, seeded};

/// Starts so many participants. The same settings for all but who they are: what is shared is shared.
async fn start(count: usize) -> Addr<Supervisor> {
    let (randomness, network) = (seeded(1), Arc::new(MemoryTransport::new()));
    let supervisor = Supervisor::default().start();
    let first = identity(randomness, "first");
    let policy = Arc::new(Joiner { identity: first.clone(), randomness });
    let common = ParticipantSettings::new(first, network, policy);
    for index in 0..count {
        let settings = ParticipantSettings { identity: identity(randomness, &index.to_string()), ..common.clone() };
        supervisor.send(StartParticipant(settings)).await.unwrap();
    }
    supervisor
}

fn spawn(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("actors");
    group.sample_size(10).measurement_time(Duration::from_secs(10));
    for count in [1000, 10_000, 100_000] {
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new("spawn_idle", count), |bencher| {
            bencher.iter_custom(|iterations| {
                let mut elapsed = Duration::ZERO;
                for _ in 0..iterations {
                    let before = memory::resident();
                    elapsed += actix_rt::System::new().block_on(async {
                        let began = Instant::now();
                        let supervisor = start(count).await;
                        let elapsed = began.elapsed();
                        if let Some((before, now)) = before.zip(memory::resident()) {
                            eprintln!("{count} idle participants: {} MB more", now.saturating_sub(before) >> 20);
                        }
                        drop(supervisor);
                        elapsed
                    });
                }
                elapsed
            });
        });
    }
    group.finish();
}

/// Questions to a service, one after another: what a mailbox costs.
fn mailbox(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("actors");
    group.throughput(Throughput::Elements(1000));
    group.bench_function("service_mailbox/1000", |bencher| {
        bencher.iter_custom(|iterations| {
            actix_rt::System::new().block_on(async {
                let running = Cohort::of(2).start().await.unwrap();
                let began = Instant::now();
                for _ in 0..iterations * 1000 {
                    running.service.send(LiveCohorts).await.unwrap();
                }
                began.elapsed()
            })
        });
    });
    group.finish();
}

criterion_group!(benches, spawn, mailbox);
criterion_main!(benches);
