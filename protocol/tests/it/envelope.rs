//! Sealing for many recipients, and envelopes without vectors: hostile ones, and arbitrary ones that we seal
//! ourselves.

use std::sync::Arc;

use btcr2_aggregation_protocol::{
    did::Did,
    envelope::{EnvelopeError, Expected, ParsedEnvelope, SealedEnvelope, signing_digest},
    hash::sha256,
    identity::Identity,
    jcs::{self, JcsError, MAX_DEPTH},
    key::SecretKey,
    message::{Body, DecodeError, Message, SharedBody},
    network::Network,
    time::Timestamp,
};
use proptest::{collection, prelude::*};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::{Map, Value, json};

const NOW: Timestamp = Timestamp::from_millis(1_750_000_000_999);
const NONCE: [u8; 16] = [0xab; 16];

fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

fn identity(seed: u64) -> Identity {
    Identity::from_key(SecretKey::generate(&mut rng(seed)), Network::Regtest)
}

fn did(seed: u64) -> Did {
    identity(seed).did().clone()
}

/// An opt-in: the only message whose body holds a document of the sender's.
fn opt_in(from: &Identity, to: Option<&Did>, genesis: &Value) -> Message {
    let key = json!({"__bytes": from.public_key().to_string()});
    let body = json!({
        "cohortId": "20acce5d-e259-4294-8955-0e82f20345f4",
        "participantPk": key, "communicationPk": key,
    });
    let mut message = json!({
        "type": "https://btcr2.dev/aggregation/keygen/cohort_opt_in", "version": 1, "from": from.did(), "body": body,
    });
    if let Some(to) = to {
        message["to"] = json!(to);
    }
    let received = Message::from_json(&message.to_string()).unwrap();
    let Body::CohortOptIn(mut body) = (*received.body).clone() else { panic!("an opt-in") };
    // Includes documents that no peer could receive.
    body.genesis_document = Some(Arc::new(genesis.clone()));
    Message::new(received.from, received.to, body)
}

fn seal(identity: &Identity, message: &Message) -> SealedEnvelope {
    SealedEnvelope::seal(message, identity.secret_key(), NOW, NONCE, &mut rng(1)).unwrap()
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(json!(0), |inner, _| json!([inner]))
}

#[test]
fn sealing_from_the_shared_hash_state_equals_sealing_in_full() {
    let service = identity(1);
    let document =
        json!({"z": [1, 2.5, "é\u{1f600}\n"], "a": {"\u{20ac}": null, "1": true}, "": "x".repeat(50_000)});
    let shared: SharedBody = opt_in(&service, None, &document).body;
    for seed in 2..202 {
        let message = Message::new(service.did().clone(), (seed % 7 != 0).then(|| did(seed)), shared.clone());
        let nonce = [seed as u8; 16];
        let sealed = SealedEnvelope::seal(&message, service.secret_key(), NOW, nonce, &mut rng(seed)).unwrap();
        let text = sealed.to_json();
        let parsed = ParsedEnvelope::parse(&text).unwrap();
        let whole = sha256(&parsed.signing_bytes().unwrap());
        assert_eq!(signing_digest(&message, NOW, &nonce).unwrap(), whole);
        parsed.verify(&service.public_key().x_only(), NOW, &Expected::default()).unwrap();
        assert_eq!(parsed.message().unwrap(), message);
        let [_, body, _] = sealed.pieces();
        assert!(std::ptr::eq(body, shared.json()), "the body's text is not copied");
    }
}

#[test]
fn a_body_with_two_senders_is_sealed_for_each() {
    let (first, second) = (identity(1), identity(2));
    let message = opt_in(&first, None, &json!({"a": 1}));
    let digest = message.digest();
    let relayed = Message::new(second.did().clone(), None, message.body.clone());
    for (identity, message) in [(&first, &message), (&second, &relayed), (&first, &message)] {
        let text = seal(identity, message).to_json();
        let parsed = ParsedEnvelope::parse(&text).unwrap();
        parsed.verify(&identity.public_key().x_only(), NOW, &Expected::default()).unwrap();
    }
    assert_eq!(message.digest(), digest);
    assert_ne!(relayed.digest(), digest);
}

