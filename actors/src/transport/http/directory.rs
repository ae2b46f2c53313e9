//! Who is known: the identities that live here, and the keys of EXTERNAL DIDs.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use actix::Recipient;
use btcr2_aggregation_protocol::{
    did::Did,
    document,
    identity::Identity,
    key::PublicKey,
    message::{Body, Message},
};

use crate::transport::Delivery;

/// An identity that lives here.
pub(super) struct Local {
    pub(super) identity: Identity,
    pub(super) inbox: Recipient<Delivery>,
    /// Which connection registered it: an older one must not sign it off.
    pub(super) connection: u64,
}

#[derive(Default)]
struct Known {
    local: BTreeMap<Did, Arc<Local>>,
    external: BTreeMap<Did, PublicKey>,
    external_order: VecDeque<Did>,
}

/// The directory. Shared by the gate, which reads it, and the connections, which register in it.
pub(super) struct Directory {
    known: RwLock<Known>,
    most_external: usize,
}

impl Directory {
    pub(super) fn new(most_external: usize) -> Self {
        Self { known: RwLock::default(), most_external }
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        // Nothing that could panic happens while the directory is half changed.
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn register(&self, local: Local) {
        self.write().local.insert(local.identity.did().clone(), Arc::new(local));
    }

    pub(super) fn unregister(&self, did: &Did, connection: u64) {
        let mut known = self.write();
        if known.local.get(did).is_some_and(|local| local.connection == connection) {
            known.local.remove(did);
        }
    }

    pub(super) fn local(&self, did: &str) -> Option<Arc<Local>> {
        let did = Did::parse(did).ok()?;
        self.read().local.get(&did).cloned()
    }

    /// The key that `did` proves: in itself, or by a genesis document that was seen.
    pub(super) fn key_of(&self, did: &Did) -> Option<PublicKey> {
        did.key().or_else(|| self.read().external.get(did).copied())
    }

    /// Remembers the key of an EXTERNAL DID. Strangers can make this happen, so the oldest is forgotten for a new one.
    pub(super) fn remember_external(&self, did: &Did, key: PublicKey) {
        let mut known = self.write();
        if known.external.insert(did.clone(), key).is_none() {
            known.external_order.push_back(did.clone());
        }
        if known.external_order.len() > self.most_external
            && let Some(oldest) = known.external_order.pop_front()
        {
            known.external.remove(&oldest);
        }
    }
}

/// The key that an EXTERNAL sender's opt-in proves: its genesis document hashes to its DID, and names the key that the
/// opt-in says it communicates with.
pub(super) fn key_in_opt_in(from: &Did, message: &Message) -> Option<PublicKey> {
    let Body::CohortOptIn(opt_in) = &*message.body else { return None };
    let (_, key) = document::genesis_key(from, opt_in.genesis_document.as_deref()).ok()?;
    (key.to_bytes() == opt_in.communication_pk.0).then_some(key)
}
