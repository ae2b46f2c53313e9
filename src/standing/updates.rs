//! Where a controller of DIDs in standing cohorts finds the updates that it announces: files in a directory, or the queue of an agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use serde_json::Value;

use super::controlled::ControlledDid;
use crate::{
    actors::standing::policy::SeatView,
    controller::{Current, UpdateFile},
    events::Printer,
    inputs,
    protocol::{
        beacon::did_index,
        cohort::standing::seat::{KnownVersions, SeatUpdate},
        did::Did,
        hash::DidIndex,
        update::SignedUpdate,
    },
};

/// The updates of a controller.
#[async_trait]
pub trait UpdateSource: Send + Sync {
    /// Whether one of these DIDs has an update that [needs a number](KnownVersions::needs_number).
    fn is_waiting(&self, dids: &BTreeSet<DidIndex>, known: &KnownVersions) -> bool;

    /// The DIDs of which there are updates, at the opening of a number.
    fn wanted(&self) -> BTreeSet<DidIndex>;

    /// The update that follows on the current document of a DID, if there is one. The caller verifies it.
    ///
    /// # Errors
    /// Why there is one and it cannot be submitted, in words.
    async fn next(
        &self,
        seat: &SeatView,
        of: &ControlledDid,
        current: &Current,
    ) -> Result<Option<SignedUpdate>, String>;

    /// Whether there is an update of that version.
    fn has(&self, _: &DidIndex, _: u64) -> bool {
        false
    }

    /// These are in the response to a number: they may be announced when this is ready.
    ///
    /// # Errors
    /// Why they must not be submitted, in words.
    async fn submits(&self, _: &SeatView, _number: u64, _: &[SeatUpdate]) -> Result<(), String> {
        Ok(())
    }

    /// Whether there is an update that may follow on that version, as far as is known before the document is.
    fn follows(&self, index: &DidIndex, version: u64) -> bool;

    /// Whether an update of the DID is on its way elsewhere, by its Singleton beacon: no other one is submitted meanwhile.
    fn is_elsewhere(&self, _: &DidIndex) -> bool {
        false
    }

    /// The updates of a DID that are known here, also those that are announced already.
    fn of(&self, index: &DidIndex) -> Vec<SignedUpdate>;

    /// One of them.
    fn find(&self, index: &DidIndex, is: &dyn Fn(&SignedUpdate) -> bool) -> Option<SignedUpdate> {
        self.of(index).into_iter().find(|update| is(update))
    }
}

type Prepared = BTreeMap<(DidIndex, u64), SignedUpdate>;

/// The signed updates in a directory, files of `update --out`, which stay there.
pub struct UpdateDirectory {
    /// None for a controller that announces nothing.
    dir: Option<PathBuf>,
    dids: BTreeSet<DidIndex>,
    /// As they were at the last opening.
    read: Mutex<Prepared>,
    printer: Printer,
}

impl UpdateDirectory {
    /// The updates of these DIDs in a directory.
    pub fn new(dir: Option<PathBuf>, dids: BTreeSet<DidIndex>, printer: Printer) -> Self {
        Self { dir, dids, read: Mutex::default(), printer }
    }

    fn known(&self) -> MutexGuard<'_, Prepared> {
        // Each change is one assignment.
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The signed updates in the directory, by DID and version.
    fn prepared(&self) -> Prepared {
        let Some(dir) = &self.dir else { return BTreeMap::new() };
        let (updates, problems) = updates_in(dir);
        problems.iter().for_each(|problem| self.printer.warn(problem));
        let keyed =
            |(did, update): (Did, SignedUpdate)| Some(((did_index(&did), update.target_version()?), update));
        let own = |((index, _), _): &((DidIndex, u64), SignedUpdate)| self.dids.contains(index);
        updates.into_iter().filter_map(keyed).filter(own).collect()
    }
}

/// The signed updates in a directory, each with its DID; and what is wrong with other files.
pub fn updates_in(dir: &Path) -> (Vec<(Did, SignedUpdate)>, Vec<String>) {
    let files = match std::fs::read_dir(dir) {
        Ok(files) => files,
        Err(error) => return (Vec::new(), vec![format!("{}: {error}", dir.display())]),
    };
    let (mut updates, mut problems) = (Vec::new(), Vec::new());
    for path in files.filter_map(|file| Some(file.ok()?.path())) {
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match read_update(&path) {
            Ok(Some(update)) => updates.push(update),
            Ok(None) => {
                problems.push(format!("{}: not a signed update (`update DID … --out FILE`)", path.display()));
            }
            Err(problem) => problems.push(format!("{}: {problem}", path.display())),
        }
    }
    (updates, problems)
}

