//! A wall clock that is set while a service and its participants run: by operators, by NTP, and by the end of a
//! suspension.

use std::time::Duration;

use crate::common::{Operator, Service, World, cohort, on_paused_clock, pass, settle};
use crate::http_support::{
    NOW, ack, identity, paused, sealed,
    site::{OK, Site},
};
use btcr2_aggregation_actors::{
    notice::ServiceNotice,
    runtime::{Clock, ClockHands, LONGEST_SLEEP},
    service::OpenCohort,
};
use btcr2_aggregation_protocol::time::Timestamp;

const HOUR: Duration = Duration::from_secs(3600);

/// A service with a cohort that no member joins, and that ends after an hour.
async fn waiting() -> (World, ClockHands, Service) {
    let (mut world, (clock, hands)) = (World::new(), Clock::movable(Timestamp::from_secs(1_750_000_000)));
    world.clock = clock;
    let service = world.service("service", Operator).await;
    let mut open: OpenCohort = cohort(2);
    open.timing.cohort_ttl = HOUR;
    open.timing.phase_timeout = HOUR;
    service.open(open).await;
    settle().await;
    (world, hands, service)
}

async fn until_it_fails(service: &mut Service) {
    service.ear.wait_for(|notice| matches!(notice, ServiceNotice::CohortFailed { .. }).then_some(())).await;
}

#[test]
fn a_deadline_passes_soon_after_the_clock_jumps_over_it() {
    on_paused_clock(async {
        let (world, hands, mut service) = waiting().await;
        pass(Duration::from_secs(60)).await;
        // As on a machine that was suspended: its timers stood still.
        hands.forward(2 * HOUR);
        let before = world.elapsed();
        until_it_fails(&mut service).await;
        let took = world.elapsed() - before;
        assert!(took <= LONGEST_SLEEP + Duration::from_secs(1), "{took:?}");
    });
}

#[test]
fn a_wait_begins_again_when_the_clock_is_set_back_far() {
    on_paused_clock(async {
        let (world, hands, mut service) = waiting().await;
        pass(HOUR / 2).await;
        hands.backward(2 * HOUR);
        until_it_fails(&mut service).await;
        // Not earlier than it can be over, and not two hours later.
        let (took, least) = (world.elapsed(), HOUR / 2 + HOUR);
        assert!(took >= least && took <= least + 2 * LONGEST_SLEEP, "{took:?}");
    });
}

#[test]
fn envelopes_are_judged_by_the_clock_as_it_is_set_now() {
    paused(async {
        let (clock, hands) = Clock::movable(Timestamp::from_secs(NOW));
        let (site, _deliveries) = Site::with(|parts| parts.clock = clock).await;
        let (alice, to) = (identity(1), crate::http_support::service());
        let send = async |at: Timestamp| {
            let envelope = sealed(&alice, Some(to.did()), ack(), at);
            site.post(envelope).await.outcome() == OK
        };
        let start = Timestamp::from_secs(NOW);
        assert!(send(start).await);
        for (forward, now) in [(true, start + HOUR), (false, start), (false, start - HOUR)] {
            if forward {
                hands.forward(HOUR)
            } else {
                hands.backward(HOUR)
            }
            assert!(send(now).await, "{now:?}");
            assert!(!send(now + Duration::from_secs(61)).await && !send(now - Duration::from_secs(61)).await);
        }
    });
}

#[test]
fn a_clock_set_back_does_not_use_up_anybodys_rate() {
    paused(async {
        let (clock, hands) = Clock::movable(Timestamp::from_secs(NOW));
        let (site, _deliveries) = Site::with(|parts| parts.clock = clock).await;
        let (alice, to) = (identity(1), crate::http_support::service());
        hands.backward(HOUR);
        // More than a burst, in more time than the rate requires.
        for _ in 0..200 {
            tokio::time::advance(Duration::from_millis(200)).await;
            let envelope = sealed(&alice, Some(to.did()), ack(), clock.now());
            assert_eq!(site.post(envelope).await.outcome(), OK);
        }
        hands.backward(HOUR);
        for _ in 0..200 {
            tokio::time::advance(Duration::from_millis(200)).await;
            let envelope = sealed(&alice, Some(to.did()), ack(), clock.now());
            assert_eq!(site.post(envelope).await.outcome(), OK);
        }
    });
}
