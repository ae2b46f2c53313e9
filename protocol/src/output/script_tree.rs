//! The script paths of a beacon output besides the aggregate key, as the inputs of its derivation.

use std::{fmt, num::NonZeroU16};

use data_encoding::HEXLOWER_PERMISSIVE;
use serde::{Deserialize, Serialize};

use super::OutputError;
use crate::key::XOnlyKey;

/// The number of blocks after which the recovery key may spend the beacon output: a relative lock time (BIP-68,
/// BIP-112), 1..=65535.
///
/// Zero would let the recovery key spend at once; above 65535 BIP-68 no longer counts blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u16")]
pub struct RecoverySequence(NonZeroU16);

impl RecoverySequence {
    /// The number of blocks.
    pub const fn blocks(self) -> u16 {
        self.0.get()
    }
}

impl TryFrom<u64> for RecoverySequence {
    type Error = OutputError;

    fn try_from(blocks: u64) -> Result<Self, Self::Error> {
        u16::try_from(blocks).ok().and_then(NonZeroU16::new).map(Self).ok_or(OutputError::InvalidRecoverySequence)
    }
}

impl From<RecoverySequence> for u16 {
    fn from(sequence: RecoverySequence) -> Self {
        sequence.blocks()
    }
}

impl fmt::Display for RecoverySequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for RecoverySequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecoverySequence({self})")
    }
}

/// The script paths of a beacon output, as a cohort's advert states them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ScriptTree {
    /// No script path: every spend needs all members (BIP-341's provably unspendable script path).
    KeyPathOnly,
    /// k of n members by script, and nothing else: the tree of a standing cohort (docs/standing.md). Who holds fewer than k keys
    /// can never spend.
    FallbackOnly {
        /// k. Whether `1 <= k <= n` is checked when the keys are known.
        threshold: u16,
    },
    /// k of n members by script, and one recovery key after a delay.
    FallbackAndRecovery {
        /// The key that may spend alone after the delay. The TypeScript implementation allows a member's key here,
        /// and so does this one.
        recovery_key: XOnlyKey,
        /// The delay, in blocks.
        recovery_sequence: RecoverySequence,
        /// k; `None` for `max(1, n - 1)`. Whether `1 <= k <= n` is checked when the keys are known.
        fallback_threshold: Option<u16>,
    },
}

impl ScriptTree {
    /// Parses the terms of an advert, which may hold any values.
    ///
    /// `recovery_key` is 64 hex digits and must be the x coordinate of a point (the TypeScript implementation does
    /// not check this: such a leaf could never be spent). Refused with `NO_RECOVERY_PARAMS` (no key at all),
    /// `INVALID_RECOVERY_KEY`, `INVALID_RECOVERY_SEQUENCE` or `INVALID_FALLBACK_THRESHOLD`.
    pub fn from_terms(
        recovery_key: &str,
        recovery_sequence: u64,
        fallback_threshold: Option<u64>,
    ) -> Result<Self, OutputError> {
        if recovery_key.is_empty() {
            return Err(OutputError::NoRecoveryParams);
        }
        let recovery_key = HEXLOWER_PERMISSIVE
            .decode(recovery_key.as_bytes())
            .ok()
            .and_then(|bytes| XOnlyKey::from_bytes(&bytes).ok())
            .ok_or(OutputError::InvalidRecoveryKey)?;
        let fallback_threshold = fallback_threshold
            .map(|k| u16::try_from(k).ok().filter(|k| *k > 0).ok_or(OutputError::InvalidFallbackThreshold))
            .transpose()?;
        Ok(Self::FallbackAndRecovery {
            recovery_key,
            recovery_sequence: recovery_sequence.try_into()?,
            fallback_threshold,
        })
    }
}
