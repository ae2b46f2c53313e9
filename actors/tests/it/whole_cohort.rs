//! Whole cohorts over the network in memory, observed through the notices of both roles and the resulting state.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::common::{
    Decliner, Operator, Service, Updater, World, cohort, external_identity, identity, on_paused_clock, pass,
    replay::assert_replays,
    tap::{Tap, no_signatures},
};
use btcr2_aggregation_actors::{
    notice::{CohortResult, ServiceNotice},
    service::OpenCohort,
};
use btcr2_aggregation_protocol::{
    beacon::BeaconType, cohort::event::SpendPath, did::Did, id::CohortId, identity::Identity, sidecar::MemberRecord,
};

/// Longer than a member waits for a fallback request.
const UNTIL_MEMBERS_ARE_DONE: Duration = Duration::from_secs(24 * 3600);

/// Three members: one with a KEY DID, one with an EXTERNAL DID, one that declines.
async fn mixed_members(world: &World) -> Vec<Identity> {
    let members = vec![identity("key"), external_identity("external"), identity("decliner")];
    world.participant(&members[0], Updater(members[0].clone())).await;
    world.participant(&members[1], Updater(members[1].clone())).await;
    world.participant(&members[2], Decliner).await;
    members
}

struct Round {
    cohort_id: CohortId,
    result: Arc<CohortResult>,
    records: BTreeMap<Did, Arc<MemberRecord>>,
}

async fn complete(world: &mut World, service: &mut Service, open: &OpenCohort, members: usize) -> Round {
    let cohort_id = service.open(open.clone()).await;
    let result = service.ear.completed(&cohort_id).await;
    let records = world.members.records(&cohort_id, members).await;
    Round { cohort_id, result, records }
}

fn assert_in_order(names: &[String], expected: &[&str]) {
    let mut rest = names.iter();
    for step in expected {
        assert!(rest.any(|name| name == step), "{step} is missing, or too early, in {names:#?}");
    }
}

fn assert_whole_round(beacon_type: BeaconType) {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        let members = mixed_members(&world).await;
        let mut open = cohort(3);
        open.conditions.beacon_type = beacon_type;

        let round = complete(&mut world, &mut service, &open, 3).await;

        assert_eq!(world.elapsed(), Duration::ZERO, "no actor waited for a timer");
        assert_eq!(round.result.signed.path, SpendPath::KeyPath);
        for (member, included) in members.iter().zip([true, true, false]) {
            let record = &round.records[member.did()];
            assert_eq!(record.included(), included);
            world.assert_proves_slot(record, &round.result);
        }
        let context = round.cohort_id.as_str().as_bytes();
        let service_key = service.identity.public_key().x_only();
        assert!(round.result.transcript.verify(context, &service_key));
        assert!(!round.result.transcript.verify(b"another cohort", &service_key));
        // The advert, and for each member: opt-in, acceptance, ready, update, data, verdict, request, nonce, aggregate
        // nonce, partial signature.
        assert_eq!(round.result.transcript.head.size, 1 + 3 * 10);
        let messages = &round.result.messages;
        for (index, digest) in messages.digests().iter().enumerate() {
            let proof = messages.prove(index).expect("every message has its proof");
            assert!(proof.verify(&round.result.transcript.head, digest), "message {index}");
        }

        let names = service.ear.names(&round.cohort_id);
        let every = [
            "cohort-advertised",
            "keygen-complete",
            "data-distributed",
            "validation-complete",
            "signing-started",
            "signing-complete",
        ];
        let each = [
            "opt-in-received",
            "participant-accepted",
            "update-received",
            "validation-received",
            "nonce-received",
            "partial-signature-received",
        ];
        let times = |expected: &str| names.iter().filter(|name| *name == expected).count();
        assert!(every.iter().all(|name| times(name) == 1), "{names:#?}");
        assert!(each.iter().all(|name| times(name) == 3), "{names:#?}");
        assert_eq!(names.len(), every.len() + 3 * each.len(), "{names:#?}");
        assert_in_order(
            &names,
            &[
                "cohort-advertised",
                "opt-in-received",
                "participant-accepted",
                "keygen-complete",
                "update-received",
                "data-distributed",
                "validation-received",
                "validation-complete",
                "signing-started",
                "nonce-received",
                "partial-signature-received",
                "signing-complete",
            ],
        );

        for (member, expected) in members.iter().zip([true, true, false]) {
            let reported = service.ear.wait_for(|notice| match notice {
                ServiceNotice::UpdateReceived { participant, included, .. } if participant == member.did() => {
                    Some(*included)
                }
                _ => None,
            });
            assert_eq!(reported.await, expected);
        }

        pass(UNTIL_MEMBERS_ARE_DONE).await;
        for (member, submitted) in members.iter().zip(["update-submitted", "update-submitted", "update-declined"]) {
            let received = world.members.received().to_vec();
            let own = received.iter().map(|notice| serde_json::to_value(&**notice).expect("notices serialize"));
            let own = own.filter(|notice| notice["did"] == member.did().as_str());
            let names: Vec<String> =
                own.map(|notice| notice["event"].as_str().expect("an event").to_owned()).collect();
            let expected = [
                "cohort-discovered",
                "cohort-joined",
                "opt-in-accepted",
                "cohort-ready",
                submitted,
                "validation-requested",
                "data-approved",
                "signing-requested",
                "nonce-sent",
                "signature-sent",
                "cohort-complete",
                "cohort-over",
            ];
            assert_eq!(names, expected);
        }

        let Round { cohort_id, result, records } = &round;
        assert_replays(&world, &service, &open, cohort_id, result, &members, records).await;
        assert!(service.live().await.is_empty());
    });
}

