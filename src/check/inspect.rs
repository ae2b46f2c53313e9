//! Reads what a check judges: the vault, its backups, the chain and the stores.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::Arc,
};

use ::bitcoin::{Address, Transaction, Txid};

use super::{ChainView, Terms, UnconfirmedSignal, View, beacons::addresses, mempool::NextBlock};
use crate::{
    bitcoin::{
        chain::{Chain, ChainError, Place, signal_of},
        ledger::{Ledger, read_spenders},
    },
    cas::{Cas, ContentHash},
    member::health::{self, Records},
    protocol::{
        did::Did,
        hash::DocumentHash,
        key::PublicKey,
        resolution::{BeaconKind, Event, Resolution, ResolutionOptions, SidecarError},
        time::Timestamp,
        update::SignedUpdate,
    },
    resolve::{
        Given, Sources,
        follow::{FollowedChain, RememberingStore},
    },
    vault::{
        self, ReadError, VaultContents,
        backups::{Backup, Backups},
    },
};

/// How many blocks back spends are searched at first, beside the mempool.
const LOOK_BACK: u32 = 6;

/// Why nothing can be checked.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// A state directory cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What an agent has recorded cannot be read.
    #[error("the records of the agent: {0}")]
    Member(String),
    /// The record of the backups cannot be read.
    #[error("the record of the backups: {0}")]
    Backups(io::Error),
    /// The vault's data is not Sidecar Data.
    #[error("the vault: {0}")]
    Sidecar(#[from] SidecarError),
}

/// Looks at one DID, again and again: the chain's history is read once.
pub struct Inspector {
    did: Did,
    chain: Arc<FollowedChain>,
    chain_name: String,
    stores: Vec<Arc<RememberingStore>>,
    /// The Sidecar Data of files.
    files: Given,
    vault: vault::Sources,
    keys: Option<Vec<PublicKey>>,
    ledgers: BTreeMap<String, Ledger>,
}

/// What was read at one time.
#[derive(Clone, Debug)]
pub struct Inspection {
    did: Did,
    now: Timestamp,
    chain: Result<ChainView, String>,
    vault: Option<VaultContents>,
    backup: Option<Backup>,
    keys: Option<Vec<PublicKey>>,
    member: Option<Records>,
}

impl Inspection {
    /// What is known of the files, when the chain cannot be connected.
    pub fn without_chain(
        did: Did,
        now: Timestamp,
        problem: String,
        (vault, backup): (Option<VaultContents>, Option<Backup>),
        keys: Option<Vec<PublicKey>>,
    ) -> Self {
        Self { did, now, chain: Err(problem), vault, backup, keys, member: None }
    }

    /// With what an agent has recorded.
    #[must_use]
    pub fn with_member(self, member: Option<Records>) -> Self {
        Self { member, ..self }
    }

    /// As it is judged.
    pub fn view<'a>(&'a self, terms: &'a Terms) -> View<'a> {
        View {
            did: &self.did,
            now: self.now,
            terms,
            chain: self.chain.as_ref().map_err(String::as_str),
            vault: self.vault.as_ref(),
            backup: self.backup.as_ref(),
            keys: self.keys.as_deref(),
            member: self.member.as_ref(),
        }
    }
}

/// What an agent has recorded whose state directory is among these.
///
/// # Errors
/// [`InspectError::Member`].
pub(crate) async fn read_member(states: &[PathBuf], did: &Did) -> Result<Option<Records>, InspectError> {
    health::read(states, did).await.map_err(InspectError::Member)
}

/// The vault's entries of `did`, and the record of the backups in the state directories; nothing without sources.
///
/// # Errors
/// [`InspectError`].
pub(crate) async fn read_files(
    sources: &vault::Sources,
    did: &Did,
) -> Result<(Option<VaultContents>, Option<Backup>), InspectError> {
    if sources.states.is_empty() && sources.files.is_empty() {
        return Ok((None, None));
    }
    let contents = sources.read().await?.only(Some(did));
    Ok((Some(contents), read_backup(&sources.states, did)?))
}

