//! A participant in one cohort as an actor: the machine, its policy and its signer.

use std::{sync::Arc, time::Duration};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Supervised, WrapFuture,
    dev::ContextFut,
};
use btcr2_aggregation_protocol::{
    cohort::{
        event::ParticipantEvent,
        participant::{
            ParticipantCohort, ParticipantEffect, ParticipantInput,
            phase::{Phase, PhaseKind},
        },
    },
    did::Did,
    error::{Fatal, Reject},
    id::CohortId,
    machine::Machine,
    message::Bytes,
    signing::nonce::MemberSigner,
};

use super::{
    ParticipantShared, Progress,
    post::{Inspect, Leave, Owner, Seen, SendAgain, SessionMessage},
    source::{approval, completion, end_of, signature},
};
use crate::{
    engine::{Driven, Engine, Replayed},
    journal::{JournalError, StreamId},
    notice::ParticipantNotice,
    policy::{SigningRequest, UpdateRequest, Validation},
    span,
    supervision::{End, EndGuard, InTree, Lease, Leased, RestartIntensity, Restarts, replay, start_leased},
    transport::{Outbound, link::Link},
    tree::{self, Row},
};

/// How long delivery of a verdict that ends the session is attempted.
const FAREWELL: Duration = Duration::from_secs(600);

/// How a session starts.
#[derive(Clone, Copy)]
pub(crate) enum StartMode {
    /// With an advert.
    Fresh,
    /// At the end of its journal.
    Resumed,
    /// The actor panicked: its journal is replayed first.
    AfterPanic,
}

pub(crate) struct ParticipantSessionActor {
    engine: Engine<ParticipantCohort>,
    shared: Arc<ParticipantShared>,
    outbound: Link,
    owner: Owner,
    mode: StartMode,
    /// Whether the cohort replaces one that we were in, on the same terms.
    rejoins: bool,
    signer: MemberSigner,
    signed: bool,
    restarts: Restarts,
    guard: EndGuard,
}

impl ParticipantSessionActor {
    /// Starts the actor of a session; `rejoins` if the cohort replaces one that we were in. It runs until its owner
    /// drops the [`Lease`]; `gone` is called when it stops earlier.
    pub(crate) fn start(
        machine: ParticipantCohort,
        (mode, rejoins): (StartMode, bool),
        shared: Arc<ParticipantShared>,
        outbound: Link,
        owner: Owner,
        gone: impl FnOnce(End) + 'static,
    ) -> (Addr<Self>, Lease) {
        let span = span::session(&machine.advert().cohort_id, shared.identity.did());
        start_leased(span, |_, leased: Leased| {
            Self::new(machine, (mode, rejoins), shared, outbound, owner, EndGuard::leased(leased, gone))
        })
    }

    fn new(
        machine: ParticipantCohort,
        (mode, rejoins): (StartMode, bool),
        shared: Arc<ParticipantShared>,
        outbound: Link,
        owner: Owner,
        guard: EndGuard,
    ) -> Self {
        let advert = machine.advert();
        let stream = Self::stream(shared.identity.did(), &advert.service, &advert.cohort_id);
        let rng = shared.randomness.for_actor(stream.as_str());
        let engine = Engine::new(machine, Arc::clone(&shared.journal), stream, shared.clock, rng);
        let signer = MemberSigner::new(Arc::clone(shared.identity.secret_key()));
        Self {
            engine,
            shared,
            outbound,
            owner,
            mode,
            rejoins,
            signer,
            signed: false,
            restarts: Restarts::default(),
            guard,
        }
    }

    /// The stream of this session's events. The service is part of the name: any peer may advertise a cohort under the
    /// identifier of another service's cohort, and would otherwise write into that cohort's stream.
    pub(crate) fn stream(did: &Did, service: &Did, cohort_id: &CohortId) -> StreamId {
        StreamId::of_session(did, service, cohort_id)
    }

