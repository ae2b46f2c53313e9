//! An actor that panics is restarted and replays its journal, without an effect on its peers. After too many panics the
//! cohort, and only that cohort, fails with a reason.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::common::{
    Operator, Service, Updater, World, cohort, identity, made_up_transaction, on_paused_clock, rigged::Rigged,
    settle, update,
};
use async_trait::async_trait;
use btcr2_aggregation_actors::{
    journal::MemoryJournal,
    policy::{
        CohortView, FundedTransaction, ParticipantPolicy, PolicyError, ServicePolicy, SigningRequest,
        TransactionRequest, UpdateRequest, Validation,
    },
};
use btcr2_aggregation_protocol::{
    cohort::{
        Member,
        event::{SessionEnd, SpendPath},
        participant::Advert,
    },
    id::CohortId,
    identity::Identity,
    update::Submission,
};

/// A service whose journal panics, and two members with another journal.
async fn service_on(world: &mut World, journal: Rigged) -> Service {
    world.updaters(2).await;
    let mut settings = world.service_settings("service", Operator);
    settings.journal = Arc::new(journal);
    settings.start().await
}

async fn assert_unnoticed(world: &mut World, service: &mut Service, cohort_id: &CohortId, path: SpendPath) {
    let result = service.ear.completed(cohort_id).await;
    assert_eq!(result.signed.path, path);
    for record in world.members.records(cohort_id, 2).await.values() {
        world.assert_proves_slot(record, &result);
    }
    assert_eq!(world.members.rejections(), []);
    assert_eq!(service.ear.rejections(), []);
}

const COHORT_EVENTS: [&str; 9] = [
    "CohortAdvertised",
    "OptInReceived",
    "MemberAdmitted",
    "KeysAggregated",
    "UpdateReceived",
    "UpdatesAggregated",
    "ValidationReceived",
    "SigningStarted",
    "CohortCompleted",
];

const SESSION_EVENTS: [&str; 5] =
    ["SessionOpened", "NonceReceived", "NoncesAggregated", "PartialSignatureReceived", "SessionCompleted"];

const MEMBER_EVENTS: [&str; 11] = [
    "CohortDiscovered",
    "OptedIn",
    "OptInAccepted",
    "CohortReady",
    "UpdateSubmitted",
    "DataReceived",
    "ValidationSent",
    "SigningRequested",
    "SigningApproved",
    "NonceSent",
    "AggregatedNonceReceived",
];

/// Asserts that a round completes although the service's journal panics `times` times at `event`.
fn survives(prefix: &str, event: &str, times: usize, stored: bool) {
    on_paused_clock(async {
        let mut world = World::new();
        let (journal, left) = Rigged::panicking(prefix, event, times, stored);
        let mut service = service_on(&mut world, journal).await;
        let cohort_id = service.open(cohort(2)).await;
        assert_unnoticed(&mut world, &mut service, &cohort_id, SpendPath::KeyPath).await;
        settle().await;
        assert_eq!(*left.lock().unwrap(), 0, "{event} has not panicked so often");
        assert_eq!(service.ear.count("cohort-restarted"), times, "{event}");
        assert_eq!(service.live().await, []);
    });
}

#[test]
fn a_cohort_that_panics_over_any_fact_goes_on() {
    for event in COHORT_EVENTS {
        survives("cohort/", event, 1, false);
        survives("cohort/", event, 1, true);
    }
}

#[test]
fn a_signing_session_that_panics_over_any_fact_goes_on() {
    for event in SESSION_EVENTS {
        survives("signing/", event, 1, false);
        survives("signing/", event, 1, true);
    }
}

#[test]
fn five_panics_in_a_row_are_survived() {
    for event in COHORT_EVENTS {
        survives("cohort/", event, 5, false);
    }
    for event in SESSION_EVENTS {
        survives("signing/", event, 5, false);
    }
}

#[test]
fn the_sixth_panic_within_a_minute_ends_the_cohort_alone_with_a_reason() {
    let cases = COHORT_EVENTS.map(|event| ("cohort/", event)).into_iter();
    for (prefix, event) in cases.chain(SESSION_EVENTS.map(|event| ("signing/", event))) {
        on_paused_clock(async {
            let mut world = World::new();
            // The first cohort that reaches the event panics at it, and no other.
            let (journal, left) = first_stream_panics(prefix, event, 6);
            let mut service = service_on(&mut world, journal).await;
            let troubled = service.open(cohort(2)).await;
            let failure = service.ear.failed(&troubled).await;
            assert_eq!(failure.code(), "INTERNAL", "{event}");
            assert!(failure.to_string().contains("panick"), "{event}: {failure}");
            assert!(world.elapsed() < Duration::from_secs(60), "{event}");
            assert_eq!(*left.lock().unwrap(), 0);
            let other = service.open(cohort(2)).await;
            assert_unnoticed(&mut world, &mut service, &other, SpendPath::KeyPath).await;
            settle().await;
            assert_eq!(service.live().await, []);
        });
    }
}

