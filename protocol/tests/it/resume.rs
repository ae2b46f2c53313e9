//! A process that dies over any one decision comes back from its journal, does what it owes, and the round completes.
//!
//! Every decision of the service and of a member is tried, with its facts journaled and not, for both beacons, both paths
//! and a cohort that is formed again. The simulation's invariants hold after each: replay equality, one path, no nonce and
//! no partial signature sent again.

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

/// What happens when nobody dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Story {
    KeyPath,
    Fallback,
    FormedAgain,
}

impl Story {
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

/// How often the run dies before it has fewer decisions than that: 0 or 1.
fn completes_after(crash: PlannedCrash, story: Story, beacon: &BeaconType) -> bool {
    let case = format!("{story:?}, {beacon}, {crash:?}");
    let mut setup = story.setup(beacon.clone());
    setup.crashes.planned.push(crash);
    let mut simulation = Simulation::new(5, setup);
    simulation.run();
    simulation.assert_invariants();
    assert_consensus(&simulation);
    let report = simulation.report();
    let signed = report.signed.unwrap_or_else(|| panic!("{case}: {} {:?}", report.phase, report.failure));
    assert!(simulation.has_ended(), "{case}: {:?}", report.ends);
    // A service that dies costs nobody a nonce.
    if story != Story::Fallback && crash.participant.is_none() {
        assert_eq!(signed.path, SpendPath::KeyPath, "{case}");
    }
    let cohorts = if story == Story::FormedAgain { 2 } else { 1 };
    assert_eq!(simulation.service().cohorts().len(), cohorts, "{case}");
    let silent = if story == Story::Fallback { 2 } else { MEMBERS };
    for (node, end) in simulation.participants().iter().zip(&report.ends).take(silent) {
        assert!(node.machine().unwrap().record().is_some(), "{case}: no record");
        assert!(!matches!(end, Some(SessionEnd::TimedOut { .. })), "{case}: {end:?}");
    }
    report.mishaps.service_crashes + report.mishaps.participant_crashes > 0
}

fn dies_over_every_decision(participant: Option<usize>) -> u32 {
    let mut tried = 0;
    for beacon in [BeaconType::cas(), BeaconType::smt()] {
        for story in [Story::KeyPath, Story::Fallback, Story::FormedAgain] {
            for journaled in [true, false] {
                let mut decision = 0;
                while completes_after(PlannedCrash { participant, decision, journaled }, story, &beacon) {
                    decision += 1;
                }
                assert!(decision > 8, "{story:?}: only {decision} decisions");
                tried += decision;
            }
        }
    }
    tried
}

#[test]
fn a_service_that_dies_over_any_decision_completes_the_round() {
    println!("the service died at {} points", dies_over_every_decision(None));
}

#[test]
fn a_member_that_dies_over_any_decision_completes_the_round() {
    println!("a member died at {} points", dies_over_every_decision(Some(0)));
}

/// Whatever a journal ends with, and whether its host says that the nonce is lost or not.
#[test]
fn no_nonce_and_no_partial_signature_is_sent_again_from_any_journal() {
    for story in [Story::KeyPath, Story::Fallback] {
        let mut simulation = Simulation::new(5, story.setup(BeaconType::cas()));
        simulation.run();
        let seat = &simulation.participants()[0].seats()[0];
        let blank = ParticipantCohort::new(Arc::new(config_of(&simulation)), Arc::clone(seat.machine().advert()));
        let mut owing = 0;
        for kept in 0..=seat.events().len() {
            let owed = replay(blank.clone(), &seat.events()[..kept]).resume();
            owing += usize::from(!owed.is_empty());
            let unasked = owed.iter().find(|effect| match effect {
                ParticipantEffect::Send { body, .. } => {
                    matches!(**body, Body::NonceContribution(_) | Body::SignatureAuthorization(_))
                }
                _ => false,
            });
            assert_eq!(unasked, None, "{story:?}, the first {kept} facts");
        }
        assert!(owing > 5, "{story:?}: a member owes something in most of its phases");
    }
}

/// A cohort in which member 0 has sent its nonce, and the message it did so with.
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

/// It never signed the key path of the spent session, and served the fallback instead.
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
    assert!(served, "{case}: the fallback is served");
    assert!(report.faults.is_empty(), "{case}: {:?}", report.faults);
}

#[test]
fn a_backup_does_not_revive_a_session_that_the_wire_knows_to_be_spent() {
    let (simulation, _) = with_a_nonce_out();
    let approved = position(&simulation, |event| matches!(event, ParticipantEvent::ValidationSent { .. })) + 1;
    let sent = position(&simulation, |event| matches!(event, ParticipantEvent::NonceSent { .. }));
    // From the approved data on to the nonce, that one not included.
    for kept in approved..=sent {
        let (mut simulation, nonce) = with_a_nonce_out();
        simulation.restore_participant(0, kept, vec![nonce]);
        assert_spent_session_stays_spent(simulation, &format!("restored to {kept} of {sent}"));
    }
}

#[test]
fn an_aggregate_of_nonces_that_we_do_not_remember_sending_spends_the_session() {
    let (simulation, _) = with_a_nonce_out();
    let approved = position(&simulation, |event| matches!(event, ParticipantEvent::ValidationSent { .. })) + 1;
    let (mut simulation, _) = with_a_nonce_out();
    simulation.restore_participant(0, approved, Vec::new());
    assert_spent_session_stays_spent(simulation, "restored to the approved data");

    // While the host still thinks about it, and while the nonce is being made.
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
fn a_session_whose_service_was_down_for_longer_than_the_guard_behind_it_still_completes() {
    let mut roles = honest(4);
    roles[3] = Role::default().silent_from(Slot::Nonce);
    let mut setup = setup(roles);
    // Four times this, all in all; members are more patient.
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
    assert_eq!(signed.path, SpendPath::ScriptPath, "the nonces' time was over, the fallback's was not");
}

#[test]
fn a_cohort_that_runs_is_not_begun_again_by_a_fact_that_says_so() {
    let mut simulation = Simulation::new(5, setup(honest(2)));
    run_to(&mut simulation, "validating");
    let machine = simulation.service().machine();
    let first = simulation.service().events()[0].clone();
    assert_eq!(replay(machine.clone(), [&first]), *machine);
}
