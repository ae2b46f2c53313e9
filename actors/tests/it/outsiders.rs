//! Outsiders, forgers and peers that send invalid messages: refused, named, and without consequences.

use std::{sync::Arc, time::Duration};

use crate::common::{
    GatedOperator, Operator, Updater, World, cohort, identity, on_paused_clock, pass, settle,
    tap::{Tap, no_signatures},
};
use btcr2_aggregation_protocol::{
    did::Did,
    error::RejectCode,
    id::CohortId,
    identity::Identity,
    message::{
        Body, Bytes, Message,
        keygen::{CohortOptIn, CohortOptInAccept},
        update::{SubmitNonIncluded, ValidationAck},
    },
};
use tokio::sync::Semaphore;

fn opt_in(identity: &Identity, cohort_id: &CohortId) -> Body {
    let key = Bytes(identity.public_key().to_bytes());
    CohortOptIn {
        cohort_id: cohort_id.clone(),
        participant_pk: key,
        communication_pk: key,
        genesis_document: None,
        invite: None,
    }
    .into()
}

fn message_text(from: &Did, to: &Did, body: impl Into<Body>) -> String {
    Message::new(from.clone(), Some(to.clone()), body.into()).to_json()
}

fn other_cohort() -> CohortId {
    CohortId::parse("another-cohort").expect("visible ASCII")
}

#[test]
fn a_service_refuses_forgers_and_outsiders_and_completes() {
    on_paused_clock(async {
        let gate = Arc::new(Semaphore::new(0));
        let mut world = World::new();
        let mut service = world.service("service", GatedOperator(gate.clone())).await;
        let members = world.updaters(3).await;
        let cohort_id = service.open(cohort(3)).await;
        service.ear.event(&cohort_id, "data-distributed").await;
        settle().await;
        assert_eq!(service.ear.rejections(), []);

        let mallory = identity("mallory");
        let (victim, to) = (members[0].did(), service.did().clone());
        let decline = SubmitNonIncluded { cohort_id: cohort_id.clone() };
        let reject = ValidationAck { cohort_id: cohort_id.clone(), approved: false };
        let honest = message_text(mallory.did(), &to, opt_in(&mallory, &cohort_id));
        let cases = [
            // In a member's name, from a connection that is not the member's.
            (message_text(victim, &to, reject.clone()), RejectCode::Malformed),
            (honest.replace("\"version\":1", "\"version\":2"), RejectCode::WrongVersion),
            (honest.replace("\"version\":1,", ""), RejectCode::WrongVersion),
            (honest.replace("\"participantPk\"", "\"participantPK\""), RejectCode::Malformed),
            ("{".to_owned(), RejectCode::Malformed),
            (String::new(), RejectCode::Malformed),
            (message_text(mallory.did(), &to, opt_in(&mallory, &other_cohort())), RejectCode::WrongCohort),
            (message_text(mallory.did(), &to, decline), RejectCode::NotAMember),
            (message_text(mallory.did(), &to, reject), RejectCode::NotAMember),
            (
                message_text(mallory.did(), &to, CohortOptInAccept { cohort_id: cohort_id.clone() }),
                RejectCode::WrongSender,
            ),
        ];
        for (text, code) in cases {
            let before = service.ear.rejections().len();
            world.network.inject(mallory.did(), &to, &text);
            settle().await;
            let refused = service.ear.rejections().split_off(before);
            assert_eq!(refused, [(mallory.did().clone(), code)], "{text}");
        }

        // A member that is only late did nothing wrong.
        let before = service.ear.rejections().len();
        world.network.inject(mallory.did(), &to, &honest);
        settle().await;
        assert_eq!(service.ear.rejections().len(), before);

        gate.add_permits(1);
        let result = service.ear.completed(&cohort_id).await;
        for record in world.members.records(&cohort_id, 3).await.values() {
            world.assert_proves_slot(record, &result);
        }
        assert_eq!(world.elapsed(), Duration::ZERO);
    });
}

