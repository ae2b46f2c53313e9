//! The report of a simulation.

use std::{collections::BTreeSet, sync::Arc};

use super::{CohortNode, ParticipantNode, Simulation};
use crate::{
    cohort::{
        event::{CohortFailure, ParticipantEvent, ServiceEvent, SessionEnd, SpendPath},
        participant::phase::Phase as ParticipantPhase,
        service::phase::Phase as ServicePhase,
    },
    did::Did,
    error::{Fault, Reject, RejectCode},
    signing::{Signed, session::SessionEvent},
    time::Timestamp,
};

/// A message that a peer rejected.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    /// When.
    pub at: Timestamp,
    /// The peer that rejected it.
    pub by: Did,
    /// The reason, and the peer that it names.
    pub reject: Reject,
}

/// The state of a simulation, mostly of its latest cohort.
#[derive(Clone, Debug)]
pub struct Report {
    /// The name of the service's phase.
    pub phase: &'static str,
    /// Why the cohort failed, if it did.
    pub failure: Option<CohortFailure>,
    /// The signed transaction and the path that it takes, if there is one.
    pub signed: Option<Arc<Signed>>,
    /// The faults of members that the service recorded, in all its cohorts.
    pub faults: Vec<Fault>,
    /// Every message that was rejected, by any peer.
    pub rejections: Vec<Rejection>,
    /// Why each participant's latest session ended; `None` for a session that is open or was never started.
    pub ends: Vec<Option<SessionEnd>>,
    /// The failures that the simulation injected or caused.
    pub mishaps: Mishaps,
}

/// The number of injected failures, so that a test can check that they happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mishaps {
    /// Crashes of the service.
    pub service_crashes: u64,
    /// Crashes of participants.
    pub participant_crashes: u64,
    /// Texts that were lost, whether they were sent again or not.
    pub texts_lost: u64,
    /// Secret nonces that were lost after their public halves had been sent.
    pub nonces_lost: u64,
    /// Cohorts that were formed to replace one that failed.
    pub reformations: u64,
    /// Signing sessions that left the key path.
    pub fallbacks: u64,
    /// Phases that were extended.
    pub extensions: u64,
}

impl std::ops::AddAssign for Mishaps {
    fn add_assign(&mut self, other: Self) {
        self.service_crashes += other.service_crashes;
        self.participant_crashes += other.participant_crashes;
        self.texts_lost += other.texts_lost;
        self.nonces_lost += other.nonces_lost;
        self.reformations += other.reformations;
        self.fallbacks += other.fallbacks;
        self.extensions += other.extensions;
    }
}

impl Report {
    /// Every peer that is accused: by a fault, by an outcome that names a culprit, or by a rejection. The rejection
    /// of a late message ([`RejectCode::WrongPhase`]) or for lack of a place ([`RejectCode::CohortFull`],
    /// [`RejectCode::Excluded`]) is not an accusation.
    pub fn accused(&self) -> BTreeSet<Did> {
        let harmless = [RejectCode::WrongPhase, RejectCode::CohortFull, RejectCode::Excluded];
        let refused = self.rejections.iter().map(|rejection| &rejection.reject);
        let refused =
            refused.filter(|reject| !harmless.contains(&reject.code)).filter_map(|reject| reject.peer.clone());
        let mut accused: BTreeSet<Did> = self.faults.iter().map(|fault| fault.did.clone()).collect();
        accused.extend(refused);
        accused.extend(self.signed.iter().flat_map(|signed| signed.culprits.clone()));
        if let Some(CohortFailure::Signing { culprits, .. }) = &self.failure {
            accused.extend(culprits.iter().cloned());
        }
        accused
    }
}

impl Simulation {
    /// The current report.
    pub fn report(&self) -> Report {
        let phase = self.service.machine().phase();
        let of_cohort = |cohort: &CohortNode| {
            let sessions = cohort.sessions().iter().flat_map(|session| session.machine().faults().iter());
            cohort.machine().faults().iter().chain(sessions).cloned().collect::<Vec<_>>()
        };
        Report {
            phase: phase.name(),
            failure: match phase {
                ServicePhase::Failed { reason, .. } => Some(reason.clone()),
                _ => None,
            },
            signed: match phase {
                ServicePhase::Completed { outcome, .. } => Some(Arc::clone(outcome)),
                _ => None,
            },
            faults: self.service.cohorts().iter().flat_map(of_cohort).collect(),
            rejections: self.rejections.clone(),
            ends: self
                .participants
                .iter()
                .map(|node| match node.machine()?.phase() {
                    ParticipantPhase::Ended { reason, .. } => Some(reason.clone()),
                    _ => None,
                })
                .collect(),
            mishaps: self.mishaps(),
        }
    }

    fn mishaps(&self) -> Mishaps {
        let cohorts = self.service.cohorts();
        let sessions = cohorts.iter().flat_map(|cohort| cohort.sessions()).flat_map(|session| session.events());
        let seats = self.participants.iter().flat_map(ParticipantNode::seats).flat_map(|seat| seat.events());
        let count = |yes: bool| u64::from(yes);
        let mut mishaps = Mishaps {
            service_crashes: self.service.crashes().into(),
            participant_crashes: self.participants.iter().map(|node| u64::from(node.crashes())).sum(),
            texts_lost: self.wire.lost(),
            nonces_lost: seats.map(|event| count(matches!(event, ParticipantEvent::NonceLost { .. }))).sum(),
            reformations: cohorts.len() as u64 - 1,
            ..Mishaps::default()
        };
        for event in sessions {
            match event {
                SessionEvent::PathChosen { path: SpendPath::ScriptPath, .. } => mishaps.fallbacks += 1,
                SessionEvent::PhaseExtended { .. } => mishaps.extensions += 1,
                _ => {}
            }
        }
        for event in cohorts.iter().flat_map(|cohort| cohort.events()) {
            mishaps.extensions += count(matches!(event, ServiceEvent::PhaseExtended { .. }));
        }
        mishaps
    }
}
