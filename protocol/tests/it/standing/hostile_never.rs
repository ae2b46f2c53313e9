//! What must never happen (docs/standing.md) and the scenarios behind it, each against hostile peers; and the tests of those that are in
//! other files.
//!
//! | never | tests |
//! |---|---|
//! | a signature on anything but the number that was answered, one transaction, once | `hostile`: `two_boards_of_one_number_are_signed_once`, `another_transaction_than_that_of_the_board_is_refused`, `a_number_is_answered_once_and_never_one_below` |
//! | a nonce used twice, across numbers or inputs | here: `a_nonce_signs_once_across_numbers_and_inputs`; `simulation`, `explore` |
//! | anything under a DID that its seat's signed response does not have | `hostile`: `nothing_comes_under_a_did_that_its_seat_has_not_responded`; here: `an_unregistered_index_gets_nothing_with_the_help_of_a_seat` |
//! | two announcements of one number | here: `a_seat_that_responds_twice_gets_one_announcement` |
//! | two numbers on different coins with different updates of one version | `hostile`: `a_seat_does_not_commit_to_two_updates_of_one_version`; `hostile_cohorts`: `a_seat_keeps_the_cadence_and_the_coin_itself`, `an_announced_version_is_not_announced_differently` |
//! | a hang; an absent seat costs more than its deadline | here: `a_seat_that_reads_nothing_costs_a_deadline_at_each_phase`; `lifecycle`: `an_absent_seat_costs_a_deadline_and_the_larger_fee` |
//! | streams without end | here: `a_service_that_repeats_an_announcement_adds_no_event`, `a_seat_cannot_make_the_roster_grow_without_end`; the actors' `restarts` |
//! | an outsider or one seat that stops a cohort, or makes it announce more often | here: `outsiders_change_nothing_of_a_cohort`; `hostile_cohorts`: `a_hostile_seat_stops_no_cohort_that_proceeds`, `lost_nonces_again_and_again_stop_no_cohort_that_proceeds` |
//!
//! | scenario | tests |
//! |---|---|
//! | a present seat is called absent | `hostile`: `a_service_that_calls_a_present_seat_absent_gets_no_signature_of_it` |
//! | two boards | `hostile`: `two_boards_of_one_number_are_signed_once`; here: `a_seat_that_responds_twice_gets_one_announcement` |
//! | something at an unregistered index | here: `an_unregistered_index_gets_nothing_with_the_help_of_a_seat` |
//! | a withheld transaction | `hostile_cohorts`: `a_withheld_transaction_stays_possible_until_its_coin_is_spent` |
//! | a service that was restored from a backup | `lifecycle`: `a_service_restored_from_a_backup_continues_above_its_seats`; `hostile_cohorts`: `a_service_that_has_lost_its_rows_gets_them_from_its_seats` |
//! | a seat that refuses each time, registers another's DID, floods | `hostile_cohorts`: `a_hostile_seat_stops_no_cohort_that_proceeds`; here: `a_seat_cannot_make_the_roster_grow_without_end` |
//! | a seat that reads nothing | here: `a_seat_that_reads_nothing_costs_a_deadline_at_each_phase` |
//! | k - 1 hostile seats and the service | `hostile_cohorts`: `fewer_than_k_seats_cannot_make_a_transaction`; here: `a_seat_that_responds_twice_gets_one_announcement` |
//! | a refresh of three coins | here: `a_refresh_pays_the_beacon_and_announces_nothing`; `lifecycle`: `a_refresh_joins_three_coins_and_announces_nothing` |
//! | a reorganization under a chain of announcements | here: `what_a_reorganization_voids_is_announced_again_unchanged` |
//! | an index registered while an opportunity opens | here: `two_rosters_of_one_number_get_no_common_board`; `lifecycle`: `an_index_that_is_registered_while_a_number_is_open_counts_from_the_next_one` |

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bitcoin::{Amount, ScriptBuf, hashes::Hash};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        Board, CoinRef, Destinations, Entry, Mode, Opportunity, OpportunityKind, Response, ResponseContent, Roster,
        Row, RowAction, SeatSigner, StandingBeacon, TransactionHex, build_refresh,
        cohort::CohortInput,
        message::{
            ConfirmationRequest, EndKind, NumberEndedNotice, Pending, RegisterRows, RowsRequest, SeatOptIn,
            StandingMessage,
        },
        number::NumberEnd,
        seat::SeatInput,
    },
    did::Did,
    error::RejectCode,
    key::{PublicKey, SecretKey},
    message::Bytes,
    signing::nonce::SecretNonce,
};
use musig2::{AggNonce, PubNonce};

