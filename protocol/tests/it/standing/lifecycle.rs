//! Standing cohorts from formation on: announcements, absence, refusals, refreshes, voids.

use std::sync::Arc;

use btcr2_aggregation_protocol::{
    cohort::standing::{
        CoinRef, Mode, OpportunityKind, RowAction, StandingBeacon, StandingTerms, TransactionHex,
        cohort::{CohortInput, LOW_BALANCE},
        message::{EndKind, NumberEndedNotice, StandingMessage},
        number::{NumberEnd, Why},
        seat::{Seat, SeatEffect, SeatEvent, SeatInput},
    },
    error::RejectCode,
    machine::{replay, step},
};

use super::{cohort::NETWORK, world::World};

fn terms(beacon: StandingBeacon) -> StandingTerms {
    let mut terms = StandingTerms::new(beacon, NETWORK, 2, 10);
    terms.pending_update_trigger = Some(1);
    terms
}

fn proceeding(beacon: StandingBeacon) -> StandingTerms {
    StandingTerms { min_participants: 3, ..terms(beacon) }.proceeding(2)
}

#[track_caller]
fn signed(world: &World, number: u64, mode: Mode, signers: usize) {
    match &world.service.ends[&number] {
        NumberEnd::Signed { mode: found, signers: found_signers, .. } => {
            assert_eq!((*found, found_signers.len()), (mode, signers), "number {number}");
        }
        other => panic!("number {number}: {other:?}"),
    }
}

#[track_caller]
fn failed(world: &World, number: u64, expected: &Why) {
    match &world.service.ends[&number] {
        NumberEnd::Failed { why, .. } => assert_eq!(why, expected, "number {number}"),
        other => panic!("number {number}: {other:?}"),
    }
}

#[test]
fn one_address_announces_again_and_again() {
    for beacon in [StandingBeacon::Cas, StandingBeacon::Smt] {
        let mut world = World::formed(1, &terms(beacon), 3, 2);
        for number in 1..=5 {
            let at = number as usize % 3;
            world.wants(at, &[0, 1]);
            world.pass(2 * 3600);
            signed(&world, number, Mode::Key, 3);
            world.mine();
            assert_eq!(world.seats[at].dids[0].version, 1 + number.div_ceil(3), "number {number}");
        }
        assert_eq!((world.confirmed.len(), world.service.mempool.len()), (5, 5));
        // Two round trips: per number and seat one response and one confirmation.
        assert!(world.rejects.is_empty(), "{:?}", world.rejects);
        world.assert_invariants();
    }
}

#[test]
fn announcements_may_follow_unconfirmed_ones_up_to_the_depth() {
    let mut terms = terms(StandingBeacon::Cas);
    terms.max_unconfirmed = 2;
    let mut world = World::formed(2, &terms, 2, 3);
    for number in 1..=3 {
        world.wants(1, &[number as usize - 1]);
        world.pass(2 * 3600);
        assert_eq!(world.service.ends.contains_key(&number), number <= 2, "number {number}");
    }
    world.mine();
    world.pass(2 * 3600);
    signed(&world, 3, Mode::Key, 2);
    world.mine();
    assert_eq!(world.confirmed.len(), 3);
    world.assert_invariants();
}

#[test]
fn without_updates_nothing_is_announced() {
    let mut terms = terms(StandingBeacon::Smt);
    terms.max_seconds_between_announcements = Some(4 * 3600);
    let mut world = World::formed(3, &terms, 3, 1);
    world.pass(9 * 3600);
    assert!(world.service.ends.len() >= 2, "{:?}", world.service.ends);
    assert!(world.service.ends.values().all(|end| matches!(end, NumberEnd::Idle { .. })));
    assert!(world.service.mempool.is_empty());
    world.assert_invariants();
}

#[test]
fn an_absent_seat_costs_a_deadline_and_the_larger_fee() {
    let mut world = World::formed(4, &proceeding(StandingBeacon::Smt), 3, 1);
    world.seats[2].is_away = true;
    world.wants(0, &[0]);
    world.pass(2 * 3600);
    signed(&world, 1, Mode::Fallback, 2);
    world.mine();
    assert_eq!(world.seats[0].dids[0].version, 2);
    // It comes back, and the next one is signed by all again.
    world.seats[2].is_away = false;
    world.reconnect(2);
    world.wants(2, &[0]);
    world.pass(2 * 3600);
    signed(&world, 2, Mode::Key, 3);
    world.assert_invariants();
}

