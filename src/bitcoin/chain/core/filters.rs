//! The blocks that matter to scripts, by a node's block filters (BIP-158). A node that has them (`-blockfilterindex=1`) finds
//! a handful of blocks in minutes, where reading every block takes hours on the main network.

use std::collections::BTreeMap;

use ::bitcoin::{BlockHash, Script};
use serde::Deserialize;
use serde_json::json;

use super::{
    ATTEMPTS, CoreChain, SCAN,
    call::{CallError, QUICK, code},
    read::{BLOCKS_A_CALL, by_script, collect, descriptor},
};
use crate::actors::chain::{Activity, ChainError, Tip};

/// The name of the filters in `getindexinfo`.
const INDEX: &str = "basic block filter index";

/// Fewer blocks than this are read without filters.
const FEW: u32 = 200;

#[derive(Deserialize)]
struct IndexInfo {
    synced: bool,
    best_block_height: u32,
}

#[derive(Deserialize)]
struct FilterScan {
    to_height: u32,
    relevant_blocks: Vec<BlockHash>,
    completed: bool,
}

impl CoreChain {
    /// What happened to the scripts in the blocks from `since` on, by block filters; `None` when the node has none of all of
    /// these blocks. The mempool is not asked.
    pub(super) async fn activities_by_filters(
        &self,
        scripts: &[&Script],
        since: u32,
    ) -> Result<Option<Vec<Activity>>, ChainError> {
        for _ in 0..ATTEMPTS {
            let tip = self.node.tip().await?;
            if tip.block.height.saturating_sub(since) < FEW || !self.has_filters(&tip).await? {
                return Ok(None);
            }
            if let Some(activities) = self.filtered_once(scripts, since, tip).await? {
                return Ok(Some(activities));
            }
        }
        Err(super::moving())
    }

    /// Whether there is a filter of every block: a scan passes silently over those that have none yet.
    async fn has_filters(&self, tip: &Tip) -> Result<bool, ChainError> {
        let indexes: BTreeMap<String, IndexInfo> = match self.node.call("getindexinfo", json!([INDEX]), QUICK).await
        {
            Ok(indexes) => indexes,
            // A whitelist forbids it: every block can be read instead.
            Err(CallError::Chain(ChainError::Misconfigured(_))) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        Ok(indexes.get(INDEX).is_some_and(|index| index.synced && index.best_block_height >= tip.block.height))
    }

    /// `None` when the tip moved meanwhile.
    async fn filtered_once(
        &self,
        scripts: &[&Script],
        since: u32,
        tip: Tip,
    ) -> Result<Option<Vec<Activity>>, ChainError> {
        let descriptors: Vec<_> = scripts.iter().copied().map(descriptor).collect();
        let arguments = json!(["start", descriptors, since, tip.block.height, "basic"]);
        // A node does one such scan at a time, as it does of the unspent outputs.
        let turn = self.scan.acquire().await;
        let scan: FilterScan = match self.node.call("scanblocks", arguments, SCAN).await {
            Ok(scan) => scan,
            // The chain is shorter now, or the scan of another program runs.
            Err(CallError::Node { code: code::MISC_ERROR | code::INVALID_PARAMETER, message }) => {
                return Err(ChainError::Unavailable(format!("scanblocks: {message}")));
            }
            Err(error) => return Err(error.into()),
        };
        drop(turn);
        if !scan.completed || scan.to_height != tip.block.height {
            return Err(ChainError::Unavailable("scanblocks: the scan was broken off".to_owned()));
        }
        let mut events = Vec::new();
        for blocks in scan.relevant_blocks.chunks(BLOCKS_A_CALL) {
            events.extend(self.node.activity_in(blocks, scripts, false).await?);
        }
        if self.node.tip().await?.block != tip.block {
            return Ok(None);
        }
        Ok(Some(by_script(scripts, events)?.into_iter().map(|events| collect(tip, events)).collect()))
    }
}
