//! The sending end of a connection: what a [`Transport`](super::Transport) returns.
//!
//! Usually a connection is one task: [`spawn`] runs an async function that reads what is to be sent from a bounded
//! queue, and delivers what arrives to the [`Inbox`](super::Inbox). A transport that needs no task, or that wraps the
//! connection of another one, implements [`Connection`].

use std::{pin::Pin, time::Duration};

use actix::{Recipient, prelude::SendError};
use async_trait::async_trait;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
};
use tracing::Instrument;

use super::Outbound;
use crate::supervision::{End, EndGuard};

/// How long [`Connection::send`] waits until it tries again, by default.
const FULL_PAUSE: Duration = Duration::from_millis(20);

/// One identity's connection. It ends when it is dropped, or by itself, e.g. because the network fails; its owner then
/// connects again.
#[async_trait]
pub trait Connection: Send + Sync {
    /// Accepts a message to send, without waiting: this runs in the actor of the sender.
    ///
    /// # Errors
    /// [`Unsent::Full`] if there is no space now, [`Unsent::Ended`] if the connection has ended.
    fn try_send(&self, outbound: Outbound) -> Result<(), Unsent>;

    /// Accepts a message when there is space.
    ///
    /// # Errors
    /// [`Unsent::Ended`].
    async fn send(&self, outbound: Outbound) -> Result<(), Unsent> {
        let mut next = outbound;
        while let Err(unsent) = self.try_send(next) {
            match unsent {
                Unsent::Full(outbound) => next = outbound,
                Unsent::Ended(_) => return Err(unsent),
            }
            tokio::time::sleep(FULL_PAUSE).await;
        }
        Ok(())
    }

    /// Ready when the connection has ended by itself. [`End::Finished`] is final: the transport was shut down, and is
    /// not connected again.
    async fn ended(&self) -> End;
}

/// Why a connection has not accepted a message, which is returned.
#[derive(Clone, Debug)]
pub enum Unsent {
    /// There is no space now.
    Full(Outbound),
    /// The connection has ended.
    Ended(Outbound),
}

impl Unsent {
    /// The message.
    pub fn into_outbound(self) -> Outbound {
        match self {
            Self::Full(outbound) | Self::Ended(outbound) => outbound,
        }
    }
}

/// Starts a connection that is one task: `run` receives the messages to send, of which at most `capacity` wait, and
/// returns how the connection ended. A panic ends it too. The task is aborted when the connection is dropped.
///
/// # Panics
/// Outside of a tokio runtime, or when `capacity` is 0.
pub fn spawn<F>(capacity: usize, run: impl FnOnce(mpsc::Receiver<Outbound>) -> F) -> Box<dyn Connection>
where
    F: Future<Output = End> + Send + 'static,
{
    let (outbound, receiver) = mpsc::channel(capacity);
    let mut running: Pin<Box<dyn Future<Output = End> + Send>> = Box::pin(run(receiver));
    let running = std::future::poll_fn(move |cx| {
        #[cfg(test)]
        crate::supervision::sabotage::poll(crate::tree::TASK_CONNECTION.name);
        running.as_mut().poll(cx)
    });
    let task = tokio::spawn(running.in_current_span());
    let abort = task.abort_handle();
    let ended = task.map(|end| match end {
        Ok(end) => end,
        Err(error) if error.is_panic() => End::Panicked,
        Err(_) => End::Stopped,
    });
    Box::new(TaskConnection { outbound, ended: Ended(ended.boxed().shared()), abort })
}

struct TaskConnection {
    outbound: mpsc::Sender<Outbound>,
    ended: Ended,
    abort: AbortHandle,
}

#[async_trait]
impl Connection for TaskConnection {
    fn try_send(&self, outbound: Outbound) -> Result<(), Unsent> {
        self.outbound.try_send(outbound).map_err(|error| match error {
            mpsc::error::TrySendError::Full(outbound) => Unsent::Full(outbound),
            mpsc::error::TrySendError::Closed(outbound) => Unsent::Ended(outbound),
        })
    }

