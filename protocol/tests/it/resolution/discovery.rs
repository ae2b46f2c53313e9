//! Which addresses are scanned, and which signals count (rules and C4, step 3a).

use btcr2_aggregation_protocol::resolution::{
    BeaconKind, ErrorCode, Event, FailureRule, Ignored, Need, Next, NotNeeded,
};
use serde_json::{Value, json};

use super::world::{Author, CHAIN, World, address, fails, scanned};

fn ignored(world: &World, author: &Author) -> Vec<Ignored> {
    let resolution = world.resolve(author, &json!({}));
    let of = |event: &Event| match event {
        Event::Scanned { ignored, .. } => ignored.iter().map(|signal| signal.reason).collect(),
        _ => Vec::new(),
    };
    resolution.history.iter().flat_map(of).collect()
}

#[test]
fn a_signal_needs_its_confirmations_exactly() {
    // Block 995 of 1000 has 6.
    for (height, version) in [(995, 2), (996, 1)] {
        let (mut world, mut author) = (World::new(), Author::key(1));
        let two = author.note("two");
        world.singleton(&author.beacon(), &two, height);
        world.resolves(&author, version);
    }
}

#[test]
fn a_signal_of_too_few_confirmations_needs_no_data() {
    // it is not there at all.
    let (mut world, author) = (World::new(), Author::key(1));
    world.signal(&author.beacon(), [7; 32], 996);
    world.resolves(&author, 1);
    assert_eq!(ignored(&world, &author), [Ignored::TooFewConfirmations]);
}

#[test]
fn an_unconfirmed_signal_is_not_there() {
    // C4, 3a: no confirmations, and then no block either.
    let (mut world, author) = (World::new(), Author::key(1));
    world.signal(&author.beacon(), [7; 32], 0).height = None;
    world.resolves(&author, 1);
    assert_eq!(ignored(&world, &author), [Ignored::TooFewConfirmations]);
}

#[test]
fn a_confirmed_signal_without_its_block_is_an_error() {
    // C4, 3a.
    for without in 0..3 {
        let (mut world, author) = (World::new(), Author::key(1));
        let signal = world.signal(&author.beacon(), [7; 32], 100);
        signal.confirmations = Some(6);
        match without {
            0 => signal.height = None,
            1 => signal.time = None,
            _ => signal.mediantime = None,
        }
        let txid = signal.txid.to_string();
        let error = world.fails(&author, ErrorCode::InvalidDidUpdate, None);
        assert!(error.to_string().contains(&txid), "{error}");
        assert!(error.to_string().contains(&author.beacon().to_string()), "{error}");
    }
}

#[test]
fn two_services_on_one_address_are_one() {
    // R-3 and C8: the first in the document's order determines the type.
    let (mut world, mut author) = (
        World::new(),
        Author::external(1, |genesis| {
            let services = genesis["service"].as_array_mut().unwrap();
            for (id, kind) in [("#a", "SingletonBeacon"), ("#b", "SMTBeacon")] {
                let endpoint = format!("bitcoin:{}?label=x", address(9));
                services.push(json!({ "id": id, "type": kind, "serviceEndpoint": endpoint }));
            }
        }),
    );
    let two = author.note("two");
    world.singleton(&address(9), &two, 100);
    world.resolves(&author, 2);
    let resolution = world.resolve(&author, &json!({}));
    assert_eq!(scanned(&resolution).iter().filter(|(_, scanned)| *scanned == address(9)).count(), 1);
}

#[test]
fn every_address_is_scanned_once() {
    // also when the document lists it again, under another id.
    let (mut world, mut author) = (World::new(), Author::key(1));
    let two = author.add_beacon(BeaconKind::Singleton, &address(9));
    let three = author.add_beacon(BeaconKind::Smt, &address(9));
    for (update, height) in [(two, 100), (three, 101)] {
        world.singleton(&author.beacon(), &update, height);
    }
    world.resolves(&author, 3);
    let scanned = scanned(&world.resolve(&author, &json!({})));
    assert_eq!(scanned.iter().map(|(round, _)| *round).collect::<Vec<_>>(), [1, 1, 1, 2]);
}

#[test]
fn a_signal_below_the_applied_block_is_ignored() {
    // at a beacon that version 2 adds. What it commits to is not asked for.
    let (mut world, mut author) = (World::new(), Author::key(1));
    let two = author.add_beacon(BeaconKind::Singleton, &address(9));
    world.singleton(&author.beacon(), &two, 100);
    world.signal(&address(9), [7; 32], 99);
    world.resolves(&author, 2);
    assert_eq!(ignored(&world, &author), [Ignored::BelowHeight]);
    // Equal height counts.
    world.signal(&address(9), [7; 32], 100);
    world.fails(&author, ErrorCode::MissingUpdateData, FailureRule::UpdateMissing);
}

#[test]
fn every_signal_of_a_scanned_address_needs_its_data() {
    // also one of a beacon that is removed before.
    let (mut world, mut author) = (World::new(), Author::with_beacon(1, BeaconKind::Singleton, &address(9)));
    let two = author.remove_beacon(&address(9));
    world.singleton(&author.beacon(), &two, 100);
    world.resolves(&author, 2);
    world.signal(&address(9), [7; 32], 200);
    let error = world.fails(&author, ErrorCode::MissingUpdateData, FailureRule::UpdateMissing);
    assert!(error.to_string().contains(&address(9).to_string()), "{error}");
}

