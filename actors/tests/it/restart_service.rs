//! A service that is killed at any point, and started again on the same journal: its cohort completes, and its members
//! only observe the pause.

use std::{sync::Arc, time::Duration};

use crate::common::{
    Updater, World, cohort, external_identity, identity, on_paused_clock, pass,
    process::{Process, service_of},
    tap::{Tap, no_signatures},
};
use btcr2_aggregation_actors::{notice::ServiceNotice, service::OpenCohort, state::State};
use btcr2_aggregation_protocol::{
    cohort::event::{CohortFailure, SpendPath},
    did::Did,
};
use tempfile::TempDir;

const MEMBERS: usize = 3;

/// Two ordinary members and one with an EXTERNAL DID.
async fn members(world: &World) -> Vec<Did> {
    let external = external_identity("external");
    world.participant(&external, Updater(external.clone())).await;
    let mut members: Vec<_> = world.updaters(MEMBERS - 1).await.iter().map(|member| member.did().clone()).collect();
    members.push(external.did().clone());
    members
}

/// Runs a round whose service is killed at its notice number `kill_at`, counted from 1, and started again `down` later.
/// `false` if the round has no such notice.
async fn killed_at(world: &mut World, open: &OpenCohort, kill_at: usize, down: Duration, path: SpendPath) -> bool {
    let (process, mut service) = service_of(world).await;
    let cohort_id = process.run(service.open(open.clone())).await;
    let mut received = 0;
    let stopped = process
        .run(service.ear.wait_for(|notice| {
            received += 1;
            let over = matches!(notice, ServiceNotice::SigningComplete { .. });
            (received == kill_at || over).then_some(received == kill_at)
        }))
        .await;
    // Like the end of a process: in the middle of its work.
    drop(process);
    if !stopped {
        return false;
    }
    pass(down).await;
    let (process, mut service) = service_of(world).await;
    let result = process.run(service.ear.completed(&cohort_id)).await;
    assert_eq!(result.signed.path, path, "killed at notice {kill_at}");
    let records = process.run(world.members.records(&cohort_id, MEMBERS)).await;
    records.values().for_each(|record| world.assert_proves_slot(record, &result));
    assert_eq!(world.members.rejections(), [], "killed at notice {kill_at}");
    assert_eq!(world.members.count("nonce-lost"), 0);
    true
}

/// The number of kills.
fn at_every_notice(open: impl Fn() -> OpenCohort, down: Duration, silent: bool) -> usize {
    (1..)
        .find(|kill_at| {
            let open = open();
            !on_paused_clock(async {
                let mut world = World::new();
                if silent {
                    // It sends its nonce and no signature, so that the other members have to fall back.
                    let last = identity("silent");
                    let lossy = Tap::losing(&world.network, no_signatures);
                    world.participant_on(&last, Updater(last.clone()), lossy).await;
                    world.updaters(MEMBERS - 1).await;
                } else {
                    members(&world).await;
                }
                let path = if silent { SpendPath::ScriptPath } else { SpendPath::KeyPath };
                killed_at(&mut world, &open, *kill_at, down, path).await
            })
        })
        .unwrap()
        - 1
}

#[test]
fn a_service_killed_at_any_notice_completes_its_cohort_after_a_restart() {
    let kills = at_every_notice(|| cohort(3), Duration::ZERO, false);
    // The advert, the address, the data and the request; and for each member the opt-in, admission, update, verdict,
    // nonce, and all but the last partial signature, which completes the round.
    assert!(kills >= 4 + 5 * MEMBERS + MEMBERS - 1, "only {kills} kills");
    println!("killed at {kills} notices");
}

#[test]
fn a_service_killed_at_any_notice_and_down_for_a_while_completes_its_cohort() {
    let kills = at_every_notice(|| cohort(3), Duration::from_secs(300), false);
    assert!(kills >= 4 + 5 * MEMBERS + MEMBERS - 1, "only {kills} kills");
}

#[test]
fn a_service_killed_at_any_notice_of_a_fallback_completes_its_cohort() {
    let kills = at_every_notice(
        || {
            let mut open = cohort(3);
            open.conditions.script_tree = match open.conditions.script_tree {
                btcr2_aggregation_protocol::output::ScriptTree::FallbackAndRecovery {
                    recovery_key,
                    recovery_sequence,
                    ..
                } => btcr2_aggregation_protocol::output::ScriptTree::FallbackAndRecovery {
                    recovery_key,
                    recovery_sequence,
                    fallback_threshold: Some(2),
                },
                other => other,
            };
            open
        },
        Duration::ZERO,
        true,
    );
    assert!(kills > 4 + 5 * MEMBERS, "only {kills} kills");
}

