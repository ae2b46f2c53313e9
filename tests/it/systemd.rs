//! What `serve` and `member` send to systemd (`Type=notify`, `WatchdogSec`), received on a socket as systemd has one.

use std::{fs, os::unix::net::UnixDatagram, path::Path, process::Command};

use crate::support::{PATIENCE, Program, command, directory, identity, path};

/// The socket of a service manager. The path of a socket is short, so that it is in a directory of its own.
struct Manager {
    directory: tempfile::TempDir,
    socket: UnixDatagram,
    seen: Vec<String>,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { directory, socket, seen: Vec::new() }
    }

    /// Starts a program as a unit with `WatchdogSec=600ms`.
    fn start(&self, arguments: &[&str]) -> Program {
        let mut command = command(arguments);
        self.give(&mut command);
        Program::launch(command)
    }

    fn give(&self, command: &mut Command) {
        command.env("NOTIFY_SOCKET", self.directory.path().join("notify")).env("WATCHDOG_USEC", "600000");
    }

    /// Receives until this line comes; the lines before it.
    fn until(&mut self, wanted: &str) -> Vec<String> {
        let start = self.seen.len();
        let mut buffer = [0; 4096];
        loop {
            let length = self.socket.recv(&mut buffer).unwrap_or_else(|error| {
                panic!("{error}: no {wanted} in {:?}", &self.seen[start..]);
            });
            let lines: Vec<String> =
                std::str::from_utf8(&buffer[..length]).unwrap().lines().map(str::to_owned).collect();
            let found = lines.iter().any(|line| line == wanted);
            self.seen.extend(lines);
            if found {
                return self.seen[start..].to_vec();
            }
        }
    }
}

fn serve<'a>(identity: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["serve", "--identity", identity, "--listen", "127.0.0.1:0", "--events", "json"];
    [&fixed, more].concat()
}

#[test]
fn a_service_reports_start_reload_life_and_stop() {
    let directory = directory("systemd-serve");
    let (service, list) = (identity(&directory, "service"), path(&directory, "list"));
    fs::write(&list, "").unwrap();
    let mut manager = Manager::new();
    let program = manager.start(&serve(&service, &["--chain", "offline", "--allow-list", &list]));
    manager.until("READY=1");
    manager.until("WATCHDOG=1");
    manager.until("WATCHDOG=1");
    program.signal("-HUP");
    let reload = manager.until("READY=1");
    let at = reload.iter().position(|line| line == "RELOADING=1").expect("RELOADING=1 before READY=1");
    // systemd 253 ends a reload without the time.
    assert!(reload[at + 1].starts_with("MONOTONIC_USEC="), "{reload:?}");
    assert!(reload.iter().all(|line| !line.starts_with("STATUS=starting")), "{reload:?}");
    program.signal("-TERM");
    manager.until("STOPPING=1");
    assert_eq!(program.end().0, Some(0));
}

#[test]
fn a_service_without_its_node_waits_and_is_not_ready() {
    let directory = directory("systemd-waits");
    let (service, state) = (identity(&directory, "service"), path(&directory, "state"));
    let mut manager = Manager::new();
    // No program listens on port 9.
    let chain = ["--chain", "core=http://u:p@127.0.0.1:9", "--state", &state];
    let program = manager.start(&serve(&service, &chain));
    // Twice: the time for the start grows as long as it waits, and it is alive.
    for _ in 0..2 {
        manager.until("EXTEND_TIMEOUT_USEC=120000000");
        manager.until("WATCHDOG=1");
    }
    program.signal("-TERM");
    manager.until("STOPPING=1");
    assert!(manager.seen.iter().all(|line| line != "READY=1"), "{:?}", manager.seen);
    assert!(manager.seen.iter().any(|line| line == "STATUS=starting"), "{:?}", manager.seen);
    program.end();
}

