//! The HTTP client against a server with scripted answers: which messages it sends again, and which it delivers.

use std::{net::TcpListener, sync::Arc, time::Duration};

use crate::common::{
    external_identity,
    fake_server::{Answer, FakeServer},
    identity,
    peers::{Peer, advert, name_of, note},
    randomness,
};
use btcr2_aggregation_actors::{
    runtime::{Clock, Randomness},
    transport::{
        Delivery, Outbound,
        http::{HttpClient, client::Backoff},
        tls::Trust,
    },
};
use btcr2_aggregation_protocol::{
    did::Did,
    envelope::SealedEnvelope,
    hash::sha256,
    identity::Identity,
    jcs,
    message::{
        Body, Bytes, Message, SharedBody,
        keygen::CohortOptIn,
        sign::{NonceContribution, SignatureAuthorization},
    },
};
use serde_json::{Value, json};

pub const SHORT: Backoff = Backoff { first: Duration::from_millis(20), longest: Duration::from_millis(100) };

pub const HASTY: Backoff = Backoff { first: Duration::from_millis(5), longest: Duration::from_millis(10) };

pub fn run(test: impl Future<Output = ()>) {
    actix_rt::System::new().block_on(test);
}

pub fn client(server: &FakeServer, backoff: Backoff) -> HttpClient {
    let service = Some(identity("service").did().clone());
    let client = HttpClient::new(&server.url(), service, Clock::system(), Randomness::System).expect("a URL");
    client.with_backoff(backoff)
}

pub fn member(server: &FakeServer) -> Peer {
    Peer::start(identity("member"), Arc::new(client(server, SHORT)))
}

pub fn service() -> Did {
    identity("service").did().clone()
}

/// An event of the inbox of `to`, or without a recipient, signed `age` seconds ago.
fn event_from(from: &Identity, to: Option<&Did>, id: Option<u64>, body: SharedBody, age: i64) -> String {
    let now = Clock::system().now().as_secs().checked_add_signed(-age).expect("a time");
    let now = btcr2_aggregation_protocol::time::Timestamp::from_secs(now);
    let message = Message::new(from.did().clone(), to.cloned(), body);
    let mut rng = Randomness::System.for_actor("");
    let envelope = SealedEnvelope::seal_with_rng(&message, from.secret_key(), now, &mut rng).expect("sealed");
    event(id, &envelope.to_json())
}

fn event(id: Option<u64>, envelope: &str) -> String {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    format!("{id}event: message\ndata: {envelope}\n\n")
}

fn inbox_event(to: &Did, id: u64, name: &str) -> String {
    event_from(&identity("service"), Some(to), Some(id), note(name), 0)
}

pub fn nonce() -> SharedBody {
    let session_id = serde_json::from_value(json!("session")).expect("an identifier");
    let cohort_id = note("cohort").cohort_id().clone();
    Body::from(NonceContribution { cohort_id, session_id, nonce_contribution: Bytes([2; 66]) }).into()
}

pub fn partial_signature() -> SharedBody {
    let session_id = serde_json::from_value(json!("session")).expect("an identifier");
    let cohort_id = note("cohort").cohort_id().clone();
    Body::from(SignatureAuthorization { cohort_id, session_id, partial_signature: Bytes([2; 32]) }).into()
}

#[test]
fn a_stream_that_ends_is_opened_again_after_the_last_event() {
    run(async {
        let mut server = FakeServer::start();
        let did = identity("member").did().clone();
        server.answer_inbox([
            Answer::EventsThenEnd(vec![inbox_event(&did, 7, "seven"), inbox_event(&did, 8, "eight")]),
            Answer::Status(503, ""),
            Answer::EventsThenEnd(vec![inbox_event(&did, 12, "twelve")]),
        ]);
        let patient = Backoff { first: Duration::from_millis(200), longest: Duration::from_millis(400) };
        let mut member = Peer::start(identity("member"), Arc::new(client(&server, patient)));
        for name in ["seven", "eight", "twelve"] {
            assert_eq!(name_of(&member.receive().await), name);
        }
        for last in [None, Some("8"), Some("8"), Some("12")] {
            let request = server.inbox().await;
            assert_eq!(request.header("last-event-id"), last);
            assert!(request.header("authorization").is_some_and(|value| value.starts_with("BTCR2-Sig v=1,did=")));
        }
    });
}

