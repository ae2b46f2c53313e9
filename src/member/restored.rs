//! The mark of a state directory that was restored from a backup: its seats are careful (standing.md, section 10) before they answer anything.

use super::{settling::Seed, tally::TABLE};
use crate::actors::{runtime::Clock, state::State};

/// The key of the mark in the member's table.
const MARK: &str = "restored";

/// Marks a state directory as restored. The first start of the agent asks the chain for the coins.
///
/// # Errors
/// Why that is not stored.
pub async fn mark(state: &State) -> Result<(), String> {
    let at = Clock::system().now().to_date().unwrap_or_default();
    state.table(TABLE).put(MARK, at.into_bytes()).await.map_err(|error| error.to_string())
}

/// Whether a state directory is marked.
///
/// # Errors
/// Why that cannot be read.
pub(super) async fn is_marked(state: &State) -> Result<bool, String> {
    Ok(state.table(TABLE).get(MARK).await.map_err(|error| error.to_string())?.is_some())
}

/// Removes the mark when every seat has stored for which coins it waits.
///
/// # Errors
/// Why that is not stored.
pub(super) async fn settled(state: &State, seeds: &[Seed]) -> Result<(), String> {
    for seed in seeds {
        for seat in seed.member.seats().await {
            // Answered after the restore: a seat takes no other message before. Its record of it is written before the removal, in their order.
            seed.member.inspect(&seat.seat).await;
        }
    }
    state.table(TABLE).remove(MARK).await.map_err(|error| error.to_string())
}
