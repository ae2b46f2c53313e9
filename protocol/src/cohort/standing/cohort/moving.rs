//! Migration of a standing cohort (docs/standing.md, "Migration and exit"): its successor, the move, and what it may do after that.

use std::sync::Arc;

use bitcoin::ScriptBuf;
use serde::{Deserialize, Serialize};

use super::{CohortEvent, Decided, Running, StandingCohort};
use crate::{
    cohort::standing::{
        message::{StandingMessage, SuccessorFormed},
        number::NumberTask,
        opportunity::{Opportunity, OpportunityKind},
        successor::{Succession, Successor},
    },
    error::Reject,
    output::BeaconOutput,
    time::Timestamp,
};

/// A cohort to which this one moves, with the output that follows from its keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Named {
    successor: Arc<Successor>,
    output: BeaconOutput,
}

/// The signed move.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Moved {
    number: u64,
    is_final: bool,
}

/// How far the migration of a cohort is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Migration {
    named: Option<Named>,
    /// Whether a move was opened that is not signed yet: the next number is a move again.
    is_open: bool,
    moved: Option<Moved>,
}

impl Migration {
    /// Whether the move is signed: the cohort announces no more.
    pub(super) const fn has_moved(&self) -> bool {
        self.moved.is_some()
    }

    /// Whether the move is final: what is left at the address may go to that of the successor.
    pub(super) const fn is_final(&self) -> bool {
        matches!(&self.moved, Some(moved) if moved.is_final)
    }

    /// What the next number does that the host does not open.
    pub(super) const fn next_kind(&self) -> OpportunityKind {
        match (self.has_moved(), self.is_open) {
            (true, _) => OpportunityKind::Refresh,
            (false, true) => OpportunityKind::Move,
            (false, false) => OpportunityKind::Announcement,
        }
    }

    /// Where a number of this kind pays its change, if not to the beacon.
    pub(super) fn change(&self, kind: OpportunityKind) -> Option<ScriptBuf> {
        let leaves = kind == OpportunityKind::Move || kind == OpportunityKind::Refresh && self.is_final();
        self.named.as_ref().filter(|_| leaves).map(|named| named.output.script_pubkey().to_owned())
    }

    pub(super) fn name(&mut self, successor: &Arc<Successor>, output: &BeaconOutput) {
        self.named = Some(Named { successor: Arc::clone(successor), output: output.clone() });
    }

    /// A number of this kind is planned. An announcement that the host opens gives up a move that is not signed.
    pub(super) const fn planned(&mut self, kind: OpportunityKind) {
        match kind {
            OpportunityKind::Move => self.is_open = true,
            OpportunityKind::Announcement => self.is_open = false,
            OpportunityKind::Refresh | OpportunityKind::Roster => {}
        }
    }

    /// No seat had an update to move.
    pub(super) const fn idle(&mut self, kind: OpportunityKind) {
        if matches!(kind, OpportunityKind::Move) {
            self.is_open = false;
        }
    }

    /// A number of this kind is signed.
    pub(super) const fn signed(&mut self, number: u64, kind: OpportunityKind) {
        if matches!(kind, OpportunityKind::Move) {
            (self.is_open, self.moved) = (false, Some(Moved { number, is_final: false }));
        }
    }

    /// This number is final.
    pub(super) fn confirmed(&mut self, number: u64) {
        if let Some(moved) = self.moved.as_mut().filter(|moved| moved.number == number) {
            moved.is_final = true;
        }
    }

    /// These numbers can never be mined: a move among them is made again.
    pub(super) fn voided(&mut self, numbers: &[u64]) {
        if self.moved.is_some_and(|moved| numbers.contains(&moved.number)) {
            (self.moved, self.is_open) = (None, true);
        }
    }
}

impl StandingCohort {
    /// The cohort that this one succeeds.
    pub const fn succeeds(&self) -> Option<&Succession> {
        self.succeeds.as_ref()
    }

    /// The cohort to which this one moves, or has moved.
    pub fn successor(&self) -> Option<&Arc<Successor>> {
        self.running()?.migration.named.as_ref().map(|named| &named.successor)
    }

