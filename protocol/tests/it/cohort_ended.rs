//! Every member that still waits is notified of the end of the cohort, and its session ends.

use std::sync::Arc;

use crate::sim_support::{
    PHASES, TIMEOUT, assert_named, bodies, config_of, honest, outsider, run_to, setup, through_every_phase,
};
use bitcoin::{Amount, Transaction, Witness};
use btcr2_aggregation_protocol::{
    cohort::{
        event::{ParticipantEvent, SessionEnd},
        participant::{ParticipantCohort, ParticipantInput, phase::Phase},
        service::ServiceInput,
    },
    error::{RejectCode, Slot},
    hash::MessageDigest,
    machine::Machine,
    message::{Body, Bytes, Message, control::CohortEnded, keygen::CohortOptIn},
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

/// Delivers `body` to member 0, as the service.
fn report_end(simulation: &mut Simulation, body: CohortEnded) {
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
fn cancelling_ends_every_session_at_once_in_every_phase() {
    for phase in PHASES {
        let (mut simulation, mut settled) = (through_every_phase(), 15);
        if phase == "enrolling" {
            // A cohort that does not form as soon as every participant has joined.
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
            assert_eq!(
                has_record,
                has_signed(&simulation, member),
                "{phase}: a signed transaction may still be announced"
            );
        }
    }
}

#[test]
fn members_that_did_not_sign_also_have_the_record() {
    let mut roles = honest(4);
    // Member 3 approves the data and does not take part in signing.
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
    // The update of the fourth member is announced as well, and the member needs the proof.
    for member in 0..4 {
        assert_eq!(end_of(&simulation, member), (SessionEnd::Completed { txid }, true), "{member}");
    }
}

/// A completed round whose end the service reports to member 0 as changed by `change`.
fn round_with_end(change: fn(&mut CohortEnded)) -> Simulation {
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
fn without_the_signed_transaction_the_end_is_only_reported() {
    let simulation = round_with_end(|ended| ended.signed = None);
    let (end, has_record) = end_of(&simulation, 0);
    // Only reported by the service.
    assert!(matches!(end, SessionEnd::EndedByService { .. }) && end.says_completed() && has_record, "{end:?}");
    assert!(end_of(&simulation, 1).0.says_completed());
}

fn change(ended: &mut CohortEnded, change: fn(&mut Transaction)) {
    // Only the end of a failed cohort has no transaction.
    change(Arc::make_mut(&mut ended.signed.as_mut().unwrap().tx));
}

#[test]
fn another_or_an_unsigned_transaction_is_refused() {
    let alterations: [fn(&mut CohortEnded); 3] = [
        |ended| change(ended, |transaction| transaction.input[0].witness.clear()),
        |ended| change(ended, |transaction| transaction.output[0].value -= Amount::ONE_SAT),
        // The right size, but not a signature.
        |ended| change(ended, |transaction| transaction.input[0].witness = Witness::from_slice(&[[7; 64]])),
    ];
    for (number, alter) in alterations.into_iter().enumerate() {
        let simulation = round_with_end(alter);
        let (end, has_record) = end_of(&simulation, 0);
        assert_eq!(
            (end, has_record),
            (SessionEnd::Signed, true),
            "{number}: it waits for its deadline, without the transaction"
        );
        assert!(end_of(&simulation, 1).0.says_completed(), "{number}");
    }
}

#[test]
fn after_a_crash_the_service_reports_the_end_to_every_member() {
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
fn only_the_service_can_end_a_cohort() {
    for phase in PHASES {
        let mut simulation = through_every_phase();
        run_to(&mut simulation, phase);
        simulation.advance(std::time::Duration::from_millis(15));
        let body = ended(&simulation, CohortEnded::UNKNOWN, "go home".to_owned());
        let outsider = outsider(9).did().clone();
        for adversary in [outsider, simulation.did(1)] {
            let forged = Message::new(adversary.clone(), Some(simulation.did(0)), body.clone());
            let result = simulation.deliver(&adversary, &simulation.did(0), &forged.to_json());
            assert_named(phase, result, &adversary, RejectCode::WrongSender);
        }
        let service = simulation.service().identity().did().clone();
        let to_service = Message::new(simulation.did(1), Some(service), body);
        let result = simulation.deliver_to_service(&to_service);
        assert!(result.is_err(), "{phase}: a member cannot end the cohort");
    }
}

#[test]
fn stored_texts_of_a_hostile_service_are_bounded() {
    for phase in PHASES {
        let mut simulation = through_every_phase();
        run_to(&mut simulation, phase);
        simulation.advance(std::time::Duration::from_millis(15));
        let endless = "\u{1F4A5}".repeat(50_000);
        let body = ended(&simulation, &endless, endless.clone());
        report_end(&mut simulation, body.clone());
        let (end, _) = end_of(&simulation, 0);
        let SessionEnd::EndedByService { code, reason, .. } = end else { panic!("{phase}: {end:?}") };
        assert!(code.len() + reason.len() <= 4_000, "{phase}");
        let events = simulation.participants()[0].events().len();
        report_end(&mut simulation, body);
        assert_eq!(
            simulation.participants()[0].events().len(),
            events,
            "{phase}: an ended session makes no more events"
        );
        simulation.assert_invariants();
    }
}

#[test]
fn a_cohort_that_was_not_joined_ends_as_not_joined() {
    let mut simulation = Simulation::new(1, setup(honest(2)));
    run_to(&mut simulation, "collecting updates");
    let events = simulation.participants()[0].events().to_vec();
    let seat = simulation.participants()[0].machine().unwrap().clone();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut invited = ParticipantCohort::new(Arc::new(config_of(&simulation)), Arc::clone(seat.advert()));
    invited.apply(&events[0]);
    assert!(matches!(invited.phase(), Phase::Invited { .. }), "{:?}", invited.phase());
    let service = simulation.service().identity().did().clone();
    let message = Message::new(service, Some(simulation.did(0)), ended(&simulation, "CANCELLED", "go".to_owned()));
    let late = invited.deadline().unwrap();
    for (now, input) in [(simulation.now(), ParticipantInput::Message(message)), (late, ParticipantInput::Tick)] {
        let events = invited.decide(now, &input, &mut rng).unwrap();
        let expected = ParticipantEvent::SessionEnded { at: now, reason: SessionEnd::NotJoined };
        assert_eq!(events, [expected], "{input:?}");
    }
}

#[test]
fn an_end_for_an_earlier_opt_in_is_about_another_attempt() {
    let mut simulation = through_every_phase();
    run_to(&mut simulation, "enrolling");
    simulation.advance(std::time::Duration::from_millis(15));
    let service = simulation.service().identity().did().clone();
    let (cohort_id, member) = (bodies::cohort_id(&simulation), simulation.participants()[0].identity());
    let key = Bytes(member.public_key().to_bytes());
    let opt_in =
        CohortOptIn { cohort_id, participant_pk: key, communication_pk: key, genesis_document: None, invite: None };
    let own = Message::new(member.did().clone(), Some(service), opt_in).digest();
    let refusal = |opt_in| CohortEnded {
        opt_in: Some(opt_in),
        ..ended(&simulation, CohortEnded::NOT_ADMITTED, "not admitted".to_owned())
    };
    let (earlier, this) = (refusal(MessageDigest::from_bytes([7; 32])), refusal(own));
    let is_over = |simulation: &Simulation| {
        matches!(simulation.participants()[0].machine().unwrap().phase(), Phase::Ended { .. })
    };
    report_end(&mut simulation, earlier);
    assert!(!is_over(&simulation));
    report_end(&mut simulation, this);
    assert!(is_over(&simulation));
}
