//! The keys of EXTERNAL DIDs, which do not prove a key by themselves: learnt from verified opt-ins, within bounds.

use std::collections::{BTreeMap, VecDeque};

use btcr2_aggregation_protocol::{
    did::Did,
    document,
    key::PublicKey,
    message::{Body, Message},
};

/// Keys by DID, of which the oldest are removed.
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

/// Keys of EXTERNAL DIDs, separated by their source, so that DIDs which can appear in any number only evict each other.
pub(crate) struct ExternalKeys {
    most: usize,
    /// From the host's configuration: never removed.
    introduced: BTreeMap<Did, PublicKey>,
    /// Of DIDs to which one of our own identities has written: members.
    members: Recent,
    /// Of DIDs that have only sent an opt-in.
    outsiders: Recent,
}

impl ExternalKeys {
    /// Without keys. At most `most` of members, and `most` of other DIDs.
    pub(crate) fn new(most: usize) -> Self {
        let (introduced, members, outsiders) = Default::default();
        Self { most, introduced, members, outsiders }
    }

    /// The key that `did` proves: by itself, or by a genesis document that was seen.
    pub(crate) fn key_of(&self, did: &Did) -> Option<PublicKey> {
        let Self { introduced, members, outsiders, .. } = self;
        did.key().or_else(|| {
            introduced.get(did).or_else(|| members.keys.get(did)).or_else(|| outsiders.keys.get(did)).copied()
        })
    }

    /// Stores the key of an EXTERNAL DID that has proved it in its opt-in.
    pub(crate) fn remember_outsider(&mut self, did: &Did, key: PublicKey) {
        self.outsiders.remember(did, key, self.most);
    }

    /// Whether [`Self::remember_member`] would change anything.
    pub(crate) fn is_outsider(&self, did: &Did) -> bool {
        did.key().is_none() && self.outsiders.keys.contains_key(did)
    }

    /// One of our own identities has written to an EXTERNAL DID, so it is a member: keys of other DIDs do not evict its
    /// key any more.
    pub(crate) fn remember_member(&mut self, did: &Did) {
        if let Some(key) = self.outsiders.forget(did) {
            self.members.remember(did, key, self.most);
        }
    }

    /// Stores the key of an EXTERNAL DID that the host has introduced.
    pub(crate) fn introduce(&mut self, did: &Did, key: PublicKey) {
        self.introduced.insert(did.clone(), key);
    }
}

/// The key that an EXTERNAL sender's opt-in proves: the hash of its genesis document is in its DID, and the document
/// names the key with which the opt-in communicates.
pub(crate) fn key_in_opt_in(from: &Did, message: &Message) -> Option<PublicKey> {
    let Body::CohortOptIn(opt_in) = &*message.body else { return None };
    let (_, key) = document::genesis_key(from, opt_in.genesis_document.as_deref()).ok()?;
    (key.to_bytes() == opt_in.communication_pk.0).then_some(key)
}
