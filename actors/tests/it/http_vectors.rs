//! The recorded HTTP exchanges of the TypeScript implementation (`envelope.json`, `request_auth.json`) against our server.

use crate::http_support::{
    list, paused,
    site::{Answer, Site},
    text, vectors,
};
use actix_web::{http::Method, test::TestRequest};
use btcr2_aggregation_actors::transport::{
    Delivery,
    http::{HttpConfig, store::Rate},
};
use btcr2_aggregation_protocol::{
    did::Did,
    envelope::ParsedEnvelope,
    identity::Identity,
    key::SecretKey,
    message::{DecodeError, Message},
    network::Network,
};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

/// The service of the vectors, at the time of the recording.
async fn recorded_site(vectors: &Value, now: u64) -> (Site, UnboundedReceiver<Delivery>) {
    let key = SecretKey::from_hex(text(&vectors["actors"]["service"], "secretKey")).unwrap();
    let service = Identity::from_key(key, Network::Mutinynet);
    assert_eq!(service.did().as_str(), text(&vectors["actors"]["service"], "did"));
    Site::of(&service, now, |_| {}).await
}

/// The TypeScript implementation flattens the body over the message, so a body's `type` takes precedence; our server
/// reports such a message as not decodable.
fn is_ours_alone(request: &str) -> bool {
    let envelope: Value = serde_json::from_str(request).unwrap();
    let body = &envelope["message"]["body"];
    let unknown = !text(&envelope["message"], "type").contains("/keygen/") && body.as_object().unwrap().is_empty();
    unknown || body.get("type").is_some()
}

#[test]
fn recorded_posts_are_answered_alike_and_delivered() {
    let vectors = vectors("envelope");
    for case in list(&vectors, "httpPosts") {
        paused(async {
            let name = text(case, "name");
            let (site, mut deliveries) = recorded_site(&vectors, case["serverNow"].as_u64().unwrap()).await;
            let mut types = Vec::new();
            for (request, recorded) in list(case, "requestBodies").iter().zip(list(case, "answers")) {
                let request = request.as_str().unwrap();
                let answer = site.post(request).await;
                if recorded.get("threw").is_some() {
                    // The TypeScript implementation has no answer to these: JSON, but not an envelope that could be
                    // signed.
                    assert_eq!(answer.outcome(), (400, "invalid_json"), "{name}");
                } else {
                    assert_eq!(u64::from(answer.status), recorded["status"].as_u64().unwrap(), "{name}");
                    assert_eq!(answer.body, recorded["body"], "{name}");
                }
                match deliveries.try_recv() {
                    Ok(Delivery::Message(message)) => {
                        let sent = ParsedEnvelope::parse(request).unwrap().message().unwrap();
                        assert_eq!(message.message, sent, "{name}");
                        types.push(message.type_uri());
                    }
                    Ok(Delivery::Undecodable { from, error }) => {
                        assert!(is_ours_alone(request), "{name}: {error}");
                        let envelope: Value = serde_json::from_str(request).unwrap();
                        assert_eq!(from.as_str(), text(&envelope, "from"), "{name}");
                        let body_type = envelope["message"]["body"]["type"].as_str();
                        match (error, body_type) {
                            (DecodeError::UnknownType(kind), None) => {
                                assert_eq!(kind, text(&envelope["message"], "type"))
                            }
                            (DecodeError::Field { .. }, Some(kind)) => types.push(kind.to_owned()),
                            (error, _) => panic!("{name}: {error}"),
                        }
                    }
                    Ok(other) => panic!("{name}: {other:?}"),
                    Err(_) => assert_ne!(answer.status, 202, "{name}: accepted, and not delivered"),
                }
            }
            assert_eq!(json!(types), case["delivered"], "{name}");
        });
    }
}

fn assert_recorded_headers(answer: &Answer, recorded: &Value, name: &str) {
    for (header, value) in recorded["headers"].as_object().unwrap() {
        let ours = answer.headers.get(header.as_str()).map(|value| value.to_str().unwrap());
        assert_eq!(ours, value.as_str(), "{name}: {header}");
    }
}

