//! What a participant records of its cohorts, how often, and for how long.

use super::*;
use crate::bitcoin_support;

/// How many cohorts of each kind are remembered.
const REMEMBERED: usize = 1024;

fn formed(member: &Member) -> Vec<bool> {
    member.machine.facts().joined().map(|(_, joined)| joined.formed).collect()
}

fn decline(member: &mut Member, message: &Message) {
    let input = Input::ConsiderDecided { advert: read(message), considers: false };
    let stepped = step(&mut member.machine, START, &input, &mut ChaCha8Rng::seed_from_u64(0)).unwrap();
    member.run.1.extend(stepped.events);
}

fn rejoins(message: &Message) -> [Effect; 1] {
    [Effect::StartSession { advert: read(message), rejoins: true }]
}

fn asks(message: &Message) -> [Effect; 1] {
    [Effect::AskConsider(read(message))]
}

#[test]
fn joining_and_forming_are_recorded_once() {
    let (service, mut member) = (outsider(2), Member::new());
    let message = advert(&service, "first");
    member.feed(Input::OptedIn(read(&message)));
    member.feed(Input::Formed(cohort(&service, "first")));
    assert_eq!(member.journal, [], "there is no session of it");
    member.join(&message);
    assert_eq!(formed(&member), [false]);
    member.feed(Input::OptedIn(read(&message)));
    assert_eq!(member.journal.len(), 1);
    for _ in 0..2 {
        member.feed(Input::Formed(cohort(&service, "first")));
        assert_eq!((formed(&member), member.journal.len()), (vec![true], 2));
    }
}

#[test]
fn that_a_cohort_formed_follows_from_its_session() {
    let (service, mut member) = (outsider(2), Member::new());
    let message = advert(&service, "first");
    member.join(&message);
    let output = bitcoin_support::output(&bitcoin_support::members(2), &bitcoin_support::tree(None));
    let events = [
        ParticipantEvent::CohortDiscovered { at: START, advert: read(&message), timing: Timing::default() },
        ParticipantEvent::OptedIn { at: START },
        ParticipantEvent::CohortReady { at: START, output },
    ];
    let with_session = || previous(vec![(&message, PreviousSession::read(&events).unwrap())]);
    member.restart(with_session());
    assert_eq!(formed(&member), [true]);
    let journal = member.journal.len();
    member.restart(with_session());
    assert_eq!(member.journal.len(), journal, "it is recorded once");
}

#[test]
fn participants_of_different_identifiers_differ() {
    let ours = planned(true);
    let config = MembershipConfig {
        did: outsider(2).did().clone(),
        beacons: BeaconRegistry::default(),
        max_sessions: MOST_SESSIONS,
        patience: PATIENCE,
        retains: true,
    };
    assert_eq!(ours, planned(true));
    assert_ne!(ours, Membership::new(Arc::new(config)));
}

#[test]
fn facts_are_counted_and_settled_without_cohorts() {
    let (service, mut member) = (outsider(2), Member::new());
    let state = |member: &Member| {
        let facts = member.machine.facts();
        (facts.len(), facts.is_empty(), facts.are_settled())
    };
    assert_eq!(state(&member), (0, true, true));
    member.join(&advert(&service, "first"));
    member.join(&advert(&service, "second"));
    assert_eq!(state(&member), (2, false, false));
    member.end(&cohort(&service, "second"), SessionEnd::Left);
    member.end(&cohort(&service, "first"), by_service(Some("third")));
    assert_eq!(state(&member), (3, false, false), "two have ended, and one is expected");
    member.join(&advert(&service, "third"));
    member.end(&cohort(&service, "third"), SessionEnd::Left);
    assert_eq!(state(&member), (3, false, true));
}

#[test]
fn a_declined_successor_is_considered_again() {
    let (service, mut member) = (outsider(2), Member::new());
    let [second, other] = ["second", "other"].map(|name| advert(&service, name));
    member.join(&advert(&service, "first"));
    member.consider(&other);
    member.end(&CohortKey::of_message(&other), SessionEnd::NotJoined);
    assert_eq!(member.receive(other).unwrap(), [], "it is not a successor");
    // Claimed by the service, and then named by the end of the session.
    member.receive(ended(&service, "first", "second")).unwrap();
    for _ in 0..2 {
        assert_eq!(member.receive(second.clone()).unwrap(), rejoins(&second));
        member.end(&CohortKey::of_message(&second), SessionEnd::NotJoined);
        member.feed(Input::SessionEnded { cohort: cohort(&service, "first"), reason: by_service(Some("second")) });
    }
    assert_eq!(member.receive(second.clone()).unwrap(), rejoins(&second));
}