#[test]
fn a_body_without_canonical_form_is_not_sealed() {
    let from = identity(1);
    let sealed = |document: &Value| {
        let message = opt_in(&from, None, document);
        // A transcript can hold a message that an envelope cannot.
        let _ = message.digest();
        SealedEnvelope::seal(&message, from.secret_key(), NOW, NONCE, &mut rng(1))
    };
    assert!(matches!(sealed(&json!(u64::MAX)), Err(JcsError::Integer(_))));
    // Envelope, message, body and document take one level each; the parser allows one level less than
    // canonicalization.
    let deepest = sealed(&nested(MAX_DEPTH - 4)).unwrap().to_json();
    ParsedEnvelope::parse(&deepest).unwrap();
    assert!(matches!(sealed(&nested(MAX_DEPTH - 3)), Err(JcsError::Depth)));
}

#[test]
fn random_nonces_differ() {
    let from = identity(1);
    let message = opt_in(&from, None, &json!({}));
    let mut rng = rng(3);
    let mut seal = || SealedEnvelope::seal_with_rng(&message, from.secret_key(), NOW, &mut rng).unwrap().to_json();
    let (first, second) = (seal(), seal());
    let nonce = |text: &str| ParsedEnvelope::parse(text).unwrap().nonce().unwrap();
    assert_ne!(nonce(&first), nonce(&second));
}

#[test]
fn an_envelope_without_a_message_has_no_inner_sender() {
    let parsed = ParsedEnvelope::parse("{\"from\":\"x\"}").unwrap();
    assert!(!parsed.sender_matches());
    assert!(parsed.message().is_err());
}

#[test]
fn invalid_json_and_invalid_envelopes_have_different_errors() {
    let deep = |open: &str, close: &str| {
        let envelope = json!({"v": 1, "from": "x", "message": {"deep": null}}).to_string();
        envelope.replace("null", &format!("{}0{}", open.repeat(100_000), close.repeat(100_000)))
    };
    for text in ["", " ", "{", "nul", "{}{}", "{\"from\":\"x\",}", "{'a':1}", "\u{feff}{}", "[1,]", "NaN"] {
        assert_eq!(ParsedEnvelope::parse(text).unwrap_err(), EnvelopeError::NotJson, "{text}");
    }
    assert_eq!(ParsedEnvelope::parse(&"[".repeat(100_000)).unwrap_err(), EnvelopeError::NotJson);
    for text in [
        "null",
        "1",
        "[]",
        "\"x\"",
        "{}",
        "{\"message\":{}}",
        "{\"from\":null,\"message\":{}}",
        "{\"from\":\"x\",\"message\":null}",
        "{\"from\":\"x\",\"message\":[]}",
        "{\"from\":\"x\",\"message\":\"{}\"}",
        "{\"from\":\"x\",\"to\":null,\"message\":{}}",
        "{\"from\":\"x\",\"to\":1,\"message\":{}}",
        // Parsers differ in which of the two they take.
        "{\"from\":\"x\",\"from\":\"x\",\"message\":{}}",
        "{\"from\":\"x\",\"message\":{},\"message\":{}}",
        "{\"from\":\"x\",\"message\":{},\"sig\":\"00\",\"sig\":\"00\"}",
        "[1,\"x\",null,1,\"00\",{},\"00\"]",
        // No canonical form.
        "{\"from\":\"x\",\"message\":{\"a\":9007199254740993}}",
        "{\"from\":\"x\",\"message\":{\"a\":1e999}}",
        "{\"from\":\"x\",\"message\":{\"a\":\"\\ud800\"}}",
        "{\"from\":\"x\",\"message\":{},\"timestamp\":18446744073709551615}",
        &deep("[", "]"),
        &deep("{\"a\":", "}"),
    ] {
        let parsed = ParsedEnvelope::parse(text);
        assert!(matches!(parsed, Err(EnvelopeError::Malformed(_))), "{:.80}: {parsed:?}", text);
    }
    ParsedEnvelope::parse("{\"from\":\"x\",\"message\":{}}").unwrap();
    // An integer beyond 64 bits is read as a double, as by every JSON parser.
    let huge =
        ParsedEnvelope::parse("{\"from\":\"x\",\"message\":{\"a\":123456789012345678901234567890}}").unwrap();
    assert_eq!(huge.signing_bytes().unwrap(), b"{\"from\":\"x\",\"message\":{\"a\":1.2345678901234568e+29}}");
}

