//! The coordinator's signing session by itself: whom it asks again after a restart, how long it can take, and what it
//! records when members send what is not valid.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bitcoin::{Amount, Transaction, TxIn, absolute::LockTime, transaction::Version};
use btcr2_aggregation_protocol::{
    cohort::{
        Timing, Unreached,
        service::rules::{Answer, PhaseRule, PhaseRules, TimedPhase},
    },
    did::Did,
    error::{Fault, RejectCode, Slot},
    id::{CohortId, SessionId},
    key::SecretKey,
    machine::{Machine, replay, step},
    message::{
        Body, Bytes, Message,
        sign::{FallbackSignature, NonceContribution, SignatureAuthorization},
    },
    network::Network,
    output::{BeaconOutput, KeyAggregation, ScriptTree, SpendPath},
    signing::{
        SigningOutcome, SigningTask, SigningTerms,
        nonce::SecretNonce,
        session::{SessionEffect, SessionEvent, SessionInput, SessionPhase, SigningSession},
    },
    time::Timestamp,
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use serde_json::json;

const START: Timestamp = Timestamp::from_secs(1_000_000);
const SESSION: &str = "session";

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(1)
}

fn keys(n: usize) -> Vec<SecretKey> {
    (1..=n).map(|index| SecretKey::from_bytes(&[index as u8; 32]).unwrap()).collect()
}

fn task(n: usize, session_id: &str, rules: PhaseRules) -> SigningTask {
    let keys: Vec<_> = keys(n).iter().map(SecretKey::public_key).collect();
    let aggregation = KeyAggregation::new(keys.iter().copied()).unwrap();
    let tree = ScriptTree::FallbackAndRecovery {
        fallback_threshold: None,
        recovery_key: keys[0].x_only(),
        recovery_sequence: 144.try_into().unwrap(),
    };
    let dids: Vec<Did> = keys.iter().map(|key| Did::from_key(*key, Network::Regtest)).collect();
    SigningTask::new(SigningTerms {
        cohort_id: CohortId::parse("cohort").unwrap(),
        session_id: SessionId::parse(session_id).unwrap(),
        service: dids[0].clone(),
        output: BeaconOutput::new(Arc::new(aggregation), Network::Regtest, &tree).unwrap(),
        members: dids.into_iter().zip(keys).collect(),
        transaction: Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![TxIn::default()],
            output: vec![],
        },
        value: Amount::from_sat(10_000),
        timing: Timing::default(),
        rules,
        absent: Vec::new(),
        unreached: Unreached::default(),
    })
    .unwrap()
}

fn opened(n: usize, rules: PhaseRules) -> SigningSession {
    let mut session = SigningSession::new(Arc::new(task(n, SESSION, rules)));
    step(&mut session, START, &SessionInput::Open, &mut rng()).unwrap();
    session
}

fn member(session: &SigningSession, index: usize) -> Did {
    session.task().members.keys().nth(index).unwrap().clone()
}

/// Each member's secret key and nonce.
type Nonces = BTreeMap<Did, (SecretKey, SecretNonce, Bytes<66>)>;

fn nonces(session: &SigningSession) -> Nonces {
    let task = session.task();
    let nonces = keys(task.members.len()).into_iter().map(|key| {
        let (secret, public) = SecretNonce::generate(&key, &task.output, &mut rng());
        (Did::from_key(key.public_key(), Network::Regtest), (key, secret, public))
    });
    nonces.collect()
}

fn contribution(session: &SigningSession, from: &Did, nonce: Bytes<66>) -> SessionInput {
    let body = NonceContribution {
        cohort_id: session.task().cohort_id.clone(),
        session_id: session.task().session_id.clone(),
        nonce_contribution: nonce,
    };
    SessionInput::Message(Message::new(from.clone(), None, body))
}

fn partial(session: &SigningSession, from: &Did, nonces: &mut Nonces) -> SessionInput {
    let SessionPhase::CollectingPartialSignatures { aggregated, .. } = session.phase() else {
        panic!("{session:?}")
    };
    let (key, secret, _) = nonces.remove(from).unwrap();
    let task = session.task();
    let partial_signature = secret.sign(&key, &task.output, aggregated, task.key_path_sighash()).unwrap();
    let (cohort_id, session_id) = (task.cohort_id.clone(), task.session_id.clone());
    let body = SignatureAuthorization { cohort_id, session_id, partial_signature };
    SessionInput::Message(Message::new(from.clone(), None, body))
}

/// Feeds the nonces of all members but the last `missing`.
fn feed_nonces(session: &mut SigningSession, nonces: &Nonces, missing: usize) {
    for index in 0..nonces.len() - missing {
        let did = member(session, index);
        let input = contribution(session, &did, nonces[&did].2);
        step(session, START, &input, &mut rng()).unwrap();
    }
}

