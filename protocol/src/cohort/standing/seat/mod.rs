//! One seat: what it has registered, what it has answered, and what may be announced of it.
//!
//! A seat answers only a number above its highest. For each it makes one response, and signs one transaction, once: that which follows from
//! the board. An update counts as possibly announced from the response on, since k other seats can sign without this one; until a final
//! transaction spends the number's coin, only the identical update of that version is submitted anywhere.

mod confirming;
mod ends;
mod enrolling;
mod event;
mod moving;
mod record;
mod responding;
mod saved;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::{ends::Ends, event::row_of, moving::Destination, record::Record};
pub use self::{
    enrolling::Enrolment,
    event::{SeatEffect, SeatEvent, SeatInput, SeatUpdate},
    saved::SavedSeat,
    view::{KnownVersions, OwnEntry},
};
use super::{
    board::{Board, BoardPlace},
    context::CohortContext,
    message::{
        AskedRow, ConfirmationRequest, FullUpdate, OpportunityOpened, Pending, RegisterRows, ResponsePart,
        RowsReturned, StandingMessage,
    },
    opportunity::Opportunity,
    reader::BoardReader,
    response::Response,
    roster::Roster,
    seed::SeatSeed,
    terms::{StandingBeacon, StandingPolicy, StandingTerms},
};
use crate::{
    did::Did,
    error::{Reject, RejectCode},
    hash::{DidIndex, DocumentHash, sha256},
    id::CohortId,
    key::{PublicKey, Signature},
    machine::Machine,
    message::Bytes,
    output::{BeaconOutput, KeyAggregator},
    time::Timestamp,
};

/// What does not change in the life of a seat.
#[derive(Clone)]
pub struct SeatConfig {
    /// The terms of the cohort.
    pub terms: Arc<StandingTerms>,
    /// What the member accepts. It is asked again when the number of seats is known.
    pub policy: StandingPolicy,
    /// The service.
    pub service: Did,
    /// The key of the service, which signs opportunities.
    pub service_key: PublicKey,
    /// The cohort.
    pub cohort_id: CohortId,
    /// The seat's key.
    pub seat: PublicKey,
    /// Aggregates keys.
    pub aggregator: Arc<dyn KeyAggregator>,
    /// Gives the nonces of leaves.
    pub seed: Arc<SeatSeed>,
    /// Reads boards.
    pub boards: Arc<dyn BoardReader>,
}

impl std::fmt::Debug for SeatConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SeatConfig")
            .field("cohort_id", &self.cohort_id)
            .field("seat", &self.seat)
            .finish_non_exhaustive()
    }
}

/// How far the answer to the highest number is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    /// The host is asked for updates.
    Choosing,
    /// The nonces are being opened, then the response is signed.
    Committed,
    Responded,
    Requested {
        request: Arc<ConfirmationRequest>,
    },
    Verified {
        request: Arc<ConfirmationRequest>,
        sighashes: Vec<[u8; 32]>,
    },
    Approved {
        request: Arc<ConfirmationRequest>,
        sighashes: Vec<[u8; 32]>,
    },
    Confirmed {
        request: Arc<ConfirmationRequest>,
        answer: Answer,
    },
    /// No seat had an update. The board shows which roster the others have.
    Idle {
        board_hash: DocumentHash,
    },
    /// Nothing more is awaited; a repeated request still gets its answer.
    Over(Option<(Arc<ConfirmationRequest>, Answer)>),
}

/// The one answer to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Answer {
    partials: Option<Vec<Bytes<32>>>,
    fallback: Option<Vec<Signature>>,
    refusal: Option<String>,
}

/// The highest number that this seat has answered.
#[derive(Clone, Debug, PartialEq)]
struct Current {
    opportunity: Arc<Opportunity>,
    /// The roster at the opening.
    roster: Arc<Roster>,
    /// In the order of their indexes.
    updates: Vec<(DidIndex, u64, DocumentHash)>,
    given: Vec<(Did, Option<Value>)>,
    response: Option<Arc<Response>>,
    stage: Stage,
}