#[test]
fn rounds_of_discovery_are_limited_on_request() {
    // C1.
    let (mut world, mut author) = (World::new(), Author::key(1));
    let mut at = author.beacon();
    for seed in 9..12 {
        let update = author.add_beacon(BeaconKind::Singleton, &address(seed));
        world.singleton(&at, &update, u32::from(seed) * 10);
        at = address(seed);
    }
    world.resolves_with(&author, &json!({ "maxDiscoveryRounds": 4 }), 4);
    let error = fails(&world.resolve(&author, &json!({ "maxDiscoveryRounds": 3 })), ErrorCode::InternalError, None);
    assert!(error.to_string().contains("3 rounds"), "{error}");
}

#[test]
fn a_service_without_an_address_of_the_network_is_left_out() {
    let endpoints = [
        json!("bitcoin:nowhere"),
        json!("bitcoin:1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2"),
        json!("bitcoin:bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"),
        json!("https://example.org"),
        json!({ "uri": "bitcoin:x" }),
    ];
    let author = Author::external(1, |genesis| {
        let service = |(index, endpoint): (usize, &Value)| json!({ "id": format!("#{index}"), "type": "CASBeacon", "serviceEndpoint": endpoint });
        genesis["service"] = endpoints.iter().enumerate().map(service).collect();
        let more = json!({ "id": "#x", "type": ["SingletonBeacon"], "serviceEndpoint": format!("bitcoin:{}", address(9)) });
        genesis["service"].as_array_mut().unwrap().push(more);
    });
    let resolution = World::new().resolve(&author, &json!({}));
    assert!(resolution.outcome.is_ok());
    let unusable = resolution.history.iter().filter(|event| matches!(event, Event::Unusable { .. })).count();
    assert_eq!((unusable, scanned(&resolution).len()), (endpoints.len(), 0));
    // Each once, also one that the last update adds.
    let (mut world, mut author) = (World::new(), Author::key(1));
    let service = json!({ "id": "#x", "type": "SMTBeacon", "serviceEndpoint": "bitcoin:nowhere" });
    let two = author.update(json!([{ "op": "add", "path": "/service/-", "value": service }]));
    let three = author.note("three");
    world.singleton(&author.beacon(), &two, 100);
    world.singleton(&author.beacon(), &three, 101);
    let history = world.resolve(&author, &json!({})).history;
    assert_eq!(history.iter().filter(|event| matches!(event, Event::Unusable { .. })).count(), 1);
}

#[test]
fn an_address_in_capitals_is_the_same_address() {
    let (mut world, mut author) = (
        World::new(),
        Author::external(1, |genesis| {
            let endpoint = format!("bitcoin:{}", address(9).to_string().to_uppercase());
            let service = json!({ "id": "#a", "type": "SingletonBeacon", "serviceEndpoint": endpoint });
            genesis["service"].as_array_mut().unwrap().push(service);
        }),
    );
    let two = author.note("two");
    world.singleton(&address(9), &two, 100);
    world.resolves(&author, 2);
}

#[test]
fn the_order_of_the_chain_is_not_the_callers_to_say() {
    // Two signals of one address whose data is missing: the lower block is the first by the rules.
    let (mut world, author) = (World::new(), Author::key(1));
    world.signal(&author.beacon(), [8; 32], 200);
    world.signal(&author.beacon(), [7; 32], 100);
    let error = world.fails(&author, ErrorCode::MissingUpdateData, FailureRule::UpdateMissing);
    assert!(error.to_string().contains("block 100"), "{error}");
}

#[test]
fn only_what_is_needed_is_accepted() {
    let (world, author) = (World::new(), Author::key(1));
    let mut resolver = world.resolver(&author, &json!({}));
    assert_eq!(resolver.provide_signals(&address(9), Vec::new(), CHAIN), Err(NotNeeded));
    let Next::Needs(needs) = resolver.next() else { panic!("needs signals") };
    assert_eq!(needs.len(), 3);
    let Need::Signals { beacon, round: 1 } = &needs[0] else { panic!("{needs:?}") };
    assert_eq!(resolver.provide_signals(&beacon.address, Vec::new(), CHAIN), Ok(()));
    assert_eq!(resolver.provide_signals(&beacon.address, Vec::new(), CHAIN), Err(NotNeeded));
    assert!(resolver.into_resolution().is_err(), "two are left");
}

#[test]
fn a_chain_that_breaks_off_gives_no_partial_answer() {
    // C2 and C6.
    let (world, author) = (World::new(), Author::key(1));
    let mut resolver = world.resolver(&author, &json!({}));
    resolver.give_up("the server answers 404 for /txs/chain");
    let Ok(resolution) = resolver.into_resolution() else { panic!("it is finished") };
    let error = fails(&resolution, ErrorCode::InternalError, None);
    assert!(error.to_string().contains("404"), "{error}");
}
