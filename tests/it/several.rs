//! Several services in one process: `serve --also`.

use std::fs;

use serde_json::Value;

use crate::support::{Program, contains, directory, join, path, run};

/// Two services, of two identities and networks, each with cohorts of two members and a control socket.
fn configure(directory: &std::path::Path) -> [String; 2] {
    ["regtest", "mutinynet"].map(|network| {
        let place = directory.join(network);
        fs::create_dir_all(&place).unwrap();
        let file = path(&place, "service.id");
        run(&["identity", "new", "--network", network, "--out", &file]).succeeded();
        let config = path(directory, &format!("{network}.toml"));
        let state = path(&place, "state");
        let text = format!(
            "identity = \"{file}\"\nnetwork = \"{network}\"\nlisten = \"127.0.0.1:0\"\nchain = \"offline\"\nevents = \"json\"\n\
             state = \"{state}\"\ncontrol = \"socket\"\nmin-participants = 2\ncohorts = 1\n"
        );
        fs::write(&config, text).unwrap();
        config
    })
}

#[test]
fn two_networks_are_served_in_one_process() {
    let directory = directory("several");
    let [regtest, mutinynet] = configure(&directory);
    let mut program = Program::start(&["serve", "--config", &regtest, "--also", &mutinynet]);
    for network in ["regtest", "mutinynet"] {
        let of = |event: &Value| event["instance"] == network;
        let serving = program.event_where("serving", of);
        assert_eq!(serving["network"], network, "{serving}");
        program.event_where("control", of);
        let members = ["a", "b"].map(|name| {
            let file = path(&directory.join(network), name);
            run(&["identity", "new", "--network", network, "--out", &file]).succeeded();
            join(serving["url"].as_str().unwrap(), &file, &["--decline", "--network", network])
        });
        let complete = program.event_where("result", of);
        assert!(complete["ok"] == true, "{complete}");
        for member in members {
            assert_eq!(member.end().0, Some(0));
        }
        // Each by the socket in its own state directory.
        let state = path(&directory.join(network), "state");
        let status = run(&["ctl", "--json", "--state", &state, "status"]).succeeded().stdout;
        assert_eq!(serde_json::from_str::<Value>(&status).unwrap()["network"], network);
    }
    program.signal("-TERM");
    assert!(program.ends_well());
}

#[test]
fn one_that_cannot_start_is_named_and_ends_all() {
    let directory = directory("several-broken");
    let [regtest, mutinynet] = configure(&directory);
    let same = run(&["serve", "--config", &regtest, "--also", &regtest]);
    assert_eq!(same.status, Some(2), "{same:?}");
    contains(&same.stderr, &["the name regtest"]);
    let text = fs::read_to_string(&mutinynet).unwrap();
    fs::write(&mutinynet, text.replace("min-participants = 2", "min-participants = 0")).unwrap();
    let refused = run(&["serve", "--config", &regtest, "--also", &mutinynet]);
    assert_eq!(refused.status, Some(2), "{refused:?}");
    contains(&refused.all(), &["minParticipants", "\"instance\":\"mutinynet\""]);
    // What is only found when it starts.
    fs::write(&mutinynet, text.replace("127.0.0.1:0", "192.0.2.1:80")).unwrap();
    let failed = run(&["serve", "--config", &regtest, "--also", &mutinynet]);
    assert!(failed.status.is_some_and(|status| status != 0), "{failed:?}");
    contains(&failed.all(), &["192.0.2.1:80", "all services of this process"]);
    assert!(failed.events().iter().any(|event| event["event"] == "warning" && event["instance"] == "mutinynet"));
}