#[test]
fn a_cas_cohort_with_a_decliner_and_an_external_did_completes_and_replays() {
    assert_whole_round(BeaconType::cas());
}

#[test]
fn an_smt_cohort_with_a_decliner_and_an_external_did_completes_and_replays() {
    assert_whole_round(BeaconType::smt());
}

#[test]
fn a_cohort_of_one_completes() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        world.updaters(1).await;
        let round = complete(&mut world, &mut service, &cohort(1), 1).await;
        assert_eq!(round.result.signed.path, SpendPath::KeyPath);
    });
}

#[test]
fn the_clock_stands_still_during_work_on_other_threads() {
    on_paused_clock(async {
        // From 32 members on, the machines report their work as heavy.
        const MEMBERS: usize = 33;
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        world.updaters(MEMBERS).await;
        let round = complete(&mut world, &mut service, &cohort(MEMBERS as u32), MEMBERS).await;
        for record in round.records.values() {
            world.assert_proves_slot(record, &round.result);
        }
        assert_eq!(world.elapsed(), Duration::ZERO, "the clock advanced during the work");
    });
}

#[test]
fn a_member_without_signatures_leads_to_the_fallback_that_names_it() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        let mut members = world.updaters(3).await;
        let silent = identity("silent");
        world.participant_on(&silent, Updater(silent.clone()), Tap::losing(&world.network, no_signatures)).await;
        members.push(silent.clone());
        let open = cohort(4);

        let round = complete(&mut world, &mut service, &open, 4).await;

        let signed = &round.result.signed;
        assert_eq!(signed.path, SpendPath::ScriptPath);
        assert_eq!(signed.holdouts, [silent.did().clone()]);
        assert!(!signed.signers.contains(silent.did()));
        assert_eq!(signed.signers.len(), 3);
        let named = service.ear.wait_for(|notice| match notice {
            ServiceNotice::FallbackStarted { holdouts, .. } => Some(holdouts.clone()),
            _ => None,
        });
        assert_eq!(named.await, [silent.did().clone()]);
        let waited = world.elapsed();
        let timeout = open.timing.signing_timeout;
        assert!((timeout..timeout + Duration::from_secs(1)).contains(&waited), "{waited:?} for {timeout:?}");
        for record in round.records.values() {
            world.assert_proves_slot(record, &round.result);
        }
        let context = round.cohort_id.as_str().as_bytes();
        assert!(round.result.transcript.verify(context, &service.identity.public_key().x_only()));

        pass(UNTIL_MEMBERS_ARE_DONE).await;
        // Three of them signed twice, the transaction of the one round that they store.
        assert_eq!(world.members.count("signature-sent"), 4);
        let Round { cohort_id, result, records } = &round;
        assert_replays(&world, &service, &open, cohort_id, result, &members, records).await;
    });
}

#[test]
fn under_a_seed_a_cohort_opened_after_another_ended_is_another_cohort() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        world.updaters(2).await;
        let first = complete(&mut world, &mut service, &cohort(2), 2).await;
        while !service.live().await.is_empty() {
            tokio::task::yield_now().await;
        }
        let second = complete(&mut world, &mut service, &cohort(2), 2).await;
        assert_ne!(first.cohort_id, second.cohort_id);
    });
}
