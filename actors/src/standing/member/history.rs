//! What was announced while a seat was away: the list comes from the service, in pages; each board is fetched, and checked against what was
//! announced.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        ArchivedBoard,
        message::{HistoryGiven, HistoryRequest, MAX_HISTORY, PastAnnouncement},
    },
    error::{Reject, RejectCode},
    hash::DocumentHash,
};
use serde::{Deserialize, Serialize};

use super::seat::SeatActor;
use crate::{
    journal::{Record, StreamId},
    standing::{boards::BoardError, notice::SeatNotice, policy::MissedBoard},
    supervision::replay,
};

/// How often the service is asked for what was missed. What could not be fetched then is tried again.
const AGAIN: Duration = Duration::from_secs(3_600);

/// Up to which number the history was read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct ReadUpTo {
    number: u64,
}

/// How far the history was read.
#[derive(Debug, Default)]
pub(super) struct HistoryRead {
    /// Up to this number every board is stored; none before the journal was read.
    up_to: Option<u64>,
    /// The page that is being worked on, from this number to the last one of it, and whether more follow.
    page: Option<Page>,
    /// Whether a board of this page could not be had.
    has_gap: bool,
}

#[derive(Clone, Copy, Debug)]
struct Page {
    last: u64,
    has_more: bool,
}

impl SeatActor {
    fn history_stream(&self) -> StreamId {
        StreamId::of_history(self.identity.did().as_str())
    }

    /// Reads the history now, and from time to time.
    pub(super) fn keep_reading(&self, ctx: &mut Context<Self>) {
        ctx.run_interval(AGAIN, |actor, ctx| actor.read_history(ctx));
    }

    /// Asks for what was announced since the history was read last.
    pub(super) fn read_history(&mut self, ctx: &mut Context<Self>) {
        if self.engine.machine().output().is_none() {
            return;
        }
        if let Some(up_to) = self.history.up_to {
            return self.ask_history(up_to);
        }
        let (journal, stream) = (Arc::clone(&self.settings.journal), self.history_stream());
        let reading = async move { replay::events::<ReadUpTo>(&*journal, &stream).await };
        ctx.spawn(reading.into_actor(self).map(|read, actor, _| match read {
            Ok(events) => {
                let up_to = events.last().map_or(0, |last| last.number);
                actor.history.up_to.get_or_insert(up_to);
                actor.ask_history(up_to);
            }
            Err(error) => tracing::error!(%error, "how far the history was read is not known"),
        }));
    }

    fn ask_history(&self, after: u64) {
        let cohort_id = self.engine.machine().config().cohort_id.clone();
        self.send(HistoryRequest { cohort_id, after }.into());
    }

    pub(super) fn on_history(&mut self, given: &HistoryGiven, ctx: &mut Context<Self>) {
        let ascends = given.announcements.windows(2).all(|pair| pair[0].number < pair[1].number);
        let first = given.announcements.first().map_or(u64::MAX, |first| first.number);
        let fits = ascends && first > given.after && given.announcements.len() <= MAX_HISTORY;
        // One that was not asked for, or is being worked on.
        if !fits || self.history.up_to != Some(given.after) || self.history.page.is_some() {
            return;
        }
        let Some(last) = given.announcements.last() else { return };
        let has_more = given.announcements.len() == MAX_HISTORY;
        self.history.page = Some(Page { last: last.number, has_more });
        self.history.has_gap = false;
        let (boards, cohort_id) = (Arc::clone(&self.settings.boards), given.cohort_id.clone());
        let (mut after, last, announcements) = (given.after, last.number, given.announcements.clone());
        let looking = async move {
            let mut stored = BTreeSet::new();
            while after < last {
                let listed = boards.list(&cohort_id, after, MAX_HISTORY).await?;
                let Some((number, _)) = listed.last() else { break };
                after = *number;
                stored.extend(listed.into_iter().map(|(_, hash)| hash));
            }
            Ok::<_, BoardError>(stored)
        };
        ctx.spawn(looking.into_actor(self).map(|stored, actor, ctx| {
            let stored = stored.unwrap_or_else(|error| {
                tracing::error!(%error, "boards cannot be listed");
                BTreeSet::new()
            });
            for past in announcements {
                let is_there = stored.contains(&past.board_hash);
                // A board is stored after the host has stored what it needs of it, but for one that was to be signed.
                if !is_there || actor.engine.machine().awaits_board(past.number, past.txid) {
                    actor.missed(past, ctx);
                }
            }
            actor.next_missed(ctx);
        }));
    }

    /// Nothing waits to be fetched any more: the page is done.
    pub(super) fn read_on(&mut self, ctx: &mut Context<Self>) {
        if !self.boards.is_up_to_date() {
            return;
        }
        let Some(Page { last, has_more }) = self.history.page.take() else { return };
        if self.history.has_gap {
            // Tried again with the next reading.
            return;
        }
        self.history.up_to = Some(last);
        let record = Record::new(ReadUpTo { number: last });
        let replaced = self.settings.journal.replace(&self.history_stream(), vec![record]);
        let storing = async move {
            if let Err(error) = replaced.await {
                tracing::error!(%error, "how far the history was read cannot be stored");
            }
        };
        ctx.spawn(storing.into_actor(self));
        if has_more {
            self.ask_history(last);
        }
    }

    /// A board could not be had, or not be stored.
    pub(super) fn has_gap(&mut self) {
        self.history.has_gap = true;
    }

    /// Has the host store what it needs of an announcement from which this seat was absent, if the board is the one that was announced; then
    /// stores the board.
    pub(super) fn store_missed(
        &mut self,
        past: PastAnnouncement,
        board_hash: DocumentHash,
        bytes: Arc<Vec<u8>>,
        ctx: &mut Context<Self>,
    ) {
        let Some(view) = self.view() else { return };
        let machine = self.engine.snapshot();
        let config = Arc::clone(machine.config());
        let (policy, boards) = (Arc::clone(&self.settings.policy), Arc::clone(&self.settings.boards));
        let beacon = config.terms.beacon_type;
        let PastAnnouncement { number, txid, signal, .. } = past;
        let nonces = machine.own_nonces(number);
        drop(machine);
        let storing = async move {
            let read = Arc::clone(&bytes);
            let reading = tokio::task::spawn_blocking(move || ArchivedBoard::read(&read, beacon));
            let board = reading.await.ok().flatten().filter(|board| board.signal() == signal);
            let board = board.ok_or("the board is not the one that the transaction announces")?;
            let missed = MissedBoard { number, txid, board: Arc::new(board), board_hash, nonces };
            policy.missed(&view, &missed).await?;
            let stored = boards.put(&view.cohort_id, number, &board_hash, bytes).await;
            stored.map_err(|error| error.to_string())
        };
        ctx.spawn(storing.into_actor(self).map(move |stored: Result<(), String>, actor, ctx| {
            let seat = actor.identity.did().clone();
            let cohort_id = config.cohort_id.clone();
            match stored {
                Ok(()) => actor.notify(SeatNotice::Missed { seat, cohort_id, number, txid, board_hash }),
                Err(problem) => {
                    actor.has_gap();
                    actor.reject(&Reject::new(RejectCode::DataMismatch, &config.service, problem));
                }
            }
            actor.next_missed(ctx);
        }));
    }
}
