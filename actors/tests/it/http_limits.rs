//! The gate's stores of nonces and rates, as suites that any store has to pass, and as a client observes them.

use std::{sync::Arc, time::Duration};

use crate::http_support::{
    NOW, ack, identity, paused, sealed, sealed_with, service,
    site::{OK, Site},
};
use actix_web::{HttpMessage, test::TestRequest};
use btcr2_aggregation_actors::transport::connections::Proxies;
use btcr2_aggregation_actors::transport::http::{
    HttpConfig,
    store::{MemoryNonces, MemoryRates, NonceStore, NonceVerdict, Rate, RateLimitStore},
};
use btcr2_aggregation_protocol::{did::Did, time::Timestamp};
use tokio::time::advance;

const REPLAY: (u16, &str) = (409, "replay");
const LIMITED: (u16, &str) = (429, "rate_limited");

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_secs(NOW + seconds)
}

fn did(number: u32) -> Did {
    identity(number).did().clone()
}

fn nonce(number: u128) -> [u8; 16] {
    number.to_be_bytes()
}

/// The suite for nonce stores; `new` creates a store with space for two nonces of each DID and five in all.
async fn nonce_store_suite(new: impl Fn() -> Box<dyn NonceStore>) {
    let (alice, bob, carol) = (did(1), did(2), did(3));
    let (fresh, replayed, full) = (NonceVerdict::Fresh, NonceVerdict::Replayed, NonceVerdict::Full);

    let store = new();
    assert_eq!(store.remember(&alice, nonce(1), at(0), at(61)).await, fresh);
    assert_eq!(store.remember(&alice, nonce(1), at(0), at(61)).await, replayed);
    assert_eq!(store.remember(&bob, nonce(1), at(0), at(61)).await, fresh, "each DID has its own nonces");
    assert_eq!(store.remember(&alice, nonce(1), at(61), at(122)).await, replayed, "up to the last moment");
    assert_eq!(store.remember(&alice, nonce(1), at(61) + Duration::from_millis(1), at(122)).await, fresh);

    let store = new();
    for number in 0..2 {
        assert_eq!(store.remember(&alice, nonce(number), at(0), at(61)).await, fresh);
    }
    assert_eq!(store.remember(&alice, nonce(2), at(0), at(61)).await, full, "a DID has only its own space");
    assert_eq!(store.remember(&alice, nonce(0), at(0), at(61)).await, replayed, "and nothing was evicted");
    for number in 0..2 {
        assert_eq!(store.remember(&bob, nonce(number), at(0), at(90)).await, fresh);
    }
    assert_eq!(store.remember(&carol, nonce(0), at(0), at(61)).await, fresh);
    assert_eq!(store.remember(&carol, nonce(1), at(0), at(61)).await, full, "no space for any DID");
    for (who, number) in [(&alice, 0), (&alice, 1), (&bob, 0), (&bob, 1), (&carol, 0)] {
        assert_eq!(store.remember(who, nonce(number), at(0), at(61)).await, replayed, "all are still known");
    }
    assert_eq!(store.remember(&carol, nonce(1), at(62), at(122)).await, fresh, "space becomes free with time");
    assert_eq!(store.remember(&bob, nonce(1), at(62), at(122)).await, replayed, "but a later nonce remains");
}

#[actix_web::test]
async fn nonces_in_memory_pass_the_suite() {
    nonce_store_suite(|| Box::new(MemoryNonces::new(2, 5))).await;
}

/// The suite for rate limit stores.
async fn rate_store_suite(new: impl Fn() -> Box<dyn RateLimitStore>) {
    let rate = Rate { per_second: 10, burst: 30 };
    let store = new();
    let take = async |key: &str, millis| store.take(key, rate, at(0) + Duration::from_millis(millis)).await;
    for _ in 0..30 {
        assert!(take("alice", 0).await);
    }
    assert!(!take("alice", 0).await, "the burst is used up");
    assert!(take("bob", 0).await, "each key has its own");
    assert!(!take("alice", 99).await);
    assert!(take("alice", 100).await, "one token is added each tenth of a second");
    assert!(!take("alice", 199).await);
    for tenth in 2..=40 {
        assert!(take("alice", tenth * 100).await, "ten a second in the long run");
        assert!(!take("alice", tenth * 100 + 99).await);
    }
    for _ in 0..30 {
        assert!(take("alice", 60_000).await, "full again, at its capacity");
    }
    assert!(!take("alice", 60_000).await);
    assert!(!take("alice", 59_000).await, "a clock that is set back adds nothing");

    let none = Rate { per_second: 0, burst: 0 };
    assert!(!store.take("zero", none, at(1_000_000)).await);
}

