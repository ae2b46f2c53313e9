//! The edges of the programs: output that nobody takes, signals, inputs as people have them, documents that nobody means.

use std::{
    fs::{self, OpenOptions},
    io,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Stdio,
    sync::Arc,
};

use crate::support::{Run, Service, command, directory, genesis_without_key, identity, path, run, run_with};
use bitcoin::{
    Psbt, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness, absolute::LockTime,
    consensus::encode::serialize_hex, transaction::Version,
};
use btcr2_aggregation::{
    actors::{
        journal::{Journal, Record, StreamId},
        state::State,
        transport::tls::Trust,
    },
    protocol::{
        identity::Identity,
        key::SecretKey,
        network::Network,
        update::{add_beacon_service_patch, build_update, sign_update},
    },
};
use data_encoding::{BASE64, HEXLOWER};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const SECRET: &str = "b7e151628aed2a6abf7158809cf4f3c762e7160f38b4da56a784d9045190cfef";

fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
}

fn full() -> fs::File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

/// A pipe whose reader has left.
fn closed_pipe() -> io::PipeWriter {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    writer
}

/// Exit status, and what stands on standard error.
fn with_output(arguments: &[String], stdout: impl Into<Stdio>) -> (Option<i32>, String) {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = command(&arguments).stdout(stdout).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// The call fails because nobody takes its output, says so, and does not panic.
pub(crate) fn fails_unread(arguments: &[&str]) {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let (status, errors) = with_output(&arguments, full());
    assert_eq!(status, Some(1), "{arguments:?}: {errors}");
    contains(&errors, &["standard output: No space left on device"]);
    assert!(!errors.contains("panicked"), "{arguments:?}: {errors}");
}

fn secret_identity(directory: &Path) -> String {
    let file = path(directory, "member");
    run_with(&["identity", "new", "--secret-env", "SECRET", "--out", &file], &[("SECRET", SECRET)]).succeeded();
    file
}

/// A signed update of the DID of `SECRET`, by `patch`, in a file.
fn signed_update(directory: &Path, patch: Value) -> String {
    let identity = Identity::from_key(SecretKey::from_hex(SECRET).unwrap(), Network::Regtest);
    let unsigned = build_update(&identity.initial_document().unwrap(), 1, patch).unwrap();
    let (method, key) = (identity.verification_method(), identity.secret_key());
    let mut rng = ChaCha20Rng::from_seed([7; 32]);
    let update = sign_update(&unsigned, identity.did(), method, key, &mut rng).unwrap();
    let file = path(directory, "update.json");
    fs::write(&file, update.value().to_string()).unwrap();
    file
}

fn usual_patch() -> Value {
    let did = Identity::from_key(SecretKey::from_hex(SECRET).unwrap(), Network::Regtest).did().clone();
    add_beacon_service_patch(&did, "CASBeacon", "bcrt1p0000")
}

/// What a round of one member leaves behind: `service-state`, `member-state`, `out`; and the cohort's id.
fn round(directory: &Path) -> String {
    let at = |name| path(directory, name);
    let service = Service::once(directory, 1, &["--state", &at("service-state"), "--out", &at("out")]);
    let member = secret_identity(directory);
    let result = service.join(&member, &["--add-beacon", "--state", &at("member-state")]).result();
    service.program.result();
    result["cohortId"].as_str().unwrap().to_owned()
}

/// A call of every command that prints without a chain or a relay. `fresh` numbers what must not exist yet.
fn printing_commands(directory: &Path, cohort: &str, fresh: usize) -> Vec<Vec<String>> {
    let at = |name: &str| path(directory, name);
    let new = |name: &str| path(directory, &format!("{name}-{fresh}"));
    let did = crate::support::did_of(&at("member"));
    let (service_state, member_state) = (at("service-state"), at("member-state"));
    let update = at("update.json");
    let store = format!("dir={}", at("cas"));
    let text = format!(
        "--help\n--version\ndemo --help\ndemo --participants 1\ndemo --participants 1 --json\n--participants 1\n\
         identity new --out {new_identity}\nidentity show {member}\nidentity show --json {member}\n\
         state list --state {service_state}\nstate list --json --state {service_state}\n\
         state show {cohort} --state {service_state}\nstate show {cohort} --json --state {service_state}\n\
         state export {cohort} --state {service_state}\nstate export {cohort} --out {new_export} --state {service_state}\n\
         state import {export} --state {new_state}\nstate import {export} --json --state {service_state}\n\
         state prune --older-than 30d --state {service_state}\nstate prune --json --older-than 30d --state {service_state}\n\
         bans add {did} --state {service_state}\nbans list --state {service_state}\nbans show {did} --state {service_state}\n\
         bans list --json --state {service_state}\nbans lift {did} --state {service_state}\n\
         singleton --did {did} --update {update}\nsingleton --did {did} --update {update} --json\n\
         cas put {update} --cas {store}\ncas put {update} --cas {store} --json\n\
         cas show {hash} --cas {store}\n\
         cost {out}\ncost {out} --json\n\
         vault list --state {member_state}\nvault list --json --state {member_state}\n\
         vault show {cohort} --state {member_state}\nvault show {cohort} --json --state {member_state}\n\
         vault export --state {member_state}\nvault export --out {new_vault} --state {member_state}\n\
         sidecar --did {did} --state {member_state}",
        new_identity = new("identity"),
        member = at("member"),
        new_export = new("export"),
        export = at("export.json"),
        new_state = new("state"),
        hash = fs::read_to_string(at("hash")).unwrap(),
        out = at("out"),
        new_vault = new("vault"),
    );
    text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
}

#[test]
fn output_that_nobody_takes_is_exit_1_and_never_a_panic() {
    let directory = directory("output");
    let cohort = round(&directory);
    let update = signed_update(&directory, usual_patch());
    let store = format!("dir={}", path(&directory, "cas"));
    fs::create_dir_all(path(&directory, "cas")).unwrap();
    let put = run(&["cas", "put", &update, "--cas", &store, "--json"]).succeeded();
    let put: Value = serde_json::from_str(&put.stdout).unwrap();
    fs::write(path(&directory, "hash"), put["hash"].as_str().unwrap()).unwrap();
    let (state, export) = (path(&directory, "service-state"), path(&directory, "export.json"));
    run(&["state", "export", &cohort, "--out", &export, "--state", &state]).succeeded();

    // First with a reader: these are calls that work.
    for arguments in printing_commands(&directory, &cohort, 0) {
        let run = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(run.status == Some(0) && !run.stdout.is_empty(), "{arguments:?}: {run:?}");
    }
    for arguments in printing_commands(&directory, &cohort, 1) {
        fails_unread(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    }
    for arguments in printing_commands(&directory, &cohort, 2) {
        let (status, errors) = with_output(&arguments, closed_pipe());
        assert_eq!(status, Some(1), "{arguments:?}: {errors}");
        assert!(!errors.contains("panicked") && !errors.contains("Broken pipe"), "{arguments:?}: {errors}");
    }
    for arguments in printing_commands(&directory, &cohort, 3) {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = command(&arguments);
        // Logs go to the full disk too: their library would print that it cannot write, and panic.
        let status = command.stdout(full()).stderr(full()).env("RUST_LOG", "trace").status().unwrap();
        assert_eq!(status.code(), Some(1), "{arguments:?}");
    }
}

#[test]
fn a_relay_check_that_nobody_takes_is_exit_1() {
    let directory = directory("relay-output");
    let mut service = Service::start(&directory, &["--embedded-relay", "127.0.0.1:0"]);
    let relay = service.program.event("serving")["relays"][0].as_str().unwrap().to_owned();
    for more in ["--timeout=10s", "--json"] {
        fails_unread(&["relay", "check", &relay, more]);
    }
}

#[test]
fn errors_that_nobody_reads_keep_their_exit_status() {
    let directory = directory("errors");
    let missing = path(&directory, "missing");
    for (arguments, expected) in [
        (&["identity", "show", &missing][..], 1),
        (&["serve", "--identity", &missing, "--chain", "offline"], 2),
        (&["relay", "check", "nonsense"], 2),
        (&["state", "list", "--state", &missing], 1),
        (&["no-such-command"], 2),
    ] {
        let mut command = command(arguments);
        let status = command.stdout(full()).stderr(full()).env("RUST_LOG", "trace").status().unwrap();
        assert_eq!(status.code(), Some(expected), "{arguments:?}");
    }
}

#[test]
fn serve_and_join_go_on_when_nobody_reads_them() {
    let directory = directory("unread");
    let (service, out) = (identity(&directory, "service"), path(&directory, "out"));
    let mut serve = command(&[
        "serve",
        "--identity",
        &service,
        "--events",
        "json",
        "--listen",
        "127.0.0.1:0",
        "--chain",
        "offline",
        "--min-participants",
        "1",
        "--cohorts",
        "1",
        "--exit-when-done",
        "--out",
        &out,
    ]);
    serve.env("RUST_LOG", "trace").stdout(Stdio::piped()).stderr(full());
    let mut serve = serve.spawn().unwrap();
    // Its first lines are read, and then the reader leaves.
    let mut reader = io::BufReader::new(serve.stdout.take().unwrap());
    let url = loop {
        let mut line = String::new();
        assert!(io::BufRead::read_line(&mut reader, &mut line).unwrap() > 0, "it ended");
        let event: Value = serde_json::from_str(&line).unwrap();
        if event["event"] == "serving" {
            break event["url"].as_str().unwrap().to_owned();
        }
    };
    drop(reader);
    let kept = path(&directory, "member-out");
    let member = identity(&directory, "alice");
    let mut join = command(&[
        "join",
        "--service",
        &url,
        "--identity",
        &member,
        "--add-beacon",
        "--exit-when-done",
        "--out",
        &kept,
    ]);
    let status = join.env("RUST_LOG", "trace").stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(serve.wait().unwrap().code(), Some(0));
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 1, "the member's file is there");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "the cohort's result is there");
}

