//! A chain and stores for a caller that resolves one DID again and again: what was read once is not read again.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use ::bitcoin::{BlockHash, FeeRate, Script, ScriptBuf, Transaction, Txid, block::Header};
use async_trait::async_trait;
use tokio::sync::Mutex as AsyncMutex;

use crate::{
    bitcoin::chain::{Activity, Chain, ChainError, ConfirmationTarget, Signals, Tip, TransactionStatus},
    cas::{Cas, CasError, Content, ContentHash},
    protocol::update::BlockTimes,
};

/// How far below its last tip the history of an address is read again. Deeper reorganizations are detected, and the whole is
/// read again.
const OVERLAP: u32 = 6;

/// A chain whose histories are read completely once, and then from block to block. Between two calls of
/// [`next_look`](Self::next_look) every history is as of its first answer, so that several resolutions see the same chain.
pub struct FollowedChain {
    chain: Arc<dyn Chain>,
    read: AsyncMutex<BTreeMap<ScriptBuf, Read>>,
}

struct Read {
    signals: Signals,
    is_fresh: bool,
}

impl FollowedChain {
    /// Nothing is read yet.
    pub fn new(chain: Arc<dyn Chain>) -> Self {
        Self { chain, read: AsyncMutex::default() }
    }

    /// From now on histories are as of a new tip.
    pub async fn next_look(&self) {
        self.read.lock().await.values_mut().for_each(|read| read.is_fresh = false);
    }

    /// The height from which the history has to be read again; `None` from its beginning.
    async fn since(&self, known: Option<&Read>) -> Result<Option<u32>, ChainError> {
        let Some(Read { signals: Signals { tip, .. }, .. }) = known else { return Ok(None) };
        let from = tip.block.height.saturating_sub(OVERLAP);
        let stands = self.chain.block_hash(tip.block.height).await? == Some(tip.block.hash);
        Ok(stands.then_some(from))
    }
}

#[async_trait]
impl Chain for FollowedChain {
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

    async fn coins_of_all(&self, scripts: &[ScriptBuf]) -> Result<Vec<Activity>, ChainError> {
        self.chain.coins_of_all(scripts).await
    }

    async fn activity(&self, script: &Script, since: u32) -> Result<Activity, ChainError> {
        self.chain.activity(script, since).await
    }

    async fn activities(&self, scripts: &[ScriptBuf], since: u32) -> Result<Vec<Activity>, ChainError> {
        self.chain.activities(scripts, since).await
    }

    async fn block_times(&self, hash: &BlockHash) -> Result<Option<BlockTimes>, ChainError> {
        self.chain.block_times(hash).await
    }

    /// Whole histories only, as a resolver needs them; with another `since` the chain itself is asked.
    async fn signals(&self, scripts: &[ScriptBuf], since: u32) -> Result<Vec<Signals>, ChainError> {
        if since != 0 {
            return self.chain.signals(scripts, since).await;
        }
        let mut read = self.read.lock().await;
        // Those with the same beginning are read together: a node reads its blocks once for all of them.
        let mut groups: BTreeMap<Option<u32>, Vec<ScriptBuf>> = BTreeMap::new();
        for script in scripts {
            let known = read.get(script);
            if known.is_none_or(|known| !known.is_fresh) {
                groups.entry(self.since(known).await?).or_default().push(script.clone());
            }
        }
        for (from, scripts) in groups {
            let found = self.chain.signals(&scripts, from.unwrap_or_default()).await?;
            if found.len() != scripts.len() {
                let problem = format!("{} answers about {} addresses", found.len(), scripts.len());
                return Err(ChainError::BadAnswer(problem));
            }
            for (script, mut signals) in scripts.into_iter().zip(found) {
                if let (Some(from), Some(known)) = (from, read.get(&script)) {
                    let older = known.signals.seen.iter().filter(|seen| seen.block.height < from).copied();
                    signals.seen.retain(|seen| seen.block.height >= from);
                    signals.seen = older.chain(signals.seen).collect();
                }
                read.insert(script, Read { signals, is_fresh: true });
            }
        }
        let answer = |script| read.get(script).map(|read| read.signals.clone());
        let answers: Option<Vec<Signals>> = scripts.iter().map(answer).collect();
        answers.ok_or_else(|| ChainError::BadAnswer("no history of an address that was asked for".to_owned()))
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

    async fn minimum_fee(&self) -> Result<Option<FeeRate>, ChainError> {
        self.chain.minimum_fee().await
    }

    async fn submit(&self, transaction: &Transaction) -> Result<(), ChainError> {
        self.chain.submit(transaction).await
    }

    async fn submit_package(&self, parent: &Transaction, child: &Transaction) -> Result<(), ChainError> {
        self.chain.submit_package(parent, child).await
    }
}

/// A store that remembers what it gave, of which the resolver itself reports only where it came from.
#[derive(Debug)]
pub struct RememberingStore {
    store: Arc<dyn Cas>,
    given: Mutex<BTreeMap<ContentHash, Content>>,
}

impl RememberingStore {
    /// Nothing is given yet.
    pub fn new(store: Arc<dyn Cas>) -> Self {
        Self { store, given: Mutex::default() }
    }

    /// What it gave for that hash.
    pub fn given(&self, hash: &ContentHash) -> Option<Content> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).get(hash).cloned()
    }
}

#[async_trait]
impl Cas for RememberingStore {
    fn name(&self) -> &str {
        self.store.name()
    }

    async fn put(&self, content: &Content) -> Result<(), CasError> {
        self.store.put(content).await
    }

    /// Content is what its hash states, for all time: it is asked for once.
    async fn get(&self, hash: &ContentHash) -> Result<Content, CasError> {
        if let Some(known) = self.given(hash) {
            return Ok(known);
        }
        let content = self.store.get(hash).await?;
        self.given.lock().unwrap_or_else(PoisonError::into_inner).insert(*hash, content.clone());
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitcoin::chain::MemoryChain;

    #[tokio::test]
    async fn a_history_is_read_again_after_a_deep_reorganization() {
        let (memory, script) = (MemoryChain::new(), ScriptBuf::new_op_return([1]));
        memory.mine(20, &script);
        let chain = FollowedChain::new(Arc::new(memory.clone()));
        let scripts = [script.clone()];
        let tip = async || chain.signals(&scripts, 0).await.unwrap()[0].tip.block;
        let first = tip().await;
        memory.mine(1, &script);
        assert_eq!(tip().await, first, "as of the first answer");
        chain.next_look().await;
        let second = tip().await;
        assert_eq!(second.height, first.height + 1);
        memory.take_back(10);
        memory.mine(12, &ScriptBuf::new_op_return([2]));
        chain.next_look().await;
        assert_eq!(tip().await, memory.tip().await.unwrap().block);
    }
}
