//! Sends between actors that keep the bound of a mailbox.

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message, WrapFuture, prelude::SendError};

/// Sends `message` to another actor. While its mailbox is full, the sender processes nothing else.
pub(crate) fn send_in_turn<A, B, M>(sender: &A, to: &Addr<B>, message: M, ctx: &mut Context<A>)
where
    A: Actor<Context = Context<A>>,
    B: Actor<Context = Context<B>> + Handler<M>,
    M: Message<Result: Send> + Send + 'static,
{
    // An actor that has ended needs no message.
    if let Err(SendError::Full(message)) = to.try_send(message) {
        let sent = to.send(message);
        ctx.wait(async move { drop(sent.await) }.into_actor(sender));
    }
}
