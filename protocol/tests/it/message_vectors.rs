//! The messages of `messages.json`, byte for byte, and texts that are not messages.

use btcr2_aggregation_protocol::{
    beacon::BeaconRegistry,
    cohort::conditions::Conditions,
    did::Did,
    key::PublicKey,
    message::{Body, DecodeError, Message},
    output::ScriptTree,
};
use serde_json::{Value, json};

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("text expected, not {value}"))
}

fn list(value: &Value) -> &[Value] {
    let list = value.as_array().unwrap_or_else(|| panic!("list expected, not {value}"));
    assert!(!list.is_empty(), "an empty list proves nothing");
    list
}

fn decode(value: &Value) -> Result<Message, DecodeError> {
    Message::from_json(&value.to_string())
}

/// The recorded message of that name, to be changed by a test.
fn recorded(name: &str) -> Value {
    let vectors = crate::common::vectors("messages");
    let entry = list(&vectors["messages"]).iter().find(|entry| entry["name"] == name);
    entry.unwrap_or_else(|| panic!("no message {name}"))["http"].clone()
}

/// The recorded message of that name with its body changed.
fn with_body(name: &str, change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Value {
    let mut message = recorded(name);
    change(message["body"].as_object_mut().unwrap());
    message
}

#[track_caller]
fn assert_names(message: &Value, expected: &str) {
    match decode(message) {
        Err(DecodeError::Field { field, problem }) => {
            assert_eq!(field, expected, "{problem}");
        }
        other => panic!("{expected} should be refused, not {other:?}"),
    }
}

#[test]
fn every_recorded_message_round_trips() {
    let vectors = crate::common::vectors("messages");
    for entry in list(&vectors["messages"]) {
        let name = text(&entry["name"]);
        for form in ["httpText", "nostrContentText"] {
            let message = Message::from_json(text(&entry[form])).unwrap_or_else(|e| panic!("{name}, {form}: {e}"));
            assert_eq!(message.type_uri(), text(&entry["type"]), "{name}");
            assert_eq!(message.from.as_str(), text(&vectors["actors"][text(&entry["from"])]["did"]), "{name}");
            let to = entry["to"].as_str().map(|to| text(&vectors["actors"][to]["did"]));
            assert_eq!(message.to.as_ref().map(Did::as_str), to, "{name}");
            assert_eq!(message.body.cohort_id().as_str(), text(&vectors["cohortId"]), "{name}");

            // Built from the typed body, not from the text that a received message retains.
            let built = Message::new(message.from.clone(), message.to.clone(), (*message.body).clone());
            assert_eq!(built.to_json(), text(&entry["httpText"]), "{name}, {form}");
            assert_eq!(serde_json::from_str::<Value>(&built.to_json()).unwrap(), entry["http"], "{name}, {form}");
            assert_eq!(serde_json::to_string(&built).unwrap(), text(&entry["httpText"]), "{name}, {form}");
            assert_eq!(built.digest(), message.digest(), "{name}: one message has one digest");
            assert_eq!(built, message, "{name}");
        }
    }
}

#[test]
fn a_forwarded_message_retains_unknown_fields() {
    let unknown = with_body("validation_ack", |body| {
        body.insert("later".into(), json!({"than": "version 1"}));
    });
    let message = decode(&unknown).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&message.to_json()).unwrap(), unknown);
    assert_ne!(message.digest(), decode(&recorded("validation_ack")).unwrap().digest());
}

