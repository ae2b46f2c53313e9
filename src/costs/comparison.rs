//! What a cohort saved, or cost more, compared with a Singleton transaction for each update.

use std::collections::BTreeSet;

use ::bitcoin::Amount;
use serde::{Deserialize, Serialize};

use super::{
    facts::{BoardUpdates, CohortFacts, NumberFacts, Tries, Update},
    ledger::{Kind, Ledger, SAT, child_fee},
    quantity::Quantity,
};
use crate::{
    actors::standing::history::Fate,
    cost::{Announced, WalletKind, savings},
    protocol::{
        cohort::standing::{Mode, OpportunityKind, announcement_vsize},
        hash::DidIndex,
    },
};

/// A number of things of which some may not be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Count {
    /// Those that are known.
    pub at_least: u64,
    /// Whether these are all.
    pub is_exact: bool,
}

/// Singleton transactions by which documents list the beacon before a signal of it counts for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registrations {
    /// Those that there must have been: of KEY DIDs with an announced update, whose first document cannot list the beacon.
    pub needed: u64,
    /// Those that there may have been beside: the genesis document of an EXTERNAL DID may list the beacon, and of some DIDs it cannot be seen
    /// here whether they were updated.
    pub possible: u64,
}

/// The part of the costs that the seats of a ledger bear. At a member these are its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Own {
    /// Their announced updates.
    pub updates: Count,
    /// Fees and operator's outputs, in satoshi.
    pub paid: Quantity,
    /// Advertised prices in satoshi; those in other units are in the ledger only.
    pub prices: Quantity,
    /// Entries whose amount is not known.
    pub unknown: u64,
    /// What Singleton transactions of the same updates would have cost at the same fee rates, in satoshi.
    pub singletons: u64,
}

/// A cohort, compared with Singleton transactions of the same updates, each at the fee rate of its announcement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// The cohort.
    pub cohort_id: crate::protocol::id::CohortId,
    /// The seats on the last board.
    pub seats: u64,
    /// The registered DIDs on it.
    pub dids: u64,
    /// The announcements that are final or may be.
    pub announcements: u64,
    /// How many of them are signed by fallback.
    pub by_fallback: u64,
    /// The transactions that join coins.
    pub refreshes: u64,
    /// Signed transactions that can never be mined: they have cost nothing, and their updates were announced again.
    pub void: u64,
    /// Numbers without a transaction; only the service knows them.
    pub tries: Option<Tries>,
    /// The announced updates, each once.
    pub updates: Count,
    /// Those that were announced again by another transaction.
    pub repeats: Count,
    /// The transactions whose fee is not known: neither they nor their updates are in what follows.
    pub unknown_fees: u64,
    /// The fees, in satoshi.
    pub fees: u64,
    /// The part of them that signing by fallback has cost more.
    pub fallback_surplus: u64,
    /// What children have paid.
    pub child_fees: u64,
    /// The transactions of which it is not known whether a child has bumped them.
    pub unknown_children: u64,
    /// What went to the operator's outputs: it is out of the shared coin, and not lost.
    pub operator_outputs: u64,
    /// What other beacons had to announce first.
    pub registrations: Registrations,
    /// The size of a Singleton transaction, in vB.
    pub singleton_vsize: u64,
    /// What Singleton transactions of all updates would have paid, in satoshi.
    pub singletons: u64,
    /// What was saved, in satoshi: with the registrations that may have been, and with those only that must have been. Negative if the cohort was
    /// dearer. The operator's outputs are not in it.
    pub saved: (i64, i64),
    /// The same in vB, without children.
    pub saved_vsize: (i64, i64),
    /// The part of this ledger's seats.
    pub own: Own,
}

/// The part of a fee that signing by fallback has cost more.
fn surplus(cohort: &CohortFacts, number: &NumberFacts, fee: u64, vsize: u64) -> u64 {
    let is_fallback = number.paid.as_ref().is_some_and(|paid| paid.mode == Mode::Fallback);
    if !is_fallback || vsize == 0 {
        return 0;
    }
    let seats = number.board.as_ref().map_or(0, |board| board.roster.len());
    let size = |mode| announcement_vsize(&cohort.terms, seats, mode);
    let inputs = number.coins.len().max(1) as u64;
    let more = size(Mode::Fallback).saturating_sub(size(Mode::Key)).saturating_mul(inputs).min(vsize);
    u64::try_from(u128::from(fee) * u128::from(more) / u128::from(vsize)).unwrap_or(u64::MAX)
}

/// What has been seen so far.
#[derive(Default)]
struct Seen {
    announced: BTreeSet<Update>,
    updated: BTreeSet<DidIndex>,
    registered: BTreeSet<DidIndex>,
}

impl Seen {
    /// How many updates of a number are new, and how many are not; whether these are all.
    fn count(&mut self, number: &NumberFacts) -> (u64, u64, bool) {
        let Some(board) = &number.board else { return (0, 0, false) };
        let (mut updates, mut hidden) = (Vec::new(), 0);
        match &board.updates {
            BoardUpdates::Listed(listed) => updates.extend(listed.iter().map(|(_, update)| *update)),
            BoardUpdates::OfSeats(seats) => {
                for seat in seats {
                    match number.updates.get(seat) {
                        Some(known) => updates.extend(known),
                        // One at least.
                        None => hidden += 1,
                    }
                }
            }
        }
        let all = updates.len() as u64;
        self.updated.extend(updates.iter().map(|update| update.index));
        let new = updates.into_iter().filter(|update| self.announced.insert(*update)).count() as u64;
        (new + hidden, all - new, hidden == 0)
    }

