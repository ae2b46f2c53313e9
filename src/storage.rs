//! The storage of a program: a state directory, or none.

mod closing;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::closing::{Closing, UntilClosed};
use crate::{
    actors::{
        bans::{BanBook, DefaultBans},
        invites::InviteBook,
        journal::{Journal, MemoryJournal},
        runtime::Clock,
        standing::{
            boards::{BoardStore, MemoryBoards},
            history::{HistoryStore, MemoryHistory},
        },
        state::{
            State, StateError, Table, boards::StateBoards, history::StateHistory, inboxes::StateInboxes,
            nonces::StateNonces, vault::StateVault,
        },
        transport::http::server::HttpServerParts,
    },
    controller::Settled,
    error::ProgramError,
    events::Printer,
    protocol::{id::CohortId, identity::Identity, network::Network, update::SignedUpdate},
};

/// The file of offences and bans in a state directory.
pub(crate) const BANS: &str = "bans.redb";

/// The file of invites in a state directory.
pub(crate) const INVITES: &str = "invites.redb";

/// The table of a program's own data.
pub(crate) const PROGRAM: &str = "program";
/// The key of the [`Profile`].
const PROFILE: &str = "profile";
/// The key of the cohorts that count for `serve --cohorts`.
const COUNTED: &str = "counted";
/// The key of the updates that were given to the controller to be announced without a cohort.
const PREPARED: &str = "prepared";
/// The key of what is settled of a member's updates.
const SETTLED: &str = "settled";

/// The user of a state directory, and its terms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Profile {
    role: String,
    did: String,
    network: Network,
    terms: Value,
}

/// An open state directory, or none.
#[derive(Clone)]
pub(crate) struct Storage {
    state: Option<State>,
    closing: Closing,
}

impl Storage {
    /// Opens the state directory, if one is configured. Otherwise warns; `lost` states what a kill costs.
    pub(crate) fn open(dir: Option<&Path>, lost: &str, printer: &Printer) -> Result<Self, ProgramError> {
        match dir {
            Some(dir) => Ok(Self { state: Some(State::open(dir).map_err(refuse)?), closing: Closing::default() }),
            None => {
                printer.warn(&format!("nothing is stored (no --state DIR): if this program is killed, {lost}"));
                Ok(Self { state: None, closing: Closing::default() })
            }
        }
    }

    /// Checks that the directory belongs to this program: sessions of another identity could never continue. Reports
    /// how the terms differ from the last run.
    pub(crate) async fn check_owner(
        &self,
        role: &str,
        identity: &Identity,
        network: Network,
        terms: Value,
        printer: &Printer,
    ) -> Result<(), ProgramError> {
        self.check_role(role, identity.did().to_string(), network, terms, printer).await
    }

    /// The same for a program that has several identities; `did` stands for them.
    pub(crate) async fn check_role(
        &self,
        role: &str,
        did: String,
        network: Network,
        terms: Value,
        printer: &Printer,
    ) -> Result<(), ProgramError> {
        let Some(table) = self.program() else { return Ok(()) };
        let now = Profile { role: role.to_owned(), did, network, terms };
        let was: Option<Profile> = read(&table, PROFILE).await?;
        if let Some(was) = &was {
            let facts = |of: &Profile| {
                [("command", of.role.clone()), ("DID", of.did.clone()), ("network", of.network.to_string())]
            };
            for ((what, was), (_, now)) in facts(was).into_iter().zip(facts(&now)) {
                if was != now {
                    return Err(ProgramError::Usage(format!(
                        "the state directory is in use with the {what} {was}, not {now}: give another --state DIR"
                    )));
                }
            }
            let changed = differences(&was.terms, &now.terms);
            if !changed.is_empty() {
                printer.warn(&format!(
                    "other terms than in the last run with this state: {}. They apply to new cohorts; running cohorts \
                     continue under their old terms",
                    changed.join(", ")
                ));
            }
        }
        if was.as_ref() != Some(&now) {
            write(&table, PROFILE, &now).await?;
        }
        Ok(())
    }

    /// The cohorts that counted in earlier runs, and whether each was signed.
    pub(crate) async fn counted(&self) -> Result<BTreeMap<CohortId, bool>, ProgramError> {
        match self.program() {
            Some(table) => Ok(read(&table, COUNTED).await?.unwrap_or_default()),
            None => Ok(BTreeMap::new()),
        }
    }

