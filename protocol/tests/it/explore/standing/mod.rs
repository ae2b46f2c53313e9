//! One opportunity of a standing cohort, and the numbers that try it again.

mod seat;
mod service;

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc};

use bitcoin::Transaction;
use btcr2_aggregation_protocol::{
    cohort::standing::{
        BoardContent, Entry, Mode, Opportunity, StandingBeacon, StandingTerms, Updates,
        message::StandingMessage,
        number::{NumberEnd, Why},
    },
    hash::DocumentHash,
    time::Timestamp,
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

use self::{
    seat::{SeatFixed, SeatProcess},
    service::{ServiceFixed, ServiceProcess},
};
use super::{
    NonceStore,
    explorer::explore,
    is_long,
    process::{Broken, Explored, Input, Process, Run, Start, System, Timing},
    report,
    state::Faults,
};
use crate::standing::{cohort::NETWORK, world::World};

/// The bytes of each board that any service has stored, with what they say: a board is named by its hash, so this has no part in a state.
type Boards = Rc<RefCell<BTreeMap<DocumentHash, (Arc<Vec<u8>>, BoardContent)>>>;

/// Deterministic: what is random in signatures does not matter here.
fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

/// What travels, and what a process asks for.
#[derive(Clone, Debug)]
pub enum Talk {
    Wire(Box<StandingMessage>),
    /// The rows after the first `from`, for the seat that has asked.
    Rows {
        from: u64,
    },
    /// The board that the seat has asked for.
    Board {
        number: u64,
        hash: DocumentHash,
    },
    /// The seat's host is asked whether to sign.
    Decide {
        number: u64,
    },
}

impl Talk {
    /// As text, as it travels.
    fn wire(message: &StandingMessage) -> Self {
        let read = StandingMessage::from_json(message.short_type(), &message.to_json());
        Self::Wire(Box::new(read.unwrap().unwrap()))
    }
}

fn same_rows(content: &BoardContent, opportunity: &Opportunity) {
    assert_eq!(content.roster_hash, opportunity.roster_hash, "the board of another roster");
}

/// A process of a standing cohort.
#[derive(Clone)]
pub enum Standing {
    Service(Box<ServiceProcess>),
    Seat(Box<SeatProcess>),
}

impl Process for Standing {
    type Message = Talk;

    fn text(&self) -> String {
        match self {
            Self::Service(service) => service.text(),
            Self::Seat(seat) => seat.text(),
        }
    }

    fn assert_same(&self, other: &Self) {
        match (self, other) {
            (Self::Service(one), Self::Service(other)) => one.assert_same(other),
            (Self::Seat(one), Self::Seat(other)) => one.assert_same(other),
            _ => panic!("a service is not a seat"),
        }
    }

    fn deadline(&self) -> Option<Timestamp> {
        match self {
            Self::Service(service) => service.deadline(),
            Self::Seat(_) => None,
        }
    }

    fn feed(&mut self, now: Timestamp, input: Input<'_, Talk>, run: &mut Run<Talk>) {
        match self {
            Self::Service(service) => service.feed(now, input, run),
            Self::Seat(seat) => seat.feed(now, input, run),
        }
    }

    fn crash(&mut self) {
        match self {
            Self::Service(service) => service.crash(),
            Self::Seat(seat) => seat.crash(),
        }
    }

    fn check(&self) {
        match self {
            Self::Service(service) => service.check(),
            Self::Seat(seat) => seat.check(),
        }
    }
}

/// A cohort whose first number is about to open.
struct Cohort {
    beacon: StandingBeacon,
    seats: usize,
    /// How many seats sign a fallback; none with `wait`.
    threshold: Option<u16>,
    /// The seats that have an update.
    wanting: &'static [usize],
    numbers: u64,
    store: NonceStore,
    /// Whether every run ends with an announcement.
    must_announce: bool,
}

impl Cohort {
    const fn of(seats: usize, threshold: Option<u16>) -> Self {
        Self {
            beacon: StandingBeacon::Cas,
            seats,
            threshold,
            wanting: &[0],
            numbers: 1,
            store: NonceStore::Memory,
            must_announce: false,
        }
    }

    const fn with_numbers(self, numbers: u64) -> Self {
        Self { numbers, ..self }
    }

    fn processes(&self) -> (Timestamp, Vec<Standing>) {
        let seats = u16::try_from(self.seats).unwrap();
        let mut terms = StandingTerms::new(self.beacon, NETWORK, seats, seats);
        // The double of the host has no whole updates.
        terms.updates = Updates::Hash;
        if let Some(threshold) = self.threshold {
            terms = terms.proceeding(threshold);
        }
        let mut world = World::formed(5, &terms, self.seats, 1);
        self.wanting.iter().for_each(|seat| world.wants(*seat, &[0]));
        world.run_until_quiet();
        let boards = Boards::default();
        let rows = world.service.cohort.rows_from(0).to_vec();
        let seats = world.seats.iter().map(|seat| seat.did.clone()).collect();
        let service =
            ServiceFixed { node: world.service, seats, boards: Rc::clone(&boards), last_number: self.numbers };
        let seat = |(at, node)| {
            let (boards, rows) = (Rc::clone(&boards), rows.clone());
            let fixed = SeatFixed { place: at + 1, node, store: self.store, boards, rows };
            Standing::Seat(Box::new(SeatProcess::new(fixed)))
        };
        let service = Standing::Service(Box::new(ServiceProcess::new(service)));
        let processes = std::iter::once(service).chain(world.seats.into_iter().enumerate().map(seat));
        (world.now, processes.collect())
    }

    fn explore(&self, faults: Faults, timing: Timing) -> Result<Explored, Broken> {
        let (now, processes) = self.processes();
        explore(self, Start { now, processes, faults, timing })
    }

    fn spenders(&self) -> usize {
        self.threshold.map_or(self.seats, usize::from)
    }
}

fn parts<'a>(processes: &[&'a Standing]) -> (&'a ServiceProcess, Vec<&'a SeatProcess>) {
    let mut service = None;
    let mut seats = Vec::new();
    for process in processes {
        match process {
            Standing::Service(one) => service = Some(&**one),
            Standing::Seat(seat) => seats.push(&**seat),
        }
    }
    (service.expect("the first process"), seats)
}

