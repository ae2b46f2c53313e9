//! Inbox authorization against `request_auth.json`.

use btcr2_aggregation_protocol::{
    did::Did,
    envelope::CLOCK_SKEW,
    hash::sha256,
    key::{PublicKey, SecretKey},
    request_auth::{RequestAuthError, RequestAuthorization, inbox_path},
    time::Timestamp,
};
use data_encoding::HEXLOWER;
use proptest::prelude::*;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::Value;

fn text<'a>(entry: &'a Value, field: &str) -> &'a str {
    entry[field].as_str().unwrap_or_else(|| panic!("{field} of {entry}"))
}

fn list<'a>(vectors: &'a Value, field: &str) -> &'a [Value] {
    let list = vectors[field].as_array().unwrap();
    assert!(!list.is_empty(), "an empty list proves nothing");
    list
}

fn secs(entry: &Value, field: &str) -> Timestamp {
    Timestamp::from_secs(entry[field].as_u64().unwrap())
}

fn public_key(entry: &Value) -> PublicKey {
    text(entry, "publicKey").parse().unwrap()
}

fn secret_key(entry: &Value) -> SecretKey {
    SecretKey::from_bytes(&HEXLOWER.decode(text(entry, "secretKey").as_bytes()).unwrap().try_into().unwrap())
        .unwrap()
}

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(7)
}

#[test]
fn recorded_headers_verify_and_ours_are_identical() {
    let vectors = crate::common::vectors("request_auth");
    for case in list(&vectors, "cases") {
        let (header, path) = (text(case, "header"), text(case, "path"));
        let (key, now) = (public_key(case).x_only(), secs(case, "timestamp"));
        let parsed = RequestAuthorization::parse(header).unwrap();
        assert_eq!(parsed.did(), text(&case["parsed"], "did"));
        assert_eq!(parsed.timestamp(), secs(&case["parsed"], "ts"));
        assert_eq!(HEXLOWER.encode(&parsed.nonce()), text(&case["parsed"], "nonce"));
        assert_eq!(HEXLOWER.encode(&parsed.signing_bytes(path)), text(case, "canonicalUtf8"));
        assert_eq!(HEXLOWER.encode(&sha256(&parsed.signing_bytes(path))), text(case, "digest"));
        assert_eq!(parsed.verify(&key, path, now, CLOCK_SKEW), Ok(()));
        assert_eq!(parsed.to_string(), header);

        let did: Did = text(case, "did").parse().unwrap();
        assert_eq!(inbox_path("", &did), path);
        let ours = RequestAuthorization::sign(&did, &secret_key(case), path, now, &mut rng());
        let ours = RequestAuthorization::parse(&ours.to_string()).unwrap();
        assert_eq!(ours.verify(&key, path, now, CLOCK_SKEW), Ok(()));
    }
}

#[test]
fn tampered_headers_give_the_recorded_code() {
    let vectors = crate::common::vectors("request_auth");
    for entry in list(&vectors, "tampered") {
        let verified = RequestAuthorization::parse(text(entry, "header")).and_then(|authorization| {
            let key = public_key(entry).x_only();
            authorization.verify(&key, text(entry, "path"), secs(entry, "verifierNow"), CLOCK_SKEW)
        });
        let result = verified.map_or_else(RequestAuthError::code, |()| "OK");
        assert_eq!(result, text(entry, "result"), "{}", text(entry, "name"));
    }
}

#[test]
fn malformed_headers_are_refused() {
    let vectors = crate::common::vectors("request_auth");
    let header = text(&vectors["cases"][0], "header").to_owned();
    let nonce = text(&vectors["cases"][0], "nonce");
    for (header, error) in [
        (String::new(), RequestAuthError::Scheme),
        ("BTCR2-Sig".to_owned(), RequestAuthError::Scheme),
        (header.replace("BTCR2-Sig", "BTCR2-Sigs"), RequestAuthError::Scheme),
        ("BTCR2-Sig ".to_owned(), RequestAuthError::Malformed),
        (format!("{header},"), RequestAuthError::Malformed),
        (header.replace("v=1", "v=1.5"), RequestAuthError::Version),
        (header.replace("v=1", "v="), RequestAuthError::Version),
        (header.replace("ts=1750000000", "ts=NaN"), RequestAuthError::Malformed),
        (header.replace("ts=1750000000", "ts=inf"), RequestAuthError::Malformed),
        (header.replace("ts=1750000000", "ts=-1"), RequestAuthError::Malformed),
        (header.replace("ts=1750000000", "ts=1e300"), RequestAuthError::Malformed),
        (header.replace("ts=1750000000", "ts="), RequestAuthError::Malformed),
        // The TypeScript implementation accepts any text as a nonce; we accept only the format of the specification.
        (header.replace(nonce, &nonce.to_uppercase()), RequestAuthError::Malformed),
        (header.replace(nonce, &nonce[2..]), RequestAuthError::Malformed),
    ] {
        assert_eq!(RequestAuthorization::parse(&header), Err(error), "{header}");
    }
}

#[test]
fn a_path_is_signed_with_the_prefix_of_the_base_url() {
    let vectors = crate::common::vectors("request_auth");
    let case = &vectors["cases"][0];
    let did: Did = text(case, "did").parse().unwrap();
    let now = secs(case, "timestamp");
    for base in ["/agg", "/agg/", "/a/b c\"\\\u{7f}\u{1}é"] {
        let path = inbox_path(base, &did);
        let ours = RequestAuthorization::sign(&did, &secret_key(case), &path, now, &mut rng());
        let signed = serde_json::json!({
            "v": 1, "did": did, "ts": now.as_secs(), "nonce": HEXLOWER.encode(&ours.nonce()), "path": path,
        });
        let canonical = btcr2_aggregation_protocol::jcs::canonicalize(&signed).unwrap();
        assert_eq!(ours.signing_bytes(&path), canonical, "{path}");
        assert_eq!(ours.verify(&public_key(case).x_only(), &path, now, CLOCK_SKEW), Ok(()));
        let other = inbox_path("", &did);
        let verified = ours.verify(&public_key(case).x_only(), &other, now, CLOCK_SKEW);
        assert_eq!(verified, Err(RequestAuthError::SigInvalid), "{path}");
    }
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(text in "(BTCR2-Sig )?[ -~]{0,200}") {
        let _ = RequestAuthorization::parse(&text);
    }

    #[test]
    fn any_changed_character_fails(position in 0usize..260, replacement in 33u8..127) {
        let vectors = crate::common::vectors("request_auth");
        let case = &vectors["cases"][0];
        let mut header = text(case, "header").to_owned().into_bytes();
        let position = position % header.len();
        let signature_begins = header.windows(5).position(|window| window == b",sig=").unwrap() + 5;
        // The hex digits of the signature may have either case.
        prop_assume!(header[position] != replacement);
        prop_assume!(position < signature_begins || !header[position].eq_ignore_ascii_case(&replacement));
        header[position] = replacement;
        let verified = RequestAuthorization::parse(std::str::from_utf8(&header).unwrap()).and_then(|parsed| {
            parsed.verify(&public_key(case).x_only(), text(case, "path"), secs(case, "timestamp"), CLOCK_SKEW)
        });
        prop_assert!(verified.is_err());
    }
}
