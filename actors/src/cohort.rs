//! A cohort at its service as an actor: its mailbox, its host's answers, its signing session. What follows from its facts is
//! in `driven`, what its members are charged with in `charges`.

mod admission;
mod charges;
mod driven;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message as ActixMessage, Recipient, WrapFuture,
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

use crate::{
    engine::{Driven, Engine},
    evidence::EvidenceBook,
    fence::{Held, Hold},
    journal::StreamId,
    load::Waits,
    notice::{CohortResult, ServiceNotice},
    policy::CohortView,
    recovery::{self, Restarts},
    seats::Seat,
    service::{FormAgain, ServiceShared},
    signing::{FaultFound, Life, Session, SigningEnded, SigningSessionActor},
    span,
    subject::NetworkAddress,
    supervisor::{End, EndGuard},
    transport::{Outbound, Received},
};

/// How many messages may wait for a cohort. A sender beyond that waits itself, at its transport.
const MAILBOX: usize = 4096;

/// The signing session's actor is gone, however it went.
#[derive(ActixMessage)]
#[rtype(result = "()")]
struct SessionGone(End);

/// A message of a member, or of somebody who wants to be one.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct CohortMessage(pub(crate) Received, pub(crate) Waits);

/// Say again what this member still needs: there was no room for it.
#[derive(Clone, ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct SayAgain(pub(crate) Did);

/// Form the cohort with the members that it has.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct Finalize;

/// End the cohort.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct Cancel(pub(crate) String);

/// With what a cohort's actor begins.
pub(crate) struct Beginning {
    machine: ServiceCohort,
    transcript: Transcript,
    how: How,
}

/// How a cohort's actor begins.
pub(crate) enum How {
    /// The cohort is new.
    Fresh,
    /// It ran in an earlier life of the service.
    Resumed,
    /// It has just run, and its actor panicked.
    Again,
    /// It ran before, and must not go on, for this reason.
    Abort(String),
}

impl Beginning {
    /// Of a new cohort.
    pub(crate) fn fresh(machine: ServiceCohort) -> Self {
        Self { machine, transcript: Transcript::default(), how: How::Fresh }
    }

    /// Of a cohort that ran before, from its facts.
    pub(crate) fn again(mut machine: ServiceCohort, facts: &[ServiceEvent], how: How) -> Self {
        let mut transcript = Transcript::default();
        recovery::replay(&mut machine, facts, |machine, fact, effects| {
            for digest in machine.transcript_entries(fact, effects) {
                transcript.push(digest);
            }
        });
        Self { machine, transcript, how }
    }

    pub(crate) fn cohort_id(&self) -> &CohortId {
        &self.machine.config().terms.cohort_id
    }

    /// Those whose DID does not prove their key, with the genesis document that does.
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
    outbound: Recipient<Outbound>,
    successors: Recipient<FormAgain>,
    how: How,
    /// Whether the signing session that is brought back next was down with the service.
    was_down: bool,
    session: Option<Session>,
    session_restarts: Restarts,
    transcript: Transcript,
    evidence: EvidenceBook,
    /// From where candidates and members have opted in, where that is known. In memory only.
    addresses: BTreeMap<Did, NetworkAddress>,
    seats: BTreeMap<Did, Seat>,
    /// How many applicants were told that they are not admitted, since when.
    telling: (Timestamp, u32),
    guard: EndGuard,
}

impl CohortActor {
    /// Starts the actor of a cohort, for as long as its owner keeps the [`Hold`].
    pub(crate) fn start_held(
        beginning: Beginning,
        shared: Arc<ServiceShared>,
        outbound: Recipient<Outbound>,
        successors: Recipient<FormAgain>,
        guard: EndGuard,
    ) -> (Addr<Self>, Hold) {
        let hold = Hold::default();
        let address = span::start_in(span::cohort(beginning.cohort_id()), |ctx| {
            // Before it has started: what is handed over until then is no less.
            ctx.set_mailbox_capacity(MAILBOX);
            Self::new(beginning, shared, outbound, successors, hold.held(), guard)
        });
        (address, hold)
    }

