//! Properties of the ledger: sums by any grouping are equal, the order of facts does not count, and repeated facts count once.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bitcoin::{Txid, hashes::Hash};
use proptest::prelude::*;
use serde_json::{Number, json};

use super::*;
use crate::{
    actors::standing::history::{Fate, OperatorOutput, Paid},
    cost::WalletKind,
    protocol::{
        beacon::did_index,
        cohort::standing::{Mode, OpportunityKind, StandingBeacon, StandingTerms},
        did::Did,
        hash::DocumentHash,
        id::CohortId,
        identity::Identity,
        key::{PublicKey, SecretKey},
        message::keygen::{Cost, CostBasis},
        network::Network,
        time::Timestamp,
    },
};

fn identity(seed: u8) -> Identity {
    Identity::from_key(SecretKey::from_bytes(&[seed; 32]).unwrap(), Network::Regtest)
}

fn seat(number: u8) -> (PublicKey, Did) {
    let identity = identity(10 + number);
    (identity.secret_key().public_key(), identity.did().clone())
}

/// One of two DIDs of a seat.
fn did(seat: u8, number: u8) -> Did {
    identity(100 + 2 * seat + number).did().clone()
}

fn update(seat: u8, number: u8, version: u8) -> Update {
    Update { index: did_index(&did(seat, number)), hash: DocumentHash::from_bytes([version; 32]) }
}

fn cost(amount: &str, unit: &str, basis: Option<CostBasis>) -> Option<Cost> {
    let amount: Number = serde_json::from_str(amount).unwrap();
    Some(Cost { amount, unit: unit.to_owned(), basis })
}

fn txid(number: u64) -> Txid {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Txid::from_byte_array(bytes)
}

/// A cohort of three seats with two DIDs each.
fn cohort(name: &str, numbers: Vec<NumberFacts>) -> CohortFacts {
    let mut terms = StandingTerms::new(StandingBeacon::Cas, Network::Regtest, 3, 3).proceeding(2);
    terms.cost_of_enrollment = cost("2.5", "sat", Some(CostBasis::PerDid));
    terms.cost_per_announcement = cost("7", "credits", None);
    CohortFacts {
        cohort_id: CohortId::parse(name).unwrap(),
        service: identity(1).did().clone(),
        terms: Arc::new(terms),
        formed_at: Some(Timestamp::from_secs(1_700_000_000)),
        seats: (0..3).map(seat).collect(),
        is_service: true,
        dids: BTreeMap::new(),
        numbers,
        tries: None,
    }
}

fn board(updates: &[(u8, u8, u8)]) -> BoardFacts {
    let listed: Vec<_> =
        updates.iter().map(|(of, number, version)| (seat(*of).0, update(*of, *number, *version))).collect();
    let all = (0..3).flat_map(|of| (0..2).map(move |number| did(of, number)));
    BoardFacts {
        roster: (0..3).map(|of| (seat(of).0, (0..2).map(|number| did_index(&did(of, number))).collect())).collect(),
        absent: BTreeSet::new(),
        updates: BoardUpdates::Listed(listed),
        dids: all.map(|did| (did_index(&did), did)).collect(),
    }
}

/// A number with these updates, which pays `fee` for 154 vB.
fn number(number: u64, fee: u64, updates: &[(u8, u8, u8)]) -> NumberFacts {
    NumberFacts {
        number,
        // Of the months of three years.
        at: Some(Timestamp::from_secs(1_700_000_000 + number * 86_400 * 20)),
        kind: OpportunityKind::Announcement,
        txid: txid(number),
        state: Fate::Final,
        coins: Vec::new(),
        paid: Some(Paid { mode: Mode::Key, fee, vsize: 154, operator: None }),
        board: Some(board(updates)),
        updates: BTreeMap::new(),
        child: ChildFee::Unknown,
    }
}

fn operator(value: u64) -> Option<OperatorOutput> {
    Some(OperatorOutput { vout: 1, value, script: bitcoin::ScriptBuf::new_op_return([1]) })
}

fn sum_of(ledger: &Ledger, kind: Kind) -> Option<String> {
    let total = ledger.total();
    let of_kind = total.0.iter().find(|((of, _), _)| *of == kind);
    of_kind.and_then(|(_, line)| line.amount).map(|amount| amount.to_string())
}

