//! A ledger for people.

use crate::{
    costs::{Comparison, Count, Grouping, Report, Sum, Tries, UNKNOWN},
    protocol::text::shown,
};

fn count(count: Count) -> String {
    match (count.at_least, count.is_exact) {
        (known, true) => known.to_string(),
        (0, false) => "an unknown number of".to_owned(),
        (known, false) => format!("at least {known}"),
    }
}

/// What was saved, between the least and the most.
fn saved((least, most): (i64, i64)) -> String {
    let one = |sat: i64| match sat {
        sat if sat >= 0 => format!("{sat} sat saved"),
        sat => format!("{} sat dearer than without a cohort", sat.unsigned_abs()),
    };
    if least == most { one(most) } else { format!("between {} and {}", one(least), one(most)) }
}

fn tries(tries: Option<Tries>) -> String {
    let Some(Tries { idle, failed, unknown }) = tries else {
        return "; numbers without a transaction are not known here".to_owned();
    };
    let unknown = if unknown > 0 { format!(", {unknown} {UNKNOWN}") } else { String::new() };
    format!("; without a transaction: {idle} idle, {failed} failed{unknown}")
}

fn comparison(one: &Comparison) -> Vec<String> {
    let mut lines =
        vec![format!("cohort {}: {} seats, {} DIDs", shown(one.cohort_id.as_str()), one.seats, one.dids)];
    lines.push(format!(
        "  {} announcements ({} by fallback), {} refreshes, {} void{}",
        one.announcements,
        one.by_fallback,
        one.refreshes,
        one.void,
        tries(one.tries)
    ));
    lines.push(format!("  {} updates, {} repeats of them", count(one.updates), count(one.repeats)));
    lines.push(format!(
        "  {} sat of fees, of these {} for signing by fallback; {} sat by children",
        one.fees, one.fallback_surplus, one.child_fees
    ));
    if one.unknown_children > 0 {
        lines.push(format!("  it is {UNKNOWN} whether children bumped {} of them (--chain)", one.unknown_children));
    }
    if one.unknown_fees > 0 {
        lines.push(format!(
            "  the fees of {} transactions are {UNKNOWN}: these and their updates are not compared",
            one.unknown_fees
        ));
    }
    if one.operator_outputs > 0 {
        lines.push(format!("  {} sat went to the operator's outputs", one.operator_outputs));
    }
    let possible = match one.registrations.possible {
        0 => String::new(),
        possible => format!(", and {possible} that may have been"),
    };
    lines.push(format!(
        "  with {} Singleton transactions that had to list the beacon{possible}, compared with {} sat by Singleton transactions alone: {}",
        one.registrations.needed,
        one.singletons,
        saved(one.saved)
    ));
    let own = &one.own;
    let unknown = if own.unknown > 0 { format!(", {} entries {UNKNOWN}", own.unknown) } else { String::new() };
    lines.push(format!(
        "  the seats of this ledger: {} updates for {} sat of the coin and {} sat of advertised prices{unknown}; {} sat by Singleton transactions",
        count(own.updates),
        own.paid,
        own.prices,
        own.singletons
    ));
    lines
}

fn sum(name: &str, sum: &Sum) -> Vec<String> {
    let mut lines = vec![shown(name).into_owned()];
    for ((kind, unit), line) in &sum.0 {
        let amount = line.amount.map_or_else(|| UNKNOWN.to_owned(), |amount| amount.to_string());
        let mut text = format!("  {:<16}  {:<10}  {amount:>12} {}", kind.as_str(), kind.origin(), shown(unit));
        if line.amount.is_some() && line.unknown > 0 {
            text.push_str(&format!(", and {} entries {UNKNOWN}", line.unknown));
        }
        if line.unconfirmed > crate::costs::Quantity::ZERO {
            text.push_str(&format!(", of these {} not final", line.unconfirmed));
        }
        lines.push(text);
    }
    lines
}

/// The report: sums, then the comparison of each cohort.
pub(super) fn report(report: &Report, by: Grouping) -> String {
    if report.comparisons.is_empty() {
        return "no standing cohort has formed here".to_owned();
    }
    let sums = report.ledger.sums(by);
    let mut lines: Vec<String> = sums.iter().flat_map(|(name, one)| sum(name, one)).collect();
    if sums.is_empty() {
        lines.push("nothing was paid yet".to_owned());
    }
    lines.extend(report.comparisons.iter().flat_map(comparison));
    lines.join("\n")
}
