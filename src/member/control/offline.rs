//! The same requests without an agent, on the state directory.

use std::path::Path;

use serde_json::{Value, json};

use super::{ControlError, MOST_LOG, Request, ask};
use crate::{
    actors::{
        runtime::Clock,
        state::{State, StateError},
    },
    cost::WalletKind,
    costs::{CostsError, Report, of_member},
    member::{
        backup,
        config::ROLE,
        queue::{Item, Queue, QueueError},
        report,
    },
    storage,
};

/// Why a request was not done on a state directory.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The agent has refused it.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The directory is not a member's.
    #[error("{0}")]
    NotAMember(String),
    /// The queue refuses it.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The records of costs cannot be read.
    #[error("costs: {0}")]
    Costs(CostsError),
    /// Only a running agent can do that.
    #[error("no agent runs with this state directory: start `member`")]
    NeedsAgent,
}

/// What is shown of items.
pub(crate) fn shown(items: &[Item], did: Option<&crate::protocol::did::Did>, all: bool) -> Value {
    let wanted = items.iter().filter(|item| did.is_none_or(|did| item.did == *did));
    Value::from_iter(wanted.filter(|item| all || !item.stage.is_over()).map(Item::summary))
}

/// How many items there are of each stage.
pub(crate) fn counts(items: &[Item]) -> Value {
    let mut counts = json!({});
    for item in items {
        let known = counts[item.stage.as_str()].as_u64().unwrap_or(0);
        counts[item.stage.as_str()] = json!(known + 1);
    }
    counts
}

/// What the seats in a state directory have cost.
pub(crate) async fn costs_of(state: &State, wallet: WalletKind) -> Result<Report, CostsError> {
    Ok(Report::of(of_member(state).await?, wallet))
}

/// Asks the agent of a state directory, or does the request on the directory if no agent runs.
///
/// # Errors
/// [`OfflineError`].
pub async fn offline(directory: &Path, request: Request) -> Result<Value, OfflineError> {
    if let Some(answer) = ask(directory, &request)? {
        return Ok(answer);
    }
    let reads = matches!(
        request,
        Request::Status | Request::Queue { .. } | Request::Log { .. } | Request::Pending | Request::Costs { .. }
    );
    let state = match reads {
        true => State::open_to_read(directory)?,
        false => State::open_existing(directory)?,
    };
    let done = on_state(&state, request).await;
    state.close().await;
    done
}

async fn on_state(state: &State, request: Request) -> Result<Value, OfflineError> {
    let role = storage::role_of(state).await.map_err(|error| OfflineError::NotAMember(error.to_string()))?;
    if let Some(role) = role.filter(|role| role != ROLE) {
        let problem = format!("the state directory is in use with the command {role}, not with `member`");
        return Err(OfflineError::NotAMember(problem));
    }
    let queue = Queue::open(state, Clock::system()).await?;
    Ok(match request {
        Request::Status => json!({ "running": false, "queue": counts(&queue.list()) }),
        Request::Queue { did, all } => shown(&queue.list(), did.as_ref(), all),
        Request::Add { item } => queue.add(*item).await?.summary(),
        Request::Cancel { id } => queue.cancel(id).await?.summary(),
        Request::Log { most } => json!(report::entries(state, most.min(MOST_LOG)).await?),
        Request::Pending => json!([]),
        Request::Costs { wallet } => json!(costs_of(state, wallet).await.map_err(OfflineError::Costs)?),
        Request::BackupMade { at } => {
            backup::record(state, at).await?;
            json!({})
        }
        Request::Approve { .. }
        | Request::Reject { .. }
        | Request::Dids
        | Request::Show { .. }
        | Request::Document { .. }
        | Request::Check { .. }
        | Request::Backup
        | Request::ConsoleUrl
        | Request::Mint { .. }
        | Request::Leave { .. }
        | Request::Rescue { .. } => return Err(OfflineError::NeedsAgent),
    })
}
