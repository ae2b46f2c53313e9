//! What `serve` and `join` report about the end of a cohort, as processes: it is true, it is reported once, and the member never
//! contradicts what was announced.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use crate::support::{
    Program, Service, did_of, directory, identity, join, path,
    proxy::Proxy,
    run,
    verify::{participant_result, service_result, text},
};
use serde_json::{Value, json};

/// Long tests are run by hand: so many rounds instead of a few. See docs/reliability.md.
const ROUNDS: &str = "BTCR2_ROUNDS";

fn note(directory: &Path, name: &str) -> String {
    let file = path(directory, name);
    fs::write(&file, json!([{ "op": "add", "path": "/note", "value": name }]).to_string()).unwrap();
    file
}

fn events<'a>(lines: &'a [Value], name: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == name).collect()
}

/// The only result of a member, its exit status, and what it wrote on standard error.
fn ended(member: Program) -> (Option<i32>, Value, Vec<Value>) {
    let (status, lines, errors) = member.end();
    assert!(!errors.contains("ERROR"), "{errors}");
    let results = events(&lines, "result");
    assert_eq!(results.len(), 1, "{lines:#?}{errors}");
    (status, results[0].clone(), lines)
}

#[test]
fn two_rounds_with_the_same_state_have_separate_results() {
    let rounds: usize = std::env::var(ROUNDS).map_or(3, |rounds| rounds.parse().unwrap());
    // They mostly wait for each other.
    const AT_ONCE: usize = 6;
    std::thread::scope(|scope| {
        for first in 0..AT_ONCE.min(rounds) {
            scope.spawn(move || (first..rounds).step_by(AT_ONCE).for_each(two_rounds));
        }
    });
}

fn two_rounds(round: usize) {
    let directory = directory(&format!("two-rounds-{round}"));
    let (state, kept) = (path(&directory, "member-state"), path(&directory, "service-state"));
    let member = identity(&directory, "member");
    for (number, version) in [(0, 2), (1, 3)] {
        let service = Service::once(&directory, 1, &["--state", &kept]);
        let patch = note(&directory, &format!("note-{number}"));
        let joined = service.join(&member, &["--update", &patch, "--state", &state, "--allow-unlisted-beacon"]);
        let expected = service.program.result();
        service_result(&expected, "key-path");
        let (status, result, lines) = ended(joined);
        assert_eq!((status, &result["known"]), (Some(0), &json!("seen")), "round {round}: {lines:#?}");
        assert_eq!(result["cohortId"], expected["cohortId"], "round {round}, cohort {number}: {lines:#?}");
        assert_eq!(result["txid"], expected["txid"]);
        assert!(events(&lines, "earlier").is_empty(), "the end was reported already: {lines:#?}");
        // The second update starts from the first.
        let update = &result["sidecar"]["updates"][0];
        assert_eq!(update["targetVersionId"], version, "{result:#}");
    }
}

#[test]
fn an_announced_update_is_not_announced_again() {
    let directory = directory("announced-once");
    let state = path(&directory, "state");
    let (member, patch) = (identity(&directory, "member"), note(&directory, "once"));
    let arguments = ["--update", &patch, "--state", &state, "--allow-unlisted-beacon"];
    let service = Service::once(&directory, 1, &[]);
    let first = service.join(&member, &arguments).result();
    assert_eq!(first["included"], true);
    service.program.result();
    // Without an update to announce it does not join.
    let mut idle = Service::start(&directory, &["--min-participants", "1"]);
    let again = idle.join(&member, &arguments).result();
    assert_eq!((&again["known"], &again["cohortId"]), (&json!("announced-before"), &first["cohortId"]));
    assert!(!idle.program.seen().iter().any(|event| event["event"] == "opt-in-received"));
    // Or it takes part without an update, if configured so.
    let declined = idle.join(&member, &[&arguments[..], &["--idle", "decline"]].concat()).result();
    assert_eq!((&declined["known"], &declined["included"]), (&json!("seen"), &json!(false)));
    idle.program.event_where("update-received", |event| event["included"] == false);
}

