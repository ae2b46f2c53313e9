//! The memberships of a simulated participant: which seats it takes, and what its host stores.

use std::{collections::VecDeque, sync::Arc};

use super::{
    ParticipantNode, Setup,
    crash::{Fate, through_journal},
    participant::{Input, Stream, Work},
};
use crate::{
    cohort::{
        event::ParticipantEvent,
        participant::{
            ParticipantConfig, ParticipantInput,
            membership::{
                CohortKey, Membership, MembershipConfig, MembershipEffect, MembershipEvent, MembershipInput,
                Previous, PreviousSession, WithoutCohort,
            },
        },
    },
    machine::{Machine, replay},
    time::Timestamp,
};

/// The machine of a participant's memberships, with its journal.
pub(super) struct MembershipNode {
    pub(super) initial: Membership,
    pub(super) machine: Membership,
    pub(super) events: Vec<MembershipEvent>,
    /// All events of this run, journaled or not, and the state that they started from.
    pub(super) run: (Membership, Vec<MembershipEvent>),
}

impl MembershipNode {
    pub(super) fn new(config: &ParticipantConfig, setup: &Setup) -> Self {
        let initial = Membership::new(Arc::new(MembershipConfig {
            did: config.did.clone(),
            beacons: setup.beacons.clone(),
            max_sessions: setup.max_sessions,
            patience: setup.timing.phase_timeout,
            retains: true,
        }));
        let machine = initial.clone();
        Self { run: (machine.clone(), Vec::new()), initial, machine, events: Vec::new() }
    }

    fn apply(&mut self, event: MembershipEvent) -> Vec<MembershipEffect> {
        self.machine.apply(&event);
        let effects = self.machine.effects(&event);
        if Membership::is_journaled(&event) {
            self.events.push(event.clone());
        }
        self.run.1.push(event);
        effects
    }

    /// Drops all state except the journal.
    pub(super) fn restart(&mut self) {
        self.events = through_journal(&self.events);
        self.machine = replay(self.initial.clone(), &self.events);
        self.run = (self.machine.clone(), Vec::new());
    }
}

impl ParticipantNode {
    /// Its memberships in all cohorts.
    pub fn membership(&self) -> &Membership {
        &self.memberships.machine
    }

    /// The journal of its memberships.
    pub fn membership_events(&self) -> &[MembershipEvent] {
        &self.memberships.events
    }

    /// Whether its process is down.
    pub fn is_down(&self) -> bool {
        self.process.is_down()
    }

    /// When it was left without a cohort, and why.
    pub fn left_without_cohort(&self) -> &[(Timestamp, WithoutCohort)] {
        &self.left
    }

    pub(super) fn membership_decided(
        &mut self,
        now: Timestamp,
        events: Vec<MembershipEvent>,
        fate: Fate,
        work: &mut Work,
    ) {
        if fate == Fate::NotJournaled {
            return;
        }
        let effects: Vec<_> = events.into_iter().flat_map(|event| self.memberships.apply(event)).collect();
        for (_, effect) in effects.into_iter().enumerate().filter(|(at, _)| fate.performs(*at)) {
            match effect {
                MembershipEffect::AskConsider(advert) => {
                    let considers = self.role.considers;
                    let decided = MembershipInput::ConsiderDecided { advert, considers };
                    work.inputs.push_back(Input::Membership(decided));
                }
                MembershipEffect::StartSession { advert, .. } => {
                    let seat = self.take_seat(advert);
                    work.inputs.push_back(Input::Seat(seat, ParticipantInput::Discover));
                }
                MembershipEffect::ResumeSession(cohort) => {
                    if let Some(seat) = self.live_seat(&cohort) {
                        work.inputs.push_back(Input::Seat(seat, ParticipantInput::NonceLost));
                        work.inputs.push_back(Input::Resume(seat));
                    }
                }
                MembershipEffect::Forget(cohort) => self.put_away(&cohort, Stream::Removed),
                MembershipEffect::Refuse { reject, .. } => work.refused = Some(reject),
                MembershipEffect::ReportHalted { cohort, reason } => {
                    panic!("{}: a seat cannot continue: {reason}", cohort.cohort_id)
                }
                MembershipEffect::ReportWithoutCohort { cause, .. } => self.left.push((now, cause)),
            }
        }
    }

    /// Reports what a seat has journaled to the machine of its memberships.
    pub(super) fn report_progress(&self, seat: usize, event: &ParticipantEvent, inputs: &mut VecDeque<Input>) {
        let advert = self.seats[seat].machine.advert();
        let cohort = CohortKey::from(&**advert);
        let mut report = |input| inputs.push_back(Input::Membership(input));
        match event {
            ParticipantEvent::OptedIn { .. } => report(MembershipInput::OptedIn(Arc::clone(advert))),
            ParticipantEvent::CohortReady { .. } => report(MembershipInput::Formed(cohort)),
            ParticipantEvent::SessionEnded { reason, .. } => {
                let reason = reason.clone();
                report(MembershipInput::SessionEnded { cohort: cohort.clone(), reason });
                report(MembershipInput::SessionStopped { cohort, failure: None });
            }
            _ => {}
        }
    }

    /// The host has stored the end of a seat, or nothing of the seat is needed.
    pub(super) fn put_away(&mut self, cohort: &CohortKey, stream: Stream) {
        if let Some(seat) = self.live_seat(cohort) {
            self.seats[seat].stream = stream;
        }
    }

    /// What a restart finds in the journals of its seats.
    pub(super) fn previous(&self) -> Previous {
        let of = |stream| self.seats.iter().filter(move |seat| seat.stream == stream);
        let read = |seat: &super::Seat| {
            let session = PreviousSession::read(seat.events());
            (seat.cohort(), session.ok_or_else(|| "its journal does not begin with an advert".to_owned()))
        };
        Previous {
            archived: of(Stream::Archived).map(super::Seat::cohort).collect(),
            sessions: of(Stream::Live).map(read).collect(),
        }
    }
}
