//! CSV of a ledger (RFC 4180, with a header).

use std::{borrow::Cow, collections::BTreeMap};

use super::{
    ledger::{Entry, Ledger},
    quantity::Quantity,
    sums::{Grouping, Sum},
};
use crate::actors::standing::history::Fate;

/// What stands for an amount that is not known.
pub const UNKNOWN: &str = "unknown";

/// A field. Peers choose some texts: none of them becomes a formula of a spreadsheet, or ends its field.
fn field(text: &str) -> Cow<'_, str> {
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    if !is_formula && !text.contains([',', '"', '\n', '\r']) {
        return Cow::Borrowed(text);
    }
    let guard = if is_formula { "'" } else { "" };
    Cow::Owned(format!("\"{guard}{}\"", text.replace('"', "\"\"")))
}

fn row(fields: &[&str]) -> String {
    let fields: Vec<_> = fields.iter().map(|text| field(text)).collect();
    format!("{}\r\n", fields.join(","))
}

fn optional(value: Option<&dyn std::fmt::Display>) -> String {
    value.map_or_else(String::new, ToString::to_string)
}

fn amount_of(amount: Option<Quantity>) -> String {
    amount.map_or_else(|| UNKNOWN.to_owned(), |amount| amount.to_string())
}

fn state_of(state: Fate) -> &'static str {
    match state {
        Fate::Unconfirmed => "unconfirmed",
        Fate::Final => "final",
        Fate::Void => "void",
    }
}

fn row_of(entry: &Entry) -> String {
    let did = if entry.did_unknown { UNKNOWN.to_owned() } else { optional(entry.did.as_ref().map(|did| did as _)) };
    row(&[
        &entry.at.and_then(|at| at.to_date()).unwrap_or_default(),
        entry.cohort_id.as_str(),
        &entry.seat.as_ref().map_or_else(|| "operator".to_owned(), ToString::to_string),
        &did,
        &optional(entry.did_index.as_ref().map(|index| index as _)),
        &optional(entry.number.as_ref().map(|number| number as _)),
        entry.kind.as_str(),
        entry.kind.origin(),
        &amount_of(entry.amount),
        &entry.unit,
        entry.state.map(state_of).unwrap_or_default(),
        &optional(entry.txid.as_ref().map(|txid| txid as _)),
    ])
}

/// All entries.
pub fn csv_of_entries(ledger: &Ledger) -> String {
    let mut csv = row(&[
        "at", "cohort", "seat", "did", "didIndex", "number", "kind", "origin", "amount", "unit", "state", "txid",
    ]);
    ledger.entries.iter().for_each(|entry| csv.push_str(&row_of(entry)));
    csv
}

/// The sums of groups.
pub fn csv_of_sums(by: Grouping, sums: &BTreeMap<String, Sum>) -> String {
    let mut csv = row(&[by.as_str(), "kind", "origin", "amount", "unit", "unconfirmed", "unknownEntries"]);
    for (group, sum) in sums {
        for ((kind, unit), line) in &sum.0 {
            csv.push_str(&row(&[
                group,
                kind.as_str(),
                kind.origin(),
                &amount_of(line.amount),
                unit,
                &line.unconfirmed.to_string(),
                &line.unknown.to_string(),
            ]));
        }
    }
    csv
}
