//! `serve --state` and `join --state` as processes that are killed in mid-round and started again: the same cohort completes,
//! and the other parties notice only the pause.

use std::{collections::BTreeSet, path::Path, time::Duration};

use crate::nostr_support::relay::{Recorder, Relay};
use crate::support::{
    Program, Service, copy, did_of, directory, identity, join, path,
    proxy::Proxy,
    run,
    verify::{participant_result, service_result, text},
};
use serde_json::{Value, json};

/// Members of a cohort, by their identity files.
fn identities(directory: &Path, count: usize) -> Vec<String> {
    (0..count).map(|index| identity(directory, &format!("member-{index}"))).collect()
}

fn warnings(program: &Program) -> Vec<&str> {
    program.seen().iter().filter_map(|event| event["message"].as_str()).collect()
}

#[test]
fn a_killed_service_continues_and_skips_archived_cohorts() {
    let directory = directory("restart-service");
    let state = path(&directory, "state");
    let start = || Service::once(&directory, 3, &["--state", &state]);
    let mut service = start();
    assert!(!warnings(&service.program).iter().any(|warning| warning.contains("--state")));
    let proxy = Proxy::to(service.address());
    let files = identities(&directory, 3);
    let mut members: Vec<Program> =
        files[..2].iter().map(|file| join(&proxy.url(), file, &["--add-beacon"])).collect();
    let mut cohorts = Vec::new();
    // Once during enrollment, and once during signing, approximately.
    for event in ["participant-accepted", "signing-started"] {
        cohorts.push(service.program.event(event)["cohortId"].clone());
        service.program.kill();
        service = start();
        proxy.retarget(service.address());
        let phase = service.program.event("cohort-recovered");
        cohorts.push(phase["cohortId"].clone());
        if event == "participant-accepted" {
            assert_eq!(phase["phase"], "enrolling");
            // A second process with the same directory is refused, with advice.
            let arguments = [
                "serve",
                "--identity",
                &path(&directory, "service"),
                "--chain",
                "offline",
                "--listen",
                "127.0.0.1:0",
                "--state",
                &state,
            ];
            let second = run(&arguments);
            assert_eq!(second.status, Some(1), "{second:?}");
            assert!(second.stderr.contains("in use") && second.stderr.contains("choose another"), "{second:?}");
            let prune = run(&["state", "prune", "--older-than", "1d", "--state", &state]);
            assert_eq!(prune.status, Some(1), "{prune:?}");
            members.push(join(&proxy.url(), &files[2], &["--add-beacon"]));
        }
    }
    let result = service.program.result();
    service_result(&result, "key-path");
    assert!(cohorts.iter().all(|cohort| *cohort == result["cohortId"]), "{cohorts:?}");
    for (member, file) in members.into_iter().zip(&files) {
        participant_result(&member.result(), &did_of(file), &result);
    }
    let listed: Value =
        serde_json::from_str(&run(&["state", "list", "--json", "--state", &state]).succeeded().stdout).unwrap();
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), 2, "a cohort and its session: {listed:#?}");
    assert!(listed.iter().all(|stream| stream["archived"].as_u64().is_some() || stream["archived"].is_string()));
    let shown = run(&["state", "show", text(&result["cohortId"]), "--state", &state]).succeeded().stdout;
    assert!(shown.contains("CohortAdvertised") && shown.contains("Completed"), "{shown}");
}

#[test]
fn a_member_killed_before_its_nonce_continues() {
    let directory = directory("restart-member");
    let state = path(&directory, "kept");
    let mut service = Service::once(&directory, 2, &[]);
    let files = identities(&directory, 2);
    let keeps = ["--add-beacon", "--state", &state];
    let mut killed = service.join(&files[0], &keeps);
    killed.event("opt-in-accepted");
    killed.kill();
    let mut again = service.join(&files[0], &keeps);
    let recovered = again.event("session-recovered");
    assert_eq!(recovered["cohortId"], service.program.event("cohort-advertised")["cohortId"]);
    let second = join(&service.url, &files[0], &keeps).end();
    assert!(second.0 == Some(1) && second.2.contains("in use"), "{second:?}");

    let mut other = service.join(&files[1], &["--add-beacon"]);
    other.event("cohort-ready");
    assert!(warnings(&other).iter().any(|warning| warning.contains("no --state DIR")), "{:?}", other.seen());
    let result = service.program.result();
    service_result(&result, "key-path");
    for (member, file) in [again, other].into_iter().zip(&files) {
        participant_result(&member.result(), &did_of(file), &result);
    }
    let listed = run(&["state", "list", "--json", "--state", &state]).succeeded().stdout;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let sessions = listed.as_array().unwrap().iter().map(|stream| text(&stream["stream"]));
    let sessions: Vec<_> = sessions.filter(|stream| !stream.starts_with("membership/")).collect();
    assert!(sessions.len() == 1 && sessions[0].starts_with("participant/"), "{listed}");
}

