//! What a host has acknowledged is not delivered again, also after a restart in the middle of a cohort.

use std::sync::Arc;

use btcr2_aggregation_actors::{
    events::{Cursor, Event, Events},
    handle::{Participant, Service},
    journal::{Journal, MemoryJournal, Record, StreamId, StreamKind},
    runtime::Clock,
    state::State,
    transport::memory::MemoryTransport,
};
use btcr2_aggregation_protocol::time::Timestamp;
use serde::Serialize;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::common::{GatedOperator, Updater, cohort, identity, on_paused_clock, randomness};

/// What survives a restart.
enum Storage {
    Memory(MemoryJournal),
    Directory(TempDir),
}

impl Storage {
    /// The journal, and the directory that it is in.
    fn open(&self) -> (Arc<dyn Journal>, Option<State>) {
        match self {
            Self::Memory(journal) => (Arc::new(journal.clone()), None),
            Self::Directory(dir) => {
                let state = State::open(dir.path()).unwrap();
                (Arc::new(state.journal()), Some(state))
            }
        }
    }
}

/// A service whose cohorts sign when the gate is open, and a member.
struct World {
    network: MemoryTransport,
    gate: Arc<Semaphore>,
    clock: Clock,
    service: Storage,
    member: Storage,
}

impl World {
    fn in_memory() -> Self {
        let clock = Clock::starting_at(Timestamp::from_secs(1_750_000_000));
        let storage = || Storage::Memory(MemoryJournal::new());
        Self::new(clock, storage(), storage())
    }

    fn on_disk() -> Self {
        let storage = || Storage::Directory(TempDir::new().unwrap());
        Self::new(Clock::system(), storage(), storage())
    }

    fn new(clock: Clock, service: Storage, member: Storage) -> Self {
        Self { network: MemoryTransport::new(), gate: Arc::new(Semaphore::new(0)), clock, service, member }
    }

    async fn start(&self, journal: Arc<dyn Journal>) -> Service {
        let policy = Arc::new(GatedOperator(Arc::clone(&self.gate)));
        let builder = Service::builder(identity("service"), Arc::new(self.network.clone()), policy);
        builder.clock(self.clock).randomness(randomness("service")).journal(journal).start().await.unwrap()
    }

    async fn join(&self, journal: Arc<dyn Journal>) -> Participant {
        let policy = Arc::new(Updater(identity("member")));
        let builder = Participant::builder(identity("member"), Arc::new(self.network.clone()), policy);
        builder.clock(self.clock).journal(journal).start().await.unwrap()
    }
}

fn name<N: Serialize>(notice: &N) -> String {
    serde_json::to_value(notice).unwrap()["event"].as_str().unwrap().to_owned()
}

/// The names of the decisive events up to the one called `last`, and its cursor.
async fn decisive<N: Serialize>(events: &mut Events<N>, last: &str) -> (Vec<String>, Cursor) {
    let mut names = Vec::new();
    loop {
        let (cursor, event) = events.next().await.unwrap();
        let Event::Notice(notice) = event else { panic!("an event was lost") };
        if cursor.is_decisive() {
            names.push(name(&*notice));
            if name(&*notice) == last {
                return (names, cursor);
            }
        }
    }
}

/// The streams of acknowledgements.
async fn acknowledgements(journal: &dyn Journal) -> Vec<StreamId> {
    let streams = journal.streams().await.unwrap();
    streams.into_iter().filter(|stream| matches!(stream.kind(), StreamKind::Acknowledged(_))).collect()
}

/// A service is stopped when its cohort has formed, and continues. Returns what a new stream of events begins with.
async fn formed_then_restarted(world: &World, acknowledge: bool) -> Vec<String> {
    let (_, _member) = (world.member.open(), world.join(Arc::new(MemoryJournal::new())).await);
    let (journal, state) = world.service.open();
    let service = world.start(journal).await;
    service.open(cohort(1)).await.unwrap();
    let mut events = service.events();
    let (names, cursor) = decisive(&mut events, "keygen-complete").await;
    assert_eq!(names, ["keygen-complete"]);
    if acknowledge {
        events.ack(&cursor).await.unwrap();
    }
    service.stop().await;
    // The actors have ended.
    while events.next().await.is_some() {}
    close(state).await;

    let (journal, state) = world.service.open();
    assert_eq!(acknowledgements(&*journal).await.len(), usize::from(acknowledge));
    let service = world.start(Arc::clone(&journal)).await;
    let (mut events, mut again) = (service.events(), service.events());
    assert_eq!(name_of_next(&mut events).await, "cohort-recovered", "which is new at each start");
    world.gate.add_permits(1);
    let (names, cursor) = decisive(&mut again, "signing-complete").await;
    again.ack(&cursor).await.unwrap();
    assert_eq!(acknowledgements(&*journal).await, [], "they are removed with the cohort's journal");
    service.stop().await;
    drop(again);
    while events.next().await.is_some() {}
    drop(journal);
    close(state).await;
    names
}

