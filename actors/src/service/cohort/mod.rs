//! A cohort at its service as an actor: its messages, its host's answers, its signing session. The consequences of its
//! events are in `driven`, the charges against its members in `charges`.

mod admission;
mod charges;
mod driven;
mod operator;

use std::{collections::BTreeMap, sync::Arc};

use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message as ActixMessage, Recipient, Supervised,
    WrapFuture, dev::ContextFut,
};
use btcr2_aggregation_protocol::{
    cohort::{
        Member,
        event::ServiceEvent,
        service::{ServiceCohort, ServiceEffect, ServiceInput, phase::Phase},
    },
    did::Did,
    error::Fatal,
    id::CohortId,
    machine::Machine,
    message::Body,
    signing::SigningTask,
    time::Timestamp,
    transcript::Transcript,
};
use serde_json::Value;

pub(crate) use self::operator::{Advertise, Extend};
use super::{
    notices::{end_of, replayed},
    shared::{FaultFound, FormAgain, MemberMessage, SendAgain, ServiceShared, SigningEnded},
    signing::{Parent, PreviousRun, Session, SigningSessionActor},
};
use crate::{
    engine::{Driven, Engine, Replayed},
    evidence::EvidenceBook,
    journal::StreamId,
    load::Mailbox,
    notice::ServiceNotice,
    policy::CohortView,
    seats::Seat,
    span,
    subject::NetworkAddress,
    supervision::{End, EndGuard, InTree, Lease, Leased, RestartIntensity, Restarts, replay, start_leased},
    transport::{Outbound, Received, link::Link},
    tree::{self, Row},
};

/// The signing session's actor has stopped, for any reason.
#[derive(ActixMessage)]
#[rtype(result = "()")]
struct SessionGone(End);

/// Form the cohort with its current members.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct Finalize;

/// A snapshot of the cohort.
#[derive(ActixMessage)]
#[rtype(result = "Arc<ServiceCohort>")]
pub(crate) struct Inspect;

/// End the cohort.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct Cancel(pub(crate) String);

/// The initial state of a cohort's actor.
pub(crate) struct Beginning {
    machine: ServiceCohort,
    transcript: Transcript,
    mode: StartMode,
}

/// How a cohort's actor starts.
pub(crate) enum StartMode {
    /// The cohort is new.
    Fresh,
    /// The cohort was active in a previous run of the service.
    Resumed,
    /// The actor panicked: its journal is replayed first.
    AfterPanic,
}

impl Beginning {
    /// For a new cohort.
    pub(crate) fn fresh(machine: ServiceCohort) -> Self {
        Self { machine, transcript: Transcript::default(), mode: StartMode::Fresh }
    }

    /// For a cohort of a previous run, from its events.
    pub(crate) fn resumed(machine: ServiceCohort, events: &[ServiceEvent]) -> Self {
        let (machine, transcript) = replayed(machine, events);
        Self { machine, transcript, mode: StartMode::Resumed }
    }

    pub(crate) fn cohort_id(&self) -> &CohortId {
        &self.machine.config().terms.cohort_id
    }

    /// The members whose DID does not prove their key, with the genesis document that does.
    pub(crate) fn external_members(&self) -> Vec<(Did, Arc<Value>)> {
        let external =
            |member: &Arc<Member>| Some((member.did.clone(), Arc::clone(member.genesis_document.as_ref()?)));
        match self.machine.phase() {
            Phase::Enrolling(enrolling) => {
                enrolling.candidates.values().filter_map(|(member, _)| external(member)).collect()
            }
            phase => {
                phase.formed().into_iter().flat_map(|formed| formed.members.values()).filter_map(external).collect()
            }
        }
    }
}