#[test]
fn a_message_of_a_type_that_is_not_known_is_passed_over() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        let members = world.updaters(1).await;
        settle().await;
        let newer = identity("newer peer");
        for to in [service.did(), members[0].did()] {
            let text =
                message_text(newer.did(), to, opt_in(&newer, &other_cohort())).replace("cohort_opt_in", "news");
            world.network.inject(newer.did(), to, &text);
        }
        settle().await;
        assert_eq!(service.ear.rejections(), []);
        assert_eq!(world.members.rejections(), []);
    });
}

#[test]
fn a_participant_refuses_impostors_and_completes() {
    on_paused_clock(async {
        let gate = Arc::new(Semaphore::new(0));
        let mut world = World::new();
        let mut service = world.service("service", GatedOperator(gate.clone())).await;
        let members = world.updaters(2).await;
        let victim = members[0].did().clone();
        let cohort_id = service.open(cohort(2)).await;
        service.ear.event(&cohort_id, "data-distributed").await;
        settle().await;

        let impostor = identity("another service");
        let accept = |cohort_id: &CohortId| CohortOptInAccept { cohort_id: cohort_id.clone() };
        let cases = [
            (message_text(impostor.did(), &victim, accept(&cohort_id)), RejectCode::WrongSender),
            (message_text(impostor.did(), &victim, accept(&other_cohort())), RejectCode::WrongCohort),
            (message_text(service.did(), &victim, accept(&cohort_id)), RejectCode::Malformed),
            (
                message_text(impostor.did(), &victim, accept(&cohort_id))
                    .replace("\"version\":1", "\"version\":\"1\""),
                RejectCode::WrongVersion,
            ),
            ("[]".to_owned(), RejectCode::Malformed),
        ];
        for (text, code) in cases {
            let before = world.members.rejections().len();
            world.network.inject(impostor.did(), &victim, &text);
            settle().await;
            let refused = world.members.rejections().split_off(before);
            assert_eq!(refused, [(victim.clone(), impostor.did().clone(), code)], "{text}");
        }

        gate.add_permits(1);
        service.ear.completed(&cohort_id).await;
        world.members.records(&cohort_id, 2).await;
    });
}

#[test]
fn the_adverts_of_another_service_are_no_offence() {
    on_paused_clock(async {
        let world = World::new();
        let mut one = world.service("one", Operator).await;
        let mut other = world.service("other", Operator).await;
        let ids = [one.open(cohort(2)).await, other.open(cohort(2)).await];
        pass(Duration::from_secs(600)).await;
        assert_eq!(one.ear.rejections(), []);
        assert_eq!(other.ear.rejections(), []);
        world.updaters(2).await;
        one.ear.completed(&ids[0]).await;
        other.ear.completed(&ids[1]).await;
    });
}

#[test]
fn a_signature_that_comes_after_the_last_one_needed_is_no_offence() {
    on_paused_clock(async {
        let mut world = World::new();
        let mut service = world.service("service", Operator).await;
        world.updaters(4).await;
        let silent = identity("silent");
        world.participant_on(&silent, Updater(silent.clone()), Tap::losing(&world.network, no_signatures)).await;
        let mut open = cohort(5);
        if let btcr2_aggregation_protocol::output::ScriptTree::FallbackAndRecovery { fallback_threshold, .. } =
            &mut open.conditions.script_tree
        {
            *fallback_threshold = Some(1);
        }
        let cohort_id = service.open(open).await;
        let result = service.ear.completed(&cohort_id).await;
        assert_eq!(result.signed.signers.len(), 1);
        world.members.records(&cohort_id, 5).await;
        settle().await;
        assert_eq!(world.members.count("fallback-requested"), 5, "all were asked");
        assert_eq!(service.ear.rejections(), [], "three signatures were late");

        // Also much later, when only the identifier of the cohort is remembered.
        let late = identity("member 0");
        world.network.inject(
            late.did(),
            service.did(),
            &message_text(late.did(), service.did(), opt_in(&late, &cohort_id)),
        );
        settle().await;
        assert_eq!(service.ear.rejections(), []);
    });
}
