//! Counts of an HTTP server's contents and refusals.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use strum::{EnumCount, EnumIter, IntoEnumIterator, IntoStaticStr};

use super::Refusal;

/// A limit at which requests were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Limit {
    /// Requests of one address.
    Address,
    /// Requests of one IPv6 site.
    Site,
    /// Requests of the DIDs of one address that are not members.
    // The label in metrics is stable.
    #[strum(serialize = "strangers")]
    Outsiders,
    /// Requests of one DID.
    Did,
    /// Stored nonces.
    Nonces,
    /// Advert streams.
    AdvertStreams,
    /// Inboxes.
    Inboxes,
    /// Requests that wait for an opt-in.
    EarlyInboxes,
    /// The time within which a slow recipient has to accept a message.
    Delivery,
    /// Requests for history that wait for a board to be read.
    History,
    /// Checks of control over a DID.
    Control,
}

impl Limit {
    /// Every limit.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::iter()
    }

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// A server's current contents, and its refusals so far.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpReport {
    /// The number of inboxes.
    pub inboxes: usize,
    /// The number of messages in them: those that were not read, and those that were sent but not confirmed by their
    /// readers.
    pub messages: usize,
    /// The size of their bodies, in bytes.
    pub bytes: usize,
    /// Messages that were dropped for lack of space, so far.
    pub dropped: u64,
    /// Requests that were refused so far, by reason; all reasons, in the order of [`Refusal::ALL`].
    pub refusals: Vec<(Refusal, u64)>,
    /// How often each limit was reached so far; all limits.
    pub limited: Vec<(Limit, u64)>,
    /// The number of open advert streams.
    pub advert_streams: usize,
    /// Advert streams that were closed for a newer one of their address, so far.
    pub advert_streams_closed: u64,
    /// The number of requests for inboxes that wait for an opt-in.
    pub early_inboxes: usize,
}

/// The counters.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) inboxes: AtomicUsize,
    pub(super) messages: AtomicUsize,
    pub(super) bytes: AtomicUsize,
    dropped: AtomicU64,
    refusals: [AtomicU64; Refusal::ALL.len()],
    limited: [AtomicU64; Limit::COUNT],
    pub(super) advert_streams: AtomicUsize,
    pub(super) advert_streams_closed: AtomicU64,
}

impl Counts {
    pub(super) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        // The discriminants are in the order of `ALL`.
        if let Some(count) = self.refusals.get(refusal as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a limit that was reached, and returns the refusal.
    pub(super) fn limited(&self, limit: Limit) -> Refusal {
        // The discriminants are in the order of `iter`.
        if let Some(count) = self.limited.get(limit as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Refusal::RateLimited
    }

    pub(super) fn report(&self, early_inboxes: usize) -> HttpReport {
        let refusals = Refusal::ALL.iter().zip(&self.refusals);
        HttpReport {
            inboxes: self.inboxes.load(Ordering::Relaxed),
            messages: self.messages.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            refusals: refusals.map(|(refusal, count)| (*refusal, count.load(Ordering::Relaxed))).collect(),
            limited: Limit::iter()
                .zip(&self.limited)
                .map(|(limit, n)| (limit, n.load(Ordering::Relaxed)))
                .collect(),
            advert_streams: self.advert_streams.load(Ordering::Relaxed),
            advert_streams_closed: self.advert_streams_closed.load(Ordering::Relaxed),
            early_inboxes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_is_counted_as_itself() {
        for refusal in Refusal::ALL {
            let counts = Counts::default();
            counts.refused(refusal);
            let counted: Vec<_> = counts.report(0).refusals.into_iter().filter(|(_, count)| *count == 1).collect();
            assert_eq!(counted, [(refusal, 1)]);
        }
    }

    #[test]
    fn each_limit_is_counted_as_itself() {
        for limit in Limit::all() {
            let counts = Counts::default();
            assert_eq!(counts.limited(limit), Refusal::RateLimited);
            let counted: Vec<_> = counts.report(0).limited.into_iter().filter(|(_, count)| *count == 1).collect();
            assert_eq!(counted, [(limit, 1)]);
        }
    }
}
