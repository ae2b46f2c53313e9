//! How a cohort ends without a transaction, and how a participant's part in it does. Both are journaled, and told.

use std::fmt;

use bitcoin::Txid;
use serde::{Deserialize, Serialize};

use crate::{did::Did, id::CohortId, message::control::CohortEnded, update::Edition};

/// Why a cohort ended without a transaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CohortFailure {
    /// Too few members in time.
    EnrollmentExpired {
        /// How many there were.
        admitted: usize,
    },
    /// Members neither submitted nor declined in time.
    UpdatesMissing {
        /// Who.
        holdouts: Vec<Did>,
    },
    /// Members gave no verdict in time.
    ValidationMissing {
        /// Who.
        holdouts: Vec<Did>,
    },
    /// A member rejected the aggregated data.
    ValidationRejected {
        /// Who.
        by: Did,
    },
    /// Members gave no sign of life before signing.
    MembersAbsent {
        /// Who.
        holdouts: Vec<Did>,
    },
    /// What members were asked in a phase has reached some of them on no way. Those are at no fault.
    NotDelivered {
        /// Whom it has not reached.
        to: Vec<Did>,
        /// Who has got it, and kept silent.
        holdouts: Vec<Did>,
        /// Which carrier has not taken it, and why, in words.
        carrier: String,
    },
    /// The operator provided no transaction, or a wrong one.
    Transaction {
        /// In words.
        reason: String,
    },
    /// Neither path could be completed.
    Signing {
        /// In words.
        reason: String,
        /// Who kept silent.
        holdouts: Vec<Did>,
        /// Who sent an invalid contribution, and no valid one in time.
        culprits: Vec<Did>,
        /// Who said two different things in one place, and is no culprit.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        equivocators: Vec<Did>,
    },
    /// It was begun under rules that no resolver applies any more.
    Outdated,
    /// The operator ended it.
    Cancelled {
        /// In words.
        reason: String,
    },
    /// Our own fault.
    Internal {
        /// In words.
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

    /// The members that the cohort failed for: by silence, by what they sent, or by their verdict.
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
}

impl fmt::Display for CohortFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |dids: &[Did]| dids.iter().map(Did::as_str).collect::<Vec<_>>().join(", ");
        match self {
            Self::EnrollmentExpired { admitted } => write!(f, "only {admitted} members joined in time"),
            Self::UpdatesMissing { holdouts } => write!(f, "no update or decline from {}", list(holdouts)),
            Self::ValidationMissing { holdouts } => write!(f, "no validation from {}", list(holdouts)),
            Self::ValidationRejected { by } => write!(f, "{by} rejected the aggregated data"),
            Self::MembersAbsent { holdouts } => write!(f, "no sign of life from {}", list(holdouts)),
            Self::NotDelivered { to, holdouts, carrier } => {
                write!(f, "not delivered to {}: {carrier}", list(to))?;
                if holdouts.is_empty() { Ok(()) } else { write!(f, "; silent: {}", list(holdouts)) }
            }
            Self::Transaction { reason } => write!(f, "no beacon transaction: {reason}"),
            Self::Signing { reason, holdouts, culprits, equivocators } => {
                f.write_str(reason)?;
                if !holdouts.is_empty() {
                    write!(f, "; silent: {}", list(holdouts))?;
                }
                if !culprits.is_empty() {
                    write!(f, "; invalid: {}", list(culprits))?;
                }
                if !equivocators.is_empty() {
                    write!(f, "; contradicting themselves: {}", list(equivocators))?;
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
    /// We signed, and the time to ask us for the fallback is over: what became of the transaction is not known here.
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
    /// The service left us waiting too long.
    TimedOut {
        /// In which phase.
        phase: String,
    },
    /// The service ended the cohort.
    EndedByService {
        /// How, for machines: [`CohortFailure::code`], or what else the service says.
        code: String,
        /// How, in the service's words.
        reason: String,
        /// Whether it was our fault, in the service's view.
        at_fault: bool,
        /// The cohort that takes its place, if there is one.
        next: Option<CohortId>,
    },
    /// What we submitted, or approved, follows rules that no resolver applies any more.
    Outdated,
    /// The host left.
    Left,
    /// Our own fault.
    Internal {
        /// In words.
        reason: String,
    },
}

impl SessionEnd {
    /// Whether the transaction is signed, by what was seen or by the service's word.
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
            Self::Signed => f.write_str("signed by us; what became of the transaction is not known"),
            Self::Completed { txid } => write!(f, "the signed transaction {txid} was verified"),
            Self::DataRejected { reason } => write!(f, "the aggregated data was rejected: {reason}"),
            Self::SigningRefused => f.write_str("signing was refused"),
            Self::TimedOut { phase } => write!(f, "the service was not heard from in time while {phase}"),
            Self::EndedByService { reason, at_fault, .. } => {
                write!(f, "the service ended the cohort: {reason}")?;
                if *at_fault { f.write_str(", and says that it was our fault") } else { Ok(()) }
            }
            Self::Outdated => f.write_str(Edition::OUTDATED),
            Self::Left => f.write_str("left"),
            Self::Internal { reason } => write!(f, "internal error: {reason}"),
        }
    }
}
