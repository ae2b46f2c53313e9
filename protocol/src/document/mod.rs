//! Initial DID documents (did:btcr2 specification, "Create" and "Resolve"), and the key that may update a document.
//!
//! Both kinds of identifier fix their first document: a KEY identifier by a rule that derives it from the key, an EXTERNAL
//! one by the hash of a genesis document that its controller shows. So the verifier of a first update knows the document
//! that it starts from.

mod beacons;
mod conformance;
mod methods;
mod sanity;

use serde_json::{Value, json};

pub(crate) use self::methods::absolute;
pub use self::{
    beacons::{InitialBeacon, InitialBeaconKind},
    conformance::{DOCUMENT_CONTEXT, NotConformant, check_conformance},
    methods::{invocation_key, invocation_methods},
    sanity::{Concern, concerns, genesis_concerns, secret_concerns},
};
use crate::{
    did::{Did, Genesis},
    jcs::{self, JcsError},
    key::PublicKey,
    network::Network,
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
    /// An EXTERNAL identifier determines no keys without its genesis document.
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
    /// The document does not conform to DID Core v1.1.
    #[error("the document does not conform to DID Core v1.1: {0} (rules I-4 and U-15)")]
    NotConformant(#[from] NotConformant),
    /// No method in `capabilityInvocation` has a key that can be read, so that the document cannot be updated.
    #[error(
        "capabilityInvocation names no Multikey of a compressed secp256k1 key: the document could never be updated"
    )]
    NoUsableMethod,
    /// No member of `capabilityInvocation` has this key.
    #[error("no method in capabilityInvocation has the key {key}")]
    NotAMethodsKey {
        /// The key.
        key: PublicKey,
    },
    /// A verification method is not in `capabilityInvocation`.
    #[error("{method} is not in the document's capabilityInvocation (rule U-6)")]
    NotAuthorized {
        /// Its absolute id.
        method: String,
    },
    /// A verification method is in `capabilityInvocation` and nowhere described.
    #[error("{method} is in capabilityInvocation, but the document has no such verificationMethod (rule U-7)")]
    MethodNotFound {
        /// Its absolute id.
        method: String,
    },
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
/// For an EXTERNAL identifier it is the genesis document with [`PLACEHOLDER`] replaced by the identifier, in every place of its
/// text (rule I-3).
///
/// # Errors
/// For an EXTERNAL identifier: the genesis document is missing, is not the one committed to, has no canonical form, is not a
/// document of the placeholder (rule I-2), or does not conform to DID Core v1.1 (rule I-4).
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
            let document = replace_placeholder(genesis, did.as_str());
            check_conformance(&document)?;
            Ok(document)
        }
    }
}

/// A verification method that may update the identifier's first document, and its key: `<did>#initialKey` of a KEY
/// identifier, and of an EXTERNAL one the first member of `capabilityInvocation` whose key can be read. The id is absolute.
///
/// # Errors
/// Those of [`initial_document`], and [`DocumentError::NoUsableMethod`]; a KEY identifier gives none.
pub fn genesis_key(did: &Did, genesis_document: Option<&Value>) -> Result<(String, PublicKey), DocumentError> {
    match did.genesis() {
        Genesis::Key(key) => Ok((initial_key_id(did), *key)),
        Genesis::External(_) => {
            let document = initial_document(did, genesis_document)?;
            invocation_methods(&document).next().ok_or(DocumentError::NoUsableMethod)
        }
    }
}

/// The absolute id of the method with `key` among those that may update the identifier's first document.
///
/// # Errors
/// Those of [`initial_document`]; [`DocumentError::NoUsableMethod`]; [`DocumentError::NotAMethodsKey`].
pub fn genesis_method(
    did: &Did,
    genesis_document: Option<&Value>,
    key: &PublicKey,
) -> Result<String, DocumentError> {
    let document = initial_document(did, genesis_document)?;
    let mut methods = invocation_methods(&document).peekable();
    if methods.peek().is_none() {
        return Err(DocumentError::NoUsableMethod);
    }
    let method = methods.find(|(_, other)| other == key);
    method.map(|(id, _)| id).ok_or(DocumentError::NotAMethodsKey { key: *key })
}

/// Whether one of the services of `document` is a beacon of that type at that address (rule C4).
pub fn lists_beacon(document: &Value, beacon_type: &str, address: &str) -> bool {
    let mut services = document["service"].as_array().into_iter().flatten();
    services.any(|service| {
        service["type"] == beacon_type
            && service["serviceEndpoint"].as_str().and_then(beacon_address) == Some(address)
    })
}

/// The address in a beacon's `serviceEndpoint`: what follows `bitcoin:`, without the parameters behind `?` (BIP-321, rule
/// T-8). `None` where that is not how it begins, or nothing follows.
pub fn beacon_address(service_endpoint: &str) -> Option<&str> {
    let (scheme, rest) = service_endpoint.split_once(':')?;
    let address = rest.split('?').next().unwrap_or_default();
    (scheme.eq_ignore_ascii_case("bitcoin") && !address.is_empty()).then_some(address)
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
        "@context": DOCUMENT_CONTEXT,
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

/// Replaces the placeholder in every place of the JSON text, and reads that again: in the names of members and inside of
/// longer text too (rule I-3).
fn replace_placeholder(genesis: &Value, did: &str) -> Value {
    let text = genesis.to_string().replace(PLACEHOLDER, did);
    // An identifier has no character that JSON escapes, so that what was JSON still is; and no brackets, so that it is as deep.
    serde_json::from_str(&text).expect("JSON text in which a word was replaced by another is JSON")
}
