//! What an operator asks of a standing cohort before it has formed: its advert, and its end.

use actix::{ActorContext, ActorFutureExt, AsyncContext, Context, WrapFuture};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        cohort::CohortEffect,
        message::{SeatRefused, StandingMessage},
    },
    did::Did,
    error::Reject,
    message::Body,
};

use super::StandingCohortActor;
use crate::{engine::Driven, standing::notice::StandingNotice, transport::Outbound};

fn formed() -> Reject {
    Reject::not_now("the cohort has formed: its address is that of DIDs")
}

impl StandingCohortActor {
    /// Withdraws the advert, or advertises again. Who has seen the advert may still ask for a seat.
    pub(super) fn set_advertised(&mut self, advertised: bool, ctx: &mut Context<Self>) -> Result<(), Reject> {
        if self.engine.machine().has_formed() {
            return Err(formed());
        }
        if std::mem::replace(&mut self.quiet, !advertised) != advertised {
            return Ok(());
        }
        if advertised {
            let advert = CohortEffect::Broadcast(self.engine.machine().advert());
            self.perform(advert, ctx);
        } else {
            let cohort_id = self.cohort_id().clone();
            self.shared.load.send(Outbound::WithdrawAdvert { cohort_id }, &self.outbound);
        }
        Ok(())
    }

    /// Ends a cohort that has not formed: its candidates are notified, and its journal is archived, so that it does not continue after a
    /// restart.
    pub(super) fn withdraw(&mut self, reason: &str, ctx: &mut Context<Self>) -> Result<(), Reject> {
        let machine = self.engine.machine();
        if machine.has_formed() {
            return Err(formed());
        }
        self.quiet = true;
        let cohort_id = self.cohort_id().clone();
        self.shared.load.send(Outbound::WithdrawAdvert { cohort_id: cohort_id.clone() }, &self.outbound);
        let candidates: Vec<Did> = self.engine.machine().candidates().map(|(did, _)| did.clone()).collect();
        for did in candidates {
            self.notify_without_seat(&did, reason);
        }
        self.shared.notices.publish(StandingNotice::StandingCancelled { cohort_id, reason: reason.to_owned() });
        let archived = self.shared.journal.archive(self.engine.stream(), self.shared.clock.now());
        // Other messages wait: nothing is promised any more.
        ctx.wait(archived.into_actor(self).map(|archived, actor, ctx| {
            if let Err(error) = archived {
                tracing::error!(%error, "the journal of a cancelled cohort cannot be archived: it continues after a restart");
            }
            actor.guard.finish();
            ctx.stop();
        }));
        Ok(())
    }

    /// Notifies a candidate, admitted or not, that it has no seat.
    fn notify_without_seat(&self, did: &Did, reason: &str) {
        let refused = SeatRefused { cohort_id: self.cohort_id().clone(), reason: reason.to_owned() };
        let message = StandingMessage::from(refused);
        let outbound = Outbound::Direct { to: did.clone(), body: Body::from(message).into(), until: None };
        self.shared.load.send(outbound, &self.outbound);
    }
}
