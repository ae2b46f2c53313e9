//! Idle participants: how long their start takes, and how much memory they use. The cost of a message in the mailboxes of
//! a service and a cohort.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

#[path = "../examples/support/mod.rs"]
mod support;

use std::{
    cell::LazyCell,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use btcr2_aggregation::{
    actors::{
        handle::{Participant, Service},
        journal::MemoryJournal,
        notice::Notices,
        service::OpenCohort,
        supervision::End,
        transport::{
            ConnectError, Connection, Delivery, Inbox, Outbound, Receipt, Received, Transport, Unsent,
            memory::MemoryTransport,
        },
    },
    bitcoin::offline::OfflineOperator,
    protocol::{
        beacon::BeaconType,
        id::CohortId,
        identity::Identity,
        message::{Bytes, Message, keygen::CohortOptIn},
        output::MemoizedAggregator,
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
async fn start(identities: impl IntoIterator<Item = Identity>) -> Vec<Participant> {
    let (randomness, network) = (seeded(1), Arc::new(MemoryTransport::new()));
    let policy = Arc::new(Joiner { identity: identity(randomness, "first"), randomness });
    let (journal, aggregator) = (Arc::new(MemoryJournal::new()), Arc::new(MemoizedAggregator::default()));
    let notices = Notices::new(1 << 14);
    let mut participants = Vec::new();
    for identity in identities {
        let builder = Participant::builder(identity, network.clone(), policy.clone());
        let builder = builder.transient_journal(journal.clone()).aggregator(aggregator.clone());
        participants.push(builder.notices(notices.clone()).start().await.unwrap());
    }
    participants
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
                        let _participants = start(identities).await;
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
        let _participants = start(identities(count)).await;
        // The participants that were started last have yet to connect.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let bytes = memory::resident().unwrap_or_default().saturating_sub(before);
        println!("{count} idle participants: {} MB, {} bytes each\n", bytes / 1_000_000, bytes / count as u64);
    });
    true
}

/// A transport that keeps the service's inbox, and drops its messages.
#[derive(Clone, Default)]
struct Post(Arc<Mutex<Option<Inbox>>>);

#[async_trait]
impl Transport for Post {
    async fn connect(&self, _: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        *self.0.lock().unwrap() = Some(inbox);
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl Connection for Post {
    fn try_send(&self, _: Outbound) -> Result<(), Unsent> {
        Ok(())
    }

    async fn ended(&self) -> End {
        std::future::pending().await
    }
}

/// A service with one cohort, which needs one member more than ever joins, and its inbox.
async fn cohort() -> (Service, Inbox, CohortId) {
    let me = identity(seeded(1), "service");
    let terms = conditions(BeaconType::cas(), 1 + MESSAGES as u32, me.public_key().x_only()).unwrap();
    let post = Post::default();
    let builder = Service::builder(me, Arc::new(post.clone()), Arc::new(OfflineOperator));
    let service = builder.start().await.unwrap();
    let cohort_id = service.open(OpenCohort::new(terms, NETWORK)).await.unwrap().id().clone();
    let inbox = loop {
        if let Some(inbox) = post.0.lock().unwrap().clone() {
            break inbox;
        }
        tokio::task::yield_now().await;
    };
    (service, inbox, cohort_id)
}

/// Sends every member's opt-in, and returns when the cohort has confirmed all of them.
async fn opt_in(inbox: &Inbox, cohort_id: &CohortId, members: &[Identity]) {
    let mut confirmed = Vec::with_capacity(members.len());
    for member in members {
        let key = Bytes(member.public_key().to_bytes());
        let body = CohortOptIn {
            cohort_id: cohort_id.clone(),
            participant_pk: key,
            communication_pk: key,
            genesis_document: None,
            invite: None,
        };
        let message = Message::new(member.did().clone(), None, body);
        let (receipt, is_confirmed) = Receipt::new();
        inbox.deliver(Delivery::Message(Received { receipt, ..message.into() })).await.unwrap();
        confirmed.push(is_confirmed);
    }
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
                let (service, ..) = cohort().await;
                let began = Instant::now();
                for _ in 0..iterations * MESSAGES as u64 {
                    service.cohorts().await;
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
                    let (_service, inbox, cohort_id) = cohort().await;
                    let began = Instant::now();
                    opt_in(&inbox, &cohort_id, &members).await;
                    elapsed += began.elapsed();
                }
                elapsed
            })
        });
    });
    group.bench_function("cohort_mailbox/repeats", |bencher| {
        bencher.iter_custom(|iterations| {
            actix_rt::System::new().block_on(async {
                let (_service, inbox, cohort_id) = cohort().await;
                opt_in(&inbox, &cohort_id, &members).await;
                let began = Instant::now();
                for _ in 0..iterations {
                    opt_in(&inbox, &cohort_id, &members).await;
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
