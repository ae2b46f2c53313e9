//! U: updates.

use btcr2_aggregation_protocol::{
    document,
    hash::{DocumentHash, sha256},
    jcs,
    time::Timestamp,
    update::{BlockTimes, SignedUpdate, UPDATE_CONTEXT, UpdateError, refuse_expiring, violations},
};
use serde_json::{Value, json};

use super::controller::{Controller, key};

const OLD_CONTEXT: [&str; 4] = [
    "https://w3id.org/security/v2",
    "https://w3id.org/zcap/v1",
    "https://w3id.org/json-ld-patch/v1",
    "https://btcr2.dev/context/v1",
];

fn contexts() -> Vec<Value> {
    let mut reordered = UPDATE_CONTEXT;
    reordered.swap(0, 1);
    vec![
        json!(OLD_CONTEXT),
        json!(reordered),
        json!(UPDATE_CONTEXT[..3]),
        json!([&UPDATE_CONTEXT[..], &["https://example.org/"]].concat()),
    ]
}

#[test]
fn u_01_context_is_the_four_entries_in_order() {
    let controller = Controller::new();
    for context in contexts() {
        let error = controller.breaks(&controller.signed(|update, _| update["@context"] = context.clone()), "U-1");
        assert_eq!(error.code(), "UPDATE_VERIFICATION_FAILED", "{context}");
        assert!(error.to_string().contains("0.7.6"), "the error names the required version: {error}");
    }
}

#[test]
fn u_02_proof_context_is_the_same() {
    let controller = Controller::new();
    for context in contexts() {
        controller.breaks(&controller.signed(|_, proof| proof["@context"] = context.clone()), "U-2");
    }
    let without = controller.signed(|_, proof| {
        proof.as_object_mut().unwrap().remove("@context");
    });
    controller.breaks(&without, "U-2");
}

#[test]
fn u_03_proof_constants_are_compared_as_text() {
    let controller = Controller::new();
    for (field, wrong) in [
        ("type", "dataintegrityproof"),
        ("cryptosuite", "bip340-rdfc-2025"),
        ("proofPurpose", "assertionMethod"),
        ("capabilityAction", "Read"),
    ] {
        for value in [json!(wrong), Value::Null, json!([wrong])] {
            let error = controller.breaks(&controller.signed(|_, proof| proof[field] = value), "U-3");
            assert!(error.to_string().contains(field), "{error}");
        }
    }
    let mut update = controller.update().value().clone();
    update.as_object_mut().unwrap().remove("proof");
    let error = controller.verify(&SignedUpdate::from_value(update).unwrap()).unwrap_err();
    assert!(error.to_string().contains("U-3"), "{error}");
}

