//! The database file of a state directory, in blocking calls: opening it, and committing changes.
//!
//! It has four redb tables, whose values are stored in [frames](super::frame): `meta` (one value: the format and the
//! number of commits), `heads` and `records` (see [`streams`](super::streams)), and `entries` (see
//! [`entries`](super::entries)).

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::Read,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use btcr2_aggregation_protocol::time::Timestamp;
use redb::{
    Durability, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction,
};

use super::{
    entries,
    error::StateError,
    frame::{self, Kind},
    lock::DirectoryLock,
    streams,
    writer::{Job, Outcome},
};
use crate::journal::StreamId;

pub(super) const FILE: &str = "state.redb";
const UNFINISHED: &str = "state.redb.new";

/// The version of the tables' contents, except for the events, which have their own.
const FORMAT: u16 = 1;

/// The size of redb's cache; its default is a gigabyte. Values that are read often are small, and the journal, which is
/// large, is read once.
const CACHE_BYTES: usize = 32 << 20;

/// The first bytes of every redb file.
const REDB_MAGIC: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";

/// Plain bytes, because redb panics on a damaged key or value of a richer type.
pub(super) type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

const META: Definition = TableDefinition::new("meta");
pub(super) const HEADS: Definition = TableDefinition::new("heads");
pub(super) const RECORDS: Definition = TableDefinition::new("records");
pub(super) const ENTRIES: Definition = TableDefinition::new("entries");

/// The key of the one value in `meta`.
const STATE: &[u8] = b"state";

/// A change to the database.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// Appends records, as JSON.
    Append { stream: StreamId, records: Vec<Vec<u8>> },
    /// Archives a live stream.
    Archive { stream: StreamId, at: Timestamp },
    /// Removes a stream.
    Remove { stream: StreamId },
    /// Sets an entry of a table.
    Put { table: Arc<str>, key: Vec<u8>, value: Vec<u8> },
    /// Removes an entry of a table.
    Delete { table: Arc<str>, key: Vec<u8> },
}

impl Change {
    /// Its approximate size.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Append { stream, records } => {
                records.iter().map(|record| record.len() + stream.as_str().len()).sum()
            }
            Self::Archive { stream, .. } | Self::Remove { stream } => stream.as_str().len(),
            Self::Put { table, key, value } => table.len() + key.len() + value.len(),
            Self::Delete { table, key } => table.len() + key.len(),
        }
    }
}

/// Changes that contradict the stored data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refused(pub(super) String);

/// A fault that redb reported.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Fault {
    /// In what it read.
    #[error("{0}")]
    Damaged(String),
    /// Anything else; the database cannot be used any more.
    #[error("{0}")]
    Broken(String),
}

impl Fault {
    fn of(error: impl Into<redb::Error>) -> Self {
        match error.into() {
            redb::Error::Corrupted(problem) => Self::Damaged(problem),
            error => Self::Broken(error.to_string()),
        }
    }
}

macro_rules! fault_from {
    ($($error:ty),*) => { $(impl From<$error> for Fault { fn from(error: $error) -> Self { Self::of(error) } })* };
}
fault_from!(
    redb::CommitError,
    redb::SetDurabilityError,
    redb::StorageError,
    redb::TableError,
    redb::TransactionError
);

/// Calls redb. It reports most damage as an error, but panics on some, and a damaged file must not crash the caller.
/// Nothing that was in use during the panic is used again: a read transaction is dropped, and the writer stops
/// permanently.
pub(super) fn caught<T>(call: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(Fault::Broken(format!("the database panicked: {}", text.unwrap_or("no reason given"))))
    })
}

/// The open database, and the lock on its directory.
pub(super) struct Database {
    /// `None` only while it is dropped.
    redb: Option<redb::Database>,
    dir: PathBuf,
    path: PathBuf,
    lock: DirectoryLock,
    /// Whether it was found to be ours and undamaged.
    sound: bool,
}

/// The tables to which a job is applied.
pub(super) struct Tables<'t> {
    pub(super) heads: Table<'t, &'static [u8], &'static [u8]>,
    pub(super) records: Table<'t, &'static [u8], &'static [u8]>,
    pub(super) entries: Table<'t, &'static [u8], &'static [u8]>,
}

/// Why a group of jobs was not committed.
enum Stopped {
    /// A fault of the job with this number; the other jobs can be committed without it.
    At(usize, Fault),
    Altogether(Fault),
}

impl<E: Into<Fault>> From<E> for Stopped {
    fn from(fault: E) -> Self {
        Self::Altogether(fault.into())
    }
}

