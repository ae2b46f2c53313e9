//! Formation: the advert, opting in, and the formed cohort.

use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};

use crate::{
    cohort::standing::{context::tagged, successor::Succession, terms::StandingTerms},
    did::Did,
    id::CohortId,
    identity::Identity,
    invite::InviteProof,
    key::{PublicKey, SecretKey, Signature},
    message::Bytes,
};

const POSSESSION: &str = "btcr2-aggregation/standing/possession/1";
const APPLICANT: &str = "btcr2-aggregation/standing/applicant/1";

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
    /// The cohort that it succeeds, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succeeds: Option<Box<Succession>>,
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
    /// The proof of an invite, for the sender's DID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invite: Option<InviteProof>,
    /// The DID as which the participant applies, for a service that admits by a list: the sender's DID is of this cohort only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applicant: Option<Applicant>,
}

/// A KEY DID as which a participant applies for a seat, and the proof.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applicant {
    /// The DID.
    pub did: Did,
    /// A signature by its key: the tagged hash of service DID, cohort id, the sender's DID, and this DID.
    pub signature: Signature,
}

impl Applicant {
    fn digest(service: &Did, cohort_id: &CohortId, from: &Did, did: &Did) -> [u8; 32] {
        let parts = [service.as_str(), cohort_id.as_str(), from.as_str(), did.as_str()];
        tagged(APPLICANT, parts.map(str::as_bytes))
    }

    /// `identity`, a KEY DID, applies for a seat whose messages come from `from`.
    pub fn sign(
        service: &Did,
        cohort_id: &CohortId,
        from: &Did,
        identity: &Identity,
        rng: &mut dyn CryptoRng,
    ) -> Self {
        let digest = Self::digest(service, cohort_id, from, identity.did());
        Self { did: identity.did().clone(), signature: identity.secret_key().sign(&digest, rng) }
    }

    /// Whether the DID's own key has signed that it applies as `from`. An EXTERNAL DID has none.
    pub fn is_proven(&self, service: &Did, cohort_id: &CohortId, from: &Did) -> bool {
        let digest = Self::digest(service, cohort_id, from, &self.did);
        self.did.key().is_some_and(|key| key.x_only().verify(&digest, &self.signature))
    }
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
    /// The DIDs of some seats, at most [`MAX_PEERS`](super::MAX_PEERS): where a seat asks for a board that the service does not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Did>,
}

impl SeatOptIn {
    /// A request for a seat by `from`.
    pub fn sign(service: &Did, cohort_id: &CohortId, from: &Did, key: &SecretKey, rng: &mut dyn CryptoRng) -> Self {
        let possession = key.sign(&possession_digest(service, cohort_id, from), rng);
        let (cohort_id, participant_pk) = (cohort_id.clone(), key.public_key());
        Self { cohort_id, participant_pk, possession, invite: None, applicant: None }
    }

    /// Whether `from` has the seat key.
    pub fn is_proven(&self, service: &Did, from: &Did) -> bool {
        let digest = possession_digest(service, &self.cohort_id, from);
        self.participant_pk.x_only().verify(&digest, &self.possession)
    }
}
