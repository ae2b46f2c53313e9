//! What is known of a Bitcoin chain, as values: blocks, deposits and spends of a script, refusals. Queries are made by a host.

use std::time::Duration;

use bitcoin::{Amount, BlockHash, OutPoint, Txid};
use serde::{Deserialize, Serialize};

use crate::network::Network;

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
    #[serde(with = "bitcoin::amount::serde::as_sat")]
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
    pub fn new(reason: impl Into<String>) -> Self {
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

/// The time between two blocks of a network.
pub fn block_time(network: Network) -> Duration {
    match network {
        Network::Mutinynet => Duration::from_secs(30),
        _ => Duration::from_secs(600),
    }
}
