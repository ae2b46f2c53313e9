//! Data of a later version, and damage that redb does not see: written here directly into the tables.

use std::path::Path;

use btcr2_aggregation_protocol::{cohort::event::ServiceEvent, time::Timestamp};
use redb::TableDefinition;
use tempfile::TempDir;

use super::{
    State, StateError,
    database::{Definition, HEADS, RECORDS},
    frame::{self, Kind},
};
use crate::journal::{Journal, Record, SCHEMA, StreamId};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn at(number: u64) -> Record {
    Record::new(ServiceEvent::AdvertRepeated { at: Timestamp::from_millis(number) })
}

/// A directory with two records in each of two streams, closed.
async fn written() -> TempDir {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path()).unwrap();
    for stream in ["cohort/a", "cohort/b"] {
        state.journal().append(&StreamId::new(stream), vec![at(1), at(2)]).await.unwrap();
    }
    state.close().await;
    dir
}

/// Changes the first value under a key with `part` in it.
fn change(dir: &Path, table: Definition, part: &[u8], change: impl FnOnce(&[u8], &[u8]) -> Option<Vec<u8>>) {
    let database = redb::Database::open(dir.join("state.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        use redb::ReadableTable;
        let mut table = transaction.open_table(table).unwrap();
        let found = table.iter().unwrap().map(Result::unwrap).find_map(|(key, value)| {
            let hit = key.value().windows(part.len()).any(|window| window == part);
            hit.then(|| (key.value().to_vec(), value.value().to_vec()))
        });
        let (key, value) = found.expect("there is such a key");
        match change(&key, &value) {
            Some(changed) => drop(table.insert(key.as_slice(), changed.as_slice()).unwrap()),
            None => drop(table.remove(key.as_slice()).unwrap()),
        }
    }
    transaction.commit().unwrap();
}

async fn only_a_fails_with(dir: &Path, problem: &str) {
    let state = State::open(dir).unwrap();
    let journal = state.journal();
    let error = journal.read(&StreamId::new("cohort/a")).await.unwrap_err().to_string();
    assert!(error.contains("cohort/a") && error.contains(problem), "{error}");
    assert_eq!(journal.read(&StreamId::new("cohort/b")).await.unwrap().len(), 2);
    assert_eq!(journal.streams().await.unwrap().len(), 2, "the damaged one is listed");
}

#[test]
fn a_newer_schema_error_names_stream_version_and_remedy() {
    runtime().block_on(async {
        let dir = written().await;
        let newer = SCHEMA + 1;
        change(dir.path(), RECORDS, b"cohort/a", |key, _| Some(frame::seal(Kind::Record, key, newer, b"{}")));
        let problem =
            format!("record 0 has schema version {newer}, and this program knows versions up to {SCHEMA}");
        only_a_fails_with(dir.path(), &problem).await;
        only_a_fails_with(dir.path(), "use the program that wrote it, or a newer one").await;
    });
}

#[test]
fn a_gap_is_an_error_of_its_stream() {
    runtime().block_on(async {
        let dir = written().await;
        change(dir.path(), RECORDS, b"cohort/a", |_, _| None);
        only_a_fails_with(dir.path(), "record 0 is missing").await;
    });
}

#[test]
fn a_missing_end_is_an_error_of_its_stream() {
    runtime().block_on(async {
        let dir = written().await;
        change(dir.path(), RECORDS, b"cohort/a\0\0\0\0\0\0\0\x01", |_, _| None);
        only_a_fails_with(dir.path(), "1 records are there of 2").await;
    });
}

#[test]
fn a_record_under_anothers_key_is_an_error_of_its_stream() {
    runtime().block_on(async {
        let dir = written().await;
        let mut theirs = Vec::new();
        change(dir.path(), RECORDS, b"cohort/b", |_, value| {
            theirs = value.to_vec();
            Some(value.to_vec())
        });
        change(dir.path(), RECORDS, b"cohort/a", |_, _| Some(theirs));
        only_a_fails_with(dir.path(), "record 0 is damaged").await;
    });
}

#[test]
fn a_missing_head_is_found_by_the_records() {
    runtime().block_on(async {
        let dir = written().await;
        change(dir.path(), HEADS, b"cohort/a", |_, _| None);
        only_a_fails_with(dir.path(), "its head is missing").await;
        let state = State::open(dir.path()).unwrap();
        let appended = state.journal().append(&StreamId::new("cohort/a"), vec![at(3)]).await;
        assert!(appended.unwrap_err().to_string().contains("cohort/a"), "nothing is written over the records");
        state.journal().append(&StreamId::new("cohort/b"), vec![at(3)]).await.unwrap();
    });
}

#[test]
fn a_damaged_head_refuses_appends_to_its_stream_alone() {
    runtime().block_on(async {
        let dir = written().await;
        change(dir.path(), HEADS, b"cohort/a", |_, value| {
            let mut value = value.to_vec();
            *value.last_mut().unwrap() ^= 1;
            Some(value)
        });
        only_a_fails_with(dir.path(), "its head is damaged").await;
        let state = State::open(dir.path()).unwrap();
        let journal = state.journal();
        let (a, b) = (StreamId::new("cohort/a"), StreamId::new("cohort/b"));
        let appends =
            [journal.append(&b, vec![at(3)]), journal.append(&a, vec![at(3)]), journal.append(&b, vec![at(4)])];
        let outcomes: Vec<_> = futures::future::join_all(appends).await.iter().map(Result::is_ok).collect();
        assert_eq!(outcomes, [true, false, true]);
        assert_eq!(journal.read(&b).await.unwrap().len(), 4);
    });
}

#[test]
fn a_newer_format_is_refused_with_a_remedy() {
    runtime().block_on(async {
        let dir = written().await;
        let meta = TableDefinition::new("meta");
        change(dir.path(), meta, b"state", |key, _| Some(frame::seal(Kind::Meta, key, 9, b"of another shape")));
        for _ in 0..2 {
            let error = State::open(dir.path()).err().expect("a later program wrote it");
            assert!(matches!(error, StateError::Newer { found: 9, known: 1, .. }), "{error}");
            assert!(error.to_string().contains("use the program that wrote it"), "{error}");
        }
    });
}
