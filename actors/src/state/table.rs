//! Tables of bytes.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};

use super::{
    State,
    database::{Change, Fault},
    entries::{self, Page},
    error::StateError,
    writer::WriteError,
};

/// Keys and values in a [state directory](State), in the order of the keys. Clones share the table.
///
/// Writes take effect in the order of the calls, and are durable when the future is ready, also when it is dropped;
/// reads see every answered write. One commit contains the concurrent writes to all tables and to the journal.
#[derive(Clone)]
pub struct Table {
    state: State,
    name: Arc<str>,
}

/// One of several changes that are made together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Sets the value of a key.
    Put(Vec<u8>, Vec<u8>),
    /// Removes a key, if it exists.
    Remove(Vec<u8>),
}

impl Table {
    pub(super) fn new(state: State, name: &str) -> Self {
        Self { state, name: name.into() }
    }

    /// Sets the value of `key`.
    pub fn put(
        &self,
        key: impl Into<Vec<u8>>,
        value: impl Into<Vec<u8>>,
    ) -> BoxFuture<'static, Result<(), StateError>> {
        self.edit([Edit::Put(key.into(), value.into())])
    }

    /// Removes `key`, if it exists.
    pub fn remove(&self, key: impl Into<Vec<u8>>) -> BoxFuture<'static, Result<(), StateError>> {
        self.edit([Edit::Remove(key.into())])
    }

    /// Applies all of `edits`, in order, or none.
    pub fn edit(&self, edits: impl IntoIterator<Item = Edit>) -> BoxFuture<'static, Result<(), StateError>> {
        let change = |edit| match edit {
            Edit::Put(key, value) => Change::Put { table: Arc::clone(&self.name), key, value },
            Edit::Remove(key) => Change::Delete { table: Arc::clone(&self.name), key },
        };
        let changes: Vec<Change> = edits.into_iter().map(change).collect();
        if changes.is_empty() {
            return futures::future::ready(Ok(())).boxed();
        }
        let written = self.state.write(changes);
        let table = Arc::clone(&self.name);
        let error = move |error| match error {
            WriteError::State(error) => error,
            WriteError::Refused(refused) => {
                StateError::Damaged { table: table.to_string(), problem: refused.to_string() }
            }
        };
        written.map(|outcome| outcome.map_err(error)).boxed()
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`StateError::Damaged`] when its checksum is wrong.
    pub async fn get(&self, key: impl Into<Vec<u8>>) -> Result<Option<Vec<u8>>, StateError> {
        let (key, name) = (key.into(), Arc::clone(&self.name));
        let read = move |transaction: &_| entries::get(transaction, &name, &key);
        match self.state.read(|database| Ok(database.reading(read))).await?.map_err(|fault| self.damaged(&fault))? {
            Some(None) => Err(self.damaged(&Fault::Damaged("an entry's checksum is wrong".to_owned()))),
            Some(Some(value)) => Ok(Some(value)),
            None => Ok(None),
        }
    }

    /// Up to `most` entries whose keys begin with `prefix`; if `after` is given, only those after that key.
    ///
    /// # Errors
    /// When the table cannot be read. Damaged entries are not an error, but [listed](Page::damaged).
    pub async fn scan(
        &self,
        prefix: impl Into<Vec<u8>>,
        after: Option<Vec<u8>>,
        most: usize,
    ) -> Result<Page, StateError> {
        let (prefix, name) = (prefix.into(), Arc::clone(&self.name));
        let read = move |transaction: &_| entries::scan(transaction, &name, &prefix, after.as_deref(), most);
        self.state.read(|database| Ok(database.reading(read))).await?.map_err(|fault| self.damaged(&fault))
    }

    fn damaged(&self, fault: &Fault) -> StateError {
        StateError::Damaged { table: self.name.to_string(), problem: fault.to_string() }
    }
}
