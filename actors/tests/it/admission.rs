//! The number of seats that one DID may have at a time.

use crate::common::{Operator, World, cohort, on_paused_clock, settle};
use btcr2_aggregation_actors::{
    notice::ServiceNotice,
    seats::{SeatLimit, SeatLimits, Seats},
};

#[test]
fn a_did_has_so_many_seats_and_no_more_until_a_cohort_ends() {
    on_paused_clock(async {
        let world = World::new();
        let mut settings = world.service_settings("service", Operator);
        let limit = SeatLimit { cohorts: 2, pending: 1 };
        settings.seats = Seats::new(SeatLimits { did: limit, ..SeatLimits::default() });
        let mut service = settings.start().await;
        world.updaters(1).await;
        let reason = |notice: &ServiceNotice| match notice {
            ServiceNotice::ParticipantRefused { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        // No other member joins: it waits in the first cohort.
        let first = service.open(cohort(2)).await;
        service.ear.event(&first, "participant-accepted").await;
        let second = service.open(cohort(2)).await;
        let refused = service.ear.wait_for(reason).await;
        assert!(refused.contains("this DID has 1 seats in cohorts that have not formed"), "{refused}");
        settle().await;
        assert_eq!(
            service.ear.names(&second),
            ["cohort-advertised", "participant-refused"],
            "nothing is journaled"
        );
        service.cancel(&first, "a test").await;
        service.ear.event(&first, "cohort-failed").await;
        settle().await;
        let third = service.open(cohort(2)).await;
        service.ear.event(&third, "participant-accepted").await;
    });
}
