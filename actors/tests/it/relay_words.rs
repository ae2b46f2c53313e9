//! Texts of relays, and of outsiders on them, are shown if they explain a failure, at a limited rate; late messages are
//! not a fault.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::common::{
    Updater, World, identity,
    peers::{Peer, note, soon},
    relays::{Mood, Moody, config, publish, relay, subscribed, transport},
    rounds::{complete, members_on, quick, run, sealed, service_on},
};
use btcr2_aggregation_actors::{
    runtime::Clock,
    transport::{
        Delivery,
        contact::{ContactNotice, Contacts},
        nostr::NostrConfig,
    },
};
use btcr2_aggregation_protocol::{
    cohort::event::SpendPath,
    message::{Bytes, Message, keygen::CohortOptIn, update::SubmitNonIncluded},
};

/// The texts that are shown when an event is published several times on a relay with this fault.
async fn words_of(mood: Mood) -> BTreeSet<String> {
    let behind = relay().await;
    let moody = Moody::start(&behind, mood).await;
    let contacts = Contacts::default();
    let mut notices = contacts.subscribe();
    let config = NostrConfig { contacts, publish_timeout: Duration::from_millis(200), ..config(&[&moody.url]) };
    let mut peer = Peer::start(identity("peer"), Arc::new(transport(config, Clock::system())));
    let clock = Clock::system();
    peer.send_until(identity("to").did(), note("a"), Some(clock.now() + Duration::from_secs(2)));
    peer.undelivered().await;
    let mut words = Vec::new();
    while let Ok(notice) = notices.try_recv() {
        if let ContactNotice::RelaySays { peer, words: text } = notice {
            assert_eq!(peer.trim_end_matches('/'), moody.url);
            words.push(text);
        }
    }
    let different: BTreeSet<_> = words.iter().cloned().collect();
    assert_eq!(different.len(), words.len(), "each once: {words:?}");
    different
}

#[test]
fn the_reason_of_a_refusal_is_shown_in_the_relays_words() {
    run(async {
        let words = words_of(Mood::Refuses).await;
        assert_eq!(words.into_iter().collect::<Vec<_>>(), ["OK false blocked: not today"]);
    });
}

#[test]
fn a_notice_that_comes_in_place_of_an_answer_is_shown_escaped() {
    run(async {
        let words = words_of(Mood::Notices).await;
        assert_eq!(words.into_iter().collect::<Vec<_>>(), ["NOTICE not\\u{1b}[31m today"]);
    });
}

#[test]
fn a_relay_that_accepts_everything_shows_no_texts() {
    run(async {
        let good = relay().await;
        let contacts = Contacts::default();
        let mut notices = contacts.subscribe();
        let mut world = World::new();
        let nostr = || transport(NostrConfig { contacts: contacts.clone(), ..config(&[good.url()]) }, world.clock);
        let mut service = service_on(&world, nostr()).await;
        members_on(&world, 2, nostr).await;
        complete(&mut world, &mut service, quick(2), SpendPath::KeyPath).await;
        assert!(notices.try_recv().is_err());
    });
}

#[test]
fn malformed_events_are_all_counted_and_one_a_minute_of_an_author_is_reported() {
    run(async {
        let relay = relay().await;
        let clock = Clock::system();
        let nostr = Arc::new(transport(config(&[relay.url()]), clock));
        let mut peer = Peer::start(identity("reader"), nostr.clone());
        subscribed(&nostr, 1).await;
        let (victim, to) = (identity("victim"), Some(peer.did().clone()));
        let by = |signer: &str, name: &str| {
            let message = Message::new(victim.did().clone(), to.clone(), note(name));
            sealed(&identity(signer), &message, &peer.identity, clock)
        };
        let mut events: Vec<_> = (0..20).map(|number| by("one", &format!("{number}"))).collect();
        events.push(by("other", "another"));
        publish(relay.url(), &events).await;
        publish(relay.url(), &[by("victim", "honest")]).await;
        let mut refused = 0;
        loop {
            match peer.next().await {
                Delivery::Unverified { .. } => refused += 1,
                Delivery::Message(message) => break assert_eq!(message.message.body, note("honest")),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((refused, nostr.relays()[0].malformed), (2, 21));
    });
}

#[test]
fn a_late_message_of_an_honest_peer_is_not_a_fault() {
    run(async {
        let relay = relay().await;
        let mut world = World::new();
        let nostr = || transport(config(&[relay.url()]), world.clock);
        let mut service = service_on(&world, nostr()).await;
        let members = members_on(&world, 2, nostr).await;
        let open = quick(2);
        let cohort_id = service.open(open).await;
        service.ear.event(&cohort_id, "keygen-complete").await;
        // A participant read the advert just before the cohort formed.
        let late = identity("late");
        let key = Bytes(late.public_key().to_bytes());
        let opt_in = CohortOptIn {
            cohort_id: cohort_id.clone(),
            participant_pk: key,
            communication_pk: key,
            genesis_document: None,
            invite: None,
        };
        let opt_in = Message::new(late.did().clone(), Some(service.did().clone()), opt_in);
        publish(relay.url(), &[sealed(&late, &opt_in, &service.identity, world.clock)]).await;
        service.ear.completed(&cohort_id).await;
        world.members.records(&cohort_id, 2).await;
        // A member whose first event was lost sends it again, after the end.
        let declined = SubmitNonIncluded { cohort_id: cohort_id.clone() };
        let declined = Message::new(members[0].did().clone(), Some(service.did().clone()), declined);
        publish(relay.url(), &[sealed(&members[0], &declined, &service.identity, world.clock)]).await;
        // A message after both is read: so both have been read too.
        let third = identity("third");
        world.participant_on(&third, Updater(third.clone()), nostr()).await;
        let next = service.open(quick(3)).await;
        soon("the next cohort", service.ear.completed(&next)).await;
        assert_eq!((service.ear.rejections(), world.members.rejections()), (vec![], vec![]));
    });
}
