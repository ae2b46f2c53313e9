//! One number at the service: responses, the board, the request, confirmations; ended, never repeated.

mod confirming;
mod event;
mod responding;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bitcoin::{ScriptBuf, Transaction};
use rand_core::CryptoRng;
use serde_json::Value;

pub use self::event::{Confirmed, NumberEffect, NumberEnd, NumberEvent, NumberInput, Why};
use super::{
    board::{Board, BoardPlace},
    message::{FullUpdate, StandingMessage},
    opportunity::Opportunity,
    response::{Entry, Response},
    roster::Roster,
    terms::StandingTerms,
    transaction::Mode,
};
use crate::{
    did::Did,
    error::{Reject, RejectCode},
    hash::{DidIndex, DocumentHash},
    key::{PublicKey, Signature},
    machine::Machine,
    message::Bytes,
    output::{BeaconOutput, Coin},
    signing::partial::PartialVerifier,
    time::Timestamp,
};

/// What does not change while a number runs.
#[derive(Clone, Debug, PartialEq)]
pub struct NumberTask {
    /// The terms of the cohort.
    pub terms: Arc<StandingTerms>,
    /// Its output.
    pub output: BeaconOutput,
    /// The roster at the opening.
    pub roster: Arc<Roster>,
    /// The DID of each seat.
    pub seats: BTreeMap<PublicKey, Did>,
    /// The opportunity.
    pub opportunity: Arc<Opportunity>,
    /// Where the change goes: the beacon, or the successor's beacon in the last announcement.
    pub change: ScriptBuf,
    /// Whether k seats sign although all may respond: a seat was silent or refused in the number before.
    pub by_fallback: bool,
}

impl NumberTask {
    /// The place of its board.
    pub fn place(&self) -> BoardPlace<'_> {
        BoardPlace {
            terms: &self.terms,
            roster: &self.roster,
            roster_hash: &self.opportunity.roster_hash,
            number: self.opportunity.number,
            inputs: self.opportunity.coins.len(),
            kind: self.opportunity.kind,
        }
    }

    fn coins(&self) -> Vec<Coin> {
        self.opportunity.coins()
    }

    /// The seat whose messages come from a DID.
    pub fn seat_of(&self, did: &Did) -> Option<PublicKey> {
        self.seats.iter().find(|(_, seat)| *seat == did).map(|(key, _)| *key)
    }
}

/// The parts of a response so far.
#[derive(Clone, Debug, PartialEq)]
struct Parts {
    hash: DocumentHash,
    parts: u32,
    /// The number of the next one.
    next: u32,
    entries: Vec<Entry>,
    updates: Vec<FullUpdate>,
}

/// A whole response whose updates the host checks.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    response: Arc<Response>,
    updates: Vec<(DidIndex, Value)>,
}

/// The state of a number.
#[derive(Clone, Debug)]
enum Phase {
    Planned,
    Collecting {
        parts: BTreeMap<PublicKey, Parts>,
        held: BTreeMap<PublicKey, Held>,
        responses: BTreeMap<PublicKey, Response>,
    },
    /// The board is closed; the host is asked what the transaction may cost.
    Pricing {
        until: Timestamp,
        board: Arc<Board>,
        mode: Mode,
    },
    Confirming(Box<Confirming>),
    Ended {
        end: NumberEnd,
        board: Option<Arc<Board>>,
    },
}

/// The state of a number whose transaction is known.
#[derive(Clone, Debug)]
struct Confirming {
    until: Timestamp,
    board: Arc<Board>,
    mode: Mode,
    transaction: Transaction,
    aggregated: Vec<Bytes<66>>,
    /// For each input, by key path. They follow from the rest.
    verifiers: Vec<Option<PartialVerifier>>,
    partials: BTreeMap<PublicKey, Vec<Bytes<32>>>,
    fallback: BTreeMap<PublicKey, Vec<Signature>>,
    refused: BTreeMap<PublicKey, String>,
}

/// A number at the service.
#[derive(Clone, Debug)]
pub struct Number {
    task: Arc<NumberTask>,
    phase: Phase,
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.task == other.task && self.phase == other.phase
    }
}

