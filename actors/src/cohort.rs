//! A cohort at its service as an actor: the machine's mailbox, its policy, its signing session. What its members are charged
//! with is in `charges`.

mod charges;

use std::{sync::Arc, time::Duration};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message as ActixMessage, Recipient,
    WrapFuture,
};
use btcr2_aggregation_protocol::{
    cohort::{
        Member,
        event::ServiceEvent,
        service::{ServiceCohort, ServiceEffect, ServiceInput, phase::Phase},
    },
    did::Did,
    error::{Fatal, Reject},
    id::CohortId,
    machine::Machine,
    message::Body,
    signing::SigningTask,
    transcript::Transcript,
};
use serde_json::Value;

use crate::{
    engine::{Driven, Engine},
    evidence::EvidenceBook,
    fence::{Held, Hold},
    journal::{JournalError, StreamId},
    notice::{CohortResult, ServiceNotice},
    policy::{CohortView, PolicyError, TransactionRequest},
    recovery::{self, Restarts},
    service::{FormAgain, ServiceShared},
    signing::{FaultFound, Life, Session, SessionMessage, SigningEnded, SigningSessionActor},
    span,
    supervisor::{End, EndGuard},
    transport::{Outbound, Received},
};

/// How long members are tried to be told that the cohort is over.
const FAREWELL: Duration = Duration::from_secs(600);

/// How long an admission waits until a book of bans that could not be read is looked at again.
const BOOK_AGAIN: Duration = Duration::from_secs(10);

/// How many messages may wait for a cohort. A sender beyond that waits itself, at its transport.
const MAILBOX: usize = 4096;

/// The signing session's actor is gone, however it went.
#[derive(ActixMessage)]
#[rtype(result = "()")]
struct SessionGone(End);

