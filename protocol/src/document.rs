//! Initial DID documents (did:btcr2 specification, "Create" and "Resolve"), and the key that may update a document.
//!
//! Both kinds of identifier fix their first document: a KEY identifier by a rule that derives it from the key, an EXTERNAL
//! one by the hash of a genesis document that its controller shows. So whoever checks a first update knows the document
//! that it starts from.

use serde_json::{Value, json};

use crate::{
    did::{Did, Genesis},
    jcs::{self, JcsError},
    key::PublicKey,
    network::Network,
    output::{InitialBeacon, InitialBeaconKind},
};

/// What stands for the identifier in a genesis document, which is hashed before its identifier exists.
pub const PLACEHOLDER: &str = "did:btcr2:_";

/// Multicodec prefix of a compressed secp256k1 public key (`secp256k1-pub`, 0xe7 as a varint).
const MULTIKEY_PREFIX: [u8; 2] = [0xe7, 0x01];

/// The base58btc text of 35 bytes has at most this many characters; decoding takes quadratic time, so longer text is
/// refused unread.
const MULTIKEY_MAX_CHARS: usize = 48;

/// Why a document does not give what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// An EXTERNAL identifier says nothing about its keys without its genesis document.
    #[error("the genesis document of this EXTERNAL identifier is missing")]
    GenesisDocumentMissing,
    /// The genesis document is not the one that the identifier commits to.
    #[error("the genesis document does not hash to the identifier's genesis bytes")]
    GenesisHash,
    /// The document's `id` is not the identifier (in a genesis document: its placeholder).
    #[error("the document's id is not its identifier")]
    Id,
    /// The document has no canonical form and so no hash.
    #[error("the document has no canonical form: {0}")]
    NotCanonical(#[from] JcsError),
    /// `capabilityInvocation[0]` is not a reference to exactly one of the document's own verification methods.
    #[error("capabilityInvocation[0] does not name exactly one of the document's own verification methods")]
    CapabilityInvocation,
    /// The verification method is not a Multikey of a compressed secp256k1 key.
    #[error("the verification method is not a Multikey of a compressed secp256k1 key")]
    Multikey,
}

/// The SHA-256 of a genesis document's JCS bytes: the genesis bytes of its EXTERNAL identifier.
///
/// # Errors
/// [`DocumentError::NotCanonical`].
pub fn genesis_hash(genesis_document: &Value) -> Result<[u8; 32], DocumentError> {
    Ok(jcs::hash(genesis_document)?)
}

/// The EXTERNAL identifier that commits to `genesis_document`.
///
/// # Errors
/// [`DocumentError::NotCanonical`].
pub fn external_did(genesis_document: &Value, network: Network) -> Result<Did, DocumentError> {
    Ok(Did::from_genesis_hash(genesis_hash(genesis_document)?, network))
}

/// A genesis document with one key and its beacons, as a KEY identifier's initial document has them. An EXTERNAL
/// identifier may have any other document; this one is for those who need nothing special in it.
pub fn genesis_document(key: &PublicKey, network: Network) -> Value {
    key_document(PLACEHOLDER, *key, network)
}

/// The document of version 1.
///
/// For a KEY identifier it follows from the key, and `genesis_document` is not looked at: one Multikey `#initialKey` in
/// all four relationships, and one `SingletonBeacon` for each of the key's P2PKH, P2WPKH and (key path only) P2TR address.
/// For an EXTERNAL identifier it is the genesis document with [`PLACEHOLDER`] replaced by the identifier.
///
/// # Errors
/// For an EXTERNAL identifier: the genesis document is missing, is not the one committed to, has no canonical form, or is
/// not a document of the placeholder.
pub fn initial_document(did: &Did, genesis_document: Option<&Value>) -> Result<Value, DocumentError> {
    match did.genesis() {
        Genesis::Key(key) => Ok(key_document(did.as_str(), *key, did.network())),
        Genesis::External(hash) => {
            let genesis = genesis_document.ok_or(DocumentError::GenesisDocumentMissing)?;
            if genesis_hash(genesis)? != *hash {
                return Err(DocumentError::GenesisHash);
            }
            if genesis.get("id").and_then(Value::as_str) != Some(PLACEHOLDER) {
                return Err(DocumentError::Id);
            }
            let mut document = genesis.clone();
            replace_placeholder(&mut document, did.as_str());
            Ok(document)
        }
    }
}

