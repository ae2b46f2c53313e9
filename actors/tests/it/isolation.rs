//! Many cohorts at the same time: the failure of one does not affect the others.

use std::{
    collections::BTreeMap,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::common::{
    GatedOperator, Operator, Service, Updater, World, cohort, identity, label, labelled, made_up_transaction,
    on_paused_clock, pass, settle,
    tap::{Tap, no_signatures},
    update,
};
use async_trait::async_trait;
use btcr2_aggregation_actors::{
    policy::{
        CohortView, FundedTransaction, ParticipantPolicy, PolicyError, ServicePolicy, TransactionRequest,
        UpdateRequest, Validation,
    },
    service::OpenCohort,
};
use btcr2_aggregation_protocol::{
    cohort::{
        Member,
        event::{CohortFailure, SessionEnd},
        participant::Advert,
    },
    error::{Fatal, Retry},
    id::CohortId,
    identity::Identity,
    update::Submission,
};
use tokio::sync::Semaphore;

const UNTROUBLED: u32 = 1;
const TROUBLED: u32 = 13;

/// The fault in the cohort that is labelled [`TROUBLED`].
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    AdmitPanics,
    AdmitNeverAnswers,
    TransactionPanics,
    TransactionIsFatal,
    TransactionNeverAnswers,
    UpdatePanics,
    UpdateNeverAnswers,
    ValidationRejects,
}

struct TroubledOperator {
    trouble: Trouble,
    // A request for a transaction does not contain the cohort's conditions.
    labels: Mutex<BTreeMap<CohortId, u32>>,
}

impl TroubledOperator {
    fn new(trouble: Trouble) -> Self {
        Self { trouble, labels: Mutex::default() }
    }
}

#[async_trait]
impl ServicePolicy for TroubledOperator {
    async fn admit(&self, cohort: &CohortView, _: &Member) -> Result<(), String> {
        let label = label(&cohort.conditions);
        self.labels.lock().expect("not poisoned").insert(cohort.cohort_id.clone(), label);
        match self.trouble {
            Trouble::AdmitPanics if label == TROUBLED => panic!("the operator's policy panics, as this test wants"),
            Trouble::AdmitNeverAnswers if label == TROUBLED => pending().await,
            _ => Ok(()),
        }
    }

    async fn beacon_transaction(&self, request: &TransactionRequest) -> Result<FundedTransaction, PolicyError> {
        let label = self.labels.lock().expect("not poisoned")[&request.cohort_id];
        match self.trouble {
            Trouble::TransactionPanics if label == TROUBLED => panic!("the wallet panics, as this test wants"),
            Trouble::TransactionIsFatal if label == TROUBLED => Err(Fatal("no coins, ever".to_owned()).into()),
            Trouble::TransactionNeverAnswers if label == TROUBLED => pending().await,
            _ => made_up_transaction(request),
        }
    }
}

struct TroubledMember {
    trouble: Trouble,
    identity: Identity,
}

#[async_trait]
impl ParticipantPolicy for TroubledMember {
    async fn should_join(&self, _: &Advert) -> bool {
        true
    }

    async fn provide_update(&self, request: &UpdateRequest) -> Option<Submission> {
        match self.trouble {
            _ if label(&request.advert.conditions) != TROUBLED => {}
            Trouble::UpdatePanics => panic!("the member's policy panics, as this test wants"),
            Trouble::UpdateNeverAnswers => pending().await,
            _ => {}
        }
        update(&self.identity, request)
    }

    async fn validate(&self, validation: &Validation) -> bool {
        let troubled = label(&validation.advert.conditions) == TROUBLED;
        validation.verdict.is_ok() && !(troubled && self.trouble == Trouble::ValidationRejects)
    }
}

struct Troubled {
    world: World,
    service: Service,
    member: Identity,
    failed: CohortId,
    failure: CohortFailure,
    /// The time from the start to the failure.
    after: Duration,
}

/// Runs a troubled cohort between two others; the same members are in all three. The other two must complete at once.
async fn run_troubled(trouble: Trouble) -> Troubled {
    let mut world = World::new();
    let mut service = world.service("service", TroubledOperator::new(trouble)).await;
    let member = identity("troubled member");
    world.participant(&member, TroubledMember { trouble, identity: member.clone() }).await;
    world.updaters(2).await;
    let before = service.open(labelled(UNTROUBLED, 3)).await;
    let failed = service.open(labelled(TROUBLED, 3)).await;
    let after = service.open(labelled(UNTROUBLED, 3)).await;
    for other in [&before, &after] {
        let result = service.ear.completed(other).await;
        for record in world.members.records(other, 3).await.values() {
            world.assert_proves_slot(record, &result);
        }
    }
    assert_eq!(world.elapsed(), Duration::ZERO, "the others do not wait for the troubled cohort");
    let failure = service.ear.failed(&failed).await;
    let after = world.elapsed();
    settle().await;
    let live = service.live().await;
    assert!(live.is_empty(), "{live:?} should be over");
    Troubled { world, service, member, failed, failure, after }
}

