//! A relay stores events: those of rounds that have ended do not affect the next round of any identity.

use std::{sync::Arc, time::Duration};

use crate::common::{
    Operator, Service, Updater, World, identity,
    peers::{Peer, advert, note, soon},
    relays::{Mood, Moody, absent, config, history, publish, relay, transport},
    rounds::{complete, members_on, quick, run, sealed},
};
use btcr2_aggregation_actors::{
    notice::ParticipantNotice,
    runtime::{Clock, Randomness},
    transport::{
        Delivery, Outbound,
        nostr::{NostrTransport, embedded::EmbeddedRelay},
    },
};
use btcr2_aggregation_protocol::{
    cohort::event::{SessionEnd, SpendPath},
    id::CohortId,
    message::{Message, control::CohortEnded},
    nostr::DELETION_KIND,
};
use nostr_sdk::Event;

/// A service with the same identity in each run, whose cohorts have other identifiers than those of its previous runs.
async fn service_again(world: &World, transport: NostrTransport) -> Service {
    let mut settings = world.service_settings("service", Operator);
    settings.transport = Arc::new(transport);
    settings.randomness = Randomness::System;
    settings.start().await
}

/// A world that starts this long after the other one's current time.
fn later(than: &World, by: Duration) -> World {
    let mut world = World::new();
    world.clock = Clock::starting_at(than.clock.now() + by);
    world
}

/// One round of a service and two members, on a relay that has these events and removes nothing. Returns all events of
/// the relay.
async fn round(world: &mut World, known: &[Event]) -> (CohortId, Vec<Event>) {
    let relay = relay().await;
    publish(relay.url(), known).await;
    let keeps = Moody::start(&relay, Mood::Keeps).await;
    let nostr = || transport(config(&[&keeps.url]), world.clock);
    let mut service = service_again(world, nostr()).await;
    members_on(world, 2, nostr).await;
    let cohort_id = complete(world, &mut service, quick(2), SpendPath::KeyPath).await;
    assert_eq!(service.ear.rejections(), []);
    assert_eq!(world.members.rejections(), []);
    (cohort_id, history(relay.url()).await)
}

fn is_advert(event: &&Event) -> bool {
    event.tags.public_keys().count() == 1 && event.kind.as_u16() == 1
}

#[test]
fn participants_that_restart_distinguish_rounds_seconds_apart() {
    run(async {
        let mut known = Vec::new();
        let mut cohorts = Vec::new();
        let mut world = World::new();
        for _ in 0..3 {
            let (cohort_id, events) = round(&mut world, &known).await;
            // The relay has the adverts of all rounds, and all of them are within the look-back.
            assert!(events.iter().filter(is_advert).count() > cohorts.len(), "{events:?}");
            for notice in world.members.received() {
                if let ParticipantNotice::CohortDiscovered { cohort_id: found, .. } = &**notice {
                    assert_eq!(*found, cohort_id, "no member considers an ended cohort");
                }
            }
            known = events;
            cohorts.push(cohort_id);
            world = later(&world, Duration::from_secs(1));
        }
    });
}

