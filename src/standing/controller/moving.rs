//! A controller whose cohort moves: it makes and keeps the address changes of its DIDs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

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

/// The updates of a move, by index and version.
#[derive(Default)]
pub(super) struct AddressChanges(BTreeMap<(DidIndex, u64), SignedUpdate>);

#[async_trait]
impl UpdateSource for AddressChanges {
    fn is_waiting(&self, dids: &BTreeSet<DidIndex>, known: &KnownVersions) -> bool {
        let mut mine = self.0.keys().filter(|(index, _)| dids.contains(index));
        mine.any(|(index, version)| known.needs_number(index, *version))
    }

    fn wanted(&self) -> BTreeSet<DidIndex> {
        self.0.keys().map(|(index, _)| *index).collect()
    }

    async fn next(
        &self,
        _: &SeatView,
        of: &ControlledDid,
        current: &Current,
    ) -> Result<Option<SignedUpdate>, String> {
        Ok(self.0.get(&(did_index(of.identity.did()), current.version + 1)).cloned())
    }

    fn follows(&self, index: &DidIndex, version: u64) -> bool {
        self.0.contains_key(&(*index, version + 1))
    }

    fn of(&self, index: &DidIndex) -> Vec<SignedUpdate> {
        self.0.iter().filter(|((of, _), _)| of == index).map(|(_, update)| update.clone()).collect()
    }
}

impl StandingController {
    /// The updates of the DIDs that move: made and stored here.
    pub(super) async fn address_changes(&self, seat: &SeatView, move_to: &MoveTo) -> AddressChanges {
        let change = AddressChange {
            from: &seat.beacon_address,
            to: Some((&move_to.successor.beacon_address, move_to.successor.terms.beacon_type.as_str())),
        };
        let mut changes = AddressChanges::default();
        for (index, did) in self.indexes().iter().filter(|(index, _)| move_to.indexes.contains(index)) {
            let made = match self.current(did).await {
                Ok(current) => {
                    let Some(controlled) = self.controlled(index, &current) else { continue };
                    let made = change.of(did, &controlled.keys, &current.document, current.version);
                    made.map(|made| made.map(|update| (current.version + 1, update)))
                }
                Err(error) => Err(error.to_string()),
            };
            match made {
                Ok(Some((version, update))) => match self.moves.store(index, version, &update) {
                    Ok(()) => drop(changes.0.insert((*index, version), update)),
                    Err(problem) => self.warn(did, &problem),
                },
                Ok(None) => {}
                Err(problem) => self.warn(did, &format!("its address change cannot be made: {problem}")),
            }
        }
        changes
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
