//! The coins of a standing cohort: the change of the last announcement, and deposits beside it (docs/standing.md, "Coins").

use std::sync::Arc;

use bitcoin::{Transaction, Txid};
use serde::{Deserialize, Serialize};

use super::{CohortEvent, StandingCohort, balance::MAX_REFRESH_COINS};
use crate::{
    cohort::standing::opportunity::{CoinRef, TransactionHex},
    message::signed,
    time::Timestamp,
};

/// An announcement, or a refresh, whose transaction is signed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Link {
    number: u64,
    spends: Vec<CoinRef>,
    #[serde(with = "signed")]
    transaction: Arc<Transaction>,
    change: CoinRef,
    is_confirmed: bool,
    /// Whether the change is at the address of a successor, where this cohort cannot spend it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    leaves: bool,
}

impl Link {
    /// The coin that it leaves to this cohort.
    fn left(&self) -> Option<CoinRef> {
        (!self.leaves).then_some(self.change)
    }
}

impl Link {
    /// What the coins hold that it spends, in satoshi.
    fn spent(&self) -> u64 {
        self.spends.iter().map(|coin| coin.value).sum()
    }
}

/// The chain of signed transactions that are not final, or are the last one; and deposits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Coins {
    links: Vec<Link>,
    deposits: Vec<CoinRef>,
    /// The coins of the last number, if it has failed: seats may have signed a spend of them, so the next number spends them too.
    retried: Vec<CoinRef>,
}

impl Coins {
    /// The coin that the next announcement spends: the change of the last one, else the largest deposit.
    pub(super) fn next(&self) -> Option<CoinRef> {
        if let [first, ..] = self.retried.as_slice() {
            return Some(*first);
        }
        match self.links.last().and_then(Link::left) {
            Some(change) => Some(change),
            None => self.deposits.iter().max_by_key(|coin| (coin.value, std::cmp::Reverse(**coin))).copied(),
        }
    }

    /// That coin, then the others.
    pub(super) fn all(&self) -> Vec<CoinRef> {
        let next = self.next();
        let others = self.deposits.iter().filter(|coin| Some(**coin) != next);
        next.into_iter().chain(others.copied()).collect()
    }

    /// The deposits that nothing of this cohort spends.
    pub(super) fn deposits(&self) -> impl Iterator<Item = &CoinRef> {
        self.deposits.iter()
    }

    /// As many coins as one refresh joins: what the next announcement has to spend, then the largest of the others.
    pub(super) fn to_join(&self) -> Vec<CoinRef> {
        let mut coins = self.to_announce();
        let mut others: Vec<CoinRef> = self.deposits.iter().filter(|coin| !coins.contains(coin)).copied().collect();
        others.sort_by_key(|coin| std::cmp::Reverse((coin.value, *coin)));
        coins.extend(others);
        coins.truncate(MAX_REFRESH_COINS);
        coins
    }

    /// How many announcements are not final.
    pub(super) fn depth(&self) -> usize {
        self.links.iter().filter(|link| !link.is_confirmed).count()
    }

    /// The number of each announcement that is known here, with whether it is final.
    pub(super) fn announcements(&self) -> Vec<(u64, bool)> {
        self.links.iter().map(|link| (link.number, link.is_confirmed)).collect()
    }

    /// The transactions that are not final, in their order.
    pub(super) fn unconfirmed(&self) -> Vec<Arc<Transaction>> {
        let unconfirmed = self.links.iter().filter(|link| !link.is_confirmed);
        unconfirmed.map(|link| Arc::clone(&link.transaction)).collect()
    }

    /// Number, transaction and the value of the spent coins of each that is not final, in their order.
    pub(super) fn unconfirmed_links(&self) -> impl Iterator<Item = (u64, &Arc<Transaction>, u64)> {
        let unconfirmed = self.links.iter().filter(|link| !link.is_confirmed);
        unconfirmed.map(|link| (link.number, &link.transaction, link.spent()))
    }

    /// The last signed transaction, and the value of the coins that it spends.
    pub(super) fn last_signed(&self) -> Option<(&Transaction, u64)> {
        self.links.last().map(|link| (&*link.transaction, link.spent()))
    }

    pub(super) fn transactions(&self) -> Vec<TransactionHex> {
        self.unconfirmed().into_iter().map(TransactionHex).collect()
    }

    pub(super) fn deposit(&mut self, coin: CoinRef) {
        if !self.knows(&coin) {
            self.deposits.push(coin);
        }
    }

    fn knows(&self, coin: &CoinRef) -> bool {
        self.deposits.contains(coin)
            || self.links.iter().any(|link| link.change == *coin || link.spends.contains(coin))
    }

    /// The coins that the next announcement has to spend.
    pub(super) fn to_announce(&self) -> Vec<CoinRef> {
        if self.retried.is_empty() { self.next().into_iter().collect() } else { self.retried.clone() }
    }

