//! Requests from the threads of the web server to the thread of the agent.

use std::{rc::Rc, time::Duration};

use futures::{FutureExt, StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::super::control::{Request, server::Backend};

/// How many requests wait, and how many are answered at once.
const MOST_WAITING: usize = 64;
const MOST_AT_ONCE: usize = 8;

/// How long an answer may take: a check reads the chain.
const PATIENCE: Duration = Duration::from_secs(120);

struct Call {
    request: Request,
    answer: oneshot::Sender<Result<Value, String>>,
}

/// Where requests are made. Clones share it.
#[derive(Clone)]
pub(super) struct Calls(mpsc::Sender<Call>);

/// The requests that wait.
pub(super) struct Waiting(mpsc::Receiver<Call>);

pub(super) fn channel() -> (Calls, Waiting) {
    let (calls, waiting) = mpsc::channel(MOST_WAITING);
    (Calls(calls), Waiting(waiting))
}

impl Calls {
    /// The agent's answer.
    ///
    /// # Errors
    /// Why it refuses, or has not answered, in words.
    pub(super) async fn ask(&self, request: Request) -> Result<Value, String> {
        let (answer, answered) = oneshot::channel();
        self.0.try_send(Call { request, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => "too many requests wait: try again in a moment".to_owned(),
            mpsc::error::TrySendError::Closed(_) => "the agent is stopping".to_owned(),
        })?;
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err("the agent is stopping".to_owned()),
            Err(_) => Err("the agent has not answered in time".to_owned()),
        }
    }
}

impl Waiting {
    /// Answers for as long as it is polled.
    pub(super) async fn answer(mut self, backend: Rc<dyn Backend>) {
        let mut running: FuturesUnordered<LocalBoxFuture<'static, ()>> = FuturesUnordered::new();
        loop {
            tokio::select! {
                call = self.0.recv(), if running.len() < MOST_AT_ONCE => {
                    // The web server is gone.
                    let Some(Call { request, answer }) = call else { return };
                    let backend = Rc::clone(&backend);
                    // The browser may be gone when it is answered.
                    running.push(async move { drop(answer.send(backend.answer(request).await)) }.boxed_local());
                }
                Some(()) = running.next() => {}
            }
        }
    }
}
