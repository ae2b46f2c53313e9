//! Migration at the service: a cohort names its successor.

use std::sync::Arc;

use actix::Context;
use btcr2_aggregation_protocol::{
    cohort::standing::{StandingTerms, Successor, cohort::CohortInput},
    error::Reject,
    id::CohortId,
    output::BeaconOutput,
};

use super::StandingCohortActor;
use crate::engine::Driven;

/// A formed cohort to which another one moves.
#[derive(Clone, Debug)]
pub(crate) struct NewCohort {
    pub(crate) cohort_id: CohortId,
    pub(crate) terms: Arc<StandingTerms>,
    pub(crate) output: BeaconOutput,
}

impl StandingCohortActor {
    /// Advertises the cohort, which may be the successor of another one.
    pub(super) fn advertise(&mut self, ctx: &mut Context<Self>) {
        let input = match self.succeeds.clone() {
            Some(succession) => CohortInput::AdvertiseSuccessor(succession),
            None => CohortInput::Advertise,
        };
        self.feed(input, ctx);
    }

    /// Names the cohort to which this one moves.
    pub(super) fn name_successor(&mut self, new: &NewCohort, ctx: &mut Context<Self>) -> Result<(), Reject> {
        let Some(old) = self.engine.machine().roster().map(|roster| roster.context().clone()) else {
            return Err(Reject::not_now("the cohort has not formed"));
        };
        let key = Arc::clone(self.shared.identity.secret_key());
        let Some(rng) = self.engine.rng() else {
            // It decides another input on the blocking pool: the host can ask again.
            return Err(Reject::not_now("the cohort is busy"));
        };
        let successor = Successor::sign(&old, &new.cohort_id, &new.terms, &new.output, &key, rng);
        self.feed_own(CohortInput::SuccessorFormed(Arc::new(successor)), ctx)
    }
}
