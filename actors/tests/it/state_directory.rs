//! A state directory as a whole: its lock, the durability of its writes, and the number of syncs.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
};

use btcr2_aggregation_actors::{
    journal::{Journal, Record, StreamId},
    state::{Edit, Page, State, StateError},
};
use btcr2_aggregation_protocol::{cohort::event::ServiceEvent, time::Timestamp};
use futures::future::{join_all, try_join_all};
use proptest::prelude::*;
use tempfile::TempDir;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn stream(name: &str) -> StreamId {
    StreamId::new(name)
}

fn at(number: u64) -> Record {
    Record::new(ServiceEvent::AdvertRepeated { at: Timestamp::from_millis(number) })
}

async fn numbers(state: &State, name: &str) -> Vec<u64> {
    let records = state.journal().read(&stream(name)).await.unwrap();
    let number = |record: &Record| match record.event().unwrap() {
        ServiceEvent::AdvertRepeated { at } => at.as_millis(),
        other => panic!("{other:?} was never written"),
    };
    records.iter().map(number).collect()
}

/// This program again, as another process that runs one of the tests below.
struct Other(Child);

impl Other {
    fn running(test: &str, dir: &TempDir) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--ignored", "--nocapture"]).env("STATE_DIRECTORY", dir.path());
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn lines(&mut self) -> impl Iterator<Item = String> + use<> {
        BufReader::new(self.0.stdout.take().unwrap()).lines().map_while(Result::ok)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "the other process of another test"]
fn other_holds_the_directory_until_its_input_ends() {
    let Ok(dir) = std::env::var("STATE_DIRECTORY") else { return };
    let state = State::open(dir).unwrap();
    println!("\nheld");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(state);
}

#[test]
#[ignore = "the other process of another test"]
fn other_appends_until_it_is_killed() {
    let Ok(dir) = std::env::var("STATE_DIRECTORY") else { return };
    runtime().block_on(async {
        let state = State::open(dir).unwrap();
        for number in 0.. {
            let appended = state.journal().append(&stream("a"), vec![at(number)]);
            drop(state.journal().append(&stream("b"), vec![at(2 * number), at(2 * number + 1)]));
            appended.await.unwrap();
            println!("\n{number}");
            std::io::stdout().flush().unwrap();
        }
    });
}

#[test]
fn one_process_at_a_time_holds_a_directory() {
    let dir = TempDir::new().unwrap();
    let mut other = Other::running("state_directory::other_holds_the_directory_until_its_input_ends", &dir);
    assert!(other.lines().any(|line| line == "held"));
    let error = State::open(dir.path()).err().expect("the other process has locked it");
    let StateError::Locked { pid, .. } = &error else { panic!("{error}") };
    if cfg!(unix) {
        assert_eq!(*pid, Some(other.0.id()));
    }
    assert!(error.to_string().contains(&*dir.path().to_string_lossy()), "{error}");

    // Killed or not, the lock ends with the process.
    drop(other);
    let state = State::open(dir.path()).unwrap();
    let error = State::open(dir.path()).err().expect("this process has locked it");
    assert!(matches!(error, StateError::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    drop(state);
    State::open(dir.path()).unwrap();
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill() {
    const ROUNDS: usize = 5;
    let dir = TempDir::new().unwrap();
    for round in 0..ROUNDS {
        let mut other = Other::running("state_directory::other_appends_until_it_is_killed", &dir);
        let enough = 10 + 15 * round;
        let acknowledged = other.lines().filter_map(|line| line.parse::<u64>().ok()).take(enough).last().unwrap();
        drop(other);
        runtime().block_on(async {
            let state = State::open(dir.path()).unwrap();
            let a = numbers(&state, "a").await;
            assert!(a.len() as u64 > acknowledged, "{} of more than {acknowledged}", a.len());
            assert_eq!(a, (0..a.len() as u64).collect::<Vec<_>>());
            let b = numbers(&state, "b").await;
            assert_eq!(b, (0..b.len() as u64).collect::<Vec<_>>());
            assert!(b.len() % 2 == 0, "an append is stored completely or not at all");
            // Each append of `b` was made between two of `a`.
            assert!((2 * a.len() - 2..=2 * a.len()).contains(&b.len()), "{} and {}", a.len(), b.len());
            for name in ["a", "b"] {
                state.journal().remove(&stream(name)).await.unwrap();
            }
        });
    }
}

#[test]
fn a_thousand_concurrent_appends_take_tens_of_commits() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let state = State::open(dir.path()).unwrap();
        let journal = state.journal();
        let appends: Vec<_> = (0..1000)
            .map(|number| journal.append(&stream(&format!("cohort/{}", number % 50)), vec![at(number)]))
            .collect();
        assert!(join_all(appends).await.iter().all(Result::is_ok));
        assert!(state.commits() <= 100, "{} commits", state.commits());
        for stream in 0..50 {
            let expected: Vec<u64> = (0..20).map(|round| round * 50 + stream).collect();
            assert_eq!(numbers(&state, &format!("cohort/{stream}")).await, expected);
        }
    });
}

#[test]
fn the_journal_and_the_tables_share_commits() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let state = State::open(dir.path()).unwrap();
        let (journal, table) = (state.journal(), state.table("t"));
        let puts = (0..200u8).map(|number| table.put(vec![number], vec![number]));
        let puts: Vec<_> = puts.collect();
        let appends: Vec<_> = (0..200).map(|number| journal.append(&stream("a"), vec![at(number)])).collect();
        try_join_all(puts).await.unwrap();
        assert!(join_all(appends).await.iter().all(Result::is_ok));
        assert!(state.commits() <= 60, "{} commits", state.commits());
    });
}

