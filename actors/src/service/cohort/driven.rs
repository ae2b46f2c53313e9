//! The consequences of a cohort's events: notices for the host, and effects.

use std::{sync::Arc, time::Duration};

use actix::{ActorContext, Context};
use btcr2_aggregation_protocol::{
    cohort::{
        event::ServiceEvent,
        service::{ServiceCohort, ServiceEffect, ServiceInput},
    },
    error::{Reject, RejectCode},
    machine::Machine,
};

use super::{super::shared::FormAgain, CohortActor};
use crate::{
    engine::{Driven, Engine},
    journal::JournalError,
    notice::ServiceNotice,
    policy::{PolicyError, TransactionRequest},
    transport::Outbound,
};

/// How long delivery of a cohort's end to its members is attempted.
const FAREWELL: Duration = Duration::from_secs(600);

impl Driven for CohortActor {
    type Machine = ServiceCohort;

    fn engine(&mut self) -> &mut Engine<ServiceCohort> {
        &mut self.engine
    }

    fn tick() -> ServiceInput {
        ServiceInput::Tick
    }

    fn due(&mut self) -> ServiceInput {
        let missing = self.engine.machine().holdouts();
        let undelivered = self.shared.deliveries.undelivered(&self.cohort_id(), &missing);
        if undelivered.is_empty() { ServiceInput::Tick } else { ServiceInput::Lapsed { undelivered } }
    }

    fn is_heavy(machine: &ServiceCohort, input: &ServiceInput) -> bool {
        machine.is_heavy(input)
    }

    fn observe(&mut self, event: &ServiceEvent, effects: &[ServiceEffect], _: &mut Context<Self>) {
        for digest in self.engine.machine().transcript_entries(event, effects) {
            self.transcript.push(digest);
        }
        self.count_seats(event);
        let cohort_id = self.cohort_id();
        let notice = match event {
            ServiceEvent::CohortAdvertised { .. } => ServiceNotice::CohortAdvertised { cohort_id },
            ServiceEvent::OptInReceived { member, .. } => {
                ServiceNotice::OptInReceived { cohort_id, participant: member.did.clone() }
            }
            ServiceEvent::MemberAdmitted { did, .. } => {
                ServiceNotice::ParticipantAccepted { cohort_id, participant: did.clone() }
            }
            ServiceEvent::MemberRefused { did, reason } => {
                ServiceNotice::ParticipantRefused { cohort_id, participant: did.clone(), reason: reason.clone() }
            }
            ServiceEvent::KeysAggregated { output, .. } => ServiceNotice::formed(cohort_id, output),
            ServiceEvent::UpdateReceived { did, .. } => {
                ServiceNotice::UpdateReceived { cohort_id, participant: did.clone(), included: true }
            }
            ServiceEvent::UpdateDeclined { did, .. } => {
                ServiceNotice::UpdateReceived { cohort_id, participant: did.clone(), included: false }
            }
            ServiceEvent::UpdatesAggregated { aggregation, .. } => {
                ServiceNotice::DataDistributed { cohort_id, signal: aggregation.signal }
            }
            ServiceEvent::ValidationReceived { did, approved, .. } => {
                ServiceNotice::ValidationReceived { cohort_id, participant: did.clone(), approved: *approved }
            }
            ServiceEvent::ValidationCompleted { .. } => ServiceNotice::ValidationComplete { cohort_id },
            ServiceEvent::TransactionDeferred { reason, .. } => {
                ServiceNotice::TransactionDeferred { cohort_id, reason: reason.clone() }
            }
            ServiceEvent::FaultRecorded { fault } => {
                self.charge_fault(fault);
                ServiceNotice::rejected(Some(&cohort_id), &Reject::from(fault))
            }
            ServiceEvent::OptInDisplaced { fault, .. } => {
                ServiceNotice::rejected(Some(&cohort_id), &Reject::from(fault))
            }
            ServiceEvent::PhaseExtended { phase, until, .. } | ServiceEvent::GraceGiven { phase, until, .. } => {
                ServiceNotice::PhaseExtended { cohort_id, phase: *phase, until: *until }
            }
            ServiceEvent::PresenceRequested { .. } => ServiceNotice::PresenceRequested { cohort_id },
            ServiceEvent::PresenceConfirmed { did } => {
                ServiceNotice::PresenceConfirmed { cohort_id, participant: did.clone() }
            }
            ServiceEvent::CohortCompleted { .. } | ServiceEvent::CohortFailed { .. } => {
                self.charge_all();
                let Some(notice) = self.end_notice() else { return };
                notice
            }
            // The session publishes its own start.
            ServiceEvent::SigningStarted { .. }
            | ServiceEvent::AdvertRepeated { .. }
            | ServiceEvent::TransactionRequested { .. } => return,
        };
        self.shared.notices.publish(notice);
    }

    fn perform(&mut self, effect: ServiceEffect, ctx: &mut Context<Self>) {
        let policy = Arc::clone(&self.shared.policy);
        match effect {
            ServiceEffect::Broadcast(_) if self.is_quiet() => {}
            ServiceEffect::Broadcast(body) => self.send(Outbound::Broadcast { body }),
            ServiceEffect::WithdrawAdvert => {
                self.send(Outbound::WithdrawAdvert { cohort_id: self.cohort_id() });
            }
            ServiceEffect::Send { to, body } => {
                // The last message is worth a few attempts.
                let until = self.engine.machine().deadline().or_else(|| Some(self.shared.clock.now() + FAREWELL));
                self.send(Outbound::Direct { to, body, until });
            }
            ServiceEffect::AskAdmission(member) => self.ask_admission(member, ctx),
            ServiceEffect::AskFinalization { .. } => {
                let view = self.view();
                let question = async move { policy.finalize(&view).await.then_some(ServiceInput::Finalize) };
                self.ask(question, ctx);
            }
            ServiceEffect::AskTransaction { output, signal } => {
                let Some(aggregated) = self.engine.machine().phase().aggregated().cloned() else { return };
                let request = TransactionRequest { cohort_id: self.cohort_id(), output, signal, aggregated };
                let question = async move {
                    Some(match policy.beacon_transaction(&request).await {
                        Ok(funded) => ServiceInput::TransactionProvided {
                            transaction: funded.transaction,
                            value: funded.value,
                        },
                        Err(PolicyError::Retry(retry)) => ServiceInput::TransactionUnavailable(retry),
                        Err(PolicyError::Fatal(fatal)) => ServiceInput::TransactionRefused(fatal),
                    })
                };
                self.ask(question, ctx);
            }
            ServiceEffect::StartSigning(task) => self.start_session(task, ctx),
            // An unbounded send: there is one for each cohort.
            ServiceEffect::FormAgain(terms) => self.successors.do_send(FormAgain(terms)),
        }
    }

    fn refused(&mut self, reject: Reject, _: &mut Context<Self>) {
        if reject.code == RejectCode::WrongPhase && self.is_late(reject.peer.as_ref()) {
            return tracing::debug!(cohort_id = %self.cohort_id(), reject.detail, "a message arrived too late");
        }
        self.shared.notices.publish(ServiceNotice::rejected(Some(&self.cohort_id()), &reject));
    }

    fn journal_failed(&mut self, error: JournalError, ctx: &mut Context<Self>) {
        tracing::error!(%error, "a cohort cannot continue");
        self.guard.journal_failed();
        ctx.stop();
    }

    fn settled(&mut self, ctx: &mut Context<Self>) {
        if self.engine.machine().has_ended() && self.engine.is_released() {
            self.guard.finish();
            ctx.stop();
        }
    }
}
