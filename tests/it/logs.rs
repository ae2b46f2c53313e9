//! `--log json`: every line is an object, and identifies its actor by the names that docs/operating.md documents.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use crate::support::command;
use serde_json::Value;

/// The documented spans, and the fields of each.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating.md");
    let text = fs::read_to_string(document).unwrap();
    let table = text.split("| `span.name` | Fields | Who |\n|---|---|---|\n").nth(1).unwrap();
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rows = table.lines().take_while(|line| line.starts_with('|')).map(|row| {
        let cells: Vec<&str> = row.split('|').collect();
        (names(cells[1]).remove(0), names(cells[2]).into_iter().collect())
    });
    rows.collect()
}

fn fields(span: &Value) -> BTreeSet<String> {
    span.as_object().unwrap().keys().filter(|name| *name != "name").cloned().collect()
}

/// Our own lines of a demo at every log level.
fn lines(transport: &str) -> Vec<Value> {
    let mut demo = command(&["demo", "--participants", "2", "--transport", transport, "--log", "json"]);
    let output = demo.env("RUST_LOG", "btcr2_aggregation=trace,btcr2_aggregation_actors=trace").output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{log}");
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[test]
fn each_line_is_an_object_in_a_span_as_documented() {
    let documented = documented();
    let mut seen = BTreeSet::new();
    for transport in ["memory", "http", "nostr"] {
        let lines = lines(transport);
        for line in &lines {
            for span in line["spans"].as_array().into_iter().flatten() {
                let name = span["name"].as_str().unwrap();
                assert_eq!(documented.get(name), Some(&fields(span)), "{line}");
                seen.insert(name.to_owned());
            }
        }
        let steps = |name: &str| lines.iter().filter(|line| line["message"] == name).collect::<Vec<_>>();
        let cohort_id = &steps("cohort-advertised")[0]["span"]["cohort_id"];
        assert!(cohort_id.is_string());
        for (step, times, span) in [
            ("cohort-advertised", 1, "cohort"),
            ("update-received", 2, "cohort"),
            ("signing-complete", 1, "cohort"),
            ("signing-started", 1, "signing"),
            ("nonce-received", 2, "signing"),
            ("cohort-joined", 2, "session"),
            ("nonce-sent", 2, "session"),
        ] {
            let lines = steps(step);
            assert_eq!(lines.len(), times, "{transport}: {step}");
            for line in lines {
                assert_eq!(line["span"]["name"], span, "{line}");
                assert_eq!(line["span"]["cohort_id"], *cohort_id, "{line}");
            }
        }
        assert!(steps("nonce-received").iter().all(|line| line["participant"].is_string()));
        assert!(steps("signing-complete")[0]["txid"].is_string());
    }
    for span in ["cohort", "signing", "session"] {
        assert!(seen.contains(span), "{seen:?}");
    }
}
