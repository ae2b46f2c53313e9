//! The decisive notices of a cohort, made from its machine: the same for its actor and for its journal.

use std::sync::Arc;

use btcr2_aggregation_protocol::{
    cohort::{
        event::ServiceEvent,
        service::{CohortTerms, Lineage, ServiceCohort, phase::Phase},
    },
    identity::Identity,
    transcript::Transcript,
};
use rand_chacha::ChaCha20Rng;

use crate::{
    notice::{CohortResult, ServiceNotice},
    supervision::replay,
};

/// The cohort after `events`, and their transcript.
pub(super) fn replayed(mut machine: ServiceCohort, events: &[ServiceEvent]) -> (ServiceCohort, Transcript) {
    let mut transcript = Transcript::default();
    replay::apply(&mut machine, events, |machine, event, effects| {
        for digest in machine.transcript_entries(event, effects) {
            transcript.push(digest);
        }
    });
    (machine, transcript)
}

/// The notice of a cohort that replaces another one.
pub(super) fn reformed(terms: &CohortTerms) -> Option<ServiceNotice> {
    let Lineage { predecessor, invited, excluded, .. } = &terms.lineage;
    Some(ServiceNotice::CohortReformed {
        cohort_id: terms.cohort_id.clone(),
        predecessor: Some(predecessor.clone()?),
        invited: invited.len(),
        excluded: excluded.iter().cloned().collect(),
    })
}

/// The notice of the end of a cohort, if it has ended.
pub(super) fn end_of(
    machine: &ServiceCohort,
    transcript: &Transcript,
    identity: &Identity,
    rng: &mut ChaCha20Rng,
) -> Option<ServiceNotice> {
    let cohort_id = machine.config().terms.cohort_id.clone();
    match machine.phase() {
        Phase::Completed { formed, aggregated, outcome } => {
            let context = cohort_id.as_str().as_bytes().to_vec();
            let result = CohortResult {
                output: formed.output.clone(),
                aggregation: Arc::clone(&aggregated.aggregation),
                signed: Arc::clone(outcome),
                transcript: transcript.head().sign(&context, identity.secret_key(), rng),
                messages: Arc::new(transcript.clone()),
            };
            Some(ServiceNotice::SigningComplete {
                cohort_id,
                path: outcome.path,
                txid: outcome.transaction.compute_txid().to_string(),
                result: Arc::new(result),
            })
        }
        Phase::Failed { reason, successor, .. } => {
            let next = successor.as_ref().map(|terms| terms.cohort_id.clone());
            Some(ServiceNotice::failed(cohort_id, reason, next))
        }
        _ => None,
    }
}