/// The DID and the update of a file of `update --out`; none if it is something else.
fn read_update(path: &Path) -> Result<Option<(Did, SignedUpdate)>, String> {
    let value: Value = inputs::json(path).map_err(|error| error.to_string())?;
    let UpdateFile::Signed { update, .. } = UpdateFile::from_value(value)? else { return Ok(None) };
    let did = update.value().pointer("/proof/invocationTarget").and_then(Value::as_str);
    let did = did.ok_or("the update names no DID")?;
    Ok(Some((Did::parse(did).map_err(|error| error.to_string())?, update)))
}

#[async_trait]
impl UpdateSource for UpdateDirectory {
    /// Files stay in the directory: one of a version that is final waits for nothing.
    fn is_waiting(&self, dids: &BTreeSet<DidIndex>, known: &KnownVersions) -> bool {
        let prepared = self.prepared();
        let mut mine = prepared.keys().filter(|(index, _)| dids.contains(index));
        mine.any(|(index, version)| known.needs_number(index, *version))
    }

    fn wanted(&self) -> BTreeSet<DidIndex> {
        let prepared = self.prepared();
        let wanted = prepared.keys().map(|(index, _)| *index).collect();
        *self.known() = prepared;
        wanted
    }

    async fn next(
        &self,
        _: &SeatView,
        of: &ControlledDid,
        current: &Current,
    ) -> Result<Option<SignedUpdate>, String> {
        Ok(self.known().get(&(did_index(of.identity.did()), current.version + 1)).cloned())
    }

    fn has(&self, index: &DidIndex, version: u64) -> bool {
        self.known().contains_key(&(*index, version))
    }

    fn follows(&self, index: &DidIndex, version: u64) -> bool {
        self.has(index, version + 1)
    }

    fn of(&self, index: &DidIndex) -> Vec<SignedUpdate> {
        let of = self.prepared().into_iter().filter(|((of, _), _)| of == index);
        of.map(|(_, update)| update).collect()
    }

    fn find(&self, index: &DidIndex, is: &dyn Fn(&SignedUpdate) -> bool) -> Option<SignedUpdate> {
        let found = |known: &Prepared| {
            let mut of_did = known.range((*index, 0)..=(*index, u64::MAX)).map(|(_, update)| update);
            of_did.find(|update| is(update)).cloned()
        };
        if let Some(update) = found(&self.known()) {
            return Some(update);
        }
        // After a restart nothing was read yet. Once for all DIDs: a board may have entries of many.
        let prepared = self.prepared();
        let update = found(&prepared);
        *self.known() = prepared;
        update
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::{identity::Identity, key::SecretKey, network::Network};

    #[test]
    fn an_update_that_is_final_opens_no_number() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::from_key(SecretKey::from_bytes(&[7; 32]).unwrap(), Network::Regtest);
        let did = identity.did().clone();
        let index = did_index(&did);
        let dids = BTreeSet::from([index]);
        let source = UpdateDirectory::new(Some(dir.path().to_owned()), dids.clone(), Printer::new(true));
        let waits = |finals: &[(DidIndex, u64)]| {
            let mut known = KnownVersions::default();
            known.finals.extend(finals.iter().copied());
            source.is_waiting(&dids, &known)
        };
        let prepare = |version: u64| {
            let update =
                json!({ "patch": [], "targetVersionId": version, "proof": { "invocationTarget": did.as_str() } });
            std::fs::write(dir.path().join(format!("{version}.json")), update.to_string()).unwrap();
        };
        assert!(!waits(&[]));
        prepare(2);
        assert!(waits(&[]), "nothing is known of the DID yet");
        assert!(!source.is_waiting(&BTreeSet::new(), &KnownVersions::default()), "the DID of another seat");
        assert!(waits(&[(index, 1)]));
        assert!(!waits(&[(index, 2)]), "its file is still there");
        prepare(3);
        assert!(waits(&[(index, 2)]));
    }
}
