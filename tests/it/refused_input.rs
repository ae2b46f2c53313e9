//! Arguments and documents that the programs refuse.

use std::{fs, net::TcpListener, path::Path};

use crate::support::{
    contains, did_of, directory, genesis_without_key, identity,
    inputs::{SECRET, secret_identity, signed_update, usual_patch},
    path, run,
};
use btcr2_aggregation::protocol::{identity::Identity, key::SecretKey, network::Network};
use serde_json::{Value, json};

#[test]
fn a_busy_port_is_reported_without_a_panic() {
    let directory = directory("busy");
    let file = identity(&directory, "service");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let serve = ["serve", "--identity", &file, "--chain", "offline"];
    for places in [
        &["--listen", &address][..],
        &["--listen", "127.0.0.1:0", "--embedded-relay", &address],
        &["--listen", "127.0.0.1:0", "--metrics-listen", &address],
    ] {
        let refused = run(&[&serve, places].concat());
        assert_eq!(refused.status, Some(1), "{refused:?}");
        assert!(!refused.stderr.contains("panicked"), "{}", refused.stderr);
        contains(&refused.stderr, &["in use"]);
    }
}

#[test]
fn a_wrong_argument_is_named_with_what_was_expected() {
    let directory = directory("arguments");
    let member = secret_identity(&directory);
    let update = signed_update(&directory, usual_patch());
    let chain = ["--chain", "esplora=http://127.0.0.1:1"];
    let fund = |to: &str| {
        let fixed =
            ["fund", "--from", "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080", "--amount", "1000", "--out", "x"];
        run(&[&fixed[..], &chain, &["--to", to]].concat())
    };
    contains(
        fund("1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNb").usage(),
        &["--to 1A1z", "Bitcoin address expected", "base58", "checksum"],
    );
    contains(fund("1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa").usage(), &["--to", "another network", "regtest"]);
    contains(fund("").usage(), &["--to", "nothing was given"]);
    let singleton = ["singleton", "--identity", &member, "--update", &update];
    let change = run(&[&singleton[..], &["--change", "bcrt1qwrong"]].concat());
    contains(change.usage(), &["--change", "a Bitcoin address expected"]);
    let serve = ["serve", "--identity", &member, "--chain", "offline"];
    for (flag, value, expected) in [
        ("--embedded-relay", "localhost", "IP:PORT expected"),
        ("--phase-timeout", "soon", "a length of time expected"),
        ("--recovery-key", "xyz", "64 hex characters: found 'x'"),
        ("--recovery-key", "abcd", "found 4 characters"),
        ("--network", "mainnet", "bitcoin"),
    ] {
        let refused = run(&[&serve[..], &[flag, value]].concat());
        contains(refused.usage(), &[flag, value, expected]);
    }
}

/// The genesis document of a key that does not exist yet, with a change.
fn genesis(directory: &Path, change: impl FnOnce(&mut Value)) -> String {
    let mut genesis = genesis_without_key();
    change(&mut genesis);
    let file = path(directory, "genesis.json");
    fs::write(&file, genesis.to_string()).unwrap();
    file
}

#[test]
fn a_risky_genesis_document_is_refused_unless_allowed() {
    let directory = directory("genesis");
    let out = path(&directory, "identity");
    let new =
        |file: &str, more: &[&str]| run(&[&["identity", "new", "--external", file, "--out", &out], more].concat());
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 4] = [
        (|document| document["service"] = json!([]), "there is no beacon"),
        (|document| document["capabilityInvocation"] = json!([]), "capabilityInvocation is empty"),
        (
            |document| {
                let mut again = document["service"][0].clone();
                again["id"] = json!("#again");
                document["service"].as_array_mut().unwrap().push(again);
            },
            "in the document twice",
        ),
        (|document| document["verificationMethod"][0]["secretKeyMultibase"] = json!("z1"), "secret key at"),
    ];
    for (change, problem) in cases {
        let file = genesis(&directory, change);
        let refused = new(&file, &[]);
        assert_eq!(refused.status, Some(1), "{refused:?}");
        contains(&refused.stderr, &[&file, problem, "--allow-risky-document"]);
        assert!(!Path::new(&out).exists());
    }
    let file = genesis(&directory, |document| document["service"] = json!([]));
    new(&file, &["--allow-risky-document"]).succeeded();
}

#[test]
fn an_update_that_disables_the_did_is_refused_unless_allowed() {
    let directory = directory("risky");
    let member = secret_identity(&directory);
    let did = did_of(&member);
    let initial = Identity::from_key(SecretKey::from_hex(SECRET).unwrap(), Network::Regtest);
    let beacon = initial.initial_document().unwrap()["service"][0]["serviceEndpoint"].clone();
    let add = |path: &str, value: Value| json!([{ "op": "add", "path": path, "value": value }]);
    let again = json!({ "id": format!("{did}#again"), "type": "SingletonBeacon", "serviceEndpoint": beacon });
    for (patch, problem) in [
        (json!([{ "op": "remove", "path": "/verificationMethod/0" }]), "the DID cannot be updated"),
        (add("/capabilityInvocation", json!([])), "capabilityInvocation is empty"),
        (add("/service", json!([])), "there is no beacon"),
        (add("/service/-", again), "in the document twice"),
        (add("/verificationMethod/0/secretKeyMultibase", json!("z1")), "secret key at /verificationMethod/0"),
    ] {
        let update = signed_update(&directory, patch.clone());
        let singleton = ["singleton", "--identity", &member, "--update", &update];
        let refused = run(&singleton);
        contains(refused.usage(), &[&update, problem, "--allow-risky-update"]);
        run(&[&singleton[..], &["--allow-risky-update"]].concat()).succeeded();

        let file = path(&directory, "patch.json");
        fs::write(&file, patch.to_string()).unwrap();
        let join = ["join", "--identity", &member, "--service", "http://127.0.0.1:1", "--update", &file];
        contains(run(&join).usage(), &[&file, problem, "--allow-risky-update"]);
        // With the flag, the next check refuses the call.
        let next = run(&[&join[..], &["--allow-risky-update", "--singleton-coin", "p2wpkh:x"]].concat());
        assert!(!next.usage().contains("--allow-risky-update"), "{next:?}");
    }
    // Nothing proves the value of this coin, and its signature would not commit to it.
    let patch = path(&directory, "usual.json");
    fs::write(&patch, usual_patch().to_string()).unwrap();
    let (coin, alone) = (format!("p2pkh:{}:0:20000", "ab".repeat(32)), path(&directory, "alone"));
    let join = ["join", "--identity", &member, "--service", "http://127.0.0.1:1", "--update", &patch];
    let unproven = ["--allow-unlisted-beacon", "--singleton-fallback", &alone, "--singleton-coin", &coin];
    contains(run(&[&join[..], &unproven].concat()).usage(), &["--singleton-coin p2pkh", "p2wpkh or p2tr"]);
    let deactivation = signed_update(&directory, add("/deactivated", json!(true)));
    run(&["singleton", "--identity", &member, "--update", &deactivation]).succeeded();
}
