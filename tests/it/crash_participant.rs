//! One member is killed (SIGKILL) after each single append to its journal and each single message, and started again with its
//! state directory. Every time the cohort completes, by the key path or by the fallback; the member can prove its slot; and no
//! nonce was used twice in all messages of all runs.
//!
//! As in `crash_service`, `CRASH_POINTS=all` tests all points, and `CRASH_ONLY="smt-key Given(2)"` one.
#![cfg(unix)]

use std::{sync::Arc, time::Duration};

use crate::round_support::{
    MEMBERS, PATIENCE, Point, Scenario,
    child::{Child, Task, report, task},
    matrix::{self, Outcome},
    round::{Door, cohort, member_identity, open_door, record, result, start_member, start_service, transport_to},
    tap::{Crash, CrashingJournal, Sniper, Tapped},
    transcript::Transcript,
};
use btcr2_aggregation::actors::{
    journal::MemoryJournal,
    notice::{ParticipantNotice, ServiceNotice},
    state::State,
};
use serde_json::json;
use tokio::sync::mpsc::unbounded_channel;

/// The member that is killed.
const VICTIM: usize = 0;

/// The process that is killed; it does nothing when the tests are run.
#[test]
fn the_member_that_is_killed() {
    let Some(task) = task() else { return };
    actix_rt::System::new().block_on(join(task));
}

async fn join(task: Task) {
    let scenario = Scenario::named(&task.scenario);
    let state = State::open(&task.state).unwrap();
    let crash = Crash::at(task.crash);
    let journal = Arc::new(CrashingJournal { inner: Arc::new(state.journal()), crash: Arc::clone(&crash) });
    let inner = transport_to(scenario.over, &task.place.unwrap());
    let transport = Arc::new(Tapped { inner, taps: vec![crash] });
    let mut running = start_member(&scenario, VICTIM, transport, journal).await;
    while let Ok(step) = running.notices.recv().await {
        report(&json!({ "event": "step", "step": &*step }));
        match &*step {
            ParticipantNotice::CohortOver { .. } => report(&json!({ "event": "over" })),
            ParticipantNotice::CohortFailed { reason, .. } => panic!("the session failed: {reason}"),
            step => {
                if let Some(record) = record(step) {
                    report(&record);
                }
            }
        }
    }
}

/// A round in which the member is killed at `crash`, and started again once.
fn round(scenario: &Scenario, crash: Option<Point>) -> Outcome {
    actix_rt::System::new().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let victim = member_identity(VICTIM).did().clone();
        let (sniper, transcript) = (Sniper::new(victim.clone(), crash), Arc::new(Transcript::default()));
        let Door { place, transport: inner, relay } = open_door(scenario.over).await;
        let transport = Arc::new(Tapped { inner, taps: vec![sniper.clone(), transcript.clone()] });
        let (service, mut running) = start_service(transport, Arc::new(MemoryJournal::new())).await;
        // A member that has lost its nonce cannot send another one, so the service does not wait for it long.
        let signs = if crash.is_some() { Duration::from_secs(2) } else { PATIENCE };
        let nonces = if scenario.fallback { Duration::from_millis(300) } else { signs };
        service.open(cohort(scenario, MEMBERS, nonces, signs)).await.unwrap();
        let (sender, mut steps) = unbounded_channel();
        for member in (0..MEMBERS).filter(|member| *member != VICTIM) {
            let transport =
                Arc::new(Tapped { inner: transport_to(scenario.over, &place), taps: vec![transcript.clone()] });
            let mut running = start_member(scenario, member, transport, Arc::new(MemoryJournal::new())).await;
            let sender = sender.clone();
            actix_rt::spawn(async move {
                while let Ok(step) = running.notices.recv().await {
                    let _ = sender.send(step);
                }
            });
        }
        let state = directory.path().join("state");
        let mut task = Task { scenario: scenario.name.to_owned(), state, place: Some(place), crash };
        if matches!(crash, Some(Point::Arrived(_))) {
            task.crash = None;
        }
        let test = "crash_participant::the_member_that_is_killed";
        let mut child = Child::start(test, &task);
        sniper.aim(child.killer());
        let mut outcome = Outcome::default();
        let mut over = false;
        while !outcome.is_complete(scenario) || !(over || outcome.killed) {
            tokio::select! {
                line = child.line() => match line {
                    Some(line) => match line["event"].as_str().unwrap() {
                        "step" => outcome.steps.push(line["step"].clone()),
                        // Reported again if it was killed before the report was stored.
                        "record" => {
                            let again = outcome.records.insert(victim.to_string(), line.clone());
                            assert!(again.is_none_or(|before| before == line), "two outcomes for one member");
                        }
                        "over" => over = true,
                        "point" => outcome.points.push(serde_json::from_value(line["point"].clone()).unwrap()),
                        _ => {}
                    },
                    None => {
                        child.assert_killed();
                        outcome.steps.push(json!("killed"));
                        assert!(!outcome.killed && crash.is_some(), "killed once");
                        (outcome.killed, task.crash) = (true, None);
                        child = Child::start(test, &task);
                    }
                },
                Ok(step) = running.notices.recv() => match &*step {
                    ServiceNotice::SigningComplete { cohort_id, result: complete, .. } => {
                        outcome.results.push(result(cohort_id, complete));
                    }
                    ServiceNotice::CohortFailed { reason, .. } => panic!("the cohort failed: {reason}"),
                    _ => {}
                },
                Some(step) = steps.recv() => {
                    if let Some(record) = record(&step) {
                        outcome.records.insert(record["did"].as_str().unwrap().to_owned(), record);
                    }
                }
            }
        }
        outcome.points.extend((1..=sniper.seen()).map(Point::Arrived));
        let path = match (scenario.fallback, crash) {
            (true, _) => Some("script-path"),
            (false, None) => Some("key-path"),
            (false, Some(_)) => None,
        };
        outcome.check(scenario, path);
        transcript.check();
        assert!(transcript.nonces() >= MEMBERS - 2, "{} nonces were seen", transcript.nonces());
        drop(relay);
        outcome
    })
}

#[test]
fn a_member_killed_anywhere_completes_and_reuses_no_nonce() {
    if task().is_none() {
        matrix::run("a member", round);
    }
}