/// A seat claims that it has an update, and is silent from then on: numbers are not opened for its sake without end.
#[test]
fn the_claim_of_a_silent_seat_opens_two_numbers() {
    let mut world = World::formed(15, &proceeding(StandingBeacon::Cas), 3, 1);
    world.wants(2, &[0]);
    world.seats[2].is_away = true;
    world.pass(48 * 3600);
    assert_eq!(world.service.ends.len(), 2);
    assert!(world.service.ends.values().all(|end| matches!(end, NumberEnd::Idle { .. })));
    world.seats[2].is_away = false;
    world.reconnect(2);
    world.wants(2, &[0]);
    world.pass(2 * 3600);
    signed(&world, 3, Mode::Key, 3);
}

#[test]
fn a_seat_that_is_away_at_the_confirmation_is_left_out_of_the_next_number() {
    let mut world = World::formed(5, &proceeding(StandingBeacon::Cas), 3, 1);
    // It responds, and then refuses each time.
    world.seats[1].refuses = Some("not today".to_owned());
    world.wants(0, &[0]);
    world.pass(2 * 3600);
    failed(&world, 1, &Why::Refused);
    signed(&world, 2, Mode::Fallback, 2);
    world.mine();
    assert_eq!(world.confirmed.len(), 1);
    world.assert_invariants();
}

#[test]
fn a_cohort_that_waits_tries_three_times_and_then_in_its_cadence() {
    let mut world = World::formed(6, &terms(StandingBeacon::Cas), 2, 1);
    world.seats[1].refuses = Some("never".to_owned());
    world.wants(0, &[0]);
    world.pass(1800);
    assert_eq!(world.service.ends.len(), 3, "{:?}", world.service.ends);
    (1..=3).for_each(|number| failed(&world, number, &Why::Refused));
    world.pass(3600);
    assert_eq!(world.service.ends.len(), 4);
    world.seats[1].refuses = None;
    world.pass(2 * 3600);
    let last = *world.service.ends.keys().last().unwrap();
    signed(&world, last, Mode::Key, 2);
    world.assert_invariants();
}

#[test]
fn a_seat_that_restarts_before_it_signs_has_lost_its_nonces() {
    let mut world = World::formed(7, &proceeding(StandingBeacon::Cas), 3, 1);
    world.wants(0, &[0]);
    // Until all have responded: then the request is on its way.
    let mut most = 10_000;
    while !world.seats.iter().all(|seat| seat.responses.contains_key(&1)) {
        world.run_until(world.now + std::time::Duration::from_millis(1));
        most -= 1;
        assert!(most > 0);
    }
    world.crash_seat(2);
    world.pass(2 * 3600);
    failed(&world, 1, &Why::NonceLost);
    // No seat was silent or refused: all sign the next one.
    signed(&world, 2, Mode::Key, 3);
    world.assert_invariants();
}

#[test]
fn an_index_that_is_registered_while_a_number_is_open_counts_from_the_next_one() {
    let mut world = World::formed(8, &terms(StandingBeacon::Smt), 2, 2);
    let released = world.seats[0].dids[1].index;
    let row = world.seats[0].row(released, RowAction::Unregister, 2, &mut world.rng);
    world.wants(1, &[0]);
    world.run_until(world.now + std::time::Duration::from_millis(1_500));
    assert_eq!(world.service.cohort.open_number(), Some(1));
    world.feed_seat(0, &SeatInput::RowsAsked(vec![row]));
    world.pass(600);
    signed(&world, 1, Mode::Key, 2);
    let content = world.board_of(&world.service.mempool[0]).unwrap();
    assert_eq!(content.roster.iter().map(|seat| seat.indexes.len()).sum::<usize>(), 4);
    world.wants(1, &[1]);
    world.pass(2 * 3600);
    let content = world.board_of(&world.service.mempool[1]).unwrap();
    assert_eq!(content.roster.iter().map(|seat| seat.indexes.len()).sum::<usize>(), 3);
    world.assert_invariants();
}

#[test]
fn a_seat_that_has_missed_rows_fetches_them() {
    let mut world = World::formed(9, &proceeding(StandingBeacon::Cas), 3, 2);
    world.seats[2].is_away = true;
    let released = world.seats[0].dids[1].index;
    let row = world.seats[0].row(released, RowAction::Unregister, 2, &mut world.rng);
    world.feed_seat(0, &SeatInput::RowsAsked(vec![row]));
    world.wants(0, &[0]);
    world.pass(2 * 3600);
    signed(&world, 1, Mode::Fallback, 2);
    world.seats[2].is_away = false;
    world.wants(2, &[0]);
    world.pass(2 * 3600);
    signed(&world, 2, Mode::Key, 3);
    world.assert_invariants();
}

