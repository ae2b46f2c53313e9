//! A standing cohort at its service as an actor: seats, roster, coins, and one number after the other.

mod admission;
mod answers;
mod charges;
mod driven;
mod moving;
mod number;
mod operator;
mod record;

use std::{collections::BTreeSet, sync::Arc};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message as ActixMessage,
    MessageResult, Recipient, Supervised, WrapFuture, dev::ContextFut,
};
use btcr2_aggregation_protocol::{
    cohort::standing::{
        BoardReader, OpportunityKind, StandingTerms, Succession,
        cohort::{CohortConfig, CohortEvent, CohortInput, StandingCohort},
        message::StandingMessage,
        number::{NumberEnd, NumberTask},
    },
    did::Did,
    error::Reject,
    id::CohortId,
    identity::Identity,
    machine::Machine,
    message::Body,
    output::KeyAggregator,
};

use self::{
    admission::Applicants,
    charges::Charge,
    number::{NumberActor, RunningNumber},
};
pub(crate) use self::{moving::NewCohort, number::InspectNumber};
use super::{
    ChainView,
    boards::BoardStore,
    coins::{ChainNews, CoinWatch, LookNow, Submit, WatchGone, feed_all},
    history::HistoryStore,
    notice::StandingNotice,
    policy::StandingServicePolicy,
};
use crate::{
    bans::BanBook,
    engine::{Driven, Engine, Replayed},
    journal::{Journal, StreamId},
    load::Load,
    notice::Notices,
    runtime::{Clock, Randomness},
    seats::Seats,
    span,
    supervision::{End, EndGuard, InTree, Lease, Leased, RestartIntensity, Restarts, replay, start_leased},
    transport::{Outbound, Received, link::Link, send_in_turn},
    tree::{self, Row},
};

/// What the actors of a service's standing cohorts share.
pub(crate) struct StandingShared {
    pub(crate) identity: Identity,
    pub(crate) policy: Arc<dyn StandingServicePolicy>,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) boards: Arc<dyn BoardStore>,
    pub(crate) history: Arc<dyn HistoryStore>,
    pub(crate) reader: Arc<dyn BoardReader>,
    pub(crate) chain: Option<ChainView>,
    pub(crate) aggregator: Arc<dyn KeyAggregator>,
    pub(crate) clock: Clock,
    pub(crate) randomness: Randomness,
    pub(crate) notices: Notices<StandingNotice>,
    pub(crate) load: Load,
    pub(crate) bans: BanBook,
    pub(crate) seats: Seats,
    pub(crate) restarts: RestartIntensity,
}

impl StandingShared {
    fn config(&self, cohort_id: &CohortId, terms: Arc<StandingTerms>) -> Arc<CohortConfig> {
        Arc::new(CohortConfig {
            terms,
            service: self.identity.did().clone(),
            service_key: self.identity.public_key(),
            cohort_id: cohort_id.clone(),
            aggregator: Arc::clone(&self.aggregator),
        })
    }

    /// The machine of a cohort that has not begun.
    ///
    /// # Errors
    /// The contradictions in the terms, in words.
    pub(crate) fn machine(
        &self,
        cohort_id: &CohortId,
        terms: Arc<StandingTerms>,
    ) -> Result<StandingCohort, String> {
        StandingCohort::new(self.config(cohort_id, terms)).map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            problems.join("; ")
        })
    }

    /// The machine that `events` of a journal lead to; `None` if the stream is that of another service.
    ///
    /// # Errors
    /// Why they do not lead to one.
    pub(crate) fn replayed(
        &self,
        cohort_id: &CohortId,
        events: &[CohortEvent],
    ) -> Result<Option<StandingCohort>, String> {
        let (terms, service) = match events.first() {
            Some(CohortEvent::Advertised { terms, service, .. }) => (terms, service),
            Some(CohortEvent::Saved(saved)) => (&saved.terms, &saved.service),
            _ => return Err("its journal does not begin with its terms".to_owned()),
        };
        if service != self.identity.did() {
            return Ok(None);
        }
        let mut machine = self.machine(cohort_id, Arc::clone(terms))?;
        replay::caught(|| {
            events.iter().for_each(|event| machine.apply(event));
            Some(machine)
        })
    }
}

/// A message of a seat, or of a participant that asks for one.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct SeatMessage(pub(crate) Received);

/// Send again what this seat, or every seat, still needs.
#[derive(Clone, ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct SendAgain(pub(crate) Option<Did>);

