//! The chain (port): the queries and the two commands that a program needs of Bitcoin.
//!
//! There are three implementations: [`CoreChain`] (a node's RPC), [`EsploraChain`] (an Esplora server) and
//! [`MemoryChain`] (a chain in memory, for tests). One conformance suite runs against all of them. [`ChainSource`] is
//! the operator's choice of one.
//!
//! The central query is [`Chain::activity`]: everything that paid to a script or spent from it, in blocks from some
//! height on and in the mempool. It needs neither a wallet nor an index, and a node answers it from a few blocks. The
//! caller stores older results and queries again from a few blocks below the last tip, so that it sees reorganizations.

mod core;
mod esplora;
mod memory;
mod signals;
mod source;

use std::fmt;

use ::bitcoin::{
    Amount, BlockHash, FeeRate, OutPoint, Script, ScriptBuf, Transaction, Txid, block::Header,
    constants::genesis_block,
};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use self::{
    core::{CoreAuth, CoreChain},
    esplora::EsploraChain,
    memory::{MemoryChain, MemoryFees},
    signals::{SignalSeen, Signals, signal_of},
    source::{ChainSource, SourceError},
};
use crate::protocol::{network::Network, update::BlockTimes};

/// A block, by its height and its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockId {
    /// Its height; the genesis block has 0.
    pub height: u32,
    /// Its hash.
    pub hash: BlockHash,
}

/// The last block of the best chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tip {
    /// The block.
    pub block: BlockId,
    /// The median time of the last eleven blocks, in seconds since the Unix epoch.
    pub median_time: u32,
}

impl Tip {
    /// The number of confirmations of a transaction in `block`: 1 in the tip itself, 0 above the tip.
    pub fn depth(&self, block: &BlockId) -> u32 {
        (self.block.height + 1).saturating_sub(block.height)
    }
}

/// The place of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In a block of the best chain.
    Block(BlockId),
    /// In the mempool.
    Mempool,
}

impl Place {
    /// The block, if it is in one.
    pub fn block(&self) -> Option<&BlockId> {
        match self {
            Self::Block(block) => Some(block),
            Self::Mempool => None,
        }
    }
}

/// An output that pays to a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deposit {
    /// The output.
    pub outpoint: OutPoint,
    /// Its value.
    #[serde(with = "::bitcoin::amount::serde::as_sat")]
    pub value: Amount,
    /// The place of the transaction that created it.
    pub place: Place,
    /// Whether it is a coinbase output, which cannot be spent before it is [`COINBASE_MATURITY`] deep. A chain reports
    /// this only while it matters.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub coinbase: bool,
}

/// How deep a coinbase must be before its outputs can be spent, by consensus.
pub const COINBASE_MATURITY: u32 = 100;

impl Deposit {
    /// An output that is not a coinbase output.
    pub const fn new(outpoint: OutPoint, value: Amount, place: Place) -> Self {
        Self { outpoint, value, place, coinbase: false }
    }

    /// Whether it is a coinbase output that the block after `tip` cannot spend yet.
    pub fn is_immature(&self, tip: &Tip) -> bool {
        self.coinbase && self.place.block().is_none_or(|block| tip.depth(block) < COINBASE_MATURITY)
    }
}

/// An input that spends an output of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spend {
    /// The output that is spent.
    pub outpoint: OutPoint,
    /// The transaction that spends it.
    pub by: Txid,
    /// The place of that transaction.
    pub place: Place,
}

/// The deposits and spends of a script, as of one tip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activity {
    /// The tip at which all of it was observed.
    pub tip: Tip,
    /// Outputs that pay to the script.
    pub deposits: Vec<Deposit>,
    /// Inputs that spend such outputs.
    pub spends: Vec<Spend>,
}

/// Whether a transaction is known, and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransactionStatus {
    /// Neither in the mempool nor in the blocks that were searched.
    Unknown,
    /// In the mempool or in a block.
    At(Place),
}

/// The number of blocks within which a transaction is to be confirmed: 1 to 1008, the range of a node's estimator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfirmationTarget(u16);

impl ConfirmationTarget {
    /// A target of `blocks`, clamped to 1..=1008.
    pub fn new(blocks: u16) -> Self {
        Self(blocks.clamp(1, 1008))
    }

    /// The number of blocks.
    pub const fn blocks(self) -> u16 {
        self.0
    }
}

