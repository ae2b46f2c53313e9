//! Processes that die and come back. What they journaled is all that is left of them, read again as the text that a real
//! journal would hold.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;
use serde::{Serialize, de::DeserializeOwned};

use super::network::chance;
use crate::{
    cohort::service::ServiceCohort, hash::MessageDigest, machine::Machine, signing::session::SigningSession,
    time::Timestamp,
};

/// How often processes die. What their neighbours have acknowledged stays acknowledged; of what they were about to send,
/// half is lost with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crashes {
    /// Of a thousand decisions of the service, how many it dies over.
    pub service_per_mille: u32,
    /// Of a thousand decisions of a participant, how many it dies over.
    pub participant_per_mille: u32,
    /// How often one process dies at most.
    pub most: u32,
    /// How long it is gone at most.
    pub longest: Duration,
    /// Deaths that do not depend on chance.
    pub planned: Vec<PlannedCrash>,
}

/// A death over a certain decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedCrash {
    /// Which participant, by its place in the setup; `None` is the service.
    pub participant: Option<usize>,
    /// Over which of its decisions that make facts, counted from 0.
    pub decision: u32,
    /// Whether the facts are journaled before it dies. Their effects are lost in any case.
    pub journaled: bool,
}

impl Default for Crashes {
    /// Nobody dies.
    fn default() -> Self {
        Self {
            service_per_mille: 0,
            participant_per_mille: 0,
            most: 3,
            longest: Duration::from_secs(30),
            planned: Vec::new(),
        }
    }
}

/// What becomes of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its facts are journaled and its effects performed.
    Lives,
    /// The process dies before its facts are journaled.
    Forgotten,
    /// The facts are journaled, and then the process dies over its effects, when it has performed so many.
    Unperformed(usize),
}

impl Fate {
    /// Whether the effect at `position` is performed.
    pub(super) fn performs(self, position: usize) -> bool {
        match self {
            Self::Lives => true,
            Self::Forgotten => false,
            Self::Unperformed(performed) => position < performed,
        }
    }
}

/// Whether a process is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    /// Whose: `None` is the service's.
    participant: Option<usize>,
    decisions: u32,
    deaths: u32,
    gone_until: Option<Timestamp>,
}

impl Life {
    pub(super) const fn of(participant: Option<usize>) -> Self {
        Self { participant, decisions: 0, deaths: 0, gone_until: None }
    }

    pub(super) const fn is_gone(&self) -> bool {
        self.gone_until.is_some()
    }

    /// When it comes back.
    pub(super) const fn returns_at(&self) -> Option<Timestamp> {
        self.gone_until
    }

    pub(super) const fn deaths(&self) -> u32 {
        self.deaths
    }

    /// What becomes of the next decision that makes facts.
    pub(super) fn fate(&mut self, crashes: &Crashes, rng: &mut ChaCha8Rng) -> Fate {
        let decision = self.decisions;
        self.decisions += 1;
        let planned = crashes
            .planned
            .iter()
            .find(|planned| planned.participant == self.participant && planned.decision == decision);
        if let Some(planned) = planned {
            return if planned.journaled { Fate::Unperformed(0) } else { Fate::Forgotten };
        }
        let per_mille = match self.participant {
            Some(_) => crashes.participant_per_mille,
            None => crashes.service_per_mille,
        };
        if per_mille == 0 || self.deaths >= crashes.most || !chance(per_mille, rng) {
            return Fate::Lives;
        }
        if chance(500, rng) { Fate::Forgotten } else { Fate::Unperformed(rng.next_u64() as usize % 4) }
    }

    /// Dies, for a while.
    pub(super) fn dies(&mut self, now: Timestamp, crashes: &Crashes, rng: &mut ChaCha8Rng) {
        let longest = crashes.longest.as_millis() as u64;
        self.deaths += 1;
        self.gone_until = Some(now + Duration::from_millis(1 + rng.next_u64() % longest.max(1)));
    }

    pub(super) fn returns(&mut self) {
        self.gone_until = None;
    }
}

/// What a journal of these facts holds when it is read again.
///
/// # Panics
/// When a fact does not survive the journal.
pub(super) fn read_again<E: Serialize + DeserializeOwned>(events: &[E]) -> Vec<E> {
    let read = |event| {
        let line = serde_json::to_string(event).unwrap_or_else(|error| panic!("a fact cannot be written: {error}"));
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    };
    events.iter().map(read).collect()
}

/// A machine that keeps a transcript.
pub(super) trait Transcribed: Machine {
    fn entries(&self, event: &Self::Event, effects: &[Self::Effect]) -> Vec<MessageDigest>;
}

impl Transcribed for ServiceCohort {
    fn entries(&self, event: &Self::Event, effects: &[Self::Effect]) -> Vec<MessageDigest> {
        self.transcript_entries(event, effects)
    }
}

impl Transcribed for SigningSession {
    fn entries(&self, event: &Self::Event, effects: &[Self::Effect]) -> Vec<MessageDigest> {
        self.transcript_entries(event, effects)
    }
}

/// The machine and the transcript that a journal leads to.
pub(super) fn revive<M: Transcribed>(mut machine: M, events: &[M::Event]) -> (M, Vec<MessageDigest>) {
    let mut digests = Vec::new();
    for event in events {
        machine.apply(event);
        let effects = machine.effects(event);
        digests.extend(machine.entries(event, &effects));
    }
    (machine, digests)
}
