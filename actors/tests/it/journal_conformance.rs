//! The conformance suite for journals.

use std::{collections::BTreeMap, sync::Arc};

use btcr2_aggregation_actors::{
    journal::{Archived, Journal, MemoryJournal, Record, StreamId, StreamKind},
    runtime::Randomness,
    state::State,
};
use btcr2_aggregation_protocol::{
    cohort::event::{ParticipantEvent, ServiceEvent},
    did::Did,
    key::SecretKey,
    network::Network,
    time::Timestamp,
};
use futures::future::join_all;
use proptest::prelude::*;
use tempfile::TempDir;

/// The storage of a journal.
trait Storage {
    /// Opens the journal.
    fn journal(&self) -> Arc<dyn Journal>;

    /// Closes the journal, and opens the storage again.
    fn restart(&mut self) {}
}

impl Storage for MemoryJournal {
    fn journal(&self) -> Arc<dyn Journal> {
        Arc::new(self.clone())
    }
}

struct Directory {
    dir: TempDir,
    state: Option<State>,
}

impl Directory {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let state = Some(State::open(dir.path()).unwrap());
        Self { dir, state }
    }
}

impl Storage for Directory {
    fn journal(&self) -> Arc<dyn Journal> {
        Arc::new(self.state.as_ref().unwrap().journal())
    }

    fn restart(&mut self) {
        drop(self.state.take());
        self.state = Some(State::open(self.dir.path()).unwrap());
    }
}

