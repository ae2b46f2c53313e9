//! The programs as processes, and verification of their output.

pub mod clock;
pub mod cohort;
pub mod events;
pub mod inputs;
pub mod logged;
pub mod process;
pub mod proxy;
pub mod verify;

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;

use self::clock::Clock;

/// How long something that must happen may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asserts that all `parts` are in `text`.
pub fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
}

/// A copy of a directory, as an operator makes one.
pub fn copy(from: &str, to: &str) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), Path::new(to).join(entry.file_name())).unwrap();
    }
}

/// A program that has ended.
#[derive(Debug)]
pub struct Run {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Standard error of a call that was refused for its arguments.
    pub fn usage(&self) -> &str {
        assert_eq!(self.status, Some(2), "{self:?}");
        &self.stderr
    }

    /// Its lines, each a documented event.
    pub fn events(&self) -> Vec<Value> {
        let lines: Vec<Value> = self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.iter().for_each(events::check);
        lines
    }

    pub fn succeeded(self) -> Self {
        assert_eq!(self.status, Some(0), "{self:?}");
        self
    }
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_btcr2-aggregation"));
    // Cohorts form at once, without waiting for more members than a test has.
    command.args(arguments).env("BTCR2_SETTLE", "0s").stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub fn run(arguments: &[&str]) -> Run {
    run_with(arguments, &[])
}

pub fn run_with(arguments: &[&str], variables: &[(&str, &str)]) -> Run {
    let output = command(arguments).envs(variables.iter().copied()).output().unwrap();
    Run {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A directory of this test's own, empty.
pub fn directory(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("http").join(name);
    if directory.exists() {
        fs::remove_dir_all(&directory).unwrap();
    }
    fs::create_dir_all(&directory).unwrap();
    directory
}

pub fn path(directory: &Path, name: &str) -> String {
    directory.join(name).to_str().unwrap().to_owned()
}

/// Makes an identity file; its path.
pub fn identity(directory: &Path, name: &str) -> String {
    let file = path(directory, name);
    run(&["identity", "new", "--out", &file]).succeeded();
    file
}

/// The genesis document of a DID whose key does not exist yet.
pub fn genesis_without_key() -> Value {
    use btcr2_aggregation::{
        actors::runtime::Randomness,
        protocol::{document, key::SecretKey, network::Network},
    };
    let key = SecretKey::generate(&mut Randomness::System.for_actor(""));
    let mut genesis = document::genesis_document(&key.public_key(), Network::Regtest);
    genesis["verificationMethod"][0].as_object_mut().unwrap().remove("publicKeyMultibase").unwrap();
    genesis
}

pub fn external_identity(directory: &Path, name: &str) -> String {
    let (file, genesis) = (path(directory, name), path(directory, &format!("{name}.genesis")));
    fs::write(&genesis, genesis_without_key().to_string()).unwrap();
    run(&["identity", "new", "--external", &genesis, "--out", &file]).succeeded();
    file
}

pub fn did_of(identity: &str) -> String {
    let shown = run(&["identity", "show", "--json", identity]).succeeded();
    serde_json::from_str::<Value>(&shown.stdout).unwrap()["did"].as_str().unwrap().to_owned()
}

/// A program that runs, and prints one JSON object a line.
pub struct Program {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<Value>,
    stderr: Option<JoinHandle<String>>,
}

impl Program {
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_at(arguments, None)
    }

    /// With a clock of its own.
    pub fn start_at(arguments: &[&str], clock: Option<&Clock>) -> Self {
        let mut command = command(arguments);
        if let Some(clock) = clock {
            clock.give(&mut command);
        }
        Self::launch(command)
    }

    pub fn launch(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let stderr = thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        Self { child, lines, seen: Vec::new(), stderr: Some(stderr) }
    }

    /// The next line; `None` when it has ended.
    fn line(&mut self, until: Instant) -> Option<Value> {
        use std::sync::mpsc::RecvTimeoutError as E;
        match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                events::check(&line);
                self.seen.push(line.clone());
                Some(line)
            }
            Err(E::Disconnected) => None,
            Err(E::Timeout) => panic!("nothing more in {PATIENCE:?} behind {:#?}", self.seen),
        }
    }

    /// Reads the lines that are there. The last one of a process that was killed may not be whole.
    pub fn read(&mut self) {
        while let Ok(line) = self.lines.try_recv() {
            if let Ok(line) = serde_json::from_str(&line) {
                events::check(&line);
                self.seen.push(line);
            }
        }
    }

