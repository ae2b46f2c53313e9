//! A journal that is not stored.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use btcr2_aggregation_protocol::time::Timestamp;
use futures::{FutureExt, future::BoxFuture};

use super::{Archived, Journal, JournalError, Record, StreamId};

/// Streams in memory. Clones share them. They are lost when the process ends.
#[derive(Clone, Default)]
pub struct MemoryJournal(Arc<Mutex<BTreeMap<StreamId, Stream>>>);

#[derive(Default)]
struct Stream {
    records: Vec<Record>,
    archived: Option<Timestamp>,
}

impl MemoryJournal {
    /// An empty journal.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<StreamId, Stream>> {
        // No code panics while it holds the lock, and a list of records is valid at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ready<T: Send + 'static>(value: T) -> BoxFuture<'static, Result<T, JournalError>> {
    futures::future::ready(Ok(value)).boxed()
}

impl Journal for MemoryJournal {
    fn append(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>> {
        if !records.is_empty() {
            let mut streams = self.lock();
            let stream = streams.entry(stream.clone()).or_default();
            stream.records.extend(records);
            stream.archived = None;
        }
        ready(())
    }

    fn read(&self, stream: &StreamId) -> BoxFuture<'static, Result<Vec<Record>, JournalError>> {
        ready(self.lock().get(stream).map(|stream| stream.records.clone()).unwrap_or_default())
    }

    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>> {
        let streams = self.lock();
        let live = streams.iter().filter(|(_, stream)| stream.archived.is_none());
        ready(live.map(|(name, _)| name.clone()).collect())
    }

    fn archive(&self, stream: &StreamId, at: Timestamp) -> BoxFuture<'static, Result<(), JournalError>> {
        if let Some(stream) = self.lock().get_mut(stream) {
            stream.archived.get_or_insert(at);
        }
        ready(())
    }

    fn archived(&self) -> BoxFuture<'static, Result<Vec<Archived>, JournalError>> {
        let streams = self.lock();
        let archived = streams
            .iter()
            .filter_map(|(name, stream)| Some(Archived { stream: name.clone(), at: stream.archived? }));
        ready(archived.collect())
    }

    fn remove(&self, stream: &StreamId) -> BoxFuture<'static, Result<(), JournalError>> {
        self.lock().remove(stream);
        ready(())
    }
}