#[test]
fn a_refresh_joins_three_coins_and_announces_nothing() {
    let mut world = World::formed(10, &proceeding(StandingBeacon::Smt), 3, 1);
    world.deposit(5_000);
    world.deposit(70_000);
    assert_eq!(world.service.cohort.coins().len(), 3);
    let outgoing = world.service.open_now(world.now, OpportunityKind::Refresh, &mut world.rng);
    world.send_all(outgoing);
    world.pass(600);
    signed(&world, 1, Mode::Key, 3);
    world.mine();
    assert_eq!(world.service.cohort.coins().len(), 1);
    assert!(world.board_of(&world.confirmed[0]).is_none(), "it announces nothing");
    world.wants(0, &[0]);
    world.pass(2 * 3600);
    signed(&world, 2, Mode::Key, 3);
    world.mine();
    assert_eq!(world.seats[0].dids[0].version, 2);
    world.assert_invariants();
}

/// The operator gets 1,000 satoshi of each announcement in these tests.
#[test]
fn a_low_coin_is_joined_with_a_deposit_by_itself() {
    let mut world = World::formed_with(13, &terms(StandingBeacon::Cas), 2, 1, 5_000);
    world.wants(0, &[0]);
    world.pass(2 * 3600);
    signed(&world, 1, Mode::Key, 2);
    world.mine();
    let (by_key, by_fallback) = world.service.cohort.affordable(world.service.cohort.coins()[0].value).unwrap();
    assert!(by_fallback < LOW_BALANCE && by_key > 0, "{by_key} {by_fallback}");
    // What is worth no announcement changes nothing.
    world.deposit(100);
    world.deposit(900);
    world.pass(24 * 3600);
    assert_eq!(world.service.ends.len(), 1);
    let large = world.deposit(50_000);
    world.pass(2 * 3600);
    signed(&world, 2, Mode::Key, 2);
    world.mine();
    let refresh = world.confirmed.last().unwrap();
    assert!(world.board_of(refresh).is_none(), "it announces nothing");
    let spent: Vec<_> = refresh.input.iter().map(|input| input.previous_output.txid).collect();
    assert_eq!((spent.len(), spent[1]), (3, large.txid), "the largest first");
    // What costs more than it is worth is left alone, and a coin that is not low stays alone.
    assert_eq!(world.service.cohort.coins().len(), 2);
    world.deposit(60_000);
    world.pass(24 * 3600);
    assert_eq!(world.service.ends.len(), 2);
    world.wants(0, &[0]);
    world.pass(2 * 3600);
    signed(&world, 3, Mode::Key, 2);
    world.mine();
    assert_eq!(world.seats[0].dids[0].version, 3);
    world.assert_invariants();
}

/// A failed number of which k seats have signed is announced after all: the next number, on the same coin, is void.
#[test]
fn a_conflict_voids_the_announcements_that_descend_from_its_coin() {
    let mut world = World::formed(11, &terms(StandingBeacon::Cas), 2, 2);
    for did in 0..2 {
        world.wants(0, &[did]);
        world.wants(1, &[did]);
        world.pass(2 * 3600);
    }
    let coins = world.service.mempool.len();
    assert_eq!(coins, 2, "two announcements, one after the other, unconfirmed");
    // The first one's coin is spent by another transaction.
    let first = &world.service.mempool[0].input[0].previous_output;
    let coin = CoinRef { txid: first.txid, vout: first.vout, value: 1_000_000 };
    let by = world.service.mempool[1].compute_txid();
    let other = bitcoin::hashes::Hash::hash(b"another transaction");
    assert_ne!(by, other);
    let spent = CohortInput::Spent { coin, by: other };
    let outgoing = world.service.feed(world.now, &spent, &mut world.rng).unwrap();
    world.send_all(outgoing);
    assert!(world.service.cohort.coins().is_empty());
    // What the seats have committed to is settled when they see the same.
    assert!(!world.seats[0].machine.committed().is_empty());
    for at in 0..2 {
        world.feed_seat(at, &SeatInput::Spent { coin, by: other, signal: None });
    }
    world.run_until_quiet();
    world.deposit(50_000);
    world.pass(2 * 3600);
    signed(&world, 3, Mode::Key, 2);
    world.service.assert_replays();
}

