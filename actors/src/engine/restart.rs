//! The restart of an actor around a machine after a panic, in place; shared by all such actors.

use std::time::Duration;

use actix::{ActorContext, ActorFutureExt, AsyncContext, Context, Supervised, WrapFuture};
use btcr2_aggregation_protocol::machine::Machine;
use serde::de::DeserializeOwned;

use super::Driven;
use crate::{
    journal::JournalError,
    supervision::{Attempt, EndGuard, RestartIntensity, Restarts, replay},
};

type EventOf<A> = <<A as Driven>::Machine as Machine>::Event;

/// An actor whose machine is restored from its journal after a panic.
pub(crate) trait Replayed: Driven + Supervised {
    /// The restarts so far, and their limit.
    fn restarts(&mut self) -> (&mut Restarts, RestartIntensity);

    fn guard(&mut self) -> &mut EndGuard;

    /// A restart begins, the `count`th of the current period. Drops the children and notifies the host.
    fn restarting_now(&mut self, count: usize);

    /// Replaces the machine by one that has replayed `events`, and continues. With `last` the actor only ends in an
    /// orderly way, for this reason.
    ///
    /// # Errors
    /// The reason why the actor cannot continue.
    fn restore(
        &mut self,
        events: Vec<EventOf<Self>>,
        last: Option<String>,
        ctx: &mut Context<Self>,
    ) -> Result<(), String>;

    /// Restarts the actor. Messages wait until its journal is replayed.
    fn restart_from_journal(&mut self, ctx: &mut Context<Self>)
    where
        EventOf<Self>: Clone + DeserializeOwned + 'static,
    {
        // It ended with the panic, and its handle may be that of a newer future.
        self.engine().timer = None;
        let now = self.engine().clock.now();
        let (restarts, intensity) = self.restarts();
        let (pause, last) = match restarts.next(now, intensity) {
            Attempt::Again(pause) => (pause, None),
            Attempt::Last(reason) => (Duration::ZERO, Some(reason)),
            Attempt::GivenUp => {
                return self.give_up("its actor panicked again in its last attempt".to_owned(), ctx);
            }
        };
        let count = restarts.count();
        self.restarting_now(count);
        let stream = &self.engine().stream;
        tracing::error!(%stream, restarts = count, "an actor panicked and replays its journal");
        self.replay_journal(pause, last, ctx);
    }

    /// Restores the machine from its journal after `pause`, see [`Self::restore`] for `last`. Messages wait until then.
    fn replay_journal(&mut self, pause: Duration, last: Option<String>, ctx: &mut Context<Self>)
    where
        EventOf<Self>: Clone + DeserializeOwned + 'static,
    {
        let engine = self.engine();
        let (journal, stream) = (engine.journal.clone(), engine.stream.clone());
        let reading = async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            replay::events(&*journal, &stream).await
        };
        ctx.wait(reading.into_actor(self).map(move |read: Result<_, JournalError>, actor, ctx| match read {
            Ok(events) => {
                if let Err(reason) = actor.restore(events, last, ctx) {
                    actor.give_up(reason, ctx);
                }
            }
            Err(error) => actor.unreadable(error, ctx),
        }));
    }

    /// The journal cannot be read. By default the actor is given up.
    fn unreadable(&mut self, error: JournalError, ctx: &mut Context<Self>) {
        self.give_up(error.to_string(), ctx);
    }

    #[doc(hidden)]
    fn give_up(&mut self, reason: String, ctx: &mut Context<Self>) {
        self.guard().fail(reason);
        ctx.stop();
    }
}