/// The record of the backups in these state directories; `None` without one, where the vault is a file.
///
/// # Errors
/// [`InspectError::Backups`].
pub(crate) fn read_backup(states: &[PathBuf], did: &Did) -> Result<Option<Backup>, InspectError> {
    if states.is_empty() {
        return Ok(None);
    }
    let backup = Backups::of(states.iter().map(PathBuf::as_path), did).map_err(InspectError::Backups)?;
    Ok(Some(backup))
}

impl Inspector {
    /// Looks at `did` on `chain`. `files` is the Sidecar Data of files, `keys` those of the identity file.
    pub fn new(
        did: Did,
        (chain, chain_name): (Arc<dyn Chain>, String),
        stores: Vec<Arc<dyn Cas>>,
        files: Given,
        vault: vault::Sources,
        keys: Option<Vec<PublicKey>>,
    ) -> Self {
        let stores = stores.into_iter().map(|store| Arc::new(RememberingStore::new(store))).collect();
        let chain = Arc::new(FollowedChain::new(chain));
        Self { did, chain, chain_name, stores, files, vault, keys, ledgers: BTreeMap::new() }
    }

    /// The identifier.
    pub const fn did(&self) -> &Did {
        &self.did
    }

    /// Reads everything once more.
    ///
    /// # Errors
    /// [`InspectError`]. A chain that cannot be read is part of the result.
    pub async fn look(&mut self, now: Timestamp, min_conf: u32) -> Result<Inspection, InspectError> {
        let files = read_files(&self.vault, &self.did).await?;
        let member = read_member(&self.vault.states, &self.did).await?;
        let (given, sidecar) = (self.files.clone(), member.as_ref().and_then(|member| member.sidecar.clone()));
        if let Some(sidecar) = sidecar {
            self.files.add(sidecar, "the agent's directory")?;
        }
        let looked = self.look_with(files, now, min_conf).await;
        self.files = given;
        Ok(looked?.with_member(member))
    }

    /// The same with the vault's entries of the DID, and the record of their backups, as they were just read.
    ///
    /// # Errors
    /// [`InspectError::Sidecar`].
    pub async fn look_with(
        &mut self,
        (vault, backup): (Option<VaultContents>, Option<Backup>),
        now: Timestamp,
        min_conf: u32,
    ) -> Result<Inspection, InspectError> {
        let mut given = self.files.clone();
        if let Some(vault) = &vault {
            given.add_vault(vault, &self.did, "the state directory")?;
        }
        let chain = self.read(&given, now, min_conf).await;
        let (did, keys) = (self.did.clone(), self.keys.clone());
        Ok(Inspection { did, now, chain, vault, backup, keys, member: None })
    }

    /// The same DID on the same chain, without stores and files: what the vault alone gives.
    pub(crate) fn without_sources(&self) -> Self {
        Self {
            did: self.did.clone(),
            chain: Arc::clone(&self.chain),
            chain_name: self.chain_name.clone(),
            stores: Vec::new(),
            files: Given::default(),
            vault: vault::Sources::default(),
            keys: None,
            ledgers: BTreeMap::new(),
        }
    }

    /// The Sidecar Data of files.
    pub(crate) const fn files(&self) -> &Given {
        &self.files
    }

    /// What the chain shows now, with the data of `given` and of the stores.
    ///
    /// # Errors
    /// Why that is not known.
    pub(crate) async fn read(&mut self, given: &Given, now: Timestamp, min_conf: u32) -> Result<ChainView, String> {
        self.chain.next_look().await;
        self.read_chain(given, now, min_conf).await
    }

    async fn read_chain(&mut self, given: &Given, now: Timestamp, min_conf: u32) -> Result<ChainView, String> {
        let chain = || Arc::clone(&self.chain) as Arc<dyn Chain>;
        let (young, tip, mut problems) = self.resolve(chain(), given, 1).await?;
        let (settled, later_tip, more) = match min_conf {
            1 => (young.clone(), tip, Vec::new()),
            _ => self.resolve(chain(), given, min_conf).await?,
        };
        problems.extend(more);
        let addresses = addresses(&[&young.history, &settled.history]);
        let mut unconfirmed = Vec::new();
        let coins = match self.coins(&addresses).await {
            Ok((coins, seen)) => {
                unconfirmed = seen;
                Ok(coins)
            }
            Err(error) => Err(error.to_string()),
        };
        let mut next = None;
        if !unconfirmed.is_empty() {
            let chain: Arc<dyn Chain> = Arc::clone(&self.chain) as Arc<dyn Chain>;
            let (resolution, _, more) =
                self.resolve(Arc::new(NextBlock::new(chain, &unconfirmed, now)), given, 1).await?;
            next = Some(resolution);
            problems.extend(more);
        }
        problems.sort();
        problems.dedup();
        let updates = self.updates(given, [&young, &settled]);
        Ok(ChainView { tip: tip.or(later_tip), settled, young, updates, coins, unconfirmed, next, problems })
    }