/// A message of a member, or of somebody who wants to be one.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct CohortMessage(pub(crate) Received);

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
                Some(ServiceNotice::failed(cohort_id, reason, next))
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

    fn handle(&mut self, CohortMessage(received): CohortMessage, ctx: &mut Self::Context) {
        let for_session = matches!(
            &*received.body,
            Body::NonceContribution(_) | Body::SignatureAuthorization(_) | Body::FallbackSignature(_)
        );
        if self.engine.machine().phase().concerns(&received.from) {
            self.evidence.keep(&received);
        }
        match &self.session {
            Some(session) if for_session => {
                if let Err(error) = session.address().try_send(SessionMessage(received)) {
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

impl Driven for CohortActor {
    type Machine = ServiceCohort;

    fn engine(&mut self) -> &mut Engine<ServiceCohort> {
        &mut self.engine
    }

    fn tick() -> ServiceInput {
        ServiceInput::Tick
    }

    fn is_heavy(machine: &ServiceCohort, input: &ServiceInput) -> bool {
        machine.is_heavy(input)
    }

    fn observe(&mut self, event: &ServiceEvent, effects: &[ServiceEffect], _: &mut Context<Self>) {
        for digest in self.engine.machine().transcript_entries(event, effects) {
            self.transcript.push(digest);
        }
        let cohort_id = self.cohort_id();
        let participant = |did: &btcr2_aggregation_protocol::did::Did| did.clone();
        let notice = match event {
            ServiceEvent::CohortAdvertised { .. } => ServiceNotice::CohortAdvertised { cohort_id },
            ServiceEvent::OptInReceived { member, .. } => {
                ServiceNotice::OptInReceived { cohort_id, participant: participant(&member.did) }
            }
            ServiceEvent::MemberAdmitted { did } => {
                ServiceNotice::ParticipantAccepted { cohort_id, participant: participant(did) }
            }
            ServiceEvent::MemberRefused { did, reason } => ServiceNotice::ParticipantRefused {
                cohort_id,
                participant: participant(did),
                reason: reason.clone(),
            },
            ServiceEvent::KeysAggregated { output, .. } => ServiceNotice::KeygenComplete {
                cohort_id,
                beacon_address: output.address().to_owned(),
                participants: output.keys().len(),
                output: Arc::new(output.clone()),
            },
            ServiceEvent::UpdateReceived { did, .. } => {
                ServiceNotice::UpdateReceived { cohort_id, participant: participant(did), included: true }
            }
            ServiceEvent::UpdateDeclined { did, .. } => {
                ServiceNotice::UpdateReceived { cohort_id, participant: participant(did), included: false }
            }
            ServiceEvent::UpdatesAggregated { aggregation, .. } => {
                ServiceNotice::DataDistributed { cohort_id, signal: aggregation.signal }
            }
            ServiceEvent::ValidationReceived { did, approved, .. } => {
                ServiceNotice::ValidationReceived { cohort_id, participant: participant(did), approved: *approved }
            }
            ServiceEvent::TransactionDeferred { reason, .. } => {
                ServiceNotice::TransactionDeferred { cohort_id, reason: reason.clone() }
            }
            ServiceEvent::FaultRecorded { fault } => {
                self.charge_fault(fault);
                ServiceNotice::rejected(Some(&cohort_id), &Reject::from(fault))
            }
            ServiceEvent::OptInDisplaced { fault, .. } => {
                ServiceNotice::rejected(Some(&cohort_id), &Reject::from(fault))
            }
            ServiceEvent::PhaseExtended { phase, until, .. } | ServiceEvent::GraceGiven { phase, until, .. } => {
                ServiceNotice::PhaseExtended { cohort_id, phase: *phase, until: *until }
            }
            ServiceEvent::PresenceRequested { .. } => ServiceNotice::PresenceRequested { cohort_id },
            ServiceEvent::PresenceConfirmed { did } => {
                ServiceNotice::PresenceConfirmed { cohort_id, participant: participant(did) }
            }
            ServiceEvent::CohortCompleted { .. } | ServiceEvent::CohortFailed { .. } => {
                self.charge_everybody();
                let Some(notice) = self.end_notice() else { return };
                notice
            }
            // The session announces its own start.
            ServiceEvent::SigningStarted { .. }
            | ServiceEvent::AdvertRepeated { .. }
            | ServiceEvent::ValidationCompleted { .. }
            | ServiceEvent::TransactionRequested { .. } => return,
        };
        self.shared.notices.publish(notice);
    }

    fn perform(&mut self, effect: ServiceEffect, ctx: &mut Context<Self>) {
        let policy = Arc::clone(&self.shared.policy);
        match effect {
            ServiceEffect::Broadcast(body) => self.outbound.do_send(Outbound::Broadcast { body }),
            ServiceEffect::WithdrawAdvert => {
                self.outbound.do_send(Outbound::WithdrawAdvert { cohort_id: self.cohort_id() });
            }
            ServiceEffect::Send { to, body } => {
                // What is said at the end is worth a few tries.
                let until = self.engine.machine().deadline().or_else(|| Some(self.shared.clock.now() + FAREWELL));
                self.outbound.do_send(Outbound::Direct { to, body, until });
            }
            ServiceEffect::AskAdmission(member) => {
                let view = self.view();
                let shared = Arc::clone(&self.shared);
                let question = async move {
                    let banned = loop {
                        match shared.bans.banned(&member.did, shared.clock.now()) {
                            Ok(banned) => break banned,
                            // A book that cannot be read is the operator's to mend; until then nobody is let in, and nobody
                            // turned away for good.
                            Err(error) => tracing::error!(did = %member.did, %error, "an admission has to wait"),
                        }
                        tokio::time::sleep(BOOK_AGAIN).await;
                    };
                    let admission = match banned {
                        None => policy.admit(&view, &member).await,
                        Some(until) => Err(format!("banned until {}", until.as_secs())),
                    };
                    Some(ServiceInput::AdmissionDecided { did: member.did.clone(), admission })
                };
                self.ask(question, ctx);
            }
            ServiceEffect::AskFinalization { .. } => {
                let view = self.view();
                let question = async move { policy.finalize(&view).await.then_some(ServiceInput::Finalize) };
                self.ask(question, ctx);
            }
            ServiceEffect::AskTransaction { output, signal } => {
                let Some(aggregated) = self.engine.machine().phase().aggregated().cloned() else { return };
                let request = TransactionRequest { cohort_id: self.cohort_id(), output, signal, aggregated };
                let question = async move {
                    Some(match policy.beacon_transaction(&request).await {
                        Ok(funded) => ServiceInput::TransactionProvided {
                            transaction: funded.transaction,
                            value: funded.value,
                        },
                        Err(PolicyError::Retry(retry)) => ServiceInput::TransactionUnavailable(retry),
                        Err(PolicyError::Fatal(fatal)) => ServiceInput::TransactionRefused(fatal),
                    })
                };
                self.ask(question, ctx);
            }
            ServiceEffect::StartSigning(task) => self.start_session(task, Duration::ZERO, ctx),
            ServiceEffect::FormAgain(terms) => self.successors.do_send(FormAgain(terms)),
        }
    }

    fn refused(&mut self, reject: Reject, _: &mut Context<Self>) {
        self.shared.notices.publish(ServiceNotice::rejected(Some(&self.cohort_id()), &reject));
    }

    fn journal_failed(&mut self, error: JournalError, ctx: &mut Context<Self>) {
        tracing::error!(%error, "a cohort cannot go on");
        self.guard.journal_failed();
        ctx.stop();
    }

    fn settled(&mut self, ctx: &mut Context<Self>) {
        if self.engine.machine().has_ended() && self.engine.is_released() {
            self.guard.finish();
            ctx.stop();
        }
    }
}
