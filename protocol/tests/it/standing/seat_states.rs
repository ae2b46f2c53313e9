//! A seat by itself: what it answers, and what it asks its host for.

use std::sync::Arc;

use bitcoin::{Transaction, Txid, hashes::Hash};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        Board, Entry, Mode, Opportunity, OpportunityKind, RowAction, StandingBeacon, TransactionHex,
        message::{EndKind, NumberEndedNotice, RowAnswer, RowsAnswered, StandingReady},
        seat::{SeatEffect, SeatEvent, SeatInput},
    },
    error::RejectCode,
    hash::DidIndex,
    machine::Machine,
};

use super::{
    cohort::update,
    hostile::{all_respond, board, confirmation, give, opened, opportunity, request, world},
    world::{World, signal_of},
};

/// An opportunity as `change` leaves it, signed by the service.
fn altered(world: &mut World, number: u64, change: impl FnOnce(&mut Opportunity)) -> Opportunity {
    let mut opportunity = opportunity(world, number);
    change(&mut opportunity);
    let context = world.service.cohort.roster().unwrap().context().clone();
    opportunity.sign(&context, &world.service.key, &mut world.rng)
}

fn answer(world: &mut World, opportunity: &Opportunity) -> Result<usize, RejectCode> {
    let input = SeatInput::Message(opened(world, opportunity));
    let decided = world.seats[0].machine.decide(world.now, &input, &mut world.rng);
    decided.map(|events| events.len()).map_err(|reject| reject.code)
}

#[test]
fn an_opportunity_has_a_number_its_coins_and_its_rows() {
    let mut world = world(StandingBeacon::Smt);
    let malformed = Err(RejectCode::Malformed);
    let without_number = altered(&mut world, 0, |_| {});
    assert_eq!(answer(&mut world, &without_number), malformed);
    let one_coin = altered(&mut world, 1, |one| one.kind = OpportunityKind::Refresh);
    assert_eq!(answer(&mut world, &one_coin), malformed);
    let few_rows = altered(&mut world, 1, |one| one.row_count = one.rows.len() as u64 - 1);
    assert_eq!(answer(&mut world, &few_rows), malformed);
    let first = altered(&mut world, 1, |_| {});
    let message = opened(&world, &first);
    assert_eq!(answer(&mut world, &first), Ok(1));
    give(&mut world, 0, &message).unwrap();
    assert_eq!(answer(&mut world, &first), Ok(0), "repeated");
    let other = altered(&mut world, 1, |one| one.respond_by += 1);
    assert_eq!(answer(&mut world, &other), Err(RejectCode::Equivocation));
}

#[test]
fn a_service_that_has_forgotten_gets_its_evidence() {
    let mut world = world(StandingBeacon::Smt);
    assert_eq!(world.seats[0].machine.highest(), 0);
    all_respond(&mut world);
    assert_eq!(world.seats[0].machine.highest(), 1);
    let known = opportunity(&mut world, 2);
    let seat = &world.seats[0].machine;
    assert_eq!(seat.returns(&known), []);
    let without_rows = Opportunity { row_count: 0, ..known };
    assert!(!seat.returns(&without_rows).is_empty(), "its rows are lost");
}

#[test]
fn leaves_have_the_nonces_of_the_seed_and_the_updates() {
    let mut world = world(StandingBeacon::Smt);
    all_respond(&mut world);
    let node = &world.seats[0];
    let [first, second] = [0, 1].map(|at| node.dids[at].index);
    let nonces =
        [(1, first), (1, second), (2, first)].map(|(number, index)| node.machine.leaf_nonce(number, &index));
    assert!(nonces[0] != nonces[1] && nonces[0] != nonces[2] && nonces[1] != nonces[2]);
    let hash = node.machine.committed()[0].2;
    let mut expected = [Entry::leaf(first, &nonces[0], Some(&hash)), Entry::leaf(second, &nonces[1], None)];
    expected.sort();
    assert_eq!(node.responses[&1].entries, expected);
}

