//! What a host reads of a seat.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bitcoin::{OutPoint, Txid};

use super::{Enrolment, Seat, SeatConfig, Stage};
use crate::{
    cohort::standing::{
        board::Board,
        opportunity::Opportunity,
        roster::{Roster, Row, RowAction},
        terms::StandingBeacon,
    },
    did::Did,
    hash::{DidIndex, DocumentHash, sha256},
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

/// What a seat knows of the versions of its DIDs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KnownVersions {
    /// The highest one that is final.
    pub finals: BTreeMap<DidIndex, u64>,
    /// Those that a transaction announces which is reported to be signed, and is not final.
    pub announced: BTreeSet<(DidIndex, u64)>,
}

impl KnownVersions {
    /// Whether an update to that version has to wait for a number: it is not final, and nothing of the DID is announced that has to be final
    /// first.
    pub fn needs_number(&self, index: &DidIndex, version: u64) -> bool {
        let is_final = self.finals.get(index).is_some_and(|known| version <= *known);
        !is_final && self.announced.range((*index, 0)..=(*index, u64::MAX)).next().is_none()
    }
}

impl Seat {
    /// What it knows of the versions of its DIDs.
    pub fn known_versions(&self) -> KnownVersions {
        let Some(seated) = &self.seated else { return KnownVersions::default() };
        let announced = seated.record.reported(&seated.ends);
        KnownVersions { finals: seated.record.finals().clone(), announced }
    }

    /// The nonce of the leaf that each index of this seat has in a number, if it has one there; none in a CAS cohort.
    pub fn own_nonces(&self, number: u64) -> Vec<(DidIndex, [u8; 32])> {
        if self.config.terms.beacon_type != StandingBeacon::Smt {
            return Vec::new();
        }
        self.indexes().map(|index| (*index, self.leaf_nonce(number, index))).collect()
    }

    /// Whether this seat has verified the transaction of a number, and its host has not stored the board.
    pub fn awaits_board(&self, number: u64, txid: Txid) -> bool {
        let record = self.seated.as_ref().map(|seated| &seated.record);
        record.and_then(|record| record.board_of(number, txid)).is_some_and(|(_, is_stored)| !is_stored)
    }

    /// The DIDs of seats, as the service has named them, from which boards can be had that it does not have.
    pub fn peers(&self) -> &[Did] {
        self.seated.as_ref().map_or(&[], |seated| &seated.peers)
    }

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

    /// The coins that have to be spent by final transactions before a seat that was restored from a backup submits updates again.
    pub fn awaited_coins(&self) -> impl Iterator<Item = OutPoint> {
        self.seated.iter().flat_map(|seated| seated.record.awaited_coins())
    }

    /// The last row of the index, if it is this seat's and registers it: sent once more, it proves control of the DID by its current document
    /// and changes no roster.
    pub fn registered_row(&self, index: &DidIndex) -> Option<&Row> {
        let row = self.seated.as_ref()?.roster.row(index)?;
        (row.seat == self.config.seat && row.action == RowAction::Register).then_some(row)
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

    /// The opportunity of its highest number, if that is this one.
    pub fn opportunity(&self, number: u64) -> Option<&Arc<Opportunity>> {
        self.current().map(|current| &current.opportunity).filter(|opportunity| opportunity.number == number)
    }

    /// Whether the seat has committed itself to no updates yet in its highest number.
    pub fn is_choosing(&self, number: u64) -> bool {
        self.current()
            .is_some_and(|current| current.opportunity.number == number && current.stage == Stage::Choosing)
    }

    /// Whether an answer of the service is awaited that it gives at once: its message may be lost.
    pub fn awaits_answer(&self) -> bool {
        match &self.seated {
            None => matches!(self.enrolment, Enrolment::Asked(_) | Enrolment::Accepted(_)),
            Some(seated) => {
                let fetches = seated
                    .current
                    .as_ref()
                    .is_some_and(|current| matches!(current.stage, Stage::Requested { .. } | Stage::Idle { .. }));
                fetches || seated.missed.is_some() || !seated.asked.is_empty()
            }
        }
    }

    /// The board of its highest number, if these are its bytes and this seat's response is on it: for a host that has not stored all that follows
    /// from it.
    pub fn read_board(&self, bytes: &Arc<Vec<u8>>) -> Option<Arc<Board>> {
        let hash = DocumentHash::from_bytes(sha256(bytes));
        let board = self.board(self.current()?, &hash, bytes).ok()?;
        board.response(&self.config.seat).is_some().then_some(board)
    }

    /// What it has put under each of its indexes in its highest number, and that there is nothing under a former one; nothing for another
    /// number, or a refresh.
    pub fn own_entries(&self, number: u64) -> Vec<OwnEntry> {
        let current = self
            .current()
            .filter(|current| current.opportunity.number == number && current.opportunity.kind.announces());
        let Some(current) = current else { return Vec::new() };
        let is_smt = self.config.terms.beacon_type == StandingBeacon::Smt;
        let entry = |index: &DidIndex| OwnEntry {
            index: *index,
            nonce: is_smt.then(|| self.leaf_nonce(number, index)),
            update: current.update_of(index).copied(),
        };
        let former = |index: DidIndex| {
            let is_free = current.roster.seat_of(&index).is_none();
            is_free.then_some(OwnEntry { index, nonce: None, update: None })
        };
        let own = current.roster.indexes(&self.config.seat).map(entry);
        own.chain(self.former_indexes().into_iter().filter_map(former)).collect()
    }
}
