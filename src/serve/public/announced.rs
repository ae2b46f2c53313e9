//! The announcements of one-time cohorts that were final, for the directory: their journals are archived when they end.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ::bitcoin::{Address, Txid};
use serde::{Deserialize, Serialize};

use super::super::register;
use crate::{
    actors::{
        announcement::Announcements,
        runtime::Clock,
        state::{State, Table},
    },
    bitcoin::{chain::BlockId, notice::AnnouncementNotice},
    error::ProgramError,
    protocol::{id::CohortId, network::Network, time::Timestamp},
};

/// Their table in a state directory.
const TABLE: &str = "public-announcements";

/// The most that are stored: the oldest is removed for a newer one.
const MOST: usize = 1_000;

/// An announcement that is final.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Announced {
    pub(crate) cohort_id: CohortId,
    /// The address from which it was made.
    pub(crate) beacon_address: Option<String>,
    pub(crate) txid: Txid,
    pub(crate) block: BlockId,
    /// When it was recorded.
    pub(crate) at: Timestamp,
}

/// One page, the newest first, each with its number; and the number before which the next page begins.
pub(crate) type Page = (Vec<(u64, Arc<Announced>)>, Option<u64>);

/// The announcements that are final. Clones share them.
#[derive(Clone)]
pub(crate) struct Ledger(Arc<Inner>);

struct Inner {
    table: Option<Table>,
    known: Mutex<BTreeMap<u64, Arc<Announced>>>,
    /// One is added at a time.
    adding: tokio::sync::Mutex<()>,
}

fn key(number: u64) -> String {
    format!("{number:020}")
}

impl Ledger {
    /// Those of a state directory, or none yet.
    pub(crate) async fn open(state: Option<&State>) -> Result<Self, ProgramError> {
        let table = state.map(|state| state.table(TABLE));
        let stored: BTreeMap<String, Announced> = match &table {
            Some(table) => register::entries(table).await?,
            None => BTreeMap::new(),
        };
        let known = stored.into_iter().filter_map(|(key, one)| Some((key.parse().ok()?, Arc::new(one))));
        let known = Mutex::new(known.collect());
        Ok(Self(Arc::new(Inner { table, known, adding: tokio::sync::Mutex::default() })))
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Announced>>> {
        // Each change is one call.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one, unless it is known: its end is reported again after a restart. Durable when this returns.
    pub(crate) async fn add(&self, announced: Announced) -> Result<(), ProgramError> {
        let _turn = self.0.adding.lock().await;
        let (number, oldest) = {
            let known = self.known();
            let is_same = |one: &Arc<Announced>| one.txid == announced.txid && one.cohort_id == announced.cohort_id;
            if known.values().any(is_same) {
                return Ok(());
            }
            let oldest = known.keys().next().copied().filter(|_| known.len() >= MOST);
            (known.keys().next_back().map_or(1, |last| last + 1), oldest)
        };
        if let Some(table) = &self.0.table {
            register::put(table, &key(number), &announced).await?;
            if let Some(oldest) = oldest {
                register::remove(table, &key(oldest)).await?;
            }
        }
        let mut known = self.known();
        known.insert(number, Arc::new(announced));
        oldest.map(|oldest| known.remove(&oldest));
        Ok(())
    }

    /// Records the end of an announcement, if it was announced.
    ///
    /// # Errors
    /// It cannot be stored.
    pub(crate) async fn record(
        &self,
        step: &AnnouncementNotice,
        announcements: &Announcements,
        network: Network,
        clock: Clock,
    ) -> Result<(), ProgramError> {
        let AnnouncementNotice::AnnouncementFinal { cohort_id, txid, block, .. } = step else { return Ok(()) };
        let machine = announcements.inspect(cohort_id).await.ok();
        let beacon_address = machine.and_then(|machine| {
            let address = Address::from_script(machine.script(), network.to_bitcoin());
            address.ok().map(|address| address.to_string())
        });
        let (cohort_id, txid, block, at) = (cohort_id.clone(), *txid, *block, clock.now());
        self.add(Announced { cohort_id, beacon_address, txid, block, at }).await
    }

    /// At most `most` of those before a number, the newest first.
    pub(crate) fn page(&self, before: Option<u64>, most: usize) -> Page {
        let known = self.known();
        let mut older = known.range(..before.unwrap_or(u64::MAX)).rev();
        let page: Vec<_> = older.by_ref().take(most).map(|(number, one)| (*number, Arc::clone(one))).collect();
        let next = older.next().and(page.last()).map(|(number, _)| *number);
        (page, next)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ::bitcoin::{BlockHash, hashes::Hash};

    use super::*;

    fn announced(number: u32) -> Announced {
        let mut txid = [0; 32];
        txid[..4].copy_from_slice(&number.to_be_bytes());
        Announced {
            cohort_id: CohortId::parse(&format!("c{number}")).unwrap(),
            beacon_address: None,
            txid: Txid::from_byte_array(txid),
            block: BlockId { height: number, hash: BlockHash::all_zeros() },
            at: Timestamp::from_secs(1),
        }
    }

    fn heights(page: &Page) -> Vec<u32> {
        page.0.iter().map(|(_, one)| one.block.height).collect()
    }

    #[tokio::test]
    async fn the_newest_are_stored_once_and_paged_newest_first() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let ledger = Ledger::open(Some(&state)).await.unwrap();
        for number in 1..=5 {
            ledger.add(announced(number)).await.unwrap();
            // Reported again.
            ledger.add(announced(number)).await.unwrap();
        }
        let again = Ledger::open(Some(&state)).await.unwrap();
        for ledger in [&ledger, &again] {
            let first = ledger.page(None, 2);
            assert_eq!((heights(&first), first.1), (vec![5, 4], Some(4)));
            let second = ledger.page(first.1, 3);
            assert_eq!((heights(&second), second.1), (vec![3, 2, 1], None));
        }
    }

    #[tokio::test]
    async fn the_oldest_make_room() {
        let ledger = Ledger::open(None).await.unwrap();
        for number in 0..u32::try_from(MOST).unwrap() + 3 {
            ledger.add(announced(number)).await.unwrap();
        }
        let all = ledger.page(None, usize::MAX);
        assert_eq!((all.0.len(), heights(&all).last().copied()), (MOST, Some(3)));
    }
}
