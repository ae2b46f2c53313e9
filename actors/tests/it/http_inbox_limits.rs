//! The limits of inboxes: which messages are dropped first, and what is sent again.

use std::time::Duration;

use crate::{
    common::peers::note,
    http_streams::{config, send_text, texts},
    http_support::{
        identity, paused,
        site::{Site, settle},
        sse::Event,
    },
};
use btcr2_aggregation_actors::transport::{Delivery, Outbound, http::HttpConfig};
use btcr2_aggregation_protocol::{id::CohortId, message::control::CohortEnded};
use tokio::time::advance;

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
