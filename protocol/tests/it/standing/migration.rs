//! Migration to another cohort, exit, lost keys: what happens, and what a seat does not sign.

use std::sync::Arc;

use btcr2_aggregation_protocol::{
    cohort::standing::{
        BoardContent, CoinRef, Mode, OpportunityKind, RowAction, StandingBeacon, StandingTerms, Successor,
        cohort::{CohortEvent, CohortInput},
        message::SuccessorFormed,
        number::NumberEnd,
        seat::{SeatEvent, SeatInput},
    },
    error::RejectCode,
    key::SecretKey,
    machine::Machine,
};

use super::{
    cohort::NETWORK,
    migration_world::Migration,
    service_node::through_journal,
    world::{World, signal_of},
};

fn terms(beacon: StandingBeacon, seats: u16) -> StandingTerms {
    let mut terms = StandingTerms::new(beacon, NETWORK, seats, seats);
    terms.pending_update_trigger = Some(1);
    terms
}

/// Five seats with two DIDs each, of which four can proceed; a successor of six: five of the old ones' members, less one that stays
/// behind, and two new ones.
fn migration(seed: u64, beacon: StandingBeacon) -> Migration {
    let old = World::formed(seed, &terms(beacon, 5).proceeding(4), 5, 2);
    Migration::new(seed, old, &terms(beacon, 6).proceeding(4), &[0, 1, 2, 3, 10, 11])
}

#[track_caller]
fn mode_of(migration: &Migration, number: u64) -> Mode {
    match &migration.old.service.ends[&number] {
        NumberEnd::Signed { mode, .. } => *mode,
        other => panic!("number {number}: {other:?}"),
    }
}

#[test]
fn a_roster_number_needs_no_coin_and_confirms_registrations() {
    let migration = migration(1, StandingBeacon::Smt);
    let new = &migration.new;
    assert!(new.service.cohort.coins().is_empty());
    assert!(matches!(new.service.ends[&1], NumberEnd::Idle { .. }), "{:?}", new.service.ends);
    for seat in &new.seats {
        assert_eq!(seat.registered.len(), 2, "each sees that k seats have signed its indexes");
        assert!(seat.signed.is_empty() && seat.opened.is_empty());
    }
    migration.assert_invariants();
}

#[test]
fn a_cohort_of_five_moves_to_one_of_six_with_one_absent() {
    for beacon in [StandingBeacon::Cas, StandingBeacon::Smt] {
        let mut migration = migration(2, beacon);
        migration.old.wants(0, &[0]);
        migration.pass(2 * 3600);
        migration.mine();
        assert_eq!(migration.old.seats[0].dids[0].version, 2);
        migration.name();
        migration.prepare_all();
        // The seat that stays behind is away.
        migration.old.seats[4].is_away = true;
        migration.pass(2 * 3600);
        migration.open(OpportunityKind::Move).unwrap();
        migration.pass(3600);
        let moved = migration.moved().unwrap();
        assert_eq!(mode_of(&migration, moved), Mode::Fallback);
        let transaction = migration.old.service.mempool.last().unwrap().clone();
        assert_eq!(
            transaction.output[0].script_pubkey,
            *migration.new.service.cohort.output().unwrap().script_pubkey(),
            "the change goes to the successor"
        );
        migration.mine();
        for seat in 0..4 {
            let expected = if seat == 0 { [3, 2] } else { [2, 2] };
            let versions = [0, 1].map(|did| migration.old.seats[seat].dids[did].version);
            assert_eq!(versions, expected, "seat {seat}: each DID lists the new address");
        }
        assert_eq!(migration.old.seats[4].dids[0].version, 1, "it moves by its Singleton");
        // The old cohort announces no more; the new one goes on with the coin of the move.
        assert!(migration.old.service.cohort.is_move_final());
        migration.old.wants(0, &[0]);
        migration.old.pass(24 * 3600);
        assert_eq!(migration.old.service.cohort.last_number(), moved);
        assert!(migration.open(OpportunityKind::Announcement).is_err());
        assert!(migration.open(OpportunityKind::Move).is_err());
        migration.new.wants(0, &[0]);
        migration.new.wants(4, &[1]);
        migration.pass(2 * 3600);
        migration.mine();
        let first = &migration.new.confirmed[0];
        assert_eq!(
            first.input[0].previous_output.txid,
            transaction.compute_txid(),
            "it spends the coin of the move"
        );
        assert_eq!(migration.new.seats[0].dids[0].version, 4);
        assert_eq!(migration.new.seats[4].dids[1].version, 2);
        migration.assert_invariants();
    }
}

