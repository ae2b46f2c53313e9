//! The state of a server with a state directory after a restart: the messages in the inboxes, and the used nonces.

use std::{sync::Arc, time::Duration};

use crate::http_support::{
    NOW, collector, identity, paused, paused_beside_a_disk, saying, sealed_with, service,
    site::{OK, Site, settle},
    sse::Event,
};
use btcr2_aggregation_actors::{
    runtime::Clock,
    state::{State, inboxes::StateInboxes, nonces::StateNonces},
    supervision::End,
    supervision::Vitals,
    transport::{
        Delivery, Inbox, Outbound, Transport,
        http::{
            HttpConfig, HttpServer,
            server::HttpServerParts,
            store::Rate,
            waiting::{InboxStore, Waiting},
        },
        link::Link,
    },
};
use btcr2_aggregation_protocol::{
    did::Did, envelope::ExpectedTo, identity::Identity, message::SharedBody, time::Timestamp,
};
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;

fn config() -> HttpConfig {
    let rate = Rate { per_second: 1_000_000, burst: 1_000_000 };
    HttpConfig { did_rate: rate, address_rate: rate, ..HttpConfig::default() }
}

/// A server that was started on a state directory at a time, and the values that must live as long.
struct Started {
    site: Site,
    state: State,
    _deliveries: UnboundedReceiver<Delivery>,
}

impl Started {
    async fn with(dir: &TempDir, of: &Identity, secs: u64, change: impl FnOnce(&mut HttpServerParts)) -> Self {
        let state = State::open(dir.path()).unwrap();
        let now = Timestamp::from_secs(secs);
        let inboxes = StateInboxes::load(&state, now, config().inbox_ttl).await.unwrap();
        let (site, deliveries) = Site::of(of, secs, |parts| {
            parts.config = config();
            parts.inboxes = Arc::new(inboxes);
            change(parts);
        })
        .await;
        settle().await;
        Self { site, state, _deliveries: deliveries }
    }

    async fn at(dir: &TempDir, secs: u64) -> Self {
        Self::with(dir, &service(), secs, |_| {}).await
    }

    /// Stops it as an operator does.
    async fn stop(self) {
        self.site.server.shutdown().await;
        settle().await;
        self.state.close().await;
    }

    async fn send(&self, to: &Did, body: SharedBody) {
        self.site.send(Outbound::Direct { to: to.clone(), body, until: None }).await;
    }

    async fn send_text(&self, to: &Identity, text: &str) {
        self.send(to.did(), saying(text)).await;
    }
}

fn texts(events: &[Event]) -> Vec<String> {
    events.iter().map(Event::text).collect()
}

fn ids(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.id.unwrap()).collect()
}

#[test]
fn what_waits_is_delivered_after_a_restart_under_the_same_number() {
    paused_beside_a_disk(async {
        let dir = TempDir::new().unwrap();
        let (alice, bob) = (identity(1), identity(2));
        let first = Started::at(&dir, NOW).await;
        for text in ["a", "b", "c"] {
            first.send_text(&alice, text).await;
        }
        first.send_text(&bob, "x").await;
        let before = first.site.inbox(&alice).await.ready().await;
        assert_eq!(texts(&before), ["a", "b", "c"]);
        first.stop().await;

        // An hour later, so that an old signature would be refused.
        let second = Started::at(&dir, NOW + 3600).await;
        let mut stream = second.site.inbox_after(&alice, ids(&before)[0]).await;
        second.send_text(&alice, "d").await;
        let after = stream.ready().await;
        assert_eq!(texts(&after), ["b", "c", "d"], "neither loss nor repetition");
        assert_eq!(ids(&after)[..2], ids(&before)[1..]);
        assert!(ids(&after).is_sorted_by(|a, b| a < b));
        for event in &after {
            second.site.verify(event, ExpectedTo::Did(alice.did()));
        }
        assert_eq!(texts(&second.site.inbox(&bob).await.ready().await), ["x"]);
        drop(stream);
        second.stop().await;

        let third = Started::at(&dir, NOW + 3700).await;
        let events = third.site.inbox(&alice).await.ready().await;
        assert_eq!(texts(&events), ["b", "c", "d"], "confirmed messages were removed");
    });
}