prop_compose! {
    fn any_number(of: u64)(
        fee in 0u64..100_000,
        updates in prop::collection::btree_set((0u8..3, 0u8..2), 0..6),
        version in 0u8..3,
        kind in 0u8..3,
        state in 0u8..3,
        value in prop::option::of(0u64..5_000),
        known in 0u8..8,
    ) -> NumberFacts {
        let updates: Vec<(u8, u8, u8)> = updates.into_iter().map(|(seat, did)| (seat, did, version)).collect();
        let mut facts = number(of, fee, if kind == 0 { &[] } else { &updates });
        facts.state = [Fate::Final, Fate::Unconfirmed, Fate::Void][usize::from(state)];
        facts.paid.as_mut().unwrap().operator = value.and_then(operator);
        if kind == 0 {
            facts.kind = OpportunityKind::Refresh;
        }
        if kind == 2 {
            // As of an SMT cohort: what seats have is hidden, but for one of them.
            let board = facts.board.as_mut().unwrap();
            let seats: BTreeSet<PublicKey> = updates.iter().map(|(of, ..)| seat(*of).0).collect();
            board.updates = BoardUpdates::OfSeats(seats.into_iter().collect());
            let own: Vec<Update> = updates.iter().filter(|(of, ..)| *of == 1).map(|(a, b, c)| update(*a, *b, *c)).collect();
            facts.updates = BTreeMap::from([(seat(1).0, own)]);
        }
        facts.paid = facts.paid.filter(|_| known != 1);
        facts.board = facts.board.filter(|_| known != 2);
        facts.at = facts.at.filter(|_| known != 3);
        facts
    }
}

fn any_cohorts() -> impl Strategy<Value = Vec<CohortFacts>> {
    let numbers = |from: u64| (any_number(from), any_number(from + 1), any_number(from + 5));
    (numbers(1), numbers(3))
        .prop_map(|((a, b, c), (d, e, f))| vec![cohort("=one", vec![a, b, c]), cohort("two", vec![d, e, f])])
}

