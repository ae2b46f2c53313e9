//! The data that a participant needs to resolve its DID, and that no other party stores for it: one entry for each
//! cohort whose data it has approved, with its own update or none. Approved does not mean announced: the chain shows
//! that.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use bitcoin::Txid;
use btcr2_aggregation_protocol::{did::Did, id::CohortId, sidecar::MemberRecord, transcript::SignedTranscriptHead};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Mutex;

use super::{State, StateError, Table};

const PAGE: usize = 256;

/// A member's data of a cohort.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VaultEntry {
    /// Its update, its CAS Announcement or SMT proof, and the cohort's terms.
    pub record: MemberRecord,
    /// The genesis document of an EXTERNAL DID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub genesis_document: Option<Value>,
    /// The head of the cohort's transcript, signed by the service, if the member received it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transcript: Option<SignedTranscriptHead>,
    /// The transaction that announces it, once the member has seen it signed. Until then the approved data may be
    /// announced, or never be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub txid: Option<Txid>,
    /// The height of the block in which the member has seen its announcement, with as many confirmations as it
    /// required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_height: Option<u32>,
}

/// The key of an entry. It includes the service: services choose the identifiers of their cohorts, and could choose the
/// same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VaultKey {
    /// The member.
    pub did: Did,
    /// The service that ran the cohort.
    pub service: Did,
    /// The cohort.
    pub cohort_id: CohortId,
}

impl VaultEntry {
    /// Its key.
    pub fn key(&self) -> VaultKey {
        let MemberRecord { did, service, cohort_id, .. } = &self.record;
        VaultKey { did: did.clone(), service: service.clone(), cohort_id: cohort_id.clone() }
    }

    /// The member's file, as [`MemberRecord::to_file`] makes it.
    pub fn to_file(&self) -> Value {
        self.record.to_file(self.genesis_document.as_ref())
    }

    /// This entry with what only `known`, another copy of it, has; `None` if they contradict each other. Where both state a
    /// height of the confirmation, this entry's counts.
    pub fn over(mut self, known: Self) -> Option<Self> {
        fn either<T: PartialEq>(new: Option<T>, known: Option<T>) -> Result<Option<T>, ()> {
            match (new, known) {
                (Some(new), Some(known)) if new != known => Err(()),
                (new, known) => Ok(new.or(known)),
            }
        }
        if self.record != known.record {
            return None;
        }
        self.genesis_document = either(self.genesis_document, known.genesis_document).ok()?;
        self.transcript = either(self.transcript, known.transcript).ok()?;
        self.txid = either(self.txid, known.txid).ok()?;
        // A reorganization can move it to another block: that is not a contradiction.
        self.confirmed_height = self.confirmed_height.or(known.confirmed_height);
        Some(self)
    }
}

/// A failure of the vault.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// There is an entry with other contents. An announcement is final, so neither of the two is discarded here.
    #[error("the vault has another record of {}'s cohort {} with {}", .0.did, .0.cohort_id, .0.service)]
    Contradiction(Box<VaultKey>),
    /// The entry cannot be decoded; other entries can be used.
    #[error("the vault's record of {}'s cohort {} with {} is damaged: {problem}", key.did, key.cohort_id, key.service)]
    Damaged {
        /// Its key.
        key: Box<VaultKey>,
        /// What is wrong.
        problem: String,
    },
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
}

/// The store of members' data.
#[async_trait]
pub trait Vault: Send + Sync {
    /// Stores an entry; when this answers, it is as durable as the vault. The same entry again changes nothing, and an
    /// entry with more fields, e.g. a transcript's head, adds them.
    ///
    /// # Errors
    /// [`VaultError::Contradiction`] when there is an entry with other contents, which remains.
    async fn put(&self, entry: VaultEntry) -> Result<(), VaultError>;

    /// An entry.
    async fn get(&self, key: &VaultKey) -> Result<Option<VaultEntry>, VaultError>;

    /// The keys of the entries of `did`, in order.
    async fn list(&self, did: &Did) -> Result<Vec<VaultKey>, VaultError>;
}

/// A vault for programs that store nothing: its entries end with the program. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryVault(Arc<Mutex<BTreeMap<VaultKey, VaultEntry>>>);

#[async_trait]
impl Vault for MemoryVault {
    async fn put(&self, entry: VaultEntry) -> Result<(), VaultError> {
        let mut entries = self.0.lock().await;
        let key = entry.key();
        let entry = match entries.get(&key) {
            Some(known) => {
                entry.over(known.clone()).ok_or_else(|| VaultError::Contradiction(key.clone().into()))?
            }
            None => entry,
        };
        entries.insert(key, entry);
        Ok(())
    }

