//! What every journal must do, whatever it is made of.
#![allow(clippy::unwrap_used, reason = "the suite is made of functions that are tests in all but the attribute")]

use std::sync::Arc;

use btcr2_aggregation_actors::journal::{Journal, MemoryJournal, Record, StreamId};
use btcr2_aggregation_protocol::{
    cohort::event::{ParticipantEvent, ServiceEvent},
    time::Timestamp,
};
use futures::future::join_all;

type Fresh = dyn Fn() -> Arc<dyn Journal>;

/// The suite. `fresh` makes an empty journal each time.
async fn conforms(fresh: &Fresh) {
    records_are_read_back_in_the_order_of_their_appends(fresh()).await;
    appends_keep_their_order_however_their_answers_are_awaited(fresh()).await;
    streams_are_separate_and_listed_in_order(fresh()).await;
    a_stream_that_was_never_written_is_empty(fresh()).await;
    a_removed_stream_is_gone_and_can_begin_again(fresh()).await;
    concurrent_appends_keep_the_order_of_each_stream(fresh()).await;
    what_is_read_is_the_event_or_says_that_it_is_not(fresh()).await;
    names_and_contents_are_kept_to_the_byte(fresh()).await;
}

#[test]
fn the_journal_in_memory_conforms() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(conforms(&|| Arc::new(MemoryJournal::new())));
}

#[test]
fn clones_of_the_journal_in_memory_are_one_journal() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let journal = MemoryJournal::new();
        let clone = journal.clone();
        journal.append(&stream("a"), vec![at(1)]).await.unwrap();
        assert_eq!(read(&clone, &stream("a")).await, [1]);
    });
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

async fn records_are_read_back_in_the_order_of_their_appends(journal: Arc<dyn Journal>) {
    let name = stream("cohort/a");
    journal.append(&name, vec![at(1), at(2)]).await.unwrap();
    journal.append(&name, vec![at(3)]).await.unwrap();
    journal.append(&name, Vec::new()).await.unwrap();
    journal.append(&name, vec![at(4), at(5), at(6)]).await.unwrap();
    assert_eq!(read(&*journal, &name).await, [1, 2, 3, 4, 5, 6]);
    assert_eq!(read(&*journal, &name).await, [1, 2, 3, 4, 5, 6], "reading takes nothing away");
}

async fn appends_keep_their_order_however_their_answers_are_awaited(journal: Arc<dyn Journal>) {
    let name = stream("cohort/a");
    // The order is that of the calls, not that in which the futures are polled.
    let first = journal.append(&name, vec![at(1)]);
    let second = journal.append(&name, vec![at(2)]);
    let third = journal.append(&name, vec![at(3)]);
    third.await.unwrap();
    first.await.unwrap();
    second.await.unwrap();
    // An actor that is gone awaits nothing; what it appended was appended.
    drop(journal.append(&name, vec![at(4)]));
    journal.append(&name, vec![at(5)]).await.unwrap();
    assert_eq!(read(&*journal, &name).await, [1, 2, 3, 4, 5]);
}

async fn streams_are_separate_and_listed_in_order(journal: Arc<dyn Journal>) {
    assert_eq!(journal.streams().await.unwrap(), []);
    let names = ["signing/b", "cohort/b", "cohort/a"];
    for (number, name) in (0..).zip(names) {
        journal.append(&stream(name), vec![at(number)]).await.unwrap();
    }
    assert_eq!(journal.streams().await.unwrap(), ["cohort/a", "cohort/b", "signing/b"].map(stream));
    for (number, name) in (0..).zip(names) {
        assert_eq!(read(&*journal, &stream(name)).await, [number]);
    }
}

async fn a_stream_that_was_never_written_is_empty(journal: Arc<dyn Journal>) {
    assert!(journal.read(&stream("cohort/none")).await.unwrap().is_empty());
    assert_eq!(journal.streams().await.unwrap(), [], "reading makes no stream");
}

async fn a_removed_stream_is_gone_and_can_begin_again(journal: Arc<dyn Journal>) {
    let (gone, kept) = (stream("cohort/gone"), stream("cohort/kept"));
    journal.append(&gone, vec![at(1), at(2)]).await.unwrap();
    journal.append(&kept, vec![at(3)]).await.unwrap();
    journal.remove(&gone).await.unwrap();
    journal.remove(&gone).await.expect("what is gone can be removed again");
    assert!(read(&*journal, &gone).await.is_empty());
    assert_eq!(journal.streams().await.unwrap(), std::slice::from_ref(&kept));
    journal.append(&gone, vec![at(4)]).await.unwrap();
    assert_eq!(read(&*journal, &gone).await, [4]);
    assert_eq!(read(&*journal, &kept).await, [3]);
}

async fn concurrent_appends_keep_the_order_of_each_stream(journal: Arc<dyn Journal>) {
    const STREAMS: u64 = 8;
    const APPENDS: u64 = 50;
    let tasks = (0..STREAMS).map(|number| {
        let journal = Arc::clone(&journal);
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
        assert_eq!(read(&*journal, &stream(&format!("cohort/{number}"))).await, expected);
    }
}

async fn what_is_read_is_the_event_or_says_that_it_is_not(journal: Arc<dyn Journal>) {
    let name = stream("cohort/a");
    journal.append(&name, vec![at(7)]).await.unwrap();
    let records = journal.read(&name).await.unwrap();
    let [record] = records.as_slice() else { panic!("one record expected in {records:?}") };
    assert_eq!(record.event::<ServiceEvent>().unwrap(), event(7));
    assert!(record.event::<ParticipantEvent>().is_err(), "an event of another role");
    let json = record.to_json().unwrap();
    assert_eq!(serde_json::from_slice::<ServiceEvent>(&json).unwrap(), event(7));
}

async fn names_and_contents_are_kept_to_the_byte(journal: Arc<dyn Journal>) {
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
