//! `serve` and `join` as processes: whole cohorts, and the outcome when members vanish, connections break, a peer
//! floods the service, and clocks are wrong.

use std::{
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::support::{
    PATIENCE, Program, Service, did_of, directory, external_identity, identity, join, path,
    proxy::Proxy,
    verify::{participant_result, service_result, sidecar, text},
};
use btcr2_aggregation::{
    actors::{
        handle::Participant,
        notice::{Notices, ParticipantNotice},
        runtime::{Clock, Randomness},
        transport::http::HttpClient,
    },
    cas::Publication,
    events::Printer,
    join::{Intent, MemberPolicy, Terms},
    protocol::{
        envelope::SealedEnvelope,
        identity::Identity,
        key::SecretKey,
        message::{Body, Message, update::SubmitNonIncluded},
        network::Network,
        time::Timestamp,
    },
};
use serde_json::{Value, json};

/// A service and five participants as processes: one EXTERNAL, one declining, one with a patch of its own.
fn five_processes(beacon: &str) {
    let directory = directory(&format!("five-{beacon}"));
    let out = path(&directory, "out");
    let mut service = Service::once(&directory, 5, &["--beacon", beacon, "--out", &out]);
    let patch = path(&directory, "patch.json");
    let endpoint = json!({ "id": "#inbox", "type": "Inbox", "serviceEndpoint": "https://example.org" });
    fs::write(&patch, json!([{ "op": "add", "path": "/service/-", "value": endpoint }]).to_string()).unwrap();
    let mut files: Vec<_> = (0..4).map(|index| identity(&directory, &format!("member-{index}"))).collect();
    files.push(external_identity(&directory, "external"));
    let members: Vec<Program> = files
        .iter()
        .enumerate()
        .map(|(index, file)| {
            let (kept, did) = (path(&directory, &format!("kept-{index}")), service.did.clone());
            let intent = match index {
                0 => vec!["--decline"],
                1 => vec!["--update", &patch, "--allow-unlisted-beacon"],
                _ => vec!["--add-beacon"],
            };
            service.join(file, &[&intent[..], &["--out", &kept, "--service-did", &did]].concat())
        })
        .collect();
    let formed = service.program.event("keygen-complete");
    assert_eq!(formed["participants"], 5);
    let url = service.url.clone();
    let result = service.program.result();
    service_result(&result, "key-path");
    assert_eq!(result["holdouts"], json!([]));
    for (index, (member, file)) in members.into_iter().zip(&files).enumerate() {
        let (did, kept) = (did_of(file), member.result());
        participant_result(&kept, &did, &result);
        assert_eq!(kept["included"], index != 0);
        let beacon_in_sidecar = if beacon == "cas" { "casUpdates" } else { "smtProofs" };
        assert!(kept["sidecar"].get(beacon_in_sidecar).is_some());
        if index == 1 {
            assert_eq!(kept["sidecar"]["updates"][0]["patch"][0]["value"], endpoint);
        }
        // The file of --out contains the whole result, and the terms.
        let name = format!("kept-{index}/{}.json", text(&result["cohortId"]));
        let file: Value = serde_json::from_str(&fs::read_to_string(path(&directory, &name)).unwrap()).unwrap();
        assert_eq!(
            (&file["did"], &file["included"], &file["sidecar"]),
            (&json!(did), &kept["included"], &kept["sidecar"])
        );
        assert_eq!(file["cohort"]["beaconAddress"], result["beaconAddress"]);
        check_out_of_service(Path::new(&out), &result, &did, &kept);
    }
    assert!(
        std::net::TcpStream::connect(url.trim_start_matches("http://")).is_err(),
        "the service has closed its port"
    );
}

fn check_out_of_service(out: &Path, result: &Value, did: &str, kept: &Value) {
    let out = out.join(text(&result["cohortId"]));
    assert_eq!(fs::read_to_string(out.join("tx.hex")).unwrap().trim(), text(&result["txHex"]));
    let read = |name: &str| -> Option<Value> {
        Some(serde_json::from_str(&fs::read_to_string(out.join(name)).ok()?).unwrap())
    };
    let mut event = result.clone();
    // The time of printing is not a part of the result.
    event.as_object_mut().unwrap().shift_remove("time");
    assert_eq!(read("result.json").unwrap(), event);
    let mut from_service = kept["sidecar"].clone();
    match kept["sidecar"].get("casUpdates") {
        Some(_) => from_service["casUpdates"][0] = read("announcement.json").unwrap(),
        None => from_service["smtProofs"][0] = read(&format!("proofs/{}.json", did.replace(':', "_"))).unwrap(),
    }
    sidecar(&from_service, did, kept["included"] == true, text(&result["signalHex"]));
}

#[test]
fn five_participant_processes_sign_a_cas_cohort() {
    five_processes("cas");
}

#[test]
fn five_participant_processes_sign_an_smt_cohort() {
    five_processes("smt");
}

#[test]
fn a_member_killed_after_its_nonce_is_named_in_the_fallback() {
    let directory = directory("killed");
    let service = Service::once(&directory, 3, &["--signing-timeout", "2s"]);
    let files: Vec<_> = (0..3).map(|index| identity(&directory, &format!("member-{index}"))).collect();
    // Long enough for the requests that the service makes after its timeout.
    let steady = &["--add-beacon"];
    let members = [service.join(&files[0], steady), service.join(&files[1], steady)];
    // The third member receives nothing after the request for its nonce, so it cannot have signed when it is killed.
    let proxy = Proxy::deaf_behind(service.address(), "sign/authorization_request");
    let mut killed = join(&proxy.url(), &files[2], steady);
    killed.event("nonce-sent");
    killed.kill();
    let result = service.program.result();
    service_result(&result, "script-path");
    assert_eq!(result["holdouts"], json!([did_of(&files[2])]));
    for (member, file) in members.into_iter().zip(&files) {
        let (status, lines, errors) = member.end();
        assert_eq!(status, Some(0), "{lines:#?}{errors}");
        assert!(lines.iter().any(|line| line["event"] == "fallback-requested"), "{lines:#?}");
        participant_result(lines.last().unwrap(), &did_of(file), &result);
    }
}

/// A cohort of two, one of whom is connected through `proxy`; how often its connection was cut.
fn a_cohort_through(name: &str, proxy: impl FnOnce(std::net::SocketAddr) -> Proxy) -> usize {
    let directory = directory(name);
    let service = Service::once(&directory, 2, &[]);
    let proxy = proxy(service.address());
    let files = [identity(&directory, "steady"), identity(&directory, "cut")];
    let members = [service.join(&files[0], &["--add-beacon"]), join(&proxy.url(), &files[1], &["--add-beacon"])];
    let result = service.program.result();
    service_result(&result, "key-path");
    for (member, file) in members.into_iter().zip(&files) {
        participant_result(&member.result(), &did_of(file), &result);
    }
    proxy.cuts()
}

fn occurs(text: &str, data: &[u8]) -> bool {
    data.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_participant_survives_cuts_after_every_service_message() {
    let cuts = a_cohort_through("cut-events", |address| {
        let behind_an_event = |data: &[u8]| occurs("event: message", data);
        Proxy::cutting(address, Box::new(|_| false), Box::new(behind_an_event))
    });
    // Accepted, ready, data, transaction, aggregate nonce; two that come together are cut together.
    assert!((3..=6).contains(&cuts), "{cuts}");
}

#[test]
fn a_participant_survives_cuts_after_every_message_of_its_own() {
    let cuts = a_cohort_through("cut-posts", |address| {
        // The answer is lost, so the member does not know whether its message arrived; its second attempt succeeds.
        let every_other = Mutex::new(false);
        let behind_a_post = move |data: &[u8]| {
            let mut cut = every_other.lock().unwrap();
            *cut ^= occurs("POST /v1/messages", data);
            *cut && occurs("POST /v1/messages", data)
        };
        Proxy::cutting(address, Box::new(behind_a_post), Box::new(|_| false))
    });
    // Opt-in, update, verdict, nonce, partial signature.
    assert!((4..=6).contains(&cuts), "{cuts}");
}

#[test]
fn a_participant_survives_a_cut_after_any_single_message() {
    std::thread::scope(|scope| {
        for k in 1..=5 {
            scope.spawn(move || {
                a_cohort_through(&format!("cut-{k}"), move |address| {
                    let seen = Mutex::new(0);
                    let behind_the_kth = move |data: &[u8]| {
                        let mut seen = seen.lock().unwrap();
                        let before = *seen;
                        *seen += usize::from(occurs("event: message", data));
                        before < k && *seen == k
                    };
                    Proxy::cutting(address, Box::new(|_| false), Box::new(behind_the_kth))
                });
            });
        }
    });
}

#[test]
fn a_did_that_floods_the_service_delays_no_cohort() {
    let directory = directory("flood");
    let service = Service::once(&directory, 3, &[]);
    let (url, did) = (service.url.clone(), service.did.parse().unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    // The members join when the service refuses most of the flood, which goes on.
    let (flooded, under_flood) = std::sync::mpsc::channel();
    let flood = std::thread::spawn(move || {
        actix_rt::System::new().block_on(async {
            let flooder = fresh_identity();
            let (client, mut rng) = (
                btcr2_aggregation::actors::transport::tls::Trust::system().http_client().unwrap().build().unwrap(),
                Randomness::System.for_actor(""),
            );
            let cohort_id = serde_json::from_value(json!("flood")).unwrap();
            let message =
                Message::new(flooder.did().clone(), Some(did), Body::from(SubmitNonIncluded { cohort_id }));
            let (mut accepted, mut limited) = (0, 0);
            while !stopped.load(Ordering::SeqCst) {
                let requests = (0..8).map(|_| {
                    let now = Clock::system().now();
                    let key = flooder.secret_key();
                    let envelope = SealedEnvelope::seal_with_rng(&message, key, now, &mut rng).unwrap();
                    client.post(format!("{url}/v1/messages")).body(envelope.to_json()).send()
                });
                for request in requests.map(actix_rt::spawn).collect::<Vec<_>>() {
                    // The service ends when its cohort is done.
                    let Ok(answer) = request.await.unwrap() else { continue };
                    match answer.status().as_u16() {
                        202 => accepted += 1,
                        429 => limited += 1,
                        other => panic!("{other}"),
                    }
                }
                if accepted >= 30 && limited > accepted {
                    // It is received once.
                    let _ = flooded.send(());
                }
            }
        })
    });
    under_flood.recv_timeout(PATIENCE).expect("most of a flood is refused");
    let files: Vec<_> = (0..3).map(|index| identity(&directory, &format!("member-{index}"))).collect();
    let members: Vec<_> = files.iter().map(|file| service.join(file, &["--add-beacon"])).collect();
    let result = service.program.result();
    stop.store(true, Ordering::SeqCst);
    service_result(&result, "key-path");
    for (member, file) in members.into_iter().zip(&files) {
        participant_result(&member.result(), &did_of(file), &result);
    }
    flood.join().unwrap();
}

fn fresh_identity() -> Identity {
    Identity::from_key(SecretKey::generate(&mut Randomness::System.for_actor("")), Network::Regtest)
}

/// A participant in this process whose clock is `offset` seconds off: how its cohort ended, or that a message of the
/// service did not verify.
async fn participant_with_clock(url: &str, offset: i64) -> Result<Value, String> {
    let now = Clock::system().now().as_millis().checked_add_signed(offset * 1000).unwrap();
    let clock = Clock::starting_at(Timestamp::default() + Duration::from_millis(now));
    let identity = fresh_identity();
    let notices = Notices::new(1 << 10);
    let mut steps = notices.subscribe();
    let policy = MemberPolicy::new(
        identity.clone(),
        None,
        Terms::default(),
        Intent::Decline,
        Publication::default(),
        Printer::new(true),
    );
    let client = HttpClient::new(url, None, clock, Randomness::System).unwrap();
    let builder = Participant::builder(identity, Arc::new(client), Arc::new(policy)).max_sessions(1);
    builder.clock(clock).notices(notices).start().await.unwrap();
    loop {
        match &*tokio::time::timeout(PATIENCE, steps.recv()).await.expect("a step in time").unwrap() {
            ParticipantNotice::CohortComplete { record, .. } => return Ok(record.sidecar(None)),
            ParticipantNotice::MessageUnverified { reason, .. } => return Err(reason.clone()),
            ParticipantNotice::CohortFailed { reason, .. } => panic!("{reason}"),
            _ => {}
        }
    }
}

#[test]
fn clocks_may_be_59_seconds_apart_but_not_61() {
    let directory = directory("clocks");
    let mut service = Service::once(&directory, 2, &[]);
    let url = service.url.clone();
    actix_rt::System::new().block_on(async {
        // A signed message takes a while to arrive, so a clock that is behind by 61 s may be behind by 60 when it is read.
        for offset in [61, -62] {
            let reason = participant_with_clock(&url, offset).await.unwrap_err();
            assert!(reason.contains("more than 60 s apart") && reason.contains("clocks"), "{reason}");
        }
        let (ahead, behind) = tokio::join!(participant_with_clock(&url, 59), participant_with_clock(&url, -59));
        ahead.unwrap();
        behind.unwrap();
    });
    service_result(&service.program.event("result"), "key-path");
    assert_eq!(service.program.seen().iter().filter(|event| event["event"] == "opt-in-received").count(), 2);
}

#[test]
fn signals_stop_both_programs_without_new_work() {
    let directory = directory("signals");
    let member = identity(&directory, "member");
    for signal in ["-TERM", "-INT"] {
        let mut service = Service::start(&directory, &["--min-participants", "2"]);
        service.program.event("cohort-advertised");
        let mut joined = service.join(&member, &["--decline"]);
        joined.event("opt-in-accepted");
        joined.signal(signal);
        let (status, _, errors) = joined.end();
        assert_eq!(status, Some(0), "{errors}");

        let mut joined = service.join(&member, &["--decline"]);
        joined.event("cohort-joined");
        service.program.signal(signal);
        let (status, lines, errors) = service.program.end();
        assert_eq!(status, Some(0), "{errors}");
        let advertised = lines.iter().filter(|line| line["event"] == "cohort-advertised").count();
        assert_eq!(advertised, 1, "no new cohort: {lines:#?}");
        // Without a state directory its cohort is over, and the member is notified of that.
        let (status, lines, errors) = joined.end();
        assert_eq!(status, Some(1), "{errors}");
        let ended = lines.iter().find(|line| line["event"] == "cohort-failed");
        assert_eq!(ended.unwrap()["end"]["EndedByService"]["code"], "CANCELLED", "{lines:#?}");
    }
    // At once, too.
    let service = Service::start(&directory, &[]);
    service.program.signal("-TERM");
    assert_eq!(service.program.end().0, Some(0));
}

#[test]
fn successive_cohorts_have_their_own_results() {
    let directory = directory("several");
    let arguments = ["--min-participants", "1", "--cohorts", "3", "--parallel", "2", "--exit-when-done"];
    let service = Service::start(&directory, &arguments);
    let files: Vec<_> = (0..3).map(|index| identity(&directory, &format!("member-{index}"))).collect();
    for file in &files {
        let joined = service.join(file, &["--add-beacon"]);
        joined.result();
    }
    let (status, lines, errors) = service.program.end();
    assert_eq!(status, Some(0), "{errors}");
    let results: Vec<_> = lines.iter().filter(|line| line["event"] == "result").collect();
    assert_eq!(results.len(), 3);
    results.iter().for_each(|result| service_result(result, "key-path"));
}