#[test]
fn numbers_count_on_when_the_clock_was_turned_back() {
    paused_beside_a_disk(async {
        let dir = TempDir::new().unwrap();
        let alice = identity(1);
        let first = Started::at(&dir, NOW).await;
        first.send_text(&alice, "a").await;
        first.send_text(&alice, "b").await;
        let before = ids(&first.site.inbox(&alice).await.ready().await);
        // Everything is confirmed, so that no message is left to count from.
        drop(first.site.inbox_after(&alice, before[1]).await);
        settle().await;
        first.stop().await;

        let second = Started::at(&dir, NOW - 1_000_000).await;
        second.send_text(&alice, "c").await;
        let after = second.site.inbox_after(&alice, before[1]).await.ready().await;
        assert_eq!(texts(&after), ["c"]);
    });
}

#[test]
fn what_waits_too_long_or_is_too_much_is_forgotten_on_disk_too() {
    paused_beside_a_disk(async {
        let dir = TempDir::new().unwrap();
        let (alice, bob) = (identity(1), identity(2));
        let first = Started::with(&dir, &service(), NOW, |parts| parts.config.inbox_messages = 2).await;
        for text in ["a", "b", "c"] {
            first.send_text(&alice, text).await;
        }
        first.stop().await;
        let ttl = config().inbox_ttl.as_secs();
        let second = Started::at(&dir, NOW + ttl - 60).await;
        second.send_text(&bob, "late").await;
        assert_eq!(texts(&second.site.inbox(&alice).await.ready().await), ["b", "c"]);
        second.stop().await;

        let third = Started::at(&dir, NOW + ttl + 60).await;
        assert_eq!(texts(&third.site.inbox(&alice).await.ready().await), Vec::<String>::new());
        assert_eq!(texts(&third.site.inbox(&bob).await.ready().await), ["late"]);
        let left = third.state.table("http-inboxes").scan(*b"m", None, 100).await.unwrap();
        assert_eq!(left.entries.len(), 1);
    });
}

#[test]
fn a_message_waits_until_its_sender_connects_again() {
    paused_beside_a_disk(async {
        let dir = TempDir::new().unwrap();
        let alice = identity(1);
        let first = Started::at(&dir, NOW).await;
        for text in ["a", "b", "c"] {
            first.send_text(&alice, text).await;
        }
        let before = ids(&first.site.inbox(&alice).await.ready().await);
        first.stop().await;

        let other = identity(9);
        let second = Started::with(&dir, &other, NOW, |_| {}).await;
        let mut stream = second.site.inbox_after(&alice, before[0]).await;
        second.send_text(&alice, "other").await;
        assert_eq!(texts(&stream.ready().await), ["other"]);
        let (inbox, _deliveries) = collector();
        let _connection = second.site.server.connect(&service(), inbox).await.unwrap();
        let events = stream.ready().await;
        assert_eq!(texts(&events), ["b", "c"], "and no confirmed message");
        for event in &events {
            second.site.verify(event, ExpectedTo::Did(alice.did()));
        }
        let everything = second.site.inbox(&alice).await.ready().await;
        assert_eq!(texts(&everything), ["b", "c", "other"], "in the order of their numbers");
    });
}

#[test]
fn a_body_that_goes_to_many_is_on_disk_once() {
    paused_beside_a_disk(async {
        const MEMBERS: u32 = 40;
        let dir = TempDir::new().unwrap();
        let first = Started::at(&dir, NOW).await;
        let body = saying(&"x".repeat(10_000));
        for member in 1..=MEMBERS {
            first.send(identity(member).did(), body.clone()).await;
        }
        first.send_text(&identity(1), "another").await;
        first.stop().await;

        let second = Started::at(&dir, NOW).await;
        let table = second.state.table("http-inboxes");
        assert_eq!(table.scan(*b"b", None, 100).await.unwrap().entries.len(), 2);
        assert_eq!(table.scan(*b"m", None, 100).await.unwrap().entries.len(), MEMBERS as usize + 1);
        for member in 1..=MEMBERS {
            let events = second.site.inbox(&identity(member)).await.ready().await;
            assert_eq!(events[0].text().len(), 10_000);
            drop(second.site.inbox_after(&identity(member), *ids(&events).last().unwrap()).await);
            settle().await;
        }
        second.stop().await;
        let state = State::open(dir.path()).unwrap();
        let left = state.table("http-inboxes").scan(Vec::new(), None, 100).await.unwrap();
        let keys: Vec<_> = left.entries.iter().map(|(key, _)| key.as_slice()).collect();
        assert_eq!(keys, [b"last"], "the body was removed with its last message");
    });
}

