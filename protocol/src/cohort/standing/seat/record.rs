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
    /// The signed move to the successor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    moved: Option<Moved>,
}

/// A move of the cohort: from then on it announces nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Moved {
    txid: Txid,
    coins: Vec<OutPoint>,
    is_final: bool,
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
        if coins.is_empty() {
            // It shows the roster, and nothing is signed.
            return Ok(());
        }
        if let Some(moved) = self.moved.as_ref().filter(|_| opportunity.kind.announces())
            && !moved.coins.iter().all(|coin| coins.contains(coin))
        {
            return Err("the cohort has moved, and announces no more".to_owned());
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
        // A time in the future was that of a clock that was set back since: it does not show when that was.
        if now + SKEW < earliest && last.at <= now + SKEW {
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
        let coins: Vec<OutPoint> = opportunity.coins.iter().map(outpoint).collect();
        if coins.is_empty() {
            return;
        }
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
        self.moved = self.moved.take().and_then(|moved| match moved.coins.contains(&coin) {
            true if moved.txid == by => Some(Moved { is_final: true, ..moved }),
            true => None,
            false => Some(moved),
        });
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
        self.moved.take_if(|moved| moved.txid == txid);
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

    /// This transaction moves the cohort: this seat has signed it, or its service reports it.
    pub(super) fn moves(&mut self, txid: Txid, coins: Vec<OutPoint>) {
        if self.moved.as_ref().is_none_or(|moved| moved.txid != txid) {
            self.moved = Some(Moved { txid, coins, is_final: false });
        }
    }

    /// This seat has signed the move of that number.
    pub(super) fn moves_in(&mut self, number: u64) {
        if let Some(Answered { txid: Some(txid), coins, .. }) = self.numbers.get(&number) {
            let (txid, coins) = (*txid, coins.clone());
            self.moves(txid, coins);
        }
    }

    /// Whether a move is signed, and not void.
    pub(super) const fn has_moved(&self) -> bool {
        self.moved.is_some()
    }

    /// Whether the move is final.
    pub(super) fn is_move_final(&self) -> bool {
        self.moved.as_ref().is_some_and(|moved| moved.is_final)
    }

    /// Whether an update of the index may be announced that is not this one.
    pub(super) fn is_in_flight_otherwise(&self, index: &DidIndex, version: u64, hash: &DocumentHash) -> bool {
        let of_index = self.commitments.iter().filter(|one| one.index == *index);
        of_index.into_iter().any(|one| (one.version, one.hash) != (version, *hash))
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
mod tests;
