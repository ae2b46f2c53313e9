//! What controllers do to their documents, as patches: keys, services, beacons, deactivation.
//!
//! A patch is made for one document, whose hash the update states, so that its paths cannot name another member. Whether the
//! patched document should be announced is another question: see [`concerns`](crate::document::concerns).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    document::{self, absolute},
    key::PublicKey,
};

/// What a verification method may be used for (DID Core v1.1, "Verification Relationships").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Relationship {
    /// To prove control of the DID.
    Authentication,
    /// To sign statements, e.g. credentials.
    AssertionMethod,
    /// To receive encrypted messages.
    KeyAgreement,
    /// To update the document.
    CapabilityInvocation,
    /// To delegate a right.
    CapabilityDelegation,
}

impl Relationship {
    /// Every relationship.
    pub const ALL: [Self; 5] = [
        Self::Authentication,
        Self::AssertionMethod,
        Self::KeyAgreement,
        Self::CapabilityInvocation,
        Self::CapabilityDelegation,
    ];

    /// Those of the key of a KEY identifier.
    pub const INITIAL: [Self; 4] =
        [Self::Authentication, Self::AssertionMethod, Self::CapabilityInvocation, Self::CapabilityDelegation];

    /// The member of the document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Authentication => "authentication",
            Self::AssertionMethod => "assertionMethod",
            Self::KeyAgreement => "keyAgreement",
            Self::CapabilityInvocation => "capabilityInvocation",
            Self::CapabilityDelegation => "capabilityDelegation",
        }
    }
}

/// A change of a document. Ids may be relative to the document's own, as `#key-2` is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "edit", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Edit {
    /// Adds a Multikey.
    AddKey {
        /// Its id.
        method: String,
        /// The key.
        key: PublicKey,
        /// What it may be used for.
        relationships: Vec<Relationship>,
    },
    /// Puts a Multikey in the place of another method: in `verificationMethod`, and in every relationship that has the other.
    ReplaceKey {
        /// The id of the method that is removed.
        old: String,
        /// The id of the new one.
        method: String,
        /// The new key.
        key: PublicKey,
    },
    /// Removes a method from `verificationMethod` and from every relationship.
    RemoveKey {
        /// Its id.
        method: String,
    },
    /// Adds a service, or a beacon.
    AddService {
        /// Its id.
        id: String,
        /// Its `type`.
        kind: String,
        /// Its `serviceEndpoint`.
        endpoint: Value,
    },
    /// Removes a service, or a beacon.
    RemoveService {
        /// Its id.
        id: String,
    },
    /// Deactivates the DID (rule U-21).
    Deactivate,
}

/// Why there is no patch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The id is in use.
    #[error("the document has {0} already")]
    IdInUse(String),
    /// Nothing has the id.
    #[error("the document has no {what} {id}")]
    Missing {
        /// `key` or `service`.
        what: &'static str,
        /// The absolute id.
        id: String,
    },
    /// The member of the document is not a list.
    #[error("{0} of the document is not an array")]
    NotAList(&'static str),
}

impl Edit {
    /// The patch that makes this change to `document`.
    ///
    /// # Errors
    /// [`EditError`].
    pub fn patch(&self, document: &Value) -> Result<Value, EditError> {
        let mut patch = PatchOf { document, operations: Vec::new() };
        match self {
            Self::AddKey { method, key, relationships } => {
                let method = patch.unused(method)?;
                patch.append("verificationMethod", multikey(document, &method, key))?;
                for relationship in relationships {
                    patch.append(relationship.name(), json!(method))?;
                }
            }
            Self::ReplaceKey { old, method, key } => {
                let (old, method) = (absolute(document, old), patch.unused(method)?);
                let listed = patch.places("verificationMethod", &old)?;
                let mut found = !listed.is_empty();
                match listed.first() {
                    Some(place) => {
                        patch.replace("verificationMethod", *place, multikey(document, &method, key));
                    }
                    None => patch.append("verificationMethod", multikey(document, &method, key))?,
                }
                for relationship in Relationship::ALL.map(Relationship::name) {
                    for place in patch.places(relationship, &old)? {
                        patch.replace(relationship, place, json!(method));
                        found = true;
                    }
                }
                if !found {
                    return Err(EditError::Missing { what: "key", id: old });
                }
            }
            Self::RemoveKey { method } => {
                let method = absolute(document, method);
                let lists = Relationship::ALL.map(Relationship::name);
                for list in ["verificationMethod"].into_iter().chain(lists) {
                    patch.remove(list, &method)?;
                }
                if patch.operations.is_empty() {
                    return Err(EditError::Missing { what: "key", id: method });
                }
            }
            Self::AddService { id, kind, endpoint } => {
                let id = patch.unused(id)?;
                patch.append("service", json!({ "id": id, "type": kind, "serviceEndpoint": endpoint }))?;
            }
            Self::RemoveService { id } => {
                let id = absolute(document, id);
                patch.remove("service", &id)?;
                if patch.operations.is_empty() {
                    return Err(EditError::Missing { what: "service", id });
                }
            }
            Self::Deactivate => {
                patch.operations.push(json!({ "op": "add", "path": "/deactivated", "value": true }));
            }
        }
        Ok(Value::Array(patch.operations))
    }
}