    /// A number has failed.
    pub(super) fn failed(&mut self, spends: &[CoinRef]) {
        self.retried = spends.iter().filter(|coin| self.is_there(coin)).copied().collect();
    }

    /// Whether a coin can be spent, as far as is known here.
    pub(super) fn is_there(&self, coin: &CoinRef) -> bool {
        self.deposits.contains(coin) || self.links.last().and_then(Link::left) == Some(*coin)
    }

    /// A number has a signed transaction. One whose coin is gone can never be mined.
    pub(super) fn signed(
        &mut self,
        number: u64,
        spends: Vec<CoinRef>,
        transaction: &Arc<Transaction>,
        leaves: bool,
    ) {
        self.retried.clear();
        if !spends.iter().all(|coin| self.is_there(coin)) {
            return;
        }
        // The change is the first output of every transaction that seats sign.
        let Some(change) = transaction.output.first() else { return };
        let change = CoinRef { txid: transaction.compute_txid(), vout: 0, value: change.value.to_sat() };
        self.deposits.retain(|coin| !spends.contains(coin));
        let (transaction, is_confirmed) = (Arc::clone(transaction), false);
        self.links.push(Link { number, spends, transaction, change, is_confirmed, leaves });
    }

    /// The number of the transaction that is now final.
    fn number_of(&self, txid: Txid) -> Option<u64> {
        let is = |link: &&Link| !link.is_confirmed && link.transaction.compute_txid() == txid;
        self.links.iter().find(is).map(|link| link.number)
    }

    /// The numbers that can never be mined once another transaction has spent `coin`: those that spend it, and all after them.
    fn void_by(&self, coin: &CoinRef, by: Txid) -> Vec<u64> {
        let is_void =
            |link: &Link| link.spends.contains(coin) && link.transaction.compute_txid() != by && !link.is_confirmed;
        let first = self.links.iter().position(is_void);
        let Some(first) = first else { return Vec::new() };
        // Nothing descends from what leaves the address.
        let last = self.links[first..].iter().position(|link| link.leaves).map(|at| first + at);
        let void = &self.links[first..=last.unwrap_or(self.links.len() - 1)];
        void.iter().map(|link| link.number).collect()
    }

    pub(super) fn confirm(&mut self, number: u64) {
        // All before it are its ancestors, but what left the address is none of anything.
        let ancestors = self.links.iter_mut().rev().skip_while(|link| link.number > number);
        for link in ancestors.take_while(|link| !link.leaves || link.number == number) {
            link.is_confirmed = true;
        }
        // Of the final ones only the last is needed: its change is the next coin.
        while self.links.len() > 1 && self.links[0].is_confirmed && self.links[1].is_confirmed {
            self.links.remove(0);
        }
    }

    /// Another transaction has spent a coin, and with it these numbers.
    pub(super) fn void(&mut self, coin: &CoinRef, numbers: &[u64]) {
        let (void, mut links): (Vec<Link>, Vec<Link>) =
            std::mem::take(&mut self.links).into_iter().partition(|link| numbers.contains(&link.number));
        // The other coins of a refresh are there again; a change that was never made is not.
        let changes: Vec<CoinRef> = void.iter().map(|link| link.change).collect();
        let returned = void.iter().flat_map(|link| &link.spends).filter(|spent| {
            *spent != coin && !changes.contains(spent) && links.iter().all(|link| link.change != **spent)
        });
        self.deposits.extend(returned);
        if links.last().and_then(Link::left) == Some(*coin) {
            links.pop();
        }
        self.links = links;
        self.deposits.retain(|known| known != coin);
        let gone = |known: &CoinRef| known == coin || changes.contains(known);
        self.retried.retain(|known| !gone(known));
    }
}

impl StandingCohort {
    /// The number of each announcement that is not final, and of the last one that is, with whether it is.
    pub fn announcements(&self) -> Vec<(u64, bool)> {
        self.running().map_or_else(Vec::new, |running| running.coins.announcements())
    }

    pub(super) fn on_coin(&self, now: Timestamp, coin: CoinRef) -> Vec<CohortEvent> {
        match self.running() {
            Some(running) if !running.coins.knows(&coin) => vec![CohortEvent::CoinArrived { at: now, coin }],
            _ => Vec::new(),
        }
    }

