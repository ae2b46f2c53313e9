//! The control API of a service as a process: over its socket, at its address, and by `ctl`.
#![cfg(unix)]

mod access;
mod chain;
mod cohorts;
mod console;
mod events;
mod stored;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use crate::support::{PATIENCE, Program, Run, Service, directory, path, run};

/// The API's document.
fn document() -> Value {
    serde_json::from_str(include_str!("../../../src/control/openapi.json")).unwrap()
}

/// An answer: status, headers as one text, and body.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    text: String,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// A service with a control API, in a directory of the test's own.
struct Controlled {
    service: Service,
    directory: PathBuf,
    state: String,
    /// The address of the API.
    address: SocketAddr,
}

impl Controlled {
    /// A service that waits for orders.
    fn start(name: &str, arguments: &[&str]) -> Self {
        Self::start_in(directory(name), arguments)
    }

    fn start_in(directory: PathBuf, arguments: &[&str]) -> Self {
        let state = path(&directory, "state");
        let fixed = ["--state", &state, "--control", "127.0.0.1:0"];
        let mut service = Service::start(&directory, &[&fixed[..], arguments].concat());
        let control = service.program.event("control");
        let address = control["url"].as_str().unwrap().strip_prefix("http://").unwrap().parse().unwrap();
        Self { service, directory, state, address }
    }

    /// Kills it, and starts it again on the same state.
    fn restarted(mut self, arguments: &[&str]) -> Self {
        self.service.program.kill();
        Self::start_in(self.directory.clone(), arguments)
    }

    /// Runs `ctl` over the socket.
    fn ctl_run(&self, arguments: &[&str]) -> Run {
        run(&[&["ctl", "--json", "--state", &self.state], arguments].concat())
    }

    fn ctl(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ctl_run(arguments).succeeded().stdout).unwrap()
    }

    /// A token of this role.
    fn token(&self, role: &str) -> String {
        let arguments = ["control", "token", "new", "--role", role, "--label", role, "--state", &self.state];
        run(&arguments).succeeded().stdout.trim().to_owned()
    }

    /// The last entries of the audit log, the last first.
    fn audit(&self, most: usize) -> Vec<Value> {
        let answer = self.ctl(&["audit", "--limit", &most.to_string()]);
        answer["entries"].as_array().unwrap().clone()
    }

    /// Sends a request to the address.
    fn ask(&self, token: Option<&str>, method: &str, at: &str, body: Option<&Value>) -> Answer {
        let mut headers = vec![("Host".to_owned(), "localhost".to_owned())];
        headers.extend(token.map(|token| ("Authorization".to_owned(), format!("Bearer {token}"))));
        self.send(method, at, &headers, &body.map(Value::to_string).unwrap_or_default())
    }

    fn send(&self, method: &str, at: &str, headers: &[(String, String)], body: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        exchange(&mut stream, method, at, headers, body)
    }

    /// Sends a request over the socket.
    fn ask_socket(&self, method: &str, at: &str, headers: &[(String, String)]) -> Answer {
        let mut stream = UnixStream::connect(Path::new(&self.state).join("control.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        exchange(&mut stream, method, at, headers, "")
    }

    /// Starts `ctl events`.
    fn events(&self, arguments: &[&str]) -> Events {
        let mut command =
            crate::support::command(&[&["ctl", "--json", "--state", &self.state, "events"], arguments].concat());
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut events = Events { child, lines };
        if !arguments.contains(&"--after") {
            self.until_connected(&mut events);
        }
        events
    }

    /// Makes changes until the reader prints one: what comes from then on is not missed.
    fn until_connected(&self, events: &mut Events) {
        let is_connected = std::sync::atomic::AtomicBool::new(false);
        let connected = std::sync::atomic::Ordering::SeqCst;
        let state = &self.state;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let until = std::time::Instant::now() + PATIENCE;
                while !is_connected.load(connected) && std::time::Instant::now() < until {
                    let ban = ["ban", "add", "198.51.100.77", "--reason", "so that an event comes"];
                    run(&[&["ctl", "--json", "--state", state][..], &ban].concat()).succeeded();
                }
            });
            events.event("changed");
            is_connected.store(true, connected);
        });
    }
}

/// The events that a `ctl events` prints.
struct Events {
    child: std::process::Child,
    lines: std::io::BufReader<std::process::ChildStdout>,
}

impl Events {
    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut self.lines, &mut line).unwrap();
        serde_json::from_str(&line).ok()
    }

    /// The next event of that kind.
    fn event(&mut self, kind: &str) -> Value {
        loop {
            let event = self.next().unwrap_or_else(|| panic!("ended without {kind}"));
            if event["event"] == kind {
                return event;
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn exchange(
    stream: &mut (impl Read + Write),
    method: &str,
    at: &str,
    headers: &[(String, String)],
    body: &str,
) -> Answer {
    let mut request = format!("{method} {at} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    // The service may answer, and close, before it has read all of it.
    let _ = stream.write_all(format!("{request}\r\n{body}").as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        true => chunks(body),
        false => body.to_owned(),
    };
    let value = serde_json::from_str(&body).unwrap_or_default();
    Answer { status, head: head.to_owned(), text: body, body: value }
}

/// The text of a body in chunks.
fn chunks(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap_or(0);
        if length == 0 || rest.len() < length {
            break;
        }
        text.push_str(&rest[..length]);
        body = rest[length..].trim_start_matches("\r\n");
    }
    text
}

/// Waits until something is so.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = std::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(std::time::Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A path of the API.
fn base(at: &str) -> String {
    format!("/control/v1{at}")
}

/// The cohort of an answer.
fn id(answer: &Value) -> String {
    answer["cohortId"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// How a program has ended.
fn ended(program: Program) -> (Option<i32>, Vec<Value>) {
    let (status, lines, _) = program.end();
    (status, lines)
}
