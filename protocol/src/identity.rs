//! An identity: an identifier and the key that its DID proves.

use std::{fmt, sync::Arc};

use serde_json::Value;

use crate::{
    did::Did,
    document::{self, DocumentError},
    key::{PublicKey, SecretKey},
    network::Network,
};

/// An identifier and its secret key. Cheap to clone. `Debug` prints only the identifier.
#[derive(Clone)]
pub struct Identity(Arc<Parts>);

struct Parts {
    did: Did,
    key: Arc<SecretKey>,
    public_key: PublicKey,
    verification_method: String,
    genesis_document: Option<Arc<Value>>,
}

/// Why a key and a DID do not form an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The genesis document is not valid, or does not belong to the DID.
    #[error("{0}")]
    Document(#[from] DocumentError),
}

impl Identity {
    /// The KEY DID of `key`.
    pub fn from_key(key: SecretKey, network: Network) -> Self {
        let public_key = key.public_key();
        let did = Did::from_key(public_key, network);
        let verification_method = format!("{did}#initialKey");
        let key = Arc::new(key);
        Self(Arc::new(Parts { did, key, public_key, verification_method, genesis_document: None }))
    }

    /// The EXTERNAL DID of `genesis_document`, one of whose `capabilityInvocation` methods must be `key`'s.
    ///
    /// # Errors
    /// [`IdentityError`] when the document is not a genesis document, or no such method has that key.
    pub fn from_genesis(key: SecretKey, genesis_document: Value, network: Network) -> Result<Self, IdentityError> {
        let did = document::external_did(&genesis_document, network)?;
        let public_key = key.public_key();
        let verification_method = document::genesis_method(&did, Some(&genesis_document), &public_key)?;
        let (key, genesis_document) = (Arc::new(key), Some(Arc::new(genesis_document)));
        Ok(Self(Arc::new(Parts { did, key, public_key, verification_method, genesis_document })))
    }

    /// The identifier.
    pub fn did(&self) -> &Did {
        &self.0.did
    }

    /// The key that the DID proves.
    pub fn public_key(&self) -> PublicKey {
        self.0.public_key
    }

    /// The secret key.
    pub fn secret_key(&self) -> &Arc<SecretKey> {
        &self.0.key
    }

    /// The identifier of the key's verification method.
    pub fn verification_method(&self) -> &str {
        &self.0.verification_method
    }

    /// The genesis document of an EXTERNAL DID.
    pub fn genesis_document(&self) -> Option<&Arc<Value>> {
        self.0.genesis_document.as_ref()
    }

    /// The DID's initial document.
    ///
    /// # Errors
    /// None in practice: the constructors have checked the document.
    pub fn initial_document(&self) -> Result<Value, DocumentError> {
        document::initial_document(&self.0.did, self.0.genesis_document.as_deref())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.0.did)
    }
}
