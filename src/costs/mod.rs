//! What standing cohorts cost: a ledger for each seat and each DID, by the advertised prices and by what the chain shows, and a comparison with
//! announcements without a cohort.
//!
//! ```text
//!  service: history, boards, journals of numbers ─▶ service ─┐
//!  member:  what its seats have verified ─────────▶ member ──┼─▶ facts ─▶ ledger ─▶ export (CSV, JSON)
//!  chain:   children of the operator's outputs ───▶ children ┘      └───▶ comparison
//! ```
//!
//! The ledger is computed from facts each time, and stored nowhere. Service and member have their facts from different sources: where both
//! ledgers agree, both have seen the same. What is not known is [no amount](Entry::amount), never 0.

pub mod children;
mod comparison;
mod estimate;
mod export;
mod facts;
mod ledger;
pub mod member;
mod quantity;
mod report;
mod service;
mod sums;
#[cfg(test)]
mod tests;

pub use self::{
    comparison::{Comparison, Count, Own, Registrations, compare},
    estimate::{Estimate, Plan},
    export::{UNKNOWN, csv_of_entries, csv_of_sums},
    facts::{BoardFacts, BoardUpdates, ChildFee, CohortFacts, NumberFacts, Tries, Update},
    ledger::{Announcement, Entry, Kind, Ledger, SAT},
    member::{SeatCosts, of_member},
    quantity::{Quantity, QuantityError},
    report::{Report, json_of_sums},
    service::of_service,
    sums::{Grouping, Line, Sum},
};

/// Why costs cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CostsError(pub String);

impl CostsError {
    fn of(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}
