//! What is signed and counted by itself: seats, rosters, responses, boards, and the messages of many rows.

use btcr2_aggregation_protocol::{
    beacon::{BeaconData, CasAnnouncement, zero_hash},
    cohort::standing::{
        ArchivedBoard, ArchivedProof, Board, BoardContent, Entry, OpportunityKind, Response, ResponseProblem,
        RowAction, StandingBeacon, StandingTerms,
        message::{Applicant, AskedRow, MAX_PART_ENTRIES, RegisterRows, SeatOptIn},
    },
    id::CohortId,
    identity::Identity,
    key::Signature,
};
use serde_json::json;

use super::cohort::{Cohort, NETWORK, did, index, rng, update};

fn cohort(beacon: StandingBeacon) -> Cohort {
    Cohort::new(StandingTerms::new(beacon, NETWORK, 1, 50), 3, 2)
}

/// A response of the first seat, signed again as `change` leaves it.
fn altered(cohort: &Cohort, change: impl FnOnce(&mut Response)) -> Response {
    let mut response = cohort.response(0, 1, &[0]);
    change(&mut response);
    let digest = response.hash(cohort.roster.context());
    response.signature = cohort.keys[0].sign(digest.as_bytes(), &mut rng());
    response
}

#[test]
fn a_seat_is_asked_for_with_its_key() {
    let cohort = cohort(StandingBeacon::Cas);
    let cohort_id = &cohort.roster.context().cohort_id;
    let opt_in = SeatOptIn::sign(&cohort.service, cohort_id, &did(1), &cohort.keys[0], &mut rng());
    assert!(opt_in.is_proven(&cohort.service, &did(1)));
    assert!(!opt_in.is_proven(&cohort.service, &did(2)), "the possession is of one participant");
    assert!(!opt_in.is_proven(&did(3), &did(1)), "at one service");
    let elsewhere = SeatOptIn { cohort_id: CohortId::parse("another").unwrap(), ..opt_in.clone() };
    assert!(!elsewhere.is_proven(&cohort.service, &did(1)), "for one cohort");
    let stolen = SeatOptIn { participant_pk: cohort.keys[1].public_key(), ..opt_in };
    assert!(!stolen.is_proven(&cohort.service, &did(1)), "of one key");
}

#[test]
fn a_participant_applies_as_a_did_that_it_controls() {
    let cohort = cohort(StandingBeacon::Cas);
    let cohort_id = &cohort.roster.context().cohort_id;
    let identity = Identity::from_key(crate::bitcoin_support::member(77), NETWORK);
    let applicant = Applicant::sign(&cohort.service, cohort_id, &did(1), &identity, &mut rng());
    assert!(applicant.is_proven(&cohort.service, cohort_id, &did(1)));
    assert!(!applicant.is_proven(&cohort.service, cohort_id, &did(2)), "for one sender");
    assert!(!applicant.is_proven(&did(3), cohort_id, &did(1)), "at one service");
    assert!(!applicant.is_proven(&cohort.service, &CohortId::parse("another").unwrap(), &did(1)), "for one cohort");
    let stolen = Applicant { did: did(1), ..applicant };
    assert!(!stolen.is_proven(&cohort.service, cohort_id, &did(1)), "of one DID");
}

#[test]
fn an_archived_board_gives_the_signal_and_every_path() {
    let cohort = cohort(StandingBeacon::Smt);
    let hash = cohort.roster.hash();
    let responses = [cohort.response(0, 1, &[0]), cohort.response(2, 1, &[])];
    let board = Board::of(cohort.place(&hash, 1), responses);
    let archived = ArchivedBoard::read(board.bytes(), StandingBeacon::Smt).unwrap();
    assert_eq!((archived.signal(), archived.announcement()), (board.signal(), None));
    for seat in 0..3 {
        for own in [seat * 2, seat * 2 + 1] {
            let index = index(own);
            assert_eq!(archived.seat_of(&index), Some(&cohort.keys[seat].public_key()));
            let ArchivedProof { proof, leaf } = archived.proof(&index).unwrap();
            // The second seat was absent: its indexes have no leaf.
            assert_eq!(leaf.is_none(), seat == 1, "seat {seat}");
            let empty = leaf.map_or(zero_hash(0).unwrap(), |leaf| *leaf.as_bytes());
            assert_eq!(proof.root_for(index.as_bytes(), &empty), Ok(proof.id));
            if leaf.is_none() {
                assert_eq!(board.data(&index, None, None), Some(BeaconData::Smt(proof)));
            }
        }
    }
    // No seat has registered it.
    let other = index(1_000);
    assert_eq!((archived.seat_of(&other), archived.proof(&other).unwrap().leaf), (None, None));
    assert!(ArchivedBoard::read(b"{}", StandingBeacon::Smt).is_none());
}

#[test]
fn a_roster_names_its_seats_and_what_is_registered() {
    let mut cohort = cohort(StandingBeacon::Cas);
    assert!(cohort.roster.has_seat(&cohort.keys[0].public_key()));
    assert!(!cohort.roster.has_seat(&crate::bitcoin_support::member(9).public_key()));
    assert_eq!((cohort.roster.is_empty(), cohort.roster.registered().count()), (false, 6));
    for number in 0..6 {
        let released = cohort.row(number / 2, number, RowAction::Unregister, 2);
        cohort.roster.follow([&released]).unwrap();
        assert_eq!(cohort.roster.registered().count(), 5 - number);
    }
    assert!(cohort.roster.is_empty());
}

