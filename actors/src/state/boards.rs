//! Boards of standing cohorts in a state directory.

use std::sync::Arc;

use btcr2_aggregation_protocol::{hash::DocumentHash, id::CohortId};
use futures::{FutureExt, future::BoxFuture};

use super::{Edit, State, StateError, Table, database::Change};
use crate::standing::boards::{BoardError, BoardStore};

/// The bytes by hash, and the hashes by cohort and number.
#[derive(Clone)]
pub struct StateBoards {
    bytes: Table,
    numbers: Table,
}

impl StateBoards {
    /// The boards in `state`.
    pub fn new(state: &State) -> Self {
        Self { bytes: state.table(BYTES), numbers: state.table(NUMBERS) }
    }

    /// What [`put`](BoardStore::put) would write, for one commit with other changes.
    pub(super) fn changes(cohort_id: &CohortId, number: u64, hash: &DocumentHash, bytes: Vec<u8>) -> [Change; 2] {
        let board = Change::Put { table: BYTES.into(), key: hash.as_bytes().to_vec(), value: bytes };
        [board, Change::Put { table: NUMBERS.into(), key: key(cohort_id, number, hash), value: Vec::new() }]
    }
}

const BYTES: &str = "standing-boards";
const NUMBERS: &str = "standing-numbers";

fn prefix(cohort_id: &CohortId) -> Vec<u8> {
    let id = cohort_id.as_str().as_bytes();
    // With its length: no identifier is the beginning of another one.
    [&(id.len() as u64).to_be_bytes(), id].concat()
}

fn key(cohort_id: &CohortId, number: u64, hash: &DocumentHash) -> Vec<u8> {
    [prefix(cohort_id), number.to_be_bytes().to_vec(), hash.as_bytes().to_vec()].concat()
}

fn failed(error: StateError) -> BoardError {
    BoardError(error.to_string())
}

impl BoardStore for StateBoards {
    fn put(
        &self,
        cohort_id: &CohortId,
        number: u64,
        hash: &DocumentHash,
        bytes: Arc<Vec<u8>>,
    ) -> BoxFuture<'static, Result<(), BoardError>> {
        let (bytes_table, numbers, hash) = (self.bytes.clone(), self.numbers.clone(), *hash);
        let key = key(cohort_id, number, &hash);
        async move {
            if bytes_table.get(*hash.as_bytes()).await.map_err(failed)?.is_none() {
                bytes_table.put(*hash.as_bytes(), bytes.as_ref().clone()).await.map_err(failed)?;
            }
            numbers.edit([Edit::Put(key, Vec::new())]).await.map_err(failed)
        }
        .boxed()
    }

    fn get(&self, hash: &DocumentHash) -> BoxFuture<'static, Result<Option<Arc<Vec<u8>>>, BoardError>> {
        let (table, hash) = (self.bytes.clone(), *hash);
        async move { Ok(table.get(*hash.as_bytes()).await.map_err(failed)?.map(Arc::new)) }.boxed()
    }

    fn list(
        &self,
        cohort_id: &CohortId,
        after: u64,
        most: usize,
    ) -> BoxFuture<'static, Result<Vec<(u64, DocumentHash)>, BoardError>> {
        let (table, prefix) = (self.numbers.clone(), prefix(cohort_id));
        // After every board of that number.
        let after = [prefix.clone(), after.to_be_bytes().to_vec(), vec![0xff; 33]].concat();
        async move {
            let page = table.scan(prefix.clone(), Some(after), most).await.map_err(failed)?;
            if let Some(key) = page.damaged.first() {
                return Err(BoardError(format!("the entry {key:02x?} is damaged")));
            }
            let read = |key: &[u8]| {
                let (number, hash) = key.strip_prefix(&prefix[..])?.split_at_checked(8)?;
                let number = u64::from_be_bytes(number.try_into().ok()?);
                Some((number, DocumentHash::from_bytes(hash.try_into().ok()?)))
            };
            Ok(page.entries.iter().filter_map(|(key, _)| read(key)).collect())
        }
        .boxed()
    }
}