#[test]
fn a_member_killed_after_its_nonce_signs_the_fallback() {
    let directory = directory("restart-nonce");
    let state = path(&directory, "kept");
    let service = Service::once(&directory, 3, &["--signing-timeout", "4s"]);
    let files = identities(&directory, 3);
    let steady = ["--add-beacon"];
    let others = [&files[1], &files[2]].map(|file| service.join(file, &steady));
    // It receives nothing after the request for its nonce, so it cannot have signed when it is killed.
    let proxy = Proxy::deaf_behind(service.address(), "sign/authorization_request");
    let keeps = ["--add-beacon", "--state", &state];
    let mut killed = join(&proxy.url(), &files[0], &keeps);
    killed.event("nonce-sent");
    killed.kill();
    let mut again = service.join(&files[0], &keeps);
    again.event("nonce-lost");
    let result = service.program.result();
    service_result(&result, "script-path");
    for (member, file) in [again].into_iter().chain(others).zip(&files) {
        participant_result(&member.result(), &did_of(file), &result);
    }
}

#[test]
fn a_deadline_during_downtime_takes_effect_after_restart() {
    let directory = directory("restart-deadline");
    let state = path(&directory, "state");
    // Long enough that a busy machine kills the service before it.
    let rule = "updates=fail,after=5s";
    let start = || Service::once(&directory, 2, &["--state", &state, "--on-timeout", rule]);
    let mut service = start();
    let files = identities(&directory, 2);
    // They do not receive that the cohort has formed, fetch no request, and submit nothing.
    let deaf = [0, 1].map(|_| Proxy::deaf_behind(service.address(), "keygen/cohort_opt_in_accept"));
    let members = [0, 1].map(|which| {
        let member = join(&deaf[which].url(), &files[which], &["--add-beacon"]);
        service.program.event("participant-accepted");
        member
    });
    service.program.event("keygen-complete");
    let formed = std::time::Instant::now();
    service.program.kill();
    while let Some(rest) = Duration::from_secs(6).checked_sub(formed.elapsed()) {
        std::thread::park_timeout(rest);
    }
    let (status, lines, errors) = start().program.end();
    assert_eq!(status, Some(1), "{lines:#?}{errors}");
    let failed = lines.iter().find(|line| line["event"] == "cohort-failed").unwrap();
    // It listens at another address: no member has fetched the requests, so no member is at fault.
    let unreached = &failed["failure"]["NotDelivered"]["unreached"]["not_fetched"];
    assert_eq!(
        (&failed["code"], unreached.as_array().map(Vec::len)),
        (&json!("NOT_DELIVERED"), Some(2)),
        "{failed}"
    );
    let recovered = lines.iter().find(|line| line["event"] == "cohort-recovered").unwrap();
    assert_eq!((&recovered["phase"], &recovered["cohortId"]), (&json!("collecting updates"), &failed["cohortId"]));
    drop(members);
}

