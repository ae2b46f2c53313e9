//! The delay before the next attempt.

use std::time::Duration;

/// The delays between attempts: doubling from `first` to `longest`, each up to a fifth shorter or longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// The maximum delay.
    pub longest: Duration,
}

impl Default for Backoff {
    /// A second, doubling to half a minute.
    fn default() -> Self {
        Self { first: Duration::from_secs(1), longest: Duration::from_secs(30) }
    }
}

impl Backoff {
    /// The delay after `failures` in a row, without jitter.
    pub fn delay(self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }

    /// The delay after `failures` in a row, changed by up to a fifth by `random`, so that clients that were
    /// disconnected together do not reconnect together.
    pub fn jittered(self, failures: u32, random: u32) -> Duration {
        let delay = self.delay(failures);
        let fifth = delay / 5;
        delay - fifth + fifth * (random % 2_001) / 1_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_from_a_second_to_half_a_minute() {
        let backoff = Backoff::default();
        let seconds: Vec<_> = (1..=8).map(|failures| backoff.delay(failures).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(backoff.delay(0), backoff.first);
        assert_eq!(backoff.delay(u32::MAX), backoff.longest);
    }

    #[test]
    fn jitter_moves_a_delay_by_up_to_a_fifth_and_reaches_both_ends() {
        let backoff = Backoff::default();
        let millis = |failures, random| backoff.jittered(failures, random).as_millis();
        assert_eq!((millis(1, 0), millis(1, 1_000), millis(1, 2_000)), (800, 1_000, 1_200));
        assert_eq!((millis(9, 0), millis(9, 2_000)), (24_000, 36_000));
        for random in (0..u32::MAX).step_by(10_000_019) {
            assert!((1_600..=2_400).contains(&millis(2, random)), "{random}");
        }
    }
}