impl Cohort {
    /// Every transaction for which enough seats have signed: every party with the signatures can broadcast it.
    fn possible<'a>(&self, seats: &[&'a SeatProcess]) -> BTreeMap<u64, Vec<&'a Transaction>> {
        let mut signers: BTreeMap<u64, Vec<(&seat::Signed, usize)>> = BTreeMap::new();
        for seat in seats {
            for (number, signed) in &seat.record.signed {
                let of_number = signers.entry(*number).or_default();
                for one in signed {
                    match of_number.iter_mut().find(|(known, _)| *known == one) {
                        Some((_, signers)) => *signers += 1,
                        None => of_number.push((one, 1)),
                    }
                }
            }
        }
        let is_enough = |(signed, signers): &(&seat::Signed, usize)| match signed.mode {
            Mode::Key => *signers == self.seats,
            Mode::Fallback => *signers >= self.spenders(),
        };
        let possible = |of: Vec<(&'a seat::Signed, usize)>| {
            of.into_iter().filter(is_enough).map(|(signed, _)| &signed.transaction).collect()
        };
        signers.into_iter().map(|(number, of)| (number, possible(of))).collect()
    }
}

impl System for Cohort {
    type Process = Standing;

    fn check(&self, processes: &[&Standing]) {
        let (service, seats) = parts(processes);
        let possible = self.possible(&seats);
        for (number, transactions) in &possible {
            assert!(transactions.len() <= 1, "two transactions of number {number} are signed");
        }
        let all: Vec<&Transaction> = possible.values().flatten().copied().collect();
        for (at, one) in all.iter().enumerate() {
            for other in &all[at + 1..] {
                let conflict = one
                    .input
                    .iter()
                    .any(|input| other.input.iter().any(|other| other.previous_output == input.previous_output));
                assert!(conflict, "two numbers can both be announced");
            }
        }
        for (number, end) in &service.ends {
            let NumberEnd::Signed { transaction, board_hash, signers, absent, .. } = end else { continue };
            let txid = transaction.compute_txid();
            let is_known = possible.get(number).into_iter().flatten().any(|known| known.compute_txid() == txid);
            assert!(is_known, "number {number} is announced, and the seats have not signed that");
            let (_, content) = &service_board(service, board_hash);
            self.check_board(content, &seats);
            let keys: Vec<_> = content.responses.iter().map(|response| response.seat).collect();
            assert!(signers.iter().all(|signer| keys.contains(signer)), "a signer without a response");
            assert!(absent.iter().all(|seat| !keys.contains(seat)), "a seat that has responded is called absent");
            assert_eq!(keys.len() + absent.len(), self.seats);
        }
    }

    fn end(&self, processes: &[&Standing], _is_gone: &dyn Fn(usize) -> bool) -> Result<String, String> {
        let (service, _) = parts(processes);
        if let Some(number) = service.cohort.open_number() {
            return Err(format!("number {number} is open, and nothing can end it"));
        }
        for (number, end) in &service.ends {
            // No fault of a peer is the reason of these.
            if let NumberEnd::Failed {
                why: why @ (Why::Abandoned(_) | Why::Unverified | Why::Unfunded(_)), ..
            } = end
            {
                return Err(format!("number {number} has failed: {why}"));
            }
        }
        let Some((number, end)) = service.ends.last_key_value() else {
            return Err("no number was opened".to_owned());
        };
        let named = match end {
            NumberEnd::Signed { transaction, .. } if !service.mempool.contains(transaction) => {
                return Err(format!("number {number} is announced, and not broadcast"));
            }
            NumberEnd::Signed { mode, .. } => return Ok(format!("{number} {mode}")),
            // The seat that has an update is absent.
            NumberEnd::Idle { .. } => return Ok(format!("{number} idle")),
            NumberEnd::Failed { why, .. } => format!("failed, {why}"),
        };
        if self.must_announce { Err(format!("number {number}: {named}")) } else { Ok(format!("{number} {named}")) }
    }
}