#[actix_web::test]
async fn rates_in_memory_pass_the_suite() {
    rate_store_suite(|| Box::new(MemoryRates::default())).await;
}

#[actix_web::test]
async fn idle_buckets_are_forgotten_and_only_they() {
    let (slow, fast) = (Rate { per_second: 1, burst: 1000 }, Rate { per_second: 10, burst: 30 });
    let rates = MemoryRates::new(2_000);
    for _ in 0..1000 {
        assert!(rates.take("address", slow, at(0)).await);
    }
    for round in 0..20 {
        for number in 0..1_000 {
            assert!(rates.take(&format!("{round} {number}"), fast, at(round)).await, "there is always space");
        }
        assert!(rates.len() <= 2_000);
    }
    // A sweep that applied the rate of the others to the address would have removed its bucket.
    let mut granted = 0;
    while rates.take("address", slow, at(20)).await {
        granted += 1;
    }
    assert_eq!(granted, 20);
    for number in 0..3_000 {
        rates.take(&format!("late {number}"), fast, at(1_000_000)).await;
    }
    assert!(!rates.take("one too many", fast, at(1_000_000)).await, "bounded");
    assert!(rates.take("late 0", fast, at(1_000_000)).await, "a known key continues");
    assert!(rates.take("one too many", fast, at(1_000_001)).await, "and space becomes free");
    assert!(rates.len() < 10);
}

#[test]
fn a_nonce_stays_refused_for_as_long_as_its_timestamp_is_accepted_whatever_else_comes() {
    paused(async {
        let nonces = Arc::new(MemoryNonces::new(50, 100_000));
        let (store, config) = (Arc::clone(&nonces), HttpConfig::default());
        let (site, _deliveries) = Site::with(|parts| {
            parts.nonces = store;
            // This test is about nonces.
            parts.config = HttpConfig { address_rate: Rate { per_second: 100_000, burst: 100_000 }, ..config };
        })
        .await;
        let alice = identity(1);
        let start = site.now();
        // The oldest, the current and the latest acceptable timestamp.
        let envelopes: Vec<_> =
            [(60, start - Duration::from_secs(60)), (0, start), (120, start + Duration::from_secs(60))]
                .into_iter()
                .enumerate()
                .map(|(number, (_, at))| (at, sealed_with(&alice, number as u128, at)))
                .collect();
        for (_, envelope) in &envelopes {
            assert_eq!(site.post(envelope.clone()).await.outcome(), OK);
        }
        let mut flood = 100;
        for seconds in [0, 59, 60, 61, 119, 120, 121] {
            advance((start + Duration::from_secs(seconds)).since(site.now())).await;
            for number in 0..20 {
                flood += 1;
                site.post(sealed_with(&identity(100 + number), flood, site.now())).await;
                // Also with her own nonces, within her bound.
                site.post(sealed_with(&alice, flood, site.now())).await;
            }
            for (at, envelope) in &envelopes {
                let accepted = at.agrees_with(site.now(), Duration::from_secs(60));
                let expected = if accepted { REPLAY } else { (401, "invalid_envelope") };
                assert_eq!(site.post(envelope.clone()).await.outcome(), expected, "{at:?} after {seconds} s");
            }
            // At the very end of the second, too.
            advance(Duration::from_millis(999)).await;
            for (at, envelope) in &envelopes {
                let accepted = at.agrees_with(site.now(), Duration::from_secs(60));
                let expected = if accepted { REPLAY } else { (401, "invalid_envelope") };
                assert_eq!(site.post(envelope.clone()).await.outcome(), expected, "{at:?} after {seconds}.999 s");
            }
        }
        advance(Duration::from_secs(200)).await;
        site.post(sealed_with(&alice, 0, site.now())).await;
        assert_eq!(nonces.len(), 1, "nonces that could not be accepted any more are removed");
    });
}

