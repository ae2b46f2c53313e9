//! Updates of a DID document (did:btcr2 specification, "Update"): building, signing and verifying them.
//!
//! An update is a JSON Patch with the hashes of the documents before and after it, and a Data Integrity proof
//! (cryptosuite `bip340-jcs-2025`) by the key in `capabilityInvocation`. Its signed digest is
//! `SHA256( SHA256(JCS(proof without proofValue)) || SHA256(JCS(update without proof)) )`.
//!
//! The rules that decide whether an update counts, U-1 to U-23 of the specification's edition of October 2026, are in
//! [`verify_update`]. Errors name the rule that is broken.

mod edit;
mod rules;

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use rand_core::CryptoRng;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::{Map, Value, json, value::RawValue};

pub use self::edit::{Edit, EditError, Relationship, unused_id};
#[cfg(feature = "sim")]
pub(crate) use self::rules::verify_recorded;
pub use self::rules::{BlockTimes, UpdateContext, verify_later_proof, verify_proof, verify_update, violations};
pub(crate) use self::rules::{date_time_stamp, instant, shape, verify_announced};
use crate::{
    did::Did,
    document::{self, DocumentError, NotConformant},
    hash::{DocumentHash, sha256, sha256_concat},
    jcs::{self, JcsError},
    key::{SecretKey, Signature},
    patch::{Patch, PatchError},
    time::Timestamp,
};

/// The `@context` of an update and of its proof: exactly these, in this order (rules U-1 and U-2).
pub const UPDATE_CONTEXT: [&str; 4] = [
    "https://w3id.org/json-ld-patch/v1",
    "https://w3id.org/zcap/v1",
    "https://w3id.org/security/data-integrity/v2",
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

/// What the controller of an update that older software made can do.
const UPGRADE: &str = "software older than btcr2-aggregation 0.2.0 or @did-btcr2/aggregation 0.7.6 signs such updates; \
                       upgrade and sign it again, or decline in this round";

/// Why an update is refused, or could not be built. The text names the rule, and what its controller can do.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// Not a JSON object.
    #[error("the update is not an object")]
    NotAnObject,
    /// No canonical form, and so no hash.
    #[error("the update has no canonical form: {0}")]
    NotCanonical(#[from] JcsError),
    /// A field outside the proof is missing or not of its shape.
    #[error("{field} is not {expected} (rule {rule})")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What it has to be.
        expected: &'static str,
        /// The rule.
        rule: &'static str,
    },
    /// The patch is not one, or is too long.
    #[error("patch: {0} (rule U-12)")]
    Patch(PatchError),
    /// The update does not lead to the next version.
    #[error("targetVersionId is {found}, but the current document has version {current} (rule U-17)")]
    Version {
        /// The version that it states.
        found: u64,
        /// The version of the document that it was checked against.
        current: u64,
    },
    /// The `@context` is another one than updates have.
    #[error("@context is not {UPDATE_CONTEXT:?}, in this order (rule U-1): {UPGRADE}")]
    Context,
    /// The proof is missing, or is not a single object.
    #[error("proof is not an object (rule U-3)")]
    ProofMissing,
    /// The proof's `@context` is another one than updates have.
    #[error("proof.@context is not {UPDATE_CONTEXT:?}, in this order (rule U-2): {UPGRADE}")]
    ProofContext,
    /// A field of the proof is missing or not what this DID's updates have there.
    #[error("proof.{field} is not {expected} (rule {rule})")]
    Proof {
        /// The field's name.
        field: &'static str,
        /// What it has to be.
        expected: &'static str,
        /// The rule.
        rule: &'static str,
    },
    /// The proof does not say which DID it is for.
    #[error("proof.invocationTarget is missing, which every resolver asks for (rule U-4): {UPGRADE}")]
    InvocationTargetMissing,
    /// The verification method may not update the document, or has no key that can be read.
    #[error("proof.verificationMethod: {0}")]
    Method(DocumentError),
    /// The proof expires before it was created.
    #[error("proof.expires is before proof.created (rule U-10)")]
    ExpiresBeforeCreated,
    /// The proof was created after the block that announces it.
    #[error("proof.created is after the time of the block that announces the update (rule U-10)")]
    CreatedAfterBlock,
    /// The proof had expired when it was announced.
    #[error("proof.expires is before the median time of the block that announces the update (rule U-10)")]
    ExpiredInBlock,
    /// The proof expires: a cohort does not take it.
    #[error(
        "proof.expires is set: if the transaction confirms later than that, the DID never resolves again (rule U-10). Sign \
         the update again without expires"
    )]
    Expires,
    /// The proof was created so lately that the block that announces it can have an earlier time: a cohort does not take it.
    #[error(
        "proof.created is less than two hours ago: a block that announces the update can have an earlier time than that, \
         and the DID would never resolve again (rule U-10). Sign the update again without created"
    )]
    CreatedTooLate,
    /// The signature is not one by this key over this update.
    #[error("proof.proofValue is not a signature of this update by the verification method's key (rule U-11)")]
    Signature,
    /// `sourceHash` is not the hash of the document that the update starts from.
    #[error("sourceHash is not the hash of the current document (rule U-16)")]
    SourceHash,
    /// The patch does not apply to the document that the update starts from.
    #[error("patch does not apply to the current document: {0} (rule U-13)")]
    DoesNotApply(PatchError),
    /// `targetHash` is not the hash of the patched document.
    #[error("targetHash is not the hash of the patched document (rule U-16)")]
    TargetHash,
    /// The patched document is another DID's: no resolver would go on from it.
    #[error("the patched document's id is not the DID (rule U-15)")]
    TargetId,
    /// The patched document is not a DID document.
    #[error("the patched document does not conform to DID Core v1.1: {0} (rule U-15)")]
    NotConformant(NotConformant),
}