#[test]
fn other_recorded_requests_are_answered_alike() {
    let vectors = vectors("envelope");
    for recorded in list(&vectors, "httpOther") {
        paused(async {
            let (method, url) = (text(recorded, "method"), text(recorded, "url"));
            let name = format!("{method} {url}");
            let (site, _deliveries) = recorded_site(&vectors, crate::http_support::NOW).await;
            let mut request =
                TestRequest::default().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(url);
            if let Some(body) = recorded["body"].as_str() {
                request = request.set_payload(body.to_owned());
            }
            if recorded["headers"].get("access-control-allow-origin").is_some() {
                // Not recorded with the requests: the origin of the page.
                request = request.insert_header(("origin", "https://page.example"));
            }
            let answer = site.ask(request).await;
            assert_eq!(u64::from(answer.status), recorded["status"].as_u64().unwrap(), "{name}");
            assert_recorded_headers(&answer, recorded, &name);
            let body: Value = serde_json::from_str(text(recorded, "responseBody")).unwrap_or_default();
            if url.ends_with("/aggregation") {
                // Each server has its own limits, and ours names more of them; adverts last as long as their cohort
                // here.
                assert_eq!(answer.body["envelopeVersion"], body["envelopeVersion"]);
                assert!(answer.body["heartbeatIntervalMs"].is_u64() && answer.body["inboxBufferSize"].is_u64());
            } else {
                assert_eq!(answer.body, body, "{name}");
            }
        });
    }
}

#[test]
fn the_well_known_document_has_the_limits_in_force() {
    paused(async {
        let config = HttpConfig {
            max_body: 5_000,
            did_rate: Rate { per_second: 3, burst: 7 },
            inbox_messages: 11,
            heartbeat: std::time::Duration::from_millis(1234),
            ..HttpConfig::default()
        };
        let (site, _deliveries) = Site::new(config).await;
        let answer = site.ask(TestRequest::get().uri("/v1/.well-known/aggregation")).await;
        let expected = json!({
            "envelopeVersion": 1,
            "heartbeatIntervalMs": 1234,
            "inboxBufferSize": 11,
            "inboxTtlMs": 86_400_000,
            "maxBodyBytes": 5_000,
            "maxUpdateBytes": 5_000,
            "clockSkewSec": 60,
            "rateLimit": { "perSecond": 3, "burst": 7 },
            "idempotent": true,
        });
        assert_eq!(answer.body, expected);
    });
}

#[test]
fn the_other_programs_signed_inbox_requests_open_inboxes() {
    let (vectors, envelopes) = (vectors("request_auth"), vectors("envelope"));
    let external = &envelopes["actors"]["x"];
    for case in list(&vectors, "cases") {
        paused(async {
            let (site, _deliveries) = recorded_site(&envelopes, case["timestamp"].as_u64().unwrap()).await;
            let request = || {
                TestRequest::get().uri(text(case, "path")).insert_header(("authorization", text(case, "header")))
            };
            if text(case, "did") == text(external, "did") {
                // It waits for its key in vain.
                let before = site.now();
                assert_eq!(site.ask(request()).await.status, 200);
                assert!(site.now() > before);
                let did: Did = text(external, "did").parse().unwrap();
                site.server.introduce(&did, &external["genesisDocument"]).unwrap();
            }
            let answer = site.ask(request()).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.headers.get("content-type").unwrap(), "text/event-stream");
            assert_eq!(site.ask(request()).await.outcome(), (409, "replay"));
        });
    }
}

#[test]
fn tampered_inbox_requests_are_unauthorized() {
    let (vectors, envelopes) = (vectors("request_auth"), vectors("envelope"));
    for case in list(&vectors, "tampered") {
        paused(async {
            let name = text(case, "name");
            let (site, _deliveries) = recorded_site(&envelopes, case["verifierNow"].as_u64().unwrap()).await;
            let request = TestRequest::get().uri(text(case, "path"));
            let answer = site.ask(request.insert_header(("authorization", text(case, "header")))).await;
            let expected = match text(case, "result") {
                "OK" => (200, ""),
                // The path as a proxy may rewrite it: a server tries the signature over the encoded path too.
                _ if name == "path with the DID not percent-encoded" || name == "path with lower-case escapes" => {
                    (200, "")
                }
                // These are not paths of an inbox here.
                _ if name == "other path" || name == "path with a prefix" => (404, "not_found"),
                _ => (401, "unauthorized"),
            };
            assert_eq!(answer.outcome(), expected, "{name}");
        });
    }
}

#[test]
fn recorded_envelopes_are_taken_as_they_are() {
    let vectors = vectors("envelope");
    for case in list(&vectors, "cases").iter().filter(|case| case["to"] == "service") {
        paused(async {
            let (site, mut deliveries) = recorded_site(&vectors, case["timestamp"].as_u64().unwrap()).await;
            let external = &vectors["actors"]["x"];
            site.server.introduce(&text(external, "did").parse().unwrap(), &external["genesisDocument"]).unwrap();
            let recorded = text(case, "envelopeText");
            assert_eq!(site.post(recorded).await.outcome(), (202, ""), "{}", text(case, "name"));
            let Ok(Delivery::Message(message)) = deliveries.try_recv() else { panic!("{}", text(case, "name")) };
            let sent: Message = ParsedEnvelope::parse(recorded).unwrap().message().unwrap();
            assert_eq!(message.message, sent);
        });
    }
}
