//! Journal before effects: no effect of an event is visible before the event is durable, in whatever order and however
//! late the journal answers.

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
};
use btcr2_aggregation_protocol::{cohort::event::SessionEnd, did::Did, id::CohortId, time::Timestamp};
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::oneshot;

/// A journal whose appends are answered when the test decides.
#[derive(Clone, Default)]
struct Delayed {
    stored: MemoryJournal,
    waiting: Arc<Mutex<VecDeque<Append>>>,
    /// Appends to streams with that prefix are delayed; others are answered at once.
    prefix: &'static str,
}

struct Append {
    stream: StreamId,
    records: Vec<Record>,
    answer: oneshot::Sender<Result<(), JournalError>>,
}

impl Delayed {
    fn new(prefix: &'static str) -> Self {
        Self { prefix, ..Self::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Append>> {
        self.waiting.lock().expect("no code panics with the lock")
    }

    fn outstanding(&self) -> usize {
        self.waiting().len()
    }

    /// Whether the append at `index` contains an event of that name.
    fn holds(&self, index: usize, event: &str) -> bool {
        self.waiting().get(index).is_some_and(|append| format!("{:?}", append.records).contains(event))
    }

    async fn answer(&self, index: usize) {
        let append = self.waiting().remove(index).expect("an append is outstanding");
        self.stored.append(&append.stream, append.records).await.expect("memory is there");
        append.answer.send(Ok(())).expect("the actor waits");
    }

    fn fail(&self, index: usize) {
        let append = self.waiting().remove(index).expect("an append is outstanding");
        let error = JournalError { stream: append.stream, problem: "the disk is full".to_owned() };
        append.answer.send(Err(error)).expect("the actor waits");
    }

    /// Answers all appends until no more are made.
    async fn answer_all(&self) {
        settle().await;
        while self.outstanding() > 0 {
            self.answer(0).await;
            settle().await;
        }
    }
}

impl Journal for Delayed {
    fn append(&self, stream: &StreamId, records: Vec<Record>) -> BoxFuture<'static, Result<(), JournalError>> {
        if !stream.as_str().starts_with(self.prefix) {
            return self.stored.append(stream, records);
        }
        let (answer, answered) = oneshot::channel();
        let stream = stream.clone();
        let gone = JournalError { stream: stream.clone(), problem: "no answer".to_owned() };
        self.waiting().push_back(Append { stream, records, answer });
        answered.map(|answered| answered.unwrap_or(Err(gone))).boxed()
    }

    fn read(&self, stream: &StreamId) -> BoxFuture<'static, Result<Vec<Record>, JournalError>> {
        self.stored.read(stream)
    }

    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>> {
        self.stored.streams()
    }

    fn archive(&self, stream: &StreamId, at: Timestamp) -> BoxFuture<'static, Result<(), JournalError>> {
        self.stored.archive(stream, at)
    }

    fn archived(&self) -> BoxFuture<'static, Result<Vec<Archived>, JournalError>> {
        self.stored.archived()
    }

    fn remove(&self, stream: &StreamId) -> BoxFuture<'static, Result<(), JournalError>> {
        self.stored.remove(stream)
    }
}

/// A service whose journal is delayed, and a tap on its messages.
async fn delayed_service(world: &World, journal: &Delayed) -> (Service, Tap) {
    let tap = Tap::listening(&world.network);
    let mut settings = world.service_settings("service", Operator);
    settings.journal = Arc::new(journal.clone());
    settings.transport = Arc::new(tap.clone());
    (settings.start().await, tap)
}

/// The members whose opt-ins the service has published, in that order.
fn opted_in(service: &mut Service) -> Vec<Did> {
    let received = service.ear.received().iter().filter_map(|notice| match &**notice {
        ServiceNotice::OptInReceived { participant, .. } => Some(participant.clone()),
        _ => None,
    });
    received.collect()
}

#[test]
fn a_service_sends_nothing_before_its_event_is_durable() {
    on_paused_clock(async {
        let mut world = World::new();
        let journal = Delayed::new("cohort/");
        let (mut service, tap) = delayed_service(&world, &journal).await;
        world.participant(&identity("member"), Decliner).await;
        let cohort_id = service.open(cohort(1)).await;

        pass(Duration::from_secs(1)).await;
        assert_eq!(journal.outstanding(), 1);
        assert_eq!(tap.sent(), Vec::<&str>::new());
        assert_eq!(service.ear.names(&cohort_id), Vec::<String>::new());

        // From one event to the next: the effects of each are delayed until its append is answered.
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
            assert!(!tap.sent().contains(&message), "{message} left before its time");
            journal.answer(0).await;
            settle().await;
            assert!(service.ear.names(&cohort_id).contains(&notice.to_owned()), "{notice}");
            assert!(message.is_empty() || tap.sent().contains(&message), "{message}");
        }
        journal.answer_all().await;
        service.ear.completed(&cohort_id).await;
        world.members.records(&cohort_id, 1).await;
    });
}

