//! The journal first: until a fact is durable nobody hears of it, in whatever order and however late the journal answers.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use crate::common::{
    Decliner, Operator, Service, Updater, World, cohort, identity, on_paused_clock, pass, settle, tap::Tap,
};
use btcr2_aggregation_actors::{
    journal::{Archived, Journal, JournalError, MemoryJournal, Record, StreamId},
    notice::ServiceNotice,
    service::LiveCohorts,
};
use btcr2_aggregation_protocol::{cohort::event::SessionEnd, did::Did, id::CohortId, time::Timestamp};
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::oneshot;

/// A journal whose appends are answered when the test says so.
#[derive(Clone, Default)]
struct Held {
    kept: MemoryJournal,
    waiting: Arc<Mutex<VecDeque<Append>>>,
    /// Appends to streams of that prefix are held; others are answered at once.
    prefix: &'static str,
}

struct Append {
    stream: StreamId,
    records: Vec<Record>,
    answer: oneshot::Sender<Result<(), JournalError>>,
}

impl Held {
    fn new(prefix: &'static str) -> Self {
        Self { prefix, ..Self::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Append>> {
        self.waiting.lock().expect("nobody panics with the lock")
    }

    fn outstanding(&self) -> usize {
        self.waiting().len()
    }

    /// Whether the append at `place` holds an event of that name.
    fn holds(&self, place: usize, event: &str) -> bool {
        self.waiting().get(place).is_some_and(|append| format!("{:?}", append.records).contains(event))
    }

    async fn answer(&self, place: usize) {
        let append = self.waiting().remove(place).expect("an append is outstanding");
        self.kept.append(&append.stream, append.records).await.expect("memory is there");
        append.answer.send(Ok(())).expect("the actor waits");
    }

    fn fail(&self, place: usize) {
        let append = self.waiting().remove(place).expect("an append is outstanding");
        let error = JournalError { stream: append.stream, problem: "the disk is full".to_owned() };
        append.answer.send(Err(error)).expect("the actor waits");
    }

    /// Answers everything until nothing comes any more.
    async fn answer_all(&self) {
        settle().await;
        while self.outstanding() > 0 {
            self.answer(0).await;
            settle().await;
        }
    }
}

impl Journal for Held {
    fn append(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>> {
        if !stream.as_str().starts_with(self.prefix) {
            return self.kept.append(stream, records);
        }
        let (answer, answered) = oneshot::channel();
        let stream = stream.clone();
        let gone = JournalError { stream: stream.clone(), problem: "nobody answers".to_owned() };
        self.waiting().push_back(Append { stream, records, answer });
        answered.map(|answered| answered.unwrap_or(Err(gone))).boxed()
    }

    fn read(&self, stream: &StreamId) -> BoxFuture<'static, Result<Vec<Record>, JournalError>> {
        self.kept.read(stream)
    }

    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>> {
        self.kept.streams()
    }

    fn archive(&self, stream: &StreamId, at: Timestamp) -> BoxFuture<'static, Result<(), JournalError>> {
        self.kept.archive(stream, at)
    }

    fn archived(&self) -> BoxFuture<'static, Result<Vec<Archived>, JournalError>> {
        self.kept.archived()
    }

    fn remove(&self, stream: &StreamId) -> BoxFuture<'static, Result<(), JournalError>> {
        self.kept.remove(stream)
    }
}

/// A service whose journal is held, and what it says.
async fn held_service(world: &World, journal: &Held) -> (Service, Tap) {
    let tap = Tap::listening(&world.network);
    let mut settings = world.service_settings("service", Operator);
    settings.journal = Arc::new(journal.clone());
    settings.transport = Arc::new(tap.clone());
    (world.service_with(settings).await, tap)
}

/// The members whose opt-ins the service has told of, in that order.
fn opted_in(service: &mut Service) -> Vec<Did> {
    let heard = service.ear.heard().iter().filter_map(|notice| match &**notice {
        ServiceNotice::OptInReceived { participant, .. } => Some(participant.clone()),
        _ => None,
    });
    heard.collect()
}

