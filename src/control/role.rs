//! What a caller may do.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::html::session::SessionKey;

/// A role. Each one may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads everything but tokens and the audit log.
    Viewer,
    /// Operates cohorts, and reads the audit log.
    Operator,
    /// Also makes tokens, and changes settings.
    Admin,
}

impl Role {
    /// All roles, the least first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let role = Self::ALL.into_iter().find(|role| role.as_str() == text);
        role.ok_or_else(|| format!("{text}: viewer, operator or admin expected"))
    }
}

/// Who calls, as the audit log names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    /// What it may do.
    pub(crate) role: Role,
    /// The identifier of its token; `None` for the owner of the socket, and for commands.
    pub(crate) token: Option<String>,
    /// The label of its token, `socket` or `command`.
    pub(crate) label: String,
    /// From where: a network address, or a user of this machine.
    pub(crate) from: String,
    /// The session of its browser, if it is one.
    pub(crate) session: Option<SessionKey>,
}
