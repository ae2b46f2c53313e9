//! Proofs of control that a seat sends again: what other beacons have announced of a DID since.

use std::{
    collections::BTreeMap,
    sync::{MutexGuard, PoisonError},
};

use super::StandingController;
use crate::{
    actors::standing::policy::{RowWanted, SeatView},
    controller::{Current, current::Applied},
    protocol::{cohort::standing::RowAction, did::Did, hash::DidIndex},
};

/// By seat and index.
pub(super) type Proofs = BTreeMap<(Did, DidIndex), Proof>;

/// How many updates of a DID other beacons have announced, and how many of them were known when a seat has proven control of it last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Proof {
    needed: usize,
    sent: usize,
    /// The version of the update that was submitted after that.
    tried: u64,
}

impl StandingController {
    /// Whether the service does not know yet what other beacons have announced of the DID since it was registered: it verifies updates, and
    /// refuses one that does not follow on what it knows.
    pub(super) fn must_prove(&self, seat: &SeatView, index: &DidIndex, current: &Current) -> bool {
        let elsewhere = elsewhere(seat, current);
        let mut proofs = self.proofs();
        let proof = proofs.entry((seat.seat.clone(), *index)).or_default();
        proof.needed = elsewhere;
        if elsewhere > 0 && proof.sent >= elsewhere {
            // Submitted before, and not announced: perhaps the service could not see what was proven.
            let tried = std::mem::replace(&mut proof.tried, current.version + 1);
            if tried == current.version + 1 {
                *proof = Proof { needed: elsewhere, ..Proof::default() };
            }
        }
        proof.needed > proof.sent
    }

    /// Notes what has to be proven of a DID before its cohort moves: a move does not wait for a proof, as an announcement does.
    pub(super) fn prove_before_move(&self, seat: &SeatView, index: &DidIndex, current: &Current) {
        self.proofs().entry((seat.seat.clone(), *index)).or_default().needed = elsewhere(seat, current);
    }

    /// What was proven of a DID may not have been sent.
    pub(super) fn prove_again(&self, index: &DidIndex) {
        let mut proofs = self.proofs();
        let of_did = proofs.iter_mut().filter(|((_, of), _)| of == index);
        of_did.for_each(|(_, proof)| proof.sent = 0);
    }

    /// The DIDs of which a seat has to prove control once more. They count as proven now.
    pub fn to_prove(&self, seat: &Did) -> Vec<RowWanted> {
        let mut wanted = Vec::new();
        for ((of, index), proof) in self.proofs().iter_mut() {
            if of == seat
                && proof.needed > proof.sent
                && let Some(controlled) = self.dids().get(index)
            {
                proof.sent = proof.needed;
                wanted.push(RowWanted { did: controlled.identity.did().clone(), action: RowAction::Register });
            }
        }
        wanted
    }

    fn proofs(&self) -> MutexGuard<'_, Proofs> {
        // Each change is one call.
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many updates of a DID other beacons have announced.
fn elsewhere(seat: &SeatView, current: &Current) -> usize {
    let is_elsewhere = |applied: &&Applied| applied.signal.beacon.address.to_string() != seat.beacon_address;
    current.applied.iter().filter(is_elsewhere).count()
}
