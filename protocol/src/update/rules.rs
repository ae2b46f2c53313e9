//! The rules by which an update counts (rules U-1 to U-23), in the order in which a resolver applies them (U-20).

use std::cell::OnceCell;

use oxsdatatypes::DateTime;
use serde_json::{Map, Value};

use super::{SignedUpdate, UPDATE_CONTEXT, UpdateError, decode_proof_value, root_capability};
use crate::{
    did::Did,
    document::{DocumentError, check_conformance, invocation_key},
    hash::{DocumentHash, sha256_concat},
    jcs,
    key::{PublicKey, Signature},
    patch::{Patch, PatchError},
};

/// What an update is checked against.
#[derive(Clone, Copy, Debug)]
pub struct UpdateContext<'a> {
    /// The DID whose document is updated.
    pub did: &'a Did,
    /// Its document.
    pub document: &'a Value,
    /// The version of that document; 1 is the initial one.
    pub version: u64,
    /// The block of the signal that announces the update, where there is one already.
    pub block: Option<BlockTimes>,
}

/// The times of a block that rule U-10 compares with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockTimes {
    /// Its header's time, in seconds since the Unix epoch.
    pub time: u32,
    /// The median of the times of it and the ten blocks before it (BIP-113), in seconds since the Unix epoch.
    pub mediantime: u32,
}

/// The document that `update` makes of `context.document`, if it is a valid update of it: every rule, in the order U-20.
///
/// Whether a cohort takes it is another question: see [`refuse_expiring`](super::refuse_expiring).
///
/// # Errors
/// The first rule that is broken.
pub fn verify_update(update: &SignedUpdate, context: &UpdateContext<'_>) -> Result<Value, UpdateError> {
    let check = Check::new(update, context)?;
    Check::STEP.iter().try_for_each(|rule| rule(&check))?;
    check.into_target()
}

/// The same for an update that a signal announces, as a resolver applies it: what is malformed is refused where U-20
/// has its turn, and not before everything else as in a cohort. [`shape`] is a resolver's first look.
///
/// # Errors
/// The first rule that is broken.
pub(crate) fn verify_announced(update: &SignedUpdate, context: &UpdateContext<'_>) -> Result<Value, UpdateError> {
    let check = Check::read(update, context)?;
    Check::STEP.iter().try_for_each(|rule| rule(&check))?;
    check.into_target()
}

/// [`verify_announced`] without rule U-4 for an update that has no `invocationTarget`: for public test cases that were
/// recorded before that rule.
#[cfg(feature = "sim")]
pub(crate) fn verify_recorded(update: &SignedUpdate, context: &UpdateContext<'_>) -> Result<Value, UpdateError> {
    let check = Check::read(update, context)?;
    Check::STEP.iter().try_for_each(|rule| match rule(&check) {
        Err(UpdateError::InvocationTargetMissing) => Ok(()),
        verdict => verdict,
    })?;
    check.into_target()
}

/// The version that an update leads to, if it looks like an update at all: an array `patch`, hashes that are text, a
/// `targetVersionId` of at least 2, and an object `proof` (rules C4 and U-17).
///
/// # Errors
/// What it lacks.
pub(crate) fn shape(update: &SignedUpdate) -> Result<u64, UpdateError> {
    let fields = update.value().as_object().ok_or(UpdateError::NotAnObject)?;
    if !fields.get("patch").is_some_and(Value::is_array) {
        return Err(UpdateError::Patch(PatchError::NotAPatch));
    }
    for field in ["sourceHash", "targetHash"] {
        if !fields.get(field).is_some_and(Value::is_string) {
            return Err(UpdateError::Field { field, expected: "text", rule: "U-16" });
        }
    }
    let version = target_version(fields)?;
    if !fields.get("proof").is_some_and(Value::is_object) {
        return Err(UpdateError::ProofMissing);
    }
    Ok(version)
}

/// Whether the proof of an update is valid as far as that can be said with another document than the one that it starts
/// from: `context.document` is an older one. Everything is checked but the version, the hashes and the patch, and the key has
/// to be one that the older document authorizes.
///
/// # Errors
/// The first rule that is broken.
pub fn verify_proof(update: &SignedUpdate, context: &UpdateContext<'_>) -> Result<(), UpdateError> {
    let check = Check::new(update, context)?;
    Check::PROOF.iter().try_for_each(|rule| rule(&check))
}

