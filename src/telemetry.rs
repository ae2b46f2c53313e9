//! What a program has of its system: logs, signals that stop it, limits.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

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
        .with_writer(std::io::stderr)
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

/// Raises the number of files that this process may have open as far as it may: each stream of a participant is one.
pub fn raise_open_files() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