    /// Continues the session where its journal ends.
    fn take_up(&mut self, ctx: &mut Context<Self>) {
        let phase = self.engine.machine().phase().kind();
        let (did, advert) = (self.shared.identity.did().clone(), self.engine.machine().advert());
        let (cohort_id, service) = (advert.cohort_id.clone(), advert.service.clone());
        self.shared.notices.publish(ParticipantNotice::SessionRecovered { did, cohort_id, service, phase });
        // The host was not notified, or did not acknowledge the notice.
        self.publish_approval();
        self.publish_signature();
        self.publish_completion();
        if let Phase::Ended { reason, .. } = self.engine.machine().phase() {
            let reason = reason.clone();
            if let Some(notice) = end_of(self.engine.machine(), self.shared.identity.did(), &reason) {
                self.shared.notices.publish(notice);
            }
            self.report(Progress::Ended(reason), ctx);
        } else {
            self.report_membership(ctx);
        }
        self.feed(ParticipantInput::Resumed, ctx);
        // The secret is never on disk: a nonce that was sent before the restart is lost with its actor.
        self.feed(ParticipantInput::NonceLost, ctx);
        self.resume(ctx);
    }

    fn report(&self, progress: Progress, ctx: &mut Context<Self>) {
        self.owner.report(self, self.engine.machine().advert(), progress, ctx);
    }

    /// Reports how far it is: after a panic it may not have been reported.
    fn report_membership(&self, ctx: &mut Context<Self>) {
        let phase = self.engine.machine().phase().kind();
        if matches!(phase, PhaseKind::Planned | PhaseKind::Invited | PhaseKind::Ended) {
            return;
        }
        self.report(Progress::Joined, ctx);
        if phase != PhaseKind::OptedIn {
            self.report(Progress::Formed, ctx);
        }
    }

    /// Asks the host a question and feeds its answer to the machine.
    fn ask<F>(&mut self, question: F, ctx: &mut Context<Self>)
    where
        F: Future<Output = ParticipantInput> + 'static,
    {
        ctx.spawn(question.into_actor(self).map(|answer, actor, ctx| actor.feed(answer, ctx)));
    }

    fn publish(&self, notice: Option<ParticipantNotice>) {
        if let Some(notice) = notice {
            self.shared.notices.publish(notice);
        }
    }

    fn publish_approval(&self) {
        self.publish(approval(self.engine.machine()));
    }

    /// Publishes the signed transaction, if it was seen.
    fn publish_completion(&self) {
        self.publish(completion(self.engine.machine()));
    }

    fn publish_signature(&mut self) {
        let Some(notice) = signature(self.engine.machine()) else { return };
        if !std::mem::replace(&mut self.signed, true) {
            self.shared.notices.publish(notice);
        }
    }
}

impl Actor for ParticipantSessionActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        match self.mode {
            StartMode::Fresh => self.feed(ParticipantInput::Discover, ctx),
            StartMode::Resumed => self.take_up(ctx),
            StartMode::AfterPanic => self.restart_from_journal(ctx),
        }
    }
}

impl Supervised for ParticipantSessionActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.mode = StartMode::AfterPanic;
        // Replaced at once: whatever the journal contains, a secret nonce does not survive the panic.
        self.signer = MemberSigner::new(Arc::clone(self.shared.identity.secret_key()));
    }
}

impl InTree for ParticipantSessionActor {
    const ROW: &'static Row = &tree::PARTICIPANT_SESSION;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

impl Replayed for ParticipantSessionActor {
    fn restarts(&mut self) -> (&mut Restarts, RestartIntensity) {
        (&mut self.restarts, self.shared.restarts)
    }

    fn guard(&mut self) -> &mut EndGuard {
        &mut self.guard
    }

    fn restarting_now(&mut self, count: usize) {
        let (did, advert) = (self.shared.identity.did().clone(), self.engine.machine().advert());
        let cohort_id = advert.cohort_id.clone();
        self.shared.notices.publish(ParticipantNotice::SessionRestarted { did, cohort_id, restarts: count });
    }

    fn restore(
        &mut self,
        events: Vec<ParticipantEvent>,
        last: Option<String>,
        ctx: &mut Context<Self>,
    ) -> Result<(), String> {
        let (config, advert) = (Arc::clone(&self.shared.config), Arc::clone(self.engine.machine().advert()));
        let machine = replay::caught(|| {
            let mut machine = ParticipantCohort::new(config, advert);
            replay::apply(&mut machine, &events, |_, _, _| {});
            machine
        })?;
        let rng = self.shared.randomness.for_actor(self.engine.stream().as_str());
        self.engine = self.engine.renewed(machine, rng);
        self.signed = false;
        match last {
            // The actor panicked before any event was durable.
            None if events.is_empty() => self.feed(ParticipantInput::Discover, ctx),
            None => self.take_up(ctx),
            Some(reason) if events.is_empty() => return Err(reason),
            Some(reason) => self.feed(ParticipantInput::Abort(Fatal(reason)), ctx),
        }
        Ok(())
    }
}

impl Handler<SessionMessage> for ParticipantSessionActor {
    type Result = ();

