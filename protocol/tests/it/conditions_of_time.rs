//! Deadlines: how long the service and the participants wait, and what is reported about missing members.

use std::time::Duration;

use crate::sim_support::{PHASES, TIMEOUT, assert_completes, honest, phase_of, run_to, setup, through_every_phase};
use btcr2_aggregation_protocol::{
    cohort::{
        event::{CohortFailure, ParticipantEvent, ServiceEvent, SessionEnd, SpendPath},
        participant::ParticipantInput,
        service::ServiceInput,
    },
    error::Slot,
    machine::{Machine, apply_all},
    message::Body,
    signing::session::{SessionEvent, SessionInput},
    sim::{Role, START, Setup, Simulation},
    time::{CLOCK_TOLERANCE, Timestamp},
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

fn run(setup: Setup) -> Simulation {
    let mut simulation = Simulation::new(1, setup);
    simulation.run();
    simulation.assert_invariants();
    assert!(simulation.has_ended(), "{:?}", simulation.report());
    simulation
}

fn failed_at(simulation: &Simulation) -> Timestamp {
    match simulation.service().events().last() {
        Some(ServiceEvent::CohortFailed { at, .. }) => *at,
        other => panic!("{other:?}"),
    }
}

#[test]
fn at_its_end_enrollment_forms_or_ends_the_cohort() {
    for (min, expected) in [(3, Some(CohortFailure::EnrollmentExpired { admitted: 2 })), (2, None), (1, None)] {
        let mut setup = setup(honest(2));
        setup.conditions.min_participants = min;
        setup.finalize_at = None;
        let simulation = run(setup);
        let report = simulation.report();
        assert_eq!(report.failure, expected, "at least {min}");
        if expected.is_some() {
            assert_eq!(failed_at(&simulation), START + TIMEOUT);
            let reported = |end: &Option<SessionEnd>| {
                matches!(end, Some(SessionEnd::EndedByService { code, at_fault: false, next: None, .. })
                    if code == "ENROLLMENT_EXPIRED")
            };
            assert!(report.ends.iter().all(reported), "{:?}", report.ends);
            continue;
        }
        let formed = simulation.service().events().iter().find_map(|event| match event {
            ServiceEvent::KeysAggregated { at, .. } => Some(*at),
            _ => None,
        });
        assert_eq!(formed, Some(START + TIMEOUT), "the cohort is formed when enrollment ends");
        assert_eq!(report.signed.unwrap().signers.len(), 2);
    }
}

#[test]
fn the_ttl_ends_enrollment_before_its_own_deadline() {
    let mut setup = setup(Vec::new());
    setup.timing.cohort_ttl = TIMEOUT / 2;
    let simulation = run(setup);
    assert_eq!(failed_at(&simulation), START + TIMEOUT / 2);
}

#[test]
fn the_ttl_does_not_apply_to_signing() {
    let mut roles = honest(4);
    roles[1] = Role::default().silent_from(Slot::PartialSignature);
    let mut setup = setup(roles);
    setup.timing.cohort_ttl = TIMEOUT / 2;
    let simulation = run(setup);
    assert!(simulation.report().signed.is_some(), "{:?}", simulation.report().failure);
    assert!(simulation.now() > START + TIMEOUT, "the fallback came after the TTL");
}

#[test]
fn members_that_do_not_submit_or_validate_are_named() {
    for slot in [Slot::Update, Slot::Validation] {
        let mut roles = honest(4);
        roles[1] = roles[1].clone().silent_from(slot);
        roles[2] = roles[2].clone().silent_from(slot);
        let simulation = run(setup(roles));
        let mut silent = vec![simulation.did(1), simulation.did(2)];
        silent.sort();
        let expected = match slot {
            Slot::Update => CohortFailure::UpdatesMissing { holdouts: silent },
            _ => CohortFailure::ValidationMissing { holdouts: silent },
        };
        assert_eq!(simulation.report().failure, Some(expected), "{slot}");
    }
}

#[test]
fn a_deferred_transaction_is_requested_again_until_the_deadline() {
    let mut deferring = setup(honest(3));
    deferring.defer_transaction = 3;
    let simulation = run(deferring);
    assert!(simulation.report().signed.is_some());
    let events = simulation.service().events();
    let deferred: Vec<Timestamp> = events
        .iter()
        .filter_map(|event| match event {
            ServiceEvent::TransactionDeferred { retry_at, .. } => Some(*retry_at),
            _ => None,
        })
        .collect();
    let requested: Vec<Timestamp> = events
        .iter()
        .filter_map(|event| match event {
            ServiceEvent::TransactionRequested { at } => Some(*at),
            _ => None,
        })
        .collect();
    assert_eq!(requested.len(), 3);
    assert_eq!(deferred, requested, "requested again at the stated time");

    let mut never = setup(honest(3));
    never.defer_transaction = u32::MAX;
    let simulation = run(never);
    assert!(matches!(simulation.report().failure, Some(CohortFailure::Transaction { .. })));
    let validated = simulation.service().events().iter().find_map(|event| match event {
        ServiceEvent::ValidationCompleted { at } => Some(*at),
        _ => None,
    });
    assert_eq!(failed_at(&simulation), validated.unwrap() + TIMEOUT);
}

#[test]
fn silence_while_signing_leads_to_the_fallback_then_to_failure() {
    for (slot, reason) in
        [(Slot::Nonce, "nonces are missing"), (Slot::PartialSignature, "partial signatures are missing")]
    {
        let mut roles = honest(3);
        roles[1] = roles[1].clone().silent_from(slot);
        let simulation = run(setup(roles));
        let events = simulation.service().session().unwrap().events();
        let waited_from = events.iter().rev().find_map(|event| match event {
            SessionEvent::SessionOpened { at } | SessionEvent::NoncesAggregated { at, .. } => Some(*at),
            _ => None,
        });
        let chosen = events.iter().find_map(|event| match event {
            SessionEvent::PathChosen { at, path, reason, holdouts, .. } => {
                Some((*at, *path, reason.clone(), holdouts))
            }
            _ => None,
        });
        let (at, path, why, holdouts) = chosen.unwrap();
        assert_eq!((at, path), (waited_from.unwrap() + TIMEOUT, SpendPath::ScriptPath), "{slot}");
        assert_eq!((why.as_deref(), holdouts.as_slice()), (Some(reason), [simulation.did(1)].as_slice()));
        assert!(simulation.report().signed.is_some(), "{slot}");
    }

    let roles = honest(3).into_iter().map(|role| role.silent_from(Slot::Nonce)).collect();
    let simulation = run(setup(roles));
    let Some(CohortFailure::Signing { holdouts, reason, .. }) = simulation.report().failure else {
        panic!("{:?}", simulation.report());
    };
    assert_eq!((holdouts.len(), reason.as_str()), (3, "fallback signatures are missing"));
    let opened = match simulation.service().session().unwrap().events()[0] {
        SessionEvent::SessionOpened { at } => at,
        ref other => panic!("{other:?}"),
    };
    assert_eq!(failed_at(&simulation), opened + TIMEOUT * 2);
}

#[test]
fn the_operator_can_request_the_fallback_before_any_timeout() {
    let mut roles = honest(3);
    roles[1] = roles[1].clone().silent_from(Slot::Nonce);
    let mut simulation = Simulation::new(1, setup(roles));
    run_to(&mut simulation, "nonces");
    simulation.advance(Duration::from_secs(1));
    simulation.request_fallback("requested by the operator");
    assert_eq!(phase_of(&simulation), "fallback");
    assert!(simulation.run_until(|simulation| simulation.service().machine().has_ended()));
    assert!(simulation.now() < START + TIMEOUT);
    assert_completes(&mut simulation, "an early fallback", &[]);
}

/// Ticks a copy of `machine` just before its deadline and long after it.
fn assert_ticks<M: Machine>(case: &str, machine: &M, tick: &M::Input) {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    // A time that is clearly before the cohort is that of a clock that was set back.
    for early in [START - CLOCK_TOLERANCE, START] {
        let early = machine.deadline().map_or(early, |deadline| early.min(deadline - Duration::from_millis(1)));
        let events = machine.decide(early, tick, &mut rng).unwrap();
        assert!(events.is_empty(), "{case}: an early tick makes {events:?}");
    }
    let year = Duration::from_secs(365 * 24 * 3600);
    let Some(deadline) = machine.deadline() else {
        let events = machine.decide(START + year, tick, &mut rng).unwrap();
        assert!(events.is_empty(), "{case}: a tick without deadline makes {events:?}");
        return;
    };
    let events = machine.decide(deadline - Duration::from_millis(1), tick, &mut rng).unwrap();
    assert!(events.is_empty(), "{case}: a tick a moment early makes {events:?}");
    for late in [deadline, deadline + year] {
        let mut copy = machine.clone();
        let events = copy.decide(late, tick, &mut rng).unwrap();
        assert!(!events.is_empty(), "{case}: a due tick does nothing");
        apply_all(&mut copy, &events);
        assert!(copy.deadline().is_none_or(|next| next > deadline), "{case}: the deadline stays in the past");
    }
}

#[test]
fn early_and_late_ticks_are_harmless_in_every_state() {
    let mut simulation = through_every_phase();
    let mut seen = 0;
    loop {
        let case = phase_of(&simulation);
        seen += usize::from(PHASES.contains(&case));
        assert_ticks(case, simulation.service().machine(), &ServiceInput::Tick);
        if let Some(session) = simulation.service().session() {
            assert_ticks(case, session.machine(), &SessionInput::Tick);
        }
        for node in simulation.participants() {
            if let Some(machine) = node.machine() {
                assert_ticks(machine.phase().name(), machine, &ParticipantInput::Tick);
            }
        }
        if !simulation.step() {
            break;
        }
    }
    assert!(seen > 50, "only {seen} states were checked");

    // A run that is ticked at every step equals the run that is not.
    let mut ticked = through_every_phase();
    while ticked.step() {
        ticked.tick();
    }
    assert_eq!(ticked.trace(), simulation.trace());
}

#[test]
fn the_advert_is_repeated_during_enrollment() {
    let mut setup = setup(honest(3));
    setup.conditions.min_participants = 3;
    let mut simulation = Simulation::new(1, setup.clone());
    let service = simulation.service().identity().did().clone();
    let mut adverts = 0;
    simulation.tamper(&service, move |message| {
        if matches!(&*message.body, Body::CohortAdvert(_)) {
            adverts += 1;
            if adverts <= 2 {
                return Vec::new();
            }
        }
        vec![message.to_json()]
    });
    assert_completes(&mut simulation, "two lost adverts", &[]);
    assert!(simulation.now() >= START + TIMEOUT / 2);

    setup.roles = vec![Role { joins: false, ..Role::default() }];
    let simulation = run(setup);
    let repeats = simulation.service().events().iter();
    let repeats = repeats.filter(|event| matches!(event, ServiceEvent::AdvertRepeated { .. })).count();
    assert_eq!(repeats, 3, "one repeat at each quarter of enrollment, except its end");
    assert_eq!(simulation.report().ends, [Some(SessionEnd::NotJoined)]);
}

#[test]
fn a_participant_ends_when_its_service_is_silent() {
    for phase in PHASES {
        let mut simulation = through_every_phase();
        run_to(&mut simulation, phase);
        simulation.advance(Duration::from_millis(15));
        let service = simulation.service().identity().did().clone();
        simulation.tamper(&service, |_| Vec::new());
        simulation.run();
        simulation.assert_invariants();
        assert!(simulation.has_ended(), "{phase}: {:?}", simulation.report());
        for (node, end) in simulation.participants().iter().zip(simulation.report().ends) {
            let machine = node.machine().unwrap();
            let signed = node.events().iter().any(|event| {
                matches!(
                    event,
                    ParticipantEvent::PartialSignatureSent { .. } | ParticipantEvent::FallbackSignatureSent { .. }
                )
            });
            match end {
                Some(SessionEnd::Signed) => assert!(signed, "{phase}"),
                Some(SessionEnd::TimedOut { .. }) => assert!(!signed, "{phase}"),
                other => panic!("{phase}: {other:?}"),
            }
            assert_eq!(machine.record().is_some(), signed, "{phase}: there is a record of what was signed");
        }
    }
}
