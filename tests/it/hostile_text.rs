//! Whatever peers say is shown and logged on one line of bounded length, without characters that do something to a terminal or
//! hide what is written: hostile text in every field of every message, and what `serve`, `join`, `state show`, `bans`, logs
//! and events make of it.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Stdio},
    sync::Arc,
    thread::JoinHandle,
};

use crate::round_support::{
    Over, PATIENCE, Scenario,
    round::{Door, cohort, open_door, start_service},
    tap::{Tap, Tapped},
};
use crate::support::{command, directory, identity, path, run};
use btcr2_aggregation::{
    actors::{
        bans::{BanBook, DefaultBans, Entry, Offence},
        journal::MemoryJournal,
        runtime::{Clock, Randomness},
        transport::{Evidence, Outbound, tls::Trust},
    },
    protocol::{
        envelope::ParsedEnvelope,
        hash::sha256,
        id::{CohortId, SessionId},
        identity::Identity,
        message::{
            Body, Bytes, Message, SharedBody,
            control::{CohortEnded, Presence, PresenceRequest},
            keygen::{CohortOptIn, CohortOptInAccept, CohortReady, Cost},
            sign::{AggregatedNonce, FallbackSignature, NonceContribution, SignatureAuthorization},
            update::{SubmitNonIncluded, SubmitUpdate, ValidationAck},
        },
        text::is_unsafe,
    },
};
use serde_json::{Value, json};

/// How long a line may be that somebody reads.
const LONGEST: usize = 10_000;

/// A line end, C0, DEL, C1, what changes the direction of text, and what is not seen; and too much of it.
fn hostile() -> String {
    let text =
        "x\nFORGED \r\u{1b}[2J\u{7}\u{0}\u{7f}\u{9b}31m\u{85}\u{202e}\u{2066}\u{2028}\u{200b}\u{feff}\u{e0041}";
    format!("{text}{}", "y".repeat(12_000))
}

fn assert_harmless(of: &str, text: &str, longest: usize) {
    for line in text.lines() {
        let start: String = line.chars().take(300).collect();
        if let Some(c) = line.chars().find(|c| is_unsafe(*c)) {
            panic!("{of} shows {:?}: {start}", c);
        }
        assert!(!line.starts_with("FORGED"), "{of}: a peer has made a line of its own: {start}");
        assert!(line.chars().count() <= longest, "{of}: {} characters: {start}", line.chars().count());
    }
}

