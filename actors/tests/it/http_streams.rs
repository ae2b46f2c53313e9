//! The contents of the streams: adverts and inboxes, with a clock that stands still. `http_sockets` has the tests that
//! need sockets.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    common::peers::note,
    http_support::{
        Collector, advert, authorization, external, identity, opt_in, paused, saying, sealed, service,
        site::{OK, Site, Stream, settle},
        sse::Event,
    },
};
use actix_web::test::TestRequest;
use btcr2_aggregation_actors::transport::{
    Delivery, Outbound, Transport,
    http::{HttpConfig, Refusal, store::Rate},
};
use btcr2_aggregation_protocol::{
    envelope::ExpectedTo,
    id::CohortId,
    identity::Identity,
    message::{Body, control::CohortEnded},
    request_auth::inbox_path,
};
use tokio::time::advance;

/// Limits that no test reaches by accident; other tests cover rates.
fn config() -> HttpConfig {
    let rate = Rate { per_second: 1_000_000, burst: 1_000_000 };
    HttpConfig { did_rate: rate, address_rate: rate, ..HttpConfig::default() }
}

fn texts(events: &[Event]) -> Vec<String> {
    events.iter().map(Event::text).collect()
}

fn ids(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.id.unwrap()).collect()
}

async fn send_text(site: &Site, to: &Identity, text: &str) {
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
            site.service.do_send(Outbound::Broadcast { body: advert(number) });
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
        let (inbox, keeper, mut deliveries) = Collector::start_new();
        let newer = site.server.connect(&service(), inbox, keeper, 2).await.unwrap();
        let older = std::mem::replace(&mut site.service, newer);
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
            site.service.do_send(Outbound::Direct { to: alice.did().clone(), body, until: None });
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
            site.service.do_send(Outbound::Direct { to: reader.did().clone(), body, until: None });
            advance(heartbeat).await;
            settle().await;
            send_text(&site, &reader, "b").await;
            assert_eq!(texts(&site.inbox(&reader).await.ready().await), ["a", "b"]);
        }
    });
}

#[test]
fn an_inbox_is_bounded_by_count_and_by_bytes_and_all_together_too() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig { inbox_messages: 3, ..config() }).await;
        let (alice, bob) = (identity(1), identity(2));
        for number in 0..10 {
            send_text(&site, &alice, &number.to_string()).await;
        }
        assert_eq!(texts(&site.inbox(&alice).await.ready().await), ["7", "8", "9"]);
        let report = site.server.report();
        assert_eq!((report.inboxes, report.messages, report.dropped), (1, 3, 7));

        let kilobyte = |number: usize| format!("{number}{}", "x".repeat(1000));
        let numbers = |events: &[Event]| texts(events).iter().map(|text| text[..1].to_owned()).collect::<Vec<_>>();
        let (site, _deliveries) = Site::new(HttpConfig { inbox_bytes: 3_500, ..config() }).await;
        for number in 0..10 {
            send_text(&site, &alice, &kilobyte(number)).await;
        }
        assert_eq!(numbers(&site.inbox(&alice).await.ready().await), ["7", "8", "9"]);
        send_text(&site, &alice, &"y".repeat(10_000)).await;
        assert_eq!(
            texts(&site.inbox(&alice).await.ready().await),
            ["y".repeat(10_000)],
            "the newest is always stored"
        );

        let (site, _deliveries) = Site::new(HttpConfig { inboxes_bytes: 3_500, ..config() }).await;
        send_text(&site, &bob, &kilobyte(0)).await;
        for number in 1..10 {
            send_text(&site, &alice, &kilobyte(number)).await;
        }
        assert_eq!(numbers(&site.inbox(&alice).await.ready().await), ["8", "9"]);
        assert_eq!(numbers(&site.inbox(&bob).await.ready().await), ["0"], "and not at another inbox's cost");
    });
}

fn ended(cohort_id: &str) -> Outbound {
    let end = CohortEnded {
        cohort_id: CohortId::parse(cohort_id).unwrap(),
        code: "CANCELLED".to_owned(),
        reason: "over".to_owned(),
        at_fault: false,
        next_cohort_id: None,
        signed: None,
        opt_in: None,
    };
    Outbound::Direct { to: identity(1).did().clone(), body: end.into(), until: None }
}

