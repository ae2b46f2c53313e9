//! Each kind of update that a cohort refuses, at the service and at the member, with the text of each error.

use std::sync::Arc;

use btcr2_aggregation_protocol::{
    cohort::{
        event::{ParticipantEvent, ServiceEvent},
        participant::{ParticipantCohort, ParticipantConfig, ParticipantInput},
        service::{ServiceCohort, ServiceInput, phase::Phase},
    },
    error::RejectCode,
    machine::Machine,
    message::{Message, update::SubmitUpdate},
    output::{DEFAULT_MAX_FEE_RATE, DirectAggregator},
    sim::{Role, Setup, Simulation},
    time::Timestamp,
    update::{Edit, SignedUpdate, Submission, UPDATE_CONTEXT, build_update, sign_update},
};
use serde_json::{Value, json};

use super::controller::{Controller, key, rng};

/// A service in the update phase, and the machine of its controller, which is asked for the update.
struct Cohort {
    now: Timestamp,
    controller: Controller,
    service: ServiceCohort,
    member: ParticipantCohort,
}

impl Cohort {
    fn new() -> Self {
        let mut simulation = Simulation::new(1, Setup::new(vec![Role::default()]));
        let collects = |simulation: &Simulation| {
            matches!(simulation.service().machine().phase(), Phase::CollectingUpdates { .. })
        };
        assert!(simulation.run_until(collects), "the cohort forms");
        let service = simulation.service().machine().clone();
        let is_ready = |event: &ParticipantEvent| matches!(event, ParticipantEvent::CohortReady { .. });
        assert!(simulation.run_until(|simulation| simulation.participants()[0].events().iter().any(is_ready)));
        let node = &simulation.participants()[0];
        let asked = node.events().iter().position(is_ready).unwrap();
        let Some(ParticipantEvent::CohortDiscovered { advert, .. }) = node.events().first() else { panic!() };
        let config = ParticipantConfig {
            did: node.identity().did().clone(),
            participant_key: node.participant_key().public_key(),
            communication_key: node.identity().public_key(),
            genesis_document: node.identity().genesis_document().cloned(),
            invite: None,
            timing: simulation.setup().timing,
            max_fee_rate: DEFAULT_MAX_FEE_RATE,
            beacons: simulation.setup().beacons.clone(),
            aggregator: Arc::new(DirectAggregator),
        };
        let mut member = ParticipantCohort::new(Arc::new(config), Arc::clone(advert));
        node.events()[..=asked].iter().for_each(|event| member.apply(event));
        Self { now: simulation.now(), controller: Controller::of(node.identity().clone()), service, member }
    }

    /// The service's answer to the update.
    fn submit(&self, update: &SignedUpdate) -> Result<Vec<ServiceEvent>, (RejectCode, String)> {
        let cohort_id = self.member.advert().cohort_id.clone();
        let body = SubmitUpdate { cohort_id, signed_update: Arc::new(update.value().clone()) };
        let message = Message::new(self.controller.did().clone(), None, body);
        let decided = self.service.decide(self.now, &ServiceInput::Message(message), &mut rng());
        decided.map_err(|reject| {
            assert_eq!(reject.peer.as_ref(), Some(self.controller.did()));
            (reject.code, reject.detail)
        })
    }

