//! A standing cohort at its service: seats, roster, cadence, coins, and one number after the other.

mod balance;
mod coins;
mod event;
mod moving;
mod opening;
mod saved;
mod seats;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rand_core::CryptoRng;

pub use self::{
    balance::{LOW_BALANCE, MAX_REFRESH_COINS, Unconfirmed},
    event::{CohortEffect, CohortEvent, CohortInput, Credentials},
    saved::SavedCohort,
};
use self::{coins::Coins, moving::Migration};
use super::{
    context::CohortContext,
    message::{
        EndKind, MAX_PEERS, NumberEndedNotice, OpportunityOpened, RowAnswer, RowsAnswered, SeatRefused,
        StandingAdvert, StandingMessage, StandingReady,
    },
    number::NumberEnd,
    opportunity::{Opportunity, TransactionHex},
    roster::{Roster, Row},
    successor::Succession,
    terms::StandingTerms,
};
use crate::{
    cohort::conditions::ConditionProblem,
    did::Did,
    error::{Reject, RejectCode},
    id::CohortId,
    key::PublicKey,
    machine::Machine,
    message::Bytes,
    output::{BeaconOutput, KeyAggregator},
    time::Timestamp,
};

/// What does not change in the life of a standing cohort.
#[derive(Clone, Debug)]
pub struct CohortConfig {
    /// Its terms.
    pub terms: Arc<StandingTerms>,
    /// The service.
    pub service: Did,
    /// The service's key.
    pub service_key: PublicKey,
    /// The cohort.
    pub cohort_id: CohortId,
    /// Aggregates keys.
    pub aggregator: Arc<dyn KeyAggregator>,
}

/// A candidate for a seat.
#[derive(Clone, Debug, PartialEq)]
struct Candidate {
    seat: PublicKey,
    admitted: bool,
    /// With what it asks.
    credentials: Credentials,
}

/// A number that is planned or open.
#[derive(Clone, Debug, PartialEq)]
struct OpenNumber {
    opportunity: Arc<Opportunity>,
    /// The roster at the opening.
    roster: Arc<Roster>,
    by_fallback: bool,
    is_signed: bool,
    /// The seats that had announced to have updates when it was planned.
    pending: BTreeSet<PublicKey>,
}

/// A formed cohort.
#[derive(Clone, Debug, PartialEq)]
struct Running {
    output: BeaconOutput,
    seats: BTreeMap<PublicKey, Did>,
    /// With what seats were asked for that have shown something.
    credentials: BTreeMap<PublicKey, Credentials>,
    roster: Arc<Roster>,
    /// How many of its rows were sent with numbers so far.
    sent: usize,
    /// The highest number that was used.
    last: u64,
    open: Option<OpenNumber>,
    pending: BTreeSet<PublicKey>,
    /// When the last announced, or idle, number was opened.
    paced: Option<Timestamp>,
    opened: Option<Timestamp>,
    /// Failures in a row.
    failures: u32,
    /// Whether the next number is signed by k seats.
    by_fallback: bool,
    /// Whether the host lets no number open.
    held: bool,
    coins: Coins,
    /// The last end, for a seat that has missed it.
    ended: Option<(u64, NumberEnd)>,
    migration: Migration,
}

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    Enrolling { candidates: BTreeMap<Did, Candidate> },
    Running(Box<Running>),
}

/// The service's machine of a standing cohort.
#[derive(Clone, Debug)]
pub struct StandingCohort {
    config: Arc<CohortConfig>,
    succeeds: Option<Succession>,
    phase: Phase,
}

impl PartialEq for StandingCohort {
    fn eq(&self, other: &Self) -> bool {
        (&self.phase, &self.succeeds) == (&other.phase, &other.succeeds)
    }
}

type Decided = Result<Vec<CohortEvent>, Reject>;