    fn handle(&mut self, SessionMessage { message, receipt, stored }: SessionMessage, ctx: &mut Self::Context) {
        let Some(said) = stored else {
            return self.feed_received(ParticipantInput::Message(message), receipt, ctx);
        };
        if !self.engine.machine().may_answer_us(said) {
            tracing::info!(
                cohort_id = %message.body.cohort_id(),
                kind = message.body.short_type(),
                "a message from before our opt-in is ignored: it belongs to an earlier round, or the sender's clock is behind ours"
            );
        }
        self.feed_received(ParticipantInput::Stored { message, said }, receipt, ctx);
    }
}

impl Handler<Seen> for ParticipantSessionActor {
    type Result = ();

    fn handle(&mut self, Seen(message): Seen, ctx: &mut Self::Context) {
        self.feed(ParticipantInput::Seen(message), ctx);
    }
}

impl Handler<SendAgain> for ParticipantSessionActor {
    type Result = ();

    fn handle(&mut self, _: SendAgain, ctx: &mut Self::Context) {
        for effect in self.engine.machine().resume() {
            if matches!(&effect, ParticipantEffect::Send { .. }) {
                self.perform(effect, ctx);
            }
        }
    }
}

impl Handler<Inspect> for ParticipantSessionActor {
    type Result = Arc<ParticipantCohort>;

    fn handle(&mut self, _: Inspect, _: &mut Self::Context) -> Self::Result {
        self.engine.snapshot()
    }
}

impl Handler<Leave> for ParticipantSessionActor {
    type Result = ();

    fn handle(&mut self, _: Leave, ctx: &mut Self::Context) {
        self.feed(ParticipantInput::Leave, ctx);
    }
}

impl Driven for ParticipantSessionActor {
    type Machine = ParticipantCohort;

    fn engine(&mut self) -> &mut Engine<ParticipantCohort> {
        &mut self.engine
    }

    fn tick() -> ParticipantInput {
        ParticipantInput::Tick
    }

    fn is_heavy(machine: &ParticipantCohort, input: &ParticipantInput) -> bool {
        machine.is_heavy(input)
    }

    fn observe(&mut self, event: &ParticipantEvent, _: &[ParticipantEffect], ctx: &mut Context<Self>) {
        let did = self.shared.identity.did().clone();
        let advert = self.engine.machine().advert();
        let cohort_id = advert.cohort_id.clone();
        let notice = match event {
            ParticipantEvent::CohortDiscovered { .. } => {
                ParticipantNotice::CohortDiscovered { did, cohort_id, service: advert.service.clone() }
            }
            ParticipantEvent::OptedIn { .. } => {
                self.report(Progress::Joined, ctx);
                ParticipantNotice::CohortJoined { did, cohort_id, service: advert.service.clone() }
            }
            ParticipantEvent::OptInAccepted => ParticipantNotice::OptInAccepted { did, cohort_id },
            ParticipantEvent::CohortReady { output, .. } => {
                self.report(Progress::Formed, ctx);
                ParticipantNotice::CohortReady { did, cohort_id, beacon_address: output.address().to_owned() }
            }
            ParticipantEvent::UpdateSubmitted { .. } => ParticipantNotice::UpdateSubmitted { did, cohort_id },
            ParticipantEvent::UpdateRefused { reason, .. } => {
                ParticipantNotice::UpdateRefused { did, cohort_id, reason: reason.clone() }
            }
            ParticipantEvent::UpdateDeclined { .. } => ParticipantNotice::UpdateDeclined { did, cohort_id },
            ParticipantEvent::DataReceived { verdict, .. } => {
                ParticipantNotice::ValidationRequested { did, cohort_id, problem: verdict.clone().err() }
            }
            ParticipantEvent::SigningRequested { session_id, .. } => {
                ParticipantNotice::SigningRequested { did, cohort_id, session_id: session_id.clone() }
            }
            ParticipantEvent::NonceSent { .. } => ParticipantNotice::NonceSent { did, cohort_id },
            ParticipantEvent::NonceLost { .. } => ParticipantNotice::NonceLost { did, cohort_id },
            ParticipantEvent::FallbackRequested { .. } => ParticipantNotice::FallbackRequested { did, cohort_id },
            ParticipantEvent::PartialSignatureSent { .. } | ParticipantEvent::FallbackSignatureSent { .. } => {
                return self.publish_signature();
            }
            // This ends the session, which publishes it.
            ParticipantEvent::TransactionSeen { .. } => return,
            ParticipantEvent::SessionEnded { reason, .. } => {
                self.report(Progress::Ended(reason.clone()), ctx);
                // Other members may have finished without our signature: our update is announced nevertheless.
                self.publish_completion();
                let Some(notice) = end_of(self.engine.machine(), self.shared.identity.did(), reason) else {
                    return;
                };
                notice
            }
            ParticipantEvent::ValidationSent { .. } => return self.publish_approval(),
            ParticipantEvent::PresenceConfirmed
            | ParticipantEvent::NonceSeen { .. }
            | ParticipantEvent::SigningApproved { .. }
            | ParticipantEvent::AggregatedNonceReceived { .. } => return,
        };
        self.shared.notices.publish(notice);
    }

