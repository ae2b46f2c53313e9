//! Joining a cohort: opting in, and deriving the beacon output again when the service says that the cohort is formed.

use super::{ParticipantCohort, phase::Phase};
use crate::{
    cohort::event::{ParticipantEvent, SessionEnd},
    did::Did,
    error::{Reject, RejectCode},
    message::keygen::CohortReady,
    output::BeaconOutput,
    time::Timestamp,
    update::SignedUpdate,
};

impl ParticipantCohort {
    pub(super) fn on_join_decided(&self, now: Timestamp, join: bool) -> Vec<ParticipantEvent> {
        match (&self.phase, join) {
            (Phase::Invited { .. }, true) => vec![ParticipantEvent::OptedIn { at: now }],
            (Phase::Invited { .. }, false) => {
                vec![ParticipantEvent::SessionEnded { at: now, reason: SessionEnd::NotJoined }]
            }
            _ => self.out_of_date(),
        }
    }

    pub(super) fn on_accept(&self, from: &Did) -> Result<Vec<ParticipantEvent>, Reject> {
        match &self.phase {
            Phase::OptedIn { accepted: false, .. } => Ok(vec![ParticipantEvent::OptInAccepted]),
            Phase::Planned | Phase::Invited { .. } | Phase::Ended { .. } => {
                Err(Reject::new(RejectCode::WrongPhase, from, "we did not opt in"))
            }
            // Accepted before, or formed before the acceptance got through: nothing new.
            _ => Ok(Vec::new()),
        }
    }

    pub(super) fn on_ready(
        &self,
        now: Timestamp,
        from: &Did,
        body: &CohortReady,
    ) -> Result<Vec<ParticipantEvent>, Reject> {
        if let Some(output) = self.phase.output() {
            let same = output.address() == body.beacon_address
                && output.keys().iter().map(|key| key.to_bytes()).eq(body.cohort_keys.iter().map(|key| key.0));
            return if same {
                Ok(Vec::new())
            } else {
                Err(Reject::new(RejectCode::Equivocation, from, "the cohort was formed with other keys before"))
            };
        }
        let Phase::OptedIn { .. } = &self.phase else {
            return Err(Reject::new(RejectCode::WrongPhase, from, "we did not opt in"));
        };
        let keys: Vec<[u8; 33]> = body.cohort_keys.iter().map(|key| key.0).collect();
        if !keys.is_sorted() {
            return Err(Reject::new(RejectCode::InvalidKey, from, "cohortKeys are not in KeySort order"));
        }
        if !keys.contains(&self.config.participant_key.to_bytes()) {
            return Err(Reject::new(RejectCode::InvalidKey, from, "cohortKeys do not hold our own key"));
        }
        let conditions = &self.advert.conditions;
        if !conditions.admits_size(keys.len()) {
            let detail = format!("{} members, which the advert does not allow", keys.len());
            return Err(Reject::new(RejectCode::UnacceptableTerms, from, detail));
        }
        let aggregation = self
            .config
            .aggregator
            .aggregate(&keys)
            .map_err(|error| Reject::new(RejectCode::InvalidKey, from, format!("cohortKeys: {error}")))?;
        let output = BeaconOutput::new(aggregation, self.advert.network, &conditions.script_tree)
            .map_err(|error| Reject::new(RejectCode::UnacceptableTerms, from, error))?;
        if output.address() != body.beacon_address {
            let detail =
                format!("keys and terms give {}, the service says {}", output.address(), body.beacon_address);
            return Err(Reject::new(RejectCode::AddressMismatch, from, detail));
        }
        Ok(vec![ParticipantEvent::CohortReady { at: now, output }])
    }

    pub(super) fn on_update_decided(&self, now: Timestamp, update: Option<&SignedUpdate>) -> Vec<ParticipantEvent> {
        match (&self.phase, update) {
            (Phase::Ready { .. }, Some(update)) => {
                vec![ParticipantEvent::UpdateSubmitted { at: now, update: update.clone() }]
            }
            (Phase::Ready { .. }, None) => vec![ParticipantEvent::UpdateDeclined { at: now }],
            _ => self.out_of_date(),
        }
    }
}

impl Phase {
    /// The cohort's output, from the moment it is formed.
    pub fn output(&self) -> Option<&BeaconOutput> {
        match self {
            Self::Planned | Self::Invited { .. } | Self::OptedIn { .. } => None,
            Self::Ready { output, .. } | Self::Submitted { output, .. } | Self::Validating { output, .. } => {
                Some(output)
            }
            Self::Approved { round, .. } | Self::Signing { round, .. } => Some(&round.output),
            Self::Ended { signed, .. } => signed.as_ref().map(|round| &round.output),
        }
    }
}
