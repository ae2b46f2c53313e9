//! Migration and exit of a seat (docs/standing.md, "Migration and exit"): the successor, the DIDs that move to it, and those that have left.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bitcoin::{ScriptBuf, Transaction};
use serde::{Deserialize, Serialize};

use super::{Current, Decided, Seat, SeatEvent, Seated};
use crate::{
    cohort::standing::{
        message::{AskedRow, SuccessorFormed},
        opportunity::OpportunityKind,
        roster::RowAction,
        successor::Successor,
    },
    error::{Reject, RejectCode},
    hash::{DidIndex, DocumentHash},
    id::CohortId,
    output::BeaconOutput,
    time::Timestamp,
};

/// The cohort to which this one moves, as far as the seat knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Destination {
    successor: Arc<Successor>,
    output: BeaconOutput,
    /// The own indexes that are registered there.
    registered: BTreeSet<DidIndex>,
    /// The own indexes that do not move with this seat.
    left: BTreeSet<DidIndex>,
}

impl Destination {
    pub(super) const fn new(successor: Arc<Successor>, output: BeaconOutput) -> Self {
        Self { successor, output, registered: BTreeSet::new(), left: BTreeSet::new() }
    }

    pub(super) fn script(&self) -> ScriptBuf {
        self.output.script_pubkey().to_owned()
    }

    pub(super) fn prepare(&mut self, registered: &[DidIndex], left: &[DidIndex]) {
        self.registered = registered.iter().copied().collect();
        self.left = left.iter().copied().collect();
    }

    /// Whether a transaction pays its change there.
    pub(super) fn is_paid_by(&self, transaction: &Transaction) -> bool {
        transaction.output.first().is_some_and(|change| change.script_pubkey == *self.output.script_pubkey())
    }
}

impl Seat {
    /// The cohort to which this one moves, if the service has named one that follows from its keys.
    pub fn successor(&self) -> Option<&Arc<Successor>> {
        self.seated.as_ref()?.destination.as_ref().map(|destination| &destination.successor)
    }

    /// Whether the cohort has moved, as far as this seat knows: it announces no more.
    pub fn has_moved(&self) -> bool {
        self.seated.as_ref().is_some_and(|seated| seated.record.has_moved())
    }

    /// The indexes that were this seat's and are not any more. Their DIDs submit nothing; resolvers need the data of every announcement of the
    /// address all the same, also of those that come later.
    pub fn former_indexes(&self) -> BTreeSet<DidIndex> {
        let Some(seated) = &self.seated else { return BTreeSet::new() };
        let own = |index: &DidIndex| seated.roster.seat_of(index) == Some(&self.config.seat);
        let registered = seated.roster.log().iter().filter(|row| row.seat == self.config.seat);
        registered.map(|row| row.did_index).filter(|index| !own(index)).collect()
    }

    pub(super) fn on_successor(&self, now: Timestamp, formed: &SuccessorFormed) -> Decided {
        let Some(seated) = &self.seated else {
            return Err(self.reject(RejectCode::WrongPhase, "the successor of a cohort that has not formed"));
        };
        let successor = &*formed.successor;
        let known = seated.destination.as_ref();
        if known.is_some_and(|known| *known.successor == *successor) {
            return Ok(Vec::new());
        }
        if !successor.is_signed(seated.roster.context(), &self.config.service_key) {
            return Err(self.reject(RejectCode::WrongSender, "the successor is not signed by the service"));
        }
        if seated.record.has_moved() {
            return Err(self.reject(RejectCode::Equivocation, "the cohort has moved to another successor"));
        }
        if successor.cohort_id == self.config.cohort_id || successor.terms.network != self.config.terms.network {
            return Err(self.reject(RejectCode::WrongCohort, "not a successor of this cohort"));
        }
        let seats = successor.cohort_keys.len();
        if let Some(objection) = self.config.policy.objections(&successor.terms, Some(seats)).first() {
            return Err(self.reject(RejectCode::UnacceptableTerms, objection));
        }
        let output = successor
            .output(&*self.config.aggregator)
            .map_err(|error| self.reject(RejectCode::AddressMismatch, error))?;
        if output.address() != successor.beacon_address {
            return Err(self.reject(RejectCode::AddressMismatch, "the address does not follow from the keys"));
        }
        Ok(vec![SeatEvent::SuccessorNamed { at: now, successor: Arc::new(successor.clone()), output }])
    }