#[test]
fn a_cohort_that_waits_for_every_seat_moves_by_key_path() {
    let old = World::formed(3, &terms(StandingBeacon::Cas, 3), 3, 1);
    let mut migration = Migration::new(3, old, &terms(StandingBeacon::Cas, 3), &[0, 1, 7]);
    migration.name();
    // The third has no seat there: its DID stays, by its own decision, and it signs.
    migration.prepare_all();
    migration.open(OpportunityKind::Move).unwrap();
    migration.pass(3600);
    assert_eq!(mode_of(&migration, 1), Mode::Key);
    migration.mine();
    assert_eq!(migration.old.seats[2].dids[0].version, 1);
    migration.assert_invariants();
}

/// Neither an unknown successor nor a DID that would be left at a dead address.
#[test]
fn a_seat_signs_no_move_that_it_has_not_prepared() {
    let mut migration = migration(4, StandingBeacon::Cas);
    migration.name();
    for at in 0..4 {
        migration.prepare(at);
    }
    // The fifth has decided nothing.
    migration.open(OpportunityKind::Move).unwrap();
    migration.pass(1200);
    let refusal = |world: &World, at: usize| {
        world.seats[at].events.iter().find_map(|event| match event {
            SeatEvent::Confirmed { refusal: Some(reason), .. } => Some(reason.clone()),
            _ => None,
        })
    };
    assert!(refusal(&migration.old, 4).unwrap().contains("announces no more"));
    // The number that tries it again is signed without it.
    migration.pass(3600);
    let moved = migration.moved().unwrap();
    assert_eq!(mode_of(&migration, moved), Mode::Fallback);
    assert!(migration.old.seats[4].signed.is_empty());
    migration.assert_invariants();
}

#[test]
fn an_update_that_is_on_its_way_ends_before_the_move() {
    let mut migration = migration(5, StandingBeacon::Smt);
    migration.name();
    migration.old.wants(0, &[0]);
    migration.pass(2 * 3600);
    // It is signed, and not final.
    migration.prepare_all();
    assert!(migration.old.seats[0].dids[0].moves.is_none());
    let address = migration.new.service.cohort.output().unwrap().address().to_owned();
    migration.old.seats[0].dids[0].moves = Some(address);
    migration.open(OpportunityKind::Move).unwrap();
    migration.pass(300);
    let seat = &migration.old.seats[0];
    let number = seat.machine.highest();
    let moving = super::world::updates_of(&seat.events, number);
    assert!(moving.iter().all(|(index, ..)| *index != seat.dids[0].index), "{moving:?}");
    assert!(!seat.signed.iter().any(|(signed, ..)| *signed == number), "its DID would be left");
    migration.assert_invariants();
}

