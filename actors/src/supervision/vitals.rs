//! Which actors without a substitute are gone.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// An actor that is gone, and that nothing replaces.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{actor} has ended: {reason}")]
pub struct Gone {
    /// Which actor, by its kind and its identity.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// Which actors without a substitute are gone: without them the process is not ready. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Vitals(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    gone: Mutex<BTreeMap<String, String>>,
    changed: Notify,
}

impl Vitals {
    /// The first that is gone, if any is.
    pub fn gone(&self) -> Option<Gone> {
        let (actor, reason) =
            self.lock().first_key_value().map(|(actor, reason)| (actor.clone(), reason.clone()))?;
        Some(Gone { actor, reason })
    }

    /// Waits until one is gone.
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
        // Nothing panics while it holds the lock.
        self.0.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_waits_learns_of_the_first_end() {
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