impl UpdateError {
    /// The code on the wire: `UPDATE_MALFORMED` when this cannot be an update at all, `UPDATE_VERIFICATION_FAILED` when it
    /// is not a valid one of this DID (anything about the proof, a missing one included, and the hashes).
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotAnObject | Self::NotCanonical(_) | Self::Field { .. } | Self::Patch(_) => "UPDATE_MALFORMED",
            _ => "UPDATE_VERIFICATION_FAILED",
        }
    }
}

/// A signed update as it came, with its hash. Two are equal when their hashes are.
///
/// It is only known to be an object with a canonical form; [`verify_update`] checks whether it is valid. Cheap to clone, as it
/// travels from the message through the cohort's state to the announcement.
#[derive(Clone)]
pub struct SignedUpdate(Arc<Inner>);

/// What is known of the canonical bytes of a document.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CanonicalDocument {
    hash: DocumentHash,
    len: usize,
}

impl CanonicalDocument {
    /// Of these canonical bytes.
    pub(crate) fn of(canonical: &[u8]) -> Self {
        Self { hash: DocumentHash::from_bytes(sha256(canonical)), len: canonical.len() }
    }
}

/// At least one of the two forms is there.
struct Inner {
    value: OnceLock<Arc<Value>>,
    json: Option<Box<str>>,
    canonical: CanonicalDocument,
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
        jcs::check(&value, jcs::MAX_DOCUMENT_DEPTH)?;
        let canonical = CanonicalDocument::of(&jcs::canonicalize_checked(&value)?);
        Self::from_canonical(value, canonical)
    }

    /// The same for a value whose depth was checked, and whose canonical bytes are known.
    pub(crate) fn from_canonical(
        value: impl Into<Arc<Value>>,
        canonical: CanonicalDocument,
    ) -> Result<Self, UpdateError> {
        let value = value.into();
        if !value.is_object() {
            return Err(UpdateError::NotAnObject);
        }
        Ok(Self(Arc::new(Inner { value: OnceLock::from(value), json: None, canonical })))
    }

    /// The same update as JSON text, which takes a quarter of the memory and is parsed again when a caller needs its
    /// [`value`](Self::value): for a service that keeps a thousand of them and has verified them.
    pub fn packed(&self) -> Self {
        let json = Some(self.value().to_string().into());
        Self(Arc::new(Inner { value: OnceLock::new(), json, canonical: self.0.canonical }))
    }

    /// The update as JSON, fields in the order in which they came.
    pub fn value(&self) -> &Value {
        self.0.value.get_or_init(|| {
            let json = self.0.json.as_deref().unwrap_or_default();
            let value: Value = serde_json::from_str(json)
                .expect("what was written from a value is JSON, and `from_value` has looked how deep");
            Arc::new(value)
        })
    }

    /// The JSON Document Hash, by which announcements name the update.
    pub fn hash(&self) -> &DocumentHash {
        &self.0.canonical.hash
    }

    /// The hash of the update without its top-level `proof`, by which a resolver recognizes an update, whatever key signed it
    /// (rules U-19 and R-8).
    ///
    /// # Errors
    /// [`UpdateError::NotCanonical`]; an update that has a hash has this one too.
    pub fn unsigned_hash(&self) -> Result<DocumentHash, UpdateError> {
        let fields = self.value().as_object().ok_or(UpdateError::NotAnObject)?;
        Ok(jcs::document_hash(&without(fields, "proof"))?)
    }

    /// Whether the update has the form of the specification's edition of October 2026: its contexts, and whose DID it is for
    /// (rules U-1, U-2 and U-4). Earlier ones are refused by every resolver.
    pub fn is_of_current_edition(&self) -> bool {
        let context = json!(UPDATE_CONTEXT);
        let value = self.value();
        value.get("@context") == Some(&context)
            && value.pointer("/proof/@context") == Some(&context)
            && value.pointer("/proof/invocationTarget").is_some()
    }

    /// The version that the update leads to, if it states one (rule U-17).
    pub fn target_version(&self) -> Option<u64> {
        self.value().get("targetVersionId").and_then(Value::as_u64)
    }

    /// The size of the canonical form, in bytes.
    pub fn canonical_len(&self) -> usize {
        self.0.canonical.len
    }
}

impl PartialEq for SignedUpdate {
    fn eq(&self, other: &Self) -> bool {
        self.hash() == other.hash()
    }
}

impl Eq for SignedUpdate {}

