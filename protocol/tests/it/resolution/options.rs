//! Options (rules R-2 and R-12): read before any input or output.

use btcr2_aggregation_protocol::{
    did::Did,
    resolution::{ErrorCode, ResolutionError, ResolutionOptions, ResolutionResult, SidecarData, SidecarError},
};
use serde_json::{Value, json};

use super::world::{Author, World};

#[track_caller]
fn refused(options: Value) -> String {
    let error = ResolutionOptions::from_value(&options).unwrap_err();
    assert_eq!((error.code(), error.rule()), (ErrorCode::InvalidOptions, None), "{options}");
    error.to_string()
}

#[test]
fn min_conf_is_an_integer_of_at_least_one() {
    // R-2.
    for wrong in [json!(0), json!(-1), json!(1.5), json!("6"), Value::Null] {
        assert!(refused(json!({ "minConf": wrong })).contains("minConf"));
    }
    assert_eq!(ResolutionOptions::default().min_conf(), 6);
    assert_eq!(ResolutionOptions::from_value(&json!({ "minConf": 6.0 })).unwrap(), ResolutionOptions::default());
    assert_eq!(ResolutionOptions::from_value(&json!({ "minConf": 1, "unknown": [] })).unwrap().min_conf(), 1);
}

#[test]
fn version_id_is_text_of_an_integer() {
    // R-12.
    for wrong in ["", "-", "+1", "1.0", "1e1", " 1", "1 ", "٢", "two", "--1"] {
        assert!(refused(json!({ "versionId": wrong })).contains("versionId"), "{wrong}");
    }
    assert!(refused(json!({ "versionId": 2 })).contains("versionId is 2,"));
    assert!(refused(json!({ "versionId": "x".repeat(10_000) })).len() < 300, "what is shown is bounded");
    for right in ["1", "0", "-1", "007", "99999999999999999999999"] {
        assert!(ResolutionOptions::from_value(&json!({ "versionId": right })).is_ok(), "{right}");
    }
}

#[test]
fn version_time_is_utc_to_the_second() {
    // R-12.
    for wrong in [
        "2026-10-01",
        "2026-10-01T12:00:00",
        "2026-10-01T12:00:00+00:00",
        "2026-10-01T12:00:00.0Z",
        "2026-10-01t12:00:00z",
        "2026-10-01 12:00:00Z",
        "2026-13-01T12:00:00Z",
        "2026-02-30T12:00:00Z",
        "2026-10-01T12:60:00Z",
        "+026-10-01T12:00:00Z",
        "",
    ] {
        assert!(refused(json!({ "versionTime": wrong })).contains("versionTime"), "{wrong}");
    }
    refused(json!({ "versionTime": 1_790_856_000 }));
    assert!(ResolutionOptions::from_value(&json!({ "versionTime": "2024-02-29T00:00:00Z" })).is_ok());
}

#[test]
fn version_id_and_time_exclude_each_other() {
    // R-12.
    let text = refused(json!({ "versionId": "1", "versionTime": "2026-10-01T12:00:00Z" }));
    assert!(text.contains("versionId") && text.contains("versionTime"), "{text}");
}

#[test]
fn max_discovery_rounds_is_an_integer_of_at_least_one() {
    for wrong in [json!(0), json!(-1), json!(1.5), json!("1"), json!(1u64 << 40)] {
        assert!(refused(json!({ "maxDiscoveryRounds": wrong })).contains("maxDiscoveryRounds"));
    }
    assert!(refused(json!([])).contains("object"));
}

#[test]
fn leading_zeros_do_not_change_a_version() {
    let (mut world, mut author) = (World::new(), Author::key(1));
    let two = author.note("two");
    world.singleton(&author.beacon(), &two, 100);
    world.resolves_with(&author, &json!({ "versionId": "002" }), 2);
}

#[test]
fn what_is_no_sidecar_data_is_refused() {
    for (value, error) in [
        (json!([]), SidecarError::NotAnObject),
        (json!({ "updates": {} }), SidecarError::NotAnArray("updates")),
        (json!({ "casUpdates": "x" }), SidecarError::NotAnArray("casUpdates")),
        (json!({ "smtProofs": 1 }), SidecarError::NotAnArray("smtProofs")),
    ] {
        assert_eq!(SidecarData::from_value(value).unwrap_err(), error);
        assert_eq!(ResolutionError::from(error).code(), ErrorCode::InvalidOptions);
    }
    assert!(matches!(SidecarData::from_slice(b"{"), Err(SidecarError::NotJson(_))));
    let nested = format!("{{\"updates\":[{}{}]}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(SidecarData::from_slice(nested.as_bytes()), Err(SidecarError::NotJson(_))));
    // A byte order mark, absent lists and other members are not faults.
    for text in ["\u{feff}{}", r#"{ "updates": null, "other": 1 }"#] {
        assert_eq!(SidecarData::from_slice(text.as_bytes()).unwrap().left_out(), 0);
    }
}

#[test]
fn a_failure_before_the_resolver_has_the_same_form() {
    // C5 and C6.
    let error = ResolutionError::from(Did::parse("did:btcr2:k1nothing").unwrap_err());
    let result = serde_json::to_value(ResolutionResult::failed(&error)).unwrap();
    assert_eq!(result["didResolutionMetadata"]["error"]["type"], "https://www.w3.org/ns/did#INVALID_DID");
    assert_eq!(result["didDocument"], Value::Null);
    assert_eq!(result["didDocumentMetadata"], json!({}));
}
