//! A participant drives the machine of its memberships: it starts the sessions that the machine asks for, and publishes
//! what it reports.

use std::sync::Arc;

use actix::{ActorContext, Context};
use btcr2_aggregation_protocol::{
    cohort::{
        event::SessionEnd,
        participant::{
            ParticipantCohort,
            membership::{CohortKey, Membership, MembershipEffect, MembershipEvent, MembershipInput},
        },
    },
    error::Reject,
};

use super::{ParticipantActor, session::StartMode};
use crate::{
    engine::{Driven, Engine, Replayed},
    journal::{JournalError, Retention},
    notice::ParticipantNotice,
    supervision::{EndGuard, RestartIntensity, Restarts, replay},
};

/// The journal of the memberships is compacted when it has more records than this, and more than [`PER_FACT`] for each
/// fact.
const RECORDS: usize = 512;

/// See [`RECORDS`]. A cohort has three records in its life, and one fact in the end.
const PER_FACT: usize = 2;

impl ParticipantActor {
    /// A session cannot continue, although it has not ended. Once its journal is repaired, it can be restored.
    fn report_halted(&self, cohort: CohortKey, reason: String) {
        let CohortKey { service, cohort_id } = cohort;
        let _session = self.span(&cohort_id).entered();
        tracing::error!(%cohort_id, reason, "a participant's session cannot continue");
        let end = SessionEnd::Internal { reason };
        self.shared.notices.publish(ParticipantNotice::CohortFailed {
            did: self.shared.identity.did().clone(),
            cohort_id,
            reason: end.to_string(),
            signed: false,
            end,
            service,
        });
    }

    /// Removes facts from the journal that other facts replace.
    fn compact(&mut self, ctx: &mut Context<Self>) {
        let (facts, records) = (self.engine.machine().facts(), self.engine.records());
        let compacted = if self.retention == Retention::Forget && facts.are_settled() {
            // A journal in memory: what has ended is remembered by the machine.
            (records > 0).then_some(None)
        } else {
            let many = records > RECORDS && records > PER_FACT * facts.len();
            many.then(|| Some(self.engine.machine().compacted()))
        };
        if let Some(compacted) = compacted {
            self.compact_to(compacted, ctx);
        }
    }
}

impl Replayed for ParticipantActor {
    fn restarts(&mut self) -> (&mut Restarts, RestartIntensity) {
        (&mut self.restarts, self.shared.restarts)
    }

    fn guard(&mut self) -> &mut EndGuard {
        &mut self.guard
    }

    fn restarting_now(&mut self, count: usize) {
        tracing::error!(restarts = count, "the participant panicked and restarts");
    }

    fn restore(
        &mut self,
        events: Vec<MembershipEvent>,
        last: Option<String>,
        ctx: &mut Context<Self>,
    ) -> Result<(), String> {
        if let Some(reason) = last {
            return Err(reason);
        }
        let config = Arc::clone(&self.membership);
        let machine = replay::caught(|| {
            let mut machine = Membership::new(config);
            replay::apply(&mut machine, &events, |_, _, _| {});
            machine
        })?;
        let rng = self.shared.randomness.for_actor(self.engine.stream().as_str());
        self.engine = self.engine.renewed(machine, rng);
        self.engine.restored(events.len());
        self.resume_sessions(ctx);
        Ok(())
    }
}

impl Driven for ParticipantActor {
    type Machine = Membership;

    fn engine(&mut self) -> &mut Engine<Membership> {
        &mut self.engine
    }

    fn tick() -> MembershipInput {
        MembershipInput::Tick
    }

    fn is_heavy(_: &Membership, _: &MembershipInput) -> bool {
        false
    }

    fn observe(&mut self, _: &MembershipEvent, _: &[MembershipEffect], _: &mut Context<Self>) {}

    fn perform(&mut self, effect: MembershipEffect, ctx: &mut Context<Self>) {
        match effect {
            MembershipEffect::AskConsider(advert) => {
                let considers = self.shared.policy.considers(&advert);
                if !considers {
                    tracing::debug!(cohort_id = %advert.cohort_id, "the policy does not consider the advert");
                }
                self.feed(MembershipInput::ConsiderDecided { advert, considers }, ctx);
            }
            MembershipEffect::StartSession { advert, rejoins } => {
                let machine = ParticipantCohort::new(Arc::clone(&self.shared.config), advert);
                self.start_session(machine, (StartMode::Fresh, rejoins), ctx);
            }
            MembershipEffect::ResumeSession(cohort) => {
                if let Some(machine) = self.replayed.remove(&cohort) {
                    self.start_session(machine, (StartMode::Resumed, false), ctx);
                }
            }
            MembershipEffect::Forget(cohort) => self.forget(&cohort, ctx),
            MembershipEffect::Refuse { cohort, reject } => self.reject(Some(&cohort.cohort_id), &reject),
            MembershipEffect::ReportHalted { cohort, reason } => self.report_halted(cohort, reason),
            MembershipEffect::ReportWithoutCohort { cohort, cause } => {
                let (did, cohort_id) = (self.shared.identity.did().clone(), cohort.cohort_id);
                self.shared.notices.publish(ParticipantNotice::WithoutCohort { did, cohort_id, cause });
            }
        }
    }

    fn refused(&mut self, reject: Reject, _: &mut Context<Self>) {
        self.reject(self.about.as_ref(), &reject);
    }

    fn journal_failed(&mut self, error: JournalError, ctx: &mut Context<Self>) {
        // It would opt in again to cohorts that it is in.
        tracing::error!(%error, "the participant cannot continue");
        self.guard.journal_failed();
        ctx.stop();
    }

    fn settled(&mut self, ctx: &mut Context<Self>) {
        if self.engine.is_released() {
            self.compact(ctx);
        }
    }
}