fn service_board(service: &ServiceProcess, hash: &DocumentHash) -> (Arc<Vec<u8>>, BoardContent) {
    service.fixed.boards.borrow()[hash].clone()
}

impl Cohort {
    /// A board has of each seat what it has responded, and its entries are what it has decided.
    fn check_board(&self, content: &BoardContent, seats: &[&SeatProcess]) {
        for response in &content.responses {
            let seat = seats.iter().find(|seat| seat.fixed.node.key.public_key() == response.seat);
            let seat = seat.expect("a seat of the cohort");
            let context = seat.context();
            let sent = seat.record.responses.get(&content.number);
            assert!(
                sent.is_some_and(|sent| sent.contains(&response.hash(context))),
                "a response on the board that its seat has not sent"
            );
            let decided = seat.committed(content.number);
            match self.beacon {
                StandingBeacon::Cas => {
                    let entries = response.entries.iter().map(|entry| match entry {
                        Entry::Cas { did, update_hash } => {
                            assert!(
                                seat.fixed.node.dids.iter().any(|own| own.did.as_str() == did),
                                "a foreign DID"
                            );
                            *update_hash
                        }
                        Entry::Smt { .. } => panic!("an entry of another beacon"),
                    });
                    assert_eq!(entries.collect::<Vec<_>>(), decided, "entries that the seat has not decided");
                }
                StandingBeacon::Smt => {
                    let expected: Vec<Entry> = seat.leaves(content.number, &decided);
                    assert_eq!(response.entries, expected, "leaves that the seat has not decided");
                }
            }
        }
    }
}

#[test]
fn every_number_of_two_seats_ends_validly() {
    let cohort = Cohort::of(2, Some(1));
    report("2 seats, k = 1, two faults", 20_000, || cohort.explore(Faults::each(2), Timing::AnyMoment));
    let smt = Cohort { beacon: StandingBeacon::Smt, wanting: &[0, 1], ..Cohort::of(2, None) };
    report("2 seats, all sign, SMT, one fault", 2_000, || smt.explore(Faults::each(1), Timing::AnyMoment));
    if is_long() {
        report("2 seats, k = 1, all faults", 100_000, || cohort.explore(Faults::each(6), Timing::AnyMoment));
        report("2 seats, all sign, SMT, all faults", 100_000, || smt.explore(Faults::each(6), Timing::AnyMoment));
    }
}

#[test]
fn every_number_of_three_seats_ends_validly() {
    let cohort = Cohort::of(3, Some(2));
    report("3 seats, k = 2, one fault", 50_000, || cohort.explore(Faults::each(1), Timing::AnyMoment));
    report("3 seats, k = 2, two faults, quiet", 50_000, || cohort.explore(Faults::each(2), Timing::WhenQuiet));
    if is_long() {
        report("3 seats, k = 2, all faults, quiet", 500_000, || cohort.explore(Faults::each(6), Timing::WhenQuiet));
        report("3 seats, k = 2, two faults", 500_000, || cohort.explore(Faults::each(2), Timing::AnyMoment));
    }
}

#[test]
fn the_next_number_ends_validly() {
    let cohort = Cohort::of(2, Some(1)).with_numbers(2);
    report("2 seats, k = 1, 2 numbers, no fault", 5_000, || cohort.explore(Faults::NONE, Timing::AnyMoment));
    report("2 seats, k = 1, 2 numbers, two faults, quiet", 5_000, || {
        cohort.explore(Faults::each(2), Timing::WhenQuiet)
    });
    if is_long() {
        report("2 seats, k = 1, 2 numbers, one fault", 50_000, || {
            cohort.explore(Faults::each(1), Timing::AnyMoment)
        });
    }
}

#[test]
fn one_fault_does_not_stop_a_cohort() {
    for (name, seats, threshold, at_least) in [("2 seats, k = 1", 2, 1, 2_000), ("3 seats, k = 2", 3, 2, 20_000)] {
        let cohort = Cohort { must_announce: true, ..Cohort::of(seats, Some(threshold)).with_numbers(2) };
        let explore = || cohort.explore(Faults::each(1), Timing::WhenQuiet);
        report(&format!("{name}, 2 numbers, one fault, quiet"), at_least, explore);
    }
}

#[test]
fn a_seat_that_stores_its_nonces_is_found() {
    let cohort = Cohort { store: NonceStore::File, ..Cohort::of(2, None) };
    let faults = Faults { crashes: 1, most: 1, ..Faults::NONE };
    let broken = cohort.explore(faults, Timing::WhenQuiet).expect_err("a nonce is used twice");
    assert!(broken.problem.starts_with("a nonce was used twice"), "{broken:#?}");
    assert!(broken.trace.iter().any(|action| action.starts_with("crash")), "{broken:#?}");
}