#[test]
fn a_formed_cohort_stays_as_it_is() {
    let mut world = world(StandingBeacon::Cas);
    let ready = |address: &str| StandingReady {
        cohort_id: world.service.config().cohort_id.clone(),
        beacon_address: address.to_owned(),
        cohort_keys: world.service.cohort.output().unwrap().keys().to_vec(),
        peers: world.service.cohort.seats().map(|(_, did)| did.clone()).collect(),
    };
    let (same, other) = (ready(world.service.cohort.output().unwrap().address()), ready("bcrt1pother"));
    assert_eq!(give(&mut world, 0, &same.clone().into()), Ok(vec![]));
    // Whom the service names may change; nothing follows from it at once.
    let few = StandingReady { peers: same.peers[1..].to_vec(), ..same.clone() };
    assert_eq!(give(&mut world, 0, &few.clone().into()), Ok(vec![]));
    assert_eq!(world.seats[0].machine.peers(), few.peers);
    let many = StandingReady { peers: vec![same.peers[0].clone(); 1_000], ..same };
    give(&mut world, 0, &many.into()).unwrap();
    assert_eq!(world.seats[0].machine.peers().len(), 32, "any number could be named");
    assert!(give(&mut world, 0, &other.into()).is_err());
    let [one, another] = [0, 1].map(|at| world.seats[at].machine.clone());
    assert_eq!((&one, one.deadline()), (&one.clone(), None));
    assert_ne!(one, another, "they have registered different indexes");
}

#[test]
fn a_host_is_notified_of_refused_rows() {
    let world = world(StandingBeacon::Cas);
    let node = &world.seats[0];
    let acknowledged =
        |refused| SeatEvent::RowsAcknowledged { at: world.now, from_number: 1, registered: Vec::new(), refused };
    assert_eq!(node.machine.effects(&acknowledged(Vec::new())), []);
    let refused = acknowledged(vec![(node.dids[0].index, 2, "taken".to_owned())]);
    let expected = SeatEffect::NotRegistered(vec![(node.dids[0].index, "taken".to_owned())]);
    assert_eq!(node.machine.effects(&refused), [expected]);
}

#[test]
fn an_announced_transaction_is_verified_or_missed() {
    let mut world = world(StandingBeacon::Smt);
    let opportunity = all_respond(&mut world);
    let board = board(&mut world, &opportunity, &[0, 1, 2]);
    let request = request(&world, &opportunity, &board);
    let transaction = Arc::new(request.pending_tx.clone());
    let over = SeatEvent::NumberOver {
        at: world.now,
        number: 1,
        transaction: Some(Arc::clone(&transaction)),
        board_hash: Some(*board.hash()),
        is_idle: false,
    };
    let missed = world.seats[0].machine.effects(&over);
    assert!(matches!(&missed[..], [SeatEffect::Missed { number: 1, .. }]), "{missed:?}");
    give(&mut world, 0, &request.into()).unwrap();
    let announced = world.seats[0].machine.effects(&over);
    assert!(matches!(&announced[..], [SeatEffect::Announced { number: 1, .. }]), "{announced:?}");
    assert_ne!(missed, announced);
    // What the host reports of coins and versions asks it for nothing.
    let (index, at) = (world.seats[0].dids[0].index, world.now);
    let resolved = SeatEvent::VersionResolved { at, index, version: 2 };
    assert_eq!(world.seats[0].machine.effects(&resolved), []);
}

#[test]
fn requests_to_sign_differ_by_what_is_signed() {
    let mut world = world(StandingBeacon::Smt);
    let opportunity = all_respond(&mut world);
    let boards = [[0, 1].as_slice(), &[0, 1, 2]].map(|seats| Arc::new(board(&mut world, &opportunity, seats)));
    let transaction = request(&world, &opportunity, &boards[0]).pending_tx;
    let ask = |number, at: usize, mode| SeatEffect::AskSigning {
        number,
        board: Arc::clone(&boards[at]),
        transaction: transaction.clone(),
        mode,
    };
    let one = ask(1, 0, Mode::Key);
    assert_eq!(one, ask(1, 0, Mode::Key));
    let fetch = |number| SeatEffect::FetchBoard { number, hash: update(1) };
    for other in [ask(2, 0, Mode::Key), ask(1, 1, Mode::Key), ask(1, 0, Mode::Fallback), fetch(1)] {
        assert_ne!(one, other);
    }
    assert_eq!(fetch(1), fetch(1));
    assert_ne!(fetch(1), fetch(2));
}

