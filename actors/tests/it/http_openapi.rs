//! The API's document against the server's behaviour. The other tests check each answer that they receive against it
//! too (`crate::http_support::openapi::check`); this test produces everything that it names.

use std::{collections::BTreeSet, sync::Arc};

use crate::http_support::{
    ack, advert, draft, identity, openapi, openapi::DOCUMENT, paused, sealed, service, signed, site::Site,
};
use actix_web::{http::Method, test::TestRequest};
use async_trait::async_trait;
use btcr2_aggregation_actors::transport::{
    Inbox, Transport,
    http::{
        HttpConfig, Refusal,
        history::{History, HistoryRefusal, ServedProof, announcements_path, board_path, map_path, proof_path},
        store::Rate,
    },
};
use btcr2_aggregation_protocol::{
    beacon::did_index,
    did::Did,
    hash::{DidIndex, DocumentHash, SignalBytes},
    id::CohortId,
    identity::Identity,
    key::PublicKey,
    request_auth::RequestAuthorization,
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

/// The index of a DID, as in paths.
fn index(identity: &Identity) -> DidIndex {
    did_index(identity.did())
}

/// A history with one answer for each cohort.
struct Shelf;

impl Shelf {
    fn answer<T>(cohort_id: &CohortId, value: T) -> Result<T, HistoryRefusal> {
        match cohort_id.as_str() {
            "busy" => Err(HistoryRefusal::Busy),
            "broken" => Err(HistoryRefusal::Failed("a broken disk".to_owned())),
            "unknown" => Err(HistoryRefusal::Unknown),
            _ => Ok(value),
        }
    }
}

#[async_trait]
impl History for Shelf {
    async fn announcements(&self, cohort_id: &CohortId, after: u64, most: usize) -> Result<Value, HistoryRefusal> {
        Self::answer(cohort_id, json!({ "after": after, "most": most }))
    }

    async fn map(&self, cohort_id: &CohortId, _: &SignalBytes) -> Result<Value, HistoryRefusal> {
        Self::answer(cohort_id, json!({}))
    }

    async fn proof(&self, cohort_id: &CohortId, number: u64, _: &DidIndex) -> Result<ServedProof, HistoryRefusal> {
        let seat = Some(identity(5).did().clone());
        Self::answer(cohort_id, ServedProof { answer: json!({}), has_leaf: number > 1, seat })
    }

    async fn board(&self, cohort_id: &CohortId, hash: &DocumentHash) -> Result<Arc<Vec<u8>>, HistoryRefusal> {
        let is_known = *hash != DocumentHash::from_bytes([9; 32]);
        is_known
            .then(|| Arc::new(b"{}".to_vec()))
            .ok_or(HistoryRefusal::Unknown)
            .and_then(|bytes| Self::answer(cohort_id, bytes))
    }

    async fn is_seat(&self, _: &CohortId, did: &Did) -> Result<bool, HistoryRefusal> {
        Ok(did == identity(5).did())
    }

    async fn control_keys(&self, _: &CohortId, did: &Did) -> Vec<PublicKey> {
        // Another key than that in the DID.
        (did == identity(6).did()).then(|| identity(7).public_key()).into_iter().collect()
    }
}

/// The signed request of `identity`, as `did`.
fn signed_as(site: &Site, did: &Did, key: &Identity, path: &str) -> TestRequest {
    let signed =
        RequestAuthorization::sign(did, key.secret_key(), path, site.now(), &mut crate::http_support::rng());
    TestRequest::default().insert_header(("authorization", signed.to_string()))
}

/// Everything about the history of standing cohorts.
async fn ask_history(seen: &mut Seen, site: &Site) {
    tokio::time::advance(std::time::Duration::from_secs(60)).await;
    let id = |cohort: &str| CohortId::parse(cohort).unwrap();
    let (seat, other, hash) = (identity(5), identity(8), DocumentHash::from_bytes([8; 32]));
    let get = async |seen: &mut Seen, path: &str, request: TestRequest| ask(seen, site, "GET", path, request).await;
    let announcements = |cohort: &str| announcements_path("", &id(cohort));
    // No history is served yet.
    get(seen, &announcements("known"), TestRequest::default()).await;
    site.server.serve_history(Arc::new(Shelf));
    for cohort in ["known", "busy", "broken", "unknown"] {
        let proof = |number, index| proof_path("", &id(cohort), number, &index);
        let board = board_path("", &id(cohort), &hash);
        get(seen, &announcements(cohort), TestRequest::default()).await;
        get(seen, &map_path("", &id(cohort), &SignalBytes::from_bytes([8; 32])), TestRequest::default()).await;
        get(seen, &proof(1, index(&other)), TestRequest::default()).await;
        get(seen, &board, signed_as(site, seat.did(), &seat, &board)).await;
    }
    let page = format!("{}?after=7&limit=1000", announcements("known"));
    let answer = site.ask(TestRequest::get().uri(&page)).await;
    assert_eq!(answer.body, json!({ "after": 7, "most": 256 }), "pages are bounded");
    for wrong in ["?after=x", "?limit=-1", "?after=1&after=2"] {
        get(seen, &format!("{}{wrong}", announcements("known")), TestRequest::default()).await;
    }
    for wrong in ["maps/x", "announcements/1/proofs/x", "announcements/x/proofs/x", "boards/x"] {
        get(seen, &format!("/v1/standing/known/{wrong}"), TestRequest::default()).await;
    }
    // A leaf is for its seat, and for the controller of the DID.
    let known = id("known");
    let path = |identity: &Identity| proof_path("", &known, 2, &index(identity));
    let board = board_path("", &known, &hash);
    let outcome = async |request: TestRequest, path: &str| site.ask(request.uri(path)).await.outcome().0;
    let of_seat = signed_as(site, seat.did(), &seat, &path(&other));
    assert_eq!(outcome(of_seat, &path(&other)).await, 200);
    let (controlled, key) = (identity(6), identity(7));
    let by_controller = signed_as(site, controlled.did(), &key, &path(&controlled));
    assert_eq!(outcome(by_controller, &path(&controlled)).await, 200);
    for (did, key, path) in [
        // The key that the DID began with.
        (&controlled, &controlled, path(&controlled)),
        (&seat, &other, path(&other)),
        (&seat, &other, board.clone()),
        // The DID of another index, or without a seat.
        (&other, &other, path(&seat)),
        (&other, &other, board.clone()),
    ] {
        let request = signed_as(site, did.did(), key, &path);
        get(seen, &path, request).await;
    }
    for path in [path(&other), board.clone()] {
        get(seen, &path, TestRequest::default()).await;
        // For another path, e.g. of another cohort.
        let elsewhere = path.replace("known", "another");
        get(seen, &path, signed_as(site, seat.did(), &seat, &elsewhere)).await;
        let header = crate::http_support::authorization(&seat, &path, site.now());
        for _ in 0..2 {
            let request = TestRequest::default().insert_header(("authorization", header.clone()));
            get(seen, &path, request).await;
        }
        for _ in 0..25 {
            get(seen, &path, signed_as(site, seat.did(), &seat, &path)).await;
        }
        tokio::time::advance(std::time::Duration::from_secs(60)).await;
    }
    let missing = board_path("", &known, &DocumentHash::from_bytes([9; 32]));
    get(seen, &missing, signed_as(site, seat.did(), &seat, &missing)).await;
    // Resolving costs: one address may have ten DIDs resolved at once.
    let mut refused = 0;
    for _ in 0..20 {
        let request = signed_as(site, controlled.did(), &controlled, &path(&controlled));
        refused += usize::from(outcome(request, &path(&controlled)).await == 429);
    }
    assert_eq!(refused, 10);
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
        ask_history(&mut seen, &site).await;
        for path in DOCUMENT["paths"].as_object().unwrap().keys() {
            let path = path.replace("{did}", alice.did().as_str()).replace(['{', '}'], "");
            ask(&mut seen, &site, "OPTIONS", &path, TestRequest::default()).await;
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
            "/v1/standing",
            "/v1/standing/x",
            "/v1/standing//announcements",
            "/v1/standing/x/announcements/1",
            "/v1/standing/x/announcements/1/proofs",
            "/v1/standing/x/boards",
        ] {
            for method in [Method::GET, Method::POST, Method::PUT, Method::OPTIONS] {
                let answer = site.ask(TestRequest::default().method(method).uri(path)).await;
                assert_eq!(answer.outcome(), (404, "not_found"), "{path}");
            }
        }
        let history = "/v1/standing/x/announcements";
        let documents = ["/v1/.well-known/aggregation", "/v1/openapi.json"];
        for path in ["/v1/messages", "/v1/adverts", inbox, history].into_iter().chain(documents) {
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
        Some("array") => value.is_array(),
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
