//! A damaged state directory: what is read is correct, or an error reports the damage, and nothing panics.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
};

use btcr2_aggregation_actors::{
    journal::{Journal, Record, StreamId},
    state::{State, StateError},
};
use btcr2_aggregation_protocol::{cohort::event::ServiceEvent, time::Timestamp};
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore, SeedableRng},
};
use tempfile::TempDir;

type Streams = BTreeMap<StreamId, Vec<u64>>;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn database(dir: &Path) -> PathBuf {
    dir.join("state.redb")
}

fn event(number: u64) -> Record {
    let reason = format!("number {number} {}", "x".repeat(usize::try_from(number % 7).unwrap() * 40));
    Record::new(ServiceEvent::TransactionDeferred { retry_at: Timestamp::from_millis(number), reason })
}

fn number(record: &Record) -> u64 {
    match record.event().unwrap() {
        ServiceEvent::TransactionDeferred { retry_at, .. } => retry_at.as_millis(),
        other => panic!("{other:?} was never written"),
    }
}

/// A directory with several streams, closed cleanly: each table has more than one level of pages.
async fn written() -> (TempDir, Streams) {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path()).unwrap();
    let journal = state.journal();
    let mut streams = Streams::new();
    let mut next = 0;
    for round in 0..6 {
        let appends = (0..40).map(|stream| {
            let name = StreamId::new(format!("cohort/{stream:03}"));
            let numbers: Vec<u64> = (next..next + 3).collect();
            next += 3;
            streams.entry(name.clone()).or_default().extend(&numbers);
            journal.append(&name, numbers.into_iter().map(event).collect())
        });
        futures::future::try_join_all(appends.collect::<Vec<_>>()).await.unwrap();
        state.table("t").put(vec![round], vec![round; 100]).await.unwrap();
    }
    drop(journal);
    state.close().await;
    (dir, streams)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    refused: usize,
    some_unreadable: usize,
    unharmed: usize,
}

/// Opens the directory and reads everything. Panics if wrong data is not reported as an error.
async fn look(dir: &Path, written: &Streams, what: &str, seen: &mut Seen) {
    let state = match State::open(dir) {
        Ok(state) => state,
        Err(error) => {
            assert!(error.to_string().contains(&*dir.to_string_lossy()), "{what}: {error}");
            seen.refused += 1;
            return;
        }
    };
    let journal = state.journal();
    let mut unreadable = 0;
    match journal.streams().await {
        Ok(names) => {
            for name in written.keys() {
                assert!(names.contains(name), "{what}: {name} is missing without an error");
            }
            for name in names.iter().filter(|name| !written.contains_key(name)) {
                assert!(journal.read(name).await.is_err(), "{what}: {name} was never written");
            }
        }
        Err(_) => unreadable += 1,
    }
    for (name, numbers) in written {
        match journal.read(name).await {
            Ok(records) => assert_eq!(records.iter().map(number).collect::<Vec<_>>(), *numbers, "{what}: {name}"),
            Err(error) => {
                assert!(error.to_string().contains(name.as_str()), "{what}: {error}");
                unreadable += 1;
            }
        }
    }
    // A write after the damage does not make damaged data readable.
    let appended: Result<(), _> = journal.append(&StreamId::new("cohort/020"), vec![event(1 << 40)]).await;
    if let Ok(records) = journal.read(&StreamId::new("cohort/020")).await {
        let numbers: Vec<u64> = records.iter().map(number).collect();
        let mut expected = written[&StreamId::new("cohort/020")].clone();
        expected.extend(appended.is_ok().then_some(1 << 40));
        assert_eq!(numbers, expected, "{what}");
    }
    if unreadable > 0 { seen.some_unreadable += 1 } else { seen.unharmed += 1 }
}

/// Copies the directory, and damages the copy.
fn harmed(dir: &Path, harm: impl FnOnce(&mut Vec<u8>)) -> TempDir {
    let copy = TempDir::new().unwrap();
    fs::copy(dir.join("lock"), copy.path().join("lock")).unwrap();
    let mut bytes = fs::read(database(dir)).unwrap();
    harm(&mut bytes);
    fs::write(database(copy.path()), bytes).unwrap();
    copy
}

/// The number of flipped bytes; more of them with `STATE_FLIPS=20000`.
fn flips() -> usize {
    std::env::var("STATE_FLIPS").map_or(400, |flips| flips.parse().unwrap())
}

/// Offsets of bytes that are not zero, all over the file, and all of the header's.
fn offsets(dir: &Path, most: usize) -> Vec<usize> {
    let bytes = fs::read(database(dir)).unwrap();
    let used: Vec<usize> = (0..bytes.len()).filter(|offset| bytes[*offset] != 0).collect();
    let step = (used.len() / most).max(1);
    let mut offsets: Vec<usize> = used.iter().copied().step_by(step).collect();
    offsets.extend(used.iter().copied().take_while(|offset| *offset < 320));
    offsets
}

#[test]
fn a_flipped_byte_anywhere_is_harmless_or_named() {
    runtime().block_on(async {
        let (dir, written) = written().await;
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let mut seen = Seen::default();
        for offset in offsets(dir.path(), flips()) {
            let flip = u8::try_from(rng.next_u32() % 255 + 1).unwrap();
            let copy = harmed(dir.path(), |bytes| bytes[offset] ^= flip);
            look(copy.path(), &written, &format!("byte {offset} ^ {flip:#x}"), &mut seen).await;
        }
        println!("{seen:?}");
        // The test would show nothing if no flip did damage, or if everything was lost each time.
        assert!(seen.refused > 0 && seen.some_unreadable > 20 && seen.unharmed > 0, "{seen:?}");
    });
}

