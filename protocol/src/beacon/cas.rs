//! The CAS beacon (did:btcr2, "CAS Beacon"): a map from DID to update hash, shared by all members; the signal is its hash.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    AggregateBeacon, AggregatedData, Aggregation, BeaconData, BeaconError, BeaconMismatch, BeaconType, Slots,
};
use crate::{
    did::Did,
    hash::{DocumentHash, SignalBytes},
};

/// The CAS Announcement: the update hash of every member that submitted one, by DID.
///
/// The keys are plain strings. A member looks up only one of them, its own; parsing the other members' keys as curve
/// points would cost more than all of its other checks together. Only the hash over the whole map authenticates the
/// keys.
///
/// Cheap to clone: the message, the journal and the member's record of the round share it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CasAnnouncement(Arc<BTreeMap<String, DocumentHash>>);

impl CasAnnouncement {
    /// The update hash announced for `did`.
    pub fn get(&self, did: &str) -> Option<&DocumentHash> {
        self.0.get(did)
    }

    /// The entries, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &DocumentHash)> {
        self.0.iter().map(|(did, hash)| (did.as_str(), hash))
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether every member declined.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// SHA-256 of the announcement's JCS bytes, which are hashed as they are produced.
    pub fn signal(&self) -> SignalBytes {
        let mut entries: Vec<_> = self.0.iter().collect();
        // The map is in UTF-8 order and JCS wants UTF-16 code units (RFC 8785, 3.2.3). They differ only where a character
        // beyond the Basic Multilingual Plane (in UTF-8: a lead byte of 0xf0 or more) is a surrogate pair. No DID has one,
        // but the announcement comes from a peer.
        if entries.iter().any(|(key, _)| key.bytes().any(|byte| byte >= 0xf0)) {
            entries.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
        }
        let mut hasher = Sha256::new();
        for (position, (key, hash)) in entries.into_iter().enumerate() {
            hasher.update(if position == 0 { b"{" } else { b"," });
            // JCS strings are ECMAScript's, which serde_json writes as well.
            serde_json::to_writer(&mut hasher, key).expect("a string is JSON, and a hasher takes any byte");
            hasher.update(b":\"");
            hasher.update(hash.to_string());
            hasher.update(b"\"");
        }
        hasher.update(if self.0.is_empty() { b"{}".as_slice() } else { b"}" });
        SignalBytes::from_bytes(hasher.finalize().into())
    }
}

impl FromIterator<(String, DocumentHash)> for CasAnnouncement {
    fn from_iter<I: IntoIterator<Item = (String, DocumentHash)>>(entries: I) -> Self {
        Self(Arc::new(entries.into_iter().collect()))
    }
}

/// The CAS beacon. A member that declined is not in the announcement at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct CasBeacon;

impl AggregateBeacon for CasBeacon {
    fn beacon_type(&self) -> BeaconType {
        BeaconType::cas()
    }

    fn aggregate(&self, slots: &Slots, _rng: &mut dyn CryptoRng) -> Result<Aggregation, BeaconError> {
        let announcement: CasAnnouncement =
            slots.iter().filter_map(|(did, slot)| slot.map(|hash| (did.as_str().to_owned(), hash))).collect();
        Ok(Aggregation {
            signal: announcement.signal(),
            data: AggregatedData::Shared(Arc::new(BeaconData::Cas(announcement))),
        })
    }

    fn verify(
        &self,
        did: &Did,
        slot: Option<&DocumentHash>,
        data: &BeaconData,
    ) -> Result<SignalBytes, BeaconMismatch> {
        let BeaconData::Cas(announcement) = data else {
            return Err(BeaconMismatch::WrongKind { expected: self.beacon_type() });
        };
        super::check_slot(slot, announcement.get(did.as_str()))?;
        Ok(announcement.signal())
    }
}
