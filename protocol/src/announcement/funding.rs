//! Which coin pays for a signal, and how much one must hold.

use std::{cmp::Reverse, collections::BTreeSet, fmt};

use bitcoin::{Amount, FeeRate, OutPoint, Transaction};
use serde::{Deserialize, Serialize};

use super::{
    Rules, Sight,
    change::CHILD_VSIZE,
    fees::{FeePolicyError, fee_at},
};
use crate::{
    chain::{COINBASE_MATURITY, Deposit},
    hash::SignalBytes,
    output::{BeaconOutput, BuildError, Change, Coin, build_beacon_transaction, fallback_vsize, key_path_vsize},
};

/// A request for an announcement, and its circumstances.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The cohort's output.
    pub output: BeaconOutput,
    /// The signal to announce.
    pub signal: SignalBytes,
    /// The chain's fee estimate, if it has one.
    pub estimate: Option<FeeRate>,
    /// The rate below which the chain accepts no transaction, if known.
    pub minimum: Option<FeeRate>,
    /// The coins that other announcements of the same address will spend.
    pub taken: BTreeSet<OutPoint>,
}

/// A transaction for members to sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// The coin that it spends.
    pub coin: Deposit,
    /// The transaction, unsigned.
    pub transaction: Transaction,
    /// The signal that it announces.
    pub signal: SignalBytes,
    /// The rate that it pays on either path.
    pub rate: FeeRate,
}

/// The amount that one deposit must hold. Deposits are not added up, because members sign exactly one input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The least amount that pays for the announcement.
    pub bare: Amount,
    /// The least amount that is waited for: it pays for the announcement, and for a bump from the change.
    pub at_least: Amount,
    /// The amount that pays for the announcement, two bumps, and one more announcement.
    pub suggested: Amount,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "at least {} sat in one deposit, {} suggested (the fee now, two bumps, one more announcement)",
            self.at_least.to_sat(),
            self.suggested.to_sat()
        )
    }
}

impl Need {
    /// The amounts that an announcement of `output` needs at `rate`.
    ///
    /// Bumps are computed for the larger transaction, that of the fallback path.
    ///
    /// # Errors
    /// [`BuildError`] when the rules allow no transaction.
    pub fn of(output: &BeaconOutput, rules: &Rules, rate: FeeRate) -> Result<Self, BuildError> {
        let signal = SignalBytes::from_bytes([0; 32]);
        let build = |value| {
            let coin = Coin { outpoint: OutPoint::null(), value };
            build_beacon_transaction(output, &coin, &signal, rate, &rules.change)
        };
        // The error for a coin without value contains the required amount. The coin has to be above the fee (rule T-6).
        let bare = match build(Amount::ZERO) {
            Err(BuildError::InsufficientFunds { needed, .. }) => saturating(needed, Amount::ONE_SAT),
            Err(error) => return Err(error),
            Ok(_) => Amount::ONE_SAT,
        };
        let with_change = build(Amount::MAX_MONEY)?;
        let paid: Amount = with_change.output.iter().map(|output| output.value).sum();
        let fee = Amount::MAX_MONEY.checked_sub(paid).unwrap_or_default();
        let dust = with_change.output[0].script_pubkey.minimal_non_dust();
        let once_more = saturating(fee, dust);
        if !rules.can_bump() {
            return Ok(Self { bare, at_least: bare, suggested: saturating(once_more, once_more) });
        }
        let fallback = output.fallback().filter(|_| output.fallback_spendable());
        let parent =
            fallback.map_or(0, |leaf| fallback_vsize(&with_change, leaf)).max(key_path_vsize(&with_change));
        let child = |half_times: u64, least: Amount| {
            let more = FeeRate::from_sat_per_kwu(rate.to_sat_per_kwu().saturating_mul(half_times) / 4);
            let both = fee_at(more.min(rules.fees.ceiling()), parent.saturating_add(CHILD_VSIZE));
            both.checked_sub(fee).unwrap_or_default().max(least)
        };
        let relay = fee_at(FeeRate::BROADCAST_MIN, CHILD_VSIZE);
        let first = child(6, relay);
        let second = child(9, saturating(first, relay));
        let with = |bumps| saturating(saturating(fee, bumps), dust);
        Ok(Self { bare, at_least: with(first), suggested: saturating(with(second), once_more) })
    }
}

fn saturating(one: Amount, other: Amount) -> Amount {
    one.checked_add(other).unwrap_or(Amount::MAX)
}

