//! Limits on the seats that one DID, one network address and one invite may have in cohorts at a time: identifiers cost
//! nothing, so without a limit one peer could fill every cohort.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use btcr2_aggregation_protocol::{did::Did, time::Timestamp};

use crate::{
    cool_downs::{CoolDowns, CoolingDown},
    subject::Subject,
};

/// The maximum number of seats at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeatLimit {
    /// In cohorts that have not ended, formed or not.
    pub cohorts: u32,
    /// In cohorts that have not formed.
    pub pending: u32,
}

impl SeatLimit {
    /// No limit.
    pub const NONE: Self = Self { cohorts: u32::MAX, pending: u32::MAX };
}

/// The maximum number of seats of each kind of subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeatLimits {
    /// Of one DID.
    pub did: SeatLimit,
    /// Of one network address, if the transport knows it. This machine's own address is not counted: its clients are a
    /// proxy's, so possibly all, or the operator's own programs.
    pub address: SeatLimit,
    /// Of one invite.
    pub invite: SeatLimit,
    /// How long a member that opted in, and then did not fetch a request, is not admitted again: its DID at once, its
    /// network address and its invite after three such members. Zero disables it.
    pub cool_down: Duration,
}

impl Default for SeatLimits {
    /// 64 cohorts, 16 of them not formed, for a DID; 1024 and 256 for an address; an invite is limited by its uses. The
    /// cool-down is ten minutes.
    fn default() -> Self {
        Self {
            did: SeatLimit { cohorts: 64, pending: 16 },
            address: SeatLimit { cohorts: 1024, pending: 256 },
            invite: SeatLimit::NONE,
            cool_down: Duration::from_secs(600),
        }
    }
}

impl SeatLimits {
    fn of(&self, subject: &Subject) -> SeatLimit {
        match subject {
            Subject::Did(_) => self.did,
            own if own.is_loopback() => SeatLimit::NONE,
            Subject::Address(_) => self.address,
            Subject::Invite(_) => self.invite,
        }
    }
}

/// Why a subject gets no seat now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoSeat {
    /// It has too many seats.
    #[error(transparent)]
    Taken(#[from] SeatsTaken),
    /// It did not fetch a request in a cohort.
    #[error(transparent)]
    CoolingDown(#[from] CoolingDown),
}

/// A subject has too many seats.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} has {taken} seats in cohorts{}, the most that it may have at a time", if *.pending { " that have not formed" } else { "" })]
pub struct SeatsTaken {
    kind: &'static str,
    taken: u32,
    pending: bool,
}

#[derive(Clone, Copy, Default)]
struct Taken {
    cohorts: u32,
    pending: u32,
}

/// The seats of a service's cohorts. Clones share them.
#[derive(Clone)]
pub struct Seats(Arc<Shared>);

struct Shared {
    limits: SeatLimits,
    cool_downs: CoolDowns,
    taken: Mutex<BTreeMap<Subject, Taken>>,
}

impl Default for Seats {
    fn default() -> Self {
        Self::new(SeatLimits::default())
    }
}

impl Seats {
    /// Seats within `limits`.
    pub fn new(limits: SeatLimits) -> Self {
        let cool_downs = CoolDowns::new(limits.cool_down);
        Self(Arc::new(Shared { limits, cool_downs, taken: Mutex::default() }))
    }

    /// Checks that each of `subjects` may have one more seat.
    ///
    /// # Errors
    /// [`NoSeat`] for the first that may not.
    pub fn check(&self, subjects: &[Subject], now: Timestamp) -> Result<(), NoSeat> {
        self.0.cool_downs.check(subjects, now)?;
        Ok(self.check_taken(subjects)?)
    }

    /// The member with these subjects has not fetched a request.
    pub(crate) fn not_fetched(&self, did: &Did, subjects: &[Subject], now: Timestamp) {
        self.0.cool_downs.note(did, subjects, now);
    }

    fn check_taken(&self, subjects: &[Subject]) -> Result<(), SeatsTaken> {
        let taken = self.lock();
        for subject in subjects {
            let (limit, taken) = (self.0.limits.of(subject), taken.get(subject).copied().unwrap_or_default());
            let kind = subject.kind();
            if taken.pending >= limit.pending {
                return Err(SeatsTaken { kind, taken: taken.pending, pending: true });
            }
            if taken.cohorts >= limit.cohorts {
                return Err(SeatsTaken { kind, taken: taken.cohorts, pending: false });
            }
        }
        Ok(())
    }

    /// Takes a seat for `subjects`, whatever the limits: after a restart, for example, a member already has its seat.
    pub(crate) fn take(&self, subjects: Vec<Subject>) -> Seat {
        let mut taken = self.lock();
        for subject in &subjects {
            let taken = taken.entry(subject.clone()).or_default();
            taken.cohorts += 1;
            taken.pending += 1;
        }
        Seat { seats: self.clone(), subjects, is_pending: true }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Subject, Taken>> {
        // No code panics while the value is partly changed.
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A seat in a cohort; dropping it frees it.
pub(crate) struct Seat {
    seats: Seats,
    subjects: Vec<Subject>,
    is_pending: bool,
}

impl Seat {
    /// The cohort has formed with it.
    pub(crate) fn formed(&mut self) {
        if std::mem::take(&mut self.is_pending) {
            let mut taken = self.seats.lock();
            for subject in &self.subjects {
                if let Some(taken) = taken.get_mut(subject) {
                    taken.pending = taken.pending.saturating_sub(1);
                }
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        for subject in &self.subjects {
            if let Some(count) = taken.get_mut(subject) {
                count.cohorts = count.cohorts.saturating_sub(1);
                count.pending = count.pending.saturating_sub(u32::from(self.is_pending));
                if count.cohorts == 0 {
                    taken.remove(subject);
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_counts_until_it_is_free_and_as_pending_until_the_cohort_forms() {
        let limit = SeatLimit { cohorts: 2, pending: 1 };
        let seats = Seats::new(SeatLimits { address: limit, ..SeatLimits::default() });
        let of = |text: &str| vec![text.parse::<Subject>().unwrap()];
        let (one, other) = (of("203.0.113.7"), of("203.0.113.8"));
        let mut first = seats.take(one.clone());
        assert!(seats.check_taken(&one).unwrap_err().to_string().contains("not formed"));
        assert!(seats.check_taken(&other).is_ok());
        first.formed();
        assert!(seats.check_taken(&one).is_ok());
        let mut second = seats.take(one.clone());
        second.formed();
        second.formed();
        assert!(!seats.check_taken(&one).unwrap_err().to_string().contains("not formed"));
        drop(first);
        assert!(seats.check_taken(&one).is_ok());
        drop(second);
        assert!(seats.lock().is_empty(), "no subject is remembered");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_this_machine_is_not_counted() {
        let limit = SeatLimit { cohorts: 1, pending: 1 };
        let seats = Seats::new(SeatLimits { address: limit, ..SeatLimits::default() });
        let of = |text: &str| vec![text.parse::<Subject>().unwrap()];
        let _one = seats.take(of("2001:db8::1"));
        assert!(seats.check_taken(&of("2001:db8::2")).is_err());
        assert!(seats.check_taken(&of("2001:db8:0:1::1")).is_ok());
        for own in ["127.0.0.1", "::1"] {
            let _seat = seats.take(of(own));
            assert!(seats.check_taken(&of(own)).is_ok(), "{own}");
        }
    }
}
