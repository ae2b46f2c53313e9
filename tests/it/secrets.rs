//! No secret is in any log, at any level: whole rounds at `RUST_LOG=trace`, and every secret of them.
//!
//! The tests search for each secret that they know. Only the member that made a nonce knows it: so they test whether any 32 bytes
//! that are spelled in a log are the secret of a public nonce or key of the round.

use std::{
    collections::BTreeSet,
    env,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::round_support::{
    MEMBERS, PATIENCE, Scenario,
    round::{
        Door, cohort, member_identity, open_door, record, service_identity, start_member, start_service,
        transport_to,
    },
    tap::{Tap, Tapped},
};
use crate::support::{
    Program, command, directory,
    logged::{Log, Logged},
    path, run_with,
};
use btcr2_aggregation::{
    actors::{journal::MemoryJournal, notice::ServiceNotice, transport::Outbound},
    protocol::{did::Did, identity::Identity, key::SecretKey, message::Body, network::Network},
};
use data_encoding::HEXLOWER;
use serde_json::Value;
use tracing_subscriber::EnvFilter;

/// The messages of a round, with the public counterparts of its secrets.
#[derive(Default)]
struct Messages {
    /// The x coordinates of all points whose secret a party stores.
    points: BTreeSet<[u8; 32]>,
    updates: Vec<Value>,
    fallback_signatures: usize,
}

impl Messages {
    fn key(&mut self, identity: &Identity) {
        self.points.insert(identity.public_key().x_only().to_bytes());
    }
}

#[derive(Default)]
struct Recorder(Mutex<Messages>);

impl Tap for Recorder {
    fn given(&self, _: &Did, outbound: &Outbound) {
        let Outbound::Direct { body, .. } = outbound else { return };
        let mut messages = self.0.lock().unwrap();
        match &**body {
            Body::SubmitUpdate(submitted) => messages.updates.push((*submitted.signed_update).clone()),
            Body::NonceContribution(nonce) => {
                for point in nonce.nonce_contribution.0.chunks(33) {
                    messages.points.insert(point[1..].try_into().unwrap());
                }
            }
            Body::FallbackSignature(signature) => {
                // The nonce of the signature is its first half.
                messages.points.insert(signature.fallback_signature.0[..32].try_into().unwrap());
                messages.fallback_signatures += 1;
            }
            _ => {}
        }
    }
}

/// A whole round of all roles in this process, and its messages.
async fn round(scenario: &Scenario) -> Messages {
    let recorder = Arc::new(Recorder::default());
    let taps: Vec<Arc<dyn Tap>> = vec![recorder.clone()];
    let Door { place, transport: inner, relay: _relay } = open_door(scenario.over).await;
    let transport = Arc::new(Tapped { inner, taps: taps.clone() });
    let (service, mut running) = start_service(transport, Arc::new(MemoryJournal::new())).await;
    let nonces = if scenario.fallback { Duration::from_millis(300) } else { PATIENCE };
    service.open(cohort(scenario, MEMBERS, nonces, PATIENCE)).await.unwrap();
    let mut members = Vec::new();
    for member in 0..MEMBERS {
        let transport = Arc::new(Tapped { inner: transport_to(scenario.over, &place), taps: taps.clone() });
        members.push(start_member(scenario, member, transport, Arc::new(MemoryJournal::new())).await);
    }
    let completes = async {
        while !matches!(&*running.notices.recv().await.unwrap(), ServiceNotice::SigningComplete { .. }) {}
        for (number, member) in members.iter_mut().enumerate() {
            while !scenario.is_silent(number) && record(&member.notices.recv().await.unwrap()).is_none() {}
        }
    };
    tokio::time::timeout(PATIENCE, completes).await.expect("the round completes");
    let mut messages = std::mem::take(&mut *recorder.0.lock().unwrap());
    (0..MEMBERS).map(member_identity).chain([service_identity()]).for_each(|identity| messages.key(&identity));
    messages
}

/// The strings that only an update contains: its hashes, its proof, the service that it adds.
fn own_strings(update: &Value, strings: &mut Vec<String>) {
    match update {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    (
                        "sourceHash" | "targetHash" | "proofValue" | "serviceEndpoint" | "path",
                        Value::String(text),
                    ) => {
                        strings.push(text.clone());
                    }
                    (_, value) => own_strings(value, strings),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| own_strings(value, strings)),
        _ => {}
    }
}