impl Database {
    /// Opens the database of `dir`, creating both if they do not exist.
    pub(super) fn open(dir: &Path) -> Result<Self, StateError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(dir).map_err(StateError::io(format!("create the directory {}", dir.display())))?;
        let lock = DirectoryLock::take(dir)?;
        let path = dir.join(FILE);
        if !Self::is_in(dir)? {
            create(dir, &path)?;
        }
        let redb = open_redb(dir, &path)?;
        let mut database = Self { redb: Some(redb), dir: dir.to_owned(), path, lock, sound: false };
        database.check_format()?;
        database.sound = true;
        Ok(database)
    }

    /// Whether `dir` has a database.
    pub(super) fn is_in(dir: &Path) -> Result<bool, StateError> {
        let path = dir.join(FILE);
        path.try_exists().map_err(StateError::io(format!("look for {}", path.display())))
    }

    fn check_format(&self) -> Result<(), StateError> {
        let corrupt = |problem: String| StateError::Corrupt { path: self.path.clone(), problem };
        let found = self.reading(|transaction| match transaction.open_table(META) {
            Ok(table) => Ok(table.get(STATE)?.map(|value| value.value().to_vec())),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        });
        let value = found.map_err(|fault| corrupt(fault.to_string()))?.ok_or_else(|| StateError::NotOurs {
            path: self.path.clone(),
            problem: "it is a redb database, but of another program".to_owned(),
        })?;
        let (format, payload) = frame::open(Kind::Meta, STATE, &value)
            .map_err(|damage| corrupt(format!("its description: {damage}")))?;
        if format > FORMAT {
            let (found, known) = (u32::from(format), u32::from(FORMAT));
            return Err(StateError::Newer { path: self.path.clone(), found, known });
        }
        let commits = number(payload).ok_or_else(|| corrupt("its description is too short".to_owned()))?;
        // A damaged commit looks like one that a crash interrupted, and redb falls back to the one before it. After a
        // clean close there is no interrupted commit.
        match self.lock.left_at() {
            Some(left_at) if commits < left_at => Err(corrupt(format!(
                "it was closed at commit {left_at}, and the last one that is left is {commits}"
            ))),
            _ => Ok(()),
        }
    }

    /// Runs a read transaction, which sees the last commit as a whole.
    pub(super) fn reading<T>(&self, read: impl FnOnce(&ReadTransaction) -> Result<T, Fault>) -> Result<T, Fault> {
        caught(|| {
            let redb = self.redb.as_ref().ok_or_else(|| Fault::Broken("it is closed".to_owned()))?;
            read(&redb.begin_read()?)
        })
    }

    /// Makes all of `jobs` durable in one commit, except those that contradict the stored data: each completely or not
    /// at all.
    /// # Errors
    /// When nothing can be promised any more; then no job was acknowledged, and this must not be called again.
    pub(super) fn commit(&self, jobs: &[Job]) -> Result<Vec<Outcome>, StateError> {
        let failed = |fault: Fault| StateError::Failed { dir: self.dir.clone(), problem: fault.to_string() };
        let mut skipped = vec![None; jobs.len()];
        loop {
            let stopped = caught(|| match self.try_commit(jobs, &skipped) {
                Ok(outcomes) => Ok(Ok(outcomes)),
                Err(Stopped::At(index, fault @ Fault::Damaged(_))) => Ok(Err((index, fault))),
                Err(Stopped::At(_, fault) | Stopped::Altogether(fault)) => Err(fault),
            });
            match stopped.map_err(failed)? {
                Ok(outcomes) => return Ok(outcomes),
                // Each iteration skips one job more.
                Err((index, fault)) => skipped[index] = Some(Refused(fault.to_string())),
            }
        }
    }

    fn try_commit(&self, jobs: &[Job], skipped: &[Option<Refused>]) -> Result<Vec<Outcome>, Stopped> {
        if jobs.iter().all(Job::is_empty) {
            // The callers only wait for their turn: no disk access is needed.
            return Ok(vec![Ok(()); jobs.len()]);
        }
        let redb = self.redb.as_ref().ok_or_else(|| Fault::Broken("it is closed".to_owned()))?;
        let mut transaction = redb.begin_write()?;
        // One fdatasync. redb's checksums detect torn writes. An attacker who chooses the written data could forge them
        // in theory; the frames' checksums cover the same bytes again.
        transaction.set_durability(Durability::Immediate)?;
        let mut outcomes = Vec::with_capacity(jobs.len());
        {
            let mut tables = Tables {
                heads: transaction.open_table(HEADS)?,
                records: transaction.open_table(RECORDS)?,
                entries: transaction.open_table(ENTRIES)?,
            };
            for (index, (job, skipped)) in jobs.iter().zip(skipped).enumerate() {
                let outcome = match skipped {
                    Some(refused) => Err(refused.clone()),
                    None => tables.apply(&job.changes).map_err(|fault| Stopped::At(index, fault))?,
                };
                outcomes.push(outcome.map_err(Into::into));
            }
        }
        count_commit(&transaction)?;
        transaction.commit()?;
        Ok(outcomes)
    }

    /// The number of commits since the database was created.
    fn commits(&self) -> Result<u64, Fault> {
        self.reading(|transaction| {
            let value = transaction.open_table(META)?.get(STATE)?.map(|value| value.value().to_vec());
            value.and_then(|value| commits_in(&value)).ok_or_else(no_description)
        })
    }
}