/// A self-signed certificate and its key, as PEM.
fn certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let names = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    (names.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// Whether a new connection to the service is one to the holder of this certificate.
fn is_served(service: &Service, certificate: &str) -> bool {
    let trust = Trust::only(certificate.as_bytes()).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let connector = TlsConnector::from(Arc::new(trust.client_config().unwrap()));
        let stream = TcpStream::connect(service.address()).await.unwrap();
        connector.connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await.is_ok()
    })
}

#[test]
fn a_new_certificate_is_served_after_sighup() {
    let directory = directory("sighup");
    let (certificate_file, key_file) = (path(&directory, "cert.pem"), path(&directory, "key.pem"));
    let write = |certificate: &str, key: &str| {
        fs::write(&certificate_file, certificate).unwrap();
        fs::write(&key_file, key).unwrap();
    };
    let (first, second, third) = (certificate(), certificate(), certificate());
    write(&first.0, &first.1);
    let mut service = Service::start(&directory, &["--tls-cert", &certificate_file, "--tls-key", &key_file]);
    assert!(is_served(&service, &first.0) && !is_served(&service, &second.0));

    write(&second.0, &second.1);
    service.program.signal("-HUP");
    let reloaded = service.program.event("reloaded");
    assert_eq!(reloaded["files"], json!([certificate_file, key_file]));
    assert!(is_served(&service, &second.0) && !is_served(&service, &first.0));

    // Not a certificate; one of another key; no file at all.
    for (certificate, key, problem) in [
        ("no certificate", &third.1, "a certificate in PEM expected"),
        (third.0.as_str(), &second.1, "KeyMismatch"),
        (third.0.as_str(), &"".to_owned(), "is empty"),
    ] {
        write(certificate, key);
        service.program.signal("-HUP");
        let stays = |event: &Value| {
            let text = event["message"].as_str().unwrap();
            text.contains("the old TLS certificate stays") && text.contains(problem)
        };
        service.program.event_where("warning", stays);
        assert!(is_served(&service, &second.0), "{problem}");
    }
    fs::remove_file(&key_file).unwrap();
    service.program.signal("-HUP");
    service.program.event_where("warning", |event| event["message"].as_str().unwrap().contains("No such file"));
    assert!(is_served(&service, &second.0));
}

