//! What is remembered of things that are over, within bounds.

use std::collections::{BTreeSet, VecDeque};

/// The latest keys, up to a number of them.
pub(crate) struct Remembered<K> {
    keys: BTreeSet<K>,
    order: VecDeque<K>,
    most: usize,
}

impl<K: Ord + Clone> Remembered<K> {
    /// Nothing yet, and never more than the `most` latest.
    pub(crate) fn new(most: usize) -> Self {
        Self { keys: BTreeSet::new(), order: VecDeque::new(), most }
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.keys.contains(key)
    }

    /// Whether it is news.
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
