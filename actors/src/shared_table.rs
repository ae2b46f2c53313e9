//! A small database file that several programs read and change at the same time: a running service, and its operator's commands.
//!
//! The file is open only while something is read or written, under a lock beside it, and holds one table of JSON values and a
//! count of its changes. A program that has read it finds out that another one has changed it by its time and size alone.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::SystemTime,
};

use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};

/// How much of the file redb may hold in memory.
const CACHE_BYTES: usize = 4 << 20;

// Bytes to bytes: redb panics on a key or value of a richer type that was damaged.
const VALUES: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("values");
const META: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("meta");
const CHANGES: &[u8] = b"changes";

/// A file that cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct SharedTableError {
    path: String,
    problem: String,
}

/// By what a change of another program is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(Option<(SystemTime, u64)>);

/// What is in the file, by key.
pub(crate) type Values = BTreeMap<String, Vec<u8>>;

/// What was read.
pub(crate) struct Contents {
    pub(crate) values: Values,
    /// How many changes there were.
    pub(crate) changes: u64,
    pub(crate) stamp: Stamp,
}

/// What is changed: values that are set, or removed.
pub(crate) type Edits = Vec<(String, Option<Vec<u8>>)>;

/// The file.
#[derive(Debug)]
pub(crate) struct SharedTable {
    path: PathBuf,
}

impl SharedTable {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// How the file looks now.
    pub(crate) fn stamp(&self) -> Result<Stamp, SharedTableError> {
        match fs::metadata(&self.path) {
            Ok(metadata) => {
                let modified = metadata.modified().map_err(|error| self.refuse(error))?;
                Ok(Stamp(Some((modified, metadata.len()))))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Stamp(None)),
            Err(error) => Err(self.refuse(error)),
        }
    }

    /// Reads everything. A file that is not there is empty.
    pub(crate) fn read(&self) -> Result<Contents, SharedTableError> {
        if self.stamp()? == Stamp(None) {
            return Ok(Contents { values: Values::new(), changes: 0, stamp: Stamp(None) });
        }
        let _lock = self.lock()?;
        let (values, changes) = self.with(|database| {
            let transaction = database.begin_read()?;
            let (values, meta) = (transaction.open_table(VALUES)?, transaction.open_table(META)?);
            Ok((all(&values)?, count(&meta)?))
        })?;
        Ok(Contents { values, changes, stamp: self.stamp()? })
    }

    /// Changes the file, durably, and says how it looks then and how many changes there were. `change` gets everything in
    /// it if there were other changes than `known`.
    pub(crate) fn change<T>(
        &self,
        known: u64,
        change: impl FnOnce(Option<&Values>) -> Result<(Edits, T), String>,
    ) -> Result<(T, u64, Stamp), SharedTableError> {
        let _lock = self.lock()?;
        let (answer, changes) = self.with(|database| {
            let transaction = database.begin_write()?;
            let (answer, changes) = {
                let mut values = transaction.open_table(VALUES)?;
                let mut meta = transaction.open_table(META)?;
                let changes = count(&meta)?;
                let (edits, answer) = if changes == known { change(None) } else { change(Some(&all(&values)?)) }
                    .map_err(Problem::Content)?;
                for (key, value) in &edits {
                    match value {
                        Some(value) => drop(values.insert(key.as_bytes(), value.as_slice())?),
                        None => drop(values.remove(key.as_bytes())?),
                    }
                }
                let changes = changes + 1;
                meta.insert(CHANGES, changes.to_be_bytes().as_slice())?;
                (answer, changes)
            };
            transaction.commit()?;
            Ok((answer, changes))
        })?;
        Ok((answer, changes, self.stamp()?))
    }

    /// Opens the file for one piece of work. redb says of most damage that it is damage, but asserts some of what it reads, and
    /// a damaged file must not take the caller down.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, Problem>) -> Result<T, SharedTableError> {
        let worked = catch_unwind(AssertUnwindSafe(|| {
            let database =
                Builder::new().set_cache_size(CACHE_BYTES).create(&self.path).map_err(redb::Error::from)?;
            work(&database)
        }));
        match worked {
            Ok(outcome) => outcome.map_err(|problem| self.refuse(problem)),
            Err(_) => {
                Err(self.refuse("it is damaged: restore it from a backup, or move it away to begin without it"))
            }
        }
    }

    /// Held until it is dropped, so that no change of another program is lost.
    fn lock(&self) -> Result<File, SharedTableError> {
        let mut beside = self.path.as_os_str().to_owned();
        beside.push(".lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(beside);
        file.and_then(|file| file.lock().map(|()| file)).map_err(|error| self.refuse(error))
    }

    pub(crate) fn refuse(&self, problem: impl ToString) -> SharedTableError {
        SharedTableError { path: self.path.display().to_string(), problem: problem.to_string() }
    }
}

/// What is wrong inside.
enum Problem {
    Database(redb::Error),
    Content(String),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Database(redb::Error::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                f.write_str("it is not a database of this program: move it away to begin without it")
            }
            Self::Database(redb::Error::TableDoesNotExist(_)) => {
                f.write_str("it is a database of another program: move it away to begin without it")
            }
            Self::Database(error) => error.fmt(f),
            Self::Content(problem) => f.write_str(problem),
        }
    }
}

impl<E: Into<redb::Error>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self::Database(error.into())
    }
}

fn all(table: &impl ReadableTable<&'static [u8], &'static [u8]>) -> Result<Values, redb::Error> {
    let mut values = Values::new();
    for row in table.iter()? {
        let (key, value) = row?;
        values.insert(String::from_utf8_lossy(key.value()).into_owned(), value.value().to_vec());
    }
    Ok(values)
}

fn count(table: &impl ReadableTable<&'static [u8], &'static [u8]>) -> Result<u64, redb::Error> {
    let count = table.get(CHANGES)?;
    Ok(count.and_then(|count| count.value().try_into().ok()).map_or(0, u64::from_be_bytes))
}
