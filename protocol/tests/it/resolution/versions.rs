//! Which updates are applied, in which order, and what the metadata say (rules and C4, step 3c).

use btcr2_aggregation_protocol::resolution::{BeaconKind, ErrorCode, Event, FailureRule};
use serde_json::{Value, json};

use super::world::{Author, World, address, date, fails, mediantime, steps};

#[test]
fn a_did_without_signals_is_its_initial_document() {
    let world = World::new();
    for author in [Author::key(1), Author::external(1, |_| {})] {
        let resolved = world.resolves(&author, 1);
        // at version 1 there is no block.
        let metadata = serde_json::to_value(resolved.metadata).unwrap();
        assert_eq!(metadata, json!({ "versionId": "1", "confirmations": 0, "deactivated": false }));
    }
}

#[test]
fn metadata_is_that_of_the_block_that_announces() {
    //
    let (mut world, mut author) = (World::new(), Author::key(1));
    let update = author.note("two");
    world.singleton(&author.beacon(), &update, 100);
    let metadata = serde_json::to_value(world.resolves(&author, 2).metadata).unwrap();
    let expected = json!({
        "versionId": "2",
        "confirmations": 901,
        "deactivated": false,
        "updated": date(mediantime(100)),
    });
    assert_eq!(metadata, expected);
}

#[test]
fn result_has_the_form_of_did_resolution() {
    // C5.
    let (mut world, mut author) = (World::new(), Author::key(1));
    let update = author.note("two");
    world.singleton(&author.beacon(), &update, 100);
    let resolution = world.resolve(&author, &json!({}));
    let result = serde_json::to_value(resolution.result()).unwrap();
    assert_eq!(result["didResolutionMetadata"], json!({ "contentType": "application/did" }));
    assert_eq!(result["didDocument"], *author.document());
    assert_eq!(result["didDocumentMetadata"]["versionId"], "2");
}

#[test]
fn updates_apply_by_version_then_height() {
    // version 3 is mined first, and at another beacon.
    let (mut world, mut author) = (World::new(), Author::with_beacon(1, BeaconKind::Singleton, &address(9)));
    let (two, three) = (author.note("two"), author.note("three"));
    world.singleton(&address(9), &three, 100);
    world.singleton(&author.beacon(), &two, 200);
    let resolved = world.resolves(&author, 3);
    assert_eq!(resolved.metadata.confirmations, 901, "those of version 3's own block");
    // Of two announcements the lower block's counts, though its address is scanned later.
    world.announce(&address(9), &two, 150);
    let resolved = world.resolves_with(&author, &json!({ "versionId": "2" }), 2);
    assert_eq!(resolved.metadata.confirmations, 851);
}

#[test]
fn a_tuple_of_a_removed_address_is_dropped() {
    // version 4 was mined before everything else, and is dropped too. So version 4 of the other beacon is not a second one.
    let (mut world, mut author) = (World::new(), Author::with_beacon(1, BeaconKind::Singleton, &address(9)));
    let two = author.note("two");
    let mut branch = author.clone();
    let (_, dropped) = (branch.note("three of a branch"), branch.note("four of a branch"));
    let (three, four) = (author.remove_beacon(&address(9)), author.note("four"));
    world.singleton(&address(9), &dropped, 50);
    world.singleton(&author.beacon(), &two, 100);
    world.singleton(&author.beacon(), &three, 101);
    world.singleton(&author.beacon(), &four, 102);
    world.resolves(&author, 4);
    let resolution = world.resolve(&author, &json!({}));
    assert_eq!(steps(&resolution), [("applied", 2), ("applied", 3), ("dropped", 4), ("applied", 4)]);
}

#[test]
fn an_update_may_remove_its_own_beacon() {
    //
    let (mut world, mut author) = (World::new(), Author::with_beacon(1, BeaconKind::Singleton, &address(9)));
    let update = author.remove_beacon(&address(9));
    world.singleton(&address(9), &update, 100);
    world.resolves(&author, 2);
}

#[test]
fn a_dropped_conflict_is_no_conflict() {
    // R-7 before R-8.
    let (mut world, mut author) = (World::new(), Author::with_beacon(1, BeaconKind::Singleton, &address(9)));
    let conflict = author.clone().note("another two");
    let two = author.remove_beacon(&address(9));
    world.singleton(&author.beacon(), &two, 100);
    world.singleton(&address(9), &conflict, 200);
    world.resolves(&author, 2);
    assert_eq!(steps(&world.resolve(&author, &json!({}))), [("applied", 2), ("dropped", 2)]);
}

