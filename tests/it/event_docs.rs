//! Every kind of event is documented with its fields: for people in `docs/events.md`, and in `docs/events.schema.json`.
//! (The module `support` validates the output of the programs whenever a test reads it.)

use std::{collections::BTreeSet, fs, path::Path};

use crate::support::events;
use btcr2_aggregation::{
    actors::{
        notice::{ParticipantNotice, ServiceNotice},
        standing::notice::{SeatNotice, StandingNotice},
        transport::contact::ContactNotice,
    },
    bitcoin::notice::AnnouncementNotice,
    check::CheckNotice,
    events::PROGRAM_KINDS,
    member::notice::MemberNotice,
    vault::watch::WatchNotice,
};
use serde_json::json;
use strum::VariantNames;

/// The groups of definitions, with the kinds that the code has.
const GROUPS: [(&str, &[&str]); 10] = [
    ("program", &PROGRAM_KINDS),
    ("service", ServiceNotice::VARIANTS),
    ("participant", ParticipantNotice::VARIANTS),
    ("standing", StandingNotice::VARIANTS),
    ("seat", SeatNotice::VARIANTS),
    ("member", MemberNotice::VARIANTS),
    ("contact", ContactNotice::VARIANTS),
    ("announcement", AnnouncementNotice::VARIANTS),
    ("watch", WatchNotice::VARIANTS),
    ("check", CheckNotice::VARIANTS),
];

#[test]
fn the_schema_has_the_kinds_that_the_code_has() {
    for (group, kinds) in GROUPS {
        let documented: BTreeSet<&str> = events::definitions()
            .filter_map(|(name, _)| name.strip_prefix(group)?.strip_prefix('.')?.split('.').next())
            .collect();
        assert_eq!(documented, kinds.iter().copied().collect(), "{group}");
    }
    let groups: BTreeSet<&str> = events::definitions().filter_map(|(name, _)| name.split('.').next()).collect();
    assert_eq!(groups, GROUPS.iter().map(|(group, _)| *group).collect());
}

#[test]
fn every_definition_is_closed_and_one_of_the_choices() {
    let choices = events::SCHEMA["anyOf"].as_array().unwrap();
    assert_eq!(choices.len(), events::definitions().count());
    for (name, definition) in events::definitions() {
        assert!(choices.contains(&json!({ "$ref": format!("#/$defs/{name}") })), "{name}");
        assert_eq!(definition["properties"]["event"]["const"], name.split('.').nth(1).unwrap(), "{name}");
        assert_eq!(definition["additionalProperties"], false, "{name}");
        let required = definition["required"].as_array().unwrap();
        assert!(required.contains(&json!("event")) && required.contains(&json!("time")), "{name}");
    }
}

#[test]
fn the_page_names_every_kind_and_its_fields() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/events.md")).unwrap();
    for (name, definition) in events::definitions() {
        let (kind, meaning) = (name.split('.').nth(1).unwrap(), definition["description"].as_str().unwrap());
        let fields = definition["properties"].as_object().unwrap().keys();
        let fields: Vec<_> =
            fields.filter(|field| !matches!(field.as_str(), "event" | "time" | "instance")).collect();
        // Kinds of two programs may have the same meaning, and different fields.
        let mut rows = page.lines().filter_map(|line| line.strip_prefix(&format!("| `{kind}` | {meaning} |")));
        let documents = |row: &str| {
            fields.iter().all(|field| row.contains(&format!("`{field}`: ")))
                && row.matches("`: ").count() == fields.len()
        };
        assert!(rows.any(documents), "{name}: no row of that meaning has the fields {fields:?}");
    }
    let rows = page.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, events::definitions().count(), "the page has kinds that the schema has not");
}

#[test]
fn an_undocumented_field_is_detected() {
    let time = "2026-09-21T14:13:20.007Z";
    let fine = json!({ "event": "reached", "time": time, "peer": "https://x", "purpose": "inbox" });
    events::check(&fine);
    let wrong = [
        json!({ "event": "reached", "time": time, "peer": "https://x", "purpose": "inbox", "more": 1 }),
        json!({ "event": "reached", "time": time, "peer": "https://x" }),
        json!({ "event": "reached", "peer": "https://x", "purpose": "inbox" }),
        json!({ "event": "reached", "time": "2026-09-21", "peer": "https://x", "purpose": "inbox" }),
        json!({ "event": "unheard-of", "time": time }),
    ];
    for line in wrong {
        assert!(!events::problems(&line).is_empty(), "{line}");
    }
}

/// A `join` that reaches no service: its text, or its events.
fn unreachable(name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> crate::support::Run {
    let directory = crate::support::directory(name);
    let identity = crate::support::identity(&directory, "member");
    // No program listens on port 9.
    let fixed = ["join", "--service", "http://127.0.0.1:9", "--identity", &identity, "--decline"];
    let run = crate::support::run_with(&[&fixed[..], &["--connect-timeout", "1s"], arguments].concat(), variables);
    assert_eq!(run.status, Some(1), "{run:?}");
    run
}

#[test]
fn text_in_a_pipe_is_complete_and_has_times_on_request() {
    let plain = unreachable("times-none", &[], &[]).stdout;
    assert!(plain.starts_with("joins on these terms: ") && !plain.contains(['\r', '\u{1b}']), "{plain:?}");
    let with_variable = unreachable("times-variable", &[], &[("BTCR2_TIMES", "true")]);
    for stamped in [unreachable("times-flag", &["--times"], &[]), with_variable] {
        // Warnings are on standard error.
        let all: Vec<_> = stamped.stdout.lines().chain(stamped.stderr.lines()).collect();
        assert!(all.len() >= 3, "{stamped:?}");
        for line in all {
            let (time, _) = line.split_once(' ').unwrap();
            assert!(time.len() == "2026-09-21T14:13:20Z".len() && time.ends_with('Z'), "{line}");
        }
    }
}

#[test]
fn events_always_have_times() {
    let events = unreachable("times-json", &["--events", "json"], &[]).events();
    let mut kinds: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    // For adverts, and perhaps for messages too.
    kinds.dedup();
    assert_eq!(kinds, ["terms", "warning", "unreachable", "result"]);
}