/// A request of the host.
#[derive(Clone, Debug, ActixMessage)]
#[rtype(result = "StandingAnswer")]
pub(crate) enum StandingRequest {
    /// Form the cohort of the seats that were admitted so far.
    Finalize,
    /// Open a number now, within the cadence.
    OpenNow(OpportunityKind),
    /// Open no number until it is released, or release it.
    Hold(bool),
    /// Advertise the cohort, or stop to, before it has formed.
    Advertise(bool),
    /// End the cohort before it has formed.
    Withdraw(String),
    /// Name the cohort to which this one moves.
    NameSuccessor(Arc<NewCohort>),
    /// A coin, or a spend: for a service without a chain.
    News(Box<CohortInput>),
    /// Look at the chain now.
    Look,
    /// A snapshot of the cohort.
    Inspect,
    /// The number that is open.
    Number,
}

/// The answer to a [`StandingRequest`].
#[derive(Clone, Debug)]
pub(crate) enum StandingAnswer {
    /// `Err` if the machine has refused it.
    Done(Result<(), Reject>),
    Snapshot(Arc<StandingCohort>),
    Number(Option<Recipient<InspectNumber>>),
}

/// From a number to its cohort: how it has ended.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct NumberReport(u64, NumberEnd, Vec<Charge>);

/// The actor of a number has stopped, for any reason.
#[derive(ActixMessage)]
#[rtype(result = "()")]
struct NumberGone(u64, End);

/// How a cohort's actor starts.
pub(crate) enum StartMode {
    /// The cohort is new, and succeeds another one or none.
    Fresh(Option<Succession>),
    /// At the end of its journal, with so many records.
    Resumed(usize),
    /// The actor panicked: its journal is replayed first.
    AfterPanic,
}

pub(crate) struct StandingCohortActor {
    engine: Engine<StandingCohort>,
    shared: Arc<StandingShared>,
    outbound: Link,
    mode: StartMode,
    /// The cohort that it succeeds, of a cohort that began in this process.
    succeeds: Option<Succession>,
    number: Option<RunningNumber>,
    applicants: Applicants,
    coins: Option<(Addr<CoinWatch>, Lease)>,
    /// The rows whose control the host is checking, by seat.
    checks: BTreeSet<(Did, [u8; 32])>,
    /// Whether the operator has paused the advert.
    quiet: bool,
    /// The rejection of the host's last request.
    refused: Option<Reject>,
    is_host: bool,
    restarts: Restarts,
    guard: EndGuard,
}

impl StandingCohortActor {
    /// Starts the actor of a cohort. It runs until its owner drops the [`Lease`]; `gone` is called when it stops earlier.
    pub(crate) fn start(
        machine: StandingCohort,
        mode: StartMode,
        shared: Arc<StandingShared>,
        outbound: Link,
        gone: impl FnOnce(End) + 'static,
    ) -> (Addr<Self>, Lease) {
        let span = span::standing(&machine.config().cohort_id);
        start_leased(span, |_, leased: Leased| {
            let stream = StreamId::of_standing(&machine.config().cohort_id);
            let rng = shared.randomness.for_actor(stream.as_str());
            let mut engine = Engine::new(machine, Arc::clone(&shared.journal), stream, shared.clock, rng);
            if let StartMode::Resumed(records) = mode {
                engine.restored(records);
            }
            Self {
                engine,
                shared,
                outbound,
                succeeds: if let StartMode::Fresh(succeeds) = &mode { succeeds.clone() } else { None },
                mode,
                number: None,
                applicants: Applicants::default(),
                coins: None,
                checks: BTreeSet::new(),
                quiet: false,
                refused: None,
                is_host: false,
                restarts: Restarts::default(),
                guard: EndGuard::leased(leased, gone),
            }
        })
    }

    fn cohort_id(&self) -> &CohortId {
        &self.engine.machine().config().cohort_id
    }

    fn send(&self, to: Did, message: StandingMessage) {
        let outbound = Outbound::Direct { to, body: Body::from(message).into(), until: None };
        self.shared.load.send(outbound, &self.outbound);
    }

