//! Follows an announcement to its confirmations, and reports what becomes of it.

use std::{collections::BTreeMap, time::Duration};

use ::bitcoin::{OutPoint, ScriptBuf, Transaction, Txid};

use crate::{
    bitcoin::{
        chain::{Chain, ChainError},
        ledger::{Ledger, read_spenders},
        sighting::{Sighting, rival},
    },
    protocol::hash::SignalBytes,
};

/// How many blocks below the tip an announcement that was just sent may already be.
const LOOK_BACK: u32 = 6;

/// What is followed.
#[derive(Clone, Debug)]
pub struct Followed {
    /// The script of the beacon's address.
    pub script: ScriptBuf,
    /// What is announced.
    pub signal: SignalBytes,
    /// The transaction. If it leaves the mempool it is submitted again.
    pub transaction: Transaction,
    /// The height from which on it may be in a block; `None` for one that was just sent.
    pub since: Option<u32>,
}

/// Something that a person wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It waits in the mempool.
    Mempool {
        /// The transaction, which another one may have replaced.
        txid: Txid,
        /// The block that it was in before: a reorganization has undone it.
        was_in: Option<u32>,
    },
    /// It is in a block.
    Block {
        /// The transaction.
        txid: Txid,
        /// The height of the block.
        height: u32,
        /// How many blocks confirm it.
        confirmations: u32,
        /// The height of another block that it was in before.
        was_in: Option<u32>,
    },
    /// It is in no block and not in the mempool, and is submitted again.
    Gone {
        /// The block that it was in before.
        was_in: Option<u32>,
        /// Why the chain does not take it again.
        refused: Option<String>,
    },
    /// Another transaction, which announces something else, spends one of its coins.
    Rival {
        /// That transaction.
        by: Txid,
        /// How many blocks confirm it; 0 in the mempool.
        confirmations: u32,
    },
    /// The chain does not answer.
    Silent(String),
    /// The chain answers again.
    Answers,
}

/// The end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It has the confirmations that were asked for.
    Confirmed {
        /// The transaction.
        txid: Txid,
        /// The height of its block.
        height: u32,
        /// How many blocks confirm it.
        confirmations: u32,
    },
    /// Another transaction has spent one of its coins, with as many confirmations: it will never be confirmed.
    Replaced(Txid),
}

/// Follows the announcement until `needed` blocks confirm it, at least 1, or until it is final that none will. The chain is
/// asked every `poll`.
///
/// # Errors
/// [`ChainError`], when the chain cannot be used: it is asked again while it does not answer.
pub async fn follow(
    chain: &dyn Chain,
    followed: &Followed,
    needed: u32,
    poll: Duration,
    mut report: impl FnMut(&Change),
) -> Result<End, ChainError> {
    let needed = needed.max(1);
    let mut look = Look::default();
    let mut silent = false;
    loop {
        match look.again(chain, followed, needed).await {
            Ok((changes, end)) => {
                if std::mem::take(&mut silent) {
                    report(&Change::Answers);
                }
                changes.iter().for_each(&mut report);
                if let Some(end) = end {
                    return Ok(end);
                }
            }
            Err(error) if !error.is_transient() => return Err(error),
            Err(error) => {
                if !std::mem::replace(&mut silent, true) {
                    report(&Change::Silent(error.to_string()));
                }
            }
        }
        tokio::time::sleep(poll).await;
    }
}

/// What was seen so far.
#[derive(Default)]
struct Look {
    ledger: Option<Ledger>,
    transactions: BTreeMap<Txid, Transaction>,
    last: Option<Change>,
    /// The block that it is in, or was in.
    block: Option<u32>,
}

impl Look {
    async fn again(
        &mut self,
        chain: &dyn Chain,
        followed: &Followed,
        needed: u32,
    ) -> Result<(Vec<Change>, Option<End>), ChainError> {
        let ledger = match &mut self.ledger {
            Some(ledger) => ledger,
            None => self.ledger.insert(begin(chain, followed).await?),
        };
        let activity = ledger.refresh(chain).await?;
        read_spenders(chain, &activity, &mut self.transactions).await?;
        let spends: Vec<OutPoint> = followed.transaction.input.iter().map(|input| input.previous_output).collect();
        let sighting = Sighting::of(&activity, &self.transactions, followed.signal, &spends, needed);
        let was_in = self.block;
        let (change, end) = match sighting {
            Sighting::Block { txid, height, confirmations } => {
                self.block = Some(height);
                let was_in = was_in.filter(|was| *was != height);
                let end = End::Confirmed { txid, height, confirmations };
                (Change::Block { txid, height, confirmations, was_in }, Some(end))
            }
            Sighting::Mempool(txid) => {
                self.block = None;
                // The same place as before is no news, but the way back into it is.
                let was_in = match (&self.last, was_in) {
                    (Some(Change::Mempool { was_in, .. }), None) => *was_in,
                    (_, was_in) => was_in,
                };
                (Change::Mempool { txid, was_in }, None)
            }
            Sighting::Replaced(by) => (Change::Rival { by, confirmations: needed }, Some(End::Replaced(by))),
            Sighting::Gone => {
                self.block = None;
                (self.gone(chain, followed, rival(&activity, &spends), was_in).await?, None)
            }
        };
        let end = end.filter(|_| sighting.is_settled(needed));
        if self.last.as_ref() == Some(&change) {
            return Ok((Vec::new(), end));
        }
        self.last = Some(change.clone());
        Ok((vec![change], end))
    }

    async fn gone(
        &self,
        chain: &dyn Chain,
        followed: &Followed,
        rival: Option<(Txid, u32)>,
        was_in: Option<u32>,
    ) -> Result<Change, ChainError> {
        if let Some((by, confirmations)) = rival {
            return Ok(Change::Rival { by, confirmations });
        }
        let refused = match chain.submit(&followed.transaction).await {
            Ok(()) => None,
            Err(ChainError::Rejected(rejection)) => Some(rejection.reason),
            Err(error) => return Err(error),
        };
        let was_in = match &self.last {
            Some(Change::Gone { was_in: before, .. }) => was_in.or(*before),
            _ => was_in,
        };
        Ok(Change::Gone { was_in, refused })
    }
}

/// A ledger that starts before the announcement. It never lists the coins of the address: only spends matter.
async fn begin(chain: &dyn Chain, followed: &Followed) -> Result<Ledger, ChainError> {
    let tip = chain.tip().await?;
    let mut since = tip;
    let start = followed.since.map_or(tip.block.height, |height| height.min(tip.block.height));
    since.block.height = start.saturating_sub(LOOK_BACK);
    since.block.hash = chain
        .block_hash(since.block.height)
        .await?
        .ok_or_else(|| ChainError::Unavailable(format!("block {} is gone", since.block.height)))?;
    Ok(Ledger::known(followed.script.clone(), since, [], []))
}
