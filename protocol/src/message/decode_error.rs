//! Why a text is not a message.

use std::fmt;

/// The supported protocol version.
pub const VERSION: u64 = 1;

/// Why a text is not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The version is missing or not [`VERSION`].
    #[error("version: {VERSION} expected, {0} found")]
    Version(String),
    /// The type is not known. Version 1 specifies that such a message is ignored.
    #[error("type: {0} is not known here")]
    UnknownType(String),
    /// A field is missing or has the wrong shape.
    #[error("{field}: {problem}")]
    Field {
        /// The path of the field, e.g. `body.cohortId`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl DecodeError {
    pub(super) fn field(field: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self::Field { field: field.into(), problem: problem.to_string() }
    }

    pub(super) fn duplicate(field: impl Into<String>, key: &str) -> Self {
        Self::field(field, format_args!("duplicate field `{key}`"))
    }
}
