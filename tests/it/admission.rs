//! Whom a service admits: who is on its operator's list, or has an invite; and how many cohorts run at once.

use std::fs;

use crate::support::{Program, Service, did_of, directory, identity, path, run};
use serde_json::{Value, json};

fn refusal(joining: Program) -> String {
    let (status, lines, _) = joining.end();
    assert_eq!(status, Some(1), "{lines:#?}");
    lines.last().unwrap()["reason"].as_str().unwrap().to_owned()
}

#[test]
fn a_did_is_admitted_when_it_is_on_the_list_which_is_read_again_when_it_changes() {
    let directory = directory("admission-list");
    let files = [identity(&directory, "listed"), identity(&directory, "other")];
    let dids = files.each_ref().map(|file| did_of(file));
    let list = path(&directory, "list");
    fs::write(&list, format!("# members\n\n{}  # the first\n", dids[0])).unwrap();
    let arguments = ["--min-participants", "1", "--cohorts", "2", "--exit-when-done", "--allow-list", &list];
    let mut service = Service::start(&directory, &arguments);
    let reason = refusal(service.join(&files[1], &["--decline"]));
    assert!(reason.contains("not on the operator's list"), "{reason}");
    assert!(
        !service.program.seen().iter().any(|event| event["event"] == "opt-in-received"),
        "nothing is journaled"
    );
    assert_eq!(service.join(&files[0], &["--decline"]).result()["ok"], true);

    // What cannot be read changes nothing, and is reported with its line.
    fs::write(&list, "nobody\n").unwrap();
    service.program.signal("-HUP");
    let warning = service.program.event_where("warning", |event| event["message"].to_string().contains("line 1"));
    assert!(warning["message"].as_str().unwrap().contains("stays as it was"), "{warning}");
    // It is read again on SIGHUP, and without one.
    fs::write(&list, &dids[0]).unwrap();
    service.program.signal("-HUP");
    let reloaded = service.program.event("reloaded");
    assert_eq!((&reloaded["what"], &reloaded["files"]), (&json!("allow-list"), &json!([list])));
    fs::write(&list, dids.join("\n")).unwrap();
    assert_eq!(service.join(&files[1], &["--decline"]).result()["ok"], true);
    assert_eq!(service.program.result()["ok"], true);

    let wrong = path(&directory, "wrong");
    fs::write(&wrong, "did:example:1\n").unwrap();
    let service = path(&directory, "service");
    let ended = run(&["serve", "--identity", &service, "--chain", "offline", "--allow-list", &wrong]);
    assert!(ended.usage().contains("line 1"), "{ended:?}");
}

fn invites(state: &str, arguments: &[&str]) -> Value {
    let all = [&["invites"], arguments, &["--state", state, "--json"]].concat();
    serde_json::from_str(&run(&all).succeeded().stdout).unwrap()
}

#[test]
fn an_invite_admits_as_many_dids_as_it_says_until_it_is_revoked() {
    let directory = directory("admission-invites");
    let state = path(&directory, "state");
    let arguments =
        ["--min-participants", "1", "--cohorts", "2", "--exit-when-done", "--state", &state, "--invites"];
    let service = Service::start(&directory, &arguments);
    let files = ["one", "two", "three", "four", "five"].map(|name| identity(&directory, name));
    // Made while the service runs.
    let made = invites(&state, &["new", "--label", "for one\u{1b}[2J"]);
    let (id, token) = (made["invite"].as_str().unwrap(), made["token"].as_str().unwrap());
    let without = refusal(service.join(&files[3], &["--decline"]));
    assert!(without.contains("--invite TOKEN"), "{without}");
    let unknown =
        refusal(service.join(&files[4], &["--decline", "--invite", &format!("btcr2-invite-{}", "00".repeat(16))]));
    assert!(unknown.contains("not one of this service"), "{unknown}");
    assert_eq!(service.join(&files[0], &["--decline", "--invite", token]).result()["ok"], true);
    let used = refusal(service.join(&files[1], &["--decline", "--invite", token]));
    assert!(used.contains("used up"), "{used}");
    let all = invites(&state, &["list"]);
    let [listed] = &all.as_array().unwrap()[..] else { panic!("{all}") };
    assert_eq!((&listed["state"], &listed["admitted"]), (&json!("used up"), &json!([did_of(&files[0])])));
    let text = run(&["invites", "list", "--state", &state]).succeeded().stdout;
    assert!(text.contains(id) && !text.contains('\u{1b}') && !text.contains(token), "{text}");

    let counted = invites(&state, &["new", "--uses", "5", "--for", "1h"]);
    let token = counted["token"].as_str().unwrap();
    invites(&state, &["revoke", counted["invite"].as_str().unwrap()]);
    let revoked = refusal(service.join(&files[2], &["--decline", "--invite", token]));
    assert!(revoked.contains("revoked"), "{revoked}");
    // Who was admitted once may come again, also to later cohorts.
    let token = made["token"].as_str().unwrap();
    assert_eq!(service.join(&files[0], &["--decline", "--invite", token]).result()["ok"], true);
    assert_eq!(service.program.result()["ok"], true);
}

#[test]
fn invites_need_a_state_directory_and_say_what_is_wrong() {
    let directory = directory("admission-calls");
    let (service, state) = (identity(&directory, "service"), path(&directory, "state"));
    let ended =
        run(&["serve", "--identity", &service, "--chain", "offline", "--listen", "127.0.0.1:0", "--invites"]);
    assert!(ended.usage().contains("--state"), "{ended:?}");
    let ended = run(&["invites", "new", "--state", &state]);
    assert!(ended.status == Some(1) && ended.stderr.contains("serve --state"), "{ended:?}");
    fs::create_dir(&state).unwrap();
    assert_eq!(run(&["invites", "new", "--state", &state, "--uses", "0"]).status, Some(2));
    assert_eq!(run(&["invites", "new", "--state", &state, "--until", "2020-01-01T00:00:00Z"]).status, Some(2));
    let ended = run(&["invites", "revoke", "0123456789abcdef", "--state", &state]);
    assert!(ended.status == Some(1) && ended.stderr.contains("invites list"), "{ended:?}");
}

#[test]
fn no_more_cohorts_run_at_once_than_may() {
    let directory = directory("admission-live");
    let mut service = Service::start(&directory, &["--min-participants", "1", "--max-live-cohorts", "1"]);
    let first = service.program.event("cohort-advertised");
    let member = identity(&directory, "member");
    let joining = service.join(&member, &["--decline"]);
    service.program.event_where("warning", |event| event["message"].to_string().contains("--max-live-cohorts"));
    assert_eq!(joining.result()["ok"], true);
    service.program.event_where("cohort-advertised", |event| event["cohortId"] != first["cohortId"]);
    let seen = service.program.seen();
    let place = |name: &str| seen.iter().position(|event| event["event"] == name).unwrap();
    let next = seen.iter().rposition(|event| event["event"] == "cohort-advertised").unwrap();
    assert!(place("signing-complete") < next, "{seen:#?}");
}
