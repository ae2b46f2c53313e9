//! The journal's streams in the database.
//!
//! `records` has each record under its stream's name and its number, counted from 0; `heads` has the number of records
//! of each stream. A record that is damaged, missing, or stored under another key is therefore detected when its stream
//! is read, and no other stream is affected.

use std::collections::BTreeMap;

use btcr2_aggregation_protocol::time::Timestamp;
use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata};

use super::{
    database::{Fault, HEADS, RECORDS, Refused, Tables},
    frame::{self, Kind},
};
use crate::journal::{Record, SCHEMA, StreamId};

/// The version of a head's format.
const HEAD: u16 = 1;

/// The part of a key before the record's number. It begins with the name's length, so that no prefix is a prefix of
/// another.
fn prefix(stream: &StreamId) -> Vec<u8> {
    let name = stream.as_str().as_bytes();
    [&(name.len() as u64).to_be_bytes(), name].concat()
}

fn record_key(prefix: &[u8], number: u64) -> Vec<u8> {
    [prefix, &number.to_be_bytes()].concat()
}

fn name_in(key: &[u8]) -> Option<&[u8]> {
    let (length, rest) = key.split_first_chunk()?;
    let length = usize::try_from(u64::from_be_bytes(*length)).ok()?;
    let name = rest.get(..length)?;
    (rest.len() == length.checked_add(size_of::<u64>())?).then_some(name)
}

/// The metadata of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// The number of records.
    pub(super) records: u64,
    /// Their JSON's length.
    pub(super) bytes: u64,
    /// When it was archived.
    pub(super) archived: Option<Timestamp>,
}

impl Head {
    fn seal(self, name: &[u8]) -> Vec<u8> {
        let archived = self.archived.map(|at| at.as_millis().to_be_bytes());
        let payload = [Some(self.records.to_be_bytes()), Some(self.bytes.to_be_bytes()), archived];
        let payload: Vec<u8> = payload.into_iter().flatten().flatten().collect();
        frame::seal(Kind::Head, name, HEAD, &payload)
    }

    fn open(name: &[u8], value: &[u8]) -> Result<Self, Refused> {
        let damaged = || Refused("its head is damaged".to_owned());
        let (version, payload) = frame::open(Kind::Head, name, value).map_err(|_| damaged())?;
        if version > HEAD {
            return Err(Refused(format!(
                "its head is of version {version}: use the program that wrote it, or a newer one"
            )));
        }
        let (records, rest) = payload.split_first_chunk().ok_or_else(damaged)?;
        let (bytes, archived) = rest.split_first_chunk().ok_or_else(damaged)?;
        let archived = match archived {
            [] => None,
            at => Some(Timestamp::from_millis(u64::from_be_bytes(at.try_into().map_err(|_| damaged())?))),
        };
        Ok(Self { records: u64::from_be_bytes(*records), bytes: u64::from_be_bytes(*bytes), archived })
    }
}

fn head(tables: &Tables<'_>, stream: &StreamId) -> Result<Result<Option<Head>, Refused>, Fault> {
    let name = stream.as_str().as_bytes();
    Ok(match tables.heads.get(name)? {
        Some(value) => Head::open(name, value.value()).map(Some),
        None => Ok(None),
    })
}

/// Checks that `stream` can be written to.
pub(super) fn check_head(tables: &Tables<'_>, stream: &StreamId) -> Result<Result<(), Refused>, Fault> {
    let head = match head(tables, stream)? {
        Ok(head) => head.unwrap_or_default(),
        Err(refused) => return Ok(Err(refused)),
    };
    let key = record_key(&prefix(stream), head.records);
    let taken = tables.records.get(key.as_slice())?.is_some();
    Ok(if taken { Err(Refused(format!("record {} is there, but was not counted", head.records))) } else { Ok(()) })
}

/// Requires [`check_head`] in the same transaction.
fn checked_head(tables: &Tables<'_>, stream: &StreamId) -> Result<Option<Head>, Fault> {
    head(tables, stream)?.map_err(|refused| Fault::Damaged(refused.to_string()))
}

pub(super) fn append(tables: &mut Tables<'_>, stream: &StreamId, records: &[Vec<u8>]) -> Result<(), Fault> {
    let mut head = checked_head(tables, stream)?.unwrap_or_default();
    let prefix = prefix(stream);
    for json in records {
        let key = record_key(&prefix, head.records);
        let value = frame::seal(Kind::Record, &key, SCHEMA, json);
        tables.records.insert(key.as_slice(), value.as_slice())?;
        head.records += 1;
        head.bytes = head.bytes.saturating_add(json.len() as u64);
    }
    head.archived = None;
    write_head(tables, stream, head)
}

