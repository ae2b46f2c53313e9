//! The API's document against the server's behaviour. The other tests check each answer that they receive against it
//! too (`crate::http_support::openapi::check`); this test produces everything that it names.

use std::collections::BTreeSet;

use crate::http_support::{
    ack, advert, draft, identity, openapi, openapi::DOCUMENT, paused, sealed, service, signed, site::Site,
};
use actix_web::{http::Method, test::TestRequest};
use btcr2_aggregation_actors::transport::{
    Inbox, Transport,
    http::{HttpConfig, Refusal, store::Rate},
};
use serde_json::{Value, json};

/// Method, path of the document, status, code.
type Seen = BTreeSet<(String, String, u16, String)>;

/// Everything that the document names.
fn named() -> Seen {
    let mut named = Seen::new();
    for (path, operations) in DOCUMENT["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters") {
            for (status, response) in operation["responses"].as_object().unwrap() {
                let status: u16 = status.parse().unwrap();
                let codes = openapi::codes(response);
                assert_eq!(codes.is_empty(), status < 400, "{method} {path} {status}: codes, or none");
                for code in if codes.is_empty() { vec![""] } else { codes } {
                    named.insert((method.to_uppercase(), path.clone(), status, code.to_owned()));
                }
            }
        }
    }
    named
}

/// Sends a request, and records the answer.
async fn ask(seen: &mut Seen, site: &Site, method: &str, path: &str, request: TestRequest) {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let answer = site.ask(request.method(method.clone()).uri(path)).await;
    let path = openapi::template(path).unwrap().to_owned();
    seen.insert((method.to_string(), path, answer.status, answer.outcome().1.to_owned()));
}

async fn post(seen: &mut Seen, site: &Site, path: &str, body: String) {
    ask(seen, site, "POST", path, TestRequest::default().set_payload(body)).await;
}

#[test]
fn every_answer_that_the_document_names_is_given() {
    let mut seen = Seen::new();
    paused(async {
        let config =
            HttpConfig { advert_streams: 1, did_rate: Rate { per_second: 1, burst: 20 }, ..HttpConfig::default() };
        let (site, _deliveries) = Site::new(config).await;
        let (now, to, alice) = (site.now(), service(), identity(1));
        let inbox = btcr2_aggregation_protocol::request_auth::inbox_path("", alice.did());
        for path in ["/v1/messages", "/v1/adverts"] {
            let send = |sender: &_| sealed(sender, Some(to.did()), ack(), now);
            let good = if path == "/v1/adverts" { sealed(&to, None, advert(1), now) } else { send(&alice) };
            // The identity that may advertise, so that the inner checks are reached.
            let sender = if path == "/v1/adverts" { &to } else { &alice };
            let tampered = |change: fn(&mut Value)| {
                let mut envelope = draft(sender, now);
                // A nonce that no other envelope has.
                envelope["nonce"] =
                    json!(format!("{:032x}", rand_core::RngCore::next_u64(&mut crate::http_support::rng())));
                change(&mut envelope);
                signed(envelope, sender.secret_key())
            };
            post(&mut seen, &site, path, good.clone()).await;
            post(&mut seen, &site, path, good.clone()).await;
            post(&mut seen, &site, path, "x".repeat(65_537)).await;
            post(&mut seen, &site, path, "{".to_owned()).await;
            post(&mut seen, &site, path, good.replace("did:btcr2:k", "did:other:k")).await;
            post(&mut seen, &site, path, tampered(|envelope| envelope["v"] = json!(2))).await;
            post(&mut seen, &site, path, tampered(|envelope| envelope["message"]["from"] = json!("x"))).await;
            post(&mut seen, &site, path, tampered(|envelope| envelope["message"]["type"] = json!(1))).await;
            if path == "/v1/messages" {
                post(&mut seen, &site, path, sealed(&alice, None, ack(), now)).await;
                post(&mut seen, &site, path, sealed(&alice, Some(identity(2).did()), ack(), now)).await;
            } else {
                post(&mut seen, &site, path, send(&alice)).await;
            }
            for _ in 0..20 {
                post(
                    &mut seen,
                    &site,
                    path,
                    if path == "/v1/adverts" { sealed(&to, None, advert(1), now) } else { send(&alice) },
                )
                .await;
            }
            if path == "/v1/messages" {
                let careless = identity(3);
                // It loses everything.
                let (inbox, mut messages) = Inbox::channel(1);
                actix_rt::spawn(async move { while messages.recv().await.is_some() {} });
                let _connection = site.server.connect(&careless, inbox).await.unwrap();
                post(&mut seen, &site, path, sealed(&identity(4), Some(careless.did()), ack(), now)).await;
            }
            // The other path starts with a full bucket.
            tokio::time::advance(std::time::Duration::from_secs(20)).await;
        }
        let now = site.now();
        let authorized = |identity: &_| {
            let header = crate::http_support::authorization(identity, &inbox, now);
            TestRequest::default().insert_header(("authorization", header))
        };
        let header = crate::http_support::authorization(&alice, &inbox, now);
        for _ in 0..2 {
            let request = TestRequest::default().insert_header(("authorization", header.clone()));
            ask(&mut seen, &site, "GET", &inbox, request).await;
        }
        ask(&mut seen, &site, "GET", &inbox, authorized(&identity(2))).await;
        for _ in 0..20 {
            ask(&mut seen, &site, "GET", &inbox, authorized(&alice)).await;
        }
        let _reader = site.adverts().await;
        ask(&mut seen, &site, "GET", "/v1/adverts", TestRequest::default()).await;
        drop(_reader);
        ask(&mut seen, &site, "GET", "/v1/adverts", TestRequest::default()).await;
        ask(&mut seen, &site, "GET", "/v1/.well-known/aggregation", TestRequest::default()).await;
        ask(&mut seen, &site, "GET", "/v1/openapi.json", TestRequest::default()).await;
        for path in DOCUMENT["paths"].as_object().unwrap().keys() {
            ask(&mut seen, &site, "OPTIONS", &path.replace("{did}", alice.did().as_str()), TestRequest::default())
                .await;
        }
    });
    let named = named();
    assert!(named.len() > 30, "the document names too little to be the API's");
    assert_eq!(named.difference(&seen).collect::<Vec<_>>(), Vec::<&_>::new(), "named, and never answered");
    assert_eq!(seen.difference(&named).collect::<Vec<_>>(), Vec::<&_>::new(), "answered, and not named");
}

