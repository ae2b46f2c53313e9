//! The secrets with which a browser logs in: each works once, and not for long.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use data_encoding::BASE64URL_NOPAD;
use rand_chacha::rand_core::RngCore;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::{
    actors::runtime::Randomness,
    protocol::{hash::sha256, time::Timestamp},
};

/// How long a secret works.
const LASTS: Duration = Duration::from_secs(15 * 60);

/// The most that work at once: the oldest is forgotten for another one.
const MOST: usize = 8;

/// The hash of a secret, and when it was made.
type Secret = ([u8; 32], Timestamp);

/// The hashes of secrets that work. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Secrets(Arc<Mutex<VecDeque<Secret>>>);

impl Secrets {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Secret>> {
        // Each change is one call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new secret.
    pub(super) fn make(&self, now: Timestamp) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; 32]);
        Randomness::System.for_actor("member console").fill_bytes(&mut bytes[..]);
        let secret = Zeroizing::new(BASE64URL_NOPAD.encode(&bytes[..]));
        let mut secrets = self.lock();
        secrets.retain(|(_, made)| now.since(*made) < LASTS);
        while secrets.len() >= MOST {
            secrets.pop_front();
        }
        secrets.push_back((sha256(secret.as_bytes()), now));
        secret
    }

    /// Whether a secret works. It does not work again.
    pub(super) fn redeem(&self, secret: &str, now: Timestamp) -> bool {
        let hash = sha256(secret.trim().as_bytes());
        let mut secrets = self.lock();
        secrets.retain(|(_, made)| now.since(*made) < LASTS);
        let known = secrets.len();
        secrets.retain(|(one, _)| !bool::from(one.ct_eq(&hash)));
        secrets.len() < known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_secs(1_000_000 + seconds)
    }

    #[test]
    fn a_secret_works_once_and_for_a_quarter_of_an_hour() {
        let secrets = Secrets::default();
        let (first, second) = (secrets.make(at(0)), secrets.make(at(0)));
        assert!(!secrets.redeem("", at(0)) && !secrets.redeem("x", at(0)));
        assert!(secrets.redeem(&first, at(899)) && !secrets.redeem(&first, at(899)));
        assert!(!secrets.redeem(&second, at(900)), "too late");
    }

    #[test]
    fn there_is_a_bound_and_the_oldest_goes() {
        let secrets = Secrets::default();
        let made: Vec<_> = (0..=MOST).map(|_| secrets.make(at(0))).collect();
        assert!(!secrets.redeem(&made[0], at(1)) && made[1..].iter().all(|secret| secrets.redeem(secret, at(1))));
    }
}
