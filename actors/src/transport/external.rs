//! The keys of EXTERNAL DIDs, which do not prove a key by themselves: learnt from verified opt-ins, within bounds.

use std::{collections::BTreeMap, num::NonZeroUsize};

use btcr2_aggregation_protocol::{
    did::Did,
    document,
    key::PublicKey,
    message::{Body, Message},
};
use lru::LruCache;

/// Keys of EXTERNAL DIDs, separated by their source, so that DIDs which can appear in any number only evict each other.
pub(crate) struct ExternalKeys {
    /// From the host's configuration: never removed.
    introduced: BTreeMap<Did, PublicKey>,
    /// Of DIDs to which one of our own identities has written: members.
    members: LruCache<Did, PublicKey>,
    /// Of DIDs that have only sent an opt-in.
    outsiders: LruCache<Did, PublicKey>,
}

impl ExternalKeys {
    /// Without keys. At most `most` of members, and `most` of other DIDs.
    pub(crate) fn new(most: usize) -> Self {
        let most = at_least_one(most);
        Self { introduced: BTreeMap::new(), members: LruCache::new(most), outsiders: LruCache::new(most) }
    }

    /// The key that `did` proves: by itself, or by a genesis document that was seen.
    pub(crate) fn key_of(&self, did: &Did) -> Option<PublicKey> {
        let Self { introduced, members, outsiders } = self;
        let external =
            || introduced.get(did).or_else(|| members.peek(did)).or_else(|| outsiders.peek(did)).copied();
        did.key().or_else(external)
    }

    /// Stores the key of an EXTERNAL DID that has proved it in its opt-in.
    pub(crate) fn remember_outsider(&mut self, did: &Did, key: PublicKey) {
        self.outsiders.put(did.clone(), key);
    }

    /// Whether [`Self::remember_member`] would change anything.
    pub(crate) fn is_outsider(&self, did: &Did) -> bool {
        did.key().is_none() && self.outsiders.contains(did)
    }

    /// One of our own identities has written to an EXTERNAL DID, so it is a member: keys of other DIDs do not evict its
    /// key any more.
    pub(crate) fn remember_member(&mut self, did: &Did) {
        if let Some(key) = self.outsiders.pop(did) {
            self.members.put(did.clone(), key);
        }
    }

    /// Stores the key of an EXTERNAL DID that the host has introduced.
    pub(crate) fn introduce(&mut self, did: &Did, key: PublicKey) {
        self.introduced.insert(did.clone(), key);
    }
}

/// The capacity of a map whose configuration allows `most` entries.
pub(crate) fn at_least_one(most: usize) -> NonZeroUsize {
    NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN)
}

/// The key that an EXTERNAL sender's opt-in proves: the hash of its genesis document is in its DID, and the document
/// names the key with which the opt-in communicates.
pub(crate) fn key_in_opt_in(from: &Did, message: &Message) -> Option<PublicKey> {
    let Body::CohortOptIn(opt_in) = &*message.body else { return None };
    let (_, key) = document::genesis_key(from, opt_in.genesis_document.as_deref()).ok()?;
    (key.to_bytes() == opt_in.communication_pk.0).then_some(key)
}
