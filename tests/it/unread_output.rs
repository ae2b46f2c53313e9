//! Output that cannot be written, because the disk is full or the reader of the pipe has left.

use std::{
    fs::{self, OpenOptions},
    io,
    path::Path,
    process::Stdio,
};

use crate::support::{
    Service, command, contains, did_of, directory, identity,
    inputs::{round, signed_update, usual_patch},
    path, run,
};
use serde_json::Value;

fn full() -> fs::File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

/// A pipe whose reader has left.
fn closed_pipe() -> io::PipeWriter {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    writer
}

/// Exit status and standard error.
fn with_output(arguments: &[String], stdout: impl Into<Stdio>) -> (Option<i32>, String) {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = command(&arguments).stdout(stdout).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// The call fails because its output cannot be written, reports that, and does not panic.
pub(crate) fn fails_unread(arguments: &[&str]) {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let (status, errors) = with_output(&arguments, full());
    assert_eq!(status, Some(1), "{arguments:?}: {errors}");
    contains(&errors, &["standard output: No space left on device"]);
    assert!(!errors.contains("panicked"), "{arguments:?}: {errors}");
}

/// A call of every command that prints without a chain or a relay. `fresh` numbers the files that must not exist yet.
fn printing_commands(directory: &Path, cohort: &str, fresh: usize) -> Vec<Vec<String>> {
    let at = |name: &str| path(directory, name);
    let new = |name: &str| path(directory, &format!("{name}-{fresh}"));
    let did = did_of(&at("member"));
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
fn commands_with_unwritable_output_exit_1_without_a_panic() {
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

    // With a reader all of these calls succeed.
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
        // Logs go to the full disk too: the logging library would report that on standard error, and panic.
        let status = command.stdout(full()).stderr(full()).env("RUST_LOG", "trace").status().unwrap();
        assert_eq!(status.code(), Some(1), "{arguments:?}");
    }
}

#[test]
fn a_relay_check_with_unwritable_output_exits_1() {
    let directory = directory("relay-output");
    let mut service = Service::start(&directory, &["--embedded-relay", "127.0.0.1:0"]);
    let relay = service.program.event("serving")["relays"][0].as_str().unwrap().to_owned();
    for more in ["--timeout=10s", "--json"] {
        fails_unread(&["relay", "check", &relay, more]);
    }
}

#[test]
fn unwritable_errors_keep_their_exit_status() {
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
fn serve_and_join_continue_when_their_reader_leaves() {
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
    // The reader reads the first lines, and then leaves.
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
    let stored = path(&directory, "member-out");
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
        &stored,
    ]);
    let status = join.env("RUST_LOG", "trace").stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(serve.wait().unwrap().code(), Some(0));
    assert_eq!(fs::read_dir(&stored).unwrap().count(), 1, "the member's file is there");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "the cohort's result is there");
}
