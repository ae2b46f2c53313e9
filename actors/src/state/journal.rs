//! The journal in a state directory.

use btcr2_aggregation_protocol::time::Timestamp;
use futures::{FutureExt, future::BoxFuture};

use super::State;
use crate::journal::{Archived, Journal, JournalError, Record, StreamId};

/// Streams in a [state directory](crate::state), with its guarantees. Clones share them. Concurrent appends, to any
/// streams, are made durable together, by one sync of the disk.
///
/// On a runtime whose clock is paused, time advances while an append waits for the disk, because the runtime does not
/// see that work.
#[derive(Clone)]
pub struct RedbJournal(State);

impl RedbJournal {
    pub(crate) fn new(state: State) -> Self {
        Self(state)
    }

    /// In the order of the calls: the change is queued before the future is created.
    fn named(
        stream: &StreamId,
        outcome: BoxFuture<'static, Result<(), String>>,
    ) -> BoxFuture<'static, Result<(), JournalError>> {
        let stream = stream.clone();
        outcome.map(|outcome| outcome.map_err(|problem| JournalError { stream, problem })).boxed()
    }

    fn listed<T: Send + 'static>(
        &self,
        pick: impl Fn(StreamId, Option<Timestamp>) -> Option<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<Vec<T>, JournalError>> {
        let (state, settled) = (self.0.clone(), self.0.settled());
        async move {
            settled.await;
            let streams = state.streams().await.map_err(|error| JournalError::of_all(error.to_string()))?;
            // A stream whose head is damaged counts as live, so that its reader reports the damage.
            Ok(streams.into_iter().filter_map(|summary| pick(summary.stream, summary.archived)).collect())
        }
        .boxed()
    }
}

impl Journal for RedbJournal {
    fn append(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>> {
        if records.is_empty() {
            return futures::future::ready(Ok(())).boxed();
        }
        match encoded(stream, &records) {
            Ok(records) => Self::named(stream, self.0.append(stream, records)),
            Err(error) => futures::future::ready(Err(error)).boxed(),
        }
    }

    fn read(&self, stream: &StreamId) -> BoxFuture<'static, Result<Vec<Record>, JournalError>> {
        let (state, stream, settled) = (self.0.clone(), stream.clone(), self.0.settled());
        async move {
            settled.await;
            state.read_stream(stream.clone()).await.map_err(|problem| JournalError { stream, problem })
        }
        .boxed()
    }

    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>> {
        self.listed(|stream, archived| archived.is_none().then_some(stream))
    }

    fn archive(&self, stream: &StreamId, at: Timestamp) -> BoxFuture<'static, Result<(), JournalError>> {
        Self::named(stream, self.0.archive(stream, at))
    }

    fn archived(&self) -> BoxFuture<'static, Result<Vec<Archived>, JournalError>> {
        self.listed(|stream, archived| archived.map(|at| Archived { stream, at }))
    }

    fn remove(&self, stream: &StreamId) -> BoxFuture<'static, Result<(), JournalError>> {
        Self::named(stream, self.0.remove(stream))
    }

    fn replace(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>> {
        if records.is_empty() {
            return self.remove(stream);
        }
        match encoded(stream, &records) {
            Ok(records) => Self::named(stream, self.0.replace(stream, records)),
            Err(error) => futures::future::ready(Err(error)).boxed(),
        }
    }
}

fn encoded(stream: &StreamId, records: &[Record]) -> Result<Vec<Vec<u8>>, JournalError> {
    records.iter().map(Record::to_json).collect::<Result<_, _>>().map_err(|error| {
        let problem = format!("an event cannot be serialized: {error}");
        JournalError { stream: stream.clone(), problem }
    })
}
