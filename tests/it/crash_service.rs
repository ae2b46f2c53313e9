//! The service is killed (SIGKILL) after each single append to its journal and each single message, and started again. Every
//! time the cohort completes, with one transaction, and every member can prove its slot.
//!
//! `cargo test` tests a sample of the points. All of them, several hundred, take minutes:
//! `CRASH_POINTS=all cargo test --test it crash_service -- --nocapture` (which also prints how many there were);
//! `CRASH_ONLY="smt-key Given(17)"` repeats one.
#![cfg(unix)]

use std::{sync::Arc, time::Duration};

use crate::round_support::{
    MEMBERS, Over, PATIENCE, Point, Scenario,
    child::{Child, Task, report, task},
    matrix::{self, Outcome},
    round::{
        cohort, open_web, record, result, service_identity, start_member, start_service, transport_to, web_parts,
    },
    tap::{Crash, CrashingJournal, Sniper, Tapped},
    transcript::Transcript,
};
use crate::support::proxy::Proxy;
use btcr2_aggregation::{
    actors::{
        journal::{Journal, MemoryJournal},
        notice::{ParticipantNotice, ServiceNotice},
        runtime::Clock,
        state::{State, inboxes::StateInboxes, nonces::StateNonces},
        transport::{Transport, http::HttpServer, nostr::embedded::EmbeddedRelay},
    },
    protocol::id::CohortId,
};
use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;

/// The process that is killed; it does nothing when the tests are run.
#[test]
fn the_service_that_is_killed() {
    let Some(task) = task() else { return };
    actix_rt::System::new().block_on(serve(task));
}

async fn serve(task: Task) {
    let scenario = Scenario::named(&task.scenario);
    let state = State::open(&task.state).unwrap();
    let crash = Crash::at(task.crash);
    let journal = Arc::new(CrashingJournal { inner: Arc::new(state.journal()), crash: Arc::clone(&crash) });
    let (inner, welcome): (Arc<dyn Transport>, Box<dyn FnOnce()>) = match &task.place {
        Some(relay) => (transport_to(scenario.over, relay), Box::new(|| report(&json!({ "event": "serving" })))),
        None => {
            let (mut parts, now) = (web_parts(), Clock::system().now());
            parts.nonces = Arc::new(StateNonces::load(&state, now).await.unwrap());
            let ttl = parts.config.inbox_ttl;
            parts.inboxes = Arc::new(StateInboxes::load(&state, now, ttl).await.unwrap());
            let server = HttpServer::start(parts);
            let (address, open) = open_web(&server);
            let welcome = move || {
                open();
                report(&json!({ "event": "serving", "address": address }));
            };
            (Arc::new(server), Box::new(welcome))
        }
    };
    let first = journal.streams().await.unwrap().is_empty() && journal.archived().await.unwrap().is_empty();
    let transport = Arc::new(Tapped { inner, taps: vec![crash] });
    let (service, mut running) = start_service(transport, journal).await;
    welcome();
    if first {
        // The service waits for the silent member no longer than it takes, and never gives up another one.
        let nonces = if scenario.fallback { Duration::from_millis(300) } else { PATIENCE };
        service.open(cohort(&scenario, MEMBERS, nonces, PATIENCE)).await.unwrap();
    }
    while let Ok(step) = running.notices.recv().await {
        report(&json!({ "event": "step", "step": &*step }));
        match &*step {
            ServiceNotice::SigningComplete { cohort_id, result: complete, .. } => {
                report(&result(cohort_id, complete));
                service.cohort(cohort_id).acknowledge().await.unwrap();
                until_archived(&state, cohort_id).await;
                report(&json!({ "event": "archived" }));
            }
            ServiceNotice::CohortFailed { reason, .. } => panic!("the cohort failed: {reason}"),
            _ => {}
        }
    }
}

async fn until_archived(state: &State, cohort_id: &CohortId) {
    let name = format!("cohort/{cohort_id}");
    while !state.journal().archived().await.unwrap().iter().any(|archived| archived.stream.as_str() == name) {
        tokio::task::yield_now().await;
    }
}

