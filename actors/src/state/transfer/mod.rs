//! Cohorts as documents: all of a cohort's journal, to inspect or to move to another state directory. Of a standing cohort, or a seat of one,
//! also its boards, and what its host has stored of its DIDs.

mod standing;

use std::collections::BTreeSet;

use btcr2_aggregation_protocol::{
    cohort::{
        event::{ParticipantEvent, ServiceEvent},
        standing::{cohort::CohortEvent, number::NumberEvent, seat::SeatEvent},
    },
    did::Did,
    hash::DidIndex,
    id::{CohortId, SessionId},
    signing::session::SessionEvent,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

pub use self::standing::STANDING_DIDS;
use super::{State, StateError, database::Change, writer::WriteError};
use crate::journal::{Journal, JournalError, Record, SCHEMA, StreamId, StreamKind};

const FORMAT: &str = "btcr2-aggregation-cohort/1";

/// All streams of a cohort, as they are stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CohortDocument {
    format: String,
    /// The version of the events' schema.
    schema: u16,
    /// The cohort.
    pub cohort_id: CohortId,
    /// Its streams, in the order of their names.
    pub streams: Vec<StreamDocument>,
    /// The boards of a standing cohort, in the order of their numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub boards: Vec<BoardDocument>,
    /// What the host of a standing cohort has stored of its DIDs, in the order of their indexes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dids: Vec<DidDocument>,
}

/// A board of a standing cohort.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BoardDocument {
    /// The number of which it is a board.
    pub number: u64,
    /// Its text, byte for byte: its name is the SHA-256 of that.
    pub text: String,
}

/// What the host of a standing cohort has stored of a registered DID.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DidDocument {
    /// The index.
    pub index: DidIndex,
    /// What is stored.
    pub stored: Box<RawValue>,
}

/// One stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StreamDocument {
    /// The stream's name.
    pub name: String,
    /// When it was archived, in milliseconds since 1970; absent while it is live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archived: Option<Timestamp>,
    /// The records, in order.
    pub records: Vec<Box<RawValue>>,
}

/// The result of an import, by streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// The number of streams that are new here.
    pub new: usize,
    /// The number of streams that were here already, identical to the byte.
    pub known: usize,
}

/// Why a cohort could not be exported or imported. Nothing was changed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The document is not a cohort's, or this program cannot run the cohort.
    #[error("the document is not one of a cohort that this program can take over: {0}")]
    Document(String),
    /// The stream exists with other contents.
    #[error("stream {} is here already, with other records: one of the two is not to be run", .0.escaped())]
    Conflict(StreamId),
    /// A stream cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
}

impl State {
    /// Everything in the journal about a cohort; `None` if there is nothing.
    ///
    /// # Errors
    /// When one of its streams is damaged, or the directory cannot be read.
    pub async fn export(&self, cohort_id: &CohortId) -> Result<Option<CohortDocument>, TransferError> {
        let all = self.streams().await?;
        let sessions = self.sessions_of(cohort_id).await?;
        let seats = self.seats_of(cohort_id, &all).await?;
        let mut streams = Vec::new();
        for summary in all {
            let belongs = match summary.stream.kind() {
                StreamKind::Cohort(id)
                | StreamKind::Announcement(id)
                | StreamKind::Participant { cohort_id: id, .. } => id == *cohort_id,
                StreamKind::Signing(id) => sessions.contains(&id),
                StreamKind::Standing(id) | StreamKind::Number { cohort_id: id, .. } => id == *cohort_id,
                StreamKind::Seat(did) => seats.contains(&did),
                // A participant recovers its memberships from its sessions.
                StreamKind::Membership(_) => false,
                // The events are delivered again where the cohort continues.
                StreamKind::Acknowledged(_) => false,
                StreamKind::Other => standing::is_watch(&summary.stream, cohort_id, &seats),
            };
            if belongs {
                let records = self.raw(&summary.stream).await?;
                streams.push(StreamDocument {
                    name: summary.stream.as_str().to_owned(),
                    archived: summary.archived,
                    records,
                });
            }
        }
        if streams.is_empty() {
            return Ok(None);
        }
        let boards = self.boards_of(cohort_id).await?;
        let dids = self.dids_of(&streams).await?;
        let (format, cohort_id) = (FORMAT.to_owned(), cohort_id.clone());
        Ok(Some(CohortDocument { format, schema: SCHEMA, cohort_id, streams, boards, dids }))
    }

    /// Every stream of the journal, live and archived: a backup of it.
    ///
    /// # Errors
    /// When a stream is damaged, or the directory cannot be read.
    pub async fn export_streams(&self) -> Result<Vec<StreamDocument>, TransferError> {
        let mut streams = Vec::new();
        for summary in self.streams().await? {
            let records = self.raw(&summary.stream).await?;
            let name = summary.stream.as_str().to_owned();
            streams.push(StreamDocument { name, archived: summary.archived, records });
        }
        Ok(streams)
    }

    /// Writes streams of a backup into a directory that has none of them, all or none. Durable when it answers.
    ///
    /// # Errors
    /// [`TransferError::Conflict`] when one of them is here; when they cannot be written.
    pub async fn import_streams(&self, streams: &[StreamDocument]) -> Result<(), TransferError> {
        let mut changes = Vec::new();
        for StreamDocument { name, archived, records } in streams {
            let stream = StreamId::new(name.as_str());
            if !self.raw(&stream).await?.is_empty() {
                return Err(TransferError::Conflict(stream));
            }
            let records = records.iter().map(|record| record.get().as_bytes().to_vec()).collect();
            changes.push(Change::Append { stream: stream.clone(), records });
            changes.extend(archived.map(|at| Change::Archive { stream, at }));
        }
        self.write_all(changes).await
    }

