//! A service that was down when a phase ended records no fault of a member for it.

use std::time::Duration;

use crate::sim_support::{TIMEOUT, honest, run_to, setup};
use btcr2_aggregation_protocol::{
    cohort::{
        event::ServiceEvent,
        service::{ServiceInput, rules::PhaseRules},
    },
    machine::{Machine, step},
    signing::session::{SessionEvent, SessionInput},
    sim::Simulation,
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

const MINUTE: Duration = Duration::from_secs(60);

fn in_phase(phase: &str, rules: PhaseRules) -> Simulation {
    let mut setup = setup(honest(3));
    setup.rules = rules;
    let mut simulation = Simulation::new(3, setup);
    run_to(&mut simulation, phase);
    simulation
}

#[test]
fn a_phase_that_lapsed_during_downtime_gets_a_grace_period() {
    let mut rules = PhaseRules::default().reforming();
    rules.presence_check = true;
    for phase in ["collecting updates", "validating", "checking presence"] {
        let simulation = in_phase(phase, rules.clone());
        let mut machine = simulation.service().machine().clone();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let lapsed = machine.deadline().unwrap();
        let early = machine.decide(lapsed - Duration::from_secs(1), &ServiceInput::Resumed, &mut rng).unwrap();
        assert_eq!(early, [], "{phase}: the phase continues unchanged");

        let back = lapsed + TIMEOUT;
        let given = step(&mut machine, back, &ServiceInput::Resumed, &mut rng).unwrap().events;
        assert!(
            matches!(given[..], [ServiceEvent::GraceGiven { until, .. }] if until == back + MINUTE),
            "{given:?}"
        );
        assert_eq!(machine.deadline(), Some(back + MINUTE), "{phase}");
        assert_eq!(machine.decide(back, &ServiceInput::Tick, &mut rng).unwrap(), [], "{phase}");
        let failed = machine.decide(back + MINUTE, &ServiceInput::Tick, &mut rng).unwrap();
        assert!(!failed.is_empty(), "{phase}: it ends after the grace period");
    }
}

#[test]
fn the_grace_period_is_not_an_extension_and_is_bounded() {
    let mut setup = setup(honest(2));
    setup.timing.phase_timeout = Duration::from_secs(5);
    let mut simulation = Simulation::new(3, setup);
    run_to(&mut simulation, "collecting updates");
    let mut machine = simulation.service().machine().clone();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let back = machine.deadline().unwrap() + TIMEOUT;
    let given = step(&mut machine, back, &ServiceInput::Resumed, &mut rng).unwrap().events;
    let until = back + Duration::from_secs(5);
    assert!(matches!(given[..], [ServiceEvent::GraceGiven { until: given, .. }] if given == until), "{given:?}");
    let over = machine.decide(until, &ServiceInput::Tick, &mut rng).unwrap();
    assert!(matches!(over[..], [ServiceEvent::CohortFailed { .. }]), "{over:?}");
}

#[test]
fn phases_that_wait_for_no_member_get_no_grace_period() {
    for phase in ["enrolling", "awaiting the transaction"] {
        let mut setup = setup(honest(2));
        setup.finalize_at = (phase != "enrolling").then_some(2);
        setup.conditions.min_participants = if phase == "enrolling" { 3 } else { 1 };
        setup.defer_transaction = 1;
        let mut simulation = Simulation::new(3, setup);
        run_to(&mut simulation, phase);
        let machine = simulation.service().machine();
        let back = machine.deadline().unwrap() + TIMEOUT * 9;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        assert_eq!(machine.decide(back, &ServiceInput::Resumed, &mut rng).unwrap(), [], "{phase}");
        let over = machine.decide(back, &ServiceInput::Tick, &mut rng).unwrap();
        assert!(matches!(over[..], [ServiceEvent::CohortFailed { .. }]), "{phase}: {over:?}");
    }
}

#[test]
fn a_lapsed_signing_phase_does_not_fall_back_at_once() {
    for phase in ["nonces", "partials"] {
        let mut simulation = Simulation::new(3, setup(honest(3)));
        run_to(&mut simulation, phase);
        // The service is down and does not receive the members' answers.
        for member in 0..3 {
            let did = simulation.did(member);
            simulation.tamper(&did, |_| Vec::new());
        }
        simulation.advance(Duration::from_millis(100));
        let mut session = simulation.service().session().unwrap().machine().clone();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let back = session.deadline().unwrap() + Duration::from_secs(1);
        let given = step(&mut session, back, &SessionInput::Resumed, &mut rng).unwrap().events;
        assert!(
            matches!(given[..], [SessionEvent::GraceGiven { until, .. }] if until == back + MINUTE),
            "{given:?}"
        );
        assert_eq!(session.decide(back, &SessionInput::Tick, &mut rng).unwrap(), [], "{phase}: no fallback yet");
        assert_eq!(session.holdouts().len(), 3);
    }
}