    async fn send(&self, outbound: Outbound) -> Result<(), Unsent> {
        self.outbound.send(outbound).await.map_err(|error| Unsent::Ended(error.0))
    }

    async fn ended(&self) -> End {
        self.ended.clone().await
    }
}

impl Drop for TaskConnection {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

/// Ready when an actor has ended. Clones wait for the same end.
#[derive(Clone)]
pub(crate) struct Ended(Shared<BoxFuture<'static, End>>);

impl Ended {
    /// A guard for an actor, and its end.
    pub(crate) fn guard() -> (EndGuard, Self) {
        Self::guard_with(|_| ())
    }

    /// The same for an actor whose end is reported elsewhere too.
    pub(crate) fn guard_with(report: impl FnOnce(&End) + 'static) -> (EndGuard, Self) {
        let (sender, receiver) = oneshot::channel();
        let guard = EndGuard::new(move |end| {
            report(&end);
            // The owner may not be interested any more.
            let _ = sender.send(end);
        });
        (guard, Self(receiver.map(|end| end.unwrap_or(End::Stopped)).boxed().shared()))
    }
}

impl Future for Ended {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<End> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// A connection that is an actor. Without other addresses, it ends when this is dropped.
pub(crate) struct ActorConnection {
    actor: Recipient<Outbound>,
    ended: Ended,
}

impl ActorConnection {
    /// The connection of `actor`, whose guard notifies `ended`.
    pub(crate) fn boxed(actor: Recipient<Outbound>, ended: Ended) -> Box<dyn Connection> {
        Box::new(Self { actor, ended })
    }
}

#[async_trait]
impl Connection for ActorConnection {
    fn try_send(&self, outbound: Outbound) -> Result<(), Unsent> {
        self.actor.try_send(outbound).map_err(|error| match error {
            SendError::Full(outbound) => Unsent::Full(outbound),
            SendError::Closed(outbound) => Unsent::Ended(outbound),
        })
    }

    async fn send(&self, outbound: Outbound) -> Result<(), Unsent> {
        self.actor.send(outbound.clone()).await.map_err(|_| Unsent::Ended(outbound))
    }

    async fn ended(&self) -> End {
        self.ended.clone().await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use btcr2_aggregation_protocol::id::CohortId;

    use super::*;

    fn outbound() -> Outbound {
        let cohort_id = CohortId::parse("11111111-1111-4111-8111-111111111111").unwrap();
        Outbound::WithdrawAdvert { cohort_id }
    }

    #[tokio::test]
    async fn a_task_that_does_not_read_has_space_for_its_capacity() {
        let connection = spawn(2, |messages| async move {
            let _messages = messages;
            std::future::pending().await
        });
        assert!(connection.try_send(outbound()).is_ok());
        assert!(connection.try_send(outbound()).is_ok());
        assert!(matches!(connection.try_send(outbound()), Err(Unsent::Full(_))));
    }

    #[tokio::test]
    async fn a_task_that_panics_or_returns_ends_its_connection() {
        let panics = spawn(1, |mut messages| async move {
            messages.recv().await;
            panic!("as this test wants")
        });
        panics.send(outbound()).await.unwrap();
        assert_eq!(panics.ended().await, End::Panicked);
        assert!(matches!(panics.try_send(outbound()), Err(Unsent::Ended(_))));
        let returns = spawn(1, |_| async { End::Failed("the network is down".to_owned()) });
        assert_eq!(returns.ended().await, End::Failed("the network is down".to_owned()));
    }

    #[tokio::test]
    async fn a_task_ends_when_its_connection_is_dropped() {
        let (alive, ended) = oneshot::channel::<()>();
        let connection = spawn(1, |_| async move {
            let _alive = alive;
            std::future::pending().await
        });
        drop(connection);
        assert!(ended.await.is_err());
    }
}