    /// The host has registered indexes at the successor, or has decided that they do not move with this seat.
    pub(super) fn on_prepared(
        &self,
        now: Timestamp,
        successor: &CohortId,
        registered: &[DidIndex],
        left: &[DidIndex],
    ) -> Decided {
        let destination = self.seated.as_ref().and_then(|seated| seated.destination.as_ref());
        let Some(destination) = destination.filter(|known| known.successor.cohort_id == *successor) else {
            return Err(Reject::out_of_phase("indexes at the successor", "no such successor is known"));
        };
        if registered.iter().any(|index| left.contains(index)) {
            return Err(Reject::out_of_phase("indexes at the successor", "an index moves, or does not"));
        }
        let mut prepared = destination.clone();
        prepared.prepare(registered, left);
        if prepared == *destination {
            return Ok(Vec::new());
        }
        let (successor, registered, left) = (successor.clone(), registered.to_vec(), left.to_vec());
        Ok(vec![SeatEvent::MovePrepared { at: now, successor, registered, left }])
    }

    /// Whether an update may be in a move.
    pub(super) fn may_move(&self, index: &DidIndex, version: u64, hash: &DocumentHash) -> Result<(), String> {
        let Some(seated) = &self.seated else { return Ok(()) };
        let destination = seated.destination.as_ref().ok_or("no successor is known")?;
        if !destination.registered.contains(index) {
            return Err("it is not registered at the successor, as far as is known here".to_owned());
        }
        if seated.record.is_in_flight_otherwise(index, version, hash) {
            return Err("another update of it is on its way to a block".to_owned());
        }
        Ok(())
    }

    /// Where the change of this number has to go. A move is signed only when each own DID moves, or stays behind by the host's decision.
    pub(super) fn change_of(
        &self,
        seated: &Seated,
        current: &Current,
        transaction: &Transaction,
    ) -> Result<ScriptBuf, Reject> {
        let own = seated.output.script_pubkey().to_owned();
        match (current.opportunity.kind, &seated.destination) {
            (OpportunityKind::Move, None) => {
                Err(self.reject(RejectCode::UnacceptableTerms, "no successor is known to this seat"))
            }
            (OpportunityKind::Move, Some(destination)) => {
                let moves = |index: &DidIndex| current.updates.iter().any(|(moved, ..)| moved == index);
                let is_done = |index: &&DidIndex| !moves(index) && !destination.left.contains(*index);
                match current.roster.indexes(&self.config.seat).find(is_done) {
                    None => Ok(destination.script()),
                    Some(index) => {
                        let detail =
                            format!("the DID of {index} would be left at an address that announces no more");
                        Err(self.reject(RejectCode::UnacceptableTerms, detail))
                    }
                }
            }
            // What is left at the old address may follow.
            (OpportunityKind::Refresh, Some(destination))
                if seated.record.is_move_final() && destination.is_paid_by(transaction) =>
            {
                Ok(destination.script())
            }
            _ => Ok(own),
        }
    }

    /// A DID leaves when its document lists the address no more, finally: not while an update of it is on its way.
    pub(super) fn cannot_unregister(&self, rows: &[AskedRow]) -> Option<DidIndex> {
        let committed: BTreeMap<DidIndex, u64> =
            self.committed().into_iter().map(|(index, version, _)| (index, version)).collect();
        let leaves = rows.iter().filter(|row| row.action == RowAction::Unregister);
        leaves.map(|row| row.did_index).find(|index| committed.contains_key(index))
    }
}

impl Seated {
    pub(super) fn apply_moving(&mut self, event: &SeatEvent) {
        match event {
            SeatEvent::SuccessorNamed { successor, output, .. } => {
                self.destination = Some(Destination::new(Arc::clone(successor), output.clone()));
            }
            SeatEvent::MovePrepared { registered, left, .. } => {
                if let Some(destination) = &mut self.destination {
                    destination.prepare(registered, left);
                }
            }
            // This seat was absent from the move, or has not signed it: the service reports it.
            SeatEvent::NumberOver { transaction: Some(transaction), .. } => {
                let pays = |destination: &Destination| destination.is_paid_by(transaction);
                let announces = transaction.output.last().is_some_and(|last| last.script_pubkey.is_op_return());
                if announces && self.destination.as_ref().is_some_and(pays) {
                    let coins = transaction.input.iter().map(|input| input.previous_output).collect();
                    self.record.moves(transaction.compute_txid(), coins);
                }
            }
            _ => {}
        }
    }
}
