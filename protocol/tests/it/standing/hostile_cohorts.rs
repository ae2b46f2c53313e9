//! Hostile seats, and hostile services over more than one number.

use std::sync::Arc;

use btcr2_aggregation_protocol::{
    cohort::standing::{
        Mode, Opportunity, OpportunityKind, RowAction, StandingBeacon,
        message::{Confirmation, RowAnswer, RowsAnswered, StandingMessage},
        number::{NumberEnd, NumberInput},
        seat::{SeatInput, SeatUpdate},
    },
    error::RejectCode,
    key::Signature,
};

use super::{
    hostile::{all_respond, board, confirmation, give, opened, opportunity, refused, request, terms, world},
    seat_node::SeatNode,
    world::{World, signal_of},
};

/// k - 1 hostile seats together with the service cannot spend.
#[test]
fn fewer_than_k_seats_cannot_make_a_transaction() {
    let mut world = World::formed(41, &terms(StandingBeacon::Cas).proceeding(2), 3, 1);
    world.seats[1].refuses = Some("honest".to_owned());
    world.seats[2].refuses = Some("honest".to_owned());
    world.wants(0, &[0]);
    world.pass(24 * 3600);
    assert!(world.service.ends.len() > 3);
    assert!(world.service.ends.values().all(|end| matches!(end, NumberEnd::Failed { .. })));
    assert!(world.service.mempool.is_empty());
    world.assert_invariants();
}

/// A seat that refuses each time, floods, or sends what is not its own stops no other seat.
#[test]
fn a_hostile_seat_stops_no_cohort_that_proceeds() {
    let mut world = world(StandingBeacon::Smt);
    world.seats[2].refuses = Some("always".to_owned());
    let index = world.seats[0].dids[0].index;
    for serial in 2..40 {
        // Another seat's DID.
        let row = world.seats[2].row(index, RowAction::Register, serial, &mut world.rng);
        world.feed_seat(2, &SeatInput::RowsAsked(vec![row]));
    }
    world.wants(0, &[0]);
    for _ in 0..500 {
        let pending = world.seats[2].machine.pending();
        world.send_from(2, vec![pending]);
    }
    world.pass(3 * 3600);
    let signed = world.service.ends.values().filter(|end| matches!(end, NumberEnd::Signed { .. })).count();
    assert!(signed >= 1, "{:?}", world.service.ends);
    // Not more often than the cadence, however much it asks.
    assert!(world.service.ends.len() <= 9, "{:?}", world.service.ends.keys());
    assert_eq!(world.service.cohort.roster().unwrap().seat_of(&index), Some(&world.seats[0].key.public_key()));
    world.assert_invariants();
}

#[test]
fn a_forged_confirmation_is_not_counted() {
    let mut world = world(StandingBeacon::Cas);
    world.seats[1].refuses = None;
    world.wants(0, &[0]);
    let mut most = 100_000;
    while world.service.numbers.get(&1).is_none_or(|number| number.machine.board().is_none()) {
        world.run_until(world.now + std::time::Duration::from_millis(1));
        most -= 1;
        assert!(most > 0);
    }
    let board_hash = *world.service.numbers[&1].machine.board().unwrap().hash();
    let cohort_id = world.service.config().cohort_id.clone();
    let forged = |partials, fallback| Confirmation {
        cohort_id: cohort_id.clone(),
        number: 1,
        board_hash,
        partial_signatures: partials,
        fallback_signatures: fallback,
        refusal: None,
    };
    let bad = forged(Some(vec![btcr2_aggregation_protocol::message::Bytes([1; 32])]), None);
    let both = forged(Some(Vec::new()), Some(Vec::new()));
    let wrong_kind = forged(None, Some(vec![Signature::from_bytes(&[1; 64])]));
    for (message, code) in [
        (bad, RejectCode::BadPartialSignature),
        (both, RejectCode::Malformed),
        (wrong_kind, RejectCode::Malformed),
        (Confirmation { number: 2, ..forged(None, None) }, RejectCode::WrongCohort),
    ] {
        let input = NumberInput::Message { from: world.seats[2].did.clone(), message: Box::new(message.into()) };
        let refused = world.service.feed_number(world.now, 1, &input, &mut world.rng);
        assert_eq!(refused.err().map(|reject| reject.code), Some(code));
    }
    world.pass(600);
    assert!(matches!(world.service.ends[&1], NumberEnd::Signed { .. }), "{:?}", world.service.ends);
}

