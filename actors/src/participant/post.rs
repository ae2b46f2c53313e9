//! Messages between a participant and its sessions. A mailbox is not filled beyond its bound: the sender waits.

use std::sync::Arc;

use actix::{
    Actor, Addr, AsyncContext, Context, Handler, MailboxError, Message as ActixMessage, Recipient, WrapFuture,
    dev::ToEnvelope, prelude::SendError,
};
use btcr2_aggregation_protocol::{
    cohort::participant::{Advert, ParticipantCohort},
    message::Message,
    time::Timestamp,
};

use super::{ParticipantActor, Progress, SessionProgress};
use crate::transport::Receipt;

/// A message of the service for this session.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct SessionMessage {
    pub(crate) message: Message,
    pub(crate) receipt: Receipt,
    /// When it was sent, if that was before we were connected.
    pub(crate) stored: Option<Timestamp>,
}

/// A message of our own that was received from the transport.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct Seen(pub(crate) Message);

/// Messages of ours may be lost: send again what the service still needs.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct SendAgain;

/// A snapshot of the session.
#[derive(ActixMessage)]
#[rtype(result = "Arc<ParticipantCohort>")]
pub(crate) struct Inspect;

/// The host leaves the cohort.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub(crate) struct Leave;

/// Where a session sends its progress.
pub(super) struct Owner(Recipient<SessionProgress>);

impl Owner {
    pub(super) fn new(participant: &Context<ParticipantActor>) -> Self {
        Self(participant.address().recipient())
    }

    /// Reports progress of the session `actor`.
    pub(super) fn report<A>(&self, actor: &A, advert: &Arc<Advert>, progress: Progress, ctx: &mut Context<A>)
    where
        A: Actor<Context = Context<A>>,
    {
        send_when_free(actor, &self.0, SessionProgress { advert: Arc::clone(advert), progress }, ctx);
    }
}

/// Sends `message` to a child. While its mailbox is full, `actor` processes nothing else: what it sends afterwards comes
/// afterwards, and what is sent to it waits in its own mailbox.
pub(super) fn wait_to_send<A, C, M>(actor: &A, child: &Addr<C>, message: M, ctx: &mut Context<A>)
where
    A: Actor<Context = Context<A>>,
    C: Actor<Context = Context<C>> + Handler<M>,
    C::Context: ToEnvelope<C, M>,
    M: ActixMessage<Result = ()> + Send + 'static,
{
    if let Err(SendError::Full(message)) = child.try_send(message) {
        let sending = child.send(message);
        ctx.wait(sent(sending).into_actor(actor));
    }
}

/// Sends `message` to a parent or a transport. While the mailbox is full the message waits, and `actor` continues: the
/// parent may be waiting for it. A machine sends a bounded number of messages until it is answered.
pub(super) fn send_when_free<A, M>(actor: &A, to: &Recipient<M>, message: M, ctx: &mut Context<A>)
where
    A: Actor<Context = Context<A>>,
    M: ActixMessage<Result = ()> + Send + 'static,
{
    if let Err(SendError::Full(message)) = to.try_send(message) {
        let sending = to.send(message);
        ctx.spawn(sent(sending).into_actor(actor));
    }
}

/// The same for a sender that has ended.
pub(super) fn send_at_the_end<M>(to: &Recipient<M>, message: M)
where
    M: ActixMessage<Result = ()> + Send + 'static,
{
    if let Err(SendError::Full(message)) = to.try_send(message)
        // None while the system stops: then the recipient ends too.
        && let Some(arbiter) = actix_rt::Arbiter::try_current()
    {
        let sending = to.send(message);
        arbiter.spawn(sent(sending));
    }
}

/// A recipient that has ended needs nothing any more.
async fn sent(sending: impl Future<Output = Result<(), MailboxError>>) {
    let _ = sending.await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use actix::ActorFutureExt;
    use tokio::sync::mpsc;

    use super::*;

    #[derive(ActixMessage)]
    #[rtype(result = "()")]
    struct Number(u32);

    /// Takes a second for each number.
    struct Slow(mpsc::UnboundedSender<u32>);

    impl Actor for Slow {
        type Context = Context<Self>;

        fn started(&mut self, ctx: &mut Self::Context) {
            ctx.set_mailbox_capacity(1);
        }
    }

    impl Handler<Number> for Slow {
        type Result = ();

        fn handle(&mut self, Number(number): Number, ctx: &mut Self::Context) {
            let pause = tokio::time::sleep(Duration::from_secs(1)).into_actor(self);
            ctx.wait(pause.map(move |(), actor, _| actor.0.send(number).unwrap()));
        }
    }

    /// Sends every number on, to a child or to a parent.
    struct Relay(Addr<Slow>, bool);

    impl Actor for Relay {
        type Context = Context<Self>;
    }

    impl Handler<Number> for Relay {
        type Result = ();

        fn handle(&mut self, number: Number, ctx: &mut Self::Context) {
            if self.1 {
                wait_to_send(self, &self.0, number, ctx);
            } else {
                send_when_free(self, &self.0.clone().recipient(), number, ctx);
            }
        }
    }

    async fn relayed(to_child: bool) -> Vec<u32> {
        let (numbers, mut received) = mpsc::unbounded_channel();
        let relay = Relay(Slow(numbers).start(), to_child).start();
        tokio::task::yield_now().await;
        (0..20).for_each(|number| relay.do_send(Number(number)));
        let mut all = Vec::new();
        while all.len() < 20 {
            all.extend(received.recv().await);
        }
        all
    }

    #[test]
    fn messages_wait_for_a_full_mailbox_and_none_is_lost() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        tokio::task::LocalSet::new().block_on(&runtime.unwrap(), async {
            assert_eq!(relayed(true).await, (0..20).collect::<Vec<_>>(), "in order, to a child");
            let mut to_parent = relayed(false).await;
            to_parent.sort_unstable();
            assert_eq!(to_parent, (0..20).collect::<Vec<_>>());
        });
    }
}
