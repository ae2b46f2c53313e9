//! Who is known: the identities that live here, and the keys of EXTERNAL DIDs.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use actix::Recipient;
use btcr2_aggregation_protocol::{did::Did, identity::Identity, key::PublicKey};
use tokio::sync::watch;

use crate::{
    remembered::Remembered,
    transport::{Delivery, external::ExternalKeys},
};

/// An identity that lives here.
pub(super) struct Local {
    pub(super) identity: Identity,
    pub(super) inbox: Recipient<Delivery>,
    /// Which connection registered it: an older one must not sign it off.
    pub(super) connection: u64,
}

/// Most members that are remembered as such.
const MEMBERS: usize = 65_536;

struct Known {
    local: BTreeMap<Did, Arc<Local>>,
    /// Whom somebody who lives here has written to.
    members: Remembered<Did>,
    external: ExternalKeys,
}

/// The directory. Shared by the gate, which reads it, and the connections, which register in it.
pub(super) struct Directory {
    known: RwLock<Known>,
    /// Changes when a key becomes known; true when nobody is to wait for one any more.
    news: watch::Sender<bool>,
}

impl Directory {
    pub(super) fn new(most_external: usize) -> Self {
        let external = ExternalKeys::new(most_external);
        let known = Known { local: BTreeMap::new(), members: Remembered::new(MEMBERS), external };
        Self { known: RwLock::new(known), news: watch::Sender::new(false) }
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
        self.read().local.get(did).cloned()
    }

    /// The key that `did` proves: in itself, or by a genesis document that was seen.
    pub(super) fn key_of(&self, did: &Did) -> Option<PublicKey> {
        self.read().external.key_of(did)
    }

    /// Remembers the key of an EXTERNAL DID that has shown it in its opt-in.
    pub(super) fn remember_stranger(&self, did: &Did, key: PublicKey) {
        self.write().external.remember_stranger(did, key);
        self.news.send_modify(|_| {});
    }

    /// Waits until the key of `did` is known, or nobody is to wait any more.
    pub(super) async fn wait_for_key(&self, did: &Did) {
        // Before the first look, so that no key is missed.
        let mut news = self.news.subscribe();
        while self.key_of(did).is_none() && !*news.borrow_and_update() {
            // It cannot be closed: it is part of this.
            let _ = news.changed().await;
        }
    }

    /// Nobody waits for a key any more.
    pub(super) fn close(&self) {
        self.news.send_replace(true);
    }

    /// A DID has been written to by somebody who lives here, so it is a member: what it needs is no longer given up for
    /// strangers, as the key of an EXTERNAL one. Whether that is news.
    pub(super) fn remember_member(&self, did: &Did) -> bool {
        // Nearly always not; and readers are many.
        let known = self.read();
        if known.members.contains(did) && !known.external.is_stranger(did) {
            return false;
        }
        drop(known);
        let mut known = self.write();
        known.external.remember_member(did);
        known.members.insert(did.clone())
    }

    /// Whether somebody who lives here has written to `did`.
    pub(super) fn is_member(&self, did: &Did) -> bool {
        self.read().members.contains(did)
    }

    /// Remembers the key of an EXTERNAL DID that the host vouches for.
    pub(super) fn introduce(&self, did: &Did, key: PublicKey) {
        self.write().external.introduce(did, key);
        self.news.send_modify(|_| {});
    }
}
