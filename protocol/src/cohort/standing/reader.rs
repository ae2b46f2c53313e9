//! How boards are read: each time, or once for all seats of a process.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::board::{Board, BoardPlace, BoardProblem};
use crate::hash::{DocumentHash, sha256};

/// Reads boards.
pub trait BoardReader: Send + Sync + fmt::Debug {
    /// As [`Board::read`].
    ///
    /// # Errors
    /// [`BoardProblem`].
    fn read(
        &self,
        bytes: &Arc<Vec<u8>>,
        expected: &DocumentHash,
        place: BoardPlace<'_>,
    ) -> Result<Arc<Board>, BoardProblem>;

    /// A board that was made here, of responses that were checked: it need not be read again.
    fn made(&self, board: &Arc<Board>, place: BoardPlace<'_>) {
        let _ = (board, place);
    }
}

/// Reads a board each time.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirectReader;

impl BoardReader for DirectReader {
    fn read(
        &self,
        bytes: &Arc<Vec<u8>>,
        expected: &DocumentHash,
        place: BoardPlace<'_>,
    ) -> Result<Arc<Board>, BoardProblem> {
        Board::read(bytes, expected, place).map(Arc::new)
    }
}

type Slot = Arc<OnceLock<Result<Arc<Board>, BoardProblem>>>;

/// Caches the boards that were read last: for a process with many seats of one cohort, which all get the same bytes and check the same.
///
/// What is cached follows from the bytes and from their place (terms, roster, number) alone, so that no seat trusts anything that it could
/// not compute itself. The first reader computes, the others wait for its result. Bytes that are not the board are not cached.
pub struct SharedBoards {
    capacity: usize,
    slots: Mutex<VecDeque<([u8; 32], Slot)>>,
}

impl SharedBoards {
    /// The number of boards that [`Self::default`] caches.
    pub const DEFAULT_CAPACITY: usize = 4;

    /// Caches up to `capacity` boards, at least one.
    pub const fn with_capacity(capacity: usize) -> Self {
        Self { capacity: if capacity == 0 { 1 } else { capacity }, slots: Mutex::new(VecDeque::new()) }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<([u8; 32], Slot)>> {
        // No code panics between two dependent changes of the cache.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, key: [u8; 32]) -> Slot {
        let mut slots = self.lock();
        if let Some((_, slot)) = slots.iter().find(|(known, _)| *known == key) {
            return Arc::clone(slot);
        }
        while slots.len() >= self.capacity {
            slots.pop_front();
        }
        let slot = Slot::default();
        slots.push_back((key, Arc::clone(&slot)));
        slot
    }
}

impl Default for SharedBoards {
    fn default() -> Self {
        Self::with_capacity(Self::DEFAULT_CAPACITY)
    }
}

impl fmt::Debug for SharedBoards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBoards").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

/// What a board is checked against. The roster's hash commits to its seats and indexes.
fn key_of(board: &DocumentHash, place: BoardPlace<'_>) -> [u8; 32] {
    let terms = serde_json::to_string(place.terms).unwrap_or_default();
    let inputs = (place.inputs as u64).to_be_bytes();
    place.roster.context().digest(
        "btcr2-aggregation/standing/cached-board/1",
        &[
            board.as_bytes(),
            place.roster_hash.as_bytes(),
            &place.number.to_be_bytes(),
            &inputs,
            place.kind.as_str().as_bytes(),
            terms.as_bytes(),
        ],
    )
}

impl BoardReader for SharedBoards {
    fn read(
        &self,
        bytes: &Arc<Vec<u8>>,
        expected: &DocumentHash,
        place: BoardPlace<'_>,
    ) -> Result<Arc<Board>, BoardProblem> {
        let found = DocumentHash::from_bytes(sha256(bytes));
        if found != *expected {
            return Err(BoardProblem::Hash { expected: *expected, found });
        }
        let slot = self.slot(key_of(expected, place));
        slot.get_or_init(|| Board::read(bytes, expected, place).map(Arc::new)).clone()
    }

    fn made(&self, board: &Arc<Board>, place: BoardPlace<'_>) {
        // It was read already if it is there.
        let _ = self.slot(key_of(board.hash(), place)).set(Ok(Arc::clone(board)));
    }
}
