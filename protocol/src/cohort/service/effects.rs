//! The effects of a cohort's events: once when an event happens, and again after a restart until they are answered.

use std::sync::Arc;

use super::{
    ServiceCohort, ServiceEffect,
    phase::{Admission, Aggregated, Formed, Phase},
};
use crate::{
    beacon::AggregatedData,
    cohort::event::ServiceEvent,
    did::Did,
    message::{
        Bytes, SharedBody,
        control::{CohortEnded, PresenceRequest, SignedTransaction},
        keygen::{CohortOptInAccept, CohortReady},
        update::DistributeAggregatedData,
    },
    signing::Signed,
};

impl ServiceCohort {
    pub(super) fn effects_of(&self, event: &ServiceEvent) -> Vec<ServiceEffect> {
        match (event, &self.phase) {
            (ServiceEvent::CohortAdvertised { .. } | ServiceEvent::AdvertRepeated { .. }, _) => vec![self.advert()],
            (ServiceEvent::OptInReceived { member, .. }, _) => {
                vec![ServiceEffect::AskAdmission(Arc::clone(member))]
            }
            (ServiceEvent::MemberRefused { did, reason }, _) => {
                let mut effects = vec![self.notify_not_admitted(did, reason)];
                // This may be the last member that a reformed cohort waited for.
                if !self.config.terms.lineage.invited.is_empty() {
                    effects.extend(self.ask_finalization());
                }
                effects
            }
            (ServiceEvent::MemberAdmitted { did, .. }, _) => {
                let mut effects = vec![self.accept(did)];
                effects.extend(self.ask_finalization());
                effects
            }
            (ServiceEvent::KeysAggregated { .. }, Phase::CollectingUpdates { formed, .. }) => {
                let mut effects = self.ready(formed, |_| true);
                effects.push(ServiceEffect::WithdrawAdvert);
                effects
            }
            (ServiceEvent::UpdatesAggregated { .. }, Phase::Validating { formed, aggregated, .. }) => {
                self.distribute(formed, aggregated, |_| true)
            }
            (
                ServiceEvent::ValidationCompleted { .. } | ServiceEvent::TransactionRequested { .. },
                Phase::AwaitingTransaction { formed, aggregated, .. },
            ) => vec![ask_transaction(formed, aggregated)],
            (ServiceEvent::PresenceRequested { .. }, Phase::CheckingPresence { formed, .. }) => {
                self.request_presence(formed, |_| true)
            }
            (ServiceEvent::SigningStarted { .. }, Phase::Signing { task, .. }) => {
                vec![ServiceEffect::StartSigning(Arc::clone(task))]
            }
            (ServiceEvent::CohortCompleted { .. } | ServiceEvent::CohortFailed { .. }, _) => self.ending(),
            _ => Vec::new(),
        }
    }

    /// The effects that the journal shows as unanswered. Members ignore what they have already received.
    pub(super) fn owed(&self) -> Vec<ServiceEffect> {
        match &self.phase {
            Phase::Planned => Vec::new(),
            Phase::Enrolling(enrolling) => {
                let mut effects = vec![self.advert()];
                for (did, (member, admission)) in &enrolling.candidates {
                    match admission {
                        Admission::Pending => effects.push(ServiceEffect::AskAdmission(Arc::clone(member))),
                        Admission::Admitted => effects.push(self.accept(did)),
                        Admission::Refused => {}
                    }
                }
                effects.extend(self.ask_finalization());
                effects
            }
            Phase::CollectingUpdates { formed, slots, .. } => {
                let mut effects = self.ready(formed, |did| !slots.contains_key(did));
                effects.push(ServiceEffect::WithdrawAdvert);
                effects
            }
            Phase::Validating { formed, aggregated, approvals, .. } => {
                self.distribute(formed, aggregated, |did| !approvals.contains(did))
            }
            // A deferred transaction is requested when it is due.
            Phase::AwaitingTransaction { retry_at: Some(_), .. } => Vec::new(),
            Phase::AwaitingTransaction { formed, aggregated, .. } => vec![ask_transaction(formed, aggregated)],
            Phase::CheckingPresence { formed, present, .. } => {
                self.request_presence(formed, |did| !present.contains(did))
            }
            Phase::Signing { task, .. } => vec![ServiceEffect::StartSigning(Arc::clone(task))],
            Phase::Completed { .. } | Phase::Failed { .. } => self.ending(),
        }
    }

    fn advert(&self) -> ServiceEffect {
        let terms = &self.config.terms;
        let advert = terms.conditions.to_advert(terms.cohort_id.clone(), terms.network, &terms.service_key);
        ServiceEffect::Broadcast(advert.into())
    }

    fn accept(&self, did: &Did) -> ServiceEffect {
        let body = CohortOptInAccept { cohort_id: self.config.terms.cohort_id.clone() }.into();
        ServiceEffect::Send { to: did.clone(), body }
    }

    /// Informs a candidate that it is not admitted, so that it does not wait.
    fn notify_not_admitted(&self, did: &Did, reason: &str) -> ServiceEffect {
        let body = CohortEnded {
            cohort_id: self.config.terms.cohort_id.clone(),
            code: CohortEnded::NOT_ADMITTED.to_owned(),
            reason: format!("not admitted: {reason}"),
            at_fault: false,
            next_cohort_id: None,
            signed: None,
            opt_in: None,
        };
        ServiceEffect::Send { to: did.clone(), body: body.into() }
    }

