//! Texts of peers are shown and logged on one line of bounded length, without characters that control a terminal or hide
//! text. The tests put hostile text into every field of every message, and read the output of `serve`, `join`, `state show`,
//! `bans`, the logs and the events.

mod members;
mod samples;
mod services;

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Stdio},
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    thread::JoinHandle,
};

use btcr2_aggregation::{
    actors::{
        bans::{BanBook, DefaultBans, Entry, Offence},
        runtime::{Clock, Randomness},
        transport::Evidence,
    },
    protocol::{envelope::ParsedEnvelope, hash::sha256, id::CohortId, identity::Identity, text::is_unsafe},
};
use serde_json::{Value, json};

use crate::{
    round_support::PATIENCE,
    support::{command, directory, run},
};

/// The longest line that the programs may print.
const LONGEST: usize = 10_000;

/// The length of a hostile text: long text is escaped and then cut, so both lengths are tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Short,
    Long,
}

/// A line end, C0, DEL, C1, characters that change the direction of text, and invisible ones; and perhaps too many of them.
fn hostile(size: Size) -> String {
    let text =
        "x\nFORGED \r\u{1b}[2J\u{7}\u{0}\u{7f}\u{9b}31m\u{85}\u{202e}\u{2066}\u{2028}\u{200b}\u{feff}\u{e0041}";
    format!("{text}{}", "y".repeat(if size == Size::Long { 12_000 } else { 3 }))
}

fn assert_harmless(of: &str, text: &str, longest: usize) {
    for line in text.lines() {
        let start: String = line.chars().take(300).collect();
        if let Some(c) = line.chars().find(|c| is_unsafe(*c)) {
            panic!("{of} shows {:?}: {start}", c);
        }
        assert!(!line.starts_with("FORGED"), "{of}: a peer has made a line of its own: {start}");
        assert!(line.chars().count() <= longest, "{of}: {} characters: {start}", line.chars().count());
    }
}

/// Each text in a message, and each object, in which a field name is one: where it is, and whether it is such a name.
fn places(message: &Value) -> Vec<(String, bool)> {
    fn find(value: &Value, at: &str, found: &mut Vec<(String, bool)>) {
        match value {
            Value::String(_) => found.push((at.to_owned(), false)),
            Value::Object(fields) => {
                found.push((at.to_owned(), true));
                for (name, value) in fields {
                    let name = name.replace('~', "~0").replace('/', "~1");
                    find(value, &format!("{at}/{name}"), found);
                }
            }
            Value::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    find(value, &format!("{at}/{index}"), found);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    find(message, "", &mut found);
    found
}

/// The message with hostile text in that place.
fn spoiled(message: &Value, place: &str, is_name: bool, size: Size) -> Value {
    let mut spoiled = message.clone();
    if let Some(at) = spoiled.pointer_mut(place) {
        match at.as_object_mut().filter(|_| is_name) {
            Some(fields) => drop(fields.insert(hostile(size), json!(hostile(size)))),
            None => *at = json!(hostile(size)),
        }
    }
    spoiled
}

/// The same message with hostile text in the place of each text, and as the name of a field in each object.
fn variants(message: &Value) -> Vec<Value> {
    let of_size =
        |size| places(message).into_iter().map(move |(place, is_name)| spoiled(message, &place, is_name, size));
    of_size(Size::Short).chain(of_size(Size::Long)).collect()
}

/// An envelope around any JSON, signed.
fn sealed(message: &Value, from: &Identity, to: Option<&str>, number: u64) -> String {
    let mut envelope = json!({
        "v": 1, "from": from.did(), "timestamp": Clock::system().now().as_secs(),
        "nonce": format!("{number:032x}"), "message": message, "sig": "00".repeat(64),
    });
    if let Some(to) = to {
        envelope["to"] = json!(to);
    }
    let text = envelope.to_string();
    // Text that has no canonical form cannot be signed, but can be sent.
    let Ok(parsed) = ParsedEnvelope::parse(&text) else { return text };
    let digest = sha256(&parsed.signing_bytes().unwrap());
    let signature = from.secret_key().sign(&digest, &mut Randomness::System.for_actor("villain"));
    envelope["sig"] = json!(signature.to_string());
    envelope.to_string()
}

/// A program whose output is read unchanged and all the time: without a reader it would block in the middle of a line.
struct Raw {
    child: Child,
    seen: String,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
}

impl Raw {
    fn start(arguments: &[&str]) -> Self {
        let mut command = command(arguments);
        command.env("RUST_LOG", "trace,h2=off,hyper=off,mio=off");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // With its line end: a line without one was cut off.
            let mut line = String::new();
            while stdout.read_line(&mut line).unwrap() > 0 && sender.send(std::mem::take(&mut line)).is_ok() {}
        });
        let mut stderr = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).unwrap();
            String::from_utf8(bytes).unwrap()
        });
        Self { child, seen: String::new(), lines, stderr: Some(stderr) }
    }

    /// The first line that contains `what`.
    fn line_with(&mut self, what: &str) -> String {
        self.line_where(what, |line| line.contains(what))
    }

    fn line_where(&mut self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("without {what}, {error}: {}", self.seen));
            self.seen.push_str(&line);
            if is_it(&line) {
                return line;
            }
        }
    }

    /// Stops it: its whole output.
    fn stop(mut self) -> (String, String) {
        let pid = self.child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.seen.extend(self.lines.iter());
        self.child.wait().unwrap();
        let errors = self.stderr.take().map(|stderr| stderr.join().unwrap()).unwrap_or_default();
        (std::mem::take(&mut self.seen), errors)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The text between the end of `before` and the next character that ends a word.
fn behind<'a>(text: &'a str, before: &str) -> &'a str {
    let rest = text.split_once(before).unwrap().1;
    rest.split(['"', ' ', '\n']).next().unwrap()
}

#[test]
fn bans_escapes_the_texts_of_members() {
    let directory = directory("hostile-text-bans");
    let book = BanBook::open(&directory.join("bans.redb"), Arc::new(DefaultBans)).unwrap();
    let villain = crate::nostr_support::identity("villain");
    let entry = Entry {
        offence: Offence::Equivocation,
        cohort_id: CohortId::parse("cohort").unwrap(),
        number: None,
        at: Clock::system().now(),
        detail: hostile(Size::Long),
        address: None,
        invite: None,
        evidence: vec![Evidence::NostrEvent(hostile(Size::Long).into())],
    };
    book.record(villain.did(), entry);
    book.add(villain.did(), Clock::system().now() + PATIENCE, Some(hostile(Size::Short))).unwrap();
    assert!(book.flush());
    let state = directory.to_str().unwrap();
    assert_harmless("bans list", &run(&["bans", "list", "--state", state]).succeeded().all(), LONGEST);
    for format in [&[][..], &["--json"]] {
        let shown =
            run(&[&["bans", "show", villain.did().as_str(), "--state", state], format].concat()).succeeded();
        // Evidence is shown in full.
        assert_harmless("bans show", &shown.all(), usize::MAX);
        assert!(shown.stdout.contains("yyy"));
    }
}
