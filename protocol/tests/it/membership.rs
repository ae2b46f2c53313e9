//! A participant in all its cohorts: adverts, successors, late messages, and what survives a restart.

mod facts;

use std::{sync::Arc, time::Duration};

use btcr2_aggregation_protocol::{
    beacon::{BeaconRegistry, BeaconType},
    cohort::{
        Timing,
        conditions::Conditions,
        event::{ParticipantEvent, SessionEnd},
        participant::{
            Advert,
            membership::{
                CohortKey, Membership, MembershipConfig, MembershipEffect as Effect, MembershipEvent,
                MembershipInput as Input, Previous, PreviousSession, Route, WithoutCohort,
            },
        },
    },
    error::{Reject, RejectCode},
    id::CohortId,
    identity::Identity,
    machine::{Machine, replay, step},
    message::{
        Body, Message, SharedBody,
        control::CohortEnded,
        keygen::{CohortOptInAccept, CohortReady},
    },
    network::Network,
    output::{RecoverySequence, ScriptTree},
    sim::START,
    time::Timestamp,
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::sim_support::outsider;

const PATIENCE: Duration = Duration::from_secs(600);
const MOST_SESSIONS: usize = 4;

fn id(name: &str) -> CohortId {
    CohortId::parse(name).unwrap()
}

fn cohort(service: &Identity, name: &str) -> CohortKey {
    CohortKey { service: service.did().clone(), cohort_id: id(name) }
}

fn conditions(members: u32) -> Conditions {
    let recovery_key = outsider(7).public_key().x_only();
    let recovery_sequence = RecoverySequence::try_from(144).unwrap();
    let tree = ScriptTree::FallbackAndRecovery { recovery_key, recovery_sequence, fallback_threshold: None };
    Conditions::new(BeaconType::cas(), members, tree)
}

fn advert_on(service: &Identity, name: &str, members: u32) -> Message {
    let body = conditions(members).to_advert(id(name), Network::Regtest, &service.public_key());
    Message::new(service.did().clone(), None, body)
}

fn advert(service: &Identity, name: &str) -> Message {
    advert_on(service, name, 2)
}

fn read(message: &Message) -> Arc<Advert> {
    let Body::CohortAdvert(body) = &*message.body else { panic!("{message:?}") };
    Arc::new(Advert::read(&message.from, body, &BeaconRegistry::default()).unwrap())
}

fn from(service: &Identity, body: impl Into<SharedBody>) -> Message {
    Message::new(service.did().clone(), Some(outsider(1).did().clone()), body)
}

fn ready(service: &Identity, name: &str) -> Message {
    from(service, CohortReady { cohort_id: id(name), beacon_address: "bcrt1p".into(), cohort_keys: vec![] })
}

fn ended(service: &Identity, name: &str, next: &str) -> Message {
    let body = CohortEnded {
        cohort_id: id(name),
        code: "UPDATES_MISSING".to_owned(),
        reason: "a test".to_owned(),
        at_fault: false,
        next_cohort_id: Some(id(next)),
        signed: None,
        opt_in: None,
    };
    from(service, Body::from(body))
}

fn by_service(next: Option<&str>) -> SessionEnd {
    let (code, reason) = ("UPDATES_MISSING".to_owned(), "a test".to_owned());
    SessionEnd::EndedByService { code, reason, at_fault: false, next: next.map(id) }
}

/// A participant with its journal, and the events of its run.
struct Member {
    now: Timestamp,
    machine: Membership,
    journal: Vec<MembershipEvent>,
    run: (Membership, Vec<MembershipEvent>),
}

fn planned(retains: bool) -> Membership {
    let did = outsider(1).did().clone();
    let beacons = BeaconRegistry::default();
    let max_sessions = MOST_SESSIONS;
    Membership::new(Arc::new(MembershipConfig { did, beacons, max_sessions, patience: PATIENCE, retains }))
}

impl Member {
    fn new() -> Self {
        Self::on(Vec::new())
    }

    fn on(journal: Vec<MembershipEvent>) -> Self {
        let machine = replay(planned(true), &journal);
        Self { now: START, run: (machine.clone(), Vec::new()), machine, journal }
    }

    fn try_feed(&mut self, input: Input) -> Result<Vec<Effect>, Reject> {
        let before = self.machine.clone();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let stepped = step(&mut self.machine, self.now, &input, &mut rng);
        if stepped.is_err() {
            assert_eq!(self.machine, before, "a rejection changes nothing");
        }
        let stepped = stepped?;
        self.journal.extend(stepped.events.iter().filter(|event| Membership::is_journaled(event)).cloned());
        self.run.1.extend(stepped.events);
        self.check();
        Ok(stepped.effects)
    }

    fn feed(&mut self, input: Input) -> Vec<Effect> {
        self.try_feed(input).unwrap()
    }

    fn receive(&mut self, message: Message) -> Result<Vec<Effect>, Reject> {
        self.try_feed(Input::Message { message, stored: false })
    }

    /// The journal gives what survives a restart, all events of the run the exact state.
    fn check(&self) {
        let through = |events: &[MembershipEvent]| -> Vec<MembershipEvent> {
            serde_json::from_str(&serde_json::to_string(events).unwrap()).unwrap()
        };
        assert_eq!(replay(planned(true), &through(&self.journal)), self.machine.restarted());
        assert_eq!(replay(planned(true), &through(&[self.machine.compacted()])), self.machine.restarted());
        let (start, events) = &self.run;
        assert_eq!(replay(start.clone(), &through(events)), self.machine);
    }

    /// Restarts it with the sessions in their journals.
    fn restart(&mut self, previous: Previous) -> Vec<Effect> {
        let now = self.now;
        *self = Self { now, ..Self::on(self.journal.clone()) };
        self.feed(Input::Resumed(previous))
    }

    /// The advert arrives, the host considers it, and the session opts in.
    fn join(&mut self, message: &Message) {
        self.consider(message);
        self.feed(Input::OptedIn(read(message)));
    }

    fn consider(&mut self, message: &Message) {
        let advert = read(message);
        let effects = self.receive(message.clone()).unwrap();
        if effects == [Effect::AskConsider(Arc::clone(&advert))] {
            let effects = self.feed(Input::ConsiderDecided { advert: Arc::clone(&advert), considers: true });
            assert_eq!(effects, [Effect::StartSession { advert, rejoins: false }]);
        } else {
            assert_eq!(effects, [Effect::StartSession { advert, rejoins: true }]);
        }
    }

    fn end(&mut self, cohort: &CohortKey, reason: SessionEnd) -> Vec<Effect> {
        let mut effects = self.feed(Input::SessionEnded { cohort: cohort.clone(), reason });
        effects.extend(self.feed(Input::SessionStopped { cohort: cohort.clone(), failure: None }));
        effects
    }
}

fn left(cohort: CohortKey, cause: WithoutCohort) -> Effect {
    Effect::ReportWithoutCohort { cohort, cause }
}

/// A session's journal: joined or not, and how it ended.
fn session(message: &Message, joined: bool, end: Option<SessionEnd>) -> PreviousSession {
    let advert = read(message);
    let mut events = vec![ParticipantEvent::CohortDiscovered { at: START, advert, timing: Timing::default() }];
    events.extend(joined.then_some(ParticipantEvent::OptedIn { at: START }));
    events.extend(end.map(|reason| ParticipantEvent::SessionEnded { at: START, reason }));
    PreviousSession::read(&events).unwrap()
}

fn previous(sessions: Vec<(&Message, PreviousSession)>) -> Previous {
    let sessions = sessions.into_iter().map(|(message, session)| (CohortKey::of_message(message), Ok(session)));
    Previous { archived: Vec::new(), sessions: sessions.collect() }
}

#[test]
fn the_successor_of_a_joined_cohort_is_rejoined() {
    let (service, mut member) = (outsider(2), Member::new());
    member.join(&advert(&service, "first"));
    // The advert may be the next message, before the end is durable.
    member.receive(ended(&service, "first", "second")).unwrap();
    let second = advert(&service, "second");
    let rejoins = vec![Effect::StartSession { advert: read(&second), rejoins: true }];
    assert_eq!(member.receive(second.clone()).unwrap(), rejoins);
    assert_eq!(member.receive(second).unwrap(), [], "a repeated advert changes nothing");
    // Also once the session has ended.
    let mut late = Member::new();
    late.join(&advert(&service, "first"));
    assert_eq!(late.end(&cohort(&service, "first"), by_service(Some("second"))), []);
    assert_eq!(late.receive(advert(&service, "second")).unwrap(), rejoins);
}

#[test]
fn a_successor_on_other_terms_is_an_advert_like_any_other() {
    let (service, mut member) = (outsider(2), Member::new());
    member.join(&advert(&service, "first"));
    member.end(&cohort(&service, "first"), by_service(Some("second")));
    let other = advert_on(&service, "second", 3);
    assert_eq!(member.receive(other.clone()).unwrap(), [Effect::AskConsider(read(&other))]);
    // Nor does another service take the place.
    let elsewhere = advert(&outsider(3), "second");
    assert_eq!(member.receive(elsewhere.clone()).unwrap(), [Effect::AskConsider(read(&elsewhere))]);
}

#[test]
fn a_claim_only_counts_for_a_cohort_that_was_joined() {
    let (service, mut member) = (outsider(2), Member::new());
    member.consider(&advert(&service, "bait"));
    assert_eq!(member.receive(ended(&service, "bait", "trap")).unwrap(), []);
    let trap = advert(&service, "trap");
    assert_eq!(member.receive(trap.clone()).unwrap(), [Effect::AskConsider(read(&trap))]);
    assert_eq!(member.journal, []);
    // Nor does a claim about another service's cohort.
    member.join(&advert(&outsider(3), "joined"));
    let reject = member.receive(ended(&service, "joined", "trap")).unwrap_err();
    assert_eq!((reject.code, reject.peer.as_ref()), (RejectCode::WrongSender, Some(service.did())));
    assert_eq!(member.receive(trap.clone()).unwrap(), [Effect::AskConsider(read(&trap))]);
}

#[test]
fn a_declined_cohort_that_proves_to_be_a_successor_is_considered() {
    let (service, mut member) = (outsider(2), Member::new());
    let second = advert(&service, "second");
    member.feed(Input::ConsiderDecided { advert: read(&second), considers: false });
    assert_eq!(member.receive(second.clone()).unwrap(), [], "the host is asked once");
    member.join(&advert(&service, "first"));
    member.receive(ended(&service, "first", "second")).unwrap();
    let rejoins = Effect::StartSession { advert: read(&second), rejoins: true };
    assert_eq!(member.receive(second).unwrap(), [rejoins]);
}

#[test]
fn the_failure_of_the_last_cohort_leaves_a_member_without_one() {
    let (service, mut member) = (outsider(2), Member::new());
    let key = |name| cohort(&service, name);
    for name in ["one", "two", "signed"] {
        member.join(&advert(&service, name));
    }
    assert_eq!(member.end(&key("one"), SessionEnd::Left), [], "two others run");
    assert_eq!(member.end(&key("signed"), SessionEnd::Signed), []);
    assert_eq!(member.end(&key("two"), by_service(None)), [left(key("two"), WithoutCohort::CohortFailed)]);
    assert_eq!(member.end(&key("two"), by_service(None)), [], "once");
    // Neither a cohort that was announced nor one that was not joined leaves it without one.
    member.join(&advert(&service, "done"));
    assert_eq!(member.end(&key("done"), SessionEnd::Signed), []);
    member.consider(&advert(&service, "passed"));
    assert_eq!(member.end(&key("passed"), SessionEnd::NotJoined), [Effect::Forget(key("passed"))]);
}

#[test]
fn an_awaited_successor_is_missed_after_the_patience() {
    let (service, mut member) = (outsider(2), Member::new());
    let second = cohort(&service, "second");
    member.join(&advert(&service, "first"));
    assert_eq!(member.end(&cohort(&service, "first"), by_service(Some("second"))), []);
    assert_eq!(member.machine.deadline(), Some(START + PATIENCE));
    member.now = START + PATIENCE / 2;
    assert_eq!(member.feed(Input::Tick), [], "an early tick is harmless");
    // It waits as long when it is restarted meanwhile.
    let archived = vec![cohort(&service, "first")];
    assert_eq!(member.restart(Previous { archived, sessions: Vec::new() }), []);
    assert_eq!(member.machine.deadline(), Some(START + PATIENCE));
    member.now = START + PATIENCE;
    assert_eq!(member.feed(Input::Tick), [left(second, WithoutCohort::SuccessorMissed)]);
    assert_eq!(member.machine.deadline(), None);
    assert_eq!(member.feed(Input::Tick), [], "a late tick is harmless");
    // It may still be joined, as what it is.
    let late = advert(&service, "second");
    assert_eq!(
        member.receive(late.clone()).unwrap(),
        [Effect::StartSession { advert: read(&late), rejoins: true }]
    );
}

#[test]
fn a_successor_that_is_joined_is_not_missed() {
    let (service, mut member) = (outsider(2), Member::new());
    member.join(&advert(&service, "first"));
    member.end(&cohort(&service, "first"), by_service(Some("second")));
    member.join(&advert(&service, "second"));
    assert_eq!(member.machine.deadline(), None);
    assert_eq!(member.machine.facts().awaited().count(), 0);
    // One that was joined before the end of the other one is not awaited at all.
    member.receive(ended(&service, "second", "third")).unwrap();
    member.join(&advert(&service, "third"));
    assert_eq!(member.end(&cohort(&service, "second"), by_service(Some("third"))), []);
    assert_eq!(member.machine.deadline(), None);
}

#[test]
fn another_cohort_makes_a_missed_successor_harmless() {
    let (service, mut member) = (outsider(2), Member::new());
    member.join(&advert(&service, "first"));
    member.end(&cohort(&service, "first"), by_service(Some("second")));
    member.join(&advert(&service, "other"));
    member.now = START + PATIENCE;
    assert_eq!(member.feed(Input::Tick), []);
    let other = cohort(&service, "other");
    assert_eq!(member.end(&other, SessionEnd::Left), [left(other, WithoutCohort::CohortFailed)]);
}

#[test]
fn messages_of_cohorts_that_are_over_are_ignored() {
    let (service, mut member) = (outsider(2), Member::new());
    member.join(&advert(&service, "over"));
    member.end(&cohort(&service, "over"), SessionEnd::Left);
    member.feed(Input::ConsiderDecided { advert: read(&advert(&service, "declined")), considers: false });
    for name in ["over", "declined"] {
        assert_eq!(member.machine.route(&ready(&service, name)), Route::Membership);
        assert_eq!(member.receive(ready(&service, name)).unwrap(), [], "{name}");
        assert_eq!(member.receive(advert(&service, name)).unwrap(), [], "{name}: its advert is repeated");
    }
}

#[test]
fn a_cohort_that_formed_without_us_is_not_joined() {
    let (service, mut member) = (outsider(2), Member::new());
    let refused = |effects: Vec<Effect>| match &effects[..] {
        [Effect::Refuse { reject, .. }] => (reject.code, reject.peer.clone()),
        effects => panic!("{effects:?}"),
    };
    let of_service = Some(service.did().clone());
    let accept = from(&service, CohortOptInAccept { cohort_id: id("lost") });
    assert_eq!(member.receive(accept).unwrap_err().code, RejectCode::WrongCohort);
    assert!(!member.machine.has_formed_without_us(&cohort(&service, "lost")), "it may still admit members");
    let live = member.receive(ready(&service, "lost")).unwrap();
    assert_eq!(refused(live), (RejectCode::WrongCohort, of_service));
    // A message of a previous run is not the service's fault.
    let stored = member.feed(Input::Message { message: ready(&service, "older"), stored: true });
    assert_eq!(stored, []);
    for name in ["lost", "older"] {
        assert!(member.machine.has_formed_without_us(&cohort(&service, name)));
        assert_eq!(member.receive(advert(&service, name)).unwrap(), [], "{name}");
    }
    member.consider(&advert(&service, "open"));
    let forged = member.receive(ready(&outsider(3), "open")).unwrap();
    assert_eq!(refused(forged), (RejectCode::WrongSender, Some(outsider(3).did().clone())));
}

#[test]
fn what_unauthenticated_peers_send_is_bounded_and_not_journaled() {
    let (service, mut member) = (outsider(2), Member::new());
    let mut sizes = Vec::new();
    for round in 0..2 {
        for number in 0..1_500 {
            let name = format!("{round}-{number}");
            let declined = read(&advert(&service, &name));
            let mut rng = ChaCha8Rng::seed_from_u64(0);
            for input in [
                Input::ConsiderDecided { advert: declined, considers: false },
                Input::Message { message: ready(&service, &format!("formed-{name}")), stored: true },
                Input::Message { message: advert(&service, &format!("considered-{name}")), stored: false },
                Input::ConsiderDecided {
                    advert: read(&advert(&service, &format!("considered-{name}"))),
                    considers: true,
                },
            ] {
                let stepped = step(&mut member.machine, START, &input, &mut rng).unwrap();
                assert!(!stepped.events.iter().any(Membership::is_journaled), "{:?}", stepped.events);
            }
        }
        sizes.push(format!("{:?}", member.machine).len());
        assert_eq!(member.machine.sessions(), MOST_SESSIONS);
    }
    assert!(sizes[1] < sizes[0] * 11 / 10, "{sizes:?}");
    assert_eq!(member.machine.restarted(), planned(true));
}

#[test]
fn a_session_that_cannot_continue_is_not_archived() {
    let (service, mut member) = (outsider(2), Member::new());
    let (first, message) = (cohort(&service, "first"), advert(&service, "first"));
    member.join(&message);
    assert!(member.machine.may_archive(&first));
    let failure = Some("the journal failed".to_owned());
    let effects = member.feed(Input::SessionStopped { cohort: first.clone(), failure });
    let halted = Effect::ReportHalted { cohort: first.clone(), reason: "the journal failed".to_owned() };
    assert_eq!(effects, [halted, left(first.clone(), WithoutCohort::CohortFailed)]);
    assert!(!member.machine.may_archive(&first));
    assert_eq!(member.machine.route(&ready(&service, "first")), Route::Withheld);
    assert_eq!(member.receive(message.clone()).unwrap(), [], "it is not joined again");
    // The next run finds it again.
    let effects = member.restart(previous(vec![(&message, session(&message, true, None))]));
    assert_eq!(effects, [Effect::ResumeSession(first)]);
    // One that was not joined is only one of many.
    let second = advert(&service, "second");
    member.consider(&second);
    let failure = Some("the journal failed".to_owned());
    member.feed(Input::SessionStopped { cohort: CohortKey::of_message(&second), failure });
    assert_eq!(member.machine.route(&ready(&service, "second")), Route::Membership);
}

#[test]
fn without_its_own_journal_it_follows_from_the_sessions() {
    let (service, mut member) = (outsider(2), Member::new());
    let [running, over, waits, declined] =
        ["running", "over", "waits", "declined"].map(|name| advert(&service, name));
    let mut found = previous(vec![
        (&running, session(&running, true, None)),
        (&over, session(&over, true, Some(by_service(Some("next"))))),
        (&waits, session(&waits, false, None)),
        (&declined, session(&declined, false, Some(SessionEnd::NotJoined))),
    ]);
    found.archived.push(cohort(&service, "archived"));
    found.sessions.push((cohort(&service, "damaged"), Err("record 1 is damaged".to_owned())));
    member.now = START + PATIENCE * 2;
    let effects = member.restart(found);
    let resumed = |message| Effect::ResumeSession(CohortKey::of_message(message));
    let halted =
        Effect::ReportHalted { cohort: cohort(&service, "damaged"), reason: "record 1 is damaged".to_owned() };
    let forget = Effect::Forget(CohortKey::of_message(&declined));
    assert_eq!(effects, [resumed(&running), resumed(&over), resumed(&waits), forget, halted]);
    let joined: Vec<_> = member.machine.facts().joined().map(|(cohort, _)| cohort.clone()).collect();
    assert_eq!(joined, [CohortKey::of_message(&running)]);
    assert_eq!(member.machine.deadline(), None, "nothing is awaited that long");
    assert_eq!(member.end(&CohortKey::of_message(&over), by_service(Some("next"))), [], "its end is repeated");
    assert_eq!(member.receive(advert(&service, "archived")).unwrap(), []);
    assert_eq!(member.machine.route(&ready(&service, "damaged")), Route::Withheld);
    let next = advert(&service, "next");
    assert_eq!(
        member.receive(next.clone()).unwrap(),
        [Effect::StartSession { advert: read(&next), rejoins: true }]
    );
}

#[test]
fn a_cohort_that_was_moved_elsewhere_is_no_membership() {
    let (service, mut member) = (outsider(2), Member::new());
    member.join(&advert(&service, "moved"));
    assert_eq!(member.restart(Previous::default()), []);
    assert_eq!(member.machine.facts().joined().count(), 0);
    let moved = advert(&service, "moved");
    assert_eq!(member.receive(moved.clone()).unwrap(), [Effect::AskConsider(read(&moved))]);
}

#[test]
fn facts_that_were_not_journaled_before_a_crash_are_found_again() {
    let (service, mut member) = (outsider(2), Member::new());
    let first = advert(&service, "first");
    member.join(&first);
    let journal = member.journal.clone();
    member.end(&CohortKey::of_message(&first), by_service(Some("second")));
    // The session's end was durable, and ours was not.
    let mut crashed = Member::on(journal);
    crashed.now = START + PATIENCE / 2;
    crashed.restart(previous(vec![(&first, session(&first, true, Some(by_service(Some("second")))))]));
    assert_eq!(crashed.machine.facts(), member.machine.facts());
    assert_eq!(crashed.machine.deadline(), Some(START + PATIENCE), "it goes on waiting");
}
