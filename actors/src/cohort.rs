//! A cohort at its service as an actor: the machine's mailbox, its policy, its signing session.

use std::sync::Arc;

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message as ActixMessage, Recipient,
    WrapFuture,
};
use btcr2_aggregation_protocol::{
    cohort::{
        event::ServiceEvent,
        service::{ServiceCohort, ServiceEffect, ServiceInput, phase::Phase},
    },
    error::{Fatal, Reject},
    id::CohortId,
    machine::Machine,
    message::{Body, Message},
    transcript::Transcript,
};

use crate::{
    engine::{Driven, Engine},
    journal::{JournalError, StreamId},
    notice::{CohortResult, ServiceNotice},
    policy::{CohortView, PolicyError, TransactionRequest},
    service::ServiceShared,
    signing::{Session, SessionMessage, SigningEnded, SigningSessionActor},
    supervisor::{End, EndGuard},
    transport::Outbound,
};

/// How many messages may wait for a cohort. A sender beyond that waits itself, at its transport.
const MAILBOX: usize = 4096;

/// A message of a member, or of somebody who wants to be one.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct CohortMessage(pub(crate) Message);

/// Form the cohort with the members that it has.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct Finalize;

/// End the cohort.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct Cancel(pub(crate) String);

/// The signing session's actor is gone, however it went.
#[derive(ActixMessage)]
#[rtype(result = "()")]
struct SessionGone(End);

pub(crate) struct CohortActor {
    engine: Engine<ServiceCohort>,
    shared: Arc<ServiceShared>,
    outbound: Recipient<Outbound>,
    session: Option<Session>,
    transcript: Transcript,
    guard: EndGuard,
}

impl CohortActor {
    pub(crate) fn new(
        machine: ServiceCohort,
        shared: Arc<ServiceShared>,
        outbound: Recipient<Outbound>,
        guard: EndGuard,
    ) -> Self {
        let stream = StreamId::new(format!("cohort/{}", machine.config().cohort_id));
        let rng = shared.randomness.for_actor(stream.as_str());
        let engine = Engine::new(machine, Arc::clone(&shared.journal), stream, shared.clock, rng);
        Self { engine, shared, outbound, session: None, transcript: Transcript::default(), guard }
    }

    fn cohort_id(&self) -> CohortId {
        self.engine.machine().config().cohort_id.clone()
    }

    fn view(&self) -> CohortView {
        let machine = self.engine.machine();
        let admitted = match machine.phase() {
            Phase::Enrolling(enrolling) => enrolling.admitted(),
            phase => phase.formed().map_or(0, |formed| formed.members.len()),
        };
        CohortView { cohort_id: self.cohort_id(), conditions: machine.config().conditions.clone(), admitted }
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
        let context = machine.config().cohort_id.as_str().as_bytes().to_vec();
        let head = self.transcript.head();
        // The generator is here: facts are observed between decisions, not during one.
        let transcript = head.sign(&context, self.shared.identity.secret_key(), self.engine.rng()?);
        let messages = Arc::new(self.transcript.clone());
        Some(CohortResult { output, aggregation, signed, transcript, messages })
    }
}

impl Actor for CohortActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        self.feed(ServiceInput::Advertise, ctx);
    }
}

impl Handler<CohortMessage> for CohortActor {
    type Result = ();

    fn handle(&mut self, CohortMessage(message): CohortMessage, ctx: &mut Self::Context) {
        let for_session = matches!(
            &*message.body,
            Body::NonceContribution(_) | Body::SignatureAuthorization(_) | Body::FallbackSignature(_)
        );
        match &self.session {
            Some(session) if for_session => {
                if let Err(error) = session.address().try_send(SessionMessage(message)) {
                    tracing::warn!(cohort_id = %self.cohort_id(), %error, "a message for the signing session is lost");
                }
            }
            _ => self.feed(ServiceInput::Message(message), ctx),
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

impl Handler<SessionGone> for CohortActor {
    type Result = ();

    fn handle(&mut self, SessionGone(end): SessionGone, ctx: &mut Self::Context) {
        self.session = None;
        if let Some(reason) = end.failure() {
            self.feed(ServiceInput::SigningLost(Fatal(format!("signing session: {reason}"))), ctx);
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
            ServiceEvent::FaultRecorded { fault } | ServiceEvent::OptInDisplaced { fault, .. } => {
                ServiceNotice::rejected(Some(&cohort_id), &Reject::from(fault))
            }
            ServiceEvent::CohortCompleted { outcome, .. } => {
                let Some(result) = self.result(Arc::clone(outcome)) else { return };
                ServiceNotice::SigningComplete {
                    cohort_id,
                    path: outcome.path,
                    txid: outcome.transaction.compute_txid().to_string(),
                    result: Arc::new(result),
                }
            }
            ServiceEvent::CohortFailed { reason, .. } => ServiceNotice::CohortFailed {
                cohort_id,
                code: reason.code(),
                reason: reason.to_string(),
                failure: reason.clone(),
            },
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
                let until = self.engine.machine().deadline();
                self.outbound.do_send(Outbound::Direct { to, body, until });
            }
            ServiceEffect::AskAdmission(member) => {
                let view = self.view();
                let question = async move {
                    let admission = policy.admit(&view, &member).await;
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
                let request = TransactionRequest { cohort_id: self.cohort_id(), output, signal };
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
            ServiceEffect::StartSigning(task) => {
                let gone = ctx.address().recipient();
                let guard = EndGuard::new(move |end| gone.do_send(SessionGone(end)));
                let cohort = ctx.address().recipient();
                let session = SigningSessionActor::new(task, &self.shared, self.outbound.clone(), cohort, guard);
                self.session = Some(Session::start(session));
            }
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
