//! Sidecar Data (rule C1): what a controller gives a resolver beside the chain. Read once; what cannot be looked up is
//! left out, and what nothing refers to has no effect (rule R-15).

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map, Value};

use crate::{
    hash::{DocumentHash, SmtHash},
    jcs::{self, JcsError},
    sidecar::MemberRecord,
    update::{SignedUpdate, UpdateError},
};

/// The deepest nesting of what is looked up: what the JSON parser admits. A value that a caller has composed could
/// nest deeper.
const MAX_DEPTH: usize = jcs::MAX_DEPTH - 1;

/// Why JSON is not Sidecar Data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SidecarError {
    /// Not JSON.
    #[error("the Sidecar Data are not JSON: {0}")]
    NotJson(String),
    /// Not an object.
    #[error("the Sidecar Data are not an object")]
    NotAnObject,
    /// A member that has to be a list is none.
    #[error("{0} of the Sidecar Data is not an array")]
    NotAnArray(&'static str),
}

/// An update as it was given: an object with a canonical form, or why it cannot be an update.
pub(super) type GivenUpdate = Result<SignedUpdate, Arc<UpdateError>>;

/// Sidecar Data, of one file or of several ([`merge`](Self::merge)): each of a member's records holds one round, and a
/// resolver needs all of them.
///
/// Other members than `genesisDocument`, `updates`, `casUpdates` and `smtProofs` are not looked at.
#[derive(Clone, Debug, Default)]
pub struct SidecarData {
    /// All that were given; the identifier determines which one counts.
    pub(super) genesis_documents: Vec<Value>,
    pub(super) updates: BTreeMap<DocumentHash, GivenUpdate>,
    pub(super) announcements: BTreeMap<DocumentHash, Value>,
    /// By `id`, then by hash: a file may have the proofs of all members of a cohort. A proof is read when a signal
    /// refers to it, so that a malformed one that nothing needs is not a fault.
    pub(super) proofs: BTreeMap<SmtHash, BTreeMap<DocumentHash, Value>>,
    left_out: usize,
}

impl SidecarData {
    /// Reads JSON text in UTF-8, with or without a byte order mark. The file that `join` writes for a member, which
    /// has Sidecar Data in its `sidecar`, is read too.
    ///
    /// # Errors
    /// [`SidecarError`]. An entry that cannot be looked up is not an error: see [`left_out`](Self::left_out).
    pub fn from_slice(json: &[u8]) -> Result<Self, SidecarError> {
        let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
        let value = serde_json::from_slice(json).map_err(|error| SidecarError::NotJson(error.to_string()))?;
        Self::from_value(value)
    }

    /// The same for JSON that is parsed already.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub fn from_value(value: Value) -> Result<Self, SidecarError> {
        let Value::Object(mut fields) = value else { return Err(SidecarError::NotAnObject) };
        let mut data = Self::default();
        if let Some(Value::Object(inner)) = fields.get_mut("sidecar") {
            let inner = std::mem::take(inner);
            data.add(inner)?;
        }
        data.add(fields)?;
        Ok(data)
    }

    /// The Sidecar Data of a member's record; see [`MemberRecord::sidecar`].
    pub fn from_record(record: &MemberRecord, genesis_document: Option<&Value>) -> Self {
        let mut data = Self::default();
        if let Value::Object(fields) = record.sidecar(genesis_document) {
            // What a record writes are lists.
            let _ = data.add(fields);
        }
        data
    }

    /// Adds what `other` has.
    pub fn merge(&mut self, other: Self) {
        for document in other.genesis_documents {
            self.add_genesis_document(document);
        }
        for (hash, update) in other.updates {
            self.updates.entry(hash).or_insert(update);
        }
        for (hash, announcement) in other.announcements {
            self.announcements.entry(hash).or_insert(announcement);
        }
        for (id, proofs) in other.proofs {
            self.proofs.entry(id).or_default().extend(proofs);
        }
        self.left_out += other.left_out;
    }

    /// How many entries cannot be looked up: no canonical form and so no hash, or, of a proof, an `id` that is not
    /// base64url of 32 bytes. They are as if they were not there (rules C4 and M-10).
    pub const fn left_out(&self) -> usize {
        self.left_out
    }

    fn add(&mut self, mut fields: Map<String, Value>) -> Result<(), SidecarError> {
        if let Some(document) = fields.remove("genesisDocument").filter(|document| !document.is_null()) {
            self.add_genesis_document(document);
        }
        let mut list = |name: &'static str| match fields.remove(name) {
            Some(Value::Array(entries)) => Ok(entries),
            Some(Value::Null) | None => Ok(Vec::new()),
            Some(_) => Err(SidecarError::NotAnArray(name)),
        };
        let (updates, announcements, proofs) = (list("updates")?, list("casUpdates")?, list("smtProofs")?);
        for value in updates {
            match read_update(value) {
                Ok((hash, update)) => {
                    self.updates.entry(hash).or_insert(update);
                }
                Err(_) => self.left_out += 1,
            }
        }
        for announcement in announcements {
            match hash(&announcement) {
                Ok(hash) => {
                    self.announcements.entry(hash).or_insert(announcement);
                }
                Err(_) => self.left_out += 1,
            }
        }
        for proof in proofs {
            let id = proof.get("id").and_then(Value::as_str).and_then(|id| id.parse().ok());
            match id.zip(hash(&proof).ok()) {
                Some((id, hash)) => {
                    self.proofs.entry(id).or_default().insert(hash, proof);
                }
                None => self.left_out += 1,
            }
        }
        Ok(())
    }

    fn add_genesis_document(&mut self, document: Value) {
        if !self.genesis_documents.contains(&document) {
            self.genesis_documents.push(document);
        }
    }
}

/// The JSON Document Hash, of what can be looked up by it.
pub(super) fn hash(value: &Value) -> Result<DocumentHash, JcsError> {
    jcs::check(value, MAX_DEPTH)?;
    jcs::document_hash(value)
}

/// An update by its hash (rule U-18).
pub(super) fn read_update(mut value: Value) -> Result<(DocumentHash, GivenUpdate), JcsError> {
    let hash = hash(&value)?;
    jcs::unify_numbers(&mut value);
    Ok((hash, SignedUpdate::from_value(value).map_err(Arc::new)))
}
