//! Members that sign wrongly: the fallback completes, and only the culprit is named.

use std::{cell::RefCell, rc::Rc};

use crate::sim_support::{assert_completes, assert_invalid, assert_refused, bodies, honest, run_to, setup};
use btcr2_aggregation_protocol::{
    cohort::event::{CohortFailure, SpendPath},
    did::Did,
    error::{RejectCode, Slot},
    message::{
        Body, Bytes, Message,
        sign::{FallbackSignature, NonceContribution, SignatureAuthorization},
    },
    output::ScriptTree,
    signing::session::SessionEvent,
    sim::{Role, Simulation},
};
use musig2::{
    PubNonce,
    secp::{MaybePoint, MaybeScalar, Point, Scalar},
};

/// The order of the group, big-endian: the smallest number that is not a scalar.
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xba, 0xae,
    0xdc, 0xe6, 0xaf, 0x48, 0xa0, 0x3b, 0xbf, 0xd2, 0x5e, 0x8c, 0xd0, 0x36, 0x41, 0x41,
];

fn plus(signature: Bytes<32>, error: i8) -> Bytes<32> {
    let one = MaybeScalar::from(Scalar::one());
    let scalar = MaybeScalar::from_slice(&signature.0).unwrap();
    Bytes((if error > 0 { scalar + one } else { scalar - one }).serialize())
}

fn tamper_partial(
    simulation: &mut Simulation,
    who: usize,
    mut alter: impl FnMut(Bytes<32>) -> Bytes<32> + 'static,
) {
    let did = simulation.did(who);
    simulation.tamper(&did, move |message| match &*message.body {
        Body::SignatureAuthorization(body) => {
            let altered =
                SignatureAuthorization { partial_signature: alter(body.partial_signature), ..body.clone() };
            vec![Message::new(message.from.clone(), message.to.clone(), altered).to_json()]
        }
        _ => vec![message.to_json()],
    });
}

fn assert_falls_back(simulation: &mut Simulation, case: &str, culprits: &[Did]) {
    assert_completes(simulation, case, culprits);
    let signed = simulation.report().signed.unwrap();
    assert_eq!(signed.path, SpendPath::ScriptPath, "{case}");
    assert_eq!(signed.culprits, culprits, "{case}: only the culprits are named");
    assert!(signed.holdouts.is_empty(), "{case}: {:?} were given no time", signed.holdouts);
}

#[test]
fn bad_partial_signatures_are_named_and_the_fallback_completes() {
    for n in [2, 4, 7] {
        for (case, alter) in [
            ("zero", (|_| Bytes([0; 32])) as fn(Bytes<32>) -> Bytes<32>),
            ("the order of the group", |_| Bytes(ORDER)),
            ("the largest number", |_| Bytes([0xff; 32])),
            ("a random number", |_| Bytes([0x5a; 32])),
            ("the right one plus one", |signature| plus(signature, 1)),
            ("the negated one", |signature| Bytes((-MaybeScalar::from_slice(&signature.0).unwrap()).serialize())),
        ] {
            for adversary in [0, n - 1] {
                let mut simulation = Simulation::new(n as u64, setup(honest(n)));
                tamper_partial(&mut simulation, adversary, alter);
                let culprit = simulation.did(adversary);
                assert_falls_back(&mut simulation, &format!("{case} from {adversary} of {n}"), &[culprit]);
            }
        }
    }
}

#[test]
fn another_members_partial_signature_is_invalid() {
    let mut simulation = Simulation::new(1, setup(honest(4)));
    let seen = Rc::new(RefCell::new(None));
    let copy = Rc::clone(&seen);
    tamper_partial(&mut simulation, 0, move |signature| {
        *seen.borrow_mut() = Some(signature);
        signature
    });
    tamper_partial(&mut simulation, 3, move |_| copy.borrow().expect("member 0 signs first"));
    let culprit = simulation.did(3);
    assert_falls_back(&mut simulation, "member 0's partial signature from member 3", &[culprit]);
}

