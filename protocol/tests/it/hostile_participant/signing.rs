//! The transaction, the nonce and the fallback.

use super::*;

#[test]
fn nothing_is_signed_before_the_data_is_approved() {
    let mut simulation = Simulation::new(1, setup(honest(3)));
    let genuine = withhold(&mut simulation, 0, "update/distribute_aggregated_data");
    for body in bodies::of_the_service(&simulation) {
        if body.short_type().starts_with("sign/") {
            let case = body.short_type();
            assert_refused(&mut simulation, 0, case, &with(&genuine, body), RejectCode::WrongPhase);
        }
    }
    assert!(simulation.participants()[0].opened_nonces().is_empty());
    deliver(&mut simulation, &genuine);
    assert_completes(&mut simulation, "early requests to sign", &[]);
}

/// Transactions that a member must not sign.
fn bad_transactions(tx: &Transaction) -> Vec<(&'static str, Transaction)> {
    let alter = |alter: &dyn Fn(&mut Transaction)| {
        let mut tx = tx.clone();
        alter(&mut tx);
        tx
    };
    let other_signal = ScriptBuf::new_op_return([7; 32]);
    let signal = tx.output.last().unwrap().clone();
    vec![
        ("the signal is not the last output", alter(&|tx| tx.output.reverse())),
        ("a second OP_RETURN", alter(&|tx| tx.output.insert(0, signal.clone()))),
        ("another signal", alter(&|tx| tx.output.last_mut().unwrap().script_pubkey = other_signal.clone())),
        (
            "another signal behind ours",
            alter(&|tx| {
                tx.output.push(TxOut { value: Amount::ZERO, script_pubkey: other_signal.clone() });
            }),
        ),
        ("a signal output that burns value", alter(&|tx| tx.output.last_mut().unwrap().value = Amount::ONE_SAT)),
        (
            "a short signal",
            alter(&|tx| {
                tx.output.last_mut().unwrap().script_pubkey = ScriptBuf::new_op_return([7; 31]);
            }),
        ),
        ("no signal", alter(&|tx| drop(tx.output.pop()))),
        ("no outputs", alter(&|tx| tx.output.clear())),
        ("two inputs", alter(&|tx| tx.input.push(TxIn::default()))),
        ("version 1", alter(&|tx| tx.version = Version::ONE)),
        ("a script in the input", alter(&|tx| tx.input[0].script_sig = ScriptBuf::from_bytes(vec![0x51]))),
    ]
}

#[test]
fn only_one_transaction_with_our_signal_is_signed() {
    let mut simulation = Simulation::new(1, setup(honest(3)));
    let genuine = withhold(&mut simulation, 0, "sign/authorization_request");
    let Body::AuthorizationRequest(request) = &*genuine.body else { panic!("{genuine:?}") };
    let mut cases = Vec::new();
    for (case, pending_tx) in bad_transactions(&request.pending_tx) {
        let mut body = request.clone();
        body.pending_tx = pending_tx;
        cases.push((case, body));
    }
    let mut elsewhere = request.clone();
    elsewhere.prev_out_script_hex = ScriptBuf::from_bytes([&[0x51, 0x20], [7; 32].as_slice()].concat());
    cases.push(("a coin of another script", elsewhere));
    for (case, body) in cases {
        assert_refused(&mut simulation, 0, case, &with(&genuine, body), RejectCode::TransactionMismatch);
    }
    assert!(simulation.participants()[0].opened_nonces().is_empty(), "no nonce for a rejected transaction");

    deliver(&mut simulation, &genuine);
    deliver(&mut simulation, &genuine);
    let mut other_session = request.clone();
    other_session.session_id = SessionId::parse("another-session").unwrap();
    let mut other_tx = request.clone();
    other_tx.pending_tx.output[0].value -= Amount::ONE_SAT;
    let mut other_value = request.clone();
    other_value.prev_out_value += Amount::ONE_SAT;
    for (case, body) in
        [("another session", other_session), ("another transaction", other_tx), ("another value", other_value)]
    {
        assert_refused(&mut simulation, 0, case, &with(&genuine, body), RejectCode::SessionSpent);
    }
    assert_eq!(simulation.participants()[0].opened_nonces().len(), 1, "one session, one nonce");
    let adversary = service(&simulation);
    assert_completes(&mut simulation, "bad transactions", &[adversary]);
    assert_eq!(simulation.report().signed.unwrap().path, SpendPath::KeyPath);
}

