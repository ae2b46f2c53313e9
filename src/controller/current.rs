//! The current document of a DID, as a resolver gives it: what the next update starts from.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::{
    bitcoin::chain::{ChainError, ChainSource},
    cas::Cas,
    protocol::{
        did::Did,
        hash::DocumentHash,
        resolution::{
            BeaconSignal, ErrorCode, Event, Ignored, Resolution, ResolutionError, ResolutionOptions, SidecarError,
        },
    },
    resolve::{Given, Outcome, Sources},
};

/// An update that resolvers apply.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The version to which it leads.
    pub version: u64,
    /// Its hash.
    pub hash: DocumentHash,
    /// The signal that announces it.
    pub signal: Arc<BeaconSignal>,
}

#[cfg(test)]
impl Applied {
    /// One for tests, announced at the first address of a made-up beacon.
    pub(crate) fn for_tests(version: u64, hash: DocumentHash) -> Self {
        use bitcoin::{PubkeyHash, Txid, hashes::Hash};

        use crate::protocol::{
            hash::SignalBytes,
            resolution::{Beacon, BeaconKind, Block},
        };
        let address = bitcoin::Address::p2pkh(PubkeyHash::all_zeros(), bitcoin::NetworkKind::Test);
        let beacon = Arc::new(Beacon::new("#beacon".to_owned(), BeaconKind::Singleton, address));
        let block = Block::new(100, 1_800_000_000, 1_800_000_000, 6);
        let bytes = SignalBytes::from_bytes(*hash.as_bytes());
        let signal = Arc::new(BeaconSignal::new(beacon, Txid::all_zeros(), bytes, block));
        Self { version, hash, signal }
    }
}

/// An update in a block that is not deep enough to count yet.
#[derive(Clone, Debug)]
pub struct Young {
    /// The version to which the newest of them leads.
    pub version: u64,
    /// The confirmations that this one has.
    pub confirmations: u32,
    /// All of them.
    pub applied: Vec<Applied>,
}

/// The current document.
#[derive(Clone, Debug)]
pub struct Current {
    /// The document. It is not deactivated.
    pub document: Value,
    /// Its version; 1 is the initial one.
    pub version: u64,
    /// The updates that led to it, in their order.
    pub applied: Vec<Applied>,
    /// Updates beyond it that are in a block, with fewer confirmations than count.
    pub young: Option<Young>,
    /// Why it is not known whether another update of the next version is in a block already: with the signals that have
    /// too few confirmations to count, the DID does not resolve. Nothing is to be signed or announced then.
    pub unsettled: Option<String>,
    /// What a person should know of it.
    pub warnings: Vec<String>,
}

/// Why there is no current document that an update could start from.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CurrentError {
    /// The chain cannot be used as it is configured.
    #[error("{0}")]
    Unusable(ChainError),
    /// The chain cannot be read now.
    #[error("{0}")]
    Unreadable(String),
    /// The DID does not resolve.
    #[error("{code}: {reason}")]
    Unresolved {
        /// The error of DID Resolution.
        code: ErrorCode,
        /// Why, and what to do.
        reason: String,
    },
    /// The DID is deactivated.
    #[error("the DID is deactivated, by version {version}: no update of it counts any more")]
    Deactivated {
        /// The version.
        version: u64,
        /// The update that led to it; none led to the first.
        by: Option<DocumentHash>,
    },
}

impl CurrentError {
    /// Whether a later attempt may succeed without a change here.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unreadable(_))
    }
}

/// The options of a resolution in which signals of `min_conf` confirmations count.
///
/// # Errors
/// [`ResolutionError`]: not a number that is allowed (rule R-2).
fn options(min_conf: u32) -> Result<ResolutionOptions, CurrentError> {
    ResolutionOptions::default().with_min_conf(min_conf.into()).map_err(|error| unresolved(&error))
}

fn unresolved(error: &ResolutionError) -> CurrentError {
    let hint = match error.code() {
        ErrorCode::MissingUpdateData => {
            "; `resolve DID --explain` shows every signal, and where what is missing may be"
        }
        ErrorCode::NotFound => "; give the genesis document: --identity FILE or --sidecar FILE",
        _ => "",
    };
    CurrentError::Unresolved { code: error.code(), reason: format!("{error}{hint}") }
}

/// How many signals have too few confirmations to count.
pub(crate) fn young(history: &[Event]) -> usize {
    let young = history.iter().map(|event| match event {
        Event::Scanned { ignored, .. } => {
            ignored.iter().filter(|signal| signal.reason == Ignored::TooFewConfirmations).count()
        }
        _ => 0,
    });
    young.sum()
}

