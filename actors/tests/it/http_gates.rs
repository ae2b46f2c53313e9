//! The checks of a request: their order, clocks, sizes, prefixes, and EXTERNAL senders.

use std::{sync::Arc, time::Duration};

use crate::http_support::{
    ack, advert, authorization, draft, external, identity,
    loopback::Loopback,
    opt_in, paused, saying, sealed, sealed_with, service, signed,
    site::{OK, Site, settle},
};
use actix_web::test::TestRequest;
use btcr2_aggregation_actors::transport::{
    Outbound,
    http::{HttpConfig, store::Rate},
};
use btcr2_aggregation_protocol::{
    id::CohortId,
    identity::Identity,
    message::{Body, update::SubmitUpdate},
    request_auth::inbox_path,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// One way to break the rule of a check in an otherwise valid envelope, in the order of the checks.
struct Break {
    refusal: (u16, &'static str),
    change: fn(&mut Value),
}

const BREAKS: [Break; 8] = [
    Break { refusal: (413, "payload_too_large"), change: |e| e["pad"] = json!("x".repeat(70_000)) },
    Break { refusal: (400, "invalid_json"), change: |e| e["message"]["body"]["pk"] = json!({ "__bytes": "abc" }) },
    Break { refusal: (401, "unknown_sender"), change: |e| e["from"] = json!("did:example:1") },
    Break { refusal: (401, "invalid_envelope"), change: |e| e["v"] = json!(2) },
    Break { refusal: (409, "replay"), change: |e| e["nonce"] = json!("ab".repeat(16)) },
    Break { refusal: (400, "missing_recipient"), change: |e| drop(e.as_object_mut().unwrap().remove("to")) },
    Break { refusal: (401, "sender_mismatch"), change: |e| e["message"]["from"] = json!("did:example:2") },
    Break {
        refusal: (400, "missing_message_type"),
        change: |e| drop(e["message"].as_object_mut().unwrap().remove("type")),
    },
];

/// Equal in rank to `missing_recipient`, with which it cannot be combined.
const UNKNOWN_RECIPIENT: Break =
    Break { refusal: (404, "unknown_recipient"), change: |e| e["to"] = json!("did:example:3") };

async fn refused_first(first: &Break, second: &Break) {
    let (site, mut deliveries) = Site::new(HttpConfig::default()).await;
    let alice = identity(1);
    let used = json!("ab".repeat(16));
    let mut known = draft(&alice, site.now());
    known["nonce"] = used;
    assert_eq!(site.post(signed(known, alice.secret_key())).await.outcome(), OK);
    deliveries.try_recv().unwrap();

    let mut envelope = draft(&alice, site.now());
    (second.change)(&mut envelope);
    (first.change)(&mut envelope);
    let answer = site.post(signed(envelope, alice.secret_key())).await;
    assert_eq!(answer.outcome(), first.refusal, "and not {:?}", second.refusal);
    assert!(deliveries.try_recv().is_err(), "delivered although refused");
}

#[test]
fn a_request_that_breaks_two_rules_gets_the_earlier_refusal() {
    for (index, first) in BREAKS.iter().enumerate() {
        paused(refused_first(first, first));
        for second in &BREAKS[index + 1..] {
            paused(refused_first(first, second));
        }
    }
    // Between `missing_recipient` and `sender_mismatch`.
    for earlier in &BREAKS[..5] {
        paused(refused_first(earlier, &UNKNOWN_RECIPIENT));
    }
    for later in &BREAKS[6..] {
        paused(refused_first(&UNKNOWN_RECIPIENT, later));
    }
}

#[test]
fn the_rate_gate_is_behind_the_replay_gate_and_before_the_recipients() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig::default()).await;
        let alice = identity(1);
        let used = sealed_with(&alice, 0, site.now());
        for nonce in 0..30 {
            assert_eq!(site.post(sealed_with(&alice, nonce, site.now())).await.outcome(), OK);
        }
        let nowhere = sealed(&alice, None, ack(), site.now());
        assert_eq!(site.post(nowhere).await.outcome(), (429, "rate_limited"));
        assert_eq!(site.post(used.clone()).await.outcome(), (409, "replay"));
        let forged = used.replace("\"approved\":true", "\"approved\":false");
        assert_eq!(site.post(forged).await.outcome(), (401, "invalid_envelope"));
    });
}

