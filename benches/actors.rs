//! Idle participants: how long their start takes, and how much memory they use. The cost of a message in the mailboxes of
//! a service and a cohort.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

#[path = "../examples/support/mod.rs"]
mod support;

use std::{
    cell::LazyCell,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Actor, Addr};
use btcr2_aggregation::{
    actors::{
        participant::ParticipantSettings,
        service::{AggregationService, LiveCohorts, OpenCohort, ServiceSettings},
        supervisor::{StartParticipant, StartService, Supervisor},
        transport::{Delivery, Receipt, Received, memory::MemoryTransport},
    },
    bitcoin::offline::OfflineOperator,
    protocol::{
        beacon::BeaconType,
        id::CohortId,
        identity::Identity,
        message::{Bytes, Message, keygen::CohortOptIn},
    },
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use futures::future::join_all;
use support::{Joiner, NETWORK, conditions, identity, memory, seeded};

/// Set in a process that only starts so many participants and prints their memory.
const IDLE: &str = "BTCR2_BENCH_IDLE";

/// The number of idle participants of the memory measurement.
const MANY: usize = 100_000;

/// How many messages go through a mailbox at once.
const MESSAGES: usize = 1000;

fn identities(count: usize) -> impl Iterator<Item = Identity> {
    (0..count).map(|index| identity(seeded(1), &index.to_string()))
}

/// Starts these participants, with the same settings except for their identities: shared values are shared.
async fn start(identities: impl IntoIterator<Item = Identity>) -> Addr<Supervisor> {
    let (randomness, network) = (seeded(1), Arc::new(MemoryTransport::new()));
    let supervisor = Supervisor::default().start();
    let first = identity(randomness, "first");
    let policy = Arc::new(Joiner { identity: first.clone(), randomness });
    let common = ParticipantSettings::new(first, network, policy);
    for identity in identities {
        let settings = ParticipantSettings { identity, ..common.clone() };
        supervisor.send(StartParticipant(settings)).await.unwrap();
    }
    supervisor
}

fn spawn(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("actors");
    group.sample_size(10);
    let mut ran = false;
    for count in [1000, 10_000, MANY] {
        group.throughput(Throughput::Elements(count as u64));
        // Keys take longer than actors; they are made once.
        let identities = LazyCell::new(|| identities(count).collect::<Vec<_>>());
        group.bench_function(BenchmarkId::new("spawn_idle", count), |bencher| {
            ran |= count == MANY;
            bencher.iter_custom(|iterations| {
                let mut elapsed = Duration::ZERO;
                for _ in 0..iterations {
                    let identities = identities.clone();
                    elapsed += actix_rt::System::new().block_on(async {
                        let began = Instant::now();
                        let _supervisor = start(identities).await;
                        began.elapsed()
                    });
                }
                elapsed
            });
        });
    }
    group.finish();
    if ran {
        // In a separate process: memory that this one has freed would be used again.
        let program = std::env::current_exe().unwrap();
        let output = Command::new(program).env(IDLE, MANY.to_string()).output().unwrap();
        print!("{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Whether this process only prints the memory; then it has done so.
fn tell_memory() -> bool {
    let Some(count) = std::env::var(IDLE).ok().and_then(|count| count.parse::<usize>().ok()) else { return false };
    actix_rt::System::new().block_on(async {
        let before = memory::resident().unwrap_or_default();
        let _supervisor = start(identities(count)).await;
        // The participants that were started last have yet to connect.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let bytes = memory::resident().unwrap_or_default().saturating_sub(before);
        println!("{count} idle participants: {} MB, {} bytes each\n", bytes / 1_000_000, bytes / count as u64);
    });
    true
}

/// A service with one cohort, which needs one member more than ever joins.
async fn cohort() -> (Addr<Supervisor>, Addr<AggregationService>, CohortId) {
    let me = identity(seeded(1), "service");
    let terms = conditions(BeaconType::cas(), 1 + MESSAGES as u32, me.public_key().x_only()).unwrap();
    let settings = ServiceSettings::new(me, Arc::new(MemoryTransport::new()), Arc::new(OfflineOperator));
    let supervisor = Supervisor::default().start();
    let service = supervisor.send(StartService(settings)).await.unwrap();
    let cohort_id = service.send(OpenCohort::new(terms, NETWORK)).await.unwrap().unwrap();
    (supervisor, service, cohort_id)
}

/// Sends every member's opt-in, and returns when the cohort has confirmed all of them.
async fn opt_in(service: &Addr<AggregationService>, cohort_id: &CohortId, members: &[Identity]) {
    let confirmed = members.iter().map(|member| {
        let key = Bytes(member.public_key().to_bytes());
        let body = CohortOptIn {
            cohort_id: cohort_id.clone(),
            participant_pk: key,
            communication_pk: key,
            genesis_document: None,
            invite: None,
        };
        let message = Message::new(member.did().clone(), None, body);
        let (receipt, confirmed) = Receipt::new();
        service.do_send(Delivery::Message(Received { receipt, ..message.into() }));
        confirmed
    });
    for confirmed in join_all(confirmed).await {
        confirmed.unwrap();
    }
}

/// The cost of a message in a mailbox: a request to the service; an opt-in that the cohort accepts, which is decided, written
/// to the journal and answered; and an opt-in that it has already.
fn mailboxes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("actors");
    group.sample_size(10).throughput(Throughput::Elements(MESSAGES as u64));
    group.bench_function("service_mailbox", |bencher| {
        bencher.iter_custom(|iterations| {
            actix_rt::System::new().block_on(async {
                let (_supervisor, service, _) = cohort().await;
                let began = Instant::now();
                for _ in 0..iterations * MESSAGES as u64 {
                    service.send(LiveCohorts).await.unwrap();
                }
                began.elapsed()
            })
        });
    });
    let members: Vec<_> = identities(MESSAGES).collect();
    group.bench_function("cohort_mailbox/opt_ins", |bencher| {
        bencher.iter_custom(|iterations| {
            actix_rt::System::new().block_on(async {
                let mut elapsed = Duration::ZERO;
                for _ in 0..iterations {
                    let (_supervisor, service, cohort_id) = cohort().await;
                    let began = Instant::now();
                    opt_in(&service, &cohort_id, &members).await;
                    elapsed += began.elapsed();
                }
                elapsed
            })
        });
    });
    group.bench_function("cohort_mailbox/repeats", |bencher| {
        bencher.iter_custom(|iterations| {
            actix_rt::System::new().block_on(async {
                let (_supervisor, service, cohort_id) = cohort().await;
                opt_in(&service, &cohort_id, &members).await;
                let began = Instant::now();
                for _ in 0..iterations {
                    opt_in(&service, &cohort_id, &members).await;
                }
                began.elapsed()
            })
        });
    });
    group.finish();
}

criterion_group!(benches, spawn, mailboxes);

fn main() {
    if !tell_memory() {
        benches();
        Criterion::default().configure_from_args().final_summary();
    }
}
