//! Canonical JSON and its hash against `jcs_hash.json`, and what has no canonical form.

use btcr2_aggregation_protocol::{
    hash::{DocumentHash, sha256},
    jcs::{self, JcsError, MAX_DEPTH},
};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};

/// The integers of the vectors that JCS would round. The TypeScript implementation rounds them, we refuse them.
const ROUNDED: &str = "9007199254740993";

fn text<'a>(case: &'a Value, field: &str) -> &'a str {
    case[field].as_str().unwrap_or_else(|| panic!("{field} of {case}"))
}

#[test]
fn canonical_bytes_and_hashes_are_those_of_the_vectors() {
    let vectors = crate::common::vectors("jcs_hash");
    let cases = vectors["cases"].as_array().unwrap();
    let (mut plain, mut lone, mut rounded) = (0, 0, 0);
    for case in cases {
        let input = text(case, "inputJson");
        if case["loneSurrogate"] == true {
            lone += 1;
            assert!(serde_json::from_str::<Value>(input).is_err(), "{input}");
            continue;
        }
        let mut input = input.to_owned();
        if input.contains(ROUNDED) {
            rounded += 1;
            let value: Value = serde_json::from_str(&input).unwrap();
            assert!(matches!(jcs::canonicalize(&value), Err(JcsError::Integer(_))), "{input}");
            // Written as doubles they have the value that the TypeScript implementation used, so the rest of the case
            // applies.
            input = input.replace(ROUNDED, &format!("{ROUNDED}.0"));
        }
        plain += 1;
        let value: Value = serde_json::from_str(&input).unwrap_or_else(|error| panic!("{input}: {error}"));
        let canonical = jcs::canonicalize(&value).unwrap_or_else(|error| panic!("{input}: {error}"));
        assert_eq!(String::from_utf8_lossy(&canonical), text(case, "canonical"), "{input}");
        assert_eq!(HEXLOWER.encode(&canonical), text(case, "canonicalUtf8"), "{input}");
        assert_eq!(HEXLOWER.encode(&sha256(&canonical)), text(case, "sha256"), "{input}");
        let hash = jcs::document_hash(&value).unwrap();
        assert_eq!(hash.to_string(), text(case, "base64url"), "{input}");
        assert_eq!(text(case, "base64url").parse::<DocumentHash>().as_ref(), Ok(&hash), "{input}");
        assert_eq!(bs58::encode(hash.as_bytes()).into_string(), text(case, "base58"), "{input}");
        assert_eq!(jcs::canonicalize_serializable(&value).unwrap(), canonical, "{input}");
    }
    assert!(plain > 0 && lone > 0 && rounded > 0, "{plain} {lone} {rounded}");
}

#[test]
fn integers_are_exact_or_refused() {
    const LIMIT: i64 = 1 << 53;
    for (value, canonical) in [
        (json!(LIMIT), "9007199254740992"),
        (json!(-LIMIT), "-9007199254740992"),
        (json!(LIMIT - 1), "9007199254740991"),
        (json!(1 - LIMIT), "-9007199254740991"),
        (json!({"deep": [LIMIT]}), r#"{"deep":[9007199254740992]}"#),
    ] {
        assert_eq!(String::from_utf8(jcs::canonicalize(&value).unwrap()).unwrap(), canonical);
    }
    for value in [json!(LIMIT + 1), json!(-LIMIT - 1), json!(u64::MAX), json!(i64::MAX), json!(i64::MIN)] {
        for place in [value.clone(), json!([value.clone()]), json!({"a": {"b": value.clone()}})] {
            assert!(matches!(jcs::canonicalize(&place), Err(JcsError::Integer(_))), "{place}");
            assert!(matches!(jcs::document_hash(&place), Err(JcsError::Integer(_))), "{place}");
            assert!(matches!(jcs::canonicalize_serializable(&place), Err(JcsError::Integer(_))), "{place}");
        }
    }
}

/// The canonical bytes of accepted documents are published and read again.
#[test]
fn canonical_bytes_are_their_own_canonical_form() {
    for text in [
        "1e16",
        "-1e16",
        "8880188218e8",
        "9007199254740994.0",
        "1152921504606846976.0",
        "1e19",
        "18446744073709551615.0",
        "1e20",
        "1e21",
        "-0.0",
    ] {
        let value: Value = serde_json::from_str(text).unwrap();
        let canonical = jcs::canonicalize(&value).unwrap();
        let again: Value = serde_json::from_slice(&canonical).unwrap();
        assert_eq!(jcs::canonicalize(&again).unwrap(), canonical, "{text}");
    }
    // The same double in another notation would be a second document with the same hash.
    for text in ["1152921504606846976", "10000000000000001", "9007199254740995"] {
        let value: Value = serde_json::from_str(text).unwrap();
        assert!(matches!(jcs::canonicalize(&value), Err(JcsError::Integer(_))), "{text}");
    }
}

#[test]
fn the_parser_limits_the_depth_of_documents() {
    let text = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let deepest =
        (1..1_000).take_while(|depth| serde_json::from_str::<Value>(&text(*depth)).is_ok()).last().unwrap();
    let value: Value = serde_json::from_str(&text(deepest)).unwrap();
    assert_eq!(jcs::canonicalize(&value).unwrap(), text(deepest).into_bytes());

    let nested = |depth: usize| (1..depth).fold(json!([]), |inner, _| json!([inner]));
    assert!(jcs::canonicalize(&nested(MAX_DEPTH)).is_ok());
    assert!(matches!(jcs::canonicalize(&nested(MAX_DEPTH + 1)), Err(JcsError::Depth)));
}

#[test]
fn the_last_of_duplicate_members_counts_as_in_ecmascript() {
    let value: Value = serde_json::from_str(r#"{"a":1,"b":2,"a":3}"#).unwrap();
    assert_eq!(jcs::canonicalize(&value).unwrap(), br#"{"a":3,"b":2}"#);
}