pub(crate) struct CohortActor {
    engine: Engine<ServiceCohort>,
    shared: Arc<ServiceShared>,
    outbound: Link,
    successors: Recipient<FormAgain>,
    mode: StartMode,
    /// Whether the signing session that is started next was down with the service.
    was_down: bool,
    session: Option<Session>,
    /// Whether the operator has paused the advert.
    quiet: bool,
    restarts: Restarts,
    transcript: Transcript,
    evidence: EvidenceBook,
    /// The addresses from which candidates and members have opted in, if known. In memory only.
    addresses: BTreeMap<Did, NetworkAddress>,
    seats: BTreeMap<Did, Seat>,
    /// The start of the current period, and the number of applicants that were notified of their refusal in it.
    refusals: (Timestamp, u32),
    guard: EndGuard,
}

impl CohortActor {
    /// Starts the actor of a cohort. It runs until its owner drops the [`Lease`]; `gone` is called when it stops
    /// earlier.
    pub(crate) fn start(
        beginning: Beginning,
        shared: Arc<ServiceShared>,
        outbound: Link,
        successors: Recipient<FormAgain>,
        gone: impl FnOnce(End) + 'static,
    ) -> (Addr<Self>, Lease) {
        start_leased(span::cohort(beginning.cohort_id()), |_, leased: Leased| {
            Self::new(beginning, shared, outbound, successors, EndGuard::leased(leased, gone))
        })
    }

    fn new(
        beginning: Beginning,
        shared: Arc<ServiceShared>,
        outbound: Link,
        successors: Recipient<FormAgain>,
        guard: EndGuard,
    ) -> Self {
        let Beginning { machine, transcript, mode } = beginning;
        let stream = Self::stream(&machine.config().terms.cohort_id);
        let rng = shared.randomness.for_actor(stream.as_str());
        let engine = Engine::new(machine, Arc::clone(&shared.journal), stream, shared.clock, rng);
        Self {
            engine,
            shared,
            outbound,
            successors,
            was_down: matches!(mode, StartMode::Resumed),
            mode,
            session: None,
            quiet: false,
            restarts: Restarts::default(),
            transcript,
            evidence: EvidenceBook::default(),
            addresses: BTreeMap::new(),
            seats: BTreeMap::new(),
            refusals: (Timestamp::default(), 0),
            guard,
        }
    }

    /// The stream of this cohort's events.
    pub(crate) fn stream(cohort_id: &CohortId) -> StreamId {
        StreamId::of_cohort(cohort_id)
    }

    fn cohort_id(&self) -> CohortId {
        self.engine.machine().config().terms.cohort_id.clone()
    }

    fn view(&self) -> CohortView {
        let machine = self.engine.machine();
        let admitted = match machine.phase() {
            Phase::Enrolling(enrolling) => enrolling.admitted(),
            phase => phase.formed().map_or(0, |formed| formed.members.len()),
        };
        CohortView { cohort_id: self.cohort_id(), conditions: machine.config().terms.conditions.clone(), admitted }
    }

    /// Whether a message that does not fit the phase is only late, as happens to honest peers: any message once the
    /// cohort has ended, and an opt-in, which is the only message that a phase receives from a peer that is not a
    /// member.
    fn is_late(&self, peer: Option<&Did>) -> bool {
        let phase = self.engine.machine().phase();
        let is_over = matches!(phase, Phase::Completed { .. } | Phase::Failed { .. });
        is_over || peer.is_some_and(|peer| !phase.formed().is_some_and(|formed| formed.members.contains_key(peer)))
    }

    fn send(&self, outbound: Outbound) {
        if let Outbound::Direct { to, body, .. } = &outbound {
            self.shared.deliveries.sent(to, body);
        }
        self.shared.load.send(outbound, &self.outbound);
    }

    /// Asks the host a question and feeds its answer to the machine.
    fn ask<F>(&mut self, question: F, ctx: &mut Context<Self>)
    where
        F: Future<Output = Option<ServiceInput>> + 'static,
    {
        ctx.spawn(question.into_actor(self).map(|answer, actor, ctx| {
            if let Some(input) = answer {
                actor.feed(input, ctx);
            }
        }));
    }
}

