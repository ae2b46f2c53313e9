//! Sidecar Data of several sources, and which of them has what.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};

use crate::{
    protocol::{
        did::{Did, Genesis},
        hash::{DocumentHash, SmtHash},
        jcs,
        resolution::{SidecarData, SidecarError},
        update::SignedUpdate,
    },
    vault::{VaultContents, sidecar::sidecar},
};

/// The Sidecar Data of all sources.
#[derive(Clone, Debug, Default)]
pub struct Given {
    data: SidecarData,
    /// The first source of each document, by its hash; of an SMT proof, by its root.
    from: BTreeMap<[u8; 32], Arc<str>>,
    /// The entries of each list of the Sidecar Data, by their hash.
    lists: BTreeMap<&'static str, BTreeMap<[u8; 32], Value>>,
}

impl Given {
    /// Adds Sidecar Data, or a file of `join` that has some. `name` is the source's name in messages.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub fn add(&mut self, value: Value, name: &str) -> Result<(), SidecarError> {
        let name: Arc<str> = name.into();
        for part in [value.get("sidecar"), Some(&value)].into_iter().flatten() {
            self.note(part, &name);
        }
        self.data.merge(SidecarData::from_value(value)?);
        Ok(())
    }

    /// Adds the vault's entries of `did`, and the updates that were prepared for an announcement without a cohort.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub fn add_vault(&mut self, contents: &VaultContents, did: &Did, name: &str) -> Result<(), SidecarError> {
        self.add(sidecar(contents.of(did)).data, name)?;
        let prepared: Vec<Value> = contents.prepared.iter().map(SignedUpdate::value).cloned().collect();
        self.add(json!({ "updates": prepared }), name)
    }

    /// Adds what `other` has.
    pub fn extend(&mut self, other: Self) {
        self.data.merge(other.data);
        for (hash, name) in other.from {
            self.from.entry(hash).or_insert(name);
        }
    }

    /// The data.
    pub const fn data(&self) -> &SidecarData {
        &self.data
    }

    /// The source of the document with that hash, or of the SMT proof with that root.
    pub fn source_of(&self, hash: &[u8; 32]) -> Option<&str> {
        self.from.get(hash).map(|name| &**name)
    }

    /// The update with that hash.
    pub fn update(&self, hash: &DocumentHash) -> Option<SignedUpdate> {
        SignedUpdate::from_value(self.lists.get("updates")?.get(hash.as_bytes())?.clone()).ok()
    }

    /// The genesis document of an EXTERNAL identifier.
    pub fn genesis_document(&self, did: &Did) -> Option<&Value> {
        match did.genesis() {
            Genesis::External(hash) => self.lists.get("genesisDocument")?.get(hash),
            Genesis::Key(_) => None,
        }
    }

    /// All of it as one object of Sidecar Data for a resolver of `did`, with `update` beside the updates that are known.
    pub fn with(&self, did: &Did, update: &SignedUpdate) -> Value {
        let list = |field: &str| self.lists.get(field).into_iter().flatten();
        let of_did = |(_, update): &(_, &Value)| {
            update.pointer("/proof/invocationTarget").and_then(Value::as_str) == Some(did.as_str())
        };
        let updates = list("updates").filter(of_did).map(|(hash, update)| (*hash, update.clone()));
        let updates: BTreeMap<_, _> =
            updates.chain([(*update.hash().as_bytes(), update.value().clone())]).collect();
        let mut updates: Vec<Value> = updates.into_values().collect();
        updates.sort_by_key(|update| update.get("targetVersionId").and_then(Value::as_u64));
        let mut sidecar = json!({ "@context": "https://btcr2.dev/context/v1" });
        if let Some(document) = self.genesis_document(did) {
            sidecar["genesisDocument"] = document.clone();
        }
        sidecar["updates"] = Value::Array(updates);
        for field in ["casUpdates", "smtProofs"] {
            let entries: Vec<Value> = list(field).map(|(_, entry)| entry.clone()).collect();
            if !entries.is_empty() {
                sidecar[field] = Value::Array(entries);
            }
        }
        sidecar
    }

    fn note(&mut self, part: &Value, name: &Arc<str>) {
        for field in ["updates", "casUpdates", "smtProofs", "genesisDocument"] {
            let entries = match part.get(field) {
                Some(Value::Array(entries)) => entries.iter().collect(),
                Some(entry) => vec![entry],
                None => Vec::new(),
            };
            for entry in entries {
                if let Ok(hash) = jcs::document_hash(entry) {
                    self.lists.entry(field).or_default().entry(*hash.as_bytes()).or_insert_with(|| entry.clone());
                }
            }
        }
        let list = |field: &str| part.get(field).and_then(Value::as_array).into_iter().flatten();
        let documents = list("updates").chain(list("casUpdates")).chain(part.get("genesisDocument"));
        let documents = documents.filter_map(|document| jcs::document_hash(document).ok());
        let roots = list("smtProofs").filter_map(|proof| proof.get("id")?.as_str()?.parse::<SmtHash>().ok());
        let hashes = documents.map(|hash| *hash.as_bytes()).chain(roots.map(|root| *root.as_bytes()));
        for hash in hashes {
            self.from.entry(hash).or_insert_with(|| Arc::clone(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_source_of_each_document_is_known() {
        let (update, announcement) = (json!({ "patch": [] }), json!({ "did:btcr2:a": "b" }));
        let root = SmtHash::from_bytes([7; 32]);
        let mut given = Given::default();
        given.add(json!({ "sidecar": { "updates": [update] } }), "first").unwrap();
        given.add(json!({ "updates": [update], "casUpdates": [announcement] }), "second").unwrap();
        given.add(json!({ "smtProofs": [{ "id": root }], "genesisDocument": { "id": 1 } }), "third").unwrap();
        let of = |value: &Value| given.source_of(jcs::document_hash(value).unwrap().as_bytes());
        assert_eq!((of(&update), of(&announcement)), (Some("first"), Some("second")));
        assert_eq!((of(&json!({ "id": 1 })), given.source_of(root.as_bytes())), (Some("third"), Some("third")));
        assert_eq!(of(&json!({})), None);
        assert!(given.add(json!([]), "a list").is_err() && given.add(json!({ "updates": 1 }), "no list").is_err());
    }
}
