//! What a hostile controller, peer or content store provides: errors, within bounds, and never a panic.

use btcr2_aggregation_protocol::{
    document, jcs,
    resolution::{BeaconKind, Content, ErrorCode, FailureRule, Resolver, SidecarData},
};
use serde_json::{Value, json};

use super::world::{Author, NETWORK, World, address, fails};

/// `value` inside of `levels` arrays.
fn nested(levels: usize, value: Value) -> Value {
    (0..levels).fold(value, |inner, _| Value::Array(vec![inner]))
}

fn genesis(extra: Value) -> Value {
    let mut genesis = Author::external(1, |_| {}).genesis.unwrap();
    genesis["extra"] = extra;
    genesis
}

#[test]
fn a_genesis_document_may_nest_as_deep_as_json_text() {
    // The parser admits 127 levels; a caller can compose more.
    for (levels, code) in [(126, None), (127, Some(ErrorCode::InvalidDid)), (500, Some(ErrorCode::InvalidDid))] {
        let document = genesis(nested(levels, json!(1)));
        let author = Author::external(1, |_| {});
        let did = document::external_did(&document, NETWORK).unwrap_or(author.did);
        let hash = jcs::document_hash(&document);
        let sidecar = SidecarData::from_value(json!({ "genesisDocument": document })).unwrap();
        let from_sidecar = World::new().drive(Resolver::new(did.clone(), Default::default(), sidecar), |_| {});
        assert_eq!(from_sidecar.outcome.err().map(|error| error.code()), code, "{levels}");
        let mut world = World::new();
        if let Ok(hash) = hash {
            world.store.insert(hash, Content::Json(document));
            let resolver = Resolver::new(did, Default::default(), SidecarData::default());
            assert_eq!(world.drive(resolver, |_| {}).outcome.err().map(|error| error.code()), code, "{levels}");
        }
    }
}

#[test]
fn what_is_nested_too_deep_is_left_out() {
    let deep = nested(500, json!(1));
    let sidecar = json!({ "updates": [deep, { "x": deep }], "casUpdates": [deep], "smtProofs": [deep] });
    assert_eq!(SidecarData::from_value(sidecar).unwrap().left_out(), 4);
    // And given for an update, it is none.
    let (mut world, mut author) = (World::new(), Author::key(1));
    let two = author.note("two");
    world.announce(&author.beacon(), &two, 100);
    world.store.insert(*two.hash(), Content::Json(deep));
    world.fails(&author, ErrorCode::InvalidDidUpdate, None);
}

#[test]
fn a_number_that_json_does_not_carry_has_no_hash() {
    let text = r#"{ "updates": [{ "n": 9007199254740993 }], "casUpdates": [{ "n": -9007199254740993 }] }"#;
    assert_eq!(SidecarData::from_slice(text.as_bytes()).unwrap().left_out(), 2);
    let (mut world, mut author) = (World::new(), Author::key(1));
    let two = author.note("two");
    world.announce(&author.beacon(), &two, 100);
    world.store.insert(*two.hash(), Content::Json(json!({ "n": 9_007_199_254_740_993_u64 })));
    world.fails(&author, ErrorCode::InvalidDidUpdate, None);
}

#[test]
fn a_target_version_beyond_all_is_late() {
    let author = Author::key(1);
    for version in [json!(1_u64 << 53), json!(3)] {
        let two = author.clone().note("two");
        let update = author.altered(&two, |update, _| update["targetVersionId"] = version.clone());
        let mut world = World::new();
        world.singleton(&author.beacon(), &update, 100);
        world.fails(&author, ErrorCode::LatePublishing, FailureRule::VersionSkip);
    }
}

#[test]
fn a_patch_that_grows_without_bound_fails() {
    let author = Author::key(1);
    let mut patch = vec![json!({ "op": "add", "path": "/a", "value": ["x"] })];
    patch.extend(std::iter::repeat_n(json!({ "op": "copy", "from": "", "path": "/a/-" }), 40));
    let two = author.clone().note("two");
    let update = author.altered(&two, |update, _| update["patch"] = json!(patch));
    let mut world = World::new();
    world.singleton(&author.beacon(), &update, 100);
    world.fails(&author, ErrorCode::InvalidDidUpdate, FailureRule::PatchApplyFailure);
}

#[test]
fn thousands_of_signals_are_read_once_each() {
    // Chaff by a party that can spend from the address: the same update, and a root whose proof is verified once.
    let (mut world, mut author) = (World::new(), Author::with_beacon(1, BeaconKind::Smt, &address(9)));
    let two = author.note("two");
    world.smt(&address(9), &[(&author.did, Some(&two))], 100);
    let root = *world.signals(&address(9))[0].bytes.as_bytes();
    for _ in 0..5_000 {
        world.signal(&address(9), root, 101);
        world.announce(&author.beacon(), &two, 101);
    }
    world.resolves(&author, 2);
}

#[test]
fn proofs_of_other_members_do_not_hide_ones_own() {
    // R-15: one file for a whole cohort, with damaged copies beside.
    let (mut world, mut author) = (World::new(), Author::with_beacon(1, BeaconKind::Smt, &address(9)));
    let two = author.note("two");
    let others: Vec<Author> = (2..60).map(Author::key).collect();
    let mut members: Vec<_> = others.iter().map(|other| (&other.did, None)).collect();
    members.push((&author.did, Some(&two)));
    world.smt(&address(9), &members, 100);
    let mut all: Vec<Value> = world.proofs.values().flatten().cloned().collect();
    let damaged = |number| {
        let mut copy = world.proofs[&author.did][0].clone();
        copy["hashes"] = json!([number]);
        copy
    };
    all.extend((0..100).map(damaged));
    world.proofs.insert(author.did.clone(), all.clone());
    world.resolves(&author, 2);
    let own = json!(two.hash());
    all.retain(|proof| proof["updateId"] != own);
    world.proofs.insert(author.did.clone(), all);
    world.fails(&author, ErrorCode::InvalidSignalData, FailureRule::SmtProofNotVerified);
}

#[test]
fn what_a_controller_wrote_is_shown_short_and_plain() {
    let evil = format!("\u{1b}[2J\u{202e}\n{}", "x".repeat(10_000));
    let author = Author::external(1, |genesis| {
        let services = genesis["service"].as_array_mut().unwrap();
        services.push(json!({ "id": "#x", "type": "CASBeacon", "serviceEndpoint": { "uri": evil } }));
    });
    let resolution = World::new().resolve(&author, &json!({}));
    let history = format!("{:?}", resolution.history);
    assert!(history.len() < 10_000 && !history.contains('\u{202e}'), "{history}");
    // And in what makes an update invalid.
    let two = author.clone().note("two");
    let update = author.altered(&two, |_, proof| proof["verificationMethod"] = json!(evil));
    let mut world = World::new();
    world.singleton(&author.beacon(), &update, 100);
    let error = fails(
        &world.resolve(&author, &json!({})),
        ErrorCode::InvalidDidUpdate,
        FailureRule::ProofMethodUnauthorized,
    );
    let text = error.to_string();
    assert!(text.len() < 2_000 && !text.contains(['\u{1b}', '\u{202e}', '\n']), "{text:?}");
}