#[test]
fn errors_that_cancel_out_are_named_and_hide_no_third() {
    for n in 4..=8 {
        let mut setup = setup(honest(n));
        if let ScriptTree::FallbackAndRecovery { fallback_threshold, .. } = &mut setup.conditions.script_tree {
            *fallback_threshold = Some((n as u16 - 3).max(1));
        }
        let mut simulation = Simulation::new(1, setup);
        tamper_partial(&mut simulation, 0, |signature| plus(signature, 1));
        tamper_partial(&mut simulation, 1, |signature| plus(signature, -1));
        tamper_partial(&mut simulation, 2, |_| Bytes([0x5a; 32]));
        let adversaries: Vec<Did> = (0..3).map(|index| simulation.did(index)).collect();
        assert_completes(&mut simulation, "a third error beside two that cancel out", &adversaries);
        let signed = simulation.report().signed.unwrap();
        assert_eq!(signed.path, SpendPath::ScriptPath, "n = {n}");
        let mut expected = adversaries.clone();
        expected.sort();
        assert_eq!(signed.culprits, expected, "n = {n}");
    }
}

#[test]
fn a_nonce_that_cancels_the_others_exposes_its_sender() {
    let n = 4;
    let mut simulation = Simulation::new(1, setup(honest(n)));
    let sums: Rc<RefCell<Vec<PubNonce>>> = Rc::default();
    for who in 0..n {
        let did = simulation.did(who);
        let seen = Rc::clone(&sums);
        simulation.tamper(&did, move |message| {
            let Body::NonceContribution(body) = &*message.body else { return vec![message.to_json()] };
            if who < n - 1 {
                seen.borrow_mut().push(PubNonce::from_bytes(&body.nonce_contribution.0).unwrap());
                return vec![message.to_json()];
            }
            let minus = |half: fn(&PubNonce) -> Point| -> [u8; 33] {
                let sum = MaybePoint::sum(seen.borrow().iter().map(|nonce| MaybePoint::from(half(nonce))));
                (-sum).serialize()
            };
            let rogue = [minus(|nonce| nonce.R1), minus(|nonce| nonce.R2)].concat();
            let rogue = Bytes(rogue.try_into().unwrap());
            let body = NonceContribution { nonce_contribution: rogue, ..body.clone() };
            vec![Message::new(message.from.clone(), message.to.clone(), body).to_json()]
        });
    }
    let culprit = simulation.did(n - 1);
    assert_falls_back(&mut simulation, "a nonce that cancels out the others", &[culprit]);
    let aggregated = simulation.service().session().unwrap().events().iter().find_map(|event| match event {
        SessionEvent::NoncesAggregated { nonce, .. } => Some(*nonce),
        _ => None,
    });
    assert_eq!(aggregated, Some(Bytes([0; 66])), "the case needs infinity");
}

fn without_partial(n: usize) -> Simulation {
    let mut roles = honest(n);
    roles[n - 1] = Role::default().without(Slot::PartialSignature);
    Simulation::new(2, setup(roles))
}

#[test]
fn bad_fallback_signatures_are_refused_and_the_others_complete() {
    let mut simulation = without_partial(4);
    run_to(&mut simulation, "fallback");
    let adversary = simulation.participants()[0].identity().clone();
    let key = |simulation: &Simulation, who: usize| {
        Bytes(simulation.participants()[who].participant_key().public_key().x_only().to_bytes())
    };
    let task = simulation.service().session().unwrap().machine().task().clone();
    let mut over = |digest: &[u8; 32]| {
        let rng = simulation.rng();
        Bytes(adversary.secret_key().sign(digest, rng).to_bytes())
    };
    let (key_path, fallback) = (over(task.key_path_sighash()), over(task.fallback_sighash().unwrap()));
    let mut flipped = fallback;
    flipped.0[63] ^= 1;
    let (own, other) = (key(&simulation, 0), key(&simulation, 1));
    use RejectCode::{BadFallbackSignature, InvalidKey};
    for (case, signer_pk, signature, code) in [
        ("noise", own, Bytes([0x5a; 64]), BadFallbackSignature),
        ("zeros", own, Bytes([0; 64]), BadFallbackSignature),
        ("one bit off", own, flipped, BadFallbackSignature),
        ("over the key path's hash", own, key_path, BadFallbackSignature),
        ("valid, under another's key", other, fallback, InvalidKey),
        ("valid, under a key off the curve", Bytes([0xff; 32]), fallback, InvalidKey),
    ] {
        let body = FallbackSignature {
            cohort_id: bodies::cohort_id(&simulation),
            session_id: bodies::session_id(&simulation),
            signer_pk,
            fallback_signature: signature,
        };
        let message = Message::new(adversary.did().clone(), None, body);
        let case = format!("a fallback signature of {case}");
        match code {
            BadFallbackSignature => assert_invalid(&mut simulation, &case, &message, code),
            _ => assert_refused(&mut simulation, &case, &message, code),
        }
    }
    assert_completes(&mut simulation, "bad fallback signatures", &[adversary.did().clone()]);
}

