//! The service of a standing cohort and its host.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
};

use bitcoin::{FeeRate, Transaction};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        cohort::{CohortEffect, CohortEvent, CohortInput, StandingCohort},
        message::StandingMessage,
        number::{Number, NumberEffect, NumberEnd, NumberEvent, NumberInput},
    },
    did::Did,
    hash::DocumentHash,
    machine::{Machine, replay, step},
    time::Timestamp,
};

use super::{Boards, Talk, rng};
use crate::{
    bitcoin_support::consensus_accepts_all,
    explore::process::{Input, Packet, Run, Way},
    standing::{
        service_node::{ServiceNode, through_journal},
        world::{signal_of, signal_of_board},
    },
};

/// What does not change.
pub struct ServiceFixed {
    pub node: ServiceNode,
    /// The DID of each seat, in the order of the processes.
    pub seats: Vec<Did>,
    pub boards: Boards,
    /// The exploration ends with this number.
    pub last_number: u64,
}

#[derive(Clone)]
struct Running {
    initial: Number,
    machine: Number,
    journal: Vec<NumberEvent>,
}

#[derive(Clone)]
pub struct ServiceProcess {
    pub fixed: Rc<ServiceFixed>,
    pub cohort: StandingCohort,
    journal: Vec<CohortEvent>,
    numbers: BTreeMap<u64, Running>,
    /// Durable.
    boards: BTreeSet<DocumentHash>,
    /// What was broadcast.
    pub mempool: Vec<Arc<Transaction>>,
    pub ends: BTreeMap<u64, NumberEnd>,
}

impl ServiceProcess {
    pub fn new(fixed: ServiceFixed) -> Self {
        let journal = fixed.node.events.clone();
        let cohort = replay(StandingCohort::new(Arc::clone(fixed.node.config())).unwrap(), &journal);
        Self {
            fixed: Rc::new(fixed),
            cohort,
            journal,
            numbers: BTreeMap::new(),
            boards: BTreeSet::new(),
            mempool: Vec::new(),
            ends: BTreeMap::new(),
        }
    }

    pub fn text(&self) -> String {
        let numbers: Vec<_> = self.numbers.values().map(|running| &running.machine).collect();
        format!("{:?} {numbers:?} {:?} {:?} {:?}", self.cohort, self.boards, self.mempool, self.ends)
    }

    pub fn assert_same(&self, other: &Self) {
        assert_eq!(self.cohort, other.cohort);
        for (number, running) in &self.numbers {
            assert_eq!(running.machine, other.numbers[number].machine);
        }
    }

    /// A number whose opening was not journaled has no journal: it is run again from its beginning.
    pub fn crash(&mut self) {
        self.cohort = self.replayed();
        self.numbers.retain(|_, running| !running.journal.is_empty());
        for running in self.numbers.values_mut() {
            running.machine = replay(running.initial.clone(), &through_journal(&running.journal));
        }
    }

    fn replayed(&self) -> StandingCohort {
        replay(StandingCohort::new(Arc::clone(self.fixed.node.config())).unwrap(), &through_journal(&self.journal))
    }

    pub fn check(&self) {
        assert_eq!(self.replayed(), self.cohort, "the replay of the cohort's journal");
        for (number, running) in &self.numbers {
            let replayed = replay(running.initial.clone(), &through_journal(&running.journal));
            assert_eq!(replayed, running.machine, "the replay of the journal of number {number}");
        }
        for (number, end) in &self.ends {
            if let NumberEnd::Signed { transaction, board_hash, .. } = end {
                let board = self.fixed.boards.borrow()[board_hash].1.clone();
                assert_eq!(board.number, *number, "the board of another number");
                assert_eq!(
                    signal_of(transaction),
                    Some(signal_of_board(&board)),
                    "another signal than the board's"
                );
                let output = self.cohort.output().expect("formed");
                let prevouts: Vec<_> = self.numbers[number]
                    .machine
                    .task()
                    .opportunity
                    .coins()
                    .iter()
                    .map(|coin| coin.prevout(output))
                    .collect();
                assert!(
                    consensus_accepts_all(transaction, &prevouts),
                    "number {number} has an invalid transaction"
                );
                assert!(self.boards.contains(board_hash), "the board of an announcement is not stored");
            }
        }
    }