use super::{
    cohort::{did, index, update},
    hostile::{
        all_respond, board, confirmation, give, opened, opportunity, place, refused, request, responded, terms,
        world,
    },
    world::{World, updates_of},
};

fn row_of(seat: PublicKey, asked: &btcr2_aggregation_protocol::cohort::standing::message::AskedRow) -> Row {
    Row { seat, did_index: asked.did_index, action: asked.action, serial: asked.serial, signature: asked.signature }
}

/// A response of a hostile seat, as `change` leaves its honest one.
fn responds_otherwise(world: &mut World, at: usize, change: impl FnOnce(&mut ResponseContent)) -> Response {
    let Response { number, roster_hash, has_updates, entries, nonce_contributions, .. } =
        (*world.seats[at].responses[&1]).clone();
    let mut content = ResponseContent { number, roster_hash, has_updates, entries, nonce_contributions };
    change(&mut content);
    content.entries.sort();
    let context = world.service.cohort.roster().unwrap().context().clone();
    content.sign(&context, &world.seats[at].key, &mut world.rng)
}

fn on_shelf(world: &mut World, board: &Board) {
    world.service.boards.insert(*board.hash(), Arc::new(board.bytes().to_vec()));
}

#[test]
fn an_unregistered_index_gets_nothing_with_the_help_of_a_seat() {
    for beacon in [StandingBeacon::Cas, StandingBeacon::Smt] {
        let mut world = world(beacon);
        let opportunity = all_respond(&mut world);
        let foreign = match beacon {
            StandingBeacon::Cas => Entry::Cas { did: did(777).to_string(), update_hash: update(7) },
            StandingBeacon::Smt => Entry::leaf(index(777), &[9; 32], Some(&update(7))),
        };
        let hostile = responds_otherwise(&mut world, 1, |content| {
            content.entries.push(foreign);
            content.has_updates = true;
        });
        let honest = [0, 2].map(|at: usize| (*world.seats[at].responses[&1]).clone());
        let board = Board::of(place(&world, &opportunity), honest.into_iter().chain([hostile]));
        on_shelf(&mut world, &board);
        let request = request(&world, &opportunity, &board);
        refused(&mut world, 0, &request, "the response of seat");
    }
}

/// A hostile seat signs two responses, and with the service it shows each of the others another board: with k = 2 it can complete both.
#[test]
fn a_seat_that_responds_twice_gets_one_announcement() {
    let mut world = world(StandingBeacon::Cas);
    let opportunity = all_respond(&mut world);
    let other = responds_otherwise(&mut world, 2, |content| {
        let did = world_did(200);
        content.entries = vec![Entry::Cas { did, update_hash: update(9) }];
        content.has_updates = true;
    });
    let own = |world: &World, at: usize| (*world.seats[at].responses[&1]).clone();
    let first = [own(&world, 0), own(&world, 2)];
    let first = Board::of(place(&world, &opportunity), first);
    let second = [own(&world, 1), other];
    let second = Board::of(place(&world, &opportunity), second);
    let mut spent = Vec::new();
    for (at, board) in [(0, &first), (1, &second)] {
        on_shelf(&mut world, board);
        let request = request(&world, &opportunity, board);
        let sent = give(&mut world, at, &request.clone().into()).unwrap();
        assert!(confirmation(&sent).fallback_signatures.is_some());
        spent.push(request.pending_tx.input[0].previous_output);
        // Neither signs for the board of the other.
        assert_eq!(world.seats[at].signed.len(), 1);
    }
    assert_eq!(spent[0], spent[1], "they spend one coin: at most one of them is mined");
    let swapped = request(&world, &opportunity, &second);
    assert_eq!(give(&mut world, 0, &swapped.into()), Err(RejectCode::Equivocation));
    // Nor anything else before the coin is spent: the update of the first is committed, and comes again identically.
    assert_eq!(world.seats[0].machine.committed().len(), 1);
}

