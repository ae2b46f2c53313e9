//! A service in each state of a cohort: the states are those of a simulated cohort's journal.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use btcr2_aggregation_protocol::{
    cohort::{
        event::{CohortFailure, ServiceEvent},
        service::{
            ServiceCohort, ServiceEffect, ServiceInput,
            phase::{Phase, PhaseKind},
            rules::{Answer, PhaseRule, PhaseRules, TimedPhase},
        },
    },
    did::Did,
    error::{Fatal, Fault, RejectCode, Slot},
    machine::{Machine, replay, step},
    message::{Bytes, Message, SharedBody, update::ValidationAck},
    sim::{Role, Setup, Simulation},
    time::Timestamp,
    update::Edition,
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::sim_support::{TIMEOUT, assert_completes, assert_refused, bodies, honest, outsider, setup};

const MINUTE: Duration = Duration::from_secs(60);

/// A cohort that has ended, and its journal.
struct Round {
    simulation: Simulation,
    events: Vec<ServiceEvent>,
}

impl Round {
    fn of(setup: Setup) -> Self {
        let mut simulation = Simulation::new(3, setup);
        simulation.run();
        let events = simulation.service().events().to_vec();
        Self { simulation, events }
    }

    fn blank(&self) -> ServiceCohort {
        ServiceCohort::new(self.simulation.service().machine().shared_config()).unwrap()
    }

    /// The state after each event, the first one before all of them.
    fn states(&self) -> Vec<ServiceCohort> {
        (0..=self.events.len()).map(|count| replay(self.blank(), &self.events[..count])).collect()
    }

    /// The last state in that phase.
    fn state(&self, kind: PhaseKind) -> ServiceCohort {
        self.states().into_iter().rfind(|state| state.phase().kind() == kind).unwrap()
    }

    fn position(&self, is: impl Fn(&ServiceEvent) -> bool) -> usize {
        self.events.iter().position(is).unwrap()
    }

    fn by_member(&self, member: usize, body: impl Into<SharedBody>) -> ServiceInput {
        ServiceInput::Message(Message::new(self.simulation.did(member), None, body))
    }
}

/// A complete round of three members, with a presence check and a transaction that is late.
fn round() -> Round {
    let mut setup = setup(honest(3));
    setup.rules.presence_check = true;
    setup.defer_transaction = 1;
    Round::of(setup)
}

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(1)
}

fn now(state: &ServiceCohort) -> Timestamp {
    state.deadline().map_or(Timestamp::from_secs(2_000_000_000), |deadline| deadline - Duration::from_secs(1))
}

fn failure(events: &[ServiceEvent]) -> Option<&CohortFailure> {
    match events {
        [ServiceEvent::CohortFailed { reason, successor: None, .. }] => Some(reason),
        [] => None,
        other => panic!("{other:?}"),
    }
}

/// A phase that began while the clock was days ahead would last for days.
#[test]
fn a_phase_begins_again_when_the_clock_was_set_back() {
    let round = round();
    let mut phases = BTreeSet::new();
    for mut state in round.states() {
        let kind = state.phase().kind();
        let Some(deadline) = state.phase().deadline().filter(|_| kind != PhaseKind::Signing) else { continue };
        let day = 24 * 60 * MINUTE;
        // A clock that is corrected a little changes nothing.
        let until = state.deadline().unwrap() - MINUTE;
        assert_eq!(state.decide(until, &ServiceInput::Tick, &mut rng()).unwrap(), [], "{kind}");
        let now = deadline - 3 * day;
        let events = state.decide(now, &ServiceInput::Tick, &mut rng()).unwrap();
        let [ServiceEvent::PhaseExtended { until, .. }, repeated @ ..] = &events[..] else { panic!("{events:?}") };
        assert!(*until > now && until.since(now) < day, "{kind}");
        let is_repeated = matches!(kind, PhaseKind::Enrolling | PhaseKind::AwaitingTransaction);
        assert_eq!(!repeated.is_empty(), is_repeated, "{kind}");
        state = replay(state, &events);
        assert!(state.deadline().unwrap().since(now) < day);
        assert_eq!(state.decide(now, &ServiceInput::Tick, &mut rng()).unwrap(), [], "{kind}: once");
        phases.insert(kind.to_string());
    }
    assert_eq!(phases.len(), 5, "{phases:?}");
}

#[test]
fn cohorts_in_different_states_differ() {
    let round = round();
    let state = round.state(PhaseKind::CollectingUpdates);
    let fault = Fault {
        did: round.simulation.did(0),
        code: RejectCode::Equivocation,
        slot: Slot::Update,
        detail: "another one".into(),
    };
    assert_eq!(state, state.clone());
    assert_ne!(replay(state.clone(), [&ServiceEvent::FaultRecorded { fault }]), state);
}

