//! A cohort that is moved from one state directory to another.

use std::collections::BTreeMap;

use crate::common::{Operator, World, cohort, on_paused_clock};
use btcr2_aggregation_actors::{
    journal::{Archived, Journal, MemoryJournal, Record, StreamId},
    state::{
        State,
        transfer::{CohortDocument, TransferError},
    },
};
use btcr2_aggregation_protocol::{cohort::event::ServiceEvent, id::CohortId, time::Timestamp};
use serde_json::{Value, json};
use tempfile::TempDir;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

type Change = fn(&mut Value);

type Streams = BTreeMap<StreamId, Vec<Record>>;

/// All streams of two rounds with two members each, and the two cohorts.
fn rounds() -> (Streams, [CohortId; 2]) {
    on_paused_clock(async {
        let mut world = World::new();
        let journal = MemoryJournal::new();
        world.journal = std::sync::Arc::new(journal.clone());
        let mut service = world.service("service", Operator).await;
        world.updaters(2).await;
        let mut cohorts = Vec::new();
        for _ in 0..2 {
            let cohort_id = service.open(cohort(2)).await;
            service.ear.completed(&cohort_id).await;
            world.members.records(&cohort_id, 2).await;
            crate::common::settle().await;
            cohorts.push(cohort_id);
        }
        let mut streams = Streams::new();
        for stream in journal.streams().await.unwrap().into_iter().chain(archived(&journal).await) {
            let records = journal.read(&stream).await.unwrap();
            streams.insert(stream, records);
        }
        (streams, cohorts.try_into().unwrap())
    })
}

async fn archived(journal: &dyn Journal) -> Vec<StreamId> {
    journal.archived().await.unwrap().into_iter().map(|archived| archived.stream).collect()
}

async fn stored(streams: &Streams) -> (TempDir, State) {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path()).unwrap();
    for (stream, records) in streams {
        state.journal().append(stream, records.clone()).await.unwrap();
    }
    (dir, state)
}

fn json(records: &[Record]) -> Vec<Vec<u8>> {
    records.iter().map(|record| record.to_json().unwrap()).collect()
}

#[test]
fn a_cohort_goes_to_another_directory_as_it_is() {
    let (streams, [first, second]) = rounds();
    runtime().block_on(async {
        let (_dir, from) = stored(&streams).await;
        let done = StreamId::new(format!("cohort/{first}"));
        from.journal().archive(&done, Timestamp::from_millis(77)).await.unwrap();
        let document = from.export(&first).await.unwrap().expect("the cohort exists");
        // The service's stream, its session's, and those of two members.
        assert_eq!(document.streams.len(), 4);
        let text = serde_json::to_string(&document).unwrap();
        assert!(!text.contains(second.as_str()), "nothing of another cohort");

        let document: CohortDocument = serde_json::from_str(&text).unwrap();
        let dir = TempDir::new().unwrap();
        let to = State::open(dir.path()).unwrap();
        let imported = to.import(&document).await.unwrap();
        assert_eq!((imported.new, imported.known), (4, 0));
        let commits = to.commits();
        assert_eq!(commits, 1, "all or nothing");
        let imported = to.import(&document).await.unwrap();
        assert_eq!((imported.new, imported.known), (0, 4));
        assert_eq!(to.commits(), commits);
        for stream in &document.streams {
            let name = StreamId::new(stream.name.as_str());
            assert_eq!(json(&to.journal().read(&name).await.unwrap()), json(&streams[&name]), "{name}");
        }
        let expected = [Archived { stream: done, at: Timestamp::from_millis(77) }];
        assert_eq!(to.journal().archived().await.unwrap(), expected);
        assert_eq!(to.journal().streams().await.unwrap().len(), 3);
        assert!(to.export(&second).await.unwrap().is_none());
    });
}

#[test]
fn what_is_not_sound_changes_nothing() {
    let (streams, [first, second]) = rounds();
    runtime().block_on(async {
        let (_dir, from) = stored(&streams).await;
        let document = serde_json::to_value(from.export(&first).await.unwrap().unwrap()).unwrap();
        let dir = TempDir::new().unwrap();
        let to = State::open(dir.path()).unwrap();
        let changes: [(&str, Change); 6] = [
            ("format", |d| d["format"] = json!("another/1")),
            ("schema version 9", |d| d["schema"] = json!(9)),
            ("is not the cohort's", |d| d["cohortId"] = json!("another")),
            ("is not the cohort's", |d| d["streams"][0]["name"] = json!("../etc")),
            ("record 1", |d| d["streams"][0]["records"][1] = json!({"NeverHappened": {}})),
            ("is empty, or there twice", |d| {
                let stream = d["streams"][1].clone();
                d["streams"].as_array_mut().unwrap().push(stream);
            }),
        ];
        for (problem, change) in changes {
            let mut changed = document.clone();
            change(&mut changed);
            let changed: CohortDocument = serde_json::from_str(&changed.to_string()).unwrap();
            let error = to.import(&changed).await.unwrap_err();
            assert!(matches!(error, TransferError::Document(_)), "{error}");
            assert!(error.to_string().contains(problem), "{error}");
        }
        let name = document["streams"].as_array().unwrap().last().unwrap()["name"].as_str().unwrap();
        let another = Record::new(ServiceEvent::AdvertRepeated { at: Timestamp::from_millis(1) });
        to.journal().append(&StreamId::new(name), vec![another]).await.unwrap();
        let document: CohortDocument = serde_json::from_str(&document.to_string()).unwrap();
        let error = to.import(&document).await.unwrap_err();
        assert!(matches!(&error, TransferError::Conflict(stream) if stream.as_str() == name), "{error}");
        assert_eq!(to.journal().streams().await.unwrap().len(), 1, "nothing else was imported");
        assert!(to.export(&second).await.unwrap().is_none());
    });
}
