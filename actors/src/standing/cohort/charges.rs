//! The offences that seats are charged with in the ban list: invalid signatures, refusals to sign, two responses to one number. Silence is none: a
//! standing cohort has absent seats.

use btcr2_aggregation_protocol::did::Did;

use super::StandingCohortActor;
use crate::{
    bans::{Entry, Offence},
    standing::notice::StandingNotice,
    subject::Subject,
    transport::Evidence,
};

/// An offence of a seat in one number.
#[derive(Clone, Debug)]
pub(super) struct Charge {
    pub(super) seat: Did,
    pub(super) offence: Offence,
    pub(super) detail: String,
    pub(super) evidence: Vec<Evidence>,
}

impl StandingCohortActor {
    /// Records offences, under the DID as which the seat has applied if it has: that of the seat is of this cohort only. A ban keeps it out of
    /// other cohorts; this one is not changed by it, and its history is served all the same.
    pub(super) fn charge(&self, number: u64, charges: Vec<Charge>) {
        let (cohort_id, at) = (self.cohort_id().clone(), self.shared.clock.now());
        for Charge { seat, offence, detail, evidence } in charges {
            let applicant = self.applicant(&seat);
            let entry = Entry {
                offence,
                cohort_id: cohort_id.clone(),
                number: Some(number),
                at,
                detail,
                address: applicant.address,
                invite: applicant.invite.as_ref().map(|proof| proof.id()),
                evidence,
            };
            let subject = Subject::from(applicant.applies_as.as_ref().unwrap_or(&seat));
            if let Some(until) = self.shared.bans.record(subject, entry) {
                let cohort_id = cohort_id.clone();
                self.shared.notices.publish(StandingNotice::SeatBanned { cohort_id, seat, offence, until });
            }
        }
    }
}