    /// The first event of that name, read already or still to come.
    pub fn event(&mut self, name: &str) -> Value {
        self.event_where(name, |_| true)
    }

    pub fn event_where(&mut self, name: &str, mut matches: impl FnMut(&Value) -> bool) -> Value {
        self.first(name, |event| event["event"] == name && matches(event))
    }

    /// The first event of any name, read already or still to come, that matches; `what` is for the failure.
    pub fn first(&mut self, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        if let Some(seen) = self.seen.iter().find(|event| wanted(event)) {
            return seen.clone();
        }
        loop {
            match self.line(until) {
                Some(event) if wanted(&event) => return event,
                Some(_) => {}
                None => {
                    let errors = self.errors();
                    panic!("ended without {what}: {:#?}\n{errors}", self.seen);
                }
            }
        }
    }

    /// The next event that is still to come, of any name.
    pub fn any_where(&mut self, mut matches: impl FnMut(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.line(until) {
                Some(event) if matches(&event) => return event,
                Some(_) => {}
                None => {
                    let errors = self.errors();
                    panic!("ended: {:#?}\n{errors}", self.seen);
                }
            }
        }
    }

    fn errors(&mut self) -> String {
        self.stderr.take().map(|stderr| stderr.join().unwrap()).unwrap_or_default()
    }

    /// The events so far.
    pub fn seen(&self) -> &[Value] {
        &self.seen
    }

    /// Waits for the end: exit status, and all lines.
    pub fn end(mut self) -> (Option<i32>, Vec<Value>, String) {
        let until = Instant::now() + PATIENCE;
        while self.line(until).is_some() {}
        let status = self.child.wait().unwrap().code();
        let errors = self.errors();
        (status, std::mem::take(&mut self.seen), errors)
    }

    /// Waits for an end with exit status 0: the last line.
    pub fn result(self) -> Value {
        let (status, lines, errors) = self.end();
        assert_eq!(status, Some(0), "{lines:#?}\n{errors}");
        let last = lines.last().unwrap().clone();
        assert_eq!(last["event"], "result", "{lines:#?}");
        last
    }

    /// Waits for the end: whether it ended with exit status 0.
    pub fn ends_well(&mut self) -> bool {
        let until = Instant::now() + PATIENCE;
        while self.line(until).is_some() {}
        self.child.wait().unwrap().success()
    }

    /// Its resource usage; `None` where the system does not report it in this way.
    pub fn usage(&self) -> Option<process::Usage> {
        process::usage(self.child.id())
    }

    /// The id of its process, until its end was waited for.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGKILL; the process is gone when this returns.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A service that runs on a free port.
pub struct Service {
    pub program: Program,
    pub url: String,
    pub did: String,
}

impl Service {
    pub fn start(directory: &Path, arguments: &[&str]) -> Self {
        Self::start_at(directory, arguments, None)
    }

    /// With a clock of its own.
    pub fn start_at(directory: &Path, arguments: &[&str], clock: Option<&Clock>) -> Self {
        let file = path(directory, "service");
        if !Path::new(&file).exists() {
            identity(directory, "service");
        }
        let mut fixed = vec!["serve", "--identity", &file, "--events", "json"];
        for (flag, value) in [("--listen", "127.0.0.1:0"), ("--chain", "offline")] {
            if !arguments.contains(&flag) {
                fixed.extend([flag, value]);
            }
        }
        let mut program = Program::start_at(&[&fixed, arguments].concat(), clock);
        let serving = program.event("serving");
        let text = |field: &str| serving[field].as_str().unwrap().to_owned();
        Self { program, url: text("url"), did: text("did") }
    }

    /// A service of one cohort of so many members, that exits when it is done.
    pub fn once(directory: &Path, members: usize, arguments: &[&str]) -> Self {
        let members = members.to_string();
        let fixed = ["--min-participants", &members, "--cohorts", "1", "--exit-when-done"];
        Self::start(directory, &[&fixed, arguments].concat())
    }

    pub fn address(&self) -> SocketAddr {
        self.url.split_once("://").unwrap().1.parse().unwrap()
    }

    pub fn join(&self, identity: &str, arguments: &[&str]) -> Program {
        join(&self.url, identity, arguments)
    }
}

/// A participant that exits when it is done.
pub fn join(url: &str, identity: &str, arguments: &[&str]) -> Program {
    let fixed = ["join", "--service", url, "--identity", identity, "--events", "json", "--exit-when-done"];
    Program::start(&[&fixed, arguments].concat())
}
