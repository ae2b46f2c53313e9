//! The audit log: every change that was asked for, before it was made; only appended to.
//!
//! It is in a database file in the state directory, to which a running service and the command that makes tokens append, and which both
//! read. A change that was refused afterwards has a second entry, which names the first.

use std::{path::Path, sync::Arc};

use serde_json::{Value, json};

use super::role::Who;
use crate::{
    actors::shared_table::{SharedTable, SharedTableError},
    protocol::time::Timestamp,
};

/// The file in a state directory.
pub(crate) const AUDIT: &str = "audit.redb";

/// The most entries of one page.
pub(crate) const MOST_ENTRIES: usize = 1_000;

/// The audit log. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct AuditLog(Arc<SharedTable>);

/// A change.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// What: `cohort.cancel`.
    pub(crate) action: &'static str,
    /// Of what: e.g. the identifier of a cohort.
    pub(crate) target: Option<String>,
    /// The details of the request. No secrets.
    pub(crate) request: Value,
}

impl AuditLog {
    /// The log in a state directory.
    pub(crate) fn open(state: &Path) -> Self {
        Self(Arc::new(SharedTable::new(state.join(AUDIT))))
    }

    /// Appends a change that is about to be made; durable when this returns. Returns the entry.
    pub(crate) fn append(&self, who: &Who, at: Timestamp, change: &Change) -> Result<Value, SharedTableError> {
        let Change { action, target, request } = change;
        self.add(json!({
            "at": at.to_date(), "who": { "label": who.label, "role": who.role, "token": who.token }, "from": who.from,
            "action": action, "target": target, "request": request,
        }))
    }

    /// Appends that the change of entry `of` was refused.
    pub(crate) fn refused(&self, of: u64, at: Timestamp, reason: &str) -> Result<Value, SharedTableError> {
        self.add(json!({ "at": at.to_date(), "of": of, "refused": reason }))
    }

    fn add(&self, mut entry: Value) -> Result<Value, SharedTableError> {
        self.0.append(|number| {
            if let Value::Object(fields) = &mut entry {
                fields.shift_insert(0, "n".to_owned(), number.into());
            }
            serde_json::to_vec(&entry).map_err(|error| error.to_string())
        })?;
        Ok(entry)
    }

    /// Up to `most` entries before number `before`, or the last ones; the last first.
    pub(crate) fn page(&self, before: Option<u64>, most: usize) -> Result<Vec<Value>, SharedTableError> {
        let read =
            |(_, value): (u64, Vec<u8>)| serde_json::from_slice(&value).map_err(|error| self.0.refuse(error));
        self.0.last(before, most.min(MOST_ENTRIES))?.into_iter().map(read).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::control::role::Role;

    #[test]
    fn entries_are_numbered_and_paged_from_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let log = AuditLog::open(directory.path());
        assert!(log.page(None, 10).unwrap().is_empty());
        let (label, from) = ("socket".to_owned(), "uid 0".to_owned());
        let who = Who { role: Role::Admin, token: None, label, from, session: None };
        let now = Timestamp::from_secs(0);
        for number in 1..=12 {
            let change = Change { action: "ban.add", target: Some(format!("did {number}")), request: json!({}) };
            assert_eq!(log.append(&who, now, &change).unwrap()["n"], number);
        }
        log.refused(12, now, "no").unwrap();
        let numbers = |before, most| -> Vec<u64> {
            log.page(before, most).unwrap().iter().map(|entry| entry["n"].as_u64().unwrap()).collect()
        };
        assert_eq!(numbers(None, 3), [13, 12, 11]);
        assert_eq!(numbers(Some(11), 2), [10, 9]);
        assert_eq!(numbers(Some(2), 100), [1]);
        assert_eq!(AuditLog::open(directory.path()).page(None, 1).unwrap()[0]["of"], 12);
    }
}
