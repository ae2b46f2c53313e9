//! A participant in each state of a round: the states are those of a simulated member's journal.

use std::{sync::Arc, time::Duration};

use bitcoin::{Amount, Transaction};
use btcr2_aggregation_protocol::{
    beacon::{BeaconData, BeaconType, CasAnnouncement},
    cohort::{
        event::{ParticipantEvent, SessionEnd, SpendPath},
        participant::{
            ParticipantCohort, ParticipantInput,
            phase::{Phase, PhaseKind, Stage},
        },
    },
    envelope::CLOCK_SKEW,
    error::{Fatal, RejectCode},
    hash::SignalBytes,
    id::{CohortId, SessionId},
    machine::{Machine, replay},
    message::{
        Bytes, Message, SharedBody,
        control::{CohortEnded, SignedTransaction},
        keygen::{CohortOptInAccept, CohortReady},
        sign::{AggregatedNonce, AuthorizationRequest, NonceContribution},
        update::DistributeAggregatedData,
    },
    sim::Simulation,
    time::Timestamp,
    update::SignedUpdate,
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use serde_json::json;

use crate::sim_support::{TIMEOUT, assert_named, bodies, config_of, honest, setup};

/// A complete round of three members by the key path, and the journal of its first member.
struct Round {
    simulation: Simulation,
    events: Vec<ParticipantEvent>,
}

impl Round {
    fn of(beacon: BeaconType) -> Self {
        let mut simulation = Simulation::new(3, setup(honest(3)).with_beacon(beacon));
        simulation.run();
        let events = simulation.participants()[0].events().to_vec();
        assert!(
            matches!(events.last(), Some(ParticipantEvent::SessionEnded { reason, .. }) if reason.says_completed())
        );
        Self { simulation, events }
    }

    fn blank(&self) -> ParticipantCohort {
        let advert = self.simulation.participants()[0].machine().unwrap().advert();
        ParticipantCohort::new(Arc::new(config_of(&self.simulation)), Arc::clone(advert))
    }

    /// The state after each event, the first one before all of them.
    fn states(&self) -> Vec<ParticipantCohort> {
        (0..=self.events.len()).map(|count| replay(self.blank(), &self.events[..count])).collect()
    }

    /// The last state in that phase.
    fn state(&self, kind: PhaseKind) -> ParticipantCohort {
        self.states().into_iter().rfind(|state| state.phase().kind() == kind).unwrap()
    }

    /// The state at that stage of signing.
    fn stage(&self, is: impl Fn(&Stage) -> bool) -> ParticipantCohort {
        let at = |state: &ParticipantCohort| matches!(state.phase(), Phase::Signing { stage, .. } if is(stage));
        self.states().into_iter().find(at).unwrap()
    }

    fn position(&self, is: impl Fn(&ParticipantEvent) -> bool) -> usize {
        self.events.iter().position(is).unwrap()
    }

    fn cohort_id(&self) -> CohortId {
        bodies::cohort_id(&self.simulation)
    }

    fn of_service(&self, body: impl Into<SharedBody>) -> Message {
        let service = self.simulation.service().identity().did().clone();
        Message::new(service, Some(self.simulation.did(0)), body)
    }
}

fn key_path() -> Round {
    Round::of(BeaconType::cas())
}

fn decide(
    state: &ParticipantCohort,
    input: &ParticipantInput,
) -> Result<Vec<ParticipantEvent>, btcr2_aggregation_protocol::error::Reject> {
    state.decide(now(state), input, &mut ChaCha8Rng::seed_from_u64(1))
}

fn now(state: &ParticipantCohort) -> Timestamp {
    state.deadline().map_or(Timestamp::from_secs(2_000_000_000), |deadline| deadline - Duration::from_secs(1))
}

fn deliver(
    state: &ParticipantCohort,
    message: Message,
) -> Result<Vec<ParticipantEvent>, btcr2_aggregation_protocol::error::Reject> {
    decide(state, &ParticipantInput::Message(message))
}

fn ends(events: &[ParticipantEvent]) -> Option<&SessionEnd> {
    match events {
        [ParticipantEvent::SessionEnded { reason, .. }] => Some(reason),
        [] => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_event_of_a_round_changes_the_participant() {
    let states = key_path().states();
    for pair in states.windows(2) {
        assert_ne!(pair[0], pair[1], "{:?}", pair[1].phase());
    }
    let accepted = states.iter().find(|state| matches!(state.phase(), Phase::OptedIn { accepted: true, .. }));
    assert!(accepted.is_some(), "the acceptance is remembered");
}

#[test]
fn leaving_and_failing_end_a_session_once() {
    for state in key_path().states() {
        let over = state.phase().kind() == PhaseKind::Ended;
        let left = decide(&state, &ParticipantInput::Leave).unwrap();
        assert_eq!(ends(&left), (!over).then_some(&SessionEnd::Left));
        let failed = decide(&state, &ParticipantInput::Abort(Fatal("disk full".into()))).unwrap();
        let internal = SessionEnd::Internal { reason: "disk full".into() };
        assert_eq!(ends(&failed), (!over).then_some(&internal));
    }
}

#[test]
fn the_services_end_counts_once() {
    let round = key_path();
    let body = CohortEnded {
        cohort_id: round.cohort_id(),
        code: "CANCELLED".into(),
        reason: "by the operator".into(),
        at_fault: false,
        next_cohort_id: None,
        signed: None,
        opt_in: None,
    };
    for state in round.states() {
        let events = deliver(&state, round.of_service(body.clone())).unwrap();
        match state.phase().kind() {
            PhaseKind::Ended => assert_eq!(events, []),
            PhaseKind::Planned | PhaseKind::Invited => assert_eq!(ends(&events), Some(&SessionEnd::NotJoined)),
            _ => assert!(matches!(ends(&events), Some(SessionEnd::EndedByService { .. })), "{events:?}"),
        }
    }
}

#[test]
fn only_an_opt_in_is_accepted_and_only_once() {
    let round = key_path();
    let accept = || round.of_service(CohortOptInAccept { cohort_id: round.cohort_id() });
    for state in round.states() {
        let events = deliver(&state, accept());
        match state.phase() {
            Phase::OptedIn { accepted: false, .. } => {
                assert_eq!(events.unwrap(), [ParticipantEvent::OptInAccepted]);
            }
            Phase::Planned | Phase::Invited { .. } | Phase::Ended { .. } => {
                assert_named("not asked for", events, &accept().from, RejectCode::WrongPhase);
            }
            _ => assert_eq!(events.unwrap(), []),
        }
    }
}

#[test]
fn a_host_that_does_not_join_ends_the_session() {
    for state in key_path().states() {
        let events = decide(&state, &ParticipantInput::JoinDecided(false)).unwrap();
        let invited = state.phase().kind() == PhaseKind::Invited;
        assert_eq!(ends(&events), invited.then_some(&SessionEnd::NotJoined));
    }
}

#[test]
fn what_may_be_announced_is_on_record_from_approval_on() {
    let round = key_path();
    let approval = round.position(|event| matches!(event, ParticipantEvent::ValidationSent { .. }));
    let signature = round.position(|event| matches!(event, ParticipantEvent::PartialSignatureSent { .. }));
    let seen = round.position(|event| matches!(event, ParticipantEvent::TransactionSeen { .. }));
    for (count, state) in round.states().iter().enumerate() {
        assert_eq!(state.approved().is_some(), count > approval, "{:?}", state.phase());
        assert_eq!(state.record().is_some(), count > signature, "{:?}", state.phase());
        assert_eq!(state.seen().is_some(), count > seen, "{:?}", state.phase());
    }
    let signed = round.simulation.report().signed.unwrap();
    assert_eq!(**round.states().last().unwrap().seen().unwrap(), signed.transaction);
}

#[test]
fn the_keys_of_a_large_cohort_are_heavy() {
    let round = key_path();
    let state = round.state(PhaseKind::OptedIn);
    for (n, heavy) in [(31, false), (32, true)] {
        let cohort_keys = vec![Bytes([2; 33]); n];
        let ready = CohortReady { cohort_id: round.cohort_id(), beacon_address: String::new(), cohort_keys };
        let message = round.of_service(ready);
        let stored = ParticipantInput::Stored { message: message.clone(), said: now(&state) };
        assert_eq!(state.is_heavy(&stored), heavy, "{n}");
        assert_eq!(state.is_heavy(&ParticipantInput::Message(message)), heavy, "{n}");
    }
    assert!(!state.is_heavy(&ParticipantInput::Tick));
    let accept = round.of_service(CohortOptInAccept { cohort_id: round.cohort_id() });
    assert!(!state.is_heavy(&ParticipantInput::Message(accept)));
}

#[test]
fn a_participant_names_the_phase_that_timed_out() {
    for state in key_path().states() {
        let Some(deadline) = state.deadline() else { continue };
        let events = state.decide(deadline, &ParticipantInput::Tick, &mut ChaCha8Rng::seed_from_u64(1)).unwrap();
        let expected = match state.phase() {
            Phase::Invited { .. } => SessionEnd::NotJoined,
            Phase::Signing { stage, .. } if stage.has_signed() => SessionEnd::Signed,
            phase => SessionEnd::TimedOut { phase: phase.kind().as_str().to_owned() },
        };
        assert_eq!(ends(&events), Some(&expected));
    }
}

#[test]
fn only_before_signing_the_ttl_bounds_the_wait() {
    let round = key_path();
    let timing = round.simulation.setup().timing;
    let [ParticipantEvent::CohortDiscovered { at: started, .. }, ..] = round.events[..] else { panic!() };
    let late = started + timing.cohort_ttl;
    let requested = round.position(|event| matches!(event, ParticipantEvent::SigningRequested { .. }));
    let mut state = replay(round.blank(), &round.events[..requested]);
    let mut request = round.events[requested].clone();
    if let ParticipantEvent::SigningRequested { at, until, .. } = &mut request {
        (*at, *until) = (late, None);
    }
    state.apply(&request);
    assert_eq!(state.deadline(), Some(late + TIMEOUT * 3), "it waits for the service as long as ever");

    let submitted = round.position(|event| matches!(event, ParticipantEvent::DataReceived { .. }));
    let mut state = replay(round.blank(), &round.events[..submitted]);
    let mut data = round.events[submitted].clone();
    if let ParticipantEvent::DataReceived { at, .. } = &mut data {
        *at = late;
    }
    state.apply(&data);
    assert_eq!(state.deadline(), Some(late + TIMEOUT), "one phase for the last message before signing");
}

fn authorization(round: &Round, session_deadline: Option<u64>) -> Message {
    let task = round.simulation.service().session().unwrap().machine().task().clone();
    round.of_service(AuthorizationRequest {
        cohort_id: task.cohort_id.clone(),
        session_id: task.session_id.clone(),
        pending_tx: task.transaction.clone(),
        prev_out_script_hex: task.output.script_pubkey().to_owned(),
        prev_out_value: task.value,
        session_deadline,
    })
}

#[test]
fn the_services_deadline_is_believed_within_one_ttl() {
    let round = key_path();
    let state = round.state(PhaseKind::Approved);
    let until = |stated: Timestamp| {
        let events = deliver(&state, authorization(&round, Some(stated.as_secs()))).unwrap();
        let [ParticipantEvent::SigningRequested { until, .. }] = events[..] else { panic!("{events:?}") };
        until.unwrap()
    };
    let now = now(&state);
    let stated = Timestamp::from_secs(now.as_secs() + 100);
    assert_eq!(until(stated), stated + CLOCK_SKEW);
    assert_eq!(until(now + TIMEOUT * 100), now + round.simulation.setup().timing.cohort_ttl);
}

/// Another transaction than the one that the members were asked to sign, signed on the fallback leaf.
fn another_signed(round: &Round) -> Transaction {
    let task = round.simulation.service().session().unwrap().machine().task().clone();
    let mut other = task.transaction.clone();
    other.output[0].value -= Amount::ONE_SAT;
    let leaf = task.output.fallback().unwrap();
    let digest = leaf.sighash(&other, &task.prevout()).unwrap();
    let keys = round.simulation.participants().iter().map(|node| Arc::clone(node.participant_key()));
    let sign =
        |key: &btcr2_aggregation_protocol::key::SecretKey| key.sign(&digest, &mut ChaCha8Rng::seed_from_u64(1));
    let signatures = keys.map(|key| (key.public_key().x_only(), sign(&key))).collect();
    leaf.assemble(&other, &task.prevout(), &signatures).unwrap()
}

#[test]
fn a_member_that_was_asked_expects_that_transaction() {
    let round = key_path();
    let tx = Arc::new(another_signed(&round));
    let prev_out_value = round.simulation.service().session().unwrap().machine().task().value;
    let ended = || {
        round.of_service(CohortEnded {
            cohort_id: round.cohort_id(),
            code: CohortEnded::COMPLETED.into(),
            reason: String::new(),
            at_fault: false,
            next_cohort_id: None,
            signed: Some(SignedTransaction { tx: Arc::clone(&tx), prev_out_value }),
            opt_in: None,
        })
    };
    // Without a request it is one that announces what the member approved.
    let events = deliver(&round.state(PhaseKind::Approved), ended()).unwrap();
    assert!(matches!(events[..], [ParticipantEvent::TransactionSeen { path: SpendPath::ScriptPath, .. }, _]));
    let refused = deliver(&round.stage(|stage| matches!(stage, Stage::Deciding(_))), ended());
    assert_named("another transaction", refused, &ended().from, RejectCode::TransactionMismatch);
}

#[test]
fn own_nonces_of_a_lost_journal_spend_their_session() {
    let round = key_path();
    let session_id = bodies::session_id(&round.simulation);
    let own = |cohort_id: CohortId, session_id: &SessionId, nonce| {
        let body = NonceContribution { cohort_id, session_id: session_id.clone(), nonce_contribution: nonce };
        ParticipantInput::Seen(Message::new(round.simulation.did(0), None, body))
    };
    let sent = round.stage(|stage| matches!(stage, Stage::NonceSent(_)));
    let Phase::Signing { stage: Stage::NonceSent(ours), .. } = sent.phase() else { panic!() };
    let (ours, other) = (*ours, Bytes([2; 66]));
    let seen = |state: &ParticipantCohort, session_id: &SessionId, nonce| {
        decide(state, &own(round.cohort_id(), session_id, nonce)).unwrap()
    };
    assert_eq!(seen(&sent, &session_id, ours), []);
    let events = seen(&sent, &session_id, other);
    assert!(
        matches!(events[..], [ParticipantEvent::NonceSeen { .. }, ParticipantEvent::NonceLost { .. }]),
        "{events:?}"
    );
    let another = SessionId::parse("another-session").unwrap();
    assert_eq!(seen(&sent, &another, other), [], "the session that is open is another one");
    assert_eq!(seen(&round.state(PhaseKind::Ended), &session_id, other), []);
    let approved = round.state(PhaseKind::Approved);
    assert!(matches!(seen(&approved, &session_id, other)[..], [ParticipantEvent::NonceSeen { .. }]));
    let other_cohort = own(CohortId::parse("another-cohort").unwrap(), &session_id, other);
    assert_eq!(decide(&approved, &other_cohort).unwrap(), []);
    let of_another = NonceContribution { cohort_id: round.cohort_id(), session_id, nonce_contribution: other };
    let of_another = Message::new(round.simulation.did(1), None, of_another);
    assert_eq!(decide(&approved, &ParticipantInput::Seen(of_another)).unwrap(), []);
}

#[test]
fn an_aggregate_nonce_before_any_request_spends_its_session() {
    let round = key_path();
    let session_id = bodies::session_id(&round.simulation);
    let body = AggregatedNonce {
        cohort_id: round.cohort_id(),
        session_id: session_id.clone(),
        aggregated_nonce: Bytes([0; 66]),
    };
    let mut approved = round.state(PhaseKind::Approved);
    let events = deliver(&approved, round.of_service(body.clone())).unwrap();
    assert!(matches!(events[..], [ParticipantEvent::NonceSeen { .. }]), "{events:?}");
    approved = replay(approved, &events);
    // What the host still answers opens no nonce in that session.
    let requested = deliver(&approved, authorization(&round, None)).unwrap();
    approved = replay(approved, &requested);
    let at = now(&approved);
    approved.apply(&ParticipantEvent::SigningApproved { at });
    assert_eq!(decide(&approved, &ParticipantInput::NonceOpened(Bytes([2; 66]))).unwrap(), []);
    let refused = deliver(&round.state(PhaseKind::Submitted), round.of_service(body.clone()));
    assert_named("nothing is approved", refused, &round.of_service(body).from, RejectCode::WrongPhase);
}

#[test]
fn a_fallback_request_continues_from_where_the_member_is() {
    let round = key_path();
    let request = |mut state: ParticipantCohort| {
        let at = now(&state);
        state.apply(&ParticipantEvent::FallbackRequested { at });
        state
    };
    let undecided = request(round.stage(|stage| matches!(stage, Stage::Deciding(_))));
    assert!(matches!(undecided.phase(), Phase::Signing { stage: Stage::Deciding(SpendPath::ScriptPath), .. }));
    let nonce_sent = request(round.stage(|stage| matches!(stage, Stage::NonceSent(_))));
    assert!(matches!(nonce_sent.phase(), Phase::Signing { stage: Stage::Approved(SpendPath::ScriptPath), .. }));
    assert_eq!(nonce_sent.record(), None);
    let signed = request(round.stage(|stage| matches!(stage, Stage::PartialSent { .. })));
    assert!(matches!(signed.phase(), Phase::Signing { stage: Stage::FallbackAfterPartial, .. }));
    assert!(signed.record().is_some(), "its partial signature is out");
}

#[test]
fn repeated_data_is_harmless_and_other_data_equivocation() {
    let round = key_path();
    let data = round.events.iter().find_map(|event| match event {
        ParticipantEvent::DataReceived { data, verdict: Ok(signal), .. } => Some((Arc::clone(data), *signal)),
        _ => None,
    });
    let (data, signal) = data.unwrap();
    let message = |signal: SignalBytes, data: &BeaconData| {
        round.of_service(DistributeAggregatedData::new(round.cohort_id(), BeaconType::cas(), signal, data))
    };
    let other = BeaconData::Cas(CasAnnouncement::default());
    for state in round.states() {
        let kind = state.phase().kind();
        if !matches!(kind, PhaseKind::Validating | PhaseKind::Approved | PhaseKind::Signing) {
            continue;
        }
        assert_eq!(deliver(&state, message(signal, &data)).unwrap(), [], "{kind}");
        let refused = deliver(&state, message(signal, &other));
        assert_named("other data", refused, &message(signal, &other).from, RejectCode::Equivocation);
    }
}

/// The journal with `change` applied to every event, as an earlier version could have written it.
fn outdated_states(round: &Round, change: impl Fn(&mut ParticipantEvent)) -> Vec<ParticipantCohort> {
    let mut events = round.events.clone();
    events.iter_mut().for_each(change);
    (0..=events.len()).map(|count| replay(round.blank(), &events[..count])).collect()
}

fn is_ended_by_resuming(state: &ParticipantCohort) -> bool {
    let events = decide(state, &ParticipantInput::Resumed).unwrap();
    ends(&events).inspect(|reason| assert_eq!(**reason, SessionEnd::Outdated)).is_some()
}

#[test]
fn an_update_of_an_earlier_edition_ends_unsigned_sessions() {
    let round = key_path();
    assert!(!round.states().iter().any(is_ended_by_resuming));
    let old = SignedUpdate::from_value(json!({ "targetVersionId": 2 })).unwrap();
    let states = outdated_states(&round, |event| {
        if let ParticipantEvent::UpdateSubmitted { update, .. } = event {
            *update = old.clone();
        }
    });
    for state in states {
        let expected = match state.phase() {
            Phase::Signing { stage, .. } => !stage.has_signed(),
            phase => {
                matches!(phase, Phase::Submitted { .. } | Phase::Validating { .. } | Phase::Approved { .. })
            }
        };
        assert_eq!(is_ended_by_resuming(&state), expected, "{:?}", state.phase());
    }
}

#[test]
fn a_proof_of_an_earlier_edition_ends_unsigned_sessions() {
    let round = Round::of(BeaconType::smt());
    assert!(!round.states().iter().any(is_ended_by_resuming));
    let of_another = round.simulation.participants()[1].events().iter().find_map(|event| match event {
        ParticipantEvent::DataReceived { data, .. } => Some(Arc::clone(data)),
        _ => None,
    });
    let of_another = of_another.unwrap();
    for refused in [false, true] {
        let states = outdated_states(&round, |event| {
            if let ParticipantEvent::DataReceived { data, verdict, .. } = event {
                *data = Arc::clone(&of_another);
                if refused {
                    *verdict = Err("it is another's".into());
                }
            }
        });
        for state in states {
            let expected = match state.phase() {
                // Data that the member refuses anyway is reported as such.
                Phase::Validating { verdict, .. } => verdict.is_ok(),
                Phase::Approved { .. } => true,
                Phase::Signing { stage, .. } => !stage.has_signed(),
                _ => false,
            };
            assert_eq!(is_ended_by_resuming(&state), expected, "{:?}", state.phase());
        }
    }
}