/// The suite. `fresh` creates an empty storage each time.
async fn conforms<P: Storage>(fresh: impl Fn() -> P) {
    records_are_read_back_in_the_order_of_their_appends(&*fresh().journal()).await;
    appends_preserve_the_order_of_the_calls(&*fresh().journal()).await;
    streams_are_separate_and_listed_in_order(&*fresh().journal()).await;
    a_read_sees_what_was_handed_in_before_it(&*fresh().journal()).await;
    a_stream_that_was_never_written_is_empty(&*fresh().journal()).await;
    a_removed_stream_is_gone_and_can_begin_again(&*fresh().journal()).await;
    a_replaced_stream_has_only_the_new_records(&*fresh().journal()).await;
    an_archived_stream_remains_readable(&*fresh().journal()).await;
    concurrent_appends_preserve_the_order_of_each_stream(fresh().journal()).await;
    a_record_is_the_event_or_an_error(&*fresh().journal()).await;
    names_and_contents_are_stored_to_the_byte(&*fresh().journal()).await;
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn the_journal_in_memory_conforms() {
    runtime().block_on(conforms(MemoryJournal::new));
}

#[test]
fn the_journal_in_a_state_directory_conforms() {
    runtime().block_on(conforms(Directory::new));
}

#[test]
fn clones_of_the_journal_in_memory_are_one_journal() {
    runtime().block_on(async {
        let journal = MemoryJournal::new();
        let clone = journal.clone();
        journal.append(&stream("a"), vec![at(1)]).await.unwrap();
        assert_eq!(read(&clone, &stream("a")).await, [1]);
    });
}

/// An operation on a journal of a few streams.
#[derive(Clone, Debug)]
enum Operation {
    Append { stream: u8, records: u8 },
    Archive { stream: u8, at: u64 },
    Remove { stream: u8 },
    Restart,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let operation = prop_oneof![
        6 => (0..4u8, 0..5u8).prop_map(|(stream, records)| Operation::Append { stream, records }),
        2 => (0..4u8, any::<u64>()).prop_map(|(stream, at)| Operation::Archive { stream, at }),
        1 => (0..4u8).prop_map(|stream| Operation::Remove { stream }),
        1 => Just(Operation::Restart),
    ];
    prop::collection::vec(operation, 0..40)
}

/// The simplest model of a journal.
#[derive(Default)]
struct Model(BTreeMap<StreamId, (Vec<u64>, Option<Timestamp>)>);

impl Model {
    fn append(&mut self, name: &StreamId, numbers: &[u64]) {
        if !numbers.is_empty() {
            let (records, archived) = self.0.entry(name.clone()).or_default();
            records.extend(numbers);
            *archived = None;
        }
    }

    fn archive(&mut self, name: &StreamId, at: Timestamp) {
        if let Some((_, archived)) = self.0.get_mut(name) {
            archived.get_or_insert(at);
        }
    }

    async fn check(&self, journal: &dyn Journal) {
        let live = self.0.iter().filter(|(_, (_, archived))| archived.is_none()).map(|(name, _)| name.clone());
        assert_eq!(journal.streams().await.unwrap(), live.collect::<Vec<_>>());
        let archived =
            self.0.iter().filter_map(|(name, (_, at))| Some(Archived { stream: name.clone(), at: (*at)? }));
        assert_eq!(journal.archived().await.unwrap(), archived.collect::<Vec<_>>());
        for (name, (records, _)) in &self.0 {
            assert_eq!(read(journal, name).await, *records);
        }
    }
}

async fn behaves_as_the_model(mut storage: impl Storage, operations: Vec<Operation>) {
    // In every pair, one name is a prefix of the other.
    let names = ["cohort/a", "cohort/a\u{0}", "cohort/ab", "signing/a"].map(stream);
    let mut model = Model::default();
    let mut next = 0;
    for operation in operations {
        let journal = storage.journal();
        match operation {
            Operation::Append { stream, records } => {
                let numbers: Vec<u64> = (next..next + u64::from(records)).collect();
                next += u64::from(records);
                let name = &names[usize::from(stream)];
                journal.append(name, numbers.iter().copied().map(at).collect()).await.unwrap();
                model.append(name, &numbers);
            }
            Operation::Archive { stream, at } => {
                let (name, at) = (&names[usize::from(stream)], Timestamp::from_millis(at));
                journal.archive(name, at).await.unwrap();
                model.archive(name, at);
            }
            Operation::Remove { stream } => {
                let name = &names[usize::from(stream)];
                journal.remove(name).await.unwrap();
                model.0.remove(name);
            }
            Operation::Restart => {
                drop(journal);
                storage.restart();
                model.check(&*storage.journal()).await;
            }
        }
    }
    model.check(&*storage.journal()).await;
    storage.restart();
    model.check(&*storage.journal()).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_journal_in_memory_behaves_as_the_model(operations in operations()) {
        runtime().block_on(behaves_as_the_model(MemoryJournal::new(), operations));
    }

    #[test]
    fn the_journal_in_a_state_directory_behaves_as_the_model(operations in operations()) {
        runtime().block_on(behaves_as_the_model(Directory::new(), operations));
    }

    #[test]
    fn an_escaped_name_is_plain_and_means_that_name_alone(name in any::<String>(), other in "[ -~]{0,8}") {
        let stream = stream(&name);
        let escaped = stream.escaped().to_string();
        prop_assert!(escaped.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/:-._~%".contains(&byte)));
        prop_assert_eq!(StreamId::from_escaped(&escaped), Some(stream));
        if let Some(read) = StreamId::from_escaped(&other) {
            prop_assert_eq!(read.escaped().to_string(), other);
        }
    }
}

#[test]
fn a_name_identifies_the_subject_of_the_stream() {
    let did = |name: &str| {
        let key = SecretKey::generate(&mut Randomness::Seeded([7; 32]).for_actor(name));
        Did::from_key(key.public_key(), Network::Regtest)
    };
    let (member, coordinator) = (did("member"), did("service"));
    let kind = |name: &str| stream(name).kind();
    let participant = kind(&format!("participant/{member}/{coordinator}/a/b"));
    let StreamKind::Participant { did, service, cohort_id } = participant else { panic!("{participant:?}") };
    let participant_did = member.clone();
    assert_eq!((did, service, cohort_id.as_str()), (member, coordinator, "a/b"));
    assert!(matches!(kind("cohort/a/b"), StreamKind::Cohort(id) if id.as_str() == "a/b"));
    assert_eq!(kind("acknowledged/cohort/a/b"), StreamKind::Acknowledged(stream("cohort/a/b")));
    assert!(matches!(kind("signing/x"), StreamKind::Signing(id) if id.as_str() == "x"));
    let membership = kind(&format!("membership/{}", participant_did));
    assert_eq!(membership, StreamKind::Membership(participant_did));
    for other in ["", "membership/x", "cohort", "cohort/", "cohort/a b", "participant/x/y/z", "other/a"] {
        assert_eq!(kind(other), StreamKind::Other, "{other}");
    }
}

fn stream(name: &str) -> StreamId {
    StreamId::new(name)
}

fn event(number: u64) -> ServiceEvent {
    ServiceEvent::AdvertRepeated { at: Timestamp::from_millis(number) }
}

fn at(number: u64) -> Record {
    Record::new(event(number))
}

async fn read(journal: &dyn Journal, stream: &StreamId) -> Vec<u64> {
    let records = journal.read(stream).await.unwrap();
    records
        .iter()
        .map(|record| match record.event().unwrap() {
            ServiceEvent::AdvertRepeated { at } => at.as_millis(),
            other => panic!("{other:?} was never written"),
        })
        .collect()
}

async fn records_are_read_back_in_the_order_of_their_appends(journal: &dyn Journal) {
    let name = stream("cohort/a");
    journal.append(&name, vec![at(1), at(2)]).await.unwrap();
    journal.append(&name, vec![at(3)]).await.unwrap();
    journal.append(&name, Vec::new()).await.unwrap();
    journal.append(&name, vec![at(4), at(5), at(6)]).await.unwrap();
    assert_eq!(read(journal, &name).await, [1, 2, 3, 4, 5, 6]);
    assert_eq!(read(journal, &name).await, [1, 2, 3, 4, 5, 6], "reading takes nothing away");
}

async fn appends_preserve_the_order_of_the_calls(journal: &dyn Journal) {
    let name = stream("cohort/a");
    // The order is that of the calls, not that in which the futures are polled.
    let first = journal.append(&name, vec![at(1)]);
    let second = journal.append(&name, vec![at(2)]);
    let third = journal.append(&name, vec![at(3)]);
    third.await.unwrap();
    first.await.unwrap();
    second.await.unwrap();
    // An actor that has stopped does not await its futures; its appends are stored nevertheless.
    drop(journal.append(&name, vec![at(4)]));
    journal.append(&name, vec![at(5)]).await.unwrap();
    assert_eq!(read(journal, &name).await, [1, 2, 3, 4, 5]);
}

async fn streams_are_separate_and_listed_in_order(journal: &dyn Journal) {
    assert_eq!(journal.streams().await.unwrap(), []);
    let names = ["signing/b", "cohort/b", "cohort/a"];
    for (number, name) in (0..).zip(names) {
        journal.append(&stream(name), vec![at(number)]).await.unwrap();
    }
    assert_eq!(journal.streams().await.unwrap(), ["cohort/a", "cohort/b", "signing/b"].map(stream));
    for (number, name) in (0..).zip(names) {
        assert_eq!(read(journal, &stream(name)).await, [number]);
    }
}

/// An actor's successor reads the last writes, even if they have not been answered yet.
async fn a_read_sees_what_was_handed_in_before_it(journal: &dyn Journal) {
    for number in 0..100 {
        drop(journal.append(&stream("a"), vec![at(number)]));
    }
    assert_eq!(read(journal, &stream("a")).await, (0..100).collect::<Vec<_>>());
    drop(journal.append(&stream("b"), vec![at(0)]));
    assert_eq!(journal.streams().await.unwrap(), [stream("a"), stream("b")]);
}

async fn a_stream_that_was_never_written_is_empty(journal: &dyn Journal) {
    assert!(journal.read(&stream("cohort/none")).await.unwrap().is_empty());
    assert_eq!(journal.streams().await.unwrap(), [], "reading makes no stream");
}

async fn a_removed_stream_is_gone_and_can_begin_again(journal: &dyn Journal) {
    let (gone, kept) = (stream("cohort/gone"), stream("cohort/kept"));
    journal.append(&gone, vec![at(1), at(2)]).await.unwrap();
    journal.append(&kept, vec![at(3)]).await.unwrap();
    journal.remove(&gone).await.unwrap();
    journal.remove(&gone).await.expect("a removed stream can be removed again");
    assert!(read(journal, &gone).await.is_empty());
    assert_eq!(journal.streams().await.unwrap(), std::slice::from_ref(&kept));
    journal.append(&gone, vec![at(4)]).await.unwrap();
    assert_eq!(read(journal, &gone).await, [4]);
    assert_eq!(read(journal, &kept).await, [3]);
}

async fn a_replaced_stream_has_only_the_new_records(journal: &dyn Journal) {
    let (name, other) = (stream("membership/a"), stream("cohort/other"));
    journal.append(&name, vec![at(1), at(2)]).await.unwrap();
    journal.append(&other, vec![at(3)]).await.unwrap();
    let replaced = journal.replace(&name, vec![at(4), at(5)]);
    // In the order of the calls, like every change.
    drop(journal.append(&name, vec![at(6)]));
    replaced.await.unwrap();
    assert_eq!(read(journal, &name).await, [4, 5, 6]);
    assert_eq!(read(journal, &other).await, [3]);
    journal.replace(&name, Vec::new()).await.unwrap();
    assert_eq!(journal.streams().await.unwrap(), [other]);
    journal.replace(&name, vec![at(7)]).await.expect("a stream that is not there is written");
    assert_eq!(read(journal, &name).await, [7]);
}

async fn an_archived_stream_remains_readable(journal: &dyn Journal) {
    let (done, live, never) = (stream("cohort/done"), stream("cohort/live"), stream("cohort/never"));
    let (at_first, later) = (Timestamp::from_millis(7), Timestamp::from_millis(8));
    journal.append(&done, vec![at(1), at(2)]).await.unwrap();
    journal.append(&live, vec![at(3)]).await.unwrap();
    journal.archive(&never, at_first).await.expect("there is nothing to archive");
    journal.archive(&done, at_first).await.unwrap();
    journal.archive(&done, later).await.unwrap();
    assert_eq!(journal.streams().await.unwrap(), std::slice::from_ref(&live));
    assert_eq!(journal.archived().await.unwrap(), [Archived { stream: done.clone(), at: at_first }]);
    assert_eq!(read(journal, &done).await, [1, 2]);

    journal.append(&done, Vec::new()).await.unwrap();
    assert_eq!(journal.archived().await.unwrap().len(), 1, "nothing was appended");
    journal.append(&done, vec![at(4)]).await.unwrap();
    assert_eq!(journal.streams().await.unwrap(), [done.clone(), live.clone()], "there is something new in it");
    assert_eq!(journal.archived().await.unwrap(), []);
    assert_eq!(read(journal, &done).await, [1, 2, 4]);
    journal.archive(&done, later).await.unwrap();
    assert_eq!(journal.archived().await.unwrap(), [Archived { stream: done.clone(), at: later }]);
    journal.remove(&done).await.unwrap();
    assert_eq!(journal.archived().await.unwrap(), []);
    assert!(read(journal, &done).await.is_empty());
}

async fn concurrent_appends_preserve_the_order_of_each_stream(shared: Arc<dyn Journal>) {
    const STREAMS: u64 = 8;
    const APPENDS: u64 = 50;
    let tasks = (0..STREAMS).map(|number| {
        let journal = Arc::clone(&shared);
        tokio::spawn(async move {
            let name = stream(&format!("cohort/{number}"));
            let mut answers = Vec::new();
            for append in 0..APPENDS {
                answers.push(journal.append(&name, vec![at(2 * append), at(2 * append + 1)]));
                tokio::task::yield_now().await;
            }
            join_all(answers).await
        })
    });
    for answers in join_all(tasks).await {
        assert!(answers.unwrap().iter().all(Result::is_ok));
    }
    let expected: Vec<u64> = (0..2 * APPENDS).collect();
    for number in 0..STREAMS {
        assert_eq!(read(&*shared, &stream(&format!("cohort/{number}"))).await, expected);
    }
}

async fn a_record_is_the_event_or_an_error(journal: &dyn Journal) {
    let name = stream("cohort/a");
    journal.append(&name, vec![at(7)]).await.unwrap();
    let records = journal.read(&name).await.unwrap();
    let [record] = records.as_slice() else { panic!("one record expected in {records:?}") };
    assert_eq!(record.event::<ServiceEvent>().unwrap(), event(7));
    assert!(record.event::<ParticipantEvent>().is_err(), "an event of another role");
    let json = record.to_json().unwrap();
    assert_eq!(serde_json::from_slice::<ServiceEvent>(&json).unwrap(), event(7));
}

async fn names_and_contents_are_stored_to_the_byte(journal: &dyn Journal) {
    // A peer chooses parts of a name: any visible ASCII, up to 64 characters.
    let names =
        ["participant/did:btcr2:k1q/did:btcr2:k1s/../..", "cohort/%2F", "cohort/A", "cohort/a", "cohort/a b\"\\"];
    let long = format!("cohort/{}", "~".repeat(64));
    let reason = "line\nbreak, \u{0}, quote \", Zürich, 🜁";
    for name in names.into_iter().chain([long.as_str()]) {
        let fault =
            ServiceEvent::TransactionDeferred { retry_at: Timestamp::NEVER, reason: format!("{reason} {name}") };
        journal.append(&stream(name), vec![Record::new(fault)]).await.unwrap();
    }
    assert_eq!(journal.streams().await.unwrap().len(), names.len() + 1);
    for name in names.into_iter().chain([long.as_str()]) {
        let records = journal.read(&stream(name)).await.unwrap();
        let ServiceEvent::TransactionDeferred { retry_at, reason: read } = records[0].event().unwrap() else {
            panic!("another event under {name}")
        };
        assert_eq!((retry_at, read), (Timestamp::NEVER, format!("{reason} {name}")));
        assert_eq!(records.len(), 1, "{name}");
    }
}

#[test]
fn a_record_is_the_same_event_as_a_value_and_as_json() {
    let value = at(9);
    let json = Record::from_json(value.to_json().unwrap());
    assert_eq!(value.event::<ServiceEvent>().unwrap(), event(9));
    assert_eq!(json.event::<ServiceEvent>().unwrap(), event(9));
    assert_eq!(json.to_json().unwrap(), value.to_json().unwrap());
    assert!(value.event::<ParticipantEvent>().is_err(), "the value of another type");
    assert!(json.event::<ParticipantEvent>().is_err(), "the JSON of another type");
    assert!(Record::from_json(*b"{\"AdvertRepeated\":").event::<ServiceEvent>().is_err(), "half a record");
}
