//! Updates of a DID document (did:btcr2 specification, "Update"): building, signing and verifying them.
//!
//! An update is a JSON Patch with the hashes of the documents before and after it, and a Data Integrity proof
//! (cryptosuite `bip340-jcs-2025`) by the key in `capabilityInvocation`. Its signed digest is
//! `SHA256( SHA256(JCS(proof without proofValue)) || SHA256(JCS(update without proof)) )`.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use rand_core::CryptoRng;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    did::Did,
    envelope::MAX_DOCUMENT_DEPTH,
    hash::{DocumentHash, sha256, sha256_concat},
    jcs::{self, JcsError},
    key::{PublicKey, SecretKey, Signature},
    patch::{Patch, PatchError},
};

/// The `@context` of the updates that we build.
const CONTEXT: [&str; 4] = [
    "https://w3id.org/security/v2",
    "https://w3id.org/zcap/v1",
    "https://w3id.org/json-ld-patch/v1",
    "https://btcr2.dev/context/v1",
];

/// The proof's fields that are the same in every update.
const PROOF_CONSTANTS: [(&str, &str); 4] = [
    ("type", "DataIntegrityProof"),
    ("cryptosuite", "bip340-jcs-2025"),
    ("proofPurpose", "capabilityInvocation"),
    ("capabilityAction", "Write"),
];

/// The base58btc text of 64 bytes has at most this many characters; decoding takes quadratic time, so longer text is
/// refused unread.
const SIGNATURE_MAX_CHARS: usize = 88;

/// Why an update is refused, or could not be built.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// Not a JSON object.
    #[error("the update is not an object")]
    NotAnObject,
    /// No canonical form, and so no hash.
    #[error("the update has no canonical form: {0}")]
    NotCanonical(#[from] JcsError),
    /// A field outside the proof is missing or not of its shape.
    #[error("{field} is not {expected}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What it has to be.
        expected: &'static str,
    },
    /// The patch is not one, or is too long.
    #[error("patch: {0}")]
    Patch(PatchError),
    /// The proof is missing, or is not a single object.
    #[error("proof is not an object")]
    ProofMissing,
    /// A field of the proof is missing or not what this DID's updates have there.
    #[error("proof.{field} is not {expected}")]
    Proof {
        /// The field's name.
        field: &'static str,
        /// What it has to be.
        expected: &'static str,
    },
    /// The signature is not one by this key over this update.
    #[error("proof.proofValue is not a signature of this update by the verification method's key")]
    Signature,
    /// `sourceHash` is not the hash of the document that the update starts from.
    #[error("sourceHash is not the hash of the current document")]
    SourceHash,
    /// The patch does not apply to the document that the update starts from.
    #[error("patch does not apply to the current document: {0}")]
    DoesNotApply(PatchError),
    /// `targetHash` is not the hash of the patched document.
    #[error("targetHash is not the hash of the patched document")]
    TargetHash,
    /// The patched document is another DID's: no resolver would go on from it.
    #[error("the patch changes the document's id")]
    TargetId,
}

impl UpdateError {
    /// The code on the wire: `UPDATE_MALFORMED` when this cannot be an update at all, `UPDATE_VERIFICATION_FAILED` when it
    /// is not a valid one of this DID (anything about the proof, a missing one included, and the hashes).
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotAnObject | Self::NotCanonical(_) | Self::Field { .. } | Self::Patch(_) => "UPDATE_MALFORMED",
            Self::ProofMissing
            | Self::Proof { .. }
            | Self::Signature
            | Self::SourceHash
            | Self::DoesNotApply(_)
            | Self::TargetHash
            | Self::TargetId => "UPDATE_VERIFICATION_FAILED",
        }
    }
}

/// A signed update as it came, with its hash. Two are equal when their hashes are.
///
/// It is only known to be an object with a canonical form; [`verify_update`] says whether it is valid. Cheap to clone, as it
/// travels from the message through the cohort's state to the announcement.
#[derive(Clone)]
pub struct SignedUpdate(Arc<Inner>);

/// At least one of the two forms is there.
struct Inner {
    value: OnceLock<Value>,
    json: Option<Box<str>>,
    hash: DocumentHash,
    canonical_len: usize,
}

