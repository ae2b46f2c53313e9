//! How an actor drives a machine: decide, apply, journal, and only then perform; and how the machine is restored from
//! its journal.
//!
//! The code that the actors of the machines share.

mod restart;

use std::{collections::VecDeque, num::NonZero, sync::Arc};

use actix::{Actor, ActorFutureExt, AsyncContext, Context, SpawnHandle, WrapFuture, fut};
use btcr2_aggregation_protocol::{error::Reject, machine::Machine, time::Timestamp};
use futures::{FutureExt, future::BoxFuture};
use rand_chacha::ChaCha20Rng;
use tokio::sync::Semaphore;

pub(crate) use self::restart::Replayed;
use crate::{
    journal::{Journal, JournalError, Record, StreamId},
    runtime::{Clock, LONGEST_SLEEP},
    transport::Receipt,
};

thread_local! {
    /// At most as many heavy decisions run at once as there are processors: more would only occupy more threads and
    /// their memory.
    /// One semaphore for each arbiter: under a paused clock, time must not pass while one arbiter waits for another.
    static PROCESSORS: Arc<Semaphore> =
        Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, NonZero::get)));
}

/// How many inputs and effects an actor processes before the other actors of its arbiter run. actix itself polls a
/// mailbox until it is empty: the messages of a thousand members, or those to them, would stop every other cohort.
const BURST: usize = 32;

/// A machine and the state that is needed to drive it.
pub(crate) struct Engine<M: Machine> {
    machine: Arc<M>,
    journal: Arc<dyn Journal>,
    stream: StreamId,
    clock: Clock,
    rng: Option<ChaCha20Rng>,
    /// Batches that were applied, in order; the front ones are released when they are durable.
    unreleased: VecDeque<Batch<M>>,
    next_batch: u64,
    /// Durable events that are not published yet, with their effects.
    facts: VecDeque<(M::Event, Vec<M::Effect>)>,
    /// The effects of the event that was published last, as far as they are not performed yet.
    effects: VecDeque<M::Effect>,
    /// The inputs processed since the other actors certainly ran, and the effects since they did or since an input.
    burst: (usize, usize),
    /// The number of records in the stream.
    records: usize,
    /// Inputs that arrived while effects were performed; they are processed after those effects.
    waiting: VecDeque<(M::Input, Receipt)>,
    busy: bool,
    timer: Option<(Timestamp, SpawnHandle)>,
    /// The deadline of the last tick, until another event.
    ticked: Option<Timestamp>,
    /// Whether events were not persisted: until it is replaced, the engine does nothing more.
    halted: bool,
}

struct Batch<M: Machine> {
    number: u64,
    facts: Vec<(M::Event, Vec<M::Effect>)>,
    /// The receipts of the messages that caused the batch, or that repeat such a message.
    receipts: Vec<Receipt>,
    durable: bool,
}

impl<M: Machine> Engine<M> {
    pub(crate) fn new(
        machine: M,
        journal: Arc<dyn Journal>,
        stream: StreamId,
        clock: Clock,
        rng: ChaCha20Rng,
    ) -> Self {
        Self {
            machine: Arc::new(machine),
            journal,
            stream,
            clock,
            rng: Some(rng),
            unreleased: VecDeque::new(),
            next_batch: 0,
            facts: VecDeque::new(),
            effects: VecDeque::new(),
            burst: (0, 0),
            records: 0,
            waiting: VecDeque::new(),
            busy: false,
            timer: None,
            ticked: None,
            halted: false,
        }
    }

    pub(crate) fn machine(&self) -> &M {
        &self.machine
    }

    /// The machine as it is now. While the caller holds it, the next event copies the state.
    pub(crate) fn snapshot(&self) -> Arc<M> {
        Arc::clone(&self.machine)
    }

    /// An engine for `machine` with the same stream and settings. It takes over none of the pending work.
    pub(crate) fn renewed(&self, machine: M, rng: ChaCha20Rng) -> Self {
        let (journal, stream) = (Arc::clone(&self.journal), self.stream.clone());
        let renewed = Self::new(machine, journal, stream, self.clock, rng);
        // An append of the previous engine may still be answered: its number must not be that of another batch.
        Self { next_batch: self.next_batch, ..renewed }
    }

