//! The counts of a service's messages: those of a round, and those that wait for an actor.

use std::{sync::Arc, time::Duration};

use crate::common::{Operator, World, cohort, on_paused_clock, pass, rigged::Rigged, settle};
use btcr2_aggregation_actors::load::Load;

#[test]
fn each_message_of_a_round_is_counted_once() {
    on_paused_clock(async {
        let mut world = World::new();
        let load = Load::default();
        let mut settings = world.service_settings("service", Operator);
        settings.load = load.clone();
        let mut service = settings.start().await;
        world.updaters(3).await;
        let cohort_id = service.open(cohort(3)).await;
        service.ear.completed(&cohort_id).await;
        world.members.records(&cohort_id, 3).await;
        settle().await;
        let received = [
            ("keygen/cohort_opt_in", 3),
            ("sign/nonce_contribution", 3),
            ("sign/signature_authorization", 3),
            ("update/submit_update", 3),
            ("update/validation_ack", 3),
        ];
        assert_eq!(load.received(), received.into());
        let sent = load.sent();
        for kind in [
            "keygen/cohort_opt_in_accept",
            "keygen/cohort_ready",
            "update/distribute_aggregated_data",
            "sign/authorization_request",
            "sign/aggregated_nonce",
        ] {
            assert_eq!(sent.get(kind), Some(&3), "{kind} of {sent:?}");
        }
        assert_eq!(sent.get("keygen/cohort_advert"), Some(&1), "an advert is sent to all at once");
        assert_eq!((load.waiting_for_cohorts(), load.waiting_for_sessions()), (0, 0));
    });
}

#[test]
fn what_comes_while_a_cohort_is_brought_back_waits() {
    on_paused_clock(async {
        let mut world = World::new();
        let load = Load::default();
        let (journal, left) = Rigged::panicking("cohort/", "OptInReceived", 5, false);
        let mut settings = world.service_settings("service", Operator);
        (settings.load, settings.journal) = (load.clone(), Arc::new(journal));
        let mut service = settings.start().await;
        let cohort_id = service.open(cohort(3)).await;
        world.updaters(3).await;
        let mut waited = 0;
        while *left.lock().expect("no code panics with the lock") > 0 {
            pass(Duration::from_millis(1)).await;
            waited = waited.max(load.waiting_for_cohorts());
        }
        assert!((1..=3).contains(&waited), "{waited} of three waited");
        service.ear.completed(&cohort_id).await;
        world.members.records(&cohort_id, 3).await;
        settle().await;
        assert_eq!((load.waiting_for_cohorts(), load.waiting_for_sessions()), (0, 0));
    });
}