/// [`verify_proof`] for a verifier that knows the first document only, e.g. the service of a cohort. A method that this
/// document does not authorize may be one of a later document: its key was added, or took the place of another (rules U-6
/// and U-7). Such an update passes without a look at its signature, and everything else is checked.
///
/// A wrong signature harms only the DID that it is for: resolvers look up the DID's own entry of an announcement only
/// (rule C-3). Its controller checks it against the current document.
///
/// # Errors
/// The first rule that is broken, as far as that is known.
pub fn verify_later_proof(update: &SignedUpdate, context: &UpdateContext<'_>) -> Result<(), UpdateError> {
    let check = Check::new(update, context)?;
    Check::PROOF.iter().try_for_each(|rule| match rule(&check) {
        // Without a key the rule of the signature checks its form only.
        Err(UpdateError::Method(DocumentError::NotAuthorized { .. } | DocumentError::MethodNotFound { .. })) => {
            Ok(())
        }
        verdict => verdict,
    })
}

/// All rules that `update` breaks, in the order U-20. What follows from another fault is not named again: a patch that does not
/// apply gives no document whose hash could be wrong.
pub fn violations(update: &SignedUpdate, context: &UpdateContext<'_>) -> Vec<UpdateError> {
    match Check::new(update, context) {
        Ok(check) => Check::STEP.iter().filter_map(|rule| rule(&check).err()).collect(),
        Err(error) => vec![error],
    }
}

type Rule<'a> = fn(&Check<'a>) -> Result<(), UpdateError>;

/// An update, read, and what it is checked against.
struct Check<'a> {
    fields: &'a Map<String, Value>,
    proof: &'a Map<String, Value>,
    context: UpdateContext<'a>,
    target_version: u64,
    patch: OnceCell<Result<Patch, PatchError>>,
    key: OnceCell<PublicKey>,
    target: OnceCell<Result<Value, Unpatched>>,
}

/// Why there is no patched document.
#[derive(Clone)]
enum Unpatched {
    /// The patch is none.
    Malformed(PatchError),
    /// It does not apply.
    DoesNotApply(PatchError),
}

impl From<Unpatched> for UpdateError {
    fn from(reason: Unpatched) -> Self {
        match reason {
            Unpatched::Malformed(error) => Self::Patch(error),
            Unpatched::DoesNotApply(error) => Self::DoesNotApply(error),
        }
    }
}

