//! A process that crashes at any one decision restarts from its journal, performs the open effects, and the round
//! completes.
//!
//! Every decision of the service and of a member is tested, with its events journaled and not journaled, for both
//! beacon types, both paths and a reformed cohort. The simulation's invariants hold after each: replay equality, one
//! path, no nonce and no partial signature sent twice.

use std::sync::Arc;

use crate::sim_support::{TIMEOUT, assert_consensus, config_of, honest, run_to, setup};
use btcr2_aggregation_protocol::{
    beacon::BeaconType,
    cohort::{
        event::{ParticipantEvent, SessionEnd, SpendPath},
        participant::{
            ParticipantCohort, ParticipantEffect, ParticipantInput,
            phase::{Phase, Stage},
        },
        service::rules::PhaseRules,
    },
    error::Slot,
    machine::{Machine, replay},
    message::{
        Body, Message,
        sign::{AggregatedNonce, NonceContribution},
    },
    sim::{PlannedCrash, Role, Setup, Simulation},
};

const MEMBERS: usize = 3;

/// The course of a run without crashes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scenario {
    KeyPath,
    Fallback,
    FormedAgain,
}

impl Scenario {
    fn setup(self, beacon: BeaconType) -> Setup {
        let mut roles = honest(MEMBERS);
        match self {
            Self::KeyPath => {}
            Self::Fallback => roles[2] = Role::default().silent_from(Slot::PartialSignature),
            Self::FormedAgain => roles.push(Role::default().silent_from(Slot::Update)),
        }
        let mut setup = setup(roles).with_beacon(beacon);
        setup.rules = PhaseRules::default().reforming();
        setup.rules.presence_check = true;
        setup.defer_transaction = 1;
        setup
    }
}

/// Completes the round despite `crash`. Returns whether the crash happened: `false` when the run has fewer decisions.
fn completes_after(crash: PlannedCrash, scenario: Scenario, beacon: &BeaconType) -> bool {
    let case = format!("{scenario:?}, {beacon}, {crash:?}");
    let mut setup = scenario.setup(beacon.clone());
    setup.crashes.planned.push(crash);
    let mut simulation = Simulation::new(5, setup);
    simulation.run();
    simulation.assert_invariants();
    assert_consensus(&simulation);
    let report = simulation.report();
    let signed = report.signed.unwrap_or_else(|| panic!("{case}: {} {:?}", report.phase, report.failure));
    assert!(simulation.has_ended(), "{case}: {:?}", report.ends);
    // A crash of the service loses no nonce.
    if scenario != Scenario::Fallback && crash.participant.is_none() {
        assert_eq!(signed.path, SpendPath::KeyPath, "{case}");
    }
    let cohorts = if scenario == Scenario::FormedAgain { 2 } else { 1 };
    assert_eq!(simulation.service().cohorts().len(), cohorts, "{case}");
    let silent = if scenario == Scenario::Fallback { 2 } else { MEMBERS };
    for (node, end) in simulation.participants().iter().zip(&report.ends).take(silent) {
        assert!(node.machine().unwrap().record().is_some(), "{case}: no record");
        assert!(!matches!(end, Some(SessionEnd::TimedOut { .. })), "{case}: {end:?}");
    }
    report.mishaps.service_crashes + report.mishaps.participant_crashes > 0
}

fn crash_at_every_decision(participant: Option<usize>) -> u32 {
    let mut tried = 0;
    for beacon in [BeaconType::cas(), BeaconType::smt()] {
        for scenario in [Scenario::KeyPath, Scenario::Fallback, Scenario::FormedAgain] {
            for journaled in [true, false] {
                let mut decision = 0;
                while completes_after(PlannedCrash { participant, decision, journaled }, scenario, &beacon) {
                    decision += 1;
                }
                assert!(decision > 8, "{scenario:?}: only {decision} decisions");
                tried += decision;
            }
        }
    }
    tried
}

