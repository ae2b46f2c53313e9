//! What a seat may see announced: the updates that it has committed to, the transactions that it has signed, and what became of their coins.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bitcoin::{OutPoint, Txid};
use serde::{Deserialize, Serialize};

use super::ends::Ends;
use crate::{
    cohort::standing::{
        opportunity::{CoinRef, Opportunity, TransactionHex},
        terms::StandingTerms,
    },
    hash::{DidIndex, DocumentHash, SignalBytes},
    time::Timestamp,
};

/// How far the clocks of service and seat may differ.
const SKEW: Duration = Duration::from_secs(60);

/// An update that may be announced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Commitment {
    number: u64,
    index: DidIndex,
    version: u64,
    hash: DocumentHash,
}

/// A number that this seat has answered and that may still be announced, or is the last one that it has signed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Answered {
    at: Timestamp,
    coins: Vec<OutPoint>,
    /// What the unconfirmed transactions spend from which its coins descend, each with that transaction: this seat may not have answered their
    /// numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ancestors: Vec<(OutPoint, Txid)>,
    /// Known once its board and transaction were verified.
    txid: Option<Txid>,
    signal: Option<SignalBytes>,
    /// That board, and whether the host has stored it.
    board: Option<DocumentHash>,
    is_stored: bool,
    is_signed: bool,
    /// Another transaction has spent its coin, or that of an ancestor: it can never be mined.
    #[serde(default)]
    is_void: bool,
}

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    commitments: Vec<Commitment>,
    numbers: BTreeMap<u64, Answered>,
    last_signed: Option<u64>,
    spent: BTreeSet<OutPoint>,
    /// The highest version of each DID that is final.
    finals: BTreeMap<DidIndex, u64>,
    /// After a restore from a backup: the coins that have to be spent before what the lost seat may have signed is settled, and the
    /// updates in the backup.
    restored: Option<Restored>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Restored {
    coins: BTreeSet<OutPoint>,
    updates: BTreeSet<(DidIndex, u64, DocumentHash)>,
}

fn outpoint(coin: &CoinRef) -> OutPoint {
    OutPoint::new(coin.txid, coin.vout)
}

impl Record {
    /// Whether this seat may answer an opportunity on these coins now.
    ///
    /// # Errors
    /// Why not, in words.
    pub(super) fn may_answer(
        &self,
        now: Timestamp,
        opportunity: &Opportunity,
        terms: &StandingTerms,
    ) -> Result<(), String> {
        let coins: Vec<OutPoint> = opportunity.coins.iter().map(outpoint).collect();
        if let Some(coin) = coins.iter().find(|coin| self.spent.contains(coin)) {
            return Err(format!("the coin {coin} is spent"));
        }
        let Some((number, last)) = self.last_signed.and_then(|number| Some((number, self.numbers.get(&number)?)))
        else {
            return Ok(());
        };
        if last.coins.iter().all(|coin| coins.contains(coin)) {
            // The same coin again: one of the two transactions at most can be mined.
            return Ok(());
        }
        let descends = |txid: Txid| {
            coins.iter().any(|coin| coin.txid == txid)
                || opportunity.transactions.iter().any(|tx| tx.0.compute_txid() == txid)
        };
        let settled = last.is_void || last.coins.iter().any(|coin| self.spent.contains(coin));
        if !settled && !last.txid.is_some_and(descends) {
            return Err(format!("other coins than those of number {number}, which this seat has signed"));
        }
        let earliest = last.at + Duration::from_secs(terms.min_seconds_between_announcements.into());
        if now + SKEW < earliest {
            return Err("the terms' time between announcements has not passed".to_owned());
        }
        Ok(())
    }

