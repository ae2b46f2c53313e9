//! `resolver serve`: status codes, content types, Sidecar Data of a request, and the cache.

use std::fs;

use crate::{
    resolve_cli::{Author, ran},
    resolver_support::{Answered, Explorer, Resolver, answered},
    support::{did_of, directory, identity, inputs::certificate, path, run},
};
use btcr2_aggregation::{
    actors::{runtime::Randomness, transport::tls::Trust},
    cas::ContentHash,
    protocol::{
        beacon::{AggregateBeacon, SmtBeacon},
        did::Did,
        jcs,
        network::Network,
        output::{InitialBeacon, InitialBeaconKind},
        sidecar::plain_data,
        update::SignedUpdate,
    },
};
use reqwest::Method;
use serde_json::{Value, json};

#[actix_rt::test]
async fn a_result_is_served_in_the_form_that_is_accepted() {
    let explorer = Explorer::start();
    let resolver = Resolver::start(&explorer, &[]).await;
    assert_eq!(resolver.resolving["networks"], json!(["regtest"]));
    let author = Author::key("forms");
    let did = author.did();
    let result = json!({
        "didResolutionMetadata": { "contentType": "application/did" },
        "didDocument": author.documents[0],
        "didDocumentMetadata": { "versionId": "1", "confirmations": 0, "deactivated": false },
    });
    let linked = "application/ld+json;profile=\"https://w3id.org/did-resolution\"";
    for (accept, content_type, body) in [
        ("*/*", "application/did-resolution", &result),
        ("application/did-resolution", "application/did-resolution", &result),
        (linked, linked, &result),
        ("application/json", "application/json", &result),
        ("application/did", "application/did", &author.documents[0]),
        ("application/did+ld+json", "application/did+ld+json", &author.documents[0]),
    ] {
        let answer = resolver.accepting(did, accept).await;
        assert_eq!((answer.status.as_u16(), answer.content_type.as_str()), (200, content_type), "{answer:?}");
        assert_eq!(answer.json(), *body, "{accept}");
    }
    assert_eq!(resolver.get(&did.replace(':', "%3A")).await.json(), result);

    let head = answered(resolver.request(Method::HEAD, &format!("/1.0/identifiers/{did}"))).await;
    assert_eq!((head.status.as_u16(), head.body.as_str()), (200, ""));
    assert_eq!(head.content_type, "application/did-resolution");
    let refused = resolver.accepting(did, "text/html").await;
    assert_eq!((refused.status.as_u16(), refused.error().as_str()), (406, "REPRESENTATION_NOT_SUPPORTED"));
    let deleted = answered(resolver.request(Method::DELETE, &format!("/1.0/identifiers/{did}"))).await;
    assert_eq!(
        (deleted.status.as_u16(), &deleted.headers["allow"]),
        (405, &"GET, HEAD, POST, OPTIONS".parse().unwrap())
    );
    for unknown in ["/", "/1.0/identifiers/", "/1.0/methods", "/metrics", "/../etc/passwd"] {
        let answer = answered(resolver.request(Method::GET, unknown)).await;
        // Not in the form of a result.
        assert_eq!((answer.status.as_u16(), &answer.json()["error"]), (404, &json!("no-such-path")), "{unknown}");
    }
}

#[actix_rt::test]
async fn web_pages_may_use_a_resolver() {
    let explorer = Explorer::start();
    let resolver = Resolver::start(&explorer, &["--cors", "https://a.example"]).await;
    let path = format!("/1.0/identifiers/{}", Author::key("pages").did());
    for (origin, allowed) in [("https://a.example", true), ("https://b.example", false)] {
        for method in [Method::GET, Method::OPTIONS] {
            let answer = answered(resolver.request(method, &path).header("origin", origin)).await;
            let named = answer.headers.get("access-control-allow-origin").map(|value| value.to_str().unwrap());
            assert_eq!(named, allowed.then_some(origin), "{answer:?}");
            assert!(answer.status.is_success());
        }
    }
}

/// Asserts status and code, and the shape of a failed result.
fn failed(answer: &Answered, status: u16, code: &str) {
    assert_eq!((answer.status.as_u16(), answer.error().as_str()), (status, code), "{answer:?}");
    let result = answer.json();
    assert_eq!((&result["didDocument"], &result["didDocumentMetadata"]), (&Value::Null, &json!({})));
    assert!(!result["didResolutionMetadata"]["error"]["detail"].as_str().unwrap().is_empty());
    assert_eq!(answer.content_type, "application/did-resolution");
}