    /// Watches the beacon address, once the cohort has formed.
    fn watch(&mut self, ctx: &mut Context<Self>) {
        let (Some(view), Some(output)) = (&self.shared.chain, self.engine.machine().output()) else { return };
        if self.coins.is_some() {
            return;
        }
        let (view, script) = (view.clone(), output.script_pubkey().to_owned());
        let stream = StreamId::of_watch(self.cohort_id().as_str());
        let records = (Arc::clone(&self.shared.journal), stream);
        let (span, to) = (span::standing(self.cohort_id()), ctx.address());
        let (restarts, gone) = (self.shared.restarts, to.clone().recipient());
        self.coins = Some(CoinWatch::start(view, script, records, restarts, span, to.recipient(), gone));
    }

    /// Starts a number, with the events of its journal if there are any.
    fn run_number(&mut self, task: Arc<NumberTask>, ctx: &mut Context<Self>) {
        let number = task.opportunity.number;
        let stream = StreamId::of_number(self.cohort_id(), number);
        let journal = Arc::clone(&self.shared.journal);
        let reading = async move { (task, replay::events(&*journal, &stream).await) };
        // Other messages wait: a seat's message must find its number.
        ctx.wait(reading.into_actor(self).map(move |(task, events), actor, ctx| match events {
            Ok(events) => {
                let (parent, gone) = (ctx.address().recipient(), ctx.address());
                // An unbounded send: there is one for each number.
                let gone = move |end| gone.do_send(NumberGone(number, end));
                let (shared, outbound) = (Arc::clone(&actor.shared), actor.outbound.clone());
                actor.number = Some(NumberActor::start(task, &events, shared, outbound, parent, gone));
            }
            Err(error) => {
                tracing::error!(%error, number, "the journal of a number cannot be read");
                actor.guard.journal_failed();
                ctx.stop();
            }
        }));
    }

    /// An input of the host, and the machine's rejection of it.
    fn feed_own(&mut self, input: CohortInput, ctx: &mut Context<Self>) -> Result<(), Reject> {
        (self.refused, self.is_host) = (None, true);
        self.feed(input, ctx);
        self.is_host = false;
        self.refused.take().map_or(Ok(()), Err)
    }

    /// Continues where the journal ends.
    fn go_on(&mut self, ctx: &mut Context<Self>) {
        let machine = self.engine.machine();
        self.shared.notices.publish(StandingNotice::StandingRecovered {
            cohort_id: machine.config().cohort_id.clone(),
            beacon_address: machine.output().map(|output| output.address().to_owned()),
            number: machine.last_number(),
        });
        self.restore_seats();
        self.record_cohort(None, ctx);
        self.record_fates(ctx);
        self.watch(ctx);
        self.resume(ctx);
    }
}

impl Actor for StandingCohortActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.repeat_advert(1, ctx);
        match self.mode {
            StartMode::Fresh(_) => self.advertise(ctx),
            StartMode::Resumed(_) => self.go_on(ctx),
            StartMode::AfterPanic => self.restart_from_journal(ctx),
        }
    }
}

impl Supervised for StandingCohortActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.mode = StartMode::AfterPanic;
        (self.number, self.coins) = (None, None);
        self.checks.clear();
    }
}

impl InTree for StandingCohortActor {
    const ROW: &'static Row = &tree::STANDING_COHORT;

    fn restart(running: &mut ContextFut<Self, Context<Self>>) -> bool {
        running.restart()
    }
}

impl Replayed for StandingCohortActor {
    fn restarts(&mut self) -> (&mut Restarts, RestartIntensity) {
        (&mut self.restarts, self.shared.restarts)
    }

    fn guard(&mut self) -> &mut EndGuard {
        &mut self.guard
    }

    fn restarting_now(&mut self, count: usize) {
        let cohort_id = self.cohort_id().clone();
        self.shared.notices.publish(StandingNotice::StandingRestarted { cohort_id, restarts: count });
    }

    fn restore(
        &mut self,
        events: Vec<CohortEvent>,
        last: Option<String>,
        ctx: &mut Context<Self>,
    ) -> Result<(), String> {
        if let Some(reason) = last {
            return Err(reason);
        }
        let rng = self.shared.randomness.for_actor(self.engine.stream().as_str());
        if events.is_empty() {
            // The actor panicked before any event was durable.
            let config = Arc::clone(self.engine.machine().config());
            let machine = StandingCohort::new(config).map_err(|_| "its terms contradict each other".to_owned())?;
            self.engine = self.engine.renewed(machine, rng);
            self.advertise(ctx);
            return Ok(());
        }
        let cohort_id = self.cohort_id().clone();
        let machine = self.shared.replayed(&cohort_id, &events)?.ok_or("its journal is that of another service")?;
        self.engine = self.engine.renewed(machine, rng);
        self.engine.restored(events.len());
        self.go_on(ctx);
        Ok(())
    }
}

