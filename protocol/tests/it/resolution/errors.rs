//! Every error code (rule C6) and every failure rule (rule C7).

use std::collections::BTreeSet;

use btcr2_aggregation_protocol::{
    did::Did,
    document, jcs,
    key::PublicKey,
    resolution::{
        BeaconKind, Content, ErrorCode, Event, FailureRule, Resolution, ResolutionError, ResolutionOptions, Source,
    },
    update::SignedUpdate,
};
use serde_json::{Value, json};

use super::world::{Author, NETWORK, STORE, World, address, fails, key, mediantime, time};

/// The outcome of one update that is wrong in what `change` does to it, announced in block 100.
fn outcome_of(change: impl FnOnce(&mut Value, &mut Value)) -> (Resolution, SignedUpdate) {
    outcome_for(&Author::key(1), change)
}

fn outcome_for(author: &Author, change: impl FnOnce(&mut Value, &mut Value)) -> (Resolution, SignedUpdate) {
    let valid = author.clone().note("two");
    let update = author.altered(&valid, change);
    let mut world = World::new();
    world.singleton(&author.beacon(), &update, 100);
    (world.resolve(author, &json!({})), update)
}

/// With the target hash that belongs to another patch.
fn patched(author: &Author, patch: Value) -> Resolution {
    let parsed = btcr2_aggregation_protocol::patch::Patch::from_value(&patch);
    let target = parsed.and_then(|patch| patch.apply(author.document()));
    outcome_for(author, |update, _| {
        if let Ok(target) = target {
            update["targetHash"] = json!(jcs::document_hash(&target).unwrap());
        }
        update["patch"] = patch;
    })
    .0
}

fn date(seconds: u32) -> Value {
    json!(super::world::date(seconds))
}