#[test]
fn a_seat_knows_a_successor_by_its_keys_and_the_service() {
    let mut migration = migration(6, StandingBeacon::Cas);
    let named = migration.successor();
    let context = migration.old.service.cohort.roster().unwrap().context().clone();
    let old = &mut migration.old;
    let other = SecretKey::from_bytes(&[9; 32]).unwrap();
    let output = migration.new.service.cohort.output().unwrap().clone();
    let sign = |successor: &Successor, key: &SecretKey, rng: &mut rand_chacha::ChaCha20Rng| {
        Successor::sign(&context, &successor.cohort_id, &successor.terms, &output, key, rng)
    };
    let foreign = sign(&named, &other, &mut old.rng);
    let keys = Successor { cohort_keys: named.cohort_keys[1..].to_vec(), ..named.clone() };
    let mut costly = named.clone();
    costly.terms.max_fee_rate = 100_000;
    let itself =
        Successor::sign(&context, &context.cohort_id, &named.terms, &output, &old.service.key, &mut old.rng);
    for (successor, expected) in [
        (foreign, RejectCode::WrongSender),
        (keys, RejectCode::AddressMismatch),
        (costly, RejectCode::UnacceptableTerms),
        (itself, RejectCode::WrongCohort),
    ] {
        let formed = SuccessorFormed { cohort_id: context.cohort_id.clone(), successor: Box::new(successor) };
        let decided = old.seats[0].machine.decide(old.now, &SeatInput::Message(formed.into()), &mut old.rng);
        assert_eq!(decided.map_err(|reject| reject.code), Err(expected));
    }
    let formed = SuccessorFormed { cohort_id: context.cohort_id.clone(), successor: Box::new(named) };
    let input = SeatInput::Message(formed.into());
    assert_eq!(old.seats[0].machine.decide(old.now, &input, &mut old.rng).map(|events| events.len()), Ok(1));
    // What is not known cannot be prepared.
    let prepared = SeatInput::MovePrepared {
        successor: migration.new.service.config().cohort_id.clone(),
        registered: Vec::new(),
        left: Vec::new(),
    };
    assert!(old.seats[1].machine.decide(old.now, &prepared, &mut old.rng).is_err());
}

#[test]
fn a_service_names_only_what_it_has_signed() {
    let mut migration = migration(7, StandingBeacon::Cas);
    assert!(migration.open(OpportunityKind::Move).is_err(), "no successor is named");
    let named = migration.successor();
    let foreign = Successor { beacon_address: "bcrt1pother".to_owned(), ..named };
    let input = CohortInput::SuccessorFormed(Arc::new(foreign));
    assert!(migration.old.service.cohort.decide(migration.old.now, &input, &mut migration.old.rng).is_err());
    // An advert that names an old cohort is signed for that successor alone.
    let succession = migration.new.service.cohort.succeeds().unwrap().clone();
    let config = migration.new.service.config();
    assert!(succession.is_signed(NETWORK, &config.service, &config.cohort_id));
    assert!(!succession.is_signed(NETWORK, &config.service, &succession.cohort_id));
    let input = CohortInput::AdvertiseSuccessor(succession);
    assert!(migration.old.service.cohort.decide(migration.old.now, &input, &mut migration.old.rng).is_err());
}

/// The move can be replaced by nothing that announces elsewhere, and what arrives late follows it.
#[test]
fn late_deposits_follow_the_move_once_it_is_final() {
    let mut migration = migration(8, StandingBeacon::Cas);
    migration.name();
    migration.prepare_all();
    migration.open(OpportunityKind::Move).unwrap();
    migration.pass(3600);
    assert_eq!(migration.moved(), Some(1));
    migration.old.deposit(50_000);
    migration.pass(2 * 3600);
    assert!(migration.open(OpportunityKind::Refresh).is_err(), "one coin, and the move is not final");
    migration.mine();
    migration.open(OpportunityKind::Refresh).unwrap();
    migration.pass(3600);
    migration.mine();
    let refresh = migration.old.confirmed.last().unwrap();
    assert_eq!(signal_of(refresh), None);
    assert_eq!(refresh.output[0].script_pubkey, *migration.new.service.cohort.output().unwrap().script_pubkey());
    assert_eq!(migration.new.service.cohort.coins().len(), 2);
    assert!(migration.old.service.cohort.coins().is_empty());
    migration.assert_invariants();
}