#[test]
fn an_address_that_comes_back_counts_again_unscanned() {
    // version 5 waits at the address that version 3 removes and version 4 lists again.
    let (mut world, mut author) = (World::new(), Author::with_beacon(1, BeaconKind::Singleton, &address(9)));
    let updates = [
        author.note("two"),
        author.remove_beacon(&address(9)),
        author.add_beacon(BeaconKind::Singleton, &address(9)),
    ];
    for (update, height) in updates.iter().zip(100..) {
        world.singleton(&author.beacon(), update, height);
    }
    let five = author.note("five");
    world.singleton(&address(9), &five, 99);
    world.resolves(&author, 5);
    let resolution = world.resolve(&author, &json!({}));
    let scans = resolution.history.iter().filter(|event| matches!(event, Event::Scanned { .. })).count();
    assert_eq!(scans, 4, "each address once");
}

#[test]
fn a_repeated_announcement_changes_nothing() {
    // also signed anew, which gives it another hash.
    let (mut world, mut author) = (World::new(), Author::key(1));
    let two = author.note("two");
    let again = author.altered(&two, |_, proof| proof["created"] = json!("2026-10-01T12:00:00Z"));
    assert_ne!(two.hash(), again.hash());
    world.singleton(&author.beacon(), &two, 100);
    world.singleton(&author.beacon(), &again, 200);
    let resolved = world.resolves(&author, 2);
    assert_eq!(resolved.metadata.confirmations, 901);
    assert_eq!(steps(&world.resolve(&author, &json!({}))), [("applied", 2), ("duplicate", 2)]);
}

#[test]
fn a_second_update_of_a_version_is_late() {
    //
    let (mut world, mut author) = (World::new(), Author::key(1));
    let other = author.clone().note("another two");
    let two = author.note("two");
    world.singleton(&author.beacon(), &two, 100);
    world.singleton(&author.beacon(), &other, 200);
    let error = world.fails(&author, ErrorCode::LatePublishing, FailureRule::DuplicateHashMismatch);
    for word in [author.beacon().to_string(), other.hash().to_string(), "block 200".to_owned()] {
        assert!(error.to_string().contains(&word), "{word}: {error}");
    }
}

#[test]
fn a_missing_version_is_late() {
    //
    let (mut world, mut author) = (World::new(), Author::key(1));
    let _two = author.note("two");
    let three = author.note("three");
    world.singleton(&author.beacon(), &three, 100);
    let error = world.fails(&author, ErrorCode::LatePublishing, FailureRule::VersionSkip);
    assert!(error.to_string().contains("version 3") && error.to_string().contains("version 2 "), "{error}");
}

#[test]
fn version_time_compares_with_the_median_time() {
    // R-10; before everything it is version 1, after everything the newest.
    let (mut world, mut author) = (World::new(), Author::key(1));
    let (two, three) = (author.note("two"), author.note("three"));
    world.singleton(&author.beacon(), &two, 100);
    world.singleton(&author.beacon(), &three, 200);
    for (seconds, version) in [
        (0, 1),
        (mediantime(100) - 1, 1),
        (mediantime(100), 2),
        (mediantime(200) - 1, 2),
        (mediantime(200), 3),
        (u32::MAX, 3),
    ] {
        world.resolves_with(&author, &json!({ "versionTime": date(seconds) }), version);
    }
}

#[test]
fn an_old_version_has_its_own_metadata() {
    //
    let (mut world, mut author) = (World::new(), Author::key(1));
    let (two, three) =
        (author.note("two"), author.update(json!([{ "op": "add", "path": "/deactivated", "value": true }])));
    world.singleton(&author.beacon(), &two, 100);
    world.singleton(&author.beacon(), &three, 200);
    let resolved = world.resolves_with(&author, &json!({ "versionId": "2" }), 2);
    assert_eq!((resolved.metadata.confirmations, resolved.metadata.deactivated), (901, false));
    let first = world.resolves_with(&author, &json!({ "versionId": "1" }), 1);
    assert_eq!((first.metadata.confirmations, first.metadata.updated), (0, None));
    assert!(world.resolves(&author, 3).metadata.deactivated);
}

