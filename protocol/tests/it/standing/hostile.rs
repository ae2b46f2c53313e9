//! Hostile services and hostile seats: each sentence of docs/standing.md, "Never".

use std::sync::Arc;

use btcr2_aggregation_protocol::{
    cohort::standing::{
        Board, BoardContent, Entry, Mode, Opportunity, OpportunityKind, RowAction, StandingBeacon, StandingTerms,
        message::{
            Confirmation, ConfirmationRequest, OpportunityOpened, ResponsePart, RowAnswer, RowsAnswered,
            StandingMessage,
        },
        number::{NumberEnd, NumberInput},
        seat::{SeatInput, SeatUpdate},
    },
    error::RejectCode,
    hash::{DocumentHash, sha256},
    key::Signature,
};

use super::{
    cohort::NETWORK,
    seat_node::SeatNode,
    world::{World, signal_of},
};

fn terms(beacon: StandingBeacon) -> StandingTerms {
    let mut terms = StandingTerms::new(beacon, NETWORK, 3, 10);
    terms.pending_update_trigger = Some(1);
    terms
}

/// A cohort of three seats in which two can sign by fallback.
fn world(beacon: StandingBeacon) -> World {
    World::formed(40, &terms(beacon).proceeding(2), 3, 2)
}

/// An opportunity that the service signs beside its own machine.
fn opportunity(world: &mut World, number: u64) -> Opportunity {
    let roster = Arc::clone(world.service.cohort.roster().unwrap());
    let opportunity = Opportunity {
        number,
        kind: OpportunityKind::Announcement,
        respond_by: world.now.as_secs() + 600,
        roster_hash: roster.hash(),
        coins: vec![world.service.cohort.coins()[0]],
        rows: world.service.cohort.rows_from(0).to_vec(),
        row_count: roster.row_count(),
        transactions: Vec::new(),
        signature: Signature::from_bytes(&[0; 64]),
    };
    opportunity.sign(roster.context(), &world.service.key, &mut world.rng)
}

fn opened(world: &World, opportunity: &Opportunity) -> StandingMessage {
    let cohort_id = world.service.config().cohort_id.clone();
    OpportunityOpened { cohort_id, opportunity: opportunity.clone() }.into()
}

fn give(world: &mut World, at: usize, message: &StandingMessage) -> Result<Vec<StandingMessage>, RejectCode> {
    let received = world.seats[at].receive(world.now, message, &world.service, &mut world.rng);
    received.map_err(|reject| reject.code)
}

fn responded(messages: &[StandingMessage]) -> Option<&ResponsePart> {
    messages.iter().find_map(|message| match message {
        StandingMessage::ResponsePart(part) => Some(part),
        _ => None,
    })
}

/// All seats answer number 1; the world is before the request.
fn all_respond(world: &mut World) -> Opportunity {
    world.seats[0].dids[0].wants = true;
    let opportunity = opportunity(world, 1);
    for at in 0..3 {
        let message = opened(world, &opportunity);
        let sent = give(world, at, &message).unwrap();
        assert!(responded(&sent).is_some());
    }
    opportunity
}

fn place<'a>(
    world: &'a World,
    opportunity: &'a Opportunity,
) -> btcr2_aggregation_protocol::cohort::standing::BoardPlace<'a> {
    btcr2_aggregation_protocol::cohort::standing::BoardPlace {
        terms: &world.service.config().terms,
        roster: world.service.cohort.roster().unwrap(),
        roster_hash: &opportunity.roster_hash,
        number: opportunity.number,
        inputs: 1,
        kind: opportunity.kind,
    }
}

/// A board of the responses of these seats, on the service's shelf.
fn board(world: &mut World, opportunity: &Opportunity, seats: &[usize]) -> Board {
    let responses = seats.iter().map(|at| (*world.seats[*at].responses[&opportunity.number]).clone());
    let board = Board::of(place(world, opportunity), responses.collect::<Vec<_>>());
    world.service.boards.insert(*board.hash(), Arc::new(board.bytes().to_vec()));
    board
}