#[test]
fn a_cohort_is_signing_while_its_session_has_the_transaction() {
    for state in round().states() {
        assert_eq!(state.is_signing(), state.phase().kind() == PhaseKind::Signing);
    }
}

#[test]
fn a_cohort_concerns_its_candidates_and_members() {
    let round = round();
    let joined = round.position(|event| matches!(event, ServiceEvent::OptInReceived { .. }));
    let ServiceEvent::OptInReceived { member, .. } = &round.events[joined] else { panic!() };
    for (count, state) in round.states().iter().enumerate() {
        assert_eq!(state.phase().concerns(&member.did), count > joined, "{}", state.phase().kind());
        assert!(!state.phase().concerns(outsider(9).did()));
    }
}

#[test]
fn a_host_ends_a_cohort_once() {
    for state in round().states() {
        let over = state.has_ended();
        let decide = |input| state.decide(now(&state), &input, &mut rng()).unwrap();
        let internal = CohortFailure::Internal { reason: "disk full".into() };
        assert_eq!(failure(&decide(ServiceInput::Abort(Fatal("disk full".into())))), (!over).then_some(&internal));
        let cancelled = CohortFailure::Cancelled { reason: "by the operator".into() };
        let events = decide(ServiceInput::Cancel("by the operator".into()));
        assert_eq!(failure(&events), (!over).then_some(&cancelled));
        let signing = state.phase().kind() == PhaseKind::Signing;
        let events = decide(ServiceInput::SigningLost(Fatal("disk full".into())));
        assert_eq!(failure(&events), signing.then_some(&internal));
    }
}

#[test]
fn a_transaction_is_refused_only_while_it_is_awaited() {
    for state in round().states() {
        let refusal = ServiceInput::TransactionRefused(Fatal("no coin".into()));
        let events = state.decide(now(&state), &refusal, &mut rng());
        if state.phase().kind() == PhaseKind::AwaitingTransaction {
            let reason = CohortFailure::Transaction { reason: "no coin".into() };
            assert_eq!(failure(&events.unwrap()), Some(&reason));
        } else {
            assert_eq!(events.unwrap_err().code, RejectCode::WrongPhase, "{}", state.phase().kind());
        }
    }
}

#[test]
fn a_cohort_below_its_minimum_is_not_formed() {
    let mut setup = setup(honest(3));
    setup.conditions.min_participants = 2;
    let round = Round::of(setup);
    let mut admitted = 0;
    for (event, state) in round.events.iter().zip(round.states().iter().skip(1)) {
        admitted += usize::from(matches!(event, ServiceEvent::MemberAdmitted { .. }));
        let events = state.decide(now(state), &ServiceInput::Finalize, &mut rng());
        match state.phase().kind() {
            PhaseKind::Enrolling if admitted < 2 => assert_eq!(events.unwrap_err().code, RejectCode::WrongPhase),
            PhaseKind::Enrolling => assert!(matches!(events.unwrap()[..], [ServiceEvent::KeysAggregated { .. }])),
            _ => assert_eq!(events.unwrap(), []),
        }
    }
}

#[test]
fn key_aggregation_and_the_last_update_of_many_are_heavy() {
    for n in [31, 32] {
        let mut setup = setup(honest(n));
        setup.conditions.max_participants = Some(32);
        let round = Round::of(setup);
        let admission = ServiceInput::AdmissionDecided { did: round.simulation.did(0), admission: Ok(()) };
        let declined = || round.by_member(0, bodies::of_members(&round.simulation, &outsider(9)).remove(2));
        let (mut admitted, mut slots, mut seen) = (0, 0, BTreeSet::new());
        for (event, state) in round.events.iter().zip(round.states().iter().skip(1)) {
            admitted += usize::from(matches!(event, ServiceEvent::MemberAdmitted { .. }));
            slots += usize::from(matches!(
                event,
                ServiceEvent::UpdateReceived { .. } | ServiceEvent::UpdateDeclined { .. }
            ));
            let kind = state.phase().kind();
            let heavy = match kind {
                PhaseKind::Enrolling => [admitted >= 31, admitted >= 31, false],
                PhaseKind::CollectingUpdates => [n >= 32 && slots == 31; 3],
                _ => [false; 3],
            };
            let inputs = [&admission, &ServiceInput::Finalize, &declined()];
            assert_eq!(inputs.map(|input| state.is_heavy(input)), heavy, "{n}: {kind}, {admitted}, {slots}");
            seen.extend(heavy[1].then(|| kind.to_string()));
        }
        assert_eq!(seen.len(), if n == 32 { 2 } else { 1 }, "{n}: {seen:?}");
        // Without a maximum no admission is the last one.
        if n == 31 {
            let mut config = (*round.simulation.service().machine().shared_config()).clone();
            let mut terms = (*config.terms).clone();
            terms.conditions.max_participants = None;
            config.terms = Arc::new(terms);
            let enrolled = round.position(|event| matches!(event, ServiceEvent::KeysAggregated { .. }));
            let open = replay(ServiceCohort::new(Arc::new(config)).unwrap(), &round.events[..enrolled]);
            assert_eq!([&admission, &ServiceInput::Tick].map(|input| open.is_heavy(input)), [false, true]);
        }
    }
}