#[test]
fn a_failed_cohort_leaves_its_member_a_singleton() {
    use bitcoin::{Transaction, TxOut, consensus::encode::deserialize_hex, hashes::Hash, hex::DisplayHex};
    use btcr2_aggregation::{
        bitcoin::verify::consensus_accepts,
        protocol::{
            jcs,
            output::{InitialBeacon, InitialBeaconKind},
        },
    };
    let directory = directory("alone");
    let (alone, patch) = (path(&directory, "alone"), path(&directory, "patch.json"));
    let endpoint = json!({ "id": "#inbox", "type": "Inbox", "serviceEndpoint": "https://example.org" });
    std::fs::write(&patch, json!([{ "op": "add", "path": "/service/-", "value": endpoint }]).to_string()).unwrap();
    let service = Service::once(&directory, 2, &["--on-timeout", "updates=fail,after=2s"]);
    let files = identities(&directory, 2);
    let deaf = Proxy::deaf_behind(service.address(), "keygen/cohort_opt_in_accept");
    let mut silent = join(&deaf.url(), &files[0], &["--add-beacon"]);
    silent.event("opt-in-accepted");
    let coin = format!("p2wpkh:{}:1:20000", "ab".repeat(32));
    let arguments =
        ["--update", &patch, "--singleton-fallback", &alone, "--singleton-coin", &coin, "--allow-unlisted-beacon"];
    let (status, lines, errors) = service.join(&files[1], &arguments).end();
    assert_eq!(status, Some(1), "{lines:#?}{errors}");
    let written = lines.iter().find(|line| line["event"] == "singleton-written").unwrap();
    assert_eq!(written["files"].as_array().unwrap().len(), 5, "{written}");
    let read = |name: &str| std::fs::read_to_string(path(Path::new(&alone), name)).unwrap();
    let update: Value = serde_json::from_str(&read("update.json")).unwrap();
    let signed: Transaction = deserialize_hex(read("signed.hex").trim()).unwrap();
    // It announces this update, from the given beacon, and the network accepts it.
    let hash = jcs::document_hash(&update).unwrap();
    let announced = signed.output.last().unwrap().script_pubkey.to_bytes();
    assert_eq!(announced.to_lower_hex_string(), format!("6a20{}", hash.as_bytes().to_lower_hex_string()));
    let beacon = InitialBeacon::of(&did_of(&files[1]).parse().unwrap(), InitialBeaconKind::P2wpkh).unwrap();
    let spent = beacon.address().script_pubkey();
    let coin = TxOut { value: bitcoin::Amount::from_sat(20_000), script_pubkey: spent };
    assert!(consensus_accepts(&signed, &coin));
    assert_eq!(signed.input[0].previous_output.txid, bitcoin::Txid::from_byte_array([0xab; 32]));
}

#[test]
fn a_member_with_restored_older_state_sends_no_second_nonce() {
    let directory = directory("restored");
    let (state, backup) = (path(&directory, "kept"), path(&directory, "backup"));
    let relay = Relay::anywhere();
    let recorder = Recorder::start(&relay.url);
    let arguments =
        ["--relay", &relay.url, "--fallback-threshold", "2", "--on-timeout", "nonces=fall-back,after=15s"];
    let mut service = Service::once(&directory, 3, &arguments);
    let service_did = service.did.clone();
    let files = identities(&directory, 3);
    let over_the_relay = |file: &str| {
        let place = ["join", "--relay", &relay.url, "--service-did", &service_did, "--identity", file];
        let steady = ["--add-beacon", "--exit-when-done", "--events", "json", "--state", &state];
        Program::start(&[&place[..], &steady].concat())
    };
    // One is never asked for its nonce, so there is no aggregate nonce, and no member can have signed. Another one receives
    // the data only when the state of the member, which has approved it, is copied.
    let deaf = Proxy::deaf_behind(service.address(), "update/distribute_aggregated_data");
    let absent = join(&deaf.url(), &files[2], &["--add-beacon"]);
    let late = Proxy::deaf_behind(service.address(), "keygen/cohort_ready");
    let other = join(&late.url(), &files[1], &["--add-beacon"]);
    let mut member = over_the_relay(&files[0]);
    let did = did_of(&files[0]);
    service.program.event_where("validation-received", |event| event["participant"] == did.as_str());
    member.signal("-STOP");
    copy(&state, &backup);
    member.signal("-CONT");
    late.cut();
    let key = did_of(&files[0]).parse::<btcr2_aggregation::protocol::did::Did>().unwrap().key().unwrap();
    let is_of = |kind: &str, event: &nostr_sdk::Event| {
        event.pubkey.to_hex() == key.x_only().to_string()
            && event.tags.iter().any(|tag| tag.content().is_some_and(|content| content.ends_with(kind)))
    };
    member.event("nonce-sent");
    // It may be killed before its nonce has left it, and then may send another one.
    let mut events = recorder.until(|event| is_of("/nonce_contribution", event));
    member.kill();
    std::fs::remove_dir_all(&state).unwrap();
    copy(&backup, &state);

    let mut restored = over_the_relay(&files[0]);
    restored.event("nonce-lost");
    let result = service.program.result();
    service_result(&result, "script-path");
    for (member, file) in [restored, other].into_iter().zip(&files) {
        participant_result(&member.result(), &did_of(file), &result);
    }
    drop(absent);
    // Its messages in both runs.
    events.extend(recorder.until(|event| is_of("/fallback_signature", event)));
    let nonces: BTreeSet<_> =
        events.iter().filter(|event| is_of("/nonce_contribution", event)).map(|event| event.id).collect();
    assert_eq!(nonces.len(), 1);
    assert!(!events.iter().any(|event| is_of("/signature_authorization", event)));
}
