//! What is said seldom, however often it happens: one time a minute for each key, with the number of times that were left out.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// How long the same is not said again.
pub(crate) const SELDOM: Duration = Duration::from_secs(60);

/// When something was said last, for at most so many keys.
pub(crate) struct Seldom<K> {
    said: BTreeMap<K, (Instant, u64)>,
    most: usize,
}

impl<K: Ord> Seldom<K> {
    /// For at most `most` keys in a minute: nothing is said for those beyond.
    pub(crate) const fn new(most: usize) -> Self {
        Self { said: BTreeMap::new(), most }
    }

    /// It has happened: with how many times before that were not said, if it is to be said now.
    pub(crate) fn happened(&mut self, key: K) -> Option<u64> {
        let now = Instant::now();
        let is_lately = |at: &Instant| now.duration_since(*at) < SELDOM;
        if self.said.len() >= self.most && !self.said.contains_key(&key) {
            self.said.retain(|_, (at, _)| is_lately(at));
            if self.said.len() >= self.most {
                return None;
            }
        }
        match self.said.get_mut(&key) {
            Some((at, more)) if is_lately(at) => {
                *more += 1;
                None
            }
            known => {
                let more = known.map_or(0, |(_, more)| *more);
                self.said.insert(key, (now, 0));
                Some(more)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_is_said_once_a_minute_and_how_often_it_happened() {
        let mut seldom = Seldom::new(2);
        assert_eq!(seldom.happened("a"), Some(0));
        assert_eq!((seldom.happened("a"), seldom.happened("a")), (None, None));
        assert_eq!((seldom.happened("b"), seldom.happened("c")), (Some(0), None), "there is room for two");
        tokio::time::advance(SELDOM).await;
        assert_eq!((seldom.happened("a"), seldom.happened("a")), (Some(2), None));
        assert_eq!(seldom.happened("c"), Some(0), "the room of one of which nothing was said for a minute");
    }
}
