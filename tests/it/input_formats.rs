//! Input in the forms in which editors, shells and other tools write it, and the errors for what is something else.

use std::{fs, io};

use crate::support::{
    Run, contains, did_of, directory, genesis_without_key, identity,
    inputs::{certificate, private, secret_identity, signed_update, usual_patch},
    path, run, run_with,
};
use bitcoin::{
    Psbt, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness, absolute::LockTime,
    consensus::encode::serialize_hex, transaction::Version,
};
use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Value, json};

/// The text as editors on Windows save it.
fn windows(text: &str) -> Vec<u8> {
    format!("\u{feff}{}", text.replace('\n', "\r\n")).into_bytes()
}

#[test]
fn files_with_a_byte_order_mark_and_crlf_are_read() {
    let directory = directory("bom");
    let at = |name| path(&directory, name);
    let member = secret_identity(&directory);
    private(&at("windows"), windows(&fs::read_to_string(&member).unwrap()));
    assert_eq!(did_of(&at("windows")), did_of(&member));

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
fn an_unreadable_file_is_named_with_its_actual_format() {
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
        // The error quotes nothing of a file that holds a secret, but names the file and its format.
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

    // A work factor that no machine needs: decryption is not attempted, and the error names the factor.
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

/// A PSBT of one input; if finalized, it is ready to be broadcast.
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
        // An error of the chain shows that the PSBT was read.
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
