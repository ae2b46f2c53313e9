//! A service vanishes at any moment, with everything that it has signed, and another one takes its place: seats form a cohort there, and each DID
//! takes the dead address out of its document by its Singleton beacon. What the old service has, it may still broadcast, at any time.
//!
//! `SIM_SEEDS` sets the number of seeds.

use std::{cell::RefCell, collections::BTreeMap};

use btcr2_aggregation_protocol::{
    cohort::standing::{StandingBeacon, StandingTerms, seat::SeatInput},
    hash::{DidIndex, DocumentHash},
};

use super::{
    migration_simulation::{terms, trouble},
    seat_node::SeatNode,
    service_node::ServiceNode,
    world::{World, updates_of},
};
use crate::sim_support::dice::{Dice, for_each_seed};

const OTHER: &str = "cohort-of-another-service";

fn some_terms(dice: &mut Dice, seats: usize) -> StandingTerms {
    let beacon = if dice.below(2) == 0 { StandingBeacon::Cas } else { StandingBeacon::Smt };
    terms(dice, beacon, seats as u16)
}

/// What is final, of all beacons: the update of each version of each DID.
#[derive(Default)]
struct Announced(BTreeMap<(DidIndex, u64), DocumentHash>);

impl Announced {
    fn add(&mut self, index: DidIndex, version: u64, hash: DocumentHash) {
        let first = *self.0.entry((index, version)).or_insert(hash);
        assert_eq!(first, hash, "two updates of version {version} of {index} are in blocks");
    }

    /// The announcements of a cohort.
    fn add_all(&mut self, world: &World) {
        for content in world.confirmed.iter().filter_map(|transaction| world.board_of(transaction)) {
            let responded =
                |seat: &&SeatNode| content.responses.iter().any(|response| response.seat == seat.key.public_key());
            for seat in world.seats.iter().filter(responded) {
                for (index, version, hash) in updates_of(&seat.events, content.number) {
                    self.add(index, version, hash);
                }
            }
        }
    }
}

struct Replacement {
    old: World,
    new: World,
    announced: Announced,
    /// How many DIDs were saved with a new update, and how many announced first what the old cohort may still announce.
    saved: [u64; 2],
}

impl Replacement {
    /// The cohort of another service, with old seats of these numbers and others. All their DIDs are registered.
    fn new(seed: u64, old: World, terms: &StandingTerms, numbers: &[usize]) -> Self {
        let dids = old.seats[0].dids.len();
        let mut new = World::of(seed ^ 0x0e3, old.now, ServiceNode::of(4, OTHER, terms), numbers, dids);
        let outgoing = new.service.advert(new.now, &mut new.rng);
        new.send_all(outgoing);
        new.form();
        new.deposit(1_000_000);
        let mut both = Self { old, new, announced: Announced::default(), saved: [0; 2] };
        both.follow();
        both
    }

    /// The seats of the new cohort know the versions that are final.
    fn follow(&mut self) {
        let Self { old, new, .. } = self;
        for one in old.seats.iter().flat_map(|seat| &seat.dids) {
            let seats = new.seats.iter().enumerate();
            let same =
                seats.flat_map(|(at, seat)| seat.dids.iter().enumerate().map(move |(did, of)| (at, did, of)));
            let behind = same.filter(|(.., of)| of.index == one.index && of.version < one.version);
            let Some((at, did)) = behind.map(|(at, did, _)| (at, did)).next() else { continue };
            new.seats[at].dids[did].version = one.version;
            new.feed_seat(at, &SeatInput::Resolved { index: one.index, version: one.version });
        }
    }

    /// The old service broadcasts what it has, and it is mined.
    fn late(&mut self) {
        self.old.mine();
        self.follow();
    }

    /// An announcement by the Singleton beacon of a DID is final.
    fn announces_alone(&mut self, at: usize, did: usize, hash: DocumentHash) {
        let one = &mut self.old.seats[at].dids[did];
        one.version += 1;
        one.wants = false;
        let (index, version) = (one.index, one.version);
        self.announced.add(index, version, hash);
        self.old.feed_seat(at, &SeatInput::Resolved { index, version });
        self.follow();
    }