/// Why no transaction can be made yet.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NotFunded {
    /// The address has no deposit, or other announcements spend all of them.
    #[error("there is no coin for this cohort at {address} yet: {need}")]
    NoDeposit {
        /// The beacon address.
        address: String,
        /// The required amounts.
        need: Need,
    },
    /// A sufficient deposit is not confirmed deep enough.
    #[error("a deposit of {value} at {address} waits for its confirmation")]
    Unconfirmed {
        /// The beacon address.
        address: String,
        /// The value of the largest such deposit.
        value: Amount,
    },
    /// The only sufficient coin is a coinbase output that is not mature.
    #[error("a deposit of {value} at {address} is a block's reward: it can be spent from block {height} on")]
    Immature {
        /// The beacon address.
        address: String,
        /// The value of the largest such coin.
        value: Amount,
        /// The height from which on it can be spent.
        height: u32,
    },
    /// No coin pays for the fee.
    #[error("the largest coin at {address} holds {largest}, which does not pay for the fee: {need}")]
    TooSmall {
        /// The beacon address.
        address: String,
        /// The largest coin's value.
        largest: Amount,
        /// The required amounts.
        need: Need,
    },
    /// A coin pays for the fee, but leaves no change for a bump. It is accepted near the end of the funding window.
    #[error(
        "the largest coin at {address} holds {largest}, which leaves no change to bump with: a larger one is waited for, \
         {need}"
    )]
    Tight {
        /// The beacon address.
        address: String,
        /// The largest coin's value.
        largest: Amount,
        /// The required amounts.
        need: Need,
    },
    /// The chain asks for more than the operator's ceiling.
    #[error(transparent)]
    Fees(#[from] FeePolicyError),
    /// No transaction is possible with the operator's settings.
    #[error("{0}")]
    Impossible(String),
}

/// The transaction for the best coin (rule T-4): the largest of those that are confirmed deep enough, unspent and above
/// the fee; of equal ones the deepest, then by txid and output. Dust is never chosen and never blocks another coin. A
/// coin that another announcement will spend is not chosen either.
///
/// A coin whose change cannot pay for a bump is chosen only if there is no time for a better one (`late`).
pub(super) fn choose(
    sight: &Sight,
    rules: &Rules,
    wanted: &Wanted,
    rate: FeeRate,
    late: bool,
) -> Result<Prepared, NotFunded> {
    let Wanted { output, signal, taken, .. } = wanted;
    let build = |deposit: &Deposit| {
        let coin = Coin { outpoint: deposit.outpoint, value: deposit.value };
        build_beacon_transaction(output, &coin, signal, rate, &rules.change)
    };
    let need = Need::of(output, rules, rate).map_err(|error| NotFunded::Impossible(error.to_string()))?;
    let free = |outpoint| !sight.spends.contains_key(outpoint) && !taken.contains(outpoint);
    let unspent = sight.deposits.values().filter(|deposit| free(&deposit.outpoint));
    let (deep, waiting): (Vec<Deposit>, Vec<Deposit>) = unspent.copied().partition(|deposit| {
        let immature = sight.tip.is_some_and(|tip| deposit.is_immature(&tip));
        !immature && sight.depth(&deposit.place) >= rules.funding_confirmations.max(1)
    });

    let best = deep
        .iter()
        .filter_map(|deposit| build(deposit).ok().map(|transaction| (deposit, transaction)))
        .min_by_key(|(deposit, _)| (Reverse(deposit.value), deposit.place, deposit.outpoint));
    let address = output.address().to_owned();
    let tight = match best {
        Some((coin, transaction)) if late || coin.value >= need.at_least => {
            return Ok(Prepared { coin: *coin, transaction, signal: *signal, rate });
        }
        best => best.map(|(coin, _)| coin.value),
    };
    let largest = |deposits: &[Deposit]| deposits.iter().copied().max_by_key(|deposit| deposit.value);
    // Only a deposit that is better than the present ones is worth waiting for.
    let enough = if tight.is_some() { need.at_least } else { need.bare };
    if let Some(Deposit { value, coinbase, place, .. }) =
        largest(&waiting).filter(|deposit| deposit.value >= enough && build(deposit).is_ok())
    {
        return Err(match place.block().filter(|_| coinbase) {
            // The next block is the first that can spend it.
            Some(block) => NotFunded::Immature { address, value, height: block.height + COINBASE_MATURITY },
            None => NotFunded::Unconfirmed { address, value },
        });
    }
    if let Some(largest) = tight {
        return Err(NotFunded::Tight { address, largest, need });
    }
    match largest(&deep).into_iter().chain(largest(&waiting)).max_by_key(|deposit| deposit.value) {
        Some(deposit) => Err(NotFunded::TooSmall { address, largest: deposit.value, need }),
        None => Err(NotFunded::NoDeposit { address, need }),
    }
}

/// The transaction at the highest rate that a coin pays for, between the lowest payable rate and `rate`.
pub(super) fn choose_cheaper(
    sight: &Sight,
    rules: &Rules,
    wanted: &Wanted,
    lowest: FeeRate,
    rate: FeeRate,
) -> Option<Prepared> {
    let (mut pays, mut too_much) = (lowest.to_sat_per_kwu(), rate.to_sat_per_kwu());
    let mut best = choose(sight, rules, wanted, lowest, true).ok()?;
    while too_much.saturating_sub(pays) > 1 {
        let between = pays + (too_much - pays) / 2;
        match choose(sight, rules, wanted, FeeRate::from_sat_per_kwu(between), true) {
            Ok(prepared) => (pays, best) = (between, prepared),
            Err(_) => too_much = between,
        }
    }
    Some(best)
}

impl Rules {
    /// Whether a stuck transaction can be bumped from its change.
    pub fn can_bump(&self) -> bool {
        self.change_is_ours && matches!(self.change, Change::To(_))
    }
}
