//! Bringing cohorts back: all of them when the service starts, one of them when its actor panicked; and what becomes of the
//! journal of those that have ended.

use std::{sync::Arc, time::Duration};

use actix::{
    ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message as ActixMessage, ResponseFuture,
    WrapFuture,
};
use btcr2_aggregation_protocol::{
    cohort::event::{CohortFailure, ServiceEvent},
    id::CohortId,
};

use tracing::Instrument;

use super::{AggregationService, ArchiveCohort, Retention, TellEnds, place::Place};
use crate::{
    cohort::{Beginning, CohortActor, How},
    journal::{Journal, JournalError, StreamKind},
    notice::ServiceNotice,
    recovery, span,
    supervisor::End,
    transport::link::Connect,
};

/// A cohort's actor is gone, however it went.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct CohortGone {
    pub(super) cohort_id: CohortId,
    pub(super) end: End,
}

type Facts = Result<Vec<ServiceEvent>, JournalError>;

impl AggregationService {
    /// Brings every cohort of ours back that the journal knows and the host has not archived.
    pub(super) fn recover_all(&self, ctx: &mut Context<Self>) {
        let journal = Arc::clone(&self.shared.journal);
        // Nothing else happens before: a member's message must find its cohort.
        ctx.wait(read_all(journal).into_actor(self).map(|read, service, ctx| match read {
            Err(error) => {
                // It would tell the members of cohorts that it has lost sight of that there are none.
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
                        service.bring_back(cohort_id, facts, How::Resumed, ctx);
                    }
                }
                // Not before: a member whose DID proves no key must be known when it knocks.
                service.link.do_send(Connect);
            }
        }));
    }

    /// Starts a cohort's actor again from its facts.
    fn bring_back(&mut self, cohort_id: CohortId, facts: Facts, how: How, ctx: &Context<Self>) {
        let _cohort = span::cohort(&cohort_id).entered();
        let facts = match facts {
            Ok(facts) => facts,
            Err(error) => return self.lost(cohort_id, error.to_string()),
        };
        let terms = match (facts.first(), self.cohorts.get(&cohort_id), &how) {
            (Some(ServiceEvent::CohortAdvertised { terms, .. }), ..) => Arc::clone(terms),
            // It panicked before anything of it was durable.
            (None, Some(place), How::Again) => Arc::clone(&place.terms),
            (None, _, How::Abort(reason)) => return self.lost(cohort_id, reason.clone()),
            _ => return self.lost(cohort_id, "its journal does not begin with its terms".to_owned()),
        };
        if terms.service != *self.settings.identity.did() {
            // Another service keeps its journal in the same place.
            return;
        }
        let replayed = recovery::caught(|| {
            let machine = self.machine(Arc::clone(&terms)).map_err(|error| error.to_string())?;
            Ok(match facts.is_empty() {
                true => Beginning::fresh(machine),
                false => Beginning::again(machine, &facts, how),
            })
        });
        let beginning = match replayed.and_then(|beginning| beginning) {
            Ok(beginning) => beginning,
            Err(reason) => return self.lost(cohort_id, reason),
        };
        for (did, genesis_document) in beginning.external_members() {
            self.settings.transport.introduce(&did, &genesis_document);
        }
        let actor = self.start_cohort(beginning, ctx);
        self.cohorts.entry(cohort_id.clone()).or_insert_with(|| Place::of(terms)).back(&cohort_id, actor);
    }

    /// A cohort cannot go on, although it has not ended: its journal may be mended, and bring it back.
    fn lost(&mut self, cohort_id: CohortId, reason: String) {
        let _cohort = span::cohort(&cohort_id).entered();
        tracing::error!(%cohort_id, reason, "a cohort cannot go on");
        self.cohorts.remove(&cohort_id);
        self.halted.insert(cohort_id.clone());
        let failure = CohortFailure::Internal { reason };
        self.shared.notices.publish(ServiceNotice::failed(cohort_id, &failure, None));
    }

    /// Replaces a cohort's actor that panicked, unless that happened too often: then the cohort fails, alone.
    fn restart(&mut self, cohort_id: CohortId, ctx: &mut Context<Self>) {
        let _cohort = span::cohort(&cohort_id).entered();
        let (now, intensity) = (self.shared.clock.now(), self.shared.restarts);
        let Some(place) = self.cohorts.get_mut(&cohort_id) else { return };
        place.actor = None;
        let (pause, how) = match place.restarts.next(now, intensity) {
            Some(pause) => (pause, How::Again),
            None if place.given_up => return self.lost(cohort_id, "its actor goes on panicking".to_owned()),
            None => {
                place.given_up = true;
                let often =
                    format!("its actor panicked {} times within {:?}", intensity.most + 1, intensity.within);
                (Duration::ZERO, How::Abort(often))
            }
        };
        let restarts = place.restarts.count();
        tracing::error!(%cohort_id, restarts, "a cohort's actor panicked and is brought back from its journal");
        self.shared.notices.publish(ServiceNotice::CohortRestarted { cohort_id: cohort_id.clone(), restarts });
        let journal = Arc::clone(&self.shared.journal);
        let reading = async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let facts = recovery::facts(&*journal, &CohortActor::stream(&cohort_id)).await;
            (cohort_id, facts, how)
        };
        ctx.spawn(reading.into_actor(self).map(|(cohort_id, facts, how), service, ctx| {
            service.bring_back(cohort_id, facts, how, ctx);
        }));
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
                let sessions = recovery::sessions_of(&*journal, &stream).await?;
                // The cohort's last: while it is there, it is known what belongs to it.
                for stream in sessions.iter().chain([&stream]) {
                    match how {
                        Retention::UntilArchived => journal.archive(stream, now).await?,
                        Retention::Forget => journal.remove(stream).await?,
                    }
                }
                Ok::<_, JournalError>(())
            };
            if let Err(error) = put.await {
                tracing::error!(%cohort_id, %error, "the journal of an ended cohort cannot be put away");
            }
        };
        putting.instrument(span)
    }
}

/// The archived cohorts, and the live ones with their facts.
async fn read_all(journal: Arc<dyn Journal>) -> Result<(Vec<CohortId>, Vec<(CohortId, Facts)>), JournalError> {
    let archived = journal.archived().await?.into_iter().filter_map(|archived| match archived.stream.kind() {
        StreamKind::Cohort(cohort_id) => Some(cohort_id),
        _ => None,
    });
    let archived = archived.collect();
    let mut live = Vec::new();
    for stream in journal.streams().await? {
        if let StreamKind::Cohort(cohort_id) = stream.kind() {
            // A stream that is damaged is its own cohort's affair.
            live.push((cohort_id, recovery::facts(&*journal, &stream).await));
        }
    }
    Ok((archived, live))
}

impl Handler<CohortGone> for AggregationService {
    type Result = ();

    fn handle(&mut self, CohortGone { cohort_id, end }: CohortGone, ctx: &mut Self::Context) {
        match (end, end.failure()) {
            (End::Panicked, _) => self.restart(cohort_id, ctx),
            (_, Some(reason)) => {
                self.journal_failed |= end == End::JournalFailed;
                self.lost(cohort_id, reason.to_owned());
            }
            (_, None) => {
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
        // A host archives what it was told has failed; but this one's journal may be mended, and bring it back.
        if self.settings.retention == Retention::UntilArchived && !self.halted.contains(&cohort_id) {
            Box::pin(self.putting_away(cohort_id, Retention::UntilArchived))
        } else {
            Box::pin(std::future::ready(()))
        }
    }
}
