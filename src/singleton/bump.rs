//! Replaces an announcement that waits in the mempool by one with a higher fee (BIP-125): the same coins, the same signal,
//! the same destination of the change.

use ::bitcoin::{Amount, FeeRate, Txid};
use serde_json::Value;

use super::{
    FallbackError,
    order::{New, OrderError, finish, rate_of, with_funding},
    places::{Funded, Unconfirmed, look, places, unconfirmed},
};
use crate::{
    bitcoin::{
        chain::{Chain, ChainError, Place as ChainPlace, TransactionStatus},
        fees::{fee_at, rate_of as rate_of_fee, sat_per_vb},
    },
    controller::Keys,
    protocol::{
        did::Did,
        hash::SignalBytes,
        output::{Change, Coin, SingletonAnnouncement},
    },
};

/// How many of the last blocks are searched for the transaction if it is not in the mempool.
const LOOK_BACK: u32 = 100;

/// What a replacement must pay for its own size where the chain does not state it: what nodes ask for by default, or more.
const USUAL_INCREMENT: FeeRate = FeeRate::BROADCAST_MIN;

/// The request for a replacement.
#[derive(Clone, Copy)]
pub struct Bump<'a> {
    /// The DID.
    pub did: &'a Did,
    /// Its current document.
    pub document: &'a Value,
    /// The controller's keys.
    pub keys: Option<&'a Keys>,
    /// The transaction to replace; `None` for the only one that waits.
    pub txid: Option<Txid>,
    /// The fee rate; `None` for the chain's estimate, or the least that replaces the transaction.
    pub rate: Option<FeeRate>,
    /// Whether to sign, if the key is known.
    pub sign: bool,
}

/// A replacement.
#[derive(Clone, Debug)]
pub struct Replacement {
    /// What it replaces.
    pub replaced: Txid,
    /// The fee of that.
    pub old_fee: Amount,
    /// What both announce.
    pub signal: SignalBytes,
    /// The new transaction.
    pub new: New,
}

/// Why there is no replacement.
#[derive(Debug, thiserror::Error)]
pub enum BumpError {
    /// The transaction cannot be made.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// The transaction is confirmed.
    #[error(
        "transaction {txid} is confirmed, in block {height} with {confirmations} confirmations: there is nothing to bump"
    )]
    Confirmed {
        /// The transaction.
        txid: Txid,
        /// The height of its block.
        height: u32,
        /// How many blocks confirm it.
        confirmations: u32,
    },
    /// There is none to replace.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be replaced by one of the same kind.
    #[error("transaction {txid} {problem}")]
    NotOurs {
        /// The transaction.
        txid: Txid,
        /// Why, in words that follow.
        problem: String,
    },
    /// The node would refuse the new fee.
    #[error(
        "at {rate} sat/vB the replacement pays {fee} sat for {vsize} vB. Nodes require at least {needed} sat of it: more than the {old} \
         sat of {txid}, and {increment} sat/vB for its own size, and a higher rate than its {old_rate} sat/vB: {hint}"
    )]
    FeeTooLow {
        /// The transaction to replace.
        txid: Txid,
        /// Its fee in satoshi.
        old: u64,
        /// Its rate in sat/vB.
        old_rate: f64,
        /// The rate that was asked for, in sat/vB.
        rate: f64,
        /// The fee of the replacement in satoshi.
        fee: u64,
        /// Its size in vB.
        vsize: u64,
        /// The least fee in satoshi.
        needed: u64,
        /// What nodes ask for its size, in sat/vB.
        increment: f64,
        /// What to do: a rate that suffices, or why there is none.
        hint: String,
    },
}

impl From<ChainError> for BumpError {
    fn from(error: ChainError) -> Self {
        Self::Order(error.into())
    }
}

impl BumpError {
    /// Whether the same request may succeed later.
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::Order(error) if error.may_pass())
    }
}

/// The replacement of an announcement of one of the document's Singleton beacons that waits in the mempool.
///
/// # Errors
/// [`BumpError`].
pub async fn make(chain: &dyn Chain, bump: &Bump<'_>) -> Result<Replacement, BumpError> {
    let funded = look(chain, places(bump.document, bump.did, bump.keys)).await?;
    let waiting = find(chain, bump.txid, unconfirmed(chain, &funded).await?).await?;
    let old = Old::of(&waiting, &funded[waiting.beacon])?;
    let place = funded[waiting.beacon].place.clone();
    let beacon = place.beacon.clone().ok_or_else(|| BumpError::NotOurs {
        txid: waiting.txid,
        problem: format!("spends from {}, an address that no single key spends from", place.address),
    })?;
    let increment = chain.replacement_increment().await?.unwrap_or(USUAL_INCREMENT);
    let build = |rate| {
        let made = SingletonAnnouncement::of_signal(beacon.clone(), &old.coins, waiting.signal, rate, &old.change);
        made.map_err(|error| OrderError::Transaction(FallbackError::from(error)))
    };
    // The size hardly depends on the rate: only the change may be left out.
    let sized = build(FeeRate::BROADCAST_MIN)?.max_vsize();
    let least = old.least_rate(increment, sized);
    let rate = match bump.rate {
        Some(rate) => rate_of(chain, Some(rate)).await?,
        None => rate_of(chain, None).await?.max(least),
    };
    let announcement = build(rate)?;
    let (fee, vsize) = (announcement.fee(), announcement.max_vsize());
    let needed = old.least_fee(increment, vsize);
    if fee < needed {
        return Err(BumpError::FeeTooLow {
            txid: waiting.txid,
            old: old.fee.to_sat(),
            old_rate: sat_per_vb(old.rate),
            rate: sat_per_vb(rate),
            fee: fee.to_sat(),
            vsize,
            needed: needed.to_sat(),
            increment: sat_per_vb(increment),
            hint: match build(old.least_rate(increment, vsize)) {
                Ok(_) => format!("--fee-rate {} or more", sat_per_vb(old.least_rate(increment, vsize))),
                Err(error) => format!("its coins cannot pay that ({error}): wait until it is confirmed"),
            },
        });
    }
    let announcement = with_funding(chain, announcement, &funded[waiting.beacon]).await?;
    let new = finish(announcement, place, bump.keys, bump.sign, None)?;
    Ok(Replacement { replaced: waiting.txid, old_fee: old.fee, signal: waiting.signal, new })
}

