//! What a service does when a phase cannot be completed: it extends the phase as its rule states, and then applies
//! the answer.

use std::time::Duration;

use crate::sim_support::{TIMEOUT, honest, run_to, setup};
use btcr2_aggregation_protocol::{
    cohort::{
        event::{CohortFailure, ServiceEvent, SpendPath},
        service::rules::{Answer, PhaseRule, PhaseRules, TimedPhase},
    },
    error::Slot,
    output::ScriptTree,
    signing::session::SessionEvent,
    sim::{Role, Simulation},
    time::Timestamp,
};

const WAIT: Duration = Duration::from_secs(240);

/// A cohort that gets stuck in `phase`, which is waited for by `rule`.
pub fn stuck_in(phase: TimedPhase, rule: PhaseRule) -> Simulation {
    let mut roles = honest(4);
    let silent_from = |slot| Role::default().silent_from(slot);
    match phase {
        TimedPhase::Enrollment => drop(roles.drain(1..)),
        TimedPhase::Updates => roles[3] = silent_from(Slot::Update),
        TimedPhase::Validation => roles[3] = silent_from(Slot::Validation),
        TimedPhase::Nonces => roles[3] = Role::default().without(Slot::Nonce),
        TimedPhase::PartialSignatures => roles[3] = Role::default().without(Slot::PartialSignature),
        TimedPhase::Fallback => roles[2..].fill(silent_from(Slot::Nonce)),
        TimedPhase::Transaction | TimedPhase::Presence => {}
    }
    let mut setup = setup(roles);
    if phase == TimedPhase::Enrollment {
        setup.conditions.min_participants = 2;
        setup.finalize_at = None;
    }
    if phase == TimedPhase::Transaction {
        setup.defer_transaction = u32::MAX;
    }
    setup.rules.presence_check = phase == TimedPhase::Presence;
    setup.rules.set(phase, rule).unwrap();
    let mut simulation = Simulation::new(1, setup);
    if phase == TimedPhase::Presence {
        let absent = simulation.did(3);
        simulation.tamper(
            &absent,
            |message| {
                if message.body.is_control() { Vec::new() } else { vec![message.to_json()] }
            },
        );
    }
    simulation
}

/// The start of `phase`, the number of its extensions, and its end.
fn wait_for(simulation: &Simulation, waited_for: TimedPhase) -> (Timestamp, usize, Timestamp) {
    let (mut begun, mut extended, mut over) = (None, 0, None);
    let mut entered = |phase: Option<TimedPhase>, at: Timestamp| {
        if phase == Some(waited_for) {
            begun = Some(at);
        } else if begun.is_some() && over.is_none() {
            over = Some(at);
        }
    };
    let cohort = simulation.service().cohorts().first().unwrap();
    let mut count = |phase: TimedPhase| extended += usize::from(phase == waited_for);
    for event in cohort.sessions().iter().flat_map(|session| session.events()) {
        match event {
            SessionEvent::SessionOpened { at } => entered(Some(TimedPhase::Nonces), *at),
            SessionEvent::NoncesAggregated { at, .. } => entered(Some(TimedPhase::PartialSignatures), *at),
            SessionEvent::PathChosen { at, .. } => entered(Some(TimedPhase::Fallback), *at),
            SessionEvent::SessionFailed { at, .. } => entered(None, *at),
            SessionEvent::PhaseExtended { phase, .. } => count(*phase),
            _ => {}
        }
    }
    for event in cohort.events() {
        match event {
            ServiceEvent::CohortAdvertised { at, .. } => entered(Some(TimedPhase::Enrollment), *at),
            ServiceEvent::KeysAggregated { at, .. } => entered(Some(TimedPhase::Updates), *at),
            ServiceEvent::UpdatesAggregated { at, .. } => entered(Some(TimedPhase::Validation), *at),
            ServiceEvent::ValidationCompleted { at } => entered(Some(TimedPhase::Transaction), *at),
            ServiceEvent::PresenceRequested { at, .. } => entered(Some(TimedPhase::Presence), *at),
            ServiceEvent::SigningStarted { at, .. } => entered(Some(TimedPhase::Nonces), *at),
            ServiceEvent::CohortFailed { at, .. } => entered(None, *at),
            ServiceEvent::PhaseExtended { phase, .. } => count(*phase),
            _ => {}
        }
    }
    (begun.unwrap(), extended, over.unwrap())
}

#[test]
fn a_phase_is_extended_by_its_rule_and_then_answered() {
    for phase in TimedPhase::ALL {
        for extensions in [0, 1, 3] {
            let then = PhaseRules::default().rule(phase).then;
            let mut simulation = stuck_in(phase, PhaseRule { timeout: Some(WAIT), extensions, then });
            simulation.run();
            simulation.assert_invariants();
            assert!(simulation.has_ended(), "{phase}");
            let (begun, extended, over) = wait_for(&simulation, phase);
            assert_eq!(extended, extensions as usize, "{phase}");
            assert_eq!(over.since(begun), WAIT * (extensions + 1), "{phase}");
            let report = simulation.report();
            let missing: Vec<_> = match phase {
                TimedPhase::Fallback => vec![simulation.did(2), simulation.did(3)],
                _ => simulation.participants().get(3).iter().map(|node| node.identity().did().clone()).collect(),
            };
            let mut missing_in_order = missing.clone();
            missing_in_order.sort();
            match (phase, report.failure) {
                (TimedPhase::Enrollment, Some(CohortFailure::EnrollmentExpired { admitted: 1 }))
                | (TimedPhase::Transaction, Some(CohortFailure::Transaction { .. }))
                | (TimedPhase::Presence | TimedPhase::Nonces | TimedPhase::PartialSignatures, None) => {}
                (TimedPhase::Updates, Some(CohortFailure::UpdatesMissing { holdouts }))
                | (TimedPhase::Validation, Some(CohortFailure::ValidationMissing { holdouts }))
                | (TimedPhase::Fallback, Some(CohortFailure::Signing { holdouts, .. })) => {
                    assert_eq!(holdouts, missing_in_order, "{phase}");
                }
                (_, other) => panic!("{phase}: {other:?}"),
            }
        }
    }
}

