//! Any peer can advertise a cohort, and end it: a cohort that was not joined is not reported as failed, and has no
//! successors.

use std::{sync::Arc, time::Duration};

use crate::common::{Ear, World, identity, on_paused_clock, pass, peers, process::Process, settle};
use async_trait::async_trait;
use btcr2_aggregation_actors::{
    journal::{Record, StreamId},
    notice::ParticipantNotice,
    policy::{ParticipantPolicy, UpdateRequest},
};
use btcr2_aggregation_protocol::{
    cohort::participant::{
        Advert,
        membership::{CohortKey, MembershipEvent, WithoutCohort},
    },
    id::CohortId,
    identity::Identity,
    message::{Message, SharedBody, control::CohortEnded},
    time::Timestamp,
    update::Submission,
};
use tokio::sync::Semaphore;

/// Never decides about a new cohort, and joins every cohort that replaces one of its own.
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

fn send(world: &World, from: &Identity, to: &Identity, broadcast: bool, body: SharedBody) {
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
fn an_outsiders_successor_is_an_advert_like_any_other() {
    on_paused_clock(async {
        let mut world = World::new();
        let (outsider, member) = (identity("outsider"), identity("member"));
        world.participant(&member, Undecided).await;
        settle().await;
        send(&world, &outsider, &member, true, peers::advert(&outsider, "bait"));
        settle().await;
        send(&world, &outsider, &member, false, ended("bait", Some("trap")));
        send(&world, &outsider, &member, true, peers::advert(&outsider, "trap"));
        settle().await;
        assert_eq!(world.members.count("cohort-discovered"), 2);
        assert_eq!(world.members.count("cohort-joined"), 0, "only the host joins an unknown service's cohort");
        assert_eq!(world.members.count("cohort-failed"), 0, "nothing was joined, so nothing has failed");
        // The first has ended and left nothing; the second still waits for the host.
        assert_eq!(world.journal.streams().await.unwrap().len(), 1);
        pass(Duration::from_secs(100 * 3600)).await;
        assert_eq!(world.members.count("cohort-failed"), 0, "nor has a cohort that was not decided in time");
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
        send(&world, &service, &member, true, peers::advert(&service, "first"));
        settle().await;
        assert_eq!(world.members.count("cohort-joined"), 1);
        gate.forget_permits(1);
        send(&world, &service, &member, false, ended("first", Some("second")));
        send(&world, &service, &member, true, peers::advert(&service, "second"));
        settle().await;
        assert_eq!(world.members.count("cohort-joined"), 2);
    });
}

/// A member that was in `first`, which has ended with a successor, in a process of its own.
async fn with_ended_cohort(world: &World, service: &Identity, member: &Identity, gate: &Arc<Semaphore>) -> Process {
    let process = Process::new();
    process.participant(world.participant_settings(member, Later(Arc::clone(gate)))).await;
    process.run(settle()).await;
    send(world, service, member, true, peers::advert(service, "first"));
    process.run(settle()).await;
    gate.forget_permits(1);
    send(world, service, member, false, ended("first", Some("second")));
    process.run(settle()).await;
    process
}

#[test]
fn a_successor_is_rejoined_after_a_restart() {
    on_paused_clock(async {
        let mut world = World::new();
        let (service, member) = (identity("service"), identity("member"));
        let gate = Arc::new(Semaphore::new(1));
        drop(with_ended_cohort(&world, &service, &member, &gate).await);
        assert_eq!(world.members.count("cohort-joined"), 1);
        // Its host has stored the end.
        let session = StreamId::new(format!("participant/{}/{}/first", member.did(), service.did()));
        world.journal.archive(&session, Timestamp::from_secs(1)).await.unwrap();
        world.members = Ear::new(&world.member_notices);
        let process = Process::new();
        process.participant(world.participant_settings(&member, Later(gate))).await;
        process.run(settle()).await;
        for name in ["first", "second"] {
            send(&world, &service, &member, true, peers::advert(&service, name));
        }
        process.run(settle()).await;
        assert_eq!(world.members.names(&CohortId::parse("first").unwrap()), Vec::<String>::new());
        assert_eq!(world.members.count("cohort-joined"), 1, "the host is not asked about a successor");
    });
}

#[test]
fn a_member_whose_successor_does_not_come_is_left_without_a_cohort() {
    on_paused_clock(async {
        let mut world = World::new();
        let (service, member) = (identity("service"), identity("member"));
        let gate = Arc::new(Semaphore::new(1));
        let process = with_ended_cohort(&world, &service, &member, &gate).await;
        assert_eq!(world.members.count("cohort-failed"), 1);
        assert_eq!(world.members.count("without-cohort"), 0, "it waits");
        process.run(pass(Duration::from_secs(100 * 3600))).await;
        let left: Vec<_> = world
            .members
            .received()
            .iter()
            .filter_map(|notice| match &**notice {
                ParticipantNotice::WithoutCohort { cohort_id, cause, .. } => Some((cohort_id.to_string(), *cause)),
                _ => None,
            })
            .collect();
        assert_eq!(left, [("second".to_owned(), WithoutCohort::SuccessorMissed)]);
    });
}

#[test]
fn a_journal_of_memberships_that_has_grown_is_compacted() {
    on_paused_clock(async {
        let mut world = World::new();
        let (service, member) = (identity("service"), identity("member"));
        let stream = StreamId::of_memberships(member.did());
        let cohort = CohortKey { service: service.did().clone(), cohort_id: CohortId::parse("first").unwrap() };
        let (at, successor) = (Timestamp::from_secs(1), None);
        let record = Record::new(MembershipEvent::CohortEnded { at, cohort: cohort.clone(), successor });
        world.journal.append(&stream, vec![record; 600]).await.unwrap();
        let participant = world.participant(&member, Undecided).await;
        // Answered when the journal is read, which takes place on another thread.
        participant.membership(&cohort.service, &cohort.cohort_id).leave().await;
        settle().await;
        let records = world.journal.read(&stream).await.unwrap();
        let [record] = &records[..] else { panic!("{} records", records.len()) };
        let MembershipEvent::Compacted(facts) = record.event().unwrap() else { panic!("{record:?}") };
        assert!(facts.has_ended(&cohort));
        // What was ended is not joined again.
        send(&world, &service, &member, true, peers::advert(&service, "first"));
        settle().await;
        assert_eq!(world.members.names(&cohort.cohort_id), Vec::<String>::new());
    });
}

#[test]
fn a_damaged_journal_of_memberships_is_written_again() {
    on_paused_clock(async {
        let mut world = World::new();
        let (service, member) = (identity("service"), identity("member"));
        let gate = Arc::new(Semaphore::new(1));
        let process = Process::new();
        process.participant(world.participant_settings(&member, Later(Arc::clone(&gate)))).await;
        process.run(settle()).await;
        send(&world, &service, &member, true, peers::advert(&service, "first"));
        process.run(settle()).await;
        drop(process);
        let stream = StreamId::of_memberships(member.did());
        world.journal.append(&stream, vec![Record::from_json(b"{}".to_vec())]).await.unwrap();
        let process = Process::new();
        process.participant(world.participant_settings(&member, Later(gate))).await;
        process.run(settle()).await;
        assert_eq!(world.members.count("session-recovered"), 1);
        let records = world.journal.read(&stream).await.unwrap();
        let [record] = &records[..] else { panic!("{records:?}") };
        assert!(matches!(record.event().unwrap(), MembershipEvent::CohortJoined { .. }), "{record:?}");
    });
}
