//! Processes that crash and restart. Only their journals remain, read back as the text that a real journal would
//! hold.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;
use serde::{Serialize, de::DeserializeOwned};

use super::network::chance;
use crate::{
    cohort::service::ServiceCohort, hash::MessageDigest, machine::Machine, signing::session::SigningSession,
    time::Timestamp,
};

/// How often processes crash. Acknowledged messages stay acknowledged; half of the messages that a process was about
/// to send are lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crashes {
    /// Of a thousand decisions of the service, the number in which it crashes.
    pub service_per_mille: u32,
    /// Of a thousand decisions of a participant, the number in which it crashes.
    pub participant_per_mille: u32,
    /// The greatest number of crashes of one process.
    pub most: u32,
    /// The longest time until a restart.
    pub longest: Duration,
    /// Crashes that do not depend on chance.
    pub planned: Vec<PlannedCrash>,
}

/// A crash in a certain decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedCrash {
    /// The participant, by its index in the setup; `None` for the service.
    pub participant: Option<usize>,
    /// The decision in which it crashes, counted from 0 among those that produce events.
    pub decision: u32,
    /// Whether the events are journaled before the crash. Their effects are lost in any case.
    pub journaled: bool,
}

impl Default for Crashes {
    /// No process crashes.
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

/// The outcome of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its events are journaled and its effects performed.
    Performed,
    /// The process crashes before the events are journaled.
    NotJournaled,
    /// The events are journaled. Then the process crashes after this number of effects.
    Interrupted(usize),
}

impl Fate {
    /// Whether the effect at `position` is performed.
    pub(super) fn performs(self, position: usize) -> bool {
        match self {
            Self::Performed => true,
            Self::NotJournaled => false,
            Self::Interrupted(performed) => position < performed,
        }
    }
}

/// The state of a process: running or crashed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    /// The participant; `None` for the service.
    participant: Option<usize>,
    decisions: u32,
    crashes: u32,
    down_until: Option<Timestamp>,
}

impl Process {
    pub(super) const fn of(participant: Option<usize>) -> Self {
        Self { participant, decisions: 0, crashes: 0, down_until: None }
    }

    pub(super) const fn is_down(&self) -> bool {
        self.down_until.is_some()
    }

    /// The time of the restart.
    pub(super) const fn restarts_at(&self) -> Option<Timestamp> {
        self.down_until
    }

    pub(super) const fn crashes(&self) -> u32 {
        self.crashes
    }

    /// The outcome of the next decision that produces events.
    pub(super) fn fate(&mut self, crashes: &Crashes, rng: &mut ChaCha8Rng) -> Fate {
        let decision = self.decisions;
        self.decisions += 1;
        let planned = crashes
            .planned
            .iter()
            .find(|planned| planned.participant == self.participant && planned.decision == decision);
        if let Some(planned) = planned {
            return if planned.journaled { Fate::Interrupted(0) } else { Fate::NotJournaled };
        }
        let per_mille = match self.participant {
            Some(_) => crashes.participant_per_mille,
            None => crashes.service_per_mille,
        };
        if per_mille == 0 || self.crashes >= crashes.most || !chance(per_mille, rng) {
            return Fate::Performed;
        }
        if chance(500, rng) { Fate::NotJournaled } else { Fate::Interrupted(rng.next_u64() as usize % 4) }
    }

    /// Crashes the process for a random time.
    pub(super) fn crash(&mut self, now: Timestamp, crashes: &Crashes, rng: &mut ChaCha8Rng) {
        let longest = crashes.longest.as_millis() as u64;
        self.crashes += 1;
        self.down_until = Some(now + Duration::from_millis(1 + rng.next_u64() % longest.max(1)));
    }

    pub(super) fn restart(&mut self) {
        self.down_until = None;
    }
}

/// The events of a journal after it was written and read back.
///
/// # Panics
/// When an event does not survive the journal.
pub(super) fn through_journal<E: Serialize + DeserializeOwned>(events: &[E]) -> Vec<E> {
    let read = |event| {
        let line =
            serde_json::to_string(event).unwrap_or_else(|error| panic!("an event cannot be written: {error}"));
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    };
    events.iter().map(read).collect()
}

/// A machine with a transcript.
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

/// The machine and the transcript that a journal gives.
pub(super) fn replay_transcribed<M: Transcribed>(mut machine: M, events: &[M::Event]) -> (M, Vec<MessageDigest>) {
    let mut digests = Vec::new();
    for event in events {
        machine.apply(event);
        let effects = machine.effects(event);
        digests.extend(machine.entries(event, &effects));
    }
    (machine, digests)
}