impl StandingCohort {
    /// A cohort that is not advertised yet.
    ///
    /// # Errors
    /// The contradictions in its terms.
    pub fn new(config: Arc<CohortConfig>) -> Result<Self, Vec<ConditionProblem>> {
        let problems = config.terms.problems();
        if problems.is_empty() {
            Ok(Self { config, succeeds: None, phase: Phase::Enrolling { candidates: BTreeMap::new() } })
        } else {
            Err(problems)
        }
    }

    /// The configuration.
    pub fn config(&self) -> &Arc<CohortConfig> {
        &self.config
    }

    fn running(&self) -> Option<&Running> {
        match &self.phase {
            Phase::Running(running) => Some(running),
            Phase::Enrolling { .. } => None,
        }
    }

    /// The output, once the cohort has formed.
    pub fn output(&self) -> Option<&BeaconOutput> {
        self.running().map(|running| &running.output)
    }

    /// The roster, once the cohort has formed.
    pub fn roster(&self) -> Option<&Arc<Roster>> {
        self.running().map(|running| &running.roster)
    }

    /// The seats and their DIDs.
    pub fn seats(&self) -> impl Iterator<Item = (&PublicKey, &Did)> {
        self.running().into_iter().flat_map(|running| &running.seats)
    }

    /// The number that is open, if one is.
    pub fn open_number(&self) -> Option<u64> {
        self.running()?.open.as_ref().map(|open| open.opportunity.number)
    }

    /// Whether the host lets no number open.
    pub fn is_held(&self) -> bool {
        self.running().is_some_and(|running| running.held)
    }

    /// The highest number that was used.
    pub fn last_number(&self) -> u64 {
        self.running().map_or(0, |running| running.last)
    }

    /// The coin that the next announcement spends, and all others.
    pub fn coins(&self) -> Vec<super::opportunity::CoinRef> {
        self.running().map_or_else(Vec::new, |running| running.coins.all())
    }

    /// The rows after the first `from`, for a seat that has missed some.
    pub fn rows_from(&self, from: u64) -> &[Row] {
        self.running().map_or(&[][..], |running| running.roster.rows_from(from))
    }

    /// The advert, which is repeated until the cohort has formed.
    pub fn advert(&self) -> StandingMessage {
        StandingAdvert {
            cohort_id: self.config.cohort_id.clone(),
            communication_pk: Bytes(self.config.service_key.to_bytes()),
            terms: (*self.config.terms).clone(),
            succeeds: self.succeeds.clone().map(Box::new),
        }
        .into()
    }

    fn context(&self, output: &BeaconOutput) -> CohortContext {
        super::context_of(&self.config.terms, &self.config.service, &self.config.cohort_id, output)
    }

    fn on_message(&self, now: Timestamp, from: &Did, message: &StandingMessage) -> Decided {
        if *message.cohort_id() != self.config.cohort_id {
            return Err(Reject::new(RejectCode::WrongCohort, from, "another cohort"));
        }
        match message {
            StandingMessage::SeatOptIn(opt_in) => self.on_opt_in(now, from, opt_in),
            StandingMessage::RegisterRows(asked) => self.on_register(now, from, &asked.rows),
            StandingMessage::RowsReturned(returned) => self.on_rows_returned(now, from, returned),
            StandingMessage::Pending(_) => {
                let (running, seat) = self.seat(from)?;
                // Once per seat and opportunity.
                let known = running.pending.contains(&seat);
                Ok(if known { Vec::new() } else { vec![CohortEvent::PendingReceived { at: now, seat }] })
            }
            StandingMessage::OpportunityOpened(opened) => {
                let (running, _) = self.seat(from)?;
                let opportunity = &opened.opportunity;
                // Our own signature: this service has opened the number, and has forgotten it.
                let context = self.context(&running.output);
                if opportunity.number > running.last && opportunity.is_signed(&context, &self.config.service_key) {
                    return Ok(vec![CohortEvent::NumbersSkipped { at: now, to: opportunity.number }]);
                }
                Ok(Vec::new())
            }
            other => Err(Reject::new(RejectCode::WrongPhase, from, other.short_type())),
        }
    }