/// The deadline, with a tick that may be a little late.
fn assert_at_deadline(after: Duration, deadline: Duration) {
    assert!((deadline..deadline + Duration::from_secs(1)).contains(&after), "{after:?} for {deadline:?}");
}

#[test]
fn an_operator_that_panics_on_admission_ends_that_cohort_only() {
    on_paused_clock(async {
        let troubled = run_troubled(Trouble::AdmitPanics).await;
        assert_eq!(troubled.failure.code(), "INTERNAL");
        assert!(troubled.failure.to_string().contains("panicked 6 times"), "{}", troubled.failure);
        // There were a few attempts before, after short pauses.
        assert!(troubled.after < Duration::from_secs(2), "{:?}", troubled.after);
    });
}

#[test]
fn an_operator_that_panics_over_the_transaction_ends_that_cohort_only() {
    on_paused_clock(async {
        let troubled = run_troubled(Trouble::TransactionPanics).await;
        assert_eq!(troubled.failure.code(), "INTERNAL");
    });
}

#[test]
fn an_operator_without_a_transaction_ends_that_cohort_only() {
    on_paused_clock(async {
        let troubled = run_troubled(Trouble::TransactionIsFatal).await;
        assert_eq!(troubled.failure, CohortFailure::Transaction { reason: "no coins, ever".to_owned() });
    });
}

#[test]
fn a_member_that_rejects_the_data_ends_that_cohort_only_and_is_named() {
    on_paused_clock(async {
        let mut troubled = run_troubled(Trouble::ValidationRejects).await;
        assert_eq!(troubled.failure, CohortFailure::ValidationRejected { by: troubled.member.did().clone() });
        let end = troubled.world.members.failed(troubled.member.did(), &troubled.failed).await;
        assert!(matches!(end, SessionEnd::DataRejected { .. }), "{end:?}");
    });
}

#[test]
fn a_member_that_panics_ends_only_its_session_and_reports_it() {
    on_paused_clock(async {
        let mut troubled = run_troubled(Trouble::UpdatePanics).await;
        let end = troubled.world.members.failed(troubled.member.did(), &troubled.failed).await;
        assert!(matches!(end, SessionEnd::Internal { .. }), "{end:?}");
        // The service sees a member that does not answer.
        assert_eq!(
            troubled.failure,
            CohortFailure::UpdatesMissing { holdouts: vec![troubled.member.did().clone()] }
        );
        assert_at_deadline(troubled.after, cohort(3).timing.phase_timeout);
        // The participant that owns the session has survived it.
        let again = troubled.service.open(labelled(UNTROUBLED, 3)).await;
        troubled.service.ear.completed(&again).await;
    });
}

#[test]
fn an_admission_that_is_never_decided_ends_at_the_phase_deadline() {
    on_paused_clock(async {
        let troubled = run_troubled(Trouble::AdmitNeverAnswers).await;
        assert_eq!(troubled.failure, CohortFailure::EnrollmentExpired { admitted: 0 });
        assert_at_deadline(troubled.after, cohort(3).timing.phase_timeout);
    });
}

#[test]
fn a_transaction_that_never_comes_ends_at_the_phase_deadline() {
    on_paused_clock(async {
        let troubled = run_troubled(Trouble::TransactionNeverAnswers).await;
        assert_eq!(troubled.failure.code(), "TRANSACTION_UNAVAILABLE");
        assert_at_deadline(troubled.after, cohort(3).timing.phase_timeout);
    });
}

#[test]
fn an_update_that_is_never_decided_ends_at_the_phase_deadline_and_names_the_member() {
    on_paused_clock(async {
        let troubled = run_troubled(Trouble::UpdateNeverAnswers).await;
        assert_eq!(
            troubled.failure,
            CohortFailure::UpdatesMissing { holdouts: vec![troubled.member.did().clone()] }
        );
        assert_at_deadline(troubled.after, cohort(3).timing.phase_timeout);
    });
}

#[test]
fn twenty_cohorts_at_once_complete_with_the_same_members_in_each() {
    on_paused_clock(async {
        const COHORTS: usize = 20;
        let mut world = World::new();
        let gate = Arc::new(Semaphore::new(0));
        let mut service = world.service("service", GatedOperator(gate.clone())).await;
        let members = world.updaters(3).await;
        let mut cohorts = Vec::new();
        for _ in 0..COHORTS {
            cohorts.push(service.open(cohort(3)).await);
        }
        // All cohorts wait for their transactions at the same time, and every member is in all of them.
        settle().await;
        assert_eq!(service.live().await.len(), COHORTS);
        assert_eq!(service.ear.count("validation-received"), COHORTS * 3);
        gate.add_permits(COHORTS);
        for cohort_id in &cohorts {
            let result = service.ear.completed(cohort_id).await;
            let records = world.members.records(cohort_id, 3).await;
            for member in &members {
                world.assert_proves_slot(&records[member.did()], &result);
            }
        }
        assert_eq!(world.elapsed(), Duration::ZERO);
        assert_eq!(service.ear.rejections(), []);
    });
}