#[test]
fn the_last_drop_writes_what_was_handed_in_and_frees_the_directory() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let state = State::open(dir.path()).unwrap();
        let (journal, table) = (state.journal(), state.table("t"));
        drop(state);
        for number in 0..500 {
            drop(journal.append(&stream("a"), vec![at(number)]));
        }
        drop(table.put(*b"k", *b"v"));
        drop(journal);
        assert!(matches!(State::open(dir.path()), Err(StateError::Locked { .. })), "the table still uses it");
        drop(table);
        let state = State::open(dir.path()).unwrap();
        assert_eq!(numbers(&state, "a").await, (0..500).collect::<Vec<_>>());
        assert_eq!(state.table("t").get(*b"k").await.unwrap(), Some(b"v".to_vec()));
    });
}

#[test]
fn closing_writes_everything_and_ends_every_handle() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let state = State::open(dir.path()).unwrap();
        let (journal, table) = (state.journal(), state.table("t"));
        let handed_in: Vec<_> = (0..100).map(|number| journal.append(&stream("a"), vec![at(number)])).collect();
        state.close().await;
        assert!(join_all(handed_in).await.iter().all(Result::is_ok));
        let again = State::open(dir.path()).expect("it is unlocked although handles are left");

        let error = journal.append(&stream("a"), vec![at(100)]).await.unwrap_err();
        assert!(error.to_string().contains("closed"), "{error}");
        assert!(journal.read(&stream("a")).await.is_err());
        assert!(journal.streams().await.is_err());
        assert!(matches!(table.put(*b"k", *b"v").await, Err(StateError::Closed { .. })));
        assert!(matches!(table.get(*b"k").await, Err(StateError::Closed { .. })));
        assert_eq!(numbers(&again, "a").await, (0..100).collect::<Vec<_>>());
    });
}

#[cfg(unix)]
#[test]
fn what_is_made_is_for_this_user_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    let made = dir.path().join("a/state");
    let _state = State::open(&made).unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&made), 0o700);
    assert_eq!(mode(&made.join("state.redb")), 0o600);
    assert_eq!(mode(&made.join("lock")), 0o600);
}