#[test]
fn a_late_relay_with_an_old_round_affects_no_member() {
    run(async {
        let mut old = World::new();
        let (old_cohort, events) = round(&mut old, &[]).await;
        let (adverts, directed): (Vec<Event>, Vec<Event>) = events.into_iter().partition(|event| is_advert(&event));
        let mut world = later(&old, Duration::from_secs(120));
        let early = relay().await;
        publish(early.url(), &adverts).await;
        let late = absent().await;
        let nostr = || transport(config(&[early.url(), &late]), world.clock);
        let mut members = Vec::new();
        for number in 0..2 {
            let member = identity(&format!("member {number}"));
            let nostr = nostr();
            world.participant_on(&member, Updater(member.clone()), nostr.clone()).await;
            world.members.event(member.did(), &old_cohort, "cohort-joined").await;
            members.push((member, nostr));
        }
        let address = late.trim_start_matches("ws://").parse().expect("an address");
        let late = EmbeddedRelay::start(address).await.expect("the port is still free");
        publish(late.url(), &directed).await;
        for (member, nostr) in &members {
            let key = member.public_key().x_only().to_string();
            let theirs = |event: &&Event| {
                event.pubkey.to_hex() != key && event.tags.public_keys().any(|to| to.to_hex() == key)
            };
            let count = directed.iter().filter(theirs).count() as u64;
            assert!(count > 3, "{count} messages");
            soon("the old messages to arrive", async {
                while nostr.relays()[1].received < count {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
        }
        let mut service = service_again(&world, nostr()).await;
        complete(&mut world, &mut service, quick(2), SpendPath::KeyPath).await;
        assert_eq!(world.members.rejections(), []);
        // At most the new service notifies them, when it receives their opt-ins, that the old cohort does not exist.
        for notice in world.members.received() {
            match &**notice {
                ParticipantNotice::CohortFailed { cohort_id, end, .. } if *cohort_id == old_cohort => {
                    assert!(
                        matches!(end, SessionEnd::EndedByService { code, .. } if code == CohortEnded::UNKNOWN),
                        "{end:?}"
                    );
                }
                _ => {}
            }
        }
        let of_old = world.members.names(&old_cohort);
        let harmless = ["cohort-discovered", "cohort-joined", "cohort-failed"];
        assert!(of_old.iter().all(|name| harmless.contains(&name.as_str())), "{of_old:?}");
    });
}

#[test]
fn directed_messages_are_delivered_before_adverts() {
    run(async {
        for mood in [Mood::Keeps, Mood::Endless] {
            let relay = relay().await;
            let behind = Moody::start(&relay, mood).await;
            let clock = Clock::system();
            let past = Clock::starting_at(clock.now() - Duration::from_secs(10));
            let reader = identity("reader");
            let speaks = Arc::new(transport(config(&[relay.url()]), past));
            let service = Peer::start(identity("service"), speaks.clone());
            service.broadcast(advert(&service.identity, "old"));
            service.send(reader.did(), note("old"));
            soon("the relay to have both", async {
                while speaks.relays()[0].accepted < 2 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
            let mut impatient = config(&[&behind.url]);
            impatient.stored_timeout = Duration::from_millis(500);
            let mut reader = Peer::start(reader, Arc::new(transport(impatient, clock)));
            match reader.next().await {
                Delivery::Stored { message, said } => {
                    assert_eq!(message.body, note("old"));
                    assert!(said < clock.now() - Duration::from_secs(5));
                }
                other => panic!("directed messages come first: {other:?}"),
            }
            assert_eq!(reader.receive().await.body, advert(&service.identity, "old"));
        }
    });
}

#[test]
fn a_reconnected_relay_delivers_nothing_twice() {
    run(async {
        let relay = relay().await;
        let clock = Clock::system();
        let service = identity("service");
        let mut known = Vec::new();
        let nostr = Arc::new(transport(config(&[relay.url()]), clock));
        let mut reader = Peer::start(identity("reader"), nostr.clone());
        for name in ["one", "two"] {
            let message = Message::new(service.did().clone(), Some(reader.did().clone()), note(name));
            known.push(sealed(&service, &message, &reader.identity, clock));
        }
        publish(relay.url(), &known).await;
        for _ in 0..2 {
            reader.receive().await;
        }
        let address = relay.address();
        relay.shutdown().await;
        let again = soon("the port to be free", async {
            loop {
                match EmbeddedRelay::start(address).await {
                    Ok(relay) => break relay,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        })
        .await;
        publish(again.url(), &known).await;
        soon("the copies to arrive", async {
            while nostr.relays()[0].duplicates < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        assert!(reader.rest().is_empty());
    });
}

#[test]
fn adverts_of_closed_cohorts_are_retracted() {
    run(async {
        let relay = relay().await;
        let nostr = Arc::new(transport(config(&[relay.url()]), Clock::system()));
        let service = Peer::start(identity("service"), nostr.clone());
        let accepted = async |count: u64| {
            soon("the relay to accept", async {
                while nostr.relays()[0].accepted < count {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
        };
        for (number, name) in ["over", "open", "over"].into_iter().enumerate() {
            service.broadcast(advert(&service.identity, name));
            accepted(number as u64 + 1).await;
        }
        let over = CohortId::parse("over").expect("a name");
        service.link.send(Outbound::WithdrawAdvert { cohort_id: over.clone() });
        accepted(4).await;
        let events = history(relay.url()).await;
        let [retraction] =
            &events.iter().filter(|event| event.kind.as_u16() == DELETION_KIND).collect::<Vec<_>>()[..]
        else {
            panic!("one retraction: {events:?}")
        };
        assert!(retraction.tags.iter().any(|tag| tag.as_slice() == ["k", "1"]), "{retraction:?}");
        let left: Vec<_> = events.iter().filter(is_advert).collect();
        assert!(left.len() == 1 && left[0].content.contains("\"open\""), "{left:?}");
        // There is nothing left to retract for the first; the advert of the next cohort is retracted.
        service.link.send(Outbound::WithdrawAdvert { cohort_id: over });
        service.link.send(Outbound::WithdrawAdvert { cohort_id: CohortId::parse("open").expect("a name") });
        accepted(5).await;
        assert!(!history(relay.url()).await.iter().any(|event| is_advert(&event)));
    });
}

#[test]
fn the_history_of_an_old_cohort_affects_no_running_one() {
    run(async {
        let mut old = World::new();
        let (_, events) = round(&mut old, &[]).await;
        assert!(events.len() > 20, "{} events", events.len());

        // The same identities, started anew and without a journal, a while later: the relay still has all events, and a
        // peer publishes them all again while the new cohort runs.
        let relay = relay().await;
        publish(relay.url(), &events[..events.len() / 2]).await;
        let mut world = later(&old, Duration::from_secs(3600));
        let nostr = || transport(config(&[relay.url()]), world.clock);
        let mut service = service_again(&world, nostr()).await;
        let members = members_on(&world, 2, nostr).await;
        let mut open = quick(3);
        open.timing.signing_timeout = Duration::from_secs(20);
        let cohort_id = service.open(open).await;
        for _ in &members {
            service.ear.event(&cohort_id, "participant-accepted").await;
        }
        publish(relay.url(), &events).await;
        let third = identity("third");
        world.participant_on(&third, Updater(third.clone()), nostr()).await;
        let result = service.ear.completed(&cohort_id).await;
        assert_eq!(result.signed.path, SpendPath::KeyPath);
        // And no member is blamed for its old messages.
        assert_eq!(service.ear.rejections(), []);
        assert_eq!(world.members.rejections(), []);
    });
}

#[test]
fn old_adverts_are_only_read_within_the_look_back() {
    run(async {
        let relay = relay().await;
        let clock = Clock::system();
        let past = Clock::starting_at(clock.now() - Duration::from_secs(3600));
        let service = Peer::start(identity("service"), Arc::new(transport(config(&[relay.url()]), past)));
        service.broadcast(advert(&service.identity, "old"));
        soon("the relay to have the advert", async {
            while history(relay.url()).await.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let mut everything = config(&[relay.url()]);
        everything.look_back = Duration::ZERO;
        let mut reads = Peer::start(identity("reads"), Arc::new(transport(everything, clock)));
        assert_eq!(reads.receive().await.body, advert(&service.identity, "old"));

        let mut passes_over =
            Peer::start(identity("passes over"), Arc::new(transport(config(&[relay.url()]), clock)));
        // A message that is sent later, on the same connection.
        let message = Message::new(service.did().clone(), Some(passes_over.did().clone()), note("new"));
        publish(relay.url(), &[sealed(&service.identity, &message, &passes_over.identity, clock)]).await;
        assert_eq!(passes_over.receive().await.body, note("new"));
    });
}