    /// Drops the events that are not durable, because some were not persisted, and ignores all input from now on. The machine
    /// has applied those events: it must be [`renewed`](Self::renewed) from the journal.
    pub(crate) fn halt<A: Actor<Context = Context<A>>>(&mut self, ctx: &mut Context<A>) {
        self.halted = true;
        self.unreleased.clear();
        self.waiting.clear();
        if let Some((_, timer)) = self.timer.take() {
            ctx.cancel_future(timer);
        }
    }

    pub(crate) fn is_halted(&self) -> bool {
        self.halted
    }

    /// The stream of its events.
    pub(crate) fn stream(&self) -> &StreamId {
        &self.stream
    }

    /// Whether the effects of all decisions have been performed.
    pub(crate) fn is_released(&self) -> bool {
        self.unreleased.is_empty() && self.facts.is_empty() && self.effects.is_empty()
    }

    /// Whether the other actors should run before the next input.
    fn is_input_burst(&mut self) -> bool {
        self.burst = (self.burst.0 + 1, 0);
        self.burst.0 > BURST
    }

    /// Whether the other actors should run before the next effect.
    fn is_effect_burst(&mut self) -> bool {
        self.burst.1 += 1;
        self.burst.1 > BURST
    }

    /// The number of records in the stream, if [`restored`](Self::restored) was called for those of previous runs.
    pub(crate) const fn records(&self) -> usize {
        self.records
    }

    /// The machine has replayed this number of records.
    pub(crate) const fn restored(&mut self, records: usize) {
        self.records = records;
    }

    /// Replaces all records by `event`, which leads to the same state; by none if there is none. To be called only while
    /// everything [is released](Self::is_released).
    pub(crate) fn compact(&mut self, event: Option<M::Event>) -> BoxFuture<'static, Result<(), JournalError>>
    where
        M::Event: Send + Sync + 'static,
    {
        let records: Vec<Record> = event.into_iter().map(Record::new).collect();
        self.records = records.len();
        self.journal.replace(&self.stream, records)
    }

    pub(crate) fn rng(&mut self) -> Option<&mut ChaCha20Rng> {
        self.rng.as_mut()
    }

    /// Confirms a message that caused no events once the pending batches are durable: it may repeat a message of such a
    /// batch, or be refused because of one, and would be accepted if those events were lost.
    fn confirm_in_turn(&mut self, receipt: Receipt) {
        match self.unreleased.back_mut() {
            Some(batch) => batch.receipts.push(receipt),
            None => receipt.confirm(),
        }
    }
}

/// An actor around a machine. `feed` is the only input; the other methods are hooks that translate.
pub(crate) trait Driven: Actor<Context = Context<Self>> + Sized {
    type Machine: Machine<Event: Send + Sync + 'static, Input: Send> + Send + Sync + 'static;

    fn engine(&mut self) -> &mut Engine<Self::Machine>;

    /// The input for the passage of time.
    fn tick() -> <Self::Machine as Machine>::Input;

    /// The same, with additional input of this actor.
    fn due(&mut self) -> <Self::Machine as Machine>::Input {
        Self::tick()
    }

    /// Whether deciding `input` is too expensive for the arbiter's thread.
    fn is_heavy(machine: &Self::Machine, input: &<Self::Machine as Machine>::Input) -> bool;

    /// An event was applied, and is about to be journaled: the machine is as it was directly after this event.
    fn applied(&mut self, _event: &<Self::Machine as Machine>::Event) {}

    /// An event is durable: notify the subscribers. Its `effects` are about to be performed.
    fn observe(
        &mut self,
        event: &<Self::Machine as Machine>::Event,
        effects: &[<Self::Machine as Machine>::Effect],
        ctx: &mut Context<Self>,
    );

    /// Performs an effect of the machine.
    fn perform(&mut self, effect: <Self::Machine as Machine>::Effect, ctx: &mut Context<Self>);

    /// A peer's message was refused.
    fn refused(&mut self, reject: Reject, ctx: &mut Context<Self>);

    /// The journal failed: the actor must not promise anything more.
    fn journal_failed(&mut self, error: JournalError, ctx: &mut Context<Self>);

    /// All pending work is done.
    fn settled(&mut self, ctx: &mut Context<Self>);