#[test]
fn messages_of_ended_cohorts_make_room_first() {
    paused(async {
        let (site, mut deliveries) = Site::new(HttpConfig { inbox_messages: 4, ..config() }).await;
        let alice = identity(1);
        let note = |cohort: &str| Outbound::Direct { to: alice.did().clone(), body: note(cohort), until: None };
        for outbound in [note("live"), note("over"), ended("over"), note("other"), note("third")] {
            site.send(outbound).await;
        }
        let stored = site.inbox(&alice).await.ready().await;
        let cohorts = |events: &[Event]| {
            let cohort = |event: &Event| {
                let envelope: serde_json::Value = serde_json::from_str(&event.data).unwrap();
                envelope["message"]["body"]["cohortId"].as_str().unwrap().to_owned()
            };
            events.iter().map(cohort).collect::<Vec<_>>()
        };
        assert_eq!(cohorts(&stored), ["live", "over", "other", "third"]);
        assert!(deliveries.try_recv().is_err(), "nothing that is still needed was dropped");
    });
}

#[test]
fn what_there_was_no_room_for_is_made_again_when_its_reader_comes() {
    paused(async {
        let (site, mut deliveries) = Site::new(HttpConfig { inbox_messages: 2, ..config() }).await;
        let alice = identity(1);
        for cohort in ["first", "second", "third", "fourth"] {
            site.send(Outbound::Direct { to: alice.did().clone(), body: note(cohort), until: None }).await;
        }
        assert!(deliveries.try_recv().is_err(), "not before she reads");
        let mut reader = site.inbox(&alice).await;
        let mut reported = false;
        for _ in 0..3 {
            reported |=
                reader.next_or_comment().await.unwrap().comment.is_some_and(|text| text.contains("too slow"));
        }
        assert!(reported, "and she is notified");
        settle().await;
        for expected in ["first", "second"] {
            let missed = deliveries.try_recv().expect("the dropped messages are requested again");
            let Delivery::Missed { to, cohort_id } = missed else { panic!("{missed:?}") };
            assert_eq!((to, cohort_id.as_str()), (alice.did().clone(), expected));
        }
        // Once: the repetition is on its way.
        let _again = site.inbox(&alice).await;
        settle().await;
        assert!(deliveries.try_recv().is_err());
    });
}

#[test]
fn a_repeated_message_waits_once() {
    paused(async {
        let (site, _deliveries) = Site::new(config()).await;
        let alice = identity(1);
        for text in ["a", "b", "a", "a"] {
            send_text(&site, &alice, text).await;
        }
        assert_eq!(texts(&site.inbox(&alice).await.ready().await), ["b", "a"]);
    });
}