    /// Whether an update may be submitted.
    ///
    /// # Errors
    /// Why not, in words.
    pub(super) fn may_submit(
        &self,
        opportunity: &Opportunity,
        index: &DidIndex,
        version: u64,
        hash: &DocumentHash,
    ) -> Result<(), String> {
        let of_index = || self.commitments.iter().filter(|one| one.index == *index);
        if of_index().any(|one| one.version == version && one.hash != *hash) {
            return Err(format!(
                "another update of version {version} may still be announced: two different ones end the DID"
            ));
        }
        if let Some(restored) = &self.restored
            && !restored.updates.contains(&(*index, version, *hash))
            && !of_index().any(|one| one.version == version && one.hash == *hash)
        {
            return Err(
                "this seat was restored from a backup, and what it may have signed before is not settled on the chain yet"
                    .to_owned(),
            );
        }
        let announced = self.announced_by_ancestors(opportunity);
        let mut reached = self.finals.get(index).copied().unwrap_or(1);
        while announced.contains(&(*index, reached + 1)) {
            reached += 1;
        }
        // An update that an ancestor announces already, repeated: resolvers pass the identical one over.
        let repeated = version <= reached && of_index().any(|one| one.version == version && one.hash == *hash);
        if version == reached + 1 || repeated {
            return Ok(());
        }
        Err(format!("version {version} does not follow on {reached}, the highest that these coins lead to"))
    }

    /// Index and version of what the unconfirmed transactions announce from which the coins of the opportunity descend.
    pub(super) fn announced_by_ancestors(&self, opportunity: &Opportunity) -> BTreeSet<(DidIndex, u64)> {
        let ancestors: Vec<Txid> = opportunity.transactions.iter().map(|tx| tx.0.compute_txid()).collect();
        let is_ancestor = |one: &&Commitment| {
            let txid = self.numbers.get(&one.number).and_then(|number| number.txid);
            txid.is_some_and(|txid| ancestors.contains(&txid))
        };
        self.commitments.iter().filter(is_ancestor).map(|one| (one.index, one.version)).collect()
    }

    /// Index and version of what the numbers announce that the service has reported as signed, until their coins are spent, finally.
    pub(super) fn reported(&self, ends: &Ends) -> BTreeSet<(DidIndex, u64)> {
        let is_reported = |one: &&Commitment| {
            let number = self.numbers.get(&one.number).filter(|number| !number.is_void);
            let waits = |number: &Answered| !number.coins.iter().any(|coin| self.spent.contains(coin));
            ends.knows(one.number) && number.is_some_and(waits)
        };
        self.commitments.iter().filter(is_reported).map(|one| (one.index, one.version)).collect()
    }

    /// The highest version of each DID that is final, as far as this seat knows.
    pub(super) const fn finals(&self) -> &BTreeMap<DidIndex, u64> {
        &self.finals
    }

    pub(super) fn commit(
        &mut self,
        at: Timestamp,
        opportunity: &Opportunity,
        updates: &[(DidIndex, u64, DocumentHash)],
    ) {
        let coins = opportunity.coins.iter().map(outpoint).collect();
        let spends = |tx: &TransactionHex| {
            let txid = tx.0.compute_txid();
            tx.0.input.iter().map(|input| (input.previous_output, txid)).collect::<Vec<_>>()
        };
        let answered = Answered {
            at,
            coins,
            ancestors: opportunity.transactions.iter().flat_map(spends).collect(),
            txid: None,
            signal: None,
            board: None,
            is_stored: false,
            is_signed: false,
            is_void: false,
        };
        self.numbers.insert(opportunity.number, answered);
        self.commitments.extend(updates.iter().map(|(index, version, hash)| Commitment {
            number: opportunity.number,
            index: *index,
            version: *version,
            hash: *hash,
        }));
    }

    pub(super) fn verified(&mut self, number: u64, txid: Txid, signal: Option<SignalBytes>, board: DocumentHash) {
        if let Some(answered) = self.numbers.get_mut(&number) {
            (answered.txid, answered.signal, answered.board) = (Some(txid), signal, Some(board));
        }
    }

    /// The host has stored the board of a number that was verified.
    pub(super) fn stored(&mut self, number: u64) {
        if let Some(answered) = self.numbers.get_mut(&number) {
            answered.is_stored = true;
        }
    }

    pub(super) fn signed(&mut self, number: u64) {
        if let Some(answered) = self.numbers.get_mut(&number) {
            answered.is_signed = true;
            self.last_signed = Some(number);
            self.forget();
        }
    }