#[test]
fn a_did_that_uses_up_its_room_hurts_only_itself() {
    paused(async {
        let nonces = Arc::new(MemoryNonces::new(10, 1_000));
        let store = Arc::clone(&nonces);
        let (site, _deliveries) = Site::with(|parts| parts.nonces = store).await;
        let (alice, mallory) = (identity(1), identity(2));
        let first = sealed_with(&alice, 0, site.now());
        assert_eq!(site.post(first.clone()).await.outcome(), OK);
        for number in 0..200 {
            let expected = if number < 10 { OK } else { LIMITED };
            assert_eq!(site.post(sealed_with(&mallory, number, site.now())).await.outcome(), expected);
        }
        assert_eq!(nonces.len(), 11);
        assert_eq!(site.post(first).await.outcome(), REPLAY);
        assert_eq!(site.post(sealed_with(&alice, 1, site.now())).await.outcome(), OK);
    });
}

#[test]
fn inbox_requests_and_envelopes_share_a_did_s_nonces_and_rate() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig::default()).await;
        let alice = identity(1);
        let request = site.inbox_request(&alice).to_request();
        let header = request.headers().get("authorization").unwrap().clone();
        let ask = || TestRequest::get().uri(request.uri().path()).insert_header(("authorization", header.clone()));
        assert_eq!(site.ask(ask()).await.status, 200);
        assert_eq!(site.ask(ask()).await.outcome(), REPLAY);
        let text = header.to_str().unwrap();
        let used = text.split("nonce=").nth(1).unwrap().split(',').next().unwrap();
        let used = u128::from_str_radix(used, 16).unwrap();
        assert_eq!(site.post(sealed_with(&alice, used, site.now())).await.outcome(), REPLAY);
        for _ in 0..29 {
            assert_eq!(site.ask(site.inbox_request(&alice)).await.status, 200);
        }
        assert_eq!(site.ask(site.inbox_request(&alice)).await.outcome(), LIMITED);
    });
}

#[test]
fn a_verified_did_has_its_burst_and_then_its_rate() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig::default()).await;
        let (alice, bob) = (identity(1), identity(2));
        let send = async |from| site.post(sealed(from, Some(service().did()), ack(), site.now())).await.status;
        for _ in 0..30 {
            assert_eq!(send(&alice).await, 202);
        }
        assert_eq!(send(&alice).await, 429);
        assert_eq!(send(&bob).await, 202);
        for _ in 0..20 {
            advance(Duration::from_millis(100)).await;
            assert_eq!((send(&alice).await, send(&alice).await), (202, 429), "ten a second");
        }
    });
}

#[test]
fn what_is_not_signed_does_not_count_against_the_did_that_it_names() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig::default()).await;
        let alice = identity(1);
        let good = sealed_with(&alice, 1, site.now());
        let forged = good.replace("\"approved\":true", "\"approved\":false");
        for _ in 0..100 {
            assert_eq!(site.post(forged.clone()).await.outcome(), (401, "invalid_envelope"));
        }
        assert_eq!(site.post(good).await.outcome(), OK, "neither its rate nor its nonce is used up");
    });
}

#[test]
fn an_address_is_limited_before_anything_is_read() {
    paused(async {
        let config = HttpConfig { address_rate: Rate { per_second: 1, burst: 5 }, ..HttpConfig::default() };
        let (site, _deliveries) = Site::new(config).await;
        let good = sealed(&identity(1), Some(service().did()), ack(), site.now());
        for _ in 0..5 {
            assert_eq!(site.post_from("192.0.2.1:1000", "{").await.outcome(), (400, "invalid_json"));
        }
        // From any port, with any body, on every route with a cost.
        assert_eq!(site.post_from("192.0.2.1:2000", "x".repeat(70_000)).await.outcome(), LIMITED);
        assert_eq!(site.post_from("192.0.2.1:1000", good.clone()).await.outcome(), LIMITED);
        let peer = "192.0.2.1:1000".parse().unwrap();
        for request in [
            TestRequest::post().uri("/v1/adverts"),
            TestRequest::get().uri("/v1/adverts"),
            site.inbox_request(&identity(1)),
        ] {
            assert_eq!(site.ask(request.peer_addr(peer)).await.outcome(), LIMITED);
        }
        assert_eq!(site.post_from("192.0.2.2:1000", good).await.outcome(), OK, "another address");
        advance(Duration::from_secs(1)).await;
        assert_eq!(site.post_from("192.0.2.1:1000", "{").await.outcome(), (400, "invalid_json"));
    });
}

