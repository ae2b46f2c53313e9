//! What is beside the journal of a standing cohort, or of a seat of one: boards, and what the host has stored of the DIDs.

use std::{collections::BTreeSet, sync::Arc};

use btcr2_aggregation_protocol::{
    cohort::standing::{BoardContent, seat::SeatEvent},
    did::Did,
    hash::{DidIndex, DocumentHash, sha256},
    id::CohortId,
};
use serde_json::{Value, value::RawValue};

use super::{BoardDocument, CohortDocument, DidDocument, StreamDocument, TransferError};
use crate::{
    journal::{Journal, JournalError, Record, StreamId, StreamKind},
    standing::boards::BoardStore,
    state::{State, StateError, StreamSummary, boards::StateBoards, database::Change},
};

/// The table in which the host of a service stores what it knows of registered DIDs, by index.
pub const STANDING_DIDS: &str = "standing-dids";

/// How many boards are listed at once.
const PAGE: usize = 256;

/// The cohort of a seat, by the first event of its journal.
fn cohort_of(record: &Record) -> Option<CohortId> {
    match record.event().ok()? {
        SeatEvent::OptedIn { opt_in, .. } => Some(opt_in.cohort_id),
        SeatEvent::Saved(saved) => Some(saved.cohort_id().clone()),
        _ => None,
    }
}

/// Whether these are records of a seat in the cohort.
pub(super) fn is_of(records: &[Box<RawValue>], cohort_id: &CohortId) -> bool {
    let first = records.first().map(|record| Record::from_json(record.get().as_bytes()));
    first.and_then(|record| cohort_of(&record)).as_ref() == Some(cohort_id)
}

/// Whether the stream has how far the chain was read for the cohort, or for one of these seats in it.
pub(super) fn is_watch(stream: &StreamId, cohort_id: &CohortId, seats: &BTreeSet<Did>) -> bool {
    let owners = std::iter::once(cohort_id.as_str()).chain(seats.iter().map(Did::as_str));
    owners.map(StreamId::of_watch).any(|watch| watch == *stream)
}

/// The indexes in the records of a standing cohort: those of its rows.
fn indexes_in(value: &Value, found: &mut BTreeSet<DidIndex>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if matches!(name.as_str(), "did_index" | "didIndex") {
                    found.extend(serde_json::from_value::<DidIndex>(value.clone()).ok());
                }
                indexes_in(value, found);
            }
        }
        Value::Array(entries) => entries.iter().for_each(|entry| indexes_in(entry, found)),
        _ => {}
    }
}

impl State {
    /// The seats here whose cohort this is.
    pub(super) async fn seats_of(
        &self,
        cohort_id: &CohortId,
        all: &[StreamSummary],
    ) -> Result<BTreeSet<Did>, JournalError> {
        let mut seats = BTreeSet::new();
        for summary in all {
            let StreamKind::Seat(did) = summary.stream.kind() else { continue };
            let records = self.journal().read(&summary.stream).await?;
            if records.first().and_then(cohort_of).as_ref() == Some(cohort_id) {
                seats.insert(did);
            }
        }
        Ok(seats)
    }

    pub(super) async fn boards_of(&self, cohort_id: &CohortId) -> Result<Vec<BoardDocument>, TransferError> {
        let store = StateBoards::new(self);
        let failed = |problem: String| damaged("boards", problem);
        let mut boards = Vec::new();
        let mut after = 0;
        loop {
            let listed = store.list(cohort_id, after, PAGE).await.map_err(|error| failed(error.to_string()))?;
            let Some((last, _)) = listed.last() else { return Ok(boards) };
            after = *last;
            for (number, hash) in listed {
                let bytes = store.get(&hash).await.map_err(|error| failed(error.to_string()))?;
                let bytes = bytes.ok_or_else(|| failed(format!("board {hash} of number {number} is missing")))?;
                let text = String::from_utf8(bytes.as_ref().clone());
                let text = text.map_err(|_| failed(format!("board {hash} of number {number} is not text")))?;
                boards.push(BoardDocument { number, text });
            }
        }
    }

    /// What the host has stored of the DIDs of the cohort.
    pub(super) async fn dids_of(&self, streams: &[StreamDocument]) -> Result<Vec<DidDocument>, TransferError> {
        let mut indexes = BTreeSet::new();
        for stream in streams {
            if !matches!(StreamId::new(stream.name.as_str()).kind(), StreamKind::Standing(_)) {
                continue;
            }
            for record in &stream.records {
                let value = serde_json::from_str(record.get());
                indexes_in(&value.map_err(|error| damaged("journal", error.to_string()))?, &mut indexes);
            }
        }
        let table = self.table(STANDING_DIDS);
        let mut dids = Vec::new();
        for index in indexes {
            if let Some(bytes) = table.get(*index.as_bytes()).await? {
                let stored = serde_json::from_slice(&bytes);
                let stored = stored.map_err(|error| damaged(STANDING_DIDS, format!("{index}: {error}")))?;
                dids.push(DidDocument { index, stored });
            }
        }
        Ok(dids)
    }

    /// What an import stores beside the journal. What is here of a DID stays: it is at least as new.
    pub(super) async fn standing_changes(&self, document: &CohortDocument) -> Result<Vec<Change>, TransferError> {
        let store = StateBoards::new(self);
        let mut changes = Vec::new();
        for board in &document.boards {
            let hash = DocumentHash::from_bytes(sha256(board.text.as_bytes()));
            let known = store.get(&hash).await.map_err(|error| damaged("boards", error.to_string()))?;
            if known.is_none() {
                let bytes = board.text.as_bytes().to_vec();
                changes.extend(StateBoards::changes(&document.cohort_id, board.number, &hash, bytes));
            }
        }
        let (name, table): (Arc<str>, _) = (STANDING_DIDS.into(), self.table(STANDING_DIDS));
        for DidDocument { index, stored } in &document.dids {
            if table.get(*index.as_bytes()).await?.is_none() {
                let (table, key) = (Arc::clone(&name), index.as_bytes().to_vec());
                changes.push(Change::Put { table, key, value: stored.get().as_bytes().to_vec() });
            }
        }
        Ok(changes)
    }
}

fn damaged(table: &str, problem: String) -> TransferError {
    TransferError::State(StateError::Damaged { table: table.to_owned(), problem })
}

impl CohortDocument {
    /// Checks that every board is one of the cohort, under its own number.
    pub(super) fn check_boards(&self) -> Result<(), String> {
        for board in &self.boards {
            let content: Result<BoardContent, _> = serde_json::from_str(&board.text);
            let is_of =
                content.is_ok_and(|content| content.cohort_id == self.cohort_id && content.number == board.number);
            if !is_of {
                return Err(format!("the board of number {} is not one of the cohort", board.number));
            }
        }
        Ok(())
    }
}
