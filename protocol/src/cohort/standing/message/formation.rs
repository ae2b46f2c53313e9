//! Formation: the advert, opting in, and the formed cohort.

use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};

use crate::{
    cohort::standing::{context::tagged, terms::StandingTerms},
    did::Did,
    id::CohortId,
    key::{PublicKey, SecretKey, Signature},
    message::Bytes,
};

const POSSESSION: &str = "btcr2-aggregation/standing/possession/1";

/// `standing/cohort_advert`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StandingAdvert {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The key of the service's DID.
    pub communication_pk: Bytes<33>,
    /// Its terms.
    pub terms: StandingTerms,
}

/// `standing/opt_in`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeatOptIn {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The seat key.
    pub participant_pk: PublicKey,
    /// A signature by the seat key of who asks for the seat: [`possession_digest`].
    pub possession: Signature,
}

/// What a participant signs with its seat key to prove that it has it: the tagged hash of service DID, cohort id, and the
/// participant's DID.
pub fn possession_digest(service: &Did, cohort_id: &CohortId, from: &Did) -> [u8; 32] {
    let parts = [service.as_str().as_bytes(), cohort_id.as_str().as_bytes(), from.as_str().as_bytes()];
    tagged(POSSESSION, parts)
}

/// `standing/opt_in_accept`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeatAccept {
    /// The cohort.
    pub cohort_id: CohortId,
}

/// `standing/opt_in_refused`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeatRefused {
    /// The cohort.
    pub cohort_id: CohortId,
    /// Why.
    pub reason: String,
}

/// `standing/cohort_ready`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StandingReady {
    /// The cohort.
    pub cohort_id: CohortId,
    /// Its beacon address; a seat derives it itself.
    pub beacon_address: String,
    /// The seat keys, in KeySort order.
    pub cohort_keys: Vec<PublicKey>,
}

impl SeatOptIn {
    /// A request for a seat by `from`.
    pub fn sign(service: &Did, cohort_id: &CohortId, from: &Did, key: &SecretKey, rng: &mut dyn CryptoRng) -> Self {
        let possession = key.sign(&possession_digest(service, cohort_id, from), rng);
        Self { cohort_id: cohort_id.clone(), participant_pk: key.public_key(), possession }
    }

    /// Whether `from` has the seat key.
    pub fn is_proven(&self, service: &Did, from: &Did) -> bool {
        let digest = possession_digest(service, &self.cohort_id, from);
        self.participant_pk.x_only().verify(&digest, &self.possession)
    }
}