#[test]
fn unverified_messages_are_reported_and_not_delivered() {
    run(async {
        let server = FakeServer::start();
        let (service, did) = (identity("service"), identity("member").did().clone());
        let forged = inbox_event(&did, 1, "forged").replace("\"forged\"", "\"altered\"");
        let mut inside: Value =
            serde_json::from_str(inbox_event(&did, 1, "inside").split_once("data: ").expect("an event").1)
                .expect("JSON");
        inside["message"]["from"] = json!(identity("other").did());
        inside.as_object_mut().expect("an envelope").remove("sig");
        let digest = sha256(&jcs::canonicalize(&inside).expect("canonical"));
        let mut rng = randomness("inside").for_actor("");
        inside["sig"] = json!(service.secret_key().sign(&digest, &mut rng).to_string());
        let bad = [
            (event(None, "no envelope"), "not JSON"),
            (forged, "sig does not verify"),
            (
                event_from(&identity("other"), Some(&did), None, note("x"), 0),
                "is not the service of this connection",
            ),
            (event_from(&service, Some(identity("other").did()), None, note("x"), 0), "recipient"),
            (event_from(&service, None, None, note("x"), 0), "recipient"),
            (event_from(&service, Some(&did), None, note("x"), 62), "are both clocks right?"),
            (event_from(&service, Some(&did), None, note("x"), -62), "are both clocks right?"),
            (event(None, &inside.to_string()), "contains the message of another sender"),
        ];
        let (events, reasons): (Vec<_>, Vec<_>) = bad.into_iter().unzip();
        let good = vec![inbox_event(&did, 9, "good")];
        server.answer_inbox([Answer::Events([events, good].concat())]);
        let mut member = member(&server);
        for reason in reasons {
            let reported = member.unverified().await;
            assert!(reported.contains(reason), "{reason:?} is missing in {reported}");
        }
        assert_eq!(name_of(&member.receive().await), "good");
    });
}

#[test]
fn adverts_are_for_everybody_and_of_the_service_only() {
    run(async {
        let server = FakeServer::start();
        let (service, other) = (identity("service"), identity("other"));
        server.answer_adverts([Answer::Events(vec![
            event_from(&other, None, None, advert(&other, "theirs"), 0),
            event_from(&service, Some(other.did()), None, advert(&service, "directed"), 0),
            event_from(&service, None, None, advert(&service, "old"), 62),
            event_from(&service, None, None, advert(&service, "ours"), 59),
        ])]);
        let mut member = member(&server);
        for _ in 0..3 {
            member.unverified().await;
        }
        assert_eq!(name_of(&member.receive().await), "ours");
    });
}

