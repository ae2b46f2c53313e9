//! What is served of the history: lists, maps, proofs and boards. Proofs are made on request from the stored board.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use btcr2_aggregation_protocol::{
    cohort::standing::{ArchivedBoard, ArchivedProof},
    did::Did,
    hash::{DidIndex, DocumentHash, SignalBytes},
    id::CohortId,
    key::PublicKey,
};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, Semaphore};

use super::{Announced, CohortRecord, HistoryError, HistoryStore};
use crate::{
    standing::{
        boards::{BoardError, BoardStore, is_of},
        policy::StandingServicePolicy,
    },
    transport::http::history::{History, HistoryRefusal, ServedProof},
};

/// The boards whose map or tree stays in memory.
const BUILT: usize = 4;

/// The requests that wait for a board to be read.
const WAITING: usize = 16;

type Slot = Arc<OnceCell<Arc<ArchivedBoard>>>;

/// The history of a service's standing cohorts, as it is served: also of cohorts that have ended, without any actor.
pub struct StandingHistory {
    boards: Arc<dyn BoardStore>,
    records: Arc<dyn HistoryStore>,
    policy: Arc<dyn StandingServicePolicy>,
    built: Mutex<VecDeque<(DocumentHash, Slot)>>,
    /// One board is read at a time: a large one takes a second, and every client can ask for it.
    building: Semaphore,
    waiting: Semaphore,
}

impl From<HistoryError> for HistoryRefusal {
    fn from(HistoryError(problem): HistoryError) -> Self {
        Self::Failed(problem)
    }
}

impl From<BoardError> for HistoryRefusal {
    fn from(BoardError(problem): BoardError) -> Self {
        Self::Failed(problem)
    }
}

impl StandingHistory {
    /// The history in these stores. `policy` knows who controls a DID.
    pub fn new(
        boards: Arc<dyn BoardStore>,
        records: Arc<dyn HistoryStore>,
        policy: Arc<dyn StandingServicePolicy>,
    ) -> Self {
        Self {
            boards,
            records,
            policy,
            built: Mutex::default(),
            building: Semaphore::new(1),
            waiting: Semaphore::new(WAITING),
        }
    }

    async fn cohort(&self, cohort_id: &CohortId) -> Result<CohortRecord, HistoryRefusal> {
        self.records.cohort(cohort_id).await?.ok_or(HistoryRefusal::Unknown)
    }

    fn slot(&self, hash: &DocumentHash) -> Slot {
        // No code panics between two dependent changes.
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = built.iter().position(|(known, _)| known == hash)
            && let Some(known) = built.remove(at)
        {
            let slot = Arc::clone(&known.1);
            built.push_back(known);
            return slot;
        }
        while built.len() >= BUILT {
            built.pop_front();
        }
        let slot = Slot::default();
        built.push_back((*hash, Arc::clone(&slot)));
        slot
    }

    /// The board of an announcement, read once for as long as it is in the cache.
    async fn board_of(
        &self,
        cohort: &CohortRecord,
        announced: &Announced,
    ) -> Result<Arc<ArchivedBoard>, HistoryRefusal> {
        let slot = self.slot(&announced.board_hash);
        if let Some(built) = slot.get() {
            return Ok(Arc::clone(built));
        }
        let _waiting = self.waiting.try_acquire().map_err(|_| HistoryRefusal::Busy)?;
        let built = slot.get_or_try_init(|| async {
            // The semaphore is never closed.
            let _turn = self.building.acquire().await.map_err(|_| HistoryRefusal::Busy)?;
            let bytes = self.boards.get(&announced.board_hash).await?.ok_or(HistoryRefusal::Unknown)?;
            let beacon = cohort.terms.beacon_type;
            let reading = tokio::task::spawn_blocking(move || ArchivedBoard::read(&bytes, beacon));
            let board = reading.await.ok().flatten();
            let board = board.ok_or_else(|| HistoryRefusal::Failed("a stored board cannot be read".to_owned()))?;
            Ok::<_, HistoryRefusal>(Arc::new(board))
        });
        built.await.map(Arc::clone)
    }
}

#[async_trait]
impl History for StandingHistory {
    async fn announcements(&self, cohort_id: &CohortId, after: u64, most: usize) -> Result<Value, HistoryRefusal> {
        let cohort = self.cohort(cohort_id).await?;
        // One more shows whether there are more.
        let mut listed = self.records.list(cohort_id, after, most.saturating_add(1)).await?;
        let next = (listed.len() > most).then(|| {
            listed.truncate(most);
            listed.last().map(|last| last.number)
        });
        let mut answer = json!({
            "cohortId": cohort.cohort_id,
            "service": cohort.service,
            "beaconAddress": cohort.beacon_address,
            "beaconType": cohort.terms.beacon_type,
            "announcements": listed,
        });
        if let Some(next) = next.flatten() {
            answer["next"] = json!(next);
        }
        Ok(answer)
    }

    async fn map(&self, cohort_id: &CohortId, hash: &SignalBytes) -> Result<Value, HistoryRefusal> {
        let cohort = self.cohort(cohort_id).await?;
        let announced = self.records.by_signal(cohort_id, hash).await?.ok_or(HistoryRefusal::Unknown)?;
        let board = self.board_of(&cohort, &announced).await?;
        let map = board.announcement().ok_or(HistoryRefusal::Unknown)?;
        serde_json::to_value(map).map_err(|error| HistoryRefusal::Failed(error.to_string()))
    }

    async fn proof(
        &self,
        cohort_id: &CohortId,
        number: u64,
        index: &DidIndex,
    ) -> Result<ServedProof, HistoryRefusal> {
        let cohort = self.cohort(cohort_id).await?;
        let announced = self.records.get(cohort_id, number).await?;
        let announced = announced.filter(|announced| announced.signal.is_some()).ok_or(HistoryRefusal::Unknown)?;
        let board = self.board_of(&cohort, &announced).await?;
        let ArchivedProof { proof, leaf } = board.proof(index).ok_or(HistoryRefusal::Unknown)?;
        let seat = board.seat_of(index).and_then(|seat| cohort.did_of(seat)).cloned();
        let mut answer = json!({ "cohortId": cohort_id, "number": number, "proof": proof });
        if let Some(leaf) = &leaf {
            answer["leaf"] = json!(leaf);
        }
        Ok(ServedProof { answer, has_leaf: leaf.is_some(), seat })
    }

    async fn board(&self, cohort_id: &CohortId, hash: &DocumentHash) -> Result<Arc<Vec<u8>>, HistoryRefusal> {
        let bytes = self.boards.get(hash).await?.filter(|bytes| is_of(cohort_id, bytes));
        bytes.ok_or(HistoryRefusal::Unknown)
    }

    async fn is_seat(&self, cohort_id: &CohortId, did: &Did) -> Result<bool, HistoryRefusal> {
        Ok(self.cohort(cohort_id).await?.has(did))
    }

    async fn control_keys(&self, cohort_id: &CohortId, did: &Did) -> Vec<PublicKey> {
        match self.policy.control_keys(cohort_id, did).await {
            Ok(keys) => keys,
            Err(problem) => {
                tracing::debug!(%did, problem, "control of a DID cannot be checked");
                Vec::new()
            }
        }
    }
}