/// The request that follows from a board, by fallback.
fn request(world: &World, opportunity: &Opportunity, board: &Board) -> ConfirmationRequest {
    let output = world.service.cohort.output().unwrap();
    let destinations = btcr2_aggregation_protocol::cohort::standing::Destinations {
        change: output.script_pubkey().to_owned(),
        operator: None,
    };
    let pending_tx = btcr2_aggregation_protocol::cohort::standing::build_announcement(
        output,
        &opportunity.coins()[0],
        &board.signal(),
        &destinations,
        Mode::Fallback,
        bitcoin::FeeRate::from_sat_per_vb_u32(2),
    );
    ConfirmationRequest {
        cohort_id: world.service.config().cohort_id.clone(),
        number: opportunity.number,
        board_hash: *board.hash(),
        mode: Mode::Fallback,
        pending_tx: pending_tx.unwrap(),
        confirm_by: world.now.as_secs() + 600,
        aggregated_nonces: Vec::new(),
    }
}

fn confirmation(messages: &[StandingMessage]) -> &Confirmation {
    let found = messages.iter().find_map(|message| match message {
        StandingMessage::Confirmation(confirmation) => Some(confirmation),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no confirmation in {messages:?}"))
}

/// The seat answers with its reason and has signed nothing.
#[track_caller]
fn refused(world: &mut World, at: usize, request: &ConfirmationRequest, reason: &str) {
    let sent = give(world, at, &StandingMessage::from(request.clone())).unwrap();
    let refusal = confirmation(&sent).refusal.clone().unwrap_or_else(|| panic!("it has signed: {sent:?}"));
    assert!(refusal.contains(reason), "{refusal}");
    assert!(world.seats[at].signed.is_empty());
}

#[test]
fn a_seat_signs_for_a_board_that_is_as_it_has_to_be() {
    for beacon in [StandingBeacon::Cas, StandingBeacon::Smt] {
        let mut world = world(beacon);
        let opportunity = all_respond(&mut world);
        let board = board(&mut world, &opportunity, &[0, 1, 2]);
        let request = StandingMessage::from(request(&world, &opportunity, &board));
        let sent = give(&mut world, 0, &request).unwrap();
        let first = confirmation(&sent).clone();
        assert!(first.fallback_signatures.is_some());
        // Repeated with equal bytes: the stored signature, and no second one.
        let again = give(&mut world, 0, &request).unwrap();
        assert_eq!(*confirmation(&again), first);
        assert_eq!(world.seats[0].signed.len(), 1);
    }
}

#[test]
fn a_service_that_calls_a_present_seat_absent_gets_no_signature_of_it() {
    let mut world = world(StandingBeacon::Smt);
    let opportunity = all_respond(&mut world);
    let board = board(&mut world, &opportunity, &[1, 2]);
    let request = request(&world, &opportunity, &board);
    refused(&mut world, 0, &request, "another response of this seat, or none");
}

#[test]
fn two_boards_of_one_number_are_signed_once() {
    let mut world = world(StandingBeacon::Cas);
    let opportunity = all_respond(&mut world);
    let (one, other) = (board(&mut world, &opportunity, &[0, 1, 2]), board(&mut world, &opportunity, &[0, 1]));
    let first = request(&world, &opportunity, &one);
    give(&mut world, 0, &first.into()).unwrap();
    let second = request(&world, &opportunity, &other);
    assert_eq!(give(&mut world, 0, &second.into()), Err(RejectCode::Equivocation));
    assert_eq!(world.seats[0].signed.len(), 1);
}

#[test]
fn another_transaction_than_that_of_the_board_is_refused() {
    type Change = fn(&mut ConfirmationRequest);
    let cases: [(&str, Change); 5] = [
        ("not the signal", |request| {
            let last = request.pending_tx.output.last_mut().unwrap();
            last.script_pubkey = bitcoin::ScriptBuf::new_op_return([9; 32]);
        }),
        ("not the coins", |request| request.pending_tx.input[0].previous_output.vout = 3),
        ("no change", |request| {
            request.pending_tx.output[0].script_pubkey = bitcoin::ScriptBuf::from_hex("0014aa").unwrap();
        }),
        ("the fee", |request| request.pending_tx.output[0].value = bitcoin::Amount::from_sat(330)),
        ("the mode", |request| request.aggregated_nonces.push(btcr2_aggregation_protocol::message::Bytes([2; 66]))),
    ];
    for (reason, change) in cases {
        let mut world = world(StandingBeacon::Cas);
        let opportunity = all_respond(&mut world);
        let board = board(&mut world, &opportunity, &[0, 1, 2]);
        let mut request = request(&world, &opportunity, &board);
        change(&mut request);
        refused(&mut world, 0, &request, reason);
    }
}

/// A service that writes on the board what a seat has not signed.
#[test]
fn nothing_comes_under_a_did_that_its_seat_has_not_responded() {
    for beacon in [StandingBeacon::Cas, StandingBeacon::Smt] {
        let changes: [fn(&mut BoardContent); 4] = [
            |content| content.responses[1].entries.clear(),
            |content| {
                let entry = content.responses[1].entries.first().cloned();
                let foreign = match entry {
                    Some(Entry::Smt { did_index, .. }) => Entry::leaf(did_index, &[1; 32], None),
                    _ => Entry::Cas {
                        did: super::cohort::did(200).to_string(),
                        update_hash: DocumentHash::from_bytes([1; 32]),
                    },
                };
                content.responses[1].entries = vec![foreign];
                content.responses[1].has_updates = true;
            },
            |content| content.roster[0].indexes.truncate(1),
            |content| content.number = 2,
        ];
        for change in changes {
            let mut world = world(beacon);
            let opportunity = all_respond(&mut world);
            let honest = board(&mut world, &opportunity, &[0, 1, 2]);
            let mut content: BoardContent = serde_json::from_slice(honest.bytes()).unwrap();
            change(&mut content);
            let bytes = serde_json::to_vec(&content).unwrap();
            let hash = DocumentHash::from_bytes(sha256(&bytes));
            if hash == *honest.hash() {
                // Nothing to clear in a CAS response without updates.
                continue;
            }
            world.service.boards.insert(hash, Arc::new(bytes));
            let mut request = request(&world, &opportunity, &honest);
            request.board_hash = hash;
            refused(&mut world, 0, &request, "");
        }
    }
}

#[test]
fn a_number_is_answered_once_and_never_one_below() {
    let mut world = world(StandingBeacon::Cas);
    let third = opportunity(&mut world, 3);
    let message = opened(&world, &third);
    assert!(responded(&give(&mut world, 0, &message).unwrap()).is_some());
    // Repeated: nothing new.
    assert!(give(&mut world, 0, &message).unwrap().is_empty());
    for number in [1, 2, 3] {
        let mut other = opportunity(&mut world, number);
        other.respond_by += 1;
        let other =
            other.sign(world.service.cohort.roster().unwrap().context(), &world.service.key, &mut world.rng);
        let message = opened(&world, &other);
        // It returns the service's own signed opportunity.
        let sent = give(&mut world, 0, &message).unwrap();
        assert_eq!(sent, vec![opened(&world, &third)], "number {number}");
    }
    assert_eq!(world.seats[0].responses.len(), 1);
}

#[test]
fn an_opportunity_that_the_service_has_not_signed_is_refused() {
    let mut world = world(StandingBeacon::Cas);
    let valid = opportunity(&mut world, 1);
    let changes: [fn(&mut Opportunity); 5] = [
        |one| one.number = 2,
        |one| one.respond_by += 1,
        |one| one.coins[0].value += 1,
        |one| one.roster_hash = DocumentHash::from_bytes([0; 32]),
        |one| one.kind = OpportunityKind::Refresh,
    ];
    for change in changes {
        let mut forged = valid.clone();
        change(&mut forged);
        let message = opened(&world, &forged);
        assert_eq!(give(&mut world, 0, &message), Err(RejectCode::WrongSender));
    }
}

/// A roster without a row that the service has acknowledged, or in which an index has moved without a row of its seat.
#[test]
fn a_roster_that_has_lost_a_row_is_refused() {
    let mut world = world(StandingBeacon::Smt);
    let mut rows = world.service.cohort.rows_from(0).to_vec();
    let own = world.seats[0].dids[0].index;
    let context = world.service.cohort.roster().unwrap().context().clone();
    let seats: Vec<_> = world.seats.iter().map(|seat| seat.key.public_key()).collect();
    rows.retain(|row| row.did_index != own);
    let sign = |world: &mut World, rows: &[btcr2_aggregation_protocol::cohort::standing::Row]| {
        let mut roster =
            btcr2_aggregation_protocol::cohort::standing::Roster::new(context.clone(), seats.clone(), 1_000);
        roster.follow(rows).unwrap();
        let mut opportunity = opportunity(world, 1);
        (opportunity.rows, opportunity.row_count) = (rows.to_vec(), roster.row_count());
        opportunity.roster_hash = roster.hash();
        opportunity.sign(&context, &world.service.key, &mut world.rng)
    };
    let lost = sign(&mut world, &rows);
    let message = opened(&world, &lost);
    assert_eq!(give(&mut world, 0, &message), Err(RejectCode::DataMismatch), "the row is gone");
    // A hostile seat registers it in the same number, with the service's help.
    let theft = world.seats[1].row(own, RowAction::Register, 9, &mut world.rng);
    rows.push(btcr2_aggregation_protocol::cohort::standing::Row {
        seat: world.seats[1].key.public_key(),
        did_index: own,
        action: theft.action,
        serial: theft.serial,
        signature: theft.signature,
    });
    let stolen = sign(&mut world, &rows);
    let message = opened(&world, &stolen);
    assert!(give(&mut world, 0, &message).is_err(), "the index has moved without a row of its seat");
}

#[test]
fn a_seat_does_not_commit_to_two_updates_of_one_version() {
    let mut world = world(StandingBeacon::Cas);
    all_respond(&mut world);
    let controlled = world.seats[0].dids[0].clone();
    let second = opportunity(&mut world, 2);
    let message = opened(&world, &second);
    // The host of this seat has lost its records, and makes another update of the same version.
    world.seats[0].dids[0].salt = 99;
    let sent = give(&mut world, 0, &message).unwrap();
    let part = responded(&sent).unwrap();
    let first = world.seats[0].responses[&1].entries.clone();
    assert_eq!(part.entries, first, "the identical update");
    // And if it insists, its own machine refuses.
    let third = opportunity(&mut world, 3);
    let message = SeatInput::Message(opened(&world, &third));
    let step =
        btcr2_aggregation_protocol::machine::step(&mut world.seats[0].machine, world.now, &message, &mut world.rng);
    step.unwrap();
    let update =
        SeatUpdate { did: controlled.did, version: 2, hash: DocumentHash::from_bytes([7; 32]), full: None };
    let updates = SeatInput::UpdatesDecided { number: 3, updates: vec![update] };
    let refused =
        btcr2_aggregation_protocol::machine::step(&mut world.seats[0].machine, world.now, &updates, &mut world.rng);
    assert_eq!(refused.unwrap_err().code, RejectCode::UpdateVerificationFailed);
}

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
        let hash = DocumentHash::from_bytes([8; 32]);
        let update = SeatUpdate { did: did.clone(), version, hash, full: None };
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

/// Rows that a restored service has lost come back from its seats.
#[test]
fn a_service_that_has_lost_its_rows_gets_them_from_its_seats() {
    let mut world = World::enrolling(44, &terms(StandingBeacon::Cas).proceeding(2), 3, 2);
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
    assert_eq!(rows, 6);
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
    let StandingMessage::SeatOptIn(first) = seat.opt_in(&mut rng) else { panic!() };
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