fn world_did(number: usize) -> String {
    did(number).to_string()
}

#[test]
fn a_nonce_signs_once_across_numbers_and_inputs() {
    let mut world = world(StandingBeacon::Smt);
    let output = world.service.cohort.output().unwrap().clone();
    let mut signer = SeatSigner::new(Arc::new(SecretKey::from_hex(&world.seats[0].key.to_hex()).unwrap()));
    let mut aggregated = |public: &[Bytes<66>]| -> Vec<Bytes<66>> {
        let others = [1, 2].map(|at: usize| {
            let key = &world.seats[at].key;
            SecretNonce::generate(key, &output, &mut world.rng).1
        });
        let sum = |own: &Bytes<66>| {
            let all = others.iter().chain([own]).map(|nonce| PubNonce::from_bytes(&nonce.0).unwrap());
            Bytes(AggNonce::sum(all).into())
        };
        public.iter().map(sum).collect()
    };
    let mut rng = super::cohort::rng();
    let public = signer.open(1, 3, &output, &mut rng);
    assert_eq!(public.iter().map(|nonce| nonce.0).collect::<BTreeSet<_>>().len(), 3, "each input has its own");
    let nonces = aggregated(&public);
    let digests = [[1; 32], [2; 32], [3; 32]];
    // Another number, another count of inputs, and after that the right one: the nonces are gone at the first use.
    assert!(signer.sign_partials(2, &output, &nonces, &digests).is_none());
    assert!(signer.sign_partials(1, &output, &nonces, &digests).is_none());
    let public = signer.open(1, 3, &output, &mut rng);
    let nonces = aggregated(&public);
    assert!(signer.sign_partials(1, &output, &nonces[..2], &digests).is_none());
    let public = signer.open(3, 3, &output, &mut rng);
    let nonces = aggregated(&public);
    assert_eq!(signer.sign_partials(3, &output, &nonces, &digests).map(|partials| partials.len()), Some(3));
    assert!(signer.sign_partials(3, &output, &nonces, &digests).is_none(), "used");
    // A number that is signed by fallback is never signed by key path.
    let public = signer.open(4, 3, &output, &mut rng);
    let nonces = aggregated(&public);
    assert_eq!(signer.sign_fallback(&digests, &mut rng).len(), 3);
    assert!(signer.sign_partials(4, &output, &nonces, &digests).is_none());
}