#[test]
fn the_error_schema_has_every_code() {
    let codes = DOCUMENT["components"]["schemas"]["Error"]["properties"]["error"]["enum"].as_array().unwrap();
    let ours: Vec<Value> = Refusal::ALL.iter().map(|refusal| json!(refusal.code())).collect();
    assert_eq!(codes, &ours);
    for (_, _, status, code) in named().into_iter().filter(|(.., code)| !code.is_empty()) {
        let refusal = Refusal::ALL.iter().find(|refusal| refusal.code() == code);
        assert_eq!(refusal.map(|refusal| refusal.status()), Some(status), "{code}");
    }
}

#[test]
fn what_the_document_does_not_name_is_not_found() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig::default()).await;
        let inbox = "/v1/actors/x/inbox";
        for path in [
            "/",
            "/nope",
            "/v1",
            "/v1/",
            "/v1/nope",
            "/v1/messages/",
            "/v1/actors/x",
            "/v1/actors//inbox",
            "/v2/messages",
        ] {
            for method in [Method::GET, Method::POST, Method::PUT, Method::OPTIONS] {
                let answer = site.ask(TestRequest::default().method(method).uri(path)).await;
                assert_eq!(answer.outcome(), (404, "not_found"), "{path}");
            }
        }
        for path in ["/v1/messages", "/v1/adverts", inbox, "/v1/.well-known/aggregation", "/v1/openapi.json"] {
            for method in [Method::PUT, Method::DELETE, Method::PATCH, Method::HEAD, Method::TRACE] {
                let answer = site.ask(TestRequest::default().method(method.clone()).uri(path)).await;
                assert_eq!(answer.outcome(), (404, "not_found"), "{method} {path}");
            }
        }
    });
}

#[test]
fn the_document_is_served_and_refers_to_what_it_has() {
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig::default()).await;
        let answer = site.ask(TestRequest::get().uri("/v1/openapi.json")).await;
        assert_eq!(answer.body, *DOCUMENT);
    });
    assert_eq!(DOCUMENT["openapi"], "3.1.0");
    let text = DOCUMENT.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(DOCUMENT.pointer(reference).is_some(), "{reference} is nowhere");
    }
}

/// The schemas are few and simple enough for manual checks: required fields, constants, types.
fn fits(value: &Value, schema: &Value) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        fits(value, DOCUMENT.pointer(&reference[1..]).unwrap())?;
    }
    let kind_fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64(),
        Some(other) => panic!("the type {other}"),
        None => true,
    };
    let constant_fits = schema.get("const").is_none_or(|constant| constant == value);
    if !kind_fits || !constant_fits {
        return Err(format!("{value} is not {schema}"));
    }
    for field in schema["required"].as_array().into_iter().flatten() {
        value.get(field.as_str().unwrap()).ok_or(format!("{field} of {value}"))?;
    }
    let properties = schema["properties"].as_object();
    properties.into_iter().flatten().try_for_each(|(name, schema)| match value.get(name) {
        Some(value) => fits(value, schema),
        None => Ok(()),
    })
}

#[test]
fn envelopes_and_the_limits_fit_their_schemas() {
    let schemas = &DOCUMENT["components"]["schemas"];
    for case in crate::http_support::list(&crate::http_support::vectors("envelope"), "cases") {
        fits(&case["envelope"], &schemas["Envelope"]).unwrap();
    }
    assert!(fits(&json!({ "v": 1 }), &schemas["Envelope"]).is_err());
    paused(async {
        let (site, _deliveries) = Site::new(HttpConfig::default()).await;
        let limits = site.ask(TestRequest::get().uri("/v1/.well-known/aggregation")).await.body;
        fits(&limits, &schemas["Limits"]).unwrap();
        let named: BTreeSet<_> = schemas["Limits"]["properties"].as_object().unwrap().keys().collect();
        assert_eq!(limits.as_object().unwrap().keys().collect::<BTreeSet<_>>(), named);
    });
}
