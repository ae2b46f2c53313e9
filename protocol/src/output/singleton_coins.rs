//! Which coins of a Singleton beacon an announcement spends (rule T-7).

use std::{cmp::Reverse, collections::BTreeSet};

use bitcoin::{FeeRate, Script};

use super::{Coin, transaction::spending_cost};
use crate::chain::{Activity, Deposit};

/// The most coins that one announcement spends (rule T-7).
pub const MAX_SINGLETON_INPUTS: usize = 20;

/// The coins of `activity` that can pay for an announcement: confirmed, not a block's reward that is too young, not spent
/// by a transaction in the mempool, and worth more than the fee of their own input at `fee_rate` (rule T-4). `script` is
/// that of the beacon's address, whose activity it is.
pub fn eligible_coins<'a>(
    activity: &'a Activity,
    script: &Script,
    fee_rate: FeeRate,
) -> impl Iterator<Item = &'a Deposit> + use<'a> {
    let cost = spending_cost(script, fee_rate);
    let spent: BTreeSet<_> = activity.spends.iter().map(|spend| spend.outpoint).collect();
    activity.deposits.iter().filter(move |deposit| {
        deposit.place.block().is_some()
            && !deposit.is_immature(&activity.tip)
            && !spent.contains(&deposit.outpoint)
            && deposit.value > cost
    })
}

/// The coins that an announcement spends by rule T-7: all [eligible](eligible_coins) ones, at most the
/// [20](MAX_SINGLETON_INPUTS) largest; the deepest first, of one block by transaction id and output number.
pub fn select_coins(activity: &Activity, script: &Script, fee_rate: FeeRate) -> Vec<Coin> {
    // Transaction ids are ordered as they are written.
    let order = |deposit: &Deposit| {
        let height = deposit.place.block().map_or(u32::MAX, |block| block.height);
        (height, deposit.outpoint.txid.to_string(), deposit.outpoint.vout)
    };
    let mut coins: Vec<_> =
        eligible_coins(activity, script, fee_rate).map(|deposit| (order(deposit), deposit)).collect();
    coins.sort_by(|(one, first), (other, second)| (Reverse(first.value), one).cmp(&(Reverse(second.value), other)));
    coins.dedup_by_key(|(_, deposit)| deposit.outpoint);
    coins.truncate(MAX_SINGLETON_INPUTS);
    coins.sort_by(|(one, _), (other, _)| one.cmp(other));
    coins.into_iter().map(|(_, deposit)| Coin { outpoint: deposit.outpoint, value: deposit.value }).collect()
}
