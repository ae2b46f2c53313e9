//! What a host receives of cohorts from the journal, without their actors: their decisive events; and the archiving or
//! removal of the journals of ended cohorts.

use std::sync::Arc;

use btcr2_aggregation_protocol::{
    beacon::BeaconRegistry,
    cohort::{
        event::ServiceEvent,
        service::{CohortTerms, ServiceCohort, ServiceConfig},
    },
    id::CohortId,
    identity::Identity,
    output::KeyAggregator,
};
use futures::{FutureExt, future::BoxFuture};
use tracing::Instrument;

use super::{
    ServiceSettings,
    notices::{end_of, reformed, replayed},
    signing::SigningSessionActor,
};
use crate::{
    events::{Position, Source, Step, acknowledged},
    journal::{Journal, JournalError, Retention, StreamId, StreamKind},
    notice::ServiceNotice,
    runtime::{Clock, Randomness},
    span,
    supervision::replay,
};

/// The journal of a service's cohorts.
#[derive(Clone)]
pub(crate) struct CohortJournal {
    identity: Identity,
    beacons: BeaconRegistry,
    aggregator: Arc<dyn KeyAggregator>,
    journal: Arc<dyn Journal>,
    clock: Clock,
    randomness: Randomness,
    retention: Retention,
}

impl CohortJournal {
    pub(crate) fn new(settings: &ServiceSettings) -> Self {
        Self {
            identity: settings.identity.clone(),
            beacons: settings.beacons.clone(),
            aggregator: Arc::clone(&settings.aggregator),
            journal: Arc::clone(&settings.journal),
            clock: settings.clock,
            randomness: settings.randomness,
            retention: settings.retention,
        }
    }

    /// The end of a cohort, if it has ended; for a cohort whose actor is gone.
    pub(crate) async fn end(self, cohort_id: &CohortId) -> Result<Option<ServiceNotice>, JournalError> {
        let notices = self.decisive(StreamId::of_cohort(cohort_id)).await?;
        Ok(notices.into_iter().find(ServiceNotice::is_end))
    }

    async fn decisive(self, stream: StreamId) -> Result<Vec<ServiceNotice>, JournalError> {
        let events = replay::events::<ServiceEvent>(&*self.journal, &stream).await?;
        let Some(ServiceEvent::CohortAdvertised { terms, .. }) = events.first() else { return Ok(Vec::new()) };
        if terms.service != *self.identity.did() {
            // A stream of another service that uses the same journal.
            return Ok(Vec::new());
        }
        let (terms, span) = (Arc::clone(terms), tracing::Span::current());
        let problem = |problem: String| JournalError { stream: stream.clone(), problem };
        // Key aggregation for large cohorts takes long.
        let replaying = tokio::task::spawn_blocking(move || {
            let _entered = span.entered();
            replay::caught(|| self.replay(terms, &events))
        });
        let replayed = replaying.await.map_err(|error| problem(error.to_string()))?;
        replayed.and_then(|notices| notices).map_err(problem)
    }

    fn replay(&self, terms: Arc<CohortTerms>, events: &[ServiceEvent]) -> Result<Vec<ServiceNotice>, String> {
        let cohort_id = terms.cohort_id.clone();
        let mut rng = self.randomness.for_actor(StreamId::of_cohort(&cohort_id).as_str());
        let (beacons, aggregator) = (self.beacons.clone(), Arc::clone(&self.aggregator));
        let machine =
            ServiceCohort::new(Arc::new(ServiceConfig { terms: Arc::clone(&terms), beacons, aggregator }))
                .map_err(|error| error.to_string())?;
        let (machine, transcript) = replayed(machine, events);
        let mut notices: Vec<_> = reformed(&terms).into_iter().collect();
        if let Some(formed) = machine.phase().formed() {
            notices.push(ServiceNotice::formed(cohort_id, &formed.output));
        }
        notices.extend(end_of(&machine, &transcript, &self.identity, &mut rng));
        Ok(notices)
    }

    /// Archives or removes the streams of a cohort, if the journal shows that it has ended.
    async fn put_away(self, stream: StreamId, how: Retention) -> Result<(), JournalError> {
        let events = replay::events::<ServiceEvent>(&*self.journal, &stream).await?;
        // A host acknowledges what was reported as failed; but a cohort that only could not continue can be restored
        // once its journal is repaired.
        let is_end = |event: &ServiceEvent| {
            matches!(event, ServiceEvent::CohortCompleted { .. } | ServiceEvent::CohortFailed { .. })
        };
        if !events.iter().any(is_end) {
            return Ok(());
        }
        let sessions = events.iter().filter_map(|event| match event {
            ServiceEvent::SigningStarted { session_id, .. } => Some(SigningSessionActor::stream(session_id)),
            _ => None,
        });
        let now = self.clock.now();
        self.journal.remove(&StreamId::of_acknowledgements(&stream)).await?;
        // The cohort's own stream is last: while it exists, it names the streams that belong to it.
        for stream in sessions.chain([stream]) {
            match how {
                Retention::UntilArchived => self.journal.archive(&stream, now).await?,
                Retention::Forget => self.journal.remove(&stream).await?,
            }
        }
        Ok(())
    }

    /// Removes the journal of a cohort that has ended, if it does not outlive the process.
    pub(super) fn forget(&self, cohort_id: &CohortId) -> Option<impl Future<Output = ()> + use<>> {
        if self.retention != Retention::Forget {
            return None;
        }
        let (removing, span) =
            (self.clone().put_away(StreamId::of_cohort(cohort_id), Retention::Forget), span::cohort(cohort_id));
        let removing = async move {
            if let Err(error) = removing.await {
                tracing::error!(%error, "the journal of an ended cohort cannot be removed");
            }
        };
        Some(removing.instrument(span))
    }
}

impl Source<ServiceNotice> for CohortJournal {
    fn streams(&self) -> BoxFuture<'static, Result<Vec<StreamId>, JournalError>> {
        let streams = self.journal.streams();
        async move { Ok(streams.await?.into_iter().filter(is_cohort).collect()) }.boxed()
    }

    fn read(&self, stream: StreamId) -> BoxFuture<'static, Result<Vec<ServiceNotice>, JournalError>> {
        self.clone().decisive(stream).boxed()
    }

    fn acknowledged(&self) -> BoxFuture<'static, Result<Vec<Position>, JournalError>> {
        if self.retention == Retention::Forget {
            return futures::future::ready(Ok(Vec::new())).boxed();
        }
        let journal = Arc::clone(&self.journal);
        async move { acknowledged::read(&*journal, is_cohort).await }.boxed()
    }

    fn acknowledge(&self, position: Position) -> BoxFuture<'static, Result<(), JournalError>> {
        if self.retention == Retention::Forget {
            // The journal of the cohort is removed when the cohort ends.
            return futures::future::ready(Ok(())).boxed();
        }
        if position.step == Step::Ended {
            return self.clone().put_away(position.stream, Retention::UntilArchived).boxed();
        }
        let journal = Arc::clone(&self.journal);
        async move { acknowledged::write(&*journal, &position).await }.boxed()
    }
}

fn is_cohort(stream: &StreamId) -> bool {
    matches!(stream.kind(), StreamKind::Cohort(_))
}
