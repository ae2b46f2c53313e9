//! What an update changes, as it can be made again on a newer document.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    controller::address_change::AddressChange,
    protocol::{patch::Patch, update::Edit},
};

/// A change of a document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Change {
    /// What a command of `update` asks for: ids are looked up in each document anew.
    Edit {
        /// The change.
        change: Edit,
    },
    /// A JSON Patch (RFC 6902). Its paths may count places in a list: it is made again only where everything that it removes and replaces
    /// is what it was.
    Patch {
        /// The operations.
        patch: Value,
        /// What each operation had at its path (`from` of a move or a copy), in the document for which it was written.
        was: Vec<Option<Value>>,
    },
    /// Each service at an address is one at another, or is removed.
    Address {
        /// The address of the beacon that is left.
        from: String,
        /// Address and type of the beacon in its place.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<(String, String)>,
    },
    /// A signed update from elsewhere, of which no other is made.
    Signed,
}

/// Why a change cannot be made on a document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The update is signed for another version.
    #[error("it was signed elsewhere for another version of the document, and is not made again")]
    Signed,
    /// Something that it needs is not in the document.
    #[error("{0}")]
    Edit(String),
    /// The patch does not apply.
    #[error("its patch does not apply any more: {0}")]
    Patch(String),
    /// The patch would change something else.
    #[error("operation {operation} of its patch would change something else: {path} is not what it was")]
    Moved {
        /// Its place in the patch.
        operation: usize,
        /// The path.
        path: String,
    },
}

/// What the operations of a patch find at their paths.
fn found(document: &Value, patch: &Value) -> Result<Vec<(String, Option<Value>)>, ChangeError> {
    let failed = |error: crate::protocol::patch::PatchError| ChangeError::Patch(error.to_string());
    // The whole patch has bounds that single operations have not.
    Patch::from_value(patch).and_then(|patch| patch.apply(document)).map_err(failed)?;
    let mut document = document.clone();
    let mut found = Vec::new();
    for operation in patch.as_array().into_iter().flatten() {
        let text = |field: &str| operation.get(field).and_then(Value::as_str).unwrap_or_default();
        let path = match text("op") {
            "move" | "copy" => text("from"),
            _ => text("path"),
        };
        // An addition to a list moves what is there, and changes nothing of it.
        let at = if text("op") == "add" { None } else { document.pointer(path).cloned() };
        found.push((path.to_owned(), at));
        let one = Value::Array(vec![operation.clone()]);
        document = Patch::from_value(&one).and_then(|patch| patch.apply(&document)).map_err(failed)?;
    }
    Ok(found)
}

impl Change {
    /// A patch that was written for this document.
    ///
    /// # Errors
    /// [`ChangeError::Patch`] when it does not apply.
    pub fn of_patch(patch: Value, document: &Value) -> Result<Self, ChangeError> {
        let was = found(document, &patch)?.into_iter().map(|(_, at)| at).collect();
        Ok(Self::Patch { patch, was })
    }

    /// The patch that makes this change to a document.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn on(&self, document: &Value) -> Result<Value, ChangeError> {
        match self {
            Self::Edit { change } => change.patch(document).map_err(|error| ChangeError::Edit(error.to_string())),
            Self::Signed => Err(ChangeError::Signed),
            Self::Address { from, to } => {
                let to = to.as_ref().map(|(address, beacon_type)| (address.as_str(), beacon_type.as_str()));
                let patch = AddressChange { from, to }.patch(document);
                patch.ok_or_else(|| ChangeError::Edit(format!("the document does not list {from}")))
            }
            Self::Patch { patch, was } => {
                let now = found(document, patch)?;
                let moved = now.iter().zip(was).position(|((_, now), was)| now != was);
                match moved.and_then(|operation| Some((operation, now.get(operation)?.0.clone()))) {
                    Some((operation, path)) => Err(ChangeError::Moved { operation, path }),
                    None => Ok(patch.clone()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn a_patch_is_made_again_where_it_changes_the_same() {
        let document = json!({ "service": [{ "id": "#a" }, { "id": "#b" }], "note": "x" });
        let newer = json!({ "service": [{ "id": "#a" }, { "id": "#b" }, { "id": "#c" }], "note": "x" });
        let moved = json!({ "service": [{ "id": "#b" }], "note": "y" });
        let patch = json!([{ "op": "remove", "path": "/service/0" }]);
        let change = Change::of_patch(patch.clone(), &document).unwrap();
        assert_eq!(change.on(&newer).unwrap(), patch);
        let refused = ChangeError::Moved { operation: 0, path: "/service/0".to_owned() };
        assert_eq!(change.on(&moved), Err(refused), "another service is the first one now");
        // The second operation sees what the first one has made.
        let patch = json!([
            { "op": "remove", "path": "/service/0" },
            { "op": "replace", "path": "/service/0/id", "value": "#z" },
        ]);
        let change = Change::of_patch(patch, &document).unwrap();
        assert!(change.on(&newer).is_ok());
        assert!(matches!(change.on(&moved), Err(ChangeError::Patch(_))), "there is no second one");
        let added = Change::of_patch(json!([{ "op": "add", "path": "/note", "value": "z" }]), &document).unwrap();
        assert!(added.on(&moved).is_ok(), "whatever the note was");
        let replaced =
            Change::of_patch(json!([{ "op": "replace", "path": "/note", "value": "z" }]), &document).unwrap();
        assert!(replaced.on(&newer).is_ok() && replaced.on(&moved).is_err());
    }

    #[test]
    fn an_edit_finds_its_place_in_each_document() {
        let document = |services: &[&str]| {
            let service = |id: &&str| json!({ "id": id, "type": "X", "serviceEndpoint": "https://x" });
            json!({ "id": "did:x", "service": services.iter().map(service).collect::<Vec<_>>() })
        };
        let change = Change::Edit { change: Edit::RemoveService { id: "#b".to_owned() } };
        let stored: Change = serde_json::from_value(serde_json::to_value(&change).unwrap()).unwrap();
        assert_eq!(stored, change);
        let at = |services: &[&str]| change.on(&document(services)).unwrap()[0]["path"].clone();
        assert_eq!((at(&["#a", "#b"]), at(&["#b"])), (json!("/service/1"), json!("/service/0")));
        assert!(matches!(change.on(&document(&["#a"])), Err(ChangeError::Edit(_))));
        assert_eq!(Change::Signed.on(&document(&[])), Err(ChangeError::Signed));
    }
}
