//! How the actor looks at the chain: it reads as few blocks as possible, and scans the UTXO set only if necessary.

use btcr2_aggregation_protocol::announcement::{Announcement, State};

use crate::chain::{Activity, Chain, ChainError, Deposit, Tip};

/// The most blocks that are read to find a deposit; a scan is cheaper beyond. A pruned node may not have more either.
const MANY_BLOCKS: u32 = 2016;

/// The activity of the script of `announcement`, and the height from which on it is complete.
///
/// `young`: the address cannot have been known for longer than the rules' window of blocks.
pub(super) async fn look(
    chain: &dyn Chain,
    announcement: &Announcement,
    young: bool,
) -> Result<(Activity, u32), ChainError> {
    let (activity, since) = look_once(chain, announcement, young).await?;
    if let Some(seen) = announcement.sight().tip {
        // The answer may come from another node than the one that returned the tip.
        not_behind(chain, &seen, &activity.tip, announcement.rules().window()).await?;
    }
    Ok((activity, since))
}

async fn look_once(
    chain: &dyn Chain,
    announcement: &Announcement,
    young: bool,
) -> Result<(Activity, u32), ChainError> {
    let (script, sight) = (announcement.script(), announcement.sight());
    let window = announcement.rules().window();
    let tip = chain.tip().await?;
    let Some(seen) = sight.tip else {
        if young {
            let from = tip.block.height.saturating_sub(window);
            return Ok((chain.activity(script, from).await?, 0));
        }
        return Ok((coins_and_recent_blocks(chain, announcement).await?, 0));
    };
    if tip == seen {
        // The tip is the same, so only the mempool can have changed.
        let since = tip.block.height + 1;
        let activity = chain.activity(script, since).await?;
        if activity.tip == tip {
            return Ok((activity, since));
        }
    }
    not_behind(chain, &seen, &tip, window).await?;
    let is_waiting = matches!(announcement.state(), State::Funding { .. } | State::Signing { .. });
    let continues = stands(chain, &seen).await?;
    // If the chain has only grown, only the new blocks are read.
    let since = if continues { seen.block.height + 1 } else { seen.block.height.saturating_sub(window) };
    let far = tip.block.height.saturating_sub(since) > MANY_BLOCKS;
    let read = if far && is_waiting { None } else { not_pruned(chain.activity(script, since).await)? };
    match read {
        Some(activity) if !continues || stands(chain, &seen).await? => Ok((activity, since)),
        // A reorganization came in between.
        Some(_) => {
            let since = seen.block.height.saturating_sub(window);
            Ok((chain.activity(script, since).await?, since))
        }
        None => {
            let activity = coins_and_recent_blocks(chain, announcement).await?;
            // A coin that no longer exists must not be chosen. For a signed announcement, the spends that were seen
            // stay: no later look shows them again.
            Ok((activity, if is_waiting || !continues { 0 } else { since }))
        }
    }
}

/// An error if the node verifies its blocks again, or if another node behind the same address lacks some: the missing
/// blocks are not gone. A node that has reorganized a block away still knows it, and has another block or none at its
/// height.
async fn not_behind(chain: &dyn Chain, seen: &Tip, tip: &Tip, window: u32) -> Result<(), ChainError> {
    let (has, had) = (tip.block.height, seen.block.height);
    let is_behind = has < had
        && (has.saturating_add(window) < had
            || chain.header(&seen.block.hash).await?.is_none()
            || stands(chain, seen).await?);
    if !is_behind {
        return Ok(());
    }
    let problem =
        format!("the chain has {has} blocks and had {had}: the node is behind, or reads its blocks again");
    Err(ChainError::Unavailable(problem))
}

/// Whether the block of that tip is still in the chain.
async fn stands(chain: &dyn Chain, seen: &Tip) -> Result<bool, ChainError> {
    Ok(chain.block_hash(seen.block.height).await? == Some(seen.block.hash))
}

fn not_pruned(read: Result<Activity, ChainError>) -> Result<Option<Activity>, ChainError> {
    match read {
        Ok(activity) => Ok(Some(activity)),
        Err(ChainError::Pruned(blocks)) => {
            tracing::warn!(%blocks, "old blocks are pruned: unspent outputs are scanned instead");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The coins of any age. They do not include confirmed spends; the last blocks do.
async fn coins_and_recent_blocks(chain: &dyn Chain, announcement: &Announcement) -> Result<Activity, ChainError> {
    let (script, window) = (announcement.script(), announcement.rules().window());
    let coins = chain.coins(script).await?;
    let from = coins.tip.block.height.saturating_sub(window);
    let mut activity = chain.activity(script, from).await?;
    let older = |deposit: &Deposit| deposit.place.block().is_some_and(|block| block.height < from);
    activity.deposits.extend(coins.deposits.into_iter().filter(older));
    Ok(activity)
}
