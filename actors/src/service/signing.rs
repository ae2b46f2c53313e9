//! The signing session as an actor: a child of its cohort, around the coordinator's machine.

use std::sync::Arc;

use actix::{
    Actor, ActorContext, Addr, Context, Handler, Recipient, Supervised, dev::ContextFut, prelude::SendError,
};
use btcr2_aggregation_protocol::{
    cohort::event::SpendPath,
    error::{Reject, RejectCode},
    hash::MessageDigest,
    id::SessionId,
    machine::Machine,
    signing::{
        SigningTask,
        session::{SessionEffect, SessionEvent, SessionInput, SessionPhase, SigningSession},
    },
};

use super::shared::{FaultFound, MemberMessage, SendAgain, ServiceShared, SigningEnded};
use crate::{
    engine::{Driven, Engine, Replayed},
    journal::{JournalError, StreamId},
    notice::ServiceNotice,
    span,
    supervision::{End, EndGuard, InTree, Lease, Leased, RestartIntensity, Restarts, replay, start_leased},
    transport::{Outbound, Received, link::Link, send_in_turn},
    tree::{self, Row},
};

/// The cohort to which a session reports.
pub(crate) struct Parent {
    pub(crate) faults: Recipient<FaultFound>,
    pub(crate) ended: Recipient<SigningEnded>,
}

/// A cohort's session. Its actor stops when this is dropped; a decision in progress is then not journaled.
pub(crate) struct Session {
    address: Addr<SigningSessionActor>,
    _lease: Lease,
}

impl Session {
    /// Starts the session of `task`; `gone` is called when its actor stops by itself.
    pub(crate) fn start(
        task: Arc<SigningTask>,
        previous: PreviousRun<'_>,
        shared: &Arc<ServiceShared>,
        outbound: Link,
        parent: Parent,
        gone: impl FnOnce(End) + 'static,
    ) -> Self {
        let span = span::signing(&task.cohort_id, &task.session_id);
        let (address, lease) = start_leased(span, |_, leased: Leased| {
            SigningSessionActor::new(task, previous, shared, outbound, parent, EndGuard::leased(leased, gone))
        });
        Self { address, _lease: lease }
    }

    /// Passes it a message of a member.
    pub(crate) fn deliver(&self, message: MemberMessage) -> Result<(), SendError<MemberMessage>> {
        self.address.try_send(message)
    }

    /// Makes it send again what members still need.
    pub(crate) fn send_again<A: Actor<Context = Context<A>>>(&self, again: SendAgain, ctx: &mut Context<A>) {
        send_in_turn(&self.address, again, ctx);
    }
}

/// The state of a session from a previous run of the process.
pub(crate) struct PreviousRun<'e> {
    /// The session's events, if it was started then.
    pub(crate) events: &'e [SessionEvent],
    /// Whether the session was down with the service, so that no member could answer it.
    pub(crate) was_down: bool,
}

pub(crate) struct SigningSessionActor {
    engine: Engine<SigningSession>,
    shared: Arc<ServiceShared>,
    outbound: Link,
    parent: Parent,
    digests: Vec<MessageDigest>,
    was_down: bool,
    panicked: bool,
    restarts: Restarts,
    guard: EndGuard,
}

/// The session of `task` after `events`, and the digests of their transcript.
fn replayed(task: Arc<SigningTask>, events: &[SessionEvent]) -> (SigningSession, Vec<MessageDigest>) {
    let (mut machine, mut digests) = (SigningSession::new(task), Vec::new());
    replay::apply(&mut machine, events, |machine, event, effects| {
        digests.extend(machine.transcript_entries(event, effects));
    });
    (machine, digests)
}