    /// A DID takes the dead address out, as `member rescue` does. While the old cohort may announce another update of that version, it is that
    /// one that its own beacon announces first.
    fn saves(&mut self, at: usize, did: usize) {
        let seat = &self.old.seats[at];
        let one = &seat.dids[did];
        let committed = seat.machine.committed();
        let pending = committed.iter().find(|(of, version, _)| (*of, *version) == (one.index, one.version + 1));
        if let Some((.., hash)) = pending {
            self.saved[1] += 1;
            return self.announces_alone(at, did, *hash);
        }
        let one = &mut self.old.seats[at].dids[did];
        one.moves = Some(OTHER.to_owned());
        let (_, hash) = one.next(one.salt);
        self.saved[0] += 1;
        self.announces_alone(at, did, hash);
    }

    fn assert_invariants(&mut self) {
        self.old.assert_invariants();
        self.new.assert_invariants();
        self.announced.add_all(&self.old);
        self.announced.add_all(&self.new);
    }
}

#[test]
fn dids_of_a_vanished_service_go_on_at_another() {
    let total = RefCell::new([0_u64; 4]);
    for_each_seed(100, |seed| {
        let mut dice = Dice::new(seed ^ 0x5e1f);
        let seats = 1 + dice.below(5) as usize;
        let (old_terms, dids) = (some_terms(&mut dice, seats), 1 + dice.below(3) as usize);
        let mut old = World::formed(seed, &old_terms, seats, dids);
        (old.loss, old.repeats, old.max_delay) = (dice.below(100), dice.below(200), 1 + dice.below(30_000));
        for _ in 0..1 + dice.below(4) {
            trouble(&mut old, &mut dice, true);
            if !old.service.is_down && dice.below(2) == 0 {
                old.mine();
            }
        }
        let at = dice.below(seats as u64) as usize;
        old.wants(at, &[dice.below(dids as u64) as usize]);
        old.pass(dice.below(120));
        // It has what is on its way to it, and nothing that is sent from now on arrives.
        if old.service.is_down {
            old.restart_service();
        }
        old.loss = 1_000;
        old.pass(3_600);

        let mut numbers: Vec<usize> = (0..seats).filter(|_| dice.below(4) > 0).collect();
        numbers.extend((0..dice.below(3) as usize).map(|late| 20 + late));
        if numbers.iter().all(|number| *number >= seats) {
            numbers.insert(0, 0);
        }
        let new_terms = some_terms(&mut dice, numbers.len());
        let mut both = Replacement::new(seed, old, &new_terms, &numbers);
        // Each seat saves its DIDs when it likes; meanwhile the old service broadcasts.
        let of_seat = |at| (0..dids).map(move |did| (at, did));
        let mut left: Vec<(usize, usize)> =
            numbers.iter().filter(|number| **number < seats).flat_map(|number| of_seat(*number)).collect();
        while !left.is_empty() {
            let next = dice.below(left.len() as u64) as usize;
            let (at, did) = left[next];
            match dice.below(4) {
                0 => both.late(),
                1 => both.old.crash_seat(at),
                _ => both.saves(at, did),
            }
            if both.old.seats[at].dids[did].moves.is_some() {
                left.swap_remove(next);
            }
            both.assert_invariants();
        }
        if dice.below(2) == 0 {
            both.late();
        }

        // The cohort of the other service announces what they want next.
        for place in 0..numbers.len() {
            both.new.wants(place, &Vec::from_iter(0..dids));
        }
        for _ in 0..dice.below(3) {
            trouble(&mut both.new, &mut dice, false);
        }
        for _ in 0..24 {
            if both.new.service.is_down {
                both.new.restart_service();
            }
            for seat in &mut both.new.seats {
                (seat.is_away, seat.refuses) = (false, None);
            }
            (0..numbers.len()).for_each(|at| both.new.reconnect(at));
            both.new.pass(1_800);
            both.new.mine();
        }
        // Long after everything.
        both.late();
        both.assert_invariants();
        let waiting: Vec<_> = both.new.seats.iter().flat_map(|seat| &seat.dids).filter(|one| one.wants).collect();
        assert!(waiting.is_empty(), "not announced by the other service: {waiting:?}");

        let mut total = total.borrow_mut();
        (total[0], total[1]) = (total[0] + both.saved[0], total[1] + both.saved[1]);
        total[2] += both.new.confirmed.len() as u64;
        total[3] += both.old.confirmed.len() as u64;
    });
    let [saved, pending, new, old] = total.into_inner();
    println!(
        "{saved} DIDs saved, {pending} times after what the old cohort might still announce; {old} transactions of the old service, {new} of the new"
    );
    assert!(saved > 150 && pending > 10 && new > 80 && old > 30, "too little happened");
}