#[actix_rt::test]
async fn each_error_has_the_status_of_its_code() {
    let explorer = Explorer::start();
    let mut author = Author::key("codes");
    let first = author.note("one");
    explorer.singleton(&author, &first);
    let resolver = Resolver::start(&explorer, &[]).await;
    let did = author.did();
    failed(&resolver.get("did:btcr2:k1qqq").await, 400, "INVALID_DID");
    failed(&resolver.get("did:btcr2:k1qqq%00%0a%1b").await, 400, "INVALID_DID");
    failed(&resolver.get("did:web:example.org").await, 501, "METHOD_NOT_SUPPORTED");
    let elsewhere = Did::from_key(author.key.public_key(), Network::Bitcoin);
    failed(&resolver.get(elsewhere.as_str()).await, 501, "FEATURE_NOT_SUPPORTED");
    for query in ["versionId=two", "minConf=0", "versionTime=yesterday", "versionId=1&versionId=2"] {
        failed(&resolver.get(&format!("{did}?{query}")).await, 400, "INVALID_OPTIONS");
    }
    // The signal has one confirmation, and its data is nowhere.
    assert_eq!(resolver.get(did).await.status, 200);
    let missing = resolver.get(&format!("{did}?minConf=1")).await;
    failed(&missing, 404, "MISSING_UPDATE_DATA");
    let error = &missing.json()["didResolutionMetadata"]["error"];
    assert_eq!(error["type"], "https://btcr2.dev/context/v1#MISSING_UPDATE_DATA");
    // A failure is a result also for a client that accepts documents only.
    failed(&resolver.accepting(&format!("{did}?minConf=1"), "application/did").await, 404, "MISSING_UPDATE_DATA");
    failed(&resolver.get(&format!("{did}?versionId=9")).await, 404, "NOT_FOUND");
    let external = Author::external("nowhere", "CASBeacon", &author.beacon().address().to_string());
    failed(&resolver.get(external.did()).await, 404, "NOT_FOUND");

    // Two updates of version 2.
    let mut rival = Author::key("codes");
    let second = rival.note("another one");
    explorer.singleton(&author, &second);
    let updates = json!({ "updates": [first.value(), second.value()] });
    let body = json!({ "minConf": 1, "sidecar": updates }).to_string();
    failed(&resolver.post(did, body).await, 500, "LATE_PUBLISHING");
    assert_eq!(resolver.metric("btcr2_resolver_answers_total{outcome=\"LATE_PUBLISHING\"}").await, 1.0);
    assert_eq!(resolver.metric("btcr2_resolver_refusals_total{reason=\"other-network\"}").await, 1.0);
}

#[actix_rt::test]
async fn a_proof_of_another_tree_is_the_request_s_fault() {
    let explorer = Explorer::start();
    let resolver = Resolver::start(&explorer, &[]).await;
    let address = Author::key("a cohort").beacon();
    let member = Author::external("smt", "SMTBeacon", &address.address().to_string());
    let tree = |seed: u8| {
        let slots = [(member.did.clone(), None)].into();
        let mut rng = Randomness::Seeded([seed; 32]).for_actor("tree");
        SmtBeacon.aggregate(&slots, &mut rng).unwrap()
    };
    let (ours, other) = (tree(1), tree(2));
    explorer.announce(&address.script_pubkey(), *ours.signal.as_bytes());
    let proof = plain_data(ours.data.for_member(&member.did).unwrap());
    let mut wrong = plain_data(other.data.for_member(&member.did).unwrap());
    wrong["id"] = proof["id"].clone();
    for (proof, status, error) in [(&proof, 200, ""), (&wrong, 400, "INVALID_SIGNAL_DATA")] {
        let body = json!({ "minConf": 1, "sidecar": member.sidecar(json!({ "smtProofs": [proof] })) });
        let answer = resolver.post(member.did(), body.to_string()).await;
        assert_eq!((answer.status.as_u16(), answer.error().as_str()), (status, error), "{answer:?}");
    }
    let body = json!({ "minConf": 1, "sidecar": member.sidecar(json!({})) }).to_string();
    failed(&resolver.post(member.did(), body).await, 404, "MISSING_UPDATE_DATA");
}

