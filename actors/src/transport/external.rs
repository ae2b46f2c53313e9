//! The keys of EXTERNAL DIDs, which prove no key by themselves: learnt from verified opt-ins, within bounds.

use std::collections::{BTreeMap, VecDeque};

use btcr2_aggregation_protocol::{
    did::Did,
    document,
    key::PublicKey,
    message::{Body, Message},
};

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
pub(crate) struct ExternalKeys {
    most: usize,
    /// The host's configuration: never forgotten.
    introduced: BTreeMap<Did, PublicKey>,
    /// Whom one of our own identities has written to: members.
    members: Recent,
    /// Who has only sent an opt-in.
    strangers: Recent,
}

impl ExternalKeys {
    /// None yet, and never more than `most` of members, and `most` of strangers.
    pub(crate) fn new(most: usize) -> Self {
        let (introduced, members, strangers) = Default::default();
        Self { most, introduced, members, strangers }
    }

    /// The key that `did` proves: in itself, or by a genesis document that was seen.
    pub(crate) fn key_of(&self, did: &Did) -> Option<PublicKey> {
        let Self { introduced, members, strangers, .. } = self;
        did.key().or_else(|| {
            introduced.get(did).or_else(|| members.keys.get(did)).or_else(|| strangers.keys.get(did)).copied()
        })
    }

    /// Remembers the key of an EXTERNAL DID that has shown it in its opt-in.
    pub(crate) fn remember_stranger(&mut self, did: &Did, key: PublicKey) {
        self.strangers.remember(did, key, self.most);
    }

    /// Whether [`Self::remember_member`] would change anything.
    pub(crate) fn is_stranger(&self, did: &Did) -> bool {
        did.key().is_none() && self.strangers.keys.contains_key(did)
    }

    /// An EXTERNAL DID has been written to by one of our own, so it is a member: its key is no longer forgotten for those
    /// of strangers.
    pub(crate) fn remember_member(&mut self, did: &Did) {
        if let Some(key) = self.strangers.forget(did) {
            self.members.remember(did, key, self.most);
        }
    }

    /// Remembers the key of an EXTERNAL DID that the host vouches for.
    pub(crate) fn introduce(&mut self, did: &Did, key: PublicKey) {
        self.introduced.insert(did.clone(), key);
    }
}

/// The key that an EXTERNAL sender's opt-in proves: its genesis document hashes to its DID, and names the key that the
/// opt-in says it communicates with.
pub(crate) fn key_in_opt_in(from: &Did, message: &Message) -> Option<PublicKey> {
    let Body::CohortOptIn(opt_in) = &*message.body else { return None };
    let (_, key) = document::genesis_key(from, opt_in.genesis_document.as_deref()).ok()?;
    (key.to_bytes() == opt_in.communication_pk.0).then_some(key)
}
