//! What members signed, kept while their cohort runs: the first thing that each said in a place, and the latest.

use std::collections::BTreeMap;

use btcr2_aggregation_protocol::{did::Did, error::Slot, message::Body};

use crate::transport::{Evidence, Received};

/// The signed messages of one cohort, two at most for each member and place.
#[derive(Default)]
pub(crate) struct EvidenceBook(BTreeMap<(Did, Slot), Said>);

struct Said {
    first: Evidence,
    latest: Option<Evidence>,
}

impl EvidenceBook {
    /// Keeps what `received` proves, if it fills a place. Call it for members only: they are as many as the cohort admits.
    pub(crate) fn keep(&mut self, received: &Received) {
        let (Some(slot), Some(evidence)) = (slot_of(&received.body), &received.evidence) else { return };
        self.0
            .entry((received.from.clone(), slot))
            .and_modify(|said| {
                if said.first != *evidence {
                    said.latest = Some(evidence.clone());
                }
            })
            .or_insert_with(|| Said { first: evidence.clone(), latest: None });
    }

    /// What `did` signed in `slot`.
    pub(crate) fn of(&self, did: &Did, slot: Slot) -> Vec<Evidence> {
        let said = self.0.get(&(did.clone(), slot));
        said.map_or_else(Vec::new, |said| [&said.first].into_iter().chain(&said.latest).cloned().collect())
    }
}

fn slot_of(body: &Body) -> Option<Slot> {
    Some(match body {
        Body::CohortOptIn(_) => Slot::OptIn,
        Body::SubmitUpdate(_) | Body::SubmitNonIncluded(_) => Slot::Update,
        Body::ValidationAck(_) => Slot::Validation,
        Body::NonceContribution(_) => Slot::Nonce,
        Body::SignatureAuthorization(_) => Slot::PartialSignature,
        Body::FallbackSignature(_) => Slot::FallbackSignature,
        _ => return None,
    })
}
