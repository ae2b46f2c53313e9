//! What a seat derives from its seed (docs/standing.md, "Backups"): its keys, and the nonces of its leaves. Updates and proofs do
//! not follow from it.

use hkdf::Hkdf;
use rand_core::CryptoRng;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::context::length;
use crate::{
    did::Did,
    hash::DidIndex,
    id::CohortId,
    key::{KeyError, SecretKey},
    network::Network,
};

const SALT: &[u8] = b"btcr2-aggregation/standing/seed/1";

/// The secret from which a seat's keys and leaf nonces follow. Never printed, never serialized, wiped when dropped.
pub struct SeatSeed(Zeroizing<[u8; 32]>);

impl SeatSeed {
    /// The seed with these bytes, as a backup has it.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The seed that is stored as a secret key, in a file that holds nothing else.
    pub fn from_secret(secret: &SecretKey) -> Self {
        Self(secret.expose())
    }

    /// A new seed from the caller's randomness.
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(bytes.as_mut());
        Self(bytes)
    }

    /// The key that signs for the seat: rows, responses, and its part of each transaction.
    ///
    /// # Errors
    /// [`KeyError`], with a probability of 2^-128.
    pub fn seat_key(&self, network: Network, service: &Did, cohort_id: &CohortId) -> Result<SecretKey, KeyError> {
        self.key(b"seat key", network, service, cohort_id)
    }

    /// The key that authenticates the seat's messages; its KEY DID is the seat's name.
    ///
    /// # Errors
    /// [`KeyError`], with a probability of 2^-128.
    pub fn communication_key(
        &self,
        network: Network,
        service: &Did,
        cohort_id: &CohortId,
    ) -> Result<SecretKey, KeyError> {
        self.key(b"communication key", network, service, cohort_id)
    }

    /// The key under which a member reads adverts, before it has a seat anywhere.
    ///
    /// # Errors
    /// [`KeyError`], with a probability of 2^-128.
    pub fn listening_key(&self, network: Network) -> Result<SecretKey, KeyError> {
        let network = network.to_string();
        SecretKey::from_bytes(&self.derive(&[b"listening key", network.as_bytes()]))
    }

    /// The nonce of an index's leaf in the announcement of that number (rule M-6). A restored seat has it again.
    pub fn leaf_nonce(&self, service: &Did, beacon_address: &str, number: u64, index: &DidIndex) -> [u8; 32] {
        let parts: [&[u8]; 5] = [
            b"leaf nonce",
            service.as_str().as_bytes(),
            beacon_address.as_bytes(),
            &number.to_be_bytes(),
            index.as_bytes(),
        ];
        *self.derive(&parts)
    }

    fn key(
        &self,
        label: &[u8],
        network: Network,
        service: &Did,
        cohort_id: &CohortId,
    ) -> Result<SecretKey, KeyError> {
        let network = network.to_string();
        let parts = [label, network.as_bytes(), service.as_str().as_bytes(), cohort_id.as_str().as_bytes()];
        SecretKey::from_bytes(&self.derive(&parts))
    }

    /// HKDF-SHA256 (RFC 5869) over length-prefixed parts.
    fn derive(&self, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
        let info: Vec<u8> =
            parts.iter().flat_map(|part| length(part).into_iter().chain(part.iter().copied())).collect();
        let mut derived = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(SALT), self.0.as_ref())
            .expand(&info, derived.as_mut())
            .expect("32 bytes are fewer than the 8160 that HKDF-SHA256 can give");
        derived
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn everything_that_is_derived_differs_and_repeats() {
        let service = Did::from_key(SecretKey::from_bytes(&[3; 32]).unwrap().public_key(), Network::Regtest);
        let cohort = CohortId::parse("cohort").unwrap();
        let derived = |seed: u8| {
            let seed = SeatSeed::from_bytes([seed; 32]);
            let mut all = vec![
                *seed.seat_key(Network::Regtest, &service, &cohort).unwrap().expose(),
                *seed.seat_key(Network::Signet, &service, &cohort).unwrap().expose(),
                *seed.seat_key(Network::Regtest, &service, &CohortId::parse("other").unwrap()).unwrap().expose(),
                *seed.communication_key(Network::Regtest, &service, &cohort).unwrap().expose(),
            ];
            for (address, number, index) in [("a", 1, 1), ("b", 1, 1), ("a", 2, 1), ("a", 1, 2)] {
                all.push(seed.leaf_nonce(&service, address, number, &DidIndex::from_bytes([index; 32])));
            }
            all
        };
        assert_eq!(derived(1), derived(1));
        let all: BTreeSet<[u8; 32]> = derived(1).into_iter().chain(derived(2)).collect();
        assert_eq!(all.len(), 16);
    }
}