#[test]
fn a_refresh_pays_the_beacon_and_announces_nothing() {
    type Change = fn(&mut ConfirmationRequest);
    let cases: [(&str, Change); 5] = [
        ("", |_| {}),
        ("transaction", |request| {
            let signal = bitcoin::TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::new_op_return([9; 32]) };
            request.pending_tx.output.push(signal);
        }),
        ("no change", |request| {
            request.pending_tx.output[0].script_pubkey =
                ScriptBuf::from_hex("0014aa02030405060708090a0b0c0d0e0f1011121314").unwrap();
        }),
        ("coins", |request| drop(request.pending_tx.input.pop())),
        ("fee", |request| request.pending_tx.output[0].value = Amount::from_sat(330)),
    ];
    for (reason, change) in cases {
        let mut world = world(StandingBeacon::Smt);
        world.deposit(50_000);
        world.deposit(70_000);
        let mut refresh = opportunity(&mut world, 1);
        (refresh.kind, refresh.coins) = (OpportunityKind::Refresh, world.service.cohort.coins());
        let context = world.service.cohort.roster().unwrap().context().clone();
        let refresh = refresh.sign(&context, &world.service.key, &mut world.rng);
        let mut nonces = BTreeSet::new();
        for at in 0..3 {
            let message = opened(&world, &refresh);
            let sent = give(&mut world, at, &message).unwrap();
            let part = responded(&sent).unwrap();
            assert!(part.entries.is_empty(), "a refresh announces nothing");
            nonces.extend(part.nonce_contributions.iter().flatten().map(|nonce| nonce.0));
        }
        assert_eq!(nonces.len(), 9, "one for each input of each seat");
        let responses = [0, 1, 2].map(|at: usize| (*world.seats[at].responses[&1]).clone());
        let mut place = place(&world, &refresh);
        place.inputs = 3;
        let board = Board::of(place, responses);
        on_shelf(&mut world, &board);
        let output = world.service.cohort.output().unwrap();
        let destinations = Destinations { change: output.script_pubkey().to_owned(), operator: None };
        let rate = bitcoin::FeeRate::from_sat_per_vb_u32(2);
        let pending_tx = build_refresh(output, &refresh.coins(), &destinations, Mode::Fallback, rate).unwrap();
        let mut request = ConfirmationRequest { pending_tx, ..request_of(&world, &refresh, &board) };
        change(&mut request);
        let sent = give(&mut world, 0, &request.into()).unwrap();
        let answer = confirmation(&sent);
        if reason.is_empty() {
            assert_eq!(answer.fallback_signatures.as_ref().map(Vec::len), Some(3), "{answer:?}");
        } else {
            let refusal = answer.refusal.as_deref().unwrap_or_else(|| panic!("{reason}: it has signed"));
            assert!(world.seats[0].signed.is_empty(), "{reason}: {refusal}");
        }
    }
}

fn request_of(world: &World, opportunity: &Opportunity, board: &Board) -> ConfirmationRequest {
    let mut announcement = opportunity.clone();
    announcement.coins.truncate(1);
    request(world, &announcement, board)
}

#[test]
fn two_rosters_of_one_number_get_no_common_board() {
    let mut world = world(StandingBeacon::Smt);
    world.seats[0].dids[0].wants = true;
    let context = world.service.cohort.roster().unwrap().context().clone();
    let seats: Vec<PublicKey> = world.seats.iter().map(|seat| seat.key.public_key()).collect();
    let known = world.service.cohort.rows_from(0).to_vec();
    // An index of another seat gets into the roster while the number opens: into the one that seat 1 sees.
    let asked = world.seats[1].row(index(950), RowAction::Register, 1, &mut world.rng);
    let more = [known.clone(), vec![row_of(seats[1], &asked)]].concat();
    let mut opportunities = Vec::new();
    for (at, rows) in [(0, &known), (1, &more)] {
        let mut roster = Roster::new(context.clone(), seats.clone(), 1_000);
        roster.follow(rows).unwrap();
        let mut one = opportunity(&mut world, 1);
        (one.rows, one.row_count, one.roster_hash) = (rows.clone(), roster.row_count(), roster.hash());
        let one = one.sign(&context, &world.service.key, &mut world.rng);
        let message = opened(&world, &one);
        assert!(responded(&give(&mut world, at, &message).unwrap()).is_some());
        opportunities.push(one);
    }
    let message = opened(&world, &opportunities[0]);
    give(&mut world, 2, &message).unwrap();
    let board = board(&mut world, &opportunities[0], &[0, 1, 2]);
    let request = request(&world, &opportunities[0], &board);
    refused(&mut world, 0, &request, "the response of seat");
    // Seat 1 gets nothing on the other roster either.
    let sent = give(&mut world, 1, &request.into()).unwrap();
    assert!(confirmation(&sent).refusal.is_some() && world.seats[1].signed.is_empty());
}

