//! Recovers a cohort's coins with the recovery key, once its timelock has passed.
//!
//! [`survey`] lists the coins and when they can be recovered; [`plan`] makes the transactions. Both are pure: the
//! command `recover` queries the chain. [`CohortFile`] is what an operator must store for it.

use std::{fs, io, path::Path, time::Duration};

use ::bitcoin::{Amount, FeeRate, OutPoint, Transaction, Txid};
use rand_chacha::rand_core::CryptoRng;
use serde::{Deserialize, Serialize};

use super::{
    chain::{Activity, BlockId, COINBASE_MATURITY, Place, Tip},
    fees::fee_at,
};
use crate::files::{file_name, write_whole};
use crate::protocol::{
    chain::block_time,
    id::CohortId,
    key::SecretKey,
    output::{BeaconOutput, Coin, RecoveryError, RecoverySpend, sign_recovery_transaction},
};

/// The keys and terms that an operator must store from the moment a cohort has formed, to recover its coins. The output
/// is derived from them again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CohortFile {
    /// The cohort.
    pub cohort_id: CohortId,
    /// Its output.
    pub output: BeaconOutput,
}

impl CohortFile {
    /// The file's name, in the cohort's directory of results.
    pub const NAME: &'static str = "output.json";

    /// Writes it to `<directory>/<cohort id>/output.json`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_to(&self, directory: &Path) -> io::Result<()> {
        let directory = directory.join(file_name(&self.cohort_id));
        fs::create_dir_all(&directory)?;
        write_whole(&directory.join(Self::NAME), (serde_json::to_string_pretty(self)? + "\n").as_bytes())
    }
}

/// When a coin can be recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Maturity {
    /// The coin is not confirmed, so its timelock has not started.
    Unconfirmed,
    /// It can be recovered in a block of this height, or a later one.
    Waiting {
        /// That height.
        height: u32,
        /// The number of blocks until the next one can contain the recovery.
        blocks: u32,
        /// The estimated time of that, by the network's block time, in seconds since the Unix epoch.
        expected: u64,
    },
    /// It can be recovered now.
    Mature {
        /// The first height at which it could be.
        height: u32,
    },
}

/// A coin of a beacon address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecoverableCoin {
    /// The output.
    pub outpoint: OutPoint,
    /// Its value, in satoshis.
    #[serde(with = "::bitcoin::amount::serde::as_sat")]
    pub value: Amount,
    /// The block that confirms it.
    pub block: Option<BlockId>,
    /// The transaction in the mempool that spends it, if there is one, e.g. an announcement.
    pub spent_by: Option<Txid>,
    /// When it can be recovered.
    pub maturity: Maturity,
}

/// The coins of `output` in `activity`, the oldest first. `None` if the output has no recovery leaf.
pub fn survey(output: &BeaconOutput, activity: &Activity) -> Option<Vec<RecoverableCoin>> {
    let blocks = u32::from(output.recovery()?.sequence().blocks());
    let mut coins: Vec<_> = activity
        .deposits
        .iter()
        .map(|deposit| RecoverableCoin {
            outpoint: deposit.outpoint,
            value: deposit.value,
            block: deposit.place.block().copied(),
            spent_by: activity.spends.iter().find(|spend| spend.outpoint == deposit.outpoint).map(|spend| spend.by),
            // A coinbase output also has to be mature.
            maturity: maturity(
                &deposit.place,
                if deposit.coinbase { blocks.max(COINBASE_MATURITY) } else { blocks },
                &activity.tip,
                block_time(output.network()),
            ),
        })
        .collect();
    coins.sort_unstable_by_key(|coin| (coin.block.map_or(u32::MAX, |block| block.height), coin.outpoint));
    Some(coins)
}

/// When an output that was created at `place` can be spent by a relative lock time of `blocks` (BIP-68): in a block at
/// least that many above its own.
fn maturity(place: &Place, blocks: u32, tip: &Tip, block_time: Duration) -> Maturity {
    let Some(block) = place.block() else { return Maturity::Unconfirmed };
    let height = block.height.saturating_add(blocks);
    // The next block is the first that could contain the spend.
    match height.saturating_sub(tip.block.height + 1) {
        0 => Maturity::Mature { height },
        blocks => Maturity::Waiting {
            height,
            blocks,
            expected: u64::from(tip.median_time) + u64::from(blocks) * block_time.as_secs(),
        },
    }
}

/// The recovery of a coin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The coin.
    pub coin: RecoverableCoin,
    /// The signed transaction, or why there is none.
    pub transaction: Result<Transaction, RecoveryError>,
    /// Its fee.
    pub fee: Amount,
}

/// Signed recoveries of `coins` to `destination` at `rate`, one transaction each, so that the fee of one does not delay
/// another.
///
/// A coin that would leave dust is not recovered: its error states this.
pub fn plan(
    output: &BeaconOutput,
    coins: &[RecoverableCoin],
    destination: &str,
    rate: FeeRate,
    key: &SecretKey,
    rng: &mut dyn CryptoRng,
) -> Vec<Recovery> {
    coins
        .iter()
        .map(|coin| {
            let spend = |fee| RecoverySpend {
                coin: Coin { outpoint: coin.outpoint, value: coin.value },
                destination,
                fee,
                expected_address: Some(output.address()),
            };
            // Signed once to measure the size, which the fee does not change.
            let sized = sign_recovery_transaction(output, &spend(Amount::ZERO), key, rng);
            let fee = sized.as_ref().map_or(Amount::ZERO, |transaction| {
                fee_at(rate, u64::try_from(transaction.vsize()).unwrap_or(u64::MAX))
            });
            let transaction = sized.and_then(|_| sign_recovery_transaction(output, &spend(fee), key, rng));
            Recovery { coin: *coin, transaction, fee }
        })
        .collect()
}