impl CohortActor {
    /// The notice of the cohort's end, if it has ended.
    fn end_notice(&mut self) -> Option<ServiceNotice> {
        let machine = self.engine.snapshot();
        // The generator is present: events are observed between decisions, not during one.
        let rng = self.engine.rng()?;
        let mut notice = end_of(&machine, &self.transcript, &self.shared.identity, rng)?;
        if let (ServiceNotice::CohortFailed { reason, .. }, Phase::Failed { reason: failure, .. }) =
            (&mut notice, machine.phase())
        {
            // A failure for that reason already names it.
            let is_named = failure.unreached().is_some_and(|unreached| !unreached.not_carried.is_empty());
            let undelivered = self.shared.deliveries.not_carried(&self.cohort_id()).filter(|_| !is_named);
            if let Some((members, why)) = undelivered {
                reason.push_str(&format!(" (no carrier accepted the messages to {members} of them: {why})"));
            }
        }
        Some(notice)
    }

    /// Starts the signing session, with the events of its journal if there are any.
    fn start_session(&mut self, task: Arc<SigningTask>, ctx: &mut Context<Self>) {
        let journal = Arc::clone(&self.shared.journal);
        let was_down = std::mem::take(&mut self.was_down);
        let reading = async move {
            let events = replay::events(&*journal, &SigningSessionActor::stream(&task.session_id)).await;
            (task, events)
        };
        // Other messages wait: a member's message must find its session.
        ctx.wait(reading.into_actor(self).map(move |(task, events), actor, ctx| match events {
            Ok(events) => {
                let gone = ctx.address();
                let previous = PreviousRun { events: &events, was_down };
                let parent = Parent { faults: ctx.address().recipient(), ended: ctx.address().recipient() };
                let (shared, outbound) = (&actor.shared, actor.outbound.clone());
                // An unbounded send: there is one for each session.
                let gone = move |end| gone.do_send(SessionGone(end));
                actor.session = Some(Session::start(task, previous, shared, outbound, parent, gone));
            }
            Err(error) => actor.feed(ServiceInput::SigningLost(Fatal(error.to_string())), ctx),
        }));
    }
}

impl Drop for CohortActor {
    fn drop(&mut self) {
        self.shared.deliveries.forget(&self.engine.machine().config().terms.cohort_id);
    }
}

impl Actor for CohortActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        match self.mode {
            StartMode::Fresh => self.feed(ServiceInput::Advertise, ctx),
            StartMode::Resumed => self.go_on(true, ctx),
            StartMode::AfterPanic => self.restart_from_journal(ctx),
        }
    }
}

impl Supervised for CohortActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.mode = StartMode::AfterPanic;
    }
}

impl InTree for CohortActor {
    const ROW: &'static Row = &tree::COHORT;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

impl CohortActor {
    /// Continues where the journal ends; `was_down` after a time in which the process could not receive answers.
    fn go_on(&mut self, was_down: bool, ctx: &mut Context<Self>) {
        let (cohort_id, phase) = (self.cohort_id(), self.engine.machine().phase().kind());
        let formed = self.engine.machine().phase().formed();
        let output = formed.map(|formed| Arc::new(formed.output.clone()));
        self.shared.notices.publish(ServiceNotice::CohortRecovered { cohort_id, phase, output });
        self.restore_seats();
        self.charge_faults();
        // The end was not published, or the host has not acknowledged it.
        if let Some(notice) = self.end_notice() {
            self.charge_all();
            self.shared.notices.publish(notice);
        } else if was_down {
            self.feed(ServiceInput::Resumed, ctx);
        }
        self.resume(ctx);
    }
}

impl Replayed for CohortActor {
    fn restarts(&mut self) -> (&mut Restarts, RestartIntensity) {
        (&mut self.restarts, self.shared.restarts)
    }

    fn guard(&mut self) -> &mut EndGuard {
        &mut self.guard
    }

    fn restarting_now(&mut self, count: usize) {
        self.session = None;
        let cohort_id = self.cohort_id();
        self.shared.notices.publish(ServiceNotice::CohortRestarted { cohort_id, restarts: count });
    }