#[test]
fn a_service_says_nothing_before_its_fact_is_durable() {
    on_paused_clock(async {
        let mut world = World::new();
        let journal = Held::new("cohort/");
        let (mut service, tap) = held_service(&world, &journal).await;
        world.participant(&identity("member"), Decliner).await;
        let cohort_id = service.open(cohort(1)).await;

        pass(Duration::from_secs(1)).await;
        assert_eq!(journal.outstanding(), 1);
        assert_eq!(tap.said(), Vec::<&str>::new());
        assert_eq!(service.ear.names(&cohort_id), Vec::<String>::new());

        // From one fact to the next: each holds back what it causes, until it is answered.
        let steps = [
            ("CohortAdvertised", "cohort-advertised", "keygen/cohort_advert"),
            ("OptInReceived", "opt-in-received", ""),
            ("MemberAdmitted", "participant-accepted", "keygen/cohort_ready"),
            ("UpdateDeclined", "update-received", "update/distribute_aggregated_data"),
            ("ValidationReceived", "validation-received", ""),
        ];
        for (event, notice, message) in steps {
            assert_eq!(journal.outstanding(), 1, "{event}");
            assert!(journal.holds(0, event), "{event}");
            assert!(!service.ear.names(&cohort_id).contains(&notice.to_owned()), "{notice} came before its time");
            assert!(!tap.said().contains(&message), "{message} left before its time");
            journal.answer(0).await;
            settle().await;
            assert!(service.ear.names(&cohort_id).contains(&notice.to_owned()), "{notice}");
            assert!(message.is_empty() || tap.said().contains(&message), "{message}");
        }
        journal.answer_all().await;
        service.ear.completed(&cohort_id).await;
        world.members.records(&cohort_id, 1).await;
    });
}

#[test]
fn a_signing_session_says_nothing_before_its_fact_is_durable() {
    on_paused_clock(async {
        let mut world = World::new();
        let journal = Held::new("signing/");
        let (mut service, tap) = held_service(&world, &journal).await;
        world.updaters(1).await;
        let cohort_id = service.open(cohort(1)).await;
        settle().await;
        for (event, message) in
            [("SessionOpened", "sign/authorization_request"), ("NoncesAggregated", "sign/aggregated_nonce")]
        {
            assert!(journal.holds(0, event), "{event}");
            assert!(!tap.said().contains(&message), "{message} left before its time");
            journal.answer(0).await;
            settle().await;
            assert!(tap.said().contains(&message), "{message}");
        }
        assert!(journal.holds(0, "SessionCompleted"));
        assert!(!service.ear.names(&cohort_id).contains(&"signing-complete".to_owned()));
        journal.answer_all().await;
        service.ear.completed(&cohort_id).await;
        world.members.records(&cohort_id, 1).await;
    });
}

#[test]
fn a_member_says_nothing_before_its_fact_is_durable() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        let journal = Held::new("participant/");
        let tap = Tap::listening(&world.network);
        let member = identity("member");
        let mut settings = world.participant_settings(&member, Updater(member.clone()));
        settings.journal = Arc::new(journal.clone());
        settings.transport = Arc::new(tap.clone());
        world.participant_with(settings).await;
        let cohort_id = service.open(cohort(1)).await;
        settle().await;
        let steps = [
            ("CohortDiscovered", ""),
            ("OptedIn", "keygen/cohort_opt_in"),
            ("OptInAccepted", ""),
            ("CohortReady", ""),
            ("UpdateSubmitted", "update/submit_update"),
            ("DataReceived", ""),
            ("ValidationSent", "update/validation_ack"),
            ("SigningRequested", ""),
            ("SigningApproved", ""),
            // The nonce is out for good only when the journal knows it: after a restart it must not be opened again.
            ("NonceSent", "sign/nonce_contribution"),
            ("AggregatedNonceReceived", ""),
            ("PartialSignatureSent", "sign/signature_authorization"),
        ];
        for (event, message) in steps {
            assert!(journal.holds(0, event), "{event}");
            assert!(!tap.said().contains(&message), "{message} left before its time");
            if event == "PartialSignatureSent" {
                assert_eq!(world.members.count("signature-sent"), 0);
            }
            journal.answer(0).await;
            settle().await;
            assert!(message.is_empty() || tap.said().contains(&message), "{message}");
        }
        service.ear.completed(&cohort_id).await;
        world.members.records(&cohort_id, 1).await;
    });
}

