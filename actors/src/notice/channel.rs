//! The channel on which notices are published.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

use serde::Serialize;
use serde_json::Value;
use tokio::sync::broadcast;

/// A receiver of every notice, in the order of publication. It is called on the thread of the actor that publishes, so it
/// only stores what it needs.
pub(crate) trait Sink<N>: Send + Sync {
    /// A notice was published.
    fn receive(&self, notice: &Arc<N>);

    /// No further notice will be published.
    fn close(&self);
}

/// The channel on which notices are published. Clones share it.
///
/// The channel is allocated on the first subscribe: a process may have a hundred thousand participants without
/// subscribers.
pub struct Notices<N>(Arc<Shared<N>>);

struct Shared<N> {
    capacity: usize,
    channel: OnceLock<broadcast::Sender<Arc<N>>>,
    sinks: Mutex<Vec<Weak<dyn Sink<N>>>>,
    /// Receives the same notices.
    parent: Option<Notices<N>>,
}

/// A channel that ends when all [`Notices`] that publish on it are gone.
pub(crate) struct WeakNotices<N>(Weak<Shared<N>>);

impl<N> WeakNotices<N> {
    /// The channel, if it has not ended.
    pub(crate) fn upgrade(&self) -> Option<Notices<N>> {
        self.0.upgrade().map(Notices)
    }
}

impl<N> Clone for Notices<N> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<N> fmt::Debug for Notices<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notices").field("capacity", &self.0.capacity).finish_non_exhaustive()
    }
}

impl<N> Drop for Shared<N> {
    fn drop(&mut self) {
        let sinks = self.sinks.get_mut().unwrap_or_else(PoisonError::into_inner);
        sinks.iter().filter_map(Weak::upgrade).for_each(|sink| sink.close());
    }
}

impl<N: Send + Sync + 'static> Notices<N> {
    /// A channel whose subscribers may fall `capacity` notices behind.
    pub fn new(capacity: usize) -> Self {
        Self::below(capacity, None)
    }

    /// A channel whose notices are published on this one too.
    pub(crate) fn child(&self) -> Self {
        Self::below(self.0.capacity, Some(self.clone()))
    }

    fn below(capacity: usize, parent: Option<Self>) -> Self {
        let (channel, sinks) = (OnceLock::new(), Mutex::default());
        Self(Arc::new(Shared { capacity: capacity.max(1), channel, sinks, parent }))
    }

    /// The same channel, which ends when all others that publish on it are gone.
    pub(crate) fn downgrade(notices: &Self) -> WeakNotices<N> {
        WeakNotices(Arc::downgrade(&notices.0))
    }

    /// All notices from now on. `recv` returns the number of lost notices if the subscriber fell too far behind. For
    /// measurements and logs; what must not be missed is in the [events](crate::events).
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<N>> {
        self.0.channel.get_or_init(|| broadcast::Sender::new(self.0.capacity)).subscribe()
    }

    /// Passes all notices from now on to `sink`, until it is dropped.
    pub(crate) fn add(&self, sink: Weak<dyn Sink<N>>) {
        let mut sinks = self.lock();
        sinks.retain(|other| other.strong_count() > 0);
        sinks.push(sink);
    }

    /// Sends the notice to the subscribers, and logs it.
    pub(crate) fn publish(&self, notice: N)
    where
        N: Serialize,
    {
        log(&notice);
        self.send(&Arc::new(notice));
    }

    fn send(&self, notice: &Arc<N>) {
        if let Some(channel) = self.0.channel.get() {
            // It is not an error that all subscribers are gone.
            let _ = channel.send(Arc::clone(notice));
        }
        for sink in self.lock().iter().filter_map(Weak::upgrade) {
            sink.receive(notice);
        }
        if let Some(parent) = &self.0.parent {
            parent.send(notice);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<dyn Sink<N>>>> {
        // No code panics while it holds the lock.
        self.0.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs a step, in the span of the actor that took it. Only fields with names and codes are logged; texts of peers and
/// details of problems are for subscribers.
fn log(notice: &impl Serialize) {
    if !tracing::enabled!(tracing::Level::INFO) {
        return;
    }
    let Ok(Value::Object(fields)) = serde_json::to_value(notice) else { return };
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let number = |name: &str| fields.get(name).and_then(Value::as_u64);
    tracing::info!(
        participant = text("participant"),
        from = text("from"),
        to = text("to"),
        kind = text("kind"),
        code = text("code"),
        phase = text("phase"),
        path = text("path"),
        txid = text("txid"),
        next = text("next"),
        restarts = number("restarts"),
        "{}",
        text("event").unwrap_or_default()
    );
}
