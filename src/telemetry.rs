//! What a program has of its system: logs, signals that stop it, limits.

use std::{convert::Infallible, io::IsTerminal};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use crate::events::Printer;

/// The relays' library logs each connection that ends as an error; for us it is what relays do, and told by our own events.
const DEFAULT: &str = "warn,nostr_relay_pool=off,nostr_relay_builder=off";

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// Logs go to standard error, warnings and worse unless `RUST_LOG` says otherwise.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A log line that cannot be written is dropped: the library would report it with `eprintln!`, which panics.
        .with_writer(|| crate::output::Stderr)
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    // Fails only if a host has set up its own, which then has its way.
    let _ = match format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.with_ansi(false).json().flatten_event(true).try_init(),
    };
}

/// Ready when the program is asked to stop: Ctrl-C, or on Unix SIGTERM. From this call on, not from when it is waited for,
/// neither ends the process by itself.
///
/// # Panics
/// When called outside of a tokio runtime.
#[cfg(unix)]
pub fn stop_signal() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    // Where there can be no handler there is nothing to wait for: the system stops the program by itself.
    let wait_for = |kind| {
        let stream = signal(kind).ok();
        async move {
            match stream {
                Some(mut stream) => stream.recv().await,
                None => std::future::pending().await,
            }
        }
    };
    let (interrupted, terminated) = (wait_for(SignalKind::interrupt()), wait_for(SignalKind::terminate()));
    async move {
        tokio::select! {
            _ = interrupted => {}
            _ = terminated => {}
        }
    }
}

/// Ready when the program is asked to stop: Ctrl-C.
#[cfg(not(unix))]
pub async fn stop_signal() {
    // Without a handler there is nothing to wait for: the system stops the program by itself.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The times that a program gets SIGHUP, which from the making of this on does not end it: the terminal it was started from
/// was closed, or somebody wants it to read its files again.
#[derive(Debug)]
pub struct Hangups {
    #[cfg(unix)]
    signal: Option<tokio::signal::unix::Signal>,
}

impl Hangups {
    /// From now on.
    ///
    /// # Panics
    /// When called outside of a tokio runtime.
    #[must_use]
    pub fn new() -> Self {
        Self {
            #[cfg(unix)]
            signal: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).ok(),
        }
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        #[cfg(unix)]
        if let Some(signal) = &mut self.signal
            && signal.recv().await.is_some()
        {
            return;
        }
        std::future::pending().await
    }
}

impl Default for Hangups {
    fn default() -> Self {
        Self::new()
    }
}

/// Says of each SIGHUP that there is nothing to reload, for as long as the program runs.
pub async fn ignore_hangups(mut hangups: Hangups, printer: Printer) -> Infallible {
    loop {
        hangups.next().await;
        printer.nothing_reloaded("this program reads its files once");
    }
}

/// Raises the number of files that this process may have open as far as it may: each stream of a participant is one.
pub fn raise_open_files() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
