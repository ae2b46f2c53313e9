//! The obligations of a service to its members after a downtime: they have time to answer, and it knows their keys.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::common::{
    Operator, Updater, World, cohort, external_identity, identity, on_paused_clock, pass,
    process::{Process, service_of},
    settle,
};
use async_trait::async_trait;
use btcr2_aggregation_actors::{
    policy::{ParticipantPolicy, UpdateRequest},
    transport::{ConnectError, Connection, Inbox, Transport, combined::CombinedTransport, memory::MemoryTransport},
};
use btcr2_aggregation_protocol::{
    cohort::{event::CohortFailure, participant::Advert},
    did::Did,
    identity::Identity,
    update::Submission,
};
use serde_json::Value;
use tokio::sync::Semaphore;

/// Declines when the gate is open.
struct Slow(Arc<Semaphore>);

#[async_trait]
impl ParticipantPolicy for Slow {
    async fn should_join(&self, _: &Advert) -> bool {
        true
    }

    async fn provide_update(&self, _: &UpdateRequest) -> Option<Submission> {
        self.0.acquire().await.unwrap().forget();
        None
    }
}

/// A cohort whose service stops while it waits for one member, and restarts long after that deadline. Returns its end
/// when the member answers `after` the restart.
async fn down_over_a_deadline(after: Duration) -> (World, Result<(), CohortFailure>, usize) {
    let world = World::new();
    let (slow, gate) = (identity("slow"), Arc::new(Semaphore::new(0)));
    world.participant(&slow, Slow(gate.clone())).await;
    world.updaters(1).await;
    let (process, mut service) = service_of(&world).await;
    let cohort_id = process.run(service.open(cohort(2))).await;
    process.run(service.ear.event(&cohort_id, "update-received")).await;
    drop(process);
    pass(Duration::from_secs(4000)).await;

    let process = Process::new();
    let settings = world.service_settings("service", Operator);
    let book = settings.bans.clone();
    let mut service = process.service(settings).await;
    let end = process
        .run(async {
            pass(after).await;
            gate.add_permits(1);
            service.ear.end_of(&cohort_id).await
        })
        .await;
    let extended = service.ear.count("phase-extended");
    assert_eq!(extended, 1, "the host is notified");
    (world, end.map(drop), book.list().unwrap().len())
}

#[test]
fn a_member_that_answers_within_the_minute_after_the_downtime_is_in_time() {
    on_paused_clock(async {
        let (_world, end, charged) = down_over_a_deadline(Duration::from_secs(30)).await;
        assert_eq!((end, charged), (Ok(()), 0));
    });
}

#[test]
fn a_member_that_is_silent_beyond_that_is_a_holdout() {
    on_paused_clock(async {
        let (_world, end, charged) = down_over_a_deadline(Duration::from_secs(90)).await;
        let holdouts = vec![identity("slow").did().clone()];
        assert_eq!((end, charged), (Err(CohortFailure::UpdatesMissing { holdouts }), 1));
    });
}

/// A network that records the order of the calls.
#[derive(Clone)]
struct Noting {
    network: MemoryTransport,
    notes: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl Transport for Noting {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        self.notes.lock().unwrap().push("connected".to_owned());
        self.network.connect(identity, inbox).await
    }

    fn introduce(&self, did: &Did, _: &Value) {
        self.notes.lock().unwrap().push(did.to_string());
    }
}

#[test]
fn a_service_that_is_back_introduces_its_external_members_before_anybody_can_reach_it() {
    on_paused_clock(async {
        let world = World::new();
        let external = external_identity("external");
        world.participant(&external, Updater(external.clone())).await;
        let (process, mut service) = service_of(&world).await;
        let cohort_id = process.run(service.open(cohort(2))).await;
        process.run(service.ear.event(&cohort_id, "participant-accepted")).await;
        drop(process);

        let noting = Noting { network: world.network.clone(), notes: Arc::default() };
        let mut settings = world.service_settings("service", Operator);
        settings.transport = Arc::new(CombinedTransport::new(vec![Arc::new(noting.clone())]).unwrap());
        let process = Process::new();
        let _service = process.service(settings).await;
        process.run(settle()).await;
        assert_eq!(*noting.notes.lock().unwrap(), [external.did().to_string(), "connected".to_owned()]);
    });
}
