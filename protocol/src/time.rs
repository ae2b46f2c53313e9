//! Time as data. The protocol never reads a clock: the driver of a machine passes the time.

use std::{
    ops::{Add, Sub},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// By how much a clock may be set back without consequence: it is corrected by so much in normal operation.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// Milliseconds since the Unix epoch.
///
/// Arithmetic saturates: a deadline that cannot be represented is "never", not a panic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// A time that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// From whole seconds since the Unix epoch.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, rounded down.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// The time for display, as RFC 3339 in UTC to the second; `None` beyond the year 9999.
    pub fn to_date(self) -> Option<String> {
        const DAY: u64 = 24 * 3600;
        let secs = self.as_secs();
        if secs > 253_402_300_799 {
            return None;
        }
        // Days since 0000-03-01, in eras of 400 years (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
        let days = secs / DAY + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (secs % DAY / 3600, secs % 3600 / 60, secs % 60);
        Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
    }

    /// The time from `earlier` to `self`, zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Whether a wait that ends at `until` and lasts at most `most` is over: also when this is clearly before it can have begun. Then the
    /// clock was wrong at its beginning, e.g. ahead after a start without a battery, and `until` may be days away.
    pub fn is_over(self, until: Self, most: Duration) -> bool {
        self >= until || self + most + CLOCK_TOLERANCE < until
    }

    /// Whether two clocks agree as the wire format requires of signed requests (section 5): each time is rounded down
    /// to its second, and the two differ by at most the whole seconds of `skew`, inclusive.
    pub fn agrees_with(self, other: Self, skew: Duration) -> bool {
        self.as_secs().abs_diff(other.as_secs()) <= skew.as_secs()
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(rhs.as_millis()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_its_date() {
        for (secs, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_790_000_000, "2026-09-21T14:13:20Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(Timestamp::from_secs(secs).to_date().as_deref(), Some(date));
        }
        assert_eq!(Timestamp::NEVER.to_date(), None);
    }

    #[test]
    fn a_wait_is_over_at_its_end_and_before_its_beginning() {
        let (until, most) = (Timestamp::from_secs(1_000), Duration::from_secs(300));
        let is_over = |now| Timestamp::from_secs(now).is_over(until, most);
        assert_eq!([0, 639, 640, 700, 999, 1_000].map(is_over), [true, true, false, false, false, true]);
    }
}
