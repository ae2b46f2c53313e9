//! Reads and uses the data that a member has stored of its cohorts.
//!
//! `join` fills the [vault](crate::actors::state::vault) of its state directory. Here [`Sources`] are the places to
//! read from, [`VaultContents`] is the result, [`sidecar`] makes a resolver's Sidecar Data of it, and [`watch`] compares it with
//! the chain. [`VaultDocument`] is a copy of all entries in one file.

pub mod sidecar;
pub mod watch;
mod watcher;

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::watcher::Watcher;
use crate::{
    actors::state::{
        State, StateError,
        vault::{StateVault, Vault, VaultEntry, VaultError},
    },
    controller::Settled,
    inputs,
    protocol::{did::Did, id::CohortId, update::SignedUpdate},
    storage,
};

/// The largest document that is read. An entry is at most a few megabytes, the map of a large cohort.
const MAX_DOCUMENT: u64 = 1 << 30;

/// The entries of a vault in one file, as `vault export` writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VaultDocument {
    /// The version of this format.
    pub vault_version: Version,
    /// The entries.
    pub entries: Vec<VaultEntry>,
}

/// The version of a [`VaultDocument`]. There is only one so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Version;

impl TryFrom<u32> for Version {
    type Error = String;

    fn try_from(version: u32) -> Result<Self, String> {
        if version == 1 { Ok(Self) } else { Err(format!("version {version} of a vault, 1 is known")) }
    }
}

impl From<Version> for u32 {
    fn from(_: Version) -> Self {
        1
    }
}

/// Why a vault cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The vault in it cannot be read.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
    /// A file is not an exported vault.
    #[error("{} is not an exported vault: {problem}", path.display())]
    NotADocument {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl ReadError {
    /// Whether another program has the state directory open, so that a later try may succeed.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::State(StateError::Locked { .. }))
    }
}

/// The places of a member's entries.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// State directories.
    pub states: Vec<PathBuf>,
    /// Files that `vault export` wrote.
    pub files: Vec<PathBuf>,
}

/// The entries that were read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VaultContents {
    /// The entries, by DID, service and cohort. A cohort has two only if directories contradict each other.
    pub entries: Vec<VaultEntry>,
    /// The updates in state directories that were prepared to be announced without a cohort.
    pub prepared: Vec<SignedUpdate>,
    /// What is settled of the updates in state directories.
    pub settled: Vec<Settled>,
    /// The errors of entries that could not be read; `entries` has all others.
    pub problems: Vec<String>,
}

impl Sources {
    /// Reads all entries. A state directory is locked only during the read; if another program uses it, a copy is read.
    ///
    /// # Errors
    /// [`ReadError`] when one of the sources cannot be read. Errors of single entries are [listed](VaultContents::problems).
    pub async fn read(&self) -> Result<VaultContents, ReadError> {
        let mut contents = VaultContents::default();
        for dir in &self.states {
            read_state(dir, &mut contents).await?;
        }
        for path in &self.files {
            contents.entries.extend(read_document(path)?.entries);
        }
        contents.entries.sort_by_cached_key(VaultEntry::key);
        contents.entries.dedup();
        Ok(contents)
    }
}

async fn read_state(dir: &Path, contents: &mut VaultContents) -> Result<(), ReadError> {
    let state = State::open_to_read(dir)?;
    let outcome = read_open(&state, contents).await;
    // The directory is released before anything else happens.
    state.close().await;
    outcome
}

/// Reads all entries of a state directory that is open.
pub(crate) async fn read_open(state: &State, contents: &mut VaultContents) -> Result<(), ReadError> {
    let vault = StateVault::new(state);
    let outcome = async {
        for key in vault.all().await? {
            match vault.get(&key).await {
                Ok(entry) => contents.entries.extend(entry),
                Err(error @ VaultError::Damaged { .. }) => contents.problems.push(error.to_string()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    };
    let outcome = outcome.await;
    match storage::prepared(state).await {
        Ok(prepared) => contents.prepared.extend(prepared),
        Err(error) => contents.problems.push(error.to_string()),
    }
    match storage::settled(state).await {
        Ok(settled) => contents.settled.extend(settled),
        Err(error) => contents.problems.push(error.to_string()),
    }
    outcome
}

fn read_document(path: &Path) -> Result<VaultDocument, ReadError> {
    let refuse = |problem: String| ReadError::NotADocument { path: path.to_owned(), problem };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes))
        .map_err(|error| ReadError::File { path: path.to_owned(), error })?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(refuse(format!("it has more than {MAX_DOCUMENT} bytes")));
    }
    inputs::json_of(&bytes).map_err(refuse)
}

impl VaultContents {
    /// The entries of one DID.
    pub fn of<'a>(&'a self, did: &'a Did) -> impl Iterator<Item = &'a VaultEntry> {
        self.entries.iter().filter(move |entry| entry.record.did == *did)
    }

    /// The entries of one cohort, or of several to which different services have given the same identifier.
    pub fn of_cohort<'a>(&'a self, cohort_id: &'a CohortId) -> impl Iterator<Item = &'a VaultEntry> {
        self.entries.iter().filter(move |entry| entry.record.cohort_id == *cohort_id)
    }

    /// Removes the entries and the prepared updates of other DIDs, if `did` is given.
    #[must_use]
    pub fn only(mut self, did: Option<&Did>) -> Self {
        self.entries.retain(|entry| did.is_none_or(|did| entry.record.did == *did));
        let of = |update: &SignedUpdate, did: &Did| {
            update.value().pointer("/proof/invocationTarget").is_none_or(|target| target == did.as_str())
        };
        self.prepared.retain(|update| did.is_none_or(|did| of(update, did)));
        self
    }

    /// As one document.
    pub fn into_document(self) -> VaultDocument {
        VaultDocument { vault_version: Version, entries: self.entries }
    }
}
