//! Joining a cohort: opting in, and deriving the beacon output when the service reports that the cohort is formed.

use super::{ParticipantCohort, phase::Phase};
use crate::{
    beacon::{BeaconData, smt_index},
    cohort::event::{ParticipantEvent, SessionEnd},
    did::Did,
    document,
    error::{Reject, RejectCode},
    message::keygen::CohortReady,
    output::BeaconOutput,
    time::Timestamp,
    update::{Submission, UpdateContext, refuse_expiring, verify_update},
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
            // Accepted before, or the cohort formed before the acceptance arrived: no change.
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
            return Err(Reject::new(RejectCode::InvalidKey, from, "cohortKeys does not contain our own key"));
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
                format!("keys and terms give {}, the service states {}", output.address(), body.beacon_address);
            return Err(Reject::new(RejectCode::AddressMismatch, from, detail));
        }
        Ok(vec![ParticipantEvent::CohortReady { at: now, output }])
    }

    pub(super) fn on_update_decided(
        &self,
        now: Timestamp,
        submission: Option<&Submission>,
    ) -> Vec<ParticipantEvent> {
        let Phase::Ready { .. } = &self.phase else { return self.out_of_date() };
        match submission.map(|submission| (&submission.update, self.check_submission(now, submission))) {
            Some((update, Ok(()))) => {
                vec![ParticipantEvent::UpdateSubmitted { at: now, update: update.clone() }]
            }
            // We decline, so that the cohort does not wait for an update that cannot be announced.
            Some((_, Err(reason))) => vec![
                ParticipantEvent::UpdateRefused { at: now, reason },
                ParticipantEvent::UpdateDeclined { at: now },
            ],
            None => vec![ParticipantEvent::UpdateDeclined { at: now }],
        }
    }

    /// An announced update that breaks a rule ends our DID, so we check it and rely neither on our host nor on the
    /// service (rule U-23).
    fn check_submission(&self, now: Timestamp, submission: &Submission) -> Result<(), String> {
        let did = &self.config.did;
        let initial;
        let (document, version) = match &submission.source {
            Some((document, version)) => (&**document, *version),
            None => {
                initial = document::initial_document(did, self.config.genesis_document.as_deref())
                    .map_err(|error| error.to_string())?;
                (&initial, 1)
            }
        };
        verify_update(&submission.update, &UpdateContext { did, document, version, block: None })
            .and_then(|_| refuse_expiring(&submission.update, now))
            .map_err(|error| error.to_string())
    }

    /// Ends a session whose update, or data, was made under rules that no resolver applies any more. A session with a
    /// signature of ours goes on: the service reports the fate of the transaction.
    pub(super) fn on_resumed(&self, now: Timestamp) -> Vec<ParticipantEvent> {
        let (update, data) = match &self.phase {
            Phase::Submitted { update, .. } => (update.as_ref(), None),
            Phase::Validating { update, data, verdict, .. } => (update.as_ref(), verdict.is_ok().then_some(data)),
            Phase::Signing { stage, .. } if stage.has_signed() => return Vec::new(),
            Phase::Approved { round, .. } | Phase::Signing { round, .. } => {
                (round.update.as_ref(), Some(&round.data))
            }
            _ => return Vec::new(),
        };
        let old_update = update.is_some_and(|update| !update.is_of_current_edition());
        let old_data = data.is_some_and(|data| match &**data {
            BeaconData::Smt(proof) => proof.verify(&smt_index(&self.config.did)).is_err(),
            BeaconData::Cas(_) | BeaconData::Other(_) => false,
        });
        if old_update || old_data {
            vec![ParticipantEvent::SessionEnded { at: now, reason: SessionEnd::Outdated }]
        } else {
            Vec::new()
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
