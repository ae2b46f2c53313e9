//! What the coin of a standing cohort pays for, when other coins are joined with it, and how an announcement that waits can be bumped.

use std::sync::Arc;

use bitcoin::{OutPoint, Transaction, TxOut, Txid};

use super::{Running, StandingCohort};
use crate::{
    cohort::standing::{
        number::{NumberEnd, Why},
        opportunity::CoinRef,
        transaction::{Mode, announcement_vsize},
    },
    output::BeaconOutput,
};

/// A coin that pays for fewer announcements by fallback than this is low: other coins are joined with it.
pub const LOW_BALANCE: u64 = 3;

/// The most coins that one refresh joins: each is an input, with a nonce and a signature of every seat.
pub const MAX_REFRESH_COINS: usize = 32;

/// The dust limit of a P2TR output, in satoshi: what the last announcement leaves at least.
const DUST: u64 = 330;

/// Outpoint, sequence, and the length of an empty script, in vB.
const INPUT: u64 = 41;

/// A signed transaction that is not final.
#[derive(Clone, Debug, PartialEq)]
pub struct Unconfirmed {
    /// The number.
    pub number: u64,
    /// The transaction.
    pub transaction: Arc<Transaction>,
    /// Its fee, in satoshi.
    pub fee: u64,
    /// The operator's own output in it, with its value in satoshi: the party that can spend it can bump the transaction.
    pub operator_output: Option<(OutPoint, u64)>,
}

impl Unconfirmed {
    /// Its fee rate in sat/vB, to two digits.
    pub fn fee_rate(&self) -> f64 {
        (self.fee as f64 / vsize(&self.transaction) as f64 * 100.0).round() / 100.0
    }

    /// Its identifier.
    pub fn txid(&self) -> Txid {
        self.transaction.compute_txid()
    }
}

fn vsize(transaction: &Transaction) -> u64 {
    transaction.weight().to_vbytes_ceil().max(1)
}

/// The operator's output of a signed transaction: neither the change, which is the first, nor the signal.
fn operator_output(transaction: &Transaction) -> Option<(u32, &TxOut)> {
    (1u32..).zip(transaction.output.iter().skip(1)).find(|(_, output)| !output.script_pubkey.is_op_return())
}

/// What announcements cost like the last transaction of a cohort, in satoshi.
#[derive(Clone, Copy, Debug)]
struct Prices {
    by_key: u64,
    by_fallback: u64,
    /// What one more input costs by fallback.
    input: u64,
}

impl StandingCohort {
    /// How many further announcements `balance` satoshi pay for, by key path and by fallback, at the rate of the last signed transaction and
    /// with an operator's output like its own; `None` before there is one.
    pub fn affordable(&self, balance: u64) -> Option<(u64, u64)> {
        let prices = self.prices(self.running()?)?;
        // The last change must not be dust.
        let spendable = balance.saturating_sub(DUST);
        Some((spendable / prices.by_key, spendable / prices.by_fallback))
    }

    /// The signed transactions that are not final, in their order: each spends the change of the one before.
    pub fn unconfirmed(&self) -> Vec<Unconfirmed> {
        let links = self.running().into_iter().flat_map(|running| running.coins.unconfirmed_links());
        links
            .map(|(number, transaction, spent)| {
                let output = operator_output(transaction);
                let paid: u64 = transaction.output.iter().map(|output| output.value.to_sat()).sum();
                Unconfirmed {
                    number,
                    fee: spent.saturating_sub(paid),
                    operator_output: output.map(|(vout, output)| {
                        (OutPoint::new(transaction.compute_txid(), vout), output.value.to_sat())
                    }),
                    transaction: Arc::clone(transaction),
                }
            })
            .collect()
    }

    fn prices(&self, running: &Running) -> Option<Prices> {
        let (transaction, spent) = running.coins.last_signed()?;
        let paid: u64 = transaction.output.iter().map(|output| output.value.to_sat()).sum();
        let rate = spent.saturating_sub(paid).div_ceil(vsize(transaction)).max(1);
        let operator = operator_output(transaction).map(|(_, output)| output);
        let taken = operator.map_or(0, |output| output.value.to_sat());
        let more = operator.map_or(0, |output| output.size() as u64);
        let size = |mode| announcement_vsize(&self.config.terms, running.seats.len(), mode) + more;
        let price = |mode| (size(mode) * rate + taken).max(1);
        Some(Prices {
            by_key: price(Mode::Key),
            by_fallback: price(Mode::Fallback),
            input: (INPUT + witness_vsize(&running.output)) * rate,
        })
    }

    /// The coins that a refresh joins now because what announcements spend is low, that first; none if it is not, or if the others are worth
    /// no announcement: small deposits of outsiders cost the cohort nothing.
    pub(super) fn coins_to_join(&self, running: &Running) -> Vec<CoinRef> {
        let mut coins = running.coins.to_announce();
        let Some(next) = coins.first().copied() else { return coins };
        let unfunded = running.failures > 0
            && matches!(&running.ended, Some((_, NumberEnd::Failed { why: Why::Unfunded(_), .. })));
        let prices = self.prices(running);
        let is_low = |prices: &Prices| next.value.saturating_sub(DUST) / prices.by_fallback < LOW_BALANCE;
        if !unfunded && !prices.as_ref().is_some_and(is_low) {
            return Vec::new();
        }
        let (input, least) = prices.map_or((0, 1), |prices| (prices.input, prices.by_fallback + DUST));
        let mut others: Vec<CoinRef> =
            running.coins.deposits().filter(|coin| coin.value > input && !coins.contains(coin)).copied().collect();
        others.sort_by_key(|coin| std::cmp::Reverse((coin.value, *coin)));
        others.truncate(MAX_REFRESH_COINS.saturating_sub(coins.len()));
        let worth: u64 = others.iter().map(|coin| coin.value - input).sum();
        if worth < least {
            return Vec::new();
        }
        coins.extend(others);
        coins
    }
}

/// The witness of one input by fallback, or without one by key path, in vB.
fn witness_vsize(output: &BeaconOutput) -> u64 {
    let bytes = output.fallback().map_or(66, |leaf| leaf.witness_of_spend_size().size());
    bytes.div_ceil(4) as u64
}
