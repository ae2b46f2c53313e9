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

/// Keys by DID, of which the oldest are forgotten.
#[derive(Default)]
struct Recent {
    keys: BTreeMap<Did, PublicKey>,
    order: VecDeque<Did>,
}

impl Recent {
    fn remember(&mut self, did: &Did, key: PublicKey, most: usize) {
        if self.keys.insert(did.clone(), key).is_none() {
            self.order.push_back(did.clone());
        }
        if self.order.len() > most
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
    }

    fn forget(&mut self, did: &Did) -> Option<PublicKey> {
        let key = self.keys.remove(did)?;
        self.order.retain(|other| other != did);
        Some(key)
    }
}

/// Keys of EXTERNAL DIDs, by how they came to be known, so that those who come in numbers push out only their like.
#[derive(Default)]
struct Known {
    local: BTreeMap<Did, Arc<Local>>,
    /// The host's configuration: never forgotten.
    introduced: BTreeMap<Did, PublicKey>,
    /// Whom somebody who lives here has written to: members.
    members: Recent,
    /// Who has only sent an opt-in.
    strangers: Recent,
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
        did.key().or_else(|| {
            let known = self.read();
            let Known { introduced, members, strangers, .. } = &*known;
            introduced.get(did).or_else(|| members.keys.get(did)).or_else(|| strangers.keys.get(did)).copied()
        })
    }

    /// Remembers the key of an EXTERNAL DID that has shown it in its opt-in.
    pub(super) fn remember_stranger(&self, did: &Did, key: PublicKey) {
        self.write().strangers.remember(did, key, self.most_external);
    }

    /// An EXTERNAL DID has been written to by somebody who lives here, so it is a member: its key is no longer forgotten
    /// for those of strangers.
    pub(super) fn remember_member(&self, did: &Did) {
        if did.key().is_some() || !self.read().strangers.keys.contains_key(did) {
            return;
        }
        let mut known = self.write();
        if let Some(key) = known.strangers.forget(did) {
            known.members.remember(did, key, self.most_external);
        }
    }

    /// Remembers the key of an EXTERNAL DID that the host vouches for.
    pub(super) fn introduce(&self, did: &Did, key: PublicKey) {
        self.write().introduced.insert(did.clone(), key);
    }
}

/// The key that an EXTERNAL sender's opt-in proves: its genesis document hashes to its DID, and names the key that the
/// opt-in says it communicates with.
pub(super) fn key_in_opt_in(from: &Did, message: &Message) -> Option<PublicKey> {
    let Body::CohortOptIn(opt_in) = &*message.body else { return None };
    let (_, key) = document::genesis_key(from, opt_in.genesis_document.as_deref()).ok()?;
    (key.to_bytes() == opt_in.communication_pk.0).then_some(key)
}