/// The same message with hostile text in the place of each text, and as the name of a field in each object.
fn variants(message: &Value) -> Vec<Value> {
    fn places(value: &Value, at: &str, found: &mut Vec<(String, bool)>) {
        match value {
            Value::String(_) => found.push((at.to_owned(), false)),
            Value::Object(fields) => {
                found.push((at.to_owned(), true));
                for (name, value) in fields {
                    let name = name.replace('~', "~0").replace('/', "~1");
                    places(value, &format!("{at}/{name}"), found);
                }
            }
            Value::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    places(value, &format!("{at}/{index}"), found);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    places(message, "", &mut found);
    let variant = |(place, is_name): &(String, bool)| {
        let mut variant = message.clone();
        let at = variant.pointer_mut(place).unwrap();
        match is_name {
            true => drop(at.as_object_mut().unwrap().insert(hostile(), json!(hostile()))),
            false => *at = json!(hostile()),
        }
        variant
    };
    found.iter().map(variant).collect()
}

/// An envelope around any JSON, signed.
fn sealed(message: &Value, from: &Identity, to: &str, number: u64) -> String {
    let mut envelope = json!({
        "v": 1, "from": from.did(), "to": to, "timestamp": Clock::system().now().as_secs(),
        "nonce": format!("{number:032x}"), "message": message, "sig": "00".repeat(64),
    });
    let text = envelope.to_string();
    // What has no canonical form cannot be signed, but can be said.
    let Ok(parsed) = ParsedEnvelope::parse(&text) else { return text };
    let digest = sha256(&parsed.signing_bytes().unwrap());
    let signature = from.secret_key().sign(&digest, &mut Randomness::System.for_actor("villain"));
    envelope["sig"] = json!(signature.to_string());
    envelope.to_string()
}

/// One message of every type that members send, and some that they do not.
fn messages(cohort_id: &CohortId, from: &Identity) -> Vec<Message> {
    let (cohort_id, session_id) = (cohort_id.clone(), SessionId::parse("session").unwrap());
    let key = Bytes(from.public_key().to_bytes());
    let update = json!({
        "@context": ["https://w3id.org/security/v2"], "patch": [{ "op": "add", "path": "/x", "value": "y" }],
        "sourceHash": "s", "targetHash": "t", "targetVersionId": 2,
        "proof": {
            "type": "DataIntegrityProof", "cryptosuite": "bip340-jcs-2025", "verificationMethod": "#k",
            "proofPurpose": "capabilityInvocation", "capability": "urn:zcap", "capabilityAction": "Write",
            "proofValue": "z1",
        },
    });
    let bodies: Vec<Body> = vec![
        CohortOptIn {
            cohort_id: cohort_id.clone(),
            participant_pk: key,
            communication_pk: key,
            genesis_document: Some(Arc::new(json!({ "id": "x", "verificationMethod": [{ "id": "#k" }] }))),
            invite: None,
        }
        .into(),
        SubmitUpdate { cohort_id: cohort_id.clone(), signed_update: update.into() }.into(),
        SubmitNonIncluded { cohort_id: cohort_id.clone() }.into(),
        ValidationAck { cohort_id: cohort_id.clone(), approved: false }.into(),
        Presence { cohort_id: cohort_id.clone() }.into(),
        PresenceRequest { cohort_id: cohort_id.clone() }.into(),
        NonceContribution {
            cohort_id: cohort_id.clone(),
            session_id: session_id.clone(),
            nonce_contribution: Bytes([2; 66]),
        }
        .into(),
        SignatureAuthorization {
            cohort_id: cohort_id.clone(),
            session_id: session_id.clone(),
            partial_signature: Bytes([1; 32]),
        }
        .into(),
        FallbackSignature {
            cohort_id: cohort_id.clone(),
            session_id: session_id.clone(),
            signer_pk: Bytes(from.public_key().x_only().to_bytes()),
            fallback_signature: Bytes([1; 64]),
        }
        .into(),
        CohortOptInAccept { cohort_id: cohort_id.clone() }.into(),
        AggregatedNonce { cohort_id: cohort_id.clone(), session_id, aggregated_nonce: Bytes([2; 66]) }.into(),
        ended(&cohort_id).into(),
    ];
    bodies.into_iter().map(|body| Message::new(from.did().clone(), None, body)).collect()
}

fn ended(cohort_id: &CohortId) -> CohortEnded {
    CohortEnded {
        cohort_id: cohort_id.clone(),
        code: hostile(),
        reason: hostile(),
        at_fault: true,
        next_cohort_id: None,
        signed: None,
        opt_in: None,
    }
}

/// A program whose output is read as it is.
struct Raw {
    child: Child,
    seen: String,
    stdout: BufReader<std::process::ChildStdout>,
    stderr: JoinHandle<String>,
}

impl Raw {
    fn start(arguments: &[&str], secret: &str) -> Self {
        let mut command = command(arguments);
        command.env("RUST_LOG", "trace,h2=off,hyper=off,mio=off").env("TEST_SECRET", secret);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).unwrap();
            String::from_utf8(bytes).unwrap()
        });
        Self { child, seen: String::new(), stdout, stderr }
    }

    /// The first line with `what` in it.
    fn line_with(&mut self, what: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "ended without {what}: {}", self.seen);
            self.seen.push_str(&line);
            if line.contains(what) {
                return line;
            }
        }
    }

    /// All that it has said, when it has ended.
    fn end(mut self) -> (String, String) {
        self.stdout.read_to_string(&mut self.seen).unwrap();
        self.child.wait().unwrap();
        (std::mem::take(&mut self.seen), self.stderr.join().unwrap())
    }

    fn stop(self) -> (String, String) {
        let pid = self.child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.end()
    }
}

/// What stands between the end of `before` and the next character that ends a word.
fn behind<'a>(text: &'a str, before: &str) -> &'a str {
    let rest = text.split_once(before).unwrap().1;
    rest.split(['"', ' ', '\n']).next().unwrap()
}

