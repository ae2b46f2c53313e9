//! The journal remains after a failure, because it can be repaired; and nothing new is started on it.

use std::sync::Arc;

use crate::common::{
    Operator, Service, Updater, World, acknowledge, cohort, identity, on_paused_clock,
    rigged::{Act, Rigged},
    settle,
};
use btcr2_aggregation_actors::{
    journal::{Journal, StreamKind},
    notice::{ParticipantNotice, ServiceNotice},
    service::OpenCohortError,
};
use btcr2_aggregation_protocol::{
    cohort::{
        event::{CohortFailure, ServiceEvent},
        service::{CohortTerms, Lineage},
    },
    id::CohortId,
    time::Timestamp,
};

/// A journal that fails at every event of that name.
fn failing_at(event: &'static str) -> Rigged {
    Rigged::new(move |_, records| if records.contains(event) { Act::Fail } else { Act::Pass })
}

async fn service_on(world: &World, journal: &Rigged) -> Service {
    let mut settings = world.service_settings("service", Operator);
    settings.journal = Arc::new(journal.clone());
    settings.start().await
}

#[test]
fn a_cohort_whose_journal_failed_is_not_archived() {
    on_paused_clock(async {
        let world = World::new();
        let journal = failing_at("UpdateReceived");
        let mut service = service_on(&world, &journal).await;
        world.updaters(1).await;
        let cohort_id = service.open(cohort(1)).await;
        assert_eq!(service.ear.failed(&cohort_id).await.code(), "INTERNAL");
        service.acknowledge_end(&cohort_id).await;
        settle().await;
        assert_eq!(journal.archived().await.unwrap(), []);
        let live = journal.streams().await.unwrap();
        assert!(live.iter().any(|stream| stream.kind() == StreamKind::Cohort(cohort_id.clone())), "{live:?}");
    });
}

#[test]
fn a_session_whose_journal_failed_is_not_archived() {
    on_paused_clock(async {
        let mut world = World::new();
        let service = world.service("service", Operator).await;
        let (member, journal) = (identity("member"), failing_at("UpdateSubmitted"));
        let mut settings = world.participant_settings(&member, Updater(member.clone()));
        settings.journal = Arc::new(journal.clone());
        let participant = settings.start().await;
        let mut events = participant.events();
        let cohort_id = service.open(cohort(1)).await;
        world.members.failed(member.did(), &cohort_id).await;
        acknowledge(&mut events, |notice| matches!(notice, ParticipantNotice::CohortFailed { .. })).await;
        settle().await;
        assert_eq!(journal.archived().await.unwrap(), []);
        let live = journal.streams().await.unwrap();
        let sessions = live.iter().filter(|stream| matches!(stream.kind(), StreamKind::Participant { .. }));
        assert_eq!(sessions.count(), 1, "{live:?}");
    });
}

#[test]
fn no_cohort_is_opened_once_the_journal_has_failed() {
    on_paused_clock(async {
        let world = World::new();
        let journal = failing_at("UpdateReceived");
        let mut service = service_on(&world, &journal).await;
        world.updaters(1).await;
        let cohort_id = service.open(cohort(1)).await;
        service.ear.failed(&cohort_id).await;
        settle().await;
        let refused = service.refuses(cohort(1)).await;
        assert_eq!(refused, OpenCohortError::JournalFailed);
        assert!(refused.to_string().contains("started again"), "{refused}");
    });
}

#[test]
fn a_successor_that_has_ended_is_not_opened_again_however_long_ago_it_was() {
    on_paused_clock(async {
        let world = World::new();
        let settings = world.service_settings("service", Operator);
        let open = cohort(2);
        let terms = |name: &str, predecessor: Option<&str>| {
            let parse = |name: &str| CohortId::parse(name).unwrap();
            Arc::new(CohortTerms {
                service: settings.identity.did().clone(),
                service_key: settings.identity.public_key(),
                cohort_id: parse(name),
                network: open.network,
                conditions: open.conditions.clone(),
                timing: open.timing,
                limits: open.limits,
                rules: open.rules.clone(),
                lineage: Lineage { predecessor: predecessor.map(parse), ..Lineage::default() },
            })
        };
        let at = Timestamp::from_secs(1_750_000_000);
        let ended = async |terms: &Arc<CohortTerms>, successor: Option<&Arc<CohortTerms>>| {
            let stream = btcr2_aggregation_actors::journal::StreamId::new(format!("cohort/{}", terms.cohort_id));
            let reason = CohortFailure::Cancelled { reason: "a test".to_owned() };
            let facts = [
                ServiceEvent::CohortAdvertised { at, terms: Arc::clone(terms) },
                ServiceEvent::CohortFailed { at, reason, successor: successor.cloned() },
            ];
            let records = facts.into_iter().map(btcr2_aggregation_actors::journal::Record::new).collect();
            world.journal.append(&stream, records).await.unwrap();
            stream
        };
        // Its end is not published yet, while the ends of its successor and of many others have been published since.
        let successor = terms("a-successor", Some("failed"));
        ended(&terms("failed", None), Some(&successor)).await;
        for name in std::iter::once("a-successor".to_owned()).chain((0..1100).map(|n| format!("b-{n}"))) {
            let stream = ended(&terms(&name, None), None).await;
            world.journal.archive(&stream, at).await.unwrap();
        }
        let mut service = settings.clone().start().await;
        settle().await;
        let reformed =
            service.ear.received().iter().any(|notice| matches!(**notice, ServiceNotice::CohortReformed { .. }));
        assert!(!reformed, "it has run, and ended");
        assert_eq!(service.live().await, []);
    });
}