impl<'a> Check<'a> {
    /// What the proof has to be, whatever document the update starts from.
    const PROOF: [Rule<'a>; 6] =
        [Self::context, Self::proof_context, Self::proof_fields, Self::method, Self::times, Self::signature];

    /// All rules, in the order U-20.
    const STEP: [Rule<'a>; 12] = [
        Self::version,
        Self::source_hash,
        Self::context,
        Self::proof_context,
        Self::proof_fields,
        Self::method,
        Self::times,
        Self::signature,
        Self::patch,
        Self::target_id,
        Self::conformance,
        Self::target_hash,
    ];

    /// Reads an update, and refuses what is malformed before any rule is asked.
    fn new(update: &'a SignedUpdate, context: &UpdateContext<'a>) -> Result<Self, UpdateError> {
        // A SignedUpdate is an object by construction.
        let fields = update.value().as_object().ok_or(UpdateError::NotAnObject)?;
        let contexts = fields.get("@context").and_then(Value::as_array);
        if !contexts.is_some_and(|entries| !entries.is_empty() && entries.iter().all(Value::is_string)) {
            return Err(UpdateError::Field {
                field: "@context",
                expected: "an array of context URLs",
                rule: "U-1",
            });
        }
        let patch = read_patch(fields).map_err(UpdateError::Patch)?;
        target_version(fields)?;
        hash_field(fields, "sourceHash")?;
        hash_field(fields, "targetHash")?;
        Ok(Self { patch: OnceCell::from(Ok(patch)), ..Self::read(update, context)? })
    }

    /// Reads what every rule needs; the rest is read, and refused, by the rule that looks at it.
    fn read(update: &'a SignedUpdate, context: &UpdateContext<'a>) -> Result<Self, UpdateError> {
        let fields = update.value().as_object().ok_or(UpdateError::NotAnObject)?;
        Ok(Self {
            target_version: target_version(fields)?,
            proof: fields.get("proof").and_then(Value::as_object).ok_or(UpdateError::ProofMissing)?,
            fields,
            context: *context,
            patch: OnceCell::new(),
            key: OnceCell::new(),
            target: OnceCell::new(),
        })
    }

    fn proof_text(&self, field: &str) -> Option<&str> {
        self.proof.get(field).and_then(Value::as_str)
    }

    /// The patched document.
    fn target(&self) -> Result<&Value, &Unpatched> {
        self.target.get_or_init(|| self.patched()).as_ref()
    }

    fn patched(&self) -> Result<Value, Unpatched> {
        let patch = self.patch.get_or_init(|| read_patch(self.fields)).as_ref();
        let patch = patch.map_err(|error| Unpatched::Malformed(error.clone()))?;
        patch.apply(self.context.document).map_err(Unpatched::DoesNotApply)
    }

    fn into_target(mut self) -> Result<Value, UpdateError> {
        let patched = self.target.take();
        Ok(patched.unwrap_or_else(|| self.patched())?)
    }

    fn version(&self) -> Result<(), UpdateError> {
        if self.context.version.checked_add(1) == Some(self.target_version) {
            Ok(())
        } else {
            Err(UpdateError::Version { found: self.target_version, current: self.context.version })
        }
    }

    fn source_hash(&self) -> Result<(), UpdateError> {
        let expected = hash_field(self.fields, "sourceHash")?;
        if jcs::document_hash(self.context.document)? == expected { Ok(()) } else { Err(UpdateError::SourceHash) }
    }

    fn context(&self) -> Result<(), UpdateError> {
        if is_update_context(self.fields.get("@context")) { Ok(()) } else { Err(UpdateError::Context) }
    }

    fn proof_context(&self) -> Result<(), UpdateError> {
        if is_update_context(self.proof.get("@context")) { Ok(()) } else { Err(UpdateError::ProofContext) }
    }

    /// U-3, U-5, U-4.
    fn proof_fields(&self) -> Result<(), UpdateError> {
        for (field, expected) in super::PROOF_CONSTANTS {
            if self.proof_text(field) != Some(expected) {
                return Err(UpdateError::Proof { field, expected, rule: "U-3" });
            }
        }
        if self.proof_text("capability") != Some(&*root_capability(self.context.did)) {
            let expected = "the root capability of this DID, urn:zcap:root: and the percent-encoded DID";
            return Err(UpdateError::Proof { field: "capability", expected, rule: "U-5" });
        }
        match self.proof.get("invocationTarget") {
            Some(target) if target.as_str() == Some(self.context.did.as_str()) => Ok(()),
            Some(_) => Err(UpdateError::Proof {
                field: "invocationTarget",
                expected: "the DID that is updated",
                rule: "U-4",
            }),
            None => Err(UpdateError::InvocationTargetMissing),
        }
    }

    /// U-6, U-7: membership in `capabilityInvocation` first, then the method.
    fn method(&self) -> Result<(), UpdateError> {
        self.key().map(|_| ())
    }

    /// The key, which two rules ask for: to read it takes a square root.
    fn key(&self) -> Result<PublicKey, UpdateError> {
        match self.key.get() {
            Some(key) => Ok(*key),
            None => self.find_key().map(|key| *self.key.get_or_init(|| key)),
        }
    }

    fn find_key(&self) -> Result<PublicKey, UpdateError> {
        let expected = "the DID URL of the method that signed";
        let method = self
            .proof_text("verificationMethod")
            .filter(|method| !method.is_empty())
            .ok_or(UpdateError::Proof { field: "verificationMethod", expected, rule: "U-6" })?;
        invocation_key(self.context.document, method).map_err(UpdateError::Method)
    }

    /// U-9, U-10.
    fn times(&self) -> Result<(), UpdateError> {
        let read = |field: &'static str| match self.proof.get(field) {
            Some(value) => match value.as_str().and_then(date_time_stamp) {
                Some(stamp) => Ok(Some(stamp)),
                None => Err(UpdateError::Proof {
                    field,
                    expected: "an XML dateTimeStamp with a time zone, 2026-10-01T12:00:00Z",
                    rule: "U-9",
                }),
            },
            None => Ok(None),
        };
        let (created, expires) = (read("created")?, read("expires")?);
        if let (Some(created), Some(expires)) = (created, expires)
            && expires < created
        {
            return Err(UpdateError::ExpiresBeforeCreated);
        }
        let Some(block) = self.context.block else { return Ok(()) };
        if created.is_some_and(|created| created > instant(block.time)) {
            return Err(UpdateError::CreatedAfterBlock);
        }
        if expires.is_some_and(|expires| expires < instant(block.mediantime)) {
            return Err(UpdateError::ExpiredInBlock);
        }
        Ok(())
    }

