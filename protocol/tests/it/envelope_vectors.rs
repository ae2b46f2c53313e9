//! Signed envelopes against `envelope.json`.

use std::time::Duration;

use btcr2_aggregation_protocol::{
    did::Did,
    envelope::{CLOCK_SKEW, EnvelopeError, Expected, ExpectedTo, ParsedEnvelope, SealedEnvelope, signing_digest},
    hash::sha256,
    key::{PublicKey, SecretKey},
    message::Message,
    time::Timestamp,
};
use data_encoding::HEXLOWER;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::Value;

fn text<'a>(entry: &'a Value, field: &str) -> &'a str {
    entry[field].as_str().unwrap_or_else(|| panic!("{field} of {entry}"))
}

fn list<'a>(entry: &'a Value, field: &str) -> &'a [Value] {
    let list = entry[field].as_array().unwrap();
    assert!(!list.is_empty(), "an empty list proves nothing");
    list
}

fn secs(entry: &Value, field: &str) -> Timestamp {
    Timestamp::from_secs(entry[field].as_u64().unwrap())
}

fn bytes<const N: usize>(entry: &Value, field: &str) -> [u8; N] {
    HEXLOWER.decode(text(entry, field).as_bytes()).unwrap().try_into().unwrap()
}

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(7)
}

#[test]
fn recorded_envelopes_verify_and_ours_are_identical() {
    let vectors = crate::common::vectors("envelope");
    for case in list(&vectors, "cases") {
        let name = text(case, "name");
        let recorded = text(case, "envelopeText");
        let (now, nonce) = (secs(case, "timestamp"), bytes::<16>(case, "nonce"));
        let key = text(case, "senderPublicKey").parse::<PublicKey>().unwrap().x_only();
        let from: Did = text(&vectors["actors"][text(case, "from")], "did").parse().unwrap();
        let to: Option<Did> = case["to"].as_str().map(|to| text(&vectors["actors"][to], "did").parse().unwrap());
        let expected = Expected {
            from: Some(&from),
            to: to.as_ref().map_or(ExpectedTo::Broadcast, ExpectedTo::Did),
            ..Expected::default()
        };

        let parsed = ParsedEnvelope::parse(recorded).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(HEXLOWER.encode(&parsed.signing_bytes().unwrap()), text(case, "canonicalUtf8"), "{name}");
        assert_eq!(sha256(&parsed.signing_bytes().unwrap()), bytes(case, "digest"), "{name}");
        let verified = parsed.verify(&key, now, &expected).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((verified.nonce, verified.timestamp), (nonce, now), "{name}");
        assert_eq!((parsed.nonce(), parsed.timestamp()), (Some(nonce), Some(now)), "{name}");
        assert_eq!((parsed.from(), parsed.to()), (from.as_str(), to.as_ref().map(Did::as_str)), "{name}");
        assert_eq!(parsed.inner_from(), Some(from.as_str()), "{name}");
        assert_eq!(parsed.inner_type(), case["envelope"]["message"]["type"].as_str(), "{name}");
        assert!(parsed.sender_matches(), "{name}");
        assert_eq!(*parsed.message_value(), case["envelope"]["message"], "{name}");

        let received = parsed.message().unwrap_or_else(|error| panic!("{name}: {error}"));
        // Built from the typed body, not from the text that a received message retains.
        let built = Message::new(received.from.clone(), received.to.clone(), (*received.body).clone());
        for message in [received, built] {
            assert_eq!(signing_digest(&message, now, &nonce).unwrap(), bytes(case, "digest"), "{name}");
            let secret = SecretKey::from_bytes(&bytes(case, "senderSecretKey")).unwrap();
            let sealed = SealedEnvelope::seal(&message, &secret, now, nonce, &mut rng()).unwrap();
            let ours = sealed.to_json();
            assert_eq!(sealed.pieces().concat(), ours, "{name}");
            assert_eq!(sealed.byte_len(), ours.len(), "{name}");
            // The signatures differ in their auxiliary randomness. The text ends with their 128 hex digits and `"}`.
            let unsigned = recorded.len() - 130;
            assert_eq!(ours[..unsigned], recorded[..unsigned], "{name}");
            assert_eq!(ours.len(), recorded.len(), "{name}");
            ParsedEnvelope::parse(&ours).unwrap().verify(&key, now, &expected).unwrap();
        }
    }
}

/// The cases where our code differs from the TypeScript implementation's. In all of them the timestamp is not a
/// number: the TypeScript implementation computes with NaN and continues to the signature, we stop.
const OTHER_CODES: [(&str, &str); 2] =
    [("timestamp as text", "ENVELOPE_TIMESTAMP_SKEW"), ("timestamp missing", "ENVELOPE_TIMESTAMP_SKEW")];

