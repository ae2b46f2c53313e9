//! The keys of a controller, and which of them signs.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    keyfile::{KeyFile, KeyFileError},
    protocol::{
        document::invocation_methods,
        identity::Identity,
        key::{PublicKey, SecretKey},
    },
};

/// The methods of a document that an error lists.
const MOST_LISTED: usize = 20;

/// None of the keys may update the current document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no key of {source_name} may update the current document (version {version}): its capabilityInvocation has {listed}"
)]
pub struct NotAuthorized {
    source_name: String,
    version: u64,
    listed: String,
}

/// The keys of a controller.
pub enum Keys {
    /// All keys of an identity file, and the file's name.
    File(Box<KeyFile>, String),
    /// One key, and where it is from.
    One(Arc<SecretKey>, String),
}

impl Keys {
    /// The key that an identity began with.
    pub fn of(identity: &Identity) -> Self {
        Self::One(Arc::clone(identity.secret_key()), "the identity".to_owned())
    }

    /// The keys that the file has now, if they are from a file.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn again(&self) -> Result<Option<Self>, KeyFileError> {
        match self {
            Self::File(file, name) => Ok(Some(Self::File(Box::new(file.again()?), name.clone()))),
            Self::One(..) => Ok(None),
        }
    }

    /// Where they are from, for people.
    pub fn name(&self) -> &str {
        match self {
            Self::File(_, name) | Self::One(_, name) => name,
        }
    }

    /// The genesis document of an EXTERNAL DID.
    pub fn genesis_document(&self) -> Option<&Value> {
        match self {
            Self::File(file, _) => file.identity.genesis_document().map(|document| &**document),
            Self::One(..) => None,
        }
    }

    /// The secret key of that public key.
    pub fn key_of(&self, public_key: &PublicKey) -> Option<&SecretKey> {
        match self {
            Self::File(file, _) => file.key_of(public_key),
            Self::One(key, _) => Some(&**key).filter(|key| key.public_key() == *public_key),
        }
    }

    /// The first method of `document` that may update it (rules U-6 and U-7) and whose key is one of these: its absolute id,
    /// and the key.
    ///
    /// # Errors
    /// [`NotAuthorized`] names the methods that may. `version` is that of the document.
    pub fn signer(&self, document: &Value, version: u64) -> Result<(String, &SecretKey), NotAuthorized> {
        let mut methods = invocation_methods(document);
        let found = methods.find_map(|(method, public)| self.key_of(&public).map(|key| (method, key)));
        found.ok_or_else(|| {
            let listed = invocation_methods(document).take(MOST_LISTED);
            let listed: Vec<_> = listed.map(|(method, key)| format!("{key} ({method})")).collect();
            let listed = if listed.is_empty() { "no key".to_owned() } else { listed.join(", ") };
            NotAuthorized { source_name: self.name().to_owned(), version, listed }
        })
    }
}