impl SigningSessionActor {
    fn new(
        task: Arc<SigningTask>,
        previous: PreviousRun<'_>,
        shared: &Arc<ServiceShared>,
        outbound: Link,
        parent: Parent,
        guard: EndGuard,
    ) -> Self {
        let stream = Self::stream(&task.session_id);
        let rng = shared.randomness.for_actor(stream.as_str());
        let (machine, digests) = replayed(task, previous.events);
        let engine = Engine::new(machine, Arc::clone(&shared.journal), stream, shared.clock, rng);
        Self {
            engine,
            shared: Arc::clone(shared),
            outbound,
            parent,
            digests,
            was_down: previous.was_down,
            panicked: false,
            restarts: Restarts::default(),
            guard,
        }
    }

    /// The stream of this session's events.
    pub(crate) fn stream(session_id: &SessionId) -> StreamId {
        StreamId::new(format!("signing/{session_id}"))
    }

    /// Opens the session, or continues where its journal ends.
    fn go_on(&mut self, ctx: &mut Context<Self>) {
        match self.engine.machine().phase() {
            SessionPhase::Planned => self.feed(SessionInput::Open, ctx),
            phase => {
                let waits = phase.timed().is_some();
                for fault in self.engine.machine().faults().iter() {
                    // The service may have stopped before its cohort received it. An unbounded send: a fault is
                    // recorded once.
                    self.parent.faults.do_send(FaultFound(fault.clone()));
                }
                if std::mem::take(&mut self.was_down) && waits {
                    self.feed(SessionInput::Resumed, ctx);
                }
                self.resume(ctx);
            }
        }
    }
}

impl Actor for SigningSessionActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.panicked { self.restart_from_journal(ctx) } else { self.go_on(ctx) }
    }
}

impl Supervised for SigningSessionActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.panicked = true;
    }
}

impl InTree for SigningSessionActor {
    const ROW: &'static Row = &tree::SIGNING_SESSION;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

impl Replayed for SigningSessionActor {
    fn restarts(&mut self) -> (&mut Restarts, RestartIntensity) {
        (&mut self.restarts, self.shared.restarts)
    }

    fn guard(&mut self) -> &mut EndGuard {
        &mut self.guard
    }

    fn restarting_now(&mut self, count: usize) {
        let cohort_id = self.engine.machine().task().cohort_id.clone();
        self.shared.notices.publish(ServiceNotice::CohortRestarted { cohort_id, restarts: count });
    }

    fn restore(
        &mut self,
        events: Vec<SessionEvent>,
        last: Option<String>,
        ctx: &mut Context<Self>,
    ) -> Result<(), String> {
        // The cohort decides what happens next.
        if let Some(reason) = last {
            return Err(reason);
        }
        let task = Arc::clone(self.engine.machine().task());
        let (machine, digests) = replay::caught(|| replayed(task, &events))?;
        let rng = self.shared.randomness.for_actor(self.engine.stream().as_str());
        self.engine = self.engine.renewed(machine, rng);
        self.digests = digests;
        self.go_on(ctx);
        Ok(())
    }
}

impl Handler<MemberMessage> for SigningSessionActor {
    type Result = ();

    fn handle(&mut self, MemberMessage { received, queued }: MemberMessage, ctx: &mut Self::Context) {
        drop(queued);
        let Received { message, receipt, .. } = received;
        self.feed_received(SessionInput::Message(message), receipt, ctx);
    }
}

impl Handler<SendAgain> for SigningSessionActor {
    type Result = ();

    fn handle(&mut self, again: SendAgain, ctx: &mut Self::Context) {
        for effect in self.engine.machine().resume() {
            if matches!(&effect, SessionEffect::Send { to, .. } if again.concerns(to)) {
                self.perform(effect, ctx);
            }
        }
    }
}

impl Driven for SigningSessionActor {
    type Machine = SigningSession;

    fn engine(&mut self) -> &mut Engine<SigningSession> {
        &mut self.engine
    }

    fn tick() -> SessionInput {
        SessionInput::Tick
    }

    fn due(&mut self) -> SessionInput {
        let machine = self.engine.machine();
        let undelivered = self.shared.deliveries.undelivered(&machine.task().cohort_id, &machine.holdouts());
        if undelivered.is_empty() { SessionInput::Tick } else { SessionInput::Lapsed { undelivered } }
    }