#[test]
fn byte_strings_are_lower_case_hex_of_whole_bytes() {
    let parse = |value: &Value| {
        let text = json!({"from": "x", "message": {"list": [{"deep": value}]}}).to_string();
        ParsedEnvelope::parse(&text).map(|_| ())
    };
    for valid in [
        json!({"__bytes": ""}),
        json!({"__bytes": "00ff"}),
        json!({"__bytes": "zz", "other": 1}),
        json!({"_bytes": "zz"}),
        json!("__bytes"),
    ] {
        assert_eq!(parse(&valid), Ok(()), "{valid}");
    }
    for hex in [json!("abc"), json!("zz"), json!("AB"), json!(" 00"), json!(1), json!(null), json!({"__bytes": ""})]
    {
        let parsed = parse(&json!({"__bytes": hex}));
        assert!(matches!(parsed, Err(EnvelopeError::Malformed(_))), "{hex}: {parsed:?}");
    }
}

#[test]
fn numbers_keep_their_value_and_nonces_are_lower_case_hex() {
    let from = identity(1);
    let sign = |change: &dyn Fn(&mut Map<String, Value>)| {
        let text = seal(&from, &opt_in(&from, None, &json!({}))).to_json();
        let Ok(Value::Object(mut envelope)) = serde_json::from_str(&text) else { panic!("{text}") };
        envelope.remove("sig");
        change(&mut envelope);
        let unsigned = Value::Object(envelope.clone()).to_string();
        let digest = sha256(&ParsedEnvelope::parse(&unsigned).unwrap().signing_bytes().unwrap());
        envelope.insert("sig".to_owned(), json!(from.secret_key().sign(&digest, &mut rng(1))));
        let text = Value::Object(envelope).to_string();
        let key = from.public_key().x_only();
        ParsedEnvelope::parse(&text).unwrap().verify(&key, NOW, &Expected::default()).map(|verified| verified.nonce)
    };
    let set = |field: &'static str, value: Value| {
        sign(&|envelope| drop(envelope.insert(field.to_owned(), value.clone())))
    };
    assert_eq!(set("v", json!(1.0)), Ok(NONCE));
    assert_eq!(set("v", json!(true)), Err(EnvelopeError::Version));
    assert_eq!(set("timestamp", json!(1.75e9)), Ok(NONCE));
    assert_eq!(set("signed", json!("too")), Ok(NONCE));
    for timestamp in [json!(1_750_000_000.5), json!(-1), json!(1e300), json!([]), json!(null), json!("1750000000")]
    {
        assert_eq!(set("timestamp", timestamp), Err(EnvelopeError::TimestampSkew));
    }
    // The TypeScript implementation accepts any signed nonce; we accept only the format of the specification.
    for nonce in [json!("AB".repeat(16)), json!("ab".repeat(15)), json!("ab".repeat(17)), json!(1), json!(null)] {
        assert_eq!(set("nonce", nonce), Err(EnvelopeError::Nonce));
    }
    assert_eq!(sign(&|envelope| drop(envelope.remove("nonce"))), Err(EnvelopeError::Nonce));
}

