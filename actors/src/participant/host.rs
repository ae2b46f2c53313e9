//! What a host asks of a participant.

use std::sync::Arc;

use actix::{Handler, Message as ActixMessage, ResponseFuture};
use btcr2_aggregation_protocol::{
    cohort::participant::{
        ParticipantCohort,
        membership::{CohortKey, Membership},
    },
    did::Did,
    id::CohortId,
};

use super::{
    ParticipantActor,
    post::{Inspect, Leave},
};

/// Leave a cohort, in any phase.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct LeaveCohort {
    /// The service.
    pub(crate) service: Did,
    /// The cohort.
    pub(crate) cohort_id: CohortId,
}

/// Answers with the participant's memberships as they are now.
#[derive(Clone, Copy, Debug, ActixMessage)]
#[rtype(result = "Arc<Membership>")]
pub(crate) struct InspectMembership;

/// Answered when the sessions of previous runs are restored.
#[derive(Clone, Copy, Debug, ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct Restored;

/// A snapshot of a session.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "Option<Arc<ParticipantCohort>>")]
pub(crate) struct InspectSession {
    pub(crate) service: Did,
    pub(crate) cohort_id: CohortId,
}

impl Handler<LeaveCohort> for ParticipantActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, LeaveCohort { service, cohort_id }: LeaveCohort, _: &mut Self::Context) -> Self::Result {
        let leaving = self.sessions.get(&CohortKey { service, cohort_id }).map(|child| child.session.send(Leave));
        Box::pin(async move {
            if let Some(leaving) = leaving {
                // A session that has ended is left.
                let _ = leaving.await;
            }
        })
    }
}

impl Handler<InspectMembership> for ParticipantActor {
    type Result = Arc<Membership>;

    fn handle(&mut self, _: InspectMembership, _: &mut Self::Context) -> Self::Result {
        self.engine.snapshot()
    }
}

impl Handler<InspectSession> for ParticipantActor {
    type Result = ResponseFuture<Option<Arc<ParticipantCohort>>>;

    fn handle(
        &mut self,
        InspectSession { service, cohort_id }: InspectSession,
        _: &mut Self::Context,
    ) -> Self::Result {
        let asking = self.sessions.get(&CohortKey { service, cohort_id }).map(|child| child.session.send(Inspect));
        Box::pin(async move { asking?.await.ok() })
    }
}

impl Handler<Restored> for ParticipantActor {
    type Result = ();

    fn handle(&mut self, _: Restored, _: &mut Self::Context) {}
}
