//! Ended cohorts leave nothing behind in a service that continues: neither in memory nor in a journal that does not outlive
//! the process.
//!
//! The daily run has a hundred cohorts. The long run has 2,000, or `SOAK_COHORTS`, and measures the memory of the
//! process: `cargo test --release -p btcr2-aggregation-actors --test it soak -- --ignored --nocapture`.

use std::sync::Arc;

use crate::common::{
    Operator, Service, Updater, World, cohort, identity, on_paused_clock, pass, settle,
    tap::{Tap, no_signatures},
};
use btcr2_aggregation_actors::notice::{Notices, ParticipantNotice, ServiceNotice};

const MEMBERS: usize = 3;

/// Settings for a service and members that run permanently: they forget ended cohorts.
struct Soaked {
    world: World,
    service: Service,
    notices: Notices<ServiceNotice>,
}

async fn start(silent: bool) -> Soaked {
    let world = World::new();
    // Short queues, so that unread notices do not look like a leak.
    let notices = Notices::new(256);
    let mut settings = world.service_settings("service", Operator);
    settings.is_transient = true;
    settings.notices = notices.clone();
    let service = settings.start().await;
    for number in 0..MEMBERS {
        let identity = identity(&format!("member {number}"));
        let mut settings = world.participant_settings(&identity, Updater(identity.clone()));
        settings.is_transient = true;
        settings.notices = Notices::<ParticipantNotice>::new(256);
        if silent && number == 0 {
            settings.transport = Arc::new(Tap::losing(&world.network, no_signatures));
        }
        settings.start().await;
    }
    Soaked { world, service, notices }
}

impl Soaked {
    async fn round(&self) {
        let mut received = self.notices.subscribe();
        let cohort_id = self.service.open(cohort(MEMBERS as u32)).await;
        loop {
            match &*received.recv().await.unwrap() {
                ServiceNotice::SigningComplete { cohort_id: done, .. } if *done == cohort_id => return,
                ServiceNotice::CohortFailed { cohort_id: done, reason, .. } if *done == cohort_id => {
                    panic!("{reason}")
                }
                _ => {}
            }
        }
    }

    async fn assert_empty(&self) {
        settle().await;
        assert_eq!(self.service.live().await, []);
        let streams = self.world.journal.streams().await.unwrap();
        assert!(streams.is_empty(), "{} streams are left: {:?}", streams.len(), streams.first());
        assert_eq!(self.world.journal.archived().await.unwrap(), []);
    }
}

#[test]
fn of_a_hundred_cohorts_nothing_is_left() {
    on_paused_clock(async {
        let soaked = start(false).await;
        for _ in 0..100 {
            soaked.round().await;
        }
        soaked.assert_empty().await;
    });
}

#[test]
fn of_cohorts_that_fail_or_fall_back_nothing_is_left() {
    on_paused_clock(async {
        let soaked = start(true).await;
        // It holds out three times; then it is banned, and enrollment expires.
        for _ in 0..3 {
            let mut open = cohort(MEMBERS as u32);
            if let btcr2_aggregation_protocol::output::ScriptTree::FallbackAndRecovery {
                fallback_threshold, ..
            } = &mut open.conditions.script_tree
            {
                *fallback_threshold = Some(2);
            }
            soaked.service.open(open).await;
            pass(std::time::Duration::from_secs(7200)).await;
        }
        soaked.service.open(cohort(MEMBERS as u32)).await;
        pass(std::time::Duration::from_secs(48 * 3600)).await;
        soaked.assert_empty().await;
    });
}

/// The resident memory of this process, in bytes; `None` without `/proc`.
fn resident() -> Option<usize> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(pages.split_whitespace().nth(1)?.parse::<usize>().ok()? * 4096)
}

#[test]
#[ignore = "takes minutes: memory stays flat over 2,000 cohorts, or SOAK_COHORTS of them"]
fn memory_stays_flat() {
    const BOUND: usize = 4 << 20;
    if resident().is_none() {
        println!("memory_stays_flat: skipped, there is no /proc/self/statm here");
        return;
    }
    let cohorts = std::env::var("SOAK_COHORTS").map_or(2_000, |text| text.parse().expect("SOAK_COHORTS: a number"));
    let warm = cohorts / 4;
    on_paused_clock(async {
        let soaked = start(false).await;
        let mut after_warm = 0;
        for number in 1..=cohorts {
            soaked.round().await;
            if number == warm {
                after_warm = resident().unwrap();
            }
            if number % (cohorts / 8).max(1) == 0 {
                println!("{number} cohorts: {} KiB resident", resident().unwrap() / 1024);
            }
        }
        soaked.assert_empty().await;
        let growth = resident().unwrap().saturating_sub(after_warm);
        println!("{cohorts} cohorts: {} KiB more than after {warm}", growth / 1024);
        assert!(growth < BOUND, "{growth} bytes more after {cohorts} cohorts than after {warm}");
    });
}
