//! How long the service's arbiter is busy without a pause while a cohort of a thousand is served: for that long every other
//! cohort, timer and request of the process waits.
//!
//! Measured is the processor time of the arbiter's thread, so that other tests on the machine do not count.

use std::{
    cell::Cell,
    rc::Rc,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use crate::common::{GatedOperator, Operator, ServiceSettings, Updater, World, cohort, identity};
use async_trait::async_trait;
use btcr2_aggregation_actors::{
    bans::{BanBook, DefaultBans},
    journal::Journal,
    notice::Notices,
    policy::{ParticipantPolicy, UpdateRequest},
    state::State,
};
use btcr2_aggregation_protocol::{
    cohort::{
        participant::Advert,
        service::rules::{Answer, PhaseRule, TimedPhase},
    },
    output::DirectAggregator,
    update::Submission,
};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;
use tokio::sync::Semaphore;

const MEMBERS: u32 = 1000;

/// The longest time for which the arbiter may be busy without a pause.
const LONGEST: Duration = Duration::from_millis(20);

/// The processor time of this thread.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.try_into().unwrap())
}

/// A task that runs whenever the arbiter has nothing else to do first, and measures how long it waits for that.
struct Pulse {
    longest: Rc<Cell<Duration>>,
    task: actix_rt::task::JoinHandle<()>,
}

impl Pulse {
    fn start() -> Self {
        let longest = Rc::new(Cell::new(Duration::ZERO));
        let found = Rc::clone(&longest);
        let task = actix_rt::spawn(async move {
            loop {
                let before = thread_time();
                tokio::task::yield_now().await;
                found.set(found.get().max(thread_time() - before));
            }
        });
        Self { longest, task }
    }

    /// Asserts the bound.
    fn assert_short(self) {
        self.task.abort();
        let longest = self.longest.get();
        assert!(longest <= LONGEST, "the arbiter was busy for {longest:?}");
    }
}

/// A member that joins and then does not answer.
struct Silent;

#[async_trait]
impl ParticipantPolicy for Silent {
    async fn should_join(&self, _: &Advert) -> bool {
        true
    }

    async fn provide_update(&self, _: &UpdateRequest) -> Option<Submission> {
        std::future::pending().await
    }
}

/// Starts the members on a thread of their own, so that their work is not measured. Returns what stops them.
fn members(world: &World, silent: u32) -> impl FnOnce() + use<> {
    let settings = (0..MEMBERS).map(|number| {
        let identity = identity(&format!("member {number}"));
        if number < silent {
            world.participant_settings(&identity, Silent)
        } else {
            world.participant_settings(&identity, Updater(identity.clone()))
        }
    });
    let settings: Vec<_> = settings.collect();
    let (started, ready) = mpsc::channel();
    let thread = thread::spawn(move || {
        let system = actix_rt::System::new();
        system.block_on(async {
            for settings in settings {
                settings.start().await;
            }
        });
        started.send(actix_rt::System::current()).unwrap();
        system.run().unwrap();
    });
    let system = ready.recv().unwrap();
    move || {
        system.stop();
        thread.join().unwrap();
    }
}

#[test]
fn a_cohort_of_1000_stalls_its_arbiter_for_at_most_20_ms() {
    actix_rt::System::new().block_on(async {
        let world = World::new();
        let mut service = world.service("service", Operator).await;
        let stop = members(&world, 0);
        let pulse = Pulse::start();
        let cohort_id = service.open(cohort(MEMBERS)).await;
        service.ear.completed(&cohort_id).await;
        pulse.assert_short();
        stop();
    });
}

#[test]
fn bans_of_400_silent_members_stall_it_no_longer() {
    actix_rt::System::new().block_on(async {
        let world = World::new();
        let directory = TempDir::new().unwrap();
        let mut settings = world.service_settings("service", Operator);
        settings.bans = BanBook::open(&directory.path().join("bans.redb"), Arc::new(DefaultBans)).unwrap();
        let bans = settings.bans.clone();
        let mut service = settings.start().await;
        let stop = members(&world, 400);
        let pulse = Pulse::start();
        let mut open = cohort(MEMBERS);
        let timeout = Some(Duration::from_secs(8));
        open.rules.set(TimedPhase::Updates, PhaseRule { timeout, extensions: 0, then: Answer::Fail }).unwrap();
        let cohort_id = service.open(open).await;
        service.ear.failed(&cohort_id).await;
        pulse.assert_short();
        assert!(bans.list().unwrap().len() >= 400);
        stop();
    });
}

#[test]
fn replaying_a_cohort_of_1000_stalls_it_no_longer() {
    actix_rt::System::new().block_on(async {
        let world = World::new();
        let (directory, gate) = (TempDir::new().unwrap(), Arc::new(Semaphore::new(0)));
        let state = State::open(directory.path()).unwrap();
        let journal: Arc<dyn Journal> = Arc::new(state.journal());
        let mut settings = world.service_settings("service", GatedOperator(gate));
        settings.journal = Arc::clone(&journal);
        settings.aggregator = Arc::new(DirectAggregator);
        let again = ServiceSettings { notices: Notices::new(1 << 14), ..settings.clone() };
        let mut service = settings.start().await;
        let stop = members(&world, 0);
        let cohort_id = service.open(cohort(MEMBERS)).await;
        service.ear.event(&cohort_id, "data-distributed").await;
        // As a second process would, with the same journal.
        let pulse = Pulse::start();
        let mut service = again.start().await;
        service.ear.event(&cohort_id, "cohort-recovered").await;
        pulse.assert_short();
        stop();
    });
}