impl Tables<'_> {
    /// Checks all changes before it applies any, so that a refused job leaves nothing behind.
    fn apply(&mut self, changes: &[Change]) -> Result<Result<(), Refused>, Fault> {
        for change in changes {
            if let Change::Append { stream, .. } | Change::Archive { stream, .. } = change
                && let Err(refused) = streams::check_head(self, stream)?
            {
                return Ok(Err(refused));
            }
        }
        for change in changes {
            match change {
                Change::Append { stream, records } => streams::append(self, stream, records)?,
                Change::Archive { stream, at } => streams::archive(self, stream, *at)?,
                Change::Remove { stream } => streams::remove(self, stream)?,
                Change::Put { table, key, value } => entries::put(self, table, key, value)?,
                Change::Delete { table, key } => entries::delete(self, table, key)?,
            }
        }
        Ok(Ok(()))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let commits = self.commits();
        let closed = caught(|| {
            drop(self.redb.take());
            Ok(())
        });
        let left = match (commits, closed) {
            // The next process must find the commit number that the last holder recorded.
            _ if !self.sound => return,
            (Ok(commits), Ok(())) => self.lock.leave_at(commits).map_err(|error| error.to_string()),
            (Err(fault), _) | (_, Err(fault)) => Err(fault.to_string()),
        };
        if let Err(problem) = left {
            // Every acknowledged write is stored nevertheless.
            tracing::warn!(path = %self.path.display(), problem, "the state directory was not closed cleanly");
        }
    }
}

fn number(payload: &[u8]) -> Option<u64> {
    payload.try_into().ok().map(u64::from_be_bytes)
}

fn commits_in(value: &[u8]) -> Option<u64> {
    frame::open(Kind::Meta, STATE, value).ok().and_then(|(_, payload)| number(payload))
}

fn no_description() -> Fault {
    Fault::Broken("the database's description is damaged".to_owned())
}

fn describe(commits: u64) -> Vec<u8> {
    frame::seal(Kind::Meta, STATE, FORMAT, &commits.to_be_bytes())
}

fn count_commit(transaction: &WriteTransaction) -> Result<(), Fault> {
    let mut meta = transaction.open_table(META)?;
    let commits = meta.get(STATE)?.and_then(|value| commits_in(value.value())).ok_or_else(no_description)?;
    meta.insert(STATE, describe(commits.saturating_add(1)).as_slice())?;
    Ok(())
}

/// Creates an empty database under another name and renames it, so that there is a complete one or none.
fn create(dir: &Path, path: &Path) -> Result<(), StateError> {
    let doing = || format!("create {}", path.display());
    let unfinished = dir.join(UNFINISHED);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(&unfinished).map_err(StateError::io(doing()))?;
    let made = caught(|| {
        let redb = redb::Builder::new().create_file(file).map_err(Fault::of)?;
        let transaction = redb.begin_write()?;
        for table in [HEADS, RECORDS, ENTRIES] {
            transaction.open_table(table)?;
        }
        transaction.open_table(META)?.insert(STATE, describe(0).as_slice())?;
        transaction.commit()?;
        Ok(())
    });
    made.map_err(|fault| StateError::io(doing())(std::io::Error::other(fault.to_string())))?;
    fs::rename(&unfinished, path).map_err(StateError::io(doing()))?;
    // A directory can be synced if it can be opened as a file.
    #[cfg(unix)]
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(StateError::io(doing()))?;
    Ok(())
}

fn open_redb(dir: &Path, path: &Path) -> Result<redb::Database, StateError> {
    let not_ours = |problem: &str| StateError::NotOurs { path: path.to_owned(), problem: problem.to_owned() };
    let corrupt = |problem: String| StateError::Corrupt { path: path.to_owned(), problem };
    let doing = || format!("open {}", path.display());
    let mut beginning = Vec::new();
    let length = REDB_MAGIC.len() as u64;
    let file = File::open(path).map_err(StateError::io(doing()))?;
    file.take(length).read_to_end(&mut beginning).map_err(StateError::io(doing()))?;
    if beginning.is_empty() {
        return Err(corrupt("it is empty".to_owned()));
    }
    if beginning != REDB_MAGIC {
        return Err(not_ours("it does not begin like a redb database"));
    }
    let opened = catch_unwind(|| redb::Builder::new().set_cache_size(CACHE_BYTES).open(path));
    let opened = opened.map_err(|_| corrupt("the database panicked".to_owned()))?;
    opened.map_err(|error| match error {
        redb::DatabaseError::DatabaseAlreadyOpen => StateError::Locked { dir: dir.to_owned(), pid: None },
        redb::DatabaseError::UpgradeRequired(version) => {
            not_ours(&format!("it is a redb database of file format {version}, which this program does not know"))
        }
        redb::DatabaseError::Storage(redb::StorageError::Io(error))
            if !matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof) =>
        {
            StateError::io(doing())(error)
        }
        error => corrupt(error.to_string()),
    })
}
