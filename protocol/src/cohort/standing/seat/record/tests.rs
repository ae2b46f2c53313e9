use std::sync::Arc;

use bitcoin::{Transaction, absolute::LockTime, transaction::Version};

use super::*;
use crate::{
    cohort::standing::{OpportunityKind, StandingBeacon, TransactionHex},
    key::Signature,
    network::Network,
};

const NOW: Timestamp = Timestamp::from_secs(1_000_000);

fn transaction(number: u32) -> Transaction {
    let lock_time = LockTime::from_consensus(number);
    Transaction { version: Version::TWO, lock_time, input: Vec::new(), output: Vec::new() }
}

/// An output of transaction `of`.
fn coin(of: u32, vout: u32) -> CoinRef {
    CoinRef { txid: transaction(of).compute_txid(), vout, value: 1_000 }
}

fn txid(of: u32) -> Txid {
    transaction(of).compute_txid()
}

fn opportunity(number: u64, coins: &[CoinRef], after: &[u32]) -> Opportunity {
    Opportunity {
        number,
        kind: OpportunityKind::Announcement,
        respond_by: 0,
        roster_hash: hash(0),
        coins: coins.to_vec(),
        rows: Vec::new(),
        row_count: 0,
        transactions: after.iter().map(|of| TransactionHex(Arc::new(transaction(*of)))).collect(),
        signature: Signature::from_bytes(&[0; 64]),
    }
}

fn index(byte: u8) -> DidIndex {
    DidIndex::from_bytes([byte; 32])
}

fn hash(byte: u8) -> DocumentHash {
    DocumentHash::from_bytes([byte; 32])
}

fn signal(byte: u8) -> SignalBytes {
    SignalBytes::from_bytes([byte; 32])
}

/// A number with one update of the first index; its transaction `of` is verified if there is one.
fn with(record: &mut Record, number: u64, coins: &[CoinRef], version: u64, of: Option<u32>) {
    record.commit(NOW, &opportunity(number, coins, &[]), &[(index(1), version, hash(version as u8))]);
    if let Some(of) = of {
        record.verified(number, txid(of), Some(signal(of as u8)), hash(of as u8));
        record.signed(number);
    }
}

fn may_submit(record: &Record, after: &[u32], version: u64, of: u8) -> bool {
    record.may_submit(&opportunity(9, &[], after), &index(1), version, &hash(of)).is_ok()
}

#[test]
fn a_signed_transaction_is_followed_in_its_time() {
    let terms = StandingTerms::new(StandingBeacon::Cas, Network::Regtest, 1, 5);
    let mut record = Record::default();
    let first = coin(1, 0);
    let may = |record: &Record, now, coins: &[CoinRef], after: &[u32]| {
        record.may_answer(now, &opportunity(2, coins, after), &terms).is_ok()
    };
    assert!(may(&record, NOW, &[first], &[]));
    with(&mut record, 1, &[first], 2, Some(10));
    assert_eq!((record.txid(1), record.txid(2)), (Some(txid(10)), None));
    assert!(may(&record, NOW, &[first], &[]), "the same coin again");
    let due = NOW + Duration::from_secs(terms.min_seconds_between_announcements.into()) - SKEW;
    for (coins, after) in [(coin(10, 0), &[][..]), (coin(2, 0), &[10][..])] {
        assert!(may(&record, due, &[coins], after), "it descends");
        assert!(!may(&record, due - Duration::from_secs(1), &[coins], after), "too early");
    }
    assert!(!may(&record, due, &[coin(2, 0)], &[11]), "it does not descend");
    record.spend(&first, txid(10), Some(&signal(10)));
    assert!(may(&record, due, &[coin(2, 0)], &[]), "settled");
    assert!(!may(&record, due, &[first], &[]), "spent");
}

#[test]
fn versions_follow_on_what_the_coins_lead_to() {
    let mut record = Record::default();
    with(&mut record, 1, &[coin(1, 0)], 2, Some(10));
    with(&mut record, 2, &[coin(10, 0)], 3, Some(11));
    assert!(may_submit(&record, &[10, 11], 4, 4));
    assert!(may_submit(&record, &[10, 11], 3, 3), "announced by an ancestor, repeated");
    assert!(may_submit(&record, &[10, 11], 2, 2));
    assert!(!may_submit(&record, &[10, 11], 5, 5));
    assert!(!may_submit(&record, &[10, 11], 1, 2), "another version of that hash");
    assert!(!may_submit(&record, &[10, 11], 3, 9), "two of one version end the DID");
    assert!(!may_submit(&record, &[10], 4, 4), "its ancestor is missing");
    record.resolved(index(1), 5);
    assert!(may_submit(&record, &[], 6, 6));
    assert!(!may_submit(&record, &[], 3, 3), "final already, and committed to no more");
}

