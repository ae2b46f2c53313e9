//! Results by DID and options, as of one tip. Another tip empties the cache: no result is served across blocks.

use std::sync::Arc;

use ::bitcoin::BlockHash;
use lru::LruCache;

use super::answer::Answer;

/// The largest key that is stored, in bytes: options are text of a client.
const MAX_KEY: usize = 512;

/// What an entry costs beside its texts.
const OVERHEAD: usize = 256;

/// The cache of one chain, bounded by the bytes of its entries.
pub(super) struct Cache {
    most: usize,
    bytes: usize,
    tip: Option<BlockHash>,
    entries: LruCache<String, Arc<Answer>>,
}

impl Cache {
    /// Space for so many bytes; 0 stores nothing.
    pub(super) fn new(most: usize) -> Self {
        Self { most, bytes: 0, tip: None, entries: LruCache::unbounded() }
    }

    /// The result as of that tip.
    pub(super) fn get(&mut self, tip: BlockHash, key: &str) -> Option<Arc<Answer>> {
        if self.tip != Some(tip) {
            self.entries.clear();
            (self.tip, self.bytes) = (Some(tip), 0);
        }
        self.entries.get(key).cloned()
    }

    /// Stores a result of that tip, unless the cache has another tip's by now. The least recently used ones make space.
    pub(super) fn put(&mut self, tip: BlockHash, key: &str, answer: &Arc<Answer>) {
        let size = cost(key, answer);
        if self.tip != Some(tip) || key.len() > MAX_KEY || size > self.most {
            return;
        }
        self.bytes += size;
        if let Some((old_key, old)) = self.entries.push(key.to_owned(), Arc::clone(answer)) {
            self.bytes -= cost(&old_key, &old);
        }
        while self.bytes > self.most
            && let Some((old_key, old)) = self.entries.pop_lru()
        {
            self.bytes -= cost(&old_key, &old);
        }
    }

    /// The number of results, and their bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }
}

fn cost(key: &str, answer: &Answer) -> usize {
    key.len() + answer.size() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use ::bitcoin::hashes::Hash;

    use super::*;

    fn tip(byte: u8) -> BlockHash {
        BlockHash::from_byte_array([byte; 32])
    }

    fn answer(size: usize) -> Arc<Answer> {
        Arc::new(Answer::for_tests("x".repeat(size)))
    }

    #[test]
    fn no_result_is_served_across_another_tip() {
        let mut cache = Cache::new(10_000);
        assert!(cache.get(tip(1), "a").is_none());
        cache.put(tip(1), "a", &answer(10));
        assert!(cache.get(tip(1), "a").is_some());
        assert!(cache.get(tip(2), "a").is_none());
        // Begun at the old tip, and finished after the new one was seen.
        cache.put(tip(1), "b", &answer(10));
        assert!(cache.get(tip(2), "b").is_none() && cache.get(tip(1), "b").is_none());
        assert_eq!(cache.size(), (0, 0));
    }

    #[test]
    fn the_least_recently_used_results_make_space() {
        let mut cache = Cache::new(3 * (100 + OVERHEAD + 1));
        let _ = cache.get(tip(1), "");
        for key in ["a", "b", "c"] {
            cache.put(tip(1), key, &answer(100));
        }
        assert!(cache.get(tip(1), "a").is_some());
        cache.put(tip(1), "d", &answer(100));
        assert!(cache.get(tip(1), "b").is_none() && cache.get(tip(1), "a").is_some());
        // The same key again, and results that are too large.
        cache.put(tip(1), "d", &answer(50));
        cache.put(tip(1), "e", &answer(5_000));
        cache.put(tip(1), &"k".repeat(MAX_KEY + 1), &answer(1));
        let (entries, bytes) = cache.size();
        assert!(entries == 3 && bytes <= cache.most, "{entries} {bytes}");
        while cache.entries.pop_lru().is_some_and(|(key, old)| {
            cache.bytes -= cost(&key, &old);
            true
        }) {}
        assert_eq!(cache.bytes, 0);
    }

    #[test]
    fn without_space_nothing_is_stored() {
        let mut cache = Cache::new(0);
        let _ = cache.get(tip(1), "");
        cache.put(tip(1), "a", &answer(1));
        assert_eq!(cache.size(), (0, 0));
    }
}