/// A service that withholds the signed transaction: the seats go on with the identical update only.
#[test]
fn a_withheld_transaction_stays_possible_until_its_coin_is_spent() {
    let mut world = world(StandingBeacon::Cas);
    world.wants(0, &[0]);
    world.pass(600);
    let withheld = world.service.mempool.pop().unwrap();
    let committed = world.seats[0].machine.committed();
    assert_eq!(committed.len(), 1);
    for seat in &world.seats {
        assert!(signal_of(&withheld).is_some() && SeatNode::board(seat, 1).number == 1);
    }
    // Another transaction spends the coin, finally.
    let input = withheld.input[0].previous_output;
    let coin = btcr2_aggregation_protocol::cohort::standing::CoinRef {
        txid: input.txid,
        vout: input.vout,
        value: 1_000_000,
    };
    let by = bitcoin::hashes::Hash::hash(b"another");
    world.feed_seat(0, &SeatInput::Spent { coin, by, signal: None });
    assert!(world.seats[0].machine.committed().is_empty());
}

#[test]
fn answers_to_rows_that_were_not_asked_for_change_nothing() {
    let mut world = world(StandingBeacon::Cas);
    let answered = RowsAnswered {
        cohort_id: world.service.config().cohort_id.clone(),
        from_number: 1,
        rows: vec![RowAnswer { did_index: super::cohort::index(900), serial: 1, problem: None }],
    };
    let before = world.seats[0].events.len();
    give(&mut world, 0, &answered.into()).unwrap();
    assert_eq!(world.seats[0].events.len(), before);
}

/// Bytes of another hash, e.g. from another seat or a broken connection, decide nothing.
#[test]
fn a_seat_waits_for_the_right_bytes_of_a_board() {
    let mut world = world(StandingBeacon::Cas);
    let opportunity = all_respond(&mut world);
    let board = board(&mut world, &opportunity, &[0, 1, 2]);
    let request = StandingMessage::from(request(&world, &opportunity, &board));
    world.service.boards.insert(*board.hash(), Arc::new(b"something else".to_vec()));
    assert!(give(&mut world, 0, &request).unwrap().is_empty());
    world.service.boards.insert(*board.hash(), Arc::new(board.bytes().to_vec()));
    let sent = world.seats[0].reconnected(world.now, &world.service, &mut world.rng);
    assert!(confirmation(&sent).fallback_signatures.is_some());
}

/// A seat that always has lost its nonces is left out, as one that refuses.
#[test]
fn lost_nonces_again_and_again_stop_no_cohort_that_proceeds() {
    let mut world = World::formed(42, &terms(StandingBeacon::Cas).proceeding(2), 3, 1);
    world.seats[2].refuses = Some(Confirmation::NONCE_LOST.to_owned());
    world.wants(0, &[0]);
    world.pass(2 * 3600);
    let modes: Vec<_> = world.service.ends.values().collect();
    assert!(modes.iter().any(|end| matches!(end, NumberEnd::Signed { mode: Mode::Fallback, .. })), "{modes:?}");
    world.assert_invariants();
}

