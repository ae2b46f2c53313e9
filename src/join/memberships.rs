//! The cohorts that the member is in, also those of an earlier life of the program, and the one that it waits for.

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

/// A session that the journal knows.
pub(super) struct Earlier {
    pub(super) cohort_id: CohortId,
    /// Whether our update, or our refusal, is in it.
    pub(super) answered: bool,
    /// Whether it had ended when the program started.
    pub(super) ended: bool,
    /// Our update, once we approved data that holds it: it may be announced.
    pub(super) approved: Option<SignedUpdate>,
    /// Whether its signed transaction was seen.
    pub(super) seen: bool,
}

/// The sessions of `did` in which it had joined. A stream that cannot be read is passed over here: its
/// own session says so.
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

/// What is to be done about the end of a cohort.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outlook {
    /// Nothing: it was never joined, another one is still on, or the one that takes its place is waited for.
    GoOn,
    /// No cohort will announce.
    Nothing,
}

/// The cohorts that the member is in.
pub(super) struct Memberships {
    participant: Addr<ParticipantActor>,
    /// Whose cohorts they are.
    services: BTreeMap<CohortId, Did>,
    joined: BTreeSet<CohortId>,
    /// Those whose end an earlier run was told, or should have been.
    ended: BTreeSet<CohortId>,
    /// Those of them that were not told in this run yet.
    untold: BTreeSet<CohortId>,
    /// A cohort that takes the place of one of ours, and how long it is waited for.
    awaited: Option<(CohortId, Instant)>,
    patience: Duration,
}

impl Memberships {
    /// None yet, but for those of an earlier life. A cohort that is to take another one's place is waited for as long as
    /// `patience`.
    pub(super) fn new(participant: Addr<ParticipantActor>, earlier: &[Earlier], patience: Duration) -> Self {
        let cohorts = |ended| {
            earlier
                .iter()
                .filter(move |session| session.ended == ended)
                .map(|session| session.cohort_id.clone())
                .collect()
        };
        let (joined, ended): (_, BTreeSet<_>) = (cohorts(false), cohorts(true));
        let untold = ended.clone();
        Self { participant, services: BTreeMap::new(), joined, ended, untold, awaited: None, patience }
    }

    /// Takes note of a step.
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

    /// A cohort failed, and perhaps another one takes its place.
    pub(super) fn failed(&mut self, cohort_id: &CohortId, next: Option<&CohortId>) -> Outlook {
        // Anybody can advertise a cohort, and end it: what was not joined concerns nobody.
        if !self.joined.remove(cohort_id) {
            return Outlook::GoOn;
        }
        if let Some(next) = next
            && !self.joined.contains(next)
        {
            self.awaited = Some((next.clone(), Instant::now() + self.patience));
        }
        if self.joined.is_empty() && self.awaited.is_none() { Outlook::Nothing } else { Outlook::GoOn }
    }

    /// The cohort is over for us. Whether an earlier run knew that already.
    pub(super) fn leave(&mut self, cohort_id: &CohortId) -> bool {
        self.joined.remove(cohort_id);
        self.had_ended(cohort_id)
    }

    /// The end that an earlier run was told is told again. Whether nothing is left of earlier runs.
    pub(super) fn is_told(&mut self, cohort_id: &CohortId) -> bool {
        self.untold.remove(cohort_id);
        self.untold.is_empty() && self.joined.is_empty()
    }

    /// Whether the cohort was over for us when the program started.
    pub(super) fn had_ended(&self, cohort_id: &CohortId) -> bool {
        self.ended.contains(cohort_id)
    }

    /// What is kept of a session is safe: its journal is put away. Ready when that is durable: an end that is told is not told
    /// again by the next run.
    pub(super) async fn archive(&mut self, cohort_id: &CohortId) {
        if let Some(service) = self.services.remove(cohort_id) {
            // Who has no actor any more has no journal that could be put away.
            let _ = self.participant.send(ArchiveSession { service, cohort_id: cohort_id.clone() }).await;
        }
    }

    /// Ready when a cohort that was to take another one's place has not come in time.
    pub(super) async fn disappointed(&self) {
        match &self.awaited {
            Some((_, until)) => tokio::time::sleep_until(*until).await,
            None => std::future::pending().await,
        }
    }

    /// Nothing is waited for any more.
    pub(super) fn give_up(&mut self) -> Outlook {
        self.awaited = None;
        if self.joined.is_empty() { Outlook::Nothing } else { Outlook::GoOn }
    }
}
