//! The cohorts of previous runs, which are started from the journal when the service starts; and the archiving or
//! removal of the journals of ended cohorts.

use std::sync::Arc;

use actix::{
    ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message as ActixMessage, ResponseFuture,
    WrapFuture,
};
use btcr2_aggregation_protocol::{
    cohort::event::{CohortFailure, ServiceEvent},
    id::CohortId,
};

use tracing::Instrument;

use super::{
    AggregationService, ArchiveCohort, Retention, TellEnds,
    cohort::{Beginning, CohortActor},
    signing::SigningSessionActor,
};
use crate::{
    journal::{Journal, JournalError, StreamId, StreamKind},
    notice::ServiceNotice,
    span,
    supervision::{End, replay},
};

/// A cohort's actor has stopped, for any reason.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct CohortGone {
    pub(super) cohort_id: CohortId,
    pub(super) end: End,
}

type Events = Result<Vec<ServiceEvent>, JournalError>;

impl AggregationService {
    /// Starts every cohort of this service that the journal has and the host has not archived.
    pub(super) fn recover_all(&self, ctx: &mut Context<Self>) {
        let journal = Arc::clone(&self.shared.journal);
        // Other messages wait: a member's message must find its cohort.
        ctx.wait(read_all(journal).into_actor(self).map(|read, service, ctx| match read {
            Err(error) => {
                // Without its journal it would notify the members of its cohorts that the cohorts do not exist.
                tracing::error!(%error, "the journal cannot be read, the service does not start");
                service.guard.journal_failed();
                ctx.stop();
            }
            Ok((archived, live)) => {
                for cohort_id in archived {
                    service.ended.insert(cohort_id);
                }
                for (cohort_id, facts) in live {
                    if !service.cohorts.contains_key(&cohort_id) && !service.halted.contains(&cohort_id) {
                        service.start_again(cohort_id, facts, ctx);
                    }
                }
                // Not earlier: a member whose DID does not prove its key must be registered before it connects.
                service.link.connect();
            }
        }));
    }

    /// Starts a cohort of a previous run from its events.
    fn start_again(&mut self, cohort_id: CohortId, events: Events, ctx: &Context<Self>) {
        let _cohort = span::cohort(&cohort_id).entered();
        let events = match events {
            Ok(events) => events,
            Err(error) => return self.lost(cohort_id, error.to_string()),
        };
        let Some(ServiceEvent::CohortAdvertised { terms, .. }) = events.first() else {
            return self.lost(cohort_id, "its journal does not begin with its terms".to_owned());
        };
        if terms.service != *self.settings.identity.did() {
            // A stream of another service that uses the same journal.
            return;
        }
        let replayed = replay::caught(|| {
            let machine = self.machine(Arc::clone(terms)).map_err(|error| error.to_string())?;
            Ok(Beginning::resumed(machine, &events))
        });
        let beginning = match replayed.and_then(|beginning| beginning) {
            Ok(beginning) => beginning,
            Err(reason) => return self.lost(cohort_id, reason),
        };
        for (did, genesis_document) in beginning.external_members() {
            self.settings.transport.introduce(&did, &genesis_document);
        }
        self.start_cohort(beginning, ctx);
    }

    /// A cohort cannot continue, although it has not ended. Once its journal is repaired, it can be restored.
    fn lost(&mut self, cohort_id: CohortId, reason: String) {
        let _cohort = span::cohort(&cohort_id).entered();
        tracing::error!(%cohort_id, reason, "a cohort cannot continue");
        self.cohorts.remove(&cohort_id);
        self.halted.insert(cohort_id.clone());
        let failure = CohortFailure::Internal { reason };
        self.shared.notices.publish(ServiceNotice::failed(cohort_id, &failure, None));
    }