#[test]
fn u_04_invocation_target_is_the_did() {
    let controller = Controller::new();
    let missing = controller.signed(|_, proof| {
        proof.as_object_mut().unwrap().remove("invocationTarget");
    });
    let error = controller.breaks(&missing, "U-4");
    assert!(matches!(error, UpdateError::InvocationTargetMissing));
    for word in ["0.2.0", "0.7.6", "upgrade", "decline"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    let other = Controller::external(|_| {});
    for wrong in [json!(other.did()), json!(format!("{}#initialKey", controller.did())), Value::Null] {
        controller.breaks(&controller.signed(|_, proof| proof["invocationTarget"] = wrong), "U-4");
    }
}

#[test]
fn an_update_of_an_earlier_edition_is_recognized() {
    let controller = Controller::new();
    assert!(controller.update().is_of_current_edition());
    let earlier = |change: fn(&mut Value, &mut Value)| controller.signed(change);
    for update in [
        earlier(|update, _| update["@context"] = json!(OLD_CONTEXT)),
        earlier(|_, proof| proof["@context"] = json!(OLD_CONTEXT)),
        earlier(|_, proof| drop(proof.as_object_mut().unwrap().remove("invocationTarget"))),
    ] {
        assert!(!update.is_of_current_edition(), "{}", update.value());
        assert_ne!(update, controller.update());
    }
}

#[test]
fn u_05_capability_is_percent_encoded() {
    let controller = Controller::new();
    for wrong in [format!("urn:zcap:root:{}", controller.did()), controller.did().to_string()] {
        controller.breaks(&controller.signed(|_, proof| proof["capability"] = json!(wrong)), "U-5");
    }
}

#[test]
fn u_06_method_is_a_member_of_capability_invocation() {
    // In the document, but only under another relationship.
    let controller = Controller::external(|genesis| {
        let mut second = genesis["verificationMethod"][0].clone();
        second["id"] = json!("did:btcr2:_#second");
        second["publicKeyMultibase"] = json!(document::encode_multikey(&key(8).public_key()));
        genesis["verificationMethod"].as_array_mut().unwrap().push(second);
        genesis["authentication"] = json!(["did:btcr2:_#second"]);
    });
    let method = format!("{}#second", controller.did());
    let by_it = controller.signed_by(&key(8), |_, proof| proof["verificationMethod"] = json!(method));
    let error = controller.breaks(&by_it, "U-6");
    assert!(error.to_string().contains(&method), "{error}");
    // Relative in one place, absolute in the other, and embedded: the same method.
    for form in ["#initialKey", "did:btcr2:_#initialKey"] {
        let controller = Controller::external(|genesis| genesis["capabilityInvocation"] = json!([form]));
        assert!(controller.verify(&controller.update()).is_ok(), "{form}");
    }
}

#[test]
fn u_07_key_is_that_of_the_listed_or_embedded_method() {
    let controller = Controller::external(|genesis| {
        let mut embedded = genesis["verificationMethod"][0].clone();
        embedded["id"] = json!("#embedded");
        genesis["verificationMethod"] = json!([]);
        genesis["capabilityInvocation"] = json!([embedded]);
        for relationship in ["authentication", "assertionMethod", "capabilityDelegation"] {
            genesis.as_object_mut().unwrap().remove(relationship);
        }
    });
    assert_eq!(controller.identity.verification_method(), format!("{}#embedded", controller.did()));
    assert!(controller.verify(&controller.update()).is_ok());

    // Listed in the relationship, described nowhere. The second method is the usable one.
    let dangling = Controller::external(|genesis| {
        genesis["capabilityInvocation"] = json!(["#nowhere", "did:btcr2:_#initialKey"]);
    });
    assert!(dangling.verify(&dangling.update()).is_ok(), "a usable method that is not the first");
    let nowhere = format!("{}#nowhere", dangling.did());
    dangling.breaks(&dangling.signed(|_, proof| proof["verificationMethod"] = json!(nowhere)), "U-7");
}

#[test]
fn u_08_the_method_is_written_absolutely() {
    let controller = Controller::external(|genesis| {
        genesis["verificationMethod"][0]["id"] = json!("#initialKey");
        for relationship in ["authentication", "assertionMethod", "capabilityInvocation", "capabilityDelegation"] {
            genesis[relationship] = json!(["#initialKey"]);
        }
    });
    let update = controller.update();
    assert_eq!(update.value()["proof"]["verificationMethod"], format!("{}#initialKey", controller.did()));
}

#[test]
fn u_09_times_are_date_time_stamps_with_a_zone() {
    let controller = Controller::new();
    for field in ["created", "expires"] {
        for good in ["2026-10-01T12:00:00Z", "2026-10-01T12:00:00.123456Z", "2026-10-01T12:00:00+02:00"] {
            let update = controller.signed(|_, proof| proof[field] = json!(good));
            assert!(controller.verify(&update).is_ok(), "{field} {good}");
        }
        for bad in [
            json!("2026-10-01T12:00:00"),
            json!("2026-10-01"),
            json!("2026-13-01T12:00:00Z"),
            json!("2026-02-30T12:00:00Z"),
            json!("2026-10-01 12:00:00Z"),
            json!("2026-10-01t12:00:00z"),
            json!("yesterday"),
            json!(""),
            json!(1_790_000_000),
            Value::Null,
        ] {
            controller.breaks(&controller.signed(|_, proof| proof[field] = bad.clone()), "U-9");
        }
    }
}

#[test]
fn u_10_times_fit_the_block_without_tolerance() {
    let controller = Controller::new();
    let times = |created: &str, expires: &str| {
        controller.signed(|_, proof| {
            proof["created"] = json!(created);
            proof["expires"] = json!(expires);
        })
    };
    controller.breaks(&times("2026-10-01T12:00:00Z", "2026-10-01T11:59:59Z"), "U-10");
    controller.breaks(&times("2026-10-01T12:00:00Z", "2026-10-01T13:00:00+02:00"), "U-10");
    let update = times("2026-10-01T12:00:00Z", "2026-10-01T12:00:00Z");
    assert!(controller.verify(&update).is_ok(), "equal is fine");
    // 2026-10-01T12:00:00Z
    let noon = 1_790_856_000;
    let at = |time, mediantime| controller.verify_in(&update, BlockTimes { time, mediantime });
    assert!(at(noon, noon).is_ok());
    assert!(matches!(at(noon - 1, noon), Err(UpdateError::CreatedAfterBlock)));
    assert!(matches!(at(noon, noon + 1), Err(UpdateError::ExpiredInBlock)));
}

/// An update that a cohort refuses although the rule accepts it.
#[test]
fn u_10_no_update_that_expires_enters_a_cohort() {
    let controller = Controller::new();
    let now = Timestamp::from_secs(1_790_856_000);
    assert!(refuse_expiring(&controller.update(), now).is_ok());
    let expiring = controller.signed(|_, proof| proof["expires"] = json!("2126-01-01T00:00:00Z"));
    assert!(controller.verify(&expiring).is_ok());
    assert!(matches!(refuse_expiring(&expiring, now), Err(UpdateError::Expires)));
    // A block's time may be earlier than the clock.
    for (created, taken) in
        [("2026-10-01T09:59:59Z", true), ("2026-10-01T10:00:00Z", true), ("2026-10-01T10:00:01Z", false)]
    {
        let update = controller.signed(|_, proof| proof["created"] = json!(created));
        assert_eq!(refuse_expiring(&update, now).is_ok(), taken, "{created}");
    }
    let written = controller.update();
    for field in ["created", "expires"] {
        assert!(written.value()["proof"].get(field).is_none(), "our writer omits {field}");
    }
}

#[test]
fn u_11_signature_covers_everything_but_itself() {
    let controller = Controller::new();
    let flip = |change: &dyn Fn(&mut Value)| {
        let mut update = controller.update().value().clone();
        change(&mut update);
        controller.breaks(&SignedUpdate::from_value(update).unwrap(), "U-11");
    };
    flip(&|update| update["proof"]["created"] = json!("2026-10-01T12:00:00Z"));
    flip(&|update| update["proof"]["note"] = json!(1));
    flip(&|update| update["note"] = json!(1));
    for wrong in ["", "z", "z1", "f00", "0OIl"] {
        flip(&|update| update["proof"]["proofValue"] = json!(wrong));
    }
    controller.breaks(&controller.signed_by(&key(8), |_, _| {}), "U-11");
}

#[test]
fn u_12_patch_is_one_flat_array() {
    let controller = Controller::new();
    for wrong in [json!([controller.patch()]), json!({"op": "remove", "path": "/service/0"}), Value::Null] {
        let error = controller.verify(&controller.signed(|update, _| update["patch"] = wrong)).unwrap_err();
        assert!(error.to_string().contains("U-12"), "{error}");
    }
}

#[test]
fn u_13_patch_is_applied_strictly() {
    let controller = Controller::new();
    for operation in [
        json!({"op": "remove", "path": "/nothing"}),
        json!({"op": "replace", "path": "/nothing", "value": 1}),
        json!({"op": "move", "from": "/nothing", "path": "/x"}),
        json!({"op": "copy", "from": "/nothing", "path": "/x"}),
        json!({"op": "add", "path": "/no/parent", "value": 1}),
        json!({"op": "add", "path": "/service/9", "value": {}}),
        json!({"op": "test", "path": "/id", "value": "did:btcr2:other"}),
    ] {
        // The first failure fails the whole patch, including the operations before it.
        let patch = json!([{"op": "add", "path": "/alsoKnownAs", "value": []}, operation]);
        controller.breaks(&controller.patched(patch), "U-13");
    }
    for malformed in [
        json!([{"op": "merge", "path": "/x", "value": 1}]),
        json!([{"op": "add", "path": "/x"}]),
        json!([{"op": "replace", "path": "/id"}]),
        json!([{"op": "test", "path": "/id"}]),
        json!([{"op": "move", "path": "/x"}]),
        json!([{"op": "copy", "path": "/x"}]),
    ] {
        let error = controller.verify(&controller.patched(malformed)).unwrap_err();
        assert!(matches!(error, UpdateError::Patch(_)), "{error}");
    }
}

#[test]
fn u_14_null_is_a_value_and_the_update_stays_as_given() {
    let controller = Controller::new();
    let patch =
        json!([{"op": "add", "path": "/note", "value": null}, {"op": "test", "path": "/note", "value": null}]);
    let update = controller.patched(patch);
    let before = update.value().clone();
    let target = controller.verify(&update).unwrap();
    assert_eq!(target.get("note"), Some(&Value::Null));
    assert_eq!(*update.value(), before);
}

#[test]
fn u_15_target_keeps_its_id_and_conforms() {
    let controller = Controller::new();
    for id in [json!("did:btcr2:_"), json!(format!("{} ", controller.did())), Value::Null] {
        let update = controller.patched(json!([{"op": "replace", "path": "/id", "value": id}]));
        let error = controller.verify(&update).unwrap_err();
        assert!(matches!(error, UpdateError::TargetId), "{error}");
    }
    let did = controller.did();
    for (patch, place) in [
        (json!([{"op": "remove", "path": "/@context"}]), "/@context"),
        (json!([{"op": "replace", "path": "/@context", "value": "https://www.w3.org/ns/did/v1.1"}]), "/@context"),
        (json!([{"op": "remove", "path": "/@context/0"}]), "/@context"),
        (json!([{"op": "replace", "path": "/@context/0", "value": "https://www.w3.org/ns/did/v1"}]), "/@context"),
        (json!([{"op": "add", "path": "/controller", "value": "not a DID"}]), "/controller"),
        (json!([{"op": "add", "path": "/alsoKnownAs", "value": "https://example.org"}]), "/alsoKnownAs"),
        (json!([{"op": "replace", "path": "/verificationMethod", "value": {}}]), "/verificationMethod"),
        (
            json!([{"op": "replace", "path": "/verificationMethod/0/type", "value": "JsonWebKey"}]),
            "/verificationMethod/0/type",
        ),
        (json!([{"op": "remove", "path": "/verificationMethod/0/controller"}]), "/verificationMethod/0/controller"),
        (json!([{"op": "replace", "path": "/verificationMethod/0/id", "value": 1}]), "/verificationMethod/0/id"),
        (
            json!([{"op": "replace", "path": "/verificationMethod/0/publicKeyMultibase", "value": "f00"}]),
            "/verificationMethod/0/publicKeyMultibase",
        ),
        (json!([{"op": "replace", "path": "/authentication", "value": "#initialKey"}]), "/authentication"),
        (json!([{"op": "add", "path": "/keyAgreement", "value": [7]}]), "/keyAgreement/0"),
        (json!([{"op": "add", "path": "/authentication/0", "value": {"id": "#x"}}]), "/authentication/0/type"),
        (json!([{"op": "replace", "path": "/service", "value": {}}]), "/service"),
        (json!([{"op": "remove", "path": "/service/0/type"}]), "/service/0/type"),
        (
            json!([{"op": "replace", "path": "/service/0/serviceEndpoint", "value": "nowhere"}]),
            "/service/0/serviceEndpoint",
        ),
        (json!([{"op": "copy", "from": "/service/0", "path": "/service/-"}]), "/service/3/id"),
    ] {
        let error = controller.breaks(&controller.patched(patch), "U-15");
        assert!(error.to_string().contains(place), "{place}: {error}");
    }
    for patch in [
        json!([{"op": "add", "path": "/controller", "value": [did, "did:key:z6Mk"]}]),
        json!([{"op": "add", "path": "/alsoKnownAs", "value": ["https://example.org", "urn:x:y"]}]),
        json!([{"op": "add", "path": "/service/-", "value": {"id": "#d", "type": ["A", "B"], "serviceEndpoint": [{"uri": "x"}, "https://example.org"]}}]),
        json!([{"op": "add", "path": "/@context/-", "value": {"x": "https://example.org/x"}}]),
        json!([{"op": "add", "path": "/anything", "value": [null, {"else": 1}]}]),
        json!([{"op": "remove", "path": "/service"}]),
    ] {
        let update = controller.patched(patch);
        assert!(controller.verify(&update).is_ok(), "{:?}", controller.verify(&update));
    }
}

#[test]
fn u_16_hashes_are_strict_base64url_of_the_documents() {
    let controller = Controller::new();
    let other = DocumentHash::from_bytes(sha256(b"another document"));
    for field in ["sourceHash", "targetHash"] {
        controller.breaks(&controller.signed(|update, _| update[field] = json!(other)), "U-16");
        let good = controller.update().value()[field].as_str().unwrap().to_owned();
        // The low bits of the last character are padding and must be zero.
        let padded = format!("{}{}", &good[..42], "B");
        for bad in [json!(format!("{good}=")), json!(padded), json!(""), json!(7), Value::Null] {
            let update = controller.signed(|update, _| update[field] = bad);
            let error = controller.verify(&update).unwrap_err();
            assert!(error.to_string().contains("U-16"), "{field}: {error}");
        }
    }
}

#[test]
fn u_17_target_version_is_the_next() {
    let controller = Controller::new();
    for version in [3, 4, 1_000_000] {
        controller.breaks(&controller.signed(|update, _| update["targetVersionId"] = json!(version)), "U-17");
    }
    for bad in [json!(1), json!(0), json!(-2), json!(2.5), json!("2"), Value::Null] {
        let error = controller.verify(&controller.signed(|update, _| update["targetVersionId"] = bad)).unwrap_err();
        assert!(error.to_string().contains("U-17"), "{error}");
    }
}

#[test]
fn u_18_update_hash_is_of_the_signed_update_as_received() {
    let controller = Controller::new();
    let update = controller.signed(|update, _| update["unknown"] = json!({"kept": true}));
    let expected = jcs::document_hash(update.value()).unwrap();
    assert_eq!(*update.hash(), expected);
    assert_ne!(update.hash(), controller.update().hash());
    assert!(controller.verify(&update).is_ok(), "unknown members are accepted");
}

#[test]
fn u_19_a_member_named_proof_inside_the_patch_is_signed() {
    let controller = Controller::new();
    let update = controller.patched(json!([{"op": "add", "path": "/note", "value": {"proof": "inside"}}]));
    assert!(controller.verify(&update).is_ok());
    let mut changed = update.value().clone();
    changed["patch"][0]["value"]["proof"] = json!("changed");
    let changed = SignedUpdate::from_value(changed).unwrap();
    let broken = violations(&changed, &controller.context());
    assert!(broken.iter().any(|error| matches!(error, UpdateError::Signature)), "{broken:?}");
}

#[test]
fn u_20_rules_are_applied_in_the_resolvers_order() {
    let controller = Controller::new();
    let other = DocumentHash::from_bytes([1; 32]);
    let everything_wrong = controller.signed_by(&key(8), |update, proof| {
        update["targetVersionId"] = json!(3);
        update["sourceHash"] = json!(other);
        update["@context"] = json!(OLD_CONTEXT);
        proof["@context"] = json!(OLD_CONTEXT);
        proof["capabilityAction"] = json!("Read");
        proof["expires"] = json!("never");
        update["patch"] = json!([{"op": "replace", "path": "/id", "value": "did:btcr2:_"}]);
        update["targetHash"] = json!(other);
    });
    let broken = violations(&everything_wrong, &controller.context());
    let rules: Vec<String> = broken
        .iter()
        .map(|error| error.to_string().split_once("rule ").unwrap().1.chars().take_while(|c| *c != ')').collect())
        .collect();
    assert_eq!(rules, ["U-17", "U-16", "U-1", "U-2", "U-3", "U-9", "U-11", "U-15", "U-16"], "{broken:?}");
}

#[test]
fn u_21_deactivation_is_the_boolean_true() {
    let controller = Controller::new();
    for value in [json!(true), json!("true"), json!(1)] {
        let update = controller.patched(json!([{"op": "add", "path": "/deactivated", "value": value}]));
        assert_eq!(controller.verify(&update).unwrap()["deactivated"], value, "a valid update either way");
    }
}

#[test]
fn u_22_every_property_is_kept_and_none_invented() {
    let controller = Controller::external(|genesis| {
        genesis["anything"] = json!({"nested": [1, null, "two"]});
        genesis.as_object_mut().unwrap().remove("authentication");
    });
    let target = controller.verify(&controller.update()).unwrap();
    assert_eq!(target["anything"], json!({"nested": [1, null, "two"]}));
    assert!(target.get("authentication").is_none());
    let key = Controller::new();
    for relationship in ["authentication", "assertionMethod", "capabilityInvocation", "capabilityDelegation"] {
        assert_eq!(key.document[relationship], json!([format!("{}#initialKey", key.did())]));
    }
}

#[test]
fn u_23_signing_verifies_and_applies_what_it_signs() {
    use btcr2_aggregation_protocol::update::{build_update, sign_update};
    let controller = Controller::new();
    let sign = |patch: Value| {
        let unsigned = build_update(&controller.document, 1, patch)?;
        let method = controller.identity.verification_method();
        let key = controller.identity.secret_key();
        sign_update(&unsigned, controller.did(), method, key, &mut super::controller::rng())
    };
    assert!(sign(controller.patch()).is_ok());
    assert!(matches!(sign(json!([{"op": "remove", "path": "/nothing"}])), Err(UpdateError::DoesNotApply(_))));
    assert!(matches!(sign(json!([{"op": "remove", "path": "/@context"}])), Err(UpdateError::NotConformant(_))));
    assert!(matches!(sign(json!([{"op": "replace", "path": "/id", "value": "x"}])), Err(UpdateError::TargetId)));
}