#[test]
fn a_claim_names_one_cohort_and_counts_once() {
    let (service, mut member) = (outsider(2), Member::new());
    member.join(&advert(&service, "first"));
    member.receive(ended(&service, "first", "second")).unwrap();
    let events = member.run.1.len();
    member.receive(ended(&service, "first", "second")).unwrap();
    assert_eq!(member.run.1.len(), events, "the same claim again");
    let other = advert(&service, "other");
    assert_eq!(member.receive(other.clone()).unwrap(), asks(&other));
    // A session that has not joined claims nothing.
    member.consider(&advert(&service, "bait"));
    let events = member.run.1.len();
    member.receive(ended(&service, "bait", "trap")).unwrap();
    assert_eq!(member.run.1.len(), events);
}

#[test]
fn a_session_that_was_declined_may_prove_to_be_a_successor() {
    let (service, mut member) = (outsider(2), Member::new());
    let second = advert(&service, "second");
    member.join(&advert(&service, "first"));
    member.consider(&second);
    member.end(&CohortKey::of_message(&second), SessionEnd::NotJoined);
    member.receive(ended(&service, "first", "second")).unwrap();
    assert_eq!(member.receive(second.clone()).unwrap(), rejoins(&second));
}

#[test]
fn a_session_that_was_left_before_joining_is_not_started_again() {
    let (service, mut member) = (outsider(2), Member::new());
    let message = advert(&service, "left");
    member.consider(&message);
    member.end(&CohortKey::of_message(&message), SessionEnd::Left);
    assert_eq!(member.receive(message).unwrap(), []);
    assert_eq!(member.journal, []);
}

#[test]
fn what_has_ended_is_remembered_after_a_restart() {
    let (service, mut member) = (outsider(2), Member::new());
    let message = advert(&service, "over");
    let over = CohortKey::of_message(&message);
    member.join(&message);
    for _ in 0..2 {
        member.feed(Input::SessionEnded { cohort: over.clone(), reason: SessionEnd::Left });
        assert_eq!(member.journal.len(), 2, "its end is recorded once");
    }
    member.feed(Input::SessionStopped { cohort: over.clone(), failure: None });
    member.restart(previous(vec![(&message, session(&message, true, Some(SessionEnd::Left)))]));
    assert_eq!(member.journal.len(), 2);
    member.restart(Previous::default());
    assert_eq!(member.receive(message).unwrap(), []);
    assert_eq!(member.receive(ready(&service, "over")).unwrap(), []);
    // One that was left before it was joined was no membership.
    let left = advert(&service, "left");
    member.restart(previous(vec![(&left, session(&left, false, Some(SessionEnd::Left)))]));
    assert_eq!(member.journal.len(), 2);
}

#[test]
fn a_host_that_stores_no_ends_removes_their_journals() {
    let (service, mut machine) = (outsider(2), planned(false));
    let message = advert(&service, "first");
    let key = CohortKey::of_message(&message);
    let mut feed = |input| step(&mut machine, START, &input, &mut ChaCha8Rng::seed_from_u64(0)).unwrap().effects;
    feed(Input::ConsiderDecided { advert: read(&message), considers: true });
    feed(Input::OptedIn(read(&message)));
    feed(Input::SessionEnded { cohort: key.clone(), reason: SessionEnd::Signed });
    assert_eq!(feed(Input::SessionStopped { cohort: key.clone(), failure: None }), [Effect::Forget(key)]);
}

#[test]
fn a_control_message_shows_no_formation() {
    let (service, mut member) = (outsider(2), Member::new());
    assert_eq!(member.receive(ended(&service, "unknown", "next")).unwrap(), []);
    assert!(!member.machine.has_formed_without_us(&cohort(&service, "unknown")));
    // Nor is a message forged because some other session is open.
    member.consider(&advert(&service, "open"));
    let refused = member.receive(ready(&outsider(3), "unknown")).unwrap();
    assert!(
        matches!(&refused[..], [Effect::Refuse { reject, .. }] if reject.code == RejectCode::WrongCohort),
        "{refused:?}"
    );
}