#[test]
fn an_invalid_update_is_named_by_its_failure_rule() {
    use FailureRule::*;
    let other = Author::key(2);
    let cases: Vec<(FailureRule, Resolution)> = vec![
        (UpdateContextMismatch, outcome_of(|update, _| update["@context"] = json!([])).0),
        (UpdateContextMismatch, outcome_of(|update, _| drop(update.as_object_mut().unwrap().remove("@context"))).0),
        (ProofContextMismatch, outcome_of(|_, proof| proof["@context"] = json!("x")).0),
        (ProofCapabilityActionMismatch, outcome_of(|_, proof| proof["capabilityAction"] = json!("Read")).0),
        (ProofPurposeMismatch, outcome_of(|_, proof| proof["proofPurpose"] = json!("assertionMethod")).0),
        (ProofCapabilityMismatch, outcome_of(|_, proof| proof["capability"] = json!("urn:zcap:root:x")).0),
        (ProofInvocationTargetMismatch, outcome_of(|_, proof| proof["invocationTarget"] = json!(other.did)).0),
        (
            ProofInvocationTargetMismatch,
            outcome_of(|_, proof| drop(proof.as_object_mut().unwrap().remove("invocationTarget"))).0,
        ),
        (ProofNotVerified, outcome_of(|_, proof| proof["cryptosuite"] = json!("eddsa-jcs-2022")).0),
        (ProofMethodUnauthorized, outcome_of(|_, proof| proof["verificationMethod"] = json!("#else")).0),
        (ProofMethodUnauthorized, outcome_of(|_, proof| proof["verificationMethod"] = Value::Null).0),
        (
            ProofMethodNotFound,
            outcome_for(
                &Author::external(1, |genesis| genesis["capabilityInvocation"] = json!(["#initialKey", "#gone"])),
                |_, proof| {
                    let did = proof["invocationTarget"].as_str().unwrap().to_owned();
                    proof["verificationMethod"] = json!(format!("{did}#gone"));
                },
            )
            .0,
        ),
        (SourceHashMismatch, outcome_of(|update, _| update["sourceHash"] = json!("A".repeat(43))).0),
        (SourceHashMismatch, outcome_of(|update, _| update["sourceHash"] = json!("?")).0),
        (TargetHashMismatch, outcome_of(|update, _| update["targetHash"] = json!("A".repeat(43))).0),
        (TargetHashMismatch, outcome_of(|update, _| update["targetHash"] = json!("?")).0),
        (PatchApplyFailure, patched(&Author::key(1), json!([{ "op": "remove", "path": "/nothing" }]))),
        (PatchApplyFailure, patched(&Author::key(1), json!([{ "op": "merge", "path": "/x" }]))),
        (PatchApplyFailure, patched(&Author::key(1), json!([[]]))),
        (
            DocumentIdMismatch,
            patched(&Author::key(1), json!([{ "op": "replace", "path": "/id", "value": other.did }])),
        ),
        (DocumentNotConformant, patched(&Author::key(1), json!([{ "op": "remove", "path": "/@context" }]))),
        // U-10, against the block of the signal; a second is enough.
        (ProofCreatedAfterBlock, outcome_of(|_, proof| proof["created"] = date(time(100) + 1)).0),
        (ProofExpiresBeforeMediantime, outcome_of(|_, proof| proof["expires"] = date(mediantime(100) - 1)).0),
        (
            ProofExpiresBeforeCreated,
            outcome_of(|_, proof| {
                proof["created"] = date(mediantime(100) + 1);
                proof["expires"] = date(mediantime(100));
            })
            .0,
        ),
    ];
    for (rule, resolution) in &cases {
        let error = fails(resolution, ErrorCode::InvalidDidUpdate, *rule);
        for word in ["block 100", "SingletonBeacon m", "version 2"] {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
        let result = serde_json::to_value(resolution.result()).unwrap();
        let problem = &result["didResolutionMetadata"]["error"];
        assert_eq!(problem["rule"], rule.as_str());
        assert_eq!(problem["detail"], error.to_string());
    }
}

#[test]
fn times_equal_to_the_blocks_are_in_time() {
    // U-10.
    let (resolution, _) = outcome_of(|_, proof| {
        proof["created"] = date(time(100));
        proof["expires"] = date(time(100));
    });
    assert!(resolution.outcome.is_ok());
    let (resolution, _) = outcome_of(|_, proof| {
        proof["created"] = date(mediantime(100));
        proof["expires"] = date(mediantime(100));
    });
    assert!(resolution.outcome.is_ok());
}

#[test]
fn a_malformed_time_has_no_name_of_its_own() {
    // U-9.
    let (resolution, update) = outcome_of(|_, proof| proof["created"] = json!("yesterday"));
    let error = fails(&resolution, ErrorCode::InvalidDidUpdate, None);
    assert!(error.to_string().contains("U-9") && error.to_string().contains(&update.hash().to_string()), "{error}");
}

#[test]
fn rules_are_applied_in_their_order() {
    // U-20: what is malformed later is not seen before its turn. Each change hides those below it.
    use FailureRule::*;
    type Change = fn(&mut Value, &mut Value);
    let changes: [(FailureRule, Change); 12] = [
        (SourceHashMismatch, |update, _| update["sourceHash"] = json!("A".repeat(43))),
        (UpdateContextMismatch, |update, _| update["@context"] = json!([])),
        (ProofContextMismatch, |_, proof| proof["@context"] = json!([])),
        (ProofPurposeMismatch, |_, proof| proof["proofPurpose"] = json!("x")),
        (ProofCapabilityActionMismatch, |_, proof| proof["capabilityAction"] = json!("x")),
        (ProofCapabilityMismatch, |_, proof| proof["capability"] = json!("x")),
        (ProofInvocationTargetMismatch, |_, proof| proof["invocationTarget"] = json!("x")),
        (ProofMethodUnauthorized, |_, proof| proof["verificationMethod"] = json!("x")),
        (ProofCreatedAfterBlock, |_, proof| proof["created"] = json!("2999-01-01T00:00:00Z")),
        (ProofNotVerified, |_, proof| proof["nothing"] = json!("was signed")),
        (PatchApplyFailure, |update, _| update["patch"] = json!([{ "op": "merge" }])),
        (TargetHashMismatch, |update, _| update["targetHash"] = json!("?")),
    ];
    for first in 0..changes.len() {
        let author = Author::key(1);
        let update = author.altered(&author.clone().note("two"), |update, proof| {
            changes[first..].iter().for_each(|(_, change)| change(update, proof));
        });
        let mut value = update.value().clone();
        if changes[first..].iter().any(|(rule, _)| *rule == ProofNotVerified) {
            value["proof"]["proofValue"] = json!(format!("z{}", bs58::encode([1; 64]).into_string()));
        }
        let mut world = World::new();
        world.singleton(&author.beacon(), &SignedUpdate::from_value(value).unwrap(), 100);
        world.fails(&author, ErrorCode::InvalidDidUpdate, changes[first].0);
    }
}

#[test]
fn an_identifier_that_is_none_is_named() {
    // I-1.
    let did = Author::key(1).did.to_string();
    let mut mistyped = did.clone();
    let last = if mistyped.pop() == Some('q') { 'p' } else { 'q' };
    mistyped.push(last);
    let payload = [&[6_u8], key(1).public_key().to_bytes().as_slice()].concat();
    let hrp = bech32::Hrp::parse("k").unwrap();
    let reserved = format!("did:btcr2:{}", bech32::encode::<bech32::Bech32m>(hrp, &payload).unwrap());
    for (text, rule) in [
        (mistyped, Some(FailureRule::DidChecksumInvalid)),
        (reserved, Some(FailureRule::DidNetworkReserved)),
        (with_padding_bits(&did), Some(FailureRule::DidPaddingNonzero)),
        ("did:key:z6Mk".to_owned(), None),
        (did.to_uppercase(), None),
    ] {
        let error = ResolutionError::from(Did::parse(&text).unwrap_err());
        assert_eq!((error.code(), error.rule()), (ErrorCode::InvalidDid, rule), "{text}: {error}");
    }
}

/// The same bytes, with one of the last character's padding bits set, and the right checksum.
fn with_padding_bits(did: &str) -> String {
    use bech32::primitives::{decode::CheckedHrpstring, iter::Fe32IterExt};
    let checked = CheckedHrpstring::new::<bech32::Bech32m>(&did[10..]).unwrap();
    let mut symbols: Vec<bech32::Fe32> = checked.fe32_iter::<std::vec::IntoIter<u8>>().collect();
    let last = symbols.pop().unwrap();
    symbols.push(bech32::Fe32::try_from(last.to_u8() | 1).unwrap());
    let hrp = bech32::Hrp::parse("k").unwrap();
    let id: String = symbols.into_iter().with_checksum::<bech32::Bech32m>(&hrp).chars().collect();
    format!("did:btcr2:{id}")
}

#[test]
fn a_genesis_document_is_checked_by_hash_then_id() {
    // I-2 and I-4.
    let world = World::new();
    let good = Author::external(1, |_| {});
    let mut wrong = good.clone();
    wrong.genesis = Some(json!({ "id": "did:btcr2:_" }));
    world.fails(&wrong, ErrorCode::InvalidDid, FailureRule::GenesisHashMismatch);
    for (change, rule) in [
        (json!({ "id": "did:example:x" }), FailureRule::DocumentIdMismatch),
        (json!([7]), FailureRule::DocumentIdMismatch),
        (json!({ "id": "did:btcr2:_" }), FailureRule::DocumentNotConformant),
    ] {
        let mut author = good.clone();
        author.did = document::external_did(&change, NETWORK).unwrap();
        author.genesis = Some(change);
        world.fails(&author, ErrorCode::InvalidDidDocument, rule);
    }
}

#[test]
fn a_genesis_document_is_searched_in_the_store() {
    // I-2, C-5 and C-6.
    let good = Author::external(1, |_| {});
    let genesis = good.genesis.clone().unwrap();
    let hash = jcs::document_hash(&genesis).unwrap();
    let mut author = good.clone();
    author.genesis = None;
    let mut world = World::new();
    let error = world.fails(&author, ErrorCode::NotFound, None);
    assert!(error.to_string().contains(&hash.to_string()), "{error}");
    world.store.insert(hash, Content::Bytes(b"{}".to_vec()));
    world.fails(&author, ErrorCode::NotFound, None);
    world.store.insert(hash, Content::Json(json!({})));
    world.fails(&author, ErrorCode::InvalidDid, FailureRule::GenesisHashMismatch);
    world.stored(&genesis);
    world.resolves(&author, 1);
    let history = world.resolve(&author, &json!({})).history;
    assert_eq!(history[0], Event::InitialDocument { source: Source::Caller(STORE.into()) });
}

#[test]
fn of_several_genesis_documents_the_right_one_counts() {
    let good = Author::external(1, |_| {});
    let mut data = btcr2_aggregation_protocol::resolution::SidecarData::default();
    for document in [json!({ "id": "did:btcr2:_" }), good.genesis.clone().unwrap(), json!(7)] {
        let value = json!({ "genesisDocument": document });
        data.merge(btcr2_aggregation_protocol::resolution::SidecarData::from_value(value).unwrap());
    }
    let resolver =
        btcr2_aggregation_protocol::resolution::Resolver::new(good.did.clone(), ResolutionOptions::default(), data);
    assert!(World::new().drive(resolver, |_| {}).outcome.is_ok());
}

#[test]
fn the_placeholder_is_replaced_everywhere() {
    // I-3: in names and inside of text.
    let author =
        Author::external(1, |genesis| genesis["see did:btcr2:_"] = json!({ "did:btcr2:_": ["at did:btcr2:_#x"] }));
    let resolved = World::new().resolves(&author, 1);
    let did = &author.did;
    assert_eq!(resolved.document[format!("see {did}")], json!({ did.as_str(): [format!("at {did}#x")] }));
}

#[test]
fn codes_refine_those_of_did_resolution() {
    // C6.
    for (code, refined, url) in [
        (ErrorCode::InvalidDid, "INVALID_DID", "https://www.w3.org/ns/did#INVALID_DID"),
        (ErrorCode::InvalidOptions, "INVALID_OPTIONS", "https://www.w3.org/ns/did#INVALID_OPTIONS"),
        (ErrorCode::NotFound, "NOT_FOUND", "https://www.w3.org/ns/did#NOT_FOUND"),
        (ErrorCode::InvalidDidDocument, "INVALID_DID_DOCUMENT", "https://www.w3.org/ns/did#INVALID_DID_DOCUMENT"),
        (ErrorCode::InternalError, "INTERNAL_ERROR", "https://www.w3.org/ns/did#INTERNAL_ERROR"),
        (ErrorCode::InvalidDidUpdate, "INVALID_DID_DOCUMENT", "https://btcr2.dev/context/v1#INVALID_DID_UPDATE"),
        (ErrorCode::LatePublishing, "INVALID_DID_DOCUMENT", "https://btcr2.dev/context/v1#LATE_PUBLISHING"),
        (ErrorCode::MissingUpdateData, "NOT_FOUND", "https://btcr2.dev/context/v1#MISSING_UPDATE_DATA"),
        (ErrorCode::InvalidSignalData, "INVALID_OPTIONS", "https://btcr2.dev/context/v1#INVALID_SIGNAL_DATA"),
    ] {
        assert_eq!((code.refines().to_string(), code.url()), (refined.to_owned(), url.to_owned()));
    }
    assert_eq!(ErrorCode::ALL.len(), 9);
    let names: BTreeSet<&str> = FailureRule::ALL.iter().map(|rule| rule.as_str()).collect();
    assert_eq!(names.len(), 26);
}

#[test]
fn an_update_of_another_key_is_not_verified() {
    // U-7: in the document, and not in capabilityInvocation; and by a key that is in no document.
    let public: PublicKey = key(8).public_key();
    let author = Author::external(1, |genesis| {
        let mut second = genesis["verificationMethod"][0].clone();
        second["id"] = json!("#second");
        second["publicKeyMultibase"] = json!(document::encode_multikey(&public));
        genesis["verificationMethod"].as_array_mut().unwrap().push(second);
        genesis["authentication"] = json!(["#second"]);
    });
    let (resolution, _) = outcome_for(&author, |_, proof| {
        let did = proof["invocationTarget"].as_str().unwrap().to_owned();
        proof["verificationMethod"] = json!(format!("{did}#second"));
    });
    fails(&resolution, ErrorCode::InvalidDidUpdate, FailureRule::ProofMethodUnauthorized);
    let mut forged = author.clone().note("two").value().clone();
    forged["proof"]["proofValue"] = Author::key(8).note("x").value()["proof"]["proofValue"].clone();
    let mut world = World::new();
    world.singleton(&author.beacon(), &SignedUpdate::from_value(forged).unwrap(), 100);
    world.fails(&author, ErrorCode::InvalidDidUpdate, FailureRule::ProofNotVerified);
}

#[test]
fn one_hash_may_be_needed_as_two_things() {
    // A Singleton and a CAS beacon with the same Signal Bytes.
    let (mut world, author) = (World::new(), Author::with_beacon(1, BeaconKind::Cas, &address(9)));
    let value = json!({ "no": "entry" });
    let hash = jcs::hash(&value).unwrap();
    world.signal(&address(9), hash, 100);
    world.signal(&author.beacon(), hash, 101);
    world.stored(&value);
    let error = world.fails(&author, ErrorCode::InvalidDidUpdate, FailureRule::PatchApplyFailure);
    assert!(error.to_string().contains("block 101"), "{error}");
}
