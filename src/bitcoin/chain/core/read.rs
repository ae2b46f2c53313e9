//! What a node answers about scripts, read from its blocks in several calls.

use std::collections::BTreeMap;

use ::bitcoin::{BlockHash, OutPoint, Script, Transaction, Txid, consensus::encode};
use serde_json::json;

use super::{
    answers::{ActivityInfo, ChainInfo, Event},
    call::{BLOCKS, CallError, Node, QUICK, code},
};
use crate::actors::chain::{Activity, BlockId, COINBASE_MATURITY, ChainError, Deposit, Place, Spend, Tip};

/// How many blocks a node on regtest may know of without having them.
const BEHIND: u32 = 100;

/// How many blocks one call reads.
pub(super) const BLOCKS_A_CALL: usize = 48;

/// A range of blocks that was partly read.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    /// The blocks that were read, by height.
    pub(super) blocks: BTreeMap<u32, BlockHash>,
    events: Vec<Event>,
}

impl Node {
    /// The block at `height`; `None` above the tip.
    pub(super) async fn hash_at(&self, height: u32) -> Result<Option<BlockHash>, ChainError> {
        match self.call("getblockhash", json!([height]), QUICK).await {
            Ok(hash) => Ok(Some(hash)),
            Err(CallError::Node { code: code::INVALID_PARAMETER, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn chain_info(&self) -> Result<ChainInfo, ChainError> {
        Ok(self.call("getblockchaininfo", json!([]), QUICK).await?)
    }

    /// The error for pruned blocks: the node's message, and the blocks that it has.
    pub(super) async fn pruned(&self, message: &str) -> ChainError {
        match self.chain_info().await {
            Ok(ChainInfo { blocks, pruneheight: Some(first), .. }) => {
                ChainError::Pruned(format!("{message}; it has blocks {first} to {blocks}"))
            }
            _ => ChainError::Pruned(message.to_owned()),
        }
    }

    pub(super) async fn tip(&self) -> Result<Tip, ChainError> {
        let info = self.chain_info().await?;
        // A restarted node knows all its headers at once, and loads its blocks one by one. A block that is not loaded
        // yet must not look missing.
        still_downloads(&info)?;
        let hash = info.bestblockhash;
        Ok(Tip { block: BlockId { height: info.blocks, hash }, median_time: info.mediantime })
    }

    /// A transaction, in the mempool or in the block with that hash.
    pub(super) async fn transaction(
        &self,
        txid: &Txid,
        block: Option<&BlockHash>,
    ) -> Result<Option<Transaction>, ChainError> {
        let arguments = match block {
            Some(block) => json!([txid, 0, block]),
            None => json!([txid, 0]),
        };
        match self.call::<String>("getrawtransaction", arguments, BLOCKS).await {
            Ok(hex) => encode::deserialize_hex(&hex)
                .map(Some)
                .map_err(|error| ChainError::BadAnswer(format!("transaction {txid}: {error}"))),
            Err(CallError::Node { code: code::INVALID_ADDRESS_OR_KEY, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn activity_in(
        &self,
        hashes: &[BlockHash],
        scripts: &[&Script],
        mempool: bool,
    ) -> Result<Vec<Event>, ChainError> {
        let descriptors: Vec<_> = scripts.iter().copied().map(descriptor).collect();
        let arguments = json!([hashes, descriptors, mempool]);
        match self.call::<ActivityInfo>("getdescriptoractivity", arguments, BLOCKS).await {
            Ok(info) => Ok(info.activity),
            Err(CallError::Node { code: code::MISC_ERROR, message }) if message.contains("pruned") => {
                Err(self.pruned(&message).await)
            }
            // The block is no longer in the best chain: the caller repeats the query.
            Err(CallError::Node { code: code::INVALID_ADDRESS_OR_KEY | code::INVALID_PARAMETER, message }) => {
                Err(ChainError::Unavailable(message))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// One try to read everything at a single tip; `None` if the tip changed meanwhile. Blocks that were read before
    /// that, or before an error, are not read again by the next try.
    pub(super) async fn activity_once(
        &self,
        script: &Script,
        since: u32,
        reading: &mut Reading,
    ) -> Result<Option<Activity>, ChainError> {
        let tip = self.tip().await?;
        self.forget_stale(reading).await?;
        let mut next = reading.blocks.last_key_value().map_or(since, |(height, _)| height + 1);
        while next <= tip.block.height {
            let mut chunk = Vec::new();
            for height in (next..=tip.block.height).take(BLOCKS_A_CALL) {
                match self.hash_at(height).await? {
                    Some(hash) => chunk.push((height, hash)),
                    None => return Ok(None),
                }
            }
            let hashes: Vec<_> = chunk.iter().map(|(_, hash)| *hash).collect();
            reading.events.extend(self.activity_in(&hashes, &[script], false).await?);
            next += u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            reading.blocks.extend(chunk);
        }
        let mempool = self.activity_in(&[], &[script], true).await?;
        if self.tip().await?.block != tip.block {
            return Ok(None);
        }
        let mut activity = collect(tip, reading.events.iter().cloned().chain(mempool));
        self.find_coinbases(&mut activity).await?;
        Ok(Some(activity))
    }

    /// Marks the deposits that are coinbase outputs of recent blocks, which the node's answer does not show.
    pub(super) async fn find_coinbases(&self, activity: &mut Activity) -> Result<(), ChainError> {
        let tip = activity.tip;
        let mut known: BTreeMap<Txid, bool> = BTreeMap::new();
        for deposit in &mut activity.deposits {
            let Some(block) = deposit.place.block().filter(|block| tip.depth(block) < COINBASE_MATURITY) else {
                continue;
            };
            let txid = deposit.outpoint.txid;
            deposit.coinbase = match known.get(&txid) {
                Some(coinbase) => *coinbase,
                // The node reads a single transaction of the block for this.
                None => {
                    let found = self.transaction(&txid, Some(&block.hash)).await?;
                    *known.entry(txid).or_insert(found.is_some_and(|transaction| transaction.is_coinbase()))
                }
            };
        }
        Ok(())
    }

    /// Drops the blocks that are no longer in the best chain.
    pub(super) async fn forget_stale(&self, reading: &mut Reading) -> Result<(), ChainError> {
        while let Some((&height, &hash)) = reading.blocks.last_key_value() {
            if self.hash_at(height).await? == Some(hash) {
                break;
            }
            reading.blocks.remove(&height);
            reading.events.retain(|event| event.block() != Some(hash));
        }
        Ok(())
    }

    /// Like [`Self::activity_once`], for several scripts.
    pub(super) async fn activities_once(
        &self,
        scripts: &[&Script],
        since: u32,
    ) -> Result<Option<Vec<Activity>>, ChainError> {
        let tip = self.tip().await?;
        let (mut events, mut next) = (Vec::new(), since);
        while next <= tip.block.height {
            let mut hashes = Vec::new();
            for height in (next..=tip.block.height).take(BLOCKS_A_CALL) {
                match self.hash_at(height).await? {
                    Some(hash) => hashes.push(hash),
                    None => return Ok(None),
                }
            }
            next += u32::try_from(hashes.len()).unwrap_or(u32::MAX);
            events.extend(self.activity_in(&hashes, scripts, false).await?);
        }
        events.extend(self.activity_in(&[], scripts, true).await?);
        if self.tip().await?.block != tip.block {
            return Ok(None);
        }
        let mut activities = Vec::with_capacity(scripts.len());
        for events in by_script(scripts, events)? {
            let mut activity = collect(tip, events);
            self.find_coinbases(&mut activity).await?;
            activities.push(activity);
        }
        Ok(Some(activities))
    }
}

/// The events of each script, in the order of `scripts`.
pub(super) fn by_script(
    scripts: &[&Script],
    events: impl IntoIterator<Item = Event>,
) -> Result<Vec<Vec<Event>>, ChainError> {
    let mut of: BTreeMap<&Script, Vec<Event>> = scripts.iter().map(|script| (*script, Vec::new())).collect();
    for event in events {
        let Some(script) = event.script() else {
            let problem = "getdescriptoractivity: an event without its script".to_owned();
            return Err(ChainError::BadAnswer(problem));
        };
        if let Some(of) = of.get_mut(script.as_script()) {
            of.push(event);
        }
    }
    Ok(scripts.iter().map(|script| of.get(*script).cloned().unwrap_or_default()).collect())
}

pub(super) fn descriptor(script: &Script) -> String {
    format!("raw({})", script.to_hex_string())
}

pub(super) fn collect(tip: Tip, events: impl IntoIterator<Item = Event>) -> Activity {
    let mut activity = Activity { tip, deposits: Vec::new(), spends: Vec::new() };
    let place = |block: Option<BlockHash>, height: Option<u32>| match (block, height) {
        (Some(hash), Some(height)) => Place::Block(BlockId { height, hash }),
        _ => Place::Mempool,
    };
    for event in events {
        match event {
            Event::Receive { amount, txid, vout, blockhash, height, .. } => {
                let outpoint = OutPoint { txid, vout };
                activity.deposits.push(Deposit::new(outpoint, amount, place(blockhash, height)));
            }
            Event::Spend { spend_txid, prevout_txid, prevout_vout, blockhash, height, .. } => {
                activity.spends.push(Spend {
                    outpoint: OutPoint { txid: prevout_txid, vout: prevout_vout },
                    by: spend_txid,
                    place: place(blockhash, height),
                });
            }
        }
    }
    activity
}

/// An error while the node verifies or downloads the chain. On regtest blocks are mined on demand: an old tip is normal
/// there, fewer blocks than headers are not.
pub(super) fn still_downloads(info: &ChainInfo) -> Result<(), ChainError> {
    let behind = info.headers.saturating_sub(info.blocks) > BEHIND;
    if if info.chain == "regtest" { behind } else { info.initialblockdownload } {
        let percent = info.verificationprogress * 100.0;
        let (blocks, headers) = (info.blocks, info.headers);
        let problem = format!("the node still reads the chain: {blocks} of {headers} blocks, {percent:.1} %");
        return Err(ChainError::Unavailable(problem));
    }
    Ok(())
}