#[test]
fn after_a_restart_only_holdouts_are_asked_again() {
    let round = round();
    let mut seen = BTreeSet::new();
    for state in round.states() {
        let kind = state.phase().kind();
        if !matches!(kind, PhaseKind::CollectingUpdates | PhaseKind::Validating | PhaseKind::CheckingPresence) {
            continue;
        }
        let asked: Vec<Did> = state
            .resume()
            .into_iter()
            .filter_map(|effect| match effect {
                ServiceEffect::Send { to, .. } => Some(to),
                _ => None,
            })
            .collect();
        assert_eq!(asked, state.holdouts(), "{kind}");
        seen.insert((kind.to_string(), asked.len()));
    }
    assert_eq!(seen.len(), 12, "none to three holdouts in three phases: {seen:?}");
}

#[test]
fn a_repeated_verdict_is_harmless_and_another_equivocation() {
    let round = round();
    let cohort_id = bodies::cohort_id(&round.simulation);
    let verdict = |approved| round.by_member(0, ValidationAck { cohort_id: cohort_id.clone(), approved });
    for kind in
        [PhaseKind::AwaitingTransaction, PhaseKind::CheckingPresence, PhaseKind::Signing, PhaseKind::Completed]
    {
        let state = round.state(kind);
        assert_eq!(state.decide(now(&state), &verdict(true), &mut rng()).unwrap(), [], "{kind}");
        let events = state.decide(now(&state), &verdict(false), &mut rng()).unwrap();
        let [ServiceEvent::FaultRecorded { fault }] = &events[..] else { panic!("{kind}: {events:?}") };
        assert_eq!((fault.code, fault.slot), (RejectCode::Equivocation, Slot::Validation), "{kind}");
    }
}

#[test]
fn a_signature_after_completion_is_no_fault() {
    let round = round();
    let late = || round.by_member(0, bodies::of_members(&round.simulation, &outsider(9)).remove(6));
    let completed = round.state(PhaseKind::Completed);
    assert_eq!(completed.decide(now(&completed), &late(), &mut rng()).unwrap(), []);
    let validating = round.state(PhaseKind::Validating);
    assert_eq!(validating.decide(now(&validating), &late(), &mut rng()).unwrap_err().code, RejectCode::WrongPhase);
}

#[test]
fn what_an_earlier_edition_accepted_ends_the_cohort() {
    let round = round();
    let of_edition = |index: usize| {
        let mut event = round.events[index].clone();
        match &mut event {
            ServiceEvent::UpdateReceived { edition, .. } | ServiceEvent::UpdatesAggregated { edition, .. } => {
                *edition = Edition::BeforeOctober2026;
            }
            other => panic!("{other:?}"),
        }
        event
    };
    for old in [
        round.position(|event| matches!(event, ServiceEvent::UpdateReceived { .. })),
        round.position(|event| matches!(event, ServiceEvent::UpdatesAggregated { .. })),
    ] {
        let mut state = replay(round.blank(), &round.events[..old]);
        assert_eq!(state.decide(now(&state), &ServiceInput::Resumed, &mut rng()).unwrap(), []);
        state.apply(&of_edition(old));
        // What the current rules accept later does not change it.
        for event in &round.events[old + 1..] {
            let events = state.decide(now(&state), &ServiceInput::Resumed, &mut rng()).unwrap();
            assert_eq!(failure(&events), Some(&CohortFailure::Outdated), "{}", state.phase().kind());
            state.apply(event);
        }
        assert!(state.has_ended());
        assert_eq!(state.decide(now(&state), &ServiceInput::Resumed, &mut rng()).unwrap(), []);
    }
}