/// Asserts that no update is in the log, in whole or in part.
fn assert_no_update(log: &Logged, updates: &[Value], whose: &str) {
    let mut strings = vec!["proofValue".to_owned(), "targetHash".to_owned()];
    updates.iter().for_each(|update| own_strings(update, &mut strings));
    assert!(strings.len() >= 2 + 3 * updates.len(), "the updates are not understood: {updates:?}");
    for string in strings {
        assert_eq!(log.line_with(string.as_bytes()), None, "{whose}: {string} of an update is in the log");
    }
}

#[test]
fn the_log_of_a_round_has_no_key_nonce_or_update() {
    // In a process of its own: the log has what all threads write, and those of other tests would fill the memory.
    const OWN_PROCESS: &str = "TEST_IN_OWN_PROCESS";
    if env::var_os(OWN_PROCESS).is_none() {
        let name = "secrets::the_log_of_a_round_has_no_key_nonce_or_update";
        let own = Command::new(env::current_exe().unwrap())
            .args(["--exact", name])
            .env(OWN_PROCESS, "1")
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&own.stdout), String::from_utf8_lossy(&own.stderr));
        assert!(own.status.success() && out.contains("1 passed"), "{out}{err}");
        return;
    }
    let log = Log::default();
    // For all threads: requests and heavy work have threads of their own.
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("trace"))
        .with_writer(log.clone())
        .with_ansi(false)
        .init();
    for scenario in Scenario::ALL {
        let messages = actix_rt::System::new().block_on(round(&scenario));
        let (log, name) = (log.take(), scenario.name);
        let silent = usize::from(scenario.fallback);
        assert_eq!(messages.updates.len(), MEMBERS - 1, "one declines");
        assert_eq!(messages.fallback_signatures, silent * (MEMBERS - 1), "{name}");
        assert_eq!(
            messages.points.len(),
            MEMBERS + 1 + 2 * (MEMBERS - silent) + messages.fallback_signatures,
            "keys, two halves of each nonce, and the nonce of each fallback signature: {name}"
        );
        // The log is that of this round; otherwise the search would prove nothing.
        for step in ["signing-started", "nonce-received", "update-submitted", "signature-sent"] {
            assert!(log.text.contains(step), "{name} logs no {step}");
        }

        for identity in (0..MEMBERS).map(member_identity).chain([service_identity()]) {
            let secret = HEXLOWER.decode(identity.secret_key().to_hex().as_bytes()).unwrap();
            assert_eq!(log.line_with(&secret), None, "{name}: the key of {} is in the log", identity.did());
        }
        assert_eq!(log.line_with_secret_of(&messages.points), None, "{name}: a secret is in the log");
        assert_no_update(&log, &messages.updates, name);
    }
}

/// An identity whose key is in the environment of its program.
fn known(name: &str) -> (Identity, String) {
    let secret = btcr2_aggregation::protocol::hash::sha256(name.as_bytes());
    (Identity::from_key(SecretKey::from_bytes(&secret).unwrap(), Network::Regtest), HEXLOWER.encode(&secret))
}

const PASSPHRASE: &str = "correct horse battery staple";

