//! Cohorts and announcements over third-party relays and stores. `tests/real-carriers.sh` installs and starts some, and
//! names them in `BTCR2_RELAYS` (URLs, separated by commas) and `BTCR2_IPFS` (the URL of an RPC API); without these the tests
//! print that they are skipped.

use std::{env, fs};

use serde_json::Value;

use crate::support::{
    Program, did_of, directory, identity, path, run,
    verify::{participant_result, service_result},
};

const MEMBERS: usize = 3;

fn named(variable: &str) -> Vec<String> {
    let value = env::var(variable).unwrap_or_default();
    let names: Vec<_> = value.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if names.is_empty() {
        println!("skipped: {variable} is not set (tests/real-carriers.sh)");
    }
    names
}

#[test]
fn cohorts_complete_over_third_party_relays() {
    for (number, relay) in named("BTCR2_RELAYS").iter().enumerate() {
        let checked = run(&["relay", "check", relay, "--json"]);
        println!("{relay}: {}", checked.stdout.trim());
        for beacon in ["cas", "smt"] {
            let directory = directory(&format!("real-{number}-{beacon}"));
            let service = identity(&directory, "service");
            let members = MEMBERS.to_string();
            let fixed =
                ["serve", "--identity", &service, "--chain", "offline", "--relay", relay, "--events", "json"];
            let terms = ["--beacon", beacon, "--min-participants", &members, "--cohorts", "1", "--exit-when-done"];
            let mut service = Program::start(&[&fixed[..], &terms].concat());
            let did = service.event("serving")["did"].as_str().unwrap().to_owned();
            let files: Vec<_> = (0..MEMBERS).map(|member| identity(&directory, &format!("{member}"))).collect();
            let joined: Vec<_> = files
                .iter()
                .map(|file| {
                    let place = ["join", "--identity", file, "--relay", relay, "--service-did", &did];
                    let what = ["--add-beacon", "--exit-when-done", "--events", "json"];
                    Program::start(&[&place[..], &what].concat())
                })
                .collect();
            let result = service.event("result");
            service_result(&result, "key-path");
            for (file, member) in files.iter().zip(joined) {
                participant_result(&member.result(), &did_of(file), &result);
            }
        }
    }
}

#[test]
fn content_of_a_third_party_node_is_found_by_its_hash() {
    for (number, node) in named("BTCR2_IPFS").iter().enumerate() {
        let directory = directory(&format!("real-ipfs-{number}"));
        let (file, store) = (path(&directory, "document.json"), format!("ipfs={node}"));
        fs::write(&file, r#"{ "b": 1, "a": "x" }"#).unwrap();
        let put = run(&["cas", "put", &file, "--cas", &store, "--json"]).succeeded();
        let put: Value = serde_json::from_str(&put.stdout).unwrap();
        let shown = run(&["cas", "show", put["hash"].as_str().unwrap(), "--cas", &store]).succeeded();
        assert_eq!(shown.stdout, r#"{"a":"x","b":1}"#);
    }
}
