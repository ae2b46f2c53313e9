//! The chain (port): what a program must know of Bitcoin, and the two things it asks of it.
//!
//! Three implementations: [`CoreChain`] (a node's RPC), [`EsploraChain`] (an Esplora server) and [`MemoryChain`] (a chain in
//! this process, for tests). One conformance suite runs against all of them. [`ChainSource`] is how an operator names one.
//!
//! The central question is [`Chain::activity`]: everything that paid to a script or spent from it, in blocks from some height
//! on and in the mempool. It needs neither a wallet nor an index, and a node answers it from a handful of blocks. Who watches
//! a script remembers what is older and asks again from a little below the last tip, so that a reorganization shows.

mod core;
mod esplora;
mod memory;
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
    source::{ChainSource, SourceError},
};
use crate::protocol::network::Network;

/// A block, by its place and its hash.
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
    /// How many blocks confirm what is in `block`, counting that block: 1 in the tip itself. 0 above the tip.
    pub fn depth(&self, block: &BlockId) -> u32 {
        (self.block.height + 1).saturating_sub(block.height)
    }
}

/// Where a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In a block of the best chain.
    Block(BlockId),
    /// Waiting in the mempool.
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
    /// What it holds.
    #[serde(with = "::bitcoin::amount::serde::as_sat")]
    pub value: Amount,
    /// Where the transaction that made it is.
    pub place: Place,
    /// Whether it is the reward of a block: it cannot be spent before it is [`COINBASE_MATURITY`] deep. A chain says so as long
    /// as that matters, not of older ones.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub coinbase: bool,
}

/// How deep a coinbase must be before its outputs can be spent, by consensus.
pub const COINBASE_MATURITY: u32 = 100;

impl Deposit {
    /// An output that is no block's reward.
    pub const fn new(outpoint: OutPoint, value: Amount, place: Place) -> Self {
        Self { outpoint, value, place, coinbase: false }
    }

    /// Whether it is the reward of a block that is too young at `tip` for the next block to spend it.
    pub fn is_immature(&self, tip: &Tip) -> bool {
        self.coinbase && self.place.block().is_none_or(|block| tip.depth(block) < COINBASE_MATURITY)
    }
}

/// An input that spends an output of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spend {
    /// What is spent.
    pub outpoint: OutPoint,
    /// The transaction that spends it.
    pub by: Txid,
    /// Where that transaction is.
    pub place: Place,
}

/// What has happened to a script, as of one tip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activity {
    /// The tip at which all of it was true.
    pub tip: Tip,
    /// Outputs that pay to the script.
    pub deposits: Vec<Deposit>,
    /// Inputs that spend such outputs.
    pub spends: Vec<Spend>,
}

/// Where a transaction is, if anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransactionStatus {
    /// Neither in the mempool nor in the blocks that were searched.
    Unknown,
    /// In the mempool or in a block.
    At(Place),
}

/// Within how many blocks a transaction is to be confirmed: 1 to 1008, what nodes can estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfirmationTarget(u16);

impl ConfirmationTarget {
    /// A target of so many blocks, brought into 1..=1008.
    pub fn new(blocks: u16) -> Self {
        Self(blocks.clamp(1, 1008))
    }

    /// The number of blocks.
    pub const fn blocks(self) -> u16 {
        self.0
    }
}

/// Why nodes do not take a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RejectionKind {
    /// It pays less than the mempool asks for now.
    FeeTooLow,
    /// What it spends does not exist, or is spent by another transaction.
    InputsSpent,
    /// Its timelock has not passed.
    NotFinal,
    /// Anything else.
    Other,
}

/// A transaction that the chain did not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("the transaction was refused: {reason}")]
pub struct Rejection {
    /// What kind of reason it is.
    pub kind: RejectionKind,
    /// The node's own words.
    pub reason: String,
}

impl Rejection {
    /// A rejection by the words of Bitcoin Core's validation, which Esplora servers pass on.
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

/// Whether the words of a refusal say that the transaction is there already.
fn is_known_already(reason: &str) -> bool {
    ["already in block chain", "already in utxo set", "already-known", "already-in-mempool", "same-nonwitness-data"]
        .iter()
        .any(|words| reason.to_ascii_lowercase().contains(words))
}

/// Why the chain could not answer.
///
/// None of them holds a password: not in the URL, not in what a server said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It cannot be reached, or cannot answer now. Ask again.
    #[error("{0}")]
    Unavailable(String),
    /// The transaction is at fault.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// It is another network's chain.
    #[error("the chain is not {expected}'s: its block {height} is {found}")]
    WrongNetwork {
        /// The configured network.
        expected: Network,
        /// The height at which they differ.
        height: u32,
        /// The block that is there.
        found: String,
    },
    /// It refuses us, or does not know what we ask: credentials, version or settings are wrong. A person must act.
    #[error("{0}")]
    Misconfigured(String),
    /// It has dropped the old blocks that were asked for, and will never have them: [`Chain::coins`] needs none of them.
    #[error("the node has pruned blocks that are needed: {0}; look back less far, or use a node that has them")]
    Pruned(String),
    /// Its answer makes no sense.
    #[error("an answer that makes no sense: {0}")]
    BadAnswer(String),
}

impl ChainError {
    /// Whether the same question may be answered later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::BadAnswer(_))
    }
}

/// What a program must know of Bitcoin.
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

    /// A transaction, in the mempool or in the block of that hash.
    async fn transaction(&self, txid: &Txid, block: Option<&BlockHash>) -> Result<Option<Transaction>, ChainError>;

    /// Where a transaction is. Without an index the blocks from height `since` on are searched.
    async fn status(&self, txid: &Txid, since: u32) -> Result<TransactionStatus, ChainError>;

    /// The rate at which a transaction is confirmed within `target`; `None` when the chain cannot tell.
    ///
    /// Nobody has to believe it: see [`FeePolicy`](super::fees::FeePolicy).
    async fn fee_estimate(&self, target: ConfirmationTarget) -> Result<Option<FeeRate>, ChainError>;

    /// The rate below which nothing is taken now; `None` when the chain cannot tell.
    async fn minimum_fee(&self) -> Result<Option<FeeRate>, ChainError> {
        Ok(None)
    }

    /// Hands in a transaction to be relayed. One that is there already is taken again.
    async fn submit(&self, transaction: &Transaction) -> Result<(), ChainError>;

    /// Hands in a transaction with one that spends from it, so that the fee of both counts for both.
    async fn submit_package(&self, parent: &Transaction, child: &Transaction) -> Result<(), ChainError>;
}

impl fmt::Debug for dyn Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chain")
    }
}

/// The first block of the default signet and of Mutinynet. All signets share one genesis block, so it does not tell them
/// apart.
const SIGNET_BLOCK_1: &str = "00000086d6b2636cb2a392d45edc4ec544a10024d30141c9adf4bfd9de533b53";
const MUTINYNET_BLOCK_1: &str = "000002855893a0a9b24eaffc5efc770558a326fee4fc10c9da22fc19cd2954f9";

/// Checks that the chain is `network`'s.
///
/// # Errors
/// [`ChainError::WrongNetwork`] when it is another one's; others when it cannot be told now.
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
