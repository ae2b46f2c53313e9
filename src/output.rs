//! Standard output and standard error, which can fail: the disk behind them is full, or the reader of the pipe has left.
//!
//! `println!` and `eprintln!` panic then, in the middle of whatever the program does. [`out!`] and [`err!`] do not. Like the
//! C library's `ferror`, standard output remembers that a line was lost, and a command whose output was lost ends with
//! [`status`]: exit status 1, and the reason on standard error. `serve` and `join` do not ask for it: what they run is
//! worth more than a line about it.

use std::{
    io::{self, Write},
    process::ExitCode,
    sync::OnceLock,
};

/// Why the first line that was lost was lost.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// Writes a line to standard output, like `println!`. See [`lost`] for what becomes of an error.
macro_rules! out {
    ($($arg:tt)*) => { $crate::output::line(&format!($($arg)*)) };
}

/// Writes a line to standard error, like `eprintln!`. There is no place to report that this failed.
macro_rules! err {
    ($($arg:tt)*) => { $crate::output::error_line(&format!($($arg)*)) };
}

/// One write a line, flushed: whoever reads a pipe sees it now.
pub(crate) fn line(text: &str) {
    bytes(format!("{text}\n").as_bytes());
}

/// Writes bytes to standard output as they are.
pub(crate) fn bytes(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    record(out.write_all(bytes).and_then(|()| out.flush()));
}

/// Takes note of an output that failed: `clap` writes its help by itself, say.
pub(crate) fn record(outcome: io::Result<()>) {
    if let Err(error) = outcome {
        // A later one has the same reason as the first, as a rule.
        let _ = LOST.set(error);
    }
}

/// Whether something that was to go to standard output was lost.
pub(crate) fn lost() -> bool {
    LOST.get().is_some()
}

/// How a command ends that would end with `status` if its output arrived.
pub(crate) fn status(status: ExitCode) -> ExitCode {
    match LOST.get() {
        None => status,
        Some(error) => {
            // A reader that left, `head` say, knows what it has read.
            if error.kind() != io::ErrorKind::BrokenPipe {
                err!("error: standard output: {error}");
            }
            // A status that says more, that of an alarm say, stays.
            if status == ExitCode::SUCCESS { ExitCode::FAILURE } else { status }
        }
    }
}

pub(crate) fn error_line(text: &str) {
    Stderr.write_all(format!("{text}\n").as_bytes()).unwrap_or_default();
}

/// Standard error for those who would panic, or print a second error, about one: it takes everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().lock().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
