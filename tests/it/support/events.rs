//! The output of the programs conforms to `docs/events.schema.json`.

use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::{Value, json};

pub static SCHEMA: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../../docs/events.schema.json")).unwrap());

static ALL: LazyLock<Validator> = LazyLock::new(|| jsonschema::draft202012::new(&SCHEMA).unwrap());

/// The definitions of kinds: `group.kind`, or `group.kind.variant`. Types that they share have no dot in their names.
pub fn definitions() -> impl Iterator<Item = (&'static str, &'static Value)> {
    let definitions = SCHEMA["$defs"].as_object().unwrap().iter();
    definitions.map(|(name, definition)| (name.as_str(), definition)).filter(|(name, _)| name.contains('.'))
}

/// What is wrong with a line, by each definition of its kind.
pub fn problems(line: &Value) -> Vec<String> {
    if ALL.is_valid(line) {
        return Vec::new();
    }
    let of_kind =
        definitions().filter(|(_, definition)| definition["properties"]["event"]["const"] == line["event"]);
    let mut problems: Vec<_> = of_kind
        .flat_map(|(name, _)| {
            let schema = json!({ "$ref": format!("#/$defs/{name}"), "$defs": SCHEMA["$defs"] });
            let validator = jsonschema::draft202012::new(&schema).unwrap();
            let errors: Vec<_> = validator.iter_errors(line).map(|error| format!("{name}: {error}")).collect();
            errors
        })
        .collect();
    if problems.is_empty() {
        problems.push("no such kind of event".to_owned());
    }
    problems
}

/// Fails on a line that is not as documented.
pub fn check(line: &Value) {
    let problems = problems(line);
    assert!(problems.is_empty(), "docs/events.schema.json does not describe {line}: {problems:#?}");
}