#[test]
fn only_identities_of_the_server_advertise_and_only_adverts() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig::default()).await;
        let (alice, service) = (identity(1), service());
        let outsider = sealed(&alice, None, advert(1), site.now());
        assert_eq!(site.post_advert(outsider).await.outcome(), (403, "not_an_actor"));
        let mut mismatched = draft(&alice, site.now());
        mismatched["message"]["from"] = json!(service.did().as_str());
        let mismatched = signed(mismatched, alice.secret_key());
        assert_eq!(site.post_advert(mismatched).await.outcome(), (403, "not_an_actor"), "before the inner sender");
        assert_eq!(site.post_advert(sealed(&service, None, ack(), site.now())).await.outcome(), OK);
        assert_eq!(site.post_advert(sealed(&service, None, advert(1), site.now())).await.outcome(), OK);
        settle().await;
        let events = site.adverts().await.ready().await;
        assert_eq!(events.len(), 1);
        assert!(events[0].data.contains("keygen/cohort_advert"));
    });
}

#[test]
fn clocks_may_be_sixty_seconds_apart_either_way() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig::default()).await;
        // Just before the next second: whole seconds are compared.
        tokio::time::advance(Duration::from_millis(900)).await;
        let alice = identity(1);
        let path = inbox_path("", alice.did());
        for (seconds, fresh) in [(0, true), (59, true), (60, true), (61, false), (3600, false)] {
            let apart = Duration::from_secs(seconds);
            for at in [site.now() + apart, site.now() - apart] {
                let expected = if fresh { OK } else { (401, "invalid_envelope") };
                let envelope = sealed(&alice, Some(service().did()), ack(), at);
                assert_eq!(site.post(envelope).await.outcome(), expected, "{seconds} s");
                let header = authorization(&alice, &path, at);
                let answer = site.ask(TestRequest::get().uri(&path).insert_header(("authorization", header))).await;
                assert_eq!(answer.outcome(), if fresh { (200, "") } else { (401, "unauthorized") }, "{seconds} s");
            }
        }
    });
}

#[test]
fn a_body_may_have_exactly_the_limit() {
    paused(async {
        let (site, mut deliveries) = Site::new(HttpConfig::default()).await;
        let alice = identity(1);
        let empty = sealed(&alice, Some(service().did()), saying(""), site.now()).len();
        for (bytes, expected) in [(65_536, OK), (65_537, (413, "payload_too_large"))] {
            let body = saying(&"x".repeat(bytes - empty));
            let envelope = sealed(&alice, Some(service().did()), body, site.now());
            assert_eq!(envelope.len(), bytes);
            assert_eq!(site.post(envelope).await.outcome(), expected);
            assert_eq!(deliveries.try_recv().is_ok(), expected == OK);
        }
    });
}

#[test]
fn a_too_large_update_is_reported_to_member_and_service() {
    paused(async {
        let config = HttpConfig { max_body: 200_000, ..HttpConfig::default() };
        let (site, mut deliveries) = Site::with(|parts| {
            parts.config = config;
            parts.update_bytes = 50_000;
        })
        .await;
        let (alice, to) = (identity(1), service().did().clone());
        let submit = |bytes: usize| SubmitUpdate {
            cohort_id: CohortId::parse("cohort").unwrap(),
            // As JSON: {"p":"xx..."}.
            signed_update: Arc::new(json!({ "p": "x".repeat(bytes - 8) })),
        };
        for (bytes, outcome) in [(50_000, OK), (50_001, (413, "payload_too_large"))] {
            let envelope = sealed(&alice, Some(&to), Body::from(submit(bytes)), site.now());
            assert_eq!(site.post(envelope).await.outcome(), outcome, "{bytes} bytes");
            assert!(deliveries.try_recv().is_ok(), "{bytes} bytes: the service reports it");
        }
    });
}