    /// Persists the cohorts that count; an empty map when all requested cohorts are done.
    pub(crate) async fn count(&self, counted: &BTreeMap<CohortId, bool>) -> Result<(), ProgramError> {
        let Some(table) = self.program() else { return Ok(()) };
        if counted.is_empty() {
            return table.remove(COUNTED).await.map_err(refuse);
        }
        write(&table, COUNTED, counted).await
    }

    /// The updates that were given to the controller to be announced without a cohort.
    pub(crate) async fn prepared(&self) -> Result<Vec<SignedUpdate>, ProgramError> {
        match &self.state {
            Some(state) => prepared(state).await,
            None => Ok(Vec::new()),
        }
    }

    /// Persists that this update was given to the controller: it may be announced from then on.
    pub(crate) async fn prepare(&self, update: &SignedUpdate) -> Result<(), ProgramError> {
        match &self.state {
            Some(state) => prepare_again(state, update).await,
            None => Ok(()),
        }
    }

    /// The state directory.
    pub(crate) fn state(&self) -> Option<&State> {
        self.state.as_ref()
    }

    /// What is settled of the member's updates.
    pub(crate) async fn settled(&self) -> Result<Vec<Settled>, ProgramError> {
        match &self.state {
            Some(state) => settled(state).await,
            None => Ok(Vec::new()),
        }
    }

    /// Persists what is settled of the member's updates: all of it.
    pub(crate) async fn settle(&self, news: &[Settled]) -> Result<(), ProgramError> {
        match &self.state {
            Some(state) => settle(state, news).await,
            None => Ok(()),
        }
    }

    fn program(&self) -> Option<Table> {
        self.state.as_ref().map(|state| state.table(PROGRAM))
    }

    /// Whether the work in progress continues at the next start.
    pub(crate) fn is_durable(&self) -> bool {
        self.state.is_some()
    }

    pub(crate) fn journal(&self) -> Arc<dyn Journal> {
        match &self.state {
            Some(state) => Arc::new(UntilClosed { journal: state.journal(), closing: self.closing.clone() }),
            None => Arc::new(MemoryJournal::new()),
        }
    }

    /// The boards of standing cohorts.
    pub(crate) fn boards(&self) -> Arc<dyn BoardStore> {
        match &self.state {
            Some(state) => Arc::new(StateBoards::new(state)),
            None => Arc::new(MemoryBoards::default()),
        }
    }

    /// Where it is stored what standing cohorts have announced.
    pub(crate) fn history(&self) -> Arc<dyn HistoryStore> {
        match &self.state {
            Some(state) => Arc::new(StateHistory::new(state)),
            None => Arc::new(MemoryHistory::default()),
        }
    }

    /// The ban list. If it cannot be read, the error is reported before any member is admitted.
    pub(crate) fn bans(&self) -> Result<BanBook, ProgramError> {
        match &self.state {
            Some(state) => BanBook::open(&state.dir().join(BANS), Arc::new(DefaultBans))
                .map_err(|error| ProgramError::State(error.to_string())),
            None => Ok(BanBook::in_memory(Arc::new(DefaultBans))),
        }
    }

    /// The invites; `None` without a state directory.
    pub(crate) fn invites(&self) -> Result<Option<InviteBook>, ProgramError> {
        let open = |state: &State| InviteBook::open(&state.dir().join(INVITES));
        self.state.as_ref().map(open).transpose().map_err(|error| ProgramError::State(error.to_string()))
    }

    pub(crate) fn vault(&self) -> Option<StateVault> {
        self.state.as_ref().map(StateVault::new)
    }

    /// Makes a web server persist its inboxes, and the nonces that must not be accepted twice.
    pub(crate) async fn configure_server(
        &self,
        parts: &mut HttpServerParts,
        clock: Clock,
    ) -> Result<(), ProgramError> {
        if let Some(state) = &self.state {
            let now = clock.now();
            parts.nonces = Arc::new(StateNonces::load(state, now).await.map_err(refuse)?);
            let inboxes = StateInboxes::load(state, now, parts.config.inbox_ttl).await.map_err(refuse)?;
            parts.inboxes = Arc::new(inboxes);
        }
        Ok(())
    }

