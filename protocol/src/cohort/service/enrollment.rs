//! Enrollment: opt-ins, admission, and forming the cohort.

use std::sync::Arc;

use super::{
    ServiceCohort,
    phase::{Admission, Enrolling, Phase},
};
use crate::{
    cohort::{
        Member,
        event::{CohortFailure, ServiceEvent},
    },
    did::Did,
    error::{Fault, Reject, RejectCode, Slot},
    message::{Message, keygen::CohortOptIn},
    output::BeaconOutput,
    time::Timestamp,
};

impl ServiceCohort {
    pub(super) fn on_opt_in(
        &self,
        from: &Did,
        body: &CohortOptIn,
        message: &Message,
    ) -> Result<Vec<ServiceEvent>, Reject> {
        let member = Member::from_opt_in(from, body, self.config.terms.network)
            .map_err(|error| Member::reject(from, &error))?;
        let known = match &self.phase {
            Phase::Enrolling(enrolling) => enrolling.candidates.get(from).map(|(member, _)| member),
            phase => phase.formed().and_then(|formed| formed.members.get(from)),
        };
        if let Some(known) = known {
            if known.is_same_as(&member) {
                return Ok(Vec::new());
            }
            let fault = self.faults.equivocation(from, Slot::OptIn)?;
            return Ok(vec![ServiceEvent::FaultRecorded { fault }]);
        }
        let Phase::Enrolling(enrolling) = &self.phase else {
            return Err(Reject::new(RejectCode::WrongPhase, from, "the cohort no longer admits members"));
        };
        if self.config.terms.lineage.excluded.contains(from) {
            let detail = "the cohort was formed again without this member";
            return Err(Reject::new(RejectCode::Excluded, from, detail));
        }
        let mut events = self.displace(enrolling, &member)?;
        let places = self.config.terms.conditions.max_participants.map_or(usize::MAX, |max| max as usize);
        let full = enrolling.keys.len() - events.len() >= places.saturating_sub(self.reserved(enrolling, from));
        if full || enrolling.candidates.len() >= self.config.terms.limits.candidates {
            return Err(Reject::new(RejectCode::CohortFull, from, "the cohort is full"));
        }
        events.push(ServiceEvent::OptInReceived { member: Arc::new(member), digest: message.digest() });
        Ok(events)
    }

    /// The number of places that a reformed cohort reserves for candidates other than `from`: no new candidate takes
    /// the place of an invited member that has not opted in yet.
    fn reserved(&self, enrolling: &Enrolling, from: &Did) -> usize {
        let invited = &self.config.terms.lineage.invited;
        if invited.contains(from) {
            return 0;
        }
        invited.iter().filter(|did| !enrolling.candidates.contains_key(*did)).count()
    }

    /// Displaces a candidate that has opted in with the key of `member`. A key has one owner. A candidate that
    /// authenticates with the key that it opts in with has proven to be the owner. Without this an outsider could
    /// exclude a participant by copying the key from its DID.
    fn displace(&self, enrolling: &Enrolling, member: &Member) -> Result<Vec<ServiceEvent>, Reject> {
        let Some(holder) = enrolling.keys.get(&member.participant_key.x_only()) else {
            return Ok(Vec::new());
        };
        let holder_proved =
            enrolling.candidates.get(holder).is_some_and(|(holder, _)| holder.holds_participant_key());
        if holder_proved || !member.holds_participant_key() {
            let detail = "participantPk is the key of another candidate";
            return Err(Reject::new(RejectCode::DuplicateKey, &member.did, detail));
        }
        let detail = format!("participantPk is the key of {}", member.did);
        let fault = Fault { did: holder.clone(), code: RejectCode::DuplicateKey, slot: Slot::OptIn, detail };
        Ok(vec![ServiceEvent::OptInDisplaced { fault, by: member.did.clone() }])
    }

    pub(super) fn on_admission(
        &self,
        now: Timestamp,
        did: &Did,
        admission: &Result<(), String>,
    ) -> Vec<ServiceEvent> {
        let Phase::Enrolling(enrolling) = &self.phase else {
            // The operator answered while the cohort was being formed, or ended.
            return Vec::new();
        };
        if !matches!(enrolling.candidates.get(did), Some((_, Admission::Pending))) {
            return Vec::new();
        }
        match admission {
            Err(reason) => vec![ServiceEvent::MemberRefused { did: did.clone(), reason: reason.clone() }],
            Ok(()) => {
                let mut events = vec![ServiceEvent::MemberAdmitted { did: did.clone(), at: Some(now) }];
                let admitted = enrolling.admitted() + 1;
                let full =
                    self.config.terms.conditions.max_participants.is_some_and(|max| admitted >= max as usize);
                if full && self.can_form(admitted) {
                    events.extend(self.form(now, Some(did)));
                }
                events
            }
        }
    }

    /// Whether a cohort of `members` satisfies the conditions and its own fallback threshold.
    pub(super) fn can_form(&self, members: usize) -> bool {
        self.config.terms.can_form(members)
    }

    /// Whether the cohort can be formed of the members that were admitted so far.
    ///
    /// # Errors
    /// Why not.
    pub fn may_form(&self) -> Result<(), Reject> {
        match &self.phase {
            Phase::Enrolling(enrolling) if self.can_form(enrolling.admitted()) => Ok(()),
            Phase::Enrolling(_) => Err(Reject::out_of_phase("finalizing", "enrolling, with too few members")),
            phase => Err(Reject::out_of_phase("finalizing", phase.name())),
        }
    }

    /// Forms the cohort with the admitted members, and with `also`, which is being admitted now.
    pub(super) fn form(&self, now: Timestamp, also: Option<&Did>) -> Vec<ServiceEvent> {
        let Phase::Enrolling(enrolling) = &self.phase else { return Vec::new() };
        let keys: Vec<[u8; 33]> = enrolling
            .candidates
            .iter()
            .filter(|(did, (_, admission))| *admission == Admission::Admitted || Some(*did) == also)
            .map(|(_, (member, _))| member.participant_key.to_bytes())
            .collect();
        let output =
            self.config.aggregator.aggregate(&keys).map_err(|error| error.to_string()).and_then(|aggregation| {
                BeaconOutput::new(aggregation, self.config.terms.network, &self.config.terms.conditions.script_tree)
                    .map_err(|error| error.to_string())
            });
        match output {
            Ok(output) => vec![ServiceEvent::KeysAggregated { at: now, output }],
            Err(reason) => self.fail(now, CohortFailure::Internal { reason }),
        }
    }
}
