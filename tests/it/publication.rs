//! Publication by the programs: announced data is in the stores before the spend, or there is no spend.

use std::fs;

use crate::support::{
    Service, directory, identity, path, run,
    verify::{service_result, text},
};
use serde_json::{Value, json};

/// The content that a store has under that hash.
fn shown(store: &str, hash: &str) -> Option<Value> {
    let run = run(&["cas", "show", hash, "--cas", store]);
    (run.status == Some(0)).then(|| serde_json::from_str(&run.stdout).unwrap())
}

#[test]
fn the_spend_waits_until_the_data_is_published() {
    let directory = directory("publication");
    // There is a file in place of the service's store: it cannot store anything yet.
    let place = path(&directory, "announcements");
    fs::write(&place, "in the way").unwrap();
    let (announcements, updates) = (format!("dir={place}"), format!("dir={}", path(&directory, "updates")));
    let mut service = Service::once(&directory, 2, &["--cas", &announcements]);
    let files = [identity(&directory, "one"), identity(&directory, "two")];
    let members: Vec<_> =
        files.iter().map(|file| service.join(file, &["--add-beacon", "--cas", &updates])).collect();
    let held = service.program.event("transaction-deferred");
    assert!(text(&held["reason"]).contains(&place), "{held}");
    let signal = text(&service.program.event("data-distributed")["signal"]).to_owned();
    let started =
        |service: &Service| service.program.seen().iter().any(|event| event["event"] == "signing-started");
    assert!(!started(&service));
    assert_eq!(shown(&announcements, &signal), None);
    // The members' updates are there before any member was asked for a signature.
    assert_eq!(fs::read_dir(path(&directory, "updates")).unwrap().count(), 2);

    fs::remove_file(&place).unwrap();
    service.program.event("signing-started");
    let map = shown(&announcements, &signal).expect("published before it is signed");
    let result = service.program.result();
    service_result(&result, "key-path");
    assert_eq!(result["signalHex"], json!(signal));
    for member in members {
        let kept = member.result();
        assert_eq!(kept["sidecar"]["casUpdates"], json!([map]));
        let hash = map.as_object().unwrap().values().filter_map(|hash| shown(&updates, text(hash)));
        assert!(hash.into_iter().any(|update| update == kept["sidecar"]["updates"][0]));
    }
}

#[test]
fn an_optional_store_does_not_delay_the_spend() {
    let directory = directory("publication-optional");
    let place = path(&directory, "announcements");
    fs::write(&place, "in the way").unwrap();
    let store = format!("dir={place}");
    let mut service = Service::once(&directory, 1, &["--cas", &store, "--cas-optional"]);
    let member = service.join(&identity(&directory, "one"), &["--add-beacon"]);
    let warning = service.program.event_where("warning", |event| text(&event["message"]).contains(&place));
    assert!(text(&warning["message"]).contains("not published everywhere"), "{warning}");
    service_result(&service.program.result(), "key-path");
    member.result();
}