/// Another transaction spends the coin of the move: it is void, and made again with the same updates.
#[test]
fn a_void_move_is_made_again() {
    let mut migration = migration(9, StandingBeacon::Cas);
    migration.name();
    migration.prepare_all();
    migration.open(OpportunityKind::Move).unwrap();
    migration.pass(3600);
    assert_eq!(migration.moved(), Some(1));
    let first = super::world::updates_of(&migration.old.seats[0].events, 1);
    let spent = migration.old.service.mempool[0].input[0].previous_output;
    let coin = CoinRef { txid: spent.txid, vout: spent.vout, value: 1_000_000 };
    let by = bitcoin::hashes::Hash::hash(b"another transaction");
    let old = &mut migration.old;
    let outgoing = old.service.feed(old.now, &CohortInput::Spent { coin, by }, &mut old.rng).unwrap();
    old.send_all(outgoing);
    for at in 0..5 {
        old.feed_seat(at, &SeatInput::Spent { coin, by, signal: None });
        assert!(!old.seats[at].machine.has_moved());
    }
    old.run_until_quiet();
    old.service.mempool.clear();
    old.deposit(70_000);
    migration.pass(3 * 3600);
    let moved = migration.moved().unwrap();
    assert!(moved > 1, "{:?}", migration.old.service.ends);
    assert_eq!(super::world::updates_of(&migration.old.seats[0].events, moved), first);
    migration.mine();
    assert_eq!(migration.old.seats[0].dids[0].version, 2);
    migration.assert_invariants();
}

/// One key is lost: the key path is dead, the fallback goes on, and the cohort moves by it.
#[test]
fn a_lost_key_ends_neither_announcements_nor_the_move() {
    let mut migration = migration(10, StandingBeacon::Smt);
    migration.old.seats[4].is_away = true;
    for _ in 0..2 {
        migration.old.wants(1, &[0]);
        migration.pass(3 * 3600);
        migration.mine();
    }
    assert_eq!(migration.old.seats[1].dids[0].version, 3);
    assert!(
        migration.old.service.ends.values().all(|end| !matches!(end, NumberEnd::Signed { mode: Mode::Key, .. }))
    );
    migration.name();
    migration.prepare_all();
    migration.open(OpportunityKind::Move).unwrap();
    migration.pass(3600);
    let moved = migration.moved().unwrap();
    assert_eq!(mode_of(&migration, moved), Mode::Fallback);
    migration.mine();
    // The successor is signed by all of its seats again.
    migration.new.wants(1, &[0]);
    migration.pass(2 * 3600);
    let end = migration.new.service.ends.values().next_back().unwrap();
    assert!(matches!(end, NumberEnd::Signed { mode: Mode::Key, .. }), "{end:?}");
    migration.assert_invariants();
}

/// The service is gone. The boards that seats have stored give what resolvers need, for absent and former DIDs too.
#[test]
fn the_boards_of_seats_are_enough_without_the_service() {
    for beacon in [StandingBeacon::Cas, StandingBeacon::Smt] {
        let mut migration = migration(11, beacon);
        migration.old.seats[3].is_away = true;
        migration.old.wants(0, &[0]);
        migration.pass(2 * 3600);
        migration.mine();
        migration.old.crash_service();
        let announced = migration.old.confirmed[0].clone();
        let own = &migration.old.seats[3].dids[0].index;
        let board: BoardContent = migration.old.seats[1].board(1);
        assert_eq!(
            board.signal(beacon),
            signal_of(&announced),
            "another seat's board is the one that was announced"
        );
        assert!(board.without_leaf(beacon, own).is_some());
    }
}