    fn signature(&self) -> Result<(), UpdateError> {
        let signature: Signature =
            self.proof_text("proofValue").and_then(decode_proof_value).ok_or(UpdateError::Proof {
                field: "proofValue",
                expected: "z and base58btc of 64 bytes",
                rule: "U-11",
            })?;
        // Without the method there is no key; that is named by its own rule.
        let Ok(key) = self.key() else { return Ok(()) };
        let config = jcs::hash_without(self.proof, "proofValue")?;
        let digest = sha256_concat(&[&config, &jcs::hash_without(self.fields, "proof")?]);
        if key.x_only().verify(&digest, &signature) { Ok(()) } else { Err(UpdateError::Signature) }
    }

    fn patch(&self) -> Result<(), UpdateError> {
        self.target().map(|_| ()).map_err(|reason| reason.clone().into())
    }

    fn target_id(&self) -> Result<(), UpdateError> {
        let Ok(target) = self.target() else { return Ok(()) };
        let id = target.get("id").and_then(Value::as_str);
        if id == Some(self.context.did.as_str()) { Ok(()) } else { Err(UpdateError::TargetId) }
    }

    fn conformance(&self) -> Result<(), UpdateError> {
        let Ok(target) = self.target() else { return Ok(()) };
        check_conformance(target).map_err(UpdateError::NotConformant)
    }

    fn target_hash(&self) -> Result<(), UpdateError> {
        let expected = hash_field(self.fields, "targetHash")?;
        let Ok(target) = self.target() else { return Ok(()) };
        if jcs::document_hash(target)? == expected { Ok(()) } else { Err(UpdateError::TargetHash) }
    }
}

/// U-1, U-2.
fn is_update_context(value: Option<&Value>) -> bool {
    let entries = value.and_then(Value::as_array).into_iter().flatten();
    value.is_some_and(Value::is_array) && entries.map(Value::as_str).eq(UPDATE_CONTEXT.map(Some))
}

/// U-12.
fn read_patch(fields: &Map<String, Value>) -> Result<Patch, PatchError> {
    Patch::from_value(fields.get("patch").unwrap_or(&Value::Null))
}

/// U-17.
pub(super) fn target_version(fields: &Map<String, Value>) -> Result<u64, UpdateError> {
    let version = fields.get("targetVersionId").and_then(Value::as_u64).filter(|version| *version >= 2);
    version.ok_or(UpdateError::Field {
        field: "targetVersionId",
        expected: "an integer of at least 2",
        rule: "U-17",
    })
}

/// U-16.
fn hash_field(fields: &Map<String, Value>, field: &'static str) -> Result<DocumentHash, UpdateError> {
    fields.get(field).and_then(Value::as_str).and_then(|text| text.parse().ok()).ok_or(UpdateError::Field {
        field,
        expected: "base64url of 32 bytes without padding",
        rule: "U-16",
    })
}

/// XML Schema 1.1, `dateTimeStamp`: a `dateTime` whose time zone is given.
pub(crate) fn date_time_stamp(text: &str) -> Option<DateTime> {
    text.parse::<DateTime>().ok().filter(|stamp| stamp.timezone_offset().is_some())
}

/// A time of the Unix epoch's clock as one that can be compared with a `dateTimeStamp`.
pub(crate) fn instant(seconds: u32) -> DateTime {
    let epoch: DateTime = "1970-01-01T00:00:00Z".parse().expect("the epoch is a dateTimeStamp");
    let since = oxsdatatypes::DayTimeDuration::new(i64::from(seconds));
    epoch
        .checked_add_day_time_duration(since)
        .expect("2^32 seconds are 136 years, far inside of what a dateTime holds")
}
