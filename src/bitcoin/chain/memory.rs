//! A chain in memory, for tests: blocks without work, scripts that need no signature, and a mempool with fees,
//! conflicts, relative timelocks and packages of two.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ::bitcoin::{
    Amount, Block, BlockHash, CompactTarget, FeeRate, OutPoint, Script, ScriptBuf, Sequence, Transaction, TxIn,
    TxMerkleNode, TxOut, Txid, Witness,
    absolute::LockTime,
    block::{Header, Version},
    constants::genesis_block,
    hashes::Hash,
    transaction,
};
use async_trait::async_trait;

use super::{
    Activity, BlockId, Chain, ChainError, ConfirmationTarget, Deposit, Place, Rejection, RejectionKind, Spend, Tip,
    TransactionStatus,
};

/// The time between two blocks, in seconds.
const BLOCK_TIME: u32 = 600;

/// The value that a block creates.
const SUBSIDY: Amount = Amount::from_sat(5_000_000_000);

/// How a [`MemoryChain`] answers a query for a fee rate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MemoryFees {
    /// No estimate is available.
    #[default]
    Unknown,
    /// This rate, correct or not.
    Estimate(FeeRate),
    /// An error.
    Failing,
}

/// A chain in memory. Clones are the same chain.
#[derive(Clone, Debug)]
pub struct MemoryChain(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// The best chain, from the genesis block on.
    blocks: Vec<Block>,
    /// Blocks that a reorganization removed, for [`Chain::header`].
    stale: BTreeMap<BlockHash, Header>,
    /// In the order of arrival.
    mempool: Vec<Transaction>,
    min_relay: FeeRate,
    fees: MemoryFees,
    reachable: bool,
    /// The height below which blocks cannot be read.
    pruned_below: u32,
    /// How often all coins were queried.
    scans: u32,
    /// Makes every coinbase unique.
    coinbases: u64,
}

/// An output, and the height of its block; `None` in the mempool.
type Found = (TxOut, Option<u32>);

impl MemoryChain {
    /// A chain of regtest's genesis block only.
    pub fn new() -> Self {
        let state = State {
            blocks: vec![genesis_block(::bitcoin::Network::Regtest)],
            stale: BTreeMap::new(),
            mempool: Vec::new(),
            min_relay: FeeRate::BROADCAST_MIN,
            fees: MemoryFees::Unknown,
            reachable: true,
            pruned_below: 0,
            scans: 0,
            coinbases: 0,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reached(&self) -> Result<MutexGuard<'_, State>, ChainError> {
        let state = self.state();
        if state.reachable { Ok(state) } else { Err(ChainError::Unavailable("out of reach".to_owned())) }
    }

    /// Mines so many blocks, the first one with the whole mempool; each pays to `script`. Returns the coinbases'
    /// outputs, which can be spent at once.
    pub fn mine(&self, blocks: u32, script: &Script) -> Vec<OutPoint> {
        let mut state = self.state();
        (0..blocks)
            .map(|_| {
                let transactions = std::mem::take(&mut state.mempool);
                state.push_block(transactions, script)
            })
            .collect()
    }

    /// Mines so many blocks. The first one has exactly these transactions, whatever is in the mempool.
    pub fn mine_with(&self, blocks: u32, transactions: &[Transaction]) {
        let mut state = self.state();
        let mut transactions = transactions.to_vec();
        for _ in 0..blocks {
            state.push_block(std::mem::take(&mut transactions), Script::new());
        }
    }

    /// Removes the last `blocks` blocks. Their transactions return to the mempool.
    pub fn take_back(&self, blocks: u32) {
        let mut state = self.state();
        let mut returned = Vec::new();
        for _ in 0..blocks {
            if state.blocks.len() < 2 {
                break;
            }
            let Some(block) = state.blocks.pop() else { break };
            state.stale.insert(block.block_hash(), block.header);
            returned.splice(0..0, block.txdata.into_iter().skip(1));
        }
        let after = std::mem::replace(&mut state.mempool, returned);
        state.mempool.extend(after);
        state.evict_impossible();
    }

    /// Drops a transaction of the mempool and its descendants, as nodes do when the mempool is full.
    pub fn evict(&self, txid: &Txid) {
        let mut state = self.state();
        state.mempool.retain(|transaction| transaction.compute_txid() != *txid);
        state.evict_impossible();
    }

    /// Sets the minimum fee rate of the mempool.
    pub fn set_min_relay(&self, rate: FeeRate) {
        self.state().min_relay = rate;
    }

    /// Sets the answer to queries for a fee rate.
    pub fn set_fees(&self, fees: MemoryFees) {
        self.state().fees = fees;
    }

    /// Sets whether the chain can be reached.
    pub fn set_reachable(&self, reachable: bool) {
        self.state().reachable = reachable;
    }

    /// Sets the height below which [`Chain::activity`] fails, as on a pruned node.
    pub fn set_pruned_below(&self, height: u32) {
        self.state().pruned_below = height;
    }

    /// How often [`Chain::coins`] was called, which keeps a node busy for minutes.
    pub fn scans(&self) -> u32 {
        self.state().scans
    }

    /// The transactions in the mempool.
    pub fn mempool(&self) -> Vec<Transaction> {
        self.state().mempool.clone()
    }

    /// The block at a height.
    pub fn block(&self, height: u32) -> Option<Block> {
        self.state().blocks.get(usize::try_from(height).ok()?).cloned()
    }
}

impl Default for MemoryChain {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn height(&self) -> u32 {
        u32::try_from(self.blocks.len()).unwrap_or(u32::MAX) - 1
    }