    fn new(
        beginning: Beginning,
        shared: Arc<ServiceShared>,
        outbound: Recipient<Outbound>,
        successors: Recipient<FormAgain>,
        held: Held,
        guard: EndGuard,
    ) -> Self {
        let Beginning { machine, transcript, how } = beginning;
        let stream = Self::stream(&machine.config().terms.cohort_id);
        let rng = shared.randomness.for_actor(stream.as_str());
        let engine = Engine::new(machine, Arc::clone(&shared.journal), stream, held, shared.clock, rng);
        Self {
            engine,
            shared,
            outbound,
            successors,
            was_down: matches!(how, How::Resumed),
            how,
            session: None,
            session_restarts: Restarts::default(),
            transcript,
            evidence: EvidenceBook::default(),
            addresses: BTreeMap::new(),
            seats: BTreeMap::new(),
            telling: (Timestamp::default(), 0),
            guard,
        }
    }

    /// Where the facts of this cohort are kept.
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

    /// Whether what does not fit the phase has only come too late, as happens to honest peers: anything once the cohort has
    /// ended, and an opt-in, which is all that reaches a phase from somebody who is no member.
    fn is_late(&self, peer: Option<&Did>) -> bool {
        let phase = self.engine.machine().phase();
        let is_over = matches!(phase, Phase::Completed { .. } | Phase::Failed { .. });
        is_over || peer.is_some_and(|peer| !phase.formed().is_some_and(|formed| formed.members.contains_key(peer)))
    }

    fn say(&self, outbound: Outbound) {
        if let Outbound::Direct { to, body, .. } = &outbound {
            self.shared.deliveries.sent(to, body);
        }
        self.shared.load.say(outbound, &self.outbound);
    }

    /// Asks the host something and feeds its answer to the machine.
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

    fn result(&mut self, signed: Arc<btcr2_aggregation_protocol::signing::Signed>) -> Option<CohortResult> {
        let machine = self.engine.machine();
        let output = machine.phase().formed()?.output.clone();
        let aggregation = Arc::clone(&machine.phase().aggregated()?.aggregation);
        let context = machine.config().terms.cohort_id.as_str().as_bytes().to_vec();
        let head = self.transcript.head();
        // The generator is here: facts are observed between decisions, not during one.
        let transcript = head.sign(&context, self.shared.identity.secret_key(), self.engine.rng()?);
        let messages = Arc::new(self.transcript.clone());
        Some(CohortResult { output, aggregation, signed, transcript, messages })
    }
}

impl CohortActor {
    /// How the cohort ended, once it has.
    fn end_notice(&mut self) -> Option<ServiceNotice> {
        let cohort_id = self.cohort_id();
        match self.engine.machine().phase() {
            Phase::Completed { outcome, .. } => {
                let outcome = Arc::clone(outcome);
                Some(ServiceNotice::SigningComplete {
                    cohort_id,
                    path: outcome.path,
                    txid: outcome.transaction.compute_txid().to_string(),
                    result: Arc::new(self.result(outcome)?),
                })
            }
            Phase::Failed { reason, successor, .. } => {
                let next = successor.as_ref().map(|terms| terms.cohort_id.clone());
                let undelivered = self.shared.deliveries.not_carried(&cohort_id);
                // One that failed for that says so itself.
                let said = reason.unreached().is_some_and(|unreached| !unreached.not_carried.is_empty());
                let undelivered = undelivered.filter(|_| !said);
                let mut notice = ServiceNotice::failed(cohort_id, reason, next);
                if let (ServiceNotice::CohortFailed { reason, .. }, Some((members, why))) =
                    (&mut notice, undelivered)
                {
                    reason.push_str(&format!(" (no carrier has taken what was for {members} of them: {why})"));
                }
                Some(notice)
            }
            _ => None,
        }
    }

