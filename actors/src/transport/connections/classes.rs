//! Connections, or streams, of one kind, indexed by network. The oldest one of the largest network is found at once.

use std::collections::{BTreeMap, BTreeSet};

use super::Network;

#[derive(Default)]
pub(in crate::transport) struct Class {
    by_network: BTreeMap<Network, BTreeSet<u64>>,
    by_size: BTreeSet<(usize, Network)>,
    len: usize,
}

impl Class {
    pub(in crate::transport) fn len(&self) -> usize {
        self.len
    }

    /// The number of entries of a network.
    pub(in crate::transport) fn of(&self, network: Network) -> usize {
        self.by_network.get(&network).map_or(0, BTreeSet::len)
    }

    pub(in crate::transport) fn insert(&mut self, network: Network, id: u64) {
        let ids = self.by_network.entry(network).or_default();
        let before = ids.len();
        if ids.insert(id) {
            self.by_size.remove(&(before, network));
            self.by_size.insert((before + 1, network));
            self.len += 1;
        }
    }

    /// Removes an entry; returns whether it existed.
    pub(in crate::transport) fn remove(&mut self, network: Network, id: u64) -> bool {
        let Some(ids) = self.by_network.get_mut(&network) else { return false };
        let before = ids.len();
        if !ids.remove(&id) {
            return false;
        }
        self.by_size.remove(&(before, network));
        if before > 1 {
            self.by_size.insert((before - 1, network));
        } else {
            self.by_network.remove(&network);
        }
        self.len -= 1;
        true
    }

    pub(in crate::transport) fn oldest_of(&self, network: Network) -> Option<u64> {
        self.by_network.get(&network)?.first().copied()
    }

    pub(in crate::transport) fn oldest_of_largest(&self) -> Option<u64> {
        self.by_size.last().and_then(|(_, network)| self.oldest_of(*network))
    }
}
