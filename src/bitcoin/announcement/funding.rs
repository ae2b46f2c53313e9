//! Which coin pays for a signal, and how much one has to hold.

use std::{cmp::Reverse, collections::BTreeSet, fmt};

use ::bitcoin::{Amount, FeeRate, OutPoint, Transaction};
use serde::{Deserialize, Serialize};

use super::{Rules, Sight};
use crate::{
    bitcoin::{
        chain::{COINBASE_MATURITY, Deposit},
        change::CHILD_VSIZE,
        fees::{FeePolicyError, fee_at},
    },
    protocol::{
        hash::SignalBytes,
        output::{
            BeaconOutput, BuildError, Change, Coin, build_beacon_transaction, fallback_vsize, key_path_vsize,
        },
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
    /// The rate below which the chain takes nothing, if it tells.
    pub minimum: Option<FeeRate>,
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

/// What one deposit has to hold: deposits are not added up, because members sign exactly one input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The least that pays for the announcement at all.
    pub bare: Amount,
    /// The least that is waited for: it pays for the announcement, and for a bump from the change.
    pub at_least: Amount,
    /// What pays for the announcement, two bumps, and one more announcement.
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
    /// What an announcement of `output` needs at `rate`.
    ///
    /// Bumps are reckoned for the larger of both paths: what ends on the fallback is the larger transaction.
    ///
    /// # Errors
    /// [`BuildError`] when the rules allow no transaction at all.
    pub fn of(output: &BeaconOutput, rules: &Rules, rate: FeeRate) -> Result<Self, BuildError> {
        let signal = SignalBytes::from_bytes([0; 32]);
        let build = |value| {
            let coin = Coin { outpoint: OutPoint::null(), value };
            build_beacon_transaction(output, &coin, &signal, rate, &rules.change)
        };
        // A coin without value says what it would take. It has to be more than the fee (rule T-6).
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
    /// Nothing was paid to the address, or others spend all that was.
    #[error("no coin is there for this cohort at {address} yet: {need}")]
    NoDeposit {
        /// The beacon address.
        address: String,
        /// What it takes.
        need: Need,
    },
    /// What would suffice is not confirmed deep enough.
    #[error("a deposit of {value} at {address} waits for its confirmation")]
    Unconfirmed {
        /// The beacon address.
        address: String,
        /// The largest one that waits.
        value: Amount,
    },
    /// What would suffice is a block's reward.
    #[error("a deposit of {value} at {address} is a block's reward: it can be spent from block {height} on")]
    Immature {
        /// The beacon address.
        address: String,
        /// The largest one that waits.
        value: Amount,
        /// In which block it can be spent.
        height: u32,
    },
    /// No coin pays for the fee.
    #[error("the largest coin at {address} holds {largest}, which does not pay for the fee: {need}")]
    TooSmall {
        /// The beacon address.
        address: String,
        /// The largest coin's value.
        largest: Amount,
        /// What it takes.
        need: Need,
    },
    /// A coin pays for the fee, and leaves nothing to pay for a bump with. Towards the end of the time it will do.
    #[error(
        "the largest coin at {address} holds {largest}, which leaves no change to bump with: a larger one is waited for, \
         {need}"
    )]
    Tight {
        /// The beacon address.
        address: String,
        /// The largest coin's value.
        largest: Amount,
        /// What it takes.
        need: Need,
    },
    /// The operator would not pay what the chain asks for.
    #[error(transparent)]
    Fees(#[from] FeePolicyError),
    /// The operator's settings make no transaction possible.
    #[error("{0}")]
    Impossible(String),
}

/// The transaction for the best coin (rule T-4): of those that are confirmed deep enough, unspent and hold more than the fee,
/// the largest; of equal ones the deepest, then by txid and output. Dust is never chosen, and never stands in the way; nor is
/// a coin that another announcement is to spend.
///
/// A coin whose change could not pay for a bump is chosen only if there is no time for a better one (`late`).
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
    // What is worth waiting for is more than what is there.
    let enough = if tight.is_some() { need.at_least } else { need.bare };
    if let Some(Deposit { value, coinbase, place, .. }) =
        largest(&waiting).filter(|deposit| deposit.value >= enough && build(deposit).is_ok())
    {
        return Err(match place.block().filter(|_| coinbase) {
            // The block before it is the last one that it has to be deep in.
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

/// The transaction at the highest rate, from the lowest that can be paid up to `rate`, that a coin pays for.
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
    /// Whether a transaction that is stuck can be paid for from its change.
    pub fn can_bump(&self) -> bool {
        self.change_is_ours && matches!(self.change, Change::To(_))
    }
}
