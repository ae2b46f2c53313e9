//! Coordinator rotation: a second host takes over a cohort, with the service's identity and its state directory (a copy, or a
//! cohort exported and imported), in every phase. Members on HTTP are started again with the new address and their own
//! state; members on relays notice nothing.

use std::path::Path;

use crate::nostr_support::relay::Relay;
use crate::support::{
    Program, Service, copy, did_of, directory, identity, join, path,
    proxy::Proxy,
    run,
    verify::{participant_result, service_result, text},
};
use serde_json::Value;

/// How the second host gets the cohort.
#[derive(Clone, Copy, PartialEq)]
enum Move {
    Copied,
    Exported,
}

/// Moves the state of a service that has stopped to another host: its directory there.
fn moved(directory: &Path, how: Move, cohort: &str) -> String {
    let (first, second) = (path(directory, "first"), path(directory, "second"));
    match how {
        Move::Copied => copy(&first, &second),
        Move::Exported => {
            let document = path(directory, "cohort.json");
            run(&["state", "export", cohort, "--forget", "--out", &document, "--state", &first]).succeeded();
            run(&["state", "import", &document, "--state", &second]).succeeded();
            // It must not continue in two places.
            let left = run(&["state", "list", "--json", "--state", &first]).succeeded().stdout;
            assert_eq!(left.trim(), "[]");
        }
    }
    second
}

/// Three members over HTTP, two of whom the fallback needs. The first receives nothing after a message that contains `deaf`,
/// so that the first host waits for it in that phase, however fast the others are; the host is stopped at `event`.
struct OverHttp {
    name: &'static str,
    deaf: &'static str,
    event: &'static str,
    phase: &'static str,
    path: &'static str,
    how: Move,
}

fn over_http(case: &OverHttp) {
    let directory = directory(&format!("takeover-{}", case.name));
    // A member that was asked for a nonce and starts again has lost it, so signing ends in the fallback. With its third member
    // deaf, so does signing at the first host. No other phase times out.
    let timeout = if case.path == "script-path" { "4s" } else { "5m" };
    // The fallback waits for the deaf member only where it needs all of them.
    let threshold = if case.event == "fallback-started" { "3" } else { "2" };
    let arguments = ["--fallback-threshold", threshold, "--signing-timeout", timeout];
    let files: Vec<String> = (0..3).map(|index| identity(&directory, &format!("member-{index}"))).collect();
    let mut first =
        Service::once(&directory, 3, &[&arguments[..], &["--state", &path(&directory, "first")]].concat());
    let proxy = Proxy::deaf_behind(first.address(), case.deaf);
    let start = |url: &str, index: usize| {
        let (state, did) = (path(&directory, &format!("kept-{index}")), did_of(&path(&directory, "service")));
        join(url, &files[index], &["--add-beacon", "--state", &state, "--service-did", &did])
    };
    let mut members = vec![start(&proxy.url(), 0)];
    // Alone, so that what follows its acceptance arrives later, and separately.
    members[0].event("opt-in-accepted");
    if case.phase == "enrolling" {
        members.push(start(&first.url, 1));
        members[1].event("opt-in-accepted");
    } else {
        members.extend([start(&first.url, 1), start(&first.url, 2)]);
    }
    let cohort = first.program.event(case.event)["cohortId"].clone();
    first.program.kill();
    members.iter_mut().for_each(Program::kill);

    let second = moved(&directory, case.how, text(&cohort));
    let mut second = Service::once(&directory, 3, &[&arguments[..], &["--state", &second]].concat());
    let recovered = second.program.event("cohort-recovered");
    assert_eq!((&recovered["cohortId"], text(&recovered["phase"])), (&cohort, case.phase));
    let members: Vec<Program> = (0..3).map(|index| start(&second.url, index)).collect();
    let result = second.program.result();
    service_result(&result, case.path);
    assert_eq!(result["cohortId"], cohort);
    for (member, file) in members.into_iter().zip(&files) {
        participant_result(&member.result(), &did_of(file), &result);
    }
}

#[test]
fn a_second_host_takes_over_while_members_are_admitted() {
    over_http(&OverHttp {
        name: "enrolling",
        deaf: "keygen/cohort_opt_in_accept",
        event: "participant-accepted",
        phase: "enrolling",
        path: "key-path",
        how: Move::Copied,
    });
}

