//! Whole cohorts over Nostr, with correct and faulty relays in this process.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use crate::common::{
    Decliner, Updater, World, cohort, external_identity, identity,
    peers::{Peer, note, soon},
    relays::{Mood, Moody, absent, config, loopback, publish, relay, subscribed, transport},
    rounds::{complete, members_on, quick, run, run_for, sealed, service_on},
    tap::{Tap, no_signatures},
};
use btcr2_aggregation_actors::{
    notice::ServiceNotice,
    runtime::{Clock, Randomness},
    transport::{
        Delivery,
        combined::CombinedTransport,
        memory::MemoryTransport,
        nostr::{NostrConfig, NostrConfigError, NostrTransport, embedded::EmbeddedRelay},
    },
};
use btcr2_aggregation_protocol::{
    beacon::BeaconType,
    cohort::{conditions::TooManyMembers, event::SpendPath, service::ServiceConfigError},
    error::RejectCode,
    identity::Identity,
    message::Message,
    nostr::max_members,
};
fn whole_round(beacon_type: BeaconType) {
    run(async {
        let relay = relay().await;
        let mut world = World::new();
        let nostr = || transport(config(&[relay.url()]), world.clock);
        let mut service = service_on(&world, nostr()).await;
        let [key, external, decliner] = [identity("key"), external_identity("external"), identity("decliner")];
        world.participant_on(&key, Updater(key.clone()), nostr()).await;
        world.participant_on(&external, Updater(external.clone()), nostr()).await;
        world.participant_on(&decliner, Decliner, nostr()).await;
        let mut open = quick(3);
        open.conditions.beacon_type = beacon_type;
        complete(&mut world, &mut service, open, SpendPath::KeyPath).await;
        assert_eq!(service.ear.rejections(), []);
        assert_eq!(world.members.rejections(), []);
    });
}

#[test]
fn a_cas_cohort_with_a_decliner_and_an_external_did_completes() {
    whole_round(BeaconType::cas());
}

#[test]
fn an_smt_cohort_with_a_decliner_and_an_external_did_completes() {
    whole_round(BeaconType::smt());
}

#[test]
fn a_member_without_signatures_leads_to_the_fallback() {
    run(async {
        let relay = relay().await;
        let mut world = World::new();
        let nostr = transport(config(&[relay.url()]), world.clock);
        let mut service = service_on(&world, nostr.clone()).await;
        members_on(&world, 2, || nostr.clone()).await;
        let silent = identity("silent");
        world.participant_on(&silent, Updater(silent.clone()), Tap::losing(&nostr, no_signatures)).await;
        complete(&mut world, &mut service, quick(3), SpendPath::ScriptPath).await;
    });
}

#[test]
fn of_three_relays_one_is_down_one_drops_every_other_event_and_one_is_late() {
    run_for(Duration::from_secs(150), async {
        let (lossy, slow) = (relay().await, relay().await);
        let down = absent().await;
        let drops = Moody::start(&lossy, Mood::Drops).await;
        let late = Moody::start(&slow, Mood::Late(Duration::from_secs(5))).await;
        let mut world = World::new();
        let nostr = transport(config(&[&down, &drops.url, &late.url]), world.clock);
        let mut service = service_on(&world, nostr.clone()).await;
        members_on(&world, 3, || transport(config(&[&down, &drops.url, &late.url]), world.clock)).await;
        let mut open = quick(3);
        open.timing.signing_timeout = Duration::from_secs(60);
        complete(&mut world, &mut service, open, SpendPath::KeyPath).await;
        // The reports show the answers of each relay.
        let [down, drops, late] = &nostr.relays()[..] else { panic!("three relays") };
        assert!(down.connections == 0 && down.failures > 0 && down.last_problem.is_some(), "{down:?}");
        assert!(drops.accepted > 0 && late.accepted > 0, "{drops:?} {late:?}");
        assert!(late.duplicates + drops.duplicates > 0, "every message came once from each: {drops:?} {late:?}");
    });
}