#[test]
fn the_ttl_ends_with_the_start_of_signing() {
    let round = round();
    let timing = round.simulation.setup().timing;
    let ServiceEvent::CohortAdvertised { at: started, .. } = round.events[0] else { panic!() };
    let late = started + timing.cohort_ttl - MINUTE;
    let after = |is: fn(&ServiceEvent) -> bool| {
        let position = round.position(is);
        let mut event = round.events[position].clone();
        match &mut event {
            ServiceEvent::PresenceRequested { at, .. }
            | ServiceEvent::ValidationCompleted { at }
            | ServiceEvent::SigningStarted { at, .. } => *at = late,
            other => panic!("{other:?}"),
        }
        let mut state = replay(round.blank(), &round.events[..position]);
        state.apply(&event);
        state.deadline().unwrap()
    };
    let ttl = started + timing.cohort_ttl;
    assert_eq!(after(|event| matches!(event, ServiceEvent::ValidationCompleted { .. })), ttl);
    assert_eq!(after(|event| matches!(event, ServiceEvent::PresenceRequested { .. })), late + TIMEOUT);
    // The guard: nonces, partial signatures and fallback signatures, and one signing timeout more.
    assert_eq!(after(|event| matches!(event, ServiceEvent::SigningStarted { .. })), late + TIMEOUT * 4);
}

#[test]
fn the_guard_of_a_session_is_set_again_three_times() {
    let mut state = round().state(PhaseKind::Signing);
    for _ in 0..3 {
        let at = state.deadline().unwrap();
        step(&mut state, at, &ServiceInput::Tick, &mut rng()).unwrap();
        assert_eq!(state.deadline(), Some(at + TIMEOUT * 4));
    }
    let at = state.deadline().unwrap();
    let events = step(&mut state, at, &ServiceInput::Tick, &mut rng()).unwrap().events;
    assert!(matches!(failure(&events), Some(CohortFailure::Internal { .. })));
}

#[test]
fn a_guard_of_no_length_is_not_set_again() {
    let round = round();
    let mut config = (*round.simulation.service().machine().shared_config()).clone();
    let mut terms = (*config.terms).clone();
    terms.timing.signing_timeout = Duration::ZERO;
    config.terms = Arc::new(terms);
    let signing = round.position(|event| matches!(event, ServiceEvent::SigningStarted { .. }));
    let blank = ServiceCohort::new(Arc::new(config)).unwrap();
    let state = replay(blank, &round.events[..=signing]);
    let at = state.deadline().unwrap();
    let events = state.decide(at, &ServiceInput::Tick, &mut rng()).unwrap();
    assert!(matches!(failure(&events), Some(CohortFailure::Internal { .. })));
}

#[test]
fn what_is_due_at_an_extension_is_repeated_then() {
    let extended = |phase: TimedPhase, repeat: Duration| {
        let mut setup = setup(honest(2));
        setup.timing.advert_repeat = repeat;
        setup.conditions.min_participants = 3;
        if phase == TimedPhase::Transaction {
            setup.conditions.min_participants = 1;
            setup.defer_transaction = 1;
        }
        let rule = PhaseRule { timeout: Some(MINUTE), extensions: 1, then: Answer::Fail };
        setup.rules.set(phase, rule).unwrap();
        let round = Round::of(setup);
        let kind =
            if phase == TimedPhase::Transaction { PhaseKind::AwaitingTransaction } else { PhaseKind::Enrolling };
        let first = round.states().into_iter().find(|state| state.phase().kind() == kind).unwrap();
        (first, round)
    };
    let tick = |state: &ServiceCohort, at| state.decide(at, &ServiceInput::Tick, &mut rng()).unwrap();
    for (repeat, due) in [(MINUTE, true), (MINUTE * 2, false)] {
        let (state, _) = extended(TimedPhase::Enrollment, repeat);
        let Phase::Enrolling(enrolling) = state.phase() else { panic!() };
        let events = tick(&state, enrolling.deadline);
        assert!(matches!(events[0], ServiceEvent::PhaseExtended { .. }), "{events:?}");
        let repeated = matches!(events[1..], [ServiceEvent::AdvertRepeated { .. }]);
        assert_eq!((repeated, events.len()), (due, 1 + usize::from(due)));
    }
    let (state, _) = extended(TimedPhase::Transaction, MINUTE);
    let Phase::AwaitingTransaction { deadline, .. } = *state.phase() else { panic!() };
    for (retry_at, due) in [(deadline, true), (deadline + MINUTE, false)] {
        let mut state = state.clone();
        state.apply(&ServiceEvent::TransactionDeferred { retry_at, reason: "no coin yet".into() });
        let events = tick(&state, deadline);
        let requested = matches!(events[1..], [ServiceEvent::TransactionRequested { .. }]);
        assert_eq!((requested, events.len()), (due, 1 + usize::from(due)), "{events:?}");
    }
}