#[test]
fn a_service_that_crashes_at_any_decision_completes() {
    println!("the service crashed at {} points", crash_at_every_decision(None));
}

#[test]
fn a_member_that_crashes_at_any_decision_completes() {
    println!("a member crashed at {} points", crash_at_every_decision(Some(0)));
}

/// With every prefix of a journal, and whether or not the host reports that the nonce is lost.
#[test]
fn no_journal_resends_a_nonce_or_partial_signature() {
    for scenario in [Scenario::KeyPath, Scenario::Fallback] {
        let mut simulation = Simulation::new(5, scenario.setup(BeaconType::cas()));
        simulation.run();
        let seat = &simulation.participants()[0].seats()[0];
        let blank = ParticipantCohort::new(Arc::new(config_of(&simulation)), Arc::clone(seat.machine().advert()));
        let mut with_open_effects = 0;
        for kept in 0..=seat.events().len() {
            let open = replay(blank.clone(), &seat.events()[..kept]).resume();
            with_open_effects += usize::from(!open.is_empty());
            let resent = open.iter().find(|effect| match effect {
                ParticipantEffect::Send { body, .. } => {
                    matches!(**body, Body::NonceContribution(_) | Body::SignatureAuthorization(_))
                }
                _ => false,
            });
            assert_eq!(resent, None, "{scenario:?}, the first {kept} events");
        }
        assert!(with_open_effects > 5, "{scenario:?}: a member has open effects in most of its phases");
    }
}

/// A cohort in which member 0 has sent its nonce, and the message with that nonce.
fn with_a_nonce_out() -> (Simulation, Message) {
    let mut simulation = Simulation::new(7, setup(honest(4)));
    run_to(&mut simulation, "nonces");
    let out = |simulation: &Simulation| {
        simulation.participants()[0].events().iter().find_map(|event| match event {
            ParticipantEvent::NonceSent { nonce, .. } => Some(*nonce),
            _ => None,
        })
    };
    assert!(simulation.run_until(|simulation| out(simulation).is_some()));
    let body = NonceContribution {
        cohort_id: crate::sim_support::bodies::cohort_id(&simulation),
        session_id: crate::sim_support::bodies::session_id(&simulation),
        nonce_contribution: out(&simulation).unwrap(),
    };
    let service = simulation.service().identity().did().clone();
    let message = Message::new(simulation.did(0), Some(service), body);
    (simulation, message)
}

fn position(simulation: &Simulation, is: impl Fn(&ParticipantEvent) -> bool) -> usize {
    simulation.participants()[0].events().iter().position(is).unwrap()
}

/// Asserts that the member never signs the key path of the spent session, and signs the fallback instead.
fn assert_spent_session_stays_spent(mut simulation: Simulation, case: &str) {
    simulation.run();
    simulation.assert_invariants();
    let report = simulation.report();
    let signed = report.signed.unwrap_or_else(|| panic!("{case}: {:?}", report.failure));
    assert_eq!(signed.path, SpendPath::ScriptPath, "{case}");
    let node = &simulation.participants()[0];
    let signed_key_path =
        node.events().iter().any(|event| matches!(event, ParticipantEvent::PartialSignatureSent { .. }));
    assert!(!signed_key_path, "{case}");
    assert_eq!(node.opened_nonces().len(), 1, "{case}: the session is spent, so no other nonce is opened");
    let served = node.events().iter().any(|event| matches!(event, ParticipantEvent::FallbackSignatureSent { .. }));
    assert!(served, "{case}: the fallback is signed");
    assert!(report.faults.is_empty(), "{case}: {:?}", report.faults);
}