    fn block_id(&self, height: u32) -> Option<BlockId> {
        let block = self.blocks.get(usize::try_from(height).ok()?)?;
        Some(BlockId { height, hash: block.block_hash() })
    }

    fn tip(&self) -> Result<Tip, ChainError> {
        let height = self.height();
        let block = self.block_id(height).ok_or_else(|| ChainError::BadAnswer("no blocks".to_owned()))?;
        let mut times: Vec<_> = self.blocks.iter().rev().take(11).map(|block| block.header.time).collect();
        times.sort_unstable();
        Ok(Tip { block, median_time: times[times.len() / 2] })
    }

    fn push_block(&mut self, transactions: Vec<Transaction>, script: &Script) -> OutPoint {
        let (previous, time) = self
            .blocks
            .last()
            .map_or((BlockHash::all_zeros(), 0), |block| (block.block_hash(), block.header.time + BLOCK_TIME));
        self.coinbases += 1;
        let coinbase = Transaction {
            version: transaction::Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![TxIn {
                previous_output: OutPoint::null(),
                script_sig: ScriptBuf::from_bytes(self.coinbases.to_le_bytes().to_vec()),
                sequence: Sequence::MAX,
                witness: Witness::new(),
            }],
            output: vec![TxOut { value: SUBSIDY, script_pubkey: script.to_owned() }],
        };
        let made = OutPoint { txid: coinbase.compute_txid(), vout: 0 };
        let header = Header {
            version: Version::TWO,
            prev_blockhash: previous,
            merkle_root: TxMerkleNode::all_zeros(),
            time,
            bits: CompactTarget::from_consensus(0x207f_ffff),
            nonce: 0,
        };
        let mut block = Block { header, txdata: vec![coinbase] };
        block.txdata.extend(transactions);
        if let Some(root) = block.compute_merkle_root() {
            block.header.merkle_root = root;
        }
        self.blocks.push(block);
        self.evict_impossible();
        made
    }

    /// All transactions with their heights, the oldest first.
    fn all(&self) -> impl Iterator<Item = (&Transaction, Option<u32>)> {
        let confirmed = (0..)
            .zip(&self.blocks)
            .flat_map(|(height, block)| block.txdata.iter().map(move |transaction| (transaction, Some(height))));
        confirmed.chain(self.mempool.iter().map(|transaction| (transaction, None)))
    }

    fn output(&self, outpoint: &OutPoint) -> Option<Found> {
        let vout = usize::try_from(outpoint.vout).ok()?;
        self.all()
            .find(|(transaction, _)| transaction.compute_txid() == outpoint.txid)
            .and_then(|(transaction, height)| Some((transaction.output.get(vout)?.clone(), height)))
    }

    fn spender(&self, outpoint: &OutPoint) -> Option<(Txid, Option<u32>)> {
        self.all()
            .find(|(transaction, _)| transaction.input.iter().any(|input| input.previous_output == *outpoint))
            .map(|(transaction, height)| (transaction.compute_txid(), height))
    }

    fn place(&self, height: Option<u32>) -> Place {
        height.and_then(|height| self.block_id(height)).map_or(Place::Mempool, Place::Block)
    }

