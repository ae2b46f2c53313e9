//! Why a resolution fails.

use std::sync::Arc;

use bitcoin::Txid;

use super::{
    failure::{ErrorCode, FailureRule},
    options::OptionsError,
    sidecar::SidecarError,
    signal::{Beacon, BeaconSignal},
};
use crate::{
    beacon::BeaconMismatch, did::DidError, document::DocumentError, hash::DocumentHash, text::shown,
    update::UpdateError,
};

/// Why a resolution fails. The text states where, what was found and what was expected; [`code`](Self::code) is what a
/// resolver returns.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolutionError {
    /// Not an identifier.
    #[error("{0}")]
    Did(#[from] DidError),
    /// The options are invalid.
    #[error("{0}")]
    Options(#[from] OptionsError),
    /// The Sidecar Data are none.
    #[error("{0}")]
    Sidecar(#[from] SidecarError),
    /// The genesis document is nowhere.
    #[error("the genesis document {hash} is neither in the Sidecar Data nor in the content store")]
    GenesisMissing {
        /// Its hash.
        hash: DocumentHash,
    },
    /// The genesis document is not the DID's, or makes no initial document.
    #[error("the genesis document: {}", shown(&.0.to_string()))]
    Genesis(Arc<DocumentError>),
    /// There is no such version.
    #[error(
        "there is no version {asked}: the newest is {newest}{}",
        if *.deactivated { ", which deactivates the DID" } else { "" }
    )]
    NoSuchVersion {
        /// What was asked for, fit to be shown.
        asked: String,
        /// The newest version.
        newest: u64,
        /// Whether it deactivates the DID.
        deactivated: bool,
    },
    /// A signal has confirmations enough, and no block.
    #[error(
        "the source of the chain gives no height, time or mediantime of the block of transaction {txid}, a signal of {beacon}"
    )]
    BlockUnknown {
        /// The transaction.
        txid: Txid,
        /// The beacon.
        beacon: Arc<Beacon>,
    },
    /// What a signal commits to is nowhere.
    #[error("{0}")]
    Missing(Missing),
    /// The SMT proof for a signal is malformed or does not verify.
    #[error("{signal}: the SMT proof {}", shown(&.reason.to_string()))]
    SmtProof {
        /// The signal.
        signal: Arc<BeaconSignal>,
        /// What is wrong with it.
        reason: ProofFault,
    },
    /// What the caller gave for a hash has another one.
    #[error("{signal} commits to the {content} {expected}, but what was given for it has the hash {found}")]
    OtherHash {
        /// The signal.
        signal: Arc<BeaconSignal>,
        /// "update" or "CAS Announcement".
        content: &'static str,
        /// The hash that is committed to.
        expected: DocumentHash,
        /// The hash of what was given.
        found: DocumentHash,
    },
    /// What a CAS beacon's signal commits to is not an announcement.
    #[error("{signal}: what has the hash {hash} is not a CAS Announcement, but {problem}")]
    NotAnAnnouncement {
        /// The signal.
        signal: Arc<BeaconSignal>,
        /// The hash that is committed to.
        hash: DocumentHash,
        /// What it is.
        problem: String,
    },
    /// What a signal announces is not an update.
    #[error("{signal}: what has the hash {hash} is not an update: {}", shown(&.error.to_string()))]
    NotAnUpdate {
        /// The signal.
        signal: Arc<BeaconSignal>,
        /// The hash that is announced.
        hash: DocumentHash,
        /// What is wrong with it.
        error: Arc<UpdateError>,
    },
    /// An update is not valid.
    #[error("{signal}: the update {hash} to version {version} is invalid: {}", shown(&.error.to_string()))]
    InvalidUpdate {
        /// The signal.
        signal: Arc<BeaconSignal>,
        /// The update's hash.
        hash: DocumentHash,
        /// The version to which it leads.
        version: u64,
        /// The first rule that it breaks.
        error: Arc<UpdateError>,
    },
    /// A second, different update to a version.
    #[error(
        "{signal}: the update {hash} to version {version} is another one than the update that was applied as version {version} \
         (rule R-8)"
    )]
    Conflict {
        /// The signal.
        signal: Arc<BeaconSignal>,
        /// The update's hash.
        hash: DocumentHash,
        /// The version to which both lead.
        version: u64,
    },
    /// No update leads to the versions between.
    #[error(
        "{signal}: the update {hash} leads to version {version}, but the newest version is {newest} and nothing announces \
         version {} (rule R-9)",
        .newest + 1
    )]
    VersionGap {
        /// The signal.
        signal: Arc<BeaconSignal>,
        /// The update's hash.
        hash: DocumentHash,
        /// The version to which it leads.
        version: u64,
        /// The newest version before it.
        newest: u64,
    },
    /// The documents go on naming new addresses.
    #[error("the documents name new beacon addresses after {limit} rounds of discovery, which is the limit")]
    TooManyRounds {
        /// The limit.
        limit: u32,
    },
    /// The chain or a content store could not be read to the end; the caller's words.
    #[error("{}", shown(.0))]
    Discovery(String),
}