#[actix_rt::test]
async fn sidecar_data_of_a_request_is_for_that_request_only() {
    let explorer = Explorer::start();
    let mut author = Author::key("own data");
    let update = author.note("second");
    explorer.singleton(&author, &update);
    let resolver = Resolver::start(&explorer, &[]).await;
    let young = format!("{}?minConf=1", author.did());
    let body = json!({ "sidecar": author.sidecar(json!({})) }).to_string();
    for _ in 0..2 {
        failed(&resolver.get(&young).await, 404, "MISSING_UPDATE_DATA");
        let answer = resolver.post(&young, body.clone()).await;
        assert_eq!(answer.status, 200);
        let result = answer.json();
        assert_eq!(result["didDocument"], author.documents[1]);
        assert_eq!(result["didDocumentMetadata"]["versionId"], "2");
        assert_eq!(result["didDocumentMetadata"]["confirmations"], 1);
    }
    // The other member's request for it does not find it either.
    failed(&resolver.post(&young, "{}").await, 404, "MISSING_UPDATE_DATA");
    let old = resolver.post(&young, json!({ "versionId": "1", "sidecar": author.sidecar(json!({})) }).to_string());
    assert_eq!(old.await.json()["didDocument"], author.documents[0]);
    assert_eq!(resolver.metric("btcr2_resolver_cached_results").await, 0.0);
}

#[actix_rt::test]
async fn a_deactivated_did_is_gone_with_its_result() {
    let explorer = Explorer::start();
    let mut author = Author::key("gone");
    let last = author.update(json!([{ "op": "add", "path": "/deactivated", "value": true }]));
    explorer.singleton(&author, &last);
    let directory = directory("resolver-gone");
    let file = path(&directory, "sidecar.json");
    fs::write(&file, author.sidecar(json!({})).to_string()).unwrap();
    let resolver = Resolver::start(&explorer, &["--sidecar", &file]).await;
    let young = format!("{}?minConf=1", author.did());
    for accept in ["application/did-resolution", "application/did"] {
        let answer = resolver.accepting(&young, accept).await;
        assert_eq!((answer.status.as_u16(), answer.content_type.as_str()), (410, "application/did-resolution"));
        let result = answer.json();
        assert_eq!(result["didDocumentMetadata"]["deactivated"], true);
        assert_eq!(result["didDocument"], author.documents[1]);
    }
    // What it was before.
    let answer = resolver.accepting(&format!("{young}&versionId=1"), "application/did").await;
    assert_eq!((answer.status.as_u16(), answer.json()), (200, author.documents[0].clone()));
    assert_eq!(resolver.metric("btcr2_resolver_answers_total{outcome=\"DEACTIVATED\"}").await, 2.0);
}

