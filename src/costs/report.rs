//! What is answered when costs are asked for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    comparison::{Comparison, compare},
    facts::CohortFacts,
    ledger::{Kind, Ledger},
    sums::{Grouping, Line, Sum},
};
use crate::cost::WalletKind;

/// A ledger, and what each cohort saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The ledger.
    #[serde(flatten)]
    pub ledger: Ledger,
    /// The comparisons, in the order of the cohorts.
    pub comparisons: Vec<Comparison>,
}

impl Report {
    /// The report of facts, in any order.
    pub fn of(facts: Vec<CohortFacts>, wallet: WalletKind) -> Self {
        let cohorts = CohortFacts::merged(facts);
        let comparisons = cohorts.iter().map(|cohort| compare(cohort, wallet)).collect();
        Self { ledger: Ledger::of(&cohorts), comparisons }
    }
}

/// Sums as JSON.
pub fn json_of_sums(by: Grouping, sums: &BTreeMap<String, Sum>) -> Value {
    let line = |((kind, unit), line): (&(Kind, String), &Line)| {
        json!({
            "kind": kind, "origin": kind.origin(), "unit": unit, "amount": line.amount,
            "unconfirmed": line.unconfirmed, "unknownEntries": line.unknown,
        })
    };
    let group = |(name, sum): (&String, &Sum)| json!({ by.as_str(): name, "lines": sum.0.iter().map(line).collect::<Vec<_>>() });
    Value::from_iter(sums.iter().map(group))
}