/// The announcement itself does not free the version: the next update has to be the next version.
#[test]
fn an_announced_version_is_not_announced_differently() {
    let mut world = world(StandingBeacon::Cas);
    world.wants(0, &[0]);
    world.pass(600);
    world.mine();
    assert_eq!(world.seats[0].dids[0].version, 2);
    assert!(world.seats[0].machine.committed().is_empty());
    // The host has forgotten version 2, and makes another one.
    let controlled = &mut world.seats[0].dids[0];
    (controlled.version, controlled.wants) = (1, true);
    let did = controlled.did.clone();
    let mut next = opportunity(&mut world, 2);
    next.transactions.clear();
    let next = next.sign(world.service.cohort.roster().unwrap().context(), &world.service.key, &mut world.rng);
    world.now = world.now + std::time::Duration::from_secs(7_200);
    let next = Opportunity { respond_by: world.now.as_secs() + 60, ..next };
    let next = next.sign(world.service.cohort.roster().unwrap().context(), &world.service.key, &mut world.rng);
    let message = SeatInput::Message(opened(&world, &next));
    let seat = &mut world.seats[0].machine;
    btcr2_aggregation_protocol::machine::step(seat, world.now, &message, &mut world.rng).unwrap();
    for (version, is_fine) in [(2, false), (4, false), (3, true)] {
        let full = serde_json::json!({ "another": version });
        let hash = btcr2_aggregation_protocol::jcs::document_hash(&full).unwrap();
        let update = SeatUpdate { did: did.clone(), version, hash, full: Some(full) };
        let updates = SeatInput::UpdatesDecided { number: 2, updates: vec![update] };
        let decided = btcr2_aggregation_protocol::machine::step(seat, world.now, &updates, &mut world.rng);
        assert_eq!(decided.is_ok(), is_fine, "version {version}: {decided:?}");
    }
}

/// A service cannot spend the coin in announcements of nothing, faster than its terms, or on other coins while a number is open.
#[test]
fn a_seat_keeps_the_cadence_and_the_coin_itself() {
    let mut world = world(StandingBeacon::Cas);
    world.wants(0, &[0]);
    world.pass(600);
    assert!(matches!(world.service.ends[&1], NumberEnd::Signed { .. }));
    let context = world.service.cohort.roster().unwrap().context().clone();
    let mut next = opportunity(&mut world, 2);
    next.transactions =
        vec![btcr2_aggregation_protocol::cohort::standing::TransactionHex(Arc::clone(&world.service.mempool[0]))];
    let next = next.sign(&context, &world.service.key, &mut world.rng);
    let message = opened(&world, &next);
    assert_eq!(give(&mut world, 0, &message), Err(RejectCode::UnacceptableTerms), "too early");
    // Later, but on a coin that has nothing to do with number 1, which may still be announced.
    let later = world.now + std::time::Duration::from_secs(7_200);
    world.now = later;
    let other = btcr2_aggregation_protocol::cohort::standing::CoinRef {
        txid: bitcoin::hashes::Hash::hash(b"another deposit"),
        vout: 0,
        value: 1_000_000,
    };
    for (coins, transactions, is_fine) in
        [(vec![other], Vec::new(), false), (next.coins.clone(), next.transactions.clone(), true)]
    {
        let respond_by = later.as_secs() + 600;
        let one = Opportunity { coins, transactions, respond_by, ..next.clone() };
        let one = one.sign(&context, &world.service.key, &mut world.rng);
        let message = opened(&world, &one);
        assert_eq!(give(&mut world, 1, &message).is_ok(), is_fine);
    }
}

/// A board without any update is not signed for.
#[test]
fn an_announcement_of_nothing_is_refused() {
    let mut world = world(StandingBeacon::Smt);
    let opportunity = opportunity(&mut world, 1);
    for at in 0..3 {
        let message = opened(&world, &opportunity);
        give(&mut world, at, &message).unwrap();
    }
    let board = board(&mut world, &opportunity, &[0, 1, 2]);
    let request = request(&world, &opportunity, &board);
    refused(&mut world, 0, &request, "no seat has an update");
}

/// An acknowledgement alone registers nothing: only a board that k seats have signed for does.
#[test]
fn an_index_is_registered_when_k_seats_have_signed_for_it() {
    let mut world = world(StandingBeacon::Smt);
    assert!(world.seats[0].registered.is_empty(), "acknowledged, and on no board yet");
    world.wants(1, &[0]);
    world.pass(600);
    assert_eq!(world.seats[0].registered.len(), 2);
    // Also by a number without updates.
    let mut idle = terms(StandingBeacon::Smt).proceeding(2);
    idle.max_seconds_between_announcements = Some(4 * 3600);
    let mut world = World::formed(43, &idle, 3, 1);
    world.pass(5 * 3600);
    assert!(world.service.ends.values().all(|end| matches!(end, NumberEnd::Idle { .. })));
    assert_eq!(world.seats[2].registered.len(), 1);
    world.assert_invariants();
}