#[test]
fn a_field_twice_is_no_message_and_in_a_document_the_last_counts() {
    let from = identity(1);
    let message = opt_in(&from, None, &json!({"a": 1}));
    let text = seal(&from, &message).to_json();
    assert_eq!(ParsedEnvelope::parse(&text).unwrap().message().unwrap(), message);
    for (once, twice) in [
        ("\"message\":{", "\"message\":{\"version\":1,"),
        ("\"body\":{", "\"body\":{\"cohortId\":\"x\","),
        ("\"participantPk\":{", "\"participantPk\":{\"__bytes\":\"00\","),
    ] {
        let text = text.replacen(once, twice, 1);
        let message = ParsedEnvelope::parse(&text).unwrap().message();
        assert!(matches!(message, Err(DecodeError::Field { .. })), "{twice}: {message:?}");
        assert_eq!(message.is_err(), Message::from_json(&inner(&text)).is_err(), "{twice}: as without an envelope");
    }
    let text = text.replacen("{\"a\":1}", "{\"a\":2,\"a\":1}", 1);
    let received = ParsedEnvelope::parse(&text).unwrap().message().unwrap();
    assert_eq!(received, message);
    assert_eq!(received.digest(), message.digest());
}

/// The text of the message in an envelope's.
fn inner(envelope: &str) -> String {
    let (_, message) = envelope.split_once("\"message\":").unwrap();
    message.rsplit_once(",\"sig\":").unwrap().0.to_owned()
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-(1i64 << 53)..=1 << 53).prop_map(Value::from),
        any::<f64>().prop_filter("finite", |number| number.is_finite()).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            collection::btree_map(any::<String>(), inner, 0..5)
                .prop_map(|fields| fields.into_iter().collect::<Map<_, _>>().into()),
        ]
    })
}

/// Whether two texts have the same meaning: not every changed text has another one, e.g. a 17th digit, or the case of
/// a hex digit in an escape or in the signature.
fn means_the_same(one: &str, other: &str) -> bool {
    let value = |text: &str| {
        let mut value: Value = serde_json::from_str(text).unwrap();
        value["sig"] = json!(value["sig"].as_str().unwrap().to_lowercase());
        value
    };
    value(one) == value(other)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn sealed_envelopes_verify_and_changed_bytes_do_not(
        document in json_value().prop_filter("a genesis document is never null", |value| !value.is_null()),
        millis in 0..1u64 << 50,
        nonce in any::<[u8; 16]>(),
        directed in any::<bool>(),
        flips in collection::vec((any::<prop::sample::Index>(), 0u32..7), 20),
    ) {
        let from = identity(1);
        let to = directed.then(|| did(2));
        let now = Timestamp::from_millis(millis);
        let message = opt_in(&from, to.as_ref(), &document);
        let text =
            SealedEnvelope::seal(&message, from.secret_key(), now, nonce, &mut rng(1)).unwrap().to_json();
        let key = from.public_key().x_only();
        let parsed = ParsedEnvelope::parse(&text).unwrap();
        let verified = parsed.verify(&key, now, &Expected::default()).unwrap();
        prop_assert_eq!((verified.nonce, verified.timestamp.as_secs()), (nonce, now.as_secs()));
        prop_assert_eq!(parsed.message().unwrap(), message);
        for (index, bit) in flips {
            let mut bytes = text.clone().into_bytes();
            let position = index.index(bytes.len());
            bytes[position] ^= 1 << bit;
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            let believed = ParsedEnvelope::parse(&changed)
                .is_ok_and(|parsed| parsed.verify(&key, now, &Expected::default()).is_ok());
            prop_assert!(!believed || means_the_same(&changed, &text), "{changed}");
        }
    }

    #[test]
    fn canonical_bytes_are_those_of_another_implementation(value in json_value()) {
        prop_assert_eq!(jcs::canonicalize(&value).unwrap(), serde_jcs::to_vec(&value).unwrap());
    }

    #[test]
    fn no_text_panics(text in "[{}\\[\\]\":,a-z0-9_ .eE-]{0,200}", cut in any::<prop::sample::Index>()) {
        let _ = ParsedEnvelope::parse(&text);
        let from = identity(1);
        let sealed = seal(&from, &opt_in(&from, None, &json!({}))).to_json();
        let changed = format!("{}{text}{}", &sealed[..cut.index(sealed.len())], &sealed[cut.index(sealed.len())..]);
        if let Ok(parsed) = ParsedEnvelope::parse(&changed) {
            let _ = (parsed.message(), parsed.verify(&from.public_key().x_only(), NOW, &Expected::default()));
        }
    }
}
