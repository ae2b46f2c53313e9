//! The ten traps of the order of rules (rule C7).

use btcr2_aggregation_protocol::resolution::{BeaconKind, ErrorCode, FailureRule};
use serde_json::{Value, json};

use super::world::{Author, World, address, date, fails, mediantime, steps};

#[test]
fn trap_01_a_duplicate_after_the_time_is_no_boundary() {
    // Version 2 is announced again after versionTime; version 3 before it.
    let (mut world, mut author) = (World::new(), Author::key(1));
    let (two, three) = (author.note("two"), author.note("three"));
    world.singleton(&author.beacon(), &two, 100);
    world.singleton(&author.beacon(), &three, 200);
    world.announce(&author.beacon(), &two, 300);
    world.resolves_with(&author, &json!({ "versionTime": date(mediantime(250)) }), 3);
}

#[test]
fn trap_02_a_conflict_counts_where_the_beacon_is_listed() {
    for removed in [true, false] {
        let (mut world, mut author) = (World::new(), Author::with_beacon(1, BeaconKind::Singleton, &address(9)));
        let conflict = author.clone().note("another two");
        let two = if removed { author.remove_beacon(&address(9)) } else { author.note("two") };
        world.singleton(&author.beacon(), &two, 100);
        world.singleton(&address(9), &conflict, 200);
        for options in [json!({}), json!({ "versionId": "1" })] {
            let resolution = world.resolve(&author, &options);
            if removed {
                assert!(resolution.outcome.is_ok());
            } else {
                fails(&resolution, ErrorCode::LatePublishing, FailureRule::DuplicateHashMismatch);
            }
        }
    }
}

#[test]
fn trap_03_a_new_beacon_counts_from_its_own_block_on() {
    for (height, version) in [(99, 2), (100, 3)] {
        let (mut world, mut author) = (World::new(), Author::key(1));
        let two = author.add_beacon(BeaconKind::Singleton, &address(9));
        let three = author.note("three");
        world.singleton(&author.beacon(), &two, 100);
        world.singleton(&address(9), &three, height);
        world.resolves(&author, version);
    }
}

#[test]
fn trap_04_heights_count_when_an_address_is_scanned() {
    // Version 3 was mined before version 2, at a beacon that was listed from the start.
    let (mut world, mut author) = (World::new(), Author::with_beacon(1, BeaconKind::Singleton, &address(9)));
    let (two, three) = (author.note("two"), author.note("three"));
    world.singleton(&author.beacon(), &two, 200);
    world.singleton(&address(9), &three, 100);
    world.resolves(&author, 3);
}

#[test]
fn trap_05_a_beacon_that_moves_is_scanned_again() {
    // the service keeps its id.
    let (mut world, mut author) = (World::new(), Author::with_beacon(1, BeaconKind::Singleton, &address(8)));
    let endpoint = format!("bitcoin:{}", address(9));
    let two = author.update(json!([{ "op": "replace", "path": "/service/3/serviceEndpoint", "value": endpoint }]));
    let three = author.note("three");
    world.singleton(&address(8), &two, 100);
    world.singleton(&address(9), &three, 200);
    world.resolves(&author, 3);
}

#[test]
fn trap_06_confirmations_choose_the_version() {
    let (mut world, mut author) = (World::new(), Author::key(1));
    let two = author.note("two");
    world.singleton(&author.beacon(), &two, 998);
    world.resolves(&author, 1);
    world.resolves_with(&author, &json!({ "minConf": 4 }), 1);
    world.resolves_with(&author, &json!({ "minConf": 3 }), 2);
    world.resolves_with(&author, &json!({ "minConf": 1 }), 2);
}

#[test]
fn trap_07_only_true_deactivates() {
    for (value, version) in [(json!(true), 2), (json!("true"), 3), (json!(1), 3), (json!([]), 3), (Value::Null, 3)]
    {
        let (mut world, mut author) = (World::new(), Author::key(1));
        let two = author.update(json!([{ "op": "add", "path": "/deactivated", "value": value }]));
        let three = author.note("three");
        world.singleton(&author.beacon(), &two, 100);
        world.singleton(&author.beacon(), &three, 101);
        assert_eq!(world.resolves(&author, version).metadata.deactivated, version == 2, "{value}");
    }
}

#[test]
fn trap_08_the_median_time_itself_is_in_time() {
    let (mut world, mut author) = (World::new(), Author::key(1));
    let two = author.note("two");
    world.singleton(&author.beacon(), &two, 100);
    world.resolves_with(&author, &json!({ "versionTime": date(mediantime(100)) }), 2);
    world.resolves_with(&author, &json!({ "versionTime": date(mediantime(100) - 1) }), 1);
}

#[test]
fn trap_09_many_signals_in_front_hide_none() {
    // What the caller filters is its business (C2). Here as many duplicates as there is room for on a page, and more.
    let (mut world, mut author) = (World::new(), Author::key(1));
    let (two, three) = (author.note("two"), author.note("three"));
    world.singleton(&author.beacon(), &two, 100);
    world.singleton(&author.beacon(), &three, 101);
    for height in 102..140 {
        world.announce(&author.beacon(), &two, height);
    }
    world.resolves(&author, 3);
    assert_eq!(steps(&world.resolve(&author, &json!({}))).len(), 40);
}

#[test]
fn trap_10_a_decliner_needs_its_proof() {
    let (mut world, author) = (World::new(), Author::with_beacon(1, BeaconKind::Smt, &address(9)));
    let mut other = Author::key(2);
    let update = other.note("two");
    world.smt(&address(9), &[(&author.did, None), (&other.did, Some(&update))], 100);
    world.resolves(&author, 1);
    world.proofs.remove(&author.did);
    world.fails(&author, ErrorCode::MissingUpdateData, FailureRule::SmtProofMissing);
}