    async fn resolve(
        &self,
        chain: Arc<dyn Chain>,
        given: &Given,
        min_conf: u32,
    ) -> Result<(Resolution, Option<crate::bitcoin::chain::Tip>, Vec<String>), String> {
        let options = ResolutionOptions::default().with_min_conf(min_conf.into());
        let options = options.map_err(|error| error.to_string())?;
        let sources = Sources {
            chain,
            chain_name: self.chain_name.clone(),
            stores: self.stores.iter().map(|store| Arc::clone(store) as Arc<dyn Cas>).collect(),
            max_addresses: usize::MAX,
        };
        let outcome = sources.resolve(self.did.clone(), options, given).await;
        Ok((outcome.resolution, outcome.tip, outcome.problems))
    }

    /// The coins of the addresses, and the signals that spend from them in the mempool.
    async fn coins(&mut self, addresses: &BTreeMap<String, (Address, BeaconKind)>) -> Result<Coins, ChainError> {
        if addresses.is_empty() {
            return Ok(Default::default());
        }
        let mut before = std::mem::take(&mut self.ledgers);
        for (text, (address, _)) in addresses {
            let ledger = before.remove(text).unwrap_or_else(|| Ledger::new(address.script_pubkey(), LOOK_BACK));
            self.ledgers.insert(text.clone(), ledger);
        }
        let mut ledgers: Vec<_> = self.ledgers.values_mut().collect();
        let activities = Ledger::refresh_all(&mut ledgers, &*self.chain).await?;
        let (mut coins, mut seen) = (BTreeMap::new(), Vec::new());
        for ((text, (address, kind)), activity) in addresses.iter().zip(activities) {
            let mut waiting = activity.clone();
            waiting.spends.retain(|spend| spend.place == Place::Mempool);
            let mut spenders: BTreeMap<Txid, Transaction> = BTreeMap::new();
            read_spenders(&*self.chain, &waiting, &mut spenders).await?;
            let signals = spenders.iter().filter_map(|(txid, transaction)| {
                let bytes = signal_of(transaction)?;
                Some(UnconfirmedSignal { address: address.clone(), kind: *kind, txid: *txid, bytes })
            });
            seen.extend(signals);
            coins.insert(text.clone(), activity);
        }
        Ok((coins, seen))
    }

    /// The updates that were applied and are at hand.
    fn updates(&self, given: &Given, resolutions: [&Resolution; 2]) -> BTreeMap<DocumentHash, SignedUpdate> {
        let steps = resolutions.into_iter().flat_map(|resolution| &resolution.history);
        let hashes: BTreeSet<DocumentHash> = steps
            .filter_map(|event| match event {
                Event::Applied(step) => Some(step.update),
                _ => None,
            })
            .collect();
        let found = |hash: DocumentHash| {
            let remembered = || SignedUpdate::from_value(self.remembered(&hash)?).ok();
            Some((hash, given.update(&hash).or_else(remembered)?))
        };
        hashes.into_iter().filter_map(found).collect()
    }

    /// The JSON that a store gave for that hash.
    pub fn remembered(&self, hash: &DocumentHash) -> Option<serde_json::Value> {
        let hash = ContentHash::from(*hash);
        let content = self.stores.iter().find_map(|store| store.given(&hash))?;
        serde_json::from_slice(content.bytes()).ok()
    }
}

/// Coins by address, and signals in the mempool.
type Coins = (BTreeMap<String, crate::bitcoin::chain::Activity>, Vec<UnconfirmedSignal>);
