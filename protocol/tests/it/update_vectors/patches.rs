//! Patches: their bounds, and what a hostile one cannot do.

use super::*;

fn apply(document: &Value, patch: Value) -> Result<Value, PatchError> {
    Patch::from_value(&patch)?.apply(document)
}

#[test]
fn a_patch_cannot_grow_or_deepen_a_document_unboundedly() {
    let text = json!({"a": "x".repeat(1_000), "list": []});
    let double: Vec<Value> =
        (0..MAX_OPERATIONS).map(|_| json!({"op": "copy", "from": "/list", "path": "/list/-"})).collect();
    assert!(matches!(apply(&text, json!(double)), Err(PatchError::TooLarge(_) | PatchError::TooDeep(_))));
    let append: Vec<Value> =
        (0..MAX_OPERATIONS).map(|_| json!({"op": "copy", "from": "/a", "path": "/list/-"})).collect();
    assert!(apply(&text, json!(append)).is_ok());
    let big = json!({"a": "x".repeat(2_000), "list": []});
    assert!(matches!(apply(&big, json!(append)), Err(PatchError::TooLarge(_))));
    let wrap: Vec<Value> = (0..MAX_OPERATIONS).map(|_| json!({"op": "copy", "from": "", "path": "/in"})).collect();
    assert!(matches!(apply(&json!({}), json!(wrap)), Err(PatchError::TooDeep(_))));
    let nested = (0..100).fold(json!([]), |inner, _| json!([inner]));
    let add = |path: &str| json!({"op": "add", "path": path, "value": nested});
    let deep = json!([add("/a"), {"op": "move", "from": "/a", "path": format!("/b{}", "/0".repeat(99))}]);
    assert!(matches!(apply(&json!({"b": nested}), deep), Err(PatchError::TooDeep(1))));
    let path = "/a".repeat(10_000);
    assert!(matches!(apply(&json!({}), json!([add(&path)])), Err(PatchError::TooDeep(0))));
    let huge = json!("x".repeat(MAX_DOCUMENT_BYTES));
    assert_eq!(apply(&huge, json!([])), Err(PatchError::DocumentTooLarge));
}

#[test]
fn verification_refuses_a_hostile_patch() {
    let case = &Case::all()[0];
    let wrap: Vec<Value> = (0..500).map(|_| json!({"op": "copy", "from": "", "path": "/in"})).collect();
    for patch in [
        json!(wrap),
        json!([{"op": "remove", "path": "/service/99"}]),
        json!([{"op": "test", "path": "/id", "value": "did:btcr2:other"}]),
        json!([{"op": "move", "from": "/service", "path": "/service/0"}]),
        json!([{"op": "remove", "path": ""}]),
        json!([{"op": "remove", "path": "/service/-"}]),
    ] {
        let result = case.verify(&case.resigned(|update| update["patch"] = patch.clone()));
        assert!(matches!(result, Err(UpdateError::DoesNotApply(_))), "{result:?}");
        assert!(build_update(&case.initial, 1, patch).is_err());
    }
}

/// Operations over a few paths, so that many of them apply.
fn operations() -> impl Strategy<Value = Value> {
    let path = || {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "0", "1", "-", "~0~1"]), 0..5)
            .prop_map(|tokens| tokens.iter().map(|token| format!("/{token}")).collect::<String>())
    };
    let value = prop_oneof![
        Just(json!({})),
        Just(json!([])),
        Just(json!({"a": [{"b": 1}]})),
        "[a-z\u{0}-\u{1f}]{0,40}".prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
    ];
    let operation = (prop::sample::select(vec!["add", "copy", "move", "replace", "copy"]), path(), path(), value)
        .prop_map(|(op, from, path, value)| json!({"op": op, "from": from, "path": path, "value": value}));
    prop::collection::vec(operation, 0..200).prop_map(Value::from)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The result of a patch stays within the bounds; a failed patch returns an error without a panic.
    #[test]
    fn patched_documents_stay_within_bounds(patch in operations()) {
        let mut document = json!({"a": [{}, []], "b": {"a": {}, "b": []}});
        // One operation at a time, so that failed ones do not end the sequence.
        for operation in patch.as_array().unwrap() {
            if let Ok(next) = apply(&document, json!([operation])) {
                document = next;
            }
            let canonical = jcs::canonicalize(&document);
            prop_assert!(canonical.is_ok_and(|bytes| bytes.len() <= MAX_DOCUMENT_BYTES));
        }
        let _ = apply(&json!({"a": [], "b": {}}), patch);
    }

    /// Any JSON in place of an update's field is refused or harmless.
    #[test]
    fn any_json_in_a_field_is_refused_or_harmless(field in prop::sample::select(vec![
        "@context", "patch", "sourceHash", "targetHash", "targetVersionId", "proof",
    ]), patch in operations(), text: String) {
        let vectors = crate::common::vectors("update");
        let case = Case::new(&vectors["cases"][0]);
        for value in [patch, json!(text), json!({"a": text})] {
            let mut update = case.vector["signedUpdate"].clone();
            update[field] = value;
            prop_assert!(case.verify(&update).is_err());
        }
    }
}
