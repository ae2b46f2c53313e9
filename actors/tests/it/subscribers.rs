//! Subscribers: each receives every notice, and one that does not read delays no other.

use std::sync::Arc;

use crate::common::{Ear, Operator, World, cohort, on_paused_clock};
use btcr2_aggregation_actors::notice::{Notices, ServiceNotice};
use tokio::sync::broadcast::error::RecvError;

/// The notices of a service about a cohort of three on the key path: six once, six for each member.
const NOTICES: u64 = 6 + 3 * 6;

#[test]
fn a_slow_subscriber_delays_no_other_and_counts_its_losses() {
    on_paused_clock(async {
        const ROOM: u64 = 8;
        let mut world = World::new();
        let mut settings = world.service_settings("service", Operator);
        settings.notices = Notices::new(ROOM as usize);
        let mut slow = settings.notices.subscribe();
        let service = settings.start().await;
        world.updaters(3).await;
        let cohort_id = service.open(cohort(3)).await;

        // The members' subscriber waits for the cohort; the service's notices are not read.
        world.members.records(&cohort_id, 3).await;
        crate::common::settle().await;

        let Err(RecvError::Lagged(lost)) = slow.recv().await else { panic!("the loss must be reported first") };
        assert_eq!(lost, NOTICES - ROOM);
        let mut received = Vec::new();
        while let Ok(notice) = slow.try_recv() {
            received.push(notice);
        }
        assert_eq!(received.len() as u64, ROOM, "the newest notices remain");
        assert!(matches!(**received.last().unwrap(), ServiceNotice::SigningComplete { .. }));
    });
}

#[test]
fn all_subscribers_receive_all_notices_in_one_order() {
    on_paused_clock(async {
        let world = World::new();
        let mut service = world.service("service", Operator).await;
        let mut others = [Ear::new(&service.notices), Ear::new(&service.notices)];
        world.updaters(3).await;
        let cohort_id = service.open(cohort(3)).await;
        service.ear.completed(&cohort_id).await;
        let received = service.ear.received();
        assert_eq!(received.len() as u64, NOTICES);
        for other in &mut others {
            let also_received = other.received();
            assert_eq!(also_received.len(), received.len());
            assert!(received.iter().zip(also_received).all(|(one, same)| Arc::ptr_eq(one, same)));
        }
    });
}

#[test]
fn a_service_without_subscribers_works_all_the_same() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut settings = world.service_settings("service", Operator);
        settings.notices = Notices::new(1);
        let service = settings.start().await;
        world.updaters(2).await;
        let cohort_id = service.open(cohort(2)).await;
        world.members.records(&cohort_id, 2).await;
    });
}
