//! Live events, and what a reader gets that comes again.

use serde_json::json;

use super::{Controlled, id};

#[test]
fn a_reader_resumes_after_the_last_event_it_has_seen() {
    let api = Controlled::start("control-events", &[]);
    let mut first = api.events(&[]);
    let create = ["cohort", "create", "--set", "min-participants=2"];
    let one = id(&api.ctl(&create));
    let seen = first.event("cohort-advertised");
    assert_eq!(seen["cohortId"], json!(one));
    let last = seen["id"].as_str().unwrap().to_owned();
    drop(first);
    let two = id(&api.ctl(&create));
    let mut again = api.events(&["--after", &last]);
    let change = again.next().unwrap();
    assert_eq!((&change["event"], &change["change"]["action"]), (&json!("changed"), &json!("cohort.create")));
    assert_eq!(again.event("cohort-advertised")["cohortId"], json!(two));
    // One of another run learns that events are missing.
    let mut lost = api.events(&["--after", "0-1"]);
    let gap = lost.next().unwrap();
    assert_eq!((&gap["event"], &gap["lost"]), (&json!("gap"), &json!(null)));
    assert_eq!(lost.event("cohort-advertised")["cohortId"], json!(one));
}

#[test]
fn events_end_with_the_kind_that_is_waited_for() {
    let api = Controlled::start("control-until", &[]);
    let mut waiting = api.events(&["--until", "cohort-failed"]);
    let cohort_id = id(&api.ctl(&["cohort", "create", "--set", "min-participants=2"]));
    waiting.event("cohort-advertised");
    api.ctl(&["cohort", "cancel", &cohort_id]);
    assert_eq!(waiting.event("cohort-failed")["code"], "CANCELLED");
    assert!(waiting.next().is_none());
    assert!(waiting.child.wait().unwrap().success());
}
