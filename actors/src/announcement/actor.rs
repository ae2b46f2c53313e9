//! An announcement as an actor: its state, its requests, and the order in which it works.
//!
//! It does one thing at a time: it serves the next request when all consequences of the last one are complete, and after
//! the look at the chain in progress. Work at the chain is an errand: the actor receives messages meanwhile.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use actix::{
    Actor, ActorContext, AsyncContext, Context, Handler, Message as ActixMessage, MessageResult, SpawnHandle,
};
use bitcoin::OutPoint;
use btcr2_aggregation_protocol::{
    announcement::{Announcement, Input, Need, Prepared, State},
    chain::Spend,
    error::Reject,
    hash::SignalBytes,
    id::CohortId,
    output::BeaconOutput,
};
use tokio::{
    sync::oneshot,
    time::{Duration, Instant},
};

use super::{
    Address, AnnouncementSettings, PrepareError,
    errands::{Fees, Submission},
    notice::{self, AnnouncementNotice, NeededSat},
    prepare::Waiting,
};
use crate::{
    engine::{Driven, Engine, Replayed},
    journal::StreamId,
    runtime::Randomness,
    supervision::{EndGuard, Restarts},
};

/// How long a request for a transaction waits for a coin before it is answered with what is missing.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

/// The number of requests that may wait for the actor. The sender of a dropped one repeats it.
const MOST_REQUESTS: usize = 64;

/// The channel on which a request is answered, with the machine's rejection if there is one.
pub(super) type Done = oneshot::Sender<Result<(), Reject>>;

/// A request of the host. It is answered when its events are durable and their effects performed. A request that is
/// dropped without an answer may be repeated.
#[derive(Debug, ActixMessage)]
#[rtype(result = "()")]
pub(super) enum Request {
    /// Watch this address, unless the announcement has one.
    Watch { address: Address, done: Done },
    /// The transaction that announces `signal`. Answered when there is one, when there will be none, and after ten
    /// minutes.
    Prepare { output: BeaconOutput, signal: SignalBytes, answer: oneshot::Sender<Result<Prepared, PrepareError>> },
    /// An input of the machine.
    Feed { input: Input, done: Done },
    /// Look at the chain now.
    Look { done: Done },
}

/// The present state of the machine.
#[derive(ActixMessage)]
#[rtype(result = "Arc<Announcement>")]
pub(super) struct Inspect;

/// End after the pending writes.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(super) struct Stop;

/// Whether the chain is to be queried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Look {
    /// Not before the poll interval has passed.
    #[default]
    Later,
    /// As soon as nothing else is to be done.
    Now,
    /// It was: those who wait for its result are answered.
    Taken,
}

/// The pending work. A restart begins without any: requests are repeated by their senders.
#[derive(Default)]
pub(super) struct Work {
    pub(super) requests: VecDeque<Request>,
    /// The requests for transactions.
    pub(super) waiting: Vec<Waiting>,
    /// The request for a transaction that was just fed to the machine.
    pub(super) preparing: Option<Waiting>,
    /// The request that was just fed to the machine, and its result.
    served: Option<(Done, Result<(), Reject>)>,
    /// Those who wait for the next look.
    watchers: Vec<Done>,
    /// The work at the chain that is in progress.
    pub(super) errand: Option<SpawnHandle>,
    /// Only the last of several is needed: it submits the announcement with its newest child.
    pub(super) submission: Option<Submission>,
    /// The foreign spends whose signals are not known.
    pub(super) foreign: VecDeque<Spend>,
    pub(super) look: Look,
    poll: Option<SpawnHandle>,
    /// The notices of events that are not durable yet; one entry for each event.
    pub(super) notices: VecDeque<Option<AnnouncementNotice>>,
    /// Whether events became durable since the deposits were last checked.
    pub(super) has_news: bool,
    /// The machine's rejection of the last input.
    pub(super) refused: Option<Reject>,
    is_advancing: bool,
}

impl Work {
    /// Serves `requests`, and then looks at the chain.
    pub(super) fn new(requests: VecDeque<Request>) -> Self {
        Self { requests, look: Look::Now, ..Self::default() }
    }
}

pub(super) struct AnnouncementActor {
    pub(super) cohort_id: CohortId,
    pub(super) engine: Engine<Announcement>,
    pub(super) settings: AnnouncementSettings,
    /// Why the last query of the chain failed.
    pub(super) unreachable: Option<String>,
    /// The fees of the last successful query.
    pub(super) fees: Fees,
    /// The cohort's output, once the host has provided it. The required amounts of a deposit follow from it.
    pub(super) output: Option<BeaconOutput>,
    /// The deposits that were reported as too small.
    too_small: BTreeSet<OutPoint>,
    /// When the address was created, if that was in this run, and no look at the chain has failed since.
    pub(super) begun: Option<Instant>,
    /// Whether the notices that must not be missed were sent in this run.
    pub(super) has_notified: bool,
    /// Whether the actor panicked: its journal is replayed first.
    pub(super) panicked: bool,
    /// Whether it ends as soon as nothing is left to be written.
    is_stopping: bool,
    pub(super) work: Work,
    pub(super) restarts: Restarts,
    pub(super) guard: EndGuard,
}