    async fn get(&self, key: &VaultKey) -> Result<Option<VaultEntry>, VaultError> {
        Ok(self.0.lock().await.get(key).cloned())
    }

    async fn list(&self, did: &Did) -> Result<Vec<VaultKey>, VaultError> {
        Ok(self.0.lock().await.keys().filter(|key| key.did == *did).cloned().collect())
    }
}

/// A vault in a state directory: a stored entry survives any crash. Clones share it.
#[derive(Clone)]
pub struct StateVault {
    table: Table,
    /// Serializes the read and the write of a `put`.
    putting: Arc<Mutex<()>>,
}

impl StateVault {
    /// The vault of `state`. Create one and clone it: two vaults would not see each other's changes.
    pub fn new(state: &State) -> Self {
        Self { table: state.table("vault"), putting: Arc::default() }
    }

    /// The keys of all entries, in order.
    ///
    /// # Errors
    /// When the table cannot be read; a damaged entry is listed, and [`get`](Vault::get) reports the damage.
    pub async fn all(&self) -> Result<Vec<VaultKey>, VaultError> {
        self.beginning_with("").await
    }

    /// Replaces an entry that is damaged, e.g. by its copy from a backup. Any other entry is left as it is.
    ///
    /// # Errors
    /// When the directory cannot be read or written.
    pub async fn repair(&self, entry: VaultEntry) -> Result<(), VaultError> {
        let _alone = self.putting.lock().await;
        let key = entry.key();
        match self.get(&key).await {
            Err(VaultError::Damaged { .. }) => {}
            other => return other.map(drop),
        }
        let json = serde_json::to_vec(&entry)
            .map_err(|error| VaultError::Damaged { key: key.clone().into(), problem: error.to_string() })?;
        Ok(self.table.put(bytes(&key), json).await?)
    }

    async fn beginning_with(&self, prefix: &str) -> Result<Vec<VaultKey>, VaultError> {
        let mut keys = Vec::new();
        let mut after = None;
        loop {
            let page = self.table.scan(prefix.as_bytes(), after, PAGE).await?;
            let found = page.entries.iter().map(|(key, _)| key).chain(&page.damaged);
            keys.extend(found.filter_map(|key| parse(key)));
            after = page.next;
            if after.is_none() {
                keys.sort();
                return Ok(keys);
            }
        }
    }
}

/// DIDs and cohort identifiers do not contain NUL.
fn bytes(key: &VaultKey) -> Vec<u8> {
    format!("{}\0{}\0{}", key.did, key.service, key.cohort_id).into_bytes()
}

fn parse(bytes: &[u8]) -> Option<VaultKey> {
    let mut parts = std::str::from_utf8(bytes).ok()?.split('\0');
    let did = Did::parse(parts.next()?).ok()?;
    let service = Did::parse(parts.next()?).ok()?;
    let cohort_id = CohortId::parse(parts.next()?).ok()?;
    parts.next().is_none().then_some(VaultKey { did, service, cohort_id })
}

#[async_trait]
impl Vault for StateVault {
    async fn put(&self, entry: VaultEntry) -> Result<(), VaultError> {
        let _alone = self.putting.lock().await;
        let key = entry.key();
        let entry = match self.get(&key).await? {
            Some(known) if known == entry => return Ok(()),
            Some(known) => entry.over(known).ok_or_else(|| VaultError::Contradiction(key.clone().into()))?,
            None => entry,
        };
        let json = serde_json::to_vec(&entry)
            .map_err(|error| VaultError::Damaged { key: key.clone().into(), problem: error.to_string() })?;
        Ok(self.table.put(bytes(&key), json).await?)
    }

    async fn get(&self, key: &VaultKey) -> Result<Option<VaultEntry>, VaultError> {
        let damaged = |problem: String| VaultError::Damaged { key: key.clone().into(), problem };
        let found = self.table.get(bytes(key)).await.map_err(|error| match error {
            StateError::Damaged { problem, .. } => damaged(problem),
            error => error.into(),
        })?;
        found.map(|json| serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))).transpose()
    }

    async fn list(&self, did: &Did) -> Result<Vec<VaultKey>, VaultError> {
        self.beginning_with(&format!("{did}\0")).await
    }
}
