//! The roster: which seat holds which index, as rows that the seats have signed (docs/standing.md, "Registration").

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};

use super::context::CohortContext;
use crate::{
    hash::{DidIndex, DocumentHash},
    key::{PublicKey, SecretKey, Signature},
    names::named,
};

const ROW: &str = "btcr2-aggregation/standing/row/1";
const ROSTER: &str = "btcr2-aggregation/standing/roster/1";

named! {
    /// What a row does with its index.
    RowAction {
        /// From the next opportunity on the seat answers for the index.
        Register = "register",
        /// From then on it does not. The DID becomes a former member: its data is served without end.
        Unregister = "unregister",
    }
}

impl<'de> Deserialize<'de> for RowAction {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let action = Self::ALL.iter().find(|action| action.as_str() == text);
        action.copied().ok_or_else(|| serde::de::Error::custom("register or unregister expected"))
    }
}

/// A signed change of the roster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The seat whose key signed it.
    pub seat: PublicKey,
    /// SHA-256 of the DID.
    pub did_index: DidIndex,
    /// What it does.
    pub action: RowAction,
    /// Greater than that of every earlier row of the index, so that no row can be repeated.
    pub serial: u64,
    /// BIP-340, of the seat.
    pub signature: Signature,
}

impl Row {
    /// A row signed by the seat.
    pub fn sign(
        context: &CohortContext,
        key: &SecretKey,
        did_index: DidIndex,
        action: RowAction,
        serial: u64,
        rng: &mut dyn CryptoRng,
    ) -> Self {
        let digest = Self::digest(context, &did_index, action, serial);
        Self { seat: key.public_key(), did_index, action, serial, signature: key.sign(&digest, rng) }
    }

    /// What the seat signs; with proven registration a key of the DID's `capabilityInvocation` signs the same.
    pub fn digest(context: &CohortContext, did_index: &DidIndex, action: RowAction, serial: u64) -> [u8; 32] {
        context.digest(ROW, &[did_index.as_bytes(), action.as_str().as_bytes(), &serial.to_be_bytes()])
    }

    /// Whether the seat has signed it, for this cohort.
    pub fn is_signed(&self, context: &CohortContext) -> bool {
        let digest = Self::digest(context, &self.did_index, self.action, self.serial);
        self.seat.x_only().verify(&digest, &self.signature)
    }
}

/// Why a row does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowProblem {
    /// The key is not that of a seat.
    #[error("{0} is not a seat of this cohort")]
    NotASeat(PublicKey),
    /// The signature is not the seat's over this row.
    #[error("the row of {0} is not signed by its seat")]
    Signature(DidIndex),
    /// The serial is not above that of the index's last row.
    #[error("the serial {serial} of {index} is not above {last}: a row cannot be repeated")]
    Serial {
        /// The index.
        index: DidIndex,
        /// The row's.
        serial: u64,
        /// The last one.
        last: u64,
    },
    /// The index belongs to a seat, which has not unregistered it.
    #[error("{index} is registered to seat {seat}: only a row of that seat can release it")]
    Taken {
        /// The index.
        index: DidIndex,
        /// Who has it.
        seat: PublicKey,
    },
    /// The seat does not have the index.
    #[error("{0} is not registered to this seat")]
    NotRegistered(DidIndex),
    /// The seat has as many indexes as the terms allow.
    #[error("a seat registers at most {0} DIDs")]
    TooMany(u32),
}

/// The seats and their indexes. A row is checked once and then applied; a [`Roster`] can only be reached by rows that were
/// signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    context: CohortContext,
    seats: BTreeMap<PublicKey, BTreeSet<DidIndex>>,
    /// Every row that was applied, in order. A clone shares them until the next one.
    log: Arc<Vec<Row>>,
    /// The place in the log of the last row of every index that was ever registered.
    rows: BTreeMap<DidIndex, usize>,
    /// The seats that have ever registered an index.
    registrants: BTreeSet<PublicKey>,
    most_per_seat: u32,
    hash: Computed,
}

/// The hash of a roster, once it was computed. It follows from the rest, so that two rosters are equal without it.
#[derive(Clone, Debug, Default)]
struct Computed(OnceLock<DocumentHash>);

impl PartialEq for Computed {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Computed {}

impl Roster {
    /// The roster of a cohort that has just formed.
    pub fn new(context: CohortContext, seats: impl IntoIterator<Item = PublicKey>, most_per_seat: u32) -> Self {
        let seats = seats.into_iter().map(|seat| (seat, BTreeSet::new())).collect();
        let hash = Computed::default();
        let registrants = BTreeSet::new();
        Self { context, seats, registrants, log: Arc::default(), rows: BTreeMap::new(), most_per_seat, hash }
    }

    /// The roster after these rows, which were [checked](Self::check) before they were stored.
    pub(super) fn after(mut self, rows: &Arc<Vec<Row>>) -> Self {
        rows.iter().for_each(|row| self.apply(row));
        if *self.log == **rows {
            self.log = Arc::clone(rows);
        }
        self
    }

    /// The cohort.
    pub fn context(&self) -> &CohortContext {
        &self.context
    }

    /// The seats, in KeySort order.
    pub fn seats(&self) -> impl ExactSizeIterator<Item = &PublicKey> {
        self.seats.keys()
    }

    /// Whether there is such a seat.
    pub fn has_seat(&self, seat: &PublicKey) -> bool {
        self.seats.contains_key(seat)
    }

    /// The indexes of a seat, in order.
    pub fn indexes(&self, seat: &PublicKey) -> impl ExactSizeIterator<Item = &DidIndex> {
        static NONE: BTreeSet<DidIndex> = BTreeSet::new();
        self.seats.get(seat).unwrap_or(&NONE).iter()
    }