#[test]
fn a_later_error_fails_an_old_version_too() {
    //
    let (mut world, mut author) = (World::new(), Author::key(1));
    let two = author.note("two");
    let bad =
        author.altered(&author.clone().note("three"), |update, _| update["sourceHash"] = json!("A".repeat(43)));
    world.singleton(&author.beacon(), &two, 100);
    world.singleton(&author.beacon(), &bad, 200);
    for options in [json!({ "versionId": "2" }), json!({ "versionTime": date(mediantime(100)) })] {
        let resolution = world.resolve(&author, &options);
        fails(&resolution, ErrorCode::InvalidDidUpdate, FailureRule::SourceHashMismatch);
    }
}

#[test]
fn a_version_that_nobody_announced_is_not_found() {
    // R-12, C6: also behind a deactivation.
    let (mut world, mut author) = (World::new(), Author::key(1));
    let two = author.update(json!([{ "op": "add", "path": "/deactivated", "value": true }]));
    let three = author.note("three");
    world.singleton(&author.beacon(), &two, 100);
    world.singleton(&author.beacon(), &three, 200);
    for version in ["3", "0", "-1", "-2", "99999999999999999999999"] {
        let error = fails(&world.resolve(&author, &json!({ "versionId": version })), ErrorCode::NotFound, None);
        assert!(error.to_string().contains(version) && error.to_string().contains("deactivates"), "{error}");
    }
}

#[test]
fn deactivation_ends_the_history() {
    // what comes after is not looked at, however wrong it is.
    let (mut world, mut author) = (World::new(), Author::key(1));
    let conflict = author.clone().note("another two");
    let two = author.update(json!([{ "op": "add", "path": "/deactivated", "value": true }]));
    let mut later = author.clone();
    let (_, four) = (later.note("three"), later.note("four"));
    world.singleton(&author.beacon(), &two, 100);
    world.singleton(&author.beacon(), &conflict, 200);
    world.singleton(&author.beacon(), &four, 201);
    let resolved = world.resolves(&author, 2);
    assert!(resolved.metadata.deactivated);
    let resolution = world.resolve(&author, &json!({}));
    assert_eq!(steps(&resolution), [("applied", 2), ("not examined", 2), ("not examined", 4)]);
}

#[test]
fn a_genesis_document_may_be_deactivated() {
    //
    let (mut world, mut author) =
        (World::new(), Author::external(1, |genesis| genesis["deactivated"] = json!(true)));
    let two = author.note("two");
    world.singleton(&author.beacon(), &two, 100);
    assert!(world.resolves(&author, 1).metadata.deactivated);
}

#[test]
fn unused_sidecar_data_has_no_effect() {
    // of another DID, malformed, or of no signal.
    let (mut world, mut author, mut other) = (World::new(), Author::key(1), Author::external(2, |_| {}));
    let two = author.note("two");
    world.singleton(&author.beacon(), &two, 100);
    world.updates.push(other.note("of another").value().clone());
    world.updates.extend([json!(5), json!({}), json!({ "n": 1e300 }), Value::Null]);
    world.announcements.extend([json!([]), json!({ "did": 7 })]);
    world
        .proofs
        .insert(author.did.clone(), vec![json!({ "id": "?" }), json!({ "id": "A".repeat(43), "hashes": 1 })]);
    let unchanged = world.resolves(&author, 2);
    // A genesis document of a KEY identifier is nothing, too.
    author.genesis = other.genesis.clone();
    assert_eq!(world.resolves(&author, 2), unchanged);
}

#[test]
fn numbers_are_compared_and_not_their_spelling() {
    // The hash is that of the canonical form, and so is the patch's `test`.
    let (mut world, mut author) = (World::new(), Author::key(1));
    let two = author.update(json!([{ "op": "add", "path": "/count", "value": 100 }]));
    let three = author.update(json!([
        { "op": "test", "path": "/count", "value": 100 },
        { "op": "remove", "path": "/count" },
    ]));
    world.announce(&author.beacon(), &two, 100);
    world.announce(&author.beacon(), &three, 101);
    // The same numbers in another spelling.
    for (update, number) in [(&two, "1e2"), (&three, "100.0")] {
        let text = update.value().to_string().replacen(":100}", &format!(":{number}}}"), 1);
        let spelled =
            serde_json::from_str(&text.replace("\"targetVersionId\":2", "\"targetVersionId\":2.0")).unwrap();
        assert_ne!(spelled, *update.value());
        world.updates.push(spelled);
    }
    world.resolves(&author, 3);
}