fn recipients(effects: &[SessionEffect]) -> Vec<(Did, &'static str)> {
    let sent = |effect: &SessionEffect| match effect {
        SessionEffect::Send { to, body } => (to.clone(), body.short_type()),
        SessionEffect::Finished(outcome) => panic!("{outcome:?}"),
    };
    effects.iter().map(sent).collect()
}

#[test]
fn after_a_restart_only_those_that_did_not_answer_are_asked() {
    let mut session = opened(3, PhaseRules::default());
    let mut nonces = nonces(&session);
    feed_nonces(&mut session, &nonces, 2);
    let (first, second, third) = (member(&session, 0), member(&session, 1), member(&session, 2));
    let asked = |session: &SigningSession, of: &[&Did], kind: &'static str| {
        let expected: Vec<_> = of.iter().map(|did| ((*did).clone(), kind)).collect();
        assert_eq!(recipients(&session.resume()), expected);
    };
    asked(&session, &[&second, &third], "sign/authorization_request");

    for did in [&second, &third] {
        let input = contribution(&session, did, nonces[did].2);
        step(&mut session, START, &input, &mut rng()).unwrap();
    }
    let input = partial(&session, &second, &mut nonces);
    step(&mut session, START, &input, &mut rng()).unwrap();
    asked(&session, &[&first, &third], "sign/aggregated_nonce");

    step(&mut session, START, &SessionInput::Fallback("as requested".into()), &mut rng()).unwrap();
    let key = &keys(3)[0];
    let did = Did::from_key(key.public_key(), Network::Regtest);
    let signature = key.sign(session.task().fallback_sighash().unwrap(), &mut rng());
    let body = FallbackSignature {
        cohort_id: session.task().cohort_id.clone(),
        session_id: session.task().session_id.clone(),
        signer_pk: Bytes(key.public_key().x_only().to_bytes()),
        fallback_signature: Bytes(signature.to_bytes()),
    };
    let input = SessionInput::Message(Message::new(did.clone(), None, body));
    step(&mut session, START, &input, &mut rng()).unwrap();
    let others: Vec<&Did> = [&first, &second, &third].into_iter().filter(|other| **other != did).collect();
    asked(&session, &others, "sign/fallback_authorization_request");

    let failed = SessionEvent::SessionFailed {
        at: START,
        phase: TimedPhase::Fallback,
        reason: "no one signs".into(),
        holdouts: Vec::new(),
        unreached: Unreached::default(),
    };
    session.apply(&failed);
    assert!(matches!(session.resume()[..], [SessionEffect::Finished(SigningOutcome::Failed { .. })]));
}

#[test]
fn a_journal_that_ends_at_the_latch_owes_no_request() {
    let mut session = opened(2, PhaseRules::default());
    let latch = SessionEvent::PathChosen {
        at: START,
        path: SpendPath::KeyPath,
        reason: None,
        holdouts: Vec::new(),
        unreached: Unreached::default(),
    };
    session.apply(&latch);
    assert_eq!(session.phase(), &SessionPhase::KeyPath);
    assert_eq!((session.resume(), session.deadline()), (Vec::new(), None));
}

#[test]
fn sessions_in_different_states_differ() {
    let session = opened(2, PhaseRules::default());
    assert_eq!(session, session.clone());
    let (at, until) = (START, session.deadline().unwrap());
    let fault = Fault {
        did: member(&session, 0),
        code: RejectCode::InvalidNonce,
        slot: Slot::Nonce,
        detail: "not a point".into(),
    };
    let (did, nonce) = (fault.did.clone(), Bytes([2; 66]));
    let SessionInput::Message(message) = contribution(&session, &did, nonce) else { panic!() };
    let digest = message.digest();
    for event in [
        SessionEvent::PhaseExtended { at, phase: TimedPhase::Nonces, until },
        SessionEvent::FaultRecorded { fault },
        SessionEvent::NonceReceived { did, nonce, digest },
    ] {
        assert_ne!(replay(session.clone(), [&event]), session, "{event:?}");
    }
    let other = Arc::new(task(2, "another-session", PhaseRules::default()));
    assert_ne!(SigningSession::new(other), SigningSession::new(Arc::clone(session.task())));
}