impl Current {
    /// The update of an index.
    fn update_of(&self, index: &DidIndex) -> Option<&DocumentHash> {
        let at = self.updates.binary_search_by_key(index, |(of, ..)| *of);
        at.ok().map(|at| &self.updates[at].2)
    }
}

/// A seat of a formed cohort.
#[derive(Clone, Debug, PartialEq)]
struct Seated {
    output: BeaconOutput,
    roster: Arc<Roster>,
    /// Rows that were sent and not answered.
    asked: BTreeMap<(DidIndex, u64), AskedRow>,
    /// Serial and first number of the rows that the service has acknowledged and that are in no roster yet. A roster of that number
    /// or a later one without them is refused.
    acknowledged: BTreeMap<DidIndex, (u64, u64)>,
    /// An opportunity whose roster this seat cannot follow yet.
    missed: Option<Arc<Opportunity>>,
    current: Option<Current>,
    record: Record,
    /// The own indexes of which k seats have signed that they are this seat's.
    registered: BTreeSet<DidIndex>,
    /// The cohort to which this one moves.
    destination: Option<Destination>,
    ends: Ends,
    /// Seats that may have boards which the service does not have.
    peers: Vec<Did>,
}

/// A seat's machine.
#[derive(Clone, Debug)]
pub struct Seat {
    config: Arc<SeatConfig>,
    enrolment: Enrolment,
    seated: Option<Seated>,
}

impl PartialEq for Seat {
    fn eq(&self, other: &Self) -> bool {
        (&self.enrolment, &self.seated) == (&other.enrolment, &other.seated)
    }
}

type Decided = Result<Vec<SeatEvent>, Reject>;

impl Seat {
    /// A seat in a cohort that has not formed yet.
    pub const fn new(config: Arc<SeatConfig>) -> Self {
        Self { config, enrolment: Enrolment::New, seated: None }
    }

    /// The cohort's output, once it has formed.
    pub fn output(&self) -> Option<&BeaconOutput> {
        self.seated.as_ref().map(|seated| &seated.output)
    }

    /// What the seat's signatures are bound to, once the cohort has formed.
    pub fn context(&self) -> Option<&CohortContext> {
        self.seated.as_ref().map(|seated| seated.roster.context())
    }

    /// The highest number that it has answered.
    pub fn highest(&self) -> u64 {
        self.current().map_or(0, |current| current.opportunity.number)
    }

    /// The updates that may be announced: index, version and hash.
    pub fn committed(&self) -> Vec<(DidIndex, u64, DocumentHash)> {
        self.seated.as_ref().map_or_else(Vec::new, |seated| seated.record.committed())
    }

    /// The indexes for which the seat answers. Not each of them may be listed in a document yet: see [`SeatEffect::Registered`].
    pub fn indexes(&self) -> impl Iterator<Item = &DidIndex> {
        self.seated.iter().flat_map(|seated| seated.roster.indexes(&self.config.seat))
    }

    fn current(&self) -> Option<&Current> {
        self.seated.as_ref()?.current.as_ref()
    }

    fn reject(&self, code: RejectCode, detail: impl std::fmt::Display) -> Reject {
        Reject::new(code, &self.config.service, detail)
    }