    /// Processes `input`.
    fn feed(&mut self, input: <Self::Machine as Machine>::Input, ctx: &mut Context<Self>) {
        self.feed_received(input, Receipt::default(), ctx);
    }

    /// Processes a message. Its receipt is confirmed when all events that it caused are durable.
    fn feed_received(
        &mut self,
        input: <Self::Machine as Machine>::Input,
        receipt: Receipt,
        ctx: &mut Context<Self>,
    ) {
        let engine = self.engine();
        if engine.halted {
            return;
        }
        engine.waiting.push_back((input, receipt));
        if !engine.busy {
            self.work(ctx);
        }
    }

    /// Starts a machine that was restored from its journal: pending effects are performed again, and a deadline that
    /// has passed in the meantime expires at once. So does one that is too far away: the clock was set back in the meantime.
    fn resume(&mut self, ctx: &mut Context<Self>) {
        let engine = self.engine();
        let owed = engine.machine.resume();
        engine.effects.extend(owed);
        let now = engine.clock.now();
        if engine.machine.deadline().is_some_and(|deadline| deadline.since(now) > LONGEST_SLEEP) {
            let due = self.due();
            self.engine().waiting.push_back((due, Receipt::default()));
        }
        self.work(ctx);
    }

    /// Replaces the journal by `event`, which leads to the same state, or by nothing. To be called only while everything
    /// [is released](Engine::is_released).
    fn compact_to(&mut self, event: Option<<Self::Machine as Machine>::Event>, ctx: &mut Context<Self>) {
        let stream = self.engine().stream().clone();
        let replaced = self.engine().compact(event);
        let replacing = async move {
            if let Err(error) = replaced.await {
                tracing::error!(%error, stream = stream.as_str(), "a journal cannot be compacted");
            }
        };
        ctx.spawn(replacing.into_actor(self));
    }

    #[doc(hidden)]
    fn work(&mut self, ctx: &mut Context<Self>) {
        self.engine().busy = true;
        loop {
            if !self.release(ctx) {
                return;
            }
            let engine = self.engine();
            if !engine.waiting.is_empty() && engine.is_input_burst() {
                return self.pause(ctx);
            }
            let Some((input, receipt)) = engine.waiting.pop_front() else { break };
            let now = engine.clock.now();
            let Some(mut rng) = engine.rng.take() else {
                // Unreachable: the generator is only absent while `ctx.wait` blocks all other input.
                engine.waiting.push_front((input, receipt));
                return;
            };
            if Self::is_heavy(&engine.machine, &input) {
                let (machine, span) = (Arc::clone(&engine.machine), tracing::Span::current());
                let processors = PROCESSORS.with(Arc::clone);
                let decided = async move {
                    // The semaphore is never closed.
                    let _permit = processors.acquire().await.ok();
                    actix_rt::task::spawn_blocking(move || {
                        let _entered = span.entered();
                        let decided = machine.decide(now, &input, &mut rng);
                        // Dropped before the result is sent: `apply` needs the only reference to the machine, or it
                        // would have to clone it.
                        drop(machine);
                        (decided, rng)
                    })
                    .await
                };
                // This actor processes nothing else in the meantime; the other actors of the arbiter continue.
                ctx.wait(decided.into_actor(self).map(|joined, actor, ctx| {
                    // A panic of the decision is a panic of this actor, so that its supervisor sees it.
                    let (decided, rng) =
                        joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                    actor.engine().rng = Some(rng);
                    actor.absorb(decided, receipt, ctx);
                    actor.work(ctx);
                }));
                return;
            }
            let decided = engine.machine.decide(now, &input, &mut rng);
            engine.rng = Some(rng);
            self.absorb(decided, receipt, ctx);
        }
        self.engine().busy = false;
        self.rearm(ctx);
        self.settled(ctx);
    }

    /// Publishes the durable events and performs their effects. Returns `false` if the other actors run first, after
    /// which `work` continues.
    #[doc(hidden)]
    fn release(&mut self, ctx: &mut Context<Self>) -> bool {
        loop {
            let engine = self.engine();
            if engine.effects.is_empty() {
                let Some((event, effects)) = engine.facts.pop_front() else { return true };
                self.observe(&event, &effects, ctx);
                self.engine().effects.extend(effects);
            } else if engine.is_effect_burst() {
                self.pause(ctx);
                return false;
            } else if let Some(effect) = engine.effects.pop_front() {
                self.perform(effect, ctx);
            }
        }
    }

