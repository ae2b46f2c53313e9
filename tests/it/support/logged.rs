//! Search in a log for bytes in any spelling.

use std::{
    collections::{BTreeSet, HashSet},
    io::{self, Write},
    sync::{Arc, Mutex},
};

use btcr2_aggregation::protocol::key::SecretKey;
use data_encoding::{BASE64_NOPAD, BASE64URL_NOPAD, Encoding, HEXLOWER_PERMISSIVE};
use tracing_subscriber::fmt::MakeWriter;

/// A log of this process that is read afterwards.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// The text that was logged since the last call.
    pub fn take(&self) -> Logged {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        Logged::new(String::from_utf8_lossy(&bytes).into_owned())
    }
}

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

/// A text, and all bytes that are spelled in it: in hex, in base64, or as a list of numbers.
pub struct Logged {
    pub text: String,
    /// With the spelling's place in the text.
    spelled: Vec<(usize, Vec<u8>)>,
}

/// How long a secret is.
const SECRET: usize = 32;

/// More than a secret and its surroundings: a longer run of characters is a whole message, most of them encrypted.
const LONG: usize = 256;

impl Logged {
    pub fn new(text: String) -> Self {
        let mut spelled = Vec::new();
        for (place, run) in runs(&text, |byte| byte.is_ascii_hexdigit()) {
            // A digit that does not belong to it may precede it.
            spelled.extend(
                [run, run.get(1..).unwrap_or_default()].map(|hex| (place, decode(&HEXLOWER_PERMISSIVE, hex))),
            );
        }
        let letter = |byte: u8| byte.is_ascii_alphanumeric();
        let is_hex = |run: &str| run.bytes().all(|byte| byte.is_ascii_hexdigit());
        for (place, run) in runs(&text, |byte| letter(byte) || b"+/".contains(&byte)) {
            spelled.extend((!is_hex(run)).then(|| (place, decode(&BASE64_NOPAD, run))));
        }
        for (place, run) in runs(&text, |byte| letter(byte) || b"-_".contains(&byte)) {
            spelled.extend((!is_hex(run)).then(|| (place, decode(&BASE64URL_NOPAD, run))));
        }
        for (place, run) in runs(&text, |byte| byte.is_ascii_digit() || b", \n".contains(&byte)) {
            let numbers: Option<Vec<u8>> = run
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(|part| part.parse().ok())
                .collect();
            spelled.extend(numbers.map(|bytes| (place, bytes)));
        }
        spelled.retain(|(_, bytes)| bytes.len() >= SECRET);
        Self { text, spelled }
    }

    /// The line that contains `bytes`, raw or spelled.
    pub fn line_with(&self, bytes: &[u8]) -> Option<&str> {
        let holds = |hay: &[u8]| hay.windows(bytes.len()).any(|window| window == bytes);
        let plain = self.text.lines().find(|line| holds(line.as_bytes()));
        plain.or_else(|| self.spelled.iter().find(|(_, run)| holds(run)).map(|(place, _)| self.line(*place)))
    }

    /// The line that contains the secret of one of these public keys or nonces, given by their x coordinates. The caller need not
    /// know a secret: this tests all 32 bytes that are spelled in the log.
    pub fn line_with_secret_of(&self, points: &BTreeSet<[u8; 32]>) -> Option<&str> {
        let mut tried = HashSet::new();
        for (place, run) in self.spelled.iter().filter(|(_, run)| run.len() <= LONG) {
            for window in run.windows(SECRET) {
                let candidate: [u8; SECRET] = window.try_into().unwrap();
                if !tried.insert(candidate) {
                    continue;
                }
                let public = SecretKey::from_bytes(&candidate).map(|secret| secret.public_key().to_bytes());
                if public.is_ok_and(|public| points.contains(&public[1..])) {
                    return Some(self.line(*place));
                }
            }
        }
        None
    }

    fn line(&self, place: usize) -> &str {
        let start = self.text[..place].rfind('\n').map_or(0, |end| end + 1);
        self.text[start..].lines().next().unwrap_or_default()
    }
}

/// The longest parts of `text` that consist of such characters, and where they begin.
fn runs(text: &str, belongs: impl Fn(u8) -> bool) -> Vec<(usize, &str)> {
    let mut runs = Vec::new();
    let mut start = None;
    for (place, byte) in text.bytes().chain([0]).enumerate() {
        match start {
            None if belongs(byte) => start = Some(place),
            Some(from) if !belongs(byte) => {
                // All that belong are ASCII.
                runs.push((from, &text[from..place]));
                start = None;
            }
            _ => {}
        }
    }
    runs
}

/// The bytes that `text` spells, except for an incomplete rest at its end.
fn decode(encoding: &Encoding, text: &str) -> Vec<u8> {
    let whole = |over| text.len().checked_sub(over).and_then(|end| encoding.decode(&text.as_bytes()[..end]).ok());
    (0..4).find_map(whole).unwrap_or_default()
}