    fn on_message(&self, now: Timestamp, message: &StandingMessage) -> Decided {
        if *message.cohort_id() != self.config.cohort_id {
            return Err(self.reject(RejectCode::WrongCohort, "another cohort"));
        }
        match (message, &self.seated) {
            (StandingMessage::StandingReady(ready), None) => self.on_ready(now, ready),
            // A repeated one.
            (StandingMessage::StandingReady(ready), Some(seated))
                if seated.output.address() == ready.beacon_address =>
            {
                Ok(self.on_peers(now, &seated.peers, ready).into_iter().collect())
            }
            (StandingMessage::RowsAnswered(answered), Some(seated)) => {
                let known =
                    answered.rows.iter().filter(|row| seated.asked.contains_key(&(row.did_index, row.serial)));
                let (mut registered, mut refused) = (Vec::new(), Vec::new());
                for row in known {
                    match &row.problem {
                        None => registered.push((row.did_index, row.serial)),
                        Some(problem) => {
                            let problem = crate::text::shown_within(problem, 200).into_owned();
                            refused.push((row.did_index, row.serial, problem));
                        }
                    }
                }
                if registered.is_empty() && refused.is_empty() {
                    return Ok(Vec::new());
                }
                let from_number = answered.from_number;
                Ok(vec![SeatEvent::RowsAcknowledged { at: now, from_number, registered, refused }])
            }
            (StandingMessage::OpportunityOpened(opened), Some(seated)) => {
                self.on_opportunity(now, seated, &opened.opportunity)
            }
            (StandingMessage::ConfirmationRequest(request), Some(seated)) => self.on_request(now, seated, request),
            (StandingMessage::NumberEndedNotice(notice), Some(seated)) => Ok(self.on_end(now, seated, notice)),
            (StandingMessage::SuccessorFormed(formed), _) => self.on_successor(now, formed),
            (StandingMessage::SeatAccept(_), _) => Ok(self.on_accept(now)),
            (StandingMessage::SeatRefused(refused), None) => Ok(self.on_refused(now, refused)),
            (other, _) => Err(self.reject(RejectCode::WrongPhase, other.short_type())),
        }
    }

    fn on_rows(&self, now: Timestamp, rows: &[AskedRow]) -> Decided {
        let seated = self.seated.as_ref().ok_or_else(|| Reject::out_of_phase("rows", "not formed"))?;
        let context = seated.roster.context();
        if let Some(row) = rows.iter().find(|row| !row_of(self.config.seat, row).is_signed(context)) {
            let detail = format!("the row of {} is not signed by the seat", row.did_index);
            return Err(Reject { code: RejectCode::Malformed, peer: None, detail });
        }
        if let Some(index) = self.cannot_unregister(rows) {
            let detail = format!("an update of {index} may still be announced: it does not leave before");
            return Err(Reject::not_now(detail));
        }
        Ok(vec![SeatEvent::RowsSent { at: now, rows: rows.to_vec() }])
    }
}

impl Machine for Seat {
    type Input = SeatInput;
    type Event = SeatEvent;
    type Effect = SeatEffect;

    fn decide(&self, now: Timestamp, input: &SeatInput, _rng: &mut dyn CryptoRng) -> Decided {
        match input {
            SeatInput::OptIn(opt_in) => self.on_opt_in(now, opt_in),
            SeatInput::RestoredFromBackup { coins, updates } => {
                let (coins, updates) = (coins.clone(), updates.clone());
                Ok(vec![SeatEvent::Restored { at: now, coins, updates }])
            }
            SeatInput::Message(message) => self.on_message(now, message),
            SeatInput::UpdatesDecided { number, updates } => self.on_updates(now, *number, updates),
            SeatInput::ResponseSigned(response) => self.on_response(now, response),
            SeatInput::RowsFetched { rows } => self.on_rows_fetched(now, rows),
            SeatInput::BoardFetched { number, bytes } => self.on_board(now, *number, bytes),
            SeatInput::SigningDecided { number, refusal } => self.on_decision(now, *number, refusal.as_ref()),
            SeatInput::PartialsSigned { number, partials } => self.on_partials(now, *number, partials.as_ref()),
            SeatInput::FallbackSigned { number, signatures } => self.on_fallback(now, *number, signatures),
            SeatInput::RowsAsked(rows) => self.on_rows(now, rows),
            SeatInput::MovePrepared { successor, registered, left } => {
                self.on_prepared(now, successor, registered, left)
            }
            SeatInput::Resolved { index, version } => {
                Ok(vec![SeatEvent::VersionResolved { at: now, index: *index, version: *version }])
            }
            SeatInput::Spent { coin, by, signal } => {
                Ok(vec![SeatEvent::CoinSpent { at: now, coin: *coin, by: *by, signal: *signal }])
            }
        }
    }

