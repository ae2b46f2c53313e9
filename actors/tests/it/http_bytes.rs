//! Arbitrary bytes over a real socket: every answer is one that the document names (`Loopback::answer` checks each),
//! never a 500 and never a dropped connection; and none of the requests is delivered.

use std::cell::RefCell;

use crate::http_support::{
    ack, draft, identity,
    loopback::{Loopback, client},
    sealed, service, signed,
};
use btcr2_aggregation_actors::transport::{
    Delivery,
    http::{HttpConfig, store::Rate},
};
use proptest::{
    collection::vec,
    prelude::*,
    sample::Index,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use serde_json::json;

/// Limits that this test does not reach.
fn generous() -> HttpConfig {
    let rate = Rate { per_second: 1_000_000, burst: 1_000_000 };
    HttpConfig { did_rate: rate, address_rate: rate, ..HttpConfig::default() }
}

/// Random bytes; text that is nearly JSON; a valid envelope with some bytes changed, removed or doubled.
fn hostile_body(good: String) -> impl Strategy<Value = Vec<u8>> {
    let nearly_json = "[\\[\\]{}:,\"0-9eE.+\\-ntf\\\\u ]{0,200}".prop_map(String::into_bytes);
    let edit = (any::<Index>(), 0..3, any::<u8>(), 1..20usize);
    let mutated = vec(edit, 1..5).prop_map(move |edits| {
        let mut bytes = good.clone().into_bytes();
        for (index, kind, byte, length) in edits {
            let at = index.index(bytes.len());
            let end = (at + length).min(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => drop(bytes.drain(at..end)),
                _ => {
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
            if bytes.is_empty() {
                break;
            }
        }
        bytes
    });
    prop_oneof![vec(any::<u8>(), 0..300), nearly_json, mutated]
}

#[actix_web::test]
async fn any_bytes_get_a_documented_answer() {
    let (loopback, mut deliveries) = Loopback::start("", generous()).await;
    let alice = identity(1);
    let good = sealed(&alice, Some(service().did()), ack(), loopback.clock.now());
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    let bodies = hostile_body(good.clone());
    let codes = RefCell::new(std::collections::BTreeSet::new());
    for _ in 0..400 {
        let body = bodies.new_tree(&mut runner).unwrap().current();
        for path in ["/v1/messages", "/v1/adverts"] {
            let request = client().post(loopback.url(path)).body(body.clone());
            let (status, code) = loopback.answer(request).await;
            // A change without a meaning, e.g. a space, leaves the envelope valid.
            let good_still = status == 202 || status == 403 || status == 409;
            assert!(good_still || (400..=401).contains(&status), "{status} {code}: {body:?}");
            codes.borrow_mut().insert(code);
        }
    }
    for code in ["invalid_json", "unknown_sender", "invalid_envelope"] {
        assert!(codes.borrow().contains(code), "{code} never came: the bodies are not what they should be");
    }
    while let Ok(delivery) = deliveries.try_recv() {
        assert!(matches!(delivery, Delivery::Message(message) if message.from == *alice.did()));
    }
    loopback.stop().await;
}

#[actix_web::test]
async fn what_parsers_choke_on_is_refused() {
    let (loopback, mut deliveries) = Loopback::start("", generous()).await;
    let alice = identity(1);
    let good = draft(&alice, loopback.clock.now());
    let with = |from: &str, to: &str| good.to_string().replace(from, to).into_bytes();
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(10_000), close.repeat(10_000)).into_bytes();
    let malformed: Vec<Vec<u8>> = vec![
        deep("[", "]"),
        "[".repeat(65_536).into_bytes(),
        deep("{\"a\":", "}"),
        [b"{\"a\":".repeat(10_000), b"1".to_vec()].concat(),
        with("true", &format!("{}{}", "[".repeat(500), "]".repeat(500))),
        with("true", "1e999"),
        with("true", &"9".repeat(5_000)),
        with("true", "-1e-999999999999999999999"),
        with("true", "\"\\ud800\""),
        with("true", "9007199254740993"),
        with("\"v\":1", "\"v\":1,\"v\":1"),
        with("\"from\":", "\"from\":\"x\",\"from\":"),
        [good.to_string().as_bytes(), b" {}"].concat(),
        b"\xff\xfe\x00{".to_vec(),
        [b"\xef\xbb\xbf".as_slice(), good.to_string().as_bytes()].concat(),
        with("true", "\u{0}"),
        vec![0; 65_536],
        b"null".to_vec(),
        b"\"x\"".to_vec(),
    ];
    for body in malformed {
        let start = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let answer = loopback.post(body).await;
        // A number so small that it rounds to zero is a valid number.
        let small = start.starts_with('{') && answer.1 == "invalid_envelope";
        assert!(small || answer == (400, "invalid_json".to_owned()), "{answer:?}: {start}");
    }
    let wrong = [
        ("timestamp", json!(1e300)),
        ("timestamp", json!(-1)),
        ("timestamp", json!(0.5)),
        ("timestamp", json!(u64::from(u32::MAX) * 1000)),
        ("timestamp", json!({})),
        ("nonce", json!("AB".repeat(16))),
        ("nonce", json!("")),
        ("nonce", json!(1)),
        ("v", json!([])),
    ];
    for (field, value) in wrong {
        let mut envelope = good.clone();
        envelope[field] = value;
        let answer = loopback.post(signed(envelope, alice.secret_key())).await;
        assert_eq!(answer, (401, "invalid_envelope".to_owned()), "{field}");
    }
    // A valid envelope that is not a message: the service is notified.
    let mut odd = good.clone();
    odd["message"]["body"] = json!([null, 1.5e300, { "deep": [[[]]] }]);
    assert_eq!(loopback.post(signed(odd, alice.secret_key())).await.0, 202);
    assert!(matches!(deliveries.recv().await, Some(Delivery::Undecodable { from, .. }) if from == *alice.did()));
    assert!(deliveries.try_recv().is_err());
    loopback.stop().await;
}

#[actix_web::test]
async fn any_authorization_and_any_path_get_a_documented_answer() {
    let (loopback, _deliveries) = Loopback::start("", generous()).await;
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    let paths = prop_oneof!["[a-zA-Z0-9:._~-]{1,40}", "(%[0-9a-fA-F]{2}){1,20}", "did:btcr2:[kx]1[a-z0-9]{0,60}"];
    let parameter = "(v|did|ts|nonce|sig|x)=[ -~&&[^\\r\\n]]{0,30}";
    let headers = prop_oneof![
        "[ -~]{0,60}".prop_map(String::from),
        vec(parameter, 0..8).prop_map(|parameters| format!("BTCR2-Sig {}", parameters.join(","))),
    ];
    for _ in 0..200 {
        let path = paths.new_tree(&mut runner).unwrap().current();
        let header = headers.new_tree(&mut runner).unwrap().current();
        let request =
            client().get(loopback.url(&format!("/v1/actors/{path}/inbox"))).header("authorization", header);
        // The client removes a path that only consists of dots.
        let request = request.build().unwrap();
        if request.url().path().matches('/').count() != 4 {
            continue;
        }
        let builder = reqwest::RequestBuilder::from_parts(client(), request);
        assert_eq!(loopback.answer(builder).await, (401, "unauthorized".to_owned()), "{path}");
    }
    loopback.stop().await;
}