#[test]
fn the_request_names_the_latest_end_of_the_session() {
    let mut rules = PhaseRules::default();
    for (phase, extensions) in
        [(TimedPhase::Nonces, 1), (TimedPhase::PartialSignatures, 2), (TimedPhase::Fallback, 3)]
    {
        let then = rules.rule(phase).then;
        rules.set(phase, PhaseRule { timeout: Some(Duration::from_secs(60)), extensions, then }).unwrap();
    }
    let mut session = SigningSession::new(Arc::new(task(3, SESSION, rules)));
    let requests = step(&mut session, START, &SessionInput::Open, &mut rng()).unwrap().effects;
    let SessionEffect::Send { body, .. } = &requests[0] else { panic!("{requests:?}") };
    let Body::AuthorizationRequest(request) = &**body else { panic!("{body:?}") };
    let latest = request.session_deadline.unwrap();

    // Every phase takes as long as it can; the last nonce arrives at the last moment.
    let nonces = nonces(&session);
    feed_nonces(&mut session, &nonces, 1);
    let mut now = session.deadline().unwrap();
    step(&mut session, now, &SessionInput::Tick, &mut rng()).unwrap();
    now = session.deadline().unwrap();
    let last = member(&session, 2);
    let input = contribution(&session, &last, nonces[&last].2);
    step(&mut session, now, &input, &mut rng()).unwrap();
    while let Some(deadline) = session.deadline() {
        now = deadline;
        step(&mut session, now, &SessionInput::Tick, &mut rng()).unwrap();
    }
    assert!(matches!(session.phase(), SessionPhase::Ended(_)));
    assert_eq!(now.since(START), Duration::from_secs(120 + 180 + 240));
    assert!(now.as_secs() <= latest, "it ended at {now:?}, after {latest}");
}

#[test]
fn a_phase_of_no_length_is_not_extended() {
    let mut rules = PhaseRules::default();
    let rule = PhaseRule { timeout: Some(Duration::ZERO), extensions: 1, then: Answer::FallBack };
    rules.set(TimedPhase::Nonces, rule).unwrap();
    let mut session = opened(2, rules);
    step(&mut session, START, &SessionInput::Tick, &mut rng()).unwrap();
    assert!(matches!(session.phase(), SessionPhase::Fallback { .. }), "{session:?}");
}

/// [`PhaseRules::set`] refuses such a rule; one from a file or a journal was not set.
#[test]
fn the_fallback_does_not_fall_back_to_itself() {
    let rules = json!({
        "changed": {"fallback": {"timeout": null, "extensions": 0, "then": "fall-back"}},
        "reformations": 0,
        "presence_check": false,
    });
    let mut session = opened(2, serde_json::from_value(rules).unwrap());
    step(&mut session, START, &SessionInput::Fallback("as requested".into()), &mut rng()).unwrap();
    let lapsed = session.deadline().unwrap();
    step(&mut session, lapsed, &SessionInput::Tick, &mut rng()).unwrap();
    assert!(matches!(session.phase(), SessionPhase::Ended(SigningOutcome::Failed { .. })), "{session:?}");
}

#[test]
fn a_corrected_nonce_makes_no_culprit_of_a_later_phase() {
    let mut session = opened(2, PhaseRules::default());
    let nonces = nonces(&session);
    let did = member(&session, 0);
    let invalid = contribution(&session, &did, Bytes([0xff; 66]));
    step(&mut session, START, &invalid, &mut rng()).unwrap();
    assert_eq!(session.faults().iter().count(), 1);
    feed_nonces(&mut session, &nonces, 0);
    step(&mut session, START, &SessionInput::Fallback("as requested".into()), &mut rng()).unwrap();
    let SessionPhase::Fallback { holdouts, culprits, .. } = session.phase() else { panic!("{session:?}") };
    assert_eq!((holdouts.len(), culprits.len()), (2, 0), "it is only silent, as the other is");
}

#[test]
fn the_last_contribution_of_a_large_cohort_is_heavy() {
    for (n, large) in [(31, false), (32, true)] {
        let mut session = opened(n, PhaseRules::default());
        let mut nonces = nonces(&session);
        let last = member(&session, n - 1);
        let input = contribution(&session, &last, nonces[&last].2);
        assert!(!session.is_heavy(&input), "{n}: the first nonce");
        feed_nonces(&mut session, &nonces, 1);
        assert_eq!(session.is_heavy(&input), large, "{n}: the last nonce");
        assert!(!session.is_heavy(&SessionInput::Tick), "{n}");
        step(&mut session, START, &input, &mut rng()).unwrap();
        assert!(!session.is_heavy(&input), "{n}: all nonces are there");
        for index in 0..n - 1 {
            let input = partial(&session, &member(&session, index), &mut nonces);
            assert!(!session.is_heavy(&input), "{n}: partial signature {index}");
            step(&mut session, START, &input, &mut rng()).unwrap();
        }
        let input = partial(&session, &last, &mut nonces);
        assert_eq!(session.is_heavy(&input), large, "{n}: the last partial signature");
        step(&mut session, START, &input, &mut rng()).unwrap();
        assert!(matches!(session.phase(), SessionPhase::Ended(SigningOutcome::Signed(_))));
        assert!(!session.is_heavy(&input), "{n}: it is over");
    }
}