/// The announcement that is meant.
async fn find(chain: &dyn Chain, txid: Option<Txid>, waiting: Vec<Unconfirmed>) -> Result<Unconfirmed, BumpError> {
    let Some(txid) = txid else {
        let names: Vec<_> = waiting.iter().map(|waiting| waiting.txid.to_string()).collect();
        let mut waiting = waiting.into_iter();
        return match (waiting.next(), waiting.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(BumpError::NotFound(
                "no announcement of a Singleton beacon of the document waits in the mempool".to_owned(),
            )),
            (Some(_), Some(_)) => Err(BumpError::NotFound(format!(
                "several announcements wait in the mempool: choose one, --bump TXID: {}",
                names.join(", ")
            ))),
        };
    };
    if let Some(found) = waiting.into_iter().find(|waiting| waiting.txid == txid) {
        return Ok(found);
    }
    let tip = chain.tip().await?;
    Err(match chain.status(&txid, tip.block.height.saturating_sub(LOOK_BACK)).await? {
        TransactionStatus::At(ChainPlace::Block(block)) => {
            BumpError::Confirmed { txid, height: block.height, confirmations: tip.depth(&block) }
        }
        TransactionStatus::At(ChainPlace::Mempool) => BumpError::NotOurs {
            txid,
            problem: "is in the mempool, and announces nothing at a Singleton beacon of the document".to_owned(),
        },
        TransactionStatus::Unknown => BumpError::NotFound(format!(
            "transaction {txid} is neither in the mempool nor in the last {LOOK_BACK} blocks: announce the update again with --send"
        )),
    })
}

/// The transaction to replace.
struct Old {
    coins: Vec<Coin>,
    change: Change,
    fee: Amount,
    rate: FeeRate,
}

impl Old {
    fn of(waiting: &Unconfirmed, funded: &Funded) -> Result<Self, BumpError> {
        let Unconfirmed { txid, transaction, .. } = waiting;
        let refuse = |problem: String| BumpError::NotOurs { txid: *txid, problem };
        let Funded { place, activity } = funded;
        let mut coins = Vec::new();
        for input in &transaction.input {
            let outpoint = input.previous_output;
            let deposit = activity
                .deposits
                .iter()
                .find(|deposit| deposit.outpoint == outpoint && deposit.place.block().is_some())
                .ok_or_else(|| {
                    refuse(format!(
                        "also spends {outpoint}, which is not a confirmed coin of {}: it was not made by this program",
                        place.name()
                    ))
                })?;
            coins.push(Coin { outpoint, value: deposit.value });
        }
        let change = match transaction.output.as_slice() {
            // Where it would have gone is not known any more; a beacon of its own loses nothing.
            [_] => Change::Beacon,
            [change, _] => Change::To(change.script_pubkey.clone()),
            _ => {
                return Err(refuse(
                    "has more outputs than the change and the signal: it was not made by this program".into(),
                ));
            }
        };
        if let Some(child) = activity.spends.iter().find(|spend| spend.outpoint.txid == *txid) {
            return Err(refuse(format!(
                "has change that {} spends already: a replacement would have to pay for that transaction too",
                child.by
            )));
        }
        let value: Amount = coins.iter().map(|coin| coin.value).sum();
        let paid: Amount = transaction.output.iter().map(|output| output.value).sum();
        let fee = value.checked_sub(paid).ok_or_else(|| {
            BumpError::from(ChainError::BadAnswer(format!("the outputs of {txid} hold more than its inputs")))
        })?;
        let vsize = transaction.weight().to_vbytes_ceil();
        Ok(Self { coins, change, fee, rate: rate_of_fee(fee, vsize) })
    }

    /// The least fee of a replacement of `vsize` vB (BIP-125, rules 3 and 4, and the higher rate that nodes ask for).
    fn least_fee(&self, increment: FeeRate, vsize: u64) -> Amount {
        let by_size = self.fee + fee_at(increment, vsize);
        let by_rate = fee_at(FeeRate::from_sat_per_kwu(self.rate.to_sat_per_kwu() + 1), vsize);
        by_size.max(by_rate)
    }

    /// The least rate with that fee.
    fn least_rate(&self, increment: FeeRate, vsize: u64) -> FeeRate {
        let fee = self.least_fee(increment, vsize);
        let rate = rate_of_fee(fee, vsize);
        if fee_at(rate, vsize) < fee { FeeRate::from_sat_per_kwu(rate.to_sat_per_kwu() + 1) } else { rate }
    }
}