fn applied(resolution: &Resolution) -> Vec<Applied> {
    let steps = resolution.history.iter().filter_map(|event| match event {
        Event::Applied(step) => Some(step),
        _ => None,
    });
    steps
        .map(|step| Applied { version: step.version, hash: step.update, signal: Arc::clone(&step.signal) })
        .collect()
}

/// Resolves the current document of `did`, and looks for updates that are in a block already without counting yet.
///
/// # Errors
/// [`CurrentError`].
pub async fn current(sources: &Sources, did: &Did, given: &Given, min_conf: u32) -> Result<Current, CurrentError> {
    let mut warnings = Vec::new();
    let Outcome { resolution, problems, is_unreadable, .. } =
        sources.resolve(did.clone(), options(min_conf)?, given).await;
    warnings.extend(problems);
    let applied_now = applied(&resolution);
    let has_young = young(&resolution.history) > 0;
    let resolved = resolution.outcome.map_err(|error| match is_unreadable {
        true => CurrentError::Unreadable(error.to_string()),
        false => unresolved(&error),
    })?;
    let version = resolved.metadata.version_id;
    if resolved.metadata.deactivated {
        return Err(CurrentError::Deactivated { version, by: applied_now.last().map(|applied| applied.hash) });
    }
    let mut current = Current {
        document: resolved.document,
        version,
        applied: applied_now,
        young: None,
        unsettled: None,
        warnings,
    };
    // The chain is read again only where there is something to find.
    if has_young && min_conf > 1 {
        let Outcome { resolution, is_unreadable, .. } = sources.resolve(did.clone(), options(1)?, given).await;
        let later = applied(&resolution).into_iter().filter(|applied| applied.version > version).collect();
        match resolution.outcome {
            Ok(young) if young.metadata.version_id > version => {
                current.young = Some(Young {
                    version: young.metadata.version_id,
                    confirmations: young.metadata.confirmations,
                    applied: later,
                });
            }
            Ok(_) => {}
            Err(error) if is_unreadable => return Err(CurrentError::Unreadable(error.to_string())),
            Err(error) => {
                current.unsettled = Some(format!(
                    "a signal that has fewer than {min_conf} confirmations cannot be applied: {}: {error}. If it announces another \
                     update of version {}, the DID ends with this one (LATE_PUBLISHING, rule R-8). Give its data (--sidecar, --state, \
                     --cas), or wait",
                    error.code(),
                    version + 1
                ));
            }
        }
    }
    Ok(current)
}

/// The sources of a controller that resolves its DID again and again, with the Sidecar Data that it learns meanwhile.
pub struct Resolving {
    did: Did,
    chain: ChainSource,
    stores: Vec<Arc<dyn Cas>>,
    min_conf: u32,
    given: Mutex<Given>,
}

impl Resolving {
    /// The sources of `did`: its chain, content stores, and Sidecar Data. A signal counts with `min_conf` confirmations, at
    /// least 1.
    pub fn new(did: Did, chain: ChainSource, stores: Vec<Arc<dyn Cas>>, min_conf: u32, given: Given) -> Self {
        Self { did, chain, stores, min_conf, given: Mutex::new(given) }
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        // No code panics while the data are half changed.
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The confirmations with which a signal counts.
    pub fn min_conf(&self) -> u32 {
        self.min_conf
    }

    /// The unsigned hash of the update with that hash (rule U-19), if its data are known here.
    pub fn unsigned_hash(&self, update: &DocumentHash) -> Option<DocumentHash> {
        self.given().update(update)?.unsigned_hash().ok()
    }

    /// Adds Sidecar Data, whose source is called `name` in messages.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub fn learn(&self, sidecar: Value, name: &str) -> Result<(), SidecarError> {
        self.given().add(sidecar, name)
    }

    /// The current document now. Nothing is reused of an earlier resolution: the chain may have changed.
    ///
    /// # Errors
    /// [`CurrentError`].
    pub async fn current(&self) -> Result<Current, CurrentError> {
        let chain = self.chain.connect(self.did.network()).await.map_err(|error| match error.is_transient() {
            true => CurrentError::Unreadable(format!("{}: {error}", self.chain)),
            false => CurrentError::Unusable(error),
        })?;
        let given = self.given().clone();
        let (chain_name, stores) = (self.chain.to_string(), self.stores.clone());
        let sources = Sources { chain, chain_name, stores, max_addresses: usize::MAX };
        current(&sources, &self.did, &given, self.min_conf).await
    }
}