#[actix_web::test]
async fn a_client_that_sends_too_much_receives_the_reason() {
    let (loopback, mut deliveries) = Loopback::start("", HttpConfig::default()).await;
    let too_large = (413, "payload_too_large".to_owned());
    for size in [65_537, 200_000, 1_000_000] {
        assert_eq!(loopback.post("x".repeat(size)).await, too_large, "{size}");
        // Chunked, without a length in the head.
        let chunks: Vec<_> = (0..=size / 1000).map(|_| Ok::<_, std::io::Error>("x".repeat(1000))).collect();
        let body = reqwest::Body::wrap_stream(futures::stream::iter(chunks));
        assert_eq!(loopback.post(body).await, too_large, "{size} in chunks");
    }
    // A client that only reads after it has sent everything.
    let mut socket = tokio::net::TcpStream::connect(loopback.address).await.unwrap();
    let head = format!("POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 1_000_000);
    socket.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..1_000 {
        socket.write_all(&[b'x'; 1_000]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = [0; 12];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");

    let good = sealed(&identity(1), Some(service().did()), ack(), loopback.clock.now());
    let chunks: Vec<_> = good.as_bytes().chunks(7).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect();
    let body = reqwest::Body::wrap_stream(futures::stream::iter(chunks));
    assert_eq!(loopback.post(body).await, (202, String::new()));
    deliveries.recv().await.unwrap();
    loopback.stop().await;
}

async fn ask_inbox(site: &Site, owner: &Identity, asked: &str, signed: &str) -> u16 {
    let header = authorization(owner, signed, site.now());
    site.ask(TestRequest::get().uri(asked).insert_header(("authorization", header))).await.status
}

#[test]
fn the_signed_path_may_have_a_prefix_that_the_proxy_strips() {
    paused(async {
        let prefixes = vec!["/agg".to_owned(), "/other/".to_owned()];
        let config = HttpConfig { stripped_prefixes: prefixes, ..HttpConfig::default() };
        let (site, _deliveries) = Site::new(config).await;
        let alice = identity(1);
        let path = inbox_path("", alice.did());
        for (prefix, status) in [("", 200), ("/agg", 200), ("/other", 200), ("/else", 401), ("/agg/agg", 401)] {
            assert_eq!(ask_inbox(&site, &alice, &path, &format!("{prefix}{path}")).await, status, "{prefix}");
        }
    });
}

#[test]
fn a_proxy_may_decode_the_did_in_the_path() {
    paused(async {
        let config = HttpConfig { stripped_prefixes: vec!["/agg".to_owned()], ..HttpConfig::default() };
        let (site, _deliveries) = Site::new(config).await;
        let alice = identity(1);
        let path = inbox_path("", alice.did());
        let plain = format!("/v1/actors/{}/inbox", alice.did());
        let lower = path.replace("%3A", "%3a");
        let partly = path.replacen("%3A", ":", 1);
        for prefix in ["", "/agg"] {
            for arrives in [&path, &plain, &lower, &partly] {
                for signed in [&path, arrives] {
                    let signed = format!("{prefix}{signed}");
                    assert_eq!(ask_inbox(&site, &alice, arrives, &signed).await, 200, "{arrives} {signed}");
                }
            }
        }
        // Only the received path, and the form that clients write: no other form is equal.
        let others = [(&path, &plain), (&path, &lower), (&plain, &lower), (&plain, &partly), (&lower, &plain)];
        for (arrives, signed) in others {
            assert_eq!(ask_inbox(&site, &alice, arrives, signed).await, 401, "{arrives} {signed}");
        }
        let twice = path.replace("%3A", "%253A");
        for signed in [&path, &twice, &plain] {
            assert_eq!(ask_inbox(&site, &alice, &twice, signed).await, 401, "decoded twice");
        }
    });
}

#[test]
fn an_inbox_is_its_owners() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig::default()).await;
        let (alice, mallory) = (identity(1), identity(2));
        let path = inbox_path("", alice.did());
        let bare = site.ask(TestRequest::get().uri(&path)).await;
        assert_eq!(bare.outcome(), (401, "unauthorized"));
        assert_eq!(ask_inbox(&site, &mallory, &path, &path).await, 401, "another's signature");
        for did in ["x", "%ff", "%", "%zz", "did%3Abtcr2%3Ak1", "did:btcr2:k1q%2Fx", "%F0%9F%92%A9"] {
            let path = format!("/v1/actors/{did}/inbox");
            let header = authorization(&alice, &path, site.now());
            let answer = site.ask(TestRequest::get().uri(&path).insert_header(("authorization", header))).await;
            assert_eq!(answer.outcome(), (401, "unauthorized"), "{did}");
        }
        let header = actix_web::http::header::HeaderValue::from_bytes(b"BTCR2-Sig \xff\xfe").unwrap();
        let answer = site.ask(TestRequest::get().uri(&path).insert_header(("authorization", header))).await;
        assert_eq!(answer.outcome(), (401, "unauthorized"));
        assert_eq!(ask_inbox(&site, &alice, &path, &path).await, 200);
    });
}

