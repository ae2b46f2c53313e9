//! The command `bans`, while a service runs.

use crate::support::{Service, did_of, directory, identity, path, run};
use serde_json::{Value, json};

fn bans(state: &str, arguments: &[&str]) -> Value {
    let all = [&["bans"], arguments, &["--state", state, "--json"]].concat();
    serde_json::from_str(&run(&all).succeeded().stdout).unwrap()
}

#[test]
fn a_running_service_refuses_a_did_until_its_ban_is_lifted() {
    let directory = directory("bans");
    let state = path(&directory, "state");
    let arguments = ["--min-participants", "1", "--cohorts", "2", "--exit-when-done", "--state", &state];
    let mut service = Service::start(&directory, &arguments);
    let files = [identity(&directory, "good"), identity(&directory, "bad")];
    let bad = did_of(&files[1]);
    let added = bans(&state, &["add", &bad, "--for", "7d", "--reason", "rude\u{1b}[2J"]);
    assert_eq!((&added["did"], &added["banned"]), (&json!(bad), &json!(true)));
    assert_eq!(bans(&state, &["list"])[0]["until"], added["until"]);
    // The list for people, in a terminal.
    let text = run(&["bans", "list", "--state", &state]).succeeded().stdout;
    assert!(text.contains(&bad) && text.contains("rude\\u{1b}"), "{text}");

    let refused = service.join(&files[1], &["--add-beacon"]);
    let event = service.program.event("participant-refused");
    assert_eq!(event["participant"], json!(bad), "{event}");
    // It is notified, so it does not wait in vain.
    let (status, lines, _) = refused.end();
    let result = lines.last().unwrap();
    assert_eq!((status, &result["ok"]), (Some(1), &json!(false)), "{lines:#?}");
    assert!(result["reason"].as_str().unwrap().contains("not admitted"), "{result}");

    assert_eq!(bans(&state, &["lift", &bad]), json!({ "did": bad, "banned": false }));
    assert_eq!(bans(&state, &["list"]), json!([]));
    // The cohort that has refused it goes on without it; the next one admits it.
    for file in &files {
        assert_eq!(service.join(file, &["--add-beacon"]).result()["ok"], true);
    }
    assert_eq!(service.program.result()["ok"], true);
}

#[test]
fn invalid_calls_are_refused_with_a_reason() {
    let directory = directory("bans-calls");
    let state = path(&directory, "state");
    let did = did_of(&identity(&directory, "peer"));
    let refused = |arguments: &[&str]| {
        let ended = run(&[&["bans"], arguments].concat());
        assert_ne!(ended.status, Some(0), "{ended:?}");
        (ended.status.unwrap(), ended.stderr)
    };
    let (status, error) = refused(&["list", "--state", &state]);
    assert!(status == 1 && error.contains("is not a directory") && error.contains("serve --state"), "{error}");
    std::fs::create_dir(&state).unwrap();
    let (status, error) = refused(&["lift", &did, "--state", &state]);
    assert!(status == 1 && error.contains("bans list"), "{error}");
    let (status, error) = refused(&["add", &did, "--until", "2020-01-01T00:00:00Z", "--state", &state]);
    assert!(status == 2 && error.contains("in the past"), "{error}");
    assert_eq!(refused(&["add", &did, "--until", "tomorrow", "--state", &state]).0, 2);
    assert_eq!(refused(&["add", "did:example:1", "--state", &state]).0, 2);
    assert_eq!(refused(&["add", &did, "--for", "1d", "--until", "2099-01-01T00:00:00Z", "--state", &state]).0, 2);

    // A permanent ban is null in JSON, and a word in the list for people.
    assert_eq!(bans(&state, &["add", &did])["until"], Value::Null);
    let text = run(&["bans", "show", &did, "--state", &state]).succeeded().stdout;
    assert!(text.contains("banned until it is lifted"), "{text}");
    let address = bans(&state, &["add", "2001:db8::7", "--until", "2099-01-01T00:00:00Z"]);
    assert_eq!(address, json!({ "address": "2001:db8::/64", "banned": true, "until": "2099-01-01T00:00:00Z" }));
    assert_eq!(bans(&state, &["lift", "2001:db8::/64"])["banned"], false);

    // Neither a command nor a service that starts accepts a file of another program as a list.
    std::fs::write(path(&directory, "state/bans.redb"), "garbage").unwrap();
    let (status, error) = refused(&["list", "--state", &state]);
    assert!(status == 1 && error.contains("bans.redb") && error.contains("move it away"), "{error}");
    let service = identity(&directory, "service");
    let ended =
        run(&["serve", "--identity", &service, "--listen", "127.0.0.1:0", "--chain", "offline", "--state", &state]);
    assert!(ended.status == Some(1) && ended.stderr.contains("bans.redb"), "{ended:?}");
}