#[test]
fn what_a_reorganization_voids_is_announced_again_unchanged() {
    let mut world = World::formed(47, &terms(StandingBeacon::Cas).proceeding(2), 3, 1);
    for at in 0..3 {
        world.wants(at, &[0]);
        world.pass(2 * 3600);
    }
    assert_eq!(world.service.mempool.len(), 3, "{:?}", world.service.ends);
    let chosen: Vec<_> = (0..3).map(|at| updates_of(&world.seats[at].events, at as u64 + 1)).collect();
    assert!(chosen.iter().all(|updates| updates.len() == 1));
    // A reorganization replaces what has spent the first coin.
    let first = world.service.mempool[0].input[0].previous_output;
    let coin = CoinRef { txid: first.txid, vout: first.vout, value: 1_000_000 };
    let other = Hash::hash(b"another transaction");
    world.coins.remove(&first);
    world.service.mempool.clear();
    let outgoing = world.service.feed(world.now, &CohortInput::Spent { coin, by: other }, &mut world.rng).unwrap();
    world.send_all(outgoing);
    for at in 0..3 {
        world.feed_seat(at, &SeatInput::Spent { coin, by: other, signal: None });
    }
    world.run_until_quiet();
    assert!(world.service.cohort.coins().is_empty(), "all three are void");
    world.deposit(80_000);
    for _ in 0..3 {
        world.pass(2 * 3600);
        world.mine();
    }
    for (at, updates) in chosen.iter().enumerate() {
        assert_eq!(world.seats[at].dids[0].version, 2, "seat {at}: {:?}", world.service.ends);
        let again: Vec<_> = (4..10).flat_map(|number| updates_of(&world.seats[at].events, number)).collect();
        assert!(!again.is_empty() && again.iter().all(|update| updates.contains(update)), "{again:?}");
    }
    world.service.assert_replays();
}

#[test]
fn a_seat_that_reads_nothing_costs_a_deadline_at_each_phase() {
    // From the beginning, and after its response.
    for responds in [false, true] {
        let mut world = world(StandingBeacon::Smt);
        let terms = world.service.config().terms.clone();
        world.seats[2].is_away = !responds;
        let start = world.now;
        world.wants(0, &[0]);
        let mut most = 100_000;
        while responds && !world.seats[2].responses.contains_key(&1) {
            world.run_until(world.now + Duration::from_millis(1));
            most -= 1;
            assert!(most > 0);
        }
        world.seats[2].is_away = true;
        let mut waited = 0;
        while !world.service.ends.values().any(|end| matches!(end, NumberEnd::Signed { .. })) {
            world.pass(60);
            waited += 1;
            assert!(waited < 100, "{:?}", world.service.ends);
        }
        // Once until it has confirmed, and once until it has responded to the next number.
        let deadlines = u64::from(terms.respond_seconds) + u64::from(responds) * u64::from(terms.confirm_seconds);
        let took = world.now.since(start).as_secs();
        assert!(took <= deadlines + 120, "{took} seconds, responds: {responds}");
        world.assert_invariants();
    }
}

#[test]
fn a_seat_cannot_make_the_roster_grow_without_end() {
    let mut terms = terms(StandingBeacon::Smt).proceeding(2);
    terms.max_dids_per_participant = 5;
    let mut world = World::formed(48, &terms, 3, 2);
    let rows = |world: &World| world.service.cohort.rows_from(0).len();
    let before = rows(&world);
    let from = world.seats[2].did.clone();
    let cohort_id = world.service.config().cohort_id.clone();
    // Each index only comes and goes: the seat never has more than the terms allow.
    for at in 0..200 {
        for (serial, action) in [(1, RowAction::Register), (2, RowAction::Unregister)] {
            let row = world.seats[2].row(index(9_000 + at), action, serial, &mut world.rng);
            let message = RegisterRows { cohort_id: cohort_id.clone(), rows: vec![row] }.into();
            world.service.receive(world.now, &from, &message, &mut world.rng).unwrap();
        }
    }
    let most = 2 * terms.max_dids_per_participant as usize;
    assert!(rows(&world) <= before + most, "{} rows", rows(&world));
    // The others register and announce as before.
    let own = world.seats[0].row(index(950), RowAction::Register, 1, &mut world.rng);
    world.feed_seat(0, &SeatInput::RowsAsked(vec![own]));
    world.wants(0, &[0]);
    world.pass(3600);
    world.mine();
    assert_eq!(world.seats[0].dids[0].version, 2);
    assert!(world.service.cohort.roster().unwrap().seat_of(&index(950)).is_some());
    world.assert_invariants();
}

