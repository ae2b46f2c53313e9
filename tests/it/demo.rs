//! The `demo` command as people and scripts use it: the real binary, its output, its files and its exit status. The tests
//! verify its output again, by the `bitcoin` and `bitcoinconsensus` crates and by hashing the sidecars.

mod standing;
mod transaction;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bitcoin::{
    Address, Amount, ScriptBuf, Transaction, TxOut,
    consensus::encode::deserialize_hex,
    hashes::{Hash, sha256},
    hex::{DisplayHex, FromHex},
};
use btcr2_aggregation::protocol::{
    beacon::{SmtNonce, SmtProof, smt_index, smt_leaf},
    did::Did,
    hash::DocumentHash,
    jcs,
    network::Network,
};
use serde_json::Value;

use self::transaction::{verify_consensus, verify_key_path, verify_script_path};

/// The outcome of a call of the program.
struct Run {
    status: i32,
    stdout: String,
    stderr: String,
}

fn run(arguments: &[&str]) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_btcr2-aggregation"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts");
    Run {
        status: output.status.code().expect("the program ends by itself"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The last line of standard output, which scripts read.
fn last_line(run: &Run) -> Value {
    let line = run.stdout.lines().last().unwrap_or_else(|| panic!("no output; on standard error: {}", run.stderr));
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"))
}

/// Runs a demo that succeeds, and verifies everything that it reports.
fn demo(arguments: &[&str]) -> Value {
    let run = run(&[&["demo", "--json"], arguments].concat());
    assert_eq!(run.status, 0, "{arguments:?}: {}", run.stderr);
    let report = last_line(&run);
    verify(&report);
    report
}

/// A directory of this test's own that does not exist yet.
fn fresh_directory(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("demo").join(name);
    if directory.exists() {
        fs::remove_dir_all(&directory).unwrap();
    }
    directory
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("text expected, not {value}"))
}

fn bytes(value: &Value) -> Vec<u8> {
    Vec::from_hex(text(value)).unwrap()
}

fn fields(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Verifies a report by its own content only.
fn verify(report: &Value) {
    assert_eq!(
        fields(report),
        BTreeSet::from([
            "ok",
            "cohortId",
            "beaconType",
            "participants",
            "declined",
            "beaconAddress",
            "path",
            "signature",
            "txid",
            "txHex",
            "prevout",
            "signalHex",
            "verified",
            "elapsedMs",
        ]),
    );
    assert_eq!(fields(&report["prevout"]), BTreeSet::from(["scriptHex", "value"]));
    assert_eq!(report["verified"], serde_json::json!({ "bip340": true, "consensus": true, "sidecars": true }));
    assert_eq!(report["ok"], true);
    assert!(!text(&report["cohortId"]).is_empty());
    assert!(report["elapsedMs"].is_u64());

    let transaction: Transaction = deserialize_hex(text(&report["txHex"])).unwrap();
    let prevout = TxOut {
        script_pubkey: ScriptBuf::from(bytes(&report["prevout"]["scriptHex"])),
        value: Amount::from_sat(report["prevout"]["value"].as_u64().unwrap()),
    };
    assert_eq!(transaction.compute_txid().to_string(), text(&report["txid"]));
    let address = Address::from_script(&prevout.script_pubkey, bitcoin::params::Params::REGTEST).unwrap();
    assert_eq!(address.to_string(), text(&report["beaconAddress"]));

    // The last output contains the signal and nothing else, and no other output contains data.
    let (announcement, others) = transaction.output.split_last().unwrap();
    let signal: [u8; 32] = bytes(&report["signalHex"]).try_into().unwrap();
    assert_eq!(announcement.script_pubkey, ScriptBuf::new_op_return(signal));
    assert!(others.iter().all(|output| !output.script_pubkey.is_op_return()));
    let paid: Amount = transaction.output.iter().map(|output| output.value).sum();
    assert!(paid < prevout.value, "no fee is left");

    assert_eq!(transaction.input.len(), 1);
    match text(&report["path"]) {
        "key-path" => verify_key_path(report, &transaction, &prevout),
        "script-path" => verify_script_path(report, &transaction, &prevout),
        other => panic!("an unknown path: {other}"),
    }
    verify_consensus(&transaction, &prevout);
}

/// The content of a directory that `--out` wrote: the files are exactly those that the help lists.
fn participants(directory: &Path, report: &Value) -> Vec<Value> {
    let count = report["participants"].as_u64().unwrap();
    let found: BTreeSet<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let names: Vec<String> = (0..count).map(|index| format!("participant-{index}.json")).collect();
    assert_eq!(found, names.iter().cloned().chain(["tx.hex".to_owned()]).collect());
    let transaction = fs::read_to_string(directory.join("tx.hex")).unwrap();
    assert_eq!(transaction.trim_end(), text(&report["txHex"]));
    names
        .iter()
        .map(|name| serde_json::from_str(&fs::read_to_string(directory.join(name)).unwrap()).unwrap())
        .collect()
}

/// The hash of the member's update, from the update itself.
fn update_hash(participant: &Value) -> Option<DocumentHash> {
    let update = participant["sidecar"].get("updates").map(|updates| {
        let [update] = updates.as_array().unwrap().as_slice() else { panic!("not one update: {updates}") };
        jcs::document_hash(update).unwrap()
    });
    assert_eq!(participant["included"], update.is_some());
    crate::support::verify::updates(&participant["sidecar"], text(&participant["did"]));
    update
}

/// The hash of the members' CAS Announcement is the signal, and its entries are exactly what each member submitted.
fn cas_sidecars_hold(participants: &[Value], report: &Value) {
    for participant in participants {
        let announcement: BTreeMap<String, String> =
            serde_json::from_value(participant["sidecar"]["casUpdates"][0].clone()).unwrap();
        // DIDs and base64url are ASCII: sorted and without white space, this is JCS.
        let canonical = serde_json::to_vec(&announcement).unwrap();
        let signal = sha256::Hash::hash(&canonical).to_byte_array();
        assert_eq!(signal.to_lower_hex_string(), text(&report["signalHex"]));
        let announced = announcement.get(text(&participant["did"])).cloned();
        assert_eq!(announced, update_hash(participant).map(|hash| hash.to_string()));
        let included = report["participants"].as_u64().unwrap() - report["declined"].as_u64().unwrap();
        assert_eq!(announcement.len() as u64, included);
    }
}

/// Each member's proof leads from its own leaf, made of what it submitted, to the signal; and from no other leaf.
fn smt_sidecars_hold(participants: &[Value], report: &Value) {
    let signal = text(&report["signalHex"]);
    for participant in participants {
        let proof: SmtProof = serde_json::from_value(participant["sidecar"]["smtProofs"][0].clone()).unwrap();
        let did: Did = text(&participant["did"]).parse().unwrap();
        let nonce = proof.nonce.as_ref().map(SmtNonce::as_bytes);
        let root = |leaf| proof.root_for(&smt_index(&did), &leaf).unwrap().as_bytes().to_lower_hex_string();
        let update = update_hash(participant);
        assert!(nonce.is_some_and(|nonce| nonce.len() == 32), "every member has a nonce of its own");
        let other_slot = if update.is_some() { None } else { Some(DocumentHash::from_bytes([0; 32])) };
        let own = smt_leaf(nonce, update.as_ref());
        let other = smt_leaf(nonce, other_slot.as_ref());
        assert_eq!(root(own), signal);
        assert_ne!(root(other), signal);
        assert_eq!(proof.update_id, update);
    }
}

/// A genesis document is there exactly for an EXTERNAL DID, in both places, and it is the one that the DID commits to.
/// Returns how many there are.
fn external_members(participants: &[Value]) -> usize {
    let externals = participants.iter().filter(|participant| {
        let did = text(&participant["did"]);
        let external = did.starts_with("did:btcr2:x1");
        let genesis = participant.get("genesisDocument");
        assert_eq!(participant["sidecar"].get("genesisDocument"), genesis, "{did}");
        assert_eq!(genesis.is_some(), external, "{did}");
        if let Some(genesis) = genesis {
            let hash = *jcs::document_hash(genesis).unwrap().as_bytes();
            assert_eq!(Did::from_genesis_hash(hash, Network::Regtest).as_str(), did);
        }
        external
    });
    externals.count()
}

/// Runs a demo with `--out`, checks everything that it wrote, and returns the report.
fn demo_with_files(name: &str, arguments: &[&str]) -> Value {
    let directory = fresh_directory(name);
    let report = demo(&[arguments, &["--out", directory.to_str().unwrap()]].concat());
    let participants = participants(&directory, &report);
    match text(&report["beaconType"]) {
        "CASBeacon" => cas_sidecars_hold(&participants, &report),
        "SMTBeacon" => smt_sidecars_hold(&participants, &report),
        other => panic!("an unknown beacon: {other}"),
    }
    let external = usize::from(participants.len() >= 3);
    assert_eq!(external_members(&participants), external);
    report
}

#[test]
fn without_arguments_it_prints_a_verified_cohort() {
    for arguments in [&[][..], &["demo"]] {
        let run = run(arguments);
        assert_eq!(run.status, 0, "{}", run.stderr);
        for part in ["5 members: 5 updated, 0 declined", "BIP-340: yes", "consensus: yes", "sidecar: yes", "bcrt1p"]
        {
            assert!(run.stdout.contains(part), "{part} is missing in {}", run.stdout);
        }
        assert_eq!(run.stderr, "", "a progress line only in a terminal");
    }
}

#[test]
fn without_a_command_the_demos_options_work_too() {
    let run = run(&["--json", "--participants", "2", "--beacon", "smt"]);
    assert_eq!(run.status, 0, "{}", run.stderr);
    let report = last_line(&run);
    verify(&report);
    assert_eq!((&report["participants"], &report["beaconType"]), (&Value::from(2), &Value::from("SMTBeacon")));
}

#[test]
fn a_cas_cohort_signs_on_the_key_path() {
    let report = demo_with_files("cas-key", &["--beacon", "cas", "--path", "key", "--decline", "2"]);
    assert_eq!(report["beaconType"], "CASBeacon");
    assert_eq!(report["path"], "key-path");
    assert_eq!((&report["participants"], &report["declined"]), (&Value::from(5), &Value::from(2)));
}

#[test]
fn an_smt_cohort_signs_on_the_key_path() {
    let report = demo_with_files("smt-key", &["--beacon", "smt", "--path", "key", "--decline", "2"]);
    assert_eq!(report["beaconType"], "SMTBeacon");
    assert_eq!(report["path"], "key-path");
    assert_eq!((&report["participants"], &report["declined"]), (&Value::from(5), &Value::from(2)));
}

#[test]
fn a_cas_cohort_with_a_silent_member_falls_back() {
    let report = demo_with_files("cas-fallback", &["--beacon", "cas", "--path", "fallback"]);
    assert_eq!(report["beaconType"], "CASBeacon");
    assert_eq!(report["path"], "script-path");
}

#[test]
fn an_smt_cohort_with_a_silent_member_falls_back() {
    let report = demo_with_files("smt-fallback", &["--beacon", "smt", "--path", "fallback"]);
    assert_eq!(report["beaconType"], "SMTBeacon");
    assert_eq!(report["path"], "script-path");
}

#[test]
fn over_http_the_same_cohorts_complete() {
    for beacon in ["cas", "smt"] {
        let arguments = ["--transport", "http", "--beacon", beacon, "--decline", "1"];
        assert_eq!(demo_with_files(&format!("http-{beacon}"), &arguments)["path"], "key-path");
    }
    let fallback = ["--transport", "http", "--path", "fallback"];
    assert_eq!(demo_with_files("http-fallback", &fallback)["path"], "script-path");
    // Far more requests from one address than a service allows by default.
    demo(&["--transport", "http", "--participants", "60"]);
}

#[test]
fn the_smallest_cohorts_work() {
    for beacon in ["cas", "smt"] {
        demo_with_files(&format!("one-{beacon}"), &["--participants", "1", "--beacon", beacon]);
    }
    let report = demo_with_files("two-fallback", &["--participants", "2", "--path", "fallback"]);
    assert_eq!(report["path"], "script-path");
    // The files of three members are checked for the one EXTERNAL DID.
    demo_with_files("three", &["--participants", "3"]);
}

#[test]
fn a_cohort_in_which_all_members_decline_completes() {
    let cas = demo_with_files("declined-cas", &["--participants", "4", "--decline", "4"]);
    assert_eq!(cas["declined"], 4);
    let nothing = sha256::Hash::hash(b"{}").to_byte_array().to_lower_hex_string();
    assert_eq!(text(&cas["signalHex"]), nothing);
    let smt = demo_with_files("declined-smt", &["--participants", "4", "--decline", "4", "--beacon", "smt"]);
    assert_eq!(smt["declined"], 4);
}

#[test]
fn a_seed_repeats_the_transaction_and_another_seed_does_not() {
    for beacon in ["cas", "smt"] {
        let signed = |seed: &str, transport: &str| {
            let arguments = ["--beacon", beacon, "--participants", "3", "--seed", seed, "--transport", transport];
            let report = demo(&arguments);
            (text(&report["txid"]).to_owned(), text(&report["signature"]).to_owned())
        };
        let (txid, signature) = signed("7", "memory");
        assert_eq!(signed("7", "memory"), (txid.clone(), signature.clone()));
        assert_eq!(signed("7", "http"), (txid.clone(), signature.clone()), "over every transport");
        let other = signed("8", "memory");
        assert_ne!(other.0, txid);
        assert_ne!(other.1, signature);
    }
    let unseeded = || text(&demo(&["--participants", "1"])["txid"]).to_owned();
    assert_ne!(unseeded(), unseeded(), "without a seed every run is another");
}

#[test]
fn an_invalid_call_is_refused_with_a_hint() {
    let calls: [(&[&str], &[&str]); 8] = [
        (&["--participants", "0"], &["1 to 1000 participants", "not 0"]),
        (&["--participants", "1001"], &["1 to 1000 participants", "not 1001"]),
        (&["--participants", "many"], &["--participants <N>", "many"]),
        (&["--participants", "3", "--decline", "4"], &["at most 3 can decline", "not 4"]),
        (&["--path", "fallback", "--participants", "1"], &["fallback", "at least 2 participants"]),
        (&["--path", "fallback", "--participants", "1000"], &["fallback", "at most 999 participants"]),
        (&["--beacon", "map"], &["--beacon <BEACON>", "cas", "smt"]),
        (&["--partcipants", "3"], &["--partcipants", "--participants"]),
    ];
    for (arguments, answers) in calls {
        for command in [&["demo"][..], &[]] {
            let run = run(&[command, arguments].concat());
            assert_eq!(run.status, 2, "{arguments:?}: {}{}", run.stdout, run.stderr);
            assert_eq!(run.stdout, "", "{arguments:?}");
            for answer in answers {
                assert!(run.stderr.contains(answer), "{arguments:?}: no {answer:?} in {}", run.stderr);
            }
        }
    }
}

#[test]
fn an_invalid_call_prints_json_and_leaves_no_files() {
    let directory = fresh_directory("never-made");
    let run = run(&["demo", "--json", "--participants", "0", "--out", directory.to_str().unwrap()]);
    assert_eq!(run.status, 2);
    let answer = last_line(&run);
    assert_eq!(answer["ok"], false);
    assert!(text(&answer["error"]).contains("1 to 1000 participants"));
    assert!(!directory.exists());
}

#[test]
fn an_unusable_out_directory_fails_before_the_round() {
    let directory = fresh_directory("unwritable");
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("file");
    fs::write(&file, "not a directory").unwrap();
    let below = file.join("below");
    let below = below.to_str().unwrap();
    // The timeout for the silent member of so large a cohort is longer than 20 seconds.
    let started = Instant::now();
    let run = run(&["demo", "--json", "--path", "fallback", "--participants", "900", "--out", below]);
    assert!(started.elapsed() < Duration::from_secs(20), "the round ran before");
    assert_eq!(run.status, 1, "the call was not wrong: {}", run.stderr);
    assert!(run.stderr.contains(below), "{}", run.stderr);
    let answer = last_line(&run);
    assert_eq!(answer["ok"], false);
    assert!(text(&answer["error"]).contains(below));
}

#[test]
fn a_file_that_cannot_be_written_is_a_failure() {
    let directory = fresh_directory("occupied");
    fs::create_dir_all(directory.join("tx.hex")).unwrap();
    let run = run(&["demo", "--json", "--participants", "1", "--out", directory.to_str().unwrap()]);
    assert_eq!(run.status, 1, "{}", run.stderr);
    assert_eq!(last_line(&run)["ok"], false);
}

#[test]
fn the_help_names_every_flag_and_the_exit_status() {
    for arguments in [&["--help"][..], &["demo", "--help"]] {
        let run = run(arguments);
        assert_eq!(run.status, 0);
        for flag in
            ["--participants", "--decline", "--beacon", "--path", "--transport", "--seed", "--out", "--json"]
        {
            assert!(run.stdout.contains(flag), "{flag} is missing in {}", run.stdout);
        }
        for choice in ["cas", "smt", "key", "fallback", "EXTERNAL", "tx.hex"] {
            assert!(run.stdout.contains(choice), "{choice} is missing in {}", run.stdout);
        }
    }
    assert!(run(&["--help"]).stdout.contains("Exit status: 0"));
}