#[test]
fn a_relay_that_hangs_delays_no_member() {
    run(async {
        let (good, behind) = (relay().await, relay().await);
        let hangs = Moody::start(&behind, Mood::Hangs).await;
        let mut world = World::new();
        let nostr = || transport(config(&[&hangs.url, good.url()]), world.clock);
        let mut service = service_on(&world, nostr()).await;
        members_on(&world, 2, nostr).await;
        let started = tokio::time::Instant::now();
        complete(&mut world, &mut service, quick(2), SpendPath::KeyPath).await;
        // Waiting for one answer of the hanging relay would take this long.
        assert!(started.elapsed() < NostrConfig::new([]).publish_timeout, "{:?}", started.elapsed());
    });
}

#[test]
fn a_relay_that_loses_everything_in_mid_round_and_comes_back_on_its_port_does_not_end_the_round() {
    run(async {
        let mut relay = relay().await;
        let address = relay.address();
        let url = relay.url().to_owned();
        let mut world = World::new();
        let nostr = || transport(config(&[&url]), world.clock);
        let mut service = service_on(&world, nostr()).await;
        members_on(&world, 3, nostr).await;
        let mut open = cohort(3);
        open.timing.advert_repeat = Duration::from_secs(1);
        let cohort_id = service.open(open).await;
        for step in ["keygen-complete", "data-distributed", "signing-started"] {
            service.ear.event(&cohort_id, step).await;
            relay.shutdown().await;
            relay = soon("the port to be free", async {
                loop {
                    match EmbeddedRelay::start(address).await {
                        Ok(relay) => break relay,
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
            })
            .await;
        }
        let result = service.ear.completed(&cohort_id).await;
        assert_eq!(result.signed.path, SpendPath::KeyPath);
        assert_eq!(world.members.records(&cohort_id, 3).await.len(), 3);
    });
}

#[test]
fn an_event_is_published_again_until_its_time_is_over() {
    run(async {
        let behind = relay().await;
        let refuses = Moody::start(&behind, Mood::Refuses).await;
        let clock = Clock::system();
        let mut peer = Peer::start(identity("peer"), Arc::new(transport(config(&[&refuses.url]), clock)));
        let to = identity("to");
        peer.send_until(to.did(), note("refused"), Some(clock.now() + Duration::from_secs(2)));
        let (did, body, reason) = peer.undelivered().await;
        assert_eq!((&did, body), (to.did(), note("refused")));
        assert!(reason.contains("blocked: not today"), "{reason}");
        assert!(refuses.events.load(Ordering::SeqCst) > 2, "it was published again");
    });
}

#[test]
fn a_forged_sender_is_refused_and_the_forger_named_where_it_is_known() {
    run(async {
        let relay = relay().await;
        let clock = Clock::system();
        let nostr = Arc::new(transport(config(&[relay.url()]), clock));
        let mut peer = Peer::start(identity("reader"), nostr.clone());
        subscribed(&nostr, 1).await;
        let (forger, victim, external) = (identity("forger"), identity("victim"), external_identity("victim"));
        let to = Some(peer.did().clone());
        let forged = |victim: &Identity, name: &str| {
            sealed(&forger, &Message::new(victim.did().clone(), to.clone(), note(name)), &peer.identity, clock)
        };
        let events = [
            forged(&victim, "by-an-unknown-sender"),
            sealed(&forger, &Message::new(forger.did().clone(), to.clone(), note("honest")), &peer.identity, clock),
            forged(&victim, "of-a-key-did"),
            // No opt-in of this DID was received, so no key is its own.
            forged(&external, "of-an-external-did"),
            sealed(&forger, &Message::new(forger.did().clone(), to.clone(), note("end")), &peer.identity, clock),
        ];
        for event in events {
            // One after the other, so that they arrive in this order.
            publish(relay.url(), &[event]).await;
        }
        let reason = peer.unverified().await;
        assert!(reason.contains("is not who signed"), "{reason}");
        assert_eq!(peer.receive().await.body, note("honest"));
        match peer.next().await {
            Delivery::Undecodable { from, error } => {
                assert_eq!(from, *forger.did());
                assert!(error.to_string().contains("is not who signed"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        // The next event in the same minute is only counted.
        assert_eq!(peer.receive().await.body, note("end"));
        assert_eq!(nostr.relays()[0].malformed, 3);
    });
}

#[test]
fn a_member_that_speaks_for_another_hurts_only_itself() {
    run(async {
        let relay = relay().await;
        let mut world = World::new();
        let nostr = || transport(config(&[relay.url()]), world.clock);
        let mut service = service_on(&world, nostr()).await;
        let members = members_on(&world, 2, nostr).await;
        let open = quick(3);
        let cohort_id = service.open(open).await;
        let admitted = |did: &Identity| {
            let did = did.did().clone();
            move |notice: &ServiceNotice| match notice {
                ServiceNotice::ParticipantAccepted { participant, .. } if *participant == did => Some(()),
                _ => None,
            }
        };
        for member in &members {
            service.ear.wait_for(admitted(member)).await;
        }
        // A member whose key is known declines in the name of the other.
        let declined =
            btcr2_aggregation_protocol::message::update::SubmitNonIncluded { cohort_id: cohort_id.clone() };
        let message = Message::new(members[1].did().clone(), Some(service.did().clone()), declined);
        publish(relay.url(), &[sealed(&members[0], &message, &service.identity, world.clock)]).await;
        let named = service.ear.wait_for(|notice| match notice {
            ServiceNotice::MessageRejected { from, code, .. } => Some((from.clone(), *code)),
            _ => None,
        });
        assert_eq!(named.await, (Some(members[0].did().clone()), RejectCode::Malformed));
        let third = identity("third");
        world.participant_on(&third, Updater(third.clone()), transport(config(&[relay.url()]), world.clock)).await;
        let result = service.ear.completed(&cohort_id).await;
        assert_eq!(result.signed.path, SpendPath::KeyPath);
        for record in world.members.records(&cohort_id, 3).await.values() {
            assert!(record.included(), "no member declined");
        }
    });
}

#[test]
fn members_on_different_transports_are_in_one_cohort() {
    run(async {
        let relay = relay().await;
        let mut world = World::new();
        let nostr = || transport(config(&[relay.url()]), world.clock);
        let memory: MemoryTransport = world.network.clone();
        let both = CombinedTransport::new(vec![Arc::new(memory), Arc::new(nostr())]).expect("two transports");
        let mut service = service_on(&world, both).await;
        members_on(&world, 2, nostr).await;
        for name in ["one", "two"] {
            let member = identity(name);
            world.participant(&member, Updater(member.clone())).await;
        }
        complete(&mut world, &mut service, quick(4), SpendPath::KeyPath).await;
        assert_eq!(service.ear.rejections(), []);
    });
}

#[test]
fn a_cas_cohort_that_could_outgrow_its_messages_is_refused_when_it_is_opened() {
    run(async {
        let relay = relay().await;
        let world = World::new();
        let service = service_on(&world, transport(config(&[relay.url()]), world.clock)).await;
        let limit = max_members(&BeaconType::cas()).expect("CAS cohorts have a limit");
        let asked = u32::try_from(limit).expect("a number of members") + 1;
        let refused = service.refuses(cohort(asked)).await;
        let beacon_type = BeaconType::cas();
        assert_eq!(
            refused,
            ServiceConfigError::TooManyMembers(TooManyMembers { beacon_type, asked, limit }).into()
        );
        assert!(refused.to_string().contains(&limit.to_string()), "{refused}");

        let mut smt = cohort(asked);
        smt.conditions.beacon_type = BeaconType::smt();
        service.open(smt).await;
        // Without its own maximum, the advert names the transport's limit.
        let mut peer = Peer::start(identity("peer"), Arc::new(transport(config(&[relay.url()]), world.clock)));
        let mut open_ended = cohort(2);
        open_ended.conditions.max_participants = None;
        let cohort_id = service.open(open_ended).await;
        loop {
            let message = peer.receive().await;
            let btcr2_aggregation_protocol::message::Body::CohortAdvert(advert) = &*message.body else {
                panic!("{message:?}")
            };
            if advert.cohort_id == cohort_id {
                assert_eq!(advert.max_participants, Some(asked - 1));
                break;
            }
        }
    });
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let refused = |urls: &[&str]| {
        actix_rt::System::new().block_on(async {
            NostrTransport::new(config(urls), Clock::system(), Randomness::System).map(|_| ()).unwrap_err()
        })
    };
    assert_eq!(refused(&[]), NostrConfigError::NoRelays);
    assert!(matches!(refused(&["http://example.org"]), NostrConfigError::Url { .. }));
    assert_eq!(loopback().port(), 0);
}