pub(super) fn archive(tables: &mut Tables<'_>, stream: &StreamId, at: Timestamp) -> Result<(), Fault> {
    match checked_head(tables, stream)? {
        Some(head) if head.archived.is_none() => write_head(tables, stream, Head { archived: Some(at), ..head }),
        _ => Ok(()),
    }
}

fn write_head(tables: &mut Tables<'_>, stream: &StreamId, head: Head) -> Result<(), Fault> {
    let name = stream.as_str().as_bytes();
    tables.heads.insert(name, head.seal(name).as_slice())?;
    Ok(())
}

/// Works for a damaged stream as well.
pub(super) fn remove(tables: &mut Tables<'_>, stream: &StreamId) -> Result<(), Fault> {
    let prefix = prefix(stream);
    let (first, last) = (record_key(&prefix, 0), record_key(&prefix, u64::MAX));
    tables.records.retain_in(first.as_slice()..=last.as_slice(), |_, _| false)?;
    tables.heads.remove(stream.as_str().as_bytes())?;
    Ok(())
}

/// All records of a stream; none if there is no such stream.
pub(super) fn read(
    transaction: &ReadTransaction,
    stream: &StreamId,
) -> Result<Result<Vec<Record>, Refused>, Fault> {
    let name = stream.as_str().as_bytes();
    let head = match transaction.open_table(HEADS)?.get(name)? {
        Some(value) => match Head::open(name, value.value()) {
            Ok(head) => Some(head),
            Err(refused) => return Ok(Err(refused)),
        },
        None => None,
    };
    let prefix = prefix(stream);
    let (first, last) = (record_key(&prefix, 0), record_key(&prefix, u64::MAX));
    let table = transaction.open_table(RECORDS)?;
    let mut records = Vec::new();
    for (number, entry) in (0..).zip(table.range(first.as_slice()..=last.as_slice())?) {
        let (key, value) = entry?;
        if key.value() != record_key(&prefix, number) {
            return Ok(Err(Refused(format!("record {number} is missing"))));
        }
        match record(number, key.value(), value.value()) {
            Ok(record) => records.push(record),
            Err(refused) => return Ok(Err(refused)),
        }
    }
    let found = records.len() as u64;
    Ok(match head {
        None if found > 0 => Err(Refused("its head is missing".to_owned())),
        // A damaged key breaks the order, and a search misses what a scan of the list finds. The scan only happens for
        // streams that were never written.
        None if list(transaction)?.contains_key(stream) => Err(Refused("its name is out of place".to_owned())),
        Some(head) if head.records != found => {
            Err(Refused(format!("{found} records are there of {}", head.records)))
        }
        _ => Ok(records),
    })
}

fn record(number: u64, key: &[u8], value: &[u8]) -> Result<Record, Refused> {
    let (schema, json) = frame::open(Kind::Record, key, value)
        .map_err(|damage| Refused(format!("record {number} is damaged: {damage}")))?;
    if schema > SCHEMA {
        let problem = format!(
            "record {number} has schema version {schema}, and this program knows versions up to {SCHEMA}: \
             use the program that wrote it, or a newer one"
        );
        return Err(Refused(problem));
    }
    Ok(Record::from_json(json))
}

/// The heads of all streams, in the order of their names: also of those whose head is damaged or missing.
pub(super) fn list(transaction: &ReadTransaction) -> Result<BTreeMap<StreamId, Result<Head, Refused>>, Fault> {
    let damaged = |problem: &str| Fault::Damaged(problem.to_owned());
    let mut found = BTreeMap::new();
    let heads = transaction.open_table(HEADS)?;
    let mut count = 0;
    for entry in heads.iter()? {
        let (name, value) = entry?;
        found.insert(stream_of(name.value())?, Head::open(name.value(), value.value()));
        count += 1;
    }
    if heads.len()? != count || found.len() as u64 != count {
        return Err(damaged("some streams are missing in the list of streams"));
    }
    // From the first record of each stream to the position after its last.
    let records = transaction.open_table(RECORDS)?;
    let mut behind = Vec::new();
    while let Some(entry) = records.range(behind.as_slice()..)?.next() {
        let (key, _) = entry?;
        let name = name_in(key.value()).ok_or_else(|| damaged("the key of a record"))?;
        let stream = stream_of(name)?;
        let next = record_key(&prefix(&stream), u64::MAX);
        if next <= behind {
            return Err(damaged("the records are not in order"));
        }
        behind = next;
        found.entry(stream).or_insert_with(|| Err(Refused("its head is missing".to_owned())));
    }
    Ok(found)
}

fn stream_of(name: &[u8]) -> Result<StreamId, Fault> {
    let name = std::str::from_utf8(name).map_err(|_| Fault::Damaged("the name of a stream".to_owned()))?;
    Ok(StreamId::new(name))
}
