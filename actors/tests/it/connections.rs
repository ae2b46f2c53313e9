//! Connections that break, and networks that cannot be reached: links connect again, and waiting messages are sent.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::common::{
    GatedOperator, Operator, Updater, World, cohort, identity, on_paused_clock, pass, settle, update,
};
use async_trait::async_trait;
use btcr2_aggregation_actors::{
    policy::{ParticipantPolicy, UpdateRequest, Validation},
    transport::{ConnectError, Connection, Inbox, Transport, memory::MemoryTransport},
};
use btcr2_aggregation_protocol::{cohort::participant::Advert, identity::Identity, update::Submission};
use tokio::{sync::Semaphore, time::Instant};

/// The first backoff, which is the delay that one broken connection causes.
const BACKOFF: Duration = Duration::from_millis(100);

#[test]
fn connections_severed_while_nothing_travels_do_not_stop_a_cohort() {
    on_paused_clock(async {
        let gate = Arc::new(Semaphore::new(0));
        let world = World::new();
        let mut service = world.service("service", GatedOperator(gate.clone())).await;
        let members = world.updaters(3).await;
        let cohort_id = service.open(cohort(3)).await;
        service.ear.wait_for(all_validated(3)).await;

        world.network.sever(service.did());
        world.network.sever(members[0].did());
        settle().await;
        // Enough time to connect again, before any deadline.
        pass(Duration::from_secs(1)).await;

        gate.add_permits(1);
        service.ear.completed(&cohort_id).await;
        assert_eq!(world.elapsed(), Duration::from_secs(1), "both had connected again before they were needed");
    });
}

#[test]
fn messages_of_a_disconnected_service_are_sent_later() {
    on_paused_clock(async {
        let gate = Arc::new(Semaphore::new(0));
        let world = World::new();
        let mut service = world.service("service", GatedOperator(gate.clone())).await;
        world.updaters(3).await;
        let cohort_id = service.open(cohort(3)).await;
        service.ear.wait_for(all_validated(3)).await;

        world.network.sever(service.did());
        settle().await;
        gate.add_permits(1);
        service.ear.event(&cohort_id, "signing-started").await;
        assert_eq!(world.elapsed(), Duration::ZERO, "the cohort continues in the meantime");

        service.ear.completed(&cohort_id).await;
        assert_eq!(world.elapsed(), BACKOFF, "the message waited for the connection");
    });
}

/// A member whose verdict waits until the gate is opened.
struct GatedMember(Identity, Arc<Semaphore>);

#[async_trait]
impl ParticipantPolicy for GatedMember {
    async fn should_join(&self, _: &Advert) -> bool {
        true
    }

    async fn provide_update(&self, request: &UpdateRequest) -> Option<Submission> {
        update(&self.0, request)
    }

    async fn validate(&self, validation: &Validation) -> bool {
        let _open = self.1.acquire().await.expect("the gate exists");
        validation.verdict.is_ok()
    }
}

#[test]
fn messages_of_a_disconnected_member_are_sent_later() {
    on_paused_clock(async {
        let gate = Arc::new(Semaphore::new(0));
        let world = World::new();
        let mut service = world.service("service", Operator).await;
        world.updaters(2).await;
        let member = identity("cut off");
        world.participant(&member, GatedMember(member.clone(), gate.clone())).await;
        let cohort_id = service.open(cohort(3)).await;
        service.ear.wait_for(all_validated(2)).await;

        world.network.sever(member.did());
        settle().await;
        gate.add_permits(1);
        service.ear.completed(&cohort_id).await;
        assert_eq!(world.elapsed(), BACKOFF);
    });
}

#[test]
fn a_connection_that_breaks_again_and_again_is_made_again_each_time() {
    on_paused_clock(async {
        let gate = Arc::new(Semaphore::new(0));
        let world = World::new();
        let mut service = world.service("service", GatedOperator(gate.clone())).await;
        world.updaters(2).await;
        let cohort_id = service.open(cohort(2)).await;
        service.ear.wait_for(all_validated(2)).await;
        for _ in 0..5 {
            world.network.sever(service.did());
            pass(Duration::from_secs(31)).await;
        }
        gate.add_permits(1);
        service.ear.completed(&cohort_id).await;
    });
}

/// A network whose first connections fail.
struct Unreachable {
    network: MemoryTransport,
    failures_left: Mutex<u32>,
    attempts: Arc<Mutex<Vec<Instant>>>,
}

#[async_trait]
impl Transport for Unreachable {
    async fn connect(&self, identity: &Identity, inbox: Inbox) -> Result<Box<dyn Connection>, ConnectError> {
        self.attempts.lock().expect("not poisoned").push(Instant::now());
        {
            let mut left = self.failures_left.lock().expect("not poisoned");
            if *left > 0 {
                *left -= 1;
                return Err(ConnectError("the network is down".to_owned()));
            }
        }
        self.network.connect(identity, inbox).await
    }
}

#[test]
fn a_network_that_is_down_is_tried_with_exponential_backoff() {
    on_paused_clock(async {
        let mut world = World::new();
        let attempts = Arc::new(Mutex::new(Vec::new()));
        let mut settings = world.service_settings("service", Operator);
        settings.transport = Arc::new(Unreachable {
            network: world.network.clone(),
            failures_left: Mutex::new(12),
            attempts: Arc::clone(&attempts),
        });
        let mut service = settings.start().await;
        let members = world.updaters(2).await;
        let cohort_id = service.open(cohort(2)).await;
        for member in &members {
            world.members.event(member.did(), &cohort_id, "cohort-discovered").await;
        }
        service.ear.completed(&cohort_id).await;

        let attempts = attempts.lock().expect("not poisoned").clone();
        let millis: Vec<u128> = attempts.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
        let expected = [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000, 30_000];
        for (waited, expected) in millis.iter().zip(expected) {
            // The timers of the runtime count in whole milliseconds.
            assert!((expected..=expected + 1).contains(waited), "{millis:?}");
        }
        assert_eq!(millis.len(), expected.len());
        // The advert, which was sent at once and repeated since, waited; it arrived, and each member joined once.
        assert_eq!(world.members.count("cohort-discovered"), 2);
    });
}

#[test]
fn a_member_that_is_never_reachable_holds_back_only_its_own_cohort() {
    on_paused_clock(async {
        let world = World::new();
        let mut service = world.service("service", Operator).await;
        let lost = identity("lost");
        let transport = Unreachable {
            network: world.network.clone(),
            failures_left: Mutex::new(u32::MAX),
            attempts: Arc::default(),
        };
        world.participant_on(&lost, Updater(lost.clone()), transport).await;
        world.updaters(2).await;
        let with_it = service.open(cohort(3)).await;
        let without_it = service.open(cohort(2)).await;
        service.ear.completed(&without_it).await;
        assert_eq!(service.ear.failed(&with_it).await.code(), "ENROLLMENT_EXPIRED");
    });
}

/// Whether this many members have given their verdict.
fn all_validated(members: usize) -> impl FnMut(&btcr2_aggregation_actors::notice::ServiceNotice) -> Option<()> {
    let mut seen = 0;
    move |notice| {
        let name = serde_json::to_value(notice).expect("notices serialize")["event"].clone();
        seen += usize::from(name == "validation-received");
        (seen == members).then_some(())
    }
}