#[test]
fn a_signing_session_sends_nothing_before_its_event_is_durable() {
    on_paused_clock(async {
        let mut world = World::new();
        let journal = Delayed::new("signing/");
        let (mut service, tap) = delayed_service(&world, &journal).await;
        world.updaters(1).await;
        let cohort_id = service.open(cohort(1)).await;
        settle().await;
        for (event, message) in
            [("SessionOpened", "sign/authorization_request"), ("NoncesAggregated", "sign/aggregated_nonce")]
        {
            assert!(journal.holds(0, event), "{event}");
            assert!(!tap.sent().contains(&message), "{message} left before its time");
            journal.answer(0).await;
            settle().await;
            assert!(tap.sent().contains(&message), "{message}");
        }
        assert!(journal.holds(0, "SessionCompleted"));
        assert!(!service.ear.names(&cohort_id).contains(&"signing-complete".to_owned()));
        journal.answer_all().await;
        service.ear.completed(&cohort_id).await;
        world.members.records(&cohort_id, 1).await;
    });
}

#[test]
fn a_member_sends_nothing_before_its_event_is_durable() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        let journal = Delayed::new("participant/");
        let tap = Tap::listening(&world.network);
        let member = identity("member");
        let mut settings = world.participant_settings(&member, Updater(member.clone()));
        settings.journal = Arc::new(journal.clone());
        settings.transport = Arc::new(tap.clone());
        settings.start().await;
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
            // The nonce only counts as sent when that is in the journal: after a restart it must not be opened again.
            ("NonceSent", "sign/nonce_contribution"),
            ("AggregatedNonceReceived", ""),
            ("PartialSignatureSent", "sign/signature_authorization"),
        ];
        for (event, message) in steps {
            assert!(journal.holds(0, event), "{event}");
            assert!(!tap.sent().contains(&message), "{message} left before its time");
            if event == "PartialSignatureSent" {
                assert_eq!(world.members.count("signature-sent"), 0);
            }
            journal.answer(0).await;
            settle().await;
            assert!(message.is_empty() || tap.sent().contains(&message), "{message}");
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
        let journal = Delayed::new("cohort/");
        let (mut service, tap) = delayed_service(&world, &journal).await;
        world.updaters(MEMBERS).await;
        let cohort_id = service.open(cohort(MEMBERS as u32)).await;
        settle().await;
        journal.answer(0).await;
        settle().await;

        // The cohort did not wait for the first opt-in's append before it processed the others.
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
        let reported = opted_in(&mut service);
        assert_eq!(reported.len(), MEMBERS);
        for (did, appended) in reported.iter().zip(&in_order) {
            assert!(appended.contains(did.as_str()), "{did} was published out of order");
        }
        assert!(!tap.sent().contains(&"keygen/cohort_opt_in_accept"));
        journal.answer_all().await;
        service.ear.completed(&cohort_id).await;
        world.members.records(&cohort_id, MEMBERS).await;
    });
}

/// Runs a cohort up to its opt-ins, makes the append of the first fail, and answers those after it.
async fn fail_first_opt_in(world: &World, journal: &Delayed, service: &mut Service) -> CohortId {
    world.updaters(2).await;
    let cohort_id = service.open(cohort(2)).await;
    settle().await;
    journal.answer(0).await;
    settle().await;
    assert_eq!(journal.outstanding(), 2);
    assert!(journal.holds(0, "OptInReceived"));
    // The next one is durable already: it must not take effect after the gap.
    journal.answer(1).await;
    settle().await;
    journal.fail(0);
    settle().await;
    cohort_id
}

#[test]
fn a_cohort_whose_journal_fails_sends_nothing_of_the_lost_event() {
    on_paused_clock(async {
        let mut world = World::new();
        let journal = Delayed::new("cohort/");
        let (mut service, tap) = delayed_service(&world, &journal).await;
        let cohort_id = fail_first_opt_in(&world, &journal, &mut service).await;

        let failure = service.ear.failed(&cohort_id).await;
        assert_eq!(failure.code(), "INTERNAL");
        assert!(failure.to_string().contains("journal"), "{failure}");
        assert_eq!(service.ear.names(&cohort_id), ["cohort-advertised", "cohort-failed"]);
        pass(Duration::from_secs(7200)).await;
        assert_eq!(tap.sent(), ["keygen/cohort_advert"]);
        assert_eq!(service.live().await, []);
        assert_eq!(world.members.count("opt-in-accepted"), 0);

        // Nothing is promised on that journal any more.
        assert!(service.handle.open(cohort(2)).await.is_err());
    });
}

#[test]
fn a_session_whose_journal_fails_ends_its_cohort() {
    on_paused_clock(async {
        let mut world = World::new();
        let journal = Delayed::new("signing/");
        let (mut service, tap) = delayed_service(&world, &journal).await;
        world.updaters(2).await;
        let cohort_id = service.open(cohort(2)).await;
        settle().await;
        assert!(journal.holds(0, "SessionOpened"));
        journal.fail(0);
        let failure = service.ear.failed(&cohort_id).await;
        assert_eq!(failure.code(), "INTERNAL");
        assert!(failure.to_string().contains("journal"), "{failure}");
        settle().await;
        assert!(!tap.sent().contains(&"sign/authorization_request"));
        assert_eq!(world.members.count("signing-requested"), 0);
    });
}

#[test]
fn a_member_whose_journal_fails_leaves_without_a_message() {
    on_paused_clock(async {
        let mut world = World::new();
        let service = world.service("service", Operator).await;
        let journal = Delayed::new("participant/");
        let tap = Tap::listening(&world.network);
        let member = identity("member");
        let mut settings = world.participant_settings(&member, Updater(member.clone()));
        settings.journal = Arc::new(journal.clone());
        settings.transport = Arc::new(tap.clone());
        settings.start().await;
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
        assert_eq!(tap.sent(), Vec::<&str>::new());
    });
}