/// The verification method and key that an identifier starts with: `<did>#initialKey` for a KEY identifier, and for an
/// EXTERNAL one [`capability_invocation_key`] of its initial document.
///
/// # Errors
/// Those of [`initial_document`] and [`capability_invocation_key`]; a KEY identifier gives none.
pub fn genesis_key(did: &Did, genesis_document: Option<&Value>) -> Result<(String, PublicKey), DocumentError> {
    match did.genesis() {
        Genesis::Key(key) => Ok((initial_key_id(did), *key)),
        Genesis::External(_) => capability_invocation_key(&initial_document(did, genesis_document)?),
    }
}

/// The id and key of the verification method that `capabilityInvocation[0]` names: the key that authorizes updates.
///
/// There is no second choice. Only a string reference counts, and only one that names exactly one entry of
/// `verificationMethod` under the document's own id: a method embedded in the relationship, or one of another identifier,
/// would leave open whose key it is.
///
/// # Errors
/// [`DocumentError::CapabilityInvocation`], [`DocumentError::Multikey`].
pub fn capability_invocation_key(document: &Value) -> Result<(String, PublicKey), DocumentError> {
    let named = || {
        let reference = document.get("capabilityInvocation")?.get(0)?.as_str()?;
        let fragment = reference.strip_prefix(document.get("id")?.as_str()?)?.strip_prefix('#')?;
        let methods = document.get("verificationMethod")?.as_array()?;
        let mut matching =
            methods.iter().filter(|method| method.get("id").and_then(Value::as_str) == Some(reference));
        let method = matching.next()?;
        (!fragment.is_empty() && matching.next().is_none()).then_some((reference, method))
    };
    let (reference, method) = named().ok_or(DocumentError::CapabilityInvocation)?;
    if method.get("type").and_then(Value::as_str) != Some("Multikey") {
        return Err(DocumentError::Multikey);
    }
    let text = method.get("publicKeyMultibase").and_then(Value::as_str).ok_or(DocumentError::Multikey)?;
    Ok((reference.to_owned(), decode_multikey(text)?))
}

/// The Multikey text of `key`: `z`, then base58btc of 0xe7 0x01 and the 33 compressed bytes (W3C Controlled Identifiers,
/// "Multikey").
pub fn encode_multikey(key: &PublicKey) -> String {
    let bytes = [MULTIKEY_PREFIX.as_slice(), &key.to_bytes()].concat();
    format!("z{}", bs58::encode(bytes).into_string())
}

/// The key of a Multikey text.
///
/// # Errors
/// [`DocumentError::Multikey`]: another base, another kind of key, or no point of the curve.
pub fn decode_multikey(text: &str) -> Result<PublicKey, DocumentError> {
    text.strip_prefix('z')
        .filter(|base58| base58.len() <= MULTIKEY_MAX_CHARS)
        .and_then(|base58| bs58::decode(base58).into_vec().ok())
        .and_then(|bytes| PublicKey::from_bytes(bytes.strip_prefix(&MULTIKEY_PREFIX)?).ok())
        .ok_or(DocumentError::Multikey)
}

fn initial_key_id(did: &Did) -> String {
    format!("{did}#initialKey")
}

/// Field order as the vectors have it: canonical bytes don't depend on it, but people compare documents by eye.
fn key_document(id: &str, key: PublicKey, network: Network) -> Value {
    let services: Vec<Value> = InitialBeaconKind::ALL
        .into_iter()
        .map(|kind| {
            json!({
                "id": format!("{id}#{}", kind.service()),
                "type": "SingletonBeacon",
                "serviceEndpoint": format!("bitcoin:{}", InitialBeacon::new(key, network, kind).address()),
            })
        })
        .collect();
    let method = format!("{id}#initialKey");
    json!({
        "id": id,
        "@context": ["https://www.w3.org/ns/did/v1.1", "https://btcr2.dev/context/v1"],
        "verificationMethod": [{
            "id": method,
            "type": "Multikey",
            "controller": id,
            "publicKeyMultibase": encode_multikey(&key),
        }],
        "authentication": [method],
        "assertionMethod": [method],
        "capabilityInvocation": [method],
        "capabilityDelegation": [method],
        "service": services,
    })
}

/// Replaces the placeholder where it is an identifier: the whole of a string, or the identifier of a DID URL with a
/// fragment. Elsewhere the same characters are text.
fn replace_placeholder(value: &mut Value, did: &str) {
    match value {
        Value::String(text) => {
            if let Some(rest) = text.strip_prefix(PLACEHOLDER)
                && (rest.is_empty() || rest.starts_with('#'))
            {
                *text = format!("{did}{rest}");
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| replace_placeholder(item, did)),
        Value::Object(fields) => fields.values_mut().for_each(|field| replace_placeholder(field, did)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
