//! The control socket: a UNIX socket in the state directory, for the directory's owner alone.
//!
//! Each line is a JSON object. A request is `{"v":1,"op":…}` with the fields of a [`Request`]; the answer is `{"v":1,"ok":true,"result":…}` or
//! `{"v":1,"ok":false,"error":"…"}`. A line has at most [`MAX_LINE`] bytes. A connection may make several requests, one after the other.

mod client;
mod offline;
#[cfg(unix)]
pub(super) mod server;
#[cfg(all(test, unix))]
mod tests;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::queue::NewItem;
use crate::{
    cost::WalletKind,
    protocol::{did::Did, id::CohortId, time::Timestamp},
};

#[cfg(unix)]
pub(super) use self::offline::{costs_of, counts, shown};
pub use self::{
    client::{ControlError, ask},
    offline::{OfflineError, offline},
};

/// The version of the requests.
pub const VERSION: u64 = 1;

/// The longest line, in bytes. An update has at most a megabyte, and a request may have it as a patch and signed.
pub const MAX_LINE: usize = 4 << 20;

/// The most entries of the log in one answer.
pub const MOST_LOG: usize = 2_000;

/// A request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// What runs: seats, queue, requests that wait.
    Status,
    /// The updates in the queue.
    Queue {
        /// Of this DID only.
        #[serde(default)]
        did: Option<Did>,
        /// Also those that are over.
        #[serde(default)]
        all: bool,
    },
    /// Put an update into the queue.
    Add {
        /// The update.
        item: Box<NewItem>,
    },
    /// Take an update back that was not submitted.
    Cancel {
        /// Its number.
        id: u64,
    },
    /// The last entries of the log.
    Log {
        /// How many.
        most: usize,
    },
    /// The requests that wait for a decision.
    Pending,
    /// Approve a request.
    Approve {
        /// Its number.
        id: u64,
    },
    /// Reject a request.
    Reject {
        /// Its number.
        id: u64,
        /// Why.
        #[serde(default)]
        reason: Option<String>,
    },
    /// The DIDs, and where they are registered.
    Dids,
    /// What the seats have cost: a [`Report`](crate::costs::Report).
    Costs {
        /// What a wallet would spend for an update without a cohort.
        #[serde(default)]
        wallet: WalletKind,
    },
    /// One update of the queue, with what it changes.
    Show {
        /// Its number.
        id: u64,
    },
    /// The document of a DID, as resolvers give it now.
    Document {
        /// The DID.
        did: Did,
    },
    /// The health of a DID, as `check` judges it: a [`Report`](crate::check::Report).
    Check {
        /// The DID.
        did: Did,
    },
    /// Write a backup now.
    Backup,
    /// A new address of the page, by which one logs in once.
    ConsoleUrl,
    /// A backup was made, of that time.
    BackupMade {
        /// The time.
        at: Timestamp,
    },
    /// Make EXTERNAL DIDs whose genesis documents list a cohort's beacon, and register them.
    Mint {
        /// The seed, by its name; the only one if there is one.
        #[serde(default)]
        seat: Option<String>,
        /// The cohort; the only one if there is one.
        #[serde(default)]
        cohort_id: Option<CohortId>,
        /// The names of their identity files.
        names: Vec<String>,
        /// List no Singleton beacon of the DID's own key.
        #[serde(default)]
        no_singleton: bool,
    },
    /// Take DIDs out of a cohort: by an update that it announces.
    Leave {
        /// The DIDs.
        #[serde(default)]
        dids: Vec<Did>,
        /// All that are registered there.
        #[serde(default)]
        all: bool,
        /// The cohort.
        cohort_id: CohortId,
        /// The cohort whose beacon takes the place of the other.
        #[serde(default)]
        to: Option<CohortId>,
    },
    /// Prepare the update that takes a DID out of a dead cohort, for its Singleton beacon.
    Rescue {
        /// The DID.
        did: Did,
        /// The cohort; the only one whose beacon the document lists, if there is one.
        #[serde(default)]
        cohort_id: Option<CohortId>,
        /// Its address, with the cohort, where there is no seat in it any more.
        #[serde(default)]
        address: Option<String>,
        /// The cohort whose beacon takes the place of the other.
        #[serde(default)]
        to: Option<CohortId>,
        /// The update that was submitted to a cohort, in place of a new one.
        #[serde(default)]
        pending: bool,
    },
}

/// The socket of a state directory.
pub fn socket_of(state: &Path) -> PathBuf {
    state.join("control.sock")
}

/// The request in a line.
///
/// # Errors
/// Why it is none, in words.
pub fn parse(line: &[u8]) -> Result<Request, String> {
    let mut value: Value = serde_json::from_slice(line).map_err(|error| format!("JSON expected: {error}"))?;
    let fields = value.as_object_mut().ok_or("an object expected")?;
    match fields.shift_remove("v").and_then(|version| version.as_u64()) {
        Some(VERSION) => {}
        Some(other) => return Err(format!("version {VERSION} expected, not {other}")),
        None => return Err(format!("\"v\":{VERSION} expected")),
    }
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// The line of a request.
///
/// # Errors
/// Those of serialization.
pub fn line_of(request: &Request) -> Result<String, serde_json::Error> {
    let mut value = serde_json::to_value(request)?;
    if let Some(fields) = value.as_object_mut() {
        fields.shift_insert(0, "v".to_owned(), json!(VERSION));
    }
    Ok(format!("{value}\n"))
}

/// The line of an answer.
pub fn line_of_answer(answer: &Result<Value, String>) -> String {
    let value = match answer {
        Ok(result) => json!({ "v": VERSION, "ok": true, "result": result }),
        Err(error) => json!({ "v": VERSION, "ok": false, "error": error }),
    };
    format!("{value}\n")
}