#[test]
fn a_member_that_keeps_running_announces_its_update_once() {
    let directory = directory("runs-on");
    let (member, patch) = (identity(&directory, "member"), note(&directory, "once"));
    let state = path(&directory, "state");
    let service = Service::start(&directory, &["--min-participants", "1"]);
    let (url, json) = (service.url.clone(), ["--events", "json"]);
    let start = |more: &[&str]| {
        let fixed = ["join", "--service", &url, "--identity", &member, "--update", &patch, "--state", &state];
        Program::start(&[&fixed[..], &["--allow-unlisted-beacon"], &json, more].concat())
    };
    let mut steady = start(&[]);
    let first = steady.event("result");
    assert_eq!((&first["ok"], &first["included"]), (&json!(true), &json!(true)));
    let passed = steady.event("cohort-passed-over");
    assert!(text(&passed["reason"]).contains(text(&first["cohortId"])), "{passed}");
    // After a kill it might remember that it has passed this cohort over, and not report it again.
    steady.signal("-TERM");
    assert_eq!(steady.end().0, Some(0));
    // Also when it is started again.
    let mut again = start(&[]);
    again.event("cohort-passed-over");
    drop(again);
    service.program.signal("-TERM");
    let (_, lines, _) = service.program.end();
    assert_eq!(events(&lines, "update-received").len(), 1, "{lines:#?}");
}

#[test]
fn a_member_learns_whether_resolvers_read_the_beacon() {
    let directory = directory("not-listed");
    let (member, state) = (identity(&directory, "member"), path(&directory, "state"));
    let patch = note(&directory, "later");
    // The same key and the same terms: the same address each time.
    let service = Service::start(&directory, &["--min-participants", "1"]);
    let round = |what: &[&str]| {
        let (_, result, lines) = ended(service.join(&member, &[what, &["--state", &state]].concat()));
        assert_eq!(result["ok"], true, "{lines:#?}");
        let submitting = events(&lines, "update-submitting")[0];
        // Without a chain it is never more than believed.
        assert_eq!(submitting["resolved"], false);
        (text(&result["beaconAddress"]).to_owned(), submitting["listed"].clone(), submitting["versionId"].clone())
    };
    let (first, listed, version) = round(&["--add-beacon"]);
    assert_eq!((listed, version), (json!(false), json!("2")));
    assert_eq!(round(&["--update", &patch]), (first, json!(true), json!("3")), "the document lists it now");
}

#[test]
fn an_update_is_withheld_where_no_resolver_looks() {
    let directory = directory("withheld");
    let (member, state) = (identity(&directory, "member"), path(&directory, "state"));
    let patch = note(&directory, "withheld");
    let service = Service::once(&directory, 1, &[]);
    let (status, result, lines) = ended(service.join(&member, &["--update", &patch, "--state", &state]));
    let withheld = events(&lines, "update-withheld")[0];
    let address = text(&result["beaconAddress"]);
    assert_eq!(withheld["beaconAddress"], address);
    for words in [address, "--allow-unlisted-beacon", "singleton", "beacon adopt"] {
        assert!(text(&withheld["reason"]).contains(words), "{words}: {withheld}");
    }
    // It has taken part, the cohort did not wait, and it does not succeed: its update is not announced.
    assert_eq!((status, &result["ok"], &result["included"]), (Some(1), &json!(false), &json!(false)));
    assert_eq!(result["reason"], withheld["reason"]);
    let (_, served, _) = service.program.end();
    assert_eq!(events(&served, "update-received")[0]["included"], false);
    let kept = run(&["vault", "list", "--json", "--state", &state]).succeeded();
    let kept: Value = serde_json::from_str(&kept.stdout).unwrap();
    assert_eq!(kept[0]["state"], Value::Null, "{kept}");
}

/// A round of two in which the other member receives nothing after the request for its nonce: it never signs.
fn with_a_silent_one(name: &str, service: &[&str], member: &[&str]) -> (Service, Program, Program, String) {
    let directory = directory(name);
    let service = Service::once(&directory, 2, &[&["--signing-timeout", "3s"], service].concat());
    let files = [identity(&directory, "member"), identity(&directory, "silent")];
    let deaf = Proxy::deaf_behind(service.address(), "sign/authorization_request");
    let silent = join(&deaf.url(), &files[1], &["--add-beacon"]);
    std::mem::forget(deaf);
    let joined = service.join(&files[0], member);
    (service, joined, silent, files[0].clone())
}

#[test]
fn a_member_stopped_after_its_signature_does_not_succeed() {
    let (service, mut member, silent, _) =
        with_a_silent_one("stopped", &["--fallback-threshold", "2"], &["--add-beacon"]);
    member.event("signature-sent");
    member.signal("-TERM");
    let (status, result, _) = ended(member);
    assert_eq!((status, &result["ok"]), (Some(1), &json!(false)));
    assert!(text(&result["reason"]).contains("our signature was sent"), "{result}");
    drop((service, silent));
}

