//! The offences that members are charged with in the ban list: faults when they are found, silence and bad signatures
//! when the cohort has ended. The list has each offence once for each cohort, so charging again after a restart changes
//! nothing.

use btcr2_aggregation_protocol::{
    cohort::{event::CohortFailure, service::phase::Phase},
    did::Did,
    error::{Fault, RejectCode, Slot},
    invite::InviteProof,
};

use super::CohortActor;
use crate::{
    bans::{Entry, Offence},
    notice::ServiceNotice,
    subject::Subject,
    transport::Evidence,
};

impl CohortActor {
    /// A member's offence, with the messages that it signed.
    fn offence_of(&self, did: &Did, offence: Offence, detail: String, evidence: Vec<Evidence>) -> (Did, Entry) {
        let (cohort_id, at) = (self.cohort_id(), self.shared.clock.now());
        let member = self.engine.machine().phase().formed().and_then(|formed| formed.members.get(did));
        let invite = member.and_then(|member| member.invite.as_ref()).map(InviteProof::id);
        let address = self.addresses.get(did).copied();
        (did.clone(), Entry { offence, cohort_id, number: None, at, detail, address, invite, evidence })
    }

    /// Records offences in the ban list.
    fn charge(&self, offences: Vec<(Did, Entry)>) {
        let charged: Vec<_> = offences.iter().map(|(did, entry)| (did.clone(), entry.offence)).collect();
        let entries = offences.into_iter().map(|(did, entry)| (Subject::from(&did), entry)).collect();
        for ((participant, offence), until) in charged.into_iter().zip(self.shared.bans.record_all(entries)) {
            if let Some(until) = until {
                let cohort_id = self.cohort_id();
                self.shared.notices.publish(ServiceNotice::MemberBanned { cohort_id, participant, offence, until });
            }
        }
    }

    /// Charges the faults in the journal: the service may have stopped before they were in the ban list.
    pub(super) fn charge_faults(&self) {
        self.engine.machine().faults().iter().for_each(|fault| self.charge_fault(fault));
    }

    /// Records a fault as soon as it is found. A fault without a text here is charged when the cohort ends.
    pub(super) fn charge_fault(&self, fault: &Fault) {
        // Any peer can be a candidate: unauthenticated peers must not fill the ban list. A second nonce is what a
        // member sends whose state was restored from a backup; it spoils that session, and the member is not invited
        // again, but it is not fraud.
        let is_charged = !matches!(fault.slot, Slot::OptIn | Slot::Nonce);
        if fault.code == RejectCode::Equivocation && is_charged {
            let evidence = self.evidence.of(&fault.did, fault.slot);
            self.charge(vec![self.offence_of(&fault.did, Offence::Equivocation, fault.detail.clone(), evidence)]);
        }
    }

    /// A member that opted in and did not fetch a request is not an offender; it cools down.
    fn note_who_did_not_fetch(&self) {
        let phase = self.engine.machine().phase();
        let unreached = match phase {
            Phase::Completed { outcome, .. } => Some(&outcome.unreached),
            Phase::Failed { reason, .. } => reason.unreached(),
            _ => None,
        };
        let (Some(unreached), Some(formed)) = (unreached, phase.formed()) else { return };
        for did in &unreached.not_fetched {
            if let Some(member) = formed.members.get(did) {
                self.shared.seats.not_fetched(did, &self.subjects_of(member), self.shared.clock.now());
            }
        }
    }

    /// Charges the culprits and holdouts of an ended cohort.
    pub(super) fn charge_all(&self) {
        let (silent, wrong, rejecting) = match self.engine.machine().phase() {
            Phase::Completed { outcome, .. } => (&outcome.holdouts[..], &outcome.culprits[..], None),
            Phase::Failed { reason, .. } => match reason {
                CohortFailure::UpdatesMissing { holdouts }
                | CohortFailure::ValidationMissing { holdouts }
                | CohortFailure::MembersAbsent { holdouts }
                | CohortFailure::NotDelivered { holdouts, .. } => (&holdouts[..], &[][..], None),
                CohortFailure::Signing { holdouts, culprits, .. } => (&holdouts[..], &culprits[..], None),
                CohortFailure::ValidationRejected { by } => (&[][..], &[][..], Some(by)),
                _ => return,
            },
            _ => return,
        };
        self.note_who_did_not_fetch();
        let silence = |did| self.offence_of(did, Offence::Holdout, "did not answer in time".to_owned(), Vec::new());
        let mut offences: Vec<_> = silent.iter().map(silence).collect();
        for did in wrong {
            let mut evidence = self.evidence.of(did, Slot::Nonce);
            evidence.extend(self.evidence.of(did, Slot::PartialSignature));
            let detail = "sent an invalid nonce or partial signature, and no valid one in time".to_owned();
            offences.push(self.offence_of(did, Offence::BadPartialSignature, detail, evidence));
        }
        if let Some(did) = rejecting {
            let evidence = self.evidence.of(did, Slot::Validation);
            let detail = "rejected the aggregated data".to_owned();
            offences.push(self.offence_of(did, Offence::Rejection, detail, evidence));
        }
        self.charge(offences);
    }
}
