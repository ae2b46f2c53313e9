//! Inboxes that are requested before the opt-in that proves their owner's key.

use std::time::Duration;

use crate::{
    http_streams::{config, send_text, texts},
    http_support::{
        authorization, external, identity, opt_in, paused, sealed, service,
        site::{OK, Site, Stream, settle},
    },
};
use actix_web::test::TestRequest;
use btcr2_aggregation_actors::transport::http::{HttpConfig, Refusal};
use btcr2_aggregation_protocol::{identity::Identity, request_auth::inbox_path};

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