    /// The registrations that a number shows first: those that are needed, and those that may be.
    fn registrations(&mut self, cohort: &CohortFacts, number: &NumberFacts, is_exact: bool) -> (u64, u64) {
        let Some(board) = &number.board else { return (0, 0) };
        let is_cas = matches!(board.updates, BoardUpdates::Listed(_));
        let (mut needed, mut possible) = (0, 0);
        for index in board.roster.values().flatten() {
            let is_updated = self.updated.contains(index);
            if !is_updated && (is_cas || is_exact) || !self.registered.insert(*index) {
                continue;
            }
            let is_key = cohort.dids.get(index).is_some_and(|did| did.key().is_some());
            if is_key && is_updated {
                needed += 1;
            } else {
                possible += 1;
            }
        }
        (needed, possible)
    }
}

/// Compares a [merged](CohortFacts::merged) cohort with Singleton transactions of the kind `wallet`.
pub fn compare(cohort: &CohortFacts, wallet: WalletKind) -> Comparison {
    let numbers = || cohort.numbers.iter().filter(|number| number.state != Fate::Void);
    let is_announcement = |number: &&NumberFacts| number.kind.announces();
    let is_fallback = |number: &&NumberFacts| number.paid.as_ref().is_some_and(|paid| paid.mode == Mode::Fallback);
    let last = cohort.numbers.iter().rev().find_map(|number| number.board.as_ref());
    let count = |count: usize| count as u64;
    let mut all = Comparison {
        cohort_id: cohort.cohort_id.clone(),
        seats: last.map_or(0, |board| count(board.roster.len())),
        dids: last.map_or(0, |board| count(board.roster.values().map(Vec::len).sum())),
        announcements: count(numbers().filter(is_announcement).count()),
        by_fallback: count(numbers().filter(is_announcement).filter(is_fallback).count()),
        refreshes: count(numbers().filter(|number| number.kind == OpportunityKind::Refresh).count()),
        void: count(cohort.numbers.len() - numbers().count()),
        tries: cohort.tries,
        updates: Count { at_least: 0, is_exact: true },
        repeats: Count { at_least: 0, is_exact: true },
        unknown_fees: 0,
        fees: 0,
        fallback_surplus: 0,
        child_fees: 0,
        unknown_children: 0,
        operator_outputs: 0,
        registrations: Registrations::default(),
        singleton_vsize: wallet.singleton_vsize(),
        singletons: 0,
        saved: (0, 0),
        saved_vsize: (0, 0),
        own: Own::default(),
    };
    let mut seen = Seen::default();
    for number in numbers() {
        let (new, repeats, is_exact) = seen.count(number);
        all.updates.at_least += new;
        all.repeats.at_least += repeats;
        all.updates.is_exact &= is_exact;
        // What is hidden may be repeated.
        all.repeats.is_exact &= is_exact;
        let (needed, possible) = seen.registrations(cohort, number, is_exact);
        all.registrations.needed += needed;
        all.registrations.possible += possible;
        let Some(paid) = &number.paid else {
            all.unknown_fees += 1;
            continue;
        };
        all.fees = all.fees.saturating_add(paid.fee);
        all.fallback_surplus += surplus(cohort, number, paid.fee, paid.vsize);
        all.operator_outputs += paid.operator.as_ref().map_or(0, |operator| operator.value);
        let child = child_fee(number);
        all.unknown_children += u64::from(child.is_none());
        let child = child.unwrap_or(0);
        all.child_fees = all.child_fees.saturating_add(child);
        let with = |first_updates| {
            let counted = Announced {
                updates: new,
                first_updates,
                vsize: paid.vsize,
                fee: Amount::from_sat(paid.fee),
                child_fee: Amount::from_sat(child),
            };
            savings(&counted, wallet)
        };
        let (dearest, cheapest) = (with(needed + possible), with(needed));
        all.singletons = all.singletons.saturating_add(cheapest.singletons.to_sat());
        all.saved.0 = all.saved.0.saturating_add(dearest.saved);
        all.saved.1 = all.saved.1.saturating_add(cheapest.saved);
        all.saved_vsize.0 = all.saved_vsize.0.saturating_add(dearest.saved_vsize);
        all.saved_vsize.1 = all.saved_vsize.1.saturating_add(cheapest.saved_vsize);
    }
    all.own = own(cohort, wallet);
    all
}

fn own(cohort: &CohortFacts, wallet: WalletKind) -> Own {
    let mut own = Own { updates: Count { at_least: 0, is_exact: true }, ..Own::default() };
    for entry in Ledger::of(std::slice::from_ref(cohort)).entries {
        let known = entry.amount.filter(|_| entry.unit == SAT);
        match (entry.kind, known) {
            // The operator's.
            (Kind::ChildFee, _) => {}
            (kind, Some(amount)) if kind.is_advertised() => own.prices = own.prices.plus(amount),
            (_, Some(amount)) => own.paid = own.paid.plus(amount),
            (_, None) => own.unknown += u64::from(entry.amount.is_none()),
        }
    }
    let mut announced = BTreeSet::new();
    for number in cohort.numbers.iter().filter(|number| number.state != Fate::Void && number.kind.announces()) {
        let mut new = 0;
        for seat in cohort.seats.keys() {
            match number.updates_of(seat) {
                Some(updates) => {
                    new += updates.into_iter().filter(|update| announced.insert(*update)).count() as u64
                }
                None => own.updates.is_exact = false,
            }
        }
        own.updates.at_least += new;
        if let Some(paid) = &number.paid {
            let fee = u128::from(paid.fee) * u128::from(wallet.singleton_vsize());
            let singleton = u64::try_from(fee.div_ceil(u128::from(paid.vsize.max(1)))).unwrap_or(u64::MAX);
            own.singletons = own.singletons.saturating_add(singleton.saturating_mul(new));
        }
    }
    own
}
