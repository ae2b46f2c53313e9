//! The streams over real sockets: behaviour that depends on connections, on the requested path, and on headers.

use std::time::{Duration, Instant};

use crate::http_support::{
    advert, authorization, external, identity,
    loopback::{Loopback, PATIENCE, RawStream, client},
    opt_in, saying, sealed, service,
};
use btcr2_aggregation_actors::transport::{
    Outbound,
    http::{Cors, HttpConfig},
};
use btcr2_aggregation_protocol::{identity::Identity, request_auth::inbox_path};
use serde_json::{Value, json};

/// Short, so that a heartbeat's effects come soon.
fn config() -> HttpConfig {
    HttpConfig { heartbeat: Duration::from_millis(20), ..HttpConfig::default() }
}

async fn send_text(loopback: &Loopback, to: &Identity, text: &str) {
    let to = to.did().clone();
    loopback.service.send(Outbound::Direct { to, body: saying(text), until: None }).await.unwrap();
}

async fn next_text(stream: &mut RawStream) -> String {
    stream.next().await.expect("an event").text()
}

#[actix_web::test]
async fn a_scope_below_a_prefix_takes_the_whole_path_signed() {
    let (loopback, _deliveries) = Loopback::start("/agg", config()).await;
    let alice = identity(1);
    send_text(&loopback, &alice, "a").await;
    let mut stream = loopback.inbox(&alice, None).await;
    assert_eq!(stream.status(), 200);
    let first = stream.next().await.unwrap();
    assert_eq!(first.text(), "a");
    drop(stream);
    send_text(&loopback, &alice, "b").await;
    let mut stream = loopback.inbox(&alice, first.id).await;
    assert_eq!(next_text(&mut stream).await, "b");

    // Without the prefix it is another path.
    let asked = inbox_path("/agg", alice.did());
    let header = authorization(&alice, &inbox_path("", alice.did()), loopback.clock.now());
    let mut refused = loopback.open(&asked, &[("authorization", &header)]).await;
    assert_eq!((refused.status(), refused.body().await.as_str()), (401, r#"{"error":"unauthorized"}"#));
    // The host's other paths.
    let mut other = loopback.open("/v1/adverts", &[]).await;
    assert_eq!((other.status(), other.body().await.as_str()), (404, r#"{"error":"not_found"}"#));
    loopback.stop().await;
}

#[actix_web::test]
async fn an_external_inbox_is_open_within_a_second_of_its_opt_in() {
    let (loopback, _deliveries) = Loopback::start("", config()).await;
    let x = external(1);
    send_text(&loopback, &x, "accepted").await;
    let opening = async {
        let mut stream = loopback.inbox(&x, None).await;
        assert_eq!((stream.status(), next_text(&mut stream).await.as_str()), (200, "accepted"));
        Instant::now()
    };
    let opting = async {
        let to = service();
        let envelope = sealed(&x, Some(to.did()), opt_in(&x), loopback.clock.now());
        assert_eq!(loopback.post(envelope).await.0, 202);
        Instant::now()
    };
    let (opened, accepted) = tokio::join!(opening, opting);
    assert!(opened.saturating_duration_since(accepted) < Duration::from_secs(1));
    loopback.stop().await;
}

#[actix_web::test]
async fn an_early_inbox_does_not_hold_up_the_servers_stop() {
    let (loopback, _deliveries) = Loopback::start("", config()).await;
    let x = external(1);
    let stopping = async {
        // After the request, because requests are handled in order of arrival.
        assert_eq!(loopback.answer(client().get(loopback.url("/v1/.well-known/aggregation"))).await.0, 200);
        loopback.server.shutdown().await;
    };
    let began = Instant::now();
    let (mut early, ()) = tokio::join!(loopback.inbox(&x, None), stopping);
    assert_eq!((early.status(), early.next().await), (200, None));
    assert!(began.elapsed() < HttpConfig::default().early_inbox_wait);
    loopback.stop().await;
}

#[actix_web::test]
async fn refused_streams_are_answers_with_a_status_and_a_body() {
    let (loopback, _deliveries) = Loopback::start("", HttpConfig { advert_streams: 0, ..config() }).await;
    let alice = identity(1);
    let path = inbox_path("", alice.did());
    let header = authorization(&alice, &path, loopback.clock.now());
    let origin = ("origin", "https://page.example");
    let adverts = "/v1/adverts".to_owned();
    let cases: [(&String, &str, u16, &str); 5] = [
        (&path, "", 401, "unauthorized"),
        (&path, &header, 200, ""),
        (&path, &header, 409, "replay"),
        (&path, "Bearer x", 401, "unauthorized"),
        (&adverts, "", 429, "rate_limited"),
    ];
    for (path, header, status, code) in cases {
        let mut stream = loopback.open(path, &[("authorization", header), origin]).await;
        assert_eq!(stream.status(), status);
        assert!(stream.head.to_lowercase().contains("access-control-allow-origin: *\r\n"), "{}", stream.head);
        if status != 200 {
            let body: Value = serde_json::from_str(&stream.body().await).unwrap();
            assert_eq!(body, json!({ "error": code }));
        }
    }
    loopback.stop().await;
}

#[actix_web::test]
async fn streams_are_not_to_be_cached_or_buffered_and_beat() {
    let (loopback, _deliveries) = Loopback::start("", config()).await;
    for mut stream in [loopback.open("/v1/adverts", &[]).await, loopback.inbox(&identity(1), None).await] {
        let head = stream.head.to_lowercase();
        for header in ["content-type: text/event-stream", "cache-control: no-store", "x-accel-buffering: no"] {
            assert!(head.contains(header), "{head}");
        }
        assert!(!head.contains("access-control"), "no origin was sent");
        for _ in 0..3 {
            assert_eq!(stream.next_or_comment().await.unwrap().comment.as_deref(), Some("heartbeat"));
        }
    }
    loopback.stop().await;
}

/// Waits until `condition` holds; the test fails if it never does.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what} never happened"));
}

#[actix_web::test]
async fn a_vanished_reader_is_noticed() {
    let (loopback, _deliveries) = Loopback::start("", HttpConfig { advert_streams: 1, ..config() }).await;
    let mut reader = loopback.open("/v1/adverts", &[]).await;
    reader.next_or_comment().await.unwrap();
    assert_eq!(loopback.open("/v1/adverts", &[]).await.status(), 429);
    drop(reader);
    until("space for another", async || loopback.open("/v1/adverts", &[]).await.status() == 200).await;

    // An inbox ends, and frees its space, when it has no reader and no messages.
    let (loopback, _deliveries) = Loopback::start("", HttpConfig { inboxes: 1, ..config() }).await;
    let mut reader = loopback.inbox(&identity(1), None).await;
    reader.next_or_comment().await.unwrap();
    assert_eq!(loopback.inbox(&identity(2), None).await.status(), 429);
    drop(reader);
    // Another sender each time, because each DID has a rate.
    let mut number = 2;
    until("space for another inbox", async || {
        number += 1;
        loopback.inbox(&identity(number), None).await.status() == 200
    })
    .await;
    loopback.stop().await;
}

#[actix_web::test]
async fn a_stuck_reader_blocks_no_other_and_catches_up_later() {
    let config = HttpConfig { inbox_messages: 64, inbox_bytes: 4 << 20, ..config() };
    let (loopback, _deliveries) = Loopback::start("", config).await;
    let (alice, bob) = (identity(1), identity(2));
    let stuck = loopback.inbox(&alice, None).await;
    let mut reading = loopback.inbox(&bob, None).await;
    // Far more than the buffers of the sockets and the queue.
    let padding = "x".repeat(60_000);
    for number in 0..600 {
        send_text(&loopback, &alice, &format!("{number} {padding}")).await;
        send_text(&loopback, &bob, &number.to_string()).await;
        assert_eq!(next_text(&mut reading).await, number.to_string());
    }
    drop(stuck);
    let mut late = loopback.inbox(&alice, None).await;
    let first = next_text(&mut late).await;
    let first: usize = first.split(' ').next().unwrap().parse().unwrap();
    assert!((500..600).contains(&first), "the newest are stored");
    for number in first + 1..600 {
        assert!(next_text(&mut late).await.starts_with(&format!("{number} ")));
    }
    loopback.stop().await;
}

#[actix_web::test]
async fn shutdown_ends_streams_properly() {
    let (loopback, _deliveries) = Loopback::start("", config()).await;
    let mut adverts = loopback.open("/v1/adverts", &[]).await;
    let mut inbox = loopback.inbox(&identity(1), None).await;
    loopback.service.send(Outbound::Broadcast { body: advert(1) }).await.unwrap();
    send_text(&loopback, &identity(1), "last").await;
    assert_eq!(adverts.next().await.unwrap().name, "advert");
    assert_eq!(next_text(&mut inbox).await, "last");
    loopback.server.shutdown().await;
    assert_eq!((adverts.next().await, inbox.next().await), (None, None));
    loopback.stop().await;
}

/// The origin that the answer names, and whether a cache has to distinguish origins.
async fn cors_headers(
    loopback: &Loopback,
    method: reqwest::Method,
    path: &str,
    origin: Option<&str>,
) -> (Option<String>, bool) {
    let mut request = client().request(method, loopback.url(path));
    if let Some(origin) = origin {
        request = request.header("origin", origin);
    }
    let response = request.send().await.unwrap();
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    (header("access-control-allow-origin"), header("vary").is_some_and(|vary| vary == "Origin"))
}

#[actix_web::test]
async fn pages_may_read_every_answer_as_configured() {
    let (ours, theirs) = ("https://ours.example", "https://theirs.example");
    let any = "*";
    let cases: [(Cors, Option<&str>, Option<&str>); 8] = [
        (Cors::Permissive, Some(theirs), Some(any)),
        (Cors::Permissive, None, None),
        (Cors::Allow(vec![ours.to_owned()]), Some(ours), Some(ours)),
        (Cors::Allow(vec![ours.to_owned()]), Some(theirs), None),
        (Cors::Allow(vec![ours.to_owned()]), Some("https://ours.example.evil"), None),
        (Cors::Allow(vec![ours.to_owned()]), None, None),
        (Cors::SameOrigin, Some(ours), None),
        (Cors::SameOrigin, None, None),
    ];
    for (cors, origin, expected) in cases {
        let (loopback, _deliveries) = Loopback::start("", HttpConfig { cors: cors.clone(), ..config() }).await;
        let requests = [
            (reqwest::Method::GET, "/v1/adverts"),
            (reqwest::Method::POST, "/v1/messages"),
            (reqwest::Method::GET, "/v1/actors/x/inbox"),
            (reqwest::Method::GET, "/v1/.well-known/aggregation"),
            (reqwest::Method::GET, "/v1/openapi.json"),
            (reqwest::Method::OPTIONS, "/v1/messages"),
            (reqwest::Method::PUT, "/v1/messages"),
            (reqwest::Method::GET, "/nope"),
        ];
        for (method, path) in requests {
            let (allowed, varies) = cors_headers(&loopback, method.clone(), path, origin).await;
            assert_eq!(varies, cors != Cors::SameOrigin, "{method} {path} by {cors:?}");
            assert_eq!(allowed.as_deref(), expected, "{method} {path} from {origin:?} by {cors:?}");
        }
        loopback.stop().await;
    }
}