    /// What a seat needs again that has come back, e.g. after a restart: the cohort's keys, and the open opportunity.
    pub fn send_again(&self, did: &Did) -> Vec<CohortEffect> {
        let Ok((running, _)) = self.seat(did) else { return Vec::new() };
        let mut messages = vec![self.ready(&running.output)];
        messages.extend(self.successor_message());
        messages.extend(running.ended.as_ref().map(|(number, end)| self.end_notice(*number, end)));
        messages
            .extend(running.open.as_ref().filter(|open| open.is_signed).map(|open| self.opened(&open.opportunity)));
        messages.into_iter().map(|message| CohortEffect::Send { to: did.clone(), message }).collect()
    }

    fn ready(&self, output: &BeaconOutput) -> StandingMessage {
        StandingReady {
            cohort_id: self.config.cohort_id.clone(),
            beacon_address: output.address().to_owned(),
            cohort_keys: output.keys().to_vec(),
            peers: self.seats().take(MAX_PEERS).map(|(_, did)| did.clone()).collect(),
        }
        .into()
    }

    fn opened(&self, opportunity: &Opportunity) -> StandingMessage {
        OpportunityOpened { cohort_id: self.config.cohort_id.clone(), opportunity: opportunity.clone() }.into()
    }

    fn to_all(&self, message: &StandingMessage) -> Vec<CohortEffect> {
        self.seats().map(|(_, did)| CohortEffect::Send { to: did.clone(), message: message.clone() }).collect()
    }
}

impl Machine for StandingCohort {
    type Input = CohortInput;
    type Event = CohortEvent;
    type Effect = CohortEffect;

    fn decide(&self, now: Timestamp, input: &CohortInput, _rng: &mut dyn CryptoRng) -> Decided {
        match input {
            CohortInput::Advertise => {
                let (terms, service) = (Arc::clone(&self.config.terms), self.config.service.clone());
                Ok(vec![CohortEvent::Advertised { at: now, terms, service, succeeds: None }])
            }
            CohortInput::AdvertiseSuccessor(succession) => self.on_succession(now, succession),
            CohortInput::SuccessorFormed(successor) => self.on_successor(now, successor),
            CohortInput::Message { from, message } => self.on_message(now, from, message),
            CohortInput::Admitted { did, refusal } => self.on_admitted(now, did, refusal.as_ref()),
            CohortInput::Finalize => match &self.phase {
                Phase::Enrolling { candidates } => Ok(vec![self.form(now, candidates, None)?]),
                Phase::Running(_) => Err(Reject::out_of_phase("finalize", "formed")),
            },
            CohortInput::ControlChecked { from, rows } => self.settle(now, from, rows),
            CohortInput::CoinFound(coin) => Ok(self.on_coin(now, *coin)),
            CohortInput::Spent { coin, by } => Ok(self.on_spent(now, coin, *by)),
            CohortInput::OpportunitySigned(opportunity) => self.on_signed(now, opportunity),
            CohortInput::NumberEnded { number, end } => self.on_number_ended(now, *number, end),
            CohortInput::OpenNow { kind } => self.open_now(now, *kind),
            CohortInput::Hold { held } => self.on_hold(now, *held),
            CohortInput::Tick => Ok(self.on_tick(now)),
        }
    }

