//! The update that a controller makes when its cohort moves: it replaces the address of the old beacon by that of the new one.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use async_trait::async_trait;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::{Value, json};

use super::StandingController;
use crate::{
    actors::standing::policy::{MoveTo, SeatView},
    controller::{Current, Keys},
    files::write_whole,
    protocol::{
        beacon::did_index,
        cohort::standing::seat::KnownVersions,
        did::Did,
        document::{self, beacon_address},
        hash::DidIndex,
        update::{SignedUpdate, build_update, sign_update},
    },
    standing::{controlled::ControlledDid, updates::UpdateSource},
};

/// What is replaced in a document: the beacon of the old cohort.
pub(super) struct AddressChange<'a> {
    /// The address of the old cohort.
    pub(super) from: &'a str,
    /// The address of the successor, and the type of its beacon.
    pub(super) to: &'a str,
    pub(super) beacon_type: &'a str,
}

impl AddressChange<'_> {
    /// The patch of a document: every service at the old address is one at the new one. `None` if there is none.
    fn patch(&self, document: &Value) -> Option<Value> {
        let services = document.get("service")?.as_array()?;
        let at_old = |service: &Value| {
            service.get("serviceEndpoint").and_then(Value::as_str).and_then(beacon_address) == Some(self.from)
        };
        let mut patch = Vec::new();
        for (at, service) in services.iter().enumerate().filter(|(_, service)| at_old(service)) {
            let endpoint = format!("bitcoin:{}", self.to);
            patch.push(
                json!({ "op": "replace", "path": format!("/service/{at}/serviceEndpoint"), "value": endpoint }),
            );
            if service.get("type").and_then(Value::as_str) != Some(self.beacon_type) {
                patch.push(
                    json!({ "op": "replace", "path": format!("/service/{at}/type"), "value": self.beacon_type }),
                );
            }
        }
        (!patch.is_empty()).then_some(Value::Array(patch))
    }

    /// The signed update of a document of that version; the same bytes each time. `None` if the document does not list the old address.
    ///
    /// # Errors
    /// Why it cannot be made, in words.
    pub(super) fn of(
        &self,
        did: &Did,
        keys: &Keys,
        document: &Value,
        version: u64,
    ) -> Result<Option<SignedUpdate>, String> {
        let Some(patch) = self.patch(document) else { return Ok(None) };
        let update = build_update(document, version, patch).map_err(|error| error.to_string())?;
        let (method, key) = keys.signer(document, version).map_err(|error| error.to_string())?;
        // BIP-340 signatures need no randomness. An update that may be announced already has to be made again identically.
        let mut rng = ChaCha20Rng::from_seed([0; 32]);
        sign_update(&update, did, &method, key, &mut rng).map(Some).map_err(|error| error.to_string())
    }
}

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
            to: &move_to.successor.beacon_address,
            beacon_type: move_to.successor.terms.beacon_type.as_str(),
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

    /// The updates of a DID that are prepared, and those that were made here.
    pub(super) fn known_updates(&self, index: &DidIndex) -> Vec<SignedUpdate> {
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
            // What never listed the address, or lists it no more, finally, cannot be stranded there.
            if let Ok(current) = self.current(did).await
                && current.unsettled.is_none()
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
    use super::*;
    use crate::protocol::{
        document::{initial_document, lists_beacon},
        identity::Identity,
        key::SecretKey,
        network::Network,
        update::add_beacon_service_patch,
    };

    #[test]
    fn every_service_at_the_old_address_is_one_at_the_new_one() {
        let identity = Identity::from_key(SecretKey::from_bytes(&[7; 32]).unwrap(), Network::Regtest);
        let (did, keys) = (identity.did().clone(), Keys::of(&identity));
        let (from, to) = ("bcrt1pold", "bcrt1pnew");
        let change = AddressChange { from, to, beacon_type: "SMTBeacon" };
        let first = initial_document(&did, None).unwrap();
        assert_eq!(change.of(&did, &keys, &first, 1).unwrap(), None, "it does not list the address");
        let listed = build_update(&first, 1, add_beacon_service_patch(&did, "CASBeacon", from)).unwrap();
        let document = listed.target_document();
        let update = change.of(&did, &keys, document, 2).unwrap().unwrap();
        assert_eq!(update.target_version(), Some(3));
        let moved = build_update(document, 2, update.value()["patch"].clone()).unwrap();
        assert!(lists_beacon(moved.target_document(), "SMTBeacon", to));
        assert!(!lists_beacon(moved.target_document(), "CASBeacon", from));
        let again = change.of(&did, &keys, document, 2).unwrap().unwrap();
        assert_eq!(again.hash(), update.hash(), "the identical one");
        // After a restart it is there.
        let dir = tempfile::tempdir().unwrap();
        let moves = Moves { dir: dir.path().join("moves") };
        let index = did_index(&did);
        assert!(moves.of(&index).is_empty());
        moves.store(&index, 3, &update).unwrap();
        assert_eq!(moves.of(&index)[0].hash(), update.hash());
        assert!(moves.of(&DidIndex::from_bytes([0; 32])).is_empty(), "of another DID");
    }
}