    pub(super) fn on_spent(&self, now: Timestamp, coin: &CoinRef, by: Txid) -> Vec<CohortEvent> {
        let Some(running) = self.running() else { return Vec::new() };
        if let Some(number) = running.coins.number_of(by) {
            // What it descends from is final too, whichever of them is reported first.
            let before = running.coins.unconfirmed_links().map(|(one, ..)| one).filter(|one| *one <= number);
            return before.map(|number| CohortEvent::Confirmed { at: now, number }).collect();
        }
        let numbers = running.coins.void_by(coin, by);
        if numbers.is_empty() && !running.coins.is_there(coin) {
            return Vec::new();
        }
        vec![CohortEvent::Voided { at: now, coin: *coin, numbers, by }]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bitcoin::{Amount, ScriptBuf, TxOut, absolute::LockTime, transaction::Version};

    use super::*;

    /// A transaction that pays `value` to its first output.
    fn transaction(number: u32, value: u64) -> Arc<Transaction> {
        let change = TxOut { value: Amount::from_sat(value), script_pubkey: ScriptBuf::new() };
        let lock_time = LockTime::from_consensus(number);
        Arc::new(Transaction { version: Version::TWO, lock_time, input: Vec::new(), output: vec![change] })
    }

    fn change(number: u32, value: u64) -> CoinRef {
        CoinRef { txid: transaction(number, value).compute_txid(), vout: 0, value }
    }

    /// A coin that others have paid.
    fn deposit(number: u32) -> CoinRef {
        change(1_000 + number, u64::from(number) * 100)
    }

    fn with_deposits(numbers: &[u32]) -> Coins {
        let mut coins = Coins::default();
        numbers.iter().for_each(|number| coins.deposit(deposit(*number)));
        coins
    }

    fn sign(coins: &mut Coins, number: u64, spends: &[CoinRef]) -> CoinRef {
        coins.signed(number, spends.to_vec(), &transaction(number as u32, 50), false);
        assert_eq!(coins.next(), Some(change(number as u32, 50)));
        change(number as u32, 50)
    }

    #[test]
    fn a_coin_is_deposited_once() {
        let mut coins = with_deposits(&[1, 2, 1]);
        assert_eq!(coins.all(), [deposit(2), deposit(1)], "the largest first");
        let first = sign(&mut coins, 1, &[deposit(2)]);
        for known in [deposit(2), first] {
            coins.deposit(known);
            assert_eq!(coins.all(), [first, deposit(1)]);
        }
        let second = sign(&mut coins, 2, &[first]);
        assert_eq!(coins.depth(), 2);
        coins.confirm(2);
        assert_eq!((coins.depth(), coins.all()), (0, vec![second, deposit(1)]));
        // Only the last final one is stored.
        coins.deposit(deposit(2));
        assert_eq!(coins.all(), [second, deposit(1), deposit(2)]);
    }

    #[test]
    fn a_failed_number_is_retried_with_the_coins_that_are_there() {
        let mut coins = with_deposits(&[1, 2, 3]);
        coins.failed(&[deposit(1), deposit(2), deposit(9)]);
        assert_eq!(coins.to_announce(), [deposit(1), deposit(2)]);
        coins.void(&deposit(1), &[]);
        assert_eq!(coins.to_announce(), [deposit(2)], "the other one was spent");
        sign(&mut coins, 1, &[deposit(2)]);
        assert_eq!(coins.to_announce(), [change(1, 50)]);
        coins.failed(&[change(1, 50)]);
        coins.void(&deposit(2), &[1]);
        assert_eq!(coins.to_announce(), [deposit(3)], "the change was never made");
    }

    #[test]
    fn another_spend_voids_what_follows_from_the_coin() {
        let mut coins = with_deposits(&[1, 2, 3]);
        let first = sign(&mut coins, 1, &[deposit(3)]);
        let second = sign(&mut coins, 2, &[first, deposit(1), deposit(2)]);
        sign(&mut coins, 3, &[second]);
        let other = transaction(99, 1).compute_txid();
        assert_eq!(coins.void_by(&deposit(2), other), [2, 3]);
        assert_eq!(coins.void_by(&deposit(2), transaction(2, 50).compute_txid()), [0; 0], "by itself");
        assert_eq!(coins.void_by(&deposit(9), other), [0; 0]);
        coins.void(&deposit(2), &[2, 3]);
        // The other coin of the second is there again, beside the change of the first.
        assert_eq!((coins.all(), coins.depth()), (vec![first, deposit(1)], 1));
        coins.confirm(1);
        assert_eq!(coins.void_by(&deposit(3), other), [0; 0], "it is final");
    }

    #[test]
    fn a_spent_coin_is_not_offered_again() {
        let mut coins = with_deposits(&[1, 2]);
        coins.void(&deposit(2), &[]);
        assert_eq!(coins.all(), [deposit(1)]);
        let mut coins = with_deposits(&[1, 2]);
        let first = sign(&mut coins, 1, &[deposit(2)]);
        coins.void(&deposit(1), &[]);
        assert_eq!(coins.all(), [first], "the change is another coin");
        coins.void(&first, &[]);
        assert_eq!((coins.all(), coins.next()), (vec![], None));
    }
}
