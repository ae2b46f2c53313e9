//! Nothing secret is in any log, however much is logged: a whole round at `RUST_LOG=trace`, and every secret of it.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use btcr2_aggregation::{
    actors::{notice::Notices, runtime::Randomness},
    bitcoin::offline::OfflineOperator,
    demo::{self, DemoConfig, DemoTransport},
    protocol::{beacon::BeaconType, cohort::event::SpendPath, hash::sha256, key::SecretKey},
};
use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use support::{command, directory, path, run};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// A log that is read afterwards.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The spellings in which bytes are written.
fn spellings(bytes: &[u8]) -> Vec<String> {
    vec![
        HEXLOWER.encode(bytes),
        data_encoding::HEXUPPER.encode(bytes),
        BASE64.encode(bytes),
        BASE64URL_NOPAD.encode(bytes),
        format!("{bytes:?}"),
    ]
}

/// Runs a seeded demo, whose keys can be derived here; what `log` has of it.
fn logged(log: &Log, transport: DemoTransport, path: SpendPath, seed: u64) -> String {
    log.0.lock().unwrap().clear();
    let config =
        DemoConfig { participants: 3, decline: 0, beacon: BeaconType::cas(), path, transport, seed: Some(seed) };
    let round = async { demo::run_with(&config, Arc::new(OfflineOperator), Notices::new(1 << 14), |_| {}).await };
    actix_rt::System::new().block_on(round).unwrap();
    let log = log.0.lock().unwrap();
    String::from_utf8_lossy(&log).into_owned()
}

#[test]
fn no_key_and_no_update_is_in_the_log_of_a_whole_round() {
    let log = Log::default();
    // For all threads: requests and heavy work have threads of their own.
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("trace"))
        .with_writer(log.clone())
        .with_ansi(false)
        .init();
    for (transport, path) in [
        (DemoTransport::Memory, SpendPath::KeyPath),
        (DemoTransport::Memory, SpendPath::ScriptPath),
        (DemoTransport::Http, SpendPath::KeyPath),
        (DemoTransport::Nostr, SpendPath::KeyPath),
    ] {
        let seed = 77;
        let log = logged(&log, transport, path, seed);
        // The log is one of this round, or nothing could be found in it.
        if transport != DemoTransport::Memory {
            assert!(!log.is_empty(), "{transport:?} logs nothing");
        }
        let randomness = Randomness::Seeded(sha256(&seed.to_be_bytes()));
        let names =
            (0..3).map(|index| format!("participant identity {index}")).chain(["service identity".to_owned()]);
        for name in names {
            let key = SecretKey::generate(&mut randomness.for_actor(&name));
            let hex = key.to_hex();
            let bytes = HEXLOWER.decode(hex.as_bytes()).unwrap();
            for secret in spellings(&bytes) {
                assert!(!log.contains(&secret), "{transport:?}, {path}: the key of {name} is in the log");
            }
        }
        // What every update of a demo holds, and nothing else does.
        for content in ["proofValue", "targetHash", "/service/-"] {
            let line = log.lines().find(|line| line.contains(content));
            assert_eq!(line, None, "{transport:?}, {path}: {content} of an update is in the log");
        }
    }
}

#[test]
fn no_passphrase_and_no_key_is_in_what_the_programs_say() {
    let directory = directory("secrets");
    let file = path(&directory, "identity");
    run(&["identity", "new", "--out", &file]).succeeded();
    let secret = "5dc7f1a2b9e4085d3b7c6a1f0e9d8c7b6a5f4e3d2c1b0a998877665544332211";
    for format in ["text", "json"] {
        let mut serve = command(&["serve", "--log", format, "--secret-env", "TEST_SECRET", "--chain", "offline"]);
        serve.args(["--listen", "127.0.0.1:0", "--cohorts", "1", "--exit-when-done", "--min-participants", "2"]);
        serve.args(["--phase-timeout", "100ms", "--cohort-ttl", "100ms"]);
        let output = serve.env("TEST_SECRET", secret).env("RUST_LOG", "trace").output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains("did:btcr2:"), "it served: {said}");
        for spelling in spellings(&HEXLOWER.decode(secret.as_bytes()).unwrap()) {
            assert!(!said.contains(&spelling), "--log {format}: the key is in what it says");
        }
    }
}
