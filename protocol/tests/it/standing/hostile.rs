//! Hostile services in one number: what a seat answers and signs, and what it never does.

use std::sync::Arc;

use btcr2_aggregation_protocol::{
    cohort::standing::{
        Board, BoardContent, Entry, Mode, Opportunity, OpportunityKind, RowAction, StandingBeacon, StandingTerms,
        message::{Confirmation, ConfirmationRequest, OpportunityOpened, ResponsePart, StandingMessage},
        seat::{SeatInput, SeatUpdate},
    },
    error::RejectCode,
    hash::{DocumentHash, sha256},
    key::Signature,
};

use super::{cohort::NETWORK, world::World};

pub(super) fn terms(beacon: StandingBeacon) -> StandingTerms {
    let mut terms = StandingTerms::new(beacon, NETWORK, 3, 10);
    terms.pending_update_trigger = Some(1);
    terms
}

/// A cohort of three seats in which two can sign by fallback.
pub(super) fn world(beacon: StandingBeacon) -> World {
    World::formed(40, &terms(beacon).proceeding(2), 3, 2)
}

/// An opportunity that the service signs beside its own machine.
pub(super) fn opportunity(world: &mut World, number: u64) -> Opportunity {
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

pub(super) fn opened(world: &World, opportunity: &Opportunity) -> StandingMessage {
    let cohort_id = world.service.config().cohort_id.clone();
    OpportunityOpened { cohort_id, opportunity: opportunity.clone() }.into()
}

pub(super) fn give(
    world: &mut World,
    at: usize,
    message: &StandingMessage,
) -> Result<Vec<StandingMessage>, RejectCode> {
    let received = world.seats[at].receive(world.now, message, &world.service, &mut world.rng);
    received.map_err(|reject| reject.code)
}

pub(super) fn responded(messages: &[StandingMessage]) -> Option<&ResponsePart> {
    messages.iter().find_map(|message| match message {
        StandingMessage::ResponsePart(part) => Some(part),
        _ => None,
    })
}

/// All seats answer number 1; the world is before the request.
pub(super) fn all_respond(world: &mut World) -> Opportunity {
    world.seats[0].dids[0].wants = true;
    let opportunity = opportunity(world, 1);
    for at in 0..3 {
        let message = opened(world, &opportunity);
        let sent = give(world, at, &message).unwrap();
        assert!(responded(&sent).is_some());
    }
    opportunity
}

pub(super) fn place<'a>(
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
pub(super) fn board(world: &mut World, opportunity: &Opportunity, seats: &[usize]) -> Board {
    let responses = seats.iter().map(|at| (*world.seats[*at].responses[&opportunity.number]).clone());
    let board = Board::of(place(world, opportunity), responses.collect::<Vec<_>>());
    world.service.boards.insert(*board.hash(), Arc::new(board.bytes().to_vec()));
    board
}

/// The request that follows from a board, by fallback.
pub(super) fn request(world: &World, opportunity: &Opportunity, board: &Board) -> ConfirmationRequest {
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

pub(super) fn confirmation(messages: &[StandingMessage]) -> &Confirmation {
    let found = messages.iter().find_map(|message| match message {
        StandingMessage::Confirmation(confirmation) => Some(confirmation),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no confirmation in {messages:?}"))
}

/// The seat answers with its reason and has signed nothing.
#[track_caller]
pub(super) fn refused(world: &mut World, at: usize, request: &ConfirmationRequest, reason: &str) {
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
    let first = give(&mut world, 0, &message).unwrap();
    assert!(responded(&first).is_some());
    // Repeated, e.g. by a service that has restarted: the same response.
    assert_eq!(give(&mut world, 0, &message).unwrap(), first);
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
    let full = serde_json::json!({ "another": "update" });
    let update = SeatUpdate {
        did: controlled.did,
        version: 2,
        hash: btcr2_aggregation_protocol::jcs::document_hash(&full).unwrap(),
        full: Some(full),
    };
    let updates = SeatInput::UpdatesDecided { number: 3, updates: vec![update] };
    let refused =
        btcr2_aggregation_protocol::machine::step(&mut world.seats[0].machine, world.now, &updates, &mut world.rng);
    assert_eq!(refused.unwrap_err().code, RejectCode::UpdateVerificationFailed);
}