#[test]
fn damaged_entries_cost_no_more_than_themselves() {
    paused_beside_a_disk(async {
        let dir = TempDir::new().unwrap();
        let alice = identity(1);
        let first = Started::at(&dir, NOW).await;
        first.send_text(&alice, "a").await;
        first.send_text(&alice, "b").await;
        first.stop().await;
        let state = State::open(dir.path()).unwrap();
        let table = state.table("http-inboxes");
        let bodies = table.scan(*b"b", None, 100).await.unwrap();
        table.put(bodies.entries[0].0.clone(), *b"{\"type\":\"unknown\"}").await.unwrap();
        table.put(*b"m of no shape", *b"").await.unwrap();
        table.put(*b"b?", *b"").await.unwrap();
        state.close().await;
        let second = Started::at(&dir, NOW).await;
        assert_eq!(texts(&second.site.inbox(&alice).await.ready().await), ["b"]);
        let table = second.state.table("http-inboxes");
        assert_eq!(
            table.scan(Vec::new(), None, 100).await.unwrap().entries.len(),
            3,
            "the last number, a body, an entry"
        );
    });
}

#[test]
fn what_was_accepted_before_a_restart_is_a_replay_after_it() {
    // The clock must run: it would jump while all actors wait for the disk.
    actix_rt::System::new().block_on(async {
        let dir = TempDir::new().unwrap();
        let alice = identity(1);
        let message = sealed_with(&alice, 7, Timestamp::from_secs(NOW));
        for outcome in [OK, (409, "replay"), (409, "replay")] {
            let state = State::open(dir.path()).unwrap();
            let nonces = StateNonces::load(&state, Timestamp::from_secs(NOW)).await.unwrap();
            let (site, deliveries) = Site::with(|parts| {
                parts.config.clock_skew = Duration::from_secs(3600);
                parts.nonces = Arc::new(nonces);
            })
            .await;
            assert_eq!(site.post(message.clone()).await.outcome(), outcome);
            drop(deliveries);
            state.close().await;
        }
    });
}

/// A store that cannot be read.
struct Broken;

impl InboxStore for Broken {
    fn last_id(&self) -> u64 {
        0
    }

    fn put(&self, _: &Did, _: &Waiting) {}

    fn remove(&self, _: &Did, _: u64) {}

    fn take(&self, _: &Did) -> Vec<Waiting> {
        panic!("as this test wants")
    }
}

#[test]
fn a_hub_that_panics_too_often_is_given_up_and_reported() {
    paused(async {
        let vitals = Vitals::default();
        let parts = HttpServerParts::new(config(), Clock::system());
        let parts = HttpServerParts { inboxes: Arc::new(Broken), vitals: vitals.clone(), ..parts };
        let server = HttpServer::start(parts);
        // Connects again and again, and the hub panics each time.
        let (inbox, _unread) = Inbox::channel(8);
        let link = Link::start(Arc::new(server), service(), inbox);
        let gone = vitals.failed().await;
        assert_eq!(gone.to_string(), "HTTP server has ended: its actor panicked 6 times within 60s");
        drop(link);
    });
}

#[test]
fn a_server_that_is_shut_down_is_not_reported() {
    paused(async {
        let vitals = Vitals::default();
        let parts = HttpServerParts { vitals: vitals.clone(), ..HttpServerParts::new(config(), Clock::system()) };
        let server = HttpServer::start(parts);
        let connection = server.connect(&service(), Inbox::channel(8).0).await.unwrap();
        server.shutdown().await;
        assert_eq!(connection.ended().await, End::Finished);
        assert_eq!(vitals.gone(), None);
    });
}
