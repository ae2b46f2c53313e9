//! What a host asks of a running cohort.

use actix::{Handler, Message as ActixMessage, ResponseFuture};
use btcr2_aggregation_protocol::id::CohortId;

use super::{AggregationService, cohort::CohortActor};

/// A message of the host to a cohort. The answer is `None` if the cohort is not running.
#[derive(Clone, Debug)]
pub(crate) struct ToCohort<M>(pub(crate) CohortId, pub(crate) M);

impl<M: ActixMessage> ActixMessage for ToCohort<M> {
    type Result = Option<M::Result>;
}

/// The cohorts that are running.
#[derive(Clone, Copy, Debug, ActixMessage)]
#[rtype(result = "Vec<CohortId>")]
pub(crate) struct LiveCohorts;

impl<M> Handler<ToCohort<M>> for AggregationService
where
    M: ActixMessage<Result: Send> + Send + 'static,
    CohortActor: Handler<M>,
{
    type Result = ResponseFuture<Option<M::Result>>;

    /// The message waits for space in the cohort's mailbox.
    fn handle(&mut self, ToCohort(cohort_id, message): ToCohort<M>, _: &mut Self::Context) -> Self::Result {
        let asking = self.cohorts.get(&cohort_id).map(|child| child.cohort.send(message));
        Box::pin(async move {
            match asking {
                // A cohort that has just ended will be reported soon.
                Some(asking) => asking.await.ok(),
                None => None,
            }
        })
    }
}

impl Handler<LiveCohorts> for AggregationService {
    type Result = actix::MessageResult<LiveCohorts>;

    fn handle(&mut self, _: LiveCohorts, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult(self.cohorts.keys().cloned().collect())
    }
}
