//! The commands `identity`, `serve` and `join`: which calls are refused and why, where settings come from, and that secrets
//! do not leak.

use std::{fs, os::unix::fs::PermissionsExt};

use btcr2_aggregation::actors::transport::tls::Trust;

use crate::support::{
    Service, contains, did_of, directory, external_identity, identity,
    inputs::SECRET,
    path, run, run_with,
    verify::{participant_result, service_result},
};
use serde_json::{Value, json};

#[test]
fn an_identity_file_is_for_its_owner_only_and_never_overwritten() {
    let directory = directory("identity");
    let file = identity(&directory, "alice");
    let mode = || fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    let before = fs::read(&file).unwrap();
    let again = run(&["identity", "new", "--out", &file]);
    assert_eq!(again.status, Some(1));
    contains(&again.stderr, &["alice", "exists"]);
    assert_eq!(fs::read(&file).unwrap(), before);

    for exposed in [0o640, 0o604, 0o666] {
        fs::set_permissions(&file, fs::Permissions::from_mode(exposed)).unwrap();
        contains(&run(&["identity", "show", &file]).stderr, &["can be read by others", "chmod 600"]);
        let serve = run(&["serve", "--identity", &file, "--chain", "offline"]);
        contains(serve.usage(), &["can be read by others", "chmod 600"]);
        let join = run(&["join", "--identity", &file, "--service", "http://127.0.0.1:1", "--decline"]);
        contains(join.usage(), &["can be read by others", "chmod 600"]);
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let shown = run(&["identity", "show", &file]).succeeded();
    contains(&shown.stdout, &["did:btcr2:k1", "KEY", "regtest"]);
}

#[test]
fn an_encrypted_identity_opens_with_its_passphrase_only() {
    let directory = directory("encrypted");
    let file = path(&directory, "file");
    let with = |passphrase| [("BTCR2_PASSPHRASE", passphrase)];
    run_with(&["identity", "new", "--encrypt", "--out", &file], &with("open sesame")).succeeded();
    assert!(fs::read(&file).unwrap().starts_with(b"age-encryption.org/v1"));
    let shown = run_with(&["identity", "show", "--json", &file], &with("open sesame")).succeeded();
    assert_eq!(serde_json::from_str::<Value>(&shown.stdout).unwrap()["encrypted"], true);
    let wrong = run_with(&["identity", "show", &file], &with("open barley"));
    assert_eq!((wrong.status, wrong.stdout.as_str()), (Some(1), ""));
    contains(&wrong.stderr, &["the passphrase is wrong"]);
    contains(&run(&["identity", "show", &file]).stderr, &["is encrypted", "BTCR2_PASSPHRASE"]);
    let none = run(&["identity", "new", "--encrypt", "--out", &path(&directory, "none")]);
    contains(&none.stderr, &["BTCR2_PASSPHRASE"]);
    for empty in ["", "\n", "\u{feff}\r\n"] {
        let none = run_with(&["identity", "new", "--encrypt", "--out", &path(&directory, "empty")], &with(empty));
        assert_eq!(none.status, Some(1), "{none:?}");
        contains(&none.stderr, &["the passphrase is empty"]);
        assert!(!std::path::Path::new(&path(&directory, "empty")).exists());
    }
}

#[test]
fn an_external_identity_adds_its_key_to_the_genesis_document() {
    let directory = directory("external");
    let file = external_identity(&directory, "external");
    let shown = run(&["identity", "show", "--json", &file]).succeeded();
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["type"], "EXTERNAL");
    contains(shown["did"].as_str().unwrap(), &["did:btcr2:x1"]);
    let mut genesis = shown["genesisDocument"].clone();
    let key = genesis["verificationMethod"][0].as_object_mut().unwrap().remove("publicKeyMultibase").unwrap();
    contains(key.as_str().unwrap(), &["zQ3s"]);
    let given = fs::read_to_string(path(&directory, "external.genesis")).unwrap();
    assert_eq!(genesis, serde_json::from_str::<Value>(&given).unwrap());

    // We do not sign for a document with a foreign key.
    let foreign = path(&directory, "foreign.json");
    fs::write(&foreign, shown["genesisDocument"].to_string()).unwrap();
    let refused = run(&["identity", "new", "--external", &foreign, "--out", &path(&directory, "foreign")]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(!directory.join("foreign").exists());
    fs::write(&foreign, "no document").unwrap();
    let refused = run(&["identity", "new", "--external", &foreign, "--out", &path(&directory, "foreign")]);
    contains(&refused.stderr, &["foreign.json", "not JSON"]);
}

#[test]
fn a_secret_is_never_printed() {
    let directory = directory("secret");
    let file = path(&directory, "file");
    let secret = [("THE_SECRET", SECRET), ("RUST_LOG", "trace")];
    let mut runs = vec![run_with(&["identity", "new", "--secret-env", "THE_SECRET", "--out", &file], &secret)];
    assert!(fs::read_to_string(&file).unwrap().contains(SECRET), "the test looks for the right thing");
    let did = did_of(&file);
    assert_eq!(runs[0].stdout.trim(), did);
    for arguments in [
        &["identity", "show", &file][..],
        &["identity", "show", "--json", &file],
        &["serve", "--identity", &file],
        &["serve", "--secret-env", "THE_SECRET", "--chain", "offline", "--listen", "nowhere:1"],
        &["serve", "--identity", &file, "--chain", "offline", "--network", "bitcoin"],
        &["join", "--identity", &file, "--decline", "--service", "nowhere"],
        &["join", "--secret-env", "THE_SECRET", "--service", "nowhere", "--decline"],
    ] {
        runs.push(run_with(arguments, &secret));
    }
    // Files that are not identity files, or contain another DID, are reported without their content.
    let content: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let mut other = content.clone();
    other["did"] = json!("did:btcr2:k1other");
    let mut unknown = content.clone();
    unknown[SECRET] = json!(SECRET);
    for (name, text) in [
        ("other", other.to_string()),
        ("unknown", unknown.to_string()),
        ("cut", content.to_string().trim_end_matches('}').to_owned()),
    ] {
        let file = path(&directory, name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let shown = run(&["identity", "show", &file]);
        assert_eq!(shown.status, Some(1), "{shown:?}");
        runs.push(shown);
    }
    // A whole cohort, with all logs.
    let service = Service::once(&directory, 1, &[]);
    let joined = crate::support::command(&[
        "join",
        "--service",
        &service.url,
        "--secret-env",
        "THE_SECRET",
        "--add-beacon",
        "--exit-when-done",
    ]);
    let mut joined = joined;
    let output = joined.envs(secret).output().unwrap();
    let utf8 = |bytes| String::from_utf8(bytes).unwrap();
    runs.push(crate::support::Run {
        status: output.status.code(),
        stdout: utf8(output.stdout),
        stderr: utf8(output.stderr),
    });
    contains(&runs.last().unwrap().all(), &["our update is in"]);
    for run in runs {
        assert!(!run.all().contains(SECRET) && !run.all().contains(&SECRET.to_uppercase()), "{run:?}");
    }
    let wrong = run_with(&["identity", "new", "--secret-env", "WRONG", "--out", "x"], &[("WRONG", "not a secret")]);
    contains(&wrong.stderr, &["WRONG", "64 hex characters"]);
    assert!(!wrong.all().contains("not a secret"), "{wrong:?}");
}

#[test]
fn an_invalid_call_is_refused_with_a_hint() {
    let directory = directory("usage");
    let file = identity(&directory, "file");
    let external = external_identity(&directory, "external");
    let patch = path(&directory, "patch.json");
    fs::write(&patch, json!([{ "op": "remove", "path": "/nothing" }]).to_string()).unwrap();
    let serve = |arguments: &[&str]| run(&[&["serve", "--identity", &file], arguments].concat());
    let offline = |arguments: &[&str]| serve(&[&["--chain", "offline"], arguments].concat());
    contains(serve(&[]).usage(), &["no chain", "--chain offline"]);
    contains(offline(&["--network", "bitcoin"]).usage(), &["refused on bitcoin"]);
    contains(run(&["serve", "--chain", "offline"]).usage(), &["no identity", "--identity FILE", "--secret-env"]);
    contains(offline(&["--secret-env", "X"]).usage(), &["one of --identity FILE and --secret-env"]);
    contains(offline(&["--exit-when-done"]).usage(), &["--cohorts"]);
    contains(offline(&["--tls-cert", "x"]).usage(), &["--tls-cert and --tls-key go together"]);
    contains(offline(&["--min-participants", "3", "--max-participants", "2"]).usage(), &["articipants"]);
    contains(offline(&["--min-participants", "2", "--fallback-threshold", "3"]).usage(), &["allback"]);
    contains(offline(&["--recovery-sequence", "0"]).usage(), &["equence"]);
    contains(offline(&["--cohort-ttl", "soon"]).usage(), &["--cohort-ttl"]);
    contains(offline(&["--identity", &path(&directory, "none")]).usage(), &["identity"]);
    assert_eq!(offline(&["--listen", "256.0.0.1:0"]).status, Some(1));
    let by_external = run(&["serve", "--identity", &external, "--chain", "offline", "--listen", "127.0.0.1:0"]);
    contains(by_external.usage(), &["KEY"]);

    let url = ["--service", "http://127.0.0.1:1"];
    let join = |arguments: &[&str]| run(&[&["join", "--identity", &file], arguments].concat());
    let at = |arguments: &[&str]| join(&[&url, arguments].concat());
    contains(join(&["--decline"]).usage(), &["--service is missing"]);
    contains(at(&[]).usage(), &["one of --update FILE, --add-beacon, --decline and --standing"]);
    contains(at(&["--decline", "--add-beacon"]).usage(), &["cannot be used with"]);
    contains(join(&["--service", "nowhere", "--decline"]).usage(), &["nowhere"]);
    contains(join(&["--service", "ftp://a", "--decline"]).usage(), &["http or https"]);
    contains(
        at(&["--decline", "--source-version", "2"]).usage(),
        &["--source-document and --source-version go together"],
    );
    contains(at(&["--update", &patch]).usage(), &["patch.json"]);
    contains(at(&["--update", &path(&directory, "none.json")]).usage(), &["none.json"]);
    contains(at(&["--decline", "--service-did", "did:example:1"]).usage(), &["--service-did"]);
    contains(at(&["--decline", "--tls-ca", &patch]).usage(), &["certificate"]);

    let standing = |arguments: &[&str]| offline(&[&["--standing"], arguments].concat());
    contains(standing(&["--cohorts", "1"]).usage(), &["not with --standing"]);
    contains(standing(&["--recovery-sequence", "10"]).usage(), &["not with --standing"]);
    contains(standing(&["--registration", "blind"]).usage(), &["updates: hash"]);
    contains(standing(&["--operator-output", "nowhere:10"]).usage(), &["nowhere"]);
    contains(offline(&["--min-interval", "1h"]).usage(), &["need --standing"]);
    contains(at(&["--standing"]).usage(), &["--dids"]);
    let dids = path(&directory, "dids");
    contains(at(&["--standing", "--dids", &dids, "--out", &dids]).usage(), &["--state"]);
}

#[test]
fn flags_override_variables_and_variables_the_file() {
    let directory = directory("precedence");
    let file = identity(&directory, "file");
    let config = path(&directory, "serve.toml");
    let refused_by = |arguments: &[&str], variables: &[(&str, &str)], toml: &str| {
        fs::write(&config, format!("{toml}\nidentity = {file:?}\n")).unwrap();
        let run = run_with(&[&["serve", "--config", &config], arguments].concat(), variables);
        run.usage().to_owned()
    };
    let offline = "chain = 'offline'\n";
    // `bitcoin` is refused by name, so that the error shows which setting was used.
    contains(&refused_by(&[], &[], ""), &["no chain"]);
    contains(&refused_by(&[], &[], &format!("{offline}network = 'bitcoin'")), &["refused on bitcoin"]);
    let variable = [("BTCR2_NETWORK", "bitcoin")];
    contains(&refused_by(&[], &variable, &format!("{offline}network = 'signet'")), &["refused on bitcoin"]);
    let variable = [("BTCR2_NETWORK", "signet")];
    let flag = ["--network", "bitcoin"];
    contains(&refused_by(&flag, &variable, &format!("{offline}network = 'signet'")), &["refused on bitcoin"]);
    let timelock = refused_by(&[], &[("BTCR2_RECOVERY_SEQUENCE", "0")], &format!("{offline}recovery-sequence = 5"));
    contains(&timelock, &["equence"]);
    // A setting without an effect is an error.
    contains(&refused_by(&[], &[], &format!("{offline}min-particpants = 5")), &["serve.toml", "min-particpants"]);
    contains(&refused_by(&[], &[], &format!("{offline}cohort-ttl = 'soon'")), &["serve.toml", "cohort-ttl"]);

    // A flag's identity replaces the file's secret, and a flag's intent the file's.
    let toml = format!("{offline}secret-env = 'NOWHERE'\nnetwork = 'bitcoin'");
    fs::write(&config, toml).unwrap();
    contains(run(&["serve", "--config", &config, "--identity", &file]).usage(), &["refused on bitcoin"]);
    fs::write(&config, "decline = true\nservice = 'nowhere'\n").unwrap();
    let join = ["join", "--config", &config, "--identity", &file];
    contains(run(&[&join[..], &["--add-beacon"]].concat()).usage(), &["nowhere"]);
    contains(run(&join).usage(), &["nowhere"]);
}

#[test]
fn a_whole_service_is_configured_by_its_file() {
    let directory = directory("file");
    let member = identity(&directory, "member");
    let config = path(&directory, "serve.toml");
    let toml = "min-participants = 1\ncohorts = 1\nexit-when-done = true\nbeacon = 'smt'\nphase-timeout = '5m'\n";
    fs::write(&config, toml).unwrap();
    let service = Service::start(&directory, &["--config", &config]);
    let joined = service.join(&member, &["--decline"]);
    let result = service.program.result();
    service_result(&result, "key-path");
    participant_result(&joined.result(), &did_of(&member), &result);
}

#[test]
fn a_cohort_with_unaccepted_terms_is_skipped_with_a_reason() {
    let directory = directory("terms");
    let member = identity(&directory, "member");
    let terms = ["--recovery-sequence", "100", "--fallback-threshold", "1", "--min-participants", "3"];
    let service = Service::start(&directory, &terms);
    let other = did_of(&member);
    let low_timelock = ["--min-recovery-sequence", "50"];
    let refusals: [(&[&str], &str); 4] = [
        (&[], "the operator could recover the coin after 100 blocks, at least 144 are asked for"),
        (&["--min-fallback-threshold", "2"], "1 members could sign by themselves, at least 2 are asked for"),
        (&["--beacon", "smt"], "its beacon is a CASBeacon, not a SMTBeacon"),
        (&["--service-did", &other], "is not the service of this connection"),
    ];
    for (arguments, reason) in refusals {
        let timelock = if arguments.is_empty() { &[][..] } else { &low_timelock };
        let mut joined = service.join(&member, &[&["--decline"], timelock, arguments].concat());
        let (event, field) = match arguments {
            // Another service is ignored.
            ["--service-did", _] => ("message-unverified", "reason"),
            _ => ("cohort-passed-over", "reason"),
        };
        let reported = joined.event(event)[field].as_str().unwrap().to_owned();
        contains(&reported, &[reason]);
        assert!(!joined.seen().iter().any(|event| event["event"] == "cohort-joined"), "{:#?}", joined.seen());
        joined.signal("-TERM");
        assert_eq!(joined.end().0, Some(0));
    }
    let mut joined = service.join(&member, &[&["--decline"], &low_timelock[..]].concat());
    joined.event("opt-in-accepted");
}

#[test]
fn over_tls_a_service_is_trusted_by_its_certificate_only() {
    let directory = directory("tls");
    let (certificate, key) = (path(&directory, "certificate.pem"), path(&directory, "key.pem"));
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let other = path(&directory, "other.pem");
    fs::write(&other, rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap().cert.pem()).unwrap();
    let service = Service::once(&directory, 1, &["--tls-cert", &certificate, "--tls-key", &key]);
    contains(&service.url, &["https://127.0.0.1:"]);
    let member = identity(&directory, "member");
    // A member that trusts another certificate receives nothing.
    let wary = service.join(&member, &["--add-beacon", "--tls-ca", &other]);
    let joined = service.join(&member, &["--add-beacon", "--tls-ca", &certificate]);
    let result = service.program.result();
    service_result(&result, "key-path");
    participant_result(&joined.result(), &did_of(&member), &result);
    wary.signal("-TERM");
    let (status, mut lines, _) = wary.end();
    lines.retain(|line| !["warning", "terms"].contains(&line["event"].as_str().unwrap()));
    assert_eq!(status, Some(0));
    assert!(lines.iter().all(|line| line["event"] == "unreachable"), "{lines:#?}");
    contains(lines[0]["problem"].as_str().unwrap(), &["certificate"]);

    let file = identity(&directory, "bad");
    let refused = run(&["serve", "--identity", &file, "--chain", "offline", "--tls-cert", &key, "--tls-key", &key]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
}

#[test]
fn the_help_of_each_command_lists_its_flags() {
    let help = |command: &str| run(&[command, "--help"]).succeeded().stdout;
    let serve =
        ["--config", "--listen", "--recovery-key", "--parallel", "--chain", "--exit-when-done", "--tls-cert"];
    contains(&help("serve"), &serve);
    contains(&help("serve"), &["BTCR2_MIN_PARTICIPANTS", "[default: 127.0.0.1:8080]"]);
    contains(
        &help("join"),
        &["--service-did", "--update", "--source-version", "--max-cost", "--tls-ca", "BTCR2_SERVICE"],
    );
    contains(&help("demo"), &["--transport", "memory", "http"]);
    contains(&help("identity"), &["new", "show"]);
}

#[test]
fn the_update_limit_is_the_body_limit_unless_configured() {
    let directory = directory("update-size");
    let about_size =
        |event: &Value| event["message"].as_str().is_some_and(|message| message.contains("a request body only"));
    for (flags, update, warns) in [
        (&[][..], 65_536, false),
        (&["--max-body", "1000000"], 262_144, false),
        (&["--max-body", "100000"], 100_000, false),
        (&["--max-update", "1000"], 1_000, false),
        (&["--max-update", "70000"], 65_536, true),
    ] {
        let service = Service::start(&directory, flags);
        let warnings = service.program.seen().iter().filter(|event| about_size(event)).count();
        assert_eq!(warnings, usize::from(warns), "{flags:?}: {:#?}", service.program.seen());
        let stated = actix_rt::System::new().block_on(async {
            let client = Trust::system().http_client().unwrap().build().unwrap();
            let url = format!("{}/v1/.well-known/aggregation", service.url);
            client.get(url).send().await.unwrap().text().await.unwrap()
        });
        let stated: Value = serde_json::from_str(&stated).unwrap();
        assert_eq!(stated["maxUpdateBytes"], update, "{flags:?}");
    }
}
