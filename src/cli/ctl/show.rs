//! Answers as text for people: a table of a list, and lines of an object.

use serde_json::{Map, Value};

use crate::protocol::{text::shown_within, time::Timestamp};

/// The longest cell of a table, in characters. Identifiers are whole.
const MOST_CELL: usize = 90;

/// The fields that are not in tables.
const HIDDEN: [&str; 9] =
    ["resolved", "terms", "conditions", "timing", "rules", "event", "lineage", "evidence", "last"];

/// The fields that are times in milliseconds.
const TIMES: [&str; 4] = ["deadline", "since", "at", "endedAt"];

/// An answer as text.
pub(super) fn text(value: &Value) -> String {
    let mut lines = Vec::new();
    match value {
        Value::Object(fields) => {
            let is_alone = fields.values().filter(|value| !value.is_null()).count() == 1;
            for (name, value) in fields {
                match value {
                    Value::Array(rows) if is_list(value) && (is_alone || !rows.is_empty()) => {
                        if !is_alone {
                            lines.push(format!("{name}:"));
                        }
                        match name.as_str() {
                            "events" => lines.extend(rows.iter().map(event_line)),
                            _ => lines.extend(table(rows)),
                        }
                    }
                    Value::Null => {}
                    value => object(name, value, &mut lines),
                }
            }
        }
        value => lines.push(cell("", value)),
    }
    lines.join("\n")
}

/// A list of objects.
fn is_list(value: &Value) -> bool {
    value.as_array().is_some_and(|rows| rows.iter().all(Value::is_object))
}

/// The lines of a field.
fn object(name: &str, value: &Value, lines: &mut Vec<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (inner, value) in fields {
                object(&format!("{name}.{inner}"), value, lines);
            }
        }
        Value::Array(values) if values.iter().any(Value::is_object) => {
            for (number, value) in values.iter().enumerate() {
                object(&format!("{name}.{number}"), value, lines);
            }
        }
        value => lines.push(format!("{name}: {}", cell(name, value))),
    }
}

fn table(rows: &[Value]) -> Vec<String> {
    if rows.is_empty() {
        return vec!["none".to_owned()];
    }
    let mut columns: Vec<&String> = Vec::new();
    for fields in rows.iter().filter_map(Value::as_object) {
        let wanted = fields.iter().filter(|(name, value)| !HIDDEN.contains(&name.as_str()) && !value.is_null());
        for (name, _) in wanted {
            if !columns.contains(&name) {
                columns.push(name);
            }
        }
    }
    let of = |fields: &Map<String, Value>, name: &str| {
        fields.get(name).map_or_else(|| "-".to_owned(), |value| cell(name, value))
    };
    let mut lines: Vec<Vec<String>> = vec![columns.iter().map(|name| name.to_uppercase()).collect()];
    lines.extend(
        rows.iter()
            .filter_map(Value::as_object)
            .map(|fields| columns.iter().map(|name| of(fields, name)).collect()),
    );
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |cells: &Vec<String>| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    lines.iter().map(line).collect()
}

fn cell(name: &str, value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) if TIMES.contains(&name) => {
            let at = number.as_u64().map(Timestamp::from_millis).and_then(Timestamp::to_date);
            at.unwrap_or_else(|| number.to_string())
        }
        Value::Array(values) => {
            let cells: Vec<String> = values.iter().map(|value| cell("", value)).collect();
            if cells.is_empty() { "-".to_owned() } else { cells.join(",") }
        }
        other => other.to_string(),
    };
    shown_within(&text, MOST_CELL).into_owned()
}

/// An event on one line.
pub(super) fn event_line(event: &Value) -> String {
    let Some(fields) = event.as_object() else { return shown_within(&event.to_string(), 1_000).into_owned() };
    let others = fields.iter().filter(|(name, value)| !matches!(name.as_str(), "event" | "at") && !value.is_null());
    let others: Vec<String> = others.map(|(name, value)| format!("{name}={}", cell(name, value))).collect();
    let at = fields.get("at").map(|at| cell("at", at)).unwrap_or_default();
    format!("{at}  {}  {}", cell("event", &event["event"]), others.join(" ")).trim().to_owned()
}

/// An entry of the audit log on one line.
pub(in crate::cli) fn audit_line(entry: &Value) -> String {
    let text = |value: &Value| shown_within(value.as_str().unwrap_or("-"), MOST_CELL).into_owned();
    let (number, at) = (entry["n"].as_u64().unwrap_or_default(), text(&entry["at"]));
    if let Some(of) = entry["of"].as_u64() {
        return format!("{number:>6}  {at}  change {of} was refused: {}", text(&entry["refused"]));
    }
    let who = &entry["who"];
    let target =
        entry["target"].as_str().map(|target| format!(" {}", shown_within(target, MOST_CELL))).unwrap_or_default();
    let request = match &entry["request"] {
        Value::Null => String::new(),
        request => format!("  {}", shown_within(&request.to_string(), 300)),
    };
    let (label, role, from, action) =
        (text(&who["label"]), text(&who["role"]), text(&entry["from"]), text(&entry["action"]));
    format!("{number:>6}  {at}  {label} ({role}, {from}): {action}{target}{request}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_tables_and_objects_are_lines() {
        let list = json!({ "cohorts": [
            { "cohortId": "a", "phase": "enrolling", "terms": { "x": 1 }, "deadline": 1_790_000_000_000_u64, "paused": false },
            { "cohortId": "bb", "phase": "signing", "beaconAddress": "bcrt1" },
        ] });
        let expected = "COHORTID  PHASE      DEADLINE              PAUSED  BEACONADDRESS\n\
                        a         enrolling  2026-09-21T14:13:20Z  false   -\n\
                        bb        signing    -                     -       bcrt1";
        assert_eq!(text(&list), expected);
        assert_eq!(text(&json!({ "cohorts": [] })), "none");
        let object = json!({ "did": "x\u{1b}", "phases": { "signing": 2 }, "relays": [], "url": null });
        assert_eq!(text(&object), "did: x\\u{1b}\nphases.signing: 2\nrelays: -");
    }
}
