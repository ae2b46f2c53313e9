//! Key generation: the advert, opting in, and the formed cohort.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

use super::{
    Bytes, DecodeError,
    bytes::{positive, present, present_json, some_non_negative, some_positive},
};
use crate::{beacon::BeaconType, id::CohortId, invite::InviteProof, network::Network};

/// Our extension: an advert of a cohort whose output has no script tree (no fallback, no recovery leaf). It has its
/// own type so that the TypeScript implementation, which always has a script tree, ignores it and does not try to
/// join.
pub(crate) const KEY_PATH_ADVERT_TYPE: &str = "keygen/cohort_advert_key_path";

/// Who pays for the beacon transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FundingModel {
    /// The operator of the service.
    OperatorFunded,
    /// The members. Part of the wire format, but refused by the conditions check.
    ParticipantFunded,
}

/// The unit that a price is charged for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CostBasis {
    /// For each identifier.
    PerDid,
    /// For each participant.
    PerParticipant,
}

/// A price.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// The amount, not negative.
    pub amount: Number,
    /// The unit, e.g. `sat`.
    pub unit: String,
    /// What the price is charged for.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub basis: Option<CostBasis>,
}

/// `keygen/cohort_advert`: a cohort and its conditions. Only the shape is checked here;
/// [`Conditions`](crate::cohort::conditions::Conditions) checks the values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CohortAdvert {
    /// The advertised cohort.
    pub cohort_id: CohortId,
    /// The network of its beacon address.
    pub network: Network,
    /// The service's key, 33 bytes compressed.
    pub communication_pk: Bytes<33>,
    /// How updates are aggregated.
    pub beacon_type: BeaconType,
    /// The least number of members.
    #[serde(deserialize_with = "positive")]
    pub min_participants: u32,
    /// The greatest number of members.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_positive")]
    pub max_participants: Option<u32>,
    /// The least number of DIDs of one participant.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_positive")]
    pub min_dids_per_participant: Option<u32>,
    /// The greatest number of DIDs of one participant.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_positive")]
    pub max_dids_per_participant: Option<u32>,
    /// The price of joining.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub cost_of_enrollment: Option<Cost>,
    /// The price of each announcement.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub cost_per_announcement: Option<Cost>,
    /// The shortest time between announcements, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_non_negative")]
    pub min_seconds_between_announcements: Option<u32>,
    /// The longest time between announcements, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_non_negative")]
    pub max_seconds_between_announcements: Option<u32>,
    /// The number of pending updates that triggers an announcement.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_positive")]
    pub pending_update_trigger: Option<u32>,
    /// Who pays for the transaction.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub funding_model: Option<FundingModel>,
    /// The x-only key of the recovery leaf, 64 hex characters; absent only in the key-path-only extension.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub recovery_key: Option<String>,
    /// The relative timelock of the recovery leaf in blocks, 1..=65535; absent only in the key-path-only extension.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_positive")]
    pub recovery_sequence: Option<u32>,
    /// k of the k-of-n fallback leaf; n-1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_positive")]
    pub fallback_threshold: Option<u32>,
}

impl CohortAdvert {
    /// Checks that the recovery fields are all present in version 1, and all absent in the key-path-only extension.
    pub(super) fn check_recovery(&self, key_path_only: bool) -> Result<(), DecodeError> {
        let fields = [
            ("body.recoveryKey", self.recovery_key.is_some()),
            ("body.recoverySequence", self.recovery_sequence.is_some()),
        ];
        for (field, present) in fields {
            if present == key_path_only {
                let problem = if present { "must be absent: the output has no script tree" } else { "missing" };
                return Err(DecodeError::field(field, problem));
            }
        }
        if key_path_only && self.fallback_threshold.is_some() {
            return Err(DecodeError::field(
                "body.fallbackThreshold",
                "must be absent: the output has no script tree",
            ));
        }
        if self.recovery_sequence.is_some_and(|sequence| sequence > 65_535) {
            return Err(DecodeError::field("body.recoverySequence", "1 to 65535 expected"));
        }
        Ok(())
    }
}

/// `keygen/cohort_opt_in`: a participant and its keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CohortOptIn {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The key that it signs the beacon transaction with, 33 bytes compressed.
    pub participant_pk: Bytes<33>,
    /// The key that its DID proves, 33 bytes compressed.
    pub communication_pk: Bytes<33>,
    /// The genesis document of a sender with an EXTERNAL DID.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present_json")]
    pub genesis_document: Option<Arc<Value>>,
    /// Our extension: a proof that the sender has an invite of the operator.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub invite: Option<InviteProof>,
}

/// `keygen/cohort_opt_in_accept`: the participant is a member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CohortOptInAccept {
    /// The cohort.
    pub cohort_id: CohortId,
}

/// `keygen/cohort_ready`: the formed cohort.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CohortReady {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The address that the service derived. Every member derives it again.
    pub beacon_address: String,
    /// The members' keys in BIP-327 KeySort order, 33 bytes compressed each.
    pub cohort_keys: Vec<Bytes<33>>,
}
