//! The signing session as an actor: a child of its cohort, with the coordinator's machine in it.

use std::sync::Arc;

use actix::{Actor, ActorContext, Addr, Context, Handler, Message as ActixMessage, Recipient, prelude::SendError};
use btcr2_aggregation_protocol::{
    cohort::event::SpendPath,
    error::{Fault, Reject, RejectCode},
    hash::MessageDigest,
    id::SessionId,
    machine::Machine,
    signing::{
        SigningOutcome, SigningTask,
        session::{SessionEffect, SessionEvent, SessionInput, SessionPhase, SigningSession},
    },
};

use crate::{
    cohort::{CohortActor, SayAgain},
    deliveries::Deliveries,
    engine::{Driven, Engine},
    fence::{Held, Hold},
    journal::{JournalError, StreamId},
    load::{Load, Mailbox, Waits},
    notice::{Notices, ServiceNotice},
    recovery,
    service::ServiceShared,
    span,
    supervisor::EndGuard,
    transport::{Outbound, Received},
};

/// How many messages may wait for a session.
const MAILBOX: usize = 4096;

/// A member did wrong in the session: to its cohort.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct FaultFound(pub(crate) Fault);

/// A message of a member for this session.
#[derive(ActixMessage)]
#[rtype(result = "()")]
struct SessionMessage(Received, Waits);

/// The cohort is over; nobody waits for the signatures any more.
#[derive(ActixMessage)]
#[rtype(result = "()")]
struct Abandon;

/// A cohort's hold on its session: when the cohort's actor goes, however it goes, the session goes too. Dropping the address
/// alone would not do, for the session's timer keeps it alive, and it would yet ask the members for the fallback.
///
/// Letting go takes effect at once: what the session is just deciding is not written any more.
pub(crate) struct Session {
    address: Addr<SigningSessionActor>,
    _hold: Hold,
}

impl Session {
    /// Starts the session that `build` makes, of this task.
    pub(crate) fn start(task: &SigningTask, build: impl FnOnce(Held) -> SigningSessionActor) -> Self {
        let hold = Hold::default();
        let address = span::start_in(span::signing(&task.cohort_id, &task.session_id), |ctx| {
            // Before it has started: what is handed over until then is no less.
            ctx.set_mailbox_capacity(MAILBOX);
            build(hold.held())
        });
        Self { address, _hold: hold }
    }

    /// Hands it a message of a member.
    pub(crate) fn hand(&self, received: Received, load: &Load) -> Result<(), SendError<()>> {
        let sent = self.address.try_send(SessionMessage(received, load.waits(Mailbox::Session)));
        sent.map_err(|error| match error {
            SendError::Full(_) => SendError::Full(()),
            SendError::Closed(_) => SendError::Closed(()),
        })
    }
}

impl Session {
    /// Has it say again what a member still needs.
    pub(crate) fn say_again(&self, again: SayAgain) {
        // Not lossy: a member is told so once for each stream that it opens.
        self.address.do_send(again);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.address.do_send(Abandon);
    }
}

/// The session has ended: to its cohort.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct SigningEnded {
    pub(crate) outcome: SigningOutcome,
    pub(crate) digests: Vec<MessageDigest>,
}

/// What came before.
pub(crate) struct Life<'f> {
    /// The session's facts, if it ran before.
    pub(crate) facts: &'f [SessionEvent],
    /// Whether it was down with the service, and nobody could answer it.
    pub(crate) was_down: bool,
}

pub(crate) struct SigningSessionActor {
    engine: Engine<SigningSession>,
    outbound: Recipient<Outbound>,
    cohort: Addr<CohortActor>,
    notices: Notices<ServiceNotice>,
    load: Load,
    deliveries: Deliveries,
    digests: Vec<MessageDigest>,
    was_down: bool,
    guard: EndGuard,
}