impl PartialEq for Phase {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Planned, Self::Planned) => true,
            (
                Self::Collecting { parts, held, responses },
                Self::Collecting { parts: other_parts, held: other_held, responses: other_responses },
            ) => (parts, held, responses) == (other_parts, other_held, other_responses),
            (
                Self::Pricing { until, board, mode },
                Self::Pricing { until: other_until, board: other, mode: other_mode },
            ) => board.hash() == other.hash() && (until, mode) == (other_until, other_mode),
            (Self::Confirming(one), Self::Confirming(other)) => {
                one.board.hash() == other.board.hash()
                    && (one.until, one.mode, &one.transaction, &one.aggregated)
                        == (other.until, other.mode, &other.transaction, &other.aggregated)
                    && (&one.partials, &one.fallback, &one.refused)
                        == (&other.partials, &other.fallback, &other.refused)
            }
            (Self::Ended { end, .. }, Self::Ended { end: other, .. }) => end == other,
            _ => false,
        }
    }
}

impl Number {
    /// A number that is not opened yet.
    pub const fn new(task: Arc<NumberTask>) -> Self {
        Self { task, phase: Phase::Planned }
    }

    /// The task.
    pub fn task(&self) -> &Arc<NumberTask> {
        &self.task
    }

    /// Whether it was not opened yet.
    pub const fn is_planned(&self) -> bool {
        matches!(self.phase, Phase::Planned)
    }

    /// How it ended, if it has.
    pub const fn end(&self) -> Option<&NumberEnd> {
        match &self.phase {
            Phase::Ended { end, .. } => Some(end),
            _ => None,
        }
    }

    /// The board, once it is closed.
    pub const fn board(&self) -> Option<&Arc<Board>> {
        match &self.phase {
            Phase::Pricing { board, .. } => Some(board),
            Phase::Confirming(confirming) => Some(&confirming.board),
            Phase::Ended { board, .. } => board.as_ref(),
            Phase::Planned | Phase::Collecting { .. } => None,
        }
    }

    /// The seats that it waits for.
    pub fn awaited(&self) -> Vec<PublicKey> {
        let seats = self.task.seats.keys();
        match &self.phase {
            Phase::Collecting { responses, .. } => {
                seats.filter(|seat| !responses.contains_key(seat)).copied().collect()
            }
            Phase::Confirming(confirming) => confirming.awaited(),
            Phase::Planned | Phase::Pricing { .. } | Phase::Ended { .. } => Vec::new(),
        }
    }

    /// How long it waits for responses, and for confirmations.
    fn waits(&self) -> (Duration, Duration) {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        (seconds(self.task.terms.respond_seconds), seconds(self.task.terms.confirm_seconds))
    }

    fn report(&self) -> Vec<NumberEffect> {
        let Phase::Ended { end, board } = &self.phase else { return Vec::new() };
        let stored = board.iter().map(|board| NumberEffect::StoreBoard(Arc::clone(board)));
        stored.chain([NumberEffect::Report(end.clone())]).collect()
    }
}

type Decided = Result<Vec<NumberEvent>, Reject>;

impl Machine for Number {
    type Input = NumberInput;
    type Event = NumberEvent;
    type Effect = NumberEffect;

    fn decide(&self, now: Timestamp, input: &NumberInput, _rng: &mut dyn CryptoRng) -> Decided {
        match input {
            NumberInput::Open => match self.phase {
                Phase::Planned => Ok(vec![NumberEvent::Opened { at: now }]),
                _ => Err(Reject::out_of_phase("open", "opened")),
            },
            NumberInput::Message { from, message } => {
                let Some(seat) = self.task.seat_of(from) else {
                    return Err(Reject::new(RejectCode::NotAMember, from, "no seat of this cohort"));
                };
                match &**message {
                    StandingMessage::ResponsePart(part) => self.on_part(now, seat, from, part),
                    StandingMessage::Confirmation(confirmation) => {
                        self.on_confirmation(now, seat, from, confirmation)
                    }
                    other => Err(Reject::new(RejectCode::WrongPhase, from, other.short_type())),
                }
            }
            NumberInput::UpdatesChecked { seat, response_hash, problem } => {
                self.on_checked(now, seat, response_hash, problem.as_ref())
            }
            NumberInput::Priced { rate, operator } => self.on_priced(now, *rate, operator.as_ref()),
            NumberInput::Abandoned { reason } => match &self.phase {
                Phase::Ended { .. } => Err(Reject::out_of_phase("abandon", "ended")),
                _ => {
                    let why = Why::Abandoned(reason.clone());
                    Ok(vec![NumberEvent::Ended {
                        at: now,
                        end: NumberEnd::failed(why, Vec::new(), BTreeMap::new()),
                    }])
                }
            },
            NumberInput::Tick => Ok(match &self.phase {
                Phase::Collecting { responses, .. }
                    if now.is_over(self.task.opportunity.deadline(), self.waits().0) =>
                {
                    vec![self.close(now, responses)]
                }
                Phase::Confirming(confirming) if now.is_over(confirming.until, self.waits().1) => {
                    vec![NumberEvent::Ended { at: now, end: confirming.lapsed() }]
                }
                Phase::Pricing { until, .. } if now.is_over(*until, self.waits().1) => {
                    let why = Why::Abandoned("the host has named no fee rate in time".to_owned());
                    vec![NumberEvent::Ended { at: now, end: NumberEnd::failed(why, Vec::new(), BTreeMap::new()) }]
                }
                _ => Vec::new(),
            }),
        }
    }

