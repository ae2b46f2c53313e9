//! Responses and boards: every holder of the bytes rebuilds the signal, and bytes that are not the cohort's are refused.

use std::sync::Arc;

use btcr2_aggregation_protocol::{
    beacon::{AggregateBeacon, BeaconData, CasBeacon, SmtBeacon},
    cohort::standing::{
        Board, BoardContent, BoardProblem, Entry, Response, ResponseProblem, StandingBeacon, StandingTerms,
    },
    hash::{DocumentHash, sha256},
};
use proptest::prelude::*;

use super::cohort::{Cohort, NETWORK, did, index, rng, update};

fn terms(beacon: StandingBeacon) -> StandingTerms {
    StandingTerms::new(beacon, NETWORK, 1, 50)
}

fn both() -> [StandingTerms; 2] {
    [terms(StandingBeacon::Cas), terms(StandingBeacon::Smt)]
}

/// Signed again, as `change` leaves it.
fn altered(cohort: &Cohort, seat: usize, change: impl FnOnce(&mut Response)) -> Response {
    let mut response = cohort.response(seat, 1, &[2 * seat]);
    change(&mut response);
    let digest = response.hash(cohort.roster.context());
    response.signature = cohort.keys[seat].sign(digest.as_bytes(), &mut rng());
    response
}

#[test]
fn a_response_counts_only_as_its_seat_has_signed_it() {
    for terms in both() {
        let cohort = Cohort::new(terms, 3, 2);
        let hash = cohort.roster.hash();
        let check = |response: &Response| response.check(&cohort.terms, &cohort.roster, &hash, 1, 1);
        let valid = cohort.response(0, 1, &[0]);
        assert_eq!(check(&valid), Ok(()));
        let unsigned: [fn(&mut Response); 4] = [
            |response| response.has_updates = !response.has_updates,
            |response| response.entries.clear(),
            |response| response.nonce_contributions[0].0[1] ^= 1,
            |response| response.number = 2,
        ];
        for change in unsigned {
            let mut response = valid.clone();
            change(&mut response);
            assert!(check(&response).is_err(), "{response:?}");
        }
        let another = cohort.response(1, 1, &[2]);
        let stolen = Response { signature: another.signature, ..valid.clone() };
        assert_eq!(check(&stolen), Err(ResponseProblem::Signature));
        let (nonces, number) = (|r: &mut Response| r.nonce_contributions.clear(), |r: &mut Response| r.number = 7);
        assert_eq!(check(&altered(&cohort, 0, nonces)), Err(ResponseProblem::Nonces { expected: 1 }));
        assert_eq!(check(&altered(&cohort, 0, number)), Err(ResponseProblem::Number { expected: 1, found: 7 }));
        let roster = |r: &mut Response| r.roster_hash = update(9);
        assert_eq!(check(&altered(&cohort, 0, roster)), Err(ResponseProblem::RosterHash(update(9))));
    }
}

#[test]
fn a_seat_speaks_for_its_own_indexes_only() {
    let cohort = Cohort::new(terms(StandingBeacon::Cas), 3, 2);
    let hash = cohort.roster.hash();
    let check = |response: &Response| response.check(&cohort.terms, &cohort.roster, &hash, 1, 1);
    let cas = |number: usize| Entry::Cas { did: did(number).as_str().to_owned(), update_hash: update(number) };
    // A DID of seat 1; one that no seat has registered; the same one twice; a leaf in a CAS cohort.
    for number in [2, 100] {
        let foreign = altered(&cohort, 0, |response| response.entries = vec![cas(number)]);
        assert_eq!(check(&foreign), Err(ResponseProblem::NotRegistered(index(number))));
    }
    let twice = altered(&cohort, 0, |response| response.entries = vec![cas(0), cas(0)]);
    assert_eq!(check(&twice), Err(ResponseProblem::Order(1)));
    let leaf = altered(&cohort, 0, |response| response.entries = vec![Entry::leaf(index(0), &[1; 32], None)]);
    assert_eq!(check(&leaf), Err(ResponseProblem::Kind(0)));
    let claimed = altered(&cohort, 0, |response| response.entries.clear());
    assert_eq!(check(&claimed), Err(ResponseProblem::HasUpdates));

    let cohort = Cohort::new(terms(StandingBeacon::Smt), 3, 2);
    let hash = cohort.roster.hash();
    let check = |response: &Response| response.check(&cohort.terms, &cohort.roster, &hash, 1, 1);
    let missing = altered(&cohort, 0, |response| drop(response.entries.pop()));
    assert!(matches!(check(&missing), Err(ResponseProblem::LeafMissing(_))), "{:?}", check(&missing));
    for number in [2, 100] {
        let foreign = altered(&cohort, 0, |response| {
            response.entries.push(Entry::leaf(index(number), &[1; 32], None));
            response.entries.sort();
        });
        assert!(check(&foreign).is_err(), "an index that is not the seat's");
    }
}