impl SigningSessionActor {
    /// A session, as far as its life went.
    pub(crate) fn new(
        task: Arc<SigningTask>,
        life: Life<'_>,
        shared: &ServiceShared,
        outbound: Recipient<Outbound>,
        cohort: Addr<CohortActor>,
        held: Held,
        guard: EndGuard,
    ) -> Self {
        let stream = Self::stream(&task.session_id);
        let rng = shared.randomness.for_actor(stream.as_str());
        let (mut machine, mut digests) = (SigningSession::new(task), Vec::new());
        recovery::replay(&mut machine, life.facts, |machine, fact, effects| {
            digests.extend(machine.transcript_entries(fact, effects));
        });
        let engine = Engine::new(machine, Arc::clone(&shared.journal), stream, held, shared.clock, rng);
        let (notices, load, deliveries) = (shared.notices.clone(), shared.load.clone(), shared.deliveries.clone());
        Self { engine, outbound, cohort, notices, load, deliveries, digests, was_down: life.was_down, guard }
    }

    /// Where the facts of this session are kept.
    pub(crate) fn stream(session_id: &SessionId) -> StreamId {
        StreamId::new(format!("signing/{session_id}"))
    }
}

impl Actor for SigningSessionActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        match self.engine.machine().phase() {
            SessionPhase::Planned => self.feed(SessionInput::Open, ctx),
            phase => {
                let waits = phase.timed().is_some();
                for fault in self.engine.machine().faults().iter() {
                    // The service may have died before its cohort had heard of it.
                    self.cohort.do_send(FaultFound(fault.clone()));
                }
                if self.was_down && waits {
                    self.feed(SessionInput::Resumed, ctx);
                }
                self.resume(ctx);
            }
        }
    }
}

impl Handler<SessionMessage> for SigningSessionActor {
    type Result = ();

    fn handle(&mut self, SessionMessage(received, waits): SessionMessage, ctx: &mut Self::Context) {
        drop(waits);
        let Received { message, receipt, .. } = received;
        self.feed_received(SessionInput::Message(message), receipt, ctx);
    }
}

impl Handler<SayAgain> for SigningSessionActor {
    type Result = ();

    fn handle(&mut self, SayAgain(member): SayAgain, ctx: &mut Self::Context) {
        for effect in self.engine.machine().resume() {
            if matches!(&effect, SessionEffect::Send { to, .. } if *to == member) {
                self.perform(effect, ctx);
            }
        }
    }
}

impl Handler<Abandon> for SigningSessionActor {
    type Result = ();

    fn handle(&mut self, _: Abandon, ctx: &mut Self::Context) {
        self.guard.finish();
        ctx.stop();
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
        let undelivered = self.deliveries.undelivered(&machine.task().cohort_id, &machine.holdouts());
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
        self.notices.publish(match event {
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
                self.cohort.do_send(FaultFound(fault.clone()));
                ServiceNotice::rejected(Some(&cohort_id), &Reject::from(fault))
            }
            // The cohort tells how it ended.
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
                self.deliveries.sent(&to, &body);
                self.load.say(Outbound::Direct { to, body, until }, &self.outbound);
            }
            SessionEffect::Finished(outcome) => {
                self.cohort.do_send(SigningEnded { outcome, digests: std::mem::take(&mut self.digests) });
            }
        }
    }

    fn refused(&mut self, reject: Reject, _: &mut Context<Self>) {
        let machine = self.engine.machine();
        let cohort_id = &machine.task().cohort_id;
        // What comes when the path is chosen was sent before its sender could know.
        let is_over = matches!(
            machine.phase(),
            SessionPhase::Fallback { .. } | SessionPhase::KeyPath | SessionPhase::Ended(_)
        );
        if is_over && reject.code == RejectCode::WrongPhase {
            return tracing::debug!(%cohort_id, reject.detail, "a message came too late");
        }
        self.notices.publish(ServiceNotice::rejected(Some(cohort_id), &reject));
    }

    fn journal_failed(&mut self, error: JournalError, ctx: &mut Context<Self>) {
        tracing::error!(%error, "a signing session cannot go on");
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
