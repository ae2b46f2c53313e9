//! The limit on an actor's restarts, and the pause before each.

use std::{collections::VecDeque, time::Duration};

use btcr2_aggregation_protocol::time::Timestamp;

use super::EndGuard;
use crate::backoff::Backoff;

/// The number of restarts after panics before an actor is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartIntensity {
    /// At most this many restarts
    pub most: usize,
    /// within this time.
    pub within: Duration,
}

impl Default for RestartIntensity {
    /// 5 in a minute.
    fn default() -> Self {
        Self { most: 5, within: Duration::from_secs(60) }
    }
}

/// The latest restarts of one actor.
#[derive(Clone, Debug, Default)]
pub(crate) struct Restarts {
    at: VecDeque<Timestamp>,
    /// Whether the last attempt has been used.
    given_up: bool,
}

/// What to do about an actor that panicked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// Restart it after this pause.
    Again(Duration),
    /// Restart it only to end its work in an orderly way, for this reason.
    Last(String),
    /// It panicked again in its last attempt.
    GivenUp,
}

impl Restarts {
    const BACKOFF: Backoff = Backoff { first: Duration::from_millis(50), longest: Duration::from_millis(6_400) };

    /// Records that the actor panicked at `now`, and decides what to do.
    pub(crate) fn next(&mut self, now: Timestamp, intensity: RestartIntensity) -> Attempt {
        while self.at.front().is_some_and(|at| now.since(*at) >= intensity.within) {
            self.at.pop_front();
        }
        if self.at.len() >= intensity.most {
            if std::mem::replace(&mut self.given_up, true) {
                return Attempt::GivenUp;
            }
            let times = intensity.most + 1;
            return Attempt::Last(format!("its actor panicked {times} times within {:?}", intensity.within));
        }
        // The first panic may have been an accident; after another one the actor is given time.
        let pause = match u32::try_from(self.at.len()) {
            Ok(0) => Duration::ZERO,
            Ok(before) => Self::BACKOFF.delay(before),
            Err(_) => intensity.within,
        };
        self.at.push_back(now);
        Attempt::Again(pause)
    }

    /// The same for an actor that does nothing in a last attempt: the pause, or `None` when it must stop, whose reason its
    /// guard then knows.
    pub(crate) fn pause(
        &mut self,
        now: Timestamp,
        intensity: RestartIntensity,
        guard: &mut EndGuard,
    ) -> Option<Duration> {
        match self.next(now, intensity) {
            Attempt::Again(pause) => return Some(pause),
            Attempt::Last(reason) => guard.fail(reason),
            // It has its reason already.
            Attempt::GivenUp => {}
        }
        None
    }

    /// The number of restarts in the current period.
    pub(crate) fn count(&self) -> usize {
        self.at.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_become_rarer_and_end() {
        let intensity = RestartIntensity::default();
        let mut restarts = Restarts::default();
        let start = Timestamp::from_secs(1_000);
        for pause in [0, 50, 100, 200, 400] {
            assert_eq!(restarts.next(start, intensity), Attempt::Again(Duration::from_millis(pause)));
        }
        let last = Attempt::Last("its actor panicked 6 times within 60s".to_owned());
        assert_eq!(restarts.next(start, intensity), last);
        assert_eq!(restarts.next(start, intensity), Attempt::GivenUp);
    }

    #[test]
    fn restarts_of_long_ago_do_not_count() {
        let intensity = RestartIntensity::default();
        let mut restarts = Restarts::default();
        let start = Timestamp::from_secs(1_000);
        for _ in 0..5 {
            restarts.next(start, intensity);
        }
        assert_eq!(restarts.next(start + intensity.within, intensity), Attempt::Again(Duration::ZERO));
    }
}
