//! The chain (port): the queries and the two commands that the actors and their host need of Bitcoin.
//!
//! The central query is [`Chain::activity`]: everything that paid to a script or spent from it, in blocks from some
//! height on and in the mempool. It needs neither a wallet nor an index, and a node answers it from a few blocks. The
//! caller stores older results and queries again from a few blocks below the last tip, so that it sees reorganizations.

mod signals;

use std::fmt;

use async_trait::async_trait;
use bitcoin::{BlockHash, FeeRate, Script, ScriptBuf, Transaction, Txid, block::Header};
pub use btcr2_aggregation_protocol::chain::{
    Activity, BlockId, COINBASE_MATURITY, ConfirmationTarget, Deposit, Place, Rejection, RejectionKind, Spend, Tip,
    TransactionStatus,
};
use btcr2_aggregation_protocol::{network::Network, update::BlockTimes};

pub use self::signals::{SignalSeen, Signals, signal_of, signals_among};

/// Why the chain could not answer.
///
/// No error contains a password: neither from the URL nor from a server's message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// It cannot be reached, or cannot answer now. Retry later.
    #[error("{0}")]
    Unavailable(String),
    /// The transaction is refused.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// It is the chain of another network.
    #[error("the chain is not {expected}'s: its block {height} is {found}")]
    WrongNetwork {
        /// The configured network.
        expected: Network,
        /// The height at which they differ.
        height: u32,
        /// The block that is there.
        found: String,
    },
    /// It refuses the request, or does not know the call: credentials, version or settings are wrong. The operator must
    /// act.
    #[error("{0}")]
    Misconfigured(String),
    /// It has pruned the requested blocks, and will never have them again. [`Chain::coins`] needs no blocks.
    #[error("the node has pruned blocks that are needed: {0}; look back less far, or use a node that has them")]
    Pruned(String),
    /// Its answer is not valid.
    #[error("invalid answer: {0}")]
    BadAnswer(String),
}

impl ChainError {
    /// Whether the same query may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::BadAnswer(_))
    }
}

/// A Bitcoin chain.
#[async_trait]
pub trait Chain: Send + Sync {
    /// The last block.
    async fn tip(&self) -> Result<Tip, ChainError>;

    /// The hash of the block at `height` in the best chain; `None` above the tip.
    async fn block_hash(&self, height: u32) -> Result<Option<BlockHash>, ChainError>;

    /// The header of a block, in the best chain or not.
    async fn header(&self, hash: &BlockHash) -> Result<Option<Header>, ChainError>;

    /// The unspent outputs that pay to `script`, of any age, with what is in the mempool.
    ///
    /// A node without an address index reads its whole set of unspent outputs for this: minutes on the main network. Ask it
    /// once, and [`Self::activity`] from then on.
    async fn coins(&self, script: &Script) -> Result<Activity, ChainError>;

    /// The same for several scripts, in their order. A node reads its set once for all of them.
    async fn coins_of_all(&self, scripts: &[ScriptBuf]) -> Result<Vec<Activity>, ChainError> {
        let mut activities = Vec::with_capacity(scripts.len());
        for script in scripts {
            activities.push(self.coins(script).await?);
        }
        Ok(activities)
    }

    /// What paid to `script` or spent from it, in the blocks from height `since` on and in the mempool.
    async fn activity(&self, script: &Script, since: u32) -> Result<Activity, ChainError>;

    /// The same for several scripts, in their order. A node reads the blocks once for all of them.
    async fn activities(&self, scripts: &[ScriptBuf], since: u32) -> Result<Vec<Activity>, ChainError> {
        let mut activities = Vec::with_capacity(scripts.len());
        for script in scripts {
            activities.push(self.activity(script, since).await?);
        }
        Ok(activities)
    }

    /// The times of a block, in the best chain or not.
    async fn block_times(&self, hash: &BlockHash) -> Result<Option<BlockTimes>, ChainError> {
        signals::times_by_headers(self, hash).await
    }

    /// The signals of several scripts, in their order, in the blocks from height `since` on (rules T-1 to T-3): all of them, or
    /// an error. Transactions in the mempool are not signals yet.
    async fn signals(&self, scripts: &[ScriptBuf], since: u32) -> Result<Vec<Signals>, ChainError> {
        signals_among(self, &self.activities(scripts, since).await?).await
    }

    /// A transaction, in the mempool or in the block with that hash.
    async fn transaction(&self, txid: &Txid, block: Option<&BlockHash>) -> Result<Option<Transaction>, ChainError>;

    /// The place of a transaction. Without an index, the blocks from height `since` on are searched.
    async fn status(&self, txid: &Txid, since: u32) -> Result<TransactionStatus, ChainError>;

    /// The rate at which a transaction is confirmed within `target`; `None` when there is no estimate.
    ///
    /// The estimate is not trusted: see [`FeePolicy`](btcr2_aggregation_protocol::announcement::fees::FeePolicy).
    async fn fee_estimate(&self, target: ConfirmationTarget) -> Result<Option<FeeRate>, ChainError>;

    /// The rate below which the mempool accepts no transaction now; `None` if that is unknown.
    async fn minimum_fee(&self) -> Result<Option<FeeRate>, ChainError> {
        Ok(None)
    }

    /// What a transaction that replaces others in the mempool must pay for its own size, beyond their fees (BIP-125, rule
    /// 4); `None` if that is unknown.
    async fn replacement_increment(&self) -> Result<Option<FeeRate>, ChainError> {
        Ok(None)
    }

    /// Submits a transaction to be relayed. Submitting a known transaction again succeeds.
    async fn submit(&self, transaction: &Transaction) -> Result<(), ChainError>;

    /// Submits a transaction with one that spends from it, so that the fees of both count for both.
    async fn submit_package(&self, parent: &Transaction, child: &Transaction) -> Result<(), ChainError>;
}

impl fmt::Debug for dyn Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chain")
    }
}
