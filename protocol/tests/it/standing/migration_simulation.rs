//! Random migrations: late joiners, former and absent members, crashes and lost messages, before, during and after the move.
//!
//! `SIM_SEEDS` sets the number of seeds.

use std::cell::RefCell;

use btcr2_aggregation_protocol::cohort::standing::{
    Mode, OpportunityKind, RowAction, StandingBeacon, StandingTerms, number::NumberEnd, seat::SeatInput,
};

use super::{cohort::NETWORK, migration_world::Migration, world::World};
use crate::sim_support::dice::{Dice, for_each_seed};

pub(super) fn terms(dice: &mut Dice, beacon: StandingBeacon, seats: u16) -> StandingTerms {
    let mut terms = StandingTerms::new(beacon, NETWORK, seats, seats);
    terms.pending_update_trigger = Some(1);
    terms.min_seconds_between_announcements = 60 + dice.below(1_800) as u32;
    terms.max_unconfirmed = 1 + dice.below(4) as u8;
    if seats > 1 && dice.below(3) > 0 {
        terms.proceeding(1 + dice.below(u64::from(seats) - 1) as u16)
    } else {
        terms
    }
}

/// A quarter of an hour of trouble in a cohort.
pub(super) fn trouble(world: &mut World, dice: &mut Dice, wants: bool) {
    let seats = world.seats.len() as u64;
    for _ in 0..dice.below(5) {
        let at = dice.below(seats) as usize;
        match dice.below(9) {
            0 => world.seats[at].is_away = true,
            1 | 2 => {
                world.seats[at].is_away = false;
                world.reconnect(at);
            }
            3 => world.crash_seat(at),
            4 if world.service.is_down => world.restart_service(),
            4 => world.crash_service(),
            5 => world.seats[at].refuses = Some("a refusal".to_owned()),
            6 => world.seats[at].refuses = None,
            _ if wants => {
                let dids = world.seats[at].dids.len() as u64;
                world.wants(at, &[dice.below(dids) as usize]);
            }
            _ => {}
        }
        world.pass(dice.below(300));
    }
}

/// The trouble is over.
fn calm(world: &mut World) {
    if world.service.is_down {
        world.restart_service();
    }
    for seat in &mut world.seats {
        (seat.is_away, seat.refuses) = (false, None);
    }
    (0..world.seats.len()).for_each(|at| world.reconnect(at));
}

/// DIDs of a seat leave: nothing of them is on its way.
fn leave(world: &mut World, at: usize, dice: &mut Dice) -> usize {
    let seat = &world.seats[at];
    let committed = seat.machine.committed();
    let leaving: Vec<_> = seat
        .machine
        .indexes()
        .copied()
        .filter(|index| committed.iter().all(|(of, ..)| of != index) && dice.below(2) == 0)
        .collect();
    for controlled in world.seats[at].dids.iter_mut().filter(|one| leaving.contains(&one.index)) {
        controlled.wants = false;
    }
    let rows: Vec<_> = leaving
        .into_iter()
        .map(|index| {
            let serial = world.seats[at].machine.next_serial(&index);
            world.seats[at].row(index, RowAction::Unregister, serial, &mut world.rng)
        })
        .collect();
    let count = rows.len();
    world.feed_seat(at, &SeatInput::RowsAsked(rows));
    count
}

/// Lets everything that is wanted come into a block.
fn settle(world: &mut World) {
    for _ in 0..12 {
        calm(world);
        world.pass(1_800);
        world.mine();
    }
}

/// Whether all DIDs of a seat have left the old cohort, as far as it knows.
fn has_left(migration: &Migration, at: usize) -> bool {
    let seat = &migration.old.seats[at];
    seat.machine.former_indexes().len() == seat.dids.len()
}

