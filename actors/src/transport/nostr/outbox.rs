//! The outbox: our published events, the relays' answers, and events that are stored for relays that reconnect.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use btcr2_aggregation_protocol::{
    did::Did,
    id::CohortId,
    message::{Body, SharedBody, keygen::CohortAdvert},
    time::Timestamp,
};
use nostr_sdk::Event;

use super::relay::{Answer, Id};

/// The content of an event.
#[derive(Clone)]
pub(super) enum Content {
    /// A message, to one peer or to all.
    Message { to: Option<Did>, body: SharedBody },
    /// A request to relays to remove these adverts of ours.
    Retraction { adverts: Vec<Id> },
}

impl Content {
    /// Its kind, for display.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Message { body, .. } => body.short_type(),
            Self::Retraction { .. } => "retraction of adverts",
        }
    }

    /// The advert, if it is one.
    pub(super) fn advert(&self) -> Option<&CohortAdvert> {
        match self {
            Self::Message { to: None, body } => match &**body {
                Body::CohortAdvert(advert) => Some(advert),
                _ => None,
            },
            _ => None,
        }
    }

    /// The cohort, if this is its advert.
    pub(super) fn advert_of(&self) -> Option<&CohortId> {
        match self {
            Self::Message { to: None, body } => Some(body.cohort_id()),
            Self::Message { to: Some(_), .. } | Self::Retraction { .. } => None,
        }
    }
}

/// A message or retraction that is being sent.
pub(super) struct Job {
    pub(super) content: Content,
    pub(super) until: Option<Timestamp>,
    /// Absent while the recipient's key is not known.
    pub(super) event: Option<Arc<Event>>,
    /// How many attempts have failed.
    pub(super) failures: u32,
    /// Relays that have received the event and not answered.
    asked: BTreeSet<usize>,
    accepted: bool,
    /// A relay may have accepted an event of this message without a confirmation.
    pub(super) maybe_out: bool,
    reasons: BTreeMap<usize, String>,
    /// How long an accepted event is stored.
    kept_until: Timestamp,
}

impl Job {
    pub(super) fn new(content: Content, until: Option<Timestamp>, kept_until: Timestamp) -> Self {
        Self {
            content,
            until,
            event: None,
            failures: 0,
            asked: BTreeSet::new(),
            accepted: false,
            maybe_out: false,
            reasons: BTreeMap::new(),
            kept_until: until.unwrap_or(kept_until),
        }
    }

    /// Whether at most one signed event may ever be sent of it: the TypeScript implementation's service fails its whole
    /// cohort at a second nonce or partial signature, and only compares events.
    pub(super) fn is_spent_by_repetition(&self) -> bool {
        match &self.content {
            Content::Message { body, .. } => {
                matches!(**body, Body::NonceContribution(_) | Body::SignatureAuthorization(_))
            }
            Content::Retraction { .. } => false,
        }
    }

    /// Whether a relay has received it and refused it.
    pub(super) fn was_refused(&self) -> bool {
        !self.reasons.is_empty()
    }

    /// Whether a relay has it.
    pub(super) const fn is_accepted(&self) -> bool {
        self.accepted
    }

    /// The message, if it is directed to one peer.
    pub(super) fn directed(&self) -> Option<(&Did, &SharedBody)> {
        match &self.content {
            Content::Message { to: Some(to), body } => Some((to, body)),
            Content::Message { to: None, .. } | Content::Retraction { .. } => None,
        }
    }

    /// Each relay's reason against it, as text, with the relay's name.
    pub(super) fn reasons_by_relay(&self, name: impl Fn(usize) -> String) -> String {
        if self.reasons.is_empty() {
            return self.reasons();
        }
        let reasons: Vec<_> = self.reasons.iter().map(|(relay, why)| format!("{}: {why}", name(*relay))).collect();
        reasons.join("; ")
    }

    /// Each relay's reason against it, as text.
    pub(super) fn reasons(&self) -> String {
        if self.reasons.is_empty() {
            return "no relay could be reached".to_owned();
        }
        let reasons: Vec<_> = self.reasons.values().map(String::as_str).collect();
        reasons.join("; ")
    }
}

/// The next step after an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    /// No relay has accepted it: try again later.
    Retry,
}

/// The messages that are being sent, and those that are stored.
pub(super) struct Outbox {
    jobs: BTreeMap<u64, Job>,
    next: u64,
    most: usize,
}

