//! The chains of a resolver: each is of one network, which its first blocks show.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::{answer::Refusal, cache::Cache};
use crate::{
    bitcoin::chain::{Chain, ChainError, ChainSource},
    cas::Cas,
    protocol::network::Network,
    resolve::Sources,
};

/// A chain that is connected, with the results of its newest block.
pub(super) struct Connected {
    pub(super) network: Network,
    pub(super) sources: Sources,
    cache: Mutex<Cache>,
}

impl Connected {
    pub(super) fn cache(&self) -> MutexGuard<'_, Cache> {
        // No code panics between the changes of a cache.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All chains, in the order in which they were given.
pub(super) struct Chains {
    list: Vec<(ChainSource, OnceLock<Arc<Connected>>)>,
    stores: Vec<Arc<dyn Cas>>,
    max_addresses: usize,
    cache_bytes: usize,
}

impl Chains {
    pub(super) fn new(
        sources: Vec<ChainSource>,
        stores: Vec<Arc<dyn Cas>>,
        max_addresses: usize,
        cache_bytes: usize,
    ) -> Self {
        let list = sources.into_iter().map(|source| (source, OnceLock::new())).collect();
        Self { list, stores, max_addresses, cache_bytes }
    }

    /// The chain of a network.
    pub(super) fn of(&self, network: Network) -> Result<&Arc<Connected>, Refusal> {
        match self.connected().find(|connected| connected.network == network) {
            Some(connected) => Ok(connected),
            None if self.list.iter().any(|(_, connected)| connected.get().is_none()) => Err(Refusal::NotConnected),
            None => Err(Refusal::OtherNetwork),
        }
    }

    pub(super) fn connected(&self) -> impl Iterator<Item = &Arc<Connected>> {
        self.list.iter().filter_map(|(_, connected)| connected.get())
    }

    /// Connects the chains that are not connected yet. Returns the errors of those that cannot be, with their names.
    pub(super) async fn connect(&self) -> Vec<(String, ChainError)> {
        let mut problems = Vec::new();
        for (source, slot) in &self.list {
            if slot.get().is_some() {
                continue;
            }
            match find(source).await {
                Ok((network, _)) if self.connected().any(|connected| connected.network == network) => {
                    let problem = format!("another --chain is of {network} already: give one of each network");
                    problems.push((source.to_string(), ChainError::Misconfigured(problem)));
                }
                Ok((network, chain)) => {
                    let sources = Sources {
                        chain,
                        // Clients are not to learn where it is.
                        chain_name: format!("the chain of {network}"),
                        stores: self.stores.clone(),
                        max_addresses: self.max_addresses,
                    };
                    let cache = Mutex::new(Cache::new(self.cache_bytes));
                    // Only this function fills it, one call at a time.
                    let _ = slot.set(Arc::new(Connected { network, sources, cache }));
                }
                Err(error) => problems.push((source.to_string(), error)),
            }
        }
        problems
    }
}

/// The network of a chain.
async fn find(source: &ChainSource) -> Result<(Network, Arc<dyn Chain>), ChainError> {
    let mut last = ChainError::Unavailable("no network was tried".to_owned());
    for network in Network::ALL {
        match source.connect(network).await {
            Ok(chain) => return Ok((network, chain)),
            Err(error @ ChainError::WrongNetwork { .. }) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(match last {
        ChainError::WrongNetwork { found, .. } => ChainError::Misconfigured(format!(
            "its first blocks are of no network that a did:btcr2 identifier can name ({found})"
        )),
        other => other,
    })
}
