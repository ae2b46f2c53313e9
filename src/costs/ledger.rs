//! The entries of a ledger: a pure function of facts.

use std::collections::BTreeSet;

use bitcoin::Txid;
use serde::{Deserialize, Serialize};

use super::{
    facts::{BoardFacts, BoardUpdates, ChildFee, CohortFacts, NumberFacts, Update},
    quantity::Quantity,
};
use crate::{
    actors::standing::history::Fate,
    protocol::{
        cohort::standing::{Mode, OpportunityKind},
        did::Did,
        hash::DidIndex,
        id::CohortId,
        key::PublicKey,
        message::keygen::{Cost, CostBasis},
        time::Timestamp,
    },
};

/// The unit of what the chain shows.
pub const SAT: &str = "sat";

/// What is paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The advertised price of joining.
    Enrollment,
    /// The advertised price of an announcement.
    Announcement,
    /// A share of the fee of an announcement.
    FeeShare,
    /// The same, of an update that an earlier number has announced too.
    Repeat,
    /// A share of the fee of a transaction that joins coins.
    Refresh,
    /// A share of the operator's output, which comes out of the shared coin.
    OperatorOutput,
    /// What the operator's child has paid to bump a transaction.
    ChildFee,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Enrollment,
        Self::Announcement,
        Self::FeeShare,
        Self::Repeat,
        Self::Refresh,
        Self::OperatorOutput,
        Self::ChildFee,
    ];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enrollment => "enrollment",
            Self::Announcement => "announcement",
            Self::FeeShare => "fee-share",
            Self::Repeat => "repeat",
            Self::Refresh => "refresh",
            Self::OperatorOutput => "operator-output",
            Self::ChildFee => "child-fee",
        }
    }

    /// Whether it follows from the advertised terms, and not from the chain. Nothing here shows that it was paid.
    pub const fn is_advertised(self) -> bool {
        matches!(self, Self::Enrollment | Self::Announcement)
    }

    /// `advertised` or `chain`.
    pub const fn origin(self) -> &'static str {
        if self.is_advertised() { "advertised" } else { "chain" }
    }
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Entry {
    /// When, if that is known.
    pub at: Option<Timestamp>,
    /// The cohort.
    pub cohort_id: CohortId,
    /// The DID of the seat that bears it; none of the operator.
    pub seat: Option<Did>,
    /// The DID for which it is, if that is known.
    pub did: Option<Did>,
    /// Its index; none of what is for no single DID.
    pub did_index: Option<DidIndex>,
    /// Whether it is for DIDs that cannot be seen here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub did_unknown: bool,
    /// The number, if it is of one.
    pub number: Option<u64>,
    /// What is paid for.
    pub kind: Kind,
    /// How much; none if that is not known.
    pub amount: Option<Quantity>,
    /// Of what: `sat`, or the unit of an advertised price.
    pub unit: String,
    /// What has become of the number.
    pub state: Option<Fate>,
    /// The transaction.
    pub txid: Option<Txid>,
}

impl Entry {
    fn key(&self) -> impl Ord + use<> {
        let place = (self.cohort_id.clone(), self.number, self.txid, self.kind, self.seat.clone());
        (place, self.did_index, self.did_unknown, self.amount, self.unit.clone())
    }
}

/// A number with a transaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Announcement {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The number.
    pub number: u64,
    /// What its transaction does.
    pub kind: OpportunityKind,
    /// The transaction.
    pub txid: Txid,
    /// What has become of it.
    pub state: Fate,
    /// When it was signed.
    pub at: Option<Timestamp>,
    /// How it is signed.
    pub mode: Option<Mode>,
    /// The fee, in satoshi.
    pub fee: Option<u64>,
    /// The virtual size, in vB.
    pub vsize: Option<u64>,
    /// What the operator's output holds, in satoshi; 0 if there is none.
    pub operator_output: Option<u64>,
    /// What the operator's child has paid, in satoshi; 0 if there is none.
    pub child_fee: Option<u64>,
}

/// A ledger.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ledger {
    /// The transactions, in order.
    pub announcements: Vec<Announcement>,
    /// The entries, in order.
    pub entries: Vec<Entry>,
}

impl Ledger {
    /// The ledger of [merged](CohortFacts::merged) facts.
    pub fn of(cohorts: &[CohortFacts]) -> Self {
        let mut ledger = Self::default();
        for cohort in cohorts {
            ledger.announcements.extend(cohort.numbers.iter().map(|number| announcement(cohort, number)));
            Entries { cohort, entries: &mut ledger.entries }.add();
        }
        ledger.entries.sort_by_cached_key(Entry::key);
        ledger
    }
}