    fn is_heavy(machine: &SigningSession, input: &SessionInput) -> bool {
        machine.is_heavy(input)
    }

    fn observe(&mut self, event: &SessionEvent, effects: &[SessionEffect], _: &mut Context<Self>) {
        let machine = self.engine.machine();
        self.digests.extend(machine.transcript_entries(event, effects));
        let task = machine.task();
        let (cohort_id, session_id) = (task.cohort_id.clone(), task.session_id.clone());
        self.shared.notices.publish(match event {
            SessionEvent::SessionOpened { .. } => ServiceNotice::SigningStarted { cohort_id, session_id },
            SessionEvent::NonceReceived { did, .. } => {
                ServiceNotice::NonceReceived { cohort_id, session_id, participant: did.clone() }
            }
            SessionEvent::PartialSignatureReceived { did, .. } => {
                ServiceNotice::PartialSignatureReceived { cohort_id, session_id, participant: did.clone() }
            }
            SessionEvent::FallbackSignatureReceived { did, .. } => {
                ServiceNotice::FallbackSignatureReceived { cohort_id, session_id, participant: did.clone() }
            }
            SessionEvent::PathChosen { path: SpendPath::ScriptPath, reason, holdouts, .. } => {
                let reason = reason.clone().unwrap_or_default();
                ServiceNotice::FallbackStarted { cohort_id, session_id, reason, holdouts: holdouts.clone() }
            }
            SessionEvent::PhaseExtended { phase, until, .. } | SessionEvent::GraceGiven { phase, until, .. } => {
                ServiceNotice::PhaseExtended { cohort_id, phase: *phase, until: *until }
            }
            SessionEvent::FaultRecorded { fault } => {
                // An unbounded send: a fault is recorded once.
                self.parent.faults.do_send(FaultFound(fault.clone()));
                ServiceNotice::rejected(Some(&cohort_id), &Reject::from(fault))
            }
            // The cohort publishes its end.
            SessionEvent::NoncesAggregated { .. }
            | SessionEvent::PathChosen { .. }
            | SessionEvent::SessionCompleted { .. }
            | SessionEvent::SessionFailed { .. } => return,
        });
    }

    fn perform(&mut self, effect: SessionEffect, _: &mut Context<Self>) {
        match effect {
            SessionEffect::Send { to, body } => {
                let until = self.engine.machine().deadline();
                self.shared.deliveries.sent(&to, &body);
                self.shared.load.send(Outbound::Direct { to, body, until }, &self.outbound);
            }
            SessionEffect::Finished(outcome) => {
                // An unbounded send: there is one for each session.
                self.parent.ended.do_send(SigningEnded { outcome, digests: std::mem::take(&mut self.digests) });
            }
        }
    }

    fn refused(&mut self, reject: Reject, _: &mut Context<Self>) {
        let machine = self.engine.machine();
        let cohort_id = &machine.task().cohort_id;
        // A message that arrives after the path was chosen may have been sent before its sender could know.
        let is_over = matches!(
            machine.phase(),
            SessionPhase::Fallback { .. } | SessionPhase::KeyPath | SessionPhase::Ended(_)
        );
        if is_over && reject.code == RejectCode::WrongPhase {
            return tracing::debug!(%cohort_id, reject.detail, "a message arrived too late");
        }
        self.shared.notices.publish(ServiceNotice::rejected(Some(cohort_id), &reject));
    }

    fn journal_failed(&mut self, error: JournalError, ctx: &mut Context<Self>) {
        tracing::error!(%error, "a signing session cannot continue");
        self.guard.journal_failed();
        ctx.stop();
    }

    fn settled(&mut self, ctx: &mut Context<Self>) {
        if matches!(self.engine.machine().phase(), SessionPhase::Ended(_)) && self.engine.is_released() {
            self.guard.finish();
            ctx.stop();
        }
    }
}
