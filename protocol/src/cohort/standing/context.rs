//! What every signature of a standing cohort is bound to, and the digests that are signed.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{did::Did, hash::sha256, id::CohortId, network::Network};

/// The cohort that a signature belongs to. A signature of one cohort is none of another, even at the same address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CohortContext {
    /// The Bitcoin network.
    pub network: Network,
    /// The Aggregation Service.
    pub service: Did,
    /// The cohort.
    pub cohort_id: CohortId,
    /// Its beacon address.
    pub beacon_address: String,
}

impl CohortContext {
    /// The tagged hash (BIP-340) of network, service DID, cohort id, beacon address and `parts`, each preceded by its length
    /// in bytes as four bytes, most significant first.
    pub(super) fn digest(&self, tag: &str, parts: &[&[u8]]) -> [u8; 32] {
        let network = self.network.to_string();
        let context = [
            network.as_bytes(),
            self.service.as_str().as_bytes(),
            self.cohort_id.as_str().as_bytes(),
            self.beacon_address.as_bytes(),
        ];
        tagged(tag, context.iter().chain(parts).copied())
    }
}

/// `SHA256(SHA256(tag) || SHA256(tag) || length-prefixed parts)`.
pub(super) fn tagged<'a>(tag: &str, parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let tag = sha256(tag.as_bytes());
    let mut hasher = Sha256::new();
    hasher.update(tag);
    hasher.update(tag);
    for part in parts {
        hasher.update(length(part));
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// The length of `part` as four bytes. No part comes near four gigabytes: the largest is a response of bounded size.
pub(super) fn length(part: &[u8]) -> [u8; 4] {
    u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes()
}
