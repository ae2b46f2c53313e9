//! What was announced at scripts: the signals of did:btcr2's beacons (rules T-1 to T-3), from what the other questions of the
//! port answer.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{BlockHash, Transaction, Txid, hashes::Hash};
use btcr2_aggregation_protocol::{hash::SignalBytes, update::BlockTimes};

use super::{Activity, BlockId, Chain, ChainError, Tip};

/// How many blocks a median time is of (BIP-113).
const MEDIAN_OF: usize = 11;

/// A signal of a script: a transaction in a block that spends from the script, and whose last output carries the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalSeen {
    /// The transaction.
    pub txid: Txid,
    /// What it announces.
    pub bytes: SignalBytes,
    /// Its block.
    pub block: BlockId,
    /// The block's times.
    pub times: BlockTimes,
}

/// All signals of one script, as of one tip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signals {
    /// The tip at which these were all of them. The confirmations of a signal are its [depth](Tip::depth) below it.
    pub tip: Tip,
    /// From the lowest block on, each transaction once.
    pub seen: Vec<SignalSeen>,
}

/// The signal that a transaction announces, if its last output is one: exactly `OP_RETURN` and a push of 32 bytes (rule T-1).
pub fn signal_of(transaction: &Transaction) -> Option<SignalBytes> {
    let script = &transaction.output.last()?.script_pubkey;
    let bytes: [u8; 32] = script.as_bytes().strip_prefix(&[0x6a, 0x20])?.try_into().ok()?;
    Some(SignalBytes::from_bytes(bytes))
}

/// The signals among what spends from scripts: what [`Chain::signals`] answers for these activities. A block's times are
/// asked for once.
///
/// # Errors
/// [`ChainError`], also when the chain no longer has what it reported.
pub async fn signals_among<C: Chain + ?Sized>(
    chain: &C,
    activities: &[Activity],
) -> Result<Vec<Signals>, ChainError> {
    let mut times: BTreeMap<BlockHash, BlockTimes> = BTreeMap::new();
    let mut found = Vec::with_capacity(activities.len());
    for Activity { tip, spends, .. } in activities {
        let (mut seen, mut known) = (Vec::new(), BTreeSet::new());
        for spend in spends {
            let Some(block) = spend.place.block().copied() else { continue };
            // However many inputs spend from the script, it is one signal (rule T-3).
            if !known.insert(spend.by) {
                continue;
            }
            let transaction = chain.transaction(&spend.by, Some(&block.hash)).await?;
            let transaction = transaction.ok_or_else(|| gone(&format!("transaction {}", spend.by)))?;
            let Some(bytes) = signal_of(&transaction) else { continue };
            let times = match times.get(&block.hash) {
                Some(times) => *times,
                None => {
                    let found = chain.block_times(&block.hash).await?;
                    let found = found.ok_or_else(|| gone(&format!("block {}", block.hash)))?;
                    *times.entry(block.hash).or_insert(found)
                }
            };
            seen.push(SignalSeen { txid: spend.by, bytes, block, times });
        }
        seen.sort_by_key(|signal| signal.block.height);
        found.push(Signals { tip: *tip, seen });
    }
    Ok(found)
}

/// What the chain has just spoken of, and does not have: only a reorganization takes something out of a block.
fn gone(what: &str) -> ChainError {
    ChainError::Unavailable(format!("the chain spoke of {what}, and does not have it"))
}

/// A block's times, from its header and those of the ten blocks before it.
pub(super) async fn times_by_headers<C: Chain + ?Sized>(
    chain: &C,
    hash: &BlockHash,
) -> Result<Option<BlockTimes>, ChainError> {
    let (mut times, mut next) = (Vec::with_capacity(MEDIAN_OF), *hash);
    // Before the first block there is none.
    while times.len() < MEDIAN_OF && next != BlockHash::all_zeros() {
        match chain.header(&next).await? {
            Some(header) => {
                times.push(header.time);
                next = header.prev_blockhash;
            }
            None if times.is_empty() => return Ok(None),
            None => return Err(gone(&format!("block {next}"))),
        }
    }
    let Some(&time) = times.first() else { return Ok(None) };
    times.sort_unstable();
    Ok(times.get(times.len() / 2).map(|&mediantime| BlockTimes { time, mediantime }))
}
