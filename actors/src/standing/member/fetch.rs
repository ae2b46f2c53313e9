//! Rows that a seat fetches from its service, and boards that it fetches from its service or from other seats, in parts.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        Row,
        message::{
            BoardPart, BoardRequest, MAX_PART_ROWS, PastAnnouncement, RowsGiven, RowsRequest, SeatProof,
            StandingMessage,
        },
        seat::SeatInput,
    },
    did::Did,
    error::{Reject, RejectCode},
    hash::{DocumentHash, sha256},
    message::Body,
};

use super::seat::SeatActor;
use crate::{engine::Driven, transport::Outbound};

/// The most parts of a board: 128 MiB. A larger one is none of a cohort that this implementation joins.
const MOST_PARTS: u32 = 3_600;

/// How long a part is waited for, before another holder is asked.
const PATIENCE: Duration = Duration::from_secs(20);

/// The other seats that are asked for one board.
const MOST_PEERS: usize = 8;

/// Why a board is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// To sign it, or to see a roster in it.
    Number(u64),
    /// It was announced while this seat was absent.
    Missed(PastAnnouncement),
}

/// A board that is being fetched.
#[derive(Debug)]
pub(super) struct BoardFetch {
    wanted: Wanted,
    hash: DocumentHash,
    bytes: Vec<u8>,
    /// The next part.
    next: u32,
    /// Who is asked.
    holder: Did,
    /// Who is asked after that.
    others: VecDeque<Did>,
    /// Changes with each request.
    request: u64,
}

/// The boards that are being fetched: one to sign, and one after the other of those that were missed.
#[derive(Debug, Default)]
pub(super) struct BoardFetches {
    signing: Option<BoardFetch>,
    missed: Option<BoardFetch>,
    /// In the order of their numbers. One page of the history at most, and what the service reports meanwhile.
    queue: VecDeque<PastAnnouncement>,
    /// The number of requests so far.
    requests: u64,
}

/// The missed announcements that wait: a page of the history, and as many that end meanwhile.
const MOST_MISSED: usize = 256;

impl BoardFetches {
    fn slot(&mut self, wanted: Wanted) -> &mut Option<BoardFetch> {
        match wanted {
            Wanted::Number(_) => &mut self.signing,
            Wanted::Missed(_) => &mut self.missed,
        }
    }

    /// The fetch of this board from this holder.
    fn of(&mut self, hash: &DocumentHash, holder: &Did) -> Option<&mut Option<BoardFetch>> {
        let is = |slot: &&mut Option<BoardFetch>| {
            slot.as_ref().is_some_and(|fetch| fetch.hash == *hash && fetch.holder == *holder)
        };
        [&mut self.signing, &mut self.missed].into_iter().find(is)
    }

    /// Whether this board is fetched to be signed.
    pub(super) fn is_signing(&self, hash: &DocumentHash) -> bool {
        self.signing.as_ref().is_some_and(|fetch| fetch.hash == *hash)
    }

    fn is_missing(&self, past: &PastAnnouncement) -> bool {
        let is = |fetch: &BoardFetch| fetch.wanted == Wanted::Missed(*past);
        self.queue.contains(past) || self.missed.as_ref().is_some_and(is)
    }

    /// Whether nothing that was missed waits.
    pub(super) fn is_up_to_date(&self) -> bool {
        self.missed.is_none() && self.queue.is_empty()
    }
}