#[test]
fn sighup_ends_no_program_that_has_nothing_to_reload() {
    let directory = directory("hangup");
    let nothing = |event: &Value| event["message"].as_str().unwrap().contains("SIGHUP: nothing to reload");
    let mut service = Service::once(&directory, 1, &[]);
    service.program.signal("-HUP");
    service.program.event_where("warning", nothing);
    // A service of another DID is waited for: the member has not joined when the signal comes.
    let member = identity(&directory, "alice");
    let mut join = service.join(&member, &["--add-beacon", "--service-did", &crate::support::did_of(&member)]);
    join.event("terms");
    join.signal("-HUP");
    join.event_where("warning", nothing);
    drop(join);
    service.join(&member, &["--add-beacon"]).result();
    service.program.result();
}

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

/// Writes a file for its owner only.
fn private(path: &str, content: impl AsRef<[u8]>) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// As editors of Windows save it.
fn windows(text: &str) -> Vec<u8> {
    format!("\u{feff}{}", text.replace('\n', "\r\n")).into_bytes()
}

#[test]
fn files_with_a_byte_order_mark_and_crlf_are_read() {
    let directory = directory("bom");
    let at = |name| path(&directory, name);
    let member = secret_identity(&directory);
    private(&at("windows"), windows(&fs::read_to_string(&member).unwrap()));
    assert_eq!(crate::support::did_of(&at("windows")), crate::support::did_of(&member));

    let genesis = serde_json::to_string_pretty(&genesis_without_key()).unwrap();
    fs::write(at("genesis"), windows(&genesis)).unwrap();
    run(&["identity", "new", "--external", &at("genesis"), "--out", &at("external")]).succeeded();

    let update = signed_update(&directory, usual_patch());
    let pretty: Value = serde_json::from_str(&fs::read_to_string(&update).unwrap()).unwrap();
    fs::write(at("update"), windows(&serde_json::to_string_pretty(&pretty).unwrap())).unwrap();
    run(&["singleton", "--identity", &member, "--update", &at("update")]).succeeded();

    let config = format!("identity = {member:?}\nchain = \"offline\"\ncohorts = 1\nlisten = \"nowhere\"\n");
    fs::write(at("serve.toml"), windows(&config)).unwrap();
    let serve = run(&["serve", "--config", &at("serve.toml")]);
    contains(&serve.stderr, &["listening on nowhere"]);
}

