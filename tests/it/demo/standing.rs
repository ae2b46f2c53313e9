//! `demo --standing`.

use serde_json::Value;

use super::{Run, last_line, run};
use crate::support::verify::text;

fn standing(arguments: &[&str]) -> Value {
    let run = run(&[&["demo", "--standing", "--json"], arguments].concat());
    assert_eq!(run.status, 0, "{arguments:?}: {}{}", run.stdout, run.stderr);
    last_line(&run)
}

fn announcements(report: &Value) -> Vec<(&str, u64, u64)> {
    let list = report["announcements"].as_array().unwrap();
    let each = list.iter().map(|one| {
        assert_eq!(one["verified"], serde_json::json!({ "consensus": true, "data": true }), "{one:#}");
        (text(&one["mode"]), one["updates"].as_u64().unwrap(), one["absent"].as_u64().unwrap())
    });
    each.collect()
}

#[test]
fn a_standing_cohort_announces_over_each_transport() {
    for (transport, beacon) in [("memory", "cas"), ("http", "smt"), ("nostr", "cas")] {
        let report = standing(&["--transport", transport, "--beacon", beacon, "--seed", "7"]);
        assert_eq!(announcements(&report), [("key", 5, 0); 3], "{transport}");
        assert_eq!(report["ok"], true);
    }
}

#[test]
fn many_dids_travel_in_parts() {
    for transport in ["memory", "nostr"] {
        let many = ["--participants", "4", "--dids", "150", "--updates", "140", "--announcements", "2"];
        let report = standing(&[&many[..], &["--beacon", "smt", "--transport", transport]].concat());
        assert_eq!(report["dids"], 600);
        let announced = announcements(&report);
        assert_eq!(announced.len(), 2, "{transport}");
        // A DID that an unconfirmed announcement has updated waits for the next one.
        assert_eq!(announced[0], ("key", 560, 0), "{transport}");
    }
}

#[test]
fn the_others_announce_without_a_seat_that_is_silent_or_refuses() {
    let report = standing(&["--participants", "6", "--absent", "1", "--refuse", "1", "--announcements", "2"]);
    let announced = announcements(&report);
    assert_eq!((announced[0].0, announced[1].0), ("fallback", "fallback"));
    assert_eq!(announced[1].2, 1);
    assert_eq!(report["failedNumbers"], 1);
}

#[test]
fn a_demo_that_cannot_be_is_refused() {
    for (arguments, part) in [
        (&["--absent", "5"][..], "silent"),
        (&["--updates", "3"], "updates"),
        (&["--participants", "1001"], "999"),
        (&["--decline", "1"], "cannot be used with"),
    ] {
        let Run { status, stderr, .. } = run(&[&["demo", "--standing"], arguments].concat());
        assert_eq!(status, 2, "{arguments:?}: {stderr}");
        assert!(stderr.contains(part), "{arguments:?}: {stderr}");
    }
    let Run { status, stderr, .. } = run(&["demo", "--absent", "1"]);
    assert_eq!(status, 2, "{stderr}");
    assert!(stderr.contains("--standing"), "{stderr}");
}