#[test]
fn a_cancelled_cohort_touches_no_other() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        let cancelled = service.open(labelled(TROUBLED, 3)).await;
        let other = service.open(labelled(UNTROUBLED, 3)).await;
        service.cancel(&cancelled, "no interest").await;
        let failure = service.ear.failed(&cancelled).await;
        assert_eq!(failure, CohortFailure::Cancelled { reason: "no interest".to_owned() });
        world.updaters(3).await;
        service.ear.completed(&other).await;
        assert_eq!(service.live().await, []);
        assert_eq!(world.members.names(&cancelled), Vec::<String>::new(), "no member joins an ended cohort");
    });
}

#[test]
fn a_cohort_cancelled_while_it_signs_takes_its_session_with_it() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        let members = world.updaters(2).await;
        let silent = identity("silent");
        world.participant_on(&silent, Updater(silent.clone()), Tap::losing(&world.network, no_signatures)).await;
        let cohort_id = service.open(cohort(3)).await;
        for member in &members {
            world.members.event(member.did(), &cohort_id, "signature-sent").await;
        }
        settle().await;
        service.cancel(&cohort_id, "enough").await;
        service.ear.failed(&cohort_id).await;
        let last = service.ear.names(&cohort_id).len();
        pass(cohort(3).timing.signing_timeout * 4).await;
        assert_eq!(
            service.ear.names(&cohort_id).len(),
            last,
            "received after the end: {:?}",
            service.ear.received()
        );
        assert_eq!(world.members.count("fallback-requested"), 0, "asked to sign for a cohort that is over");
    });
}

/// Fails this many times, then returns the transaction.
struct SlowWallet {
    failures_left: AtomicU32,
}

#[async_trait]
impl ServicePolicy for SlowWallet {
    async fn beacon_transaction(&self, request: &TransactionRequest) -> Result<FundedTransaction, PolicyError> {
        let left = self.failures_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match left {
            Ok(_) => Err(Retry("the wallet is busy".to_owned()).into()),
            Err(_) => made_up_transaction(request),
        }
    }
}

#[test]
fn a_wallet_that_is_busy_is_asked_again_until_it_delivers() {
    on_paused_clock(async {
        let world = World::new();
        let mut service = world.service("service", SlowWallet { failures_left: AtomicU32::new(3) }).await;
        world.updaters(2).await;
        let cohort_id = service.open(cohort(2)).await;
        service.ear.completed(&cohort_id).await;
        let names = service.ear.names(&cohort_id);
        assert_eq!(names.iter().filter(|name| *name == "transaction-deferred").count(), 3);
        assert_at_deadline(world.elapsed(), 3 * Duration::from_secs(15));
    });
}

#[test]
fn each_cohort_has_deadlines_of_its_own() {
    on_paused_clock(async {
        let world = World::new();
        let mut service = world.service("service", Operator).await;
        let mut by_phase: OpenCohort = cohort(2);
        by_phase.timing.phase_timeout = Duration::from_secs(600);
        let mut by_ttl = cohort(2);
        by_ttl.timing.cohort_ttl = Duration::from_secs(300);
        let (by_phase, by_ttl) = (service.open(by_phase).await, service.open(by_ttl).await);
        let by_default = service.open(cohort(2)).await;
        for (cohort_id, deadline) in [(by_ttl, 300), (by_phase, 600), (by_default, 3600)] {
            let failure = service.ear.failed(&cohort_id).await;
            assert_eq!(failure, CohortFailure::EnrollmentExpired { admitted: 0 });
            assert_at_deadline(world.elapsed(), Duration::from_secs(deadline));
        }
    });
}

#[test]
fn two_services_may_choose_one_identifier_for_their_cohorts() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut first = world.service("service", Operator).await;
        let mut settings = world.service_settings("service", Operator);
        settings.identity = identity("another service");
        // One journal for each service: a service's own streams are only named by its cohorts.
        settings.journal = Arc::new(btcr2_aggregation_actors::journal::MemoryJournal::new());
        let mut second = settings.start().await;
        let members = world.updaters(2).await;
        let cohort_id = first.open(cohort(2)).await;
        assert_eq!(second.open(cohort(2)).await, cohort_id, "one seed for both");
        for service in [&mut first, &mut second] {
            service.ear.completed(&cohort_id).await;
        }
        pass(Duration::from_secs(24 * 3600)).await;
        // Each session has its own stream, with one discovery.
        let streams = world.journal.streams().await.unwrap();
        for member in &members {
            let sessions = format!("participant/{}/", member.did());
            let of_member: Vec<_> = streams.iter().filter(|name| name.as_str().starts_with(&sessions)).collect();
            assert_eq!(of_member.len(), 2, "{of_member:?}");
            for stream in of_member {
                let records = world.journal.read(stream).await.unwrap();
                let discoveries =
                    records.iter().filter(|record| format!("{record:?}").contains("CohortDiscovered")).count();
                assert_eq!(discoveries, 1, "{stream}");
            }
        }
        assert_eq!(world.members.count("signature-sent"), 4);
    });
}
