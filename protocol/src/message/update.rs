//! The update phase: submitting or declining, the aggregated data, and each member's verdict.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bytes::{present, present_json};
use crate::{
    beacon::{BeaconData, BeaconType, CasAnnouncement, SmtProof},
    hash::SignalBytes,
    id::CohortId,
};

/// `update/submit_update`: a member's signed update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubmitUpdate {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The update as received. The service parses it, so that each defect has its own code.
    pub signed_update: Arc<Value>,
}

/// `update/submit_nonincluded`: the member declines to update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubmitNonIncluded {
    /// The cohort.
    pub cohort_id: CohortId,
}

/// `update/distribute_aggregated_data`: the signal, and what a member needs to check its slot in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DistributeAggregatedData {
    /// The cohort.
    pub cohort_id: CohortId,
    /// The cohort's beacon type.
    pub beacon_type: BeaconType,
    /// The signal as the service states it. A member recomputes it.
    pub signal_bytes_hex: SignalBytes,
    /// The CAS Announcement map, for a CAS beacon.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub cas_announcement: Option<CasAnnouncement>,
    /// The member's proof, for an SMT beacon.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub smt_proof: Option<SmtProof>,
    /// Our extension: the data of a beacon type that the host registered.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present_json")]
    pub beacon_data: Option<Value>,
}

impl DistributeAggregatedData {
    /// The message for `data`.
    pub fn new(cohort_id: CohortId, beacon_type: BeaconType, signal: SignalBytes, data: &BeaconData) -> Self {
        let mut body = Self {
            cohort_id,
            beacon_type,
            signal_bytes_hex: signal,
            cas_announcement: None,
            smt_proof: None,
            beacon_data: None,
        };
        match data.clone() {
            BeaconData::Cas(announcement) => body.cas_announcement = Some(announcement),
            BeaconData::Smt(proof) => body.smt_proof = Some(proof),
            BeaconData::Other(value) => body.beacon_data = Some(value),
        }
        body
    }

    /// The data, if the message carries exactly one kind of it.
    pub fn data(&self) -> Option<BeaconData> {
        match (&self.cas_announcement, &self.smt_proof, &self.beacon_data) {
            (Some(announcement), None, None) => Some(BeaconData::Cas(announcement.clone())),
            (None, Some(proof), None) => Some(BeaconData::Smt(proof.clone())),
            (None, None, Some(value)) => Some(BeaconData::Other(value.clone())),
            _ => None,
        }
    }
}

/// `update/validation_ack`: a member's verdict on the aggregated data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ValidationAck {
    /// The cohort.
    pub cohort_id: CohortId,
    /// Whether the data holds the slot that the member contributed.
    pub approved: bool,
}
