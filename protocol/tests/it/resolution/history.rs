//! What is recorded of a resolution.

use btcr2_aggregation_protocol::resolution::{BeaconKind, Event, Resolution};
use serde_json::{Value, json};

use super::world::{Author, CHAIN, STORE, World, address, mediantime, time};

fn recorded(resolution: &Resolution, event: &str) -> Vec<Value> {
    let events = resolution.history.iter().map(|event| serde_json::to_value(event).unwrap());
    events.filter(|recorded| recorded["event"] == event).collect()
}

#[test]
fn a_history_tells_all_that_happened() {
    let (mut world, mut author) = (World::new(), Author::with_beacon(1, BeaconKind::Cas, &address(9)));
    let two = author.add_beacon(BeaconKind::Smt, &address(8));
    let (three, other) = (author.note("three"), Author::key(2));
    world.cas(&address(9), &[(&author.did, Some(&two))], 100);
    world.cas(&address(9), &[(&other.did, None)], 120);
    world.smt(&address(8), &[(&author.did, Some(&three))], 110);
    world.smt(&address(8), &[(&author.did, None)], 50);
    world.smt(&address(8), &[(&author.did, None)], 111);
    world.signal(&address(8), [1; 32], 999);
    // The announcements come from the store.
    for announcement in std::mem::take(&mut world.announcements) {
        world.stored(&announcement);
    }
    let resolution = world.resolve(&author, &json!({}));
    assert_eq!(resolution.outcome.as_ref().unwrap().metadata.version_id, 3);

    let names: Vec<Value> =
        resolution.history.iter().map(|event| serde_json::to_value(event).unwrap()["event"].clone()).collect();
    let expected = [
        "initial-document",
        "scanned",
        "scanned",
        "scanned",
        "scanned",
        "signal",
        "signal",
        "applied",
        "scanned",
        "signal",
        "signal",
        "applied",
    ];
    assert_eq!(names, expected);

    assert_eq!(
        recorded(&resolution, "initial-document"),
        [json!({ "event": "initial-document", "source": "sidecar" })]
    );
    let last_scan = recorded(&resolution, "scanned").pop().unwrap();
    assert_eq!(
        (&last_scan["round"], &last_scan["signals"], &last_scan["source"]),
        (&json!(2), &json!(2), &json!(CHAIN))
    );
    assert_eq!(
        last_scan["beacon"],
        json!({ "service": "#beacon-1", "type": "SMTBeacon", "address": address(8).to_string() })
    );
    let reasons: Vec<_> = last_scan["ignored"]
        .as_array()
        .unwrap()
        .iter()
        .map(|signal| {
            (
                signal["reason"].as_str().unwrap(),
                signal["height"].as_u64().unwrap(),
                signal["confirmations"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(reasons, [("below-height", 50, 951), ("too-few-confirmations", 999, 2)]);

    let signals = recorded(&resolution, "signal");
    assert_eq!(signals[0]["finding"], json!({ "kind": "update", "hash": two.hash(), "version": 2 }));
    assert_eq!((&signals[0]["announcement"], &signals[0]["update"]), (&json!(STORE), &json!("sidecar")));
    assert_eq!(
        signals[0]["signal"]["block"],
        json!({
            "height": 100, "time": time(100), "mediantime": mediantime(100), "confirmations": 901,
        })
    );
    assert_eq!(signals[1]["finding"], json!({ "kind": "no-entry" }));
    assert_eq!(signals[1].get("update"), None);
    assert_eq!((&signals[2]["announcement"], &signals[2]["finding"]["version"]), (&json!("sidecar"), &json!(3)));

    let applied = recorded(&resolution, "applied");
    assert_eq!((&applied[1]["version"], &applied[1]["update"]), (&json!(3), &json!(three.hash())));
    assert_eq!(applied[1]["signal"]["beacon"]["address"], json!(address(8).to_string()));
}

#[test]
fn a_failure_keeps_its_history() {
    let (mut world, author) = (World::new(), Author::key(1));
    world.signal(&author.beacon(), [7; 32], 100);
    let resolution = world.resolve(&author, &json!({}));
    assert!(resolution.outcome.is_err());
    let signal = recorded(&resolution, "signal").remove(0);
    assert_eq!(signal["finding"]["missing"]["kind"], "update");
    assert_eq!(signal["signal"]["bytes"], json!("07".repeat(32)));
    assert!(matches!(resolution.history[0], Event::InitialDocument { .. }));
    let result = serde_json::to_value(resolution.result()).unwrap();
    assert_eq!(
        result["didResolutionMetadata"]["error"]["type"],
        "https://btcr2.dev/context/v1#MISSING_UPDATE_DATA"
    );
    assert_eq!(result["didResolutionMetadata"].get("contentType"), None);
}