    /// Checks that the next block could contain `transaction`, and returns its fee. It may spend from `parent`.
    fn check(&self, transaction: &Transaction, parent: Option<&Transaction>) -> Result<Amount, Rejection> {
        let refuse = |kind, reason: &str| Rejection { kind, reason: reason.to_owned() };
        let mut value = Amount::ZERO;
        for input in &transaction.input {
            let outpoint = &input.previous_output;
            let of_parent = parent
                .filter(|parent| parent.compute_txid() == outpoint.txid)
                .and_then(|parent| parent.output.get(usize::try_from(outpoint.vout).ok()?))
                .map(|output| (output.clone(), None));
            let Some((output, height)) = of_parent.or_else(|| self.output(outpoint)) else {
                return Err(refuse(RejectionKind::InputsSpent, "bad-txns-inputs-missingorspent"));
            };
            if matches!(self.spender(outpoint), Some((_, Some(_)))) {
                return Err(refuse(RejectionKind::InputsSpent, "bad-txns-inputs-missingorspent"));
            }
            if let Some(::bitcoin::relative::LockTime::Blocks(wait)) = input.sequence.to_relative_lock_time() {
                let mature = height.map(|height| height + u32::from(wait.value()));
                if mature.is_none_or(|mature| mature > self.height() + 1) {
                    return Err(refuse(RejectionKind::NotFinal, "non-BIP68-final"));
                }
            }
            value += output.value;
        }
        let paid: Amount = transaction.output.iter().map(|output| output.value).sum();
        value.checked_sub(paid).ok_or_else(|| refuse(RejectionKind::Other, "bad-txns-in-belowout"))
    }

    fn has(&self, txid: &Txid) -> bool {
        self.all().any(|(transaction, _)| transaction.compute_txid() == *txid)
    }

    fn pays_enough(&self, fee: Amount, vsize: usize) -> bool {
        let vsize = u64::try_from(vsize).unwrap_or(u64::MAX);
        self.min_relay.fee_vb(vsize).is_some_and(|least| fee >= least)
    }

    fn accept(&mut self, transaction: &Transaction) -> Result<(), Rejection> {
        if self.has(&transaction.compute_txid()) {
            return Ok(());
        }
        let fee = self.check(transaction, None)?;
        if !self.pays_enough(fee, transaction.vsize()) {
            let reason = "mempool min fee not met".to_owned();
            return Err(Rejection { kind: RejectionKind::FeeTooLow, reason });
        }
        self.replace(&[transaction], fee)?;
        self.mempool.push(transaction.clone());
        Ok(())
    }

    /// Drops the transactions that conflict with `newcomers`, which pay `fee` in total, whatever they signal (full
    /// RBF), if the newcomers pay more and also pay for their own relay.
    fn replace(&mut self, newcomers: &[&Transaction], fee: Amount) -> Result<(), Rejection> {
        let spends_the_same = |other: &Transaction| {
            let spent = newcomers.iter().flat_map(|newcomer| &newcomer.input).map(|input| input.previous_output);
            let new = newcomers.iter().all(|newcomer| newcomer.compute_txid() != other.compute_txid());
            new && spent
                .into_iter()
                .any(|outpoint| other.input.iter().any(|input| input.previous_output == outpoint))
        };
        let replaced: Vec<_> = self.mempool.iter().filter(|other| spends_the_same(other)).cloned().collect();
        if replaced.is_empty() {
            return Ok(());
        }
        let paid: Amount = replaced.iter().filter_map(|other| self.fee_of(other)).sum();
        let vsize = newcomers.iter().map(|newcomer| newcomer.vsize()).sum();
        if !self.pays_enough(fee.checked_sub(paid).unwrap_or_default(), vsize) {
            let reason = "insufficient fee, rejecting replacement".to_owned();
            return Err(Rejection { kind: RejectionKind::FeeTooLow, reason });
        }
        self.mempool.retain(|other| !replaced.contains(other));
        self.evict_impossible();
        Ok(())
    }

    fn fee_of(&self, transaction: &Transaction) -> Option<Amount> {
        let spent: Option<Amount> = transaction
            .input
            .iter()
            .map(|input| self.output(&input.previous_output).map(|(output, _)| output.value))
            .sum();
        spent?.checked_sub(transaction.output.iter().map(|output| output.value).sum())
    }

    /// Drops transactions from the mempool that can no longer be confirmed.
    fn evict_impossible(&mut self) {
        let candidates = std::mem::take(&mut self.mempool);
        for transaction in candidates {
            let unspent = transaction.input.iter().all(|input| self.spender(&input.previous_output).is_none());
            if unspent && self.check(&transaction, None).is_ok() {
                self.mempool.push(transaction);
            }
        }
    }

    fn activity(&self, script: &Script, wanted: impl Fn(Option<u32>) -> bool) -> Result<Activity, ChainError> {
        let mut activity = Activity { tip: self.tip()?, deposits: Vec::new(), spends: Vec::new() };
        for (transaction, height) in self.all().filter(|(_, height)| wanted(*height)) {
            let (txid, place) = (transaction.compute_txid(), self.place(height));
            for (vout, output) in (0..).zip(&transaction.output) {
                if *output.script_pubkey == *script {
                    let outpoint = OutPoint { txid, vout };
                    let coinbase = transaction.is_coinbase();
                    activity.deposits.push(Deposit { outpoint, value: output.value, place, coinbase });
                }
            }
            for input in &transaction.input {
                let spent = self.output(&input.previous_output);
                if spent.is_some_and(|(output, _)| *output.script_pubkey == *script) {
                    activity.spends.push(Spend { outpoint: input.previous_output, by: txid, place });
                }
            }
        }
        Ok(activity)
    }
}

#[async_trait]
impl Chain for MemoryChain {
    async fn tip(&self) -> Result<Tip, ChainError> {
        self.reached()?.tip()
    }

