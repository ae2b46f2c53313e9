//! A service's advert, as a participant has read it.

use serde::{Deserialize, Serialize};

use super::conditions::{ConditionProblem, Conditions};
use crate::{
    beacon::BeaconRegistry,
    did::Did,
    error::{Reject, RejectCode},
    id::CohortId,
    key::PublicKey,
    message::keygen::CohortAdvert,
    network::Network,
};

/// An advert that was parsed and checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Advert {
    /// The service whose cohort it is.
    pub service: Did,
    /// The cohort.
    pub cohort_id: CohortId,
    /// The network of the beacon address.
    pub network: Network,
    /// The conditions that the service advertises.
    pub conditions: Conditions,
}

impl Advert {
    /// Reads an advert that `from` broadcast.
    ///
    /// # Errors
    /// [`Reject`] when the key is not the one that the service's DID proves, or the conditions are not valid.
    pub fn read(from: &Did, body: &CohortAdvert, beacons: &BeaconRegistry) -> Result<Self, Reject> {
        // Every later message is trusted because this DID sent it, so the key must follow from the DID alone.
        if from.key().map(PublicKey::to_bytes) != Some(body.communication_pk.0) {
            let detail = "communicationPk is not the key of the service's KEY DID";
            return Err(Reject::new(RejectCode::InvalidKey, from, detail));
        }
        let conditions = Conditions::from_advert(body, beacons).map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(ConditionProblem::to_string).collect();
            Reject::new(RejectCode::UnacceptableTerms, from, problems.join("; "))
        })?;
        Ok(Self { service: from.clone(), cohort_id: body.cohort_id.clone(), network: body.network, conditions })
    }
}
