//! What a program keeps over its end: a state directory, or nothing.

use std::{path::Path, sync::Arc};

use crate::{
    actors::{
        bans::{BanBook, DefaultBans},
        journal::{Journal, MemoryJournal},
        runtime::Clock,
        service::Retention,
        state::{State, StateError, inboxes::StateInboxes, nonces::StateNonces, vault::StateVault},
        transport::http::server::HttpServerParts,
    },
    error::ProgramError,
    events::Printer,
};

/// The file of offences and bans in a state directory.
pub(crate) const BANS: &str = "bans.json";

/// An open state directory, or none.
#[derive(Clone)]
pub(crate) struct Keeping(Option<State>);

impl Keeping {
    /// Opens the state directory, if there is to be one. Says what it means that there is none: `lost` is what a kill costs.
    pub(crate) fn open(dir: Option<&Path>, lost: &str, printer: Printer) -> Result<Self, ProgramError> {
        match dir {
            Some(dir) => Ok(Self(Some(State::open(dir).map_err(refuse)?))),
            None => {
                printer.warn(&format!("nothing is kept (no --state DIR): if this program is killed, {lost}"));
                Ok(Self(None))
            }
        }
    }

    /// Whether what runs now goes on when the program is started again.
    pub(crate) fn is_durable(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn journal(&self) -> Arc<dyn Journal> {
        match &self.0 {
            Some(state) => Arc::new(state.journal()),
            None => Arc::new(MemoryJournal::new()),
        }
    }

    pub(crate) fn retention(&self) -> Retention {
        if self.is_durable() { Retention::UntilArchived } else { Retention::Forget }
    }

    pub(crate) fn bans(&self) -> BanBook {
        match &self.0 {
            Some(state) => BanBook::in_file(state.dir().join(BANS), Arc::new(DefaultBans)),
            None => BanBook::in_memory(Arc::new(DefaultBans)),
        }
    }

    pub(crate) fn vault(&self) -> Option<StateVault> {
        self.0.as_ref().map(StateVault::new)
    }

    /// Lets a web server keep its inboxes, and the nonces that must not come again.
    pub(crate) async fn furnish(&self, parts: &mut HttpServerParts, clock: Clock) -> Result<(), ProgramError> {
        if let Some(state) = &self.0 {
            let now = clock.now();
            parts.nonces = Arc::new(StateNonces::load(state, now).await.map_err(refuse)?);
            let inboxes = StateInboxes::load(state, now, parts.config.inbox_ttl).await.map_err(refuse)?;
            parts.inboxes = Arc::new(inboxes);
        }
        Ok(())
    }

    /// Waits until everything is written. The directory is free when the last actor that writes to it is gone too.
    pub(crate) async fn close(self) {
        if let Some(state) = self.0 {
            state.close().await;
        }
    }
}

fn refuse(error: StateError) -> ProgramError {
    ProgramError::State(error.to_string())
}