#[test]
fn the_logs_of_programs_have_no_key_passphrase_or_update() {
    let directory = directory("secrets");
    let people = ["service", "one", "two"].map(known);
    let [(_, service), (_, one), (_, two)] = &people;
    let encrypted = path(&directory, "two");
    let make = ["identity", "new", "--encrypt", "--secret-env", "TEST_SECRET", "--out", &encrypted];
    run_with(&make, &[("TEST_SECRET", two), ("BTCR2_PASSPHRASE", PASSPHRASE)]).succeeded();
    let (from_environment, from_file) = (["--secret-env", "TEST_SECRET"], ["--identity", encrypted.as_str()]);
    let cas = format!("dir={}", path(&directory, "cas"));
    for format in ["text", "json"] {
        let traced = |fixed: &[&str], own: &[&str], secret: &str, state: &str| {
            let mut command = command(fixed);
            command.args(own).args(["--log", format, "--events", "json", "--cas", &cas]);
            command.args(["--state", &path(&directory, &format!("{format} {state}"))]);
            command.env("TEST_SECRET", secret).env("BTCR2_PASSPHRASE", PASSPHRASE).env("RUST_LOG", "trace");
            Program::launch(command)
        };
        let serve = ["serve", "--chain", "offline", "--listen", "127.0.0.1:0", "--min-participants", "2"];
        let serve = [&serve[..], &["--cohorts", "1", "--exit-when-done"]].concat();
        let mut serve = traced(&serve, &from_environment, service, "service");
        let url = serve.event("serving")["url"].as_str().unwrap().to_owned();
        let join = ["join", "--service", &url, "--exit-when-done", "--add-beacon"];
        let one = traced(&join, &from_environment, one, "one");
        let two = traced(&join, &from_file, "", "two");
        let (mut logs, mut events, mut updates) = (String::new(), String::new(), Vec::new());
        for program in [one, two, serve] {
            let (status, lines, log) = program.end();
            assert_eq!(status, Some(0), "{lines:#?}\n{log}");
            logs += &log;
            events.extend(lines.iter().map(|line| format!("{line}\n")));
            let result = lines.last().unwrap();
            updates.extend(result["sidecar"]["updates"].as_array().into_iter().flatten().cloned());
        }
        assert_eq!(updates.len(), 2, "each keeps its own");
        let points = people.iter().map(|(identity, _)| identity.public_key().x_only().to_bytes()).collect();
        // The member's record of its update is in its last event, as intended.
        let (logs, events) = (Logged::new(logs), Logged::new(events));
        assert_no_update(&logs, &updates, format);
        for output in [logs, events] {
            assert!(
                output.text.contains("signing-complete") && output.text.contains("cohort-complete"),
                "{}",
                output.text
            );
            for (identity, secret) in &people {
                let secret = HEXLOWER.decode(secret.as_bytes()).unwrap();
                assert_eq!(output.line_with(&secret), None, "--log {format}: the key of {}", identity.did());
            }
            assert_eq!(output.line_with_secret_of(&points), None, "--log {format}");
            assert_eq!(output.line_with(PASSPHRASE.as_bytes()), None, "--log {format}");
        }
    }
}

#[test]
fn a_secret_is_found_in_any_spelling() {
    let (identity, hex) = known("planted");
    let secret = HEXLOWER.decode(hex.as_bytes()).unwrap();
    let points = BTreeSet::from([identity.public_key().x_only().to_bytes()]);
    // As the first or the second half of a BIP-327 secret nonce.
    let (first, second) = ([&secret[..], &[7; 65]].concat(), [&[7; 32], &secret[..], &[7; 33]].concat());
    for bytes in [&secret, &first, &second] {
        for spelling in [
            HEXLOWER.encode(bytes),
            data_encoding::HEXUPPER.encode(bytes),
            data_encoding::BASE64.encode(bytes),
            data_encoding::BASE64URL_NOPAD.encode(bytes),
            format!("{bytes:?}"),
            serde_json::to_string(bytes).unwrap(),
        ] {
            let log = Logged::new(format!("first\nTRACE it is {spelling} here\nlast"));
            let line = log.text.lines().nth(1);
            assert_eq!(log.line_with(&secret), line, "{spelling}");
            assert_eq!(log.line_with_secret_of(&points), line, "{spelling}");
        }
    }
    let update = serde_json::json!({ "proof": { "proofValue": "zProof" } }).to_string();
    for spelling in [update.clone(), HEXLOWER.encode(update.as_bytes()), format!("{:?}", update.as_bytes())] {
        let log = Logged::new(format!("one\nDEBUG body={spelling}\n"));
        assert_eq!(log.line_with(b"zProof"), log.text.lines().nth(1), "{spelling}");
    }
    assert_eq!(Logged::new(format!("txid {}", "ab".repeat(32))).line_with_secret_of(&points), None);
}
