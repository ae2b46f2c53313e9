//! What an operator asks of a running cohort beside its formation and its end.

use std::time::Duration;

use actix::{Context, Handler, Message as ActixMessage};
use btcr2_aggregation_protocol::{
    cohort::service::{ServiceEffect, ServiceInput, phase::Phase},
    error::Reject,
    machine::Machine,
    time::Timestamp,
};

use super::CohortActor;
use crate::{engine::Driven, transport::Outbound};

/// Give the current phase more time.
#[derive(ActixMessage)]
#[rtype(result = "Result<Timestamp, Reject>")]
pub(crate) struct Extend(pub(crate) Duration);

/// Advertise the cohort, or stop to: who has seen the advert may still opt in.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct Advertise(pub(crate) bool);

impl CohortActor {
    /// Whether a broadcast is held back: the operator has paused the advert. A cohort broadcasts nothing else.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet && matches!(self.engine.machine().phase(), Phase::Planned | Phase::Enrolling(_))
    }
}

impl Handler<Extend> for CohortActor {
    type Result = Result<Timestamp, Reject>;

    fn handle(&mut self, Extend(by): Extend, ctx: &mut Self::Context) -> Self::Result {
        // The decision is the same a moment later: nothing runs in between.
        let (_, until) = self.engine.machine().extended(by)?;
        self.feed(ServiceInput::Extend { by }, ctx);
        Ok(until)
    }
}

impl Handler<Advertise> for CohortActor {
    type Result = ();

    fn handle(&mut self, Advertise(advertised): Advertise, ctx: &mut Context<Self>) {
        let was_quiet = std::mem::replace(&mut self.quiet, !advertised);
        if !matches!(self.engine.machine().phase(), Phase::Enrolling(_)) || was_quiet == self.quiet {
            return;
        }
        if self.quiet {
            return self.send(Outbound::WithdrawAdvert { cohort_id: self.cohort_id() });
        }
        let owed = self.engine.machine().resume();
        for advert in owed.into_iter().filter(|effect| matches!(effect, ServiceEffect::Broadcast(_))) {
            self.perform(advert, ctx);
        }
    }
}
