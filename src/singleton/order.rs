//! The transaction of an announcement, with a chain: the beacons of the document, their coins, the fee, the signatures.

use std::collections::BTreeSet;

use ::bitcoin::{FeeRate, Txid};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::Value;

use super::{
    FallbackError, Prepared,
    choice::{ChoiceError, Wanted, choose},
    places::{Funded, Place, Unconfirmed, Young, look, places, unconfirmed, young},
    sign,
};
use crate::{
    bitcoin::{
        chain::{Chain, ChainError, ConfirmationTarget},
        fees::sat_per_vb,
    },
    controller::Keys,
    protocol::{
        did::Did,
        hash::SignalBytes,
        output::{Change, SingletonAnnouncement},
        update::SignedUpdate,
    },
    resolve::Given,
};

/// The fee rate without an estimate.
pub const USUAL_RATE: FeeRate = FeeRate::from_sat_per_vb_u32(2);

/// No estimate of a chain is followed above this rate.
const MOST_ESTIMATED: FeeRate = FeeRate::from_sat_per_vb_u32(100);

/// What is to be announced, and how.
#[derive(Clone, Copy)]
pub struct Order<'a> {
    /// The DID.
    pub did: &'a Did,
    /// Its current document.
    pub document: &'a Value,
    /// The update, which has been checked.
    pub update: &'a SignedUpdate,
    /// The controller's keys.
    pub keys: Option<&'a Keys>,
    /// The beacon and the coins.
    pub wanted: Wanted<'a>,
    /// The fee rate; `None` for the chain's estimate.
    pub rate: Option<FeeRate>,
    /// The destination of the change.
    pub change: &'a Change,
    /// Whether to sign, if the key is known.
    pub sign: bool,
    /// The Sidecar Data with which the document was resolved.
    pub given: &'a Given,
    /// The confirmations with which signals counted then.
    pub min_conf: u32,
    /// Whether it is announced although another announcement waits in the mempool, or one that is not known here is in a block.
    pub allow_risky: bool,
}

/// The result of an order.
#[derive(Clone, Debug)]
pub enum Made {
    /// A transaction.
    New(Box<New>),
    /// The update waits in the mempool already.
    Waiting(Box<Waiting>),
}

/// An announcement of the update that was made before.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Its beacon.
    pub place: Place,
    /// The transaction.
    pub unconfirmed: Unconfirmed,
}

/// A transaction that is ready to be sent, or to be signed.
#[derive(Clone, Debug)]
pub struct New {
    /// The beacon.
    pub place: Place,
    /// The transaction.
    pub prepared: Prepared,
    /// What its controller should know.
    pub notes: Vec<String>,
}

/// Why there is no transaction.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The chain does not answer.
    #[error("the chain: {0}")]
    Chain(#[from] ChainError),
    /// The node accepts no transaction of that rate.
    #[error("--fee-rate {rate}: the node takes nothing below {minimum} sat/vB now")]
    Rate {
        /// The rate that was asked for, in sat/vB.
        rate: f64,
        /// The node's minimum, in sat/vB.
        minimum: f64,
    },
    /// There is no beacon or no coin.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    /// The transaction cannot be made.
    #[error(transparent)]
    Transaction(#[from] FallbackError),
    /// Another announcement waits in the mempool.
    #[error(
        "transaction {txid}, in the mempool, announces something else ({signal}) at {name}: if that is another update of this \
         version, the DID ends with it. Wait until it is confirmed; --allow-risky-update announces this one all the same"
    )]
    Pending {
        /// The transaction.
        txid: Txid,
        /// What it announces.
        signal: SignalBytes,
        /// The beacon.
        name: String,
    },
    /// An announcement that is not known here is in a block, and does not count yet.
    #[error(
        "transaction {txid}, in block {height} with {confirmations} of {min_conf} confirmations, announces at {name} what is not known \
         here ({signal}): if that is another update of this version, the DID ends with this one. Give its data (--sidecar, --state, \
         --cas), or wait; --allow-risky-update announces this one all the same"
    )]
    Young {
        /// The transaction.
        txid: Txid,
        /// The height of its block.
        height: u32,
        /// How many blocks confirm it.
        confirmations: u32,
        /// How many make it count.
        min_conf: u32,
        /// What it announces.
        signal: SignalBytes,
        /// The beacon.
        name: String,
    },
}

impl OrderError {
    /// Whether the same request may succeed later.
    pub const fn may_pass(&self) -> bool {
        match self {
            Self::Chain(_) => true,
            Self::Choice(error) => error.may_pass(),
            Self::Rate { .. } | Self::Transaction(_) | Self::Pending { .. } | Self::Young { .. } => false,
        }
    }
}

