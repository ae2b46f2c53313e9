//! The rules by which an update counts (rules U-1 to U-23), in the order in which a resolver applies them (U-20).

use std::cell::OnceCell;

use oxsdatatypes::DateTime;
use serde_json::{Map, Value, json};

use super::{
    SignedUpdate, UPDATE_CONTEXT, UpdateError, decode_proof_value, root_capability, signed_digest, without,
};
use crate::{
    did::Did,
    document::{check_conformance, invocation_key},
    hash::DocumentHash,
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
    patch: Patch,
    source_hash: DocumentHash,
    target_hash: DocumentHash,
    target_version: u64,
    target: OnceCell<Result<Value, PatchError>>,
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
        let patch = Patch::from_value(fields.get("patch").unwrap_or(&Value::Null)).map_err(UpdateError::Patch)?;
        Ok(Self {
            target_version: target_version(fields)?,
            source_hash: hash_field(fields, "sourceHash")?,
            target_hash: hash_field(fields, "targetHash")?,
            proof: fields.get("proof").and_then(Value::as_object).ok_or(UpdateError::ProofMissing)?,
            fields,
            context: *context,
            patch,
            target: OnceCell::new(),
        })
    }

    fn proof_text(&self, field: &str) -> Option<&str> {
        self.proof.get(field).and_then(Value::as_str)
    }

    /// The patched document.
    fn target(&self) -> Result<&Value, &PatchError> {
        self.target.get_or_init(|| self.patch.apply(self.context.document)).as_ref()
    }

    fn into_target(self) -> Result<Value, UpdateError> {
        let patched = self.target.into_inner();
        patched.unwrap_or_else(|| self.patch.apply(self.context.document)).map_err(UpdateError::DoesNotApply)
    }

    fn version(&self) -> Result<(), UpdateError> {
        if self.context.version.checked_add(1) == Some(self.target_version) {
            Ok(())
        } else {
            Err(UpdateError::Version { found: self.target_version, current: self.context.version })
        }
    }

    fn source_hash(&self) -> Result<(), UpdateError> {
        if jcs::document_hash(self.context.document)? == self.source_hash {
            Ok(())
        } else {
            Err(UpdateError::SourceHash)
        }
    }

    fn context(&self) -> Result<(), UpdateError> {
        if self.fields.get("@context") == Some(&json!(UPDATE_CONTEXT)) { Ok(()) } else { Err(UpdateError::Context) }
    }

    fn proof_context(&self) -> Result<(), UpdateError> {
        if self.proof.get("@context") == Some(&json!(UPDATE_CONTEXT)) {
            Ok(())
        } else {
            Err(UpdateError::ProofContext)
        }
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

    fn key(&self) -> Result<PublicKey, UpdateError> {
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
        let digest = signed_digest(&without(self.proof, "proofValue"), &without(self.fields, "proof"))?;
        if key.x_only().verify(&digest, &signature) { Ok(()) } else { Err(UpdateError::Signature) }
    }

    fn patch(&self) -> Result<(), UpdateError> {
        self.target().map(|_| ()).map_err(|error| UpdateError::DoesNotApply(error.clone()))
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
        let Ok(target) = self.target() else { return Ok(()) };
        if jcs::document_hash(target)? == self.target_hash { Ok(()) } else { Err(UpdateError::TargetHash) }
    }
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
pub(super) fn date_time_stamp(text: &str) -> Option<DateTime> {
    text.parse::<DateTime>().ok().filter(|stamp| stamp.timezone_offset().is_some())
}

/// A time of the Unix epoch's clock as one that can be compared with a `dateTimeStamp`.
pub(super) fn instant(seconds: u32) -> DateTime {
    let epoch: DateTime = "1970-01-01T00:00:00Z".parse().expect("the epoch is a dateTimeStamp");
    let since = oxsdatatypes::DayTimeDuration::new(i64::from(seconds));
    epoch
        .checked_add_day_time_duration(since)
        .expect("2^32 seconds are 136 years, far inside of what a dateTime holds")
}