fn serve_shows(directory: &Path, format: &str, log: &str) {
    let state = path(directory, &format!("state-{format}"));
    let service = identity(directory, &format!("service-{format}"));
    let mut program = Raw::start(
        &[
            "serve",
            "--identity",
            &service,
            "--chain",
            "offline",
            "--listen",
            "127.0.0.1:0",
            "--events",
            format,
            "--log",
            log,
            "--min-participants",
            "1",
            "--cohorts",
            "1",
            "--state",
            &state,
            "--did-rate",
            "100000",
            "--did-burst",
            "100000",
        ],
        "",
    );
    let serving = program.line_with("http://");
    let url = format!("http://{}", behind(&serving, "http://"));
    let did = format!("did:btcr2:{}", behind(&program.seen, "did:btcr2:"));
    let advertised = program.line_with("advertised");
    let cohort_id = behind(&advertised, if format == "json" { "\"cohortId\":\"" } else { "cohort " }).to_owned();
    let cohort_id = CohortId::parse(&cohort_id).unwrap();
    let villain = crate::nostr_support::identity("villain");
    let member = {
        let key = Bytes(villain.public_key().to_bytes());
        let (participant_pk, communication_pk) = (key, key);
        let (cohort_id, genesis_document, invite) = (cohort_id.clone(), None, None);
        CohortOptIn { cohort_id, participant_pk, communication_pk, genesis_document, invite }
    };
    let to: btcr2_aggregation::protocol::did::Did = did.parse().unwrap();
    let value = |message: &Message| {
        let mut value: Value = serde_json::from_str(&message.to_json()).unwrap();
        value["to"] = json!(to);
        value
    };
    actix_rt::System::new().block_on(async {
        let client = Trust::system().http_client().unwrap().build().unwrap();
        let mut number = 0;
        let mut post = async |message: &Value| {
            number += 1;
            let body = sealed(message, &villain, &did, number);
            client.post(format!("{url}/v1/messages")).body(body).send().await.unwrap().status().as_u16()
        };
        // From outside of the cohort, and then from inside.
        let all = messages(&cohort_id, &villain);
        let mut accepted = 0;
        for inside in [false, true] {
            if inside {
                let opt_in = Message::new(villain.did().clone(), None, Body::from(member.clone()));
                assert_eq!(post(&value(&opt_in)).await, 202);
            }
            for message in &all {
                for variant in variants(&value(message)) {
                    accepted += u32::from(post(&variant).await == 202);
                }
            }
        }
        assert!(accepted > 100, "{accepted} have reached the service");
    });
    // Whether the journal holds hostile text or not: it is shown while the service runs.
    let shown = run(&["state", "show", cohort_id.as_str(), "--state", &state]).succeeded();
    assert_harmless("state show", &shown.all(), LONGEST);
    let (stdout, stderr) = program.stop();
    assert!(stdout.contains("refused from") || stdout.contains("message-rejected"), "{stdout}");
    assert_harmless("the output of serve", &stdout, LONGEST);
    assert_harmless("the log of serve", &stderr, LONGEST);
    for line in stdout.lines().filter(|_| format == "json").chain(stderr.lines().filter(|_| log == "json")) {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

#[test]
fn serve_shows_and_logs_what_members_say_harmlessly() {
    let directory = directory("hostile-text-serve");
    serve_shows(&directory, "json", "json");
    serve_shows(&directory, "text", "text");
}

#[test]
fn bans_show_what_members_have_said_harmlessly() {
    let directory = directory("hostile-text-bans");
    let book = BanBook::open(&directory.join("bans.redb"), Arc::new(DefaultBans)).unwrap();
    let villain = crate::nostr_support::identity("villain");
    let entry = Entry {
        offence: Offence::Equivocation,
        cohort_id: CohortId::parse("cohort").unwrap(),
        at: Clock::system().now(),
        detail: hostile(),
        address: None,
        invite: None,
        evidence: vec![Evidence::NostrEvent(hostile().into())],
    };
    book.record(villain.did(), entry);
    book.add(villain.did(), Clock::system().now() + PATIENCE, Some(hostile())).unwrap();
    assert!(book.flush());
    let state = directory.to_str().unwrap();
    assert_harmless("bans list", &run(&["bans", "list", "--state", state]).succeeded().all(), LONGEST);
    for format in [&[][..], &["--json"]] {
        let shown =
            run(&[&["bans", "show", villain.did().as_str(), "--state", state], format].concat()).succeeded();
        // Evidence is shown whole.
        assert_harmless("bans show", &shown.all(), usize::MAX);
        assert!(shown.stdout.contains("yyy"));
    }
}

/// A service that says hostile things.
struct Villain;

impl Tap for Villain {
    fn rewrite(&self, outbound: Outbound) -> Vec<Outbound> {
        match outbound {
            Outbound::Broadcast { body } => {
                let Body::CohortAdvert(advert) = &*body else { return vec![Outbound::Broadcast { body }] };
                let mut priced = advert.clone();
                priced.cohort_id = CohortId::parse("priced").unwrap();
                priced.cost_of_enrollment = Some(Cost { amount: 5.into(), unit: hostile(), basis: None });
                [Body::from(priced).into(), body.clone()].map(|body| Outbound::Broadcast { body }).into()
            }
            Outbound::Direct { to, body, until } => {
                let cohort_id = body.cohort_id().clone();
                let bodies: Vec<SharedBody> = match &*body {
                    Body::CohortOptInAccept(_) => {
                        let ready = CohortReady {
                            cohort_id: cohort_id.clone(),
                            beacon_address: hostile(),
                            cohort_keys: Vec::new(),
                        };
                        vec![body.clone(), ready.into(), ended(&cohort_id).into()]
                    }
                    _ => vec![body.clone()],
                };
                let direct = |body| Outbound::Direct { to: to.clone(), body, until };
                bodies.into_iter().map(direct).collect()
            }
            other => vec![other],
        }
    }
}

fn join_shows(directory: &Path, format: &'static str, log: &'static str) {
    let state = path(directory, &format!("state-{format}"));
    let file = identity(directory, &format!("member-{format}"));
    let (stdout, stderr) = actix_rt::System::new().block_on(async {
        let Door { place, transport, relay } = open_door(Over::Http).await;
        let taps: Vec<Arc<dyn Tap>> = vec![Arc::new(Villain)];
        let transport = Arc::new(Tapped { inner: transport, taps });
        let (service, _running) = start_service(transport, Arc::new(MemoryJournal::new())).await;
        service.send(cohort(&Scenario::ALL[0], 2, PATIENCE, PATIENCE)).await.unwrap().unwrap();
        let kept = state.clone();
        let ended = actix_rt::task::spawn_blocking(move || {
            let arguments = [
                "join",
                "--service",
                &place,
                "--identity",
                &file,
                "--decline",
                "--exit-when-done",
                "--state",
                &kept,
                "--events",
                format,
                "--log",
                log,
            ];
            Raw::start(&arguments, "").end()
        });
        let ended = ended.await.unwrap();
        drop(relay);
        ended
    });
    assert!(stdout.contains("passed over") || stdout.contains("cohort-passed-over"), "{stdout}");
    assert!(stdout.contains("the service ended the cohort"), "{stdout}");
    assert_harmless("the output of join", &stdout, LONGEST);
    assert_harmless("the log of join", &stderr, LONGEST);
    for line in stdout.lines().filter(|_| format == "json") {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    let list = run(&["state", "list", "--state", &state, "--json"]).succeeded().stdout;
    assert_harmless("state list", &list, LONGEST);
    let streams: Value = serde_json::from_str(&list).unwrap();
    let stream = streams[0]["stream"].as_str().unwrap();
    let cohort_id = stream.split('/').next_back().unwrap();
    let shown = run(&["state", "show", cohort_id, "--state", &state]);
    assert_harmless("state show", &shown.all(), LONGEST);
}

#[test]
fn join_shows_and_logs_what_a_service_says_harmlessly() {
    let directory = directory("hostile-text-join");
    join_shows(&directory, "json", "json");
    join_shows(&directory, "text", "text");
}