async fn name_of_next<N: Serialize>(events: &mut Events<N>) -> String {
    loop {
        if let (cursor, Event::Notice(notice)) = events.next().await.unwrap()
            && cursor.is_decisive()
        {
            return name(&*notice);
        }
    }
}

async fn close(state: Option<State>) {
    if let Some(state) = state {
        state.close().await;
    }
}

#[test]
fn an_acknowledged_step_of_a_cohort_does_not_come_again() {
    for (acknowledge, expected) in
        [(false, &["keygen-complete", "signing-complete"][..]), (true, &["signing-complete"])]
    {
        on_paused_clock(async {
            assert_eq!(formed_then_restarted(&World::in_memory(), acknowledge).await, expected);
        });
    }
}

#[test]
fn acknowledgements_are_in_the_state_directory() {
    // The clock runs: it would jump while all actors wait for the disk.
    actix_rt::System::new().block_on(async {
        assert_eq!(formed_then_restarted(&World::on_disk(), true).await, ["signing-complete"]);
    });
}

#[test]
fn an_acknowledged_step_of_a_membership_does_not_come_again() {
    for acknowledge in [false, true] {
        on_paused_clock(async {
            let world = World::in_memory();
            let service = world.start(Arc::new(MemoryJournal::new())).await;
            let member = world.join(world.member.open().0).await;
            service.open(cohort(1)).await.unwrap();
            let mut events = member.events();
            let (names, cursor) = decisive(&mut events, "data-approved").await;
            assert_eq!(names, ["cohort-joined", "data-approved"]);
            if acknowledge {
                events.ack(&cursor).await.unwrap();
            }
            member.stop().await;
            while events.next().await.is_some() {}

            let member = world.join(world.member.open().0).await;
            world.gate.add_permits(1);
            let mut events = member.events();
            let (mut names, cursor) = decisive(&mut events, "cohort-over").await;
            if !acknowledge {
                assert_eq!(names.remove(1), "data-approved");
            }
            assert_eq!(names, ["session-recovered", "signature-sent", "cohort-complete", "cohort-over"]);
            events.ack(&cursor).await.unwrap();
            assert_eq!(acknowledgements(&*world.member.open().0).await, []);
        });
    }
}

#[test]
fn a_late_acknowledgement_leaves_nothing_behind() {
    on_paused_clock(async {
        let world = World::in_memory();
        let (journal, _) = world.service.open();
        let service = world.start(Arc::clone(&journal)).await;
        let _member = world.join(Arc::new(MemoryJournal::new())).await;
        service.open(cohort(1)).await.unwrap();
        let mut events = service.events();
        let (_, formed) = decisive(&mut events, "keygen-complete").await;
        world.gate.add_permits(1);
        let (_, ended) = decisive(&mut events, "signing-complete").await;
        events.ack(&ended).await.unwrap();
        events.ack(&formed).await.unwrap();
        service.stop().await;
        let service = world.start(Arc::clone(&journal)).await;
        assert!(service.cohorts().await.is_empty());
        assert_eq!(acknowledgements(&*journal).await, []);
    });
}

#[test]
fn unreadable_acknowledgements_are_as_none() {
    on_paused_clock(async {
        let world = World::in_memory();
        let (journal, _) = world.service.open();
        let service = world.start(Arc::clone(&journal)).await;
        let _member = world.join(Arc::new(MemoryJournal::new())).await;
        let running = service.open(cohort(1)).await.unwrap();
        decisive(&mut service.events(), "keygen-complete").await;
        let stream = StreamId::of_acknowledgements(&StreamId::of_cohort(running.id()));
        journal.append(&stream, vec![Record::new(json!({ "step": "of a later version" }))]).await.unwrap();
        world.gate.add_permits(1);
        let (names, _) = decisive(&mut service.events(), "signing-complete").await;
        assert_eq!(names, ["keygen-complete", "signing-complete"]);
    });
}