impl Outbox {
    pub(super) fn new(most: usize) -> Self {
        Self { jobs: BTreeMap::new(), next: 0, most }
    }

    /// Adds a message. Returns the message that had to be dropped for it.
    pub(super) fn insert(&mut self, job: Job, now: Timestamp) -> (u64, Option<Job>) {
        self.expire(now);
        let full = self.jobs.len() >= self.most;
        // Preferably one that is only stored for relays that reconnect, rather than one that no relay has accepted.
        let oldest = self.jobs.iter().find(|(_, job)| job.accepted).or_else(|| self.jobs.iter().next());
        let dropped = oldest.map(|(id, _)| *id).filter(|_| full).and_then(|id| self.jobs.remove(&id));
        let id = self.next;
        self.next += 1;
        self.jobs.insert(id, job);
        (id, dropped.filter(|job| !job.accepted))
    }

    /// Removes accepted events whose time is over.
    pub(super) fn expire(&mut self, now: Timestamp) {
        self.jobs.retain(|_, job| !(job.accepted && job.asked.is_empty() && job.kept_until <= now));
    }

    /// An advert has ended, or is replaced by its repetition.
    pub(super) fn withdraw(&mut self, cohort_id: &CohortId) {
        self.jobs.retain(|_, job| job.content.advert_of() != Some(cohort_id));
    }

    pub(super) fn get(&self, id: u64) -> Option<&Job> {
        self.jobs.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Job> {
        self.jobs.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Job> {
        self.jobs.remove(&id)
    }

    /// The events that a relay that has connected should have, oldest first.
    pub(super) fn all(&self) -> Vec<u64> {
        self.jobs.keys().copied().collect()
    }

    /// Records that a relay was sent the message's event.
    pub(super) fn asked(&mut self, id: u64, relay: usize) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.asked.insert(relay);
        }
    }

    /// Records a relay's answer to the message's event.
    pub(super) fn answered(&mut self, id: u64, relay: usize, event: Id, answer: Answer) -> Next {
        let Some(job) = self.jobs.get_mut(&id) else { return Next::Nothing };
        if let Answer::Unknown(_) = answer {
            job.maybe_out = true;
        }
        // Whichever event of the message it was, a relay has it now.
        if answer == Answer::Accepted {
            job.accepted = true;
        }
        if job.event.as_ref().is_none_or(|current| current.id != event) {
            return Next::Nothing;
        }
        let asked = job.asked.remove(&relay);
        if let Answer::Refused(reason) | Answer::Unknown(reason) = answer {
            job.reasons.insert(relay, reason);
        }
        if asked && job.asked.is_empty() && !job.accepted { Next::Retry } else { Next::Nothing }
    }

    /// A relay will not answer any more. Returns the messages to try again.
    pub(super) fn lost(&mut self, relay: usize) -> Vec<u64> {
        let mut retries = Vec::new();
        for (id, job) in &mut self.jobs {
            if job.asked.remove(&relay) {
                job.maybe_out = true;
                job.reasons.insert(relay, "the connection ended before it answered".to_owned());
                if job.asked.is_empty() && !job.accepted {
                    retries.push(*id);
                }
            }
        }
        retries
    }

    /// Whether no relay has accepted the message, and none is about to answer.
    pub(super) fn is_stuck(&self, id: u64) -> bool {
        self.jobs.get(&id).is_some_and(|job| !job.accepted && job.asked.is_empty())
    }
}

/// The maximum number of remembered adverts; beyond it the oldest are not retracted, and participants that look back
/// far may still see them.
const MOST_ADVERTS: usize = 8_192;

/// The adverts of ours that relays may have, oldest first.
#[derive(Default)]
pub(super) struct Adverts(VecDeque<(CohortId, Id)>);

impl Adverts {
    /// An advert is about to be published.
    pub(super) fn note(&mut self, cohort_id: &CohortId, advert: Id) {
        if self.0.len() >= MOST_ADVERTS {
            self.0.pop_front();
        }
        self.0.push_back((cohort_id.clone(), advert));
    }

    /// Removes and returns the cohort's adverts.
    pub(super) fn take(&mut self, cohort_id: &CohortId) -> Vec<Id> {
        let adverts = self.0.iter().filter(|(of, _)| of == cohort_id).map(|(_, id)| *id).collect();
        self.0.retain(|(of, _)| of != cohort_id);
        adverts
    }
}