#[test]
fn every_index_of_a_seat_has_its_leaf_in_order() {
    let cohort = cohort(StandingBeacon::Smt);
    let hash = cohort.roster.hash();
    let check = |response: &Response| response.check(&cohort.terms, &cohort.roster, &hash, 1, 1);
    assert_eq!(check(&altered(&cohort, |_| {})), Ok(()));
    let mut own = [index(0), index(1)];
    own.sort();
    let leaf = |index| Entry::leaf(index, &[1; 32], None);
    // Some index that is not registered, before, between and after the seat's own.
    let foreign = |is: &dyn Fn(_) -> bool| (100..400).map(index).find(|index| is(*index)).unwrap();
    let before = foreign(&|index| index < own[0]);
    let after = foreign(&|index| index > own[1]);
    for (entries, problem) in [
        (vec![leaf(before), leaf(own[1])], ResponseProblem::NotRegistered(before)),
        (vec![leaf(before), leaf(own[0]), leaf(own[1])], ResponseProblem::NotRegistered(before)),
        (vec![leaf(own[1])], ResponseProblem::LeafMissing(own[0])),
        (vec![leaf(own[0])], ResponseProblem::LeafMissing(own[1])),
        (vec![leaf(own[0]), leaf(after)], ResponseProblem::LeafMissing(own[1])),
        (vec![leaf(own[0]), leaf(own[1]), leaf(after)], ResponseProblem::NotRegistered(after)),
    ] {
        assert_eq!(check(&altered(&cohort, |response| response.entries = entries)), Err(problem));
    }
}

#[test]
fn a_refresh_announces_nothing() {
    let cohort = cohort(StandingBeacon::Cas);
    let hash = cohort.roster.hash();
    let mut place = cohort.place(&hash, 1);
    place.kind = OpportunityKind::Refresh;
    let empty = altered(&cohort, |response| (response.entries, response.has_updates) = (Vec::new(), false));
    assert_eq!(empty.check_in(place), Ok(()));
    for wrong in [
        altered(&cohort, |_| {}),
        altered(&cohort, |response| response.entries.clear()),
        altered(&cohort, |response| response.has_updates = false),
    ] {
        assert_eq!(wrong.check_in(place), Err(ResponseProblem::HasUpdates));
    }
}

#[test]
fn only_a_seat_responds() {
    let cohort = cohort(StandingBeacon::Cas);
    let hash = cohort.roster.hash();
    let key = crate::bitcoin_support::member(9);
    let mut outsider = altered(&cohort, |response| (response.entries, response.has_updates) = (Vec::new(), false));
    outsider.seat = key.public_key();
    outsider.signature = key.sign(outsider.hash(cohort.roster.context()).as_bytes(), &mut rng());
    let checked = outsider.check(&cohort.terms, &cohort.roster, &hash, 1, 1);
    assert_eq!(checked, Err(ResponseProblem::NotASeat(key.public_key())));
}

#[test]
fn a_board_has_its_number_signal_and_announcement() {
    for beacon in [StandingBeacon::Cas, StandingBeacon::Smt] {
        let cohort = cohort(beacon);
        let hash = cohort.roster.hash();
        let responses = (0..3).map(|seat| cohort.response(seat, 7, &[2 * seat]));
        let board = Board::of(cohort.place(&hash, 7), responses);
        assert_eq!(board.number(), 7);
        let content: BoardContent = serde_json::from_slice(board.bytes()).unwrap();
        assert_eq!(content.signal(beacon), Some(board.signal()));
        let announced: Option<CasAnnouncement> = (beacon == StandingBeacon::Cas).then(|| {
            [0, 2, 4].map(|number| (did(number).as_str().to_owned(), update(number))).into_iter().collect()
        });
        assert_eq!(board.announcement(), announced.as_ref());
    }
}

/// A row whose JSON is about that long.
fn asked(document: usize) -> AskedRow {
    AskedRow {
        did_index: index(0),
        action: RowAction::Register,
        serial: 1,
        signature: Signature::from_bytes(&[1; 64]),
        did: None,
        proof: None,
        genesis_document: Some(json!({ "padding": "x".repeat(document) })),
        sidecar: None,
    }
}

#[test]
fn rows_are_split_into_messages_of_a_bounded_size() {
    let cohort_id = CohortId::parse("standing-cohort").unwrap();
    let split = |rows: &[AskedRow]| -> Vec<usize> {
        RegisterRows::split(&cohort_id, rows).iter().map(|part| part.rows.len()).collect()
    };
    let bare = AskedRow { genesis_document: None, ..asked(0) };
    let length = |row: &AskedRow| serde_json::to_string(row).unwrap().len();
    assert_eq!(split(&[]), [0; 0]);
    let most = 49_152;
    let by_size = most / length(&bare);
    assert!(by_size <= MAX_PART_ENTRIES, "no message has more rows than are accepted");
    assert_eq!(split(&vec![bare.clone(); 2 * by_size + 1]), [by_size, by_size, 1]);
    // Three rows of exactly the limit, and one byte more.
    let rest = most - 2 * length(&bare) - length(&asked(0));
    assert_eq!(split(&[bare.clone(), bare.clone(), asked(rest), bare.clone()]), [3, 1]);
    assert_eq!(split(&[bare.clone(), bare.clone(), asked(rest + 1), bare.clone()]), [2, 2]);
    // A larger one is alone.
    assert_eq!(split(&[asked(most), bare.clone(), bare]), [1, 2]);
}
