//! A service that outsiders and members send wrong messages: it rejects them, names the sender, and continues.

use std::sync::Arc;

use crate::sim_support::{
    PHASES, assert_completes, assert_invalid, assert_named, assert_refused, assert_text_refused, bodies, honest,
    outsider, phase_of, run_to, setup, simulation, through_every_phase,
};
use btcr2_aggregation_protocol::{
    cohort::event::{CohortFailure, ServiceEvent, SpendPath},
    document,
    error::{RejectCode, Slot},
    identity::Identity,
    key::SecretKey,
    message::{Body, Bytes, Message, SharedBody, sign::NonceContribution, update::SubmitUpdate},
    network::Network,
    signing::session::SessionEvent,
    sim::{Role, Simulation, Verdict, genesis_document},
    update::{SignedUpdate, add_beacon_service_patch, build_update, sign_update, signed_digest},
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use serde_json::{Value, json};

fn from(identity: &Identity, body: impl Into<SharedBody>) -> Message {
    Message::new(identity.did().clone(), None, body)
}

fn member(simulation: &Simulation, index: usize) -> Identity {
    simulation.participants()[index].identity().clone()
}

#[test]
fn an_outsider_is_refused_in_every_phase_with_every_type() {
    let mut simulation = through_every_phase();
    let outsider = outsider(9);
    for phase in PHASES {
        run_to(&mut simulation, phase);
        for body in bodies::of_members(&simulation, &outsider) {
            let case = format!("{} while {phase}", body.short_type());
            let code = match (&*body, phase) {
                // An opt-in is legitimate while the cohort enrolls.
                (Body::CohortOptIn(_), "enrolling") => continue,
                (Body::CohortOptIn(_), _) => RejectCode::WrongPhase,
                _ => RejectCode::NotAMember,
            };
            assert_refused(&mut simulation, &case, &from(&outsider, body), code);
        }
        for body in bodies::of_the_service(&simulation) {
            let case = format!("{} while {phase}", body.short_type());
            assert_refused(&mut simulation, &case, &from(&outsider, body), RejectCode::WrongSender);
        }
    }
    assert_completes(&mut simulation, "messages of outsiders", &[outsider.did().clone()]);
}

#[test]
fn service_messages_from_a_member_are_refused_in_every_phase() {
    let mut simulation = through_every_phase();
    let adversary = member(&simulation, 1);
    for phase in PHASES {
        run_to(&mut simulation, phase);
        for body in bodies::of_the_service(&simulation) {
            let case = format!("{} while {phase}", body.short_type());
            assert_refused(&mut simulation, &case, &from(&adversary, body), RejectCode::WrongSender);
        }
    }
    assert_completes(&mut simulation, "a member in the service's role", &[adversary.did().clone()]);
}

#[test]
fn another_sender_version_or_cohort_is_refused() {
    let mut simulation = through_every_phase();
    let (adversary, victim) = (member(&simulation, 1), member(&simulation, 0));
    for phase in PHASES {
        run_to(&mut simulation, phase);
        for body in bodies::of_members(&simulation, &victim) {
            let case = |what: &str| format!("{} {what} while {phase}", body.short_type());
            let text = from(&victim, body.clone()).to_json();
            let named = case("in another's name");
            assert_text_refused(&mut simulation, &named, adversary.did(), &text, RejectCode::WrongSender);

            let own = from(&adversary, body.clone()).to_json();
            let cohort_id = bodies::cohort_id(&simulation);
            let other_cohort = own.replace(cohort_id.as_str(), "another-cohort");
            let wrong_cohort = case("of another cohort");
            assert_text_refused(
                &mut simulation,
                &wrong_cohort,
                adversary.did(),
                &other_cohort,
                RejectCode::WrongCohort,
            );
            for version in ["0", "2", "\"1\"", "null"] {
                let other = own.replace("\"version\":1", &format!("\"version\":{version}"));
                let wrong_version = case(&format!("of version {version}"));
                assert_text_refused(
                    &mut simulation,
                    &wrong_version,
                    adversary.did(),
                    &other,
                    RejectCode::WrongVersion,
                );
            }
            for (what, malformed) in [
                ("cut short", own[..own.len() - 1].to_owned()),
                ("without a cohort", own.replace("cohortId", "cohort")),
                ("with a second sender", own.replace("\"cohortId\"", "\"from\":\"x\",\"cohortId\"")),
                ("without a body", own.replace("\"body\"", "\"corpse\"")),
            ] {
                let case = case(what);
                assert_text_refused(&mut simulation, &case, adversary.did(), &malformed, RejectCode::Malformed);
            }
        }
    }
    let service = simulation.service().identity().did().clone();
    let text = "{\"type\":\"https://btcr2.dev/aggregation/gossip\",\"version\":1,\"from\":\"F\",\"body\":{}}";
    let unknown = text.replace('F', adversary.did().as_str());
    assert_eq!(simulation.deliver(adversary.did(), &service, &unknown), Ok(()), "an unknown type is ignored");
    assert_completes(&mut simulation, "forged headers", &[adversary.did().clone()]);
}

#[test]
fn contributions_to_another_session_are_refused() {
    for phase in ["nonces", "partials", "fallback"] {
        let mut simulation = through_every_phase();
        run_to(&mut simulation, phase);
        let adversary = member(&simulation, 0);
        let session_id = bodies::session_id(&simulation);
        for body in bodies::of_members(&simulation, &adversary) {
            if !body.short_type().starts_with("sign/") {
                continue;
            }
            let case = format!("{} to another session in {phase}", body.short_type());
            let text = from(&adversary, body).to_json().replace(session_id.as_str(), "another-session");
            assert_text_refused(&mut simulation, &case, adversary.did(), &text, RejectCode::WrongCohort);
        }
        assert_completes(&mut simulation, phase, &[adversary.did().clone()]);
    }
}

#[test]
fn repeated_messages_change_nothing() {
    let mut simulation = through_every_phase();
    let mut dids: Vec<_> = (0..4).map(|index| simulation.did(index)).collect();
    dids.push(simulation.service().identity().did().clone());
    for did in &dids {
        simulation.tamper(did, |message| vec![message.to_json(); 3]);
    }
    assert_completes(&mut simulation, "repeats", &[]);
    let counts = |slot: fn(&ServiceEvent) -> bool| simulation.service().events().iter().filter(|e| slot(e)).count();
    assert_eq!(counts(|event| matches!(event, ServiceEvent::OptInReceived { .. })), 4);
    assert_eq!(counts(|event| matches!(event, ServiceEvent::ValidationReceived { .. })), 4);
}

/// Whether the service has the contribution of member 0.
fn has(simulation: &Simulation, slot: Slot) -> bool {
    let who = simulation.did(0);
    let in_cohort = simulation.service().events().iter().any(|event| match (slot, event) {
        (Slot::OptIn, ServiceEvent::OptInReceived { member, .. }) => member.did == who,
        (Slot::Update, ServiceEvent::UpdateReceived { did, .. } | ServiceEvent::UpdateDeclined { did, .. })
        | (Slot::Validation, ServiceEvent::ValidationReceived { did, .. }) => *did == who,
        _ => false,
    });
    let events = simulation.service().session().map(|session| session.events()).unwrap_or_default();
    in_cohort
        || events.iter().any(|event| match (slot, event) {
            (Slot::Nonce, SessionEvent::NonceReceived { did, .. })
            | (Slot::PartialSignature, SessionEvent::PartialSignatureReceived { did, .. })
            | (Slot::FallbackSignature, SessionEvent::FallbackSignatureReceived { did, .. }) => *did == who,
            _ => false,
        })
}

#[test]
fn equivocation_is_recorded_once_and_the_first_bytes_count() {
    for (slot, kind) in [
        (Slot::OptIn, "keygen/cohort_opt_in"),
        (Slot::Update, "update/submit_nonincluded"),
        (Slot::Validation, "update/validation_ack"),
        (Slot::Nonce, "sign/nonce_contribution"),
        (Slot::PartialSignature, "sign/signature_authorization"),
        (Slot::FallbackSignature, "sign/fallback_signature"),
    ] {
        let mut simulation = through_every_phase();
        assert!(simulation.run_until(|simulation| has(simulation, slot)), "{slot} was not reached");
        let adversary = member(&simulation, 0);
        let phase = phase_of(&simulation);
        let mut others = bodies::of_members(&simulation, &adversary);
        if slot == Slot::OptIn {
            let mut other_key = bodies::opt_in(&simulation, &adversary);
            other_key.participant_pk = Bytes(outsider(3).public_key().to_bytes());
            others[0] = other_key.into();
        }
        let other = from(&adversary, others.into_iter().find(|body| body.short_type() == kind).unwrap());
        assert_eq!(simulation.deliver_to_service(&other), Ok(()), "{slot}: the first time is recorded");
        let faults = simulation.report().faults;
        assert_eq!(faults.len(), 1, "{slot}: {faults:?}");
        let fault = &faults[0];
        assert_eq!((&fault.did, fault.code, fault.slot), (adversary.did(), RejectCode::Equivocation, slot));
        assert_refused(&mut simulation, &format!("{slot} once more"), &other, RejectCode::Equivocation);
        assert_eq!(phase_of(&simulation), phase, "{slot}: the first bytes stand");
        assert_completes(&mut simulation, &format!("equivocation of the {slot}"), &[adversary.did().clone()]);
        let members = &simulation.report().signed.unwrap().signers;
        assert!(members.contains(adversary.did()), "{slot}: the first contribution counts");
    }
}

#[test]
fn opt_ins_with_unproven_keys_are_refused() {
    let mut simulation = simulation(3);
    run_to(&mut simulation, "enrolling");
    let adversary = outsider(9);
    let other = outsider(8).public_key().to_bytes();
    let off_curve = {
        let mut bytes = [0xff; 33];
        bytes[0] = 2;
        bytes
    };
    let valid = bodies::opt_in(&simulation, &adversary);
    for (case, keys) in [
        ("a participant key of zeros", ([0; 33], adversary.public_key().to_bytes())),
        ("a participant key off the curve", (off_curve, adversary.public_key().to_bytes())),
        ("a communication key off the curve", (adversary.public_key().to_bytes(), off_curve)),
        ("another's communication key", (adversary.public_key().to_bytes(), other)),
    ] {
        let mut body = valid.clone();
        (body.participant_pk, body.communication_pk) = (Bytes(keys.0), Bytes(keys.1));
        assert_refused(&mut simulation, case, &from(&adversary, body), RejectCode::InvalidKey);
    }

    let secret = SecretKey::from_bytes(&[5; 32]).unwrap();
    let document = genesis_document(&secret.public_key(), Network::Regtest);
    let external = Identity::from_genesis(secret, document.clone(), Network::Regtest).unwrap();
    let mut altered = document;
    altered["service"] = json!(["another"]);
    for (case, document) in [
        ("an EXTERNAL DID without its document", None),
        ("an EXTERNAL DID with an altered document", Some(altered)),
        (
            "an EXTERNAL DID with another DID's document",
            Some(genesis_document(&outsider(8).public_key(), Network::Regtest)),
        ),
        ("an EXTERNAL DID with a document of the wrong shape", Some(json!(7))),
    ] {
        let mut body = bodies::opt_in(&simulation, &external);
        body.genesis_document = document.map(Arc::new);
        assert_refused(&mut simulation, case, &from(&external, body), RejectCode::InvalidKey);
    }
    let foreign = Identity::from_key(SecretKey::from_bytes(&[6; 32]).unwrap(), Network::Signet);
    let body = bodies::opt_in(&simulation, &foreign);
    assert_refused(&mut simulation, "a DID of another network", &from(&foreign, body), RejectCode::InvalidKey);

    let adversaries = [adversary, external, foreign].map(|identity| identity.did().clone());
    assert_completes(&mut simulation, "bad opt-ins", &adversaries);
}

fn negated(key: [u8; 33]) -> [u8; 33] {
    let mut negated = key;
    negated[0] ^= 1;
    negated
}

#[test]
fn a_copied_key_does_not_exclude_its_owner() {
    for (case, alter) in [("the same key", (|key| key) as fn([u8; 33]) -> [u8; 33]), ("its negation", negated)] {
        // After the victim: the copy is rejected.
        let mut simulation = simulation(3);
        assert!(simulation.run_until(|simulation| has(simulation, Slot::OptIn)));
        let thief = outsider(9);
        let victim = member(&simulation, 0);
        let mut copy = bodies::opt_in(&simulation, &thief);
        copy.participant_pk = Bytes(alter(victim.public_key().to_bytes()));
        assert_refused(&mut simulation, case, &from(&thief, copy.clone()), RejectCode::DuplicateKey);
        assert_completes(&mut simulation, case, &[thief.did().clone()]);

        // Before the victim, which authenticates with the same key: the copy loses its place.
        let mut simulation = crate::sim_support::simulation(3);
        run_to(&mut simulation, "enrolling");
        copy.cohort_id = bodies::cohort_id(&simulation);
        copy.participant_pk = Bytes(alter(member(&simulation, 0).public_key().to_bytes()));
        simulation.deliver_to_service(&from(&thief, copy)).unwrap();
        assert_completes(&mut simulation, case, &[thief.did().clone()]);
        let report = simulation.report();
        let fault = report.faults.first().unwrap_or_else(|| panic!("{case}: no recorded fault"));
        assert_eq!((&fault.did, fault.code), (thief.did(), RejectCode::DuplicateKey), "{case}");
        assert_eq!(report.signed.unwrap().signers.len(), 3, "{case}: the copying candidate is not a member");
    }
}

fn signed_for(simulation: &Simulation, did_of: &Identity, by: &Identity) -> SignedUpdate {
    let output = &simulation.service().machine().phase().formed().unwrap().output;
    let initial = document::initial_document(did_of.did(), None).unwrap();
    let patch = add_beacon_service_patch(did_of.did(), "CASBeacon", output.address());
    let update = build_update(&initial, 1, patch).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let method = did_of.verification_method();
    let mut signed =
        sign_update(&update, did_of.did(), method, did_of.secret_key(), &mut rng).unwrap().value().clone();
    if did_of.did() != by.did() {
        let mut config = signed["proof"].clone();
        config.as_object_mut().unwrap().remove("proofValue");
        let signature = by.secret_key().sign(&signed_digest(&config, &update.to_value()).unwrap(), &mut rng);
        signed["proof"]["proofValue"] = json!(format!("z{}", bs58::encode(signature.to_bytes()).into_string()));
    }
    SignedUpdate::from_value(signed).unwrap()
}

#[test]
fn updates_that_are_not_the_members_own_are_refused() {
    let mut simulation = simulation(3);
    run_to(&mut simulation, "collecting updates");
    let (adversary, other) = (member(&simulation, 0), member(&simulation, 1));
    let good = signed_for(&simulation, &adversary, &adversary).value().clone();
    let altered = |path: &str, value: Value| {
        let mut update = good.clone();
        *update.pointer_mut(path).unwrap() = value;
        update
    };
    let large = {
        let mut update = good.clone();
        update["padding"] = Value::String("x".repeat(256 * 1024));
        update
    };
    let without_proof = {
        let mut update = good.clone();
        update.as_object_mut().unwrap().remove("proof");
        update
    };
    use RejectCode::{UpdateMalformed, UpdateTooLarge, UpdateVerificationFailed};
    for (case, update, code) in [
        ("too large", large, UpdateTooLarge),
        ("not an object", json!("update"), UpdateMalformed),
        ("empty", json!({}), UpdateMalformed),
        ("without a patch", altered("/patch", Value::Null), UpdateMalformed),
        ("of version 1", altered("/targetVersionId", json!(1)), UpdateMalformed),
        ("with another target hash", altered("/targetHash", good["sourceHash"].clone()), UpdateVerificationFailed),
        ("with another patch", altered("/patch/0/value/type", json!("SMTBeacon")), UpdateVerificationFailed),
        ("with a broken signature", altered("/proof/proofValue", json!("z111")), UpdateVerificationFailed),
        ("without a proof", without_proof, UpdateVerificationFailed),
        (
            "signed by another",
            signed_for(&simulation, &adversary, &other).value().clone(),
            UpdateVerificationFailed,
        ),
        (
            "for another's DID",
            signed_for(&simulation, &other, &adversary).value().clone(),
            UpdateVerificationFailed,
        ),
        ("another's", signed_for(&simulation, &other, &other).value().clone(), UpdateVerificationFailed),
    ] {
        let body = SubmitUpdate { cohort_id: bodies::cohort_id(&simulation), signed_update: Arc::new(update) };
        assert_refused(&mut simulation, &format!("an update {case}"), &from(&adversary, body), code);
    }
    assert_completes(&mut simulation, "bad updates", &[adversary.did().clone()]);
    assert!(
        simulation.report().faults.is_empty(),
        "a rejection is not a fault: the member may send a valid update"
    );
}

#[test]
fn nonces_that_are_not_points_are_refused() {
    let mut simulation = simulation(3);
    run_to(&mut simulation, "nonces");
    let adversary = member(&simulation, 0);
    let half = {
        let mut bytes = [0; 66];
        bytes[..33].copy_from_slice(&adversary.public_key().to_bytes());
        bytes
    };
    for (case, nonce) in [("infinity", [0; 66]), ("not a point", [0xff; 66]), ("a point and infinity", half)] {
        let body = NonceContribution {
            cohort_id: bodies::cohort_id(&simulation),
            session_id: bodies::session_id(&simulation),
            nonce_contribution: Bytes(nonce),
        };
        assert_invalid(&mut simulation, case, &from(&adversary, body), RejectCode::InvalidNonce);
    }
    let valid = bodies::of_members(&simulation, &adversary).remove(4);
    let nonce = "02".repeat(66);
    for (case, other) in [
        ("65 bytes", "02".repeat(65)),
        ("67 bytes", "02".repeat(67)),
        ("upper case", format!("{}FF", "02".repeat(65))),
    ] {
        let text = from(&adversary, valid.clone()).to_json().replace(&nonce, &other);
        assert_text_refused(&mut simulation, case, adversary.did(), &text, RejectCode::Malformed);
    }
    assert_completes(&mut simulation, "bad nonces", &[adversary.did().clone()]);
    assert_eq!(simulation.report().signed.unwrap().path, SpendPath::KeyPath);
}

#[test]
fn a_rejection_of_the_data_ends_the_cohort_and_is_named() {
    let mut roles = honest(3);
    roles[1] = Role { verdict: Verdict::Reject, ..Role::default() };
    let mut simulation = Simulation::new(1, setup(roles));
    simulation.run();
    simulation.assert_invariants();
    let by = simulation.did(1);
    assert_eq!(simulation.report().failure, Some(CohortFailure::ValidationRejected { by }));
    assert!(simulation.has_ended());
}

#[test]
fn full_cohorts_and_refused_candidates_admit_no_member() {
    let mut setup = setup(honest(3));
    setup.conditions.max_participants = Some(3);
    setup.refuses.insert(0);
    let mut simulation = Simulation::new(1, setup);
    run_to(&mut simulation, "enrolling");
    let refused = outsider(9);
    let opt_in = from(&refused, bodies::opt_in(&simulation, &refused));
    simulation.deliver_to_service(&opt_in).unwrap();
    assert_eq!(simulation.deliver_to_service(&opt_in), Ok(()), "the same again changes nothing");
    run_to(&mut simulation, "collecting updates");
    let service = simulation.service().identity().did().clone();
    let decline = from(&refused, bodies::of_members(&simulation, &refused).remove(2));
    let result = simulation.deliver(refused.did(), &service, &decline.to_json());
    assert_named("a refused candidate", result, refused.did(), RejectCode::NotAMember);
    assert_completes(&mut simulation, "a refused candidate", &[refused.did().clone()]);
    assert_eq!(simulation.report().signed.unwrap().signers.len(), 3);
}