#[test]
fn migrations_strand_nothing_and_announce_nothing_twice() {
    let total = RefCell::new([0_u64; 7]);
    for_each_seed(100, |seed| {
        let mut dice = Dice::new(seed ^ 0x0a17);
        let beacon = if dice.below(2) == 0 { StandingBeacon::Cas } else { StandingBeacon::Smt };
        let seats = 1 + dice.below(5) as usize;
        let (old_terms, dids) = (terms(&mut dice, beacon, seats as u16), 1 + dice.below(3) as usize);
        let mut old = World::formed(seed, &old_terms, seats, dids);
        (old.loss, old.repeats, old.max_delay) = (dice.below(150), dice.below(200), 1 + dice.below(30_000));
        for _ in 0..dice.below(4) {
            trouble(&mut old, &mut dice, true);
            if !old.service.is_down && dice.below(2) == 0 {
                old.mine();
            }
        }
        calm(&mut old);
        let mut former = 0;
        if dice.below(3) == 0 {
            let at = dice.below(seats as u64) as usize;
            former = leave(&mut old, at, &mut dice);
        }
        (old.loss, old.repeats) = (0, 0);
        settle(&mut old);

        // Some move, some do not, others join.
        let mut numbers: Vec<usize> = (0..seats).filter(|_| dice.below(5) > 0).collect();
        numbers.extend((0..dice.below(3) as usize).map(|late| 20 + late));
        if numbers.iter().all(|number| *number >= seats) {
            numbers.insert(0, 0);
        }
        let new_terms = terms(&mut dice, beacon, numbers.len() as u16);
        let mut migration = Migration::new(seed, old, &new_terms, &numbers);
        let movers: Vec<usize> = (0..seats).filter(|at| migration.place_of(*at).is_some()).collect();
        migration.name();
        if movers.iter().all(|at| has_left(&migration, *at)) {
            // Nothing moves: the number would be idle.
            return;
        }
        (migration.old.loss, migration.old.repeats) = (dice.below(150), dice.below(200));
        let late = dice.below(3) == 0;
        for at in 0..seats {
            // Some prepare only when the trouble is over.
            if !late || dice.below(2) == 0 {
                migration.prepare(at);
            }
        }
        let _ = migration.open(OpportunityKind::Move);
        for _ in 0..dice.below(4) {
            trouble(&mut migration.old, &mut dice, false);
            migration.assert_invariants();
        }
        (migration.old.loss, migration.old.repeats) = (0, 0);
        for _ in 0..24 {
            calm(&mut migration.old);
            migration.old.run_until_quiet();
            migration.prepare_all();
            if migration.moved().is_none() {
                // One may be open, or due already.
                let _ = migration.open(OpportunityKind::Move);
            }
            migration.pass(1_800);
        }
        if movers.iter().all(|at| has_left(&migration, *at)) {
            // The seats have seen it with the number only.
            return;
        }
        let moved = migration.moved().unwrap_or_else(|| panic!("not moved: {:?}", migration.old.service.ends));
        migration.mine();
        migration.assert_invariants();
        // What stays behind is at version v, and is not announced any more; what moves goes on at the new address.
        for at in 0..seats {
            let Some(place) = migration.place_of(at) else { continue };
            // A document that does not list the new address has no updates there.
            let moved: Vec<usize> =
                (0..dids).filter(|did| migration.old.seats[at].dids[*did].moves.is_some()).collect();
            migration.new.wants(place, &moved);
        }
        for late in movers.len()..numbers.len() {
            migration.new.wants(late, &[0]);
        }
        (migration.new.loss, migration.new.max_delay) = (dice.below(100), 1 + dice.below(30_000));
        for _ in 0..dice.below(3) {
            trouble(&mut migration.new, &mut dice, false);
        }
        migration.new.loss = 0;
        for _ in 0..24 {
            calm(&mut migration.new);
            migration.pass(1_800);
            migration.mine();
        }
        migration.assert_invariants();
        let left: Vec<_> = migration.new.seats.iter().flat_map(|seat| &seat.dids).filter(|one| one.wants).collect();
        assert!(left.is_empty(), "not announced by the successor: {left:?}");

        let mut total = total.borrow_mut();
        let NumberEnd::Signed { mode, absent, .. } = &migration.old.service.ends[&moved] else { unreachable!() };
        total[usize::from(*mode == Mode::Fallback)] += 1;
        total[2] += u64::from(!absent.is_empty());
        total[3] += migration
            .old
            .seats
            .iter()
            .map(|seat| super::world::updates_of(&seat.events, moved).len() as u64)
            .sum::<u64>();
        total[4] += migration.new.confirmed.len() as u64;
        total[5] += former as u64;
        total[6] += moved - 1;
    });
    let [key, fallback, absent, updates, announced, former, before] = total.into_inner();
    println!(
        "moves: {key} by key path, {fallback} by fallback, {absent} with an absent seat; {updates} DIDs moved, {former} left before; \
         {before} numbers before, {announced} announcements of successors"
    );
    assert!(key > 20 && fallback > 5 && updates > 100 && announced > 30 && former > 5, "too little happened");
}
