//! How boards are read, and rosters followed: each time, or once for all seats of a process.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::{
    board::{Board, BoardPlace, BoardProblem},
    roster::{Roster, Row},
};
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

    /// The roster with this hash and so many rows that follows on `before`, with the rows after those of `before`; `None` unless it was
    /// [shared](Self::shared) here.
    fn roster(&self, before: &Roster, hash: &DocumentHash, row_count: u64) -> Option<(Arc<Roster>, Arc<Vec<Row>>)> {
        let _ = (before, hash, row_count);
        None
    }

    /// A roster whose rows were checked, by a seat or by its service; returns an equal one if there is one here.
    fn shared(&self, roster: Arc<Roster>) -> Arc<Roster> {
        roster
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

/// Caches the boards that were read last, and the last roster of each cohort: for a process with many seats of one cohort, which all get
/// the same bytes and rows and check the same.
///
/// What is cached follows from the bytes and from their place (terms, roster, number), or from the rows, alone, so that no seat trusts
/// anything that it could not compute itself. The first reader computes, the others wait for its result. Bytes that are not the board are
/// not cached.
pub struct SharedBoards {
    capacity: usize,
    slots: Mutex<VecDeque<([u8; 32], Slot)>>,
    rosters: Mutex<VecDeque<SharedRoster>>,
}

/// The last roster of a cohort.
struct SharedRoster {
    roster: Arc<Roster>,
    /// Its rows after the first so many: what seats have not known last.
    rows: (u64, Arc<Vec<Row>>),
}

impl SharedRoster {
    fn new(roster: Arc<Roster>) -> Self {
        let rows = (0, Arc::clone(roster.log()));
        Self { roster, rows }
    }

    fn rows_from(&mut self, from: u64) -> Arc<Vec<Row>> {
        if self.rows.0 != from {
            self.rows = (from, Arc::new(self.roster.rows_from(from).to_vec()));
        }
        Arc::clone(&self.rows.1)
    }
}

impl SharedBoards {
    /// The number of boards, and of rosters, that [`Self::default`] caches.
    pub const DEFAULT_CAPACITY: usize = 4;

    /// Caches up to `capacity` boards, and rosters of as many cohorts, at least one.
    pub const fn with_capacity(capacity: usize) -> Self {
        let capacity = if capacity == 0 { 1 } else { capacity };
        Self { capacity, slots: Mutex::new(VecDeque::new()), rosters: Mutex::new(VecDeque::new()) }
    }

    fn rosters(&self) -> MutexGuard<'_, VecDeque<SharedRoster>> {
        // As above.
        self.rosters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<([u8; 32], Slot)>> {
        // No code panics between two dependent changes of the cache.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, key: &[u8; 32]) -> Option<Slot> {
        self.lock().iter().find(|(known, _)| known == key).map(|(_, slot)| Arc::clone(slot))
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
        let key = key_of(expected, place);
        if let Some(Ok(board)) = self.known(&key).as_ref().and_then(|slot| slot.get())
            && Arc::ptr_eq(board.bytes(), bytes)
        {
            return Ok(Arc::clone(board));
        }
        let found = DocumentHash::from_bytes(sha256(bytes));
        if found != *expected {
            return Err(BoardProblem::Hash { expected: *expected, found });
        }
        let slot = self.slot(key);
        slot.get_or_init(|| Board::read(bytes, expected, place).map(Arc::new)).clone()
    }

    fn made(&self, board: &Arc<Board>, place: BoardPlace<'_>) {
        // It was read already if it is there.
        let _ = self.slot(key_of(board.hash(), place)).set(Ok(Arc::clone(board)));
    }

    fn roster(&self, before: &Roster, hash: &DocumentHash, row_count: u64) -> Option<(Arc<Roster>, Arc<Vec<Row>>)> {
        let mut rosters = self.rosters();
        let shared = rosters.iter_mut().find(|shared| shared.roster.context() == before.context())?;
        let is_it = shared.roster.row_count() == row_count && shared.roster.hash() == *hash;
        (is_it && shared.roster.extends(before))
            .then(|| (Arc::clone(&shared.roster), shared.rows_from(before.row_count())))
    }

    fn shared(&self, roster: Arc<Roster>) -> Arc<Roster> {
        let mut rosters = self.rosters();
        match rosters.iter_mut().find(|shared| shared.roster.context() == roster.context()) {
            Some(shared) if Arc::ptr_eq(&shared.roster, &roster) => {}
            Some(shared) if roster.extends(&shared.roster) => {
                if roster.row_count() == shared.roster.row_count() {
                    return Arc::clone(&shared.roster);
                }
                *shared = SharedRoster::new(Arc::clone(&roster));
            }
            // An earlier one.
            Some(_) => {}
            None => {
                while rosters.len() >= self.capacity {
                    rosters.pop_front();
                }
                rosters.push_back(SharedRoster::new(Arc::clone(&roster)));
            }
        }
        roster
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

    use super::*;
    use crate::{
        cohort::standing::{context::CohortContext, roster::RowAction},
        did::Did,
        hash::DidIndex,
        key::SecretKey,
        network::Network,
    };

    /// A roster after the registration of these indexes, each by the seat of that number.
    fn roster(rows: &[(u8, u8)]) -> Roster {
        let keys = [1, 2].map(|byte| SecretKey::from_bytes(&[byte; 32]).unwrap());
        let context = CohortContext {
            network: Network::Regtest,
            service: Did::from_key(keys[0].public_key(), Network::Regtest),
            cohort_id: "cohort".parse().unwrap(),
            beacon_address: "address".to_owned(),
        };
        let mut rng = ChaCha20Rng::from_seed([7; 32]);
        let mut roster = Roster::new(context.clone(), keys.iter().map(SecretKey::public_key), 9);
        for (seat, index) in rows {
            let (key, index) = (&keys[usize::from(*seat)], DidIndex::from_bytes([*index; 32]));
            let row = Row::sign(&context, key, index, RowAction::Register, 1, &mut rng);
            roster.follow([&row]).unwrap();
        }
        roster
    }

    #[test]
    fn a_shared_roster_is_that_of_a_seat_which_it_extends() {
        let boards = SharedBoards::default();
        let (empty, one, three) = (roster(&[]), roster(&[(0, 1)]), roster(&[(0, 1), (1, 2), (0, 3)]));
        let rows_after = |before: &Roster, after: &Roster| {
            let known = boards.roster(before, &after.hash(), after.row_count());
            known.map(|(roster, rows)| (*roster == *after, rows.len()))
        };
        assert_eq!(rows_after(&empty, &three), None);
        let shared = boards.shared(Arc::new(three.clone()));
        assert_eq!(rows_after(&empty, &three), Some((true, 3)));
        assert_eq!(rows_after(&one, &three), Some((true, 2)));
        assert_eq!(rows_after(&three, &three), Some((true, 0)));
        // The same indexes by other rows, or in another order: not what this seat knows.
        assert_eq!(rows_after(&roster(&[(1, 2)]), &three), None);
        assert_eq!(rows_after(&roster(&[(0, 1), (0, 3)]), &three), None);
        assert_eq!(rows_after(&three, &one), None);
        // An equal one is the same one; an earlier one does not replace it; a later one does.
        assert!(Arc::ptr_eq(&boards.shared(Arc::new(three.clone())), &shared));
        boards.shared(Arc::new(one.clone()));
        assert_eq!(rows_after(&one, &three), Some((true, 2)));
        let four = roster(&[(0, 1), (1, 2), (0, 3), (1, 4)]);
        boards.shared(Arc::new(four.clone()));
        assert_eq!((rows_after(&one, &three), rows_after(&one, &four)), (None, Some((true, 3))));
    }

    #[test]
    fn nothing_is_shared_by_a_direct_reader() {
        let three = Arc::new(roster(&[(0, 1), (1, 2), (0, 3)]));
        let shared = DirectReader.shared(Arc::clone(&three));
        assert!(Arc::ptr_eq(&shared, &three));
        assert!(DirectReader.roster(&roster(&[]), &three.hash(), 3).is_none());
    }
}
