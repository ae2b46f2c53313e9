//! Rows and rosters: an index never moves without a row of the seat that has it.

use btcr2_aggregation_protocol::{
    cohort::standing::{Row, RowAction, RowProblem, StandingBeacon, StandingTerms},
    id::CohortId,
    key::SecretKey,
};

use super::cohort::{Cohort, NETWORK, index, rng};

fn cohort() -> Cohort {
    Cohort::new(StandingTerms::new(StandingBeacon::Smt, NETWORK, 1, 5), 3, 2)
}

#[test]
fn a_row_counts_once_and_for_its_cohort_only() {
    let mut cohort = cohort();
    let row = cohort.row(0, 100, RowAction::Register, 5);
    assert_eq!(cohort.roster.check(&row), Ok(()));
    let before = cohort.roster.hash();
    cohort.roster.follow([&row]).unwrap();
    assert_ne!(cohort.roster.hash(), before);
    assert_eq!(cohort.roster.seat_of(&index(100)), Some(&row.seat));
    let last = 5;
    assert_eq!(
        cohort.roster.check(&row),
        Err(RowProblem::Serial { index: index(100), serial: 5, last }),
        "repeated"
    );

    // Any other field than the signed ones.
    let fresh = cohort.row(0, 101, RowAction::Register, 1);
    let altered = [
        Row { did_index: index(102), ..fresh.clone() },
        Row { serial: 2, ..fresh.clone() },
        Row { seat: cohort.keys[1].public_key(), ..fresh.clone() },
    ];
    for row in altered {
        assert!(matches!(cohort.roster.check(&row), Err(RowProblem::Signature(_))), "{row:?}");
    }
    let outsider = Row { seat: SecretKey::from_bytes(&[9; 32]).unwrap().public_key(), ..fresh.clone() };
    assert_eq!(cohort.roster.check(&outsider), Err(RowProblem::NotASeat(outsider.seat)));

    // A row of another cohort with the same seats, at the same address.
    let mut other = cohort.roster.context().clone();
    other.cohort_id = CohortId::parse("another").unwrap();
    let foreign = Row::sign(&other, &cohort.keys[0], index(101), RowAction::Register, 1, &mut rng());
    assert_eq!(cohort.roster.check(&foreign), Err(RowProblem::Signature(index(101))));
}

#[test]
fn an_index_moves_only_when_its_seat_releases_it() {
    let mut cohort = cohort();
    // Index 0 is registered to seat 0.
    let taken = cohort.row(1, 0, RowAction::Register, 2);
    let seat = cohort.keys[0].public_key();
    assert_eq!(cohort.roster.check(&taken), Err(RowProblem::Taken { index: index(0), seat }));
    let released_by_another = cohort.row(1, 0, RowAction::Unregister, 2);
    assert_eq!(cohort.roster.check(&released_by_another), Err(RowProblem::NotRegistered(index(0))));
    let released = cohort.row(0, 0, RowAction::Unregister, 2);
    cohort.roster.follow([&released]).unwrap();
    assert_eq!((cohort.roster.seat_of(&index(0)), cohort.roster.row(&index(0))), (None, Some(&released)));
    // Its serial stays used: a row from before the release does not count again.
    let old = cohort.row(0, 0, RowAction::Register, 1);
    assert_eq!(cohort.roster.check(&old), Err(RowProblem::Serial { index: index(0), serial: 1, last: 2 }));
    assert!(cohort.roster.check(&taken).is_err(), "signed before the release, with a used serial");
    let moved = cohort.row(1, 0, RowAction::Register, 3);
    cohort.roster.follow([&moved]).unwrap();
    assert_eq!(cohort.roster.seat_of(&index(0)), Some(&cohort.keys[1].public_key()));
    assert_eq!(cohort.roster.indexes(&cohort.keys[0].public_key()).len(), 1);
    assert_eq!(cohort.roster.len(), 6);
}

#[test]
fn a_seat_registers_as_many_as_the_terms_allow() {
    let mut terms = StandingTerms::new(StandingBeacon::Cas, NETWORK, 1, 5);
    terms.max_dids_per_participant = 2;
    let mut cohort = Cohort::new(terms, 2, 2);
    let third = cohort.row(0, 50, RowAction::Register, 1);
    assert_eq!(cohort.roster.check(&third), Err(RowProblem::TooMany(2)));
    let released = cohort.row(0, 0, RowAction::Unregister, 2);
    cohort.roster.follow([&released, &third]).unwrap();
}

#[test]
fn the_roster_hash_names_seats_indexes_and_serials() {
    let cohort = cohort();
    let mut hashes = vec![cohort.roster.hash()];
    for (seat, did, action, serial) in
        [(0, 100, RowAction::Register, 1), (0, 100, RowAction::Register, 2), (1, 100, RowAction::Register, 1)]
    {
        let mut roster = cohort.roster.clone();
        roster.follow([&cohort.row(seat, did, action, serial)]).unwrap();
        hashes.push(roster.hash());
    }
    let released = cohort.row(0, 0, RowAction::Unregister, 2);
    let mut roster = cohort.roster.clone();
    roster.follow([&released]).unwrap();
    hashes.push(roster.hash());
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), 5);
}