#[actix_rt::test]
async fn a_result_is_cached_until_the_next_block() {
    let explorer = Explorer::start();
    let mut author = Author::key("cached");
    let update = author.note("second");
    explorer.singleton(&author, &update);
    let directory = directory("resolver-cached");
    let store = path(&directory, "store");
    fs::create_dir(&store).unwrap();
    fs::write(
        path(&directory, "store") + "/" + &ContentHash::from(*update.hash()).hex(),
        jcs::canonicalize(update.value()).unwrap(),
    )
    .unwrap();
    let resolver = Resolver::start(&explorer, &["--cas", &format!("dir={store}")]).await;
    let young = format!("{}?minConf=1", author.did());
    let confirmations = async || resolver.get(&young).await.json()["didDocumentMetadata"]["confirmations"].clone();
    assert_eq!(confirmations().await, 1);
    let read = explorer.histories();
    assert!(read > 0);
    for _ in 0..3 {
        assert_eq!(confirmations().await, 1);
    }
    // In another form, and as a POST without Sidecar Data.
    assert_eq!(resolver.accepting(&young, "application/did").await.json(), author.documents[1]);
    assert_eq!(resolver.post(author.did(), r#"{"minConf":1}"#).await.json()["didDocument"], author.documents[1]);
    assert_eq!(explorer.histories(), read);
    assert_eq!(resolver.metric("btcr2_resolver_cache_lookups_total{outcome=\"hit\"}").await, 5.0);
    // Other options are another result.
    assert_eq!(resolver.get(author.did()).await.json()["didDocument"], author.documents[0]);
    assert_eq!(resolver.metric("btcr2_resolver_cached_results").await, 2.0);

    let before = explorer.histories();
    explorer.mine(1);
    assert_eq!(confirmations().await, 2);
    assert!(explorer.histories() > before);
    assert_eq!(resolver.metric("btcr2_resolver_cached_results").await, 1.0);
    // A reorganization to another block of the same height is another tip too.
    explorer.chain.take_back(2);
    explorer.mine(2);
    assert_eq!(confirmations().await, 2);
    assert!(explorer.histories() > before + read);
}

/// W3C DID Resolution, "HTTP(S) Binding": all HTTPS bindings use TLS.
#[actix_rt::test]
async fn a_resolver_serves_https_and_a_new_certificate_after_sighup() {
    let directory = directory("resolver-tls");
    let (cert, key) = (path(&directory, "cert.pem"), path(&directory, "key.pem"));
    let write = |(certificate, secret): &(String, String)| {
        fs::write(&cert, certificate).unwrap();
        fs::write(&key, secret).unwrap();
    };
    let (first, second) = (certificate(), certificate());
    write(&first);
    let explorer = Explorer::start();
    let trust = Trust::only(first.0.as_bytes()).unwrap();
    let tls = ["--tls-cert", &cert, "--tls-key", &key];
    let mut resolver = Resolver::start_trusting(&explorer, &tls, &trust).await;
    assert!(resolver.url.starts_with("https://127.0.0.1:"), "{}", resolver.url);
    let author = Author::key("https");
    assert_eq!(resolver.get(author.did()).await.json()["didDocument"], author.documents[0]);
    let other = Trust::only(second.0.as_bytes()).unwrap().http_client().unwrap().build().unwrap();
    let at = format!("{}/1.0/identifiers/{}", resolver.url, author.did());
    assert!(other.get(&at).send().await.is_err(), "another certificate is trusted");

    write(&second);
    resolver.program.signal("-HUP");
    let reloaded = resolver.program.event("reloaded");
    assert_eq!(reloaded["files"], json!([cert, key]));
    assert_eq!(other.get(&at).send().await.unwrap().status().as_u16(), 200);

    // Files that cannot be used change nothing.
    fs::write(&key, &first.1).unwrap();
    resolver.program.signal("-HUP");
    let stays = |event: &Value| event["message"].as_str().unwrap().contains("the old TLS certificate stays");
    resolver.program.event_where("warning", stays);
    assert_eq!(other.get(&at).send().await.unwrap().status().as_u16(), 200);
}

/// A member's state directory makes its DID resolve for everyone, also what is added to it later.
#[actix_rt::test]
async fn a_state_directory_is_read_again_at_each_block() {
    let directory = directory("resolver-state");
    let (alice, state) = (identity(&directory, "alice"), path(&directory, "state"));
    let did = did_of(&alice);
    let explorer = Explorer::start();
    let chain = format!("esplora={}", explorer.url);
    let script = InitialBeacon::of(&Did::parse(&did).unwrap(), InitialBeaconKind::P2wpkh).unwrap();
    let script = script.address().script_pubkey();
    let mut started = None;
    for (name, version) in [("one", "2"), ("two", "3")] {
        let file = path(&directory, name);
        let verb = ["update", &did, "add-service", name, "--type", "Files", "--endpoint", "https://a.example"];
        let fixed = ["--identity", &alice, "--chain", &chain, "--min-conf", "1", "--state", &state, "--out", &file];
        ran(&[&verb[..], &fixed].concat()).await.succeeded();
        let update: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        let update = SignedUpdate::from_value(update["update"].clone()).unwrap();
        explorer.announce(&script, *update.hash().as_bytes());
        let resolver = match &started {
            Some(resolver) => resolver,
            None => started.insert(Resolver::start(&explorer, &["--state", &state]).await),
        };
        let answer = resolver.get(&format!("{did}?minConf=1")).await;
        assert_eq!(answer.json()["didDocumentMetadata"]["versionId"], json!(version), "{answer:?}");
    }
}

#[test]
fn a_malformed_call_of_the_resolver_is_refused() {
    let chain = ["--chain", "esplora=http://127.0.0.1:1/api"];
    let with = |more: &[&'static str]| [&["resolver", "serve"], &chain[..], more].concat();
    for (arguments, why) in [
        (vec!["resolver"], "Usage"),
        (vec!["resolver", "serve"], "no chain"),
        (vec!["resolver", "serve", "--chain", "bitcoin"], "--chain"),
        (with(&["--sidecar", "/nowhere/at-all"]), "/nowhere/at-all"),
        (with(&["--cas", "s3=bucket"]), "dir=PATH or ipfs=URL"),
        (with(&["--timeout", "0s"]), "longer than 0s"),
        (with(&["--max-resolutions", "0"]), "--max-resolutions"),
        (with(&["--tls-cert", "certificate.pem"]), "--tls-key"),
        (with(&["--trusted-proxy", "everyone"]), "an address or a prefix"),
    ] {
        let refused = run(&arguments);
        assert!(refused.usage().contains(why), "{why:?} is missing in {}", refused.stderr);
    }
    let missing = run(&with(&["--tls-cert", "/nowhere/cert.pem", "--tls-key", "/nowhere/key.pem"]));
    assert!(missing.status == Some(1) && missing.stderr.contains("/nowhere/cert.pem"), "{missing:?}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let run = run(&[&["resolver", "serve", "--listen", &address], &chain[..]].concat());
    assert!(run.status == Some(1) && run.stderr.contains(&format!("listening on {address}")), "{run:?}");
}