    /// Starts the signing session, or brings it back from its journal.
    fn start_session(&mut self, task: Arc<SigningTask>, pause: Duration, ctx: &mut Context<Self>) {
        let journal = Arc::clone(&self.shared.journal);
        let was_down = std::mem::take(&mut self.was_down);
        let reading = async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let facts = recovery::facts(&*journal, &SigningSessionActor::stream(&task.session_id)).await;
            (task, facts)
        };
        // Nothing else happens before: a member's message must find its session.
        ctx.wait(reading.into_actor(self).map(move |(task, facts), actor, ctx| match facts {
            Ok(facts) => {
                let gone = ctx.address().recipient();
                let guard = EndGuard::new(move |end| gone.do_send(SessionGone(end)));
                let cohort = ctx.address();
                let outbound = actor.outbound.clone();
                let task_of_it = Arc::clone(&task);
                actor.session = Some(Session::start(&task_of_it, |held| {
                    let life = Life { facts: &facts, was_down };
                    SigningSessionActor::new(task, life, &actor.shared, outbound, cohort, held, guard)
                }));
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
        match std::mem::replace(&mut self.how, How::Again) {
            How::Fresh => self.feed(ServiceInput::Advertise, ctx),
            how @ (How::Resumed | How::Again) => {
                let (cohort_id, phase) = (self.cohort_id(), self.engine.machine().phase().name());
                let formed = self.engine.machine().phase().formed();
                let output = formed.map(|formed| Arc::new(formed.output.clone()));
                self.shared.notices.publish(ServiceNotice::CohortRecovered { cohort_id, phase, output });
                self.restore_seats();
                self.charge_faults();
                // It was not told, or nobody has said that it was heard.
                if let Some(notice) = self.end_notice() {
                    self.charge_everybody();
                    self.shared.notices.publish(notice);
                } else if let How::Resumed = how {
                    self.feed(ServiceInput::Resumed, ctx);
                }
                self.resume(ctx);
            }
            How::Abort(reason) => self.feed(ServiceInput::Abort(Fatal(reason)), ctx),
        }
    }
}

impl Handler<CohortMessage> for CohortActor {
    type Result = ();

    fn handle(&mut self, CohortMessage(received, waits): CohortMessage, ctx: &mut Self::Context) {
        drop(waits);
        if self.turns_away(&received) {
            return received.receipt.confirm();
        }
        let for_session = matches!(
            &*received.body,
            Body::NonceContribution(_) | Body::SignatureAuthorization(_) | Body::FallbackSignature(_)
        );
        if self.engine.machine().phase().concerns(&received.from) {
            self.evidence.keep(&received);
        }
        match &self.session {
            Some(session) if for_session => {
                if let Err(error) = session.hand(received, &self.shared.load) {
                    tracing::warn!(cohort_id = %self.cohort_id(), %error, "a message for the signing session is lost");
                }
            }
            // It is being brought back: the sender gets no receipt, and says it again.
            None if for_session && self.engine.machine().is_signing() => {}
            _ => {
                let Received { message, receipt, .. } = received;
                self.feed_received(ServiceInput::Message(message), receipt, ctx);
            }
        }
    }
}

impl Handler<SayAgain> for CohortActor {
    type Result = ();

    fn handle(&mut self, SayAgain(member): SayAgain, ctx: &mut Self::Context) {
        if let Some(session) = &self.session {
            session.say_again(SayAgain(member.clone()));
        }
        for effect in self.engine.machine().resume() {
            if matches!(&effect, ServiceEffect::Send { to, .. } if *to == member) {
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
        let Some(reason) = end.failure() else { return };
        let lost = |reason: &str| ServiceInput::SigningLost(Fatal(format!("signing session: {reason}")));
        let Phase::Signing { task, .. } = self.engine.machine().phase() else { return };
        if end != End::Panicked {
            return self.feed(lost(reason), ctx);
        }
        let task = Arc::clone(task);
        match self.session_restarts.next(self.shared.clock.now(), self.shared.restarts) {
            Some(pause) => {
                let (cohort_id, restarts) = (self.cohort_id(), self.session_restarts.count());
                tracing::error!(%cohort_id, restarts, "a signing session panicked and is brought back from its journal");
                self.shared.notices.publish(ServiceNotice::CohortRestarted { cohort_id, restarts });
                self.start_session(task, pause, ctx);
            }
            None => self.feed(lost("it panicked too often"), ctx),
        }
    }
}