#[test]
fn a_second_host_takes_over_while_updates_are_collected() {
    over_http(&OverHttp {
        name: "updates",
        deaf: "keygen/cohort_opt_in_accept",
        event: "keygen-complete",
        phase: "collecting updates",
        path: "key-path",
        how: Move::Exported,
    });
}

#[test]
fn a_second_host_takes_over_while_the_data_is_validated() {
    over_http(&OverHttp {
        name: "validating",
        deaf: "keygen/cohort_ready",
        event: "data-distributed",
        phase: "validating",
        path: "key-path",
        how: Move::Copied,
    });
}

#[test]
fn a_second_host_takes_over_while_nonces_are_collected() {
    over_http(&OverHttp {
        name: "nonces",
        deaf: "update/distribute_aggregated_data",
        event: "nonce-received",
        phase: "signing",
        path: "script-path",
        how: Move::Exported,
    });
}

#[test]
fn a_second_host_takes_over_during_partial_signatures() {
    over_http(&OverHttp {
        name: "partials",
        deaf: "sign/authorization_request",
        event: "partial-signature-received",
        phase: "signing",
        path: "script-path",
        how: Move::Copied,
    });
}

#[test]
fn a_second_host_takes_over_while_the_fallback_is_signed() {
    over_http(&OverHttp {
        name: "fallback",
        deaf: "update/distribute_aggregated_data",
        event: "fallback-started",
        phase: "signing",
        path: "script-path",
        how: Move::Exported,
    });
}

/// Three members over a relay that keep running while the first host is replaced. As over HTTP, the first of them receives
/// nothing after `deaf` until then.
fn over_a_relay(deaf: &'static str, event: &str, phase: &str, how: Move) {
    let directory = directory(&format!("takeover-relay-{event}"));
    let relay = Relay::anywhere();
    let service = identity(&directory, "service");
    let serve = |state: &str| {
        let place =
            ["serve", "--identity", &service, "--chain", "offline", "--relay", &relay.url, "--state", state];
        let cohort = ["--min-participants", "3", "--cohorts", "1", "--exit-when-done", "--advert-repeat", "1s"];
        Program::start(&[&place[..], &cohort, &["--events", "json"]].concat())
    };
    let mut first = serve(&path(&directory, "first"));
    first.event("serving");
    let files: Vec<String> = (0..3).map(|index| identity(&directory, &format!("member-{index}"))).collect();
    let start = |url: &str, file: &String| {
        let did = did_of(&service);
        let place = ["join", "--identity", file, "--relay", url, "--service-did", &did, "--relay-retry", "100ms"];
        Program::start(&[&place[..], &["--add-beacon", "--exit-when-done", "--events", "json"]].concat())
    };
    let proxy = Proxy::deaf_behind(relay.url.split_once("://").unwrap().1.parse().unwrap(), deaf);
    let mut members = vec![start(&proxy.url().replace("http", "ws"), &files[0])];
    members[0].event("opt-in-accepted");
    members.push(start(&relay.url, &files[1]));
    if phase != "enrolling" {
        members.push(start(&relay.url, &files[2]));
    }
    let cohort = first.event(event)["cohortId"].clone();
    first.kill();
    let mut second = serve(&moved(&directory, how, text(&cohort)));
    let recovered = second.event("cohort-recovered");
    assert_eq!((&recovered["cohortId"], text(&recovered["phase"])), (&cohort, phase));
    proxy.cut();
    if phase == "enrolling" {
        members.push(start(&relay.url, &files[2]));
    }
    let result: Value = second.result();
    service_result(&result, "key-path");
    for (member, file) in members.into_iter().zip(&files) {
        participant_result(&member.result(), &did_of(file), &result);
    }
}

#[test]
fn members_on_a_relay_notice_nothing_of_a_second_host() {
    std::thread::scope(|scope| {
        let cases = [
            ("keygen/cohort_opt_in_accept", "participant-accepted", "enrolling", Move::Exported),
            ("keygen/cohort_opt_in_accept", "keygen-complete", "collecting updates", Move::Copied),
            ("keygen/cohort_ready", "data-distributed", "validating", Move::Exported),
            ("update/distribute_aggregated_data", "nonce-received", "signing", Move::Copied),
            ("sign/authorization_request", "partial-signature-received", "signing", Move::Exported),
        ];
        for (deaf, event, phase, how) in cases {
            scope.spawn(move || over_a_relay(deaf, event, phase, how));
        }
    });
}
