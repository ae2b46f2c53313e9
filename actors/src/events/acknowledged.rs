//! What a host has acknowledged, in a journal stream of its own for each cohort and each membership. A later step includes all
//! earlier ones. The acknowledgement of the last event archives the journal of the cohort instead, and removes the stream.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Position, Step};
use crate::journal::{Journal, JournalError, Record, StreamId, StreamKind};

/// A record of the stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Acknowledged {
    step: Step,
}

/// The last acknowledged step of every live stream for which `is_ours`. Removes what belongs to other streams of ours: the host
/// acknowledged an earlier step after the last one.
pub(crate) async fn read(
    journal: &dyn Journal,
    is_ours: impl Fn(&StreamId) -> bool,
) -> Result<Vec<Position>, JournalError> {
    let live: BTreeSet<StreamId> = journal.streams().await?.into_iter().collect();
    let mut positions = Vec::new();
    for acknowledgements in &live {
        let StreamKind::Acknowledged(stream) = acknowledgements.kind() else { continue };
        if !is_ours(&stream) {
            continue;
        }
        if !live.contains(&stream) {
            journal.remove(acknowledgements).await?;
            continue;
        }
        match last(journal, &stream).await {
            Ok(step) => positions.extend(step.map(|step| Position { stream, step })),
            Err(error) => tracing::error!(%error, "acknowledged events are delivered again"),
        }
    }
    Ok(positions)
}

/// The last acknowledged step of a stream.
async fn last(journal: &dyn Journal, stream: &StreamId) -> Result<Option<Step>, JournalError> {
    let stream = StreamId::of_acknowledgements(stream);
    let mut last = None;
    for record in journal.read(&stream).await? {
        let record = record.event::<Acknowledged>();
        let record = record.map_err(|error| JournalError { stream: stream.clone(), problem: error.to_string() })?;
        last = last.max(Some(record.step));
    }
    Ok(last)
}

/// Persists that the host has acknowledged the events of a stream up to `position`. Durable when the future is ready.
pub(crate) async fn write(journal: &dyn Journal, position: &Position) -> Result<(), JournalError> {
    let Position { stream, step } = position;
    // So the stream has at most one record for each step.
    if last(journal, stream).await?.is_some_and(|last| last >= *step) {
        return Ok(());
    }
    let record = Record::new(Acknowledged { step: *step });
    journal.append(&StreamId::of_acknowledgements(stream), vec![record]).await
}
