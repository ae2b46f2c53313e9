//! A journal that lives as long as the process.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{FutureExt, future::BoxFuture};

use super::{Journal, JournalError, Record, StreamId};

/// Streams in memory. Clones share them.
#[derive(Clone, Default)]
pub struct MemoryJournal(Arc<Mutex<BTreeMap<StreamId, Vec<Record>>>>);

impl MemoryJournal {
    /// An empty journal.
    pub fn new() -> Self {
        Self::default()
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<StreamId, Vec<Record>>> {
        // No code panics while it holds the lock, and a list of records is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal for MemoryJournal {
    fn append(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>> {
        Self::streams(self).entry(stream.clone()).or_default().extend(records);
        futures::future::ready(Ok(())).boxed()
    }

    fn read(&self, stream: &StreamId) -> BoxFuture<'static, Result<Vec<Record>, JournalError>> {
        let records = Self::streams(self).get(stream).cloned().unwrap_or_default();
        futures::future::ready(Ok(records)).boxed()
    }

    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>> {
        let names = Self::streams(self).keys().cloned().collect();
        futures::future::ready(Ok(names)).boxed()
    }

    fn remove(&self, stream: &StreamId) -> BoxFuture<'static, Result<(), JournalError>> {
        Self::streams(self).remove(stream);
        futures::future::ready(Ok(())).boxed()
    }
}