#[test]
fn once_the_fallback_is_chosen_the_key_path_cannot_finish() {
    // The last partial signature arrives late: with it the key path would be complete.
    let mut simulation = Simulation::new(3, setup(honest(3)));
    let late: Rc<RefCell<Option<Message>>> = Rc::default();
    let kept = Rc::clone(&late);
    let did = simulation.did(2);
    simulation.tamper(&did, move |message| match &*message.body {
        Body::SignatureAuthorization(_) => {
            *kept.borrow_mut() = Some(message.clone());
            Vec::new()
        }
        _ => vec![message.to_json()],
    });
    run_to(&mut simulation, "fallback");
    let partial = late.borrow_mut().take().unwrap();
    assert_refused(&mut simulation, "a partial signature after the latch", &partial, RejectCode::WrongPhase);
    assert_completes(&mut simulation, "a late partial signature", &[]);
    let signed = simulation.report().signed.unwrap();
    assert_eq!((signed.path, signed.holdouts.as_slice()), (SpendPath::ScriptPath, [did].as_slice()));
}

#[test]
fn a_member_that_lost_its_nonce_signs_the_fallback() {
    let mut simulation = Simulation::new(3, setup(honest(3)));
    run_to(&mut simulation, "nonces");
    let sent = |simulation: &Simulation| !simulation.participants()[0].opened_nonces().is_empty();
    assert!(simulation.run_until(sent));
    simulation.restart_participant(0);
    assert_completes(&mut simulation, "a restart", &[]);
    let signed = simulation.report().signed.unwrap();
    assert_eq!(signed.path, SpendPath::ScriptPath);
    assert_eq!(signed.holdouts, [simulation.did(0)]);
    assert!(simulation.participants()[0].nonce_uses().is_empty(), "the lost nonce was not used");
}

#[test]
fn missing_fallback_signatures_fail_the_cohort_with_names() {
    let mut roles = honest(4);
    roles[1] = Role::default().silent_from(Slot::Nonce);
    roles[2] = Role::decliner().silent_from(Slot::Nonce);
    let mut simulation = Simulation::new(1, setup(roles));
    simulation.run();
    simulation.assert_invariants();
    let mut silent = vec![simulation.did(1), simulation.did(2)];
    silent.sort();
    match simulation.report().failure {
        Some(CohortFailure::Signing { holdouts, culprits, .. }) => {
            assert_eq!((holdouts, culprits), (silent, Vec::new()));
        }
        other => panic!("{other:?}"),
    }
    assert!(simulation.has_ended());
}

#[test]
fn an_equivocator_is_at_fault_but_not_a_culprit() {
    let mut roles = honest(4);
    for role in &mut roles[1..3] {
        *role = Role::default().silent_from(Slot::PartialSignature);
    }
    let mut simulation = Simulation::new(1, setup(roles));
    let equivocator = simulation.did(0);
    simulation.tamper(&equivocator, |message| match &*message.body {
        Body::NonceContribution(body) => {
            let halves = body.nonce_contribution.0;
            let swapped = [&halves[33..], &halves[..33]].concat();
            let other =
                NonceContribution { nonce_contribution: Bytes(swapped.try_into().unwrap()), ..body.clone() };
            let other = Message::new(message.from.clone(), message.to.clone(), other);
            vec![message.to_json(), other.to_json()]
        }
        _ => vec![message.to_json()],
    });
    simulation.run();
    simulation.assert_invariants();
    let failure = simulation.report().failure.unwrap();
    let CohortFailure::Signing { culprits, equivocators, .. } = &failure else { panic!("{failure:?}") };
    assert_eq!((culprits, equivocators), (&Vec::new(), &vec![equivocator.clone()]));
    assert!(failure.at_fault().contains(&equivocator), "it is excluded from a reformed cohort");
}
