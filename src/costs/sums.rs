//! Sums of entries.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    ledger::{Entry, Kind, Ledger},
    quantity::Quantity,
};
use crate::actors::standing::history::Fate;

/// By what entries are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Grouping {
    /// By the seat that bears it
    Seat,
    /// By the DID for which it is
    Did,
    /// By the cohort
    Cohort,
    /// By the month (UTC)
    Month,
}

impl Grouping {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Seat, Self::Did, Self::Cohort, Self::Month];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Seat => "seat",
            Self::Did => "did",
            Self::Cohort => "cohort",
            Self::Month => "month",
        }
    }

    /// The group of an entry.
    pub fn group_of(self, entry: &Entry) -> String {
        match self {
            Self::Seat => entry.seat.as_ref().map_or_else(|| "operator".to_owned(), ToString::to_string),
            Self::Did => match (&entry.did, &entry.did_index) {
                (Some(did), _) => did.to_string(),
                (None, Some(index)) => index.to_string(),
                (None, None) if entry.did_unknown => "unknown".to_owned(),
                (None, None) => "no single DID".to_owned(),
            },
            Self::Cohort => entry.cohort_id.to_string(),
            Self::Month => {
                let date = entry.at.and_then(|at| at.to_date());
                date.and_then(|date| date.get(..7).map(str::to_owned)).unwrap_or_else(|| "unknown".to_owned())
            }
        }
    }
}

/// The sum of entries of one kind and unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// Of those whose amount is known; none if that is so of none.
    pub amount: Option<Quantity>,
    /// The part of it whose transactions are not final yet.
    pub unconfirmed: Quantity,
    /// How many entries have no known amount.
    pub unknown: u64,
}

/// The sums of some entries, by kind and unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum(pub BTreeMap<(Kind, String), Line>);

impl Sum {
    /// Adds an entry.
    pub fn add(&mut self, entry: &Entry) {
        let line = self.0.entry((entry.kind, entry.unit.clone())).or_default();
        match entry.amount {
            Some(amount) => {
                line.amount = Some(line.amount.unwrap_or_default().plus(amount));
                if entry.state == Some(Fate::Unconfirmed) {
                    line.unconfirmed = line.unconfirmed.plus(amount);
                }
            }
            None => line.unknown += 1,
        }
    }

    /// Adds another sum.
    pub fn add_all(&mut self, other: &Self) {
        for (key, more) in &other.0 {
            let line = self.0.entry(key.clone()).or_default();
            line.amount = match (line.amount, more.amount) {
                (Some(one), Some(other)) => Some(one.plus(other)),
                (one, other) => one.or(other),
            };
            line.unconfirmed = line.unconfirmed.plus(more.unconfirmed);
            line.unknown += more.unknown;
        }
    }
}

impl Ledger {
    /// The sums of groups, in the order of their names.
    pub fn sums(&self, by: Grouping) -> BTreeMap<String, Sum> {
        let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
        for entry in &self.entries {
            sums.entry(by.group_of(entry)).or_default().add(entry);
        }
        sums
    }

    /// The sum of all.
    pub fn total(&self) -> Sum {
        let mut total = Sum::default();
        self.entries.iter().for_each(|entry| total.add(entry));
        total
    }
}