#[test]
fn a_message_waits_for_as_long_as_it_may_and_no_longer() {
    paused(async {
        let config = HttpConfig { inbox_ttl: Duration::from_secs(100), ..config() };
        let (site, _deliveries) = Site::new(config).await;
        let alice = identity(1);
        send_text(&site, &alice, "old").await;
        for _ in 0..6 {
            advance(Duration::from_secs(15)).await;
            settle().await;
        }
        send_text(&site, &alice, "new").await;
        assert_eq!(texts(&site.inbox(&alice).await.ready().await), ["old", "new"]);
        for _ in 0..2 {
            advance(Duration::from_secs(15)).await;
            settle().await;
        }
        assert_eq!(texts(&site.inbox(&alice).await.ready().await), ["new"]);
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

async fn opt_in_of(site: &Site, x: &Identity) {
    let opting = sealed(x, Some(service().did()), opt_in(x), site.now());
    assert_eq!(site.post(opting).await.outcome(), OK);
}

/// A request for the inbox of `x`, in progress.
fn asking(site: &Site, x: &Identity) -> tokio::task::JoinHandle<Stream> {
    let (site, x) = (site.clone(), x.clone());
    actix_rt::spawn(async move { site.inbox(&x).await })
}

#[test]
fn an_inbox_asked_for_before_the_opt_in_opens_with_it() {
    paused(async {
        let (site, _deliveries) = Site::new(config()).await;
        let (x, other) = (external(1), external(2));
        send_text(&site, &x, "early").await;
        let waiting = asking(&site, &x);
        settle().await;
        opt_in_of(&site, &other).await;
        tokio::time::advance(Duration::from_secs(15)).await;
        settle().await;
        assert!(!waiting.is_finished(), "another DID's opt-in does not affect it");
        let before = site.now();
        opt_in_of(&site, &x).await;
        let mut stream = waiting.await.unwrap();
        assert_eq!(texts(&stream.ready().await), ["early"]);
        assert_eq!(site.now(), before, "at once");
        assert_eq!(texts(&site.inbox(&x).await.ready().await), ["early"], "and from now on");
    });
}

#[test]
fn an_inbox_whose_opt_in_does_not_come_is_closed_empty() {
    paused(async {
        let (site, _deliveries) = Site::new(config()).await;
        let x = external(1);
        send_text(&site, &x, "early").await;
        let before = site.now();
        let mut stream = site.inbox(&x).await;
        assert_eq!(stream.next_or_comment().await, None);
        assert_eq!(site.now().since(before).as_secs(), config().early_inbox_wait.as_secs());
        let unauthorized = site.server.report().refusals;
        assert!(unauthorized.contains(&(Refusal::Unauthorized, 1)), "{unauthorized:?}");
    });
}

#[test]
fn waiting_for_an_opt_in_takes_no_others_seat() {
    paused(async {
        let bounds = HttpConfig { early_inboxes: 3, early_inboxes_per_address: 2, ..config() };
        let (site, _deliveries) = Site::new(bounds).await;
        let from = |x: &Identity, address: &str| {
            let peer: std::net::SocketAddr = address.parse().unwrap();
            site.inbox_request(x).peer_addr(peer)
        };
        let wait = |request: TestRequest| {
            let site = site.clone();
            actix_rt::spawn(async move { site.open(request).await })
        };
        let (a, b, c) = ("192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1");
        let waiting = [wait(from(&external(1), a)), wait(from(&external(2), a))];
        settle().await;
        let refused = (401, "unauthorized");
        assert_eq!(site.ask(from(&external(3), a)).await.outcome(), refused, "its address has its share");
        let third = wait(from(&external(3), b));
        settle().await;
        assert_eq!(site.ask(from(&external(4), c)).await.outcome(), refused, "all seats are taken");
        assert_eq!(site.ask(site.inbox_request(&identity(1))).await.status, 200, "a KEY DID needs none");
        // A client that disconnects frees its seat.
        third.abort();
        settle().await;
        let fourth = wait(from(&external(4), c));
        settle().await;
        assert!(!fourth.is_finished());
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap().next().await, None);
        }
        let again = wait(from(&external(3), a));
        settle().await;
        assert!(!again.is_finished());
        // A shutdown does not wait for them.
        let before = site.now();
        site.server.shutdown().await;
        assert_eq!(again.await.unwrap().next().await, None);
        assert_eq!(site.now(), before);
        assert!(
            site.ask(from(&external(5), b)).await.status == 200 && site.now() == before,
            "no request waits any more"
        );
    });
}

#[test]
fn what_no_opt_in_could_make_good_does_not_wait() {
    paused(async {
        let (site, _deliveries) = Site::new(config()).await;
        let (x, before) = (external(1), site.now());
        let path = inbox_path("", x.did());
        let ask = async |header: String| {
            let request = TestRequest::get().uri(&path).insert_header(("authorization", header));
            site.ask(request).await.outcome() == (401, "unauthorized")
        };
        assert!(ask(authorization(&x, &path, before - Duration::from_secs(61))).await, "too old");
        assert!(ask(authorization(&external(2), &path, before)).await, "another one's");
        let good = authorization(&x, &path, before);
        assert!(ask(good[..good.len() - 2].to_owned()).await, "no signature");
        assert_eq!(site.now(), before);
        // A forged signature is only detected after the opt-in.
        let forged = authorization(&x, "/v1/actors/x/inbox", before);
        let waiting = async { ask(forged).await };
        let (refused, ()) = futures::join!(waiting, opt_in_of(&site, &x));
        assert!(refused && site.now() == before);
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
