//! Anybody can advertise a cohort, and end it: what was not joined is nobody's failure, and leads nowhere.

use std::{sync::Arc, time::Duration};

use crate::common::{World, identity, on_paused_clock, pass, peers, settle};
use async_trait::async_trait;
use btcr2_aggregation_actors::policy::{ParticipantPolicy, UpdateRequest};
use btcr2_aggregation_protocol::{
    cohort::participant::Advert,
    id::CohortId,
    identity::Identity,
    message::{Message, SharedBody, control::CohortEnded},
    update::Submission,
};
use tokio::sync::Semaphore;

/// Never makes up its mind about a new cohort, and joins whatever takes the place of one of its own.
struct Undecided;

#[async_trait]
impl ParticipantPolicy for Undecided {
    async fn should_join(&self, _: &Advert) -> bool {
        std::future::pending().await
    }

    async fn provide_update(&self, _: &UpdateRequest) -> Option<Submission> {
        None
    }
}

/// Joins when the gate is open.
struct Later(Arc<Semaphore>);

#[async_trait]
impl ParticipantPolicy for Later {
    async fn should_join(&self, _: &Advert) -> bool {
        let _permit = self.0.acquire().await.unwrap();
        true
    }

    async fn should_rejoin(&self, _: &Advert) -> bool {
        true
    }

    async fn provide_update(&self, _: &UpdateRequest) -> Option<Submission> {
        None
    }
}

fn say(world: &World, from: &Identity, to: &Identity, broadcast: bool, body: SharedBody) {
    let message = Message::new(from.did().clone(), (!broadcast).then(|| to.did().clone()), body);
    world.network.inject(from.did(), to.did(), &message.to_json());
}

fn ended(name: &str, next: Option<&str>) -> SharedBody {
    let parse = |name: &str| CohortId::parse(name).unwrap();
    let body = CohortEnded {
        cohort_id: parse(name),
        code: "UPDATES_MISSING".to_owned(),
        reason: "a trick".to_owned(),
        at_fault: false,
        next_cohort_id: next.map(parse),
        signed: None,
        opt_in: None,
    };
    btcr2_aggregation_protocol::message::Body::from(body).into()
}

#[test]
fn a_strangers_successor_of_a_cohort_that_was_not_joined_is_an_advert_like_any_other() {
    on_paused_clock(async {
        let mut world = World::new();
        let (stranger, member) = (identity("stranger"), identity("member"));
        world.participant(&member, Undecided).await;
        settle().await;
        say(&world, &stranger, &member, true, peers::advert(&stranger, "bait"));
        settle().await;
        say(&world, &stranger, &member, false, ended("bait", Some("trap")));
        say(&world, &stranger, &member, true, peers::advert(&stranger, "trap"));
        settle().await;
        assert_eq!(world.members.count("cohort-discovered"), 2);
        assert_eq!(world.members.count("cohort-joined"), 0, "only the host joins a stranger's cohort");
        assert_eq!(world.members.count("cohort-failed"), 0, "nothing was joined, so nothing has failed");
        // The one is over and left nothing; the other still waits for the host.
        assert_eq!(world.journal.streams().await.unwrap().len(), 1);
        pass(Duration::from_secs(100 * 3600)).await;
        assert_eq!(world.members.count("cohort-failed"), 0, "nor has what nobody has decided in time");
        assert_eq!(world.journal.streams().await.unwrap(), []);
        assert_eq!(world.journal.archived().await.unwrap(), []);
    });
}

#[test]
fn the_successor_of_a_cohort_that_was_joined_is_rejoined_even_if_its_advert_is_next_in_line() {
    on_paused_clock(async {
        let mut world = World::new();
        let (service, member) = (identity("service"), identity("member"));
        let gate = Arc::new(Semaphore::new(1));
        world.participant(&member, Later(gate.clone())).await;
        settle().await;
        say(&world, &service, &member, true, peers::advert(&service, "first"));
        settle().await;
        assert_eq!(world.members.count("cohort-joined"), 1);
        gate.forget_permits(1);
        say(&world, &service, &member, false, ended("first", Some("second")));
        say(&world, &service, &member, true, peers::advert(&service, "second"));
        settle().await;
        assert_eq!(world.members.count("cohort-joined"), 2);
    });
}