fn first_stream_panics(prefix: &'static str, event: &'static str, times: usize) -> (Rigged, Arc<Mutex<usize>>) {
    let left = Arc::new(Mutex::new(times));
    let counted = Arc::clone(&left);
    let mut first = None;
    let journal = Rigged::new(move |stream, records| {
        let mut left = counted.lock().unwrap();
        if *left == 0 || !stream.as_str().starts_with(prefix) || !records.contains(&format!("\"{event}\"")) {
            return crate::common::rigged::Act::Pass;
        }
        if first.get_or_insert_with(|| stream.clone()) != stream {
            return crate::common::rigged::Act::Pass;
        }
        *left -= 1;
        crate::common::rigged::Act::PanicBefore
    });
    (journal, left)
}

/// A round of three, one of which panics at `event`: its path, and whether that member's nonce was lost.
fn member_survives(event: &str, times: usize, stored: bool) -> (SpendPath, bool) {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        world.updaters(2).await;
        let (journal, left) = Rigged::panicking("participant/", event, times, stored);
        let member = identity("panicking");
        let mut settings = world.participant_settings(&member, Updater(member.clone()));
        settings.journal = Arc::new(journal);
        settings.start().await;
        let cohort_id = service.open(cohort(3)).await;
        let result = service.ear.completed(&cohort_id).await;
        let records = world.members.records(&cohort_id, 3).await;
        records.values().for_each(|record| world.assert_proves_slot(record, &result));
        assert_eq!(*left.lock().unwrap(), 0, "{event} has not panicked so often");
        assert_eq!(world.members.count("session-restarted"), times);
        assert_eq!(service.ear.rejections(), [], "{event}");
        (result.signed.path, world.members.count("nonce-lost") > 0)
    })
}

#[test]
fn a_member_that_panics_over_any_fact_goes_on() {
    for event in MEMBER_EVENTS {
        for stored in [false, true] {
            let (path, lost) = member_survives(event, 1, stored);
            // Once the journal has recorded that the nonce was sent, its secret is lost with the actor.
            let out = event == "AggregatedNonceReceived" || (event == "NonceSent" && stored);
            assert_eq!((path == SpendPath::ScriptPath, lost), (out, out), "{event}, stored: {stored}");
        }
    }
}

#[test]
fn a_member_survives_five_panics_and_leaves_at_the_sixth() {
    for event in ["CohortDiscovered", "UpdateSubmitted", "DataReceived", "SigningRequested"] {
        assert_eq!(member_survives(event, 5, false), (SpendPath::KeyPath, false), "{event}");
    }
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        let (journal, _) = first_stream_panics("participant/", "UpdateSubmitted", 6);
        let member = identity("panicking");
        let mut settings = world.participant_settings(&member, Updater(member.clone()));
        settings.journal = Arc::new(journal);
        settings.start().await;
        let troubled = service.open(cohort(1)).await;
        let end = world.members.failed(member.did(), &troubled).await;
        assert!(!matches!(end, SessionEnd::TimedOut { .. }), "{end:?}");
        assert!(world.elapsed() < Duration::from_secs(60));
        let other = service.open(cohort(1)).await;
        service.ear.completed(&other).await;
        world.members.records(&other, 1).await;
    });
}

/// Panics at the first question of each kind.
#[derive(Default)]
struct Panics {
    admit: AtomicU32,
    finalize: AtomicU32,
    transaction: AtomicU32,
}

fn first(counter: &AtomicU32) {
    assert!(counter.fetch_add(1, Ordering::SeqCst) > 0, "the policy panics, as this test wants");
}

#[async_trait]
impl ServicePolicy for Panics {
    async fn admit(&self, _: &CohortView, _: &Member) -> Result<(), String> {
        first(&self.admit);
        Ok(())
    }

    async fn finalize(&self, _: &CohortView) -> bool {
        first(&self.finalize);
        true
    }

    async fn beacon_transaction(&self, request: &TransactionRequest) -> Result<FundedTransaction, PolicyError> {
        first(&self.transaction);
        made_up_transaction(request)
    }
}

struct PanickyMember {
    identity: Identity,
    asked: [AtomicU32; 4],
}

#[async_trait]
impl ParticipantPolicy for PanickyMember {
    async fn should_join(&self, _: &Advert) -> bool {
        first(&self.asked[0]);
        true
    }

    async fn provide_update(&self, request: &UpdateRequest) -> Option<Submission> {
        first(&self.asked[1]);
        update(&self.identity, request)
    }

    async fn validate(&self, validation: &Validation) -> bool {
        first(&self.asked[2]);
        validation.verdict.is_ok()
    }

    async fn approve_signing(&self, _: &SigningRequest) -> bool {
        first(&self.asked[3]);
        true
    }
}

#[test]
fn policies_that_panic_once_at_every_question_do_no_harm() {
    on_paused_clock(async {
        let mut world = World::new();
        world.journal = Arc::new(MemoryJournal::new());
        let mut service = world.service("service", Panics::default()).await;
        let members = [identity("one"), identity("two")];
        for identity in &members {
            let asked = Default::default();
            world.participant(identity, PanickyMember { identity: identity.clone(), asked }).await;
        }
        let mut open = cohort(2);
        open.conditions.max_participants = Some(5);
        let cohort_id = service.open(open).await;
        assert_unnoticed(&mut world, &mut service, &cohort_id, SpendPath::KeyPath).await;
        assert_eq!(service.ear.count("cohort-restarted"), 3);
        assert_eq!(world.members.count("session-restarted"), 2 * 4);
    });
}