#[test]
fn the_digest_depends_on_every_part_but_not_on_notation() {
    let vectors = crate::common::vectors("messages");
    let original = recorded("validation_ack");
    let digest = decode(&original).unwrap().digest();
    let spelled =
        text(&list(&vectors["messages"]).iter().find(|e| e["name"] == "validation_ack").unwrap()["httpText"])
            .replace("{\"cohortId\"", "{ \"cohortId\"")
            .replace("\"approved\":true", "\"approved\" : true");
    assert_eq!(Message::from_json(&spelled).unwrap().digest(), digest);

    let mut changed = Vec::new();
    for (pointer, value) in [
        ("/from", vectors["actors"]["b"]["did"].clone()),
        ("/to", vectors["actors"]["b"]["did"].clone()),
        ("/body/approved", json!(false)),
        ("/body/cohortId", json!("another")),
    ] {
        let mut message = original.clone();
        *message.pointer_mut(pointer).unwrap() = value;
        changed.push(decode(&message).unwrap().digest());
    }
    let mut broadcast = original;
    broadcast.as_object_mut().unwrap().remove("to");
    changed.push(decode(&broadcast).unwrap().digest());
    assert!(!changed.contains(&digest), "{changed:?}");
}

#[test]
fn the_shape_of_an_advert_is_checked_as_recorded() {
    let vectors = crate::common::vectors("messages");
    let mut outcomes = [0, 0];
    for case in list(&vectors["advertShapeChecks"]) {
        let name = text(&case["name"]);
        let mut message = recorded("cohort_advert");
        message["body"] = case["body"].clone();
        let accepted = case["accepted"].as_bool().unwrap();
        outcomes[usize::from(accepted)] += 1;
        match decode(&message) {
            Ok(_) => assert!(accepted, "{name} must be refused"),
            Err(error) => {
                assert!(!accepted, "{name}: {error}");
                // A case is named after its field: `without network`, `recoverySequence 0`.
                let field = name.strip_prefix("without ").unwrap_or(name).split(' ').next().unwrap();
                assert!(matches!(error, DecodeError::Field { .. }), "{name}: {error}");
                assert!(error.to_string().contains(field), "{name}: {error}");
            }
        }
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0);
}

#[test]
fn the_meaning_of_an_advert_is_checked_as_recorded() {
    let vectors = crate::common::vectors("messages");
    let beacons = BeaconRegistry::default();
    let mut outcomes = [0, 0];
    for case in list(&vectors["conditionChecks"]) {
        let name = text(&case["name"]);
        let mut message = recorded("cohort_advert");
        let identity = ["cohortId", "network", "communicationPk"];
        let mut body: serde_json::Map<String, Value> =
            identity.iter().map(|key| ((*key).to_owned(), message["body"][key].clone())).collect();
        body.extend(case["conditions"].as_object().unwrap().clone());
        message["body"] = Value::Object(body);

        // The TypeScript implementation accepts cost conditions that this one refuses.
        let participant_funded = case["conditions"]["fundingModel"] == "participant-funded";
        let expected = case["problems"] == 0 && !participant_funded;
        outcomes[usize::from(expected)] += 1;
        let found = decode(&message).map_err(|error| error.to_string()).and_then(|message| {
            let Body::CohortAdvert(advert) = (*message.body).clone() else { panic!("{name}: not an advert") };
            Conditions::from_advert(&advert, &beacons).map(|conditions| (advert, conditions)).map_err(|problems| {
                assert!(!problems.is_empty(), "{name}: refused for no reason");
                problems.iter().map(ToString::to_string).collect()
            })
        });
        match found {
            Err(problem) => {
                assert!(!expected, "{name}: {problem}");
                assert!(!participant_funded || problem.contains("fundingModel"), "{name}: {problem}");
            }
            Ok((advert, conditions)) => {
                assert!(expected, "{name} must be refused");
                // The service would advertise these conditions with the same advert, except for the case of the hex
                // digits, which the typed key does not preserve.
                let key = PublicKey::from_bytes(&advert.communication_pk.0).unwrap();
                let mut again = conditions.to_advert(advert.cohort_id.clone(), advert.network, &key);
                assert_eq!(
                    again.recovery_key,
                    advert.recovery_key.as_deref().map(str::to_lowercase),
                    "{name}: recoveryKey"
                );
                again.recovery_key.clone_from(&advert.recovery_key);
                assert_eq!(again, advert, "{name}");
            }
        }
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0);
}