proptest! {
    #[test]
    fn sums_by_any_grouping_are_equal(facts in any_cohorts()) {
        let ledger = Ledger::of(&CohortFacts::merged(facts));
        for by in Grouping::ALL {
            let mut all = Sum::default();
            ledger.sums(by).values().for_each(|sum| all.add_all(sum));
            prop_assert_eq!(&all, &ledger.total(), "{:?}", by);
        }
    }

    #[test]
    fn neither_order_nor_repetition_of_facts_counts(facts in any_cohorts(), seed in any::<u64>()) {
        let expected = Report::of(facts.clone(), WalletKind::P2wpkh);
        let mut pieces: Vec<CohortFacts> = facts
            .iter()
            .flat_map(|cohort| cohort.numbers.iter().map(|one| CohortFacts { numbers: vec![one.clone()], ..cohort.clone() }))
            .collect();
        pieces.extend(facts.clone());
        let mut state = seed;
        for at in (1..pieces.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            pieces.swap(at, usize::try_from(state >> 33).unwrap() % (at + 1));
        }
        prop_assert_eq!(Report::of(pieces, WalletKind::P2wpkh), expected);
    }

    #[test]
    fn all_shares_of_a_number_are_what_its_transaction_pays(facts in any_cohorts()) {
        let merged = CohortFacts::merged(facts);
        let ledger = Ledger::of(&merged);
        for number in merged.iter().flat_map(|cohort| &cohort.numbers) {
            let of_number = ledger.entries.iter().filter(|entry| entry.txid == Some(number.txid));
            let of_kinds = |kinds: &[Kind]| -> Option<Quantity> {
                of_number.clone().filter(|entry| kinds.contains(&entry.kind)).map(|entry| entry.amount).sum()
            };
            let fee = of_kinds(&[Kind::FeeShare, Kind::Repeat, Kind::Refresh]);
            let known = number.paid.as_ref().filter(|_| number.board.is_some());
            match (number.state, known) {
                (Fate::Void, _) => prop_assert_eq!(fee, Some(Quantity::ZERO)),
                (_, None) => prop_assert_eq!(fee, None),
                (_, Some(paid)) => {
                    prop_assert_eq!(fee, Some(Quantity::whole(paid.fee)));
                    let value = paid.operator.as_ref().map_or(0, |operator| operator.value);
                    prop_assert_eq!(of_kinds(&[Kind::OperatorOutput]), Some(Quantity::whole(value)));
                }
            }
        }
    }

    #[test]
    fn a_seats_own_ledger_is_its_part_of_the_services(facts in any_cohorts()) {
        let all = Ledger::of(&CohortFacts::merged(facts.clone()));
        let own = seat(1);
        let member = facts.into_iter().map(|cohort| CohortFacts {
            seats: BTreeMap::from([own.clone()]),
            is_service: false,
            ..cohort
        });
        let member = Ledger::of(&CohortFacts::merged(member));
        let part: Vec<Entry> = all.entries.into_iter().filter(|entry| entry.seat.as_ref() == Some(&own.1)).collect();
        prop_assert_eq!(member.entries, part);
    }

    #[test]
    fn exports_say_what_the_ledger_says(facts in any_cohorts()) {
        let report = Report::of(facts, WalletKind::P2tr);
        let text = serde_json::to_string(&report).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Report>(&text).unwrap(), &report);
        let csv = csv_of_entries(&report.ledger);
        let rows: Vec<&str> = csv.split_terminator("\r\n").collect();
        prop_assert_eq!(rows.len(), report.ledger.entries.len() + 1);
        for (row, entry) in rows[1..].iter().zip(&report.ledger.entries) {
            // A cohort's identifier that would be a formula.
            prop_assert!(entry.cohort_id.as_str() != "=one" || row.contains("\"'=one\""), "{}", row);
            let amount = entry.amount.map_or_else(|| UNKNOWN.to_owned(), |amount| amount.to_string());
            let fields: Vec<&str> = row.split(',').collect();
            prop_assert_eq!((fields.len(), fields[8]), (12, amount.as_str()));
        }
    }
}

#[test]
fn a_ledger_has_prices_shares_and_repeats() {
    let mut second = number(2, 101, &[(0, 0, 1), (1, 0, 1)]);
    second.paid.as_mut().unwrap().operator = operator(1_000);
    let facts =
        CohortFacts::merged([cohort("a", vec![number(1, 100, &[(0, 0, 1), (0, 1, 1), (2, 0, 1)]), second])]);
    let ledger = Ledger::of(&facts);
    let sum = |kind| sum_of(&ledger, kind);
    // Six DIDs at 2.5 sat; three seats in two announcements at 7 credits.
    assert_eq!(sum(Kind::Enrollment), Some("15".to_owned()));
    assert_eq!(sum(Kind::Announcement), Some("42".to_owned()));
    // 34, 33 and 33 sat; then 51 sat of the repeated update, and 50 of the new one.
    assert_eq!(sum(Kind::FeeShare), Some("150".to_owned()));
    assert_eq!(sum(Kind::Repeat), Some("51".to_owned()));
    assert_eq!(sum(Kind::OperatorOutput), Some("1000".to_owned()));
    assert_eq!(sum(Kind::ChildFee), None, "it was not looked up");
    let children: Vec<_> = ledger.entries.iter().filter(|entry| entry.kind == Kind::ChildFee).collect();
    assert_eq!(children.len(), 1, "of the number with an operator's output only");
    assert_eq!((children[0].number, children[0].amount, &children[0].seat), (Some(2), None, &None));
    let months: Vec<String> = ledger.sums(Grouping::Month).into_keys().collect();
    assert_eq!(months, ["2023-12"]);
    let dids = ledger.sums(Grouping::Did);
    assert!(dids.contains_key(did(0, 0).as_str()) && dids.contains_key("no single DID"), "{dids:?}");
}

