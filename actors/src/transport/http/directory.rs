//! The directory: the identities of this server, and the keys of EXTERNAL DIDs.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use btcr2_aggregation_protocol::{
    did::{Did, DidError},
    identity::Identity,
    key::PublicKey,
    remembered::Remembered,
};
use tokio::sync::watch;

use crate::transport::{Inbox, external::ExternalKeys};

/// An identity of this server.
pub(super) struct Local {
    pub(super) identity: Identity,
    pub(super) inbox: Inbox,
    /// The connection that registered it: an older one must not remove it.
    pub(super) connection: u64,
}

/// The maximum number of remembered members.
const MEMBERS: usize = 65_536;

struct Known {
    local: BTreeMap<Did, Arc<Local>>,
    /// The DIDs to which an identity of this server has written.
    members: Remembered<Did>,
    external: ExternalKeys,
}

/// The directory. The gate reads it, and connections register in it.
pub(super) struct Directory {
    known: RwLock<Known>,
    /// Changes when a key becomes known; true when waiting for keys must end.
    news: watch::Sender<bool>,
}

impl Directory {
    pub(super) fn new(most_external: usize) -> Self {
        let external = ExternalKeys::new(most_external);
        let known = Known { local: BTreeMap::new(), members: Remembered::new(MEMBERS), external };
        Self { known: RwLock::new(known), news: watch::Sender::new(false) }
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        // No code panics while the directory is partly changed.
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn register(&self, local: Arc<Local>) {
        self.write().local.insert(local.identity.did().clone(), local);
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

    /// Parses a DID. That of a member is known: its key need not be decompressed for each of its messages.
    pub(super) fn parse(&self, did: &str) -> Result<Did, DidError> {
        let member = self.read().members.get(did).cloned();
        member.map_or_else(|| Did::parse(did), Ok)
    }

    /// The key that `did` proves: by itself, or by a genesis document that was seen.
    pub(super) fn key_of(&self, did: &Did) -> Option<PublicKey> {
        self.read().external.key_of(did)
    }

    /// Stores the key of an EXTERNAL DID that has proved it in its opt-in.
    pub(super) fn remember_outsider(&self, did: &Did, key: PublicKey) {
        self.write().external.remember_outsider(did, key);
        self.news.send_modify(|_| {});
    }

    /// Waits until the key of `did` is known, or waiting must end.
    pub(super) async fn wait_for_key(&self, did: &Did) {
        // Before the first check, so that no key is missed.
        let mut news = self.news.subscribe();
        while self.key_of(did).is_none() && !*news.borrow_and_update() {
            // It cannot be closed: its sender is in `self`.
            let _ = news.changed().await;
        }
    }

    /// Ends all waiting for keys.
    pub(super) fn close(&self) {
        self.news.send_replace(true);
    }

    /// An identity of this server has written to a DID, so it is a member: its data, e.g. the key of an EXTERNAL DID,
    /// is not evicted for that of other DIDs any more. Returns whether it was not a member before.
    pub(super) fn remember_member(&self, did: &Did) -> bool {
        // Nearly always true, and there are many readers.
        let known = self.read();
        if known.members.contains(did) && !known.external.is_outsider(did) {
            return false;
        }
        drop(known);
        let mut known = self.write();
        known.external.remember_member(did);
        known.members.insert(did.clone())
    }

    /// Whether an identity of this server has written to `did`.
    pub(super) fn is_member(&self, did: &Did) -> bool {
        self.read().members.contains(did)
    }

    /// Stores the key of an EXTERNAL DID that the host has introduced.
    pub(super) fn introduce(&self, did: &Did, key: PublicKey) {
        self.write().external.introduce(did, key);
        self.news.send_modify(|_| {});
    }
}