#[test]
fn what_cannot_be_read_is_named_with_what_was_found() {
    let directory = directory("found");
    let file = path(&directory, "file");
    let member = secret_identity(&directory);
    let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain("{}".encode_utf16().flat_map(u16::to_le_bytes)).collect();
    let (pem, _) = certificate();
    for (content, found) in [
        (&b""[..], "is empty"),
        (&utf16, "starts with a byte order mark of UTF-16"),
        (b"<!DOCTYPE html><html>", "is HTML"),
        (b"cHNidP8BAHECAAAA", "is a PSBT in base64"),
        (pem.as_bytes(), "is a PEM file"),
        (b"{ 1 }", "line 1 column 3"),
    ] {
        private(&file, content);
        let join = ["join", "--identity", &member, "--service", "http://127.0.0.1:1", "--update", &file];
        for arguments in [
            &["singleton", "--identity", &member, "--update", &file][..],
            &join,
            &["identity", "new", "--external", &file, "--out", &path(&directory, "none")],
            &["cas", "put", &file, "--cas", &format!("dir={}", path(&directory, "cas"))],
            &["recover", "--chain", "esplora=http://127.0.0.1:1", "--cohort", &file],
            &["state", "import", &file, "--state", &path(&directory, "state")],
        ] {
            let refused = run(arguments);
            assert!(matches!(refused.status, Some(1 | 2)), "{refused:?}");
            contains(&refused.stderr, &[&file, "not JSON", found]);
        }
        // Nothing of a file that holds a secret is quoted, and the rest is said all the same.
        if !content.starts_with(b"{") {
            contains(&run(&["identity", "show", &file]).stderr, &[&file, "not an identity file", found]);
        }
    }
    private(&file, utf16);
    let config = run(&["serve", "--config", &file]);
    contains(config.usage(), &[&file, "byte order mark of UTF-16"]);
    private(&file, "{}");
    let trust = run(&["relay", "check", "wss://127.0.0.1:1", "--tls-ca", &file]);
    contains(trust.usage(), &[&file, "a certificate in PEM expected"]);
}