    fn apply(&mut self, event: &CohortEvent) {
        if let CohortEvent::Saved(saved) = event {
            return self.restore(saved);
        }
        if let CohortEvent::Advertised { succeeds, .. } = event {
            self.succeeds.clone_from(succeeds);
        }
        if let (CohortEvent::Formed { output, .. }, Phase::Enrolling { candidates }) = (event, &self.phase) {
            let members = candidates.iter().filter(|(_, candidate)| output.keys().contains(&candidate.seat));
            let seats: BTreeMap<PublicKey, Did> =
                members.clone().map(|(did, candidate)| (candidate.seat, did.clone())).collect();
            let credentials = members.map(|(_, candidate)| (candidate.seat, candidate.credentials.clone()));
            let credentials = credentials.filter(|(_, shown)| *shown != Credentials::default()).collect();
            let most = self.config.terms.max_dids_per_participant;
            let roster = Roster::new(self.context(output), seats.keys().copied(), most);
            self.phase = Phase::Running(Box::new(Running {
                output: output.clone(),
                seats,
                credentials,
                roster: Arc::new(roster),
                sent: 0,
                last: 0,
                open: None,
                pending: BTreeSet::new(),
                paced: None,
                opened: None,
                failures: 0,
                by_fallback: false,
                held: false,
                coins: Coins::default(),
                ended: None,
                migration: Migration::default(),
            }));
            return;
        }
        match (event, &mut self.phase) {
            (CohortEvent::SeatAsked { did, seat, credentials, .. }, Phase::Enrolling { candidates }) => {
                let credentials = credentials.clone();
                candidates.insert(did.clone(), Candidate { seat: *seat, admitted: false, credentials });
            }
            (CohortEvent::SeatAdmitted { did, seat, credentials, .. }, Phase::Enrolling { candidates }) => {
                let credentials = credentials.clone();
                candidates.insert(did.clone(), Candidate { seat: *seat, admitted: true, credentials });
            }
            (CohortEvent::SeatRefused { did, .. }, Phase::Enrolling { candidates }) => drop(candidates.remove(did)),
            (_, Phase::Running(running)) => running.apply(event),
            _ => {}
        }
    }

    fn effects(&self, event: &CohortEvent) -> Vec<CohortEffect> {
        match event {
            CohortEvent::Advertised { .. } => vec![CohortEffect::Broadcast(self.advert())],
            CohortEvent::SeatAsked { did, seat, credentials, .. } => {
                let (did, credentials) = (did.clone(), credentials.clone());
                vec![CohortEffect::AskAdmission { did, seat: *seat, credentials }]
            }
            CohortEvent::SeatRefused { did, reason, .. } => {
                let refused = SeatRefused { cohort_id: self.config.cohort_id.clone(), reason: reason.clone() };
                vec![CohortEffect::Send { to: did.clone(), message: refused.into() }]
            }
            CohortEvent::SeatAdmitted { did, .. } => vec![self.accept(did)],
            CohortEvent::Formed { output, .. } => self.to_all(&self.ready(output)),
            CohortEvent::RowsSettled { from, registered, known, refused, .. } => {
                let registered = registered.iter().map(|row| (row.did_index, row.serial));
                let accepted = registered.chain(known.iter().copied());
                let accepted = accepted.map(|(did_index, serial)| RowAnswer { did_index, serial, problem: None });
                let refused = refused.iter().map(|(did_index, serial, problem)| RowAnswer {
                    did_index: *did_index,
                    serial: *serial,
                    problem: Some(problem.clone()),
                });
                let rows = accepted.chain(refused).collect();
                let (cohort_id, from_number) = (self.config.cohort_id.clone(), self.last_number() + 1);
                let answered = RowsAnswered { cohort_id, from_number, rows };
                vec![CohortEffect::Send { to: from.clone(), message: answered.into() }]
            }
            CohortEvent::SuccessorNamed { .. } => {
                self.successor_message().map_or_else(Vec::new, |one| self.to_all(&one))
            }
            CohortEvent::NumberPlanned { opportunity, .. } => {
                vec![CohortEffect::SignOpportunity(Arc::clone(opportunity))]
            }
            CohortEvent::NumberOpened { .. } => self.run_open(),
            CohortEvent::NumberEnded { number, end, .. } => self.after_number(*number, end),
            CohortEvent::Voided { numbers, by, .. } => {
                let reason = format!("{by} has spent its coin");
                let void =
                    |number: &u64| self.to_all(&self.ended(*number, EndKind::Void, Some(reason.clone())).into());
                let mut effects: Vec<CohortEffect> = numbers.iter().flat_map(void).collect();
                let open = self.running().and_then(|running| Some((running, running.open.as_ref()?)));
                if let Some((running, open)) = open
                    && !open.opportunity.coins.iter().all(|coin| running.coins.is_there(coin))
                {
                    let number = open.opportunity.number;
                    effects.push(CohortEffect::AbandonNumber { number, reason });
                }
                effects
            }
            _ => Vec::new(),
        }
    }