/// What a signal commits to and no source has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{signal}: {data}")]
#[non_exhaustive]
pub struct Missing {
    /// The signal.
    pub signal: Arc<BeaconSignal>,
    /// What is missing.
    pub data: MissingData,
}

/// What is missing for a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MissingData {
    /// The update with this hash.
    #[error("the update {hash} is neither in the Sidecar Data nor in the content store")]
    Update {
        /// The update's hash.
        hash: DocumentHash,
    },
    /// The CAS Announcement with this hash.
    #[error("the CAS Announcement {hash} is neither in the Sidecar Data nor in the content store")]
    Announcement {
        /// The announcement's hash, which is the Signal Bytes.
        hash: DocumentHash,
    },
    /// The announcement has an entry of the DID that is not the hash of an update (rule C-2).
    #[error("the CAS Announcement {hash} has an entry of this DID that is not base64url of 32 bytes (rule C-2)")]
    AnnouncementEntry {
        /// The announcement's hash.
        hash: DocumentHash,
    },
    /// The DID's SMT proof for the signal. Only the Sidecar Data can have it.
    #[error("there is no SMT proof with the id {root} in the Sidecar Data (rule R-16)")]
    SmtProof {
        /// The `id` of that proof: the root of the tree, which is the Signal Bytes.
        root: crate::hash::SmtHash,
    },
}

/// What is wrong with an SMT proof.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProofFault {
    /// It is not of its shape (rules M-6 and M-9).
    #[error("is malformed: {0}")]
    Malformed(String),
    /// It does not lead to its root (rules M-7 and M-8).
    #[error("does not verify: {0}")]
    NotVerified(BeaconMismatch),
}

impl ResolutionError {
    /// The code (rule C6).
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Did(_) => ErrorCode::InvalidDid,
            Self::Genesis(error) => genesis_code(error),
            Self::Options(_) | Self::Sidecar(_) => ErrorCode::InvalidOptions,
            Self::GenesisMissing { .. } | Self::NoSuchVersion { .. } => ErrorCode::NotFound,
            Self::BlockUnknown { .. }
            | Self::NotAnAnnouncement { .. }
            | Self::NotAnUpdate { .. }
            | Self::InvalidUpdate { .. } => ErrorCode::InvalidDidUpdate,
            Self::Missing(_) => ErrorCode::MissingUpdateData,
            Self::SmtProof { .. } | Self::OtherHash { .. } => ErrorCode::InvalidSignalData,
            Self::Conflict { .. } | Self::VersionGap { .. } => ErrorCode::LatePublishing,
            Self::TooManyRounds { .. } | Self::Discovery(_) => ErrorCode::InternalError,
        }
    }

    /// The name of the rule that failed (rule C7), where it has one.
    pub fn rule(&self) -> Option<FailureRule> {
        match self {
            Self::Did(error) => FailureRule::of_did(error),
            Self::Genesis(error) => FailureRule::of_document(error),
            Self::Missing(missing) => Some(match missing.data {
                MissingData::SmtProof { .. } => FailureRule::SmtProofMissing,
                _ => FailureRule::UpdateMissing,
            }),
            Self::SmtProof { .. } => Some(FailureRule::SmtProofNotVerified),
            Self::NotAnUpdate { error, .. } | Self::InvalidUpdate { error, .. } => FailureRule::of_update(error),
            Self::Conflict { .. } => Some(FailureRule::DuplicateHashMismatch),
            Self::VersionGap { .. } => Some(FailureRule::VersionSkip),
            _ => None,
        }
    }
}

/// Rule I-2: what is not the document that the identifier commits to makes the identifier invalid; else it is the
/// document that is.
fn genesis_code(error: &DocumentError) -> ErrorCode {
    match error {
        DocumentError::GenesisHash | DocumentError::NotCanonical(_) => ErrorCode::InvalidDid,
        _ => ErrorCode::InvalidDidDocument,
    }
}
