//! How a cohort ends without a transaction, and how a participant's session ends. Both are journaled and reported.

use std::fmt;

use bitcoin::Txid;
use serde::{Deserialize, Serialize};

use super::Unreached;
use crate::{did::Did, id::CohortId, message::control::CohortEnded, update::Edition};

/// Why a cohort ended without a transaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CohortFailure {
    /// Too few members joined in time.
    EnrollmentExpired {
        /// The number of members that had joined.
        admitted: usize,
    },
    /// Members neither submitted nor declined in time.
    UpdatesMissing {
        /// The members that did not respond.
        holdouts: Vec<Did>,
    },
    /// Members gave no verdict in time.
    ValidationMissing {
        /// The members that did not respond.
        holdouts: Vec<Did>,
    },
    /// A member rejected the aggregated data.
    ValidationRejected {
        /// The member that rejected it.
        by: Did,
    },
    /// Members did not confirm their presence before signing.
    MembersAbsent {
        /// The members that did not respond.
        holdouts: Vec<Did>,
    },
    /// The request of a phase did not reach some members. Those members are not at fault.
    NotDelivered {
        /// The members that it did not reach, and why.
        unreached: Unreached,
        /// The members that received the request and did not respond.
        holdouts: Vec<Did>,
    },
    /// The operator provided no transaction, or a wrong one.
    Transaction {
        /// The reason, as text.
        reason: String,
    },
    /// Neither path could be completed.
    Signing {
        /// The reason, as text.
        reason: String,
        /// The members that did not respond.
        holdouts: Vec<Did>,
        /// The members that sent an invalid contribution, and no valid one in time.
        culprits: Vec<Did>,
        /// The members that sent two different contributions for one slot, and are not in `culprits`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        equivocators: Vec<Did>,
        /// The members that were not reached. They are not at fault; the reason names the carrier.
        #[serde(default, skip_serializing_if = "Unreached::is_empty")]
        unreached: Unreached,
    },
    /// It was started under rules that no resolver applies any more.
    Outdated,
    /// The operator ended it.
    Cancelled {
        /// The operator's reason, as text.
        reason: String,
    },
    /// Our own fault.
    Internal {
        /// The reason, as text.
        reason: String,
    },
}

impl CohortFailure {
    /// The reason as a stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::EnrollmentExpired { .. } => "ENROLLMENT_EXPIRED",
            Self::UpdatesMissing { .. } => "UPDATES_MISSING",
            Self::ValidationMissing { .. } => "VALIDATION_MISSING",
            Self::ValidationRejected { .. } => "VALIDATION_REJECTED",
            Self::MembersAbsent { .. } => "MEMBERS_ABSENT",
            Self::NotDelivered { .. } => "NOT_DELIVERED",
            Self::Transaction { .. } => "TRANSACTION_UNAVAILABLE",
            Self::Signing { .. } => "SIGNING_FAILED",
            Self::Outdated => "OUTDATED",
            Self::Cancelled { .. } => "CANCELLED",
            Self::Internal { .. } => "INTERNAL",
        }
    }

    /// The members that made the cohort fail: by silence, by what they sent, or by their verdict.
    pub fn at_fault(&self) -> Vec<Did> {
        match self {
            Self::UpdatesMissing { holdouts }
            | Self::ValidationMissing { holdouts }
            | Self::MembersAbsent { holdouts }
            | Self::NotDelivered { holdouts, .. } => holdouts.clone(),
            Self::ValidationRejected { by } => vec![by.clone()],
            Self::Signing { holdouts, culprits, equivocators, .. } => {
                [holdouts, culprits, equivocators].into_iter().flatten().cloned().collect()
            }
            Self::EnrollmentExpired { .. }
            | Self::Transaction { .. }
            | Self::Outdated
            | Self::Cancelled { .. }
            | Self::Internal { .. } => Vec::new(),
        }
    }

    /// The members that were not reached.
    pub const fn unreached(&self) -> Option<&Unreached> {
        match self {
            Self::NotDelivered { unreached, .. } | Self::Signing { unreached, .. } => Some(unreached),
            _ => None,
        }
    }
}