#[test]
fn a_spent_coin_settles_the_numbers_on_it() {
    let first = coin(1, 0);
    let after = |verified: Option<u32>, by: u32, seen: Option<u8>| {
        let mut record = Record::default();
        record.commit(NOW, &opportunity(3, &[coin(7, 0)], &[]), &[(index(2), 2, hash(7))]);
        with(&mut record, 1, &[first], 2, verified);
        record.spend(&first, txid(by), seen.map(signal).as_ref());
        assert!(record.committed().contains(&(index(2), 2, hash(7))), "number 3 is on another coin");
        let committed = record.committed().contains(&(index(1), 2, hash(2)));
        // Announced: the next version follows. Void: another update of the same version may be submitted.
        (committed, may_submit(&record, &[], 3, 3), may_submit(&record, &[], 2, 9))
    };
    let (announced, void, open) = ((false, true, false), (false, false, true), (true, false, false));
    assert_eq!(after(Some(10), 10, Some(10)), announced);
    assert_eq!(after(Some(10), 10, None), announced, "by its transaction");
    assert_eq!(after(Some(10), 11, Some(10)), announced, "by another one with its signal");
    assert_eq!(after(Some(10), 11, Some(11)), void);
    assert_eq!(after(Some(10), 11, None), void);
    assert_eq!(after(None, 11, None), void, "what announces nothing is not the announcement");
    assert_eq!(after(None, 11, Some(11)), open, "it may be the one that this seat has not seen");
}

#[test]
fn what_descends_from_a_void_number_is_void() {
    let mut record = Record::default();
    with(&mut record, 1, &[coin(1, 0)], 2, Some(10));
    with(&mut record, 2, &[coin(10, 0)], 3, Some(11));
    record.commit(NOW, &opportunity(3, &[coin(5, 0)], &[]), &[(index(2), 2, hash(7))]);
    let terms = StandingTerms::new(StandingBeacon::Cas, Network::Regtest, 1, 5);
    let due = NOW + Duration::from_secs(terms.min_seconds_between_announcements.into());
    let may = |record: &Record| record.may_answer(due, &opportunity(4, &[coin(2, 0)], &[]), &terms).is_ok();
    assert!(!may(&record), "other coins than those of number 2");
    record.spend(&coin(1, 0), txid(12), None);
    assert_eq!(record.committed(), [(index(2), 2, hash(7))]);
    assert!(may(&record), "number 2 can never be mined, although its own coin was never spent");
}

#[test]
fn a_final_version_ends_what_it_includes() {
    let mut record = Record::default();
    for (number, version) in [(1, 2), (2, 3), (3, 4)] {
        with(&mut record, number, &[coin(number as u32, 0)], version, None);
    }
    record.commit(NOW, &opportunity(4, &[coin(5, 0)], &[]), &[(index(2), 2, hash(7))]);
    record.resolved(index(1), 3);
    assert_eq!(record.committed(), [(index(1), 4, hash(4)), (index(2), 2, hash(7))]);
    record.resolved(index(1), 2);
    assert!(may_submit(&record, &[], 4, 4), "an older version changes nothing");
}

#[test]
fn numbers_are_forgotten_when_nothing_can_follow() {
    let known = |spent: &[u32], resolved: u64, last: u64| -> Vec<u64> {
        let mut record = Record::default();
        for number in 1..=last {
            with(&mut record, number, &[coin(number as u32, 0)], number + 1, Some(10 + number as u32));
        }
        for of in spent {
            // The update of the second index stays committed to by the number that spends this coin.
            record.spend(&coin(*of, 0), txid(10 + of), None);
        }
        record.resolved(index(1), resolved);
        (1..=last).filter(|number| record.txid(*number).is_some()).collect()
    };
    assert_eq!(known(&[1], 1, 1), [1], "the last one that was signed");
    assert_eq!(known(&[1], 1, 2), [2]);
    assert_eq!(known(&[1, 2], 1, 3), [3]);
    assert_eq!(known(&[], 4, 3), [1, 2, 3], "their coins are there");
    let mut record = Record::default();
    with(&mut record, 1, &[coin(1, 0)], 2, Some(11));
    record.commit(NOW, &opportunity(2, &[coin(2, 0)], &[]), &[(index(2), 2, hash(7))]);
    // Its board was never seen, so that it may have been announced.
    record.spend(&coin(2, 0), txid(9), Some(&signal(9)));
    record.verified(2, txid(9), None, hash(9));
    with(&mut record, 3, &[coin(3, 0)], 3, Some(13));
    assert_eq!(record.txid(2), Some(txid(9)), "it is committed to");
    record.resolved(index(2), 2);
    assert_eq!(record.txid(2), None);
}
