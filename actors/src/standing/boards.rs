//! The store of boards (port). A board is stored before anything that depends on it is sent, and without end: a resolver of a DID of its
//! cohort needs what follows from it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use btcr2_aggregation_protocol::{hash::DocumentHash, id::CohortId};
use futures::{FutureExt, future::BoxFuture};

/// Why a board cannot be stored or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("boards: {0}")]
pub struct BoardError(pub String);

/// Whether these bytes, which a cohort has stored, are a board of `cohort_id`: their first field names the cohort.
pub(crate) fn is_of(cohort_id: &CohortId, bytes: &[u8]) -> bool {
    // Identifiers are visible ASCII characters; serde_json writes boards without spaces.
    serde_json::to_string(cohort_id).is_ok_and(|id| bytes.starts_with(format!("{{\"cohortId\":{id},").as_bytes()))
}

/// Stores the bytes of boards by their SHA-256.
pub trait BoardStore: Send + Sync {
    /// Stores a board of a number of a cohort. Durable when the future is ready. A board that is stored already stays.
    fn put(
        &self,
        cohort_id: &CohortId,
        number: u64,
        hash: &DocumentHash,
        bytes: Arc<Vec<u8>>,
    ) -> BoxFuture<'static, Result<(), BoardError>>;

    /// The bytes of a board.
    fn get(&self, hash: &DocumentHash) -> BoxFuture<'static, Result<Option<Arc<Vec<u8>>>, BoardError>>;

    /// The boards of a cohort with a number above `after`, in their order, at most `most`. A number may have several: one that was closed again
    /// after a restart.
    fn list(
        &self,
        cohort_id: &CohortId,
        after: u64,
        most: usize,
    ) -> BoxFuture<'static, Result<Vec<(u64, DocumentHash)>, BoardError>>;
}

#[derive(Default)]
struct Stored {
    boards: BTreeMap<DocumentHash, Arc<Vec<u8>>>,
    numbers: BTreeMap<(CohortId, u64, DocumentHash), ()>,
}

/// Boards in memory, for tests and simulations. Clones share them.
#[derive(Clone, Default)]
pub struct MemoryBoards(Arc<Mutex<Stored>>);

impl MemoryBoards {
    fn lock(&self) -> MutexGuard<'_, Stored> {
        // No code panics between two dependent changes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BoardStore for MemoryBoards {
    fn put(
        &self,
        cohort_id: &CohortId,
        number: u64,
        hash: &DocumentHash,
        bytes: Arc<Vec<u8>>,
    ) -> BoxFuture<'static, Result<(), BoardError>> {
        let mut stored = self.lock();
        stored.boards.entry(*hash).or_insert(bytes);
        stored.numbers.insert((cohort_id.clone(), number, *hash), ());
        futures::future::ready(Ok(())).boxed()
    }

    fn get(&self, hash: &DocumentHash) -> BoxFuture<'static, Result<Option<Arc<Vec<u8>>>, BoardError>> {
        futures::future::ready(Ok(self.lock().boards.get(hash).cloned())).boxed()
    }

    fn list(
        &self,
        cohort_id: &CohortId,
        after: u64,
        most: usize,
    ) -> BoxFuture<'static, Result<Vec<(u64, DocumentHash)>, BoardError>> {
        let stored = self.lock();
        let from = (cohort_id.clone(), after.saturating_add(1), DocumentHash::from_bytes([0; 32]));
        let of_cohort = stored.numbers.range(from..).map(|(key, ())| key).take_while(|(of, ..)| of == cohort_id);
        let listed = of_cohort.take(most).map(|(_, number, hash)| (*number, *hash)).collect();
        futures::future::ready(Ok(listed)).boxed()
    }
}
