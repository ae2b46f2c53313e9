//! The actors that have ended and that no other actor replaces.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// An actor that has ended, and that no other actor replaces.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{actor} has ended: {reason}")]
#[non_exhaustive]
pub struct Gone {
    /// The actor's kind and identity.
    pub actor: String,
    /// The reason.
    pub reason: String,
}

/// The ended actors that no other actor replaces: without them the process is not ready. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Vitals(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    gone: Mutex<BTreeMap<String, String>>,
    changed: Notify,
}

impl Vitals {
    /// The first such actor, if there is one.
    pub fn gone(&self) -> Option<Gone> {
        let (actor, reason) =
            self.lock().first_key_value().map(|(actor, reason)| (actor.clone(), reason.clone()))?;
        Some(Gone { actor, reason })
    }

    /// Waits for the first such actor.
    pub async fn failed(&self) -> Gone {
        loop {
            let changed = self.0.changed.notified();
            if let Some(gone) = self.gone() {
                return gone;
            }
            changed.await;
        }
    }

    pub(crate) fn record(&self, actor: String, reason: String) {
        self.lock().insert(actor, reason);
        self.0.changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        // No code panics while it holds the lock.
        self.0.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_waiting_callers_receive_the_first_end() {
        let vitals = Vitals::default();
        assert_eq!(vitals.gone(), None);
        let waiting = tokio::spawn({
            let vitals = vitals.clone();
            async move { vitals.failed().await }
        });
        tokio::task::yield_now().await;
        vitals.record("service a".to_owned(), "it panicked".to_owned());
        let gone = waiting.await.unwrap();
        assert_eq!(gone.to_string(), "service a has ended: it panicked");
        assert_eq!(vitals.failed().await, gone);
    }
}