impl Handler<SendAgain> for StandingCohortActor {
    type Result = ();

    fn handle(&mut self, SendAgain(only): SendAgain, ctx: &mut Self::Context) {
        let seats: Vec<Did> = match &only {
            Some(did) => vec![did.clone()],
            None => self.engine.machine().seats().map(|(_, did)| did.clone()).collect(),
        };
        for did in &seats {
            for effect in self.engine.machine().send_again(did) {
                self.perform(effect, ctx);
            }
        }
        if let Some(number) = &self.number {
            send_in_turn(&number.address, number::SendAgain(only), ctx);
        }
    }
}

impl Handler<StandingRequest> for StandingCohortActor {
    type Result = MessageResult<StandingRequest>;

    fn handle(&mut self, request: StandingRequest, ctx: &mut Self::Context) -> Self::Result {
        MessageResult(StandingAnswer::Done(match request {
            // Whether they can be done is known at once; the decision itself may run on another thread.
            StandingRequest::Finalize => {
                self.engine.machine().may_form().and_then(|()| self.feed_own(CohortInput::Finalize, ctx))
            }
            StandingRequest::OpenNow(kind) => {
                let now = self.shared.clock.now();
                let allowed = self.engine.machine().may_open(now, kind);
                allowed.and_then(|()| self.feed_own(CohortInput::OpenNow { kind }, ctx))
            }
            StandingRequest::Hold(held) => self.feed_own(CohortInput::Hold { held }, ctx),
            StandingRequest::Advertise(advertised) => self.set_advertised(advertised, ctx),
            StandingRequest::Withdraw(reason) => self.withdraw(&reason, ctx),
            StandingRequest::NameSuccessor(new) => self.name_successor(&new, ctx),
            StandingRequest::News(news) => {
                self.feed(*news, ctx);
                Ok(())
            }
            StandingRequest::Look => {
                if let Some((coins, _)) = &self.coins {
                    send_in_turn(coins, LookNow, ctx);
                }
                Ok(())
            }
            StandingRequest::Inspect => return MessageResult(StandingAnswer::Snapshot(self.engine.snapshot())),
            StandingRequest::Number => {
                let open = self.number.as_ref().map(|running| running.address.clone().recipient());
                return MessageResult(StandingAnswer::Number(open));
            }
        }))
    }
}

impl Handler<ChainNews> for StandingCohortActor {
    type Result = ();

    fn handle(&mut self, news: ChainNews, ctx: &mut Self::Context) {
        let cohort_id = self.cohort_id().clone();
        for (txid, problem) in news.refused {
            let cohort_id = cohort_id.clone();
            self.shared.notices.publish(StandingNotice::SubmissionFailed { cohort_id, txid, problem });
        }
        for (txid, blocks) in news.waiting {
            self.report_waiting(txid, blocks);
        }
        let spends = news.spends.into_iter().map(|spend| CohortInput::Spent { coin: spend.coin, by: spend.by });
        let coins = news.coins.into_iter().map(CohortInput::CoinFound);
        feed_all(self, spends.chain(coins), news.receipt, ctx);
    }
}

impl Handler<WatchGone> for StandingCohortActor {
    type Result = ();

    fn handle(&mut self, gone: WatchGone, ctx: &mut Self::Context) {
        gone.ends(&mut self.guard, ctx);
    }
}

impl Handler<NumberReport> for StandingCohortActor {
    type Result = ();

    fn handle(&mut self, NumberReport(number, end, charges): NumberReport, ctx: &mut Self::Context) {
        self.charge(number, charges);
        self.feed(CohortInput::NumberEnded { number, end }, ctx);
    }
}

impl Handler<NumberGone> for StandingCohortActor {
    type Result = ();

    fn handle(&mut self, NumberGone(number, end): NumberGone, ctx: &mut Self::Context) {
        if self.number.as_ref().is_some_and(|running| running.number == number) {
            self.number = None;
        }
        if let Some(reason) = end.failure() {
            // Without its number the cohort would wait without limit.
            tracing::error!(number, %reason, "the actor of a number has ended");
            self.guard.fail(format!("number {number}: {reason}"));
            ctx.stop();
        }
    }
}
