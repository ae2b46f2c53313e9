//! The command `singleton`: the options of a member whose update no cohort announces.

use std::{fs, path::PathBuf};

use crate::bitcoind_support::{Bitcoind, TestChain, faucet::Faucet};
use crate::support::{
    Run, Service, did_of, directory, external_identity, identity, join, path, proxy::Proxy, run, run_with,
};
use bitcoin::{
    Address, Amount, Network, OutPoint, Psbt, ScriptBuf, Transaction, TxOut,
    absolute::LockTime,
    consensus::encode::{deserialize_hex, serialize_hex},
    transaction::Version,
};
use btcr2_aggregation::{
    bitcoin::verify::consensus_accepts,
    protocol::{
        document,
        identity::Identity,
        key::SecretKey,
        network,
        update::{SignedUpdate, add_beacon_service_patch, build_update, sign_update, signed_digest},
    },
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::Value;

const SECRET: &str = "b7e151628aed2a6abf7158809cf4f3c762e7160f38b4da56a784d9045190cfef";

/// A member with an update that no cohort has announced.
struct Member {
    directory: PathBuf,
    identity: String,
    did: String,
    update: SignedUpdate,
    file: String,
}

impl Member {
    fn new(name: &str) -> Self {
        let directory = directory(name);
        let identity = path(&directory, "identity");
        let secret = [("SECRET", SECRET)];
        run_with(&["identity", "new", "--secret-env", "SECRET", "--out", &identity], &secret).succeeded();
        let update = update(&Identity::from_key(SecretKey::from_hex(SECRET).unwrap(), network::Network::Regtest));
        let file = path(&directory, "update");
        fs::write(&file, serde_json::to_string_pretty(update.value()).unwrap()).unwrap();
        Self { did: did_of(&identity), directory, identity, update, file }
    }

    fn run(&self, arguments: &[&str]) -> Run {
        run(&[&["singleton", "--update", &self.file], arguments].concat())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let run = self.run(&[arguments, &["--json"]].concat()).succeeded();
        serde_json::from_str(&run.stdout).unwrap()
    }

    /// The addresses of the initial document, by service: found there, not computed.
    fn address(&self, service: &str) -> Address {
        let document = document::initial_document(&self.did.parse().unwrap(), None).unwrap();
        let id = format!("{}#{service}", self.did);
        let services = document["service"].as_array().unwrap();
        let endpoint =
            services.iter().find(|service| service["id"] == id.as_str()).unwrap()["serviceEndpoint"].clone();
        let address = endpoint.as_str().unwrap().strip_prefix("bitcoin:").unwrap().to_owned();
        address.parse::<Address<_>>().unwrap().require_network(Network::Regtest).unwrap()
    }
}

fn update(identity: &Identity) -> SignedUpdate {
    let patch = add_beacon_service_patch(identity.did(), "CASBeacon", "bcrt1qexample");
    let unsigned = build_update(&identity.initial_document().unwrap(), 1, patch).unwrap();
    let mut rng = ChaCha20Rng::seed_from_u64(7);
    sign_update(&unsigned, identity.did(), identity.verification_method(), identity.secret_key(), &mut rng).unwrap()
}

/// A transaction that pays the address, and its output as an argument of `--coin`.
fn funding(address: &Address, sat: u64) -> (Transaction, String) {
    let made = TxOut { value: Amount::from_sat(sat), script_pubkey: address.script_pubkey() };
    let input = bitcoin::TxIn {
        previous_output: OutPoint::new(bitcoin::Txid::from_raw_hash(bitcoin::hashes::Hash::hash(b"funding")), 0),
        ..bitcoin::TxIn::default()
    };
    let funding =
        Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: vec![input], output: vec![made] };
    let coin = format!("{}:0:{sat}", funding.compute_txid());
    (funding, coin)
}

fn transaction(value: &Value) -> Transaction {
    deserialize_hex(value.as_str().unwrap()).unwrap()
}