impl fmt::Display for CohortFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |dids: &[Did]| dids.iter().map(Did::as_str).collect::<Vec<_>>().join(", ");
        match self {
            Self::EnrollmentExpired { admitted } => write!(f, "only {admitted} members joined in time"),
            Self::UpdatesMissing { holdouts } => write!(f, "no update or decline from {}", list(holdouts)),
            Self::ValidationMissing { holdouts } => write!(f, "no validation from {}", list(holdouts)),
            Self::ValidationRejected { by } => write!(f, "{by} rejected the aggregated data"),
            Self::MembersAbsent { holdouts } => write!(f, "no presence confirmation from {}", list(holdouts)),
            Self::NotDelivered { unreached, holdouts } => {
                write!(f, "{unreached}")?;
                if holdouts.is_empty() { Ok(()) } else { write!(f, "; silent: {}", list(holdouts)) }
            }
            Self::Transaction { reason } => write!(f, "no beacon transaction: {reason}"),
            Self::Signing { reason, holdouts, culprits, equivocators, .. } => {
                f.write_str(reason)?;
                if !holdouts.is_empty() {
                    write!(f, "; silent: {}", list(holdouts))?;
                }
                if !culprits.is_empty() {
                    write!(f, "; invalid: {}", list(culprits))?;
                }
                if !equivocators.is_empty() {
                    write!(f, "; equivocating: {}", list(equivocators))?;
                }
                Ok(())
            }
            Self::Outdated => f.write_str(Edition::OUTDATED),
            Self::Cancelled { reason } => write!(f, "cancelled: {reason}"),
            Self::Internal { reason } => write!(f, "internal error: {reason}"),
        }
    }
}

/// Why a participant's session ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SessionEnd {
    /// The host did not want to join.
    NotJoined,
    /// We signed, and the time in which the service may request the fallback is over. The fate of the transaction is
    /// not known here.
    Signed,
    /// The signed transaction was seen and verified: it announces what we approved.
    Completed {
        /// Its identifier.
        txid: Txid,
    },
    /// We rejected the aggregated data.
    DataRejected {
        /// Why.
        reason: String,
    },
    /// The host refused to sign.
    SigningRefused,
    /// The service did not send the next message in time.
    TimedOut {
        /// The phase, as text: [`Phase::name`](super::participant::phase::Phase::name).
        phase: String,
    },
    /// The service ended the cohort.
    EndedByService {
        /// [`CohortFailure::code`], or another code that the service sent.
        code: String,
        /// The service's reason, as text.
        reason: String,
        /// Whether the service reports that it was our fault.
        at_fault: bool,
        /// The cohort that replaces it, if there is one.
        next: Option<CohortId>,
    },
    /// Our update, or the data that we approved, follows rules that no resolver applies any more.
    Outdated,
    /// The host left.
    Left,
    /// Our own fault.
    Internal {
        /// The reason, as text.
        reason: String,
    },
}

impl SessionEnd {
    /// Whether the transaction is signed: we verified it, or the service reported it.
    pub fn says_completed(&self) -> bool {
        match self {
            Self::Completed { .. } => true,
            Self::EndedByService { code, .. } => code == CohortEnded::COMPLETED,
            _ => false,
        }
    }
}

impl fmt::Display for SessionEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJoined => f.write_str("not joined"),
            Self::Signed => f.write_str("signed by us; the fate of the transaction is not known"),
            Self::Completed { txid } => write!(f, "the signed transaction {txid} was verified"),
            Self::DataRejected { reason } => write!(f, "the aggregated data was rejected: {reason}"),
            Self::SigningRefused => f.write_str("signing was refused"),
            Self::TimedOut { phase } => write!(f, "the service did not respond in time while {phase}"),
            Self::EndedByService { reason, at_fault, .. } => {
                write!(f, "the service ended the cohort: {reason}")?;
                if *at_fault { f.write_str(", and reports that it was our fault") } else { Ok(()) }
            }
            Self::Outdated => f.write_str(Edition::OUTDATED),
            Self::Left => f.write_str("left"),
            Self::Internal { reason } => write!(f, "internal error: {reason}"),
        }
    }
}
