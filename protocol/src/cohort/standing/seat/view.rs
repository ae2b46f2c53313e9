//! What a host reads of a seat.

use std::sync::Arc;

use bitcoin::Txid;

use super::{Seat, SeatConfig, Stage};
use crate::{
    cohort::standing::{
        opportunity::OpportunityKind,
        roster::{Roster, RowAction},
        terms::StandingBeacon,
    },
    hash::{DidIndex, DocumentHash},
};

/// What a seat has put under one of its indexes in a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnEntry {
    /// The index.
    pub index: DidIndex,
    /// The nonce of its leaf, in an SMT cohort. Without a leaf, there is none.
    pub nonce: Option<[u8; 32]>,
    /// The hash of its update, if it has one.
    pub update: Option<DocumentHash>,
}

impl Seat {
    /// What does not change in its life.
    pub const fn config(&self) -> &Arc<SeatConfig> {
        &self.config
    }

    /// How many rows the roster has whose opportunity this seat cannot follow yet.
    pub fn missed_rows(&self) -> Option<u64> {
        Some(self.seated.as_ref()?.missed.as_ref()?.row_count)
    }

    /// The roster that it knows, once the cohort has formed.
    pub fn roster(&self) -> Option<&Arc<Roster>> {
        self.seated.as_ref().map(|seated| &seated.roster)
    }

    /// The transaction of a number, if this seat has verified it.
    pub fn txid_of(&self, number: u64) -> Option<Txid> {
        self.seated.as_ref()?.record.txid(number)
    }

    /// A serial above that of every row of the index that this seat knows, answered or not.
    pub fn next_serial(&self, index: &DidIndex) -> u64 {
        let Some(seated) = &self.seated else { return 1 };
        let known = seated.roster.row(index).map_or(0, |row| row.serial);
        let asked = seated.asked.keys().filter(|(of, _)| of == index).map(|(_, serial)| *serial).max();
        let acknowledged = seated.acknowledged.get(index).map_or(0, |(serial, _)| *serial);
        known.max(asked.unwrap_or(0)).max(acknowledged) + 1
    }

    /// Whether the last row of the index that this seat knows, or has sent, is one of its own that does this.
    pub fn has_asked(&self, index: &DidIndex, action: RowAction) -> bool {
        let Some(seated) = &self.seated else { return false };
        let asked = seated.asked.iter().filter(|((of, _), _)| of == index).map(|(_, row)| row.action).next_back();
        if let Some(asked) = asked {
            return asked == action;
        }
        // An acknowledged row comes with the next opportunity; what it does is not known here any more.
        if seated.acknowledged.contains_key(index) {
            return true;
        }
        match seated.roster.row(index) {
            Some(row) => row.seat == self.config.seat && row.action == action,
            None => false,
        }
    }

    /// The own indexes of which k seats have signed that they are this seat's: a document may list the beacon for them.
    pub fn confirmed_indexes(&self) -> impl Iterator<Item = &DidIndex> {
        self.seated.iter().flat_map(|seated| &seated.registered)
    }

    /// Whether the seat has committed itself to no updates yet in its highest number.
    pub fn is_choosing(&self, number: u64) -> bool {
        self.current()
            .is_some_and(|current| current.opportunity.number == number && current.stage == Stage::Choosing)
    }

    /// What it has put under each of its indexes in its highest number; nothing for another number, or a refresh.
    pub fn own_entries(&self, number: u64) -> Vec<OwnEntry> {
        let current = self.current().filter(|current| {
            current.opportunity.number == number && current.opportunity.kind == OpportunityKind::Announcement
        });
        let Some(current) = current else { return Vec::new() };
        let is_smt = self.config.terms.beacon_type == StandingBeacon::Smt;
        let entry = |index: &DidIndex| OwnEntry {
            index: *index,
            nonce: is_smt.then(|| self.leaf_nonce(number, index)),
            update: current.updates.iter().find(|(of, ..)| of == index).map(|(.., hash)| *hash),
        };
        current.roster.indexes(&self.config.seat).map(entry).collect()
    }
}
