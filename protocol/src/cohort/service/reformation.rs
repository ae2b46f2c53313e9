//! When a phase cannot be completed: more time, a new cohort without the missing members, or the end.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rand_core::CryptoRng;

use super::{
    CohortTerms, Lineage, ServiceCohort,
    phase::Phase,
    rules::{Answer, TimedPhase},
};
use crate::{
    cohort::{
        Undelivered, Unreached,
        event::{CohortFailure, ServiceEvent},
    },
    did::Did,
    error::Reject,
    id::CohortId,
    time::Timestamp,
};

impl ServiceCohort {
    pub(super) fn on_tick(
        &self,
        now: Timestamp,
        undelivered: &BTreeMap<Did, Undelivered>,
        rng: &mut dyn CryptoRng,
    ) -> Vec<ServiceEvent> {
        if let Some(phase) = self.phase.timed().filter(|phase| self.is_set_back(now, *phase)) {
            return self.begin_again(now, phase);
        }
        if self.deadline_of_phase().is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        match &self.phase {
            Phase::Enrolling(enrolling) if enrolling.settled_at.is_some_and(|settled_at| settled_at <= now) => {
                self.form(now, None)
            }
            Phase::Enrolling(enrolling) if now < enrolling.deadline => {
                vec![ServiceEvent::AdvertRepeated { at: now }]
            }
            Phase::AwaitingTransaction { deadline, .. } if now < *deadline => {
                vec![ServiceEvent::TransactionRequested { at: now }]
            }
            Phase::Enrolling(enrolling) if self.can_form(enrolling.admitted()) => self.form(now, None),
            Phase::Signing { .. } => self.on_guard(now),
            phase => match phase.timed() {
                Some(timed) => match self.extension(now, timed) {
                    Some(extended) => self.with_due_repeats(now, extended),
                    None => self.on_expiry(now, timed, undelivered, rng),
                },
                None => Vec::new(),
            },
        }
    }

    /// Whether this phase would last longer than it can: the clock was wrong when it began, and was set back. Deadlines of members that sign were
    /// sent to them, and stay.
    fn is_set_back(&self, now: Timestamp, phase: TimedPhase) -> bool {
        let terms = &self.config.terms;
        let most = terms.timing.cohort_ttl.max(terms.rules.longest(phase, &terms.timing));
        let deadline = self.phase.deadline().filter(|_| phase != TimedPhase::Fallback);
        deadline.is_some_and(|deadline| now < deadline && now.is_over(deadline, most))
    }

    /// The phase waits from now on.
    fn begin_again(&self, now: Timestamp, phase: TimedPhase) -> Vec<ServiceEvent> {
        let until = self.config.terms.deadline(phase, now, now);
        let repeat = match &self.phase {
            Phase::Enrolling(_) => Some(ServiceEvent::AdvertRepeated { at: now }),
            Phase::AwaitingTransaction { .. } => Some(ServiceEvent::TransactionRequested { at: now }),
            _ => None,
        };
        std::iter::once(ServiceEvent::PhaseExtended { at: now, phase, until }).chain(repeat).collect()
    }

    /// A phase that lapsed while the service was down is not a fault of its members: they get a grace period to
    /// answer the repeated request. A phase that waits only for the operator is over.
    pub(super) fn on_resumed(&self, now: Timestamp) -> Vec<ServiceEvent> {
        if self.outdated && !self.has_ended() {
            return self.fail(now, CohortFailure::Outdated);
        }
        let (Phase::CollectingUpdates { deadline, .. }
        | Phase::Validating { deadline, .. }
        | Phase::CheckingPresence { deadline, .. }) = &self.phase
        else {
            return Vec::new();
        };
        let Some(phase) = self.phase.timed().filter(|_| *deadline <= now) else { return Vec::new() };
        let terms = &self.config.terms;
        vec![ServiceEvent::GraceGiven { at: now, phase, until: now + terms.rules.grace(phase, &terms.timing) }]
    }

    /// What was due at the same time as the end of the phase is still due when the phase is extended.
    fn with_due_repeats(&self, now: Timestamp, extended: ServiceEvent) -> Vec<ServiceEvent> {
        let repeat = match &self.phase {
            Phase::Enrolling(enrolling) if enrolling.next_advert <= now => {
                Some(ServiceEvent::AdvertRepeated { at: now })
            }
            Phase::AwaitingTransaction { retry_at: Some(retry_at), .. } if *retry_at <= now => {
                Some(ServiceEvent::TransactionRequested { at: now })
            }
            _ => None,
        };
        std::iter::once(extended).chain(repeat).collect()
    }

    /// The guard behind the session's own deadlines, which come first. A session's deadlines count from its restart,
    /// so the guard fires before them only when the service was down. It is then set again a few times before the
    /// session counts as lost.
    fn on_guard(&self, now: Timestamp) -> Vec<ServiceEvent> {
        const TIMES: u32 = 3;
        let until = self.config.terms.signing_deadline(now);
        if self.extensions < TIMES && until > now {
            return vec![ServiceEvent::PhaseExtended { at: now, phase: TimedPhase::Fallback, until }];
        }
        let reason = "the signing session did not end in time".to_owned();
        self.fail(now, CohortFailure::Internal { reason })
    }

    /// More time for `phase`, if its rule has extensions left and the cohort's TTL allows it.
    fn extension(&self, now: Timestamp, phase: TimedPhase) -> Option<ServiceEvent> {
        let terms = &self.config.terms;
        let until = terms.deadline(phase, now, self.started);
        let left = self.extensions < terms.rules.rule(phase).extensions && until > now;
        left.then_some(ServiceEvent::PhaseExtended { at: now, phase, until })
    }

