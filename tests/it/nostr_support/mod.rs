//! Shared by the process tests over Nostr: the programs as processes, each with a key that follows from its name.

pub mod relay;

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use btcr2_aggregation::protocol::{hash::sha256, identity::Identity, key::SecretKey, network::Network};
use serde_json::Value;

/// The identity of the program of that name.
pub fn identity(name: &str) -> Identity {
    Identity::from_key(SecretKey::from_bytes(&sha256(name.as_bytes())).unwrap(), Network::Regtest)
}

/// How long a whole test may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A program that prints JSON, one event a line.
pub struct Program {
    name: String,
    child: Child,
    events: Receiver<Value>,
    pub received: Vec<Value>,
}

impl Program {
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        let secret = identity(name).secret_key().to_hex();
        let mut child = Command::new(env!("CARGO_BIN_EXE_btcr2-aggregation"))
            .args(arguments)
            .args(["--secret-env", "TEST_SECRET", "--events", "json"])
            .env("TEST_SECRET", secret.as_str())
            // Cohorts form at once, without waiting for more members than a test has.
            .env("BTCR2_SETTLE", "0s")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, events) = channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                crate::support::events::check(&event);
                let _ = sender.send(event);
            }
        });
        Self { name: name.to_owned(), child, events, received: Vec::new() }
    }

    /// The next event of that name.
    pub fn event(&mut self, name: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) => {
                    self.received.push(event.clone());
                    if event["event"] == name {
                        return event;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("{}: no {name} after {:#?}", self.name, self.received),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("{} ended without {name}: {:#?}", self.name, self.received)
                }
            }
        }
    }

    /// All events so far.
    pub fn listen(&mut self) -> &[Value] {
        self.received.extend(self.events.try_iter());
        &self.received
    }

    pub fn succeeds(&mut self) {
        assert!(self.child.wait().unwrap().success(), "{}: {:#?}", self.name, self.received);
    }

    /// Waits for its end.
    pub fn status(&mut self) -> Option<i32> {
        let status = self.child.wait().unwrap().code();
        // All its events are there when its output ends.
        while let Ok(event) = self.events.recv_timeout(PATIENCE) {
            self.received.push(event);
        }
        status
    }

    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Kilobytes of resident memory; `None` where the system does not report them in this way.
    pub fn resident(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

pub struct Running {
    pub service: Program,
    pub did: String,
    pub url: Option<String>,
    pub relay: String,
}

/// A service for one cohort of so many members, with a relay of its own on a free port.
pub fn serve(members: usize, more: &[&str]) -> Running {
    serve_on(&["--embedded-relay", "127.0.0.1:0"], members, more)
}

/// A service for one cohort of so many members on the relay in `place`.
pub fn serve_on(place: &[&str], members: usize, more: &[&str]) -> Running {
    let members = members.to_string();
    let arguments = [
        "serve",
        "--chain",
        "offline",
        "--min-participants",
        &members,
        "--cohorts",
        "1",
        "--exit-when-done",
        "--advert-repeat",
        "1s",
    ];
    let mut service = Program::start("service", &[&arguments[..], place, more].concat());
    let serving = service.event("serving");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Running {
        did: text(&serving["did"]),
        url: serving["url"].as_str().map(str::to_owned),
        relay: text(&serving["relays"][0]),
        service,
    }
}

pub fn join(running: &Running, name: &str, place: &[&str], more: &[&str]) -> Program {
    let arguments = ["join", "--service-did", &running.did, "--exit-when-done"];
    Program::start(name, &[&arguments[..], place, more].concat())
}