#[test]
fn outsiders_change_nothing_of_a_cohort() {
    let mut world = world(StandingBeacon::Cas);
    let number = opportunity(&mut world, 1);
    let cohort_id = world.service.config().cohort_id.clone();
    let (events, machine) = (world.service.events.len(), world.service.cohort.clone());
    let row = world.seats[0].row(index(960), RowAction::Register, 1, &mut world.rng);
    for outsider in 0..50 {
        let key = SecretKey::from_bytes(&[outsider + 1; 32]).unwrap();
        let from = Did::from_key(key.public_key(), super::cohort::NETWORK);
        let messages: [StandingMessage; 5] = [
            Pending { cohort_id: cohort_id.clone() }.into(),
            RegisterRows { cohort_id: cohort_id.clone(), rows: vec![row.clone()] }.into(),
            SeatOptIn::sign(&world.service.did.clone(), &cohort_id, &from, &key, &mut world.rng).into(),
            RowsRequest { cohort_id: cohort_id.clone(), after: 0 }.into(),
            opened(&world, &number),
        ];
        for message in messages {
            assert!(world.service.receive(world.now, &from, &message, &mut world.rng).is_err(), "{message:?}");
        }
    }
    assert_eq!(world.service.events.len(), events);
    assert_eq!(world.service.cohort, machine);
}

/// A service may repeat the end of a number without end, truly or not: a seat journals it once.
#[test]
fn a_service_that_repeats_an_announcement_adds_no_event() {
    let mut world = world(StandingBeacon::Smt);
    world.wants(0, &[0]);
    world.pass(600);
    let transaction = Arc::clone(&world.service.mempool[0]);
    let board_hash = *world.service.boards.keys().next().unwrap();
    let cohort_id = world.service.config().cohort_id.clone();
    let notice = |number, end, transaction: Option<_>, board_hash| -> StandingMessage {
        let transaction = transaction.map(TransactionHex);
        let cohort_id = cohort_id.clone();
        NumberEndedNotice { cohort_id, number, end, reason: None, transaction, board_hash }.into()
    };
    let announced = notice(1, EndKind::Announced, Some(Arc::clone(&transaction)), Some(board_hash));
    // It has signed that number, and knows its end.
    let before = world.seats[0].events.len();
    for _ in 0..100 {
        give(&mut world, 0, &announced).unwrap();
        give(&mut world, 0, &notice(1, EndKind::Failed, None, None)).unwrap();
        give(&mut world, 0, &notice(1, EndKind::Idle, None, Some(board_hash))).unwrap();
    }
    assert_eq!(world.seats[0].events.len(), before);
    // A number of which it knows nothing: it is journaled once, whatever is claimed of it later.
    let unknown = Some(update(5));
    let other = notice(7, EndKind::Announced, Some(Arc::clone(&transaction)), unknown);
    for _ in 0..100 {
        give(&mut world, 0, &other).unwrap();
        give(&mut world, 0, &notice(7, EndKind::Announced, Some(Arc::clone(&transaction)), Some(board_hash)))
            .unwrap();
    }
    assert_eq!(world.seats[0].events.len(), before + 1);
    // Nor does it grow with the numbers that a service makes up.
    let saved = |world: &World| serde_json::to_vec(&world.seats[0].machine.saved().unwrap()).unwrap().len();
    for number in 100..200 {
        let made_up = notice(number, EndKind::Announced, Some(Arc::clone(&transaction)), unknown);
        give(&mut world, 0, &made_up).unwrap();
    }
    let size = saved(&world);
    for number in 200..300 {
        let made_up = notice(number, EndKind::Announced, Some(Arc::clone(&transaction)), unknown);
        give(&mut world, 0, &made_up).unwrap();
    }
    assert_eq!(saved(&world), size);
    world.seats[0].assert_replays();
    // The cohort goes on.
    world.wants(1, &[0]);
    world.pass(2 * 3600);
    world.mine();
    assert_eq!(world.seats[1].dids[0].version, 2);
}