#[test]
fn a_nonce_signs_once_however_many_aggregates_the_service_sends() {
    let mut simulation = Simulation::new(1, setup(honest(3)));
    let genuine = withhold(&mut simulation, 0, "sign/aggregated_nonce");
    let Body::AggregatedNonce(body) = &*genuine.body else { panic!("{genuine:?}") };
    let mut garbage = body.clone();
    garbage.aggregated_nonce = Bytes([0xff; 66]);
    let mut other_session = body.clone();
    other_session.session_id = SessionId::parse("another-session").unwrap();
    assert_refused(&mut simulation, 0, "no points", &with(&genuine, garbage), RejectCode::InvalidNonce);
    let other_session = with(&genuine, other_session);
    assert_refused(&mut simulation, 0, "another session's", &other_session, RejectCode::WrongCohort);
    assert!(simulation.participants()[0].nonce_uses().is_empty());

    deliver(&mut simulation, &genuine);
    deliver(&mut simulation, &genuine);
    let mut other = body.clone();
    other.aggregated_nonce.0[0] ^= 1;
    let other = with(&genuine, other);
    assert_refused(&mut simulation, 0, "a second aggregate", &other, RejectCode::Equivocation);
    let uses = simulation.participants()[0].nonce_uses();
    assert_eq!(uses.len(), 1, "one nonce, one signature: {uses:?}");
    assert!(uses[0].partial.is_some());
    let adversary = service(&simulation);
    assert_completes(&mut simulation, "two aggregates", &[adversary]);

    // The wrong aggregate comes first: the member signs with it, and does not sign with the right one too.
    let mut simulation = Simulation::new(1, setup(honest(3)));
    let genuine = withhold(&mut simulation, 0, "sign/aggregated_nonce");
    let Body::AggregatedNonce(body) = &*genuine.body else { panic!("{genuine:?}") };
    let mut other = body.clone();
    other.aggregated_nonce.0[0] ^= 1;
    deliver(&mut simulation, &with(&genuine, other));
    assert_refused(&mut simulation, 0, "the right one afterwards", &genuine, RejectCode::Equivocation);
    assert_eq!(simulation.participants()[0].nonce_uses().len(), 1);
    simulation.run();
    simulation.assert_invariants();
    assert_eq!(simulation.report().signed.unwrap().path, SpendPath::ScriptPath);
}

#[test]
fn the_fallback_is_signed_only_for_the_same_transaction() {
    let roles = || {
        let mut roles = honest(4);
        roles[3] = Role::default().without(Slot::PartialSignature);
        roles
    };
    let mut simulation = Simulation::new(1, setup(roles()));
    let genuine = withhold(&mut simulation, 0, "sign/fallback_authorization_request");
    let Body::FallbackAuthorizationRequest(request) = &*genuine.body else { panic!("{genuine:?}") };
    let mut other_leaf = request.clone();
    other_leaf.fallback_leaf_script_hex = ScriptBuf::from_bytes(vec![0x51]);
    assert_refused(
        &mut simulation,
        0,
        "another leaf",
        &with(&genuine, other_leaf),
        RejectCode::TransactionMismatch,
    );
    let mut other_tx = request.clone();
    other_tx.pending_tx.output[0].value -= Amount::ONE_SAT;
    let mut other_session = request.clone();
    other_session.session_id = SessionId::parse("another-session").unwrap();
    let mut other_value = request.clone();
    other_value.prev_out_value += Amount::ONE_SAT;
    for (case, body) in
        [("another transaction", other_tx), ("another session", other_session), ("another value", other_value)]
    {
        assert_refused(&mut simulation, 0, case, &with(&genuine, body), RejectCode::SessionSpent);
    }
    deliver(&mut simulation, &genuine);
    deliver(&mut simulation, &genuine);
    let signed = simulation.participants()[0].events().iter();
    let signed = signed.filter(|event| matches!(event, ParticipantEvent::FallbackSignatureSent { .. })).count();
    assert_eq!(signed, 1, "a repeated request is signed once");
    let adversary = service(&simulation);
    assert_completes(&mut simulation, "bad fallback requests", &[adversary]);

    // The fallback is the first signing request that the member receives: it checks the transaction there too.
    let mut simulation = Simulation::new(1, setup(roles()));
    let first = withhold(&mut simulation, 0, "sign/authorization_request");
    let genuine = withhold(&mut simulation, 0, "sign/fallback_authorization_request");
    let Body::FallbackAuthorizationRequest(request) = &*genuine.body else { panic!("{genuine:?}") };
    for (case, pending_tx) in bad_transactions(&request.pending_tx) {
        let mut body = request.clone();
        body.pending_tx = pending_tx;
        assert_refused(&mut simulation, 0, case, &with(&genuine, body), RejectCode::TransactionMismatch);
    }
    deliver(&mut simulation, &genuine);
    deliver(&mut simulation, &first);
    assert!(simulation.participants()[0].opened_nonces().is_empty(), "no nonce once the fallback is signed");
    let adversary = service(&simulation);
    assert_completes(&mut simulation, "a fallback without a preceding request", &[adversary]);
}

#[test]
fn a_hosts_refusal_ends_only_its_own_session() {
    let refuses_to_sign = Role { signs: false, ..Role::default() };
    let mut roles: Vec<Role> = honest(4);
    roles[1] = refuses_to_sign;
    let setup: Setup = setup(roles);
    let mut simulation = Simulation::new(1, setup);
    run_to(&mut simulation, "fallback");
    assert_completes(&mut simulation, "a host that does not sign", &[]);
    let report = simulation.report();
    assert_eq!(report.ends[1], Some(SessionEnd::SigningRefused));
    assert_eq!(report.signed.unwrap().holdouts, [simulation.did(1)]);
    assert!(simulation.participants()[1].opened_nonces().is_empty(), "no nonce without the host's approval");
}
