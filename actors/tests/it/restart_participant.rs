//! A member that is killed at any point, and started again on the same journal.

use std::{sync::Arc, time::Duration};

use btcr2_aggregation_actors::{
    journal::{Journal, StreamId},
    notice::ParticipantNotice,
    policy::{ParticipantPolicy, UpdateRequest},
};
use btcr2_aggregation_protocol::{cohort::event::SpendPath, identity::Identity, update::Submission};

use crate::common::{
    Ear, Operator, Updater, World, acknowledge, cohort, identity, on_paused_clock, pass,
    process::{Process, member_of},
    rigged::{Act, Rigged},
    settle,
};

const MEMBERS: usize = 3;

struct Seen {
    path: SpendPath,
    nonce_lost: bool,
}

/// Runs a round in which one member is killed at its notice number `kill_at`, counted from 1, and started again. `None`
/// if it has no such notice.
async fn killed_at(world: &mut World, victim: &Identity, kill_at: usize) -> Option<Seen> {
    let mut service = world.service("service", Operator).await;
    world.updaters(MEMBERS - 1).await;
    let process = member_of(world, victim).await;
    let cohort_id = service.open(cohort(MEMBERS as u32)).await;
    let mut received = 0;
    let stopped = process
        .run(world.members.wait_for(|notice| {
            let json = serde_json::to_value(notice).unwrap();
            received += usize::from(json["did"] == victim.did().as_str());
            (received == kill_at || json["event"] == "cohort-over").then_some(received == kill_at)
        }))
        .await;
    drop(process);
    if !stopped {
        return None;
    }
    world.members = Ear::new(&world.member_notices);
    let process = member_of(world, victim).await;
    let result = process.run(service.ear.completed(&cohort_id)).await;
    // It has stored the round, whatever happened to its nonce, and publishes that again: the host has not acknowledged
    // it.
    let record = process
        .run(world.members.wait_for(|notice| match notice {
            ParticipantNotice::SignatureSent { did, record, .. } if did == victim.did() => Some(record.clone()),
            _ => None,
        }))
        .await;
    world.assert_proves_slot(&record, &result);
    process.run(settle()).await;
    assert_eq!(service.ear.rejections(), [], "killed at notice {kill_at}");
    Some(Seen { path: result.signed.path, nonce_lost: world.members.count("nonce-lost") > 0 })
}

#[test]
fn a_member_killed_at_any_notice_completes_by_the_key_path_or_the_fallback() {
    let victim = identity("victim");
    let mut seen = Vec::new();
    for kill_at in 1.. {
        let killed = on_paused_clock(async {
            let mut world = World::new();
            killed_at(&mut world, &victim, kill_at).await
        });
        let Some(killed) = killed else { break };
        // A nonce that was sent is lost with the process: that is reported, and the key path is not signed.
        assert_eq!(killed.nonce_lost, killed.path == SpendPath::ScriptPath, "killed at notice {kill_at}");
        seen.push(killed);
    }
    // Discovered, joined, accepted, ready, submitted, validation, signing, nonce, complete.
    assert!(seen.len() >= 9, "only {} kills", seen.len());
    assert!(
        seen.iter().any(|seen| seen.path == SpendPath::ScriptPath),
        "no kill came between the nonce and its use"
    );
    assert!(seen.iter().filter(|seen| seen.path == SpendPath::KeyPath).count() >= 6);
    println!("killed at {} notices", seen.len());
}

#[test]
fn records_are_delivered_at_each_restart_until_acknowledged() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        let member = identity("member");
        let process = member_of(&world, &member).await;
        let cohort_id = service.open(cohort(1)).await;
        process.run(service.ear.completed(&cohort_id)).await;
        process.run(world.members.event(member.did(), &cohort_id, "cohort-over")).await;
        drop(process);
        for archive in [false, true] {
            world.members = Ear::new(&world.member_notices);
            let participant = world.participant(&member, Updater(member.clone())).await;
            settle().await;
            let names = world.members.names(&cohort_id);
            assert_eq!(
                names,
                ["session-recovered", "data-approved", "signature-sent", "cohort-complete", "cohort-over"]
            );
            if archive {
                let mut events = participant.events();
                acknowledge(&mut events, |notice| matches!(notice, ParticipantNotice::CohortOver { .. })).await;
            }
            participant.stop().await;
        }
        world.members = Ear::new(&world.member_notices);
        let _process = member_of(&world, &member).await;
        pass(Duration::from_secs(300)).await;
        assert_eq!(world.members.names(&cohort_id), Vec::<String>::new());
    });
}

/// Joins no cohort.
struct Shy;

#[async_trait::async_trait]
impl ParticipantPolicy for Shy {
    async fn provide_update(&self, _: &UpdateRequest) -> Option<Submission> {
        None
    }
}

#[test]
fn a_member_stores_nothing_of_cohorts_it_does_not_join() {
    on_paused_clock(async {
        let mut world = World::new();
        let service = world.service("service", Operator).await;
        world.participant(&identity("shy"), Shy).await;
        for _ in 0..20 {
            service.open(cohort(1)).await;
        }
        pass(Duration::from_secs(200)).await;
        assert_eq!(world.members.count("cohort-discovered"), 20, "each is asked about once");
        let streams = world.journal.streams().await.unwrap();
        let of_member = |stream: &&StreamId| !stream.as_str().starts_with("cohort/");
        let kept: Vec<_> = streams.iter().filter(of_member).collect();
        assert!(kept.is_empty(), "{kept:?}");
    });
}

#[test]
fn what_it_was_about_to_forget_when_it_was_killed_is_forgotten_at_the_start() {
    on_paused_clock(async {
        let mut world = World::new();
        let service = world.service("service", Operator).await;
        let cohort_id = service.open(cohort(1)).await;
        let journal = Rigged::new(|_, _| Act::Pass);
        for remembers in [true, false] {
            journal.remember(remembers);
            world.members = Ear::new(&world.member_notices);
            let process = Process::new();
            let mut settings = world.participant_settings(&identity("shy"), Shy);
            settings.journal = Arc::new(journal.clone());
            process.participant(settings).await;
            process.run(pass(Duration::from_secs(100))).await;
            // The host is asked again about an advert that is repeated; nothing is published about a cohort that was
            // never joined.
            assert_eq!(world.members.names(&cohort_id), ["cohort-discovered"]);
            assert_eq!(journal.streams().await.unwrap().len(), usize::from(remembers));
        }
    });
}
