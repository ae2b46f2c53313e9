//! Logs, and the signals that stop a program.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// The relays' library logs each connection that ends as an error; for us it is what relays do, and told by our own events.
const DEFAULT: &str = "warn,nostr_relay_pool=off,nostr_relay_builder=off";

/// Logs go to standard error, warnings and worse unless `RUST_LOG` says otherwise.
pub fn init() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // Fails only if a host has set up its own, which then has its way.
    let _ = subscriber.try_init();
}

/// Ready when the program is asked to stop: Ctrl-C, or on Unix SIGTERM.
pub async fn stop_signal() {
    let interrupted = async {
        // Without a handler there is nothing to wait for: the system stops the program by itself.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let terminated = async {
            match signal(SignalKind::terminate()) {
                Ok(mut terminated) => terminated.recv().await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = interrupted => {}
            _ = terminated => {}
        }
    }
    #[cfg(not(unix))]
    interrupted.await;
}
