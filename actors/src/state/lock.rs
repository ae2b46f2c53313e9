//! The lock by which one process at a time owns a state directory.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use super::error::StateError;

/// The lock file's name. The file remains when the lock is released: removing it would let two processes lock two
/// files.
const FILE: &str = "lock";

const CLOSED: &str = "closed at commit ";
const HOLDER: &str = "process ";

/// The acquired lock. It is released when dropped, and by the system when the process ends in any way.
pub(super) struct DirectoryLock {
    file: File,
    /// The commit at which the last holder closed the database.
    left_at: Option<u64>,
}

impl DirectoryLock {
    pub(super) fn take(dir: &Path) -> Result<Self, StateError> {
        let path = dir.join(FILE);
        let doing = || format!("lock {}", path.display());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path).map_err(StateError::io(doing()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StateError::Locked { dir: dir.to_owned(), pid: holder(&path) });
            }
            Err(TryLockError::Error(error)) => return Err(StateError::io(doing())(error)),
        }
        let mut text = String::new();
        // Text that is not UTF-8 was not written by us, and is ignored.
        let left_at = match file.read_to_string(&mut text) {
            Ok(_) => number_behind(&text, CLOSED),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
            Err(error) => return Err(StateError::io(doing())(error)),
        };
        let mut lock = Self { file, left_at };
        // The last holder's entry remains until there is a newer one: this process may be killed at any time.
        let closed = left_at.map(|commit| format!("{CLOSED}{commit}\n")).unwrap_or_default();
        lock.write(&format!("{closed}{HOLDER}{}\n", std::process::id())).map_err(StateError::io(doing()))?;
        Ok(lock)
    }

    /// The commit at which the last holder closed the database, if it did: the database cannot be older than that.
    pub(super) fn left_at(&self) -> Option<u64> {
        self.left_at
    }

    /// Records that the database was closed at `commit`.
    pub(super) fn leave_at(&mut self, commit: u64) -> io::Result<()> {
        self.write(&format!("{CLOSED}{commit}\n"))?;
        self.file.sync_all()
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(text.as_bytes())
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child process that is just being started has it open too, for a moment. If
        // unlocking fails, closing it still releases the lock.
        let _ = self.file.unlock();
    }
}

/// The holder's process, if its entry can be read: some systems do not let other processes read a locked file.
fn holder(path: &Path) -> Option<u32> {
    number_behind(&fs::read_to_string(path).ok()?, HOLDER)
}

fn number_behind<N: std::str::FromStr>(text: &str, word: &str) -> Option<N> {
    text.lines().find_map(|line| line.strip_prefix(word)?.parse().ok())
}
