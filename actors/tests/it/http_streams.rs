//! The contents of the streams: adverts and inboxes, with a clock that stands still. `http_sockets` has the tests that
//! need sockets.

use std::{collections::BTreeSet, time::Duration};

use crate::http_support::{
    advert, collector, identity, paused, saying, sealed, service,
    site::{OK, Site, Stream, settle},
    sse::Event,
};
use actix_web::test::TestRequest;
use btcr2_aggregation_actors::transport::{
    Outbound, Transport,
    http::{HttpConfig, store::Rate},
};
use btcr2_aggregation_protocol::{envelope::ExpectedTo, identity::Identity, message::Body};
use tokio::time::advance;

/// Limits that no test reaches by accident; other tests cover rates.
pub fn config() -> HttpConfig {
    let rate = Rate { per_second: 1_000_000, burst: 1_000_000 };
    HttpConfig { did_rate: rate, address_rate: rate, ..HttpConfig::default() }
}

pub fn texts(events: &[Event]) -> Vec<String> {
    events.iter().map(Event::text).collect()
}

pub fn ids(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.id.unwrap()).collect()
}

pub async fn send_text(site: &Site, to: &Identity, text: &str) {
    site.send(Outbound::Direct { to: to.did().clone(), body: saying(text), until: None }).await;
}

fn withdrawal(number: u32) -> Outbound {
    let Body::CohortAdvert(advert) = &*advert(number) else { unreachable!() };
    Outbound::WithdrawAdvert { cohort_id: advert.cohort_id.clone() }
}

#[test]
fn every_live_advert_reaches_every_reader_signed_at_that_moment() {
    paused(async {
        let (site, _deliveries) = Site::new(config()).await;
        let mut nonces = BTreeSet::new();
        let mut check = |events: &[Event], count: usize| {
            assert_eq!(events.len(), count);
            for event in events {
                assert_eq!((event.name.as_str(), event.id), ("advert", None));
                assert!(nonces.insert(site.verify(event, ExpectedTo::Broadcast).nonce), "a nonce twice");
            }
        };
        let mut early = site.adverts().await;
        check(&early.ready().await, 0);
        for number in 0..3 {
            site.send(Outbound::Broadcast { body: advert(number) }).await;
        }
        check(&early.ready().await, 3);

        advance(Duration::from_secs(3600)).await;
        let mut late = site.adverts().await;
        check(&late.ready().await, 3);
        check(&early.ready().await, 0);

        advance(Duration::from_secs(300)).await;
        site.send(Outbound::Broadcast { body: advert(1) }).await;
        let repeated = early.ready().await;
        check(&repeated, 1);
        assert_eq!(late.ready().await, repeated, "one signature is enough for all current readers");

        site.send(withdrawal(1)).await;
        advance(Duration::from_secs(300)).await;
        let events = site.adverts().await.ready().await;
        check(&events, 2);
        let withdrawn = advert(1);
        assert!(events.iter().all(|event| !event.data.contains(withdrawn.cohort_id().as_str())));
    });
}

#[test]
fn a_board_of_any_size_fits_a_new_reader() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig { inbox_messages: 4, ..config() }).await;
        for number in 0..700 {
            site.service.try_send(Outbound::Broadcast { body: advert(number) }).unwrap();
        }
        settle().await;
        let mut reader = site.adverts().await;
        assert_eq!(reader.ready().await.len(), 700);
        site.send(Outbound::Broadcast { body: advert(700) }).await;
        assert_eq!(reader.ready().await.len(), 1, "and it continues");
    });
}

#[test]
fn adverts_end_with_their_connection_and_not_with_an_older_one() {
    paused(async {
        let (mut site, _deliveries) = Site::new(config()).await;
        site.send(Outbound::Broadcast { body: advert(1) }).await;
        let (inbox, mut deliveries) = collector();
        let newer = site.server.connect(&service(), inbox).await.unwrap();
        let older = std::mem::replace(&mut site.service, newer.into());
        site.send(Outbound::Broadcast { body: advert(2) }).await;
        drop(older);
        settle().await;
        let events = site.adverts().await.ready().await;
        assert_eq!(events.len(), 1);
        assert!(events[0].data.contains(advert(2).cohort_id().as_str()));
        let envelope = sealed(&identity(1), Some(service().did()), crate::http_support::ack(), site.now());
        assert_eq!(site.post(envelope).await.outcome(), OK, "the service is still registered");
        deliveries.try_recv().unwrap();
    });
}

#[test]
fn too_many_advert_readers_are_refused_until_one_has_gone() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig { advert_streams: 2, ..config() }).await;
        let first = site.adverts().await;
        let _second = site.adverts().await;
        let request = || TestRequest::get().uri("/v1/adverts");
        assert_eq!(site.ask(request()).await.outcome(), (429, "rate_limited"));
        drop(first);
        assert_eq!(site.ask(request()).await.status, 200);
    });
}