#[test]
fn an_external_sender_is_known_from_its_opt_in_on_if_that_passes_every_gate() {
    paused(async {
        let (site, mut deliveries) = Site::new(HttpConfig::default()).await;
        let (x, to) = (external(1), service());
        let (now, key) = (site.now(), x.secret_key());
        let unknown = (401, "unknown_sender");
        let say_ack = || sealed(&x, Some(to.did()), ack(), now);
        let opt_in_with = |change: fn(&mut Value)| {
            let mut envelope = serde_json::from_str(&sealed(&x, Some(to.did()), opt_in(&x), now)).unwrap();
            change(&mut envelope);
            signed(envelope, key)
        };
        assert_eq!(site.post(say_ack()).await.outcome(), unknown);

        // Each of these contains the genesis document, and a later check refuses it: the key must not be stored.
        let used = opt_in_with(|_| {});
        let refused: [(String, (u16, &str)); 5] = [
            (opt_in_with(|e| e["timestamp"] = json!(1)), (401, "invalid_envelope")),
            (opt_in_with(|e| drop(e.as_object_mut().unwrap().remove("to"))), (400, "missing_recipient")),
            (opt_in_with(|e| e["to"] = json!("did:example:1")), (404, "unknown_recipient")),
            (opt_in_with(|e| e["message"]["from"] = json!(service().did().as_str())), (401, "sender_mismatch")),
            (used.replace("\"timestamp\":", "\"timestamp\": 1"), (401, "invalid_envelope")),
        ];
        for (envelope, refusal) in refused {
            assert_eq!(site.post(envelope).await.outcome(), refusal);
            assert_eq!(site.post(say_ack()).await.outcome(), unknown, "after {refusal:?}");
        }
        let other_key = opt_in_with(|e| {
            e["message"]["body"]["communicationPk"] = e["message"]["body"]["participantPk"].clone()
        });
        let mut foreign: Value = serde_json::from_str(&other_key).unwrap();
        foreign["message"]["body"]["communicationPk"]["__bytes"] = json!(external(2).public_key().to_string());
        assert_eq!(site.post(signed(foreign, key)).await.outcome(), unknown);
        assert!(deliveries.try_recv().is_err());

        assert_eq!(site.post(used).await.outcome(), OK);
        assert_eq!(site.post(say_ack()).await.outcome(), OK);
        assert_eq!(site.ask(site.inbox_request(&x)).await.status, 200);
    });
}

#[test]
fn an_opt_in_of_an_external_sender_over_its_rate_does_not_make_it_known() {
    paused(async {
        let (site, _deliveries) =
            Site::new(HttpConfig { did_rate: Rate { per_second: 1, burst: 0 }, ..HttpConfig::default() }).await;
        let x = external(1);
        let opting = sealed(&x, Some(service().did()), opt_in(&x), site.now());
        assert_eq!(site.post(opting).await.outcome(), (429, "rate_limited"));
        let acknowledging = sealed(&x, Some(service().did()), ack(), site.now());
        assert_eq!(site.post(acknowledging).await.outcome(), (401, "unknown_sender"));
    });
}

#[test]
fn an_external_did_that_the_host_introduced_is_known_before_its_opt_in() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig::default()).await;
        let x = external(1);
        let document = x.genesis_document().unwrap();
        assert!(site.server.introduce(external(2).did(), document).is_err(), "another's document");
        site.server.introduce(x.did(), document).unwrap();
        assert_eq!(site.ask(site.inbox_request(&x)).await.status, 200);
        assert_eq!(site.post(sealed(&x, Some(service().did()), ack(), site.now())).await.outcome(), OK);
    });
}

#[test]
fn outsiders_do_not_evict_keys_of_members_or_introduced_dids() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig { external_keys: 3, ..HttpConfig::default() }).await;
        let (introduced, member) = (external(1), external(2));
        site.server.introduce(introduced.did(), introduced.genesis_document().unwrap()).unwrap();
        let opting = |x: &Identity| sealed(x, Some(service().did()), opt_in(x), site.now());
        assert_eq!(site.post(opting(&member)).await.outcome(), OK);
        site.send(Outbound::Direct { to: member.did().clone(), body: saying("welcome"), until: None }).await;
        for number in 10..20 {
            assert_eq!(site.post(opting(&external(number))).await.outcome(), OK);
        }
        let acknowledging = |x: &Identity| sealed(x, Some(service().did()), ack(), site.now());
        for known in [&introduced, &member, &external(19)] {
            assert_eq!(site.post(acknowledging(known)).await.outcome(), OK);
        }
        assert_eq!(site.post(acknowledging(&external(10))).await.outcome(), (401, "unknown_sender"), "bounded");
    });
}