impl AnnouncementActor {
    /// The actor of `machine`, which has replayed its journal. It serves `requests` first.
    pub(super) fn new(
        cohort_id: CohortId,
        machine: Announcement,
        settings: AnnouncementSettings,
        requests: VecDeque<Request>,
        guard: EndGuard,
    ) -> Self {
        let stream = StreamId::of_announcement(&cohort_id);
        let rng = Randomness::System.for_actor(stream.as_str());
        let engine = Engine::new(machine, Arc::clone(&settings.journal), stream, settings.clock, rng);
        Self {
            cohort_id,
            engine,
            settings,
            unreachable: None,
            fees: Fees::default(),
            output: None,
            too_small: BTreeSet::new(),
            begun: None,
            has_notified: false,
            panicked: false,
            is_stopping: false,
            work: Work::new(requests),
            restarts: Restarts::default(),
            guard,
        }
    }

    pub(super) fn notify(&self, notice: AnnouncementNotice) {
        self.settings.notices.publish(notice);
    }

    /// The required amounts of one deposit, by the last known fees.
    pub(super) fn need(&self) -> Option<Need> {
        let rules = self.engine.machine().rules();
        let fees = rules.fees.above(self.fees.minimum).unwrap_or(rules.fees);
        Need::of(self.output.as_ref()?, rules, fees.first(self.fees.estimate)).ok()
    }

    /// Reports each deposit once that is too small, while there is no sufficient one.
    pub(super) fn notify_too_small(&mut self) {
        let machine = self.engine.snapshot();
        let sight = machine.sight();
        self.too_small.retain(|outpoint| sight.deposits.contains_key(outpoint));
        let Some(need) = self.need().filter(|_| matches!(machine.state(), State::Funding { .. })) else {
            return;
        };
        let unspent = || sight.deposits.values().filter(|deposit| !sight.spends.contains_key(&deposit.outpoint));
        if unspent().any(|deposit| deposit.value >= need.at_least) {
            return;
        }
        for deposit in unspent() {
            if self.too_small.insert(deposit.outpoint) {
                self.notify(AnnouncementNotice::DepositTooSmall {
                    cohort_id: self.cohort_id.clone(),
                    outpoint: deposit.outpoint,
                    value: deposit.value,
                    need: NeededSat(need),
                });
            }
        }
    }

    /// Repeats the notices that must not be missed, in case they were lost with the previous run: wanted funds, and
    /// alarms.
    fn notify_again(&mut self) {
        let (machine, network) = (self.engine.snapshot(), self.settings.network);
        if let State::Funding { deadline } = machine.state() {
            let need = self.need();
            self.notify(notice::funding_wanted(&self.cohort_id, network, machine.script(), *deadline, need));
        }
        for spend in machine.alarms() {
            self.notify(notice::foreign_spend(&self.cohort_id, spend));
            self.work.foreign.push_back(*spend);
        }
    }

    /// Does what is to be done next, as long as it need not wait for the journal or the chain.
    pub(super) fn advance(&mut self, ctx: &mut Context<Self>) {
        // What is done feeds the machine, which calls this again.
        if std::mem::replace(&mut self.work.is_advancing, true) {
            return;
        }
        while self.work.errand.is_none()
            && self.engine.is_released()
            && !self.engine.is_halted()
            && !self.is_stopping
            && self.step(ctx)
        {}
        self.work.is_advancing = false;
        if self.is_stopping && self.engine.is_released() {
            self.guard.finish();
            ctx.stop();
        }
    }

    /// Does one thing. Returns whether there may be more to do.
    fn step(&mut self, ctx: &mut Context<Self>) -> bool {
        if let Some(submission) = self.work.submission.take() {
            self.submit(submission, ctx);
        } else if let Some(spend) = self.work.foreign.pop_front() {
            self.look_into(spend, ctx);
        } else if let Some((done, result)) = self.work.served.take() {
            // The requester may be gone; it repeats its request after a restart.
            let _ = done.send(result);
        } else if let Some(waiting) = self.work.preparing.take() {
            self.answer(waiting);
        } else if let Some(request) = self.work.requests.pop_front() {
            self.serve(request, ctx);
        } else if !std::mem::replace(&mut self.has_notified, true) {
            self.notify_again();
        } else {
            return self.go_on(ctx);
        }
        true
    }