#[test]
fn a_node_bounds_the_fee_from_below() {
    actix_rt::System::new().block_on(async {
        let name = "singleton-minimum";
        let Some(node) = Bitcoind::start_with(name, &["-minrelaytxfee=0.00005"]).await else {
            return;
        };
        let member = Member::new(name);
        let chain = format!("core={}?cookie={}", node.url(), node.cookie_file().display());
        let blocks = TestChain::Core(node);
        let script = member.address("initialP2WPKH").script_pubkey();
        let mut faucet = Faucet::new(&blocks, 1).await;
        let coin = format!("{}:20000", faucet.pay(&blocks, &script, Amount::from_sat(20_000)).await);
        blocks.mine(1).await;
        let fixed = ["--identity", &member.identity, "--coin", &coin];
        let fee = |more: &[&str]| member.json(&[&fixed[..], more].concat())["transaction"]["fee"].as_u64().unwrap();
        let alone = fee(&[]);
        // Two sat/vB without a chain, five with this one.
        assert_eq!(fee(&["--chain", &chain]), alone * 5 / 2);
        assert_eq!(fee(&["--chain", &chain, "--fee-rate", "10"]), alone * 5);
        let refused = member.run(&[&fixed[..], &["--chain", &chain, "--fee-rate", "2"]].concat());
        assert!(refused.usage().contains("--fee-rate 2: the node takes nothing below 5 sat/vB"), "{refused:?}");
    });
}

#[test]
fn every_beacon_announces_the_update_in_a_valid_transaction() {
    let member = Member::new("singleton-valid");
    for (kind, service) in [("p2pkh", "initialP2PKH"), ("p2wpkh", "initialP2WPKH"), ("p2tr", "initialP2TR")] {
        let address = member.address(service);
        let (funding, coin) = funding(&address, 20_000);
        let file = path(&member.directory, "funding");
        fs::write(&file, serialize_hex(&funding) + "\n").unwrap();
        let out = member.directory.join(kind);
        let shown = member.json(&[
            "--identity",
            &member.identity,
            "--coin",
            &coin,
            "--type",
            kind,
            "--fee-rate",
            "7.5",
            "--funding-tx",
            &file,
            "--sign",
            "--out",
            out.to_str().unwrap(),
        ]);
        let shown = &shown["transaction"];
        assert_eq!(shown["beacon"]["address"], address.to_string());

        let signed = transaction(&shown["signedHex"]);
        assert!(consensus_accepts(&signed, &funding.output[0]), "{kind}");
        assert_eq!(shown["txid"], signed.compute_txid().to_string());
        let (fee, vsize) = (shown["fee"].as_u64().unwrap(), shown["maxVsize"].as_u64().unwrap());
        assert_eq!(fee, (vsize * 15).div_ceil(2));
        assert_eq!(signed.output[0].value.to_sat() + fee, 20_000);
        assert_eq!(signed.output[0].script_pubkey, address.script_pubkey());
        let signal = ScriptBuf::new_op_return(member.update.hash().as_bytes());
        assert_eq!(signed.output.last().unwrap().script_pubkey, signal);

        // The files have the same content.
        let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
        assert_eq!(read("signed.hex").trim(), shown["signedHex"]);
        assert_eq!(read("unsigned.hex").trim(), shown["unsignedHex"]);
        let psbt = Psbt::deserialize(&fs::read(out.join("unsigned.psbt")).unwrap()).unwrap();
        assert_eq!(psbt.spend_utxo(0).unwrap(), &funding.output[0]);
        assert_eq!(serialize_hex(&psbt.unsigned_tx), shown["unsignedHex"]);
        let kept: Value = serde_json::from_str(&read("update.json")).unwrap();
        assert_eq!(SignedUpdate::from_value(kept).unwrap(), member.update);
        assert!(read("README.txt").contains("sendrawtransaction"));
    }
}

