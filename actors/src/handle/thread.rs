//! A thread for actors, for hosts on another runtime than actix's.

use std::{io, thread::JoinHandle};

use actix_rt::System;
use tokio::sync::oneshot;

use super::{StartError, Stopped};

/// A thread with an actix `System`, on which actors run.
#[derive(Debug)]
pub struct ActorThread {
    system: System,
    /// `None` if the thread is the host's.
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl ActorThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// Those of the operating system.
    pub async fn start() -> io::Result<Self> {
        let (started, system) = oneshot::channel();
        let thread = std::thread::Builder::new().name("aggregation".to_owned()).spawn(move || {
            let runner = System::new();
            // Fails only when the caller is gone; the thread then ends with its runner.
            let _ = started.send(System::current());
            runner.run()
        })?;
        let system = system.await.map_err(|_| io::Error::other("the actors' thread has ended"))?;
        Ok(Self { system, thread: Some(thread) })
    }

    /// The calling thread, whose actix `System` the host has started.
    ///
    /// # Errors
    /// [`StartError::NoSystem`] if it has none.
    pub fn current() -> Result<Self, StartError> {
        let system = System::try_current().ok_or(StartError::NoSystem)?;
        Ok(Self { system, thread: None })
    }

    /// Runs `work` on the thread, e.g. to start a service, and returns its result.
    ///
    /// # Errors
    /// [`Stopped`] when the thread has ended.
    pub async fn run<F>(&self, work: impl FnOnce() -> F + Send + 'static) -> Result<F::Output, Stopped>
    where
        F: Future<Output: Send + 'static> + 'static,
    {
        let (done, result) = oneshot::channel();
        self.system.arbiter().spawn_fn(move || {
            actix_rt::spawn(async move {
                // The caller may have stopped waiting.
                let _ = done.send(work().await);
            });
        });
        result.await.map_err(|_| Stopped)
    }

    /// Stops the thread: actors on it end at once. Blocks until it has ended. Does nothing to a thread of the host.
    ///
    /// # Errors
    /// When the thread ended in another way.
    pub fn stop(self) -> io::Result<()> {
        let Some(thread) = self.thread else { return Ok(()) };
        self.system.stop();
        thread.join().map_err(|_| io::Error::other("the actors' thread panicked"))?
    }
}