#[test]
fn with_all_defaults_a_member_stays_for_the_fallback() {
    let (service, member, silent, file) =
        with_a_silent_one("stays", &["--fallback-threshold", "1"], &["--add-beacon"]);
    let signed = service.program.result();
    service_result(&signed, "script-path");
    let (status, result, _) = ended(member);
    assert_eq!((status, &result["known"]), (Some(0), &json!("seen")));
    participant_result(&result, &did_of(&file), &signed);
    drop(silent);
}

#[test]
fn a_failure_after_our_signature_writes_the_singleton() {
    let directory = directory("fails-late");
    let (alone, patch) = (path(&directory, "alone"), note(&directory, "patch"));
    let arguments = ["--update", &patch, "--singleton-fallback", &alone, "--allow-unlisted-beacon"];
    let fails = ["--fallback-threshold", "2"];
    let (service, member, silent, _) = with_a_silent_one("fails-late-round", &fails, &arguments);
    let (status, lines, errors) = service.program.end();
    assert_eq!(status, Some(1), "{lines:#?}{errors}");
    let (status, result, lines) = ended(member);
    assert_eq!(status, Some(1), "{lines:#?}");
    assert_eq!((&result["ok"], &result["known"]), (&json!(false), &json!("signed-by-us")));
    assert!(!text(&result["reason"]).is_empty());
    assert_eq!(events(&lines, "singleton-written").len(), 1, "{lines:#?}");
    // The same update, which the cohort may still announce.
    let update: Value = serde_json::from_str(&fs::read_to_string(format!("{alone}/update.json")).unwrap()).unwrap();
    assert_eq!(update["targetVersionId"], 2);
    drop(silent);
}

#[test]
fn a_second_update_of_an_announceable_version_is_refused() {
    let directory = directory("second-update");
    let (first, second) = (note(&directory, "first"), note(&directory, "second"));
    let state = path(&directory, "state");
    let (service, member, silent, file) = with_a_silent_one(
        "second-update-round",
        &["--fallback-threshold", "2"],
        &["--update", &first, "--state", &state, "--allow-unlisted-beacon"],
    );
    let (_, failed, _) = ended(member);
    assert_eq!(failed["known"], "signed-by-us");
    drop((service, silent));
    let service = Service::once(&directory, 1, &[]);
    let other = ["--update", &second, "--state", &state, "--allow-unlisted-beacon"];
    let (status, refused, _) = ended(service.join(&file, &other));
    assert_eq!(status, Some(1));
    let cohort = text(&failed["cohortId"]);
    assert!(text(&refused["reason"]).contains(&format!("--supersede {cohort}")), "{refused}");
    // The same update is not a second one.
    let same = service.join(&file, &["--update", &first, "--state", &state, "--allow-unlisted-beacon"]).result();
    assert_eq!((&same["ok"], &same["included"]), (&json!(true), &json!(true)));
    drop(service);
    // And the next follows it.
    let service = Service::once(&directory, 1, &[]);
    let next = service.join(&file, &other).result();
    assert_eq!(next["sidecar"]["updates"][0]["targetVersionId"], 3, "{next:#}");
}

#[test]
fn a_state_directory_belongs_to_one_command_and_did() {
    let directory = directory("whose");
    let state = path(&directory, "state");
    let (alice, bob) = (identity(&directory, "alice"), identity(&directory, "bob"));
    let service = Service::once(&directory, 1, &[]);
    service.join(&alice, &["--decline", "--state", &state]).result();
    let join = ["join", "--service", &service.url, "--decline", "--state", &state, "--identity"];
    let refused = run(&[&join[..], &[bob.as_str()]].concat());
    assert_eq!(refused.status, Some(2), "{refused:?}");
    for word in [did_of(&alice), did_of(&bob), "--state".to_owned()] {
        assert!(refused.stderr.contains(&word), "{word}: {}", refused.stderr);
    }
    let serve =
        run(&["serve", "--identity", &alice, "--chain", "offline", "--listen", "127.0.0.1:0", "--state", &state]);
    assert!(serve.status == Some(2) && serve.stderr.contains("join"), "{serve:?}");
    // Different terms are reported.
    let service = Service::once(&directory, 1, &[]);
    let mut changed = service.join(&alice, &["--decline", "--state", &state, "--max-cost", "5"]);
    let warned = changed.event_where("warning", |event| text(&event["message"]).contains("other terms"));
    assert!(text(&warned["message"]).contains('5'), "{warned}");
    changed.result();
}

