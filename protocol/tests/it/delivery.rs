//! Members that a request did not reach are not at fault, in any phase; and only members that do not read are left out.

use std::time::Duration;

use crate::{phase_rules::stuck_in, sim_support::TIMEOUT};
use btcr2_aggregation_protocol::{
    cohort::{
        Undelivered,
        event::{CohortFailure, ServiceEvent, SpendPath},
        service::{
            ServiceEffect,
            rules::{Answer, PhaseRule, TimedPhase},
        },
    },
    did::Did,
    machine::Machine,
    message::{Body, control::CohortEnded},
    sim::Simulation,
};

fn not_carried() -> Undelivered {
    Undelivered::NotCarried("wss://relay.example: too large".to_owned())
}

/// A cohort that waits in `phase` for the last of its four members (in the fallback for the last two), which what it is asked
/// does not reach.
fn unreached_in(phase: TimedPhase, then: Answer, why: &Undelivered) -> (Simulation, Vec<Did>) {
    let rule = PhaseRule { timeout: Some(Duration::from_secs(240)), extensions: 0, then };
    let mut simulation = stuck_in(phase, rule);
    let members = if phase == TimedPhase::Fallback { 2..4 } else { 3..4 };
    let mut missing: Vec<_> = members.clone().map(|member| simulation.did(member)).collect();
    missing.sort();
    members.for_each(|member| simulation.delivered(member, Some(why.clone())));
    (simulation, missing)
}

fn failure(simulation: &Simulation) -> Option<CohortFailure> {
    simulation.service().cohorts()[0].events().iter().find_map(|event| match event {
        ServiceEvent::CohortFailed { reason, .. } => Some(reason.clone()),
        _ => None,
    })
}

/// What the first cohort sends a member at its end.
fn ended(simulation: &Simulation, member: &Did) -> CohortEnded {
    let sent = simulation.service().cohorts()[0].machine().resume().into_iter().find_map(|effect| match effect {
        ServiceEffect::Send { to, body } if to == *member => match &*body {
            Body::CohortEnded(ended) => Some(ended.clone()),
            _ => None,
        },
        _ => None,
    });
    sent.expect("every member is notified")
}

#[test]
fn a_cohort_that_fails_for_delivery_blames_no_member() {
    let phases = [
        (TimedPhase::Updates, Answer::Reform),
        (TimedPhase::Validation, Answer::Reform),
        (TimedPhase::Presence, Answer::Reform),
        (TimedPhase::Presence, Answer::Fail),
        (TimedPhase::Nonces, Answer::Reform),
        (TimedPhase::Nonces, Answer::Fail),
        (TimedPhase::PartialSignatures, Answer::Reform),
        (TimedPhase::Fallback, Answer::Fail),
    ];
    for (phase, then) in phases {
        for why in [not_carried(), Undelivered::NotFetched] {
            let case = format!("{phase} {then:?} {why:?}");
            let (mut simulation, missing) = unreached_in(phase, then, &why);
            simulation.run();
            simulation.assert_invariants();
            let failure = failure(&simulation).expect("it cannot be completed");
            assert_eq!(failure.at_fault(), [], "{case}");
            let unreached = failure.unreached().expect("that is why it failed");
            let (listed, names) = match why {
                Undelivered::NotCarried(_) => (&unreached.not_carried, "wss://relay.example: too large"),
                Undelivered::NotFetched => (&unreached.not_fetched, "not fetched over HTTP"),
            };
            assert_eq!(*listed, missing, "{case}");
            assert!(failure.to_string().contains(names), "{case}: {failure}");
            // Who does not read is left out. The very same members would fail the same way.
            let again = then == Answer::Reform && why == Undelivered::NotFetched;
            assert_eq!(simulation.service().cohorts().len(), 1 + usize::from(again), "{case}");
            for did in &missing {
                let end = ended(&simulation, did);
                assert!(!end.at_fault && end.next_cohort_id.is_none(), "{case}: {end:?}");
            }
            if let Some(next) = simulation.service().cohorts().get(1) {
                let lineage = &next.machine().config().terms.lineage;
                assert!(missing.iter().all(|did| !lineage.invited.contains(did)), "{case}");
            }
        }
    }
}

#[test]
fn who_was_not_reached_is_no_holdout_of_the_fallback() {
    for phase in [TimedPhase::Presence, TimedPhase::Nonces, TimedPhase::PartialSignatures] {
        for why in [not_carried(), Undelivered::NotFetched] {
            let (mut simulation, missing) = unreached_in(phase, Answer::FallBack, &why);
            simulation.run();
            simulation.assert_invariants();
            let signed = simulation.report().signed.expect("three are enough");
            assert_eq!(
                (signed.path, signed.holdouts.as_slice()),
                (SpendPath::ScriptPath, [].as_slice()),
                "{phase}"
            );
            let unreached = signed.unreached.clone();
            assert_eq!([unreached.not_carried, unreached.not_fetched].concat(), missing, "{phase}");
        }
    }
}

#[test]
fn whoever_was_reached_and_kept_silent_is_blamed_beside_those_that_were_not() {
    let rule = PhaseRule { timeout: None, extensions: 0, then: Answer::Reform };
    let mut simulation = stuck_in(TimedPhase::Fallback, rule);
    simulation.delivered(3, Some(not_carried()));
    simulation.run();
    simulation.assert_invariants();
    let (silent, unreached) = (simulation.did(2), simulation.did(3));
    let failure = failure(&simulation).unwrap();
    assert_eq!(failure.at_fault(), std::slice::from_ref(&silent));
    let next = &simulation.service().cohorts()[1].machine().config().terms.lineage;
    assert!(next.invited.contains(&unreached) && !next.invited.contains(&silent), "{next:?}");
}

#[test]
fn what_reaches_a_member_in_time_counts() {
    let (mut simulation, missing) = unreached_in(TimedPhase::Updates, Answer::Fail, &not_carried());
    simulation.advance(TIMEOUT / 10);
    simulation.delivered(3, None);
    simulation.run();
    simulation.assert_invariants();
    assert_eq!(failure(&simulation), Some(CohortFailure::UpdatesMissing { holdouts: missing }));
}