    fn restore(
        &mut self,
        events: Vec<ServiceEvent>,
        last: Option<String>,
        ctx: &mut Context<Self>,
    ) -> Result<(), String> {
        let config = self.engine.machine().shared_config();
        let (machine, transcript) = replay::caught(|| {
            let machine = ServiceCohort::new(config).map_err(|error| error.to_string())?;
            Ok::<_, String>(replayed(machine, &events))
        })??;
        let rng = self.shared.randomness.for_actor(self.engine.stream().as_str());
        self.engine = self.engine.renewed(machine, rng);
        self.transcript = transcript;
        self.evidence = EvidenceBook::default();
        self.seats.clear();
        match last {
            // The actor panicked before any event was durable.
            None if events.is_empty() => self.feed(ServiceInput::Advertise, ctx),
            None => self.go_on(false, ctx),
            Some(reason) if events.is_empty() => return Err(reason),
            Some(reason) => self.feed(ServiceInput::Abort(Fatal(reason)), ctx),
        }
        Ok(())
    }
}

impl Handler<MemberMessage> for CohortActor {
    type Result = ();

    fn handle(&mut self, MemberMessage { received, queued }: MemberMessage, ctx: &mut Self::Context) {
        drop(queued);
        if self.turns_away(&received) {
            return received.receipt.confirm();
        }
        let for_session = matches!(
            &*received.body,
            Body::NonceContribution(_) | Body::SignatureAuthorization(_) | Body::FallbackSignature(_)
        );
        if self.engine.machine().phase().concerns(&received.from) {
            self.evidence.record(&received);
        }
        match &self.session {
            Some(session) if for_session => {
                if let Err(error) =
                    session.deliver(MemberMessage::to(Mailbox::Session, received, &self.shared.load))
                {
                    tracing::warn!(cohort_id = %self.cohort_id(), %error, "a message for the signing session was dropped");
                }
            }
            // The session is being started: without a receipt the sender sends the message again.
            None if for_session && self.engine.machine().is_signing() => {}
            _ => {
                let Received { message, receipt, .. } = received;
                self.feed_received(ServiceInput::Message(message), receipt, ctx);
            }
        }
    }
}

impl Handler<SendAgain> for CohortActor {
    type Result = ();

    fn handle(&mut self, again: SendAgain, ctx: &mut Self::Context) {
        if let Some(session) = &self.session {
            session.send_again(again.clone(), ctx);
        }
        for effect in self.engine.machine().resume() {
            let lost = match &effect {
                ServiceEffect::Send { to, .. } => again.concerns(to),
                ServiceEffect::Broadcast(_) => again.0.is_none(),
                _ => false,
            };
            if lost {
                self.perform(effect, ctx);
            }
        }
    }
}

impl Handler<Finalize> for CohortActor {
    type Result = ();

    fn handle(&mut self, _: Finalize, ctx: &mut Self::Context) {
        self.feed(ServiceInput::Finalize, ctx);
    }
}

impl Handler<Inspect> for CohortActor {
    type Result = Arc<ServiceCohort>;

    fn handle(&mut self, _: Inspect, _: &mut Self::Context) -> Self::Result {
        self.engine.snapshot()
    }
}

impl Handler<Cancel> for CohortActor {
    type Result = ();

    fn handle(&mut self, Cancel(reason): Cancel, ctx: &mut Self::Context) {
        self.feed(ServiceInput::Cancel(reason), ctx);
    }
}

impl Handler<SigningEnded> for CohortActor {
    type Result = ();

    fn handle(&mut self, SigningEnded { outcome, digests }: SigningEnded, ctx: &mut Self::Context) {
        self.feed(ServiceInput::SigningFinished { outcome, digests }, ctx);
    }
}

impl Handler<FaultFound> for CohortActor {
    type Result = ();

    fn handle(&mut self, FaultFound(fault): FaultFound, _: &mut Self::Context) {
        self.charge_fault(&fault);
    }
}

impl Handler<SessionGone> for CohortActor {
    type Result = ();

    fn handle(&mut self, SessionGone(end): SessionGone, ctx: &mut Self::Context) {
        self.session = None;
        if let Some(reason) = end.failure()
            && self.engine.machine().is_signing()
        {
            self.feed(ServiceInput::SigningLost(Fatal(format!("signing session: {reason}"))), ctx);
        }
    }
}
