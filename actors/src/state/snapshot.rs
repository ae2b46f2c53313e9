//! A copy of a database that another process has open.
//!
//! What redb has committed it does not write over before the next commit is durable, so that a file in which nothing was
//! written while it was copied is one that a crash could have left: opening it finds the last commit. Whether anything was
//! written is told from the file's time of modification, whose steps are as long as those of the system's clock.

use std::{
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime},
};

use tempfile::TempDir;

use super::{database::FILE, error::StateError};

/// A file that was written to within this time may be written to again without a later time of modification.
const STEP: Duration = Duration::from_millis(20);

/// For how long a moment without writes is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Copies the database of `dir` into a directory of its own, for this user alone. Blocks.
pub(super) fn copy(dir: &Path) -> Result<TempDir, StateError> {
    let path = dir.join(FILE);
    let failed = |error| StateError::io(format!("copy {}", path.display()))(error);
    let copy = tempfile::Builder::new().prefix("btcr2-state-").tempdir().map_err(failed)?;
    let until = Instant::now() + PATIENCE;
    while !quiet_copy(&path, &copy.path().join(FILE)).map_err(failed)? {
        if Instant::now() >= until {
            let busy = "the program that has it open writes all the time; try again when it has less to do";
            return Err(failed(io::Error::new(io::ErrorKind::ResourceBusy, busy)));
        }
    }
    Ok(copy)
}

/// Whether nothing was written while the file was copied.
fn quiet_copy(from: &Path, to: &Path) -> io::Result<bool> {
    let before = fs::metadata(from)?.modified()?;
    // A time in the future is one of another clock; it says as much when it changes.
    let age = SystemTime::now().duration_since(before).unwrap_or(STEP);
    if age < STEP {
        thread::sleep(STEP - age);
        return Ok(false);
    }
    fs::copy(from, to)?;
    Ok(fs::metadata(from)?.modified()? == before)
}
