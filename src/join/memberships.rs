//! The cohorts of the member, including those of a previous run.

use std::{collections::BTreeSet, fmt::Display};

use crate::{
    actors::{
        handle::Participant,
        journal::{Journal, JournalError, StreamKind},
    },
    protocol::{cohort::event::ParticipantEvent, did::Did, id::CohortId, update::SignedUpdate},
};

/// A session in the journal.
pub(crate) struct Earlier {
    pub(crate) cohort_id: CohortId,
    /// Whether our update, or our refusal, was submitted in it.
    pub(crate) answered: bool,
    /// Whether it had ended when the program started.
    pub(crate) ended: bool,
    /// Our update, if one was submitted.
    pub(crate) submitted: Option<SignedUpdate>,
    /// The same, once we approved data with it: it may be announced.
    pub(crate) approved: Option<SignedUpdate>,
    /// Whether its signed transaction was seen.
    pub(crate) seen: bool,
}

impl Earlier {
    /// The update that this session may still announce, without another decision of its controller.
    pub(crate) fn pending(&self) -> Option<&SignedUpdate> {
        self.submitted.as_ref().filter(|_| !self.ended).or(self.approved.as_ref())
    }
}

/// The joined sessions of `did`, and why others cannot be read: what they have submitted is not known.
pub(crate) async fn earlier(journal: &dyn Journal, did: &Did) -> Result<(Vec<Earlier>, Vec<String>), JournalError> {
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for stream in journal.streams().await? {
        let StreamKind::Participant { did: whose, cohort_id, .. } = stream.kind() else { continue };
        if whose != *did {
            continue;
        }
        let problem = |error: &dyn Display| {
            format!(
                "the session of cohort {cohort_id} cannot be read: {error}. What it has submitted may be announced; once that is ruled \
                 out, `state export {cohort_id} --forget --out FILE` takes it out"
            )
        };
        let records = match journal.read(&stream).await {
            Ok(records) => records,
            Err(error) => {
                problems.push(problem(&error));
                continue;
            }
        };
        let (mut facts, mut unreadable) = (Vec::<ParticipantEvent>::new(), None);
        for record in &records {
            match record.event() {
                Ok(fact) => facts.push(fact),
                Err(error) => unreadable = Some(problem(&error)),
            }
        }
        problems.extend(unreadable);
        let any = |is: fn(&ParticipantEvent) -> bool| facts.iter().any(is);
        let joined = any(|fact| matches!(fact, ParticipantEvent::OptedIn { .. }));
        let ended = any(|fact| matches!(fact, ParticipantEvent::SessionEnded { .. }));
        if joined {
            let answered = any(|fact| matches!(fact, ParticipantEvent::UpdateSubmitted { .. }));
            let approves = any(|fact| matches!(fact, ParticipantEvent::ValidationSent { approved: true, .. }));
            let seen = any(|fact| matches!(fact, ParticipantEvent::TransactionSeen { .. }));
            let submitted = facts.iter().find_map(|fact| match fact {
                ParticipantEvent::UpdateSubmitted { update, .. } => Some(update.clone()),
                _ => None,
            });
            let approved = submitted.clone().filter(|_| approves);
            found.push(Earlier { cohort_id, answered, ended, submitted, approved, seen });
        }
    }
    Ok((found, problems))
}

/// The cohorts of the member. Which of them it is in, and which successor it waits for, its actor knows; here is what
/// previous runs have received.
pub(super) struct Memberships {
    participant: Participant,
    /// The cohorts whose end a previous run received, or should have received.
    ended: BTreeSet<CohortId>,
    /// Those of them whose end was not repeated in this run yet.
    unrepeated: BTreeSet<CohortId>,
}

impl Memberships {
    /// The cohorts of the previous run.
    pub(super) fn new(participant: Participant, earlier: &[Earlier]) -> Self {
        let ended = earlier.iter().filter(|session| session.ended);
        let ended: BTreeSet<_> = ended.map(|session| session.cohort_id.clone()).collect();
        let unrepeated = ended.clone();
        Self { participant, ended, unrepeated }
    }

    /// The cohorts that have formed and are not over.
    pub(super) async fn formed(&self) -> BTreeSet<CohortId> {
        let Some(membership) = self.participant.inspect().await else { return BTreeSet::new() };
        let formed = membership.facts().joined().filter(|(_, joined)| joined.formed);
        formed.map(|(cohort, _)| cohort.cohort_id.clone()).collect()
    }

    /// Applies a repeated notice of an end that a previous run received. Returns whether nothing is left of previous
    /// runs.
    pub(super) async fn end_is_repeated(&mut self, cohort_id: &CohortId) -> bool {
        self.unrepeated.remove(cohort_id);
        if !self.unrepeated.is_empty() {
            return false;
        }
        // Without its actor the member is in no cohort.
        self.participant.inspect().await.is_none_or(|membership| membership.facts().joined().next().is_none())
    }

    /// Whether the cohort was over for us when the program started.
    pub(super) fn had_ended(&self, cohort_id: &CohortId) -> bool {
        self.ended.contains(cohort_id)
    }

    /// Archives the journal of a session whose results are persisted. Ready when that is durable: the next run does not
    /// repeat its end.
    pub(super) async fn archive(&self, service: &Did, cohort_id: &CohortId) {
        if let Err(error) = self.participant.membership(service, cohort_id).acknowledge().await {
            tracing::error!(%cohort_id, %error, "the journal of an ended membership cannot be archived");
        }
    }
}