#[test]
fn whole_numbers_are_read_in_any_notation() {
    for (written, accepted) in
        [("2", true), ("2.0", true), ("2e0", true), ("2.5", false), ("4294967296", false), ("-2", false)]
    {
        let advert = recorded("cohort_advert").to_string();
        let spelled = advert.replace("\"minParticipants\":2", &format!("\"minParticipants\":{written}"));
        let message = Message::from_json(&spelled);
        assert_eq!(message.is_ok(), accepted, "{written}: {message:?}");
        if let Ok(message) = message {
            let Body::CohortAdvert(advert) = &*message.body else { panic!("not an advert") };
            assert_eq!(advert.min_participants, 2, "{written}");
        }
    }
}

#[test]
fn messages_of_another_version_are_refused() {
    for version in [json!(0), json!(2), json!(1.5), json!("1"), json!(null), json!([1])] {
        let mut message = recorded("validation_ack");
        message["version"] = version.clone();
        assert_eq!(decode(&message), Err(DecodeError::Version(version.to_string())));
    }
    let mut message = recorded("validation_ack");
    message.as_object_mut().unwrap().remove("version");
    assert!(matches!(decode(&message), Err(DecodeError::Version(_))), "{:?}", decode(&message));
    let one = recorded("validation_ack").to_string().replace("\"version\":1", "\"version\":1.0");
    assert!(Message::from_json(&one).is_ok(), "1.0 is the number 1");
}

#[test]
fn an_unknown_type_is_not_an_error_in_a_field() {
    for kind in [
        "https://btcr2.dev/aggregation/keygen/unheard_of",
        "https://btcr2.dev/aggregation/",
        "keygen/cohort_advert",
        "https://example.com/aggregation/keygen/cohort_advert",
        "",
    ] {
        let mut message = recorded("cohort_advert");
        message["type"] = json!(kind);
        assert_eq!(decode(&message), Err(DecodeError::UnknownType(kind.to_owned())));
    }
}

#[test]
fn a_body_must_not_have_header_fields() {
    for key in ["type", "from"] {
        for value in [json!("x"), json!(null), json!({}), json!(false)] {
            let message = with_body("validation_ack", |body| {
                body.insert(key.to_owned(), value.clone());
            });
            assert_names(&message, "body");
        }
    }
}

#[test]
fn bytes_are_an_object_with_one_key_in_lower_case_hex() {
    let nonce = recorded("nonce_contribution")["body"]["nonceContribution"]["__bytes"].clone();
    let upper = text(&nonce).to_uppercase();
    assert_ne!(upper, text(&nonce), "the case needs a letter");
    for (name, value) in [
        ("another key after it", json!({"__bytes": nonce, "more": 1})),
        ("another key before it", json!({"more": 1, "__bytes": nonce})),
        ("upper case", json!({"__bytes": upper})),
        ("no key", json!({})),
        ("another key", json!({"bytes": nonce})),
        ("plain hex", nonce.clone()),
        ("not text", json!({"__bytes": [2]})),
        ("null", json!(null)),
        ("not hex", json!({"__bytes": text(&nonce).replace('0', "g")})),
        ("half a byte less", json!({"__bytes": text(&nonce)[1..]})),
        ("empty", json!({"__bytes": ""})),
        ("65 bytes", json!({"__bytes": text(&nonce)[2..]})),
        ("67 bytes", json!({"__bytes": format!("{}00", text(&nonce))})),
    ] {
        let message = with_body("nonce_contribution", |body| {
            body.insert("nonceContribution".into(), value);
        });
        match decode(&message) {
            Err(DecodeError::Field { field, .. }) => {
                assert!(field.starts_with("body.nonceContribution"), "{name}: {field}");
            }
            other => panic!("{name} should be refused, not {other:?}"),
        }
    }
}

