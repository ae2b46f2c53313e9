//! The cases of the public test suite and of the specification: `SUITE_DIR`, or the copy in this repository.

use std::{env, fs, path::PathBuf};

use btcr2_aggregation_protocol::{
    beacon::{CasAnnouncement, SmtProof},
    did::Did,
    document,
    hash::sha256,
    jcs,
    update::{BlockTimes, SignedUpdate, UpdateContext, UpdateError, violations},
};
use data_encoding::HEXLOWER;
use serde_json::Value;

fn cases() -> Vec<Value> {
    let directory = env::var_os("SUITE_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/suite")), PathBuf::from);
    let mut paths: Vec<PathBuf> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    assert!(!paths.is_empty(), "{}", directory.display());
    paths.iter().map(|path| serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()).collect()
}

fn some<'a>(case: &'a Value, field: &str) -> Option<&'a Value> {
    case.get(field).filter(|value| !value.is_null())
}

fn did(case: &Value) -> Did {
    case["did"].as_str().unwrap().parse().unwrap()
}

fn block(case: &Value) -> Option<BlockTimes> {
    let block = some(case, "block")?;
    let seconds = |field: &str| u32::try_from(block[field].as_u64().unwrap()).unwrap();
    Some(BlockTimes { time: seconds("time"), mediantime: seconds("mediantime") })
}

/// The suite's name for the check that fails first.
fn why(error: &UpdateError) -> &'static str {
    match error {
        UpdateError::Version { .. } | UpdateError::Field { field: "targetVersionId", .. } => "targetVersionId",
        UpdateError::SourceHash => "sourceHash",
        UpdateError::Context | UpdateError::ProofContext => "@context",
        UpdateError::Method(_) => "verificationMethod",
        UpdateError::ExpiresBeforeCreated | UpdateError::ExpiredInBlock => "expires",
        UpdateError::CreatedAfterBlock => "created",
        UpdateError::Proof { field, .. } => field,
        UpdateError::Signature => "proofValue",
        UpdateError::DoesNotApply(_) | UpdateError::Patch(_) => "patch",
        UpdateError::TargetId => "id",
        UpdateError::NotConformant(_) => "document",
        UpdateError::TargetHash => "targetHash",
        UpdateError::InvocationTargetMissing => "invocationTarget",
        _ => "?",
    }
}

#[test]
fn first_documents_are_those_of_the_suite() {
    let mut external = 0;
    for case in cases() {
        let Some(expected) = some(&case, "initialDocument") else { continue };
        let genesis = some(&case, "genesisDocument");
        external += usize::from(genesis.is_some());
        let document = document::initial_document(&did(&case), genesis)
            .unwrap_or_else(|error| panic!("{}: {error}", case["name"]));
        assert_eq!(
            jcs::document_hash(&document).unwrap(),
            jcs::document_hash(expected).unwrap(),
            "{}",
            case["name"]
        );
    }
    assert!(external > 0);
}

/// The updates were recorded before `invocationTarget` was required: the test leaves out only that rule.
#[test]
fn updates_are_accepted_and_refused_as_in_the_suite() {
    let (mut accepted, mut refused) = (0, 0);
    for case in cases() {
        let updates = case["updates"].as_array().unwrap();
        let Some(initial) = some(&case, "initialDocument").filter(|_| !updates.is_empty()) else { continue };
        let (name, did) = (case["name"].as_str().unwrap(), did(&case));
        let recorded_before = case["proofInvocationTarget"].as_str().is_some_and(|text| text.starts_with("absent"));
        let (mut document, mut version, mut first_error) = (initial.clone(), 1, None);
        for update in updates {
            let update = SignedUpdate::from_value(update.clone()).unwrap();
            let context = UpdateContext { did: &did, document: &document, version, block: block(&case) };
            let mut broken = violations(&update, &context);
            if recorded_before {
                let before = broken.len();
                broken.retain(|error| !matches!(error, UpdateError::InvocationTargetMissing));
                assert_eq!(broken.len() + 1, before, "{name}: the rule refuses it");
            }
            if let Some(error) = broken.into_iter().next() {
                first_error = Some(error);
                break;
            }
            let patch = btcr2_aggregation_protocol::patch::Patch::from_value(&update.value()["patch"]).unwrap();
            (document, version) = (patch.apply(&document).unwrap(), version + 1);
        }
        match case["expected"]["result"].as_str().unwrap() {
            "accepted" => {
                accepted += 1;
                assert!(first_error.is_none(), "{name}: {first_error:?}");
                assert_eq!(case["expected"]["versionId"], version.to_string(), "{name}");
                let deactivated = case["expected"]["deactivated"] == true;
                assert_eq!(document.get("deactivated") == Some(&Value::Bool(true)), deactivated, "{name}");
            }
            _ => {
                refused += 1;
                let error = first_error.unwrap_or_else(|| panic!("{name} is accepted"));
                assert_eq!(case["expected"]["why"], why(&error), "{name}: {error}");
            }
        }
    }
    assert!(accepted >= 5 && refused >= 5, "{accepted} accepted, {refused} refused");
}

#[test]
fn proofs_and_announcements_verify_as_in_the_suite() {
    let (mut proofs, mut maps) = (0, 0);
    for case in cases() {
        let (name, did) = (case["name"].as_str().unwrap(), did(&case));
        let last = case["updates"].as_array().unwrap().last();
        if let Some(proof) = some(&case, "smtProof") {
            proofs += 1;
            let proof: SmtProof =
                serde_json::from_value(proof.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
            let verdict = proof.verify(&sha256(did.as_str().as_bytes()));
            let expected = case["expected"]["error"] != "INVALID_SIGNAL_DATA";
            assert_eq!(verdict.is_ok(), expected, "{name}: {verdict:?}");
            if let Some(signal) = some(&case, "signalBytes") {
                assert_eq!(HEXLOWER.encode(proof.id.as_bytes()), *signal.as_str().unwrap(), "{name}");
                let announced = last.map(|update| jcs::document_hash(update).unwrap());
                assert_eq!(proof.update_id, announced, "{name}");
            }
        }
        if let Some(map) = some(&case, "casAnnouncement") {
            maps += 1;
            let announcement: CasAnnouncement = serde_json::from_value(map.clone()).unwrap();
            assert_eq!(*announcement.signal().as_bytes(), jcs::hash(map).unwrap(), "{name}");
            if let Some(signal) = some(&case, "signalBytes") {
                assert_eq!(announcement.signal().to_string(), *signal.as_str().unwrap(), "{name}");
                let announced = last.map(|update| jcs::document_hash(update).unwrap());
                assert_eq!(announcement.get(did.as_str()).copied(), announced, "{name}");
            }
        }
    }
    assert!(proofs >= 5 && maps >= 1, "{proofs} proofs, {maps} maps");
}