    /// The member's answer to the update: it submits it, or declines with a reason.
    fn provide(&self, submission: Submission) -> Result<SignedUpdate, String> {
        let input = ParticipantInput::UpdateDecided(Some(submission));
        match &self.member.decide(self.now, &input, &mut rng()).unwrap()[..] {
            [ParticipantEvent::UpdateSubmitted { update, .. }] => Ok(update.clone()),
            [ParticipantEvent::UpdateRefused { reason, .. }, ParticipantEvent::UpdateDeclined { .. }] => {
                Err(reason.clone())
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn each_kind_of_bad_update_is_refused_by_both_roles() {
    let cohort = Cohort::new();
    let controller = &cohort.controller;
    let update = |change: &dyn Fn(&mut Value, &mut Value)| controller.signed(|update, proof| change(update, proof));
    let patch = |operation: Value| controller.patched(json!([operation]));
    let recent = "2036-01-01T00:00:00Z";
    for (kind, update, words) in [
        (
            "an older version's",
            update(&|_, proof| drop(proof.as_object_mut().unwrap().remove("invocationTarget"))),
            "U-4",
        ),
        (
            "an older version's context",
            update(&|update, _| update["@context"] = json!(["https://w3id.org/zcap/v1"])),
            "U-1",
        ),
        ("older proof context", update(&|_, proof| proof["@context"] = json!(UPDATE_CONTEXT[1..])), "U-2"),
        ("another target", update(&|_, proof| proof["invocationTarget"] = json!("did:btcr2:x")), "U-4"),
        ("another purpose", update(&|_, proof| proof["proofPurpose"] = json!("assertionMethod")), "U-3"),
        ("another capability", update(&|_, proof| proof["capability"] = json!("urn:zcap:root:x")), "U-5"),
        ("another method", update(&|_, proof| proof["verificationMethod"] = json!("#other")), "U-6"),
        ("another key", controller.signed_by(&key(8), |_, _| {}), "U-11"),
        ("unreadable created", update(&|_, proof| proof["created"] = json!("yesterday")), "U-9"),
        (
            "expires before created",
            update(&|_, proof| {
                proof["created"] = json!("2020-01-02T00:00:00Z");
                proof["expires"] = json!("2020-01-01T00:00:00Z");
            }),
            "U-10",
        ),
        ("expires", update(&|_, proof| proof["expires"] = json!("2126-01-01T00:00:00Z")), "without expires"),
        ("created in the future", update(&|_, proof| proof["created"] = json!(recent)), "without created"),
        ("another source", update(&|update, _| update["sourceHash"] = update["targetHash"].clone()), "U-16"),
        ("another target hash", update(&|update, _| update["targetHash"] = update["sourceHash"].clone()), "U-16"),
        ("a failing patch", patch(json!({"op": "remove", "path": "/nothing"})), "U-13"),
        ("another id", patch(json!({"op": "replace", "path": "/id", "value": "did:btcr2:_"})), "U-15"),
        ("not a document", patch(json!({"op": "remove", "path": "/@context"})), "U-15"),
    ] {
        let (code, detail) = cohort.submit(&update).expect_err(kind);
        assert!(detail.contains(words), "{kind}: {detail}");
        assert_eq!(code, RejectCode::UpdateVerificationFailed, "{kind}");
        let reason = cohort.provide(update.into()).expect_err(kind);
        assert_eq!(reason, detail, "{kind}: the member gives the same reason");
    }
}

#[test]
fn a_valid_update_is_submitted_and_accepted() {
    let cohort = Cohort::new();
    let update = cohort.controller.update();
    assert_eq!(cohort.provide(update.clone().into()).unwrap(), update);
    assert!(matches!(&cohort.submit(&update).unwrap()[0], ServiceEvent::UpdateReceived { .. }));
    let created = cohort.controller.signed(|_, proof| proof["created"] = json!("2020-01-01T00:00:00Z"));
    assert!(cohort.submit(&created).is_ok(), "an old created is harmless");
}

/// A later update starts from a document that only its controller has: the member checks all of it, the service its
/// proof.
#[test]
fn a_later_update_is_checked_against_its_own_document() {
    let cohort = Cohort::new();
    let controller = &cohort.controller;
    let (method, secret) = (controller.identity.verification_method(), controller.identity.secret_key());
    let first = build_update(&controller.document, 1, controller.patch()).unwrap();
    let source = Arc::new(first.target_document().clone());
    let patch = json!([{"op": "remove", "path": "/service/0"}]);
    let second = build_update(&source, 2, patch).unwrap();
    let second = sign_update(&second, controller.did(), method, secret, &mut rng()).unwrap();
    assert!(cohort.submit(&second).is_ok());
    let submission = |source: Option<(Arc<Value>, u64)>| Submission { update: second.clone(), source };
    assert!(cohort.provide(submission(Some((Arc::clone(&source), 2)))).is_ok());
    for (source, words) in [
        (None, "U-17"),
        (Some((Arc::clone(&source), 1)), "U-17"),
        (Some((Arc::new(controller.document.clone()), 2)), "U-16"),
    ] {
        let reason = cohort.provide(submission(source)).unwrap_err();
        assert!(reason.contains(words), "{reason}");
    }
    let without_target = {
        let mut update = second.value().clone();
        update["proof"].as_object_mut().unwrap().remove("invocationTarget");
        SignedUpdate::from_value(update).unwrap()
    };
    assert!(cohort.submit(&without_target).unwrap_err().1.contains("U-4"), "whatever its version");
}

/// The service does not have the later document, and so not the key that took the place of the first. It must not refuse
/// what resolvers accept; all else in the proof is checked as before.
#[test]
fn a_later_update_by_a_rotated_key_is_accepted() {
    let cohort = Cohort::new();
    let controller = &cohort.controller;
    let (did, secret) = (controller.did(), controller.identity.secret_key());
    let (old, method) = (controller.identity.verification_method().to_owned(), format!("{did}#key-2"));
    let rotation = Edit::ReplaceKey { old: old.clone(), method: method.clone(), key: key(8).public_key() };
    let first = build_update(&controller.document, 1, rotation.patch(&controller.document).unwrap()).unwrap();
    let source = Arc::new(first.target_document().clone());
    let patch = json!([{"op": "remove", "path": "/service/0"}]);
    let second = build_update(&source, 2, patch).unwrap();
    let second = sign_update(&second, did, &method, &key(8), &mut rng()).unwrap();
    assert!(cohort.submit(&second).is_ok());
    assert!(cohort.provide(Submission { update: second.clone(), source: Some((source, 2)) }).is_ok());

    let changed = |change: &dyn Fn(&mut Value)| {
        let mut update = second.value().clone();
        change(&mut update);
        cohort.submit(&SignedUpdate::from_value(update).unwrap())
    };
    let (code, detail) = changed(&|update| update["proof"]["proofValue"] = json!("z1")).unwrap_err();
    assert!(detail.contains("U-11") && code == RejectCode::UpdateVerificationFailed, "{detail}");
    assert!(changed(&|update| update["proof"]["proofPurpose"] = json!("assertionMethod")).is_err());
    // The key of the first document cannot be used in the name of a method that it has.
    let (_, detail) = changed(&|update| update["proof"]["verificationMethod"] = json!(old)).unwrap_err();
    assert!(detail.contains("U-11"), "{detail}");
    // A first update starts from a document that the service has.
    let unsigned = build_update(&controller.document, 1, controller.patch()).unwrap();
    let mut first = sign_update(&unsigned, did, &old, secret, &mut rng()).unwrap().value().clone();
    first["proof"]["verificationMethod"] = json!(method);
    assert!(cohort.submit(&SignedUpdate::from_value(first).unwrap()).unwrap_err().1.contains("U-6"));
}
