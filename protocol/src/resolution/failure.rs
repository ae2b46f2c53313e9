//! The names of what can go wrong: error codes (rule C6) and failure rules (rule C7).

use crate::{did::DidError, document::DocumentError, names::named, update::UpdateError};

named! {
    /// The code of a failed resolution (rule C6): DID Resolution's, and the method's own.
    #[non_exhaustive]
    ErrorCode {
        /// The identifier is none, or the genesis document is another one's.
        InvalidDid = "INVALID_DID",
        /// The resolution options or the Sidecar Data are malformed.
        InvalidOptions = "INVALID_OPTIONS",
        /// The genesis document is nowhere, or there is no such version.
        NotFound = "NOT_FOUND",
        /// The initial document is none.
        InvalidDidDocument = "INVALID_DID_DOCUMENT",
        /// An announced update is invalid.
        InvalidDidUpdate = "INVALID_DID_UPDATE",
        /// A version is missing, or announced in two ways.
        LatePublishing = "LATE_PUBLISHING",
        /// What a signal commits to is neither in the Sidecar Data nor in the content store.
        MissingUpdateData = "MISSING_UPDATE_DATA",
        /// What was given for a signal is not what it commits to.
        InvalidSignalData = "INVALID_SIGNAL_DATA",
        /// The chain could not be read to its end.
        InternalError = "INTERNAL_ERROR",
    }
}

impl ErrorCode {
    /// The code of DID Resolution that this one refines, whose HTTP status a resolver sends for it; itself where it is
    /// one of them.
    pub const fn refines(self) -> Self {
        match self {
            Self::InvalidDidUpdate | Self::LatePublishing => Self::InvalidDidDocument,
            Self::MissingUpdateData => Self::NotFound,
            Self::InvalidSignalData => Self::InvalidOptions,
            other => other,
        }
    }

    /// The code as the URL that identifies it in problem details (RFC 9457): DID Resolution v1, "Errors", has its own
    /// codes under `https://www.w3.org/ns/did#`; the method's are in its context.
    pub fn url(self) -> String {
        let vocabulary =
            if self.refines() == self { "https://www.w3.org/ns/did" } else { "https://btcr2.dev/context/v1" };
        format!("{vocabulary}#{self}")
    }
}

named! {
    /// The rule that failed, by the specification's name for it (rule C7).
    #[non_exhaustive]
    FailureRule {
        /// The identifier's checksum.
        DidChecksumInvalid = "did-checksum-invalid",
        /// The identifier's padding bits.
        DidPaddingNonzero = "did-padding-nonzero",
        /// The identifier's network value.
        DidNetworkReserved = "did-network-reserved",
        /// The hash of the genesis document.
        GenesisHashMismatch = "genesis-hash-mismatch",
        /// An update, or the announcement that would name it.
        UpdateMissing = "update-missing",
        /// U-1.
        UpdateContextMismatch = "update-context-mismatch",
        /// U-2.
        ProofContextMismatch = "proof-context-mismatch",
        /// U-3, `capabilityAction`.
        ProofCapabilityActionMismatch = "proof-capability-action-mismatch",
        /// U-5.
        ProofCapabilityMismatch = "proof-capability-mismatch",
        /// U-4.
        ProofInvocationTargetMismatch = "proof-invocation-target-mismatch",
        /// U-3, `proofPurpose`.
        ProofPurposeMismatch = "proof-purpose-mismatch",
        /// U-6.
        ProofMethodUnauthorized = "proof-method-unauthorized",
        /// U-7.
        ProofMethodNotFound = "proof-method-not-found",
        /// U-11, and U-3 where the proof is of another kind.
        ProofNotVerified = "proof-not-verified",
        /// U-16, before the patch.
        SourceHashMismatch = "source-hash-mismatch",
        /// U-16, after the patch.
        TargetHashMismatch = "target-hash-mismatch",
        ///
        VersionSkip = "version-skip",
        /// U-13.
        PatchApplyFailure = "patch-apply-failure",
        /// U-15 and I-2, the `id`.
        DocumentIdMismatch = "document-id-mismatch",
        /// U-15 and I-4.
        DocumentNotConformant = "document-not-conformant",
        /// U-10, `created`.
        ProofCreatedAfterBlock = "proof-created-after-block",
        /// U-10, `expires`.
        ProofExpiresBeforeMediantime = "proof-expires-before-mediantime",
        /// U-10, both.
        ProofExpiresBeforeCreated = "proof-expires-before-created",
        ///
        DuplicateHashMismatch = "duplicate-hash-mismatch",
        /// R-16, the proof that was given.
        SmtProofNotVerified = "smt-proof-not-verified",
        /// R-16, none was given.
        SmtProofMissing = "smt-proof-missing",
    }
}

impl FailureRule {
    pub(super) fn of_did(error: &DidError) -> Option<Self> {
        match error {
            DidError::Checksum => Some(Self::DidChecksumInvalid),
            DidError::NotCanonical => Some(Self::DidPaddingNonzero),
            DidError::Network(_) => Some(Self::DidNetworkReserved),
            _ => None,
        }
    }

    pub(super) fn of_document(error: &DocumentError) -> Option<Self> {
        match error {
            DocumentError::GenesisHash => Some(Self::GenesisHashMismatch),
            DocumentError::Id => Some(Self::DocumentIdMismatch),
            DocumentError::NotConformant(_) => Some(Self::DocumentNotConformant),
            DocumentError::NotAuthorized { .. } => Some(Self::ProofMethodUnauthorized),
            DocumentError::MethodNotFound { .. } | DocumentError::Multikey => Some(Self::ProofMethodNotFound),
            _ => None,
        }
    }

    /// `None` for what is malformed in a way that the specification has no name for.
    pub(super) fn of_update(error: &UpdateError) -> Option<Self> {
        Some(match error {
            UpdateError::Version { .. } => Self::VersionSkip,
            UpdateError::SourceHash | UpdateError::Field { field: "sourceHash", .. } => Self::SourceHashMismatch,
            UpdateError::Context | UpdateError::Field { field: "@context", .. } => Self::UpdateContextMismatch,
            UpdateError::ProofContext => Self::ProofContextMismatch,
            UpdateError::Proof { field, .. } => match *field {
                "type" | "cryptosuite" | "proofValue" => Self::ProofNotVerified,
                "proofPurpose" => Self::ProofPurposeMismatch,
                "capabilityAction" => Self::ProofCapabilityActionMismatch,
                "capability" => Self::ProofCapabilityMismatch,
                "invocationTarget" => Self::ProofInvocationTargetMismatch,
                "verificationMethod" => Self::ProofMethodUnauthorized,
                _ => return None,
            },
            UpdateError::InvocationTargetMissing => Self::ProofInvocationTargetMismatch,
            UpdateError::Method(error) => return Self::of_document(error),
            UpdateError::ExpiresBeforeCreated => Self::ProofExpiresBeforeCreated,
            UpdateError::CreatedAfterBlock => Self::ProofCreatedAfterBlock,
            UpdateError::ExpiredInBlock => Self::ProofExpiresBeforeMediantime,
            UpdateError::Signature => Self::ProofNotVerified,
            UpdateError::Patch(_) | UpdateError::DoesNotApply(_) => Self::PatchApplyFailure,
            UpdateError::TargetId => Self::DocumentIdMismatch,
            UpdateError::NotConformant(_) => Self::DocumentNotConformant,
            UpdateError::TargetHash | UpdateError::Field { field: "targetHash", .. } => Self::TargetHashMismatch,
            _ => return None,
        })
    }
}
