//! The programs over Nostr as people and scripts use them: `serve` with an embedded relay, and members in their own
//! processes, on the relay or on HTTP.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
};

use crate::nostr_support::{join, serve};
use serde_json::Value;

/// Five members of whom one declines; whether all store what proves it.
fn whole_cohort(beacon: &str) {
    let mut running = serve(5, &["--beacon", beacon]);
    assert_eq!(running.url, None, "over a relay alone nothing else is listened on");
    let relay = running.relay.clone();
    let mut members: Vec<_> = (0..5)
        .map(|number| {
            let intent = if number == 4 { "--decline" } else { "--add-beacon" };
            join(&running, &format!("member {number}"), &["--relay", &relay], &[intent])
        })
        .collect();
    let complete = running.service.event("signing-complete");
    assert_eq!(complete["path"], "key-path", "{complete}");
    let result = running.service.event("result");
    assert_eq!(result["ok"], true, "{result}");
    for (number, member) in members.iter_mut().enumerate() {
        assert_eq!(member.event("cohort-complete")["included"], number != 4);
    }
    // The service has ended, and its relay with it: members stay only for the fallback, and exit with 0.
    running.service.succeeds();
    for member in &mut members {
        assert_eq!(member.event("result")["ok"], true);
        member.succeeds();
    }
}

#[test]
fn five_processes_sign_a_cas_cohort_over_the_embedded_relay() {
    whole_cohort("cas");
}

#[test]
fn five_processes_sign_an_smt_cohort_over_the_embedded_relay() {
    whole_cohort("smt");
}

#[test]
fn a_member_killed_before_it_signs_leads_to_the_fallback() {
    let mut running = serve(5, &["--signing-timeout", "3s"]);
    let relay = running.relay.clone();
    let place = ["--relay", relay.as_str()];
    let mut victim = join(&running, "victim", &place, &["--add-beacon"]);
    let members: Vec<_> =
        (0..3).map(|number| join(&running, &format!("member {number}"), &place, &["--add-beacon"])).collect();
    for _ in 0..4 {
        running.service.event("participant-accepted");
    }
    // The victim sleeps until the last member waits for its update; that one then sleeps until the victim has approved the
    // data and was killed. So signing starts without it, however fast the processes are.
    victim.signal("STOP");
    let mut last = join(&running, "last", &place, &["--add-beacon"]);
    last.event("update-submitted");
    last.signal("STOP");
    victim.signal("CONT");
    let name = victim.event("cohort-ready")["did"].clone();
    while running.service.event("validation-received")["participant"] != name {}
    victim.kill();
    last.signal("CONT");
    let fallback = running.service.event("fallback-started");
    assert_eq!(fallback["holdouts"], serde_json::json!([name]), "{fallback}");
    let complete = running.service.event("signing-complete");
    assert_eq!(complete["path"], "script-path", "{complete}");
    running.service.succeeds();
    drop(members);
}

#[test]
fn members_on_the_relay_and_on_http_are_in_one_cohort() {
    let mut running = serve(4, &["--listen", "127.0.0.1:0"]);
    let (relay, url) = (running.relay.clone(), running.url.clone().unwrap());
    let places = BTreeMap::from([
        ("http one", ["--service", &url]),
        ("http two", ["--service", &url]),
        ("nostr one", ["--relay", &relay]),
        ("nostr two", ["--relay", &relay]),
    ]);
    let mut members: Vec<_> =
        places.iter().map(|(name, place)| join(&running, name, place, &["--add-beacon"])).collect();
    let complete = running.service.event("signing-complete");
    assert_eq!(complete["path"], "key-path", "{complete}");
    for member in &mut members {
        assert_eq!(member.event("cohort-complete")["included"], true);
    }
    running.service.succeeds();
}

fn refused(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_btcr2-aggregation"))
        .args(arguments)
        .env("TEST_SECRET", "11".repeat(32))
        .args(["--secret-env", "TEST_SECRET"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?} is to be refused");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn invalid_calls_are_refused_with_a_reason() {
    assert!(refused(&["join", "--add-beacon"]).contains("--relay URL"));
    assert!(refused(&["join", "--add-beacon", "--relay", ""]).contains("no relays"));
    assert!(refused(&["join", "--add-beacon", "--relay", "http://example.org"]).contains("wss://"));
    assert!(
        refused(&["join", "--add-beacon", "--service", "http://localhost:1", "--look-back", "1m"])
            .contains("--relay")
    );
    let large = ["serve", "--chain", "offline", "--embedded-relay", "127.0.0.1:0", "--min-participants", "1000"];
    let problem = refused(&large);
    assert!(problem.contains("1000 members") && problem.contains("SMT"), "{problem}");
}

#[test]
fn the_demo_runs_over_a_relay_of_its_own() {
    for path in ["key", "fallback"] {
        let arguments = ["demo", "--transport", "nostr", "--participants", "4", "--path", path, "--json"];
        let output = Command::new(env!("CARGO_BIN_EXE_btcr2-aggregation")).args(arguments).output().unwrap();
        let report = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{report} {}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_str(report.lines().last().unwrap()).unwrap();
        assert_eq!(report["ok"], true);
    }
}

fn check(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_btcr2-aggregation"))
        .args(["relay", "check", "--timeout", "5s"])
        .args(arguments)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_relay_is_checked_for_what_a_cohort_needs() {
    let running = serve(2, &[]);
    let (status, report) = check(&[&running.relay, "--json"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(status, Some(0), "{report:#}");
    let probes = report["probes"].as_array().unwrap();
    assert!(probes.iter().any(|probe| probe["kind"] == 1 && probe["stored"] == true), "{report:#}");
    assert!(
        probes.iter().any(|probe| probe["kind"] == 1059 && probe["bytes"].as_u64() > Some(80_000)),
        "{report:#}"
    );
    assert_eq!(report["forgets"], true, "{report:#}");
    assert_eq!(
        (&report["overDelivers"], &report["separates"]),
        (&Value::Bool(false), &Value::Bool(true)),
        "{report:#}"
    );
    let sizes: Vec<_> = probes.iter().map(|probe| probe["bytes"].as_u64().unwrap()).collect();
    assert!(sizes[0] < 2_000 && sizes[1] < 2_000, "the small ones come first: {sizes:?}");
    let (status, table) = check(&[&running.relay]);
    assert_eq!(status, Some(0));
    assert!(table.ends_with("\nfit for cohorts\n"), "{table}");

    // A port on which no program listens.
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (status, table) = check(&[&format!("ws://{unused}")]);
    assert_eq!(status, Some(1));
    assert!(table.contains("NOT connected"), "{table}");
    assert_eq!(check(&["http://example.org"]).0, Some(2));
}