#[test]
fn deadlines_are_absolute_and_one_that_passed_while_the_service_was_down_acts_at_once() {
    on_paused_clock(async {
        for (down, left) in [(600, 3000), (7200, 0)] {
            let mut world = World::new();
            // Two of three members: enrollment cannot end before its deadline.
            world.updaters(2).await;
            let (process, mut service) = service_of(&world).await;
            let cohort_id = process.run(service.open(cohort(3))).await;
            process
                .run(
                    service.ear.wait_for(|notice| {
                        matches!(notice, ServiceNotice::ParticipantAccepted { .. }).then_some(())
                    }),
                )
                .await;
            drop(process);
            pass(Duration::from_secs(down)).await;
            let (process, mut service) = service_of(&world).await;
            let before = world.elapsed();
            let failure = process.run(service.ear.failed(&cohort_id)).await;
            assert!(matches!(failure, CohortFailure::EnrollmentExpired { .. }), "{failure}");
            let waited = (world.elapsed() - before).as_secs();
            assert!((left..=left + 1).contains(&waited), "waited {waited} s after {down} s down");
            process
                .run(world.members.wait_for(|notice| {
                    let json = serde_json::to_value(notice).unwrap();
                    (json["event"] == "cohort-failed").then_some(())
                }))
                .await;
        }
    });
}

#[test]
fn the_end_is_delivered_at_each_restart_until_acknowledged() {
    on_paused_clock(async {
        let mut world = World::new();
        members(&world).await;
        let (process, mut service) = service_of(&world).await;
        let cohort_id = process.run(service.open(cohort(3))).await;
        process.run(service.ear.completed(&cohort_id)).await;
        drop(process);
        for archive in [false, true] {
            let (process, mut service) = service_of(&world).await;
            let result = process.run(service.ear.completed(&cohort_id)).await;
            let key = service.identity.public_key().x_only();
            assert!(result.transcript.verify(cohort_id.as_str().as_bytes(), &key));
            assert_eq!(result.transcript.head.size, 1 + 3 * 10, "the transcript is whole again");
            if archive {
                process.run(service.acknowledge_end(&cohort_id)).await;
                process.run(crate::common::settle()).await;
            }
        }
        world.members.records(&cohort_id, 3).await;
        let (process, mut service) = service_of(&world).await;
        process.run(crate::common::settle()).await;
        assert_eq!(service.ear.names(&cohort_id), Vec::<String>::new());
        assert_eq!(process.run(service.live()).await, []);
        let archived = world.journal.archived().await.unwrap();
        assert_eq!(archived.len(), 2, "the cohort and its session: {archived:?}");
    });
}

#[test]
fn a_service_killed_at_any_notice_goes_on_from_its_state_directory() {
    // The clock runs: it would jump while all actors wait for the disk.
    actix_rt::System::new().block_on(async {
        // One member's round has few notices, and each is a killed process and a directory that is opened again.
        for kill_at in 1.. {
            let dir = TempDir::new().unwrap();
            let mut world = World::new();
            world.updaters(1).await;
            let open_state = |world: &mut World| {
                let state = State::open(dir.path()).unwrap();
                let on_disk: Arc<dyn btcr2_aggregation_actors::journal::Journal> = Arc::new(state.journal());
                let mut settings = world.service_settings("service", crate::common::Operator);
                settings.journal = on_disk;
                (state, settings)
            };
            let (state, settings) = open_state(&mut world);
            let process = Process::new();
            let mut service = process.service(settings).await;
            let cohort_id = process.run(service.open(cohort(1))).await;
            let mut received = 0;
            let stopped = process
                .run(service.ear.wait_for(|notice| {
                    received += 1;
                    let over = matches!(notice, ServiceNotice::SigningComplete { .. });
                    (received == kill_at || over).then_some(received == kill_at)
                }))
                .await;
            drop(process);
            state.close().await;
            if !stopped {
                assert!(kill_at > 9, "only {kill_at} notices");
                break;
            }
            let (state, settings) = open_state(&mut world);
            let process = Process::new();
            let mut service = process.service(settings).await;
            let completed = process.run(service.ear.completed(&cohort_id));
            let result = tokio::time::timeout(Duration::from_secs(120), completed).await.expect("it continues");
            let records = process.run(world.members.records(&cohort_id, 1)).await;
            records.values().for_each(|record| world.assert_proves_slot(record, &result));
            drop(process);
            state.close().await;
        }
    });
}