impl SignedUpdate {
    /// Wraps a JSON object and computes its hash.
    ///
    /// # Errors
    /// [`UpdateError::NotAnObject`], [`UpdateError::NotCanonical`].
    pub fn from_value(value: Value) -> Result<Self, UpdateError> {
        if !value.is_object() {
            return Err(UpdateError::NotAnObject);
        }
        jcs::check(&value, MAX_DOCUMENT_DEPTH)?;
        let canonical = jcs::canonicalize(&value)?;
        let hash = DocumentHash::from_bytes(sha256(&canonical));
        let canonical_len = canonical.len();
        Ok(Self(Arc::new(Inner { value: OnceLock::from(value), json: None, hash, canonical_len })))
    }

    /// The same update as JSON text, which takes a quarter of the room and is parsed again when somebody asks for its
    /// [`value`](Self::value): for a service that keeps a thousand of them and has verified them.
    pub fn packed(&self) -> Self {
        let Inner { hash, canonical_len, .. } = *self.0;
        let json = Some(self.value().to_string().into());
        Self(Arc::new(Inner { value: OnceLock::new(), json, hash, canonical_len }))
    }

    /// The update as JSON, fields in the order in which they came.
    pub fn value(&self) -> &Value {
        self.0.value.get_or_init(|| {
            let json = self.0.json.as_deref().unwrap_or_default();
            serde_json::from_str(json)
                .expect("what was written from a value is JSON, and `from_value` has looked how deep")
        })
    }

    /// The JSON Document Hash, by which announcements name the update.
    pub fn hash(&self) -> &DocumentHash {
        &self.0.hash
    }

    /// The size of the canonical form, in bytes.
    pub fn canonical_len(&self) -> usize {
        self.0.canonical_len
    }
}

impl PartialEq for SignedUpdate {
    fn eq(&self, other: &Self) -> bool {
        self.0.hash == other.0.hash
    }
}

impl Eq for SignedUpdate {}

impl fmt::Debug for SignedUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedUpdate({})", self.0.hash)
    }
}

