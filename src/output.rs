//! Standard output and standard error, which can fail: the disk is full, or the reader of the pipe has exited.
//!
//! `println!` and `eprintln!` then panic in the middle of the program's work. [`out!`] and [`err!`] do not. Like the C
//! library's `ferror`, standard output remembers that a line was lost, and a command whose output was lost ends with
//! [`status`]: exit status 1, and the reason on standard error. `serve` and `join` do not use it: their cohorts are
//! worth more than a lost line.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use serde_json::Value;

use crate::protocol::text::{is_unsafe, json_escaped, shown_within};

/// Why the first lost line was lost.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// The line that is shown in place at the bottom of the terminal.
static PROGRESS: Mutex<Progress> = Mutex::new(Progress { is_shown: false });

/// Moves to the start of the line, and clears it.
const CLEAR: &str = "\r\u{1b}[2K";

/// A line of progress that the next one overwrites, and that any other output clears first.
#[derive(Debug, Default)]
struct Progress {
    is_shown: bool,
}

impl Progress {
    /// The bytes that show `text` in place, in a terminal of `columns` columns. A line that wraps could not be cleared.
    fn show(&mut self, text: &str, columns: usize) -> String {
        self.is_shown = true;
        let text: String = text.chars().map(|c| if is_unsafe(c) { ' ' } else { c }).collect();
        // A whole DID would leave no room for the rest of the text.
        let text = text.split(' ').map(shortened).collect::<Vec<_>>().join(" ");
        // A terminal of unknown size, e.g. a serial line, reports 0.
        let columns = if columns < 2 { 80 } else { columns };
        let cut = console::truncate_str(&text, columns - 1, "\u{2026}");
        format!("{CLEAR}{cut}")
    }

    /// The bytes to write before any other output.
    fn clear(&mut self) -> &'static str {
        if std::mem::take(&mut self.is_shown) { CLEAR } else { "" }
    }

    /// The bytes to write when the program ends, so that the shell's prompt starts on a new line.
    fn finish(&mut self) -> &'static str {
        if std::mem::take(&mut self.is_shown) { "\n" } else { "" }
    }
}

/// Shortens an identifier to its start and its end.
fn shortened(word: &str) -> Cow<'_, str> {
    const LONGEST: usize = 30;
    const BEGINNING: usize = 20;
    const END: usize = 6;
    let count = word.chars().count();
    if count <= LONGEST {
        return Cow::Borrowed(word);
    }
    let beginning = word.chars().take(BEGINNING);
    Cow::Owned(beginning.chain(['\u{2026}']).chain(word.chars().skip(count - END)).collect())
}

fn progress() -> MutexGuard<'static, Progress> {
    PROGRESS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes a line to standard output, like `println!`. See [`lost`] for how errors are handled.
macro_rules! out {
    ($($arg:tt)*) => { $crate::output::line(&format!($($arg)*)) };
}

/// Writes a line to standard error, like `eprintln!`. A failure cannot be reported anywhere.
macro_rules! err {
    ($($arg:tt)*) => { $crate::output::error_line(&format!($($arg)*)) };
}

/// One write per line, flushed: the reader of a pipe sees it at once.
///
/// The text cannot control the terminal: control characters are written as JSON escapes them, so that JSON keeps its
/// meaning.
pub(crate) fn line(text: &str) {
    bytes(format!("{}\n", json_escaped(text)).as_bytes());
}

/// Writes bytes to standard output as they are.
pub(crate) fn bytes(bytes: &[u8]) {
    // Locked until the write is done: no output comes between the bytes that clear the line and those that follow.
    let mut progress = progress();
    write_out(&[progress.clear().as_bytes(), bytes].concat());
}

/// Shows a line in place. Standard output must be a terminal.
pub(crate) fn in_place(text: &str) {
    let (_, columns) = console::Term::stdout().size();
    let mut progress = progress();
    write_out(progress.show(text, columns.into()).as_bytes());
}