/// A seat that was away from the first of two announcements has signed the second one only, and signs on another coin when both are void.
#[test]
fn a_conflict_voids_what_descends_from_a_number_without_this_seat() {
    let mut world = World::formed(13, &proceeding(StandingBeacon::Cas), 3, 2);
    world.seats[2].is_away = true;
    world.wants(0, &[0]);
    world.pass(3 * 3600);
    signed(&world, 1, Mode::Fallback, 2);
    world.seats[2].is_away = false;
    world.reconnect(2);
    world.wants(2, &[0]);
    world.pass(3 * 3600);
    signed(&world, 2, Mode::Key, 3);
    let first = world.service.mempool[0].input[0].previous_output;
    let coin = CoinRef { txid: first.txid, vout: first.vout, value: 1_000_000 };
    let other = bitcoin::hashes::Hash::hash(b"another transaction");
    let outgoing = world.service.feed(world.now, &CohortInput::Spent { coin, by: other }, &mut world.rng).unwrap();
    world.send_all(outgoing);
    for at in 0..3 {
        world.feed_seat(at, &SeatInput::Spent { coin, by: other, signal: None });
        assert!(world.seats[at].machine.committed().is_empty(), "{at}");
    }
    world.run_until_quiet();
    world.deposit(50_000);
    world.pass(3 * 3600);
    signed(&world, 3, Mode::Key, 3);
}

#[test]
fn a_service_restored_from_a_backup_continues_above_its_seats() {
    let mut world = World::formed(12, &terms(StandingBeacon::Cas), 2, 1);
    let backup = world.service.events.clone();
    world.wants(0, &[0]);
    world.pass(2 * 3600);
    signed(&world, 1, Mode::Key, 2);
    // Restored from before the first number.
    world.service.events = backup;
    world.service.numbers.clear();
    world.service.ends.clear();
    world.crash_service();
    world.restart_service();
    world.run_until_quiet();
    world.wants(1, &[0]);
    world.pass(4 * 3600);
    assert!(world.service.cohort.last_number() > 1);
    let refused = world.rejects.iter().filter(|(_, reject)| reject.code == RejectCode::Equivocation).count();
    assert!(refused > 0 || world.service.ends.contains_key(&2), "{:?}", world.rejects);
    let last = *world.service.ends.iter().rfind(|(_, end)| matches!(end, NumberEnd::Signed { .. })).unwrap().0;
    assert!(last > 1);
    for seat in &world.seats {
        assert_eq!(seat.signed.iter().filter(|(number, ..)| *number == 1).count(), 1);
    }
}

/// The board is verified, the seat restarts, and k others sign before it has fetched the board again.
#[test]
fn an_announcement_whose_board_is_not_stored_is_missed() {
    let mut world = World::formed(9, &proceeding(StandingBeacon::Cas), 3, 1);
    world.seats[2].is_away = true;
    world.wants(0, &[0]);
    world.pass(3 * 3600);
    signed(&world, 1, Mode::Fallback, 2);
    let NumberEnd::Signed { transaction, board_hash, .. } = &world.service.ends[&1] else { unreachable!() };
    let notice = NumberEndedNotice {
        cohort_id: world.service.config().cohort_id.clone(),
        number: 1,
        end: EndKind::Announced,
        reason: None,
        transaction: Some(TransactionHex(Arc::clone(transaction))),
        board_hash: Some(*board_hash),
    };
    let seat = &world.seats[0];
    let after = |is_last: fn(&SeatEvent) -> bool| {
        let last = seat.events.iter().position(is_last).unwrap();
        let mut machine = replay(Seat::new(Arc::clone(&seat.config)), &seat.events[..=last]);
        let input = SeatInput::Message(StandingMessage::from(notice.clone()));
        step(&mut machine, world.now, &input, &mut world.rng.clone()).unwrap().effects
    };
    let (number, transaction, board_hash) = (1, Arc::clone(transaction), *board_hash);
    let missed = SeatEffect::Missed { number, transaction: Arc::clone(&transaction), board_hash };
    assert_eq!(after(|event| matches!(event, SeatEvent::Verified { .. })), [missed]);
    let announced = SeatEffect::Announced { number, transaction };
    assert_eq!(after(|event| matches!(event, SeatEvent::SigningApproved { .. })), [announced]);
}