/// Rows that a restored service has lost come back from its seats, also if they are more than one message takes.
#[test]
fn a_service_that_has_lost_its_rows_gets_them_from_its_seats() {
    for dids in [2, 50] {
        rows_come_back(dids);
    }
}

fn rows_come_back(dids: usize) {
    let mut world = World::enrolling(44, &terms(StandingBeacon::Cas).proceeding(2), 3, dids);
    world.run_until_quiet();
    let finalized = world.service.feed(
        world.now,
        &btcr2_aggregation_protocol::cohort::standing::cohort::CohortInput::Finalize,
        &mut world.rng,
    );
    let outgoing = finalized.unwrap();
    world.send_all(outgoing);
    world.run_until_quiet();
    let backup = world.service.events.clone();
    (0..3).for_each(|at| world.register(at));
    world.run_until_quiet();
    world.deposit(1_000_000);
    world.wants(0, &[0]);
    world.pass(600);
    world.mine();
    let rows = world.service.cohort.rows_from(0).len();
    assert_eq!(rows, 3 * dids);
    world.service.events = backup;
    world.service.numbers.clear();
    world.service.ends.clear();
    world.service.mempool.clear();
    world.crash_service();
    world.restart_service();
    world.run_until_quiet();
    // The change of what it has forgotten is found on the chain.
    let change = world.confirmed[0].output[0].value.to_sat();
    let coin = btcr2_aggregation_protocol::cohort::standing::CoinRef {
        txid: world.confirmed[0].compute_txid(),
        vout: 0,
        value: change,
    };
    let found = btcr2_aggregation_protocol::cohort::standing::cohort::CohortInput::CoinFound(coin);
    let outgoing = world.service.feed(world.now, &found, &mut world.rng).unwrap();
    world.send_all(outgoing);
    // It has no DIDs: it opens nothing by itself.
    world.pass(3600);
    let outgoing = world.service.open_now(world.now, OpportunityKind::Announcement, &mut world.rng);
    world.send_all(outgoing);
    world.pass(24 * 3600);
    (0..3).for_each(|at| world.reconnect(at));
    world.pass(3600);
    assert_eq!(world.service.cohort.rows_from(0).len(), rows, "{:?}", world.rejects.iter().next_back());
    world.wants(1, &[0]);
    world.pass(24 * 3600);
    world.mine();
    assert_eq!(world.seats[1].dids[0].version, 2, "{:?}", world.service.ends);
}

/// One secret, two keys: they do not aggregate, and the second gets no seat.
#[test]
fn a_key_and_its_negative_are_one_seat() {
    let world = World::enrolling(45, &terms(StandingBeacon::Cas), 1, 1);
    let mut service = world.service;
    let mut rng = world.rng;
    let seat = &world.seats[0];
    let first = seat.opt_in(&mut rng);
    let input = |from: &btcr2_aggregation_protocol::did::Did, message: &StandingMessage| {
        btcr2_aggregation_protocol::cohort::standing::cohort::CohortInput::Message {
            from: from.clone(),
            message: message.clone(),
        }
    };
    service.feed(world.now, &input(&seat.did, &first.clone().into()), &mut rng).unwrap();
    let mut negative = first.participant_pk.to_bytes();
    negative[0] ^= 1;
    let negative = btcr2_aggregation_protocol::key::PublicKey::from_bytes(&negative).unwrap();
    let other = super::cohort::did(777);
    let digest = btcr2_aggregation_protocol::cohort::standing::message::possession_digest(
        &service.did,
        &first.cohort_id,
        &other,
    );
    let possession = seat.key.sign(&digest, &mut rng);
    let second = btcr2_aggregation_protocol::cohort::standing::message::SeatOptIn {
        participant_pk: negative,
        possession,
        ..first
    };
    let refused = service.feed(world.now, &input(&other, &second.into()), &mut rng);
    assert_eq!(refused.err().map(|reject| reject.code), Some(RejectCode::DuplicateKey));
}
