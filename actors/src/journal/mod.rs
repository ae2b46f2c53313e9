//! The journal (port): streams of facts, appended in order, durable when the append answers.
//!
//! Every machine-driven actor owns one stream. It applies a fact at once, appends it, and performs its effects only when
//! the append has answered, so nothing that the world has seen can be forgotten. [`MemoryJournal`] survives an actor, not
//! the process; [`RedbJournal`](crate::state::RedbJournal) survives the process, in a [state
//! directory](crate::state).

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

/// What becomes of a journal stream whose machine has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retention {
    /// It stays, and after a restart the end is told again, until the host has it archived: nothing is lost.
    #[default]
    UntilArchived,
    /// It is removed: for journals that do not outlive the process anyway.
    Forget,
}

/// The version of the events' schema, kept with every stored record. It counts up when events that are stored already would
/// no longer decode, or would mean something else; `tests/fixtures/journal` holds records of each version so far.
pub const SCHEMA: u16 = 1;

/// Why the journal could not do what it was asked to.
#[derive(Clone, Debug, thiserror::Error)]
#[error("journal stream {stream}: {problem}")]
pub struct JournalError {
    /// Which stream; `*` when it is about all of them.
    pub stream: StreamId,
    /// What went wrong.
    pub problem: String,
}

impl JournalError {
    /// For what concerns the journal as a whole.
    pub fn of_all(problem: String) -> Self {
        Self { stream: StreamId::new("*"), problem }
    }
}

/// A fact that can be written down.
trait Fact: Any + Send + Sync {
    fn encode(&self) -> Result<Vec<u8>, serde_json::Error>;
}

impl<E: Serialize + Any + Send + Sync> Fact for E {
    fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

/// One fact of a stream: kept as the value itself while it stays in the process, as JSON where it leaves it.
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

/// A finished stream that is kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Archived {
    /// Which.
    pub stream: StreamId,
    /// When it was archived, as said by who archived it.
    pub at: Timestamp,
}

/// Streams of facts. A stream is live from its first record on, until it is archived or removed.
///
/// What is called for one stream takes effect in the order of the calls, however the futures are polled, and also when they
/// are dropped. When the process or the machine stops, everything that was answered with `Ok` is there afterwards, and of
/// what was not answered a beginning: each append wholly or not at all, none without those before it.
pub trait Journal: Send + Sync {
    /// Appends `records` to `stream`; they are durable when the future is ready. A stream that was archived is live again:
    /// whoever replays the live streams must not miss a fact.
    fn append(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>>;

    /// All records of `stream`, live or archived, in order; empty when there is no such stream. Sees every append that was
    /// handed in before the call, answered or not: whoever takes an actor's place must not miss what it has written last.
    fn read(&self, stream: &StreamId) -> BoxFuture<'static, Result<Vec<Record>, JournalError>>;

    /// The names of the live streams, in order.
    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>>;

    /// Takes a finished stream from the live ones, at `at`; its records stay. Nothing happens when it is archived already,
    /// or when there is no such stream. Durable when the future is ready.
    fn archive(&self, stream: &StreamId, at: Timestamp) -> BoxFuture<'static, Result<(), JournalError>>;

    /// The archived streams, in the order of their names.
    fn archived(&self) -> BoxFuture<'static, Result<Vec<Archived>, JournalError>>;

    /// Forgets a stream, live or archived. Durable when the future is ready.
    fn remove(&self, stream: &StreamId) -> BoxFuture<'static, Result<(), JournalError>>;
}