    /// Answers those who wait, looks at the chain, or waits for the next poll. Returns whether there may be more to do.
    fn go_on(&mut self, ctx: &mut Context<Self>) -> bool {
        let is_over = self.is_over();
        if is_over || self.work.look == Look::Taken {
            if let Some(next) = self.work.waiting.iter().position(|waiting| is_over || !waiting.was_asked) {
                let waiting = self.work.waiting.remove(next);
                self.prepare(waiting, ctx);
                return true;
            }
            for done in self.work.watchers.drain(..) {
                let _ = done.send(Ok(()));
            }
            if is_over {
                self.guard.finish();
                ctx.stop();
                return false;
            }
            self.work.look = Look::Later;
            let poll = ctx.run_later(self.settings.poll, |actor, ctx| {
                actor.work.poll = None;
                actor.look_now(ctx);
                actor.advance(ctx);
            });
            self.work.poll = Some(poll);
        }
        if self.work.look == Look::Now {
            self.look(ctx);
            return true;
        }
        false
    }

    /// Whether the chain need not be watched.
    pub(super) fn is_over(&self) -> bool {
        let machine = self.engine.machine();
        machine.has_ended() || matches!(machine.state(), State::Planned)
    }

    /// The chain is queried as soon as nothing else is to be done.
    fn look_now(&mut self, ctx: &mut Context<Self>) {
        self.work.look = Look::Now;
        if let Some(poll) = self.work.poll.take() {
            ctx.cancel_future(poll);
        }
    }

    fn serve(&mut self, request: Request, ctx: &mut Context<Self>) {
        match request {
            Request::Watch { address, done } => self.watch(address, done, ctx),
            Request::Prepare { output, signal, answer } => {
                let until = Instant::now() + PATIENCE;
                self.work.waiting.push(Waiting { output, signal, answer, until, was_asked: false });
                // After a look, its result is used.
                if self.work.look == Look::Later {
                    self.look_now(ctx);
                }
            }
            // The cohort never had an address.
            Request::Feed { input: Input::CohortFailed { .. }, done }
                if matches!(self.engine.machine().state(), State::Planned) =>
            {
                self.work.served = Some((done, Ok(())));
            }
            Request::Feed { input, done } => self.feed_for(done, input, ctx),
            Request::Look { done } => {
                self.work.watchers.push(done);
                self.look_now(ctx);
            }
        }
    }

    fn watch(&mut self, address: Address, done: Done, ctx: &mut Context<Self>) {
        let script = match address {
            Address::Script(script) => script,
            Address::Output(output) => {
                let script = output.script_pubkey().to_owned();
                let is_new = self.output.replace(output).is_none();
                if is_new && !self.engine.machine().has_ended() {
                    // The notice has the required amounts of a deposit, if the chain answers soon.
                    self.work.requests.push_front(Request::Watch { address: Address::Script(script), done });
                    return self.ask_fees(ctx);
                }
                script
            }
        };
        self.feed_for(done, Input::Watch { script }, ctx);
    }

    /// Feeds an input of the host to the machine. It is answered when its consequences are complete.
    fn feed_for(&mut self, done: Done, input: Input, ctx: &mut Context<Self>) {
        let result = self.feed_own(input, ctx);
        // Otherwise its events were not persisted.
        if !self.engine.is_halted() {
            self.work.served = Some((done, result));
        }
    }

    /// Feeds an input of the host to the machine.
    pub(super) fn feed_own(&mut self, input: Input, ctx: &mut Context<Self>) -> Result<(), Reject> {
        self.work.refused = None;
        self.feed(input, ctx);
        self.work.refused.take().map_or(Ok(()), Err)
    }
}

impl Actor for AnnouncementActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.panicked {
            self.restart_from_journal(ctx);
        } else {
            self.resume(ctx);
        }
    }
}

impl Handler<Request> for AnnouncementActor {
    type Result = ();

    fn handle(&mut self, request: Request, ctx: &mut Self::Context) {
        if self.engine.is_halted() {
            return;
        }
        if self.work.requests.len() >= MOST_REQUESTS {
            return tracing::warn!("too many requests for an announcement wait, dropped one");
        }
        self.work.requests.push_back(request);
        self.advance(ctx);
    }
}

impl Handler<Inspect> for AnnouncementActor {
    type Result = MessageResult<Inspect>;

    fn handle(&mut self, _: Inspect, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.engine.snapshot())
    }
}

impl Handler<Stop> for AnnouncementActor {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.is_stopping = true;
        if let Some(errand) = self.work.errand.take() {
            ctx.cancel_future(errand);
        }
        // Otherwise it ends when the pending writes are done.
        self.advance(ctx);
    }
}
