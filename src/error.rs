//! Why a program could not do what it was asked for.

use std::io;

use crate::inputs::InputError;

/// The error of `serve` and `join`. It says whose fault it is: the caller's, the system's, or ours.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It cannot work as asked for.
    #[error("{0}")]
    Usage(String),
    /// A file, a directory, an address or a certificate.
    #[error("{what}: {error}")]
    Io {
        /// What it was about.
        what: String,
        /// What the system says.
        error: io::Error,
    },
    /// The state directory.
    #[error("{0}")]
    State(String),
    /// Something that cannot happen did.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<InputError> for ProgramError {
    fn from(error: InputError) -> Self {
        match error {
            InputError::Io { path, error } => Self::Io { what: path.display().to_string(), error },
            InputError::Content { .. } => Self::Usage(error.to_string()),
        }
    }
}
