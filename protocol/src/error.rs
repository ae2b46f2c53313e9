//! Errors, by the party that is at fault.
//!
//! A [`Reject`] is the peer's fault: the machine's state is unchanged and the peer is named. A [`Retry`] is the
//! environment's: the same operation may succeed later. A [`Fatal`] is our own: only this cohort fails.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::did::Did;

/// Why a message was rejected, as a stable code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum RejectCode {
    /// The message's protocol version is not supported.
    WrongVersion,
    /// The message does not have the shape of its type.
    Malformed,
    /// The message belongs to another cohort or session.
    WrongCohort,
    /// The message does not fit the phase that the cohort is in.
    WrongPhase,
    /// The sender may not send this type: it is not the service of the advert, or it is the service itself.
    WrongSender,
    /// The sender is not a member of the cohort.
    NotAMember,
    /// The cohort admits no more participants.
    CohortFull,
    /// The member was excluded when its cohort was formed again.
    Excluded,
    /// The sender has filled this slot with other bytes before.
    Equivocation,
    /// A key is not a curve point, or is not the key that the sender's DID proves.
    InvalidKey,
    /// The key already belongs to another member.
    DuplicateKey,
    /// The update is larger than the limit.
    UpdateTooLarge,
    /// The update is not a signed update.
    UpdateMalformed,
    /// The update's proof, capability or hashes are wrong.
    UpdateVerificationFailed,
    /// A public nonce is not two curve points.
    InvalidNonce,
    /// A partial signature is not valid for its sender.
    BadPartialSignature,
    /// A fallback signature is not valid for its sender.
    BadFallbackSignature,
    /// The terms of an advert are not acceptable.
    UnacceptableTerms,
    /// The beacon address does not follow from keys and terms.
    AddressMismatch,
    /// The aggregated data does not hold the member's own slot, or does not give the signal.
    DataMismatch,
    /// The transaction does not spend the cohort's output for exactly the signal.
    TransactionMismatch,
    /// This member has already taken part in the signing session, or another session is open.
    SessionSpent,
}

impl RejectCode {
    /// The code as it is logged and sent.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WrongVersion => "WRONG_VERSION",
            Self::Malformed => "MALFORMED",
            Self::WrongCohort => "WRONG_COHORT",
            Self::WrongPhase => "WRONG_PHASE",
            Self::WrongSender => "WRONG_SENDER",
            Self::NotAMember => "NOT_A_MEMBER",
            Self::CohortFull => "COHORT_FULL",
            Self::Excluded => "EXCLUDED",
            Self::Equivocation => "EQUIVOCATION",
            Self::InvalidKey => "INVALID_KEY",
            Self::DuplicateKey => "DUPLICATE_KEY",
            Self::UpdateTooLarge => "UPDATE_TOO_LARGE",
            Self::UpdateMalformed => "UPDATE_MALFORMED",
            Self::UpdateVerificationFailed => "UPDATE_VERIFICATION_FAILED",
            Self::InvalidNonce => "INVALID_NONCE",
            Self::BadPartialSignature => "BAD_PARTIAL_SIGNATURE",
            Self::BadFallbackSignature => "BAD_FALLBACK_SIGNATURE",
            Self::UnacceptableTerms => "UNACCEPTABLE_TERMS",
            Self::AddressMismatch => "ADDRESS_MISMATCH",
            Self::DataMismatch => "DATA_MISMATCH",
            Self::TransactionMismatch => "TRANSACTION_MISMATCH",
            Self::SessionSpent => "SESSION_SPENT",
        }
    }
}

impl fmt::Display for RejectCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A peer's message was rejected. The state of the machine is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{code}: {detail}")]
pub struct Reject {
    /// The reason, as a stable code.
    pub code: RejectCode,
    /// The sender of the message; `None` for an input of our own host.
    pub peer: Option<Did>,
    /// The reason, as text.
    pub detail: String,
}

impl Reject {
    /// A rejection of `peer`'s message.
    pub fn new(code: RejectCode, peer: &Did, detail: impl fmt::Display) -> Self {
        Self { code, peer: Some(peer.clone()), detail: detail.to_string() }
    }

    /// A rejection of our own host's input: it cannot be done now.
    pub fn not_now(detail: impl fmt::Display) -> Self {
        Self { code: RejectCode::WrongPhase, peer: None, detail: detail.to_string() }
    }

    /// A rejection of our own host's input: it does not fit the phase of the machine.
    pub(crate) fn out_of_phase(input: &'static str, phase: &'static str) -> Self {
        Self::not_now(format_args!("{input} does not fit the phase {phase}"))
    }
}

/// The environment could not do it now; the same operation may succeed later.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{0}")]
pub struct Retry(pub String);

/// Our own side is at fault; the operation will never succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{0}")]
pub struct Fatal(pub String);

/// A recorded fault of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The member.
    pub did: Did,
    /// The kind of fault.
    pub code: RejectCode,
    /// The contribution slot that it concerns.
    pub slot: Slot,
    /// The details, as text.
    pub detail: String,
}

impl From<&Fault> for Reject {
    fn from(fault: &Fault) -> Self {
        Self::new(fault.code, &fault.did, &fault.detail)
    }
}

/// A contribution that a member makes once: the same bytes again change nothing, other bytes are equivocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Slot {
    /// Its opt-in.
    OptIn,
    /// Its update, or its decision to decline.
    Update,
    /// Its validation of the aggregated data.
    Validation,
    /// Its public nonce.
    Nonce,
    /// Its partial signature.
    PartialSignature,
    /// Its fallback signature.
    FallbackSignature,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OptIn => "opt-in",
            Self::Update => "update",
            Self::Validation => "validation",
            Self::Nonce => "nonce",
            Self::PartialSignature => "partial signature",
            Self::FallbackSignature => "fallback signature",
        })
    }
}

/// The recorded faults of a cohort or session: at most one per member and slot, so that a member that continues to
/// misbehave cannot make the record grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(std::collections::BTreeMap<(Did, Slot), Fault>);

impl Faults {
    pub(crate) fn record(&mut self, fault: &Fault) {
        self.0.entry((fault.did.clone(), fault.slot)).or_insert_with(|| fault.clone());
    }

    /// All recorded faults, by member.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.values()
    }

    /// Classifies an observed fault: `Ok` when it is new and must be recorded as an event, `Err` when it is already
    /// recorded and the message is only rejected.
    pub(crate) fn observe(&self, did: &Did, code: RejectCode, slot: Slot, detail: String) -> Result<Fault, Reject> {
        let fault = Fault { did: did.clone(), code, slot, detail };
        if self.0.contains_key(&(did.clone(), slot)) { Err(Reject::from(&fault)) } else { Ok(fault) }
    }

    /// The fault of sending other bytes for a slot that was filled before.
    pub(crate) fn equivocation(&self, did: &Did, slot: Slot) -> Result<Fault, Reject> {
        let detail = format!("another {slot} was received from this member before; the first one stands");
        self.observe(did, RejectCode::Equivocation, slot, detail)
    }
}
