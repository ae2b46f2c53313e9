//! Why a program failed.

use std::io;

use crate::inputs::InputError;

/// The error of `serve` and `join`. The variant shows whether the caller, the system or a bug is the cause.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The request cannot be fulfilled as given.
    #[error("{0}")]
    Usage(String),
    /// An error of a file, a directory, an address or a certificate.
    #[error("{what}: {error}")]
    Io {
        /// What the program was doing.
        what: String,
        /// The error of the system.
        error: io::Error,
    },
    /// The state directory.
    #[error("{0}")]
    State(String),
    /// A bug: something that cannot happen happened.
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
