//! Checking the aggregated data: our own slot in it, and the signal recomputed from it.

use std::sync::Arc;

use super::{ParticipantCohort, phase::Phase};
use crate::{
    beacon::BeaconData,
    cohort::event::{ParticipantEvent, SessionEnd},
    did::Did,
    error::{Reject, RejectCode},
    hash::SignalBytes,
    message::update::DistributeAggregatedData,
    time::Timestamp,
    update::SignedUpdate,
};

impl ParticipantCohort {
    pub(super) fn on_data(
        &self,
        now: Timestamp,
        from: &Did,
        body: &DistributeAggregatedData,
    ) -> Result<Vec<ParticipantEvent>, Reject> {
        let known = match &self.phase {
            Phase::Submitted { update, .. } => {
                let Some(data) = body.data() else {
                    let detail = "exactly one of casAnnouncement, smtProof and beaconData expected";
                    return Err(Reject::new(RejectCode::Malformed, from, detail));
                };
                let verdict = self.check_data(body, &data, update.as_ref());
                return Ok(vec![ParticipantEvent::DataReceived { at: now, data: Arc::new(data), verdict }]);
            }
            Phase::Validating { data, .. } => data,
            Phase::Approved { round, .. } | Phase::Signing { round, .. } => &round.data,
            _ => return Err(Reject::new(RejectCode::WrongPhase, from, "we are not waiting for aggregated data")),
        };
        if body.data().as_ref() == Some(known) {
            Ok(Vec::new())
        } else {
            Err(Reject::new(RejectCode::Equivocation, from, "other aggregated data was received before"))
        }
    }

    /// The signal recomputed from the data, if the data holds our slot and the service states the same signal.
    fn check_data(
        &self,
        body: &DistributeAggregatedData,
        data: &BeaconData,
        update: Option<&SignedUpdate>,
    ) -> Result<SignalBytes, String> {
        let expected = &self.advert.conditions.beacon_type;
        if body.beacon_type != *expected {
            return Err(format!("the data is for a {}, the cohort's beacon is a {expected}", body.beacon_type));
        }
        let beacon =
            self.config.beacons.get(expected).ok_or_else(|| format!("beacon type {expected} is not registered"))?;
        let signal = beacon
            .verify(&self.config.did, update.map(SignedUpdate::hash), data)
            .map_err(|mismatch| mismatch.to_string())?;
        if signal == body.signal_bytes_hex {
            Ok(signal)
        } else {
            Err(format!("the data gives the signal {signal}, the service states {}", body.signal_bytes_hex))
        }
    }

    pub(super) fn on_validation_decided(&self, now: Timestamp, approved: bool) -> Vec<ParticipantEvent> {
        let Phase::Validating { verdict, .. } = &self.phase else { return self.out_of_date() };
        let rejected = match verdict {
            Ok(_) if approved => return vec![ParticipantEvent::ValidationSent { at: now, approved: true }],
            Ok(_) => "by the host".to_owned(),
            Err(reason) => reason.clone(),
        };
        vec![
            ParticipantEvent::ValidationSent { at: now, approved: false },
            ParticipantEvent::SessionEnded { at: now, reason: SessionEnd::DataRejected { reason: rejected } },
        ]
    }
}