    /// The phase and its deadline if the host gives it more time. Never beyond the cohort's TTL, which its members wait for too.
    ///
    /// # Errors
    /// Why it cannot have more.
    pub fn extended(&self, by: Duration) -> Result<(TimedPhase, Timestamp), Reject> {
        let (phase, deadline) = match (&self.phase, self.phase.timed()) {
            (Phase::Signing { .. }, _) => {
                let detail = "members that sign have deadlines of their own, which were sent to them";
                return Err(Reject::not_now(detail));
            }
            (phase, Some(timed)) => (timed, phase.deadline()),
            (phase, None) => return Err(Reject::out_of_phase("more time", phase.name())),
        };
        let deadline = deadline.ok_or_else(|| Reject::out_of_phase("more time", self.phase.name()))?;
        let latest = match phase {
            TimedPhase::Presence => Timestamp::NEVER,
            _ => self.started + self.config.terms.timing.cohort_ttl,
        };
        let until = (deadline + by).min(latest);
        if until <= deadline {
            return Err(Reject::not_now("the phase lasts to the end of the cohort's time limit already"));
        }
        Ok((phase, until))
    }

    fn on_expiry(
        &self,
        now: Timestamp,
        phase: TimedPhase,
        undelivered: &BTreeMap<Did, Undelivered>,
        rng: &mut dyn CryptoRng,
    ) -> Vec<ServiceEvent> {
        // A member that was not reached could not answer.
        let (holdouts, unreached) = Unreached::among(self.holdouts(), undelivered);
        let failure = match (&self.phase, phase) {
            (Phase::Enrolling(enrolling), _) => CohortFailure::EnrollmentExpired { admitted: enrolling.admitted() },
            (Phase::CheckingPresence { transaction, value, .. }, _) if !self.presence_decides() => {
                // A member that could not be asked whether it is present does not sign on the key path.
                let falls_back = self.config.terms.rules.rule(TimedPhase::Presence).then == Answer::FallBack;
                let (absent, unreached) = if falls_back { (holdouts, unreached) } else { Default::default() };
                return vec![self.start_signing(now, transaction, *value, absent, unreached, rng)];
            }
            _ if !unreached.is_empty() => CohortFailure::NotDelivered { unreached, holdouts },
            (_, TimedPhase::Updates) => CohortFailure::UpdatesMissing { holdouts },
            (_, TimedPhase::Validation) => CohortFailure::ValidationMissing { holdouts },
            (Phase::CheckingPresence { .. }, _) => CohortFailure::MembersAbsent { holdouts },
            _ => CohortFailure::Transaction { reason: "the operator did not provide it in time".to_owned() },
        };
        self.give_up(now, phase, failure, rng)
    }

    /// Whether the cohort ends when members do not confirm their presence.
    fn presence_decides(&self) -> bool {
        match self.config.terms.rules.rule(TimedPhase::Presence).then {
            Answer::Fail | Answer::Reform => true,
            Answer::Proceed | Answer::FallBack => false,
        }
    }

    /// Ends the cohort because `phase` could not be completed. A successor follows where the rule of the phase
    /// requires one.
    pub(super) fn give_up(
        &self,
        now: Timestamp,
        phase: TimedPhase,
        reason: CohortFailure,
        rng: &mut dyn CryptoRng,
    ) -> Vec<ServiceEvent> {
        let reform = self.config.terms.rules.rule(phase).then == Answer::Reform;
        let successor = if reform { self.successor(&reason, rng) } else { None };
        vec![ServiceEvent::CohortFailed { at: now, reason, successor: successor.map(Arc::new) }]
    }

    /// Ends the cohort without a successor.
    pub(super) fn fail(&self, at: Timestamp, reason: CohortFailure) -> Vec<ServiceEvent> {
        vec![ServiceEvent::CohortFailed { at, reason, successor: None }]
    }

    /// The terms of the cohort that replaces this one. `None` if no member is left, or too many cohorts have failed
    /// in a row. If fewer members are left than a cohort needs, and nothing was approved yet, the new cohort waits
    /// for new members: one member at fault must not end it for all.
    fn successor(&self, reason: &CohortFailure, rng: &mut dyn CryptoRng) -> Option<CohortTerms> {
        let terms = &*self.config.terms;
        let formed = self.phase.formed()?;
        if terms.lineage.generation >= terms.rules.reformations {
            return None;
        }
        let mut excluded = terms.lineage.excluded.clone();
        excluded.extend(reason.at_fault());
        // They opted in and do not read. Whom no carrier has reached is invited again.
        excluded.extend(reason.unreached().into_iter().flat_map(|unreached| unreached.not_fetched.iter().cloned()));
        excluded.extend(self.faults.iter().map(|fault| fault.did.clone()));
        let invited = formed.members.keys().filter(|did| !excluded.contains(*did)).cloned().collect();
        let lineage = Lineage {
            predecessor: Some(terms.cohort_id.clone()),
            generation: terms.lineage.generation + 1,
            invited,
            excluded,
        };
        // The same members would fail the same way: at least one member must be at fault.
        let changed = lineage.invited.len() < formed.members.len();
        // After approval the round may still be announced, so its members must not wait for new ones.
        let enough = match reason {
            CohortFailure::Signing { .. } => self.can_form(lineage.invited.len()),
            _ => !lineage.invited.is_empty(),
        };
        (changed && enough).then(|| CohortTerms { cohort_id: CohortId::generate(rng), lineage, ..terms.clone() })
    }
}
