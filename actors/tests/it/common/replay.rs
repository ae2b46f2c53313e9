//! Asserts that a journal, read as after a restart, leads to the observed states.

use std::{collections::BTreeMap, sync::Arc};

use btcr2_aggregation_actors::{
    journal::{Journal, Record, StreamId},
    notice::CohortResult,
    service::OpenCohort,
};
use btcr2_aggregation_protocol::{
    cohort::{
        Timing,
        event::{ParticipantEvent, ServiceEvent},
        participant::{ParticipantCohort, ParticipantConfig, phase::Phase as MemberPhase},
        service::{ServiceCohort, ServiceConfig, phase::Phase},
    },
    did::Did,
    id::CohortId,
    identity::Identity,
    machine::{Machine, replay},
    sidecar::MemberRecord,
    signing::{
        SigningOutcome, SigningTask,
        session::{SessionEvent, SessionPhase, SigningSession},
    },
};
use serde::de::DeserializeOwned;

use super::{Service, World};

/// The stream's events, after serialization to disk.
pub async fn read_back<E>(journal: &dyn Journal, stream: &str) -> Vec<E>
where
    E: Clone + PartialEq + std::fmt::Debug + DeserializeOwned + 'static,
{
    let records = journal.read(&StreamId::new(stream)).await.expect("the journal reads");
    assert!(!records.is_empty(), "the stream {stream} is empty");
    records
        .iter()
        .map(|record| {
            let stored = Record::from_json(record.to_json().expect("events serialize"));
            let event: E = stored.event().expect("events are read back");
            assert_eq!(event, record.event::<E>().expect("an event of this role"), "{stream}: changed on disk");
            event
        })
        .collect()
}

/// Replays a completed cohort's streams: the cohort's, its session's, and each member's.
pub async fn assert_replays(
    world: &World,
    service: &Service,
    open: &OpenCohort,
    cohort_id: &CohortId,
    result: &CohortResult,
    members: &[Identity],
    records: &BTreeMap<Did, Arc<MemberRecord>>,
) {
    let task = assert_cohort_replays(world, service, open, cohort_id, result).await;
    let stream = format!("signing/{}", task.session_id);
    let events: Vec<SessionEvent> = read_back(&*world.journal, &stream).await;
    let session = replay(SigningSession::new(task), &events);
    let SessionPhase::Ended(SigningOutcome::Signed(signed)) = session.phase() else {
        panic!("{stream} leads to {:?}", session.phase());
    };
    assert_eq!(*signed, result.signed);
    for member in members {
        assert_member_replays(world, service, open, cohort_id, member, records.get(member.did())).await;
    }
}

/// Returns the task of the signing session.
async fn assert_cohort_replays(
    world: &World,
    service: &Service,
    open: &OpenCohort,
    cohort_id: &CohortId,
    result: &CohortResult,
) -> Arc<SigningTask> {
    let events: Vec<ServiceEvent> = read_back(&*world.journal, &format!("cohort/{cohort_id}")).await;
    // The journal alone restores a cohort: it contains the terms.
    let Some(ServiceEvent::CohortAdvertised { terms, .. }) = events.first() else { panic!("{events:?}") };
    assert_eq!((&terms.service, &terms.conditions), (service.did(), &open.conditions));
    let config = ServiceConfig {
        terms: Arc::clone(terms),
        beacons: world.beacons.clone(),
        aggregator: world.aggregator.clone(),
    };
    let mut cohort = ServiceCohort::new(Arc::new(config)).expect("the conditions were accepted before");
    let mut task = None;
    for event in &events {
        cohort.apply(event);
        if let Phase::Signing { task: started, .. } = cohort.phase() {
            task = Some(Arc::clone(started));
        }
    }
    let Phase::Completed { outcome, formed, aggregated } = cohort.phase() else {
        panic!("the journal leads to {:?}", cohort.phase());
    };
    assert_eq!(*outcome, result.signed);
    assert_eq!(formed.output.address(), result.output.address());
    assert_eq!(aggregated.aggregation.signal, result.aggregation.signal);
    assert_eq!(cohort.deadline(), None, "an ended cohort waits for nothing");
    task.expect("a completed cohort was signing")
}

async fn assert_member_replays(
    world: &World,
    service: &Service,
    open: &OpenCohort,
    cohort_id: &CohortId,
    member: &Identity,
    record: Option<&Arc<MemberRecord>>,
) {
    let config = ParticipantConfig {
        max_fee_rate: btcr2_aggregation_protocol::output::DEFAULT_MAX_FEE_RATE,
        did: member.did().clone(),
        participant_key: member.public_key(),
        communication_key: member.public_key(),
        genesis_document: member.genesis_document().cloned(),
        invite: None,
        timing: Timing::default(),
        beacons: world.beacons.clone(),
        aggregator: world.aggregator.clone(),
    };
    let stream = format!("participant/{}/{}/{cohort_id}", member.did(), service.did());
    let events: Vec<ParticipantEvent> = read_back(&*world.journal, &stream).await;
    let Some(ParticipantEvent::CohortDiscovered { advert, .. }) = events.first() else { panic!("{events:?}") };
    assert_eq!((&advert.cohort_id, &advert.conditions), (cohort_id, &open.conditions));
    let session = replay(ParticipantCohort::new(Arc::new(config), Arc::clone(advert)), &events);
    assert!(matches!(session.phase(), MemberPhase::Ended { .. }), "{stream} leads to {:?}", session.phase());
    assert_eq!(session.record().as_ref(), record.map(|record| &**record), "{stream}");
}