    /// The number of the signed move: the cohort announces no more.
    pub fn moved(&self) -> Option<u64> {
        self.running()?.migration.moved.map(|moved| moved.number)
    }

    /// Whether the move is final.
    pub fn is_move_final(&self) -> bool {
        self.running().is_some_and(|running| running.migration.is_final())
    }

    pub(super) fn on_succession(&self, now: Timestamp, succession: &Succession) -> Decided {
        let config = &self.config;
        if !succession.is_signed(config.terms.network, &config.service, &config.cohort_id) {
            return Err(Reject::not_now("the service has not signed that this cohort succeeds another one"));
        }
        let (terms, service) = (Arc::clone(&config.terms), config.service.clone());
        Ok(vec![CohortEvent::Advertised { at: now, terms, service, succeeds: Some(succession.clone()) }])
    }

    pub(super) fn on_successor(&self, now: Timestamp, successor: &Arc<Successor>) -> Decided {
        let running = self.running().ok_or_else(|| Reject::not_now("the cohort has not formed"))?;
        if running.migration.named.as_ref().is_some_and(|named| named.successor == *successor) {
            return Ok(Vec::new());
        }
        if running.migration.has_moved() || running.migration.is_open {
            return Err(Reject::not_now("the move to another successor is signed, or may be"));
        }
        if !successor.is_signed(running.roster.context(), &self.config.service_key) {
            return Err(Reject::not_now("the successor is not signed by the service"));
        }
        if successor.cohort_id == self.config.cohort_id || successor.terms.network != self.config.terms.network {
            return Err(Reject::not_now("not a successor of this cohort"));
        }
        let output = successor.output(&*self.config.aggregator).map_err(Reject::not_now)?;
        if output.address() != successor.beacon_address {
            return Err(Reject::not_now("the address of the successor does not follow from its keys"));
        }
        Ok(vec![CohortEvent::SuccessorNamed { at: now, successor: Arc::clone(successor), output }])
    }

    /// The message that names the successor, for every seat that has not got it yet.
    pub(super) fn successor_message(&self) -> Option<StandingMessage> {
        let successor = Box::new((**self.successor()?).clone());
        Some(SuccessorFormed { cohort_id: self.config.cohort_id.clone(), successor }.into())
    }

    /// Why a number of this kind cannot be opened now.
    pub(super) fn cannot_open(
        &self,
        running: &Running,
        kind: OpportunityKind,
        coins: usize,
    ) -> Option<&'static str> {
        let migration = &running.migration;
        match kind {
            OpportunityKind::Announcement if migration.has_moved() => {
                Some("the cohort has moved: it announces no more")
            }
            OpportunityKind::Move if migration.has_moved() => Some("the cohort has moved"),
            OpportunityKind::Move if migration.named.is_none() => Some("no successor is named"),
            OpportunityKind::Move if coins > 1 => {
                Some("a refresh was tried and has failed: it is tried again first")
            }
            // What is left after the move goes away even if it is one coin.
            OpportunityKind::Refresh if coins < if migration.is_final() { 1 } else { 2 } => {
                Some("a refresh joins two coins or more, which are final")
            }
            _ => None,
        }
    }

    pub(super) fn task(&self) -> Option<Arc<NumberTask>> {
        let running = self.running()?;
        let open = running.open.as_ref()?;
        let change = running.migration.change(open.opportunity.kind);
        Some(Arc::new(NumberTask {
            terms: Arc::clone(&self.config.terms),
            output: running.output.clone(),
            roster: Arc::clone(&open.roster),
            seats: running.seats.clone(),
            opportunity: Arc::clone(&open.opportunity),
            change: change.unwrap_or_else(|| running.output.script_pubkey().to_owned()),
            by_fallback: open.by_fallback,
        }))
    }
}

impl Running {
    /// Whether the change of a number leaves the address.
    pub(super) fn leaves(&self, opportunity: &Opportunity) -> bool {
        self.migration.change(opportunity.kind).is_some()
    }
}