impl Serialize for SignedUpdate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0.json {
            // As it is: it was written from the value.
            Some(json) => {
                serde_json::from_str::<&RawValue>(json).map_err(ser::Error::custom)?.serialize(serializer)
            }
            None => self.value().serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for SignedUpdate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_value(Value::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// An update that nobody has signed yet.
#[derive(Clone, Debug, PartialEq)]
pub struct UnsignedUpdate {
    fields: Map<String, Value>,
    target: Value,
}

impl UnsignedUpdate {
    /// The update as JSON, without a proof.
    pub fn to_value(&self) -> Value {
        Value::Object(self.fields.clone())
    }

    /// The document that the update leads to.
    pub fn target_document(&self) -> &Value {
        &self.target
    }
}

/// Builds the update that leads from `source`, the document of version `source_version` (1 for the initial document), to
/// the document that `patch` (an array of RFC 6902 operations) makes of it.
///
/// # Errors
/// The patch is malformed or does not apply, a document has no canonical form, or the version is 0 or too large to count
/// on.
pub fn build_update(source: &Value, source_version: u64, patch: Value) -> Result<UnsignedUpdate, UpdateError> {
    let target_version = (source_version >= 1)
        .then(|| source_version.checked_add(1))
        .flatten()
        .ok_or(UpdateError::Field { field: "targetVersionId", expected: "an integer of at least 2" })?;
    let target =
        Patch::from_value(&patch).map_err(UpdateError::Patch)?.apply(source).map_err(UpdateError::DoesNotApply)?;
    let fields = Map::from_iter([
        ("@context".to_owned(), json!(CONTEXT)),
        ("patch".to_owned(), patch),
        ("targetHash".to_owned(), json!(jcs::document_hash(&target)?)),
        ("targetVersionId".to_owned(), json!(target_version)),
        ("sourceHash".to_owned(), json!(jcs::document_hash(source)?)),
    ]);
    Ok(UnsignedUpdate { fields, target })
}

/// The patch that adds a beacon of type `beacon_type` (`CASBeacon`, `SMTBeacon`, ...) at `address` to the services of `did`'s
/// document. The service is named after the type (`#beacon-cas`, `#beacon-smt`); a DID with two beacons of a type needs a
/// patch of its own.
pub fn add_beacon_service_patch(did: &Did, beacon_type: &str, address: &str) -> Value {
    let name = beacon_type.strip_suffix("Beacon").unwrap_or(beacon_type).to_ascii_lowercase();
    json!([{
        "op": "add",
        "path": "/service/-",
        "value": {
            "id": format!("{did}#beacon-{name}"),
            "type": beacon_type,
            "serviceEndpoint": format!("bitcoin:{address}"),
        },
    }])
}

/// Signs `update` of `did`'s document with the secret key of `verification_method` (the full id, `<did>#...`). Whether that
/// is the method's key is for the caller to know and for [`verify_update`] to tell.
///
/// # Errors
/// [`UpdateError::NotCanonical`], when the version number is beyond what JSON carries exactly.
pub fn sign_update(
    update: &UnsignedUpdate,
    did: &Did,
    verification_method: &str,
    key: &SecretKey,
    rng: &mut dyn CryptoRng,
) -> Result<SignedUpdate, UpdateError> {
    let mut proof = Map::from_iter([
        ("@context".to_owned(), json!(CONTEXT)),
        ("cryptosuite".to_owned(), json!("bip340-jcs-2025")),
        ("type".to_owned(), json!("DataIntegrityProof")),
        ("verificationMethod".to_owned(), json!(verification_method)),
        ("proofPurpose".to_owned(), json!("capabilityInvocation")),
        ("capability".to_owned(), json!(root_capability(did))),
        ("capabilityAction".to_owned(), json!("Write")),
    ]);
    let digest = signed_digest(&Value::Object(proof.clone()), &update.to_value())?;
    let signature = key.sign(&digest, rng);
    proof.insert("proofValue".to_owned(), json!(encode_proof_value(&signature)));
    let mut fields = update.fields.clone();
    fields.insert("proof".to_owned(), Value::Object(proof));
    SignedUpdate::from_value(Value::Object(fields))
}

/// What an update is checked against.
#[derive(Clone, Copy, Debug)]
pub struct UpdateContext<'a> {
    /// The DID whose document is updated.
    pub did: &'a Did,
    /// The full id of the verification method that has to have signed.
    pub verification_method: &'a str,
    /// That method's key.
    pub key: &'a PublicKey,
    /// The DID's document of version 1, where it is known; a first update is then checked against it.
    pub initial_document: Option<&'a Value>,
}

/// Checks that `update` is a valid update of `context.did`'s document by `context.key`: its shape, its proof, the signature,
/// and for the first update (`targetVersionId` 2) that it starts from the initial document and that its patch leads to the
/// document it promises. Later updates start from documents that only a resolver knows, so that their hashes are not checked.
///
/// # Errors
/// What is wrong first, in this order: shape, proof, signature, source, patch, target.
pub fn verify_update(update: &SignedUpdate, context: &UpdateContext<'_>) -> Result<(), UpdateError> {
    // A SignedUpdate is an object by construction.
    let fields = update.value().as_object().ok_or(UpdateError::NotAnObject)?;
    let shape = Shape::of(fields)?;
    let signature = check_proof(fields, context)?;
    let proof_config = without(proof_of(fields)?, "proofValue");
    let digest = signed_digest(&proof_config, &without(fields, "proof"))?;
    if !context.key.x_only().verify(&digest, &signature) {
        return Err(UpdateError::Signature);
    }
    match context.initial_document {
        Some(initial) if shape.target_version == 2 => shape.check_step(initial),
        _ => Ok(()),
    }
}

/// The fields outside the proof, read.
struct Shape {
    patch: Patch,
    source_hash: DocumentHash,
    target_hash: DocumentHash,
    target_version: u64,
}

impl Shape {
    fn of(fields: &Map<String, Value>) -> Result<Self, UpdateError> {
        let is_context = fields
            .get("@context")
            .and_then(Value::as_array)
            .is_some_and(|entries| !entries.is_empty() && entries.iter().all(Value::is_string));
        if !is_context {
            return Err(UpdateError::Field { field: "@context", expected: "an array of context URLs" });
        }
        let patch = Patch::from_value(fields.get("patch").unwrap_or(&Value::Null)).map_err(UpdateError::Patch)?;
        let target_version = fields
            .get("targetVersionId")
            .and_then(Value::as_u64)
            .filter(|version| *version >= 2)
            .ok_or(UpdateError::Field { field: "targetVersionId", expected: "an integer of at least 2" })?;
        Ok(Self {
            patch,
            source_hash: hash_field(fields, "sourceHash")?,
            target_hash: hash_field(fields, "targetHash")?,
            target_version,
        })
    }