    fn apply(&mut self, event: &SeatEvent) {
        self.apply_enrolment(event);
        if let SeatEvent::Saved(saved) = event {
            return self.restore(saved);
        }
        if let SeatEvent::Formed { output, .. } = event {
            self.seated = Some(self.seated_with(output));
            return;
        }
        let Some(seated) = &mut self.seated else { return };
        match event {
            SeatEvent::PeersLearned { peers, .. } => seated.peers.clone_from(peers),
            SeatEvent::RowsSent { rows, .. } => {
                seated.asked.extend(rows.iter().map(|row| ((row.did_index, row.serial), row.clone())));
            }
            SeatEvent::RowsAcknowledged { from_number, registered, refused, .. } => {
                for (index, serial) in registered {
                    seated.asked.remove(&(*index, *serial));
                    // A roster that has passed that row on already needs no evidence of it.
                    if seated.roster.row(index).is_none_or(|row| row.serial < *serial) {
                        seated.acknowledged.insert(*index, (*serial, *from_number));
                    }
                }
                for (index, serial, _) in refused {
                    seated.asked.remove(&(*index, *serial));
                }
            }
            _ => {
                seated.apply_moving(event);
                seated.apply(event, &*self.config.boards);
            }
        }
    }

    fn effects(&self, event: &SeatEvent) -> Vec<SeatEffect> {
        match event {
            SeatEvent::OptedIn { opt_in, .. } => vec![SeatEffect::Send(opt_in.clone().into())],
            SeatEvent::RowsSent { rows, .. } => self.send_rows(rows),
            SeatEvent::RowsAcknowledged { refused, .. } => {
                let refused: Vec<_> = refused.iter().map(|(index, _, problem)| (*index, problem.clone())).collect();
                if refused.is_empty() { Vec::new() } else { vec![SeatEffect::NotRegistered(refused)] }
            }
            SeatEvent::RosterConfirmed { registered, released, .. } => {
                vec![SeatEffect::Registered { registered: registered.clone(), released: released.clone() }]
            }
            SeatEvent::NumberOver { number, transaction: Some(transaction), board_hash, .. } => {
                let (number, transaction, board_hash) = (*number, Arc::clone(transaction), *board_hash);
                let txid = transaction.compute_txid();
                let known = self.seated.as_ref().and_then(|seated| seated.record.board_of(number, txid));
                match (known, board_hash) {
                    (Some((_, true)), _) => vec![SeatEffect::Announced { number, transaction }],
                    // Verified, and over before the host was asked to store the board: others have signed.
                    (Some((board_hash, false)), _) | (None, Some(board_hash)) => {
                        vec![SeatEffect::Missed { number, transaction, board_hash }]
                    }
                    (None, None) => Vec::new(),
                }
            }
            SeatEvent::RowsMissed { .. } => self.fetch_rows(),
            SeatEvent::Accepted { .. }
            | SeatEvent::Refused { .. }
            | SeatEvent::Saved(_)
            | SeatEvent::Formed { .. }
            | SeatEvent::PeersLearned { .. }
            | SeatEvent::Restored { .. }
            | SeatEvent::SuccessorNamed { .. }
            | SeatEvent::MovePrepared { .. }
            | SeatEvent::CoinSpent { .. }
            | SeatEvent::VersionResolved { .. } => Vec::new(),
            _ => self.progress(),
        }
    }

    fn resume(&self) -> Vec<SeatEffect> {
        let Some(seated) = &self.seated else { return self.ask_again() };
        let asked: Vec<AskedRow> = seated.asked.values().cloned().collect();
        let mut effects = if asked.is_empty() { Vec::new() } else { self.send_rows(&asked) };
        // Secret nonces are in memory only: what needs them again answers that they are lost.
        effects.extend(self.fetch_rows());
        effects.extend(self.progress());
        effects
    }

    fn deadline(&self) -> Option<Timestamp> {
        None
    }
}

impl Seat {
    fn send_rows(&self, rows: &[AskedRow]) -> Vec<SeatEffect> {
        RegisterRows::split(&self.config.cohort_id, rows)
            .into_iter()
            .map(|part| SeatEffect::Send(part.into()))
            .collect()
    }

