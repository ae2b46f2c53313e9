//! Signed updates against `update.json`: building, signing, verifying, and every refusal.

mod patches;

use btcr2_aggregation_protocol::{
    cohort::event::ServiceEvent,
    did::Did,
    document,
    hash::sha256,
    jcs,
    key::{PublicKey, SecretKey, Signature},
    message::Message,
    network::Network,
    patch::{MAX_DOCUMENT_BYTES, MAX_OPERATIONS, Patch, PatchError},
    update::{
        Edition, SignedUpdate, UpdateContext, UpdateError, add_beacon_service_patch, build_update, sign_update,
        signed_digest, verify_proof, verify_update,
    },
};
use data_encoding::HEXLOWER;
use proptest::prelude::*;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::{Value, json};

/// One case of the vectors, with the document, method and key that this crate derives from its DID.
struct Case {
    vector: Value,
    did: Did,
    secret: SecretKey,
    initial: Value,
    method: String,
    key: PublicKey,
}

impl Case {
    fn all() -> Vec<Self> {
        Self::listed("cases")
    }

    /// EXTERNAL documents that have relative identifiers, or embed the method.
    fn forms() -> Vec<Self> {
        Self::listed("documentForms")
    }

    fn listed(name: &str) -> Vec<Self> {
        let vectors = crate::common::vectors("update");
        let cases = vectors[name].as_array().expect(name);
        assert!(!cases.is_empty(), "{name}");
        cases.iter().map(Self::new).collect()
    }

    fn new(vector: &Value) -> Self {
        let did = Did::parse(vector["did"].as_str().expect("did")).expect("valid DID");
        let secret = HEXLOWER.decode(vector["secretKey"].as_str().expect("secretKey").as_bytes()).expect("hex");
        let secret = SecretKey::from_bytes(&secret.try_into().expect("32 bytes")).expect("secret key");
        let genesis = Some(&vector["genesisDocument"]).filter(|document| !document.is_null());
        let initial = document::initial_document(&did, genesis).expect("initial document");
        let (method, key) = document::genesis_key(&did, genesis).expect("genesis key");
        Self { vector: vector.clone(), did, secret, initial, method, key }
    }

    fn name(&self) -> &str {
        self.did.as_str()
    }

    fn text(&self, field: &str) -> &str {
        self.vector[field].as_str().unwrap_or_else(|| panic!("{field} of {}", self.name()))
    }

    fn list(&self, field: &str) -> &[Value] {
        let list = self.vector[field].as_array().unwrap_or_else(|| panic!("{field} of {}", self.name()));
        assert!(!list.is_empty(), "{field} of {} is empty", self.name());
        list
    }

    fn context(&self) -> UpdateContext<'_> {
        UpdateContext { did: &self.did, document: &self.initial, version: 1, block: None }
    }

    fn verify(&self, update: &Value) -> Result<(), UpdateError> {
        verify_update(&SignedUpdate::from_value(update.clone())?, &self.context()).map(|_| ())
    }

    /// The signed update of the vector with its unsigned fields changed by `change`, and signed again.
    fn resigned(&self, change: impl FnOnce(&mut Value)) -> Value {
        let mut unsigned = self.vector["unsignedUpdate"].clone();
        let mut config = self.vector["proofConfig"].clone();
        change(&mut unsigned);
        config["@context"] = unsigned["@context"].clone();
        let digest = signed_digest(&config, &unsigned).expect("canonical");
        let signature = self.secret.sign(&digest, &mut rng());
        config["proofValue"] = json!(format!("z{}", bs58::encode(signature.to_bytes()).into_string()));
        unsigned["proof"] = config;
        unsigned
    }
}

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(1)
}

fn canonical(value: &Value) -> String {
    String::from_utf8(jcs::canonicalize(value).expect("canonical")).expect("UTF-8")
}

