//! A journal that measures its latency.

use std::{sync::Arc, time::Instant};

use futures::{FutureExt, future::BoxFuture};

use super::Metrics;
use crate::{
    actors::journal::{Archived, Journal, JournalError, Record, StreamId},
    protocol::time::Timestamp,
};

/// Wraps another journal and measures the time from the call until the records are durable.
pub struct TimedJournal {
    journal: Arc<dyn Journal>,
    metrics: Metrics,
}

impl TimedJournal {
    /// Measures `journal`.
    pub fn new(journal: Arc<dyn Journal>, metrics: Metrics) -> Self {
        Self { journal, metrics }
    }

    /// Includes the time of `call`: a journal may encode its arguments before it returns.
    fn timed<T: Send + 'static>(
        &self,
        operation: &str,
        call: impl FnOnce() -> BoxFuture<'static, T>,
    ) -> BoxFuture<'static, T> {
        let histogram = self.metrics.0.journal_seconds.get_or_create_owned(&[("operation", operation.to_owned())]);
        let began = Instant::now();
        call().inspect(move |_| histogram.observe(began.elapsed().as_secs_f64())).boxed()
    }
}

impl Journal for TimedJournal {
    fn append(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>> {
        self.timed("append", || self.journal.append(stream, records))
    }

    fn read(&self, stream: &StreamId) -> BoxFuture<'static, Result<Vec<Record>, JournalError>> {
        self.timed("read", || self.journal.read(stream))
    }

    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>> {
        self.journal.streams()
    }

    fn archive(&self, stream: &StreamId, at: Timestamp) -> BoxFuture<'static, Result<(), JournalError>> {
        self.timed("archive", || self.journal.archive(stream, at))
    }

    fn archived(&self) -> BoxFuture<'static, Result<Vec<Archived>, JournalError>> {
        self.journal.archived()
    }

    fn remove(&self, stream: &StreamId) -> BoxFuture<'static, Result<(), JournalError>> {
        self.timed("remove", || self.journal.remove(stream))
    }

    fn replace(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>> {
        self.timed("append", || self.journal.replace(stream, records))
    }
}