#[test]
fn a_board_that_is_fetched_again_changes_nothing() {
    let mut world = world(StandingBeacon::Smt);
    let opportunity = all_respond(&mut world);
    let board = board(&mut world, &opportunity, &[0, 1, 2]);
    let request = request(&world, &opportunity, &board);
    let (mut seat, mut rng) = (world.seats[0].machine.clone(), world.rng.clone());
    let mut step = |input: SeatInput| {
        let events = seat.decide(world.now, &input, &mut rng)?;
        events.iter().for_each(|event| seat.apply(event));
        Ok::<_, btcr2_aggregation_protocol::error::Reject>(events.len())
    };
    let bytes = Arc::new(board.bytes().to_vec());
    assert_eq!(step(SeatInput::Message(request.into())).unwrap(), 1);
    let fetched = || SeatInput::BoardFetched { number: 1, bytes: Arc::clone(&bytes) };
    assert!(step(fetched()).unwrap() > 0);
    assert_eq!(step(fetched()).unwrap(), 0, "fetched again, e.g. after a restart");
}

/// Feeds the machine of the first seat; returns its events.
fn step(world: &mut World, input: &SeatInput) -> Result<Vec<SeatEvent>, RejectCode> {
    let decided = world.seats[0].machine.decide(world.now, input, &mut world.rng);
    let events = decided.map_err(|reject| reject.code)?;
    events.iter().for_each(|event| world.seats[0].machine.apply(event));
    Ok(events)
}

#[test]
fn a_fallback_needs_the_responses_of_k_seats() {
    let mut world = world(StandingBeacon::Smt);
    let opportunity = all_respond(&mut world);
    let board = board(&mut world, &opportunity, &[0]);
    let request = request(&world, &opportunity, &board);
    let sent = give(&mut world, 0, &request.into()).unwrap();
    assert!(confirmation(&sent).refusal.is_some());
    assert!(world.seats[0].signed.is_empty());
}

#[test]
fn a_row_that_was_acknowledged_may_not_be_left_out() {
    // Before and after the seat knows the row of the registration.
    for registered in [false, true] {
        let mut world = world(StandingBeacon::Smt);
        let [first, second] = [1, 2].map(|number| altered(&mut world, number, |_| {}));
        let first = SeatInput::Message(opened(&world, &first));
        if registered {
            step(&mut world, &first).unwrap();
        }
        let (node, index) = (&world.seats[0], world.seats[0].dids[0].index);
        let released = node.row(index, RowAction::Unregister, 2, &mut world.rng);
        step(&mut world, &SeatInput::RowsAsked(vec![released])).unwrap();
        let answered = RowsAnswered {
            cohort_id: world.service.config().cohort_id.clone(),
            from_number: 2,
            rows: vec![RowAnswer { did_index: index, serial: 2, problem: None }],
        };
        step(&mut world, &SeatInput::Message(answered.into())).unwrap();
        if !registered {
            assert_eq!(step(&mut world, &first).unwrap().len(), 1, "it counts from number 2 on");
        }
        assert_eq!(answer(&mut world, &second), Err(RejectCode::DataMismatch));
    }
}

fn ended(world: &World, end: EndKind, transaction: Option<&Arc<Transaction>>, board: Option<&Board>) -> SeatInput {
    let notice = NumberEndedNotice {
        cohort_id: world.service.config().cohort_id.clone(),
        number: 1,
        end,
        reason: None,
        transaction: transaction.map(|transaction| TransactionHex(Arc::clone(transaction))),
        board_hash: board.map(|board| *board.hash()),
    };
    SeatInput::Message(notice.into())
}

