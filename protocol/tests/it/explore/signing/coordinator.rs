//! The service of a one-time cohort, with its signing session, and its host.

use std::{rc::Rc, sync::Arc};

use btcr2_aggregation_protocol::{
    cohort::{
        event::ServiceEvent,
        service::{ServiceCohort, ServiceEffect, ServiceInput},
    },
    did::Did,
    error::Reject,
    machine::{Machine, replay, step},
    message::Message,
    signing::{
        SigningOutcome,
        session::{SessionEffect, SessionEvent, SessionInput, SessionPhase, SigningSession},
    },
    time::Timestamp,
};

use super::{Talk, rng};
use crate::{
    bitcoin_support::consensus_accepts,
    explore::process::{Input, Packet, Run, Way},
    standing::service_node::through_journal,
};

/// What does not change.
pub struct CoordinatorFixed {
    pub did: Did,
    /// It is about to start the session.
    pub signing: ServiceCohort,
    pub session: SigningSession,
    /// In the order of the processes.
    pub members: Vec<Did>,
    pub begins: Timestamp,
}

#[derive(Clone)]
pub struct CoordinatorProcess {
    pub fixed: Rc<CoordinatorFixed>,
    pub cohort: ServiceCohort,
    journal: Vec<ServiceEvent>,
    pub session: SigningSession,
    session_journal: Vec<SessionEvent>,
}

impl CoordinatorProcess {
    pub fn new(fixed: CoordinatorFixed) -> Self {
        let (cohort, session) = (fixed.signing.clone(), fixed.session.clone());
        Self { fixed: Rc::new(fixed), cohort, journal: Vec::new(), session, session_journal: Vec::new() }
    }

    pub fn text(&self) -> String {
        let is_extended = |event: &&SessionEvent| matches!(event, SessionEvent::PhaseExtended { .. });
        let extensions = self.session_journal.iter().filter(is_extended).count();
        let (phase, faults) = (self.session.phase(), self.session.faults());
        format!("{:?} {phase:?} {faults:?} {extensions}", self.journal)
    }

    pub fn assert_same(&self, other: &Self) {
        assert_eq!(self.cohort, other.cohort);
        assert_eq!(self.session, other.session);
    }

    pub fn crash(&mut self) {
        (self.cohort, self.session) = self.replayed();
    }

    fn replayed(&self) -> (ServiceCohort, SigningSession) {
        let cohort = replay(self.fixed.signing.clone(), &through_journal(&self.journal));
        (cohort, replay(self.fixed.session.clone(), &through_journal(&self.session_journal)))
    }

