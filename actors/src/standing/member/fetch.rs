//! Rows and boards that a seat fetches from its service, in parts.

use std::sync::Arc;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        Row,
        message::{BoardPart, BoardRequest, MAX_PART_ROWS, RowsGiven, RowsRequest},
        seat::SeatInput,
    },
    error::{Reject, RejectCode},
    hash::{DocumentHash, sha256},
};

use super::seat::SeatActor;
use crate::engine::Driven;

/// The most parts of a board: 128 MiB. A larger one is none of a cohort that this implementation joins.
const MOST_PARTS: u32 = 3_600;

/// Why a board is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// To sign it, or to see a roster in it.
    Number(u64),
    /// It was announced while this seat was absent.
    Missed(u64, Arc<bitcoin::Transaction>),
}

/// A board that is being fetched.
#[derive(Debug)]
pub(super) struct BoardFetch {
    pub(super) wanted: Wanted,
    pub(super) hash: DocumentHash,
    bytes: Vec<u8>,
    /// The next part.
    pub(super) next: u32,
}

/// What follows from a part.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fetched {
    /// Nothing: it is not one that was asked for.
    Foreign,
    /// Ask for the next one.
    More,
    /// The board is complete.
    Complete(Arc<Vec<u8>>),
    /// The sender does not have it, or has sent something else.
    Failed(&'static str),
}

impl BoardFetch {
    pub(super) const fn new(wanted: Wanted, hash: DocumentHash) -> Self {
        Self { wanted, hash, bytes: Vec::new(), next: 0 }
    }

    pub(super) fn part(&mut self, part: &BoardPart) -> Fetched {
        if part.board_hash != self.hash || (part.part != self.next && part.parts != 0) {
            return Fetched::Foreign;
        }
        if part.parts == 0 {
            return Fetched::Failed("the service does not have the board");
        }
        let Some(bytes) = part.decoded().filter(|_| part.part < part.parts && part.parts <= MOST_PARTS) else {
            return Fetched::Failed("a part that no board has");
        };
        self.bytes.extend(bytes);
        self.next += 1;
        if self.next < part.parts {
            return Fetched::More;
        }
        if sha256(&self.bytes) == *self.hash.as_bytes() {
            Fetched::Complete(Arc::new(std::mem::take(&mut self.bytes)))
        } else {
            Fetched::Failed("the parts are not the board that was asked for")
        }
    }
}

/// Rows that are being fetched.
#[derive(Debug)]
pub(super) struct RowsFetch {
    from: u64,
    rows: Vec<Row>,
}

impl RowsFetch {
    pub(super) const fn new(from: u64) -> Self {
        Self { from, rows: Vec::new() }
    }

    /// The place of the next row.
    pub(super) fn next(&self) -> u64 {
        self.from + self.rows.len() as u64
    }

    /// The rows, once no more follow; `most` bounds them.
    pub(super) fn part(&mut self, given: RowsGiven, most: u64) -> Option<Vec<Row>> {
        if given.after != self.next() || given.rows.len() > MAX_PART_ROWS {
            return None;
        }
        let is_last = given.rows.len() < MAX_PART_ROWS;
        self.rows.extend(given.rows);
        (is_last || self.next() >= most).then(|| std::mem::take(&mut self.rows))
    }
}

impl SeatActor {
    /// Fetches a board: from the store of this process, else from the service.
    pub(super) fn fetch_board(&mut self, fetch: BoardFetch, ctx: &mut Context<Self>) {
        let getting = self.settings.boards.get(&fetch.hash);
        ctx.spawn(getting.into_actor(self).map(|got, actor, ctx| match got {
            Ok(Some(bytes)) => actor.board_fetched(&fetch, bytes, ctx),
            Ok(None) => {
                let request = BoardRequest {
                    cohort_id: actor.engine.machine().config().cohort_id.clone(),
                    board_hash: fetch.hash,
                    part: 0,
                };
                actor.board = Some(fetch);
                actor.send(request.into());
            }
            Err(error) => tracing::error!(%error, "a board cannot be read"),
        }));
    }

    pub(super) fn on_board_part(&mut self, part: &BoardPart, ctx: &mut Context<Self>) {
        let Some(mut fetch) = self.board.take() else { return };
        match fetch.part(part) {
            Fetched::Foreign => self.board = Some(fetch),
            Fetched::More => {
                let cohort_id = self.engine.machine().config().cohort_id.clone();
                let request = BoardRequest { cohort_id, board_hash: fetch.hash, part: fetch.next };
                self.board = Some(fetch);
                self.send(request.into());
            }
            Fetched::Complete(bytes) => self.board_fetched(&fetch, bytes, ctx),
            // It is fetched again when the connection is made again, or the service sends its request again.
            Fetched::Failed(problem) => {
                let service = &self.engine.machine().config().service;
                let code = RejectCode::DataMismatch;
                self.reject(&Reject::new(code, service, problem));
            }
        }
    }

    fn board_fetched(&mut self, fetch: &BoardFetch, bytes: Arc<Vec<u8>>, ctx: &mut Context<Self>) {
        match &fetch.wanted {
            Wanted::Number(number) => {
                let number = *number;
                let fetched = SeatInput::BoardFetched { number, bytes: Arc::clone(&bytes) };
                self.feed(fetched, ctx);
                self.verified_bytes(number, bytes, ctx);
            }
            Wanted::Missed(number, transaction) => {
                let (number, transaction) = (*number, Arc::clone(transaction));
                self.store_missed(number, transaction, fetch.hash, bytes, ctx);
            }
        }
    }

    pub(super) fn on_rows(&mut self, given: RowsGiven, ctx: &mut Context<Self>) {
        let Some(most) = self.engine.machine().missed_rows() else { return };
        let Some(mut fetch) = self.rows.take() else { return };
        let before = fetch.next();
        match fetch.part(given, most) {
            Some(rows) => self.feed(SeatInput::RowsFetched { rows }, ctx),
            None => {
                let next = fetch.next();
                self.rows = Some(fetch);
                // Otherwise it was not the part that was asked for.
                if next > before {
                    self.ask_rows(next);
                }
            }
        }
    }

    pub(super) fn ask_rows(&self, after: u64) {
        let cohort_id = self.engine.machine().config().cohort_id.clone();
        self.send(RowsRequest { cohort_id, after }.into());
    }
}
