//! The known state of the chain: a tip, the deposits to the script and the spends from it.

use std::collections::BTreeMap;

use bitcoin::{Amount, OutPoint};

use super::event::AnnouncementEvent;
use crate::{
    chain::{Activity, Deposit, Place, Spend, Tip},
    time::Timestamp,
};

/// The most deposits that are stored. Any outsider can pay to a beacon address; the largest deposits stay.
const MAX_DEPOSITS: usize = 256;

/// The known state of the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// The tip at which it was observed.
    pub tip: Option<Tip>,
    /// The deposits to the script.
    pub deposits: BTreeMap<OutPoint, Deposit>,
    /// The spends from it.
    pub spends: BTreeMap<OutPoint, Spend>,
}

impl Sight {
    /// The depth of a deposit; 0 in the mempool.
    pub fn depth(&self, place: &Place) -> u32 {
        self.tip.zip(place.block()).map_or(0, |(tip, block)| tip.depth(block))
    }

    /// Whether there is an unspent deposit, in the mempool or in a block, that is above the dust limit `least`.
    pub(super) fn has_unspent(&self, least: Amount) -> bool {
        let mut deposits = self.deposits.values();
        deposits.any(|deposit| deposit.value >= least && !self.spends.contains_key(&deposit.outpoint))
    }

    /// The total value of unspent deposits.
    pub fn unspent(&self) -> Amount {
        let unspent = self.deposits.values().filter(|deposit| !self.spends.contains_key(&deposit.outpoint));
        unspent.fold(Amount::ZERO, |sum, deposit| sum.checked_add(deposit.value).unwrap_or(Amount::MAX))
    }

    /// The height from which on to look again: a few blocks below the last tip, as deep as a reorganization may go.
    pub fn rescan_from(&self, window: u32) -> Option<u32> {
        self.tip.map(|tip| tip.block.height.saturating_sub(window))
    }

    /// The new facts in `activity`, which is complete from height `since` on. `keep` is never dropped to stay within
    /// the limit.
    pub(super) fn news(
        &self,
        at: Timestamp,
        activity: &Activity,
        since: u32,
        keep: Option<&OutPoint>,
    ) -> Vec<AnnouncementEvent> {
        use AnnouncementEvent as E;
        // Entries below `since` are unchanged. From `since` on, only entries in the answer exist.
        let stands = |place: &Place| place.block().is_some_and(|block| block.height < since);
        let mut deposits: BTreeMap<_, _> = self.deposits.iter().filter(|(_, d)| stands(&d.place)).collect();
        deposits.extend(activity.deposits.iter().map(|deposit| (&deposit.outpoint, deposit)));
        forget_the_smallest(&mut deposits, keep);
        let mut spends: BTreeMap<_, _> = self.spends.iter().filter(|(_, spend)| stands(&spend.place)).collect();
        spends.extend(activity.spends.iter().map(|spend| (&spend.outpoint, spend)));

        let gone = |outpoint: &&OutPoint| !deposits.contains_key(*outpoint);
        let mut news: Vec<_> =
            self.deposits.keys().filter(gone).map(|&outpoint| E::DepositGone { at, outpoint }).collect();
        let unspent = |outpoint: &&OutPoint| !spends.contains_key(*outpoint);
        news.extend(self.spends.keys().filter(unspent).map(|&outpoint| E::SpendGone { at, outpoint }));
        let new = deposits.into_values().filter(|deposit| self.deposits.get(&deposit.outpoint) != Some(*deposit));
        news.extend(new.map(|&deposit| E::DepositSeen { at, deposit }));
        let new = spends.into_values().filter(|spend| self.spends.get(&spend.outpoint) != Some(*spend));
        news.extend(new.map(|&spend| E::SpendSeen { at, spend }));
        if self.tip != Some(activity.tip) {
            news.push(E::TipSeen { at, tip: activity.tip });
        }
        news
    }

    pub(super) fn apply(&mut self, event: &AnnouncementEvent) {
        match event {
            AnnouncementEvent::TipSeen { tip, .. } => self.tip = Some(*tip),
            AnnouncementEvent::DepositSeen { deposit, .. } => {
                self.deposits.insert(deposit.outpoint, *deposit);
            }
            AnnouncementEvent::DepositGone { outpoint, .. } => {
                self.deposits.remove(outpoint);
            }
            AnnouncementEvent::SpendSeen { spend, .. } => {
                self.spends.insert(spend.outpoint, *spend);
            }
            AnnouncementEvent::SpendGone { outpoint, .. } => {
                self.spends.remove(outpoint);
            }
            _ => {}
        }
    }
}

fn forget_the_smallest(deposits: &mut BTreeMap<&OutPoint, &Deposit>, keep: Option<&OutPoint>) {
    if deposits.len() <= MAX_DEPOSITS {
        return;
    }
    let mut by_value: Vec<_> =
        deposits.values().map(|d| (Some(&d.outpoint) == keep, d.value, d.outpoint)).collect();
    by_value.sort_unstable();
    for (_, _, outpoint) in &by_value[..by_value.len() - MAX_DEPOSITS] {
        deposits.remove(outpoint);
    }
}