    pub fn outcome(&self) -> Option<&SigningOutcome> {
        match self.session.phase() {
            SessionPhase::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    pub fn check(&self) {
        let (cohort, session) = self.replayed();
        assert_eq!(cohort, self.cohort, "the replay of the cohort's journal");
        assert_eq!(session, self.session, "the replay of the session's journal");
        let chosen = self.session_journal.iter().filter(|event| matches!(event, SessionEvent::PathChosen { .. }));
        assert!(chosen.count() <= 1, "two paths were chosen");
        let is_end = |event: &&SessionEvent| {
            matches!(event, SessionEvent::SessionCompleted { .. } | SessionEvent::SessionFailed { .. })
        };
        assert!(self.session_journal.iter().filter(is_end).count() <= 1, "the session has ended twice");
        if let Some(SigningOutcome::Signed(signed)) = self.outcome() {
            let task = self.session.task();
            assert!(consensus_accepts(&signed.transaction, &task.prevout()), "an invalid transaction");
        }
    }

    pub fn deadline(&self) -> Option<Timestamp> {
        if matches!(self.session.phase(), SessionPhase::Planned) {
            return Some(self.fixed.begins);
        }
        let session = self.session.deadline().filter(|_| !self.cohort.has_ended());
        [session, self.cohort.deadline()].into_iter().flatten().min()
    }

    pub fn feed(&mut self, now: Timestamp, input: Input<'_, Talk>, run: &mut Run<Talk>) {
        match input {
            Input::Packet(Packet { message: Talk::Wire(message), .. }) => {
                // A message that comes too late is refused.
                let _ = if self.cohort.has_ended() {
                    self.input(now, &ServiceInput::Message(message.clone()), run)
                } else {
                    self.session_input(now, &SessionInput::Message(message.clone()), run)
                };
            }
            Input::Tick if matches!(self.session.phase(), SessionPhase::Planned) => {
                self.session_input(now, &SessionInput::Open, run).unwrap();
            }
            Input::Tick => {
                if !self.cohort.has_ended() {
                    self.session_input(now, &SessionInput::Tick, run).unwrap();
                }
                self.input(now, &ServiceInput::Tick, run).unwrap();
            }
            Input::Restarted => {
                self.input(now, &ServiceInput::Resumed, run).unwrap();
                let effects = self.cohort.resume();
                self.perform(now, effects, run);
            }
            Input::Packet(_) | Input::Refusal(_) | Input::Reconnected(_) => {}
        }
    }

    fn input(&mut self, now: Timestamp, input: &ServiceInput, run: &mut Run<Talk>) -> Result<(), Reject> {
        if run.is_crashed() {
            return Ok(());
        }
        let mut next = self.cohort.clone();
        let step = step(&mut next, now, input, &mut rng())?;
        if step.events.is_empty() || run.operation() {
            self.cohort = next;
            self.journal.extend(step.events);
            self.perform(now, step.effects, run);
        }
        Ok(())
    }

    fn session_input(&mut self, now: Timestamp, input: &SessionInput, run: &mut Run<Talk>) -> Result<(), Reject> {
        if run.is_crashed() {
            return Ok(());
        }
        let mut next = self.session.clone();
        let step = step(&mut next, now, input, &mut rng())?;
        if step.events.is_empty() || run.operation() {
            self.session = next;
            self.session_journal.extend(step.events);
            self.perform_for_session(now, step.effects, run);
        }
        Ok(())
    }

    fn send(
        &self,
        to: &Did,
        body: impl Into<btcr2_aggregation_protocol::message::SharedBody>,
        run: &mut Run<Talk>,
    ) {
        let member = self.fixed.members.iter().position(|member| member == to).expect("a member");
        let message = Message::new(self.fixed.did.clone(), Some(to.clone()), body);
        run.send(Packet { from: 0, to: member + 1, way: Way::Wire, message: Talk::wire(&message) });
    }

    fn perform(&mut self, now: Timestamp, effects: Vec<ServiceEffect>, run: &mut Run<Talk>) {
        for effect in effects {
            match effect {
                ServiceEffect::Send { to, body } => self.send(&to, body, run),
                ServiceEffect::StartSigning(task) => {
                    assert_eq!(task, *self.session.task(), "one session for one coin");
                    let owed = self.session.resume();
                    self.session_input(now, &SessionInput::Resumed, run).unwrap();
                    if matches!(self.session.phase(), SessionPhase::Planned) {
                        self.session_input(now, &SessionInput::Open, run).unwrap();
                    }
                    self.perform_for_session(now, owed, run);
                }
                ServiceEffect::Broadcast(_) | ServiceEffect::WithdrawAdvert => {}
                // What follows on a failure is another cohort, on the same coin or another.
                ServiceEffect::FormAgain(_) => {}
                ServiceEffect::AskAdmission(_)
                | ServiceEffect::AskFinalization { .. }
                | ServiceEffect::AskTransaction { .. } => panic!("the cohort is signing"),
            }
        }
    }

    fn perform_for_session(&mut self, now: Timestamp, effects: Vec<SessionEffect>, run: &mut Run<Talk>) {
        for effect in effects {
            if run.is_crashed() {
                return;
            }
            match effect {
                SessionEffect::Send { to, body } => self.send(&to, body, run),
                SessionEffect::Finished(outcome) => {
                    // The transcript depends on the order of messages, and nothing on the transcript.
                    let finished = ServiceInput::SigningFinished { outcome, digests: Vec::new() };
                    self.input(now, &finished, run).unwrap();
                }
            }
        }
    }
}

/// Used by the setup.
pub fn planned(session: &SigningSession) -> SigningSession {
    SigningSession::new(Arc::clone(session.task()))
}
