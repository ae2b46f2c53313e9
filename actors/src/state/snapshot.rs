//! A copy of a database that another process has open.
//!
//! redb does not overwrite committed data before the next commit is durable. A file that was not written to during the
//! copy is therefore a state that a crash could have left: opening it finds the last commit. A write is detected by the
//! file's modification time, whose resolution is that of the system's clock.

use std::{
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime},
};

use tempfile::TempDir;

use super::{database::FILE, error::StateError};

/// A file that was written to within this time may be written to again without a later modification time.
const STEP: Duration = Duration::from_millis(20);

/// How long a moment without writes is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Copies the database of `dir` into a temporary directory, accessible to this user only. Blocks.
pub(super) fn copy(dir: &Path) -> Result<TempDir, StateError> {
    let path = dir.join(FILE);
    let failed = |error| StateError::io(format!("copy {}", path.display()))(error);
    let copy = tempfile::Builder::new().prefix("btcr2-state-").tempdir().map_err(failed)?;
    let until = Instant::now() + PATIENCE;
    while !quiet_copy(&path, &copy.path().join(FILE)).map_err(failed)? {
        if Instant::now() >= until {
            let busy = "the program that has it open writes without a pause; try again when it has less to do";
            return Err(failed(io::Error::new(io::ErrorKind::ResourceBusy, busy)));
        }
    }
    Ok(copy)
}

/// Copies the file; returns whether nothing was written to it in the meantime.
fn quiet_copy(from: &Path, to: &Path) -> io::Result<bool> {
    let before = fs::metadata(from)?.modified()?;
    // A time in the future comes from another clock; it changes with each write as well.
    let age = SystemTime::now().duration_since(before).unwrap_or(STEP);
    if age < STEP {
        thread::sleep(STEP - age);
        return Ok(false);
    }
    fs::copy(from, to)?;
    Ok(fs::metadata(from)?.modified()? == before)
}
