//! The state directory: the data that survives the program, in one database behind one lock.
//!
//! [`State::open`] locks the directory. It contains the [journal](State::journal) and [tables](State::table) of bytes,
//! which [`nonces`] (what a server must not accept twice), [`inboxes`] (what it has yet to deliver) and [`vault`] (what
//! a participant needs to resolve its DID) use. One writer thread commits for all of them. [`transfer`] moves a cohort
//! from one directory to another.
//!
//! # Guarantees
//!
//! A write that was answered with `Ok` is stored after any crash of the program or the machine, provided that the disk
//! stores what it has confirmed. Of the unanswered writes a prefix, in the order of the calls, may be stored, each
//! write completely or not at all. After a failed write nothing more is acknowledged until the directory is opened
//! again. Damage to the file is detected when the damaged data is read: other streams and entries remain usable.
//!
//! Not guaranteed: if a program was killed, damage to its very last commit is not distinguished from an interrupted
//! commit.

pub mod boards;
mod database;
mod entries;
mod error;
mod frame;
pub mod history;
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

/// An open state directory. Clones share it. When the last clone, journal and table of it is dropped, all queued
/// changes are written, and the directory is unlocked.
///
/// Needs a tokio runtime: reads run on its blocking threads.
#[derive(Clone)]
pub struct State(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    /// The temporary copy of a directory that another process has locked; removed on drop.
    _copy: Option<TempDir>,
    commits: Arc<AtomicU64>,
    /// `None` when closed.
    writer: Mutex<Option<Writer>>,
    /// Shared only with the writer's thread. `None` when closed.
    database: RwLock<Option<Arc<Database>>>,
}

/// A stream, without its records.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamSummary {
    /// Its name.
    pub stream: StreamId,
    /// The number of records and the length of their JSON; or what is wrong with the stream.
    pub size: Result<StreamSize, String>,
    /// When it was archived; `None` while it is live.
    pub archived: Option<Timestamp>,
}

/// The size of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamSize {
    /// The number of records.
    pub records: u64,
    /// The length of their JSON, in bytes.
    pub bytes: u64,
}

impl State {
    /// Opens and locks the state directory `dir`. Creates what does not exist, accessible to this user only. Blocks
    /// while it reads the whole file, if the program that had it open before was killed.
    ///
    /// # Errors
    /// [`StateError`]: when another process has locked it, when it is something else, damaged or of a later version, or
    /// when the system does not allow it.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StateError> {
        let dir = dir.as_ref();
        Self::over(dir, Database::open(dir)?, None)
    }

    fn over(dir: &Path, database: Database, copy: Option<TempDir>) -> Result<Self, StateError> {
        let database = Arc::new(database);
        let commits = Arc::new(AtomicU64::new(0));
        let (shared, counted) = (Arc::clone(&database), Arc::clone(&commits));
        let commit = move |jobs: &[Job]| {
            let outcomes = shared.commit(jobs)?;
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

    /// The same for an existing directory.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when there is no state directory.
    pub fn open_existing(dir: impl AsRef<Path>) -> Result<Self, StateError> {
        let dir = dir.as_ref();
        if Database::is_in(dir)? { Self::open(dir) } else { Err(StateError::Missing { dir: dir.to_owned() }) }
    }

    /// The same for reading: if another process has locked the directory, opens a copy of its current contents. Writes
    /// to the copy are lost.
    ///
    /// # Errors
    /// As [`open_existing`](Self::open_existing), and when the other process writes without a pause.
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

    /// The table called `name`.
    pub fn table(&self, name: &str) -> Table {
        Table::new(self.clone(), name)
    }

    /// The number of commits since it was opened: each takes one sync of the disk.
    pub fn commits(&self) -> u64 {
        self.0.commits.load(Ordering::Relaxed)
    }

    /// All streams, live and archived, in the order of their names.
    ///
    /// # Errors
    /// When the list itself is damaged; a damaged stream is in the list with its error.
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

    /// Writes all queued changes, closes the directory for every clone, and waits until it is unlocked.
    pub async fn close(self) {
        let inner = Arc::clone(&self.0);
        let closed = tokio::task::spawn_blocking(move || inner.close());
        if closed.await.is_err() {
            tracing::error!(dir = %self.0.dir.display(), "the state directory was not closed cleanly");
        }
    }

    /// Queues changes that belong together. They take effect in the order of these calls; the future waits for the
    /// disk.
    fn write(&self, changes: Vec<Change>) -> BoxFuture<'static, Outcome> {
        let answered = self.0.writer().as_ref().map(|writer| writer.queue(changes));
        let closed = || WriteError::State(StateError::Closed { dir: self.0.dir.clone() });
        let closed = closed();
        match answered {
            Some(answered) => answered.map(|answer| answer.unwrap_or(Err(closed))).boxed(),
            None => futures::future::ready(Err(closed)).boxed(),
        }
    }

    /// Reads on a thread that may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        let inner = Arc::clone(&self.0);
        let reading = tokio::task::spawn_blocking(move || {
            let database = inner.database.read().unwrap_or_else(PoisonError::into_inner);
            read(database.as_ref().ok_or_else(|| StateError::Closed { dir: inner.dir.clone() })?)
        });
        // The join fails when the runtime ends.
        reading.await.unwrap_or_else(|_| Err(StateError::Closed { dir: self.0.dir.clone() }))
    }

    fn corrupt(&self, fault: &Fault) -> StateError {
        StateError::Corrupt { path: self.0.dir.clone(), problem: fault.to_string() }
    }
}

/// The operations of the journal.
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

    /// Removes the stream and writes these records, or does neither.
    pub(crate) fn replace(
        &self,
        stream: &StreamId,
        records: Vec<Vec<u8>>,
    ) -> BoxFuture<'static, Result<(), String>> {
        let (removed, appended) = (stream.clone(), stream.clone());
        let changes = vec![Change::Remove { stream: removed }, Change::Append { stream: appended, records }];
        self.write(changes).map(|outcome| outcome.map_err(|error| error.to_string())).boxed()
    }

    fn change_stream(&self, change: Change) -> BoxFuture<'static, Result<(), String>> {
        self.write(vec![change]).map(|outcome| outcome.map_err(|error| error.to_string())).boxed()
    }

    /// Waits until all changes that were queued before this call are written, or have failed.
    pub(crate) fn settled(&self) -> BoxFuture<'static, ()> {
        // A failed write stored nothing to read, and its caller received the error.
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
        // No code panics while it holds the lock.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let writer = self.writer().take();
        if let Some(writer) = writer {
            writer.finish();
        }
        // After the last read; the writer's reference is gone with its thread.
        let database = self.database.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(database);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}