#[test]
fn state_can_be_read_while_the_programs_run() {
    let directory = directory("while-running");
    let (kept, state) = (path(&directory, "service-state"), path(&directory, "member-state"));
    let mut service = Service::start(&directory, &["--min-participants", "1", "--state", &kept]);
    let member = identity(&directory, "member");
    let mut steady = Program::start(&[
        "join",
        "--service",
        &service.url,
        "--identity",
        &member,
        "--add-beacon",
        "--events",
        "json",
        "--state",
        &state,
    ]);
    let result = steady.event("result");
    let cohort = text(&result["cohortId"]);
    let did = did_of(&member);
    for arguments in [
        &["vault", "list", "--state", &state][..],
        &["vault", "show", cohort, "--state", &state],
        &["sidecar", "--did", &did, "--state", &state],
        &["state", "list", "--state", &kept],
        &["state", "show", cohort, "--state", &kept],
    ] {
        let shown = run(arguments).succeeded();
        assert!(shown.stdout.contains(cohort) || shown.stdout.contains(&did), "{arguments:?}: {shown:?}");
    }
    let txid = run(&["vault", "list", "--json", "--state", &state]).succeeded().stdout;
    assert_eq!(serde_json::from_str::<Value>(&txid).unwrap()[0]["txid"], result["txid"]);
    // A change needs exclusive access.
    let prune = run(&["state", "prune", "--older-than", "1s", "--state", &kept]);
    assert_eq!(prune.status, Some(1), "{prune:?}");
    // The running programs were not disturbed.
    service.program.event_where("cohort-advertised", |event| event["cohortId"] != cohort);
    service.program.signal("-TERM");
    steady.signal("-TERM");
    assert!(service.program.ends_well() && steady.ends_well());
}

#[test]
fn cohorts_are_counted_over_restarts() {
    let directory = directory("counted");
    let (state, member) = (path(&directory, "state"), identity(&directory, "member"));
    let arguments = ["--min-participants", "1", "--cohorts", "2", "--exit-when-done", "--state", &state];
    let mut service = Service::start(&directory, &arguments);
    service.join(&member, &["--decline"]).result();
    let first = service.program.event("result");
    service.program.kill();
    let service = Service::start(&directory, &arguments);
    service.join(&member, &["--decline"]).result();
    let (status, lines, errors) = service.program.end();
    assert_eq!(status, Some(0), "{lines:#?}{errors}");
    // One more, and not two. (The first may be reported again: its archiving was not durable for certain before the kill.)
    let later: BTreeSet<_> = events(&lines, "result").iter().map(|result| text(&result["cohortId"])).collect();
    assert_eq!(later.iter().filter(|cohort_id| **cohort_id != text(&first["cohortId"])).count(), 1, "{lines:#?}");
}

#[test]
fn a_duration_of_zero_is_refused_where_it_would_fail() {
    let directory = directory("zero");
    let file = identity(&directory, "any");
    let serve = ["serve", "--identity", &file, "--chain", "offline", "--listen", "127.0.0.1:0"];
    for flag in ["--phase-timeout", "--signing-timeout", "--cohort-ttl", "--relay-retry"] {
        let refused = run(&[&serve[..], &[flag, "0s"]].concat());
        assert!(refused.usage().contains(flag) && refused.usage().contains("longer than 0s"), "{refused:?}");
    }
    for flag in ["--phase-timeout", "--cohort-ttl", "--connect-timeout"] {
        let refused =
            run(&["join", "--identity", &file, "--service", "http://127.0.0.1:1", "--decline", flag, "0s"]);
        assert!(refused.usage().contains(flag) && refused.usage().contains("longer than 0s"), "{refused:?}");
    }
    // `0s` here means that the advert is not repeated.
    let mut service = Service::start(&directory, &["--advert-repeat", "0s", "--min-participants", "1"]);
    service.program.event("cohort-advertised");
    assert_eq!(service.join(&file, &["--decline"]).result()["ok"], true);
}

#[test]
fn the_connect_timeout_ends_join_with_a_reason() {
    let directory = directory("unreachable-service");
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let begun = Instant::now();
    let member = join(
        &format!("http://{unused}"),
        &identity(&directory, "member"),
        &["--decline", "--connect-timeout", "2s"],
    );
    let (status, result, lines) = ended(member);
    assert_eq!(status, Some(1), "{lines:#?}");
    assert!(text(&result["reason"]).contains("refused"), "{result}");
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert!(!events(&lines, "unreachable").is_empty(), "{lines:#?}");
    // A service without a cohort counts as an answer.
    let service = Service::start(&directory, &["--min-participants", "1"]);
    let member = service.join(&identity(&directory, "another"), &["--decline", "--connect-timeout", "1s"]);
    assert_eq!(member.result()["ok"], true);
}
