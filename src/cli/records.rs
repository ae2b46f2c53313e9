//! Formats records of a journal for people: time, kind, and the main fields. Records of every stream are read as JSON,
//! so that this version can show the records of another version.

use std::time::Duration;

use ::bitcoin::Transaction;
use serde_json::{Map, Value};

use super::state::time;
use crate::protocol::{output::BeaconOutput, text::shown_within, time::Timestamp};

/// Fields that mean nothing to people, or that are shown elsewhere.
const HIDDEN: [&str; 11] = [
    "at",
    "event",
    "digest",
    "digests",
    "edition",
    "@context",
    "serviceKey",
    "service_key",
    "communicationKey",
    "communication_key",
    "limits",
];

/// Fields that are times.
const TIMES: [&str; 5] = ["until", "deadline", "retry_at", "retryAt", "expires"];

/// How many characters of a string are shown.
const LONGEST: usize = 100;

/// How many fields of an object in a record are shown.
const MOST_FIELDS: usize = 6;

/// A record in the form that is shown.
pub(super) struct Shown {
    /// Its time, if the record has one.
    pub(super) at: Option<Timestamp>,
    /// The kind of event, by its name in the journal.
    pub(super) kind: String,
    /// Its main fields, formatted.
    pub(super) details: String,
}

/// Parses a record: `{"Kind": {fields}}` or `"Kind"` of the machines, `{"event": "kind", fields}` of announcements. Any
/// other record is shown as it is.
pub(super) fn shown(record: &str) -> Shown {
    let unknown = |kind: &str, details: String| Shown { at: None, kind: kind.to_owned(), details };
    match serde_json::from_str(record) {
        Ok(Value::String(kind)) => unknown(&kind, String::new()),
        Ok(Value::Object(fields)) => match fields.get("event").and_then(Value::as_str) {
            Some(kind) => of_fields(kind, &fields),
            None => match fields.iter().next() {
                Some((kind, Value::Object(contents))) if fields.len() == 1 => of_fields(kind, contents),
                Some((kind, contents)) if fields.len() == 1 => {
                    unknown(kind, text("", contents, 0).unwrap_or_default())
                }
                _ => of_fields("record", &fields),
            },
        },
        Ok(other) => unknown("record", text("", &other, 0).unwrap_or_default()),
        Err(_) => unknown("unreadable", format!("{} bytes that are not JSON", record.len())),
    }
}

fn of_fields(kind: &str, fields: &Map<String, Value>) -> Shown {
    let at = fields.get("at").and_then(Value::as_u64).map(Timestamp::from_millis);
    Shown { at, kind: escaped(kind), details: listed(fields, 0) }
}

fn listed(fields: &Map<String, Value>, depth: usize) -> String {
    let shown = |(name, value): (&String, &Value)| {
        (!HIDDEN.contains(&name.as_str())).then(|| text(name, value, depth)).flatten().map(|text| {
            let separator = if matches!(value, Value::Object(_)) && depth == 0 { ": " } else { " " };
            format!("{}{separator}{text}", words(name))
        })
    };
    let most = if depth == 0 { usize::MAX } else { MOST_FIELDS };
    let fields: Vec<_> = fields.iter().filter_map(shown).take(most).collect();
    fields.join(if depth == 0 { "; " } else { ", " })
}

/// Formats a value; `None` if it has nothing to show.
fn text(name: &str, value: &Value, depth: usize) -> Option<String> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(value) => if *value { "yes" } else { "no" }.to_owned(),
        Value::Number(number) => match number.as_u64().filter(|_| TIMES.contains(&name)) {
            Some(at) => time(Timestamp::from_millis(at)),
            None => number.to_string(),
        },
        Value::String(text) => escaped(text),
        Value::Array(items) => {
            let short = |item: &Value| !matches!(item, Value::Object(_) | Value::Array(_));
            match items.len() {
                0 => "none".to_owned(),
                1..=4 if items.iter().all(short) => {
                    items.iter().filter_map(|item| text(name, item, depth)).collect::<Vec<_>>().join(", ")
                }
                count => format!("{count} of them"),
            }
        }
        Value::Object(fields) => match known(value, fields) {
            Some(known) => known,
            // Deeper fields are keys and proofs; `--json` shows all.
            None if depth >= 2 => return None,
            None => {
                let listed = listed(fields, depth + 1);
                if listed.is_empty() {
                    return None;
                }
                listed
            }
        },
    })
}

/// Formats values that have a shorter usual form than their fields: a transaction by its id, an output by its address,
/// an update by its version, a length of time, bytes.
fn known(value: &Value, fields: &Map<String, Value>) -> Option<String> {
    let has = |names: &[&str]| names.iter().all(|name| fields.contains_key(*name));
    if has(&["input", "output"]) {
        let transaction: Transaction = serde_json::from_value(value.clone()).ok()?;
        return Some(transaction.compute_txid().to_string());
    }
    if has(&["keys", "network"]) {
        let output: BeaconOutput = serde_json::from_value(value.clone()).ok()?;
        return Some(output.address().to_string());
    }
    if has(&["patch", "targetVersionId"]) {
        return Some(format!("to version {}", fields.get("targetVersionId")?));
    }
    match fields.len() {
        2 if has(&["secs", "nanos"]) => {
            let nanos =
                u32::try_from(fields.get("nanos")?.as_u64()?).ok().filter(|nanos| *nanos < 1_000_000_000)?;
            let span = Duration::new(fields.get("secs")?.as_u64()?, nanos);
            Some(humantime::format_duration(span).to_string())
        }
        1 if has(&["__bytes"]) => Some(escaped(fields.get("__bytes")?.as_str()?)),
        _ => None,
    }
}

/// Peers choose strings in records: they must not control the terminal or fill the screen.
fn escaped(text: &str) -> String {
    // Longer than a hash: a nonce or a signature. Its start is enough to distinguish it.
    if text.len() > 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return format!("{}... ({} bytes)", &text[..16], text.len() / 2);
    }
    shown_within(text, LONGEST).into_owned()
}

/// Formats `retryAt` and `retry_at` as `retry at`.
fn words(name: &str) -> String {
    let mut words = String::new();
    for c in escaped(name).chars() {
        match c {
            '_' => words.push(' '),
            c if c.is_ascii_uppercase() && !words.is_empty() => {
                words.push(' ');
                words.push(c.to_ascii_lowercase());
            }
            c => words.push(c),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(record: &str) -> (Option<u64>, String, String) {
        let Shown { at, kind, details } = shown(record);
        (at.map(|at| at.as_millis()), kind, details)
    }

    #[test]
    fn every_form_of_record_is_shown_with_its_fields() {
        let announced = r#"{"event":"confirmed","at":5000,"block":{"height":7,"hash":"aa"},"depth":2}"#;
        let block = "block: height 7, hash aa; depth 2";
        assert_eq!(line(announced), (Some(5000), "confirmed".to_owned(), block.to_owned()));
        let machine = r#"{"MemberRefused":{"did":"did:x","reason":"late\u001b[2J"}}"#;
        let refused = "did did:x; reason late\\u{1b}[2J";
        assert_eq!(line(machine), (None, "MemberRefused".to_owned(), refused.to_owned()));
        assert_eq!(line("\"OptInAccepted\"").1, "OptInAccepted");
        assert_eq!(line(r#"{"PhaseExtended":{"at":1,"until":1000}}"#).2, "until 1970-01-01T00:00:01Z");
        assert_eq!(line("no json").1, "unreadable");
    }
}
