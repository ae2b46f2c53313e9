//! Time and randomness of the actors, both injected.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use btcr2_aggregation_protocol::{hash::sha256_concat, time::Timestamp};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use tokio::time::Instant;

/// The longest sleep towards a time of the wall clock. Timers use a monotonic clock, which does not notice when the
/// wall clock is set or the machine was suspended; after each sleep the actor reads the wall clock again.
pub const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// The wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Source);

#[derive(Clone, Copy, Debug)]
enum Source {
    /// The system's clock, read at each use: it may be set while the program runs.
    System,
    /// Driven by tokio's clock: under a paused clock it stands still and advances with it, so that tests need not
    /// sleep.
    Driven { epoch: Timestamp, started: Instant, moved: Option<&'static AtomicI64> },
}

/// Sets a clock, as operators, NTP and the end of a suspension do.
#[derive(Clone, Copy, Debug)]
pub struct ClockHands(&'static AtomicI64);

impl ClockHands {
    /// Moves the clock forward.
    pub fn forward(&self, by: Duration) {
        self.0.fetch_add(millis(by), Ordering::SeqCst);
    }

    /// Moves the clock backward.
    pub fn backward(&self, by: Duration) {
        self.0.fetch_sub(millis(by), Ordering::SeqCst);
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl Clock {
    /// The system's clock.
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that shows `epoch` now, and advances with tokio's.
    pub fn starting_at(epoch: Timestamp) -> Self {
        Self(Source::Driven { epoch, started: Instant::now(), moved: None })
    }

    /// The same, and the means to set it: for tests, because its memory is never freed.
    pub fn movable(epoch: Timestamp) -> (Self, ClockHands) {
        let moved: &'static AtomicI64 = Box::leak(Box::default());
        (Self(Source::Driven { epoch, started: Instant::now(), moved: Some(moved) }), ClockHands(moved))
    }

    /// The current time.
    pub fn now(&self) -> Timestamp {
        match self.0 {
            Source::System => {
                Timestamp::default() + SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
            }
            Source::Driven { epoch, started, moved } => {
                let now = epoch + started.elapsed();
                let moved = moved.map_or(0, |moved| moved.load(Ordering::SeqCst));
                let by = Duration::from_millis(moved.unsigned_abs());
                if moved < 0 { now - by } else { now + by }
            }
        }
    }

    /// How long to sleep towards `deadline` before the clock is read again.
    pub fn nap(&self, deadline: Timestamp) -> Duration {
        // Timers and clocks count in milliseconds: without one more, a sleep would sometimes end too early.
        (deadline.since(self.now()) + Duration::from_millis(1)).min(LONGEST_SLEEP)
    }
}

/// The source of the actors' random number generators.
#[derive(Clone, Copy, Debug)]
pub enum Randomness {
    /// Each generator is seeded by the operating system. The only choice for real keys or coins.
    System,
    /// Each generator is seeded from this seed and the actor's name, so that a run can be repeated. Two runs with one
    /// seed and one key use MuSig2 nonces twice: only for demonstrations, tests and simulations with throw-away keys.
    Seeded([u8; 32]),
}

impl Randomness {
    /// The generator of the actor called `name`.
    pub fn for_actor(&self, name: &str) -> ChaCha20Rng {
        match self {
            Self::System => ChaCha20Rng::from_os_rng(),
            Self::Seeded(seed) => ChaCha20Rng::from_seed(sha256_concat(&[seed, name.as_bytes()])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_set_clock_shows_the_new_time_and_continues() {
        let (clock, hands) = Clock::movable(Timestamp::from_secs(1_000));
        hands.forward(Duration::from_secs(50));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(clock.now(), Timestamp::from_secs(1_051));
        hands.backward(Duration::from_secs(100));
        assert_eq!(clock.now(), Timestamp::from_secs(951));
        hands.backward(Duration::from_secs(10_000));
        assert_eq!(clock.now(), Timestamp::default(), "the clock saturates at zero");
    }

    #[tokio::test(start_paused = true)]
    async fn the_systems_clock_is_read_at_each_use() {
        let clock = Clock::system();
        let before = clock.now();
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert!(clock.now().since(before) < Duration::from_secs(600), "tokio's clock does not drive it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_nap_is_never_longer_than_the_longest_sleep() {
        let clock = Clock::starting_at(Timestamp::from_secs(1_000));
        assert_eq!(clock.nap(Timestamp::NEVER), LONGEST_SLEEP);
        assert_eq!(clock.nap(Timestamp::from_secs(1_001)), Duration::from_millis(1_001));
        assert_eq!(clock.nap(Timestamp::from_secs(1)), Duration::from_millis(1));
    }
}