fn announcement(cohort: &CohortFacts, number: &NumberFacts) -> Announcement {
    let paid = number.paid.as_ref();
    Announcement {
        cohort_id: cohort.cohort_id.clone(),
        number: number.number,
        kind: number.kind,
        txid: number.txid,
        state: number.state,
        at: number.at,
        mode: paid.map(|paid| paid.mode),
        fee: paid.map(|paid| paid.fee),
        vsize: paid.map(|paid| paid.vsize),
        operator_output: paid.map(|paid| paid.operator.as_ref().map_or(0, |operator| operator.value)),
        child_fee: child_fee(number),
    }
}

/// The fee of its child, 0 if there is none; `None` if that is not known.
pub(super) fn child_fee(number: &NumberFacts) -> Option<u64> {
    let has_output = number.paid.as_ref().map(|paid| paid.operator.is_some());
    match (number.child, has_output) {
        (ChildFee::Paid(fee, _), _) => Some(fee),
        // Only the operator's output can be spent by a bump.
        (ChildFee::None, _) | (_, Some(false)) => Some(0),
        (ChildFee::Unknown, _) => None,
    }
}

/// The part of `total` that the share at `place` of `of` has: they differ by one satoshi at most, and are `total` in all.
pub(super) fn part(total: u64, place: u64, of: u64) -> u64 {
    total / of.max(1) + u64::from(place < total % of.max(1))
}

/// Who bears a share of a transaction.
struct Share {
    seat: PublicKey,
    /// Of CAS cohorts.
    update: Option<Update>,
}

/// The shares of a transaction, each of the same size: of an announcement each update in a CAS cohort, and in an SMT cohort each seat that has
/// updates, since only that can be seen by all; of any other each seat.
fn shares(board: &BoardFacts) -> Vec<Share> {
    let shares: Vec<Share> = match &board.updates {
        BoardUpdates::Listed(listed) => {
            listed.iter().map(|(seat, update)| Share { seat: *seat, update: Some(*update) }).collect()
        }
        BoardUpdates::OfSeats(seats) => seats.iter().map(|seat| Share { seat: *seat, update: None }).collect(),
    };
    if shares.is_empty() {
        return board.roster.keys().map(|seat| Share { seat: *seat, update: None }).collect();
    }
    shares
}

struct Entries<'a> {
    cohort: &'a CohortFacts,
    entries: &'a mut Vec<Entry>,
}