/// Another service: no move can be signed to its cohort, since its successor is signed by another key.
#[test]
fn a_cohort_of_another_service_is_no_successor() {
    let mut migration = migration(12, StandingBeacon::Cas);
    let context = migration.old.service.cohort.roster().unwrap().context().clone();
    let config = Arc::clone(migration.new.service.config());
    let output = migration.new.service.cohort.output().unwrap().clone();
    let other = SecretKey::from_bytes(&[8; 32]).unwrap();
    let old = &mut migration.old;
    let foreign = Successor::sign(&context, &config.cohort_id, &config.terms, &output, &other, &mut old.rng);
    let formed = SuccessorFormed { cohort_id: context.cohort_id.clone(), successor: Box::new(foreign) };
    assert!(old.seats[0].machine.decide(old.now, &SeatInput::Message(formed.into()), &mut old.rng).is_err());
    // Its DIDs move by ordinary announcements of the old cohort, which pay the old address.
    old.wants(0, &[0]);
    old.pass(2 * 3600);
    old.mine();
    assert_eq!(old.seats[0].dids[0].version, 2);
    assert_eq!(old.confirmed[0].output[0].script_pubkey, *old.service.cohort.output().unwrap().script_pubkey());
}

#[test]
fn a_seat_that_has_left_submits_nothing_and_goes_on_signing() {
    for proceeding in [false, true] {
        let mut terms = terms(StandingBeacon::Smt, 3);
        if proceeding {
            terms = terms.proceeding(2);
        }
        let mut world = World::formed(13, &terms, 3, 2);
        // Its last update removes the address. It leaves when that is final, not before.
        world.wants(2, &[0, 1]);
        world.pass(2 * 3600);
        let rows = |world: &mut World| -> Vec<_> {
            let indexes = [0, 1].map(|did| world.seats[2].dids[did].index);
            indexes.map(|index| world.seats[2].row(index, RowAction::Unregister, 2, &mut world.rng)).to_vec()
        };
        let early = SeatInput::RowsAsked(rows(&mut world));
        let refused = world.seats[2].machine.decide(world.now, &early, &mut world.rng);
        assert_eq!(refused.map_err(|reject| reject.code), Err(RejectCode::WrongPhase));
        world.mine();
        let rows = rows(&mut world);
        world.feed_seat(2, &SeatInput::RowsAsked(rows));
        world.run_until_quiet();
        for round in 0..2 {
            world.wants(0, &[round]);
            world.pass(2 * 3600);
        }
        let NumberEnd::Signed { mode: Mode::Key, signers, .. } = &world.service.ends[&3] else {
            panic!("{:?}", world.service.ends)
        };
        assert_eq!(signers.len(), 3, "a key of the output");
        // Its DIDs are former: nothing is under them, and their data are there all the same.
        let seat = &world.seats[2].machine;
        assert_eq!((seat.indexes().count(), seat.former_indexes().len()), (0, 2));
        let content = world.seats[2].board(3);
        for entry in seat.own_entries(3) {
            assert_eq!((entry.nonce, entry.update), (None, None));
            assert!(content.without_leaf(StandingBeacon::Smt, &entry.index).is_some());
        }
        assert_eq!(seat.own_entries(3).len(), 2);
        world.mine();
        world.assert_invariants();
    }
}

#[test]
fn journals_of_before_migration_are_read() {
    let mut migration = migration(14, StandingBeacon::Cas);
    migration.old.wants(0, &[0]);
    migration.pass(2 * 3600);
    // Neither field is in them.
    let text = serde_json::to_string(&migration.old.service.events).unwrap();
    assert!(!text.contains("succeeds") && !text.contains("leaves"));
    let saved = migration.old.service.cohort.saved().unwrap();
    let mut value = serde_json::to_value(&saved).unwrap();
    value["Saved"].as_object_mut().unwrap().remove("migration");
    let read: CohortEvent = serde_json::from_value(value).unwrap();
    assert_eq!(read, through_journal(&[saved])[0]);
    let seat = serde_json::to_string(&migration.old.seats[0].machine.saved().unwrap()).unwrap();
    assert!(!seat.contains("destination") && !seat.contains("moved"));
}