#[test]
fn of_ipv6_the_network_is_what_counts() {
    paused(async {
        let config = HttpConfig { address_rate: Rate { per_second: 1, burst: 1 }, ..HttpConfig::default() };
        let (site, _deliveries) = Site::new(config).await;
        let invalid = (400, "invalid_json");
        assert_eq!(site.post_from("[2001:db8::1]:1", "{").await.outcome(), invalid);
        assert_eq!(site.post_from("[2001:db8::ffff:2]:1", "{").await.outcome(), LIMITED);
        assert_eq!(site.post_from("[2001:db8:0:1::1]:1", "{").await.outcome(), invalid, "another network");
        assert_eq!(site.post_from("192.0.2.1:1", "{").await.outcome(), invalid);
        assert_eq!(
            site.post_from("[::ffff:192.0.2.1]:1", "{").await.outcome(),
            LIMITED,
            "the same address in another form"
        );
    });
}

#[test]
fn a_forwarded_address_counts_only_when_the_proxy_is_trusted() {
    let ours = Proxies::At(vec!["192.0.2.0/24".parse().unwrap()]);
    for (proxies, expected) in
        [(Proxies::None, LIMITED), (Proxies::All, (400, "invalid_json")), (ours, (400, "invalid_json"))]
    {
        paused(async {
            let address_rate = Rate { per_second: 1, burst: 1 };
            let config = HttpConfig { address_rate, proxies: proxies.clone(), ..HttpConfig::default() };
            let (site, _deliveries) = Site::new(config).await;
            let ask = |from: &str| {
                let request = TestRequest::post().uri("/v1/messages").peer_addr("192.0.2.1:1".parse().unwrap());
                site.ask(request.insert_header(("x-forwarded-for", from.to_owned())).set_payload("{"))
            };
            assert_eq!(ask("198.51.100.1").await.outcome(), (400, "invalid_json"));
            assert_eq!(ask("198.51.100.2").await.outcome(), expected);
        });
    }
}

#[test]
fn made_up_dids_share_what_their_address_has() {
    paused(async {
        let config = HttpConfig { address_rate: Rate { per_second: 4, burst: 20 }, ..HttpConfig::default() };
        let (site, _deliveries) = Site::new(config).await;
        let from = |number| sealed(&identity(number), Some(service().did()), ack(), site.now());
        for number in 1..=10 {
            assert_eq!(site.post_from("192.0.2.1:1", from(number)).await.outcome(), OK);
        }
        // Its signature is not known to be wrong, because it was not checked.
        let forged = from(11).replace("\"approved\":true", "\"approved\":false");
        assert_eq!(site.post_from("192.0.2.1:1", forged).await.outcome(), LIMITED);
        assert_eq!(site.post_from("192.0.2.2:1", from(12)).await.outcome(), OK, "another address");
        advance(Duration::from_secs(1)).await;
        assert_eq!(site.post_from("192.0.2.1:1", from(13)).await.outcome(), OK);
    });
}

#[test]
fn an_ipv6_site_has_four_times_what_a_network_has() {
    paused(async {
        let config = HttpConfig { address_rate: Rate { per_second: 1, burst: 1 }, ..HttpConfig::default() };
        let (site, _deliveries) = Site::new(config).await;
        for network in 0..4 {
            let from = format!("[2001:db8:0:{network}::1]:1");
            assert_eq!(site.post_from(&from, "{").await.outcome(), (400, "invalid_json"));
        }
        assert_eq!(site.post_from("[2001:db8:0:5::1]:1", "{").await.outcome(), LIMITED);
        assert_eq!(site.post_from("[2001:db8:1::1]:1", "{").await.outcome(), (400, "invalid_json"), "another site");
    });
}

#[test]
fn an_address_has_its_share_of_the_advert_streams() {
    paused(async {
        let config = HttpConfig { advert_streams: 3, advert_streams_per_address: 2, ..HttpConfig::default() };
        let (site, _deliveries) = Site::new(config).await;
        let request = |from: &str| TestRequest::get().uri("/v1/adverts").peer_addr(from.parse().unwrap());
        let mut first = site.open(request("192.0.2.1:1")).await;
        let mut second = site.open(request("192.0.2.1:2")).await;
        let mut third = site.open(request("192.0.2.1:3")).await;
        assert!(first.is_closed().await, "it has read the adverts, and is evicted");
        let mut other = site.open(request("192.0.2.2:1")).await;
        assert_eq!(site.ask(request("192.0.2.3:1")).await.outcome(), LIMITED, "all are taken");
        let _fourth = site.open(request("192.0.2.1:4")).await;
        assert!(second.is_closed().await && !third.is_closed().await && !other.is_closed().await);
    });
}