#[test]
fn streams_are_summed_up() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let state = State::open(dir.path()).unwrap();
        let journal = state.journal();
        journal.append(&stream("cohort/a"), vec![at(1), at(22)]).await.unwrap();
        journal.append(&stream("cohort/b"), vec![at(333)]).await.unwrap();
        journal.archive(&stream("cohort/a"), Timestamp::from_millis(5)).await.unwrap();
        let summaries = state.streams().await.unwrap();
        let [a, b] = summaries.as_slice() else { panic!("{summaries:?}") };
        assert_eq!((a.stream.as_str(), a.archived), ("cohort/a", Some(Timestamp::from_millis(5))));
        let bytes =
            |numbers: &[u64]| numbers.iter().map(|number| at(*number).to_json().unwrap().len() as u64).sum();
        let size = a.size.as_ref().unwrap();
        assert_eq!((size.records, size.bytes), (2, bytes(&[1, 22])));
        assert_eq!((b.archived, b.size.as_ref().unwrap().bytes), (None, bytes(&[333])));
    });
}

#[test]
fn tables_are_separate_and_scanned_in_pages() {
    runtime().block_on(async {
        let dir = TempDir::new().unwrap();
        let state = State::open(dir.path()).unwrap();
        let (table, other) = (state.table("table"), state.table("tabl"));
        for number in 0..10u8 {
            table.put([b"p", &[number][..]].concat(), vec![number; 3]).await.unwrap();
        }
        table.put(*b"o", *b"before").await.unwrap();
        table.put(*b"q", *b"").await.unwrap();
        other.put(*b"ep5", *b"other").await.unwrap();
        other.put(*b"p\x05", *b"other").await.unwrap();

        let mut after = None;
        let mut keys = Vec::new();
        let mut pages = 0;
        loop {
            let Page { entries, damaged, next } = table.scan(*b"p", after, 4).await.unwrap();
            assert!(entries.len() <= 4 && damaged.is_empty());
            assert!(entries.iter().all(|(key, value)| *value == [key[1]; 3]));
            keys.extend(entries.into_iter().map(|(key, _)| key[1]));
            pages += 1;
            after = next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!((keys, pages), ((0..10).collect(), 3));
        assert_eq!(table.get(*b"q").await.unwrap(), Some(Vec::new()));
        assert_eq!(table.get(*b"none").await.unwrap(), None);
        assert_eq!(other.scan(*b"", None, 10).await.unwrap().entries.len(), 2);
        table.remove(*b"q").await.unwrap();
        table.remove(*b"q").await.expect("a removed key can be removed again");
        assert_eq!(table.get(*b"q").await.unwrap(), None);
    });
}

#[derive(Clone, Debug)]
enum Operation {
    Edit(Vec<Edit>),
    Restart,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let key = || prop::collection::vec(0..3u8, 0..3);
    let edit = prop_oneof![
        3 => (key(), prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(key, value)| Edit::Put(key, value)),
        1 => key().prop_map(Edit::Remove),
    ];
    let operation = prop_oneof![
        8 => prop::collection::vec(edit, 0..4).prop_map(Operation::Edit),
        1 => Just(Operation::Restart),
    ];
    prop::collection::vec(operation, 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_table_behaves_as_a_map(operations in operations(), prefix in prop::collection::vec(0..3u8, 0..2), most in 1..5usize) {
        runtime().block_on(async {
            let dir = TempDir::new().unwrap();
            let mut state = State::open(dir.path()).unwrap();
            let mut model = std::collections::BTreeMap::new();
            for operation in operations {
                match operation {
                    Operation::Edit(edits) => {
                        for edit in &edits {
                            match edit.clone() {
                                Edit::Put(key, value) => drop(model.insert(key, value)),
                                Edit::Remove(key) => drop(model.remove(&key)),
                            }
                        }
                        state.table("t").edit(edits).await.unwrap();
                    }
                    Operation::Restart => {
                        drop(state);
                        state = State::open(dir.path()).unwrap();
                    }
                }
            }
            let mut scanned = Vec::new();
            let mut after = None;
            loop {
                let page = state.table("t").scan(prefix.clone(), after, most).await.unwrap();
                scanned.extend(page.entries);
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            let expected: Vec<_> = model.into_iter().filter(|(key, _)| key.starts_with(&prefix)).collect();
            assert_eq!(scanned, expected);
        });
    }
}