#[test]
fn a_process_of_two_services_is_ready_with_the_second() {
    let directory = directory("systemd-two");
    let (first, second) = (identity(&directory, "first"), identity(&directory, "second"));
    let also = path(&directory, "second.toml");
    let settings = |chain: &str| {
        let state = path(&directory, "second-state");
        format!(
            "identity = {second:?}\nlisten = \"127.0.0.1:0\"\nchain = {chain:?}\nstate = {state:?}\nevents = \"json\"\n"
        )
    };
    fs::write(&also, settings("core=http://u:p@127.0.0.1:9")).unwrap();
    let mut manager = Manager::new();
    let mut program = manager.start(&serve(&first, &["--chain", "offline", "--also", &also]));
    program.event("serving");
    manager.until("EXTEND_TIMEOUT_USEC=120000000");
    program.signal("-TERM");
    manager.until("STOPPING=1");
    assert!(manager.seen.iter().all(|line| line != "READY=1"), "{:?}", manager.seen);
    program.end();

    fs::write(&also, settings("offline")).unwrap();
    let mut manager = Manager::new();
    let program = manager.start(&serve(&first, &["--chain", "offline", "--also", &also]));
    manager.until("READY=1");
    program.signal("-TERM");
    manager.until("STOPPING=1");
    assert_eq!(program.end().0, Some(0));
}

#[test]
fn an_agent_reports_start_life_and_stop() {
    let directory = directory("systemd-member");
    let (seed, state, config) =
        (identity(&directory, "seat"), path(&directory, "state"), path(&directory, "member.toml"));
    // Neither service nor chain can be reached: the agent waits for both, and is alive.
    let file = format!(
        "network = \"regtest\"\nchain = \"core=http://u:p@127.0.0.1:9\"\n\
         [[service]]\nname = \"one\"\nurl = \"http://127.0.0.1:9\"\n[[seat]]\nname = \"home\"\nseed = {seed:?}\n"
    );
    fs::write(&config, file).unwrap();
    let mut manager = Manager::new();
    let program = manager.start(&["member", "--config", &config, "--state", &state, "--json"]);
    // Until it is ready its start may take as long as the node needs.
    let before = manager.until("EXTEND_TIMEOUT_USEC=120000000");
    assert!(!before.contains(&"READY=1".to_owned()), "{before:?}");
    manager.until("WATCHDOG=1");
    manager.until("WATCHDOG=1");
    program.signal("-TERM");
    manager.until("STOPPING=1");
    assert_eq!(program.end().0, Some(0));
}

/// The commands of the units are accepted by the program, and their settings and files are those of the samples.
#[test]
fn the_units_call_the_program_as_it_is() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    for (unit, sample) in [("btcr2-aggregation", "serve.toml"), ("btcr2-member", "member.toml")] {
        let text = fs::read_to_string(deploy.join(format!("{unit}.service"))).unwrap();
        let start = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let arguments: Vec<&str> = start.split(' ').collect();
        assert_eq!(arguments[0], "/usr/bin/btcr2-aggregation");
        let mut asked = arguments[1..].to_vec();
        asked.push("--help");
        assert_eq!(crate::support::run(&asked).status, Some(0), "{start}");
        let config = arguments.iter().find(|argument| argument.ends_with(".toml")).unwrap();
        assert!(config.ends_with(&format!("/{sample}")), "{config}");
        // What the sample sets is in the state directory of the unit, which is all that it can write to.
        let sample = fs::read_to_string(deploy.join(sample)).unwrap();
        let written = sample.lines().filter(|line| {
            ["identity = ", "state = ", "out = ", "seed = "].iter().any(|key| line.starts_with(key))
        });
        for line in written {
            assert!(line.contains(&format!("\"/var/lib/{unit}/")), "{line}");
        }
        for needed in ["Type=notify", "WatchdogSec=60s", "Restart=on-failure", "LimitCORE=0", "NoNewPrivileges=yes"]
        {
            assert!(text.lines().any(|line| line == needed), "{unit}: {needed}");
        }
    }
}