    fn check_step(&self, source: &Value) -> Result<(), UpdateError> {
        if jcs::document_hash(source)? != self.source_hash {
            return Err(UpdateError::SourceHash);
        }
        let target = self.patch.apply(source).map_err(UpdateError::DoesNotApply)?;
        if jcs::document_hash(&target)? != self.target_hash {
            return Err(UpdateError::TargetHash);
        }
        if target.get("id") != source.get("id") {
            return Err(UpdateError::TargetId);
        }
        Ok(())
    }
}

fn hash_field(fields: &Map<String, Value>, field: &'static str) -> Result<DocumentHash, UpdateError> {
    fields
        .get(field)
        .and_then(Value::as_str)
        .and_then(|text| text.parse().ok())
        .ok_or(UpdateError::Field { field, expected: "base64url of 32 bytes without padding" })
}

/// Checks every field of the proof that has one right value, and reads the signature.
fn check_proof(fields: &Map<String, Value>, context: &UpdateContext<'_>) -> Result<Signature, UpdateError> {
    let proof = proof_of(fields)?;
    let text = |field: &str| proof.get(field).and_then(Value::as_str);
    for (field, expected) in PROOF_CONSTANTS {
        if text(field) != Some(expected) {
            return Err(UpdateError::Proof { field, expected });
        }
    }
    if proof.get("@context") != fields.get("@context") {
        return Err(UpdateError::Proof { field: "@context", expected: "that of the update" });
    }
    if text("verificationMethod") != Some(context.verification_method) {
        return Err(UpdateError::Proof {
            field: "verificationMethod",
            expected: "the method that may update this document",
        });
    }
    if text("capability") != Some(&*root_capability(context.did)) {
        return Err(UpdateError::Proof { field: "capability", expected: "the root capability of this DID" });
    }
    text("proofValue")
        .and_then(decode_proof_value)
        .ok_or(UpdateError::Proof { field: "proofValue", expected: "z and base58btc of 64 bytes" })
}

fn proof_of(fields: &Map<String, Value>) -> Result<&Map<String, Value>, UpdateError> {
    fields.get("proof").and_then(Value::as_object).ok_or(UpdateError::ProofMissing)
}

fn without(fields: &Map<String, Value>, left_out: &str) -> Value {
    fields.iter().filter(|(key, _)| *key != left_out).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The digest that the proof's signature is over: of the proof without its `proofValue`, and of the update without its
/// `proof`.
///
/// # Errors
/// [`JcsError`], when one of them has no canonical form.
pub fn signed_digest(proof_config: &Value, unsigned_update: &Value) -> Result<[u8; 32], JcsError> {
    let config = jcs::hash(proof_config)?;
    let update = jcs::hash(unsigned_update)?;
    Ok(sha256_concat(&[&config, &update]))
}

/// The root capability of a DID's document (did:btcr2 specification, "Derive Root Capability"): its right to be updated.
fn root_capability(did: &Did) -> String {
    format!("urn:zcap:root:{}", did.uri_component())
}

fn encode_proof_value(signature: &Signature) -> String {
    format!("z{}", bs58::encode(signature.to_bytes()).into_string())
}

fn decode_proof_value(text: &str) -> Option<Signature> {
    let base58 = text.strip_prefix('z').filter(|base58| base58.len() <= SIGNATURE_MAX_CHARS)?;
    let bytes: [u8; 64] = bs58::decode(base58).into_vec().ok()?.try_into().ok()?;
    Some(Signature::from_bytes(&bytes))
}
