//! The history of a cohort, which outlives its journal.

use std::sync::Arc;

use actix::{AsyncContext, Context, WrapFuture};
use btcr2_aggregation_protocol::{
    cohort::standing::number::{NumberEnd, NumberTask},
    time::Timestamp,
};

use super::StandingCohortActor;
use crate::{
    chain::signal_of,
    standing::history::{Announced, CohortRecord, Fate, HistoryError, Paid},
};

/// The numbers whose fate is looked up again after a restart: the process may have ended between an event and its record. A
/// cohort has at most 20 announcements that are not final.
const LOOK_BACK: u64 = 64;

/// What is stored of a number's end.
pub(super) fn announced(task: &NumberTask, end: &NumberEnd, at: Timestamp) -> Option<Announced> {
    let NumberEnd::Signed { transaction, mode, board_hash, .. } = end else { return None };
    let opportunity = &task.opportunity;
    Some(Announced {
        number: opportunity.number,
        txid: transaction.compute_txid(),
        signal: signal_of(transaction).filter(|_| opportunity.kind.announces()),
        kind: opportunity.kind,
        coins: opportunity.coins.clone(),
        board_hash: *board_hash,
        state: Fate::Unconfirmed,
        at: Some(at),
        paid: Paid::of(transaction, &opportunity.coins, *mode, transaction.weight().to_vbytes_ceil()),
    })
}

fn warn(error: &HistoryError) {
    tracing::error!(%error, "what a cohort has announced cannot be stored");
}

impl StandingCohortActor {
    /// Stores the cohort once it has formed; `formed_at` is known only then.
    pub(super) fn record_cohort(&self, formed_at: Option<Timestamp>, ctx: &mut Context<Self>) {
        let machine = self.engine.machine();
        let Some(output) = machine.output() else { return };
        let config = machine.config();
        let record = CohortRecord {
            cohort_id: config.cohort_id.clone(),
            service: config.service.clone(),
            beacon_address: output.address().to_owned(),
            terms: Arc::clone(&config.terms),
            seats: machine.seats().map(|(seat, did)| (*seat, did.clone())).collect(),
            formed_at,
        };
        let history = Arc::clone(&self.shared.history);
        let storing = async move {
            let known = if formed_at.is_none() { history.cohort(&record.cohort_id).await? } else { None };
            let formed_at = formed_at.or_else(|| known?.formed_at);
            history.put_cohort(CohortRecord { formed_at, ..record }).await
        };
        let storing = async move {
            if let Err(error) = storing.await {
                warn(&error);
            }
        };
        ctx.spawn(storing.into_actor(self));
    }

    /// Stores what has become of numbers.
    pub(super) fn record_fate(&self, numbers: &[u64], state: Fate, ctx: &mut Context<Self>) {
        let settle = |number: &u64| self.shared.history.settle(self.cohort_id(), *number, state);
        let settling: Vec<_> = numbers.iter().map(settle).collect();
        let storing = async move {
            for settled in settling {
                if let Err(error) = settled.await {
                    warn(&error);
                }
            }
        };
        ctx.spawn(storing.into_actor(self));
    }

    /// Stores what has become of the last numbers: with an announcement its ancestors are final, and after a restart records may be missing.
    pub(super) fn record_fates(&self, ctx: &mut Context<Self>) {
        let machine = self.engine.machine();
        let known = machine.announcements();
        // The open number may have a record that its cohort does not know of yet.
        let ended = machine.open_number().map_or(machine.last_number(), |open| open.saturating_sub(1));
        let Some((first, _)) = known.first().copied() else { return };
        let (history, cohort_id) = (Arc::clone(&self.shared.history), self.cohort_id().clone());
        let after = first.saturating_sub(LOOK_BACK);
        let settling = async move {
            let listed = history.list(&cohort_id, after, 2 * LOOK_BACK as usize).await?;
            for announced in listed.iter().filter(|announced| announced.number <= ended) {
                let now = known.iter().find(|(number, _)| *number == announced.number);
                let state = match now {
                    Some((_, true)) => Fate::Final,
                    Some((_, false)) => Fate::Unconfirmed,
                    // The machine forgets what is final, and what is void: of those before its first one it was known.
                    None if announced.number < first && announced.state == Fate::Unconfirmed => Fate::Final,
                    None if announced.number < first => announced.state,
                    None => Fate::Void,
                };
                history.settle(&cohort_id, announced.number, state).await?;
            }
            Ok::<_, HistoryError>(())
        };
        let settling = async move {
            if let Err(error) = settling.await {
                warn(&error);
            }
        };
        ctx.spawn(settling.into_actor(self));
    }
}