    pub fn deadline(&self) -> Option<Timestamp> {
        let number = self.cohort.open_number();
        if self.is_at_its_last() {
            return number.and_then(|number| self.numbers.get(&number)?.machine.deadline());
        }
        let open = number.and_then(|number| self.numbers.get(&number)?.machine.deadline());
        [self.cohort.deadline(), open].into_iter().flatten().min()
    }

    fn is_at_its_last(&self) -> bool {
        self.cohort.last_number() >= self.fixed.last_number
    }

    pub fn feed(&mut self, now: Timestamp, input: Input<'_, Talk>, run: &mut Run<Talk>) {
        match input {
            Input::Packet(Packet { from, message: Talk::Wire(message), .. }) => {
                let from = self.fixed.seats[*from - 1].clone();
                self.receive(now, &from, message, run);
            }
            Input::Packet(_) | Input::Refusal(_) => panic!("no packet of a service"),
            Input::Tick => {
                if let Some(number) = self.cohort.open_number() {
                    self.number_input(now, number, &NumberInput::Tick, run).unwrap();
                }
                if !self.is_at_its_last() {
                    self.input(now, &CohortInput::Tick, run).unwrap();
                }
            }
            Input::Restarted => {
                let effects = self.cohort.resume();
                self.perform(now, effects, run);
            }
            Input::Reconnected(seat) => {
                let did = self.fixed.seats[seat - 1].clone();
                let effects = self.cohort.send_again(&did);
                self.perform(now, effects, run);
                if let Some(number) = self.cohort.open_number()
                    && let Some(running) = self.numbers.get(&number)
                {
                    let effects = running.machine.send_again(&did);
                    self.perform_number(now, number, effects, run);
                }
            }
        }
    }

    fn receive(&mut self, now: Timestamp, from: &Did, message: &StandingMessage, run: &mut Run<Talk>) {
        let number = match message {
            StandingMessage::ResponsePart(part) => Some(part.number),
            StandingMessage::Confirmation(confirmation) => Some(confirmation.number),
            _ => None,
        };
        // A message that comes too late is refused.
        let _ = match number {
            Some(number) => {
                let input = NumberInput::Message { from: from.clone(), message: Box::new(message.clone()) };
                self.number_input(now, number, &input, run)
            }
            None => self.input(now, &CohortInput::Message { from: from.clone(), message: message.clone() }, run),
        };
    }

    fn input(
        &mut self,
        now: Timestamp,
        input: &CohortInput,
        run: &mut Run<Talk>,
    ) -> Result<(), btcr2_aggregation_protocol::error::Reject> {
        if run.is_crashed() {
            return Ok(());
        }
        let mut next = self.cohort.clone();
        let step = step(&mut next, now, input, &mut rng(0))?;
        assert!(step.events.iter().all(StandingCohort::is_journaled), "every event of these is journaled");
        if step.events.is_empty() || run.operation() {
            self.cohort = next;
            self.journal.extend(step.events);
            self.perform(now, step.effects, run);
        }
        Ok(())
    }

    fn number_input(
        &mut self,
        now: Timestamp,
        number: u64,
        input: &NumberInput,
        run: &mut Run<Talk>,
    ) -> Result<(), btcr2_aggregation_protocol::error::Reject> {
        if run.is_crashed() {
            return Ok(());
        }
        let Some(running) = self.numbers.get_mut(&number) else { return Ok(()) };
        let mut next = running.machine.clone();
        let step = step(&mut next, now, input, &mut rng(0))?;
        assert!(step.events.iter().all(Number::is_journaled), "every event of one part is journaled");
        if step.events.is_empty() || run.operation() {
            running.machine = next;
            running.journal.extend(step.events);
            self.perform_number(now, number, step.effects, run);
        }
        Ok(())
    }