/// Every board, read by a seat, gives the signal and the data by which each DID resolves.
fn assert_rebuilt(cohort: &Cohort, board: &Board, number: u64, updated: &[Option<Vec<usize>>], dids: usize) {
    let hash = cohort.roster.hash();
    let read = Board::read(board.bytes(), board.hash(), cohort.place(&hash, number)).unwrap();
    assert_eq!(read.signal(), board.signal());
    for number_of_did in 0..cohort.keys.len() * dids {
        let seat = number_of_did / dids;
        let has_update = updated[seat].as_ref().is_some_and(|of_seat| of_seat.contains(&number_of_did));
        let slot = has_update.then(|| update(number_of_did));
        let (did, index) = (did(number_of_did), index(number_of_did));
        let nonce = updated[seat].is_some().then(|| cohort.nonce(seat, number, number_of_did));
        let data = read.data(&index, nonce.as_ref(), slot.as_ref()).unwrap();
        let signal = match cohort.terms.beacon_type {
            StandingBeacon::Cas => CasBeacon.verify(&did, slot.as_ref(), &data),
            StandingBeacon::Smt => SmtBeacon.verify(&did, slot.as_ref(), &data),
        };
        assert_eq!(signal, Ok(board.signal()), "DID {number_of_did}");
        if let BeaconData::Smt(proof) = &data {
            assert_eq!(proof.verify(index.as_bytes()), Ok(()), "as a resolver verifies it");
            let wrong = read.data(&index, Some(&[0xee; 32]), slot.as_ref());
            assert_eq!(wrong, None, "a proof of what is not in the leaf");
        }
    }
    // A DID that was never registered: no entry, or an empty leaf.
    let (outsider, at) = (did(900), index(900));
    let data = read.data(&at, None, None).unwrap();
    let signal = match cohort.terms.beacon_type {
        StandingBeacon::Cas => CasBeacon.verify(&outsider, None, &data),
        StandingBeacon::Smt => SmtBeacon.verify(&outsider, None, &data),
    };
    assert_eq!(signal, Ok(board.signal()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whoever_has_the_board_rebuilds_the_signal(
        smt: bool,
        seats in 1..5_usize,
        dids in 1..4_usize,
        choices in prop::collection::vec(any::<Option<u8>>(), 4),
    ) {
        let beacon = if smt { StandingBeacon::Smt } else { StandingBeacon::Cas };
        let cohort = Cohort::new(terms(beacon), seats, dids);
        // Absent, or with updates for some of its DIDs.
        let updated: Vec<Option<Vec<usize>>> = (0..seats)
            .map(|seat| {
                let bits = choices[seat]?;
                Some((seat * dids..(seat + 1) * dids).filter(|did| bits & (1 << (did % 8)) != 0).collect())
            })
            .collect();
        let responses = updated.iter().enumerate().filter_map(|(seat, updated)| {
            Some(cohort.response(seat, 3, updated.as_ref()?))
        });
        let hash = cohort.roster.hash();
        let board = Board::of(cohort.place(&hash, 3), responses);
        prop_assert_eq!(board.absent().count(), updated.iter().filter(|seat| seat.is_none()).count());
        prop_assert_eq!(board.has_updates(), updated.iter().flatten().any(|of_seat| !of_seat.is_empty()));
        assert_rebuilt(&cohort, &board, 3, &updated, dids);
    }
}

#[test]
fn other_bytes_than_the_announced_board_are_refused() {
    for terms in both() {
        let cohort = Cohort::new(terms, 3, 2);
        let hash = cohort.roster.hash();
        let board = Board::of(cohort.place(&hash, 1), (0..3).map(|seat| cohort.response(seat, 1, &[2 * seat])));
        let read = |content: &BoardContent, number: u64| {
            let bytes = serde_json::to_vec(content).unwrap();
            let hash_of_bytes = DocumentHash::from_bytes(sha256(&bytes));
            Board::read(&Arc::new(bytes), &hash_of_bytes, cohort.place(&hash, number)).map(|board| board.signal())
        };
        let content: BoardContent = serde_json::from_slice(board.bytes()).unwrap();
        assert_eq!(read(&content, 1), Ok(board.signal()));
        assert_eq!(read(&content, 2), Err(BoardProblem::Place(1)));
        let alter = |change: &dyn Fn(&mut BoardContent)| {
            let mut content = content.clone();
            change(&mut content);
            read(&content, 1).unwrap_err()
        };
        // Two boards of one number: the second has another hash, and a seat has signed for the first.
        let fewer = Board::of(cohort.place(&hash, 1), [cohort.response(0, 1, &[0])]);
        assert_ne!(fewer.hash(), board.hash());
        assert!(matches!(
            Board::read(fewer.bytes(), board.hash(), cohort.place(&hash, 1)),
            Err(BoardProblem::Hash { .. })
        ));
        assert_eq!(alter(&|board| board.roster[0].indexes.clear()), BoardProblem::Roster);
        assert_eq!(alter(&|board| board.roster_hash = update(1)), BoardProblem::Roster);
        assert_eq!(alter(&|board| board.responses.reverse()), BoardProblem::Order);
        let doubled = alter(&|board| {
            let first = board.responses[0].clone();
            board.responses.insert(0, first);
        });
        assert_eq!(doubled, BoardProblem::Order);
        let forged = alter(&|board| board.responses[1].has_updates = false);
        assert!(matches!(forged, BoardProblem::Response { .. }), "{forged}");
        let json = Board::read(
            &Arc::new(b"{}".to_vec()),
            &DocumentHash::from_bytes(sha256(b"{}")),
            cohort.place(&hash, 1),
        );
        assert!(matches!(json, Err(BoardProblem::Json(_))));
    }
}
