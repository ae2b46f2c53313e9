//! What a host asks of a running cohort.

use std::sync::Arc;

use actix::{Handler, Message as ActixMessage, ResponseFuture};
use btcr2_aggregation_protocol::{cohort::service::ServiceCohort, id::CohortId};
use futures::FutureExt;

use super::{
    AggregationService,
    cohort::{Cancel, CohortActor, Finalize, Inspect},
};

/// Form a cohort with its current members, without waiting for more.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct FinalizeCohort(pub(crate) CohortId);

/// End a cohort.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct CancelCohort {
    /// The cohort.
    pub(crate) cohort_id: CohortId,
    /// The reason, as text.
    pub(crate) reason: String,
}

/// A snapshot of a running cohort.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "Option<Arc<ServiceCohort>>")]
pub(crate) struct InspectCohort(pub(crate) CohortId);

/// The cohorts that are running.
#[derive(Clone, Copy, Debug, ActixMessage)]
#[rtype(result = "Vec<CohortId>")]
pub(crate) struct LiveCohorts;

impl AggregationService {
    /// Passes a message of the host to a cohort: it waits for space in the mailbox. `None` if the cohort is not running.
    fn ask<M>(&self, cohort_id: &CohortId, message: M) -> ResponseFuture<Option<M::Result>>
    where
        M: ActixMessage<Result: Send> + Send + 'static,
        CohortActor: Handler<M>,
    {
        let asking = self.cohorts.get(cohort_id).map(|child| child.cohort.send(message));
        Box::pin(async move {
            match asking {
                // A cohort that has just ended will be reported soon.
                Some(asking) => asking.await.ok(),
                None => None,
            }
        })
    }
}

impl Handler<FinalizeCohort> for AggregationService {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, FinalizeCohort(cohort_id): FinalizeCohort, _: &mut Self::Context) -> Self::Result {
        Box::pin(self.ask(&cohort_id, Finalize).map(drop))
    }
}

impl Handler<CancelCohort> for AggregationService {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, CancelCohort { cohort_id, reason }: CancelCohort, _: &mut Self::Context) -> Self::Result {
        Box::pin(self.ask(&cohort_id, Cancel(reason)).map(drop))
    }
}

impl Handler<InspectCohort> for AggregationService {
    type Result = ResponseFuture<Option<Arc<ServiceCohort>>>;

    fn handle(&mut self, InspectCohort(cohort_id): InspectCohort, _: &mut Self::Context) -> Self::Result {
        self.ask(&cohort_id, Inspect)
    }
}

impl Handler<LiveCohorts> for AggregationService {
    type Result = actix::MessageResult<LiveCohorts>;

    fn handle(&mut self, _: LiveCohorts, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult(self.cohorts.keys().cloned().collect())
    }
}
