//! Migration of a member's seats: what one seat has registered at the successor is what the other one may move there.

use std::{collections::BTreeSet, sync::Arc};

use actix::{AsyncContext, Context, Handler, Message as ActixMessage, WrapFuture};
use btcr2_aggregation_protocol::{
    cohort::standing::{OpportunityKind, seat::SeatInput},
    did::Did,
    hash::DidIndex,
    id::CohortId,
};

use super::{MemberActor, seat::SeatActor};
use crate::{
    standing::policy::{MoveTo, SeatPolicy, SeatView},
    transport::send_in_turn,
};

/// The indexes that a seat has confirmed by its cohort.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Confirmed {
    pub(super) service: Did,
    pub(super) cohort_id: CohortId,
    pub(super) indexes: BTreeSet<DidIndex>,
}

impl SeatActor {
    /// Reports to the member which indexes its cohort has confirmed.
    pub(super) fn report_confirmed(&self, ctx: &mut Context<Self>) {
        let machine = self.engine.machine();
        let confirmed = Confirmed {
            service: machine.config().service.clone(),
            cohort_id: machine.config().cohort_id.clone(),
            indexes: machine.confirmed_indexes().copied().collect(),
        };
        if confirmed.indexes.is_empty() {
            return;
        }
        // It waits for space.
        let sent = self.member.send(confirmed);
        ctx.spawn(
            async move {
                // A member that has ended needs nothing.
                let _ = sent.await;
            }
            .into_actor(self),
        );
    }

    /// What may move to the successor that the service has named.
    pub(super) fn move_to(&self) -> Option<MoveTo> {
        let machine = self.engine.machine();
        let successor = Arc::clone(machine.successor()?);
        let there = self.confirmed_elsewhere.get(&successor.cohort_id);
        let is_there = |index: &&DidIndex| there.is_some_and(|there| there.contains(*index));
        let (indexes, others) = machine.indexes().partition::<Vec<&DidIndex>, _>(is_there);
        let (indexes, others) = (indexes.into_iter().copied().collect(), others.into_iter().copied().collect());
        Some(MoveTo { successor, indexes, others })
    }

    /// Prepares the move with what is known now.
    pub(super) fn prepare_move(&mut self, ctx: &mut Context<Self>) {
        let (Some(move_to), Some(view)) = (self.move_to(), self.view()) else { return };
        let policy = Arc::clone(&self.settings.policy);
        self.ask(async move { vec![prepared(&*policy, &view, &move_to).await] }, ctx);
    }

    /// What the host needs to choose the updates of a number of this kind.
    pub(super) fn move_of(&self, kind: OpportunityKind) -> Option<MoveTo> {
        self.move_to().filter(|_| kind == OpportunityKind::Move)
    }
}

/// The move as it is prepared now. What the policy leaves behind does not move, although it may be registered there.
pub(super) async fn prepared(policy: &dyn SeatPolicy, view: &SeatView, move_to: &MoveTo) -> SeatInput {
    let mut left = policy.leaves_behind(view, move_to).await;
    left.sort();
    left.dedup();
    let registered = move_to.indexes.iter().filter(|index| !left.contains(index)).copied().collect();
    SeatInput::MovePrepared { successor: move_to.successor.cohort_id.clone(), registered, left }
}

impl Handler<Confirmed> for SeatActor {
    type Result = ();

    fn handle(&mut self, confirmed: Confirmed, ctx: &mut Self::Context) {
        self.confirmed_elsewhere.insert(confirmed.cohort_id, confirmed.indexes);
        self.prepare_move(ctx);
    }
}

impl Handler<Confirmed> for MemberActor {
    type Result = ();

    fn handle(&mut self, confirmed: Confirmed, ctx: &mut Self::Context) {
        let siblings = self
            .seats
            .values()
            .filter(|seat| seat.service == confirmed.service && seat.cohort_id != confirmed.cohort_id);
        for seat in siblings {
            send_in_turn(&seat.address, confirmed.clone(), ctx);
        }
    }
}
