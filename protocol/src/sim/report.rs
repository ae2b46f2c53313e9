//! How a simulation stands.

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

/// A message that a peer refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    /// When.
    pub at: Timestamp,
    /// Who refused it.
    pub by: Did,
    /// What it was refused for, and whom that names.
    pub reject: Reject,
}

/// How a simulation stands: its latest cohort, for the most part.
#[derive(Clone, Debug)]
pub struct Report {
    /// The name of the service's phase.
    pub phase: &'static str,
    /// Why the cohort failed, if it did.
    pub failure: Option<CohortFailure>,
    /// The signed transaction and how it came about, if there is one.
    pub signed: Option<Arc<Signed>>,
    /// What the service has on record against members, in all its cohorts.
    pub faults: Vec<Fault>,
    /// Every message that was refused, by whomever.
    pub rejections: Vec<Rejection>,
    /// Why each participant's latest session ended; `None` for those under way or never begun.
    pub ends: Vec<Option<SessionEnd>>,
    /// What went wrong on the way.
    pub mishaps: Mishaps,
}

/// How much went wrong, so that a test can see that it really did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mishaps {
    /// How often the service died.
    pub service_crashes: u64,
    /// How often participants died.
    pub participant_crashes: u64,
    /// How many texts were lost on their way, whether they were sent again or not.
    pub texts_lost: u64,
    /// How many secret nonces were lost after their public halves had left.
    pub nonces_lost: u64,
    /// How many cohorts were formed in the place of one that failed.
    pub reformations: u64,
    /// How many signing sessions left the key path.
    pub fallbacks: u64,
    /// How many waits were extended.
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
    /// Everybody who is accused of something: by a fault, by an outcome that names a culprit, or by a refusal. Refusing
    /// what comes too late ([`RejectCode::WrongPhase`]) or finds no place ([`RejectCode::CohortFull`],
    /// [`RejectCode::Excluded`]) accuses nobody.
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
    /// How it stands.
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
