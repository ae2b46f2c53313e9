//! The journal (port): streams of facts, appended in order, durable when the append answers.
//!
//! Every machine-driven actor owns one stream. It applies a fact at once, appends it, and performs its effects only when
//! the append has answered, so nothing that the world has seen can be forgotten. [`MemoryJournal`] survives an actor, not
//! the process.

mod memory;

use std::{any::Any, fmt, sync::Arc};

use futures::future::BoxFuture;
use serde::{Serialize, de::DeserializeOwned};

pub use self::memory::MemoryJournal;

/// Names a stream: `cohort/<id>`, `signing/<id>`, `participant/<did>/<service>/<cohort id>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(String);

impl StreamId {
    /// A stream of the given name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why the journal could not do what it was asked to.
#[derive(Clone, Debug, thiserror::Error)]
#[error("journal stream {stream}: {problem}")]
pub struct JournalError {
    /// Which stream.
    pub stream: StreamId,
    /// What went wrong.
    pub problem: String,
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

/// Streams of facts. Appends to one stream become durable in the order in which they were made.
pub trait Journal: Send + Sync {
    /// Appends `records` to `stream`; they are durable when the future is ready.
    fn append(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>>;

    /// All records of `stream`, in order; empty when there is no such stream.
    fn read(&self, stream: &StreamId) -> BoxFuture<'static, Result<Vec<Record>, JournalError>>;

    /// The names of all streams, in order.
    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>>;

    /// Forgets a stream.
    fn remove(&self, stream: &StreamId) -> BoxFuture<'static, Result<(), JournalError>>;
}
