//! The cohort that succeeds another one (docs/standing.md, "Migration and exit"): how its advert names the old cohort, and how every seat of
//! the old one gets to know the address to which the move pays.

use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};

use super::{context::CohortContext, output_of, terms::StandingTerms};
use crate::{
    did::Did,
    id::CohortId,
    key::{PublicKey, SecretKey, Signature},
    network::Network,
    output::{BeaconOutput, KeyAggregator, OutputError},
};

const SUCCESSION: &str = "btcr2-aggregation/standing/succession/1";
const SUCCESSOR: &str = "btcr2-aggregation/standing/successor/1";

/// The cohort that an advertised one succeeds, signed by the service of both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Succession {
    /// The old cohort.
    pub cohort_id: CohortId,
    /// Its beacon address.
    pub beacon_address: String,
    /// BIP-340, of the service's key.
    pub signature: Signature,
}

impl Succession {
    /// The statement that the cohort `successor` succeeds the cohort `old`.
    pub fn sign(old: &CohortContext, successor: &CohortId, key: &SecretKey, rng: &mut dyn CryptoRng) -> Self {
        let signature = key.sign(&Self::digest(old, successor), rng);
        Self { cohort_id: old.cohort_id.clone(), beacon_address: old.beacon_address.clone(), signature }
    }

    /// The tagged hash of the context of the old cohort and the id of the successor.
    pub fn digest(old: &CohortContext, successor: &CohortId) -> [u8; 32] {
        old.digest(SUCCESSION, &[successor.as_str().as_bytes()])
    }

    /// Whether the service with this DID has signed it, for the cohort in whose advert it is.
    pub fn is_signed(&self, network: Network, service: &Did, successor: &CohortId) -> bool {
        let old = CohortContext {
            network,
            service: service.clone(),
            cohort_id: self.cohort_id.clone(),
            beacon_address: self.beacon_address.clone(),
        };
        // A service of standing cohorts has a KEY DID.
        service.key().is_some_and(|key| key.x_only().verify(&Self::digest(&old, successor), &self.signature))
    }
}

/// A formed successor, as its service names it to the seats of the old cohort. A seat derives the address itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Successor {
    /// The successor.
    pub cohort_id: CohortId,
    /// Its beacon address.
    pub beacon_address: String,
    /// Its seat keys, in KeySort order.
    pub cohort_keys: Vec<PublicKey>,
    /// Its terms.
    pub terms: StandingTerms,
    /// BIP-340, of the service's key.
    pub signature: Signature,
}

impl Successor {
    /// The formed cohort `cohort_id` of these terms and this output, as the successor of `old`.
    pub fn sign(
        old: &CohortContext,
        cohort_id: &CohortId,
        terms: &StandingTerms,
        output: &BeaconOutput,
        key: &SecretKey,
        rng: &mut dyn CryptoRng,
    ) -> Self {
        let signature = key.sign(&Self::digest(old, cohort_id, output.address()), rng);
        Self {
            cohort_id: cohort_id.clone(),
            beacon_address: output.address().to_owned(),
            cohort_keys: output.keys().to_vec(),
            terms: terms.clone(),
            signature,
        }
    }

    /// The tagged hash of the context of the old cohort, the id of the successor, and its address.
    pub fn digest(old: &CohortContext, cohort_id: &CohortId, beacon_address: &str) -> [u8; 32] {
        old.digest(SUCCESSOR, &[cohort_id.as_str().as_bytes(), beacon_address.as_bytes()])
    }

    /// Whether the service with this key has signed it, for the old cohort.
    pub fn is_signed(&self, old: &CohortContext, service: &PublicKey) -> bool {
        let digest = Self::digest(old, &self.cohort_id, &self.beacon_address);
        service.x_only().verify(&digest, &self.signature)
    }

    /// The output that follows from its keys and terms.
    ///
    /// # Errors
    /// [`OutputError`]: the keys do not aggregate.
    pub fn output(&self, aggregator: &dyn KeyAggregator) -> Result<BeaconOutput, OutputError> {
        output_of(&self.terms, &self.cohort_keys, aggregator)
    }
}
