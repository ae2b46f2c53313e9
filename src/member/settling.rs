//! What becomes of announced updates: final transactions, and what resolvers return then.

use std::{collections::BTreeSet, sync::Arc};

use super::{queue::Stage, report::Reporter, source::QueueSource};
use crate::{
    actors::{handle::Member, standing::notice::SeatNotice},
    protocol::{beacon::did_index, did::Did},
    standing::controller::StandingController,
};

/// A seed that runs.
#[derive(Clone)]
pub(super) struct Seed {
    pub(super) name: String,
    pub(super) member: Member,
    pub(super) controller: Arc<StandingController>,
    pub(super) source: Arc<QueueSource>,
}

impl Seed {
    /// Asks resolvers for every DID of this seed of which an update may be announced, or is.
    pub(super) async fn look(&self, reporter: &Reporter) {
        let mine = self.controller.indexes();
        let open = self.source.queue.open_items().into_iter();
        let announced = open.filter(|item| item.may_be_announced && mine.contains_key(&did_index(&item.did)));
        let dids: BTreeSet<Did> = announced.map(|item| item.did).collect();
        for did in dids {
            match self.controller.current(&did).await {
                Ok(current) => {
                    if let Err(problem) = self.source.settled(&did, &current).await {
                        reporter.storage_failed(&problem);
                    }
                }
                Err(crate::controller::CurrentError::Deactivated { by: Some(hash), .. }) => {
                    match self.source.queue.resolved(&did, &[hash]).await {
                        Ok(items) => items.iter().for_each(|item| reporter.update(item)),
                        Err(error) => reporter.storage_failed(&error.to_string()),
                    }
                }
                // It is asked again.
                Err(error) => tracing::warn!(%did, %error, "whether resolvers return an update is not known"),
            }
        }
        self.find_void(reporter).await;
    }

    /// Updates whose announcement was replaced: the seat does not hold them for announced any more, and resolvers do not return them.
    async fn find_void(&self, reporter: &Reporter) {
        let mine = self.controller.indexes();
        let mut void = Vec::new();
        for seat in self.member.seats().await {
            let Some(machine) = self.member.inspect(&seat.seat).await else { continue };
            let committed = machine.committed();
            let open = self.source.queue.open_items().into_iter();
            let of_seat = open.filter(|item| {
                let index = did_index(&item.did);
                item.stage == Stage::Announced
                    && mine.contains_key(&index)
                    && item.place.as_ref().is_some_and(|place| place.cohort_id == seat.cohort_id)
                    && !committed.contains(&(index, item.version, *item.update.hash()))
            });
            void.extend(of_seat);
        }
        // A final announcement ends the commitment too: only what resolvers do not return is void.
        let mut gone = Vec::new();
        for item in void {
            if let Ok(current) = self.controller.current(&item.did).await
                && current.version < item.version
                && current.young.is_none()
            {
                gone.push(item.id);
            }
        }
        if gone.is_empty() {
            return;
        }
        match self.source.queue.void(&gone).await {
            Ok(items) => items.iter().for_each(|item| reporter.update(item)),
            Err(error) => reporter.storage_failed(&error.to_string()),
        }
    }
}

/// Follows what a notice states about updates in the queue. Whether resolvers are to be asked.
pub(super) async fn follow(notice: &SeatNotice, source: &QueueSource, reporter: &Reporter) -> bool {
    let (queue, mut asks) = (&source.queue, false);
    let changed = match notice {
        SeatNotice::SeatSigned { cohort_id, number, txid, .. } => {
            queue.signed(cohort_id, *number, *txid, Stage::Approved).await
        }
        SeatNotice::Announced { cohort_id, number, txid, .. } => {
            queue.signed(cohort_id, *number, *txid, Stage::Announced).await
        }
        SeatNotice::CoinSpent { by, .. } => {
            asks = true;
            queue.confirmed(*by).await
        }
        SeatNotice::Missed { .. } => {
            asks = true;
            Ok(Vec::new())
        }
        _ => Ok(Vec::new()),
    };
    match changed {
        Ok(items) => items.iter().for_each(|item| reporter.update(item)),
        Err(error) => reporter.storage_failed(&error.to_string()),
    }
    asks
}
