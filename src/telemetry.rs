//! Logs, stop signals and system limits.

use std::{
    convert::Infallible,
    io::{self, IsTerminal, Write},
};

use clap::ValueEnum;
use serde_json::Value;
use tracing_subscriber::EnvFilter;

use crate::{
    events::Printer,
    output::bound,
    protocol::text::{json_escaped, shown_within},
};

/// The relay library logs each closed connection as an error. For a program this is normal, and its own events report
/// it.
const DEFAULT: &str = "warn,nostr_relay_pool=off,nostr_relay_builder=off";

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// Starts logging to standard error, at level warning unless `RUST_LOG` sets another.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let is_colored = format == LogFormat::Text && std::io::stderr().is_terminal();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A log line that cannot be written is dropped: the library would report the failure with `eprintln!`, which
        // panics.
        .with_writer(move || LogWriter { format, is_colored })
        .log_internal_errors(false)
        .with_ansi(is_colored);
    // Fails only if the host has installed its own subscriber, which then stays in use.
    let _ = match format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
}

/// The longest log line in characters, and the longest string in a line of JSON.
const MOST_LOGGED: usize = 8_000;
const MOST_LOGGED_TEXT: usize = 2_000;

/// Writes log lines, each in one call, as the subscriber formats them: as one line that cannot control the terminal,
/// whatever text of peers it contains.
struct LogWriter {
    format: LogFormat,
    is_colored: bool,
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let line = match self.format {
            LogFormat::Text if self.is_colored => colored(text),
            LogFormat::Text => shown_within(text, MOST_LOGGED).into_owned(),
            LogFormat::Json if text.len() <= MOST_LOGGED => json_escaped(text).into_owned(),
            LogFormat::Json => match serde_json::from_str::<Value>(text) {
                Ok(mut value) => {
                    bound(&mut value, MOST_LOGGED_TEXT);
                    json_escaped(&value.to_string()).into_owned()
                }
                Err(_) => shown_within(text, MOST_LOGGED).into_owned(),
            },
        };
        crate::output::Stderr.write_all(format!("{line}\n").as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The line with the colors of the subscriber. An escape sequence of digits that ends with `m` can only set colors. The
/// subscriber escapes the start of such sequences in logged values.
fn colored(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut line = shown_within(parts.next().unwrap_or_default(), MOST_LOGGED).into_owned();
    for part in parts {
        let color =
            part.split_once('m').filter(|(code, _)| code.bytes().all(|byte| byte.is_ascii_digit() || byte == b';'));
        match color {
            Some((code, rest)) => {
                line.push_str(&format!("\u{1b}[{code}m"));
                line.push_str(&shown_within(rest, MOST_LOGGED));
            }
            None => {
                line.push_str("\\u{1b}[");
                line.push_str(&shown_within(part, MOST_LOGGED));
            }
        }
    }
    line
}

/// Ready when the program is asked to stop: Ctrl-C, or on Unix SIGTERM. From this call on, not from the first poll,
/// neither ends the process by itself.
///
/// # Panics
/// When called outside of a tokio runtime.
#[cfg(unix)]
pub fn stop_signal() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    // If no handler can be installed, the system stops the program by itself.
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
    // Without a handler, the system stops the program by itself.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The SIGHUP signals of a program. While it exists, SIGHUP does not end the program. The signal means that the
/// terminal was closed, or that the operator wants files to be read again.
#[derive(Debug)]
pub struct Hangups {
    #[cfg(unix)]
    signal: Option<tokio::signal::unix::Signal>,
}

impl Hangups {
    /// Starts to receive the signals.
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

    /// Waits for the next signal.
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

/// What an operator asks of a running service of a standing cohort by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// SIGUSR1: open a number now.
    Open,
    /// SIGUSR2: join the coins now.
    Refresh,
}

/// The signals SIGUSR1 and SIGUSR2 of a program. While it exists, they do not end the program. Other systems than Unix have none.
#[derive(Debug)]
pub struct Requests {
    #[cfg(unix)]
    signals: Option<(tokio::signal::unix::Signal, tokio::signal::unix::Signal)>,
}

impl Requests {
    /// Starts to receive the signals.
    ///
    /// # Panics
    /// When called outside of a tokio runtime.
    #[must_use]
    pub fn new() -> Self {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let (first, second) = (SignalKind::user_defined1(), SignalKind::user_defined2());
            Self { signals: signal(first).ok().zip(signal(second).ok()) }
        }
        #[cfg(not(unix))]
        Self {}
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> Request {
        #[cfg(unix)]
        if let Some((open, refresh)) = &mut self.signals {
            tokio::select! {
                Some(()) = open.recv() => return Request::Open,
                Some(()) = refresh.recv() => return Request::Refresh,
                else => {}
            }
        }
        std::future::pending().await
    }
}

impl Default for Requests {
    fn default() -> Self {
        Self::new()
    }
}

/// Reports for each SIGHUP that there is nothing to reload, for as long as the program runs.
pub async fn ignore_hangups(mut hangups: Hangups, printer: Printer) -> Infallible {
    loop {
        hangups.next().await;
        printer.nothing_reloaded("this program reads its files once");
    }
}

/// Raises the limit of open files of this process to the maximum: each stream of a participant is one.
pub fn raise_open_files() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// The limit of open files of the process, sockets included.
pub fn open_files() -> u64 {
    // If the limit is unknown, assume what every system allows.
    rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(1024, |(soft, _)| soft)
}