impl fmt::Debug for SignedUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedUpdate({})", self.hash())
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

/// An unsigned update, and the document that it starts from.
#[derive(Clone, Debug, PartialEq)]
pub struct UnsignedUpdate {
    fields: Map<String, Value>,
    source: Value,
    source_version: u64,
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
    let target_version =
        (source_version >= 1).then(|| source_version.checked_add(1)).flatten().ok_or(UpdateError::Field {
            field: "targetVersionId",
            expected: "an integer of at least 2",
            rule: "U-17",
        })?;
    let target =
        Patch::from_value(&patch).map_err(UpdateError::Patch)?.apply(source).map_err(UpdateError::DoesNotApply)?;
    let fields = Map::from_iter([
        ("@context".to_owned(), json!(UPDATE_CONTEXT)),
        ("patch".to_owned(), patch),
        ("targetHash".to_owned(), json!(jcs::document_hash(&target)?)),
        ("targetVersionId".to_owned(), json!(target_version)),
        ("sourceHash".to_owned(), json!(jcs::document_hash(source)?)),
    ]);
    Ok(UnsignedUpdate { fields, source: source.clone(), source_version, target })
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

/// Signs `update` of `did`'s document with the secret key of `verification_method`, and verifies what came of it by every rule
/// (U-23): an invalid update that is announced ends the DID. `verification_method` is written as an absolute DID URL (U-8);
/// neither `created` nor `expires` is.
///
/// # Errors
/// [`UpdateError`], when the version number is beyond what JSON carries exactly, when the method may not update the document
/// or has another key, or when the patched document would be refused.
pub fn sign_update(
    update: &UnsignedUpdate,
    did: &Did,
    verification_method: &str,
    key: &SecretKey,
    rng: &mut dyn CryptoRng,
) -> Result<SignedUpdate, UpdateError> {
    let mut proof = Map::from_iter([
        ("@context".to_owned(), json!(UPDATE_CONTEXT)),
        ("cryptosuite".to_owned(), json!("bip340-jcs-2025")),
        ("type".to_owned(), json!("DataIntegrityProof")),
        ("verificationMethod".to_owned(), json!(document::absolute(&update.source, verification_method))),
        ("proofPurpose".to_owned(), json!("capabilityInvocation")),
        ("capability".to_owned(), json!(root_capability(did))),
        ("capabilityAction".to_owned(), json!("Write")),
        ("invocationTarget".to_owned(), json!(did)),
    ]);
    let digest = signed_digest(&Value::Object(proof.clone()), &update.to_value())?;
    let signature = key.sign(&digest, rng);
    proof.insert("proofValue".to_owned(), json!(encode_proof_value(&signature)));
    let mut fields = update.fields.clone();
    fields.insert("proof".to_owned(), Value::Object(proof));
    let signed = SignedUpdate::from_value(Value::Object(fields))?;
    let context = UpdateContext { did, document: &update.source, version: update.source_version, block: None };
    verify_update(&signed, &context)?;
    Ok(signed)
}

/// An update, and the document that it starts from: what a member puts into a cohort.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    /// The update.
    pub update: SignedUpdate,
    /// The document that the update starts from, and its version. `None` for the first update, which starts from the
    /// initial document: that follows from the DID and its genesis document.
    pub source: Option<(Arc<Value>, u64)>,
}

impl From<SignedUpdate> for Submission {
    /// A first update.
    fn from(update: SignedUpdate) -> Self {
        Self { update, source: None }
    }
}

/// The edition of the rules by which an update or a proof was accepted, as journals record it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Edition {
    /// Before journals recorded it: no current resolver accepts what those rules accepted.
    #[default]
    BeforeOctober2026,
    /// The specification of October 2026.
    October2026,
}

impl Edition {
    /// The edition that this crate checks.
    pub const CURRENT: Self = Self::October2026;

    /// Why what an earlier edition accepted cannot go on.
    pub const OUTDATED: &str = "it was begun by software before btcr2-aggregation 0.2.0, under rules of did:btcr2 that no \
                                resolver applies any more (edition of October 2026): what it would announce would not resolve";
}

/// Refuses what a valid update may have and a cohort does not take, because the time of its confirmation is not known:
/// an `expires`, and a `created` that is not two hours old at `now`. A block has to be later than the median of the eleven
/// before it, not than the clock, so that a later `created` can be after its block (rule U-10).
///
/// # Errors
/// [`UpdateError::Expires`], [`UpdateError::CreatedTooLate`].
pub fn refuse_expiring(update: &SignedUpdate, now: Timestamp) -> Result<(), UpdateError> {
    const MARGIN: u64 = 2 * 3600;
    let Some(proof) = update.value().get("proof") else { return Ok(()) };
    if proof.get("expires").is_some() {
        return Err(UpdateError::Expires);
    }
    let created = proof.get("created").and_then(Value::as_str).and_then(rules::date_time_stamp);
    let latest = u32::try_from(now.as_secs().saturating_sub(MARGIN)).unwrap_or(u32::MAX);
    if created.is_some_and(|created| created > rules::instant(latest)) {
        return Err(UpdateError::CreatedTooLate);
    }
    Ok(())
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
