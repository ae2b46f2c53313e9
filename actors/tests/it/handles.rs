//! Handles: what a host holds of a service, its cohorts, a participant and its memberships.

use std::sync::Arc;

use btcr2_aggregation_actors::{
    events::Event,
    handle::{ActorThread, CohortError, MembershipError, Participant, Service, ServiceBuilder, StartError},
    journal::{Journal, MemoryJournal},
    notice::{Known, ParticipantNotice, ServiceNotice},
    runtime::Clock,
    transport::memory::MemoryTransport,
};
use btcr2_aggregation_protocol::{
    cohort::{participant, service},
    time::Timestamp,
};

use crate::common::{Operator, Updater, cohort, identity, on_paused_clock, randomness, settle};

/// One process after the other, on one network.
#[derive(Clone)]
struct World {
    network: MemoryTransport,
    journal: MemoryJournal,
    clock: Clock,
}

impl World {
    fn new(clock: Clock) -> Self {
        Self { network: MemoryTransport::new(), journal: MemoryJournal::new(), clock }
    }

    /// A world whose time is tokio's.
    fn paused() -> Self {
        Self::new(Clock::starting_at(Timestamp::from_secs(1_750_000_000)))
    }

    fn builder(&self) -> ServiceBuilder {
        let network = Arc::new(self.network.clone());
        let builder = Service::builder(identity("service"), network, Arc::new(Operator));
        builder.clock(self.clock).randomness(randomness("service"))
    }

    async fn start(&self) -> Service {
        self.builder().journal(Arc::new(self.journal.clone())).start().await.unwrap()
    }

    async fn join(&self) -> Participant {
        let identity = identity("member");
        let policy = Updater(identity.clone());
        let builder = Participant::builder(identity, Arc::new(self.network.clone()), Arc::new(policy));
        builder.clock(self.clock).journal(Arc::new(self.journal.clone())).start().await.unwrap()
    }
}

#[test]
fn a_host_holds_a_whole_round() {
    on_paused_clock(async {
        let world = World::paused();
        let service = world.start().await;
        let member = world.join().await;
        let running = service.open(cohort(1)).await.unwrap();
        let membership = member.join_first().await.unwrap();
        assert_eq!((membership.cohort_id(), membership.service()), (running.id(), service.did()));
        let result = running.outcome().await.unwrap();
        let end = membership.outcome().await.unwrap();
        assert_eq!(end.known, Known::Seen);
        assert_eq!(*end.transaction.unwrap(), result.signed.transaction);
        assert_eq!(end.record.unwrap().signal, result.aggregation.signal);
        // At any later time, from the journal.
        let late = service.cohort(running.id()).outcome().await.unwrap();
        assert_eq!(late.signed.transaction, result.signed.transaction);
        let late = member.membership(service.did(), running.id()).outcome().await.unwrap();
        assert_eq!(late.known, Known::Seen);
    });
}

#[test]
fn a_snapshot_shows_the_machine_and_does_not_change() {
    on_paused_clock(async {
        let world = World::paused();
        let service = world.start().await;
        let running = service.open(cohort(2)).await.unwrap();
        let member = world.join().await;
        let membership = member.join_first().await.unwrap();
        settle().await;
        let snapshot = running.inspect().await.unwrap();
        let service::phase::Phase::Enrolling(enrolling) = snapshot.phase() else { panic!("{snapshot:?}") };
        assert_eq!(enrolling.admitted(), 1);
        let phase = membership.inspect().await.unwrap().phase().kind();
        assert_eq!(phase, participant::phase::PhaseKind::OptedIn);
        running.cancel("a test").await;
        assert!(matches!(snapshot.phase(), service::phase::Phase::Enrolling(_)));
        let Err(CohortError::Failed { code, reason, .. }) = running.outcome().await else {
            panic!("it was cancelled")
        };
        assert_eq!(code, "CANCELLED", "{reason}");
        let Err(MembershipError::Failed { signed: None, .. }) = membership.outcome().await else {
            panic!("it failed")
        };
        settle().await;
        assert!(running.inspect().await.is_none() && membership.inspect().await.is_none());
        assert!(service.cohorts().await.is_empty());
    });
}

#[test]
fn a_host_can_form_a_cohort_early_and_a_member_can_leave() {
    on_paused_clock(async {
        let world = World::paused();
        let service = world.start().await;
        let mut open = cohort(1);
        open.conditions.max_participants = Some(3);
        open.rules = open.rules.settling(std::time::Duration::from_secs(600));
        let running = service.open(open).await.unwrap();
        let member = world.join().await;
        member.join_first().await.unwrap();
        settle().await;
        running.finalize().await;
        running.outcome().await.unwrap();

        let running = service.open(cohort(2)).await.unwrap();
        settle().await;
        let membership = member.membership(service.did(), running.id());
        membership.leave().await;
        assert!(matches!(membership.outcome().await, Err(MembershipError::Failed { .. })));
    });
}