#[test]
fn it_names_the_addresses_to_fund_and_needs_a_key_to_sign() {
    let member = Member::new("singleton-unsigned");
    let out = member.directory.join("out");
    let shown = member.run(&["--did", &member.did, "--out", out.to_str().unwrap()]).succeeded();
    let readme = fs::read_to_string(out.join("README.txt")).unwrap();
    for service in ["initialP2PKH", "initialP2WPKH", "initialP2TR"] {
        let address = member.address(service).to_string();
        assert!(shown.stdout.contains(&address) && readme.contains(&address), "{}{readme}", shown.stdout);
    }
    assert!(!out.join("unsigned.hex").exists());
    // Of another coin, from another time.
    fs::write(out.join("signed.hex"), "00").unwrap();

    let (_, coin) = funding(&member.address("initialP2WPKH"), 20_000);
    let text = member.run(&["--did", &member.did, "--coin", &coin, "--out", out.to_str().unwrap()]).succeeded();
    assert!(text.stdout.contains("psbt") && !text.stdout.contains("\nsigned "), "{}", text.stdout);
    assert!(out.join("unsigned.psbt").exists() && !out.join("signed.hex").exists());
    // The transaction id of a segwit transaction is known before it is signed; that of another is not.
    let json = member.json(&["--did", &member.did, "--coin", &coin]);
    assert!(json["transaction"]["txid"].is_string() && json["transaction"]["signedHex"].is_null());
    let json = member.json(&["--did", &member.did, "--coin", &coin, "--type", "p2pkh"]);
    assert!(json["transaction"]["txid"].is_null());
}

