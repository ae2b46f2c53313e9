//! What an HTTP server holds and refuses, counted.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::Refusal;

/// What a server holds just now, and what it has refused so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpReport {
    /// How many inboxes there are.
    pub inboxes: usize,
    /// How many messages they hold: those that nobody has read, and those that were sent but not confirmed by their readers.
    pub messages: usize,
    /// How many bytes of bodies these have.
    pub bytes: usize,
    /// Messages that there was no room for, so far.
    pub dropped: u64,
    /// Requests that were refused so far, by reason; every reason, in the order of [`Refusal::ALL`].
    pub refusals: Vec<(Refusal, u64)>,
}

/// Where it is counted.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) inboxes: AtomicUsize,
    pub(super) messages: AtomicUsize,
    pub(super) bytes: AtomicUsize,
    dropped: AtomicU64,
    refusals: [AtomicU64; Refusal::ALL.len()],
}

impl Counts {
    pub(super) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        // They are numbered in the order of `ALL`.
        if let Some(count) = self.refusals.get(refusal as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn report(&self) -> HttpReport {
        let refusals = Refusal::ALL.iter().zip(&self.refusals);
        HttpReport {
            inboxes: self.inboxes.load(Ordering::Relaxed),
            messages: self.messages.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            refusals: refusals.map(|(refusal, count)| (*refusal, count.load(Ordering::Relaxed))).collect(),
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
            let counted: Vec<_> = counts.report().refusals.into_iter().filter(|(_, count)| *count == 1).collect();
            assert_eq!(counted, [(refusal, 1)]);
        }
    }
}
