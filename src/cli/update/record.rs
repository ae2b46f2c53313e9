//! What the member's state directory knows of the updates that may be announced, and what is recorded there.

use std::{fs, io, path::Path};

use serde_json::Value;

use crate::{
    actors::state::{State, StateError, vault::VaultEntry},
    controller::Settled,
    error::ProgramError,
    join::{
        ledger::{Ledger, Standing},
        memberships::{Earlier, earlier},
    },
    protocol::{did::Did, id::CohortId, update::SignedUpdate},
    storage,
    vault::{VaultContents, read_open},
};

/// The ledger of what is recorded of one DID, which begins with the `initial` document.
pub(in crate::cli) fn ledger_of(initial: Value, record: &Record<'_>, superseded: &[CohortId]) -> Ledger {
    let contents = record.contents.clone();
    let entries = contents.entries.into_iter().map(|entry: VaultEntry| {
        let standing = if entry.txid.is_some() { Standing::Announced } else { Standing::Approved };
        (entry, standing)
    });
    let ledger = Ledger::new(initial, superseded.to_vec(), contents.settled, entries);
    ledger.without_cohort(&record.contents);
    for session in &record.sessions {
        if let Some(update) = session.pending() {
            ledger.submitted(&session.cohort_id, update);
        }
    }
    ledger.loaded();
    ledger
}

/// Whether nothing was stored in the directory yet: it is not there, or is empty.
pub(in crate::cli) fn is_new(directory: &Path) -> bool {
    match fs::read_dir(directory) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// A state directory, which no other program uses while an update is recorded.
pub(in crate::cli) struct Record<'a> {
    state: Option<State>,
    contents: VaultContents,
    /// The sessions of `join`. What it has submitted there, it signs when it is started again.
    sessions: Vec<Earlier>,
    did: &'a Did,
}

async fn read(state: &State, contents: &mut VaultContents, did: &Did) -> Result<Vec<Earlier>, ProgramError> {
    read_open(state, contents).await.map_err(|error| ProgramError::State(error.to_string()))?;
    let sessions = earlier(&state.journal(), did).await.map_err(|error| ProgramError::State(error.to_string()))?;
    contents.problems.extend(sessions.1);
    Ok(sessions.0)
}

impl<'a> Record<'a> {
    /// Opens the directory for a change.
    pub(in crate::cli) async fn open(directory: &Path, did: &'a Did) -> Result<Self, ProgramError> {
        let state = State::open(directory).map_err(|error| {
            let hint = if matches!(error, StateError::Locked { .. }) {
                "; stop `join` first: the update must be recorded, so that `join` signs no other one of its version"
            } else {
                ""
            };
            ProgramError::State(format!("{error}{hint}"))
        })?;
        let mut contents = VaultContents::default();
        match read(&state, &mut contents, did).await {
            Ok(sessions) => Ok(Self { state: Some(state), contents: contents.only(Some(did)), sessions, did }),
            Err(error) => {
                state.close().await;
                Err(error)
            }
        }
    }

    /// Reads the directory only, if there is one.
    pub(in crate::cli) async fn read(directory: &Path, did: &'a Did) -> Result<Self, ProgramError> {
        let (mut contents, mut sessions) = (VaultContents::default(), Vec::new());
        if !is_new(directory) {
            let state = State::open_to_read(directory).map_err(|error| ProgramError::State(error.to_string()))?;
            let outcome = read(&state, &mut contents, did).await;
            state.close().await;
            sessions = outcome?;
        }
        Ok(Self { state: None, contents: contents.only(Some(did)), sessions, did })
    }

    /// What is stored of the DID.
    pub(in crate::cli) const fn contents(&self) -> &VaultContents {
        &self.contents
    }

    /// Refuses a directory of which something cannot be read: what is not known may be announced.
    pub(in crate::cli) fn check(&self) -> Result<(), ProgramError> {
        match self.contents.problems.first() {
            Some(problem) => Err(ProgramError::State(problem.clone())),
            None => Ok(()),
        }
    }

    /// The update that is to leave this program, `update`, or the same one that did before; and what is settled of others.
    /// Refused if a different one of its version may be announced.
    pub(super) fn settle(
        &self,
        update: SignedUpdate,
        initial: &Value,
        superseded: &[CohortId],
    ) -> Result<(SignedUpdate, Vec<Settled>), ProgramError> {
        self.check()?;
        let ledger = ledger_of(initial.clone(), self, superseded);
        let unsigned = update.unsigned_hash().map_err(|error| ProgramError::Internal(error.to_string()))?;
        if let Some(known) = ledger.equal(&unsigned) {
            return Ok((known, ledger.settled()));
        }
        match ledger.contradiction(&update) {
            None => Ok((update, ledger.settled())),
            Some(contradiction) => Err(ProgramError::Usage(format!(
                "{contradiction}. If it is announced, wait until it is confirmed, or use --min-conf; if it will never be \
                 announced: --supersede COHORT (`singleton` for one that was prepared without a cohort). State of {}",
                self.did
            ))),
        }
    }

    /// Persists that the update may be announced from now on, and what is settled of others.
    pub(in crate::cli) async fn add(&self, update: &SignedUpdate, settled: &[Settled]) -> Result<(), ProgramError> {
        let Some(state) = &self.state else { return Ok(()) };
        storage::settle(state, settled).await?;
        storage::prepare_again(state, update).await
    }

    pub(in crate::cli) async fn close(self) {
        if let Some(state) = self.state {
            state.close().await;
        }
    }
}