    fn apply(&mut self, event: &NumberEvent) {
        match (event, &mut self.phase) {
            (NumberEvent::Opened { .. }, phase) => {
                *phase =
                    Phase::Collecting { parts: BTreeMap::new(), held: BTreeMap::new(), responses: BTreeMap::new() };
            }
            (event, Phase::Collecting { parts, held, responses }) if event.is_response() => {
                responding::collect(event, parts, held, responses);
            }
            (NumberEvent::BoardClosed { at, mode }, Phase::Collecting { responses, .. }) => {
                let board = Board::of(self.task.place(), std::mem::take(responses).into_values());
                let until = *at + self.waits().1;
                self.phase = Phase::Pricing { until, board: Arc::new(board), mode: *mode };
            }
            (NumberEvent::BoardIdle { .. }, Phase::Collecting { responses, .. }) => {
                let board = Board::of(self.task.place(), std::mem::take(responses).into_values());
                let (board_hash, absent) = (*board.hash(), board.absent().copied().collect());
                let end = NumberEnd::Idle { board_hash, absent };
                self.phase = Phase::Ended { end, board: Some(Arc::new(board)) };
            }
            (
                NumberEvent::RequestMade { until, transaction, aggregated, .. },
                Phase::Pricing { board, mode, .. },
            ) => {
                let (board, mode) = (Arc::clone(board), *mode);
                let verifiers = self.verifiers(transaction, mode, aggregated);
                self.phase = Phase::Confirming(Box::new(Confirming {
                    until: *until,
                    board,
                    mode,
                    transaction: transaction.clone(),
                    aggregated: aggregated.clone(),
                    verifiers,
                    partials: BTreeMap::new(),
                    fallback: BTreeMap::new(),
                    refused: BTreeMap::new(),
                }));
            }
            (NumberEvent::ConfirmationReceived { seat, confirmed, .. }, Phase::Confirming(confirming)) => {
                match confirmed {
                    Confirmed::Partials(partials) => drop(confirming.partials.insert(*seat, partials.clone())),
                    Confirmed::Fallback(signatures) => drop(confirming.fallback.insert(*seat, signatures.clone())),
                    Confirmed::Refused(reason) => drop(confirming.refused.insert(*seat, reason.clone())),
                }
            }
            (NumberEvent::Ended { end, .. }, phase) => *phase = Phase::Ended { end: end.clone(), board: None },
            // An event that does not fit is none that this machine has decided.
            _ => {}
        }
    }

    fn effects(&self, event: &NumberEvent) -> Vec<NumberEffect> {
        match event {
            NumberEvent::ResponseHeld { response, updates, .. } => self.check_updates(response, updates),
            NumberEvent::ResponseRefused { seat, reason, .. } => {
                vec![NumberEffect::ResponseRefused { seat: *seat, reason: reason.clone() }]
            }
            NumberEvent::BoardClosed { .. } => self.ask_price(),
            NumberEvent::RequestMade { .. } => self.request(None),
            NumberEvent::Ended { .. } | NumberEvent::BoardIdle { .. } => self.report(),
            _ => Vec::new(),
        }
    }

    fn resume(&self) -> Vec<NumberEffect> {
        match &self.phase {
            Phase::Planned | Phase::Collecting { .. } => Vec::new(),
            Phase::Pricing { .. } => self.ask_price(),
            Phase::Confirming(_) => self.request(None),
            Phase::Ended { .. } => self.report(),
        }
    }

    /// A seat sends its response again, whole, to a service that has restarted: what is not a response yet needs no journal, and a seat
    /// could make it grow.
    fn is_journaled(event: &NumberEvent) -> bool {
        !matches!(
            event,
            NumberEvent::PartReceived { .. }
                | NumberEvent::ResponseHeld { .. }
                | NumberEvent::ResponseRefused { .. }
        )
    }

    fn deadline(&self) -> Option<Timestamp> {
        match &self.phase {
            Phase::Collecting { .. } => Some(self.task.opportunity.deadline()),
            Phase::Confirming(confirming) => Some(confirming.until),
            Phase::Pricing { until, .. } => Some(*until),
            Phase::Planned | Phase::Ended { .. } => None,
        }
    }
}