    /// A transaction that spends `coin` is final.
    pub(super) fn spend(&mut self, coin: &CoinRef, by: Txid, signal: Option<&SignalBytes>) {
        let coin = outpoint(coin);
        self.spent.insert(coin);
        if let Some(restored) = &mut self.restored {
            restored.coins.remove(&coin);
            if restored.coins.is_empty() {
                self.restored = None;
            }
        }
        let spending: Vec<u64> =
            self.numbers.iter().filter(|(_, one)| one.coins.contains(&coin)).map(|(number, _)| *number).collect();
        for number in spending {
            let Some(answered) = self.numbers.get(&number) else { continue };
            let announced = answered.txid == Some(by) || signal.is_some() && answered.signal.as_ref() == signal;
            match (announced, answered.txid, signal) {
                (true, ..) => self.announced(number),
                // Another transaction, or one that announces nothing.
                (false, Some(_), _) | (false, None, None) => self.void(number),
                // This seat has never seen the board: it may be the announcement. The resolver will show it.
                (false, None, Some(_)) => {}
            }
        }
        let is_lost = |one: &Answered| one.ancestors.iter().any(|(spent, txid)| *spent == coin && *txid != by);
        let lost: Vec<u64> =
            self.numbers.iter().filter(|(_, one)| is_lost(one)).map(|(number, _)| *number).collect();
        lost.into_iter().for_each(|number| self.void(number));
        self.forget();
    }

    /// The journal is that of a backup.
    pub(super) fn restored(&mut self, coins: &[CoinRef], updates: &[(DidIndex, u64, DocumentHash)]) {
        let coins: BTreeSet<OutPoint> =
            coins.iter().map(outpoint).filter(|coin| !self.spent.contains(coin)).collect();
        self.restored = (!coins.is_empty()).then(|| Restored { coins, updates: updates.iter().copied().collect() });
    }

    /// The coins that have to be spent after a restore from a backup.
    pub(super) fn awaited_coins(&self) -> impl Iterator<Item = OutPoint> {
        self.restored.iter().flat_map(|restored| &restored.coins).copied()
    }

    fn announced(&mut self, number: u64) {
        let of_number = self.commitments.iter().filter(|one| one.number == number);
        let final_now: Vec<(DidIndex, u64)> = of_number.map(|one| (one.index, one.version)).collect();
        for (index, version) in final_now {
            self.resolved(index, version);
        }
    }

    /// The number can never be mined, nor can what descends from it.
    fn void(&mut self, number: u64) {
        self.commitments.retain(|one| one.number != number);
        let Some(answered) = self.numbers.get_mut(&number) else { return };
        answered.is_void = true;
        let Some(txid) = answered.txid else { return };
        let descendants: Vec<u64> = self
            .numbers
            .iter()
            .filter(|(other, one)| **other > number && one.coins.iter().any(|coin| coin.txid == txid))
            .map(|(other, _)| *other)
            .collect();
        descendants.into_iter().for_each(|other| self.void(other));
    }

    /// Resolvers give this version of the DID, finally.
    pub(super) fn resolved(&mut self, index: DidIndex, version: u64) {
        let known = self.finals.entry(index).or_insert(version);
        *known = version.max(*known);
        let known = *known;
        self.commitments.retain(|one| one.index != index || one.version > known);
        self.forget();
    }

    /// Drops numbers of which nothing can follow any more.
    fn forget(&mut self) {
        let commitments = &self.commitments;
        let last = self.last_signed;
        self.numbers.retain(|number, one| {
            last.is_none_or(|last| *number >= last)
                || !one.coins.iter().any(|coin| self.spent.contains(coin))
                || commitments.iter().any(|commitment| commitment.number == *number)
        });
    }

    /// The updates that may be announced: index, version and hash.
    pub(super) fn committed(&self) -> Vec<(DidIndex, u64, DocumentHash)> {
        let mut all: Vec<_> = self.commitments.iter().map(|one| (one.index, one.version, one.hash)).collect();
        all.sort();
        all.dedup();
        all
    }

    /// The transaction of a number, if this seat has verified it.
    pub(super) fn txid(&self, number: u64) -> Option<Txid> {
        self.numbers.get(&number)?.txid
    }

    /// The board of a number, and whether the host has stored it, if this seat has verified that transaction for it.
    pub(super) fn board_of(&self, number: u64, txid: Txid) -> Option<(DocumentHash, bool)> {
        let answered = self.numbers.get(&number).filter(|answered| answered.txid == Some(txid))?;
        Some((answered.board?, answered.is_stored))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
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
}
