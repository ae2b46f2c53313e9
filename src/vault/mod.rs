//! Reads and uses the data that a member has stored of its cohorts.
//!
//! `join` fills the [vault](crate::actors::state::vault) of its state directory. Here [`Sources`] are the places to
//! read from, [`VaultContents`] is the result, [`sidecar`] makes a resolver's Sidecar Data of it, and [`watch`] compares it with
//! the chain. [`VaultDocument`] is a copy of all of it in one file, [`verify`] checks every record, [`import`] decides what
//! may be restored, and [`backups`] records both.

pub mod backups;
pub mod collect;
mod document;
pub mod import;
pub mod inbox;
pub mod recovered;
pub mod sidecar;
pub mod verify;
pub mod watch;
mod watcher;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use age::secrecy::SecretString;
use serde::Serialize;
use serde_json::Value;

pub use self::{
    document::{VaultDocument, Version, WriteError},
    recovered::{Recovered, RecoveredKind},
    watcher::Watcher,
};
use crate::{
    actors::{
        runtime::Clock,
        state::{
            State, StateError,
            vault::{StateVault, Vault, VaultEntry, VaultError},
        },
    },
    controller::Settled,
    member::queue::Queue,
    passphrase::{self, DecryptionError},
    protocol::{
        did::Did,
        hash::{DocumentHash, sha256},
        id::CohortId,
        jcs,
        update::SignedUpdate,
    },
    storage,
};

/// The hash by which parts of vaults are compared: that of the canonical form where there is one.
fn digest(value: &impl Serialize) -> DocumentHash {
    let value = serde_json::to_value(value).unwrap_or_default();
    jcs::document_hash(&value).unwrap_or_else(|_| DocumentHash::from_bytes(sha256(value.to_string().as_bytes())))
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
    /// A file is encrypted and no passphrase was given.
    #[error(
        "{} is encrypted: give its passphrase in the environment variable BTCR2_PASSPHRASE, or run this in a terminal",
        .0.display()
    )]
    PassphraseNeeded(PathBuf),
    /// A file cannot be decrypted.
    #[error("{}: {error}", path.display())]
    Decryption {
        /// The file.
        path: PathBuf,
        /// Why.
        error: DecryptionError,
    },
    /// The contents of a file are not those that were exported.
    #[error("{} is damaged or was changed: its contents do not have the hash that it states", .0.display())]
    Changed(PathBuf),
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
    /// Documents that `vault recover` found again.
    pub recovered: Vec<Recovered>,
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
            let document = VaultDocument::read(path, || passphrase_of(path))?;
            contents.extend(document.into_contents());
        }
        contents.sort();
        Ok(contents)
    }
}

/// The passphrase of an encrypted file, which is asked for once: `watch` reads its sources again and again.
fn passphrase_of(path: &Path) -> Option<SecretString> {
    static KNOWN: Mutex<BTreeMap<PathBuf, SecretString>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(passphrase) = known.get(path) {
        return Some(passphrase.clone());
    }
    let passphrase = passphrase::passphrase("Passphrase of the vault: ")?;
    known.insert(path.to_owned(), passphrase.clone());
    Some(passphrase)
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
    match announced_by_agent(state).await {
        Ok(updates) => contents.prepared.extend(updates),
        Err(problem) => contents.problems.push(problem),
    }
    match recovered::read(state).await {
        Ok((recovered, problems)) => {
            contents.recovered.extend(recovered);
            contents.problems.extend(problems);
        }
        Err(error) => contents.problems.push(error.to_string()),
    }
    match storage::settled(state).await {
        Ok(settled) => contents.settled.extend(settled),
        Err(error) => contents.problems.push(error.to_string()),
    }
    outcome
}

/// The updates in the queue of a `member` that may be announced, or are.
async fn announced_by_agent(state: &State) -> Result<Vec<SignedUpdate>, String> {
    let queue = Queue::open(state, Clock::system()).await.map_err(|error| error.to_string())?;
    let items = queue.list().into_iter().filter(|item| item.may_be_announced);
    Ok(items.map(|item| item.update).collect())
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
        self.recovered.retain(|recovered| did.is_none_or(|did| recovered.did == *did));
        self
    }

    /// The DIDs of the entries, and those that the prepared updates name.
    pub fn dids(&self) -> BTreeSet<Did> {
        let prepared = self.prepared.iter().filter_map(target);
        let entries = self.entries.iter().map(|entry| entry.record.did.clone());
        entries.chain(prepared).chain(self.recovered.iter().map(|recovered| recovered.did.clone())).collect()
    }

    /// Whether `vault recover` found this update announced: it was not only prepared.
    pub fn was_recovered(&self, update: &DocumentHash) -> bool {
        let mut updates = self.recovered.iter().filter(|recovered| recovered.kind == RecoveredKind::Update);
        updates.any(|recovered| digest(&recovered.data) == *update)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.prepared.is_empty() && self.recovered.is_empty()
    }

    /// The hashes of what cannot be had again: records, genesis documents, prepared updates, and recovered data. What the chain
    /// shows, e.g. a transaction's identifier, is not among them.
    pub fn items(&self) -> BTreeSet<DocumentHash> {
        let records = self.entries.iter().map(|entry| digest(&(&entry.record, &entry.genesis_document)));
        let prepared = self.prepared.iter().map(|update| *update.hash());
        records.chain(prepared).chain(self.recovered.iter().map(digest)).collect()
    }

    /// Adds what an earlier read of the same sources had and this one has not, e.g. because an entry was damaged meanwhile.
    #[must_use]
    pub fn with_earlier(mut self, earlier: &Self) -> Self {
        let known: BTreeSet<_> = self.entries.iter().map(VaultEntry::key).collect();
        self.entries.extend(earlier.entries.iter().filter(|entry| !known.contains(&entry.key())).cloned());
        self.prepared.extend(earlier.prepared.iter().cloned());
        self.recovered.extend(earlier.recovered.iter().cloned());
        self.sort();
        self
    }

    /// Adds what `other` has.
    fn extend(&mut self, other: Self) {
        self.entries.extend(other.entries);
        self.prepared.extend(other.prepared);
        self.recovered.extend(other.recovered);
        self.settled.extend(other.settled);
        self.problems.extend(other.problems);
    }

    /// Brings the contents into their order, without what is there twice.
    fn sort(&mut self) {
        self.entries.sort_by_cached_key(VaultEntry::key);
        // An older copy of an entry may lack what was added later, e.g. its transaction.
        self.entries.dedup_by(|next, entry| match entry.clone().over(next.clone()) {
            Some(merged) if entry.key() == next.key() => {
                *entry = merged;
                true
            }
            _ => false,
        });
        // In the order in which they were given to the controller.
        let mut seen = BTreeSet::new();
        self.prepared.retain(|update| seen.insert(*update.hash()));
        self.recovered.sort_by_cached_key(Recovered::key);
        self.recovered.dedup();
    }
}

/// The DID that an update names as its own (rule U-4).
pub(crate) fn target(update: &SignedUpdate) -> Option<Did> {
    Did::parse(update.value().pointer("/proof/invocationTarget").and_then(Value::as_str)?).ok()
}