#[test]
fn facts_become_known_in_their_order_however_the_journal_answers() {
    on_paused_clock(async {
        const MEMBERS: usize = 4;
        let mut world = World::new();
        let journal = Held::new("cohort/");
        let (mut service, tap) = held_service(&world, &journal).await;
        world.updaters(MEMBERS).await;
        let cohort_id = service.open(cohort(MEMBERS as u32)).await;
        settle().await;
        journal.answer(0).await;
        settle().await;

        // The cohort did not wait for the first opt-in's answer before it took the others.
        assert_eq!(journal.outstanding(), MEMBERS);
        let in_order: Vec<String> =
            journal.waiting().iter().map(|append| format!("{:?}", append.records)).collect();
        while journal.outstanding() > 1 {
            journal.answer(journal.outstanding() - 1).await;
            settle().await;
            assert_eq!(opted_in(&mut service), [], "the first is not durable yet");
        }
        journal.answer(0).await;
        settle().await;
        let told = opted_in(&mut service);
        assert_eq!(told.len(), MEMBERS);
        for (did, appended) in told.iter().zip(&in_order) {
            assert!(appended.contains(did.as_str()), "{did} was told of out of turn");
        }
        assert!(!tap.said().contains(&"keygen/cohort_opt_in_accept"));
        journal.answer_all().await;
        service.ear.completed(&cohort_id).await;
        world.members.records(&cohort_id, MEMBERS).await;
    });
}

/// Runs a cohort up to its opt-ins, lets the append of the first fail, and answers those behind it.
async fn fail_first_opt_in(world: &World, journal: &Held, service: &mut Service) -> CohortId {
    world.updaters(2).await;
    let cohort_id = service.open(cohort(2)).await;
    settle().await;
    journal.answer(0).await;
    settle().await;
    assert_eq!(journal.outstanding(), 2);
    assert!(journal.holds(0, "OptInReceived"));
    // The one behind is durable already: it must not come to effect over the gap.
    journal.answer(1).await;
    settle().await;
    journal.fail(0);
    settle().await;
    cohort_id
}

#[test]
fn a_cohort_whose_journal_fails_ends_with_that_reason_and_nothing_of_the_lost_fact_leaves() {
    on_paused_clock(async {
        let mut world = World::new();
        let journal = Held::new("cohort/");
        let (mut service, tap) = held_service(&world, &journal).await;
        let cohort_id = fail_first_opt_in(&world, &journal, &mut service).await;

        let failure = service.ear.failed(&cohort_id).await;
        assert_eq!(failure.code(), "INTERNAL");
        assert!(failure.to_string().contains("journal"), "{failure}");
        assert_eq!(service.ear.names(&cohort_id), ["cohort-advertised", "cohort-failed"]);
        pass(Duration::from_secs(7200)).await;
        assert_eq!(tap.said(), ["keygen/cohort_advert"]);
        assert_eq!(service.address.send(LiveCohorts).await.unwrap(), []);
        assert_eq!(world.members.count("opt-in-accepted"), 0);

        // Nothing is promised on that journal any more.
        assert!(service.address.send(cohort(2)).await.unwrap().is_err());
    });
}

#[test]
fn a_session_whose_journal_fails_ends_its_cohort() {
    on_paused_clock(async {
        let mut world = World::new();
        let journal = Held::new("signing/");
        let (mut service, tap) = held_service(&world, &journal).await;
        world.updaters(2).await;
        let cohort_id = service.open(cohort(2)).await;
        settle().await;
        assert!(journal.holds(0, "SessionOpened"));
        journal.fail(0);
        let failure = service.ear.failed(&cohort_id).await;
        assert_eq!(failure.code(), "INTERNAL");
        assert!(failure.to_string().contains("journal"), "{failure}");
        settle().await;
        assert!(!tap.said().contains(&"sign/authorization_request"));
        assert_eq!(world.members.count("signing-requested"), 0);
    });
}

#[test]
fn a_member_whose_journal_fails_leaves_without_having_said_anything() {
    on_paused_clock(async {
        let mut world = World::new();
        let service = world.service("service", Operator).await;
        let journal = Held::new("participant/");
        let tap = Tap::listening(&world.network);
        let member = identity("member");
        let mut settings = world.participant_settings(&member, Updater(member.clone()));
        settings.journal = Arc::new(journal.clone());
        settings.transport = Arc::new(tap.clone());
        world.participant_with(settings).await;
        let cohort_id = service.open(cohort(1)).await;
        settle().await;
        journal.answer(0).await;
        settle().await;
        assert!(journal.holds(0, "OptedIn"));
        journal.fail(0);
        let end = world.members.failed(member.did(), &cohort_id).await;
        let SessionEnd::Internal { reason } = end else { panic!("{end:?}") };
        assert!(reason.contains("journal"), "{reason}");
        pass(Duration::from_secs(600)).await;
        assert_eq!(tap.said(), Vec::<&str>::new());
    });
}
