//! Everybody who still waits is told how the cohort ended, and waits no longer.

use std::sync::Arc;

use crate::sim_support::{
    PHASES, TIMEOUT, assert_named, bodies, config_of, honest, run_to, setup, stranger, through_every_phase,
};
use bitcoin::{Amount, Transaction, Witness};
use btcr2_aggregation_protocol::{
    cohort::{
        event::{ParticipantEvent, SessionEnd},
        participant::{ParticipantCohort, ParticipantInput, phase::Phase},
        service::ServiceInput,
    },
    error::{RejectCode, Slot},
    machine::Machine,
    message::{Body, Message, control::CohortEnded},
    sim::{Role, Simulation},
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

fn ended(simulation: &Simulation, code: &str, reason: String) -> CohortEnded {
    CohortEnded {
        cohort_id: bodies::cohort_id(simulation),
        code: code.to_owned(),
        reason,
        at_fault: false,
        next_cohort_id: None,
        signed: None,
        opt_in: None,
    }
}

/// The service says it to member 0.
fn tell(simulation: &mut Simulation, body: CohortEnded) {
    let service = simulation.service().identity().did().clone();
    let message = Message::new(service.clone(), Some(simulation.did(0)), body);
    simulation.deliver(&service, &simulation.did(0), &message.to_json()).unwrap();
}

fn end_of(simulation: &Simulation, member: usize) -> (SessionEnd, bool) {
    let machine = simulation.participants()[member].machine().unwrap();
    match machine.phase() {
        Phase::Ended { reason, .. } => (reason.clone(), machine.record().is_some()),
        phase => panic!("{phase:?}"),
    }
}

fn has_signed(simulation: &Simulation, member: usize) -> bool {
    simulation.participants()[member].events().iter().any(|event| {
        let partial = matches!(event, ParticipantEvent::PartialSignatureSent { .. });
        partial || matches!(event, ParticipantEvent::FallbackSignatureSent { .. })
    })
}

#[test]
fn a_cancelled_cohort_lets_its_members_go_at_once_in_every_phase() {
    for phase in PHASES {
        let (mut simulation, mut settled) = (through_every_phase(), 15);
        if phase == "enrolling" {
            // One that does not end as soon as everybody is in.
            let mut open = setup(honest(4));
            open.finalize_at = None;
            (simulation, settled) = (Simulation::new(4, open), 25);
        }
        run_to(&mut simulation, phase);
        simulation.advance(std::time::Duration::from_millis(settled));
        let cancelled_at = simulation.now();
        simulation.service_input(ServiceInput::Cancel("maintenance".to_owned()));
        simulation.run();
        simulation.assert_invariants();
        assert!(simulation.now().since(cancelled_at) < TIMEOUT / 100, "{phase}");
        for member in 0..4 {
            let expected = SessionEnd::EndedByService {
                code: "CANCELLED".to_owned(),
                reason: "cancelled: maintenance".to_owned(),
                at_fault: false,
                next: None,
            };
            let (end, has_record) = end_of(&simulation, member);
            assert_eq!(end, expected, "{phase}");
            assert_eq!(has_record, has_signed(&simulation, member), "{phase}: what is signed may yet be announced");
        }
    }
}

#[test]
fn who_signed_is_done_when_the_cohort_is_and_who_did_not_keeps_the_record_as_well() {
    let mut roles = honest(4);
    // Member 3 approves of the data and takes no part in signing it.
    roles[3] = Role::default().silent_from(Slot::Nonce);
    let mut simulation = Simulation::new(1, setup(roles));
    let absent = simulation.did(3);
    let service = simulation.service().identity().did().clone();
    simulation.tamper(&service, move |message| {
        let signing = message.body.short_type().starts_with("sign/");
        if signing && message.to.as_ref() == Some(&absent) { Vec::new() } else { vec![message.to_json()] }
    });
    simulation.run();
    simulation.assert_invariants();
    let txid = simulation.report().signed.unwrap().transaction.compute_txid();
    // The update of the fourth is announced as well, and it needs the proof.
    for member in 0..4 {
        assert_eq!(end_of(&simulation, member), (SessionEnd::Completed { txid }, true), "{member}");
    }
}

/// A round after whose signing the service says what `change` makes of its words about the end; to member 0 alone.
fn told(change: fn(&mut CohortEnded)) -> Simulation {
    let mut simulation = Simulation::new(1, setup(honest(3)));
    let (service, member) = (simulation.service().identity().did().clone(), simulation.did(0));
    simulation.tamper(&service, move |message| match &*message.body {
        Body::CohortEnded(ended) if message.to.as_ref() == Some(&member) => {
            let mut ended = ended.clone();
            change(&mut ended);
            vec![Message::new(message.from.clone(), message.to.clone(), ended).to_json()]
        }
        _ => vec![message.to_json()],
    });
    simulation.run();
    simulation
}

#[test]
fn who_is_not_shown_the_signed_transaction_does_not_know_that_there_is_one() {
    let simulation = told(|ended| ended.signed = None);
    let (end, has_record) = end_of(&simulation, 0);
    // The service's word, and no more.
    assert!(matches!(end, SessionEnd::EndedByService { .. }) && end.says_completed() && has_record, "{end:?}");
    assert!(end_of(&simulation, 1).0.says_completed());
}

fn change(ended: &mut CohortEnded, change: fn(&mut Transaction)) {
    // Only the end of a cohort that failed has none.
    change(Arc::make_mut(&mut ended.signed.as_mut().unwrap().tx));
}

#[test]
fn another_transaction_or_one_that_is_not_signed_is_refused() {
    let lies: [fn(&mut CohortEnded); 3] = [
        |ended| change(ended, |transaction| transaction.input[0].witness.clear()),
        |ended| change(ended, |transaction| transaction.output[0].value -= Amount::ONE_SAT),
        // Of the right size, and no signature.
        |ended| change(ended, |transaction| transaction.input[0].witness = Witness::from_slice(&[[7; 64]])),
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        let simulation = told(lie);
        let (end, has_record) = end_of(&simulation, 0);
        assert_eq!(
            (end, has_record),
            (SessionEnd::Signed, true),
            "{number}: it waits for its time, and knows no more"
        );
        assert!(end_of(&simulation, 1).0.says_completed(), "{number}");
    }
}

#[test]
fn a_service_that_dies_before_it_has_told_everybody_tells_them_when_it_is_back() {
    let mut simulation = Simulation::new(1, setup(honest(3)));
    let service = simulation.service().identity().did().clone();
    simulation.tamper(
        &service,
        |message| {
            if message.body.is_control() { Vec::new() } else { vec![message.to_json()] }
        },
    );
    assert!(simulation.run_until(|simulation| simulation.report().signed.is_some()));
    simulation.advance(TIMEOUT / 2);
    simulation.tamper(&service, |message| vec![message.to_json()]);
    simulation.restart_service();
    simulation.advance(TIMEOUT / 100);
    assert!(simulation.has_ended(), "{:?}", simulation.report().ends);
    simulation.assert_invariants();
}

#[test]
fn only_the_service_ends_a_cohort() {
    for phase in PHASES {
        let mut simulation = through_every_phase();
        run_to(&mut simulation, phase);
        simulation.advance(std::time::Duration::from_millis(15));
        let body = ended(&simulation, CohortEnded::UNKNOWN, "go home".to_owned());
        let strange = stranger(9).did().clone();
        for villain in [strange, simulation.did(1)] {
            let forged = Message::new(villain.clone(), Some(simulation.did(0)), body.clone());
            let result = simulation.deliver(&villain, &simulation.did(0), &forged.to_json());
            assert_named(phase, result, &villain, RejectCode::WrongSender);
        }
        let service = simulation.service().identity().did().clone();
        let to_service = Message::new(simulation.did(1), Some(service), body);
        let result = simulation.deliver_to_service(&to_service);
        assert!(result.is_err(), "{phase}: a member cannot end the cohort");
    }
}

#[test]
fn of_a_hostile_services_words_only_so_many_are_kept() {
    for phase in PHASES {
        let mut simulation = through_every_phase();
        run_to(&mut simulation, phase);
        simulation.advance(std::time::Duration::from_millis(15));
        let endless = "\u{1F4A5}".repeat(50_000);
        let body = ended(&simulation, &endless, endless.clone());
        tell(&mut simulation, body.clone());
        let (end, _) = end_of(&simulation, 0);
        let SessionEnd::EndedByService { code, reason, .. } = end else { panic!("{phase}: {end:?}") };
        assert!(code.len() + reason.len() <= 4_000, "{phase}");
        let events = simulation.participants()[0].events().len();
        tell(&mut simulation, body);
        assert_eq!(simulation.participants()[0].events().len(), events, "{phase}: an end is an end");
        simulation.assert_invariants();
    }
}

#[test]
fn what_was_not_joined_ends_as_that_whatever_its_service_says_and_however_long_it_takes() {
    let mut simulation = Simulation::new(1, setup(honest(2)));
    run_to(&mut simulation, "collecting updates");
    let events = simulation.participants()[0].events().to_vec();
    let seat = simulation.participants()[0].machine().unwrap().clone();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut invited = ParticipantCohort::new(Arc::new(config_of(&simulation)), Arc::clone(seat.advert()));
    invited.apply(&events[0]);
    assert!(matches!(invited.phase(), Phase::Invited { .. }), "{:?}", invited.phase());
    let service = simulation.service().identity().did().clone();
    let said = Message::new(service, Some(simulation.did(0)), ended(&simulation, "CANCELLED", "go".to_owned()));
    let late = invited.deadline().unwrap();
    for (now, input) in [(simulation.now(), ParticipantInput::Message(said)), (late, ParticipantInput::Tick)] {
        let facts = invited.decide(now, &input, &mut rng).unwrap();
        let expected = ParticipantEvent::SessionEnded { at: now, reason: SessionEnd::NotJoined };
        assert_eq!(facts, [expected], "{input:?}");
    }
}
