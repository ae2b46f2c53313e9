//! Restarts of the service and of seats, at each moment.

use std::sync::Arc;

use btcr2_aggregation_actors::{standing::notice::StandingNotice, transport::memory::MemoryTransport};
use btcr2_aggregation_protocol::cohort::standing::StandingBeacon;

use super::world::{World, start_of_time, terms, until};
use crate::common::on_paused_clock;

fn world() -> World {
    let network = Arc::new(MemoryTransport::new());
    World::new(start_of_time(), network.clone(), network, 3)
}

#[test]
fn a_service_that_restarts_announces_what_was_open() {
    for beacon in [StandingBeacon::Cas, StandingBeacon::Smt] {
        on_paused_clock(async {
            let mut world = world();
            world.form(terms(beacon, 3)).await;
            world.wants(0, 0).await;
            until(&mut world.notices, |notice| matches!(notice, StandingNotice::NumberOpened { .. }).then_some(()))
                .await;
            world.restart_service().await;
            let (number, _) = world.signed().await;
            assert_eq!(number, 1, "the same number");
        });
    }
}

#[test]
fn a_seat_that_restarts_has_lost_its_nonces_and_is_asked_again() {
    on_paused_clock(async {
        let mut world = world();
        world.form(terms(StandingBeacon::Cas, 3)).await;
        world.wants(0, 0).await;
        world.seats[1]
            .until(|notice| {
                matches!(notice, btcr2_aggregation_actors::standing::notice::SeatNotice::Responded { .. })
                    .then_some(())
            })
            .await;
        world.seats[1].stop().await;
        world.seats[1].start().await;
        let (number, _) = world.signed().await;
        assert!(number >= 1);
    });
}

#[test]
fn many_announcements_leave_a_short_journal() {
    on_paused_clock(async {
        let mut world = world();
        world.form(terms(StandingBeacon::Cas, 3)).await;
        for round in 0..60 {
            world
                .cohort()
                .open_now(btcr2_aggregation_protocol::cohort::standing::OpportunityKind::Announcement)
                .await
                .unwrap();
            until(&mut world.notices, |notice| {
                matches!(notice, StandingNotice::NumberIdle { number, .. } if *number == round + 1).then_some(())
            })
            .await;
            tokio::time::sleep(std::time::Duration::from_secs(61)).await;
        }
        world.restart_service().await;
        let machine = world.cohort().inspect().await.unwrap();
        assert_eq!(machine.last_number(), 60);
        drop(machine);
        let stream = btcr2_aggregation_actors::journal::StreamId::of_standing(world.cohort().id());
        let records = world.journal.read(&stream).await.unwrap().len();
        assert!(records < 300, "{records}");
        // The streams of numbers are archived.
        let live = world.journal.streams().await.unwrap();
        assert!(!live.iter().any(|stream| stream.as_str().starts_with("number/")), "{live:?}");
        world.wants(2, 1).await;
        assert_eq!(world.signed().await.0, 61);
    });
}
