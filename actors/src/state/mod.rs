//! The state directory: what a program keeps over its end, in one database behind one lock.
//!
//! [`State::open`] takes the directory. The [journal](State::journal) is in it, and [tables](State::table) of bytes, on which
//! stand [`nonces`] (what a server must not accept twice), [`inboxes`] (what it has yet to deliver) and [`vault`] (what a
//! participant needs to resolve its DID). One writer thread commits for all of them. [`transfer`] takes a cohort from one
//! directory to another.
//!
//! # What is promised
//!
//! A write that was answered with `Ok` is there after any crash of the program or the machine, as long as the disk keeps what
//! it has confirmed. Of writes that were not answered a beginning may be there, in the order in which they were handed in,
//! each wholly or not at all. When a write fails, nothing more is acknowledged until the directory is opened again. Damage to
//! the file is found when what is damaged is read: other streams and entries can still be used.
//!
//! Not promised: that damage to the very last commit of a program that was killed is told from a commit that was cut off.

mod database;
mod entries;
mod error;
mod frame;
pub mod inboxes;
mod journal;
mod lock;
pub mod nonces;
mod snapshot;
mod streams;
mod table;
#[cfg(test)]
mod tests;
pub mod transfer;
pub mod vault;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use btcr2_aggregation_protocol::time::Timestamp;
use futures::{FutureExt, future::BoxFuture};
use tempfile::TempDir;

use self::{
    database::{Change, Database, Fault},
    writer::{Job, Outcome, WriteError, Writer},
};
use crate::journal::StreamId;

pub use self::{
    entries::Page,
    error::StateError,
    journal::RedbJournal,
    table::{Edit, Table},
};

/// An open state directory. Clones are the same; when the last one, and the last journal and table of it, is dropped,
/// everything that was handed in is written, and the directory is free again.
///
/// Needs a tokio runtime: reads run on its blocking threads.
#[derive(Clone)]
pub struct State(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    /// Of a directory that another process holds: where the copy is. It goes with this.
    _copy: Option<TempDir>,
    commits: Arc<AtomicU64>,
    /// `None` when closed.
    writer: Mutex<Option<Writer>>,
    /// Shared with the writer's thread only. `None` when closed.
    database: RwLock<Option<Arc<Database>>>,
}

/// A stream, without its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSummary {
    /// Its name.
    pub stream: StreamId,
    /// How many records there are, and the length of their JSON; or what is wrong with the stream.
    pub size: Result<StreamSize, String>,
    /// When it was archived; `None` while it is live.
    pub archived: Option<Timestamp>,
}

/// How large a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamSize {
    /// The number of records.
    pub records: u64,
    /// The length of their JSON, in bytes.
    pub bytes: u64,
}

