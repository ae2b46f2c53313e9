//! What the tests of simulated cohorts share.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use std::{collections::BTreeSet, fmt::Debug, time::Duration};

use btcr2_aggregation_protocol::{
    cohort::{Timing, service::phase::Phase},
    did::Did,
    error::{Reject, RejectCode},
    identity::Identity,
    key::SecretKey,
    message::Message,
    network::Network,
    signing::session::SessionPhase,
    sim::{Role, Setup, Simulation},
};

pub const TIMEOUT: Duration = Duration::from_secs(600);

pub fn timing() -> Timing {
    Timing { cohort_ttl: TIMEOUT * 8, phase_timeout: TIMEOUT, advert_repeat: TIMEOUT / 4 }
}

pub fn setup(roles: Vec<Role>) -> Setup {
    Setup { timing: timing(), ..Setup::new(roles) }
}

pub fn honest(n: usize) -> Vec<Role> {
    (0..n).map(|i| if i % 3 == 2 { Role::decliner() } else { Role::default() }).collect()
}

pub fn simulation(n: usize) -> Simulation {
    Simulation::new(n as u64, setup(honest(n)))
}

/// The phases of a cohort at its service, in order.
pub const PHASES: [&str; 7] =
    ["enrolling", "collecting updates", "validating", "awaiting the transaction", "nonces", "partials", "fallback"];

pub fn phase_of(simulation: &Simulation) -> &'static str {
    let name = simulation.service().machine().phase().name();
    match simulation.service().session().map(|session| session.machine().phase()) {
        Some(SessionPhase::CollectingNonces { .. }) => "nonces",
        Some(SessionPhase::CollectingPartialSignatures { .. }) => "partials",
        Some(SessionPhase::Fallback { .. }) => "fallback",
        _ => name,
    }
}

/// Runs until the service is in `phase`.
pub fn run_to(simulation: &mut Simulation, phase: &str) {
    assert!(simulation.run_until(|simulation| phase_of(simulation) == phase), "phase {phase} was not reached");
}

pub fn stranger(seed: u8) -> Identity {
    Identity::from_key(SecretKey::from_bytes(&[seed; 32]).unwrap(), Network::Regtest)
}

/// Delivers to the service and asserts that it refuses, naming the sender, without any change.
pub fn assert_refused(simulation: &mut Simulation, case: &str, message: &Message, code: RejectCode) {
    let text = message.to_json();
    assert_text_refused(simulation, case, &message.from, &text, code);
}

pub fn assert_text_refused(simulation: &mut Simulation, case: &str, from: &Did, text: &str, code: RejectCode) {
    let service = simulation.service().identity().did().clone();
    let cohort = simulation.service().machine().clone();
    let session = simulation.service().session().map(|session| session.machine().clone());
    let events = simulation.service().events().len();
    let result = simulation.deliver(from, &service, text);
    assert_named(case, result, from, code);
    assert_eq!(*simulation.service().machine(), cohort, "{case}: a refusal changes nothing");
    let after = simulation.service().session().map(|session| session.machine().clone());
    assert_eq!(after, session, "{case}: a refusal changes nothing");
    assert_eq!(simulation.service().events().len(), events, "{case}: a refusal makes no event");
}

pub fn assert_named<T: Debug>(case: &str, result: Result<T, Reject>, peer: &Did, code: RejectCode) {
    let reject = result.expect_err(case);
    assert_eq!((reject.code, reject.peer.as_ref()), (code, Some(peer)), "{case}: {}", reject.detail);
}

/// Runs to the end; the cohort must have completed and nobody but `villains` may be accused.
pub fn assert_completes(simulation: &mut Simulation, case: &str, villains: &[Did]) {
    simulation.run();
    simulation.assert_invariants();
    let report = simulation.report();
    assert!(report.signed.is_some(), "{case}: {} {:?}", report.phase, report.failure);
    assert!(simulation.has_ended(), "{case}: {:?}", report.ends);
    let villains: BTreeSet<Did> = villains.iter().cloned().collect();
    let blamed: Vec<_> = report.accused().difference(&villains).cloned().collect();
    assert!(blamed.is_empty(), "{case}: honest {blamed:?} accused: {:?} {:?}", report.rejections, report.faults);
    assert!(matches!(simulation.service().machine().phase(), Phase::Completed { .. }), "{case}");
}
