//! Bounded memory of past keys.

use std::{
    borrow::Borrow,
    collections::{BTreeSet, VecDeque},
};

/// The latest keys, up to a maximum number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered<K> {
    keys: BTreeSet<K>,
    order: VecDeque<K>,
    most: usize,
}

impl<K: Ord + Clone> Remembered<K> {
    /// An empty memory of at most the `most` latest keys.
    pub fn new(most: usize) -> Self {
        Self { keys: BTreeSet::new(), order: VecDeque::new(), most }
    }

    /// Whether the key is one of them.
    pub fn contains(&self, key: &K) -> bool {
        self.keys.contains(key)
    }

    /// The key that is equal to `key`.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&K>
    where
        K: Borrow<Q>,
    {
        self.keys.get(key)
    }

    /// Adds the key; returns whether it is new.
    pub fn insert(&mut self, key: K) -> bool {
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

    /// Removes the key.
    pub fn forget(&mut self, key: &K) {
        if self.keys.remove(key) {
            self.order.retain(|other| other != key);
        }
    }

    /// The keys, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &K> {
        self.order.iter()
    }
}
