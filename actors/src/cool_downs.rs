//! Members that opted in and then did not fetch the requests sent to them. They are not offenders, but cost every other
//! member of the cohort a phase. They are not admitted again for a while, by DID, network address and invite. In memory
//! only.

use std::{
    collections::BTreeSet,
    num::NonZero,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use btcr2_aggregation_protocol::{did::Did, time::Timestamp};
use lru::LruCache;

use crate::{bans::end_of_ban, subject::Subject};

/// The number of members of one network address, or of one invite, after which all its other members cool down: many
/// may share one.
const SHARED: usize = 3;

/// The maximum number of subjects. Beyond it, the one whose time ends first is removed.
const MOST: NonZero<usize> = NonZero::new(16_384).expect("not zero");

/// The subject is not admitted for now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} did not fetch a request, and may opt in again after {}", end_of_ban(*.until))]
pub struct CoolingDown {
    kind: &'static str,
    until: Timestamp,
}

struct Noted {
    /// The members that were noted, at most [`SHARED`].
    members: BTreeSet<Did>,
    until: Timestamp,
}

/// The subjects that cool down.
pub(crate) struct CoolDowns {
    time: Duration,
    /// Those noted last are the most recently used.
    noted: Mutex<LruCache<Subject, Noted>>,
}

impl CoolDowns {
    /// A cool-down of `time`; zero disables it.
    pub(crate) fn new(time: Duration) -> Self {
        Self::of(time, MOST)
    }

    fn of(time: Duration, most: NonZero<usize>) -> Self {
        Self { time, noted: Mutex::new(LruCache::new(most)) }
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Subject, Noted>> {
        // No code panics while the value is partly changed.
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the member with these subjects has not fetched a request.
    pub(crate) fn note(&self, did: &Did, subjects: &[Subject], now: Timestamp) {
        if self.time.is_zero() {
            return;
        }
        let mut noted = self.lock();
        // Clients behind this machine's own address are a proxy's, so possibly all, or the operator's own programs.
        for subject in subjects.iter().filter(|subject| !subject.is_loopback()) {
            let fresh = || Noted { members: BTreeSet::new(), until: now };
            let entry = noted.get_or_insert_mut(subject.clone(), fresh);
            if entry.until <= now {
                entry.members.clear();
            }
            entry.until = now + self.time;
            if entry.members.len() < SHARED {
                entry.members.insert(did.clone());
            }
        }
    }

    /// Checks that none of `subjects` cools down.
    ///
    /// # Errors
    /// [`CoolingDown`] for the first one that does.
    pub(crate) fn check(&self, subjects: &[Subject], now: Timestamp) -> Result<(), CoolingDown> {
        let noted = self.lock();
        for subject in subjects {
            let Some(Noted { members, until }) = noted.peek(subject).filter(|noted| now < noted.until) else {
                continue;
            };
            let enough = if let Subject::Did(_) = subject { 1 } else { SHARED };
            if members.len() >= enough {
                return Err(CoolingDown { kind: subject.kind(), until: *until });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use btcr2_aggregation_protocol::{identity::Identity, key::SecretKey, network::Network};

    use super::*;

    const TIME: Duration = Duration::from_secs(600);
    const NOW: Timestamp = Timestamp::from_secs(1_750_000_000);

    fn did(number: u8) -> Did {
        Identity::from_key(SecretKey::from_bytes(&[number; 32]).unwrap(), Network::Regtest).did().clone()
    }

    fn subjects(number: u8, address: &str) -> [Subject; 2] {
        [Subject::from(&did(number)), address.parse().unwrap()]
    }

    #[test]
    fn a_did_cools_down_at_once_and_an_address_after_three_members() {
        let cooling = CoolDowns::new(TIME);
        for number in 1..=3 {
            assert_eq!(cooling.check(&subjects(9, "203.0.113.7"), NOW), Ok(()), "{number}");
            cooling.note(&did(number), &subjects(number, "203.0.113.7"), NOW);
            // The same member in another cohort.
            cooling.note(&did(number), &subjects(number, "203.0.113.7"), NOW);
            let own = cooling.check(&subjects(number, "203.0.113.8"), NOW).unwrap_err();
            assert!(own.to_string().starts_with("this DID did not fetch"), "{own}");
        }
        let shared = cooling.check(&subjects(9, "203.0.113.7"), NOW).unwrap_err();
        assert!(
            shared.to_string().contains("this network address") && shared.to_string().contains("2025-06-15"),
            "{shared}"
        );
        assert_eq!(cooling.check(&subjects(9, "203.0.113.8"), NOW), Ok(()));
        assert_eq!(cooling.check(&subjects(1, "203.0.113.7"), NOW + TIME), Ok(()), "its time is over");
        // What was counted before the end does not count again.
        cooling.note(&did(4), &subjects(4, "203.0.113.7"), NOW + TIME);
        assert_eq!(cooling.check(&subjects(9, "203.0.113.7"), NOW + TIME), Ok(()));
    }

    #[test]
    fn an_invite_cools_down_as_an_address_does_and_this_machine_never() {
        let cooling = CoolDowns::new(TIME);
        let invite: Subject = format!("invite:{}", "ab".repeat(8)).parse().unwrap();
        for number in 1..=3 {
            cooling.note(&did(number), &[invite.clone(), "127.0.0.1".parse().unwrap()], NOW);
        }
        assert!(cooling.check(&[invite], NOW).unwrap_err().to_string().starts_with("this invite"));
        assert_eq!(cooling.check(&["127.0.0.1".parse().unwrap()], NOW), Ok(()));
    }

    #[test]
    fn the_number_of_subjects_is_bounded() {
        let cooling = CoolDowns::of(TIME, NonZero::new(4).unwrap());
        for number in 1..=20 {
            cooling.note(&did(number), &[Subject::from(&did(number))], NOW + Duration::from_secs(number.into()));
            assert!(cooling.lock().len() <= 4);
        }
        assert!(cooling.check(&[Subject::from(&did(20))], NOW).is_err(), "the latest is");
        assert!(cooling.check(&[Subject::from(&did(1))], NOW).is_ok());
        let never = CoolDowns::new(Duration::ZERO);
        never.note(&did(1), &[Subject::from(&did(1))], NOW);
        assert!(never.check(&[Subject::from(&did(1))], NOW).is_ok());
    }
}