    /// Whether the seat has released every index that it had: it has left, and is still a key of the output.
    pub fn has_left(&self, seat: &PublicKey) -> bool {
        self.registrants.contains(seat) && self.indexes(seat).len() == 0
    }

    /// How many seats have at least so many indexes. Who has left goes on signing, and must not stop the others.
    pub(super) fn seats_with(&self, least: usize) -> usize {
        let is_ready =
            |(seat, indexes): &(&PublicKey, &BTreeSet<DidIndex>)| indexes.len() >= least || self.has_left(seat);
        self.seats.iter().filter(is_ready).count()
    }

    /// The seat to which an index is registered.
    pub fn seat_of(&self, index: &DidIndex) -> Option<&PublicKey> {
        let row = self.row(index)?;
        (row.action == RowAction::Register).then_some(&row.seat)
    }

    /// The last row of an index, also of a former one.
    pub fn row(&self, index: &DidIndex) -> Option<&Row> {
        self.log.get(*self.rows.get(index)?)
    }

    /// How many rows have led here, from the first one.
    pub fn row_count(&self) -> u64 {
        self.log.len() as u64
    }

    /// The rows that have led here, in their order.
    pub(super) const fn log(&self) -> &Arc<Vec<Row>> {
        &self.log
    }

    /// The rows after the first `from`.
    pub(super) fn rows_from(&self, from: u64) -> &[Row] {
        usize::try_from(from).ok().and_then(|from| self.log.get(from..)).unwrap_or_default()
    }

    /// Whether it is `before`, or what further rows have made of it.
    pub(super) fn extends(&self, before: &Self) -> bool {
        self.context == before.context
            && self.most_per_seat == before.most_per_seat
            && self.seats.keys().eq(before.seats.keys())
            && (Arc::ptr_eq(&self.log, &before.log) || self.log.starts_with(&before.log))
    }

    /// The number of registered indexes.
    pub fn len(&self) -> usize {
        self.seats.values().map(BTreeSet::len).sum()
    }

    /// Whether nothing is registered.
    pub fn is_empty(&self) -> bool {
        self.seats.values().all(BTreeSet::is_empty)
    }

    /// The rows that registered what is registered now, by index: what a seat needs that knows nothing yet.
    pub fn registered(&self) -> impl Iterator<Item = &Row> {
        self.rows.values().filter_map(|at| self.log.get(*at)).filter(|row| row.action == RowAction::Register)
    }

    /// Whether a row may be applied.
    ///
    /// # Errors
    /// [`RowProblem`]; a row that is applied already is [`RowProblem::Serial`] too, unless the caller compares it with
    /// [`Self::row`] first.
    pub fn check(&self, row: &Row) -> Result<(), RowProblem> {
        let index = row.did_index;
        let Some(of_seat) = self.seats.get(&row.seat) else { return Err(RowProblem::NotASeat(row.seat)) };
        let last = self.row(&index).map_or(0, |last| last.serial);
        if row.serial <= last {
            return Err(RowProblem::Serial { index, serial: row.serial, last });
        }
        match (row.action, self.seat_of(&index)) {
            (RowAction::Register, Some(seat)) => return Err(RowProblem::Taken { index, seat: *seat }),
            (RowAction::Unregister, Some(seat)) if *seat == row.seat => {}
            (RowAction::Unregister, _) => return Err(RowProblem::NotRegistered(index)),
            (RowAction::Register, None) => {
                if u32::try_from(of_seat.len()).unwrap_or(u32::MAX) >= self.most_per_seat {
                    return Err(RowProblem::TooMany(self.most_per_seat));
                }
            }
        }
        // Last: it is the only check that costs.
        if row.is_signed(&self.context) { Ok(()) } else { Err(RowProblem::Signature(index)) }
    }

    /// Applies a row that was [checked](Self::check).
    pub(super) fn apply(&mut self, row: &Row) {
        if let Some(indexes) = self.seats.get_mut(&row.seat) {
            match row.action {
                RowAction::Register => indexes.insert(row.did_index),
                RowAction::Unregister => indexes.remove(&row.did_index),
            };
            self.registrants.insert(row.seat);
            self.rows.insert(row.did_index, self.log.len());
            Arc::make_mut(&mut self.log).push(row.clone());
            self.hash = Computed::default();
        }
    }

    /// Checks rows and applies them, in their order.
    ///
    /// # Errors
    /// The first [`RowProblem`]; the rows before it are applied.
    pub fn follow<'a>(&mut self, rows: impl IntoIterator<Item = &'a Row>) -> Result<(), RowProblem> {
        for row in rows {
            self.check(row)?;
            self.apply(row);
        }
        Ok(())
    }

    /// The hash that an opportunity and every response name: over each seat in KeySort order with the number of its indexes, and each
    /// of these with the serial of its row.
    pub fn hash(&self) -> DocumentHash {
        *self.hash.0.get_or_init(|| self.compute_hash())
    }

    fn compute_hash(&self) -> DocumentHash {
        let mut content = Vec::with_capacity(self.seats.len() * 41 + self.len() * 40);
        for (seat, indexes) in &self.seats {
            content.extend(seat.to_bytes());
            content.extend((indexes.len() as u64).to_be_bytes());
            for index in indexes {
                content.extend(index.as_bytes());
                content.extend(self.row(index).map_or(0, |row| row.serial).to_be_bytes());
            }
        }
        DocumentHash::from_bytes(self.context.digest(ROSTER, &[&content]))
    }
}
