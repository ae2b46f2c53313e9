//! A chain on which much happens to one beacon address: it makes a block whenever its tip is queried, confirms an
//! announcement only with a child that pays for it, and takes its block back once.

use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use bitcoin::{Amount, BlockHash, FeeRate, OutPoint, Script, Transaction, Txid, block::Header, hashes::Hash};
use btcr2_aggregation_protocol::hash::sha256;

use crate::chain::{
    Activity, BlockId, Chain, ChainError, ConfirmationTarget, Deposit, Place, Spend, Tip, TransactionStatus,
};

/// The height of the deposit, which the first query brings.
const DEPOSIT: u32 = 20;

pub(super) struct EventfulChain(Mutex<State>);

#[derive(Default)]
struct State {
    blocks: Vec<BlockHash>,
    made: u32,
    announcement: Option<Transaction>,
    has_child: bool,
    confirmed_at: Option<u32>,
    is_reorganized: bool,
}

impl State {
    fn make_block(&mut self) {
        self.made += 1;
        self.blocks.push(BlockHash::from_byte_array(sha256(&self.made.to_be_bytes())));
        if self.has_child && self.confirmed_at.is_none() {
            self.confirmed_at = Some(self.height());
        }
    }

    fn height(&self) -> u32 {
        u32::try_from(self.blocks.len()).unwrap() - 1
    }

    fn block(&self, height: u32) -> BlockId {
        BlockId { height, hash: self.blocks[height as usize] }
    }

    fn tip(&self) -> Tip {
        Tip { block: self.block(self.height()), median_time: 1 }
    }

    fn advance(&mut self) {
        if self.confirmed_at.is_some_and(|at| self.height() > at)
            && !std::mem::replace(&mut self.is_reorganized, true)
        {
            let has_child = std::mem::take(&mut self.has_child);
            self.blocks.truncate(self.confirmed_at.take().unwrap() as usize);
            (0..3).for_each(|_| self.make_block());
            self.has_child = has_child;
        } else {
            self.make_block();
        }
    }

    fn activity(&self, since: u32) -> Activity {
        let outpoint = OutPoint { txid: Txid::from_byte_array([7; 32]), vout: 0 };
        let deposit = Deposit::new(outpoint, Amount::from_sat(200_000), Place::Block(self.block(DEPOSIT)));
        let place = self.confirmed_at.map_or(Place::Mempool, |at| Place::Block(self.block(at)));
        let is_new = self.confirmed_at.is_none_or(|at| at >= since);
        let announcement = self.announcement.iter().filter(|_| is_new);
        Activity {
            tip: self.tip(),
            deposits: if since <= DEPOSIT { vec![deposit] } else { Vec::new() },
            spends: announcement.map(|by| Spend { outpoint, by: by.compute_txid(), place }).collect(),
        }
    }
}

impl EventfulChain {
    pub(super) fn new() -> Self {
        let mut state = State::default();
        (0..DEPOSIT).for_each(|_| state.make_block());
        Self(Mutex::new(state))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

#[async_trait]
impl Chain for EventfulChain {
    async fn tip(&self) -> Result<Tip, ChainError> {
        let mut state = self.state();
        state.advance();
        Ok(state.tip())
    }

    async fn block_hash(&self, height: u32) -> Result<Option<BlockHash>, ChainError> {
        Ok(self.state().blocks.get(height as usize).copied())
    }

    async fn header(&self, _: &BlockHash) -> Result<Option<Header>, ChainError> {
        Ok(None)
    }

    async fn coins(&self, _: &Script) -> Result<Activity, ChainError> {
        Ok(self.state().activity(0))
    }

    async fn activity(&self, _: &Script, since: u32) -> Result<Activity, ChainError> {
        // As a node, it lets others run meanwhile.
        tokio::task::yield_now().await;
        Ok(self.state().activity(since))
    }

    async fn transaction(&self, _: &Txid, _: Option<&BlockHash>) -> Result<Option<Transaction>, ChainError> {
        Ok(None)
    }

    async fn status(&self, _: &Txid, _: u32) -> Result<TransactionStatus, ChainError> {
        Ok(TransactionStatus::Unknown)
    }

    async fn fee_estimate(&self, _: ConfirmationTarget) -> Result<Option<FeeRate>, ChainError> {
        Ok(None)
    }

    async fn submit(&self, transaction: &Transaction) -> Result<(), ChainError> {
        tokio::task::yield_now().await;
        self.state().announcement = Some(transaction.clone());
        Ok(())
    }

    async fn submit_package(&self, parent: &Transaction, _: &Transaction) -> Result<(), ChainError> {
        self.submit(parent).await?;
        self.state().has_child = true;
        Ok(())
    }
}
