//! Data of a DID that its vault has without a cohort's entry: what `vault recover` found again for the signals on the chain, and
//! verified by their hashes. Recovered updates are stored with those that were prepared without a cohort, so that no other one of their
//! version is signed, and here, so that they are known to be announced.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::digest;
use crate::{
    actors::state::{State, StateError, Table},
    protocol::{did::Did, hash::DocumentHash, update::SignedUpdate},
};

const PAGE: usize = 256;

/// What recovered data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RecoveredKind {
    /// The genesis document of an EXTERNAL identifier.
    GenesisDocument,
    /// A CAS Announcement.
    CasUpdate,
    /// The DID's own SMT proof of a signal, with its nonce (rule M-13).
    SmtProof,
    /// An update that a signal announces.
    Update,
}

/// A document that was recovered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recovered {
    /// Whose resolution needs it.
    pub did: Did,
    /// What it is.
    pub kind: RecoveredKind,
    /// The document.
    pub data: Value,
}

impl Recovered {
    /// An update of `did` that a signal announces.
    pub fn update(did: &Did, update: &SignedUpdate) -> Self {
        Self { did: did.clone(), kind: RecoveredKind::Update, data: update.value().clone() }
    }

    /// The order in which they are stored and compared.
    pub(super) fn key(&self) -> (Did, RecoveredKind, DocumentHash) {
        (self.did.clone(), self.kind, digest(&self.data))
    }
}

fn table(state: &State) -> Table {
    state.table("recovered")
}

/// All recovered data of a state directory, and the errors of entries that cannot be read.
pub(crate) async fn read(state: &State) -> Result<(Vec<Recovered>, Vec<String>), StateError> {
    let (table, mut found, mut problems, mut after) = (table(state), Vec::new(), Vec::new(), None);
    loop {
        let page = table.scan("", after, PAGE).await?;
        for (key, value) in &page.entries {
            match serde_json::from_slice(value) {
                Ok(recovered) => found.push(recovered),
                Err(error) => problems.push(damaged(key, &error.to_string())),
            }
        }
        problems.extend(page.damaged.iter().map(|key| damaged(key, "its checksum is wrong")));
        after = page.next;
        if after.is_none() {
            return Ok((found, problems));
        }
    }
}

fn damaged(key: &[u8], problem: &str) -> String {
    let key = String::from_utf8_lossy(key).replace('\0', " ");
    format!("the recovered document {key} is damaged: {problem}")
}

/// Stores a document. The same one again changes nothing; durable when this answers.
pub(crate) async fn store(state: &State, recovered: &Recovered) -> Result<(), StateError> {
    // What was read as JSON, or made of it, can be written.
    let Ok(value) = serde_json::to_vec(recovered) else { return Ok(()) };
    let (did, kind, hash) = recovered.key();
    table(state).put(format!("{did}\0{kind:?}\0{hash}"), value).await
}