/// A round in which the service is killed at `crash`, and started again once.
fn round(scenario: &Scenario, crash: Option<Point>) -> Outcome {
    actix_rt::System::new().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let (relay, proxy) = match scenario.over {
            Over::Nostr => (Some(EmbeddedRelay::start(([127, 0, 0, 1], 0).into()).await.unwrap()), None),
            // Members know one address, whatever port the service has in its next run.
            Over::Http => (None, Some(Proxy::to(([127, 0, 0, 1], 1).into()))),
        };
        let place = relay.as_ref().map(|relay| relay.url().to_owned());
        let members_place = place.clone().or_else(|| proxy.as_ref().map(Proxy::url)).unwrap();
        let (sniper, transcript) =
            (Sniper::new(service_identity().did().clone(), crash), Arc::new(Transcript::default()));
        let (sender, mut steps) = unbounded_channel();
        for member in 0..MEMBERS {
            let inner = transport_to(scenario.over, &members_place);
            let transport = Arc::new(Tapped { inner, taps: vec![sniper.clone(), transcript.clone()] });
            let mut running = start_member(scenario, member, transport, Arc::new(MemoryJournal::new())).await;
            let sender = sender.clone();
            actix_rt::spawn(async move {
                while let Ok(step) = running.notices.recv().await {
                    let _ = sender.send(step);
                }
            });
        }
        let state = directory.path().join("state");
        let mut task = Task { scenario: scenario.name.to_owned(), state, place, crash };
        if matches!(crash, Some(Point::Arrived(_))) {
            task.crash = None;
        }
        let test = "crash_service::the_service_that_is_killed";
        let mut child = Child::start(test, &task);
        sniper.aim(child.killer());
        let honest = MEMBERS - usize::from(scenario.fallback);
        let mut outcome = Outcome::default();
        let (mut over, mut archived, mut serving) = (0, false, false);
        loop {
            let everybody_knows = archived && over >= honest;
            if outcome.is_complete(scenario) && (everybody_knows || outcome.killed && serving) {
                break;
            }
            tokio::select! {
                line = child.line() => match line {
                    Some(line) => match line["event"].as_str().unwrap() {
                        "step" => outcome.steps.push(line["step"].clone()),
                        "serving" => {
                            serving = true;
                            if let Some(proxy) = &proxy {
                                proxy.retarget(line["address"].as_str().unwrap().parse().unwrap());
                            }
                        }
                        "result" => outcome.results.push(line),
                        "archived" => archived = true,
                        "point" => outcome.points.push(serde_json::from_value(line["point"].clone()).unwrap()),
                        _ => {}
                    },
                    None => {
                        child.assert_killed();
                        outcome.steps.push(json!("killed"));
                        assert!(!outcome.killed && crash.is_some(), "killed once");
                        (outcome.killed, serving, task.crash) = (true, false, None);
                        child = Child::start(test, &task);
                    }
                },
                Some(step) = steps.recv() => match &*step {
                    ParticipantNotice::CohortOver { .. } => over += 1,
                    ParticipantNotice::CohortFailed { did, reason, .. } => {
                        // The silent member is notified of the end, too.
                        assert!(scenario.fallback, "{did}: {reason}");
                    }
                    step => if let Some(record) = record(step) {
                        let did = record["did"].as_str().unwrap().to_owned();
                        let again: Option<Value> = outcome.records.insert(did, record);
                        assert!(again.is_none(), "a cohort completes once");
                    },
                },
            }
        }
        outcome.points.extend((1..=sniper.seen()).map(Point::Arrived));
        outcome.check(scenario, Some(if scenario.fallback { "script-path" } else { "key-path" }));
        transcript.check();
        outcome
    })
}

#[test]
fn a_service_that_is_killed_anywhere_completes_its_cohort() {
    if task().is_none() {
        matrix::run("the service", round);
    }
}
