//! What the state directory of an agent has for `check`: the age of its backup, data that it cannot fetch, services that are silent.

use std::{path::PathBuf, time::SystemTime};

use serde_json::Value;

use super::{
    backup,
    config::ROLE,
    data::{self, Gap},
    report,
    silence::{self, Silent},
};
use crate::{
    actors::state::State,
    protocol::{did::Did, time::Timestamp},
    storage,
};

/// What an agent has recorded that concerns the health of a DID.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// When the last verified backup was made.
    pub backup: Option<Timestamp>,
    /// When something was logged last that a backup is to have.
    pub changed: Option<Timestamp>,
    /// The data of left addresses that it cannot fetch.
    pub gaps: Vec<Gap>,
    /// The services that are silent for longer than its policy permits.
    pub silent: Vec<Silent>,
    /// The Sidecar Data of the DID.
    pub sidecar: Option<Value>,
}

/// The records in the first of these directories that is an agent's; none if there is none.
///
/// # Errors
/// Why it cannot be read, in words.
pub async fn read(directories: &[PathBuf], did: &Did) -> Result<Option<Records>, String> {
    for directory in directories {
        let state = State::open_to_read(directory).map_err(|error| error.to_string())?;
        let records = of(&state, did).await;
        state.close().await;
        if let Some(records) = records? {
            return Ok(Some(records));
        }
    }
    Ok(None)
}

/// The time of an entry of the log.
fn time(date: &str) -> Option<Timestamp> {
    let since = humantime::parse_rfc3339(date).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(Timestamp::from_secs(since.as_secs()))
}

async fn of(state: &State, did: &Did) -> Result<Option<Records>, String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    if storage::role_of(state).await.map_err(|error| failed(&error))?.as_deref() != Some(ROLE) {
        return Ok(None);
    }
    let mut silent = silence::silent(state).await.map_err(|error| failed(&error))?;
    silent.retain(|one| one.reported);
    let entries = report::entries(state, usize::MAX).await.map_err(|error| failed(&error))?;
    let is_change = |entry: &&Value| {
        !matches!(entry["entry"]["event"].as_str(), Some("backup-written" | "backup-failed" | "member-ready"))
    };
    let last = entries.iter().rev().find(is_change);
    Ok(Some(Records {
        backup: backup::last(state).await.map_err(|error| failed(&error))?,
        changed: last.and_then(|entry| time(entry["at"].as_str()?)),
        gaps: data::gaps(state, did).await.map_err(|error| failed(&error))?,
        silent,
        sidecar: backup::sidecar(state, did).await,
    }))
}