#[test]
fn tampered_envelopes_give_the_recorded_code() {
    let vectors = crate::common::vectors("envelope");
    for entry in list(&vectors, "tampered") {
        let name = text(entry, "name");
        let did = |field: &str| entry[field].as_str().map(|did| did.parse::<Did>().unwrap());
        let (from, broadcast) = (did("expectedFrom"), entry["expectedTo"] == "(broadcast)");
        let to = if broadcast { None } else { did("expectedTo") };
        let expected = Expected {
            from: from.as_ref(),
            to: match &to {
                Some(to) => ExpectedTo::Did(to),
                None if broadcast => ExpectedTo::Broadcast,
                None => ExpectedTo::Any,
            },
            skew: Duration::from_secs(entry["clockSkewSec"].as_u64().unwrap()),
        };
        let key = text(entry, "senderPublicKey").parse::<PublicKey>().unwrap().x_only();
        let received = entry["envelope"].to_string();
        let parsed = ParsedEnvelope::parse(&received).unwrap_or_else(|error| panic!("{name}: {error}"));
        let result = parsed.verify(&key, secs(entry, "verifierNow"), &expected);
        let code = result.as_ref().map_or_else(EnvelopeError::code, |_| "OK");
        let ours = OTHER_CODES.iter().find(|(other, _)| *other == name).map(|(_, code)| *code);
        assert_eq!(code, ours.unwrap_or_else(|| text(entry, "result")), "{name}");
        // Seconds are rounded down, on a clock in milliseconds.
        let late = secs(entry, "verifierNow") + Duration::from_millis(999);
        assert_eq!(parsed.verify(&key, late, &expected), result, "{name}");
    }
}

/// The response of a server that only has this codec: 202 for what it would deliver to a cohort, or ignore because
/// the type is unknown. Replays, limits and the identity of the recipient are checked by the server.
fn answer(received: &str, entry: &Value, keys: &dyn Fn(&str) -> Option<PublicKey>) -> (u16, &'static str) {
    let envelope = match ParsedEnvelope::parse(received) {
        Ok(envelope) => envelope,
        Err(error) => {
            assert!(matches!(error, EnvelopeError::NotJson | EnvelopeError::Malformed(_)), "{error}");
            return (400, "invalid_json");
        }
    };
    let Some(key) = keys(envelope.from()) else { return (401, "unknown_sender") };
    if envelope.verify(&key.x_only(), secs(entry, "serverNow"), &Expected::default()).is_err() {
        return (401, "invalid_envelope");
    }
    if envelope.to().is_none() {
        return (400, "missing_recipient");
    }
    if !envelope.sender_matches() {
        return (401, "sender_mismatch");
    }
    if envelope.inner_type().is_none() {
        return (400, "missing_message_type");
    }
    (202, "")
}

#[test]
fn recorded_posts_give_the_recorded_status() {
    let vectors = crate::common::vectors("envelope");
    let keys = |did: &str| {
        let mut actors = vectors["actors"].as_object().unwrap().values();
        actors.find(|actor| actor["did"] == did).map(|actor| text(actor, "publicKey").parse().unwrap())
    };
    for entry in list(&vectors, "httpPosts") {
        let name = text(entry, "name");
        for (received, recorded) in list(entry, "requestBodies").iter().zip(list(entry, "answers")) {
            let recorded = match (recorded["status"].as_u64(), recorded["body"]["error"].as_str()) {
                // The handler of the TypeScript implementation threw; the wire format requires a 400.
                (None, _) => (400, "invalid_json"),
                // The server decides this by the length alone; here it is not an envelope either.
                (Some(413), _) => (400, "invalid_json"),
                // Decided by the server: replays, rates, known recipients, and the senders that an opt-in introduces.
                (_, Some("replay" | "rate_limited" | "unknown_recipient")) => (202, ""),
                (_, Some("unknown_sender")) if name.starts_with("external") => (202, ""),
                (Some(status), error) => (u16::try_from(status).unwrap(), error.unwrap_or_default()),
            };
            let (status, error) = answer(received.as_str().unwrap(), entry, &keys);
            assert_eq!((status, error), recorded, "{name}");
        }
        let first = entry["requestBodies"][0].as_str().unwrap();
        if let "not JSON" | "empty body" = name {
            assert_eq!(ParsedEnvelope::parse(first).unwrap_err(), EnvelopeError::NotJson, "{name}");
        }
    }
}

#[test]
fn a_body_with_its_own_type_or_sender_is_refused() {
    let vectors = crate::common::vectors("envelope");
    for name in ["body overrides from", "body overrides type"] {
        let entry = list(&vectors, "httpPosts").iter().find(|entry| entry["name"] == name).unwrap();
        let received = entry["requestBodies"][0].as_str().unwrap();
        // Recorded: the TypeScript implementation delivers the second one, under the body's type.
        assert!(ParsedEnvelope::parse(received).unwrap().message().is_err(), "{name}");
    }
}

#[test]
fn the_default_skew_is_one_minute() {
    assert_eq!((CLOCK_SKEW, Expected::default().skew), (Duration::from_secs(60), Duration::from_secs(60)));
}
