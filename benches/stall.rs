//! The longest time for which the service's thread is busy without a pause, for cohorts of growing size: for so long every
//! other cohort, timer and request of the process waits. The members run on a thread of their own.
//!
//! A mean would not show it: this is not a benchmark of criterion. `actors/tests/it/stalls.rs` holds the limit.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

#[path = "../examples/support/mod.rs"]
mod support;

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use btcr2_aggregation::{
    actors::{
        handle::{ActorThread, Participant, Service},
        service::OpenCohort,
    },
    bitcoin::offline::OfflineOperator,
    protocol::beacon::BeaconType,
};
use rustix::time::{ClockId, clock_gettime};
use support::{Cohort, Joiner, NETWORK, conditions};

/// The processor time of this thread: other threads and processes do not count.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.try_into().unwrap())
}

/// Starts the members on another thread.
async fn start_members(cohort: &Cohort) -> ActorThread {
    let thread = ActorThread::start().await.unwrap();
    let (members, network, aggregator, randomness) =
        (cohort.members.clone(), Arc::clone(&cohort.client), Arc::clone(&cohort.aggregator), cohort.randomness);
    thread
        .run(move || async move {
            for identity in members {
                let policy = Joiner::new(identity.clone(), randomness);
                let builder = Participant::builder(identity, Arc::clone(&network), Arc::new(policy));
                // A participant runs until its thread ends.
                std::mem::forget(builder.aggregator(Arc::clone(&aggregator)).start().await.unwrap());
            }
        })
        .await
        .unwrap();
    thread
}

/// Runs one cohort; returns the longest time without a pause.
async fn longest_stall(members: usize, beacon_type: BeaconType) -> Duration {
    let cohort = Cohort::of(members);
    let thread = start_members(&cohort).await;
    let service = Service::builder(cohort.service.clone(), Arc::clone(&cohort.server), Arc::new(OfflineOperator))
        .aggregator(Arc::clone(&cohort.aggregator))
        .start()
        .await
        .unwrap();
    let longest = Rc::new(Cell::new(Duration::ZERO));
    let found = Rc::clone(&longest);
    let pulse = actix_rt::spawn(async move {
        loop {
            let before = thread_time();
            tokio::task::yield_now().await;
            found.set(found.get().max(thread_time() - before));
        }
    });
    let recovery_key = cohort.service.public_key().x_only();
    let conditions = conditions(beacon_type, members.try_into().unwrap(), recovery_key).unwrap();
    service.open(OpenCohort::new(conditions, NETWORK)).await.unwrap().outcome().await.unwrap();
    pulse.abort();
    service.stop().await;
    thread.stop().unwrap();
    longest.get()
}

fn main() {
    println!("| members | beacon | longest stall |\n|--:|---|--:|");
    for members in [10, 100, 1000] {
        for beacon_type in [BeaconType::cas(), BeaconType::smt()] {
            let name = beacon_type.as_str().to_owned();
            let longest = actix_rt::System::new().block_on(longest_stall(members, beacon_type));
            println!("| {members} | {name} | {:.1} ms |", longest.as_secs_f64() * 1000.0);
        }
    }
}