#[test]
fn initial_documents_and_keys_are_those_of_the_vectors() {
    for case in Case::all() {
        let name = case.name();
        // As text: the order of the fields is the same too.
        assert_eq!(case.initial.to_string(), case.vector["initialDocument"].to_string(), "{name}");
        assert_eq!(
            jcs::document_hash(&case.initial).unwrap().to_string(),
            case.text("initialDocumentHash"),
            "{name}"
        );
        assert_eq!(case.did.network().name(), case.text("network"), "{name}");
        assert_eq!(HEXLOWER.encode(&sha256(case.text("keyLabel").as_bytes())), case.text("secretKey"), "{name}");
        assert_eq!(case.secret.public_key().to_string(), case.text("publicKey"), "{name}");
        assert_eq!(case.key, case.secret.public_key(), "{name}");
        assert_eq!(case.vector["proofConfig"]["verificationMethod"], case.method, "{name}");
        assert_eq!(
            document::invocation_methods(&case.initial).next(),
            Some((case.method.clone(), case.key)),
            "{name}"
        );
        assert_eq!(document::invocation_key(&case.initial, &case.method).unwrap(), case.key, "{name}");
        assert_eq!(document::encode_multikey(&case.key), case.text("publicKeyMultibase"), "{name}");
        assert_eq!(document::decode_multikey(case.text("publicKeyMultibase")).unwrap(), case.key, "{name}");
        // The Multikey of a secret key is not accepted as a public key.
        assert!(document::decode_multikey(case.text("secretKeyMultibase")).is_err(), "{name}");
    }
}

