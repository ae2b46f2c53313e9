//! Which coin pays for a signal.

use std::{cmp::Reverse, collections::BTreeSet};

use ::bitcoin::{Amount, FeeRate, OutPoint, Transaction};
use serde::{Deserialize, Serialize};

use super::{Rules, Sight};
use crate::{
    bitcoin::chain::Deposit,
    protocol::{
        hash::SignalBytes,
        output::{BeaconOutput, BuildError, Coin, build_beacon_transaction},
    },
};

/// What a cohort wants to have announced, and under which circumstances.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The cohort's output.
    pub output: BeaconOutput,
    /// What to announce.
    pub signal: SignalBytes,
    /// The chain's fee estimate, if it has one.
    pub estimate: Option<FeeRate>,
    /// The coins that other announcements of the same address are to spend.
    pub taken: BTreeSet<OutPoint>,
}

/// A transaction for members to sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// The coin that it spends.
    pub coin: Deposit,
    /// The transaction, unsigned.
    pub transaction: Transaction,
    /// What it announces.
    pub signal: SignalBytes,
    /// The rate that it is to pay on whichever path it ends.
    pub rate: FeeRate,
}

/// Why no transaction can be made yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotFunded {
    /// Nothing was paid to the address, or others spend all that was.
    #[error("no coin is there for this cohort at {address} yet; {needed} are needed")]
    NoDeposit {
        /// The beacon address.
        address: String,
        /// The least that suffices.
        needed: Amount,
    },
    /// What would suffice is not confirmed deep enough.
    #[error("a deposit of {value} at {address} waits for its confirmation")]
    Unconfirmed {
        /// The beacon address.
        address: String,
        /// The largest one that waits.
        value: Amount,
    },
    /// No coin pays for the fee.
    #[error("the largest coin at {address} holds {largest}; {needed} are needed in one coin")]
    TooSmall {
        /// The beacon address.
        address: String,
        /// The largest coin's value.
        largest: Amount,
        /// The least that suffices.
        needed: Amount,
    },
    /// The operator's settings make no transaction possible.
    #[error("{0}")]
    Impossible(String),
}

/// The transaction for the best coin (rule T-4): of those that are confirmed deep enough, unspent and hold more than the fee,
/// the largest, which leaves change for a bump if any does; of equal ones the deepest, then by txid and output. Dust is never
/// chosen, and never stands in the way; nor is a coin that another announcement is to spend.
pub(super) fn choose(sight: &Sight, rules: &Rules, wanted: &Wanted, rate: FeeRate) -> Result<Prepared, NotFunded> {
    let Wanted { output, signal, taken, .. } = wanted;
    let build = |deposit: &Deposit| {
        let coin = Coin { outpoint: deposit.outpoint, value: deposit.value };
        build_beacon_transaction(output, &coin, signal, rate, &rules.change)
    };
    let free = |outpoint| !sight.spends.contains_key(outpoint) && !taken.contains(outpoint);
    let unspent = sight.deposits.values().filter(|deposit| free(&deposit.outpoint));
    let (deep, waiting): (Vec<Deposit>, Vec<Deposit>) =
        unspent.copied().partition(|deposit| sight.depth(&deposit.place) >= rules.funding_confirmations.max(1));

    let best = deep
        .iter()
        .filter_map(|deposit| build(deposit).ok().map(|transaction| (deposit, transaction)))
        .min_by_key(|(deposit, _)| (Reverse(deposit.value), deposit.place, deposit.outpoint));
    if let Some((coin, transaction)) = best {
        return Ok(Prepared { coin: *coin, transaction, signal: *signal, rate });
    }
    let address = output.address().to_owned();
    let largest = |deposits: &[Deposit]| deposits.iter().copied().max_by_key(|deposit| deposit.value);
    if let Some(deposit) = largest(&waiting).filter(|deposit| build(deposit).is_ok()) {
        return Err(NotFunded::Unconfirmed { address, value: deposit.value });
    }
    // A coin without value says what it would take.
    let nothing = Coin { outpoint: ::bitcoin::OutPoint::null(), value: Amount::ZERO };
    let needed = match build_beacon_transaction(output, &nothing, signal, rate, &rules.change) {
        // More than the fee (rule T-6).
        Err(BuildError::InsufficientFunds { needed, .. }) => {
            needed.checked_add(Amount::ONE_SAT).unwrap_or(Amount::MAX)
        }
        Err(error) => return Err(NotFunded::Impossible(error.to_string())),
        Ok(_) => Amount::ZERO,
    };
    match largest(&deep).into_iter().chain(largest(&waiting)).max_by_key(|deposit| deposit.value) {
        Some(deposit) => Err(NotFunded::TooSmall { address, largest: deposit.value, needed }),
        None => Err(NotFunded::NoDeposit { address, needed }),
    }
}

/// The transaction at the highest rate, from the operator's lowest up to `rate`, that a coin pays for.
pub(super) fn choose_cheaper(sight: &Sight, rules: &Rules, wanted: &Wanted, rate: FeeRate) -> Option<Prepared> {
    let (mut pays, mut too_much) = (rules.fees.floor().to_sat_per_kwu(), rate.to_sat_per_kwu());
    let mut best = choose(sight, rules, wanted, rules.fees.floor()).ok()?;
    while too_much - pays > 1 {
        let between = pays + (too_much - pays) / 2;
        match choose(sight, rules, wanted, FeeRate::from_sat_per_kwu(between)) {
            Ok(prepared) => (pays, best) = (between, prepared),
            Err(_) => too_much = between,
        }
    }
    Some(best)
}