    fn ask_finalization(&self) -> Option<ServiceEffect> {
        let Phase::Enrolling(enrolling) = &self.phase else { return None };
        // The cohort forms without the host when it has settled.
        if !self.config.terms.rules.settle.is_zero() {
            return None;
        }
        let admitted = enrolling.admitted();
        // A reformed cohort waits for the members that it was reformed for.
        let invited = &self.config.terms.lineage.invited;
        let complete = invited.iter().all(|did| enrolling.has_decided(did));
        (self.can_form(admitted) && complete).then_some(ServiceEffect::AskFinalization { admitted })
    }

    fn ready(&self, formed: &Formed, to: impl Fn(&Did) -> bool) -> Vec<ServiceEffect> {
        let body: SharedBody = CohortReady {
            cohort_id: self.config.terms.cohort_id.clone(),
            beacon_address: formed.output.address().to_owned(),
            cohort_keys: formed.output.keys().iter().map(|key| Bytes(key.to_bytes())).collect(),
        }
        .into();
        formed.send(to, |_| body.clone())
    }

    fn distribute(
        &self,
        formed: &Formed,
        aggregated: &Aggregated,
        to: impl Fn(&Did) -> bool,
    ) -> Vec<ServiceEffect> {
        let terms = &self.config.terms;
        let aggregation = &aggregated.aggregation;
        let message = |data| -> SharedBody {
            let beacon_type = terms.conditions.beacon_type.clone();
            DistributeAggregatedData::new(terms.cohort_id.clone(), beacon_type, aggregation.signal, data).into()
        };
        match &aggregation.data {
            AggregatedData::Shared(data) => {
                let body = message(data);
                formed.send(to, |_| body.clone())
            }
            AggregatedData::PerMember(data) => {
                let data = data.iter().filter(|(did, _)| to(did));
                data.map(|(did, data)| ServiceEffect::Send { to: did.clone(), body: message(data) }).collect()
            }
        }
    }

    fn request_presence(&self, formed: &Formed, to: impl Fn(&Did) -> bool) -> Vec<ServiceEffect> {
        let body: SharedBody = PresenceRequest { cohort_id: self.config.terms.cohort_id.clone() }.into();
        formed.send(to, |_| body.clone())
    }

    /// Notifies every waiting member, and opens the cohort that replaces this one.
    fn ending(&self) -> Vec<ServiceEffect> {
        let cohort_id = self.config.terms.cohort_id.clone();
        match &self.phase {
            Phase::Completed { formed, outcome, .. } => {
                let body: SharedBody = CohortEnded {
                    cohort_id,
                    code: CohortEnded::COMPLETED.to_owned(),
                    reason: format!("signed by the {}", outcome.path),
                    at_fault: false,
                    next_cohort_id: None,
                    signed: signed_transaction(outcome),
                    opt_in: None,
                }
                .into();
                formed.send(|_| true, |_| body.clone())
            }
            Phase::Failed { formed, waiting, reason, successor } => {
                let mut at_fault = reason.at_fault();
                at_fault.extend(self.faults.iter().map(|fault| fault.did.clone()));
                let next = successor.as_ref().map(|terms| terms.cohort_id.clone());
                let body = |at_fault, next_cohort_id| -> SharedBody {
                    let (code, reason) = (reason.code().to_owned(), reason.to_string());
                    let cohort_id = cohort_id.clone();
                    CohortEnded { cohort_id, code, reason, at_fault, next_cohort_id, signed: None, opt_in: None }
                        .into()
                };
                let left_out = reason.unreached().map(|unreached| &unreached.not_fetched[..]).unwrap_or_default();
                // There are three bodies for all members, each built once.
                let (innocent, guilty, absent) = (body(false, next), body(true, None), body(false, None));
                let mut effects: Vec<_> = waiting
                    .iter()
                    .map(|did| {
                        let body = match did {
                            did if at_fault.contains(did) => &guilty,
                            did if left_out.contains(did) => &absent,
                            _ => &innocent,
                        };
                        ServiceEffect::Send { to: did.clone(), body: body.clone() }
                    })
                    .collect();
                if formed.is_none() {
                    effects.push(ServiceEffect::WithdrawAdvert);
                }
                effects.extend(successor.iter().map(|terms| ServiceEffect::FormAgain(Arc::clone(terms))));
                effects
            }
            _ => Vec::new(),
        }
    }
}

/// The signed transaction as it is sent to members; `None` if it is too large for a message on every carrier, as a
/// fallback of some three hundred members is.
fn signed_transaction(outcome: &Signed) -> Option<SignedTransaction> {
    const MOST: usize = 28_000;
    let tx = Arc::new(outcome.transaction.clone());
    (tx.total_size() <= MOST).then_some(SignedTransaction { tx, prev_out_value: outcome.value })
}

fn ask_transaction(formed: &Formed, aggregated: &Aggregated) -> ServiceEffect {
    ServiceEffect::AskTransaction { output: formed.output.clone(), signal: aggregated.aggregation.signal }
}