#[test]
fn a_cohort_continues_with_a_service_that_was_stopped() {
    on_paused_clock(async {
        let world = World::paused();
        let service = world.start().await;
        let running = service.open(cohort(1)).await.unwrap();
        settle().await;
        service.stop().await;
        service.stop().await;
        assert!(matches!(running.outcome().await, Err(CohortError::Stopped)));
        assert!(service.is_alive(), "it was stopped, and did not fail");
        assert!(service.open(cohort(1)).await.is_err());
        let mut events = service.events();
        while events.next().await.is_some() {}

        let service = world.start().await;
        let [running] = &service.cohorts().await[..] else { panic!("one cohort runs") };
        world.join().await;
        running.outcome().await.unwrap();
    });
}

/// The names of the decisive events up to the end of a cohort; the last is acknowledged if `acknowledge`.
async fn decisive(service: &Service, acknowledge: bool) -> Vec<String> {
    let (mut events, mut names) = (service.events(), Vec::new());
    loop {
        let (cursor, event) = events.next().await.unwrap();
        let Event::Notice(notice) = event else { continue };
        if cursor.is_decisive() {
            names.push(serde_json::to_value(&*notice).unwrap()["event"].as_str().unwrap().to_owned());
        }
        if matches!(*notice, ServiceNotice::SigningComplete { .. }) {
            if acknowledge {
                service.acks().ack(&cursor).await.unwrap();
            }
            return names;
        }
    }
}

#[test]
fn decisive_events_are_delivered_until_the_end_is_acknowledged() {
    on_paused_clock(async {
        let world = World::paused();
        let service = world.start().await;
        world.join().await;
        let running = service.open(cohort(1)).await.unwrap();
        running.outcome().await.unwrap();
        assert_eq!(decisive(&service, false).await, ["keygen-complete", "signing-complete"]);
        // Another stream of the same run.
        assert_eq!(decisive(&service, false).await, ["keygen-complete", "signing-complete"]);
        service.stop().await;
        let service = world.start().await;
        assert_eq!(decisive(&service, true).await, ["cohort-recovered", "signing-complete"]);
        service.stop().await;
        let archived = world.journal.archived().await.unwrap();
        assert_eq!(archived.len(), 2, "the cohort and its session: {archived:?}");
        assert!(running.outcome().await.is_ok(), "its handle has the result");
        let service = world.start().await;
        assert!(service.cohorts().await.is_empty());
    });
}

#[test]
fn a_journal_of_one_process_is_removed_without_acknowledgement() {
    on_paused_clock(async {
        let world = World::paused();
        let journal = MemoryJournal::new();
        let service = world.builder().transient_journal(Arc::new(journal.clone())).start().await.unwrap();
        world.join().await;
        let running = service.open(cohort(1)).await.unwrap();
        running.outcome().await.unwrap();
        settle().await;
        assert_eq!(journal.streams().await.unwrap(), []);
        running.outcome().await.unwrap();
        let unknown = btcr2_aggregation_protocol::id::CohortId::parse("unknown").unwrap();
        assert!(matches!(service.cohort(&unknown).outcome().await, Err(CohortError::Unknown)));
    });
}

#[test]
fn the_first_membership_is_known_after_the_stop() {
    on_paused_clock(async {
        let world = World::paused();
        let (service, member) = (world.start().await, world.join().await);
        let running = service.open(cohort(1)).await.unwrap();
        running.outcome().await.unwrap();
        let mut events = member.events();
        member.stop().await;
        // Nothing is published any more.
        while events.next().await.is_some() {}
        for _ in 0..64 {
            assert_eq!(member.join_first().await.unwrap().cohort_id(), running.id());
        }
    });
}

#[test]
fn handles_work_from_another_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::new(Clock::system());
        let refused = world.builder().start().await;
        assert!(matches!(refused, Err(StartError::NoSystem)));

        let thread = ActorThread::start().await.unwrap();
        let (service, member) =
            thread.run(|| async move { (world.start().await, world.join().await) }).await.unwrap();
        let mut events = member.events();
        let running = service.open(cohort(1)).await.unwrap();
        let waiting = tokio::spawn(async move { running.outcome().await });
        let seen = tokio::spawn(async move {
            while let Some((_, event)) = events.next().await {
                if matches!(event, Event::Notice(notice) if matches!(*notice, ParticipantNotice::CohortComplete { .. })) {
                    return true;
                }
            }
            false
        });
        waiting.await.unwrap().unwrap();
        assert!(seen.await.unwrap());
        member.stop().await;
        assert!(member.join_first().await.is_ok(), "it was in one");
        thread.stop().unwrap();
        assert!(service.cohorts().await.is_empty());
    });
}