#[test]
fn contributions_during_an_extension_complete_the_phase() {
    for (phase, kind) in [(TimedPhase::Updates, "update/"), (TimedPhase::Validation, "update/validation_ack")] {
        let mut setup = setup(honest(3));
        setup.rules.set(phase, PhaseRule { timeout: Some(WAIT), extensions: 1, then: Answer::Fail }).unwrap();
        let mut simulation = Simulation::new(1, setup);
        let slow = simulation.did(1);
        let held = std::rc::Rc::new(std::cell::RefCell::new(None));
        let (keep, mut done) = (std::rc::Rc::clone(&held), false);
        simulation.tamper(&slow, move |message| {
            if message.body.short_type().starts_with(kind) && !std::mem::replace(&mut done, true) {
                *keep.borrow_mut() = Some(message.clone());
                return Vec::new();
            }
            vec![message.to_json()]
        });
        assert!(simulation.run_until(|_| held.borrow().is_some()));
        simulation.advance(WAIT + WAIT / 2);
        let late = held.take().unwrap();
        simulation.restart_service();
        simulation.deliver_to_service(&late).unwrap();
        simulation.run();
        simulation.assert_invariants();
        assert!(simulation.report().signed.is_some(), "{phase}: {:?}", simulation.report().failure);
    }
}

#[test]
fn no_extension_exceeds_the_cohorts_ttl() {
    let mut setup = setup(vec![Role::default(), Role::default().silent_from(Slot::Update)]);
    setup.timing.cohort_ttl = TIMEOUT * 2;
    let rule = PhaseRule { timeout: None, extensions: 100, then: Answer::Fail };
    setup.rules.set(TimedPhase::Updates, rule).unwrap();
    let mut simulation = Simulation::new(1, setup);
    let begun = simulation.now();
    simulation.run();
    simulation.assert_invariants();
    let (_, _, over) = wait_for(&simulation, TimedPhase::Updates);
    assert_eq!(over, begun + TIMEOUT * 2);
}

#[test]
fn signing_phases_end_in_fallback_failure_or_reformation() {
    for phase in [TimedPhase::Nonces, TimedPhase::PartialSignatures] {
        for then in [Answer::FallBack, Answer::Fail, Answer::Reform] {
            let mut simulation = stuck_in(phase, PhaseRule { timeout: None, extensions: 0, then });
            simulation.run();
            simulation.assert_invariants();
            let report = simulation.report();
            let first = simulation.service().cohorts().first().unwrap();
            let failed = first.events().iter().find_map(|event| match event {
                ServiceEvent::CohortFailed { reason, .. } => Some(reason.clone()),
                _ => None,
            });
            match then {
                Answer::FallBack => assert_eq!(report.signed.unwrap().path, SpendPath::ScriptPath, "{phase}"),
                _ => {
                    let Some(CohortFailure::Signing { holdouts, culprits, .. }) = failed else {
                        panic!("{phase}: {failed:?}")
                    };
                    assert_eq!((holdouts, culprits), (vec![simulation.did(3)], vec![]), "{phase}");
                }
            }
            // The next cohort is complete without the member that withholds its nonce, and all its members sign.
            let expected = if then == Answer::Reform { 2 } else { 1 };
            assert_eq!(simulation.service().cohorts().len(), expected, "{phase}");
            if then == Answer::Reform {
                let signed = simulation.report().signed.unwrap();
                assert_eq!((signed.path, signed.signers.len()), (SpendPath::KeyPath, 3), "{phase}");
            }
        }
    }
}

#[test]
fn without_a_fallback_leaf_the_rule_for_the_fallback_decides() {
    for (then, cohorts) in [(Answer::Fail, 1), (Answer::Reform, 2)] {
        let mut roles = honest(3);
        roles[2] = Role::default().silent_from(Slot::Nonce);
        let mut setup = setup(roles);
        setup.conditions.script_tree = ScriptTree::KeyPathOnly;
        setup.rules.set(TimedPhase::Fallback, PhaseRule { timeout: None, extensions: 0, then }).unwrap();
        let mut simulation = Simulation::new(1, setup);
        simulation.run();
        simulation.assert_invariants();
        assert_eq!(simulation.service().cohorts().len(), cohorts);
        assert_eq!(simulation.report().signed.is_some(), then == Answer::Reform);
    }
}

#[test]
fn the_guard_of_a_session_outlasts_the_session() {
    let mut roles = honest(4);
    roles[2..].fill(Role::default().silent_from(Slot::PartialSignature));
    let mut setup = setup(roles);
    for phase in [TimedPhase::Nonces, TimedPhase::PartialSignatures, TimedPhase::Fallback] {
        let then = setup.rules.rule(phase).then;
        setup.rules.set(phase, PhaseRule { timeout: Some(WAIT), extensions: 2, then }).unwrap();
    }
    let mut simulation = Simulation::new(1, setup);
    run_to(&mut simulation, "fallback");
    simulation.run();
    simulation.assert_invariants();
    let failure = simulation.report().failure;
    assert!(
        matches!(failure, Some(CohortFailure::Signing { .. })),
        "the session did not end by itself: {failure:?}"
    );
    let guarded =
        simulation.service().events().iter().any(|event| matches!(event, ServiceEvent::PhaseExtended { .. }));
    assert!(!guarded, "the guard fired");
}
