//! How the programs of standing cohorts resolve DIDs.

use std::sync::Arc;

use crate::{
    bitcoin::chain::ChainSource,
    cas::Cas,
    controller::{Current, CurrentError, Resolving},
    protocol::did::Did,
    resolve::Given,
};

/// Where DIDs are resolved.
#[derive(Clone)]
pub struct Resolver {
    /// The source of the chain.
    pub source: ChainSource,
    /// Content stores.
    pub stores: Vec<Arc<dyn Cas>>,
    /// The confirmations with which a signal counts.
    pub min_conf: u32,
}

impl Resolver {
    /// The current document of a DID, with these Sidecar Data.
    pub(super) async fn current(&self, did: &Did, given: Given) -> Result<Current, CurrentError> {
        let Self { source, stores, min_conf } = self.clone();
        Resolving::new(did.clone(), source, stores, min_conf, given).current().await
    }
}
