//! Counts of a service's messages: sent, received, and waiting for one of its actors. For hosts that measure; the
//! actors themselves do not use them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::transport::{Outbound, link::Link};

/// The number of messages of each type, by the type's short name in the wire format.
pub type ByType = BTreeMap<&'static str, u64>;

/// The counts of one service, or of several together. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Load(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    received: Mutex<ByType>,
    sent: Mutex<ByType>,
    cohorts: AtomicUsize,
    sessions: AtomicUsize,
}

/// Whose mailbox it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mailbox {
    Cohort,
    Session,
}

/// A message that waits for an actor, until this is dropped.
pub(crate) struct QueuedMessage(Load, Mailbox);

impl Load {
    /// The messages that the service received, including refused ones.
    pub fn received(&self) -> ByType {
        lock(&self.0.received).clone()
    }

    /// The messages that were passed to the transport: each to one member, or an advert to all.
    pub fn sent(&self) -> ByType {
        lock(&self.0.sent).clone()
    }

    /// The number of messages that wait for the actor of a cohort, including those for an actor that is being restored.
    pub fn waiting_for_cohorts(&self) -> usize {
        self.0.cohorts.load(Ordering::Relaxed)
    }

    /// The number of messages that wait for the actor of a signing session.
    pub fn waiting_for_sessions(&self) -> usize {
        self.0.sessions.load(Ordering::Relaxed)
    }

    pub(crate) fn count_received(&self, kind: &'static str) {
        *lock(&self.0.received).entry(kind).or_default() += 1;
    }

    /// Sends a message.
    pub(crate) fn send(&self, outbound: Outbound, link: &Link) {
        if let Outbound::Direct { body, .. } | Outbound::Broadcast { body } = &outbound {
            *lock(&self.0.sent).entry(body.short_type()).or_default() += 1;
        }
        link.send(outbound);
    }

    /// A message is on its way to an actor. It has arrived, or is lost, when the returned value is dropped: actix does
    /// not report the length of a mailbox.
    pub(crate) fn queued(&self, mailbox: Mailbox) -> QueuedMessage {
        self.of(mailbox).fetch_add(1, Ordering::Relaxed);
        QueuedMessage(self.clone(), mailbox)
    }

    fn of(&self, mailbox: Mailbox) -> &AtomicUsize {
        match mailbox {
            Mailbox::Cohort => &self.0.cohorts,
            Mailbox::Session => &self.0.sessions,
        }
    }
}

impl Drop for QueuedMessage {
    fn drop(&mut self) {
        self.0.of(self.1).fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock(counts: &Mutex<ByType>) -> MutexGuard<'_, ByType> {
    // No code panics while it holds the lock.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_queued_until_it_is_processed_or_lost() {
        let load = Load::default();
        let (first, second) = (load.queued(Mailbox::Cohort), load.queued(Mailbox::Cohort));
        let other = load.queued(Mailbox::Session);
        assert_eq!((load.waiting_for_cohorts(), load.waiting_for_sessions()), (2, 1));
        drop(first);
        drop(other);
        assert_eq!((load.waiting_for_cohorts(), load.waiting_for_sessions()), (1, 0));
        drop(second);
        assert_eq!(load.waiting_for_cohorts(), 0);
    }
}