#[test]
fn an_inbox_resumes_where_its_reader_was() {
    paused(async {
        let (site, _deliveries) = Site::new(config()).await;
        let alice = identity(1);
        send_text(&site, &alice, "a").await;
        send_text(&site, &alice, "b").await;
        let mut stream = site.inbox(&alice).await;
        send_text(&site, &alice, "c").await;
        let first = stream.ready().await;
        assert_eq!(texts(&first), ["a", "b", "c"]);
        let first_ids = ids(&first);
        assert!(first_ids.is_sorted_by(|a, b| a < b));
        assert!(first.iter().all(|event| event.name == "message"));
        drop(stream);

        send_text(&site, &alice, "d").await;
        let mut stream = site.inbox_after(&alice, first_ids[1]).await;
        send_text(&site, &alice, "e").await;
        let second = stream.ready().await;
        assert_eq!(texts(&second), ["c", "d", "e"], "neither loss nor repetition");
        assert_eq!(ids(&second)[0], first_ids[2], "a message keeps its id");
        assert!(ids(&second).is_sorted_by(|a, b| a < b));
        drop(stream);

        let everything = site.inbox(&alice).await.ready().await;
        assert_eq!(texts(&everything), ["c", "d", "e"], "confirmed messages are not stored");
        let garbage = site.inbox_request(&alice).insert_header(("last-event-id", "x"));
        assert_eq!(texts(&site.open(garbage).await.ready().await), ["c", "d", "e"]);
        let older = site.inbox_after(&alice, 0).await.ready().await;
        assert_eq!(texts(&older), ["c", "d", "e"]);
        assert_eq!(site.inbox_after(&alice, u64::MAX).await.ready().await, []);
    });
}

#[test]
fn what_is_replayed_is_signed_again() {
    paused(async {
        let (site, _deliveries) = Site::new(config()).await;
        let (alice, bob) = (identity(1), identity(2));
        send_text(&site, &alice, "a").await;
        send_text(&site, &bob, "b").await;
        let mut nonces = BTreeSet::new();
        for _ in 0..4 {
            advance(Duration::from_secs(600)).await;
            let mut one = site.inbox(&alice).await;
            let events = one.ready().await;
            assert_eq!(texts(&events), ["a"], "only the owner's messages");
            let verified = site.verify(&events[0], ExpectedTo::Did(alice.did()));
            assert_eq!(verified.timestamp.as_secs(), site.now().as_secs());
            assert!(nonces.insert(verified.nonce), "a nonce twice");
        }
    });
}

#[test]
fn ids_go_on_counting_when_an_inbox_was_idle_and_when_the_server_is_a_new_one() {
    paused(async {
        let config = || HttpConfig { heartbeat: Duration::from_millis(10), inbox_messages: 5_000, ..config() };
        let (site, _deliveries) = Site::new(config()).await;
        let alice = identity(1);
        // More than one a millisecond, so that the clock alone is not sufficient.
        for number in 0..3_000 {
            let body = saying(&number.to_string());
            site.service.try_send(Outbound::Direct { to: alice.did().clone(), body, until: None }).unwrap();
        }
        let mut stream = site.inbox(&alice).await;
        let last = ids(&stream.ready().await).pop().unwrap();
        drop(stream);
        drop(site.inbox_after(&alice, last).await);
        advance(Duration::from_millis(50)).await;
        settle().await;
        // Without readers and messages it ends. Each step is a heartbeat.
        for _ in 0..5 {
            advance(Duration::from_millis(10)).await;
            settle().await;
        }
        let mut stream = site.inbox_after(&alice, last).await;
        send_text(&site, &alice, "later").await;
        let later = stream.ready().await;
        assert_eq!(texts(&later), ["later"]);
        assert!(later[0].id.unwrap() > last);

        let now = site.now().as_secs() + 60;
        let (next, _deliveries) = Site::of(&service(), now, |parts| parts.config = config()).await;
        send_text(&next, &alice, "after the restart").await;
        let events = next.inbox_after(&alice, later[0].id.unwrap()).await.ready().await;
        assert_eq!(texts(&events), ["after the restart"]);
        assert!(events[0].id.unwrap() > later[0].id.unwrap());
    });
}

#[test]
fn an_inbox_that_goes_away_again_and_again_loses_nothing() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig { heartbeat: Duration::from_millis(10), ..config() }).await;
        let alice = identity(1);
        let mut last = 0;
        for number in 0..60 {
            drop(site.inbox_after(&alice, last).await);
            // Around the moment at which it ends.
            advance(Duration::from_millis(number % 7 * 5)).await;
            if number % 2 == 0 {
                settle().await;
            }
            send_text(&site, &alice, &number.to_string()).await;
            let events = site.inbox_after(&alice, last).await.ready().await;
            assert_eq!(texts(&events), [number.to_string()]);
            assert!(events[0].id.unwrap() > last);
            last = events[0].id.unwrap();
        }
    });
}

