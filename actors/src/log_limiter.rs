//! Rate-limited log lines: one a minute for each key, with the number of omitted repetitions.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// How long a repetition is not logged.
pub(crate) const LOG_PERIOD: Duration = Duration::from_secs(60);

/// When each key was last logged, for a bounded number of keys.
pub(crate) struct LogLimiter<K> {
    logged: BTreeMap<K, (Instant, u64)>,
    most: usize,
}

impl<K: Ord> LogLimiter<K> {
    /// For at most `most` keys in a minute: further keys are not logged.
    pub(crate) const fn new(most: usize) -> Self {
        Self { logged: BTreeMap::new(), most }
    }

    /// Counts an occurrence. `Some` if it should be logged now, with the number of omitted occurrences before it.
    pub(crate) fn occurred(&mut self, key: K) -> Option<u64> {
        let now = Instant::now();
        let is_lately = |at: &Instant| now.duration_since(*at) < LOG_PERIOD;
        if self.logged.len() >= self.most && !self.logged.contains_key(&key) {
            self.logged.retain(|_, (at, _)| is_lately(at));
            if self.logged.len() >= self.most {
                return None;
            }
        }
        match self.logged.get_mut(&key) {
            Some((at, more)) if is_lately(at) => {
                *more += 1;
                None
            }
            known => {
                let more = known.map_or(0, |(_, more)| *more);
                self.logged.insert(key, (now, 0));
                Some(more)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_repetition_is_logged_once_a_minute_with_the_omitted_count() {
        let mut limiter = LogLimiter::new(2);
        assert_eq!(limiter.occurred("a"), Some(0));
        assert_eq!((limiter.occurred("a"), limiter.occurred("a")), (None, None));
        assert_eq!((limiter.occurred("b"), limiter.occurred("c")), (Some(0), None), "there is space for two");
        tokio::time::advance(LOG_PERIOD).await;
        assert_eq!((limiter.occurred("a"), limiter.occurred("a")), (Some(2), None));
        assert_eq!(limiter.occurred("c"), Some(0), "in place of a key that was not logged for a minute");
    }
}