    fn fetch_rows(&self) -> Vec<SeatEffect> {
        let seated = self.seated.iter().filter(|seated| seated.missed.is_some());
        seated.map(|seated| SeatEffect::FetchRows { from: seated.roster.row_count() }).collect()
    }

    /// The message that there are updates.
    pub fn pending(&self) -> StandingMessage {
        Pending { cohort_id: self.config.cohort_id.clone() }.into()
    }

    /// The service's own signed opportunity, which proves that it has opened a number as high, and the rows that it has forgotten.
    fn evidence(&self, seated: &Seated, known: &Opportunity, row_count: u64) -> Vec<SeatEffect> {
        let cohort_id = self.config.cohort_id.clone();
        let opened = OpportunityOpened { cohort_id, opportunity: known.clone() };
        let forgotten = seated.roster.rows_from(row_count);
        let rows = RowsReturned::split(&self.config.cohort_id, row_count, forgotten).into_iter().map(Into::into);
        std::iter::once(opened.into()).chain(rows).map(SeatEffect::Send).collect()
    }

    /// What the stage of the current number needs next.
    fn progress(&self) -> Vec<SeatEffect> {
        let Some((seated, current)) =
            self.seated.as_ref().and_then(|seated| Some((seated, seated.current.as_ref()?)))
        else {
            return Vec::new();
        };
        let number = current.opportunity.number;
        match &current.stage {
            Stage::Choosing => vec![SeatEffect::AskUpdates {
                opportunity: Arc::clone(&current.opportunity),
                committed: seated.record.committed(),
                announced: seated.record.announced_by_ancestors(&current.opportunity),
            }],
            Stage::Committed => {
                vec![SeatEffect::OpenNonces { number, inputs: current.opportunity.coins.len() }]
            }
            Stage::Responded => self.send_response(seated, current),
            Stage::Requested { request } => {
                vec![SeatEffect::FetchBoard { number, hash: request.board_hash }]
            }
            Stage::Verified { request, .. } => {
                vec![SeatEffect::FetchBoard { number, hash: request.board_hash }]
            }
            Stage::Approved { request, sighashes } => vec![self.sign(number, request, sighashes)],
            Stage::Confirmed { request, answer } => vec![self.send_confirmation(request, answer)],
            Stage::Idle { board_hash } => vec![SeatEffect::FetchBoard { number, hash: *board_hash }],
            Stage::Over(_) => Vec::new(),
        }
    }

    fn send_response(&self, seated: &Seated, current: &Current) -> Vec<SeatEffect> {
        let Some(response) = &current.response else { return Vec::new() };
        let number = current.opportunity.number;
        let is_smt = self.config.terms.beacon_type == StandingBeacon::Smt;
        let full = |((index, ..), (_, update)): (&(DidIndex, u64, DocumentHash), &(Did, Option<Value>))| {
            let nonce_hash = is_smt.then(|| DocumentHash::from_bytes(sha256(&self.leaf_nonce(number, index))));
            Some((*index, FullUpdate { update: update.clone()?, nonce_hash }))
        };
        let updates = current.updates.iter().zip(&current.given).filter_map(full).collect();
        let parts = ResponsePart::split(seated.roster.context(), response, &updates);
        parts.into_iter().map(|part| SeatEffect::Send(part.into())).collect()
    }

    fn place<'a>(&'a self, current: &'a Current) -> BoardPlace<'a> {
        BoardPlace {
            terms: &self.config.terms,
            roster: &current.roster,
            roster_hash: &current.opportunity.roster_hash,
            number: current.opportunity.number,
            inputs: current.opportunity.coins.len(),
            kind: current.opportunity.kind,
        }
    }

    /// The board that `bytes` are, if it is the one that was asked for.
    fn board(&self, current: &Current, hash: &DocumentHash, bytes: &Arc<Vec<u8>>) -> Result<Arc<Board>, Reject> {
        self.config
            .boards
            .read(bytes, hash, self.place(current))
            .map_err(|problem| self.reject(RejectCode::DataMismatch, problem))
    }
}