/// The reason why nodes refuse a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RejectionKind {
    /// It pays less than the mempool requires now.
    FeeTooLow,
    /// An output that it spends does not exist, or another transaction spends it.
    InputsSpent,
    /// Its timelock has not passed.
    NotFinal,
    /// Anything else.
    Other,
}

/// The chain refused a transaction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("the transaction was refused: {reason}")]
pub struct Rejection {
    /// The kind of the reason.
    pub kind: RejectionKind,
    /// The node's own message.
    pub reason: String,
}

impl Rejection {
    /// A rejection from the message of Bitcoin Core's validation, which Esplora servers pass on.
    fn new(reason: impl Into<String>) -> Self {
        const KINDS: [(RejectionKind, &[&str]); 3] = [
            (
                RejectionKind::FeeTooLow,
                &["min relay fee not met", "mempool min fee not met", "insufficient fee", "mempool full"],
            ),
            (
                RejectionKind::InputsSpent,
                &["missingorspent", "missing-inputs", "txn-mempool-conflict", "bad-txns-spends-conflicting"],
            ),
            (RejectionKind::NotFinal, &["non-final", "non-bip68-final", "bad-txns-nonfinal"]),
        ];
        let reason = reason.into();
        let text = reason.to_ascii_lowercase();
        let kind = KINDS.iter().find(|(_, words)| words.iter().any(|word| text.contains(word)));
        Self { kind: kind.map_or(RejectionKind::Other, |(kind, _)| *kind), reason }
    }
}

/// Whether the message of a refusal reports that the transaction is already known.
fn is_known_already(reason: &str) -> bool {
    ["already in block chain", "already in utxo set", "already-known", "already-in-mempool", "same-nonwitness-data"]
        .iter()
        .any(|words| reason.to_ascii_lowercase().contains(words))
}

/// Why the chain could not answer.
///
/// No error contains a password: neither from the URL nor from a server's message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
        signals::among(self, &self.activities(scripts, since).await?).await
    }

    /// A transaction, in the mempool or in the block with that hash.
    async fn transaction(&self, txid: &Txid, block: Option<&BlockHash>) -> Result<Option<Transaction>, ChainError>;

    /// The place of a transaction. Without an index, the blocks from height `since` on are searched.
    async fn status(&self, txid: &Txid, since: u32) -> Result<TransactionStatus, ChainError>;

    /// The rate at which a transaction is confirmed within `target`; `None` when there is no estimate.
    ///
    /// The estimate is not trusted: see [`FeePolicy`](super::fees::FeePolicy).
    async fn fee_estimate(&self, target: ConfirmationTarget) -> Result<Option<FeeRate>, ChainError>;

    /// The rate below which the mempool accepts no transaction now; `None` if that is unknown.
    async fn minimum_fee(&self) -> Result<Option<FeeRate>, ChainError> {
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

/// The first block of the default signet and of Mutinynet. All signets share one genesis block, so it cannot
/// distinguish them.
const SIGNET_BLOCK_1: &str = "00000086d6b2636cb2a392d45edc4ec544a10024d30141c9adf4bfd9de533b53";
const MUTINYNET_BLOCK_1: &str = "000002855893a0a9b24eaffc5efc770558a326fee4fc10c9da22fc19cd2954f9";

/// Checks that the chain is the chain of `network`.
///
/// # Errors
/// [`ChainError::WrongNetwork`] if it is another network's; others if that is unknown now.
pub async fn check_network(chain: &dyn Chain, network: Network) -> Result<(), ChainError> {
    let genesis = genesis_block(network.to_bitcoin()).block_hash().to_string();
    check_block(chain, network, 0, &genesis).await?;
    match network {
        Network::Signet => check_block(chain, network, 1, SIGNET_BLOCK_1).await,
        Network::Mutinynet => check_block(chain, network, 1, MUTINYNET_BLOCK_1).await,
        _ => Ok(()),
    }
}

async fn check_block(chain: &dyn Chain, network: Network, height: u32, expected: &str) -> Result<(), ChainError> {
    match chain.block_hash(height).await? {
        Some(hash) if hash.to_string() == expected => Ok(()),
        Some(hash) => Err(ChainError::WrongNetwork { expected: network, height, found: hash.to_string() }),
        None => Err(ChainError::Unavailable(format!("the chain has no block {height} yet: is it still syncing?"))),
    }
}