    /// Restarts after a panic, with the cohorts in the journal, unless there were too many panics.
    pub(super) fn restart(&mut self, ctx: &mut Context<Self>) {
        let (now, intensity) = (self.shared.clock.now(), self.shared.restarts);
        let Some(pause) = self.restarts.pause(now, intensity, &mut self.guard) else {
            return ctx.stop();
        };
        tracing::error!(restarts = self.restarts.count(), "the service panicked and restarts");
        // The last future passed to `ctx.wait` is the first to run.
        self.recover_all(ctx);
        ctx.wait(tokio::time::sleep(pause).into_actor(self));
    }

    fn put_away(&self, cohort_id: CohortId, how: Retention, ctx: &mut Context<Self>) {
        ctx.spawn(self.putting_away(cohort_id, how).into_actor(self));
    }

    fn putting_away(&self, cohort_id: CohortId, how: Retention) -> impl Future<Output = ()> + 'static {
        let (now, journal) = (self.shared.clock.now(), Arc::clone(&self.shared.journal));
        let span = span::cohort(&cohort_id);
        let putting = async move {
            let stream = CohortActor::stream(&cohort_id);
            let put = async {
                let sessions = sessions_of(&*journal, &stream).await?;
                // The cohort's own stream is last: while it exists, it names the streams that belong to it.
                for stream in sessions.iter().chain([&stream]) {
                    match how {
                        Retention::UntilArchived => journal.archive(stream, now).await?,
                        Retention::Forget => journal.remove(stream).await?,
                    }
                }
                Ok::<_, JournalError>(())
            };
            if let Err(error) = put.await {
                tracing::error!(%cohort_id, %error, "the journal of an ended cohort cannot be archived or removed");
            }
        };
        putting.instrument(span)
    }
}

/// The streams of the signing sessions of a cohort.
async fn sessions_of(journal: &dyn Journal, cohort: &StreamId) -> Result<Vec<StreamId>, JournalError> {
    let events = replay::events::<ServiceEvent>(journal, cohort).await?;
    let sessions = events.iter().filter_map(|event| match event {
        ServiceEvent::SigningStarted { session_id, .. } => Some(SigningSessionActor::stream(session_id)),
        _ => None,
    });
    Ok(sessions.collect())
}

/// The archived cohorts, and the live ones with their events.
async fn read_all(journal: Arc<dyn Journal>) -> Result<(Vec<CohortId>, Vec<(CohortId, Events)>), JournalError> {
    let archived = journal.archived().await?.into_iter().filter_map(|archived| match archived.stream.kind() {
        StreamKind::Cohort(cohort_id) => Some(cohort_id),
        _ => None,
    });
    let archived = archived.collect();
    let mut live = Vec::new();
    for stream in journal.streams().await? {
        if let StreamKind::Cohort(cohort_id) = stream.kind() {
            // A damaged stream only concerns its own cohort.
            live.push((cohort_id, replay::events(&*journal, &stream).await));
        }
    }
    Ok((archived, live))
}

impl Handler<CohortGone> for AggregationService {
    type Result = ();

    fn handle(&mut self, CohortGone { cohort_id, end }: CohortGone, ctx: &mut Self::Context) {
        match end.failure() {
            Some(reason) => {
                self.journal_failed |= end == End::JournalFailed;
                self.lost(cohort_id, reason.into_owned());
            }
            None => {
                self.cohorts.remove(&cohort_id);
                self.ended.insert(cohort_id.clone());
                if self.settings.retention == Retention::Forget {
                    self.put_away(cohort_id, Retention::Forget, ctx);
                }
            }
        }
    }
}

impl Handler<TellEnds> for AggregationService {
    type Result = ();

    fn handle(&mut self, _: TellEnds, ctx: &mut Self::Context) {
        self.recover_all(ctx);
    }
}

impl Handler<ArchiveCohort> for AggregationService {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, ArchiveCohort(cohort_id): ArchiveCohort, _: &mut Self::Context) -> Self::Result {
        // A host archives what was reported as failed; but once this cohort's journal is repaired, it can be restored.
        if self.settings.retention == Retention::UntilArchived && !self.halted.contains(&cohort_id) {
            Box::pin(self.putting_away(cohort_id, Retention::UntilArchived))
        } else {
            Box::pin(std::future::ready(()))
        }
    }
}
