//! A small database file that several programs read and change at the same time: a running service, and its operator's
//! commands.
//!
//! The file is open only during a read or a write, under a lock file in the same directory. It has one table of JSON
//! values and a change count. A program that has read the file detects changes of other programs by its modification
//! time and size alone.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::SystemTime,
};

use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};

/// The size of redb's cache for the file.
const CACHE_BYTES: usize = 4 << 20;

// Plain bytes, because redb panics on a damaged key or value of a richer type.
const VALUES: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("values");
const META: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("meta");
const CHANGES: &[u8] = b"changes";

/// The file cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct SharedTableError {
    path: String,
    problem: String,
}

/// The metadata by which a change of another program is detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(Option<(SystemTime, u64)>);

/// The values of the file, by key.
pub type Values = BTreeMap<String, Vec<u8>>;

/// The result of a read.
pub struct Contents {
    /// The values.
    pub values: Values,
    /// The number of changes so far.
    pub changes: u64,
    /// The stamp of the file.
    pub stamp: Stamp,
}

/// Changes of values: `None` removes one.
pub type Edits = Vec<(String, Option<Vec<u8>>)>;

/// The database file.
#[derive(Debug)]
pub struct SharedTable {
    path: PathBuf,
}

impl SharedTable {
    /// The file at `path`, which is created on the first change.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The current stamp of the file.
    ///
    /// # Errors
    /// [`SharedTableError`] when the system does not show it.
    pub fn stamp(&self) -> Result<Stamp, SharedTableError> {
        match fs::metadata(&self.path) {
            Ok(metadata) => {
                let modified = metadata.modified().map_err(|error| self.refuse(error))?;
                Ok(Stamp(Some((modified, metadata.len()))))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Stamp(None)),
            Err(error) => Err(self.refuse(error)),
        }
    }

    /// Reads all values. A file that does not exist is empty.
    ///
    /// # Errors
    /// [`SharedTableError`] when it is not such a file, or cannot be read.
    pub fn read(&self) -> Result<Contents, SharedTableError> {
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

    /// Changes the file, durably; returns its new stamp and change count. `change` receives all values if the change
    /// count is not `known`.
    ///
    /// # Errors
    /// [`SharedTableError`] as for [`Self::read`], when it cannot be written, and with the problem that `change` returns.
    pub fn change<T>(
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

    /// Appends a value under the next number, from 1 on, and returns that number; durable when this returns. Not to be mixed with other
    /// keys in one file.
    ///
    /// # Errors
    /// As for [`Self::change`].
    pub fn append(&self, value: impl FnOnce(u64) -> Result<Vec<u8>, String>) -> Result<u64, SharedTableError> {
        let _lock = self.lock()?;
        self.with(|database| {
            let transaction = database.begin_write()?;
            let number = {
                let mut values = transaction.open_table(VALUES)?;
                let mut meta = transaction.open_table(META)?;
                let last = values.last()?.and_then(|(key, _)| number_of(key.value()));
                let number = last.map_or(1, |last| last.saturating_add(1));
                let value = value(number).map_err(Problem::Content)?;
                values.insert(key_of(number).as_bytes(), value.as_slice())?;
                let changes = count(&meta)? + 1;
                meta.insert(CHANGES, changes.to_be_bytes().as_slice())?;
                number
            };
            transaction.commit()?;
            Ok(number)
        })
    }

    /// Up to `most` appended values before number `before`, or of all, the last first.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn last(&self, before: Option<u64>, most: usize) -> Result<Vec<(u64, Vec<u8>)>, SharedTableError> {
        if self.stamp()? == Stamp(None) {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        self.with(|database| {
            let transaction = database.begin_read()?;
            let values = transaction.open_table(VALUES)?;
            let end = key_of(before.unwrap_or(u64::MAX));
            let mut found = Vec::new();
            for row in values.range::<&[u8]>(..end.as_bytes())?.rev().take(most) {
                let (key, value) = row?;
                if let Some(number) = number_of(key.value()) {
                    found.push((number, value.value().to_vec()));
                }
            }
            Ok(found)
        })
    }

    /// Opens the file for one operation. redb reports most damage as an error, but panics on some, and a damaged file
    /// must not crash the caller.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, Problem>) -> Result<T, SharedTableError> {
        let worked = catch_unwind(AssertUnwindSafe(|| {
            let database =
                Builder::new().set_cache_size(CACHE_BYTES).create(&self.path).map_err(redb::Error::from)?;
            work(&database)
        }));
        match worked {
            Ok(outcome) => outcome.map_err(|problem| self.refuse(problem)),
            Err(_) => {
                Err(self.refuse("it is damaged: restore it from a backup, or move it away to start without it"))
            }
        }
    }

    /// Locked until it is dropped, so that no change of another program is lost.
    fn lock(&self) -> Result<File, SharedTableError> {
        let mut beside = self.path.as_os_str().to_owned();
        beside.push(".lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(beside);
        file.and_then(|file| file.lock().map(|()| file)).map_err(|error| self.refuse(error))
    }

    /// The error with this problem of the file.
    pub fn refuse(&self, problem: impl ToString) -> SharedTableError {
        SharedTableError { path: self.path.display().to_string(), problem: problem.to_string() }
    }
}

/// What is wrong with the contents.
enum Problem {
    Database(redb::Error),
    Content(String),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Database(redb::Error::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                f.write_str("it is not a database of this program: move it away to start without it")
            }
            Self::Database(redb::Error::TableDoesNotExist(_)) => {
                f.write_str("it is a database of another program: move it away to start without it")
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

/// The key of an appended value: all have the same length, so that their order is that of the numbers.
fn key_of(number: u64) -> String {
    format!("{number:020}")
}

fn number_of(key: &[u8]) -> Option<u64> {
    std::str::from_utf8(key).ok()?.parse().ok()
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
