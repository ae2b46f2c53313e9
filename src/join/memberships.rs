//! The cohorts of the member, including those of a previous run, and the successor cohort that it waits for.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use actix::Addr;
use tokio::time::Instant;

use crate::{
    actors::{
        journal::{Journal, JournalError, StreamKind},
        notice::ParticipantNotice,
        participant::{ArchiveSession, ParticipantActor},
    },
    protocol::{cohort::event::ParticipantEvent, did::Did, id::CohortId, update::SignedUpdate},
};

/// A session in the journal.
pub(super) struct Earlier {
    pub(super) cohort_id: CohortId,
    /// Whether our update, or our refusal, was submitted in it.
    pub(super) answered: bool,
    /// Whether it had ended when the program started.
    pub(super) ended: bool,
    /// Our update, once we approved data with it: it may be announced.
    pub(super) approved: Option<SignedUpdate>,
    /// Whether its signed transaction was seen.
    pub(super) seen: bool,
}

/// The joined sessions of `did`. A stream that cannot be read is skipped: its own session reports the error.
pub(super) async fn earlier(journal: &dyn Journal, did: &Did) -> Result<Vec<Earlier>, JournalError> {
    let mut found = Vec::new();
    for stream in journal.streams().await? {
        let StreamKind::Participant { did: whose, cohort_id, .. } = stream.kind() else { continue };
        if whose != *did {
            continue;
        }
        let Ok(records) = journal.read(&stream).await else { continue };
        let facts: Vec<ParticipantEvent> = records.iter().filter_map(|record| record.event().ok()).collect();
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
            let approved = submitted.filter(|_| approves);
            found.push(Earlier { cohort_id, answered, ended, approved, seen });
        }
    }
    Ok(found)
}

/// What to do after the end of a cohort.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AfterEnd {
    /// Continue: it was never joined, another one still runs, or the member waits for its successor.
    GoOn,
    /// No cohort will announce.
    NoCohort,
}

/// The cohorts of the member.
pub(super) struct Memberships {
    participant: Addr<ParticipantActor>,
    /// The services of the cohorts.
    services: BTreeMap<CohortId, Did>,
    joined: BTreeSet<CohortId>,
    /// The cohorts whose end a previous run received, or should have received.
    ended: BTreeSet<CohortId>,
    /// Those of them whose end was not repeated in this run yet.
    unrepeated: BTreeSet<CohortId>,
    /// The successor of one of our cohorts, and how long the member waits for it.
    awaited: Option<(CohortId, Instant)>,
    patience: Duration,
}

impl Memberships {
    /// The cohorts of the previous run. `patience` is how long the member waits for a successor cohort.
    pub(super) fn new(participant: Addr<ParticipantActor>, earlier: &[Earlier], patience: Duration) -> Self {
        let cohorts = |ended| {
            earlier
                .iter()
                .filter(move |session| session.ended == ended)
                .map(|session| session.cohort_id.clone())
                .collect()
        };
        let (joined, ended): (_, BTreeSet<_>) = (cohorts(false), cohorts(true));
        let unrepeated = ended.clone();
        Self { participant, services: BTreeMap::new(), joined, ended, unrepeated, awaited: None, patience }
    }

    /// Applies a notice.
    pub(super) fn follow(&mut self, step: &ParticipantNotice) {
        match step {
            ParticipantNotice::CohortDiscovered { cohort_id, service, .. }
            | ParticipantNotice::SessionRecovered { cohort_id, service, .. } => {
                self.services.insert(cohort_id.clone(), service.clone());
            }
            ParticipantNotice::CohortJoined { cohort_id, .. } => {
                self.joined.insert(cohort_id.clone());
                if self.awaited.as_ref().is_some_and(|(awaited, _)| awaited == cohort_id) {
                    self.awaited = None;
                }
            }
            _ => {}
        }
    }

    /// A cohort failed; `next` is its successor, if it has one.
    pub(super) fn failed(&mut self, cohort_id: &CohortId, next: Option<&CohortId>) -> AfterEnd {
        // Any outsider can advertise a cohort, and end it: a cohort that was not joined is ignored.
        if !self.joined.remove(cohort_id) {
            return AfterEnd::GoOn;
        }
        if let Some(next) = next
            && !self.joined.contains(next)
        {
            self.awaited = Some((next.clone(), Instant::now() + self.patience));
        }
        if self.joined.is_empty() && self.awaited.is_none() { AfterEnd::NoCohort } else { AfterEnd::GoOn }
    }

    /// The cohort is over for us. Returns whether a previous run knew that already.
    pub(super) fn leave(&mut self, cohort_id: &CohortId) -> bool {
        self.joined.remove(cohort_id);
        self.had_ended(cohort_id)
    }

    /// Applies a repeated notice of an end that a previous run received. Returns whether nothing is left of previous
    /// runs.
    pub(super) fn end_is_repeated(&mut self, cohort_id: &CohortId) -> bool {
        self.unrepeated.remove(cohort_id);
        self.unrepeated.is_empty() && self.joined.is_empty()
    }

    /// Whether the cohort was over for us when the program started.
    pub(super) fn had_ended(&self, cohort_id: &CohortId) -> bool {
        self.ended.contains(cohort_id)
    }

    /// Archives the journal of a session whose results are persisted. Ready when that is durable: the next run does not
    /// repeat its end.
    pub(super) async fn archive(&mut self, cohort_id: &CohortId) {
        if let Some(service) = self.services.remove(cohort_id) {
            // A session without an actor has no journal to archive.
            let _ = self.participant.send(ArchiveSession { service, cohort_id: cohort_id.clone() }).await;
        }
    }

    /// Ready when a successor cohort has not arrived in time.
    pub(super) async fn disappointed(&self) {
        match &self.awaited {
            Some((_, until)) => tokio::time::sleep_until(*until).await,
            None => std::future::pending().await,
        }
    }

    /// Stops waiting.
    pub(super) fn give_up(&mut self) -> AfterEnd {
        self.awaited = None;
        if self.joined.is_empty() { AfterEnd::NoCohort } else { AfterEnd::GoOn }
    }
}