    fn perform(&mut self, effect: ParticipantEffect, ctx: &mut Context<Self>) {
        let policy = Arc::clone(&self.shared.policy);
        let advert = Arc::clone(self.engine.machine().advert());
        match effect {
            ParticipantEffect::Send { to, body } => {
                // The last message is worth a few attempts.
                let until = self.engine.machine().deadline().or_else(|| Some(self.shared.clock.now() + FAREWELL));
                self.outbound.send(Outbound::Direct { to, body, until });
            }
            ParticipantEffect::AskJoin => {
                let rejoins = self.rejoins;
                let question = async move {
                    let joins = if rejoins {
                        policy.should_rejoin(&advert).await
                    } else {
                        policy.should_join(&advert).await
                    };
                    ParticipantInput::JoinDecided(joins)
                };
                self.ask(question, ctx);
            }
            ParticipantEffect::AskUpdate { output } => {
                let request = UpdateRequest { advert, output };
                self.ask(
                    async move { ParticipantInput::UpdateDecided(policy.provide_update(&request).await) },
                    ctx,
                );
            }
            ParticipantEffect::AskValidation { data, verdict } => {
                let validation = Validation { advert, data, verdict };
                self.ask(
                    async move { ParticipantInput::ValidationDecided(policy.validate(&validation).await) },
                    ctx,
                );
            }
            ParticipantEffect::AskSigning { transaction, value, path } => {
                let request = SigningRequest { advert, transaction, value, path };
                self.ask(
                    async move { ParticipantInput::SigningDecided(policy.approve_signing(&request).await) },
                    ctx,
                );
            }
            // Nothing may happen in between: the nonce is opened, sent, used and wiped in one turn each.
            ParticipantEffect::OpenNonce { session_id, output } => {
                let Some(rng) = self.engine.rng() else { return };
                let nonce = self.signer.open_nonce(&session_id, &output, rng);
                self.feed(ParticipantInput::NonceOpened(nonce), ctx);
            }
            ParticipantEffect::SignPartial { session_id, output, aggregated, sighash } => {
                let signed = self.signer.sign_partial(&session_id, &output, &aggregated, &sighash);
                let input = match signed {
                    Ok(signature) => ParticipantInput::PartialSigned(signature),
                    Err(error) => {
                        tracing::warn!(cohort_id = %advert.cohort_id, %error, "cannot sign the key path");
                        ParticipantInput::NonceLost
                    }
                };
                self.feed(input, ctx);
            }
            ParticipantEffect::SignFallback { sighash } => {
                let Some(rng) = self.engine.rng() else { return };
                let signature = self.signer.sign_fallback(&sighash, rng);
                self.feed(ParticipantInput::FallbackSigned(Bytes(signature.to_bytes())), ctx);
            }
        }
    }

    fn refused(&mut self, reject: Reject, _: &mut Context<Self>) {
        let cohort_id = &self.engine.machine().advert().cohort_id;
        let notice = ParticipantNotice::rejected(self.shared.identity.did(), Some(cohort_id), &reject);
        self.shared.notices.publish(notice);
    }

    fn journal_failed(&mut self, error: JournalError, ctx: &mut Context<Self>) {
        tracing::error!(%error, "a participant's session cannot continue");
        self.guard.journal_failed();
        ctx.stop();
    }

    fn settled(&mut self, ctx: &mut Context<Self>) {
        if matches!(self.engine.machine().phase(), Phase::Ended { .. }) && self.engine.is_released() {
            self.guard.finish();
            ctx.stop();
        }
    }
}