    /// Waits until all writes are done. The directory is released when the last actor that writes to it is gone.
    pub(crate) async fn close(self) {
        self.closing.begin();
        if let Some(state) = self.state {
            state.close().await;
        }
    }
}

/// The command that has used a state directory.
///
/// # Errors
/// The directory cannot be read.
pub(crate) async fn role_of(state: &State) -> Result<Option<String>, ProgramError> {
    let profile: Option<Profile> = read(&state.table(PROGRAM), PROFILE).await?;
    Ok(profile.map(|profile| profile.role))
}

/// The DID to which a member's state directory belongs; `None` if `join` has not used it yet.
///
/// # Errors
/// The directory cannot be read; [`ProgramError::Usage`] if it is a service's.
pub(crate) async fn member_of(state: &State) -> Result<Option<String>, ProgramError> {
    let profile: Option<Profile> = read(&state.table(PROGRAM), PROFILE).await?;
    match profile {
        Some(Profile { role, .. }) if role != "join" => Err(ProgramError::Usage(format!(
            "the state directory is in use with the command {role}, and a vault is a member's: give another --state DIR"
        ))),
        profile => Ok(profile.map(|profile| profile.did)),
    }
}

/// The updates in a member's state directory that were given to its controller to be announced without a cohort.
pub(crate) async fn prepared(state: &State) -> Result<Vec<SignedUpdate>, ProgramError> {
    Ok(read(&state.table(PROGRAM), PREPARED).await?.unwrap_or_default())
}

/// Stores these in the place of a list that cannot be read.
pub(crate) async fn replace_prepared(state: &State, updates: &[SignedUpdate]) -> Result<(), ProgramError> {
    write(&state.table(PROGRAM), PREPARED, &updates).await
}

/// Adds one to them.
pub(crate) async fn prepare(state: &State, update: &SignedUpdate) -> Result<(), ProgramError> {
    let mut known = prepared(state).await?;
    if !known.contains(update) {
        known.push(update.clone());
        write(&state.table(PROGRAM), PREPARED, &known).await?;
    }
    Ok(())
}

/// The same for one that its controller wants to announce now: a statement that it never will be holds no longer.
pub(crate) async fn prepare_again(state: &State, update: &SignedUpdate) -> Result<(), ProgramError> {
    let mut known = settled(state).await?;
    known.retain(|known| !known.drops_alone(update));
    settle(state, &known).await?;
    prepare(state, update).await
}

/// What is settled of a member's updates.
pub(crate) async fn settled(state: &State) -> Result<Vec<Settled>, ProgramError> {
    Ok(read(&state.table(PROGRAM), SETTLED).await?.unwrap_or_default())
}

/// Replaces it.
pub(crate) async fn settle(state: &State, now: &[Settled]) -> Result<(), ProgramError> {
    if settled(state).await? == now {
        return Ok(());
    }
    write(&state.table(PROGRAM), SETTLED, &now).await
}

async fn read<T: for<'de> Deserialize<'de>>(table: &Table, key: &str) -> Result<Option<T>, ProgramError> {
    let Some(value) = table.get(key).await.map_err(refuse)? else { return Ok(None) };
    serde_json::from_slice(&value)
        .map_err(|error| ProgramError::State(format!("its {key} cannot be read: {error}")))
}

async fn write<T: Serialize>(table: &Table, key: &str, value: &T) -> Result<(), ProgramError> {
    let value = serde_json::to_vec(value).map_err(|error| ProgramError::Internal(error.to_string()))?;
    table.put(key, value).await.map_err(refuse)
}

/// The fields of two objects that differ, and how.
fn differences(was: &Value, now: &Value) -> Vec<String> {
    let empty = serde_json::Map::new();
    let (was, now) = (was.as_object().unwrap_or(&empty), now.as_object().unwrap_or(&empty));
    let names: std::collections::BTreeSet<&String> = was.keys().chain(now.keys()).collect();
    let of = |fields: &serde_json::Map<String, Value>, name: &str| fields.get(name).cloned().unwrap_or(Value::Null);
    let differs = names.into_iter().filter(|name| of(was, name) != of(now, name));
    differs.map(|name| format!("{name} was {}, is {}", of(was, name), of(now, name))).collect()
}

fn refuse(error: StateError) -> ProgramError {
    ProgramError::State(error.to_string())
}