#[test]
fn what_came_too_old_is_asked_for_again_once() {
    run(async {
        let mut server = FakeServer::start();
        let did = identity("member").did().clone();
        let old = |id: u64, name| event_from(&identity("service"), Some(&did), Some(id), note(name), 120);
        server.answer_inbox([
            Answer::Events(vec![inbox_event(&did, 1, "one"), old(2, "two"), inbox_event(&did, 3, "three")]),
            // Signed anew, as our server does.
            Answer::Events(vec![inbox_event(&did, 2, "two"), old(3, "three"), inbox_event(&did, 4, "four")]),
            // Not signed anew: later events must not wait forever.
            Answer::Events(vec![old(3, "three"), inbox_event(&did, 4, "four")]),
        ]);
        let mut member = member(&server);
        let mut received = Vec::new();
        while received.last().is_none_or(|name| name != "four") {
            match member.next().await {
                Delivery::Message(message) => received.push(name_of(&message)),
                Delivery::Unverified { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(received, ["one", "two", "four"]);
        for last in [None, Some("1"), Some("2")] {
            assert_eq!(server.inbox().await.header("last-event-id"), last);
        }
    });
}

#[test]
fn a_refusal_is_final_and_reported_and_later_messages_are_sent() {
    run(async {
        let mut server = FakeServer::start();
        let refusals = [
            (400, r#"{"error":"missing_recipient"}"#, "missing_recipient"),
            (401, r#"{"error":"unknown_sender"}"#, "unknown_sender"),
            (404, r#"{"error":"unknown_recipient"}"#, "unknown_recipient"),
            (413, r#"{"error":"payload_too_large"}"#, "payload_too_large"),
        ];
        server.answer_posts(refusals.map(|(status, body, _)| Answer::Status(status, body)));
        let mut member = member(&server);
        for (status, _, code) in refusals {
            member.send(&service(), note(code));
            let (to, body, reason) = member.undelivered().await;
            assert_eq!((to, body), (service(), note(code)));
            assert!(reason.contains(&status.to_string()) && reason.contains(code), "{reason}");
        }
        member.send(&service(), note("next"));
        for _ in refusals {
            server.post().await;
        }
        assert_eq!(server.post().await.json()["message"]["body"]["cohortId"], "next");
        assert_eq!(server.more_posts(), 0);
    });
}

#[test]
fn an_inbox_closed_at_once_is_opened_again_when_accepted() {
    run(async {
        let mut server = FakeServer::start();
        // As the TypeScript implementation refuses an inbox.
        server.answer_inbox([Answer::EventsThenEnd(Vec::new())]);
        let member = external_identity("external");
        let slow = Backoff { first: Duration::from_secs(600), longest: Duration::from_secs(600) };
        let mut peer = Peer::start(member.clone(), Arc::new(client(&server, slow)));
        server.inbox().await;
        server.answer_inbox([Answer::Events(vec![inbox_event(member.did(), 1, "accepted")])]);
        peer.send(&service(), note("opted"));
        server.inbox().await;
        assert_eq!(name_of(&peer.receive().await), "accepted");
    });
}

#[test]
fn what_was_not_taken_is_sent_again_the_same_but_signed_anew() {
    run(async {
        let mut server = FakeServer::start();
        server.answer_posts([
            Answer::Status(429, ""),
            Answer::Status(503, ""),
            Answer::Break,
            Answer::Status(500, ""),
        ]);
        let mut member = member(&server);
        member.send(&service(), note("first"));
        member.send(&service(), note("second"));
        let mut attempts = Vec::new();
        for _ in 0..5 {
            attempts.push(server.post().await);
        }
        assert_eq!(server.post().await.json()["message"]["body"]["cohortId"], "second", "the order is preserved");
        let message = |body: &str| {
            body[body.find("\"message\":").expect("a message")..body.rfind(",\"sig\"").expect("sig")].to_owned()
        };
        for pair in attempts.windows(2) {
            assert_eq!(message(&pair[0].body), message(&pair[1].body));
            for field in ["nonce", "sig"] {
                assert_ne!(pair[0].json()[field], pair[1].json()[field]);
            }
        }
        assert!(member.rest().is_empty(), "all was delivered");
    });
}

#[test]
fn a_server_that_is_not_there_yet_is_waited_for() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let url = format!("http://{address}");
        let client = HttpClient::new(&url, None, Clock::system(), Randomness::System).expect("a URL");
        let mut member = Peer::start(identity("member"), Arc::new(client.with_backoff(SHORT)));
        // A nonce too: a connection that was refused has carried nothing.
        member.send(&service(), nonce());
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut server = FakeServer::on(TcpListener::bind(address).expect("the port is still free"));
        server.post().await;
        server.inbox().await;
        assert!(member.rest().is_empty());
    });
}

#[test]
fn a_message_whose_time_is_over_is_reported() {
    run(async {
        let mut server = FakeServer::start();
        server.answer_every_post(Answer::Status(429, "rate_limited"));
        let mut member = member(&server);
        let until = Clock::system().now() + Duration::from_millis(300);
        member.send_until(&service(), note("urgent"), Some(until));
        let (_, body, reason) = member.undelivered().await;
        assert_eq!(body, note("urgent"));
        assert!(reason.contains("429") && reason.contains("its time is over"), "{reason}");
        assert!(Clock::system().now() >= until);
        assert!(server.more_posts() >= 2, "the attempts continued until then");
        // A message whose time is over is not sent.
        member.send_until(&service(), note("late"), Some(until));
        assert_eq!(member.undelivered().await.1, note("late"));
        assert_eq!(server.more_posts(), 0);
    });
}

#[test]
fn nonces_are_only_repeated_to_a_server_that_accepts_it() {
    run(async {
        for body in [nonce(), partial_signature()] {
            for broken in [Answer::Break, Answer::Status(500, "")] {
                for idempotent in [false, true] {
                    let mut server = FakeServer::start();
                    server.well_known(if idempotent { json!({ "idempotent": true }) } else { json!({}) });
                    server.answer_posts([broken.clone()]);
                    let mut member = member(&server);
                    member.send(&service(), body.clone());
                    server.post().await;
                    if idempotent {
                        server.post().await;
                    } else {
                        let (_, _, reason) = member.undelivered().await;
                        assert!(reason.contains("must not be sent twice"), "{reason}");
                    }
                    member.send(&service(), note("next"));
                    assert_eq!(server.post().await.json()["message"]["body"]["cohortId"], "next");
                    assert!(member.rest().is_empty());
                }
            }
            // A message that was certainly not accepted is sent again in any case.
            let mut server = FakeServer::start();
            server.answer_posts([Answer::Status(429, "")]);
            let mut member = member(&server);
            member.send(&service(), body);
            server.post().await;
            server.post().await;
            assert!(member.rest().is_empty());
        }
    });
}

#[test]
fn an_inbox_that_was_refused_is_opened_at_once_when_the_opt_in_is_accepted() {
    run(async {
        let mut server = FakeServer::start();
        server.answer_inbox([Answer::Status(401, r#"{"error":"unauthorized"}"#)]);
        let member = external_identity("external");
        // Longer than the test's timeout.
        let slow = Backoff { first: Duration::from_secs(600), longest: Duration::from_secs(600) };
        let mut peer = Peer::start(member.clone(), Arc::new(client(&server, slow)));
        server.inbox().await;
        server.answer_inbox([Answer::Events(vec![inbox_event(member.did(), 1, "accepted")])]);
        let key = Bytes(member.public_key().to_bytes());
        let opt_in = CohortOptIn {
            cohort_id: note("cohort").cohort_id().clone(),
            participant_pk: key,
            communication_pk: key,
            genesis_document: member.genesis_document().cloned(),
            invite: None,
        };
        peer.send(&service(), Body::from(opt_in));
        server.inbox().await;
        assert_eq!(name_of(&peer.receive().await), "accepted");
    });
}

#[test]
fn a_client_has_nothing_to_broadcast() {
    run(async {
        let mut server = FakeServer::start();
        let member = member(&server);
        member.link.send(Outbound::Broadcast { body: advert(&identity("member"), "offer") });
        member.send(&service(), note("next"));
        assert_eq!(server.post().await.json()["message"]["body"]["cohortId"], "next");
    });
}

#[test]
fn a_base_url_is_http_and_nothing_but_a_base() {
    let problem = |url: &str| {
        let client = HttpClient::new(url, None, Clock::system(), Randomness::System);
        client.err().map(|error| error.to_string()).unwrap_or_default()
    };
    run(async move {
        for url in ["http://example.org", "https://example.org/agg", "http://[::1]:8080/"] {
            assert_eq!(problem(url), "");
        }
        for url in ["example.org", "ftp://example.org", "http://example.org/?a", "http://example.org/#a", ""] {
            assert_ne!(problem(url), "", "{url}");
        }
        assert!(Trust::only(b"no certificate").is_err());
    });
}
