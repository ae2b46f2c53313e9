//! The errors of a state directory, and what to do about them.

use std::{io, path::PathBuf, sync::Arc};

/// Why a state directory cannot be used, or an operation on it failed. Each text names the next step.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Another process has locked the directory.
    #[error(
        "the state directory {} is in use{}: stop that program, or choose another directory",
        dir.display(), holder(*pid)
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The process, if known.
        pid: Option<u32>,
    },
    /// There is no state directory.
    #[error("{} is not a state directory: it has no state.redb", dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// The file is something else, or belongs to another program.
    #[error("{} is not the database of a state directory ({problem}): choose another directory", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// What it is instead, or lacks.
        problem: String,
    },
    /// A later version of the program wrote it.
    #[error(
        "{} has format {found}, and this program knows formats up to {known}: use the program that wrote it, or a newer one",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The format that it has.
        found: u32,
        /// The latest supported format.
        known: u32,
    },
    /// The file as a whole is damaged.
    #[error(
        "{} is damaged ({problem}): keep a copy of the directory, check the disk, and go on with an empty directory or a \
         backup that is as new as the damage",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// An entry of a table is damaged; the others can be used.
    #[error("table {table}: {problem}: keep a copy of the directory and check the disk")]
    Damaged {
        /// The table.
        table: String,
        /// What was found.
        problem: String,
    },
    /// The system does not allow it, or the disk is full.
    #[error("cannot {doing}: {error}")]
    Io {
        /// The attempted operation, with the file's name.
        doing: String,
        /// The system's error.
        error: Arc<io::Error>,
    },
    /// A write failed, and so does every later one: the contents of the disk are unknown until the directory is opened
    /// again.
    #[error(
        "the state directory {} takes nothing more ({problem}): make room or repair the disk, then start the program again",
        dir.display()
    )]
    Failed {
        /// The directory.
        dir: PathBuf,
        /// The first failure.
        problem: String,
    },
    /// The directory was closed by this program.
    #[error("the state directory {} is closed", dir.display())]
    Closed {
        /// The directory.
        dir: PathBuf,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" by process {pid}")).unwrap_or_default()
}

impl StateError {
    /// For `map_err` on a system call.
    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |error| Self::Io { doing, error: Arc::new(error) }
    }
}