impl Entries<'_> {
    fn add(&mut self) {
        self.enrollments();
        let mut announced = BTreeSet::new();
        let cohort = self.cohort;
        for number in cohort.numbers.iter().filter(|number| number.state != Fate::Void) {
            self.prices(number);
            self.chain(number, &mut announced);
            self.child(number);
        }
    }

    fn entry(&self, seat: Option<&PublicKey>, kind: Kind, amount: Option<Quantity>) -> Entry {
        Entry {
            at: None,
            cohort_id: self.cohort.cohort_id.clone(),
            seat: seat.and_then(|seat| self.cohort.seats.get(seat)).cloned(),
            did: None,
            did_index: None,
            did_unknown: false,
            number: None,
            kind,
            amount,
            unit: SAT.to_owned(),
            state: None,
            txid: None,
        }
    }

    fn of_number(
        &self,
        number: &NumberFacts,
        seat: Option<&PublicKey>,
        kind: Kind,
        amount: Option<Quantity>,
    ) -> Entry {
        Entry {
            at: number.at,
            number: Some(number.number),
            state: Some(number.state),
            txid: Some(number.txid),
            ..self.entry(seat, kind, amount)
        }
    }

    fn of_did(&self, entry: Entry, index: DidIndex) -> Entry {
        Entry { did: self.cohort.dids.get(&index).cloned(), did_index: Some(index), ..entry }
    }

    /// The price of joining: once for a seat, or for each DID when a roster has it first.
    fn enrollments(&mut self) {
        let cohort = self.cohort;
        let Some(cost) = &cohort.terms.cost_of_enrollment else { return };
        let amount = Quantity::of(&cost.amount);
        if cost.basis != Some(CostBasis::PerDid) {
            for seat in cohort.seats.keys() {
                let entry = self.entry(Some(seat), Kind::Enrollment, amount);
                self.entries.push(Entry { at: cohort.formed_at, unit: cost.unit.clone(), ..entry });
            }
            return;
        }
        let mut enrolled = BTreeSet::new();
        for number in &cohort.numbers {
            let Some(board) = &number.board else { continue };
            for (seat, indexes) in board.roster.iter().filter(|(seat, _)| cohort.seats.contains_key(seat)) {
                for index in indexes {
                    if !enrolled.insert((*seat, *index)) {
                        continue;
                    }
                    let entry = self.entry(Some(seat), Kind::Enrollment, amount);
                    let entry = Entry { at: number.at, unit: cost.unit.clone(), ..entry };
                    self.entries.push(self.of_did(entry, *index));
                }
            }
        }
    }

    /// The price of an announcement: of each seat on the roster, or of each of its DIDs.
    fn prices(&mut self, number: &NumberFacts) {
        let cohort = self.cohort;
        let Some(cost) = &cohort.terms.cost_per_announcement else { return };
        if !number.kind.announces() {
            return;
        }
        let price = |entry: Entry, cost: &Cost| Entry { unit: cost.unit.clone(), ..entry };
        let amount = Quantity::of(&cost.amount);
        for seat in cohort.seats.keys() {
            let indexes = match &number.board {
                Some(board) => match board.roster.get(seat) {
                    Some(indexes) => Some(indexes),
                    None => continue,
                },
                None => None,
            };
            match (cost.basis, indexes) {
                (Some(CostBasis::PerDid), Some(indexes)) => {
                    for index in indexes {
                        let entry = price(self.of_number(number, Some(seat), Kind::Announcement, amount), cost);
                        self.entries.push(self.of_did(entry, *index));
                    }
                }
                (Some(CostBasis::PerDid), None) => {
                    let entry = price(self.of_number(number, Some(seat), Kind::Announcement, None), cost);
                    self.entries.push(Entry { did_unknown: true, ..entry });
                }
                _ => {
                    let entry = price(self.of_number(number, Some(seat), Kind::Announcement, amount), cost);
                    self.entries.push(entry);
                }
            }
        }
    }

    /// The shares of the fee and of the operator's output.
    fn chain(&mut self, number: &NumberFacts, announced: &mut BTreeSet<Update>) {
        let cohort = self.cohort;
        let Some(board) = &number.board else {
            // Whether a seat has had a share cannot be seen.
            for seat in cohort.seats.keys() {
                let kind = if number.kind.announces() { Kind::FeeShare } else { Kind::Refresh };
                let entry = self.of_number(number, Some(seat), kind, None);
                self.entries.push(Entry { did_unknown: true, ..entry });
            }
            return;
        };
        let shares = shares(board);
        let count = shares.len() as u64;
        let fee = number.paid.as_ref().map(|paid| paid.fee);
        let operator = number.paid.as_ref().and_then(|paid| paid.operator.as_ref()).map(|operator| operator.value);
        for (place, share) in (0..).zip(&shares) {
            let is_new = share.update.is_none_or(|update| announced.insert(update));
            if !cohort.seats.contains_key(&share.seat) {
                continue;
            }
            let fee = fee.map(|fee| part(fee, place, count));
            self.split(number, share, is_new, Kind::FeeShare, fee, announced);
            if let Some(operator) = operator {
                let value = part(operator, place, count);
                self.split(number, share, true, Kind::OperatorOutput, Some(value), announced);
            }
        }
    }

    /// A share of a seat, for its DIDs.
    fn split(
        &mut self,
        number: &NumberFacts,
        share: &Share,
        is_new: bool,
        kind: Kind,
        sat: Option<u64>,
        announced: &mut BTreeSet<Update>,
    ) {
        let kind = match (kind, number.kind.announces(), is_new) {
            (Kind::FeeShare, false, _) => Kind::Refresh,
            (Kind::FeeShare, true, false) => Kind::Repeat,
            (kind, ..) => kind,
        };
        let whole = |sat: Option<u64>| sat.map(Quantity::whole);
        if let Some(update) = share.update {
            let entry = self.of_number(number, Some(&share.seat), kind, whole(sat));
            self.entries.push(self.of_did(entry, update.index));
            return;
        }
        let updates = number.updates_of(&share.seat).filter(|_| number.kind.announces());
        match updates {
            Some(updates) if !updates.is_empty() => {
                let count = updates.len() as u64;
                for (place, update) in (0..).zip(updates) {
                    let is_new = kind != Kind::FeeShare || announced.insert(update);
                    let kind = if is_new { kind } else { Kind::Repeat };
                    let amount = sat.map(|sat| part(sat, place, count));
                    let entry = self.of_number(number, Some(&share.seat), kind, whole(amount));
                    self.entries.push(self.of_did(entry, update.index));
                }
            }
            Some(_) => self.entries.push(self.of_number(number, Some(&share.seat), kind, whole(sat))),
            None => {
                let entry = self.of_number(number, Some(&share.seat), kind, whole(sat));
                self.entries.push(Entry { did_unknown: number.kind.announces(), ..entry });
            }
        }
    }

    /// What the operator's child has paid: the operator's cost, and in the service's ledger only.
    fn child(&mut self, number: &NumberFacts) {
        let fee = child_fee(number);
        if !self.cohort.is_service || fee == Some(0) {
            return;
        }
        let entry = self.of_number(number, None, Kind::ChildFee, fee.map(Quantity::whole));
        let txid = match number.child {
            ChildFee::Paid(_, txid) => Some(txid),
            _ => None,
        };
        self.entries.push(Entry { txid, ..entry });
    }
}