#[test]
fn a_newline_behind_a_variable_or_passphrase_is_ignored() {
    let directory = directory("variables");
    let file = path(&directory, "file");
    let with = |passphrase| [("BTCR2_PASSPHRASE", passphrase)];
    run_with(&["identity", "new", "--encrypt", "--out", &file], &with("open sesame\n")).succeeded();
    for passphrase in ["open sesame", "open sesame\r\n", "\u{feff}open sesame\n"] {
        run_with(&["identity", "show", &file], &with(passphrase)).succeeded();
    }
    assert_eq!(run_with(&["identity", "show", &file], &with("open sesame ")).status, Some(1), "a space counts");

    let plain = identity(&directory, "plain");
    let variables = [
        ("BTCR2_IDENTITY", format!("{plain}\n")),
        ("BTCR2_CHAIN", "offline\r\n".to_owned()),
        ("BTCR2_COHORTS", "1\n".to_owned()),
        ("BTCR2_PHASE_TIMEOUT", "15m\n".to_owned()),
        ("BTCR2_LISTEN", "nowhere\n".to_owned()),
    ];
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let serve = run_with(&["serve"], &variables);
    contains(&serve.stderr, &["listening on nowhere:"]);

    let secret =
        |value| run_with(&["identity", "new", "--secret-env", "S", "--out", "/dev/null/x"], &[("S", value)]);
    contains(&secret("b7e1").stderr, &["variable S", "64 hex characters expected", "4 characters found"]);
    let unset = run(&["identity", "new", "--secret-env", "S", "--out", "/dev/null/x"]);
    contains(&unset.stderr, &["variable S", "not set"]);
}

fn age_file(passphrase: &str, content: &str, work_factor: u8) -> Vec<u8> {
    let mut recipient = age::scrypt::Recipient::new(passphrase.to_owned().into());
    recipient.set_work_factor(work_factor);
    age::encrypt(&recipient, content.as_bytes()).unwrap()
}

