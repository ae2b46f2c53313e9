//! Bounded memory of past keys.

use std::collections::{BTreeSet, VecDeque};

/// The latest keys, up to a maximum number.
pub(crate) struct Remembered<K> {
    keys: BTreeSet<K>,
    order: VecDeque<K>,
    most: usize,
}

impl<K: Ord + Clone> Remembered<K> {
    /// An empty memory of at most the `most` latest keys.
    pub(crate) fn new(most: usize) -> Self {
        Self { keys: BTreeSet::new(), order: VecDeque::new(), most }
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.keys.contains(key)
    }

    /// Adds the key; returns whether it is new.
    pub(crate) fn insert(&mut self, key: K) -> bool {
        let news = self.keys.insert(key.clone());
        if news {
            self.order.push_back(key);
        }
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
        news
    }

    pub(crate) fn forget(&mut self, key: &K) {
        if self.keys.remove(key) {
            self.order.retain(|other| other != key);
        }
    }
}