/// An id of the form `DID#NAME`, or `DID#NAME-2` and so on, that no method and no service of `document` has.
pub fn unused_id(document: &Value, name: &str) -> String {
    let used = ids(document);
    let first = absolute(document, &format!("#{name}"));
    // There is one more candidate than ids in use.
    let numbered = (2..=used.len() + 2).map(|number| format!("{first}-{number}"));
    std::iter::once(first.clone()).chain(numbered).find(|id| !used.contains(id)).unwrap_or(first)
}

/// The absolute ids of all methods, embedded ones too, and services.
fn ids(document: &Value) -> Vec<String> {
    let lists = ["verificationMethod", "service"].into_iter().chain(Relationship::ALL.map(Relationship::name));
    let members = lists.filter_map(|list| document.get(list)?.as_array()).flatten();
    members.filter_map(|member| Some(absolute(document, member.get("id")?.as_str()?))).collect()
}

fn multikey(document: &Value, id: &str, key: &PublicKey) -> Value {
    json!({
        "id": id,
        "type": "Multikey",
        "controller": document.get("id"),
        "publicKeyMultibase": document::encode_multikey(key),
    })
}

struct PatchOf<'a> {
    document: &'a Value,
    operations: Vec<Value>,
}

impl PatchOf<'_> {
    /// `id` in its absolute form, if nothing has it.
    fn unused(&self, id: &str) -> Result<String, EditError> {
        let id = absolute(self.document, id);
        if ids(self.document).contains(&id) { Err(EditError::IdInUse(id)) } else { Ok(id) }
    }

    fn list(&self, name: &'static str) -> Result<&[Value], EditError> {
        match self.document.get(name) {
            None => Ok(&[]),
            Some(Value::Array(members)) => Ok(members),
            Some(_) => Err(EditError::NotAList(name)),
        }
    }

    /// Where `list` has the member with that absolute id, or a reference to it.
    fn places(&self, list: &'static str, id: &str) -> Result<Vec<usize>, EditError> {
        let named = |member: &Value| {
            let reference = member.as_str().or_else(|| member.get("id")?.as_str());
            reference.is_some_and(|reference| absolute(self.document, reference) == id)
        };
        let members = self.list(list)?.iter().enumerate();
        Ok(members.filter(|(_, member)| named(member)).map(|(place, _)| place).collect())
    }

    fn append(&mut self, list: &'static str, value: Value) -> Result<(), EditError> {
        self.list(list)?;
        let (path, value) = match self.document.get(list) {
            Some(_) => (format!("/{list}/-"), value),
            None => (format!("/{list}"), json!([value])),
        };
        self.operations.push(Value::Object(Map::from_iter([
            ("op".to_owned(), json!("add")),
            ("path".to_owned(), json!(path)),
            ("value".to_owned(), value),
        ])));
        Ok(())
    }

    fn replace(&mut self, list: &'static str, place: usize, value: Value) {
        self.operations.push(json!({ "op": "replace", "path": format!("/{list}/{place}"), "value": value }));
    }

    /// The last first, so that the places of the others stay.
    fn remove(&mut self, list: &'static str, id: &str) -> Result<(), EditError> {
        for place in self.places(list, id)?.into_iter().rev() {
            self.operations.push(json!({ "op": "remove", "path": format!("/{list}/{place}") }));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{document::invocation_methods, key::SecretKey, network::Network, patch::Patch};

    fn key(byte: u8) -> PublicKey {
        SecretKey::from_bytes(&[byte; 32]).unwrap().public_key()
    }

    fn document() -> Value {
        document::genesis_document(&key(1), Network::Regtest)
    }

    fn edited(document: &Value, edit: &Edit) -> Value {
        Patch::from_value(&edit.patch(document).unwrap()).unwrap().apply(document).unwrap()
    }

    #[test]
    fn keys_are_added_replaced_and_removed_in_all_places() {
        let (second, third) = ("did:btcr2:_#second".to_owned(), "did:btcr2:_#third".to_owned());
        let relationships = vec![Relationship::CapabilityInvocation, Relationship::KeyAgreement];
        let added = edited(&document(), &Edit::AddKey { method: "#second".to_owned(), key: key(2), relationships });
        assert_eq!(added["keyAgreement"], json!([second]));
        let methods: Vec<_> = invocation_methods(&added).collect();
        assert_eq!(methods, [("did:btcr2:_#initialKey".to_owned(), key(1)), (second.clone(), key(2))]);

        let old = "#initialKey".to_owned();
        let replaced = edited(&added, &Edit::ReplaceKey { old, method: third.clone(), key: key(3) });
        assert!(!replaced.to_string().contains("initialKey"));
        assert_eq!(replaced["authentication"], json!([third]));
        let methods: Vec<_> = invocation_methods(&replaced).collect();
        assert_eq!(methods, [(third, key(3)), (second.clone(), key(2))]);

        let removed = edited(&replaced, &Edit::RemoveKey { method: second });
        assert!(!removed.to_string().contains("second"));
        assert_eq!(removed["keyAgreement"], json!([]));
    }

    #[test]
    fn an_embedded_method_is_replaced_by_a_reference() {
        let mut embedded = document();
        let method = embedded["verificationMethod"][0].take();
        embedded.as_object_mut().unwrap().remove("verificationMethod");
        embedded["capabilityInvocation"] = json!([method]);
        let old = "#initialKey".to_owned();
        let replaced = edited(&embedded, &Edit::ReplaceKey { old, method: "#new".to_owned(), key: key(2) });
        assert_eq!(replaced["capabilityInvocation"], json!(["did:btcr2:_#new"]));
        assert_eq!(invocation_methods(&replaced).next(), Some(("did:btcr2:_#new".to_owned(), key(2))));
    }

    #[test]
    fn services_are_added_and_removed_by_their_id() {
        let service = |id: &str| Edit::AddService {
            id: id.to_owned(),
            kind: "Files".to_owned(),
            endpoint: json!("https://a.example"),
        };
        let mut bare = document();
        bare.as_object_mut().unwrap().remove("service");
        let first = edited(&bare, &service("#files"));
        assert_eq!(first["service"].as_array().unwrap().len(), 1);
        assert_eq!(unused_id(&first, "files"), "did:btcr2:_#files-2");
        let second = edited(&first, &service("did:btcr2:_#files-2"));
        let removed = edited(&second, &Edit::RemoveService { id: "#files".to_owned() });
        assert_eq!(removed["service"][0]["id"], "did:btcr2:_#files-2");
        assert_eq!(edited(&bare, &Edit::Deactivate)["deactivated"], json!(true));
    }

    #[test]
    fn an_id_in_use_and_a_missing_one_are_refused() {
        let document = document();
        let (used, missing) = ("#initialKey".to_owned(), "#other".to_owned());
        let add = Edit::AddKey { method: used.clone(), key: key(2), relationships: Vec::new() };
        assert_eq!(add.patch(&document), Err(EditError::IdInUse("did:btcr2:_#initialKey".to_owned())));
        let id = "did:btcr2:_#other".to_owned();
        for (edit, what) in [
            (Edit::RemoveKey { method: missing.clone() }, "key"),
            (Edit::ReplaceKey { old: missing.clone(), method: "#new".to_owned(), key: key(2) }, "key"),
            (Edit::RemoveService { id: missing }, "service"),
        ] {
            assert_eq!(edit.patch(&document), Err(EditError::Missing { what, id: id.clone() }));
        }
        let not_a_list = json!({ "id": "did:btcr2:_", "service": 1 });
        let remove = Edit::RemoveService { id: used };
        assert_eq!(remove.patch(&not_a_list), Err(EditError::NotAList("service")));
    }
}