/// Whether lines can be shown in place.
pub(crate) fn can_show_in_place() -> bool {
    io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Ends the last line of progress and leaves it visible.
pub(crate) fn finish() {
    let end = progress().finish();
    if !end.is_empty() {
        write_out(end.as_bytes());
    }
}

fn write_out(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    record(out.write_all(bytes).and_then(|()| out.flush()));
}

/// Records an output that failed, e.g. of `clap`, which writes its help by itself.
pub(crate) fn record(outcome: io::Result<()>) {
    if let Err(error) = outcome {
        // A later failure usually has the same reason as the first.
        let _ = LOST.set(error);
    }
}

/// Whether any output to standard output was lost.
pub(crate) fn lost() -> bool {
    LOST.get().is_some()
}

/// The exit status of a command that would exit with `status` if its output arrived.
pub(crate) fn status(status: ExitCode) -> ExitCode {
    match LOST.get() {
        None => status,
        Some(error) => {
            // A reader that exited, e.g. `head`, has read what it needs.
            if error.kind() != io::ErrorKind::BrokenPipe {
                err!("error: standard output: {error}");
            }
            // A more specific status, e.g. that of an alarm, stays.
            if status == ExitCode::SUCCESS { ExitCode::FAILURE } else { status }
        }
    }
}

pub(crate) fn error_line(text: &str) {
    Stderr.write_all(format!("{}\n", json_escaped(text)).as_bytes()).unwrap_or_default();
}

/// Standard error for libraries that would panic, or print a second error, on a failed write: every write succeeds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut progress = progress();
        let mut error = io::stderr().lock();
        if error.is_terminal() {
            let clear = progress.clear();
            if !clear.is_empty() {
                write_out(clear.as_bytes());
            }
        }
        let _ = error.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Cuts every string in `value`, but not the names of fields.
pub(crate) fn bound(value: &mut Value, most: usize) {
    match value {
        Value::String(text) if text.len() > most => *text = shown_within(text, most).into_owned(),
        Value::Array(values) => values.iter_mut().for_each(|value| bound(value, most)),
        Value::Object(fields) => fields.values_mut().for_each(|value| bound(value, most)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_overwritten_in_place_and_cut() {
        let mut progress = Progress::default();
        let mut screen = String::new();
        screen += progress.clear();
        screen += "cohort\n";
        screen += &progress.show("  one (1 of 5)", 80);
        screen += &progress.show("  a line that is too long", 10);
        screen += progress.clear();
        screen += "done\n";
        screen += progress.clear();
        screen += "and more\n";
        let clear = "\r\u{1b}[2K";
        let expected = format!("cohort\n{clear}  one (1 of 5){clear}  a line\u{2026}{clear}done\nand more\n");
        assert_eq!(screen, expected);
    }

    #[test]
    fn progress_is_one_line_whatever_it_says() {
        let mut progress = Progress::default();
        assert_eq!(progress.show("a\nb\u{1b}[31m", 80), "\r\u{1b}[2Ka b [31m");
        assert_eq!(progress.show("abc", 0), "\r\u{1b}[2Kabc", "a terminal without a size");
    }

    #[test]
    fn long_identifiers_leave_room_for_the_counts() {
        let did = format!("did:btcr2:k1{}", "qpzry9x8".repeat(8));
        let shown =
            Progress::default().show(&format!("  {did} sent its nonce (3 of 5); missing: {did}, {did}"), 80);
        assert!(
            shown.contains("  did:btcr2:k1qpzry9x8\u{2026}zry9x8 sent its nonce (3 of 5); missing: did:"),
            "{shown}"
        );
    }

    #[test]
    fn the_prompt_after_progress_has_its_own_line() {
        let mut progress = Progress::default();
        assert_eq!(progress.finish(), "");
        progress.show("text", 80);
        assert_eq!((progress.finish(), progress.clear()), ("\n", ""));
    }
}
