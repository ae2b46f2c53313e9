//! A cohort's place at its service, which it keeps while its actor is being replaced.

use std::{collections::VecDeque, sync::Arc};

use actix::{Addr, prelude::SendError};
use btcr2_aggregation_protocol::{cohort::service::CohortTerms, did::Did, id::CohortId};

use crate::{
    cohort::{Cancel, CohortActor, CohortMessage, Finalize, SayAgain},
    fence::Hold,
    load::Waits,
    recovery::Restarts,
    transport::Received,
};

/// How many messages may wait for a cohort that is being brought back. Whoever gets no receipt says it again.
const WAITING: usize = 1024;

/// A cohort's place in the tree.
pub(super) struct Place {
    /// `None` while it is being brought back.
    pub(super) actor: Option<(Addr<CohortActor>, Hold)>,
    /// What came meanwhile.
    waiting: VecDeque<Said>,
    pub(super) restarts: Restarts,
    pub(super) given_up: bool,
    pub(super) terms: Arc<CohortTerms>,
}

/// What is said to a cohort.
pub(super) enum Said {
    Message(Received, Waits),
    Finalize,
    Cancel(String),
    Again(Did),
}

impl Place {
    pub(super) fn of(terms: Arc<CohortTerms>) -> Self {
        let (actor, waiting, restarts) = Default::default();
        Self { actor, waiting, restarts, given_up: false, terms }
    }

    /// Hands something to the cohort, or keeps it until the cohort is back. What cannot be kept gets no receipt.
    pub(super) fn hand(&mut self, cohort_id: &CohortId, said: Said) {
        let said = match (self.actor.as_ref().map(|(cohort, _)| cohort), said) {
            (Some(cohort), Said::Message(message, waits)) => match cohort.try_send(CohortMessage(message, waits)) {
                Ok(()) => return,
                // It has just failed, or ended: we are about to hear of it.
                Err(SendError::Closed(CohortMessage(message, waits))) => Said::Message(message, waits),
                Err(SendError::Full(CohortMessage(message, _))) => {
                    return tracing::warn!(%cohort_id, from = %message.from, "the cohort's mailbox is full, a message is lost");
                }
            },
            (Some(cohort), Said::Finalize) if cohort.connected() => return cohort.do_send(Finalize),
            (Some(cohort), Said::Cancel(reason)) if cohort.connected() => return cohort.do_send(Cancel(reason)),
            (Some(cohort), Said::Again(to)) if cohort.connected() => return cohort.do_send(SayAgain(to)),
            // One that is brought back says it by itself.
            (_, Said::Again(_)) => return,
            (_, said) => said,
        };
        if self.waiting.len() < WAITING {
            self.waiting.push_back(said);
        } else {
            tracing::warn!(%cohort_id, "the cohort is being brought back, a message is not taken");
        }
    }

    /// The cohort is there, or back.
    pub(super) fn back(&mut self, cohort_id: &CohortId, actor: (Addr<CohortActor>, Hold)) {
        self.actor = Some(actor);
        for said in std::mem::take(&mut self.waiting) {
            self.hand(cohort_id, said);
        }
    }
}