#[test]
fn a_page_of_zeros_or_noise_is_harmless_or_named() {
    runtime().block_on(async {
        let (dir, written) = written().await;
        let mut rng = ChaCha20Rng::seed_from_u64(2);
        let mut seen = Seen::default();
        for offset in offsets(dir.path(), 60) {
            let copy = harmed(dir.path(), |bytes| {
                let end = (offset + 512).min(bytes.len());
                bytes[offset..end].fill(0);
                if rng.next_u32() % 2 == 0 {
                    rng.fill_bytes(&mut bytes[offset..end]);
                }
            });
            look(copy.path(), &written, &format!("512 bytes from {offset}"), &mut seen).await;
        }
        assert!(seen.refused > 0 && seen.some_unreadable > 0, "{seen:?}");
    });
}

#[test]
fn one_damaged_record_leaves_the_other_streams_usable() {
    runtime().block_on(async {
        let (dir, written) = written().await;
        // In the only record that contains it.
        let bytes = fs::read(database(dir.path())).unwrap();
        let needle = b"number 13 ";
        let places: Vec<usize> =
            (0..bytes.len() - needle.len()).filter(|at| bytes[*at..].starts_with(needle)).collect();
        let copy = harmed(dir.path(), |bytes| places.iter().for_each(|at| bytes[*at] ^= 1));
        let state = State::open(copy.path()).unwrap();
        let journal = state.journal();
        let hit = StreamId::new("cohort/004");
        assert!(written[&hit].contains(&13));
        let error = journal.read(&hit).await.unwrap_err();
        assert_eq!(error.stream, hit);
        assert!(error.to_string().contains("cohort/004: record 1 is damaged"), "{error}");
        for (name, numbers) in written.iter().filter(|(name, _)| **name != hit) {
            let records = journal.read(name).await.unwrap();
            assert_eq!(records.iter().map(number).collect::<Vec<_>>(), *numbers);
            journal.append(name, vec![event(9)]).await.unwrap();
        }
        journal.remove(&hit).await.expect("a damaged stream can be removed");
        assert!(journal.read(&hit).await.unwrap().is_empty());
    });
}

#[test]
fn a_file_that_was_cut_off_is_refused_by_name() {
    runtime().block_on(async {
        let (dir, written) = written().await;
        let length = fs::metadata(database(dir.path())).unwrap().len();
        let mut seen = Seen::default();
        let lengths = [0, 1, 5, 9, 64, 320, 511, 512, 4095, 4096, 8192, length / 2, length - 4096, length - 1];
        for cut in lengths {
            let copy = harmed(dir.path(), |bytes| bytes.truncate(usize::try_from(cut).unwrap()));
            look(copy.path(), &written, &format!("cut at {cut}"), &mut seen).await;
        }
        assert_eq!(seen.refused, lengths.len(), "{seen:?}");
        // A second attempt does not treat it as a new one.
        let copy = harmed(dir.path(), Vec::clear);
        for _ in 0..2 {
            assert!(matches!(State::open(copy.path()), Err(StateError::Corrupt { .. })));
        }
    });
}

#[test]
fn a_database_older_than_it_was_when_closed_is_refused_each_time() {
    runtime().block_on(async {
        let (dir, _) = written().await;
        let older = harmed(dir.path(), |_| {});
        let state = State::open(dir.path()).unwrap();
        for number in 0..3 {
            state.journal().append(&StreamId::new("cohort/000"), vec![event(number)]).await.unwrap();
        }
        state.close().await;
        fs::copy(dir.path().join("lock"), older.path().join("lock")).unwrap();
        for _ in 0..2 {
            let error = State::open(older.path()).err().expect("three commits are gone");
            assert!(matches!(error, StateError::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains("closed at commit"), "{error}");
        }
    });
}

#[test]
fn another_files_format_is_refused_with_what_to_do() {
    let open = |make: &dyn Fn(&Path)| {
        let dir = TempDir::new().unwrap();
        make(&database(dir.path()));
        let before = fs::read(database(dir.path())).unwrap();
        let error = State::open(dir.path()).err().expect("it is not a state directory");
        assert!(matches!(error, StateError::NotOurs { .. }), "{error}");
        assert!(error.to_string().contains("choose another directory"), "{error}");
        let after = fs::read(database(dir.path())).unwrap();
        assert_eq!(before.len(), after.len(), "it is unchanged");
    };
    open(&|path| fs::write(path, b"SQLite format 3\0 and so on, for a while").unwrap());
    open(&|path| fs::write(path, b"{}").unwrap());
    open(&|path| {
        let other = redb::Database::create(path).unwrap();
        let table = redb::TableDefinition::<&str, u64>::new("theirs");
        let transaction = other.begin_write().unwrap();
        transaction.open_table(table).unwrap().insert("a", 1).unwrap();
        transaction.commit().unwrap();
    });
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = State::open(file.join("state")).err().expect("a file is not a directory");
    assert!(matches!(error, StateError::Io { .. }), "{error}");
    assert!(error.to_string().contains("file/state"), "{error}");
}

#[test]
fn what_a_killed_first_start_left_behind_is_no_obstacle() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("state.redb.new"), b"half a database").unwrap();
        OpenOptions::new().create(true).append(true).open(dir.path().join("lock")).unwrap();
        let state = State::open(dir.path()).unwrap();
        state.journal().append(&StreamId::new("a"), vec![event(1)]).await.unwrap();
        state.close().await;
        let state = State::open(dir.path()).unwrap();
        assert_eq!(state.journal().read(&StreamId::new("a")).await.unwrap().len(), 1);
    });
}
