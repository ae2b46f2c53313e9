//! A controller whose cohort moves: it makes and keeps the address changes of its DIDs.

use std::{collections::BTreeSet, path::PathBuf};

use async_trait::async_trait;
use serde_json::Value;

use super::StandingController;
use crate::{
    actors::standing::policy::{MoveTo, SeatView},
    controller::{Current, address_change::AddressChange},
    files::write_whole,
    protocol::{
        beacon::did_index,
        cohort::standing::{Updates, seat::KnownVersions},
        document,
        hash::DidIndex,
        update::SignedUpdate,
    },
    standing::{controlled::ControlledDid, updates::UpdateSource},
};

/// The updates that were made: files in a directory of their own, so that they are there after a restart.
pub(super) struct Moves {
    pub(super) dir: PathBuf,
}

impl Moves {
    /// Stores an update durably, before it is submitted.
    ///
    /// # Errors
    /// Why it cannot be stored, in words.
    pub(super) fn store(&self, index: &DidIndex, version: u64, update: &SignedUpdate) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.dir.display());
        std::fs::create_dir_all(&self.dir).map_err(failed)?;
        let path = self.dir.join(format!("{index}-{version}.json"));
        write_whole(&path, update.value().to_string().as_bytes()).map_err(failed)
    }

    /// The stored updates of a DID. A file that is none is left out.
    pub(super) fn of(&self, index: &DidIndex) -> Vec<SignedUpdate> {
        let Ok(files) = std::fs::read_dir(&self.dir) else { return Vec::new() };
        let prefix = format!("{index}-");
        let read = |path: PathBuf| {
            path.file_name()?.to_str()?.strip_prefix(&prefix)?;
            let update: Value = serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
            SignedUpdate::from_value(update).ok()
        };
        files.filter_map(|file| read(file.ok()?.path())).collect()
    }
}

/// The updates of a move: each is made, and stored, for the document that is current.
pub(super) struct AddressChanges<'a> {
    change: AddressChange<'a>,
    move_to: &'a MoveTo,
    moves: &'a Moves,
}

#[async_trait]
impl UpdateSource for AddressChanges<'_> {
    /// The service opens a move, not the claim of a seat.
    fn is_waiting(&self, _: &BTreeSet<DidIndex>, _: &KnownVersions) -> bool {
        false
    }

    fn wanted(&self) -> BTreeSet<DidIndex> {
        self.move_to.indexes.clone()
    }

    async fn next(
        &self,
        _: &SeatView,
        of: &ControlledDid,
        current: &Current,
    ) -> Result<Option<SignedUpdate>, String> {
        let did = of.identity.did();
        let made = self.change.of(did, &of.keys, &current.document, current.version);
        let made = made.map_err(|problem| format!("its address change cannot be made: {problem}"))?;
        if let Some(update) = &made {
            self.moves.store(&did_index(did), current.version + 1, update)?;
        }
        Ok(made)
    }

    fn follows(&self, index: &DidIndex, _: u64) -> bool {
        self.move_to.indexes.contains(index)
    }

    fn of(&self, index: &DidIndex) -> Vec<SignedUpdate> {
        self.moves.of(index)
    }
}

impl StandingController {
    /// The updates of the DIDs that move.
    pub(super) fn address_changes<'a>(&'a self, seat: &'a SeatView, move_to: &'a MoveTo) -> AddressChanges<'a> {
        let successor = &move_to.successor;
        let to = Some((&*successor.beacon_address, successor.terms.beacon_type.as_str()));
        let change = AddressChange { from: &seat.beacon_address, to };
        AddressChanges { change, move_to, moves: &self.moves }
    }

    /// The updates that were made here because cohorts have moved.
    pub fn address_changes_of(&self, index: &DidIndex) -> Vec<SignedUpdate> {
        self.moves.of(index)
    }

    /// The updates of a DID that are prepared, and those that were made here.
    pub fn known_updates(&self, index: &DidIndex) -> Vec<SignedUpdate> {
        let mut known = self.updates.of(index);
        known.extend(self.moves.of(index));
        known
    }

    /// One of them.
    pub fn known_update(&self, index: &DidIndex, is: &dyn Fn(&SignedUpdate) -> bool) -> Option<SignedUpdate> {
        let prepared = self.updates.find(index, is);
        prepared.or_else(|| self.moves.of(index).into_iter().find(|update| is(update)))
    }

    /// The indexes of DIDs that do not list the address of the cohort.
    pub(super) async fn not_listed(&self, seat: &SeatView, move_to: &MoveTo) -> Vec<DidIndex> {
        let mut left = Vec::new();
        let dids = self.indexes();
        for index in move_to.indexes.iter().chain(&move_to.others) {
            let Some(did) = dids.get(index) else { continue };
            let beacon = seat.terms.beacon_type.as_str();
            let Ok(current) = self.current(did).await else { continue };
            if seat.terms.updates == Updates::Full {
                self.prove_before_move(seat, index, &current);
            }
            // What never listed the address, or lists it no more, finally, cannot be stranded there.
            if current.unsettled.is_none()
                && !document::lists_beacon(&current.document, beacon, &seat.beacon_address)
            {
                left.push(*index);
            }
        }
        left
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_address_change_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let moves = Moves { dir: dir.path().join("moves") };
        let index = DidIndex::from_bytes([1; 32]);
        assert!(moves.of(&index).is_empty());
        let update = SignedUpdate::from_value(json!({ "patch": [], "targetVersionId": 3, "proof": {} })).unwrap();
        moves.store(&index, 3, &update).unwrap();
        assert_eq!(moves.of(&index)[0].hash(), update.hash());
        assert!(moves.of(&DidIndex::from_bytes([0; 32])).is_empty(), "of another DID");
    }
}