#[test]
fn a_message_that_comes_as_its_inbox_ends_is_not_lost() {
    paused(async {
        let heartbeat = Duration::from_millis(10);
        let (site, _deliveries) = Site::new(HttpConfig { heartbeat, ..config() }).await;
        for number in 1..20 {
            let reader = identity(number);
            drop(site.inbox(&reader).await);
            advance(heartbeat).await;
            settle().await;
            // It is on its way when the second heartbeat ends the inbox: the hub receives both at once, the message
            // first.
            let body = saying("a");
            site.service.try_send(Outbound::Direct { to: reader.did().clone(), body, until: None }).unwrap();
            advance(heartbeat).await;
            settle().await;
            send_text(&site, &reader, "b").await;
            assert_eq!(texts(&site.inbox(&reader).await.ready().await), ["a", "b"]);
        }
    });
}

#[test]
fn a_reader_that_does_not_read_is_closed_and_comes_back_for_the_rest() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig { inbox_messages: 40, ..config() }).await;
        let (alice, bob) = (identity(1), identity(2));
        let mut slow = site.inbox(&alice).await;
        let mut other = site.inbox(&bob).await;
        for number in 0..200 {
            send_text(&site, &alice, &number.to_string()).await;
            send_text(&site, &bob, &number.to_string()).await;
            assert_eq!(texts(&other.ready().await), [number.to_string()], "no other recipient waits for her");
        }
        let before = slow.ready().await;
        assert!(slow.is_closed().await, "beyond its capacity");
        let after = site.inbox_after(&alice, *ids(&before).last().unwrap()).await.ready().await;
        let all: Vec<_> = texts(&before).into_iter().chain(texts(&after)).collect();
        assert!(before.len() >= 40 && after.len() == 40, "{} and {}", before.len(), after.len());
        assert_eq!(all.last().unwrap(), "199");

        // By bytes: a few large events are too many.
        let (site, _deliveries) = Site::new(HttpConfig { inbox_bytes: 100_000, ..config() }).await;
        let mut slow = site.inbox(&alice).await;
        for _ in 0..20 {
            send_text(&site, &alice, &"x".repeat(50_000)).await;
        }
        assert!(slow.ready().await.len() < 18);
        assert!(slow.is_closed().await);
    });
}

#[test]
fn one_stream_too_many_closes_the_oldest() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig { streams_per_inbox: 2, ..config() }).await;
        let (alice, bob) = (identity(1), identity(2));
        let mut bobs = site.inbox(&bob).await;
        let mut streams: Vec<Stream> = Vec::new();
        for _ in 0..4 {
            streams.push(site.inbox(&alice).await);
        }
        send_text(&site, &alice, "a").await;
        for (number, stream) in streams.iter_mut().enumerate() {
            let kept = number >= 2;
            assert_eq!(stream.ready().await.len(), usize::from(kept));
            assert_eq!(stream.is_closed().await, !kept);
        }
        assert!(!bobs.is_closed().await);
    });
}

#[test]
fn inboxes_that_only_their_owners_have_opened_make_room_for_those_of_members() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig { inboxes: 2, ..config() }).await;
        let (alice, bob) = (identity(1), identity(2));
        let mut outsiders = vec![site.inbox(&identity(10)).await, site.inbox(&identity(11)).await];
        assert_eq!(site.ask(site.inbox_request(&identity(12))).await.outcome(), (429, "rate_limited"));
        for member in [&alice, &bob] {
            send_text(&site, member, "hello").await;
            assert_eq!(texts(&site.inbox(member).await.ready().await), ["hello"]);
        }
        for outsider in &mut outsiders {
            assert!(outsider.is_closed().await);
        }
        send_text(&site, &identity(3), "no room").await;
        assert_eq!(site.ask(site.inbox_request(&identity(3))).await.outcome(), (429, "rate_limited"));
        assert_eq!(texts(&site.inbox(&alice).await.ready().await), ["hello"]);
    });
}

#[test]
fn heartbeats_are_comments() {
    paused(async {
        let (site, _deliveries) = Site::new(config()).await;
        for mut stream in [site.adverts().await, site.inbox(&identity(1)).await] {
            let before = site.now();
            // All actors wait, so the clock jumps to the next event.
            let beat = stream.next_or_comment().await.unwrap();
            assert_eq!(beat, Event { comment: Some("heartbeat".to_owned()), ..Event::default() });
            assert!(site.now().since(before) <= Duration::from_secs(15));
        }
    });
}

#[test]
fn shutdown_closes_every_stream_and_requests_are_still_answered() {
    paused(async {
        let (site, _deliveries) = Site::new(config()).await;
        let mut streams = [site.adverts().await, site.inbox(&identity(1)).await, site.inbox(&identity(2)).await];
        send_text(&site, &identity(2), "last").await;
        site.server.shutdown().await;
        assert_eq!(texts(&streams[2].ready().await), ["last"]);
        for stream in &mut streams {
            assert!(stream.is_closed().await);
        }
        assert_eq!(site.ask(TestRequest::get().uri("/v1/adverts")).await.outcome(), (429, "rate_limited"));
        assert_eq!(site.ask(site.inbox_request(&identity(1))).await.outcome(), (429, "rate_limited"));
        assert_eq!(site.ask(TestRequest::get().uri("/v1/.well-known/aggregation")).await.status, 200);
    });
}