#[test]
fn what_is_not_known_is_never_zero() {
    let mut unpaid = number(1, 0, &[(0, 0, 1)]);
    unpaid.paid = None;
    let mut boardless = number(2, 500, &[(0, 0, 1)]);
    boardless.board = None;
    let mut free = cohort("a", vec![unpaid, boardless]);
    let mut terms = StandingTerms::clone(&free.terms);
    // Finer than what a ledger has.
    (terms.cost_of_enrollment, terms.cost_per_announcement) = (cost("0.00001", "sat", None), None);
    free.terms = Arc::new(terms);
    let report = Report::of(vec![free], WalletKind::P2wpkh);
    assert!(report.ledger.entries.iter().all(|entry| entry.amount.is_none()), "{report:#?}");
    let shown = serde_json::to_value(&report.ledger).unwrap();
    assert_eq!((&shown["announcements"][0]["fee"], &shown["entries"][0]["amount"]), (&json!(null), &json!(null)));
    let comparison = &report.comparisons[0];
    assert_eq!((comparison.unknown_fees, comparison.fees), (1, 500));
    assert_eq!(comparison.updates, Count { at_least: 1, is_exact: false });
}

#[test]
fn a_comparison_counts_what_a_cohort_costs_beside() {
    let all = [(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1), (2, 0, 1), (2, 1, 1)];
    let compared = |numbers| Report::of(vec![cohort("a", numbers)], WalletKind::P2tr).comparisons.remove(0);
    // Six updates of KEY DIDs, which have all listed the beacon by a Singleton transaction first: dearer than these alone.
    let first = compared(vec![number(1, 308, &all)]);
    assert_eq!((first.registrations.needed, first.registrations.possible), (6, 0));
    assert_eq!((first.singletons, first.saved), (6 * 308, (-308, -308)));
    // The next six need no other transaction.
    let next: Vec<_> = all.iter().map(|(seat, did, _)| (*seat, *did, 2)).collect();
    let both = compared(vec![number(1, 308, &all), number(2, 308, &next)]);
    assert_eq!(both.saved, (-308 + 5 * 308, -308 + 5 * 308));
    // A repeat, a child and a refresh save nothing; what is void costs nothing.
    let mut repeat = number(3, 400, &next);
    repeat.paid.as_mut().unwrap().operator = operator(700);
    repeat.child = ChildFee::Paid(50, txid(99));
    let mut refresh = number(4, 200, &[]);
    refresh.kind = OpportunityKind::Refresh;
    let mut void = number(5, 9_999, &all);
    void.state = Fate::Void;
    let beside = compared(vec![number(1, 308, &all), number(2, 308, &next), repeat, refresh, void]);
    assert_eq!(beside.saved.0, both.saved.0 - 400 - 50 - 200);
    assert_eq!((beside.updates.at_least, beside.repeats.at_least), (12, 6));
    assert_eq!((beside.child_fees, beside.operator_outputs, beside.void, beside.refreshes), (50, 700, 1, 1));
    assert_eq!(beside.unknown_children, 0);
    // By fallback it is larger: 2 of 3 seats.
    let mut fallback = number(1, 0, &all);
    let size = |mode| crate::protocol::cohort::standing::announcement_vsize(&cohort("a", vec![]).terms, 3, mode);
    fallback.paid =
        Some(Paid { mode: Mode::Fallback, fee: size(Mode::Fallback), vsize: size(Mode::Fallback), operator: None });
    let fallback = compared(vec![fallback]);
    assert_eq!((fallback.by_fallback, fallback.fallback_surplus), (1, size(Mode::Fallback) - size(Mode::Key)));
}

#[test]
fn amounts_are_exact_to_a_thousandth() {
    for (text, shown) in
        [("0", "0"), ("2.5", "2.5"), ("1000000.0", "1000000"), ("0.001", "0.001"), ("12.340", "12.34")]
    {
        assert_eq!(text.parse::<Quantity>().unwrap().to_string(), shown);
    }
    for wrong in ["", ".5", "-1", "1.2345", "1e3", "x", "1.2.3", "+1"] {
        assert!(wrong.parse::<Quantity>().is_err(), "{wrong}");
    }
    let whole = Quantity::whole(3).plus("0.25".parse().unwrap());
    assert_eq!(serde_json::to_string(&whole).unwrap(), "3.25");
    assert_eq!(serde_json::from_str::<Quantity>("3.25").unwrap(), whole);
}