    async fn block_hash(&self, height: u32) -> Result<Option<BlockHash>, ChainError> {
        Ok(self.reached()?.block_id(height).map(|block| block.hash))
    }

    async fn header(&self, hash: &BlockHash) -> Result<Option<Header>, ChainError> {
        let state = self.reached()?;
        let best = state.blocks.iter().find(|block| block.block_hash() == *hash).map(|block| block.header);
        Ok(best.or_else(|| state.stale.get(hash).copied()))
    }

    async fn coins(&self, script: &Script) -> Result<Activity, ChainError> {
        let mut state = self.reached()?;
        state.scans += 1;
        let mut activity = state.activity(script, |_| true)?;
        activity.spends.retain(|spend| spend.place == Place::Mempool);
        activity.deposits.retain(|deposit| {
            deposit.place == Place::Mempool
                || state.spender(&deposit.outpoint).is_none_or(|(_, height)| height.is_none())
        });
        Ok(activity)
    }

    async fn activity(&self, script: &Script, since: u32) -> Result<Activity, ChainError> {
        let state = self.reached()?;
        if since < state.pruned_below {
            return Err(ChainError::Pruned(format!("below {}", state.pruned_below)));
        }
        state.activity(script, |height| height.is_none_or(|height| height >= since))
    }

    async fn transaction(&self, txid: &Txid, block: Option<&BlockHash>) -> Result<Option<Transaction>, ChainError> {
        let state = self.reached()?;
        let found = state.all().find(|(transaction, height)| {
            let in_block = |hash: &BlockHash| {
                height.and_then(|height| state.block_id(height)).is_some_and(|id| id.hash == *hash)
            };
            transaction.compute_txid() == *txid && block.map_or(height.is_none(), in_block)
        });
        Ok(found.map(|(transaction, _)| transaction.clone()))
    }

    async fn status(&self, txid: &Txid, since: u32) -> Result<TransactionStatus, ChainError> {
        let state = self.reached()?;
        let found = state.all().find(|(transaction, height)| {
            transaction.compute_txid() == *txid && height.is_none_or(|height| height >= since)
        });
        Ok(found.map_or(TransactionStatus::Unknown, |(_, height)| TransactionStatus::At(state.place(height))))
    }

    async fn fee_estimate(&self, _target: ConfirmationTarget) -> Result<Option<FeeRate>, ChainError> {
        match self.reached()?.fees.clone() {
            MemoryFees::Unknown => Ok(None),
            MemoryFees::Estimate(rate) => Ok(Some(rate)),
            MemoryFees::Failing => Err(ChainError::Unavailable("the estimator fails".to_owned())),
        }
    }

    async fn minimum_fee(&self) -> Result<Option<FeeRate>, ChainError> {
        Ok(Some(self.reached()?.min_relay))
    }

    async fn replacement_increment(&self) -> Result<Option<FeeRate>, ChainError> {
        Ok(Some(self.reached()?.min_relay))
    }

    async fn submit(&self, transaction: &Transaction) -> Result<(), ChainError> {
        Ok(self.reached()?.accept(transaction)?)
    }

    async fn submit_package(&self, parent: &Transaction, child: &Transaction) -> Result<(), ChainError> {
        let mut state = self.reached()?;
        if state.has(&child.compute_txid()) {
            return Ok(());
        }
        let parent_known = state.has(&parent.compute_txid());
        let parent_fee =
            if parent_known { state.fee_of(parent).unwrap_or_default() } else { state.check(parent, None)? };
        let paid: Amount = child.output.iter().map(|output| output.value).sum();
        let change = child.input.iter().filter_map(|input| {
            let vout = usize::try_from(input.previous_output.vout).ok()?;
            parent.output.get(vout).filter(|_| input.previous_output.txid == parent.compute_txid())
        });
        let fee = change.map(|output| output.value).sum::<Amount>().checked_sub(paid).unwrap_or_default();
        if !state.pays_enough(parent_fee + fee, parent.vsize() + child.vsize()) {
            let reason = "package mempool min fee not met".to_owned();
            return Err(Rejection { kind: RejectionKind::FeeTooLow, reason }.into());
        }
        state.check(child, Some(parent))?;
        if parent_known {
            state.replace(&[child], fee)?;
        } else {
            state.replace(&[parent, child], parent_fee + fee)?;
            state.mempool.push(parent.clone());
        }
        state.mempool.push(child.clone());
        Ok(())
    }
}