/// The rate to pay: the requested rate, if the chain accepts it; otherwise the chain's estimate, up to 100 sat/vB.
///
/// # Errors
/// [`OrderError::Rate`], [`OrderError::Chain`].
pub async fn rate_of(chain: &dyn Chain, wanted: Option<FeeRate>) -> Result<FeeRate, OrderError> {
    let minimum = chain.minimum_fee().await?.unwrap_or(FeeRate::ZERO);
    match wanted {
        Some(rate) if rate < minimum => {
            Err(OrderError::Rate { rate: sat_per_vb(rate), minimum: sat_per_vb(minimum) })
        }
        Some(rate) => Ok(rate),
        None => {
            let estimate = chain.fee_estimate(ConfirmationTarget::new(6)).await.ok().flatten();
            Ok(estimate.unwrap_or(USUAL_RATE).min(MOST_ESTIMATED).max(minimum).max(FeeRate::BROADCAST_MIN))
        }
    }
}

/// The transaction that announces the update from a Singleton beacon of the document.
///
/// # Errors
/// [`OrderError`].
pub async fn make(chain: &dyn Chain, order: &Order<'_>) -> Result<Made, OrderError> {
    let Order { did, document, update, keys, wanted, change, .. } = *order;
    let listed = places(document, did, keys);
    if listed.is_empty() {
        return Err(ChoiceError::NoSingleton.into());
    }
    let funded = look(chain, listed).await?;
    let signal = SignalBytes::from_bytes(*update.hash().as_bytes());
    let waiting = unconfirmed(chain, &funded).await?;
    if let Some(known) = waiting.iter().find(|waiting| waiting.signal == signal) {
        let place = funded[known.beacon].place.clone();
        return Ok(Made::Waiting(Box::new(Waiting { place, unconfirmed: known.clone() })));
    }
    if let Some(Unconfirmed { beacon, txid, signal, .. }) = waiting.first().filter(|_| !order.allow_risky) {
        let name = funded[*beacon].place.name().to_owned();
        return Err(OrderError::Pending { txid: *txid, signal: *signal, name });
    }
    if !order.allow_risky {
        refuse_unknown(chain, order, &funded, signal).await?;
    }
    let rate = rate_of(chain, order.rate).await?;
    let choice = choose(did, &funded, &wanted, keys, rate)?;
    let announcement = SingletonAnnouncement::new(choice.beacon, &choice.coins, update, rate, change);
    let announcement = announcement.map_err(FallbackError::from)?;
    let announcement = with_funding(chain, announcement, &funded[choice.index]).await?;
    Ok(Made::New(Box::new(finish(announcement, choice.place, keys, order.sign, choice.note)?)))
}

/// Refuses to announce beside an announcement in a block that does not count yet, and whose data is not known here: the
/// resolution that found the current document has not seen it.
async fn refuse_unknown(
    chain: &dyn Chain,
    order: &Order<'_>,
    funded: &[Funded],
    ours: SignalBytes,
) -> Result<(), OrderError> {
    for Young { beacon, signal, confirmations } in young(chain, funded, order.min_conf).await? {
        if signal.bytes != ours && order.given.source_of(signal.bytes.as_bytes()).is_none() {
            return Err(OrderError::Young {
                txid: signal.txid,
                height: signal.block.height,
                confirmations,
                min_conf: order.min_conf,
                signal: signal.bytes,
                name: funded[beacon].place.name().to_owned(),
            });
        }
    }
    Ok(())
}

/// Adds the transactions that created the coins. They prove the values to a wallet, and to this program: a server that states a
/// wrong value would otherwise decide about the fee.
///
/// # Errors
/// [`OrderError`].
pub(super) async fn with_funding(
    chain: &dyn Chain,
    mut announcement: SingletonAnnouncement,
    funded: &Funded,
) -> Result<SingletonAnnouncement, OrderError> {
    let txids: BTreeSet<Txid> = announcement.coins().iter().map(|coin| coin.outpoint.txid).collect();
    for txid in txids {
        let deposit = funded.activity.deposits.iter().find(|deposit| deposit.outpoint.txid == txid);
        let block = deposit.and_then(|deposit| deposit.place.block());
        let funding = chain.transaction(&txid, block.map(|block| &block.hash)).await?;
        let funding = funding.ok_or_else(|| {
            ChainError::Unavailable(format!(
                "the chain listed an output of {txid}, and does not have that transaction"
            ))
        })?;
        announcement = announcement.with_funding(funding).map_err(FallbackError::from)?;
    }
    Ok(announcement)
}

/// Signs the transaction, if the key is known and a signature is asked for.
pub(super) fn finish(
    announcement: SingletonAnnouncement,
    place: Place,
    keys: Option<&Keys>,
    wants_signature: bool,
    note: Option<String>,
) -> Result<New, OrderError> {
    let mut notes: Vec<String> = note.into_iter().collect();
    let secret = place.secret(keys);
    if secret.is_none() {
        let whose = match keys {
            Some(keys) => format!("no key of {} belongs to", keys.name()),
            None => "no key is given here for".to_owned(),
        };
        notes.push(format!(
            "{whose} {} ({}): sign the PSBT with the wallet that has the key",
            place.name(),
            place.address
        ));
    }
    let signed = match secret.filter(|_| wants_signature) {
        Some(key) => Some(sign(&announcement, key, &mut ChaCha20Rng::from_os_rng())?),
        None => None,
    };
    Ok(New { place, prepared: Prepared { announcement, signed }, notes })
}