#[test]
fn building_and_signing_gives_the_vectors_update() {
    for case in Case::all() {
        let name = case.name();
        let patch = add_beacon_service_patch(&case.did, case.text("beaconType"), case.text("beaconAddress"));
        assert_eq!(patch.to_string(), case.vector["patch"].to_string(), "{name}");
        let unsigned = build_update(&case.initial, 1, patch).unwrap();
        assert_eq!(unsigned.to_value().to_string(), case.vector["unsignedUpdate"].to_string(), "{name}");
        assert_eq!(canonical(&unsigned.to_value()), case.text("unsignedUpdateCanonical"), "{name}");
        assert_eq!(unsigned.target_document().to_string(), case.vector["targetDocument"].to_string(), "{name}");

        let signed = sign_update(&unsigned, &case.did, &case.method, &case.secret, &mut rng()).unwrap();
        verify_update(&signed, &case.context()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut but_for_signature = signed.value().clone();
        but_for_signature["proof"]["proofValue"] = case.vector["signedUpdate"]["proof"]["proofValue"].clone();
        assert_eq!(but_for_signature.to_string(), case.vector["signedUpdate"].to_string(), "{name}");
    }
}

#[test]
fn digests_and_the_given_signature_are_those_of_the_vectors() {
    for case in Case::all() {
        let name = case.name();
        let (config, unsigned) = (&case.vector["proofConfig"], &case.vector["unsignedUpdate"]);
        assert_eq!(canonical(config), case.text("proofConfigCanonical"), "{name}");
        assert_eq!(HEXLOWER.encode(&sha256(canonical(config).as_bytes())), case.text("proofConfigHash"), "{name}");
        assert_eq!(HEXLOWER.encode(&sha256(canonical(unsigned).as_bytes())), case.text("documentHash"), "{name}");
        let digest = signed_digest(config, unsigned).unwrap();
        assert_eq!(HEXLOWER.encode(&digest), case.text("signedDigest"), "{name}");

        let signature: Signature = case.text("signature").parse().unwrap();
        assert!(case.key.x_only().verify(&digest, &signature), "{name}");
        let proof_value = format!("z{}", bs58::encode(signature.to_bytes()).into_string());
        assert_eq!(case.vector["signedUpdate"]["proof"]["proofValue"], proof_value, "{name}");

        let update = SignedUpdate::from_value(case.vector["signedUpdate"].clone()).unwrap();
        assert_eq!(update.hash().to_string(), case.text("signedUpdateHash"), "{name}");
        assert_eq!(update.canonical_len(), canonical(update.value()).len(), "{name}");
        assert_eq!(case.vector["verification"]["verified"], true, "{name}");
        assert_eq!(case.vector["service"]["accepted"], true, "{name}");
        verify_update(&update, &case.context()).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn tampered_updates_are_refused_with_the_vectors_code() {
    for case in Case::all() {
        for tampered in case.list("tampered") {
            let name = format!("{}: {}", case.name(), tampered["name"]);
            assert_eq!(tampered["service"]["accepted"], false, "{name}");
            assert_eq!(tampered["right"], "refused", "{name}");
            let error = case.verify(&tampered["signedUpdate"]).expect_err(&name);
            assert_eq!(tampered["service"]["code"], error.code(), "{name}: {error}");
        }
    }
}

#[test]
fn variations_verify_as_specified() {
    for case in Case::all() {
        let mut judged = std::collections::BTreeSet::new();
        for variation in case.list("variationsAccepted") {
            let name = format!("{}: {}", case.name(), variation["name"]);
            let result = case.verify(&variation["signedUpdate"]);
            let right = variation["right"].as_str().expect("right");
            judged.insert(right);
            match right {
                "accepted" => assert!(result.is_ok(), "{name}: {result:?}"),
                "refused" => assert!(result.is_err(), "{name}"),
                "open" => {}
                _ => panic!("{name}: {right}"),
            }
            if ["unchanged", "keys reordered"].contains(&variation["name"].as_str().unwrap()) {
                let update = SignedUpdate::from_value(variation["signedUpdate"].clone()).unwrap();
                assert_eq!(update.hash().to_string(), case.text("signedUpdateHash"), "{name}");
                assert_eq!(update, SignedUpdate::from_value(case.vector["signedUpdate"].clone()).unwrap());
            }
        }
        assert!(judged.contains("accepted") && judged.contains("refused"), "{}", case.name());
    }
}

#[test]
fn documents_with_relative_and_embedded_methods_are_updated() {
    for case in Case::forms() {
        let name = format!("{}: {}", case.name(), case.text("form"));
        assert_eq!(case.vector["right"], "accepted", "{name}");
        assert_eq!(case.initial.to_string(), case.vector["initialDocument"].to_string(), "{name}");
        assert_eq!(case.vector["proofConfig"]["verificationMethod"], case.method, "{name}: absolute");
        case.verify(&case.vector["signedUpdate"]).unwrap_or_else(|error| panic!("{name}: {error}"));
        for tampered in case.list("tampered") {
            assert!(case.verify(&tampered["signedUpdate"]).is_err(), "{name}: {}", tampered["name"]);
        }
        let unsigned = build_update(&case.initial, 1, case.vector["patch"].clone()).unwrap();
        let fragment = format!("#{}", case.method.split_once('#').unwrap().1);
        for method in [case.method.as_str(), fragment.as_str()] {
            let signed = sign_update(&unsigned, &case.did, method, &case.secret, &mut rng()).unwrap();
            assert_eq!(
                signed.value()["proof"]["verificationMethod"],
                case.method,
                "{name}: the identifier is absolute"
            );
        }
    }
}

#[test]
fn updates_of_the_wrong_shape_are_malformed_even_when_signed() {
    let shapes: Vec<(&str, Value)> = vec![
        ("@context", Value::Null),
        ("@context", json!([])),
        ("@context", json!("https://btcr2.dev/context/v1")),
        ("@context", json!([1])),
        ("patch", Value::Null),
        ("patch", json!({"op": "remove", "path": "/service/0"})),
        ("patch", json!([{"op": "explode", "path": "/service/0"}])),
        ("patch", json!([{"op": "add", "path": "/service/0"}])),
        ("patch", json!([{"op": "remove", "path": "service"}])),
        ("patch", json!([[{"op": "remove", "path": "/service/0"}]])),
        ("patch", json!(vec![json!({"op": "test", "path": "", "value": 1}); MAX_OPERATIONS + 1])),
        ("sourceHash", Value::Null),
        ("sourceHash", json!("")),
        ("sourceHash", json!("Fq1UP690_gr9g7zY_RqqNK_J4LAjbBGwhVMMZ5D-BHg=")),
        ("sourceHash", json!("Fq1UP690_gr9g7zY_RqqNK_J4LAjbBGwhVMMZ5D-BHh")),
        ("targetHash", json!(["nj92CkHR2PE-MCrE6-r6avurt-lrTctfgSmFwagkWpI"])),
        ("targetHash", json!("+/++")),
        ("targetVersionId", Value::Null),
        ("targetVersionId", json!(1)),
        ("targetVersionId", json!(0)),
        ("targetVersionId", json!(-2)),
        ("targetVersionId", json!(2.5)),
        ("targetVersionId", json!("2")),
    ];
    let case = &Case::all()[0];
    for (field, value) in shapes {
        let mut shown = value.to_string();
        shown.truncate(100);
        let error = case.verify(&case.resigned(|update| update[field] = value)).expect_err(&shown);
        assert_eq!(error.code(), "UPDATE_MALFORMED", "{field} {shown}: {error}");
        assert!(error.to_string().contains(field), "{field} {shown}: {error}");
    }
    for value in [json!([]), json!("update"), json!(null), json!(2), json!({"targetVersionId": u64::MAX})] {
        let error = SignedUpdate::from_value(value.clone()).expect_err("refused");
        assert_eq!(error.code(), "UPDATE_MALFORMED", "{value}");
        assert!(serde_json::from_value::<SignedUpdate>(value.clone()).is_err(), "{value}");
    }
}

#[test]
fn a_wrong_proof_field_is_named() {
    for case in [&Case::all()[0], Case::all().iter().find(|case| case.did.key().is_none()).unwrap()] {
        let fields = case.vector["signedUpdate"]["proof"].as_object().unwrap().keys();
        for field in fields {
            for value in [Value::Null, json!(""), json!([]), json!("z".repeat(60_000))] {
                let mut update = case.vector["signedUpdate"].clone();
                update["proof"][field] = value;
                let error = case.verify(&update).expect_err(field);
                assert_eq!(error.code(), "UPDATE_VERIFICATION_FAILED", "{field}: {error}");
                assert!(error.to_string().contains(&format!("proof.{field}")), "{field}: {error}");
            }
        }
    }
}

#[test]
fn an_update_of_another_did_or_document_is_refused() {
    let cases = Case::all();
    for (one, other) in cases.iter().zip(cases.iter().cycle().skip(1)) {
        let update = SignedUpdate::from_value(one.vector["signedUpdate"].clone()).unwrap();
        let verify = |context: UpdateContext<'_>| verify_update(&update, &context);
        assert!(verify(other.context()).is_err());
        assert!(verify(UpdateContext { did: &other.did, ..one.context() }).is_err());
        let another = UpdateContext { document: &other.initial, ..one.context() };
        assert!(matches!(verify(another), Err(UpdateError::SourceHash)));
        // An older document has no hashes to compare with; its keys still apply.
        assert!(matches!(verify_proof(&update, &another), Err(UpdateError::Method(_))));
    }
}

#[test]
fn signing_an_update_that_would_be_refused_fails() {
    for case in Case::all() {
        let refuse = |patch: Value| {
            let update = build_update(&case.initial, 1, patch).unwrap();
            sign_update(&update, &case.did, &case.method, &case.secret, &mut rng()).expect_err("signed")
        };
        let other_id = refuse(json!([{"op": "replace", "path": "/id", "value": "did:btcr2:_"}]));
        assert!(matches!(other_id, UpdateError::TargetId), "{}: {other_id}", case.name());
        let no_context = refuse(json!([{"op": "remove", "path": "/@context"}]));
        assert!(matches!(no_context, UpdateError::NotConformant(_)), "{}: {no_context}", case.name());

        let update = build_update(&case.initial, 1, case.vector["patch"].clone()).unwrap();
        let method = format!("{}#other", case.did);
        let not_listed = sign_update(&update, &case.did, &method, &case.secret, &mut rng()).unwrap_err();
        assert!(matches!(not_listed, UpdateError::Method(_)), "{}: {not_listed}", case.name());
        let other_key = SecretKey::from_bytes(&[9; 32]).unwrap();
        let not_its_key = sign_update(&update, &case.did, &case.method, &other_key, &mut rng()).unwrap_err();
        assert!(matches!(not_its_key, UpdateError::Signature), "{}: {not_its_key}", case.name());
    }
}

#[test]
fn later_updates_are_checked_up_to_their_signature() {
    for case in Case::all() {
        let name = case.name();
        let first = build_update(&case.initial, 1, case.vector["patch"].clone()).unwrap();
        let patch = json!([{"op": "remove", "path": "/service/0"}]);
        let second = build_update(first.target_document(), 2, patch).unwrap();
        assert_eq!(second.to_value()["targetVersionId"], 3);
        assert_eq!(second.to_value()["sourceHash"], first.to_value()["targetHash"]);
        let second = sign_update(&second, &case.did, &case.method, &case.secret, &mut rng()).unwrap();
        verify_proof(&second, &case.context()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let as_first = verify_update(&second, &case.context());
        assert!(matches!(as_first, Err(UpdateError::Version { found: 3, current: 1 })), "{name}: {as_first:?}");
        let knowing = UpdateContext { document: first.target_document(), version: 2, ..case.context() };
        assert!(verify_update(&second, &knowing).is_ok(), "{name}");
    }
}

#[test]
fn versions_start_at_one_and_fit_a_json_number() {
    let source = json!({"service": []});
    assert!(build_update(&source, 0, json!([])).is_err());
    assert!(build_update(&source, u64::MAX, json!([])).is_err());
    let case = &Case::all()[0];
    let uncountable = build_update(&source, 1 << 53, json!([])).unwrap();
    let signed = sign_update(&uncountable, &case.did, &case.method, &case.secret, &mut rng());
    assert!(matches!(signed, Err(UpdateError::NotCanonical(_))));
}

#[test]
fn a_signed_update_is_forwarded_as_received() {
    for case in Case::all() {
        let text = case.vector["signedUpdate"].to_string();
        let update: SignedUpdate = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&update).unwrap(), text);
        let copy = update.clone();
        assert_eq!((copy.hash(), copy.value()), (update.hash(), update.value()));
        assert_eq!(format!("{update:?}"), format!("SignedUpdate({})", case.text("signedUpdateHash")));
    }
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(json!(1e-7), |inside, _| json!({ "b": inside, "a": null }))
}

#[test]
fn a_packed_update_is_the_same_update() {
    for levels in [1, 50, 123, 124] {
        let value = nested(levels);
        let update = SignedUpdate::from_value(value.clone()).unwrap();
        let packed = update.packed();
        assert_eq!(packed, update);
        assert_eq!(packed.value().to_string(), value.to_string(), "fields in the order in which they came");
        assert_eq!(packed.canonical_len(), update.canonical_len());
        assert_eq!(serde_json::to_string(&packed).unwrap(), serde_json::to_string(&update).unwrap());
    }
}

/// Whatever other defects the data has, at any place.
#[test]
fn data_that_nests_too_deep_is_refused() {
    let did = Did::from_key(SecretKey::from_bytes(&[7; 32]).unwrap().public_key(), Network::Regtest);
    let read = |levels: usize| {
        let body = json!({
            "cohortId": "c", "beaconType": "Own", "signalBytesHex": "00".repeat(32),
            "beaconData": [9_007_199_254_740_993_u64, nested(levels - 1)],
        });
        let kind = "https://btcr2.dev/aggregation/update/distribute_aggregated_data";
        let message = json!({ "type": kind, "version": 1, "from": did, "to": did, "body": body });
        Message::from_json(&message.to_string()).map_err(|error| error.to_string())
    };
    read(124).unwrap();
    assert_eq!(read(125).unwrap_err(), "body.beaconData: nested deeper than 124 levels");
}

/// A journal that cannot be read would end the cohort at its next recovery.
#[test]
fn accepted_updates_are_readable_from_a_journal() {
    let did = Did::from_key(SecretKey::from_bytes(&[7; 32]).unwrap().public_key(), Network::Regtest);
    for (levels, taken) in [(1, true), (124, true), (125, false), (126, false)] {
        let body = json!({ "cohortId": "c", "signedUpdate": nested(levels) });
        let kind = "https://btcr2.dev/aggregation/update/submit_update";
        let message = json!({ "type": kind, "version": 1, "from": did, "to": did, "body": body });
        let message = Message::from_json(&message.to_string());
        let update = SignedUpdate::from_value(nested(levels));
        assert_eq!((message.is_ok(), update.is_ok()), (taken, taken), "{levels}");
        let Ok(update) = update else {
            let error = message.unwrap_err().to_string();
            assert_eq!(error, "body.signedUpdate: nested deeper than 124 levels");
            continue;
        };
        let digest = message.unwrap().digest();
        let event = ServiceEvent::UpdateReceived {
            did: did.clone(),
            update: update.packed(),
            digest,
            edition: Edition::CURRENT,
        };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<ServiceEvent>(&json).unwrap(), event, "{levels}");
    }
}
