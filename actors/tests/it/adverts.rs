//! Adverts: which participants answer them, and which do not.

use std::time::Duration;

use crate::common::{Decliner, Operator, Updater, World, cohort, identity, key, on_paused_clock, pass, settle};
use async_trait::async_trait;
use btcr2_aggregation_actors::policy::{ParticipantPolicy, UpdateRequest};
use btcr2_aggregation_protocol::{
    cohort::{event::SessionEnd, participant::Advert},
    identity::Identity,
    network::Network,
    update::Submission,
};

const REPEAT: Duration = Duration::from_secs(60);

#[test]
fn a_participant_that_starts_late_joins_by_the_repeated_advert() {
    on_paused_clock(async {
        let world = World::new();
        let mut service = world.service("service", Operator).await;
        let cohort_id = service.open(cohort(2)).await;
        pass(REPEAT + REPEAT / 2).await;
        world.updaters(2).await;
        service.ear.completed(&cohort_id).await;
        let waited = world.elapsed();
        assert!((2 * REPEAT..2 * REPEAT + Duration::from_secs(1)).contains(&waited), "{waited:?}");
    });
}

/// The policy of a host that decides nothing.
struct Undecided;

#[async_trait]
impl ParticipantPolicy for Undecided {
    async fn provide_update(&self, _: &UpdateRequest) -> Option<Submission> {
        panic!("a participant that has not joined is not asked");
    }
}

#[test]
fn a_host_is_asked_once_and_joins_nothing_by_default() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        world.participant(&identity("undecided"), Undecided).await;
        let cohort_id = service.open(cohort(1)).await;
        assert_eq!(service.ear.failed(&cohort_id).await.code(), "ENROLLMENT_EXPIRED");
        assert_eq!(service.ear.names(&cohort_id), ["cohort-advertised", "cohort-failed"]);
        assert_eq!(world.members.names(&cohort_id), ["cohort-discovered"], "60 adverts, one question");
    });
}

/// Joins every cohort of one service, whose advert it receives in time only if other adverts take no session.
struct Loyal(btcr2_aggregation_protocol::did::Did);

#[async_trait]
impl ParticipantPolicy for Loyal {
    fn considers(&self, advert: &Advert) -> bool {
        advert.service == self.0
    }

    async fn should_join(&self, _: &Advert) -> bool {
        true
    }

    async fn provide_update(&self, _: &UpdateRequest) -> Option<Submission> {
        None
    }
}

#[test]
fn adverts_that_were_not_asked_for_take_no_session() {
    on_paused_clock(async {
        let mut world = World::new();
        let outsiders = world.service("outsider", Operator).await;
        let mut service = world.service("service", Operator).await;
        let member = identity("loyal");
        let mut settings = world.participant_settings(&member, Loyal(service.did().clone()));
        settings.max_sessions = 1;
        let _participant = settings.start().await;
        for _ in 0..100 {
            outsiders.open(cohort(1)).await;
        }
        settle().await;
        assert!(world.members.received().is_empty(), "nothing is started, or written, for them");
        let cohort_id = service.open(cohort(1)).await;
        service.ear.completed(&cohort_id).await;
        assert_eq!(world.elapsed(), Duration::ZERO);
    });
}

#[test]
fn an_advert_of_another_network_is_passed_over() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        let elsewhere = Identity::from_key(key("elsewhere"), Network::Signet);
        world.participant(&elsewhere, Updater(elsewhere.clone())).await;
        let member = identity("member");
        world.participant(&member, Updater(member.clone())).await;
        let cohort_id = service.open(cohort(1)).await;
        service.ear.completed(&cohort_id).await;
        settle().await;
        let dids: Vec<_> =
            world.members.received().iter().map(|n| serde_json::to_value(&**n).unwrap()["did"].clone()).collect();
        assert!(!dids.is_empty() && dids.iter().all(|did| *did == member.did().as_str()), "{dids:?}");
    });
}

#[test]
fn a_participant_at_its_most_sessions_passes_adverts_over_until_there_is_room() {
    on_paused_clock(async {
        let mut world = World::new();
        let service = world.service("service", Operator).await;
        let member = identity("busy");
        let mut settings = world.participant_settings(&member, Decliner);
        settings.max_sessions = 1;
        let participant = settings.start().await;
        // Two members are required, and there is one: the first session lasts.
        let first = service.open(cohort(2)).await;
        world.members.event(member.did(), &first, "opt-in-accepted").await;
        let second = service.open(cohort(2)).await;
        pass(REPEAT * 2 + REPEAT / 2).await;
        assert!(world.members.names(&second).is_empty());

        participant.membership(service.did(), &first).leave().await;
        assert_eq!(world.members.failed(member.did(), &first).await, SessionEnd::Left);
        world.members.event(member.did(), &second, "opt-in-accepted").await;
        let waited = world.elapsed();
        assert!((REPEAT * 3..REPEAT * 3 + Duration::from_secs(1)).contains(&waited), "{waited:?}");
    });
}

#[test]
fn a_repeated_advert_of_a_cohort_that_was_left_does_not_start_it_again() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        let member = identity("leaver");
        let participant = world.participant(&member, Decliner).await;
        let cohort_id = service.open(cohort(2)).await;
        world.members.event(member.did(), &cohort_id, "opt-in-accepted").await;
        participant.membership(service.did(), &cohort_id).leave().await;
        world.members.failed(member.did(), &cohort_id).await;
        let before = world.members.names(&cohort_id);
        service.ear.failed(&cohort_id).await;
        assert!(world.elapsed() > REPEAT * 10, "the advert was repeated many times");
        assert_eq!(world.members.names(&cohort_id), before);
    });
}