    fn send(&self, to: usize, message: &StandingMessage, run: &mut Run<Talk>) {
        // Every seat has formed: it changes nothing there, and in flight it would only multiply the states.
        if matches!(message, StandingMessage::StandingReady(_)) {
            return;
        }
        run.send(Packet { from: 0, to, way: Way::Wire, message: Talk::wire(message) });
    }

    fn send_to(&self, did: &Did, message: &StandingMessage, run: &mut Run<Talk>) {
        let seat = self.fixed.seats.iter().position(|seat| seat == did).expect("a seat");
        self.send(seat + 1, message, run);
    }

    fn perform(&mut self, now: Timestamp, effects: Vec<CohortEffect>, run: &mut Run<Talk>) {
        for effect in effects {
            if run.is_crashed() {
                return;
            }
            match effect {
                CohortEffect::Broadcast(message) => {
                    (1..=self.fixed.seats.len()).for_each(|seat| self.send(seat, &message, run));
                }
                CohortEffect::Send { to, message } => self.send_to(&to, &message, run),
                CohortEffect::SignOpportunity(opportunity) => {
                    let context = self.cohort.roster().expect("formed").context();
                    let signed = (*opportunity).clone().sign(context, &self.fixed.node.key, &mut rng(0));
                    self.input(now, &CohortInput::OpportunitySigned(Arc::new(signed)), run).unwrap();
                }
                CohortEffect::RunNumber(task) => {
                    let number = task.opportunity.number;
                    if let Some(running) = self.numbers.get(&number) {
                        let effects = running.machine.resume();
                        self.perform_number(now, number, effects, run);
                    } else {
                        let initial = Number::new(task);
                        let running = Running { machine: initial.clone(), initial, journal: Vec::new() };
                        self.numbers.insert(number, running);
                        self.number_input(now, number, &NumberInput::Open, run).unwrap();
                    }
                }
                CohortEffect::Announce(transactions) => {
                    for transaction in transactions {
                        if !self.mempool.contains(&transaction) && run.operation() {
                            self.mempool.push(transaction);
                        }
                    }
                }
                CohortEffect::AbandonNumber { number, reason } => {
                    let _ = self.number_input(now, number, &NumberInput::Abandoned { reason }, run);
                }
                CohortEffect::Failed { .. } => {}
                CohortEffect::AskAdmission { .. } | CohortEffect::CheckControl { .. } => {
                    panic!("the cohort has formed, and no rows are registered")
                }
            }
        }
    }

    fn perform_number(&mut self, now: Timestamp, number: u64, effects: Vec<NumberEffect>, run: &mut Run<Talk>) {
        for effect in effects {
            if run.is_crashed() {
                return;
            }
            match effect {
                NumberEffect::AskPrice { .. } => {
                    let priced = NumberInput::Priced { rate: FeeRate::from_sat_per_vb_u32(2), operator: None };
                    self.number_input(now, number, &priced, run).unwrap();
                }
                NumberEffect::StoreBoard(board) => {
                    if run.operation() {
                        self.boards.insert(*board.hash());
                        let bytes = Arc::clone(board.bytes());
                        let content = serde_json::from_slice(&bytes).unwrap();
                        self.fixed.boards.borrow_mut().insert(*board.hash(), (bytes, content));
                    }
                }
                NumberEffect::Send { to, message } => {
                    if let StandingMessage::ConfirmationRequest(request) = &message {
                        assert!(self.boards.contains(&request.board_hash), "a request before its board is stored");
                    }
                    self.send_to(&to, &message, run);
                }
                NumberEffect::CheckUpdates { .. } | NumberEffect::ResponseRefused { .. } => {
                    panic!("the cohort has hashes only, and every response is valid")
                }
                NumberEffect::Report(end) => {
                    let first = self.ends.entry(number).or_insert_with(|| end.clone());
                    assert_eq!(*first, end, "number {number} has ended in two ways");
                    self.input(now, &CohortInput::NumberEnded { number, end }, run).unwrap();
                }
            }
        }
    }
}