#[test]
fn age_files_of_other_machines_and_tools_are_opened() {
    let directory = directory("age");
    let member = secret_identity(&directory);
    let content = fs::read_to_string(&member).unwrap();
    let file = path(&directory, "encrypted");
    let show = || run_with(&["identity", "show", &file], &[("BTCR2_PASSPHRASE", "sesame")]);
    let quick = age_file("sesame", &content, 10);
    private(&file, &quick);
    show().succeeded();

    let mut armored = Vec::new();
    let mut writer = age::armor::ArmoredWriter::wrap_output(&mut armored, age::armor::Format::AsciiArmor).unwrap();
    io::Write::write_all(&mut writer, &quick).unwrap();
    writer.finish().unwrap();
    let armored = String::from_utf8(armored).unwrap();
    for armored in [armored.clone(), armored.replace('\n', "\r\n"), format!("\u{feff}\n{armored}\n")] {
        private(&file, armored);
        show().succeeded();
    }

    // Of a machine that is faster than any: nothing is tried, and it is said why.
    let header = String::from_utf8_lossy(&quick[..100]).into_owned();
    let salt = header.lines().nth(1).unwrap().to_owned();
    let position = header.find(&salt).unwrap() + salt.len() - 2;
    let mut slow = quick.clone();
    slow[position..position + 2].copy_from_slice(b"23");
    private(&file, slow);
    contains(&show().stderr, &["2^23", "work factor"]);

    let to_key = age::encrypt(&age::x25519::Identity::generate().to_public(), content.as_bytes()).unwrap();
    private(&file, to_key);
    contains(&show().stderr, &["encrypted to a public key"]);
}

/// A PSBT of one input; finalized, it needs nothing but to be sent.
fn psbt(finalized: bool) -> Psbt {
    let transaction = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn { sequence: Sequence::MAX, ..TxIn::default() }],
        output: vec![TxOut { value: bitcoin::Amount::from_sat(5_000), script_pubkey: ScriptBuf::new() }],
    };
    let mut psbt = Psbt::from_unsigned_tx(transaction).unwrap();
    psbt.inputs[0].witness_utxo =
        Some(TxOut { value: bitcoin::Amount::from_sat(6_000), script_pubkey: ScriptBuf::new() });
    if finalized {
        psbt.inputs[0].final_script_witness = Some(Witness::from_slice(&[[1u8; 64]]));
    }
    psbt
}

fn submit(file: &str) -> Run {
    run(&["fund", "--chain", "esplora=http://127.0.0.1:1", "--submit", file])
}

