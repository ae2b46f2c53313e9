//! Subscribers: each hears everything, and one that does not listen holds back nobody.

use std::sync::Arc;

use crate::common::{Ear, Operator, World, cohort, on_paused_clock};
use btcr2_aggregation_actors::notice::{Notices, ServiceNotice};
use tokio::sync::broadcast::error::RecvError;

/// What a service says of a cohort of three on the key path: six notices once, six for each member.
const NOTICES: u64 = 6 + 3 * 6;

#[test]
fn a_subscriber_that_never_reads_holds_back_nobody_and_learns_how_much_it_lost() {
    on_paused_clock(async {
        const ROOM: u64 = 8;
        let mut world = World::new();
        let mut settings = world.service_settings("service", Operator);
        settings.notices = Notices::new(ROOM as usize);
        let mut slow = settings.notices.subscribe();
        let service = world.service_with(settings).await;
        world.updaters(3).await;
        let cohort_id = service.open(cohort(3)).await;

        // The members' subscriber sees the cohort through; nobody reads the service's notices.
        world.members.records(&cohort_id, 3).await;
        crate::common::settle().await;

        let Err(RecvError::Lagged(lost)) = slow.recv().await else { panic!("the loss is to be told first") };
        assert_eq!(lost, NOTICES - ROOM);
        let mut kept = Vec::new();
        while let Ok(notice) = slow.try_recv() {
            kept.push(notice);
        }
        assert_eq!(kept.len() as u64, ROOM, "the newest notices are kept");
        assert!(matches!(**kept.last().unwrap(), ServiceNotice::SigningComplete { .. }));
    });
}

#[test]
fn several_subscribers_each_hear_everything_in_one_order() {
    on_paused_clock(async {
        let world = World::new();
        let mut service = world.service("service", Operator).await;
        let mut others = [Ear::new(&service.notices), Ear::new(&service.notices)];
        world.updaters(3).await;
        let cohort_id = service.open(cohort(3)).await;
        service.ear.completed(&cohort_id).await;
        let heard = service.ear.heard();
        assert_eq!(heard.len() as u64, NOTICES);
        for other in &mut others {
            let also_heard = other.heard();
            assert_eq!(also_heard.len(), heard.len());
            assert!(heard.iter().zip(also_heard).all(|(one, same)| Arc::ptr_eq(one, same)));
        }
    });
}

#[test]
fn a_service_without_subscribers_works_all_the_same() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut settings = world.service_settings("service", Operator);
        settings.notices = Notices::new(1);
        let service =
            world.supervisor.send(btcr2_aggregation_actors::supervisor::StartService(settings)).await.unwrap();
        world.updaters(2).await;
        let cohort_id = service.send(cohort(2)).await.unwrap().unwrap();
        world.members.records(&cohort_id, 2).await;
    });
}
