//! The Sidecar Data of a controller's DIDs, in a file for each: what a resolver needs of every announcement of the address.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde_json::{Value, json};

use crate::{
    files::write_whole,
    protocol::{
        beacon::BeaconData,
        did::Did,
        hash::{SignalBytes, SmtHash, sha256},
        jcs,
        sidecar::plain_data,
    },
};

/// The lists of Sidecar Data.
const LISTS: [&str; 3] = ["updates", "casUpdates", "smtProofs"];

/// The files.
pub struct Sidecars {
    dir: PathBuf,
    data: Mutex<BTreeMap<Did, Value>>,
}

fn hash_of(value: &Value) -> [u8; 32] {
    jcs::hash(value).unwrap_or_else(|_| sha256(value.to_string().as_bytes()))
}

fn add(data: &mut Value, list: &str, entry: Value) {
    if let Value::Array(entries) = &mut data[list] {
        let hash = hash_of(&entry);
        if !entries.iter().any(|known| hash_of(known) == hash) {
            entries.push(entry);
        }
    }
}

impl Sidecars {
    /// Those in a directory, which is created if necessary, for these DIDs with their genesis documents.
    ///
    /// # Errors
    /// Why a file cannot be read or written, in words.
    pub fn open(dir: &Path, dids: impl IntoIterator<Item = (Did, Option<Value>)>) -> Result<Self, String> {
        std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let sidecars = Self { dir: dir.to_owned(), data: Mutex::default() };
        dids.into_iter().try_for_each(|(did, genesis)| sidecars.begin(did, genesis))?;
        Ok(sidecars)
    }

    /// Adds a DID, with what its file has already.
    pub(super) fn begin(&self, did: Did, genesis: Option<Value>) -> Result<(), String> {
        let path = path_of(&self.dir, &did);
        let failed = |problem: &dyn std::fmt::Display| format!("{}: {problem}", path.display());
        let (mut sidecar, is_new) = match std::fs::read_to_string(&path) {
            Ok(text) => (serde_json::from_str(&text).map_err(|error| failed(&error))?, false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (json!({ "@context": "https://btcr2.dev/context/v1" }), true)
            }
            Err(error) => return Err(failed(&error)),
        };
        if let Some(genesis) = genesis {
            sidecar["genesisDocument"] = genesis;
        }
        for list in LISTS {
            if !sidecar[list].is_array() {
                sidecar[list] = json!([]);
            }
        }
        if is_new {
            // Before the first announcement a resolver needs the genesis document.
            write(&path, &sidecar)?;
        }
        self.data.lock().unwrap_or_else(PoisonError::into_inner).insert(did, sidecar);
        Ok(())
    }

    /// What is known of a DID.
    pub fn get(&self, did: &Did) -> Option<Value> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner).get(did).cloned()
    }

    /// Whether nothing but the genesis document is known of a DID, which a service gets anyway.
    pub(super) fn is_empty(&self, did: &Did) -> bool {
        let data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        let is_empty =
            |sidecar: &Value| LISTS.iter().all(|list| sidecar[*list].as_array().is_none_or(Vec::is_empty));
        data.get(did).is_none_or(is_empty)
    }

    /// Adds what one announcement has of a DID, and an update of it.
    ///
    /// # Errors
    /// Why the file cannot be written, in words.
    pub fn add(&self, did: &Did, announcement: Option<&BeaconData>, update: Option<&Value>) -> Result<(), String> {
        self.note(did, announcement, update);
        self.write(did)
    }

    /// As [`Self::add`], in memory only: [`Self::write`] writes all that was noted.
    pub fn note(&self, did: &Did, announcement: Option<&BeaconData>, update: Option<&Value>) {
        let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sidecar) = data.get_mut(did) else { return };
        if let Some(update) = update {
            add(sidecar, "updates", update.clone());
        }
        let list = match announcement {
            Some(BeaconData::Cas(_)) => Some("casUpdates"),
            Some(BeaconData::Smt(_)) => Some("smtProofs"),
            _ => None,
        };
        if let (Some(list), Some(announcement)) = (list, announcement) {
            add(sidecar, list, plain_data(announcement));
        }
    }

    /// Writes the file of a DID.
    ///
    /// # Errors
    /// Why it cannot be written, in words.
    pub fn write(&self, did: &Did) -> Result<(), String> {
        let data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        data.get(did).map_or(Ok(()), |sidecar| write(&path_of(&self.dir, did), sidecar))
    }

    /// The signals of which the file of a DID has the data.
    pub fn signals(&self, did: &Did) -> BTreeSet<SignalBytes> {
        let data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sidecar) = data.get(did) else { return BTreeSet::new() };
        let entries = |list: &str| sidecar[list].as_array().into_iter().flatten();
        let root = |proof: &Value| proof["id"].as_str()?.parse::<SmtHash>().ok().map(|root| *root.as_bytes());
        let signals = entries("smtProofs").filter_map(root).chain(entries("casUpdates").map(hash_of));
        signals.map(SignalBytes::from_bytes).collect()
    }
}

fn write(path: &Path, sidecar: &Value) -> Result<(), String> {
    let text = serde_json::to_string_pretty(sidecar).map_err(|error| error.to_string())? + "\n";
    write_whole(path, text.as_bytes()).map_err(|error| format!("{}: {error}", path.display()))
}

/// The file of a DID. DIDs have no characters that file systems refuse but the colon.
fn path_of(dir: &Path, did: &Did) -> PathBuf {
    dir.join(format!("{}.json", did.as_str().replace(':', "_")))
}