impl State {
    /// Opens the state directory `dir` and holds it. What does not exist is made, for this user alone. Blocks while it reads
    /// the file through, if the program that had it open before was killed.
    ///
    /// # Errors
    /// [`StateError`]: when another process holds it, when it is something else, damaged or of a later program, or when the
    /// system does not allow it.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StateError> {
        let dir = dir.as_ref();
        Self::over(dir, Database::open(dir)?, None)
    }

    fn over(dir: &Path, database: Database, copy: Option<TempDir>) -> Result<Self, StateError> {
        let database = Arc::new(database);
        let commits = Arc::new(AtomicU64::new(0));
        let (held, counted) = (Arc::clone(&database), Arc::clone(&commits));
        let commit = move |jobs: &[Job]| {
            let outcomes = held.commit(jobs)?;
            if !jobs.iter().all(Job::is_empty) {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(outcomes)
        };
        let writer = Writer::start(commit).map_err(StateError::io("start the writer's thread"))?;
        let database = RwLock::new(Some(database));
        Ok(Self(Arc::new(Inner {
            dir: dir.to_owned(),
            _copy: copy,
            commits,
            writer: Mutex::new(Some(writer)),
            database,
        })))
    }

    /// The same for a directory that is there already.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when there is no state directory.
    pub fn open_existing(dir: impl AsRef<Path>) -> Result<Self, StateError> {
        let dir = dir.as_ref();
        if Database::is_in(dir)? { Self::open(dir) } else { Err(StateError::Missing { dir: dir.to_owned() }) }
    }

    /// The same for reading: of a directory that another process holds, a copy of how it is now. What is written to that is lost.
    ///
    /// # Errors
    /// As [`open_existing`](Self::open_existing), and when the other process writes all the time.
    pub fn open_to_read(dir: impl AsRef<Path>) -> Result<Self, StateError> {
        let dir = dir.as_ref();
        match Self::open_existing(dir) {
            Err(StateError::Locked { .. }) => {
                let copy = snapshot::copy(dir)?;
                Self::over(dir, Database::open(copy.path())?, Some(copy))
            }
            opened => opened,
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// The journal in it.
    pub fn journal(&self) -> RedbJournal {
        RedbJournal::new(self.clone())
    }

    /// The table of that name.
    pub fn table(&self, name: &str) -> Table {
        Table::new(self.clone(), name)
    }

    /// How many commits there were since it was opened: each takes one sync of the disk.
    pub fn commits(&self) -> u64 {
        self.0.commits.load(Ordering::Relaxed)
    }

    /// All streams, live and archived, in the order of their names.
    ///
    /// # Errors
    /// When the list itself is damaged; a damaged stream is in the list and says so.
    pub async fn streams(&self) -> Result<Vec<StreamSummary>, StateError> {
        let listed = self.read(|database| Ok(database.reading(streams::list))).await?;
        let listed = listed.map_err(|fault| self.corrupt(&fault))?;
        let summary = |(stream, head): (StreamId, Result<streams::Head, database::Refused>)| match head {
            Ok(head) => {
                let size = Ok(StreamSize { records: head.records, bytes: head.bytes });
                StreamSummary { stream, size, archived: head.archived }
            }
            Err(refused) => StreamSummary { stream, size: Err(refused.to_string()), archived: None },
        };
        Ok(listed.into_iter().map(summary).collect())
    }

    /// Writes everything that was handed in, closes the directory for every clone, and waits until it is free for others.
    pub async fn close(self) {
        let inner = Arc::clone(&self.0);
        let closed = tokio::task::spawn_blocking(move || inner.close());
        if closed.await.is_err() {
            tracing::error!(dir = %self.0.dir.display(), "the state directory was not closed in good order");
        }
    }

    /// Hands in changes that belong together. They take effect in the order of these calls; the future waits for the disk.
    fn write(&self, changes: Vec<Change>) -> BoxFuture<'static, Outcome> {
        let answered = self.0.writer().as_ref().map(|writer| writer.hand_in(changes));
        let closed = || WriteError::State(StateError::Closed { dir: self.0.dir.clone() });
        let closed = closed();
        match answered {
            Some(answered) => answered.map(|answer| answer.unwrap_or(Err(closed))).boxed(),
            None => futures::future::ready(Err(closed)).boxed(),
        }
    }

    /// Reads, on a thread that may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        let inner = Arc::clone(&self.0);
        let reading = tokio::task::spawn_blocking(move || {
            let database = inner.database.read().unwrap_or_else(PoisonError::into_inner);
            read(database.as_ref().ok_or_else(|| StateError::Closed { dir: inner.dir.clone() })?)
        });
        // It fails when the runtime ends.
        reading.await.unwrap_or_else(|_| Err(StateError::Closed { dir: self.0.dir.clone() }))
    }

    fn corrupt(&self, fault: &Fault) -> StateError {
        StateError::Corrupt { path: self.0.dir.clone(), problem: fault.to_string() }
    }
}

/// What the journal needs, in its own terms.
impl State {
    pub(crate) fn append(
        &self,
        stream: &StreamId,
        records: Vec<Vec<u8>>,
    ) -> BoxFuture<'static, Result<(), String>> {
        self.change_stream(Change::Append { stream: stream.clone(), records })
    }

    pub(crate) fn archive(&self, stream: &StreamId, at: Timestamp) -> BoxFuture<'static, Result<(), String>> {
        self.change_stream(Change::Archive { stream: stream.clone(), at })
    }

    pub(crate) fn remove(&self, stream: &StreamId) -> BoxFuture<'static, Result<(), String>> {
        self.change_stream(Change::Remove { stream: stream.clone() })
    }

    fn change_stream(&self, change: Change) -> BoxFuture<'static, Result<(), String>> {
        self.write(vec![change]).map(|outcome| outcome.map_err(|error| error.to_string())).boxed()
    }

    /// Waits until everything that was handed in before this call is written, or never will be.
    pub(crate) fn settled(&self) -> BoxFuture<'static, ()> {
        // What could not be written is not there to be read, and whoever wrote it has been told so.
        self.write(Vec::new()).map(drop).boxed()
    }

    pub(crate) async fn read_stream(&self, stream: StreamId) -> Result<Vec<crate::journal::Record>, String> {
        let read =
            self.read(move |database| Ok(database.reading(|transaction| streams::read(transaction, &stream))));
        match read.await {
            Ok(Ok(Ok(records))) => Ok(records),
            Ok(Ok(Err(refused))) => Err(refused.to_string()),
            Ok(Err(fault)) => Err(fault.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Inner {
    fn writer(&self) -> MutexGuard<'_, Option<Writer>> {
        // Nothing that could panic happens under the lock.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let writer = self.writer().take();
        if let Some(writer) = writer {
            writer.finish();
        }
        // Behind the last read; the writer's share is gone with its thread.
        let database = self.database.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(database);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}
