//! Tables of bytes in the database: one entry for each key, each with its own checksum.

use std::ops::Bound;

use redb::ReadTransaction;

use super::{
    database::{ENTRIES, Fault, Tables},
    frame::{self, Kind},
};

const VERSION: u16 = 1;

/// A part of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries, in the order of their keys.
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
    /// The keys of entries that are damaged, in order.
    pub damaged: Vec<Vec<u8>>,
    /// The last key of this page if there may be more: the next scan starts after it.
    pub next: Option<Vec<u8>>,
}

fn full_key(table: &str, key: &[u8]) -> Vec<u8> {
    [&(table.len() as u64).to_be_bytes(), table.as_bytes(), key].concat()
}

pub(super) fn put(tables: &mut Tables<'_>, table: &str, key: &[u8], value: &[u8]) -> Result<(), Fault> {
    let key = full_key(table, key);
    let value = frame::seal(Kind::Entry, &key, VERSION, value);
    tables.entries.insert(key.as_slice(), value.as_slice())?;
    Ok(())
}

pub(super) fn delete(tables: &mut Tables<'_>, table: &str, key: &[u8]) -> Result<(), Fault> {
    tables.entries.remove(full_key(table, key).as_slice())?;
    Ok(())
}

/// The value, or `Some(None)` if it is damaged.
pub(super) fn get(
    transaction: &ReadTransaction,
    table: &str,
    key: &[u8],
) -> Result<Option<Option<Vec<u8>>>, Fault> {
    let key = full_key(table, key);
    let found = transaction.open_table(ENTRIES)?.get(key.as_slice())?;
    Ok(found.map(|value| open(&key, value.value())))
}

fn open(key: &[u8], value: &[u8]) -> Option<Vec<u8>> {
    let (version, payload) = frame::open(Kind::Entry, key, value).ok()?;
    (version == VERSION).then(|| payload.to_vec())
}

/// Up to `most` entries whose keys begin with `prefix`, after the key `after`.
pub(super) fn scan(
    transaction: &ReadTransaction,
    table: &str,
    prefix: &[u8],
    after: Option<&[u8]>,
    most: usize,
) -> Result<Page, Fault> {
    let (first, begins) = (full_key(table, prefix), full_key(table, b"").len());
    let after = after.map(|key| full_key(table, key)).filter(|after| *after >= first);
    let from = match &after {
        Some(after) => Bound::Excluded(after.as_slice()),
        None => Bound::Included(first.as_slice()),
    };
    let entries = transaction.open_table(ENTRIES)?;
    let mut page = Page::default();
    for entry in entries.range::<&[u8]>((from, Bound::Unbounded))? {
        let (key, value) = entry?;
        if !key.value().starts_with(&first) {
            break;
        }
        let short = key.value()[begins..].to_vec();
        page.next = Some(short.clone());
        match open(key.value(), value.value()) {
            Some(value) => page.entries.push((short, value)),
            None => page.damaged.push(short),
        }
        if page.entries.len() + page.damaged.len() >= most {
            return Ok(page);
        }
    }
    page.next = None;
    Ok(page)
}
