//! What a member reports of its cohorts.

use serde_json::json;

use super::{
    confirmations::{Confirmations, Sighting},
    ledger::of,
};
use crate::{
    actors::notice::Known,
    events::Printer,
    protocol::{id::CohortId, text::shown},
};

/// A cohort that failed.
pub(super) struct FailureReport {
    pub(super) reason: String,
    /// Whether our signature was sent.
    pub(super) signed: bool,
}

impl FailureReport {
    pub(super) fn print(&self, event: &str, cohort_id: &CohortId, printer: &Printer) {
        let Self { reason, signed } = self;
        let known = if *signed { "signed-by-us" } else { "failed" };
        let result =
            json!({ "event": event, "ok": false, "known": known, "cohortId": cohort_id, "reason": reason });
        let but = if *signed { ". Our signature was sent: it can still be announced" } else { "" };
        printer.result(&result, &format!("cohort {cohort_id} failed: {}{but}", shown(reason)));
    }
}

/// There is nothing to do: the update was announced in this cohort, as this version.
pub(super) fn announced_before((cohort_id, version): &(CohortId, u64), printer: &Printer) {
    let result = json!({ "event": "result", "ok": true, "known": "announced-before", "cohortId": cohort_id });
    let text =
        format!("version {version} of the DID is announced {} already: there is nothing to do", of(cohort_id));
    printer.result(&result, &text);
}

/// The state of a transaction on the chain, if there is one: whether it is confirmed, a word for it, and a line for
/// people.
pub(super) fn on_chain(
    confirmations: &Confirmations,
    cohort_id: &CohortId,
    known: Known,
) -> (bool, &'static str, String) {
    let needed = confirmations.needed();
    match confirmations.sighting(cohort_id) {
        Some(Sighting::Block { txid, height, confirmations: blocks }) if blocks >= needed => (
            true,
            "confirmed",
            format!("its transaction {txid} is confirmed in block {height}, {blocks} blocks deep"),
        ),
        Some(Sighting::Block { txid, height, confirmations: blocks }) => (
            false,
            "in-block",
            format!("its transaction {txid} is in block {height}, with {blocks} of {needed} confirmations"),
        ),
        Some(Sighting::Mempool(txid)) => {
            (false, "mempool", format!("its transaction {txid} is in the mempool, and not confirmed"))
        }
        Some(Sighting::Replaced(txid)) => (
            false,
            "failed",
            format!(
                "its transaction will never be confirmed: {txid} has spent the cohort's coin and announces something else"
            ),
        ),
        Some(Sighting::Gone) | None => {
            let (word, text) = match known {
                Known::Seen => ("seen", "its transaction is signed"),
                Known::Reported => ("reported", "the service reports that its transaction is signed"),
                Known::SignedByUs => ("signed-by-us", "our signature was sent"),
            };
            (false, word, format!("{text}, and it is neither in a block nor in the mempool"))
        }
    }
}
