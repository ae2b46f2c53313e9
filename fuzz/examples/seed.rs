//! Writes the committed corpora, from the vectors of the protocol crate: `cargo run --example seed`.
//!
//! A few small inputs of every shape, chosen by size; a fuzzer finds the rest.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use btcr2_aggregation_fuzz::{EDIT, TARGETS, participant};
use btcr2_aggregation_protocol::{
    beacon::BeaconType,
    error::Slot,
    sim::{Role, Setup, Simulation, Verdict},
};
use serde_json::Value;

/// Larger inputs make a fuzzer slow, and the repository large.
const MAX_INPUT: usize = 6_000;

/// The prefix of the names of inputs that once broke a target.
const FINDING: &str = "finding-";

fn vectors(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../protocol/tests/vectors/{name}.json"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn list<'a>(vectors: &'a Value, name: &str) -> &'a [Value] {
    vectors[name].as_array().unwrap_or_else(|| panic!("no list {name}"))
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn inputs(target: &str) -> Vec<String> {
    let edit = char::from(EDIT);
    // No edit, one byte less, a byte twice: the fuzzer finds the rest.
    let edits = [format!("{edit}"), format!("{edit}\u{2}\u{0}\u{9}a"), format!("{edit}\u{3}\u{0}\u{9}\u{20}")];
    let with_edits = |mut inputs: Vec<String>| {
        inputs.extend(edits.clone());
        inputs
    };
    match target {
        "message" => one_of_each(
            list(&vectors("messages"), "messages")
                .iter()
                .map(|message| (text(&message["type"]), text(&message["httpText"]))),
        ),
        "envelope" => with_edits(one_of_each(
            list(&vectors("envelope"), "cases")
                .iter()
                .map(|case| (text(&case["envelope"]["message"]["type"]), text(&case["envelopeText"]))),
        )),
        "request_auth" => {
            let vectors = vectors("request_auth");
            let cases = list(&vectors, "cases").iter().chain(list(&vectors, "tampered"));
            with_edits(
                cases.take(16).map(|case| format!("{}\n{}", text(&case["header"]), text(&case["path"]))).collect(),
            )
        }
        "nostr_event" => {
            let vectors = vectors("nostr");
            let events = list(&vectors, "events").iter();
            let mut inputs = one_of_each(
                events.map(|case| (text(&case["event"]["kind"]) + &text(&case["name"]), text(&case["event"]))),
            );
            inputs.sort_by_key(String::len);
            inputs.truncate(6);
            let payloads = list(&vectors, "nip44").iter().map(|case| format!("-{}", text(&case["payload"])));
            inputs.extend(payloads.filter(|payload| payload.len() < 400).take(4));
            inputs.extend(["+".to_owned(), "+a".to_owned(), format!("+{}", "ab".repeat(300))]);
            with_edits(inputs)
        }
        "journal_record" => records(),
        "resolution" => {
            let text = std::iter::once(sidecar());
            let hostile = [
                "{}",
                r#"{"updates":[5,{"patch":[]},{"n":1e300}],"casUpdates":[[],{"x":1}],"smtProofs":[{"id":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}],"minConf":1}"#,
                r#"{"updates":null,"sidecar":{"updates":[]},"content":["{",{}],"versionId":"2"}"#,
            ];
            with_edits(text.chain(hostile.map(str::to_owned)).collect())
        }
        "smt_proof" => {
            let vectors = vectors("smt");
            let trees = list(&vectors, "trees").iter().take(5);
            let proofs = trees.flat_map(|tree| list(tree, "entries").first()).map(|entry| text(&entry["proof"]));
            let trees = ["#", "#\u{0}\u{1}a", "#\u{0}\u{1}a\u{1f}\u{1}b\u{1f}\u{2}c", "#\u{0}\u{1}a\u{0}\u{1}a"];
            proofs.chain(trees.map(str::to_owned)).collect()
        }
        "update" => {
            let vectors = vectors("update");
            let cases = list(&vectors, "cases").iter().take(3);
            let updates = cases.clone().map(|case| text(&case["signedUpdate"]));
            let patches = cases.map(|case| text(&case["patch"]));
            let hostile = r#"[{"op":"copy","from":"","path":"/a"},{"op":"move","from":"/a","path":"/b"},{"op":"test","path":"/b","value":1e16},{"op":"remove","path":"/b"}]"#;
            with_edits(updates.chain(patches).chain([hostile.to_owned()]).collect())
        }
        "participant" => {
            let rounds = participant::recorded();
            let silent = rounds.iter().map(|round| round.lines().take(4).collect::<Vec<_>>().join("\n") + "\nt\nn");
            rounds.iter().cloned().chain(silent).collect()
        }
        other => panic!("no inputs for {other}"),
    }
}

/// The Sidecar Data of the specification's example.
fn sidecar() -> String {
    let case = vectors("suite/spec-sidecar-data");
    let sidecar = serde_json::json!({
        "updates": case["updates"],
        "casUpdates": [case["casAnnouncement"]],
        "smtProofs": [case["smtProof"]],
    });
    sidecar.to_string()
}

/// The shortest of each kind.
fn one_of_each(inputs: impl Iterator<Item = (String, String)>) -> Vec<String> {
    let mut shortest: BTreeMap<String, String> = BTreeMap::new();
    for (kind, input) in inputs {
        let kept = shortest.entry(kind).or_insert_with(|| input.clone());
        if input.len() < kept.len() {
            *kept = input;
        }
    }
    shortest.into_values().collect()
}

/// One event of each kind, of every role, from simulated rounds that complete, fail, and take the fallback.
fn records() -> Vec<String> {
    let member = Role::default;
    let setups = [
        Setup::new(vec![member(), Role::decliner()]),
        Setup::new(vec![member(), member()]).with_beacon(BeaconType::smt()),
        Setup::new(vec![member(), member(), member().silent_from(Slot::Nonce)]),
        Setup::new(vec![member(), member().without(Slot::Update)]),
        Setup::new(vec![member(), Role { verdict: Verdict::Reject, ..member() }]),
    ];
    let mut events = Vec::new();
    for (seed, setup) in (0..).zip(setups) {
        let mut simulation = Simulation::new(seed, setup);
        simulation.run();
        let service = simulation.service();
        events.extend(service.events().iter().map(json));
        events.extend(service.session().into_iter().flat_map(|session| session.events().iter().map(json)));
        events.extend(simulation.participants().iter().flat_map(|member| member.events().iter().map(json)));
    }
    one_of_each(events.into_iter().map(|event| {
        let name =
            event.as_object().and_then(|event| event.keys().next()).map_or_else(|| text(&event), String::clone);
        (name, event.to_string())
    }))
}

fn json(event: &impl serde::Serialize) -> Value {
    serde_json::to_value(event).expect("an event serializes")
}

fn main() -> io::Result<()> {
    for (target, check) in TARGETS {
        let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        fs::create_dir_all(&corpus)?;
        for file in fs::read_dir(&corpus)? {
            let file = file?;
            // Findings of a fuzzer cannot be made again.
            if !file.file_name().to_string_lossy().starts_with(FINDING) {
                fs::remove_file(file.path())?;
            }
        }
        let inputs = inputs(target).into_iter().filter(|input| input.len() <= MAX_INPUT);
        for (number, input) in inputs.enumerate() {
            check(input.as_bytes());
            fs::write(corpus.join(format!("{number:02}")), input)?;
        }
    }
    Ok(())
}
