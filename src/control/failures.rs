//! Back-off after failed logins, of each network address and of each token.
//!
//! Never a lock: an address waits at most a minute. A token that is guessed at is not refused to its owner, since its secret cannot be
//! guessed; only the answers to wrong guesses are slowed down. One-time passwords can be guessed, by those who have the token: after wrong
//! ones its owner waits too. This machine's own addresses, behind which all users of a proxy or tunnel
//! are, are not limited by address.

use std::{
    net::IpAddr,
    num::NonZero,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lru::LruCache;

use crate::{actors::subject::NetworkAddress, protocol::time::Timestamp};

/// How many failures are free.
const FREE: u32 = 3;

/// The delay after the first failure that is not, which doubles with each further one; and the longest.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// After so long without a failure an address or a token starts anew.
const FORGOTTEN: Duration = Duration::from_secs(15 * 60);

/// The most addresses and tokens that are remembered. Beyond it the one that failed longest ago is dropped.
const MOST: NonZero<usize> = NonZero::new(16_384).expect("not zero");

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Address(NetworkAddress),
    Token(String),
    /// The one-time passwords of a token.
    Codes(String),
}

#[derive(Clone, Copy)]
struct Failed {
    times: u32,
    last: Timestamp,
    until: Timestamp,
}

/// The failures so far.
pub(crate) struct Failures(Mutex<LruCache<Subject, Failed>>);

impl Default for Failures {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MOST)))
    }
}

impl Failures {
    /// How long an address still has to wait; zero if it need not.
    pub(crate) fn wait_of_address(&self, address: IpAddr, now: Timestamp) -> Duration {
        self.wait(&Subject::Address(address.into()), now)
    }

    /// How long guesses at a token still have to wait.
    pub(crate) fn wait_of_token(&self, id: &str, now: Timestamp) -> Duration {
        self.wait(&Subject::Token(id.to_owned()), now)
    }

    /// A login has failed, of an address if it counts, and at a token if one has this identifier.
    pub(crate) fn note(&self, address: Option<IpAddr>, token: Option<&str>, now: Timestamp) {
        let address = address.map(|address| Subject::Address(address.into()));
        self.count(address.into_iter().chain(token.map(|id| Subject::Token(id.to_owned()))), now);
    }

    fn count(&self, subjects: impl Iterator<Item = Subject>, now: Timestamp) {
        for subject in subjects {
            let mut failures = self.lock();
            let failed = failures.get_or_insert_mut(subject, || Failed { times: 0, last: now, until: now });
            if now.since(failed.last) >= FORGOTTEN {
                failed.times = 0;
            }
            failed.times = failed.times.saturating_add(1);
            failed.last = now;
            if let Some(doublings) = failed.times.checked_sub(FREE + 1) {
                failed.until = now + FIRST.saturating_mul(1 << doublings.min(16)).min(LONGEST);
            }
        }
    }

    /// How long one-time passwords of a token still have to wait.
    pub(crate) fn wait_of_codes(&self, id: &str, now: Timestamp) -> Duration {
        self.wait(&Subject::Codes(id.to_owned()), now)
    }

    /// A one-time password was wrong.
    pub(crate) fn note_code(&self, address: Option<IpAddr>, id: &str, now: Timestamp) {
        let address = address.map(|address| Subject::Address(address.into()));
        self.count(address.into_iter().chain([Subject::Codes(id.to_owned())]), now);
    }

    fn wait(&self, subject: &Subject, now: Timestamp) -> Duration {
        let until = self.lock().peek(subject).map(|failed| failed.until);
        until.filter(|until| !now.is_over(*until, LONGEST)).map_or(Duration::ZERO, |until| until.since(now))
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Subject, Failed>> {
        // No code panics while the value is partly changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_a_minute_and_is_forgotten() {
        let failures = Failures::default();
        let address: IpAddr = [192, 0, 2, 1].into();
        let mut now = Timestamp::from_secs(1_000);
        let mut waits = Vec::new();
        for _ in 0..12 {
            failures.note(Some(address), Some("token"), now);
            let wait = failures.wait_of_address(address, now);
            assert_eq!(failures.wait_of_token("token", now), wait);
            waits.push(wait.as_secs());
            now = now + wait;
            assert!(failures.wait_of_address(address, now).is_zero(), "it may try again");
        }
        assert_eq!(waits, [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert!(failures.wait_of_address([192, 0, 2, 2].into(), now).is_zero(), "another address");
        now = now + FORGOTTEN;
        failures.note(Some(address), None, now);
        assert!(failures.wait_of_address(address, now).is_zero(), "it starts anew");
    }

    #[test]
    fn many_addresses_do_not_make_it_grow() {
        let failures = Failures::default();
        for number in 0..20_000_u32 {
            failures.note(Some(number.to_be_bytes().into()), None, Timestamp::from_secs(1));
        }
        assert_eq!(failures.lock().len(), MOST.get());
    }
}
