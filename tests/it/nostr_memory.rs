//! Several cohorts of the same identities, one after the other, each in new processes without any state, while the relay stores
//! everything.

use crate::nostr_support::{
    Program, Running, join,
    relay::{Recorder, Relay, publish},
    serve_on,
};
use btcr2_aggregation::protocol::nostr::DELETION_KIND;
use nostr_sdk::Event;
use serde_json::Value;

const MEMBERS: usize = 3;

fn begin(relay: &Relay) -> (Running, Vec<Program>) {
    let running = serve_on(&["--relay", &relay.url], MEMBERS, &[]);
    let place = ["--relay", relay.url.as_str()];
    let member = |number| join(&running, &format!("member {number}"), &place, &["--add-beacon"]);
    let members = (0..MEMBERS).map(member).collect();
    (running, members)
}

/// Waits for the end of the round. Every member is in this cohort only, and every refused message was about another one.
fn completes(mut running: Running, mut members: Vec<Program>) -> Value {
    let complete = running.service.event("signing-complete");
    assert_eq!(complete["path"], "key-path", "{complete}");
    let cohort_id = complete["cohortId"].clone();
    for member in &mut members {
        let complete = member.event("cohort-complete");
        assert_eq!(complete["cohortId"], cohort_id, "{complete}");
        assert_eq!(complete["included"], true, "{complete}");
    }
    running.service.succeeds();
    for program in members.iter_mut().chain([&mut running.service]) {
        for event in program.listen() {
            match event["event"].as_str().unwrap() {
                "cohort-joined" | "cohort-failed" => assert_eq!(event["cohortId"], cohort_id, "{event}"),
                "message-rejected" => {
                    // We are in no such cohort; or its advert was published again and is queued.
                    assert!(event["code"] == "WRONG_COHORT" || event["code"] == "WRONG_PHASE", "{event}");
                    assert_ne!(event["cohortId"], cohort_id, "{event}");
                }
                _ => {}
            }
        }
    }
    cohort_id
}

fn without_retractions(events: Vec<Event>) -> Vec<Event> {
    events.into_iter().filter(|event| event.kind.as_u16() != DELETION_KIND).collect()
}

#[test]
fn three_cohorts_complete_over_one_relay() {
    let relay = Relay::anywhere();
    let mut cohorts = Vec::new();
    for _ in 0..3 {
        let (running, members) = begin(&relay);
        let cohort_id = completes(running, members);
        assert!(!cohorts.contains(&cohort_id));
        cohorts.push(cohort_id);
    }
}

#[test]
fn three_cohorts_complete_over_relays_that_forget_nothing() {
    let mut known = Vec::new();
    let mut cohorts = Vec::new();
    for _ in 0..3 {
        let relay = Relay::anywhere();
        publish(&relay.url, &known);
        let recorder = Recorder::start(&relay.url);
        let (running, members) = begin(&relay);
        let cohort_id = completes(running, members);
        assert!(!cohorts.contains(&cohort_id));
        cohorts.push(cohort_id);
        // The relay sends its stored events again, so this is everything.
        known = without_retractions(recorder.round(cohorts.len() * MEMBERS));
    }
}

#[test]
fn the_history_of_an_old_cohort_does_not_affect_a_running_one() {
    let old = Relay::anywhere();
    let recorder = Recorder::start(&old.url);
    let (running, members) = begin(&old);
    let old_cohort = completes(running, members);
    let history = without_retractions(recorder.round(MEMBERS));

    // Not before every member has joined: within seconds after its round, an old cohort could still be mistaken for an open one.
    for during in ["keygen-complete", "data-distributed", "signing-started"] {
        let relay = Relay::anywhere();
        let (mut running, members) = begin(&relay);
        let cohort_id = running.service.event(during)["cohortId"].clone();
        publish(&relay.url, &history);
        assert_ne!(cohort_id, old_cohort);
        assert_eq!(completes(running, members), cohort_id);
    }
}
