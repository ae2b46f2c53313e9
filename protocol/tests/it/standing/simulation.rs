//! Random lives of standing cohorts: lost and repeated messages, crashes, absence, refusals. What must never happen does not happen, and
//! what is wanted is announced once the trouble is over.
//!
//! `SIM_SEEDS` sets the number of seeds.

use std::cell::RefCell;

use btcr2_aggregation_protocol::cohort::standing::{Mode, StandingBeacon, StandingTerms, number::NumberEnd};

use super::{cohort::NETWORK, world::World};
use crate::sim_support::dice::{Dice, for_each_seed};

fn terms(dice: &mut Dice, seats: u16) -> StandingTerms {
    let beacon = if dice.below(2) == 0 { StandingBeacon::Cas } else { StandingBeacon::Smt };
    let mut terms = StandingTerms::new(beacon, NETWORK, seats, seats);
    terms.pending_update_trigger = Some(1 + dice.below(seats.into()) as u16);
    terms.min_seconds_between_announcements = 60 + dice.below(3_600) as u32;
    terms.max_seconds_between_announcements = Some(4 * 3_600);
    terms.max_unconfirmed = 1 + dice.below(4) as u8;
    if seats > 1 && dice.below(3) > 0 {
        terms.proceeding(1 + dice.below(u64::from(seats) - 1) as u16)
    } else {
        terms
    }
}

/// An hour of trouble.
fn trouble(world: &mut World, dice: &mut Dice) {
    let seats = world.seats.len() as u64;
    for _ in 0..dice.below(6) {
        let at = dice.below(seats) as usize;
        match dice.below(10) {
            0 => world.seats[at].is_away = true,
            1 | 2 => {
                world.seats[at].is_away = false;
                world.reconnect(at);
            }
            3 => world.crash_seat(at),
            4 => {
                if world.service.is_down {
                    world.restart_service();
                } else {
                    world.crash_service();
                }
            }
            5 => world.seats[at].refuses = Some("a refusal".to_owned()),
            6 => world.seats[at].refuses = None,
            7 if !world.service.is_down => world.mine(),
            _ => {
                let dids = world.seats[at].dids.len() as u64;
                world.wants(at, &[dice.below(dids) as usize]);
            }
        }
        world.pass(dice.below(900));
    }
    if !world.service.is_down {
        (0..world.seats.len()).for_each(|at| world.reconnect(at));
    }
    world.pass(dice.below(1_800));
}

#[test]
fn nothing_that_must_never_happen_happens() {
    let total = RefCell::new([0_u64; 7]);
    for_each_seed(100, |seed| {
        let mut dice = Dice::new(seed);
        let seats = 1 + dice.below(5) as usize;
        let terms = terms(&mut dice, seats as u16);
        let dids = 1 + dice.below(3) as usize;
        let mut world = World::formed(seed, &terms, seats, dids);
        (world.loss, world.repeats) = (dice.below(150), dice.below(200));
        world.max_delay = 1 + dice.below(60_000);
        for _ in 0..1 + dice.below(12) {
            trouble(&mut world, &mut dice);
            world.assert_invariants();
        }
        // The trouble is over: everything that is wanted comes into a block.
        (world.loss, world.repeats) = (0, 0);
        if world.service.is_down {
            world.restart_service();
        }
        for seat in &mut world.seats {
            (seat.is_away, seat.refuses) = (false, None);
        }
        for _ in 0..24 {
            (0..seats).for_each(|at| world.reconnect(at));
            world.pass(1_800);
            world.mine();
        }
        world.assert_invariants();
        let left: Vec<_> = world.seats.iter().flat_map(|seat| &seat.dids).filter(|one| one.wants).collect();
        assert!(left.is_empty(), "not announced: {left:?}; {:?}", world.service.ends.iter().next_back());

        let mut total = total.borrow_mut();
        for end in world.service.ends.values() {
            match end {
                NumberEnd::Idle { .. } => total[0] += 1,
                NumberEnd::Failed { .. } => total[1] += 1,
                NumberEnd::Signed { mode: Mode::Key, .. } => total[2] += 1,
                NumberEnd::Signed { mode: Mode::Fallback, .. } => total[3] += 1,
            }
        }
        total[4] += world.confirmed.len() as u64;
        total[5] += world.seats.iter().flat_map(|seat| &seat.dids).map(|one| one.version - 1).sum::<u64>();
        total[6] += world.rejects.len() as u64;
    });
    let [idle, failed, key, fallback, confirmed, updates, rejects] = total.into_inner();
    println!(
        "numbers: {idle} idle, {failed} failed, {key} by key path, {fallback} by fallback; {confirmed} transactions, {updates} updates; \
         {rejects} rejections"
    );
    assert!(failed > 20 && key > 60 && fallback > 20 && updates > 200, "too little happened");
}
