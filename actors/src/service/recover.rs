//! The cohorts of previous runs, which are started from the journal when the service starts.

use std::sync::Arc;

use actix::{ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message as ActixMessage, WrapFuture};
use btcr2_aggregation_protocol::{
    cohort::{
        event::{CohortFailure, ServiceEvent},
        standing::cohort::CohortEvent,
    },
    id::CohortId,
};

use super::{AggregationService, cohort::Beginning};
use crate::{
    journal::{Journal, JournalError, StreamKind},
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
            Ok(Previous { archived, live, standing }) => {
                for (cohort_id, events) in standing {
                    let link = service.link.clone();
                    service.standing.start_again(&cohort_id, events, link, ctx);
                }
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
}

/// What the journal has of previous runs.
struct Previous {
    /// The archived cohorts.
    archived: Vec<CohortId>,
    /// The live ones with their events.
    live: Vec<(CohortId, Events)>,
    /// The standing ones with their events.
    standing: Vec<(CohortId, Result<Vec<CohortEvent>, JournalError>)>,
}

async fn read_all(journal: Arc<dyn Journal>) -> Result<Previous, JournalError> {
    let archived = journal.archived().await?.into_iter().filter_map(|archived| match archived.stream.kind() {
        StreamKind::Cohort(cohort_id) => Some(cohort_id),
        _ => None,
    });
    let archived = archived.collect();
    let (mut live, mut standing) = (Vec::new(), Vec::new());
    for stream in journal.streams().await? {
        // A damaged stream only concerns its own cohort.
        match stream.kind() {
            StreamKind::Cohort(cohort_id) => live.push((cohort_id, replay::events(&*journal, &stream).await)),
            StreamKind::Standing(cohort_id) => standing.push((cohort_id, replay::events(&*journal, &stream).await)),
            _ => {}
        }
    }
    Ok(Previous { archived, live, standing })
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
                if let Some(removing) = self.cohort_journal.forget(&cohort_id) {
                    ctx.spawn(removing.into_actor(self));
                }
            }
        }
    }
}
