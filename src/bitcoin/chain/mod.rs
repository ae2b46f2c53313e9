//! The chains behind the port [`Chain`]: [`CoreChain`] (a node's RPC), [`EsploraChain`] (an Esplora server) and
//! [`MemoryChain`] (a chain in memory, for tests). One conformance suite runs against all of them. [`ChainSource`] is
//! the operator's choice of one.

mod core;
mod esplora;
mod memory;
mod source;

use ::bitcoin::constants::genesis_block;

pub use self::{
    core::{CoreAuth, CoreChain},
    esplora::EsploraChain,
    memory::{MemoryChain, MemoryFees},
    source::{ChainSource, SourceError},
};
pub use crate::actors::chain::{
    Activity, BlockId, COINBASE_MATURITY, Chain, ChainError, ConfirmationTarget, Deposit, Place, Rejection,
    RejectionKind, SignalSeen, Signals, Spend, Tip, TransactionStatus, signal_of, signals_among,
};
use crate::protocol::network::Network;

/// Whether the message of a refusal reports that the transaction is already known.
fn is_known_already(reason: &str) -> bool {
    ["already in block chain", "already in utxo set", "already-known", "already-in-mempool", "same-nonwitness-data"]
        .iter()
        .any(|words| reason.to_ascii_lowercase().contains(words))
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