#[test]
fn signing_failures_are_not_formed_again_with_too_few() {
    for (min_participants, cohorts) in [(2, 2), (3, 1)] {
        let mut roles = honest(3);
        roles[2] = Role::default().silent_from(Slot::Nonce);
        let mut setup = setup(roles);
        setup.conditions.min_participants = min_participants;
        let rule = PhaseRule { timeout: None, extensions: 0, then: Answer::Reform };
        setup.rules = PhaseRules::default();
        setup.rules.set(TimedPhase::Nonces, rule).unwrap();
        let mut simulation = Simulation::new(1, setup);
        simulation.run();
        simulation.assert_invariants();
        // After approval the members may not wait for new ones.
        assert_eq!(simulation.service().cohorts().len(), cohorts, "at least {min_participants}");
    }
}

#[test]
fn rules_are_read_by_their_names() {
    for (name, answer) in [
        ("fail", Answer::Fail),
        ("reform", Answer::Reform),
        ("fall-back", Answer::FallBack),
        ("proceed", Answer::Proceed),
    ] {
        assert_eq!(name.parse(), Ok(answer));
    }
    assert!("none".parse::<Answer>().unwrap_err().to_string().contains("unknown answer none"));
}

#[test]
fn the_owner_of_a_copied_key_gets_its_place_in_a_full_cohort() {
    let mut setup = setup(honest(2));
    setup.conditions.max_participants = Some(2);
    let mut simulation = Simulation::new(1, setup);
    crate::sim_support::run_to(&mut simulation, "enrolling");
    let copy_of_owner = |simulation: &Simulation, thief: u8| {
        let thief = outsider(thief);
        let mut copy = bodies::opt_in(simulation, &thief);
        copy.participant_pk = Bytes(simulation.participants()[0].identity().public_key().to_bytes());
        Message::new(thief.did().clone(), None, copy)
    };
    let first = copy_of_owner(&simulation, 8);
    simulation.deliver_to_service(&first).unwrap();
    let second = copy_of_owner(&simulation, 9);
    assert_refused(&mut simulation, "a second copy", &second, RejectCode::DuplicateKey);
    assert_completes(&mut simulation, "copies", &[outsider(8).did().clone(), outsider(9).did().clone()]);
    assert_eq!(simulation.report().signed.unwrap().signers.len(), 2);
}

#[test]
fn an_update_may_have_the_largest_size_and_no_more() {
    let round = round();
    let position = round.position(|event| matches!(event, ServiceEvent::UpdateReceived { .. }));
    let ServiceEvent::UpdateReceived { did, update, .. } = &round.events[position] else { panic!() };
    let body = btcr2_aggregation_protocol::message::update::SubmitUpdate {
        cohort_id: bodies::cohort_id(&round.simulation),
        signed_update: update.value().clone().into(),
    };
    let input = ServiceInput::Message(Message::new(did.clone(), None, body));
    for (less, accepted) in [(0, true), (1, false)] {
        let mut config = (*round.simulation.service().machine().shared_config()).clone();
        let mut terms = (*config.terms).clone();
        terms.limits.update_bytes = update.canonical_len() - less;
        config.terms = Arc::new(terms);
        let state = replay(ServiceCohort::new(Arc::new(config)).unwrap(), &round.events[..position]);
        let events = state.decide(now(&state), &input, &mut rng());
        let code = events.map(|_| ()).map_err(|reject| reject.code);
        assert_eq!(code, if accepted { Ok(()) } else { Err(RejectCode::UpdateTooLarge) });
    }
}

#[test]
fn a_transport_bounds_the_members_of_a_cohort() {
    let mut conditions = setup(honest(2)).conditions;
    conditions.min_participants = 2;
    conditions.max_participants = None;
    let mut limited = conditions.clone();
    limited.limit_members(3).unwrap();
    assert_eq!(limited.max_participants, Some(3));
    for (max, min, limit, asked) in [(Some(3), 2, 3, Ok(3)), (Some(4), 2, 3, Err(4)), (None, 4, 3, Err(4))] {
        let mut limited = conditions.clone();
        (limited.max_participants, limited.min_participants) = (max, min);
        let result = limited.limit_members(limit);
        assert_eq!(result.map(|()| limited.max_participants.unwrap()).map_err(|error| error.asked), asked);
    }
}
