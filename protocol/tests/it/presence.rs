//! Before signing, the service may request presence confirmations, so that absent members are detected before nonces
//! are exchanged.

use crate::sim_support::{TIMEOUT, assert_named, bodies, honest, outsider, run_to, setup};
use btcr2_aggregation_protocol::{
    cohort::{
        event::{CohortFailure, ParticipantEvent, ServiceEvent, SpendPath},
        service::{
            phase::Phase,
            rules::{Answer, PhaseRule, TimedPhase},
        },
    },
    did::Did,
    error::RejectCode,
    message::{
        Message,
        control::{Presence, PresenceRequest},
    },
    signing::session::SessionEvent,
    sim::Simulation,
};

const CHECKING: &str = "checking presence";

/// A cohort of four that is asked to confirm its presence, of which the members `absent` do not.
fn with_absent(absent: &[usize], then: Answer) -> Simulation {
    let mut setup = setup(honest(4));
    setup.rules.presence_check = true;
    setup.rules.set(TimedPhase::Presence, PhaseRule { timeout: None, extensions: 0, then }).unwrap();
    let mut simulation = Simulation::new(1, setup);
    for index in absent {
        let did = simulation.did(*index);
        simulation.tamper(
            &did,
            |message| {
                if message.body.is_control() { Vec::new() } else { vec![message.to_json()] }
            },
        );
    }
    simulation
}

fn absent_when_signing_started(simulation: &Simulation) -> Option<Vec<Did>> {
    simulation.service().cohorts()[0].events().iter().find_map(|event| match event {
        ServiceEvent::SigningStarted { absent, .. } => Some(absent.clone()),
        _ => None,
    })
}

#[test]
fn signing_starts_once_every_member_is_present() {
    let mut simulation = with_absent(&[], Answer::Fail);
    run_to(&mut simulation, CHECKING);
    let asked_at = simulation.now();
    run_to(&mut simulation, "nonces");
    assert!(simulation.now().since(asked_at) < TIMEOUT / 100);
    simulation.run();
    simulation.assert_invariants();
    assert_eq!(absent_when_signing_started(&simulation), Some(vec![]));
    assert_eq!(simulation.report().signed.unwrap().path, SpendPath::KeyPath);
    for node in simulation.participants() {
        let confirmed = node.events().iter().filter(|event| matches!(event, ParticipantEvent::PresenceConfirmed));
        assert_eq!(confirmed.count(), 1);
    }
}

#[test]
fn each_answer_applies_to_an_absent_member() {
    let absent = |simulation: &Simulation| vec![simulation.did(2)];

    let mut simulation = with_absent(&[2], Answer::Proceed);
    simulation.run();
    simulation.assert_invariants();
    assert_eq!(absent_when_signing_started(&simulation), Some(vec![]));
    // The member was present after all, like a member of the TypeScript implementation, which ignores the request.
    assert_eq!(simulation.report().signed.unwrap().path, SpendPath::KeyPath);

    let mut simulation = with_absent(&[2], Answer::FallBack);
    simulation.run();
    simulation.assert_invariants();
    assert_eq!(absent_when_signing_started(&simulation), Some(absent(&simulation)));
    let signed = simulation.report().signed.unwrap();
    assert_eq!((signed.path, signed.holdouts.clone()), (SpendPath::ScriptPath, absent(&simulation)));
    let session = simulation.service().session().unwrap();
    assert!(!session.events().iter().any(|event| matches!(event, SessionEvent::SessionOpened { .. })));
    assert!(simulation.participants().iter().all(|node| node.opened_nonces().is_empty()), "no nonce was opened");

    for (then, cohorts) in [(Answer::Fail, 1), (Answer::Reform, 2)] {
        let mut simulation = with_absent(&[2], then);
        simulation.run();
        simulation.assert_invariants();
        let Phase::Failed { reason, .. } = simulation.service().cohorts()[0].machine().phase() else {
            panic!("{:?}", simulation.report())
        };
        assert_eq!(*reason, CohortFailure::MembersAbsent { holdouts: absent(&simulation) });
        assert_eq!(simulation.service().cohorts().len(), cohorts);
        let signed = simulation.report().signed;
        assert_eq!(signed.map(|signed| signed.signers.len()), (then == Answer::Reform).then_some(3));
    }
}

#[test]
fn presence_is_requested_and_confirmed_again_after_a_restart() {
    let mut simulation = with_absent(&[0], Answer::Fail);
    run_to(&mut simulation, CHECKING);
    simulation.advance(TIMEOUT / 2);
    let absent = simulation.did(0);
    simulation.tamper(&absent, |message| vec![message.to_json()]);
    simulation.restart_service();
    simulation.restart_participant(0);
    simulation.run();
    simulation.assert_invariants();
    assert_eq!(simulation.report().signed.unwrap().path, SpendPath::KeyPath);
}

#[test]
fn unexpected_presence_messages_change_nothing() {
    let mut simulation = with_absent(&[2], Answer::FallBack);
    run_to(&mut simulation, "validating");
    let presence = Presence { cohort_id: bodies::cohort_id(&simulation) };
    let early = Message::new(simulation.did(2), None, presence.clone());
    let before = simulation.service().machine().clone();
    simulation.deliver_to_service(&early).unwrap();
    assert_eq!(*simulation.service().machine(), before);

    run_to(&mut simulation, CHECKING);
    simulation.advance(TIMEOUT / 2);
    let outsider = outsider(9);
    let unexpected = Message::new(outsider.did().clone(), None, presence.clone());
    let result = simulation.deliver_to_service(&unexpected);
    assert_named("an outsider's presence confirmation", result, outsider.did(), RejectCode::NotAMember);

    // A member answers only its own service, and only once.
    let request = PresenceRequest { cohort_id: bodies::cohort_id(&simulation) };
    let forged = Message::new(outsider.did().clone(), Some(simulation.did(1)), request.clone());
    let result = simulation.deliver(outsider.did(), &simulation.did(1), &forged.to_json());
    assert_named("an outsider's presence request", result, outsider.did(), RejectCode::WrongSender);
    let service = simulation.service().identity().did().clone();
    let events = simulation.participants()[1].events().len();
    let again = Message::new(service.clone(), Some(simulation.did(1)), request);
    for _ in 0..3 {
        simulation.deliver(&service, &simulation.did(1), &again.to_json()).unwrap();
    }
    assert_eq!(simulation.participants()[1].events().len(), events, "the journal does not grow by it");
    simulation.run();
    simulation.assert_invariants();
}
