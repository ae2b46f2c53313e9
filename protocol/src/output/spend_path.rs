//! The two paths by which members spend a beacon output.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which path of the beacon output a signature is for (BIP-341).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpendPath {
    /// One MuSig2 signature of all members.
    KeyPath,
    /// k signatures on the fallback leaf.
    ScriptPath,
}

impl SpendPath {
    /// The path's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KeyPath => "key-path",
            Self::ScriptPath => "script-path",
        }
    }
}

impl fmt::Display for SpendPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