#[test]
fn every_byte_string_has_one_length_and_its_field_is_named() {
    for (message, field) in [
        ("cohort_advert", "communicationPk"),
        ("cohort_opt_in", "participantPk"),
        ("cohort_opt_in", "communicationPk"),
        ("nonce_contribution", "nonceContribution"),
        ("aggregated_nonce", "aggregatedNonce"),
        ("signature_authorization", "partialSignature"),
        ("fallback_signature", "signerPk"),
        ("fallback_signature", "fallbackSignature"),
    ] {
        for change in [|hex: &str| hex[2..].to_owned(), |hex: &str| format!("{hex}00")] {
            let wrong = with_body(message, |body| {
                let hex = change(text(&body[field]["__bytes"]));
                body[field] = json!({ "__bytes": hex });
            });
            assert_names(&wrong, &format!("body.{field}"));
        }
    }
    let wrong = with_body("cohort_ready", |body| body["cohortKeys"][1] = json!({"__bytes": "02"}));
    assert_names(&wrong, "body.cohortKeys[1]");
}

#[test]
fn absent_fields_are_not_null() {
    for (message, field) in [
        ("cohort_advert", "maxParticipants"),
        ("cohort_advert", "minDidsPerParticipant"),
        ("cohort_advert", "costOfEnrollment"),
        ("cohort_advert", "costPerAnnouncement"),
        ("cohort_advert", "minSecondsBetweenAnnouncements"),
        ("cohort_advert", "pendingUpdateTrigger"),
        ("cohort_advert", "fundingModel"),
        ("cohort_advert", "recoveryKey"),
        ("cohort_advert", "recoverySequence"),
        ("cohort_advert", "fallbackThreshold"),
        ("cohort_opt_in", "genesisDocument"),
        ("distribute_aggregated_data_cas", "smtProof"),
        ("distribute_aggregated_data_smt", "casAnnouncement"),
        ("distribute_aggregated_data_smt", "beaconData"),
    ] {
        let null = with_body(message, |body| {
            body.insert(field.to_owned(), Value::Null);
        });
        assert!(decode(&recorded(message)).is_ok(), "{message}");
        assert_names(&null, &format!("body.{field}"));
    }
    let mut broadcast = recorded("cohort_advert");
    broadcast["to"] = Value::Null;
    assert_names(&broadcast, "to");
}

#[test]
fn the_pending_transaction_is_in_the_legacy_serialization() {
    let hex = text(&recorded("authorization_request")["body"]["pendingTx"]).to_owned();
    let (version, rest) = hex.split_at(8);
    // Marker and flag, and an empty witness for the one input before the lock time.
    let (body, lock_time) = rest.split_at(rest.len() - 8);
    let a_witness = format!("{version}0001{body}0101aa{lock_time}");
    for (name, wrong) in [
        ("marker and empty witness", format!("{version}0001{body}00{lock_time}")),
        ("marker and witness", a_witness),
        ("a byte too many", format!("{hex}00")),
        ("a byte too few", hex[..hex.len() - 2].to_owned()),
        ("upper case", hex.to_uppercase()),
        ("empty", String::new()),
    ] {
        for request in ["authorization_request", "fallback_authorization_request"] {
            let message = with_body(request, |body| body["pendingTx"] = json!(wrong));
            match decode(&message) {
                Err(DecodeError::Field { field, .. }) => assert_eq!(field, "body.pendingTx", "{request}: {name}"),
                other => panic!("{request}: {name} should be refused, not {other:?}"),
            }
        }
    }
}

#[test]
fn satoshi_are_a_decimal_string() {
    let max = "2100000000000000";
    for (value, accepted) in [
        (json!("0"), true),
        (json!("1"), true),
        (json!(max), true),
        (json!("2100000000000001"), false),
        (json!("18446744073709551616"), false),
        (json!("01"), false),
        (json!("00"), false),
        (json!("-1"), false),
        (json!("+1"), false),
        (json!("1.5"), false),
        (json!("1e3"), false),
        (json!("0x1"), false),
        (json!(" 1"), false),
        (json!(""), false),
        (json!(1), false),
    ] {
        for request in ["authorization_request", "fallback_authorization_request"] {
            let message = with_body(request, |body| body["prevOutValue"] = value.clone());
            if accepted {
                let message = decode(&message).unwrap_or_else(|error| panic!("{value}: {error}"));
                let built = Message::new(message.from.clone(), message.to.clone(), (*message.body).clone());
                let body: Value = serde_json::from_str(&built.to_json()).unwrap();
                assert_eq!(body["body"]["prevOutValue"], value);
            } else {
                assert_names(&message, "body.prevOutValue");
            }
        }
    }
}