    fn resume(&self) -> Vec<CohortEffect> {
        match &self.phase {
            Phase::Enrolling { candidates } => {
                let asked = candidates.iter().filter(|(_, candidate)| !candidate.admitted);
                let ask = |(did, candidate): (&Did, &Candidate)| CohortEffect::AskAdmission {
                    did: did.clone(),
                    seat: candidate.seat,
                    credentials: candidate.credentials.clone(),
                };
                std::iter::once(CohortEffect::Broadcast(self.advert())).chain(asked.map(ask)).collect()
            }
            Phase::Running(running) => {
                let mut effects = self.to_all(&self.ready(&running.output));
                effects.extend(self.successor_message().iter().flat_map(|one| self.to_all(one)));
                // The seats may not know the last end: they store its board, or have nothing more to wait for.
                let end = running.ended.as_ref().map(|(number, end)| self.to_all(&self.end_notice(*number, end)));
                effects.extend(end.into_iter().flatten());
                let unconfirmed = running.coins.unconfirmed();
                if !unconfirmed.is_empty() {
                    effects.push(CohortEffect::Announce(unconfirmed));
                }
                match &running.open {
                    Some(open) if open.is_signed => effects.extend(self.run_open()),
                    Some(open) => effects.push(CohortEffect::SignOpportunity(Arc::clone(&open.opportunity))),
                    None => {}
                }
                effects
            }
        }
    }

    /// Who has only asked for a seat asks again after a restart, and rows that change nothing are answered again: any peer, or one
    /// seat, could make the journal grow with them.
    fn is_journaled(event: &CohortEvent) -> bool {
        match event {
            CohortEvent::SeatAsked { .. } | CohortEvent::SeatRefused { .. } => false,
            CohortEvent::RowsSettled { registered, .. } => !registered.is_empty(),
            _ => true,
        }
    }

    fn deadline(&self) -> Option<Timestamp> {
        self.next_opening()
    }
}

impl StandingCohort {
    fn ended(&self, number: u64, end: EndKind, reason: Option<String>) -> NumberEndedNotice {
        let cohort_id = self.config.cohort_id.clone();
        NumberEndedNotice { cohort_id, number, end, reason, transaction: None, board_hash: None }
    }

    fn end_notice(&self, number: u64, end: &NumberEnd) -> StandingMessage {
        let notice = match end {
            NumberEnd::Idle { board_hash, .. } => {
                NumberEndedNotice { board_hash: Some(*board_hash), ..self.ended(number, EndKind::Idle, None) }
            }
            NumberEnd::Failed { why, .. } => self.ended(number, EndKind::Failed, Some(why.to_string())),
            NumberEnd::Signed { transaction, board_hash, .. } => NumberEndedNotice {
                transaction: Some(TransactionHex(Arc::clone(transaction))),
                board_hash: Some(*board_hash),
                ..self.ended(number, EndKind::Announced, None)
            },
        };
        notice.into()
    }

    fn after_number(&self, number: u64, end: &NumberEnd) -> Vec<CohortEffect> {
        let Some(running) = self.running() else { return Vec::new() };
        let mut effects = match end {
            NumberEnd::Idle { .. } => Vec::new(),
            NumberEnd::Failed { why, .. } => vec![CohortEffect::Failed { number, why: why.clone() }],
            NumberEnd::Signed { .. } => vec![CohortEffect::Announce(running.coins.unconfirmed())],
        };
        effects.extend(self.to_all(&self.end_notice(number, end)));
        effects
    }

    fn run_open(&self) -> Vec<CohortEffect> {
        let Some(open) = self.running().and_then(|running| running.open.as_ref()) else { return Vec::new() };
        let run = self.task().map(CohortEffect::RunNumber);
        run.into_iter().chain(self.to_all(&self.opened(&open.opportunity))).collect()
    }
}
