//! The chain as it would be if the mempool's signals were in its next block.

use std::{collections::BTreeMap, sync::Arc};

use ::bitcoin::{BlockHash, FeeRate, Script, ScriptBuf, Transaction, Txid, block::Header, hashes::Hash};
use async_trait::async_trait;

use super::UnconfirmedSignal;
use crate::{
    bitcoin::chain::{
        Activity, BlockId, Chain, ChainError, ConfirmationTarget, SignalSeen, Signals, Tip, TransactionStatus,
    },
    protocol::{hash::SignalBytes, time::Timestamp, update::BlockTimes},
};

/// A chain with one more block. Only the signals are answered with it: a resolver asks for nothing else.
pub(super) struct NextBlock {
    chain: Arc<dyn Chain>,
    signals: BTreeMap<ScriptBuf, Vec<(Txid, SignalBytes)>>,
    now: Timestamp,
}

impl NextBlock {
    /// `chain` with a block of these signals. Its header has the time `now`, and its median time is that of the tip: the next
    /// block's is not earlier.
    pub(super) fn new(chain: Arc<dyn Chain>, unconfirmed: &[UnconfirmedSignal], now: Timestamp) -> Self {
        let mut signals: BTreeMap<ScriptBuf, Vec<(Txid, SignalBytes)>> = BTreeMap::new();
        for signal in unconfirmed {
            signals.entry(signal.address.script_pubkey()).or_default().push((signal.txid, signal.bytes));
        }
        Self { chain, signals, now }
    }

    fn add(&self, script: &ScriptBuf, signals: &mut Signals) {
        let Tip { block, median_time } = signals.tip;
        // No block has this hash.
        let block = BlockId { height: block.height.saturating_add(1), hash: BlockHash::all_zeros() };
        let time = u32::try_from(self.now.as_secs()).unwrap_or(u32::MAX).max(median_time);
        let times = BlockTimes { time, mediantime: median_time };
        let known: Vec<Txid> = signals.seen.iter().map(|seen| seen.txid).collect();
        let waiting = self.signals.get(script).into_iter().flatten();
        let waiting = waiting.filter(|(txid, _)| !known.contains(txid));
        signals.seen.extend(waiting.map(|(txid, bytes)| SignalSeen { txid: *txid, bytes: *bytes, block, times }));
        signals.tip.block = block;
    }
}

#[async_trait]
impl Chain for NextBlock {
    async fn signals(&self, scripts: &[ScriptBuf], since: u32) -> Result<Vec<Signals>, ChainError> {
        let mut found = self.chain.signals(scripts, since).await?;
        for (script, signals) in scripts.iter().zip(&mut found) {
            self.add(script, signals);
        }
        Ok(found)
    }

    async fn tip(&self) -> Result<Tip, ChainError> {
        self.chain.tip().await
    }

    async fn block_hash(&self, height: u32) -> Result<Option<BlockHash>, ChainError> {
        self.chain.block_hash(height).await
    }

    async fn header(&self, hash: &BlockHash) -> Result<Option<Header>, ChainError> {
        self.chain.header(hash).await
    }

    async fn coins(&self, script: &Script) -> Result<Activity, ChainError> {
        self.chain.coins(script).await
    }

    async fn activity(&self, script: &Script, since: u32) -> Result<Activity, ChainError> {
        self.chain.activity(script, since).await
    }

    async fn transaction(&self, txid: &Txid, block: Option<&BlockHash>) -> Result<Option<Transaction>, ChainError> {
        self.chain.transaction(txid, block).await
    }

    async fn status(&self, txid: &Txid, since: u32) -> Result<TransactionStatus, ChainError> {
        self.chain.status(txid, since).await
    }

    async fn fee_estimate(&self, target: ConfirmationTarget) -> Result<Option<FeeRate>, ChainError> {
        self.chain.fee_estimate(target).await
    }

    async fn submit(&self, transaction: &Transaction) -> Result<(), ChainError> {
        self.chain.submit(transaction).await
    }

    async fn submit_package(&self, parent: &Transaction, child: &Transaction) -> Result<(), ChainError> {
        self.chain.submit_package(parent, child).await
    }
}