#[test]
fn a_failure_before_joining_leaves_no_member_without_a_cohort() {
    let (service, mut member) = (outsider(2), Member::new());
    let failure = Some("the journal failed".to_owned());
    for (name, ends) in [("open", false), ("declined", true)] {
        let message = advert(&service, name);
        let key = CohortKey::of_message(&message);
        member.consider(&message);
        if ends {
            member.feed(Input::SessionEnded { cohort: key.clone(), reason: SessionEnd::NotJoined });
        }
        let effects = member.feed(Input::SessionStopped { cohort: key.clone(), failure: failure.clone() });
        assert!(matches!(effects[..], [Effect::ReportHalted { .. }]), "{effects:?}");
        assert_eq!(member.machine.route(&ready(&service, name)), Route::Membership, "{name}");
    }
}

#[test]
fn a_successor_is_missed_when_the_last_one_is() {
    let (service, mut member) = (outsider(2), Member::new());
    member.join(&advert(&service, "first"));
    member.join(&advert(&service, "second"));
    member.end(&cohort(&service, "first"), by_service(Some("third")));
    member.now = START + PATIENCE / 2;
    member.end(&cohort(&service, "second"), by_service(Some("fourth")));
    assert_eq!(member.machine.facts().awaited().count(), 2);
    member.now = START + PATIENCE;
    assert_eq!(member.feed(Input::Tick), [], "the other one is still awaited");
    member.now = START + PATIENCE / 2 + PATIENCE;
    let missed = left(cohort(&service, "fourth"), WithoutCohort::SuccessorMissed);
    assert_eq!(member.feed(Input::Tick), [missed]);
}

#[test]
fn two_cohorts_may_have_one_successor() {
    let (service, mut member) = (outsider(2), Member::new());
    for name in ["first", "second", "third"] {
        member.join(&advert(&service, name));
    }
    member.end(&cohort(&service, "first"), by_service(Some("next")));
    member.end(&cohort(&service, "second"), by_service(Some("other")));
    member.end(&cohort(&service, "third"), by_service(Some("next")));
    let awaited: Vec<_> = member.machine.facts().awaited().map(|(key, _)| key.clone()).collect();
    assert_eq!(awaited, [cohort(&service, "other"), cohort(&service, "next")]);
}

#[test]
fn a_successor_whose_time_is_over_at_a_restart_is_not_awaited() {
    let service = outsider(2);
    let first = advert(&service, "first");
    let mut member = Member::new();
    member.join(&first);
    member.now = START + PATIENCE;
    let over = session(&first, true, Some(by_service(Some("second"))));
    member.restart(previous(vec![(&first, over)]));
    assert_eq!(member.machine.deadline(), None);
}

#[test]
fn the_oldest_declined_cohort_is_forgotten() {
    let (service, mut member) = (outsider(2), Member::new());
    let declined = |number: usize| advert(&service, &format!("declined-{number}"));
    for number in 0..REMEMBERED {
        decline(&mut member, &declined(number));
    }
    let receive = |member: &Member, message: Message| {
        let mut machine = member.machine.clone();
        let input = Input::Message { message, stored: false };
        step(&mut machine, START, &input, &mut ChaCha8Rng::seed_from_u64(0)).unwrap().effects
    };
    assert_eq!(receive(&member, declined(0)), [], "as many as that are remembered");
    decline(&mut member, &declined(REMEMBERED));
    assert_eq!(receive(&member, declined(0)), asks(&declined(0)));
    assert_eq!(receive(&member, declined(1)), []);

    // One that has a session after all is not counted any more, and the others are forgotten in their turn.
    let mut member = Member::new();
    decline(&mut member, &declined(0));
    decline(&mut member, &declined(1));
    member.join(&advert(&service, "first"));
    member.receive(ended(&service, "first", "declined-0")).unwrap();
    assert_eq!(member.receive(declined(0)).unwrap(), rejoins(&declined(0)));
    for number in 2..=REMEMBERED + 1 {
        decline(&mut member, &declined(number));
    }
    assert_eq!(receive(&member, declined(1)), asks(&declined(1)));
    assert_eq!(member.machine.sessions(), 2);
}