/// What follows from a part.
#[derive(Debug, PartialEq, Eq)]
enum Fetched {
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
    fn part(&mut self, part: &BoardPart) -> Fetched {
        if part.board_hash != self.hash || (part.part != self.next && part.parts != 0) {
            return Fetched::Foreign;
        }
        if part.parts == 0 {
            return Fetched::Failed("the board is not there");
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
    /// Fetches a board: from the store of this process, else from the service, else from other seats.
    pub(super) fn fetch_board(&mut self, wanted: Wanted, hash: DocumentHash, ctx: &mut Context<Self>) {
        let service = self.engine.machine().config().service.clone();
        let own = self.identity.did();
        let peers = self.engine.machine().peers().iter().filter(|peer| *peer != own);
        let others = peers.take(MOST_PEERS).cloned().collect();
        let fetch = BoardFetch { wanted, hash, bytes: Vec::new(), next: 0, holder: service, others, request: 0 };
        // Its place is taken at once: what was missed is fetched one after the other.
        *self.boards.slot(wanted) = Some(fetch);
        let getting = self.settings.boards.get(&hash);
        ctx.spawn(getting.into_actor(self).map(move |got, actor, ctx| match got {
            Ok(Some(bytes)) => {
                *actor.boards.slot(wanted) = None;
                actor.board_fetched(wanted, hash, bytes, ctx);
            }
            Ok(None) => actor.ask_part(wanted, ctx),
            Err(error) => {
                tracing::error!(%error, "a board cannot be read");
                actor.give_up(wanted, ctx);
            }
        }));
    }

    /// Asks the holder for the next part.
    fn ask_part(&mut self, wanted: Wanted, ctx: &mut Context<Self>) {
        self.boards.requests += 1;
        let number = self.boards.requests;
        let Some(fetch) = self.boards.slot(wanted) else { return };
        fetch.request = number;
        let (holder, board_hash, part) = (fetch.holder.clone(), fetch.hash, fetch.next);
        let config = Arc::clone(self.engine.machine().config());
        let Some(context) = self.engine.machine().context().cloned() else { return };
        let (from, key) = (self.identity.did().clone(), Arc::clone(self.signer.key()));
        let seat = match self.engine.rng() {
            Some(rng) if holder != config.service => Some(SeatProof::sign(&context, &from, &board_hash, &key, rng)),
            _ => None,
        };
        let request = BoardRequest { cohort_id: config.cohort_id.clone(), board_hash, part, seat };
        let body = Body::from(StandingMessage::from(request)).into();
        self.link.send(Outbound::Direct { to: holder, body, until: None });
        ctx.run_later(PATIENCE, move |actor, ctx| {
            if actor.boards.slot(wanted).as_ref().is_some_and(|fetch| fetch.request == number) {
                actor.ask_another(wanted, "no answer", ctx);
            }
        });
    }

    /// The holder does not give the board: the next one is asked.
    fn ask_another(&mut self, wanted: Wanted, problem: &'static str, ctx: &mut Context<Self>) {
        let Some(fetch) = self.boards.slot(wanted) else { return };
        let reject = Reject::new(RejectCode::DataMismatch, &fetch.holder, problem);
        (fetch.bytes, fetch.next) = (Vec::new(), 0);
        if let Some(other) = fetch.others.pop_front() {
            tracing::info!(holder = %fetch.holder, problem, "a board is asked for elsewhere");
            fetch.holder = other;
            return self.ask_part(wanted, ctx);
        }
        // It is fetched again when the connection is made again, when the service sends its request again, or with the history.
        self.reject(&reject);
        self.give_up(wanted, ctx);
    }

    fn give_up(&mut self, wanted: Wanted, ctx: &mut Context<Self>) {
        *self.boards.slot(wanted) = None;
        if matches!(wanted, Wanted::Missed(_)) {
            self.has_gap();
            self.next_missed(ctx);
        }
    }

    pub(super) fn on_board_part(&mut self, from: &Did, part: &BoardPart, ctx: &mut Context<Self>) {
        let Some(slot) = self.boards.of(&part.board_hash, from) else { return };
        let Some(mut fetch) = slot.take() else { return };
        let (wanted, hash) = (fetch.wanted, fetch.hash);
        match fetch.part(part) {
            Fetched::Foreign => *slot = Some(fetch),
            Fetched::More => {
                *slot = Some(fetch);
                self.ask_part(wanted, ctx);
            }
            Fetched::Complete(bytes) => self.board_fetched(wanted, hash, bytes, ctx),
            Fetched::Failed(problem) => {
                *slot = Some(fetch);
                self.ask_another(wanted, problem, ctx);
            }
        }
    }

    fn board_fetched(&mut self, wanted: Wanted, hash: DocumentHash, bytes: Arc<Vec<u8>>, ctx: &mut Context<Self>) {
        match wanted {
            Wanted::Number(number) => {
                let fetched = SeatInput::BoardFetched { number, bytes: Arc::clone(&bytes) };
                self.feed(fetched, ctx);
                self.verified_bytes(number, bytes, ctx);
            }
            Wanted::Missed(past) => self.store_missed(past, hash, bytes, ctx),
        }
    }

    /// An announcement without this seat: its board is fetched after those before it.
    pub(super) fn missed(&mut self, past: PastAnnouncement, ctx: &mut Context<Self>) {
        if self.boards.is_missing(&past) {
            return;
        }
        if self.boards.queue.len() >= MOST_MISSED {
            // It is in the history.
            return self.has_gap();
        }
        self.boards.queue.push_back(past);
        self.next_missed(ctx);
    }

    /// Fetches the next board that was missed, or asks whether there are more.
    pub(super) fn next_missed(&mut self, ctx: &mut Context<Self>) {
        if self.boards.missed.is_some() {
            return;
        }
        match self.boards.queue.pop_front() {
            Some(past) => self.fetch_board(Wanted::Missed(past), past.board_hash, ctx),
            None => self.read_on(ctx),
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

    /// Fetches rows from this place on; repeats the last request if they are being fetched already.
    pub(super) fn fetch_rows(&mut self, from: u64) {
        let fetch = self.rows.take().filter(|fetch| fetch.from == from).unwrap_or_else(|| RowsFetch::new(from));
        self.ask_rows(fetch.next());
        self.rows = Some(fetch);
    }

    pub(super) fn ask_rows(&self, after: u64) {
        let cohort_id = self.engine.machine().config().cohort_id.clone();
        self.send(RowsRequest { cohort_id, after }.into());
    }
}