    /// Lets the other actors run before `work` continues. `busy` stays set, so that inputs are queued.
    #[doc(hidden)]
    fn pause(&mut self, ctx: &mut Context<Self>) {
        self.engine().burst = (0, 0);
        ctx.wait(tokio::task::yield_now().into_actor(self).map(|(), actor, ctx| actor.work(ctx)));
    }

    #[doc(hidden)]
    fn absorb(
        &mut self,
        decided: Result<Vec<<Self::Machine as Machine>::Event>, Reject>,
        receipt: Receipt,
        ctx: &mut Context<Self>,
    ) {
        let events = match decided {
            Ok(events) if events.is_empty() => return self.engine().confirm_in_turn(receipt),
            Ok(events) => events,
            Err(reject) => {
                self.engine().confirm_in_turn(receipt);
                return self.refused(reject, ctx);
            }
        };
        let engine = self.engine();
        let journaled = events.iter().filter(|event| <Self::Machine as Machine>::is_journaled(event));
        let records: Vec<Record> = journaled.cloned().map(Record::new).collect();
        engine.records += records.len();
        engine.ticked = None;
        let mut facts = Vec::with_capacity(events.len());
        for event in events {
            let machine = Arc::make_mut(&mut self.engine().machine);
            machine.apply(&event);
            let effects = machine.effects(&event);
            self.applied(&event);
            facts.push((event, effects));
        }
        let engine = self.engine();
        let number = engine.next_batch;
        engine.next_batch += 1;
        engine.unreleased.push_back(Batch { number, facts, receipts: vec![receipt], durable: false });
        if records.is_empty() {
            // The batch only waits for those before it.
            return self.appended(number, Ok(()), ctx);
        }
        let mut appended = engine.journal.append(&engine.stream, records);
        match (&mut appended).now_or_never() {
            Some(result) => self.appended(number, result, ctx),
            None => {
                ctx.spawn(appended.into_actor(self).then(move |result, actor, ctx| {
                    actor.appended(number, result, ctx);
                    if !actor.engine().busy {
                        actor.work(ctx);
                    }
                    fut::ready(())
                }));
            }
        }
    }

    #[doc(hidden)]
    fn appended(&mut self, number: u64, result: Result<(), JournalError>, ctx: &mut Context<Self>) {
        if !self.engine().unreleased.iter().any(|batch| batch.number == number) {
            // The engine was halted.
            return;
        }
        if let Err(error) = result {
            return self.journal_failed(error, ctx);
        }
        for batch in &mut self.engine().unreleased {
            batch.durable |= batch.number == number;
        }
        while self.engine().unreleased.front().is_some_and(|batch| batch.durable) {
            let Some(batch) = self.engine().unreleased.pop_front() else { return };
            batch.receipts.into_iter().for_each(Receipt::confirm);
            // `work` releases them: it runs now, or is about to.
            self.engine().facts.extend(batch.facts);
        }
    }

    #[doc(hidden)]
    fn rearm(&mut self, ctx: &mut Context<Self>) {
        let engine = self.engine();
        let deadline = engine.machine.deadline();
        if engine.halted || engine.timer.map(|(at, _)| at) == deadline {
            return;
        }
        if let Some((_, handle)) = engine.timer.take() {
            ctx.cancel_future(handle);
        }
        if let Some(deadline) = deadline {
            // A tick that had no effect is repeated after a while only: the machine waits for another input.
            let nap = if engine.ticked == Some(deadline) { LONGEST_SLEEP } else { engine.clock.nap(deadline) };
            let handle = ctx.run_later(nap, move |actor, ctx| {
                let engine = actor.engine();
                engine.timer = None;
                let is_early = engine.clock.now() < deadline;
                if is_early && nap < LONGEST_SLEEP {
                    // The clock was corrected. A tick that is too early would only repeat.
                    return actor.rearm(ctx);
                }
                // One that is only capped ticks too: the deadline may be that of a clock that was far ahead, which the machine can see.
                if !is_early {
                    engine.ticked = Some(deadline);
                }
                let due = actor.due();
                actor.feed(due, ctx);
            });
            self.engine().timer = Some((deadline, handle));
        }
    }
}

#[cfg(test)]
mod tests;