#[test]
fn invalid_calls_are_refused_with_a_reason() {
    let member = Member::new("singleton-refused");
    let refused = |arguments: &[&str], why: &str| {
        let run = member.run(arguments);
        assert!(run.usage().contains(why), "{why:?} is missing in {}", run.stderr);
    };
    let did = ["--did", member.did.as_str()];
    let (funding_tx, coin) = funding(&member.address("initialP2WPKH"), 20_000);
    let with = |more: &[&'static str]| {
        [&did[..], &["--coin", &coin], more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let refused_with = |more: &[&'static str], why: &str| {
        let arguments = with(more);
        refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), why);
    };
    refused_with(&["--sign"], "cannot be used with");
    refused_with(&["--fee-rate", "0.5"], "between 1 and 10000");
    refused_with(&["--fee-rate", "500"], "has to hold more than the fee");
    refused_with(&["--change", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq"], "--change");
    for bad in
        ["", "1:2:3", &coin.replace(":0:", ":"), &coin.replace("20000", "2.0"), &format!("{coin}00000000000000")]
    {
        refused(&[&did[..], &["--coin", bad]].concat(), "TXID:VOUT:SATS");
    }

    let file = path(&member.directory, "funding");
    fs::write(&file, serialize_hex(&funding_tx)).unwrap();
    refused(
        &[&did[..], &["--coin", &coin, "--type", "p2tr", "--funding-tx", &file]].concat(),
        "not on the beacon's address",
    );

    // What a P2PKH coin holds is not what its signature is over.
    let (_, legacy) = funding(&member.address("initialP2PKH"), 20_000);
    let own = ["--identity", member.identity.as_str(), "--coin", &legacy, "--type", "p2pkh"];
    refused(&[&own[..], &["--sign"]].concat(), "does not commit to it");
    member.run(&own).succeeded();

    // Another DID's update, and a DID that has no initial beacons.
    let other = SecretKey::from_hex(&SECRET.replace('b', "c")).unwrap();
    let other = Identity::from_key(other, network::Network::Regtest);
    refused(&["--did", other.did().as_str()], "not a valid update of this DID");
    let external = external_identity(&member.directory, "external");
    refused(&["--identity", &external], "not a valid update of this DID");
    refused(&["--did", &did_of(&external)], "only its document states its beacons");
    refused(&[&did[..], &["--send"]].concat(), "--send needs a chain");
    refused(&[&did[..], &["--coin", &coin, "--coin", &coin]].concat(), "is given twice");
    refused(&[&did[..], &["--coin", &coin, "--service", "other"]].concat(), "no Singleton beacon other");
    refused(&["--update", &file, "--did", &member.did], "cannot be used multiple times");
}

/// An update with `note`, signed again, in a file.
fn note(member: &Member, document: &Value, version: u64, text: &str) -> String {
    let identity = Identity::from_key(SecretKey::from_hex(SECRET).unwrap(), network::Network::Regtest);
    let patch = serde_json::json!([{ "op": "add", "path": "/note", "value": text }]);
    let unsigned = build_update(document, version, patch).unwrap();
    let mut rng = ChaCha20Rng::seed_from_u64(text.len() as u64);
    let (method, key) = (identity.verification_method(), identity.secret_key());
    let update = sign_update(&unsigned, identity.did(), method, key, &mut rng).unwrap();
    let file = path(&member.directory, text);
    fs::write(&file, update.value().to_string()).unwrap();
    file
}

#[test]
fn no_second_update_of_a_version_is_written_with_state() {
    let member = Member::new("singleton-state");
    let state = path(&member.directory, "state");
    let patch = path(&member.directory, "patch");
    fs::write(&patch, r#"[{ "op": "add", "path": "/note", "value": "first" }]"#).unwrap();
    let service = Service::once(&member.directory, 1, &[]);
    let joined = service
        .join(&member.identity, &["--update", &patch, "--state", &state, "--allow-unlisted-beacon"])
        .result();
    service.program.result();
    let singleton = |update: &str, more: &[&str]| {
        run(&[&["singleton", "--identity", &member.identity, "--update", update, "--state", &state], more].concat())
    };
    // The cohort has announced version 2: another one of it is refused, the same one is not.
    let initial = document::initial_document(&member.did.parse().unwrap(), None).unwrap();
    let other = note(&member, &initial, 1, "other");
    assert!(singleton(&other, &[]).usage().contains("another update of version 2 is announced in cohort"));
    let same = path(&member.directory, "same");
    fs::write(&same, joined["sidecar"]["updates"][0].to_string()).unwrap();
    singleton(&same, &[]).succeeded();

    // The next update starts from there. It is recorded, so that no later call contradicts it, `join` included.
    let mut second = initial.clone();
    second["note"] = "first".into();
    let third = note(&member, &second, 2, "third");
    singleton(&third, &[]).succeeded();
    singleton(&third, &[]).succeeded();
    let contradicting = note(&member, &second, 2, "contradicting");
    assert!(singleton(&contradicting, &[]).usage().contains("without a cohort"));
    fs::write(&patch, r#"[{ "op": "add", "path": "/note", "value": "by a cohort" }]"#).unwrap();
    let more = ["--update", &patch, "--state", &state, "--exit-when-done"];
    let refused = crate::support::join(&service.url, &member.identity, &more[..4]).end();
    let reason = refused.1.iter().find(|event| event["event"] == "result").unwrap()["reason"].to_string();
    assert!(refused.0 == Some(1) && reason.contains("--supersede singleton"), "{refused:?}");
    singleton(&contradicting, &["--supersede", "singleton"]).succeeded();
    // What is superseded once stays so: the next call knows it without the flag.
    singleton(&contradicting, &[]).succeeded();
    assert!(singleton(&third, &[]).usage().contains("without a cohort"));
    // Until it is taken back: from then on the other one is refused.
    singleton(&third, &["--supersede", "singleton"]).succeeded();
    singleton(&third, &[]).succeeded();
    assert!(singleton(&contradicting, &[]).usage().contains("without a cohort"));

    // An update that does not follow from the vault is refused unless it is allowed.
    let ahead = note(&member, &second, 4, "far ahead");
    assert!(singleton(&ahead, &["--supersede", "singleton"]).usage().contains("lead to version 2"));
    singleton(&ahead, &["--supersede", "singleton", "--allow-risky-update"]).succeeded();
    // Nor does a member start from a document that does not follow from it.
    let source = path(&member.directory, "source");
    fs::write(&source, initial.to_string()).unwrap();
    let stale = ["--source-document", &source, "--source-version", "7", "--supersede", "singleton"];
    let stale = crate::support::join(&service.url, &member.identity, &[&more[..4], &stale].concat()).end();
    assert!(stale.0 == Some(2) && stale.2.contains("lead to version 2"), "{stale:?}");
}

#[test]
fn what_an_open_session_has_submitted_is_not_contradicted() {
    let member = Member::new("singleton-session");
    let (state, patch) = (path(&member.directory, "state"), path(&member.directory, "patch"));
    fs::write(&patch, r#"[{ "op": "add", "path": "/note", "value": "first" }]"#).unwrap();
    let service = Service::once(&member.directory, 2, &[]);
    // The other member never answers, so that the cohort waits.
    let deaf = Proxy::deaf_behind(service.address(), "keygen/cohort_opt_in_accept");
    let mut silent = join(&deaf.url(), &identity(&member.directory, "silent"), &["--decline"]);
    silent.event("opt-in-accepted");
    let arguments = ["--update", &patch, "--state", &state, "--allow-unlisted-beacon"];
    let mut joined = service.join(&member.identity, &arguments);
    let cohort = joined.event("update-submitted")["cohortId"].as_str().unwrap().to_owned();
    joined.kill();
    drop(joined);

    let initial = document::initial_document(&member.did.parse().unwrap(), None).unwrap();
    let other = note(&member, &initial, 1, "other");
    let singleton = ["singleton", "--identity", &member.identity, "--update", &other, "--state", &state];
    let refused = run(&singleton);
    assert!(refused.usage().contains(&format!("was submitted in cohort {cohort}")), "{refused:?}");
    // Who drops that one does not sign it later.
    run(&[&singleton[..], &["--supersede", &cohort]].concat()).succeeded();
    run(&singleton).succeeded();
    let (status, lines, errors) = join(&service.url, &member.identity, &arguments).end();
    let result = lines.iter().find(|line| line["event"] == "result").unwrap();
    let reason = result["reason"].as_str().unwrap();
    assert_eq!(status, Some(1), "{lines:#?}{errors}");
    assert!(reason.contains(&format!("submitted in cohort {cohort}")) && reason.contains("--forget"), "{reason}");
}

#[test]
fn an_update_whose_proof_may_not_hold_in_its_block_is_refused() {
    let member = Member::new("singleton-expires");
    let key = SecretKey::from_hex(SECRET).unwrap();
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    for (field, time) in [("expires", "2126-01-01T00:00:00Z"), ("created", now.as_str())] {
        let mut update = member.update.value().clone();
        let mut proof = update.as_object_mut().unwrap().remove("proof").unwrap();
        proof.as_object_mut().unwrap().remove("proofValue");
        proof[field] = time.into();
        let signature =
            key.sign(&signed_digest(&proof, &update).unwrap(), &mut ChaCha20Rng::seed_from_u64(7)).to_bytes();
        proof["proofValue"] = format!("z{}", bs58::encode(signature).into_string()).into();
        update["proof"] = proof;
        let file = path(&member.directory, field);
        fs::write(&file, update.to_string()).unwrap();
        let singleton =
            |more: &[&str]| run(&[&["singleton", "--did", &member.did, "--update", &file], more].concat());
        let refused = singleton(&[]);
        assert!(refused.usage().contains(&format!("proof.{field}")), "{refused:?}");
        let risky = singleton(&["--allow-risky-update"]).succeeded();
        assert!(risky.stderr.contains(&format!("warning: proof.{field}")), "{risky:?}");
    }
}

#[test]
fn a_later_update_is_checked_against_the_document_that_is_given() {
    let member = Member::new("singleton-source");
    let mut second = document::initial_document(&member.did.parse().unwrap(), None).unwrap();
    second["note"] = "first".into();
    let third = note(&member, &second, 2, "third");
    let source = path(&member.directory, "source");
    fs::write(&source, second.to_string()).unwrap();
    let singleton = |more: &[&str]| run(&[&["singleton", "--did", &member.did, "--update", &third], more].concat());
    singleton(&["--source-document", &source]).succeeded();
    second["note"] = "something else".into();
    fs::write(&source, second.to_string()).unwrap();
    let wrong = singleton(&["--source-document", &source]);
    assert!(wrong.usage().contains("not a valid update of this DID"), "{wrong:?}");
}
