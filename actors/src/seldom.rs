//! Rate-limited log lines: one a minute for each key, with the number of omitted repetitions.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// How long a repetition is not logged.
pub(crate) const SELDOM: Duration = Duration::from_secs(60);

/// When each key was last logged, for a bounded number of keys.
pub(crate) struct Seldom<K> {
    said: BTreeMap<K, (Instant, u64)>,
    most: usize,
}

impl<K: Ord> Seldom<K> {
    /// For at most `most` keys in a minute: further keys are not logged.
    pub(crate) const fn new(most: usize) -> Self {
        Self { said: BTreeMap::new(), most }
    }

    /// Counts an occurrence. `Some` if it should be logged now, with the number of omitted occurrences before it.
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
        assert_eq!((seldom.happened("b"), seldom.happened("c")), (Some(0), None), "there is space for two");
        tokio::time::advance(SELDOM).await;
        assert_eq!((seldom.happened("a"), seldom.happened("a")), (Some(2), None));
        assert_eq!(seldom.happened("c"), Some(0), "in place of a key that was not logged for a minute");
    }
}
