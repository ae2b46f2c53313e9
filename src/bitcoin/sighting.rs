//! Where an announcement is: whether a transaction with the announced signal spends from the beacon's address, and how many
//! blocks confirm it.

use std::collections::BTreeMap;

use ::bitcoin::{OutPoint, Transaction, Txid};

use super::chain::{Activity, Spend, signal_of};
use crate::protocol::hash::SignalBytes;

/// The place of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// Neither in a searched block nor in the mempool, any more.
    Gone,
    /// In the mempool.
    Mempool(Txid),
    /// In a block.
    Block {
        /// The transaction.
        txid: Txid,
        /// The height of the block.
        height: u32,
        /// How many blocks confirm it, counting its own.
        confirmations: u32,
    },
    /// Another transaction spent its coin, and has enough confirmations.
    Replaced(Txid),
}

impl Sighting {
    /// The place of the announcement of `signal` by `activity`, the activity of the beacon's address. `transactions` are those
    /// that spend from it, `spends` the outputs that the announcement was to spend, as far as they are known. What is `needed`
    /// confirmations deep is final.
    pub fn of(
        activity: &Activity,
        transactions: &BTreeMap<Txid, Transaction>,
        signal: SignalBytes,
        spends: &[OutPoint],
        needed: u32,
    ) -> Self {
        let announces = |spend: &&Spend| transactions.get(&spend.by).and_then(signal_of) == Some(signal);
        let Some(best) = activity.spends.iter().filter(announces).max_by_key(|spend| depth(activity, spend)) else {
            let replaced = rival(activity, spends).filter(|(_, confirmations)| *confirmations >= needed);
            return replaced.map_or(Self::Gone, |(by, _)| Self::Replaced(by));
        };
        match best.place.block() {
            None => Self::Mempool(best.by),
            Some(block) => {
                Self::Block { txid: best.by, height: block.height, confirmations: depth(activity, best) }
            }
        }
    }

    /// Whether it will not change any more, if `needed` confirmations are enough.
    pub fn is_settled(self, needed: u32) -> bool {
        match self {
            Self::Block { confirmations, .. } => confirmations >= needed,
            Self::Replaced(_) => true,
            Self::Gone | Self::Mempool(_) => false,
        }
    }
}

/// How many blocks confirm a spend; 0 in the mempool.
fn depth(activity: &Activity, spend: &Spend) -> u32 {
    spend.place.block().map_or(0, |block| activity.tip.depth(block))
}

/// The transaction that spends one of these outputs and has the most confirmations, and how many; it may be in the mempool.
pub fn rival(activity: &Activity, spends: &[OutPoint]) -> Option<(Txid, u32)> {
    let spending = activity.spends.iter().filter(|spend| spends.contains(&spend.outpoint));
    let best = spending.max_by_key(|spend| depth(activity, spend))?;
    Some((best.by, depth(activity, best)))
}