fn fetches_a_board(world: &World) -> bool {
    world.seats[0].machine.resume().iter().any(|effect| matches!(effect, SeatEffect::FetchBoard { .. }))
}

#[test]
fn a_number_that_failed_is_over_once() {
    let mut world = world(StandingBeacon::Smt);
    all_respond(&mut world);
    let failed = ended(&world, EndKind::Failed, None, None);
    assert_eq!(step(&mut world, &failed).unwrap().len(), 1);
    assert_eq!(step(&mut world, &failed).unwrap().len(), 0);
}

#[test]
fn a_confirmation_is_sent_again_after_the_end() {
    let mut world = world(StandingBeacon::Smt);
    let opportunity = all_respond(&mut world);
    let board = board(&mut world, &opportunity, &[0, 1, 2]);
    let request = request(&world, &opportunity, &board);
    let transaction = Arc::new(request.pending_tx.clone());
    let announced = ended(&world, EndKind::Announced, Some(&transaction), Some(&board));
    // A seat that was not asked waits for no board.
    let before = world.seats[0].machine.clone();
    step(&mut world, &announced).unwrap();
    assert!(!fetches_a_board(&world));
    world.seats[0].machine = before;
    let sent = give(&mut world, 0, &request.clone().into()).unwrap();
    for _ in 0..2 {
        step(&mut world, &announced).unwrap();
        let again = give(&mut world, 0, &request.clone().into()).unwrap();
        assert_eq!(confirmation(&again), confirmation(&sent));
    }
}

/// Until it is final, or another transaction has spent the coin, an announced update needs no number, and neither does what follows on it.
#[test]
fn an_announced_update_needs_no_other_number() {
    for is_mined in [true, false] {
        let mut world = world(StandingBeacon::Smt);
        let opportunity = all_respond(&mut world);
        let board = board(&mut world, &opportunity, &[0, 1, 2]);
        let request = request(&world, &opportunity, &board);
        let transaction = Arc::new(request.pending_tx.clone());
        give(&mut world, 0, &request.into()).unwrap();
        let known = |world: &World| world.seats[0].machine.known_versions();
        let (index, version, _) = world.seats[0].machine.committed()[0];
        assert!(known(&world).needs_number(&index, version), "it is signed by one seat only");
        let announced = ended(&world, EndKind::Announced, Some(&transaction), Some(&board));
        step(&mut world, &announced).unwrap();
        for next in [version, version + 1] {
            assert!(!known(&world).needs_number(&index, next), "{next}");
        }
        assert!(known(&world).needs_number(&DidIndex::from_bytes([9; 32]), 2), "of another DID");
        let by = if is_mined { transaction.compute_txid() } else { Txid::from_byte_array([9; 32]) };
        let signal = if is_mined { signal_of(&transaction) } else { None };
        step(&mut world, &SeatInput::Spent { coin: opportunity.coins[0], by, signal }).unwrap();
        assert_eq!(known(&world).needs_number(&index, version), !is_mined);
        assert!(known(&world).needs_number(&index, version + 1));
    }
}

#[test]
fn an_idle_board_of_k_seats_confirms_the_roster() {
    for (seats, confirmed) in [([0].as_slice(), false), (&[0, 1, 2], true)] {
        let mut world = world(StandingBeacon::Smt);
        let opportunity = opportunity(&mut world, 1);
        for at in 0..3 {
            let message = opened(&world, &opportunity);
            give(&mut world, at, &message).unwrap();
        }
        let board = board(&mut world, &opportunity, seats);
        let idle = ended(&world, EndKind::Idle, None, Some(&board));
        step(&mut world, &idle).unwrap();
        assert!(fetches_a_board(&world));
        let fetched = SeatInput::BoardFetched { number: 1, bytes: Arc::new(board.bytes().to_vec()) };
        let events = step(&mut world, &fetched).unwrap();
        assert_eq!(matches!(events[..], [SeatEvent::RosterConfirmed { .. }]), confirmed, "{events:?}");
        assert_eq!(fetches_a_board(&world), !confirmed);
    }
}