#[test]
fn a_backup_does_not_reopen_a_spent_session() {
    let (simulation, _) = with_a_nonce_out();
    let approved = position(&simulation, |event| matches!(event, ParticipantEvent::ValidationSent { .. })) + 1;
    let sent = position(&simulation, |event| matches!(event, ParticipantEvent::NonceSent { .. }));
    // From the approved data up to the nonce, exclusive.
    for kept in approved..=sent {
        let (mut simulation, nonce) = with_a_nonce_out();
        simulation.restore_participant(0, kept, vec![nonce]);
        assert_spent_session_stays_spent(simulation, &format!("restored to {kept} of {sent}"));
    }
}

#[test]
fn an_aggregate_of_unknown_own_nonces_spends_the_session() {
    let (simulation, _) = with_a_nonce_out();
    let approved = position(&simulation, |event| matches!(event, ParticipantEvent::ValidationSent { .. })) + 1;
    let (mut simulation, _) = with_a_nonce_out();
    simulation.restore_participant(0, approved, Vec::new());
    assert_spent_session_stays_spent(simulation, "restored to the approved data");

    // While the host is still deciding, and while the nonce is being made.
    let (mut simulation, nonce) = with_a_nonce_out();
    let events = simulation.participants()[0].events().to_vec();
    let seat = &simulation.participants()[0].seats()[0];
    let blank = ParticipantCohort::new(Arc::new(config_of(&simulation)), Arc::clone(seat.machine().advert()));
    let Body::NonceContribution(body) = (*nonce.body).clone() else { panic!() };
    let aggregated = AggregatedNonce {
        cohort_id: body.cohort_id,
        session_id: body.session_id.clone(),
        aggregated_nonce: body.nonce_contribution,
    };
    let from_service =
        Message::new(simulation.service().identity().did().clone(), Some(simulation.did(0)), aggregated);
    let requested = position(&simulation, |event| matches!(event, ParticipantEvent::SigningRequested { .. })) + 1;
    let sent = position(&simulation, |event| matches!(event, ParticipantEvent::NonceSent { .. }));
    let now = simulation.now();
    for kept in requested..=sent {
        for input in [ParticipantInput::Message(from_service.clone()), ParticipantInput::Seen(nonce.clone())] {
            let mut machine = replay(blank.clone(), &events[..kept]);
            let mut feed = |input: &ParticipantInput| {
                let events = machine.decide(now, input, simulation.rng()).unwrap();
                events.iter().for_each(|event| machine.apply(event));
            };
            feed(&input);
            feed(&ParticipantInput::SigningDecided(true));
            feed(&ParticipantInput::NonceOpened(body.nonce_contribution));
            let Phase::Signing { stage, .. } = machine.phase() else { panic!("{machine:?}") };
            assert_eq!(*stage, Stage::NonceLost, "{kept}: {input:?}");
            assert_eq!(machine.resume(), [], "{kept}: nothing is opened after another restart");
        }
    }
}

#[test]
fn a_session_completes_after_downtime_beyond_its_guard() {
    let mut roles = honest(4);
    roles[3] = Role::default().silent_from(Slot::Nonce);
    let mut setup = setup(roles);
    // The session takes four of these timeouts in total; members wait longer.
    setup.timing.signing_timeout = TIMEOUT / 4;
    let mut simulation = Simulation::new(3, setup);
    run_to(&mut simulation, "nonces");
    simulation.advance(TIMEOUT / 100);
    simulation.skip(TIMEOUT * 2);
    simulation.restart_service();
    simulation.run();
    simulation.assert_invariants();
    let report = simulation.report();
    let signed = report.signed.unwrap_or_else(|| panic!("{:?}", report.failure));
    assert_eq!(
        signed.path,
        SpendPath::ScriptPath,
        "the deadline of the nonces had passed, that of the fallback had not"
    );
}

#[test]
fn an_advertised_event_does_not_restart_a_running_cohort() {
    let mut simulation = Simulation::new(5, setup(honest(2)));
    run_to(&mut simulation, "validating");
    let machine = simulation.service().machine();
    let first = simulation.service().events()[0].clone();
    assert_eq!(replay(machine.clone(), [&first]), *machine);
}
