//! The journal (port): streams of events, appended in order, durable when the append answers.
//!
//! Every machine-driven actor owns one stream. It applies an event at once, appends it, and performs its effects only
//! when the append has answered, so nothing that was visible outside is lost. [`MemoryJournal`] survives an actor, not
//! the process; [`RedbJournal`](crate::state::RedbJournal) survives the process, in a [state directory](crate::state).

mod memory;
mod stream;

use std::{any::Any, fmt, sync::Arc};

use btcr2_aggregation_protocol::time::Timestamp;
use futures::future::BoxFuture;
use serde::{Serialize, de::DeserializeOwned};

pub use self::{
    memory::MemoryJournal,
    stream::{StreamId, StreamKind},
};

/// What happens to a journal stream whose machine has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Retention {
    /// It remains, and the end is reported again after a restart, until the host archives it: nothing is lost.
    #[default]
    UntilArchived,
    /// It is removed: for journals that do not outlive the process.
    Forget,
}

/// The version of the events' schema, stored with every record. It is incremented when stored events would no longer
/// decode, or would change their meaning; `tests/fixtures/journal` holds records of each version so far.
pub const SCHEMA: u16 = 1;

/// A failure of the journal.
#[derive(Clone, Debug, thiserror::Error)]
#[error("journal stream {stream}: {problem}")]
pub struct JournalError {
    /// The stream; `*` if the failure concerns all streams.
    pub stream: StreamId,
    /// What went wrong.
    pub problem: String,
}

impl JournalError {
    /// A failure of the journal as a whole.
    pub fn of_all(problem: String) -> Self {
        Self { stream: StreamId::new("*"), problem }
    }
}

/// An event that can be journaled.
trait Fact: Any + Send + Sync {
    fn encode(&self) -> Result<Vec<u8>, serde_json::Error>;
}

impl<E: Serialize + Any + Send + Sync> Fact for E {
    fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

/// One event of a stream: the value itself while it is in the process, JSON after it was stored.
#[derive(Clone)]
pub struct Record(Kept);

#[derive(Clone)]
enum Kept {
    Value(Arc<dyn Fact>),
    Json(Arc<[u8]>),
}

impl Record {
    /// The record of `event`.
    pub fn new<E: Serialize + Any + Send + Sync>(event: E) -> Self {
        Self(Kept::Value(Arc::new(event)))
    }

    /// The record whose JSON was read from storage.
    pub fn from_json(json: impl Into<Arc<[u8]>>) -> Self {
        Self(Kept::Json(json.into()))
    }

    /// The record as JSON, for storage.
    ///
    /// # Errors
    /// When the event does not serialize.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        match &self.0 {
            Kept::Value(fact) => fact.encode(),
            Kept::Json(json) => Ok(json.to_vec()),
        }
    }

    /// The event.
    ///
    /// # Errors
    /// When the record is not an event of this type.
    pub fn event<E: Clone + DeserializeOwned + Any>(&self) -> Result<E, serde_json::Error> {
        match &self.0 {
            Kept::Value(fact) => {
                let any: &dyn Any = &**fact;
                match any.downcast_ref::<E>() {
                    Some(event) => Ok(event.clone()),
                    None => Err(serde::de::Error::custom("the record is an event of another role")),
                }
            }
            Kept::Json(json) => serde_json::from_slice(json),
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_json() {
            Ok(json) => f.write_str(&String::from_utf8_lossy(&json)),
            Err(error) => write!(f, "<{error}>"),
        }
    }
}

/// A finished stream that was archived.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Archived {
    /// Its name.
    pub stream: StreamId,
    /// When it was archived, according to the caller.
    pub at: Timestamp,
}

/// Streams of events. A stream is live from its first record until it is archived or removed.
///
/// Calls for one stream take effect in the order of the calls, in whatever order the futures are polled, and also when
/// they are dropped. After the process or the machine stops, every append that was answered with `Ok` is stored. Of the
/// unanswered appends a prefix is stored, each append completely or not at all.
pub trait Journal: Send + Sync {
    /// Appends `records` to `stream`; they are durable when the future is ready. A stream that was archived is live
    /// again, because a replay of the live streams must not miss an event.
    fn append(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>>;

    /// All records of `stream`, live or archived, in order; empty if there is no such stream. The result includes every
    /// append that was called before, answered or not: the actor's successor must not miss the last writes.
    fn read(&self, stream: &StreamId) -> BoxFuture<'static, Result<Vec<Record>, JournalError>>;

    /// The names of the live streams, in order.
    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>>;

    /// Archives a finished stream at `at`; its records remain. Does nothing if it is archived already or does not
    /// exist. Durable when the future is ready.
    fn archive(&self, stream: &StreamId, at: Timestamp) -> BoxFuture<'static, Result<(), JournalError>>;

    /// The archived streams, in the order of their names.
    fn archived(&self) -> BoxFuture<'static, Result<Vec<Archived>, JournalError>>;

    /// Removes a stream, live or archived. Durable when the future is ready.
    fn remove(&self, stream: &StreamId) -> BoxFuture<'static, Result<(), JournalError>>;

    /// Replaces all records of a stream; without `records` it is removed. Durable when the future is ready. By default
    /// the stream is removed and written again; a journal that can do both at once does.
    fn replace(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>> {
        // Both calls are made here, because they take effect in the order of the calls.
        let removed = self.remove(stream);
        if records.is_empty() {
            return removed;
        }
        let appended = self.append(stream, records);
        Box::pin(async move {
            removed.await?;
            appended.await
        })
    }
}
