//! The task in which an actor runs.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    task::{Context as TaskContext, Poll},
};

use actix::{Actor, Addr, AsyncContext, Context, dev::ContextFut};
use tracing::{Instrument, Span};

use super::{Lease, Leased};
use crate::tree::Row;

/// An actor that has a row in the tree.
pub(crate) trait InTree: Actor<Context = Context<Self>> {
    /// Its row.
    const ROW: &'static Row;

    /// Restarts the actor in place after a panic; returns whether it did. Actors that can be restarted call
    /// [`ContextFut::restart`], which calls `restarting` and then `started`.
    fn restart(_running: &mut ContextFut<Self, Context<Self>>) -> bool {
        false
    }
}

/// Starts the actor that `build` returns, in `span`, with the mailbox of its row.
pub(crate) fn start<A: InTree>(span: Span, build: impl FnOnce(&mut Context<A>) -> A) -> Addr<A> {
    launch(span, None, build)
}

/// The same for an actor that runs only until its owner drops the returned [`Lease`].
pub(crate) fn start_leased<A: InTree>(
    span: Span,
    build: impl FnOnce(&mut Context<A>, Leased) -> A,
) -> (Addr<A>, Lease) {
    let lease = Lease::new();
    let leased = lease.leased();
    let address = launch(span, Some(leased.clone()), |ctx| build(ctx, leased));
    (address, lease)
}

fn launch<A: InTree>(span: Span, leased: Option<Leased>, build: impl FnOnce(&mut Context<A>) -> A) -> Addr<A> {
    let mut context = Context::new();
    // Before the actor starts, so that messages sent until then are bounded too.
    context.set_mailbox_capacity(A::ROW.mailbox);
    let actor = build(&mut context);
    let address = context.address();
    let over = leased.map(|leased| Box::pin(leased.over()) as Pin<Box<dyn Future<Output = ()>>>);
    actix_rt::spawn(Running { over, actor: context.into_future(actor) }.instrument(span));
    address
}

/// How often an actor may panic and be restarted within one poll.
const AT_ONCE: u32 = 32;

/// The task of an actor.
struct Running<A: InTree> {
    /// Ready when the actor must not run any more.
    over: Option<Pin<Box<dyn Future<Output = ()>>>>,
    actor: ContextFut<A, Context<A>>,
}

impl<A: InTree> Future for Running<A> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        let this = self.get_mut();
        // Checked first: an actor whose lease is over runs nothing, not even what has just become ready.
        if let Some(over) = &mut this.over
            && over.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(());
        }
        let mut panics = 0;
        loop {
            let actor = &mut this.actor;
            // The actor's state is replaced, or dropped, before any code uses it again.
            let poll = || {
                #[cfg(test)]
                super::sabotage::poll(A::ROW.name);
                Pin::new(&mut *actor).poll(cx)
            };
            match catch_unwind(AssertUnwindSafe(poll)) {
                Ok(polled) => return polled,
                Err(_) if panics < AT_ONCE && A::restart(actor) => panics += 1,
                // The panic drops the actor, which its guard observes.
                Err(panic) => resume_unwind(panic),
            }
        }
    }
}