#[test]
fn a_psbt_is_read_in_binary_base64_and_hex() {
    let directory = directory("psbt");
    let file = path(&directory, "psbt");
    let bytes = psbt(true).serialize();
    let (base64, hex) = (BASE64.encode(&bytes), HEXLOWER.encode(&bytes));
    let wrapped = |text: &str| {
        text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect::<Vec<_>>()
    };
    for content in [
        bytes.clone(),
        [&bytes[..], b"\n"].concat(),
        base64.clone().into_bytes(),
        format!("{base64}\r\n").into_bytes(),
        format!("\u{feff}{}\r\n", wrapped(&base64).join("\r\n")).into_bytes(),
        base64.trim_end_matches('=').as_bytes().to_vec(),
        hex.clone().into_bytes(),
        hex.to_uppercase().into_bytes(),
        wrapped(&hex).join("\n").into_bytes(),
        json!({ "psbt": base64, "complete": true }).to_string().into_bytes(),
    ] {
        fs::write(&file, &content).unwrap();
        // It was read when it is the chain that fails.
        let sent = submit(&file);
        assert_eq!(sent.status, Some(1), "{}: {sent:?}", String::from_utf8_lossy(&content));
        contains(&sent.stderr, &["the chain"]);
    }
    let transaction = serialize_hex(&psbt(true).extract_tx_unchecked_fee_rate());
    for (content, named) in [
        (b"".to_vec(), "is empty"),
        (b"<html>".to_vec(), "is HTML"),
        (transaction.into_bytes(), "it holds a transaction"),
        (BASE64.encode(&psbt(false).serialize()).into_bytes(), "not finalized"),
        (bytes[..bytes.len() - 9].to_vec(), "not a PSBT"),
    ] {
        fs::write(&file, &content).unwrap();
        contains(submit(&file).usage(), &[&file, named]);
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

/// The genesis document of a key that does not exist yet, changed.
fn genesis(directory: &Path, change: impl FnOnce(&mut Value)) -> String {
    let mut genesis = genesis_without_key();
    change(&mut genesis);
    let file = path(directory, "genesis.json");
    fs::write(&file, genesis.to_string()).unwrap();
    file
}

#[test]
fn a_genesis_document_that_nobody_means_is_refused() {
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
fn an_update_that_ends_the_did_is_refused_unless_meant() {
    let directory = directory("risky");
    let member = secret_identity(&directory);
    let did = crate::support::did_of(&member);
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
        // Taken, it goes on to what comes next.
        let next = run(&[&join[..], &["--allow-risky-update", "--singleton-coin", "p2wpkh:x"]].concat());
        assert!(!next.usage().contains("--allow-risky-update"), "{next:?}");
    }
    let deactivation = signed_update(&directory, add("/deactivated", json!(true)));
    run(&["singleton", "--identity", &member, "--update", &deactivation]).succeeded();
}

/// A state directory with streams of all kinds: a service's cohort with its signing session from a round, a participant's, and
/// an announcement.
fn all_streams(directory: &Path) -> (String, String) {
    let cohort = round(directory);
    let state = path(directory, "service-state");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let state = State::open(&state).unwrap();
        let hash = "00".repeat(32);
        let records = [
            json!({ "event": "watch-started", "at": 1_750_000_000_000_u64, "script": "5120aa",
                "deadline": 1_750_000_600_000_u64 }),
            json!({ "event": "tip-seen", "at": 1_750_000_001_000_u64,
                "tip": { "block": { "height": 101, "hash": hash }, "median_time": 1 } }),
            json!({ "event": "confirmed", "at": 1_750_000_002_000_u64, "block": { "height": 102, "hash": hash },
                "depth": 3 }),
            json!({ "event": "failed", "at": 1_750_000_003_000_u64,
                "failure": { "kind": "cohort", "reason": "late\u{1b}[2J" } }),
        ];
        let records = records.iter().map(|record| Record::from_json(record.to_string().into_bytes())).collect();
        state.journal().append(&StreamId::new(format!("announcement/{cohort}")), records).await.unwrap();
        state.close().await;
    });
    (state, cohort)
}

#[test]
fn state_show_says_what_happened_in_every_kind_of_stream() {
    let directory = directory("show");
    let (state, cohort) = all_streams(&directory);
    let show = |state: &str| run(&["state", "show", &cohort, "--state", state]).succeeded().stdout;
    let service = show(&state);
    contains(
        &service,
        &[
            "2025-06-15T15:06:40Z  watch-started",
            "deadline 2025-06-15T15:16:40Z",
            "2025-06-15T15:06:41Z  tip-seen",
            "height 101",
            "2025-06-15T15:06:42Z  confirmed",
            "block: height 102",
            "depth 3",
            "2025-06-15T15:06:43Z  failed",
            "kind cohort, reason late\\u{1b}[2J",
            "CohortAdvertised",
            "SigningStarted",
            "transaction: ",
            &format!("did {}", crate::support::did_of(&path(&directory, "member"))),
            "CohortCompleted",
            "update: to version 2",
            "output: bcrt1p",
            "(66 bytes)",
        ],
    );
    // The session of the one round that was signed.
    contains(&service, &["signing/", "SessionOpened"]);
    let member = show(&path(&directory, "member-state"));
    contains(
        &member,
        &[
            "CohortDiscovered",
            "OptInAccepted",
            "UpdateSubmitted",
            "ValidationSent",
            "approved yes",
            "phase timeout 1h",
        ],
    );
    for text in [&service, &member] {
        assert!(text.lines().all(|line| line.chars().count() < 2_000), "{text}");
        assert!(!text.contains("  event\n"), "{text}");
    }
    let json = run(&["state", "show", &cohort, "--json", "--state", &state]).succeeded();
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(json["streams"].as_array().unwrap().len() >= 3, "{json}");
}