    /// The cohort's signing sessions, whose streams have their own names.
    async fn sessions_of(&self, cohort_id: &CohortId) -> Result<BTreeSet<SessionId>, JournalError> {
        let stream = StreamId::new(format!("cohort/{cohort_id}"));
        let mut sessions = BTreeSet::new();
        for record in self.journal().read(&stream).await? {
            let event = record.event().map_err(|error| unreadable(&stream, &error))?;
            if let ServiceEvent::SigningStarted { session_id, .. } = event {
                sessions.insert(session_id);
            }
        }
        Ok(sessions)
    }

    async fn raw(&self, stream: &StreamId) -> Result<Vec<Box<RawValue>>, JournalError> {
        let records = self.journal().read(stream).await?;
        let raw = |record: &Record| {
            let json = record.to_json().map_err(|error| unreadable(stream, &error))?;
            serde_json::from_slice(&json).map_err(|error| unreadable(stream, &error))
        };
        records.iter().map(raw).collect()
    }

    /// Imports all streams of a document, or none. A cohort must run in one place only: import it where it continues,
    /// and nowhere else. Importing the same document again changes nothing. Durable when it answers.
    ///
    /// # Errors
    /// When the document is not valid, or one of its streams is here with other records.
    pub async fn import(&self, document: &CohortDocument) -> Result<Imported, TransferError> {
        document.check().map_err(TransferError::Document)?;
        let mut changes = Vec::new();
        let mut imported = Imported { new: 0, known: 0 };
        for StreamDocument { name, archived, records } in &document.streams {
            let stream = StreamId::new(name.as_str());
            let here = self.raw(&stream).await?;
            if !here.is_empty() {
                let same = here.iter().map(|raw| raw.get()).eq(records.iter().map(|raw| raw.get()));
                if !same {
                    return Err(TransferError::Conflict(stream));
                }
                imported.known += 1;
                continue;
            }
            imported.new += 1;
            let records = records.iter().map(|record| record.get().as_bytes().to_vec()).collect();
            changes.push(Change::Append { stream: stream.clone(), records });
            changes.extend(archived.map(|at| Change::Archive { stream, at }));
        }
        changes.extend(self.standing_changes(document).await?);
        self.write_all(changes).await?;
        Ok(imported)
    }

    /// Removes all of `streams`, or none. Durable when it answers.
    ///
    /// # Errors
    /// When the changes cannot be written.
    pub async fn forget(&self, streams: impl IntoIterator<Item = StreamId>) -> Result<(), TransferError> {
        self.write_all(streams.into_iter().map(|stream| Change::Remove { stream }).collect()).await
    }

    async fn write_all(&self, changes: Vec<Change>) -> Result<(), TransferError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.write(changes).await.map_err(|error| match error {
            WriteError::State(error) => TransferError::State(error),
            WriteError::Refused(refused) => TransferError::Journal(JournalError::of_all(refused.to_string())),
        })
    }
}

fn unreadable(stream: &StreamId, error: &serde_json::Error) -> JournalError {
    JournalError { stream: stream.clone(), problem: format!("a record does not read as an event: {error}") }
}

impl CohortDocument {
    /// Checks that every record is an event of its stream's role.
    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("its format is {:?}, not {FORMAT:?}", self.format));
        }
        if self.schema != SCHEMA {
            return Err(format!(
                "its events have schema version {}, and this program writes {SCHEMA}",
                self.schema
            ));
        }
        let seats = self.streams.iter().filter_map(|stream| match StreamId::new(stream.name.as_str()).kind() {
            StreamKind::Seat(did) => Some(did),
            _ => None,
        });
        let seats: BTreeSet<Did> = seats.collect();
        self.check_boards()?;
        let mut names = BTreeSet::new();
        for StreamDocument { name, records, .. } in &self.streams {
            let stream = StreamId::new(name.as_str());
            let decode: fn(&Record) -> Result<(), serde_json::Error> = match stream.kind() {
                StreamKind::Cohort(id) if id == self.cohort_id => |record| record.event::<ServiceEvent>().map(drop),
                StreamKind::Participant { cohort_id, .. } if cohort_id == self.cohort_id => {
                    |record| record.event::<ParticipantEvent>().map(drop)
                }
                StreamKind::Signing(_) => |record| record.event::<SessionEvent>().map(drop),
                StreamKind::Standing(id) if id == self.cohort_id => {
                    |record| record.event::<CohortEvent>().map(drop)
                }
                StreamKind::Number { cohort_id, .. } if cohort_id == self.cohort_id => {
                    |record| record.event::<NumberEvent>().map(drop)
                }
                StreamKind::Seat(_) if standing::is_of(records, &self.cohort_id) => {
                    |record| record.event::<SeatEvent>().map(drop)
                }
                StreamKind::Other if standing::is_watch(&stream, &self.cohort_id, &seats) => {
                    |record| record.event::<Value>().map(drop)
                }
                // Its events are the host's, which checks them when it replays them.
                StreamKind::Announcement(id) if id == self.cohort_id => |record| record.event::<Value>().map(drop),
                _ => return Err(format!("stream {} is not the cohort's", stream.escaped())),
            };
            if records.is_empty() || !names.insert(name) {
                return Err(format!("stream {} is empty, or there twice", stream.escaped()));
            }
            for (number, record) in records.iter().enumerate() {
                decode(&Record::from_json(record.get().as_bytes()))
                    .map_err(|error| format!("stream {}, record {number}: {error}", stream.escaped()))?;
            }
        }
        Ok(())
    }
}
