//! The cohorts of a simulated service and their signing sessions, each with its journal.

use std::sync::Arc;

use bitcoin::{Amount, OutPoint, Txid, hashes::Hash};
use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;

use super::{
    Setup,
    crash::{replay_transcribed, through_journal},
};
use crate::{
    cohort::{
        event::ServiceEvent,
        service::{CohortTerms, ServiceCohort, ServiceConfig, ServiceConfigError, phase::Phase},
    },
    hash::MessageDigest,
    machine::Machine,
    output::Coin,
    signing::{
        SigningTask,
        session::{SessionEvent, SigningSession},
    },
    time::Timestamp,
    transcript::Transcript,
};

/// A signing session with its journal.
pub struct SessionNode {
    pub(super) initial: SigningSession,
    pub(super) machine: SigningSession,
    pub(super) events: Vec<SessionEvent>,
    pub(super) digests: Vec<MessageDigest>,
}

impl SessionNode {
    pub(super) fn new(task: Arc<SigningTask>) -> Self {
        let machine = SigningSession::new(task);
        Self { initial: machine.clone(), machine, events: Vec::new(), digests: Vec::new() }
    }

    /// The session's machine.
    pub fn machine(&self) -> &SigningSession {
        &self.machine
    }

    /// The session's journal.
    pub fn events(&self) -> &[SessionEvent] {
        &self.events
    }

    /// Drops all state except the journal.
    fn restart(&mut self) {
        self.events = through_journal(&self.events);
        (self.machine, self.digests) = replay_transcribed(self.initial.clone(), &self.events);
    }
}

/// A cohort at the service: its machine, its signing sessions, their journals, and the coin that it spends.
pub struct CohortNode {
    pub(super) initial: ServiceCohort,
    pub(super) machine: ServiceCohort,
    pub(super) events: Vec<ServiceEvent>,
    pub(super) sessions: Vec<SessionNode>,
    pub(super) transcript: Transcript,
    pub(super) coin: Coin,
    pub(super) successor: Option<Arc<CohortTerms>>,
}

impl CohortNode {
    pub(super) fn new(
        terms: Arc<CohortTerms>,
        setup: &Setup,
        rng: &mut ChaCha8Rng,
    ) -> Result<Self, ServiceConfigError> {
        let machine = planned(terms, setup)?;
        let mut txid = [0; 32];
        rng.fill_bytes(&mut txid);
        let outpoint = OutPoint::new(Txid::from_byte_array(txid), 0);
        Ok(Self {
            initial: machine.clone(),
            machine,
            events: Vec::new(),
            sessions: Vec::new(),
            transcript: Transcript::default(),
            coin: Coin { outpoint, value: Amount::from_sat(1_000_000) },
            successor: None,
        })
    }

    /// The cohort's machine.
    pub fn machine(&self) -> &ServiceCohort {
        &self.machine
    }

    /// The cohort's journal.
    pub fn events(&self) -> &[ServiceEvent] {
        &self.events
    }

    /// The cohort's signing sessions; more than one would be a fault.
    pub fn sessions(&self) -> &[SessionNode] {
        &self.sessions
    }

    pub(super) fn is_planned(&self) -> bool {
        matches!(self.machine.phase(), Phase::Planned)
    }

    pub(super) fn deadline(&self) -> Option<Timestamp> {
        // A session ends with its cohort.
        let sessions = self.sessions.iter().filter(|_| !self.machine.has_ended());
        sessions.filter_map(|session| session.machine.deadline()).chain(self.machine.deadline()).min()
    }

    /// Drops all state except the journals, which include the terms.
    pub(super) fn restart(&mut self, setup: &Setup) {
        self.events = through_journal(&self.events);
        if let Some(ServiceEvent::CohortAdvertised { terms, .. }) = self.events.first() {
            self.initial = planned(Arc::clone(terms), setup).expect("it was advertised on these terms");
        }
        let (machine, digests) = replay_transcribed(self.initial.clone(), &self.events);
        self.machine = machine;
        self.transcript = Transcript::default();
        for digest in digests {
            self.transcript.push(digest);
        }
        for session in &mut self.sessions {
            session.restart();
        }
    }
}

fn planned(terms: Arc<CohortTerms>, setup: &Setup) -> Result<ServiceCohort, ServiceConfigError> {
    ServiceCohort::new(Arc::new(ServiceConfig {
        terms,
        beacons: setup.beacons.clone(),
        aggregator: Arc::clone(&setup.aggregator),
    }))
}