#[test]
fn a_text_is_one_json_object() {
    let message = recorded("validation_ack");
    let good = message.to_string();
    assert!(Message::from_json(&format!(" {good}\n")).is_ok(), "surrounding white space is allowed");
    // Serde accepts a list of the right length for a struct; the wire format does not.
    let listed = json!([message["type"], 1, message["from"], message["to"], message["body"]]);
    let body_listed = {
        let mut message = recorded("cohort_opt_in_accept");
        message["body"] = json!([message["body"]["cohortId"]]);
        message
    };
    for (name, text) in [
        ("trailing brace", format!("{good}}}")),
        ("trailing object", format!("{good}{{}}")),
        ("trailing letter", format!("{good}x")),
        ("cut off", good[..good.len() - 1].to_owned()),
        ("empty", String::new()),
        ("null", "null".to_owned()),
        ("list", listed.to_string()),
        ("body as a list", body_listed.to_string()),
        ("a field twice", good.replacen("{\"type\"", "{\"version\":1,\"type\"", 1)),
        ("a body field twice", good.replacen("\"body\":{", "\"body\":{\"approved\":false,", 1)),
    ] {
        let message = Message::from_json(&text);
        assert!(matches!(message, Err(DecodeError::Field { .. })), "{name}: {message:?}");
    }
    for field in ["type", "from", "body"] {
        let mut message = recorded("validation_ack");
        message.as_object_mut().unwrap().remove(field);
        let error = decode(&message).unwrap_err().to_string();
        assert!(error.contains(field), "without {field}: {error}");
    }
    for body in [json!(null), json!("x"), json!([]), json!([null]), json!(1)] {
        let mut message = recorded("validation_ack");
        message["body"] = body.clone();
        assert!(decode(&message).is_err(), "body {body}");
    }
    let mut outsider = recorded("validation_ack");
    outsider["from"] = json!("did:example:123");
    assert_names(&outsider, "from");
}

/// Our extension: no script tree and so no recovery fields, under a type that the TypeScript implementation ignores.
fn key_path_advert() -> Value {
    let mut message = with_body("cohort_advert", |body| {
        assert!(body.remove("recoveryKey").is_some() && body.remove("recoverySequence").is_some());
    });
    message["type"] = json!("https://btcr2.dev/aggregation/keygen/cohort_advert_key_path");
    message
}

#[test]
fn a_key_path_only_advert_has_its_own_type() {
    let message = decode(&key_path_advert()).unwrap();
    let Body::CohortAdvert(advert) = (*message.body).clone() else { panic!("not an advert") };
    let conditions = Conditions::from_advert(&advert, &BeaconRegistry::default()).unwrap();
    assert_eq!(conditions.script_tree, ScriptTree::KeyPathOnly);

    let key = PublicKey::from_bytes(&advert.communication_pk.0).unwrap();
    let again = conditions.to_advert(advert.cohort_id.clone(), advert.network, &key);
    let built = Message::new(message.from.clone(), None, again);
    assert_eq!(built.to_json(), key_path_advert().to_string());
    assert_eq!(decode(&key_path_advert()).unwrap(), built);
}

#[test]
fn a_key_path_only_advert_names_no_leaves() {
    let full = recorded("cohort_advert")["body"].clone();
    for (field, value) in [
        ("recoveryKey", full["recoveryKey"].clone()),
        ("recoverySequence", full["recoverySequence"].clone()),
        ("fallbackThreshold", json!(1)),
    ] {
        let mut message = key_path_advert();
        message["body"][field] = value;
        assert_names(&message, &format!("body.{field}"));
    }
}
