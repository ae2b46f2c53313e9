//! The answers to requests for a transaction.

use std::sync::Arc;

use actix::Context;
use btcr2_aggregation_protocol::{
    announcement::{Input, Prepared, State, Wanted},
    hash::SignalBytes,
    output::BeaconOutput,
};
use tokio::{sync::oneshot, time::Instant};

use super::{PrepareError, actor::AnnouncementActor};

/// A pending request for a transaction.
pub(super) struct Waiting {
    pub(super) output: BeaconOutput,
    pub(super) signal: SignalBytes,
    pub(super) answer: oneshot::Sender<Result<Prepared, PrepareError>>,
    /// When it is answered in any case.
    pub(super) until: Instant,
    /// Whether the machine was asked since the last look at the chain.
    pub(super) was_asked: bool,
}

impl Waiting {
    /// Answers if the transaction exists, or if the request has waited long enough. Returns it otherwise.
    fn answer_or_wait(self, answer: Result<Prepared, PrepareError>) -> Option<Self> {
        let is_early = Instant::now() < self.until;
        if is_early && matches!(answer, Err(PrepareError::NotFunded(_) | PrepareError::Unreachable(_))) {
            return Some(self);
        }
        // The requester may be gone; it repeats its request.
        let _ = self.answer.send(answer);
        None
    }
}

impl AnnouncementActor {
    /// Asks the machine for a transaction. The answer is sent when its events are durable.
    pub(super) fn prepare(&mut self, mut waiting: Waiting, ctx: &mut Context<Self>) {
        waiting.was_asked = true;
        if waiting.answer.is_closed() {
            return;
        }
        if let State::Failed { failure } = self.engine.machine().state() {
            let never = PrepareError::Never(failure.to_string());
            let _ = waiting.answer.send(Err(never));
            return;
        }
        if let Some(problem) = self.unreachable.as_ref().filter(|_| !self.is_over()) {
            let unreachable = PrepareError::Unreachable(problem.clone());
            self.work.waiting.extend(waiting.answer_or_wait(Err(unreachable)));
            return;
        }
        self.output.get_or_insert_with(|| waiting.output.clone());
        let claims = Arc::clone(&self.settings.claims);
        // Until the choice is recorded, which happens as soon as the machine has applied it.
        let turn = claims.choose();
        let input = Input::Prepare(self.wanted(&waiting));
        let fed = self.feed_own(input, ctx);
        drop(turn);
        match fed {
            // Its events were not persisted.
            Ok(()) if self.engine.is_halted() => {}
            Ok(()) => self.work.preparing = Some(waiting),
            Err(reject) => drop(waiting.answer.send(Err(PrepareError::Never(reject.detail)))),
        }
    }

    /// Answers a request that was fed to the machine.
    pub(super) fn answer(&mut self, waiting: Waiting) {
        let machine = self.engine.machine();
        let answer = match machine.prepared(&waiting.signal) {
            Some(prepared) => Ok(prepared.clone()),
            None => match machine.choose(self.settings.clock.now(), &self.wanted(&waiting)) {
                Err(missing) => Err(missing.into()),
                // Only now, as time has passed: the next look decides.
                Ok(_) => return self.work.waiting.push(waiting),
            },
        };
        self.work.waiting.extend(waiting.answer_or_wait(answer));
    }

    fn wanted(&self, waiting: &Waiting) -> Wanted {
        Wanted {
            output: waiting.output.clone(),
            signal: waiting.signal,
            estimate: self.fees.estimate,
            minimum: self.fees.minimum,
            taken: self.settings.claims.others(&self.cohort_id, self.engine.machine().script()).coins,
        }
    }
}
