//! A chain in memory: transactions without work or signatures, conflicts by inputs, and blocks when a test wants them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use bitcoin::{
    Amount, BlockHash, FeeRate, OutPoint, Script, ScriptBuf, Transaction, TxOut, Txid, absolute::LockTime,
    block::Header, hashes::Hash, transaction::Version,
};
use btcr2_aggregation_actors::chain::{
    Activity, BlockId, Chain, ChainError, ConfirmationTarget, Deposit, Place, Rejection, Spend, Tip,
    TransactionStatus,
};
use btcr2_aggregation_protocol::hash::sha256;

#[derive(Default)]
struct State {
    blocks: Vec<Vec<Transaction>>,
    mempool: Vec<Transaction>,
    deposits: u32,
    scans: usize,
}

/// Clones are the same chain.
#[derive(Clone, Default)]
pub(super) struct TestChain(Arc<Mutex<State>>);

fn block(height: usize) -> BlockId {
    let height = u32::try_from(height).unwrap();
    BlockId { height, hash: BlockHash::from_byte_array(sha256(&height.to_be_bytes())) }
}

impl State {
    fn tip(&self) -> Tip {
        Tip { block: block(self.blocks.len()), median_time: 1 }
    }

    /// Every transaction with its place, in order.
    fn all(&self) -> impl Iterator<Item = (Place, &Transaction)> {
        let mined = self.blocks.iter().enumerate();
        let mined =
            mined.flat_map(|(at, block_of)| block_of.iter().map(move |tx| (Place::Block(block(at + 1)), tx)));
        mined.chain(self.mempool.iter().map(|tx| (Place::Mempool, tx)))
    }

    fn outputs(&self, script: &Script) -> BTreeMap<OutPoint, (Amount, Place)> {
        let mut outputs = BTreeMap::new();
        for (place, transaction) in self.all() {
            let txid = transaction.compute_txid();
            for (vout, output) in (0..).zip(&transaction.output) {
                if *output.script_pubkey == *script {
                    outputs.insert(OutPoint { txid, vout }, (output.value, place));
                }
            }
        }
        outputs
    }

    fn is_recent(place: &Place, since: u32) -> bool {
        place.block().is_none_or(|block| block.height >= since)
    }

    fn activity(&self, script: &Script, since: u32) -> Activity {
        let outputs = self.outputs(script);
        let recent = outputs.iter().filter(|(_, (_, place))| Self::is_recent(place, since));
        let deposits = recent.map(|(outpoint, (value, place))| Deposit::new(*outpoint, *value, *place)).collect();
        let spends =
            self.all().filter(|(place, _)| Self::is_recent(place, since)).flat_map(|(place, transaction)| {
                let by = transaction.compute_txid();
                let inputs = transaction.input.iter().map(|input| input.previous_output);
                let own: Vec<OutPoint> = inputs.filter(|outpoint| outputs.contains_key(outpoint)).collect();
                own.into_iter().map(move |outpoint| Spend { outpoint, by, place })
            });
        Activity { tip: self.tip(), deposits, spends: spends.collect() }
    }
}

impl TestChain {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A deposit in the next block.
    pub(super) fn pay(&self, script: ScriptBuf, value: u64) {
        let mut state = self.state();
        state.deposits += 1;
        let lock_time = LockTime::from_consensus(state.deposits);
        let output = vec![TxOut { value: Amount::from_sat(value), script_pubkey: script }];
        state.mempool.push(Transaction { version: Version::TWO, lock_time, input: Vec::new(), output });
    }

    /// So many blocks; the mempool gets into the first one. Returns what was in it.
    pub(super) fn mine(&self, blocks: usize) -> Vec<Transaction> {
        let mut state = self.state();
        let mined = std::mem::take(&mut state.mempool);
        state.blocks.push(mined.clone());
        (1..blocks).for_each(|_| state.blocks.push(Vec::new()));
        mined
    }

    /// How often all coins of an address were asked for, which is a scan of all unspent outputs by a node.
    pub(super) fn scans(&self) -> usize {
        self.state().scans
    }

    pub(super) fn mempool(&self) -> Vec<Transaction> {
        self.state().mempool.clone()
    }

    /// Every transaction in a block, in order.
    pub(super) fn mined(&self) -> Vec<Transaction> {
        self.state().blocks.iter().flatten().cloned().collect()
    }
}

#[async_trait]
impl Chain for TestChain {
    async fn tip(&self) -> Result<Tip, ChainError> {
        Ok(self.state().tip())
    }

    async fn block_hash(&self, height: u32) -> Result<Option<BlockHash>, ChainError> {
        let known = (height as usize) <= self.state().blocks.len();
        Ok(known.then(|| block(height as usize).hash))
    }

    async fn header(&self, _: &BlockHash) -> Result<Option<Header>, ChainError> {
        Ok(None)
    }

    async fn coins(&self, script: &Script) -> Result<Activity, ChainError> {
        let mut state = self.state();
        state.scans += 1;
        let mut all = state.activity(script, 0);
        all.deposits.retain(|deposit| !all.spends.iter().any(|spend| spend.outpoint == deposit.outpoint));
        all.spends.clear();
        Ok(all)
    }

    async fn activity(&self, script: &Script, since: u32) -> Result<Activity, ChainError> {
        Ok(self.state().activity(script, since))
    }

    async fn transaction(&self, txid: &Txid, _: Option<&BlockHash>) -> Result<Option<Transaction>, ChainError> {
        let state = self.state();
        let found = state.all().find(|(_, transaction)| transaction.compute_txid() == *txid);
        Ok(found.map(|(_, transaction)| transaction.clone()))
    }

    async fn status(&self, txid: &Txid, _: u32) -> Result<TransactionStatus, ChainError> {
        let state = self.state();
        let found = state.all().find(|(_, transaction)| transaction.compute_txid() == *txid);
        Ok(found.map_or(TransactionStatus::Unknown, |(place, _)| TransactionStatus::At(place)))
    }

    async fn fee_estimate(&self, _: ConfirmationTarget) -> Result<Option<FeeRate>, ChainError> {
        Ok(None)
    }

    async fn submit(&self, transaction: &Transaction) -> Result<(), ChainError> {
        let mut state = self.state();
        if state.all().any(|(_, known)| known.compute_txid() == transaction.compute_txid()) {
            return Ok(());
        }
        for input in &transaction.input {
            let OutPoint { txid, vout } = input.previous_output;
            let exists = state.all().any(|(_, known)| {
                known.compute_txid() == txid && known.output.len() > usize::try_from(vout).unwrap()
            });
            let mut spenders = state.all().flat_map(|(_, known)| &known.input);
            if !exists || spenders.any(|spent| spent.previous_output == input.previous_output) {
                return Err(ChainError::Rejected(Rejection::new("bad-txns-inputs-missingorspent")));
            }
        }
        state.mempool.push(transaction.clone());
        Ok(())
    }

    async fn submit_package(&self, parent: &Transaction, child: &Transaction) -> Result<(), ChainError> {
        self.submit(parent).await?;
        self.submit(child).await
    }
}
