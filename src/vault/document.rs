//! A vault in one file, as `vault export` writes it: JSON, or the same inside an age file.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use age::secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{ReadError, VaultContents, digest, recovered::Recovered};
use crate::{
    actors::state::vault::VaultEntry,
    files, inputs, passphrase,
    protocol::{hash::DocumentHash, time::Timestamp, update::SignedUpdate},
};

/// The largest document that is read. An entry is at most a few megabytes, the map of a large cohort.
const MAX_DOCUMENT: u64 = 1 << 30;

/// The entries of a vault in one file. Version 1, which has entries only, is still read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VaultDocument {
    /// The version of this format.
    pub vault_version: Version,
    /// When the vault was read for it, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exported_at: Option<Timestamp>,
    /// The hash of the contents and of the time. It detects damage. One who changes the file adapts it too: the verification of every
    /// record detects what is changed, and nothing but encryption (`--encrypt`) detects that a part was taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<DocumentHash>,
    /// The entries, with their SMT proofs and nonces (rule M-13).
    pub entries: Vec<VaultEntry>,
    /// The updates that were prepared to be announced without a cohort, or recovered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prepared: Vec<SignedUpdate>,
    /// Recovered documents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recovered: Vec<Recovered>,
}

/// The version of a [`VaultDocument`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Version(u32);

impl Version {
    /// The version that is written.
    pub const CURRENT: Self = Self(2);
}

impl TryFrom<u32> for Version {
    type Error = String;

    fn try_from(version: u32) -> Result<Self, String> {
        match version {
            1 | 2 => Ok(Self(version)),
            _ => Err(format!("version {version} of a vault, 1 and 2 are known")),
        }
    }
}

impl From<Version> for u32 {
    fn from(Version(version): Version) -> Self {
        version
    }
}

/// Why an exported vault is not the one that is in the file.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file cannot be written, or not be read back.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
    /// The vault cannot be written as JSON.
    #[error("the vault cannot be written as JSON: {0}")]
    Unwritable(#[from] serde_json::Error),
    /// The file cannot be encrypted.
    #[error("the vault cannot be encrypted: {0}")]
    Encryption(#[from] age::EncryptError),
    /// What was written is not a vault.
    #[error("what was written cannot be read back, do not rely on it: {0}")]
    Unreadable(#[source] Box<ReadError>),
    /// What was written is another vault.
    #[error("{} has other contents than were written: do not rely on it", .0.display())]
    Differs(PathBuf),
}

impl VaultDocument {
    /// The document of all that `contents` has, in its order.
    pub fn new(contents: VaultContents, now: Timestamp) -> Self {
        let VaultContents { entries, prepared, recovered, .. } = contents;
        let (vault_version, exported_at) = (Version::CURRENT, Some(now));
        let mut document = Self { vault_version, exported_at, hash: None, entries, prepared, recovered };
        document.hash = Some(document.content_hash());
        document
    }

    /// The hash of the contents and the time, whatever the document states.
    fn content_hash(&self) -> DocumentHash {
        let Self { exported_at, entries, prepared, recovered, .. } = self;
        let time = exported_at.map(Timestamp::as_millis);
        digest(&json!({ "exportedAt": time, "entries": entries, "prepared": prepared, "recovered": recovered }))
    }

    /// As JSON text.
    ///
    /// # Errors
    /// Those of the serialization.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// Writes the document into a file that must not exist yet, readable by its owner only and encrypted if there is a
    /// `passphrase`; complete and on disk when this returns. Then reads it back from there, and compares.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write(&self, path: &Path, passphrase: Option<SecretString>) -> Result<(), WriteError> {
        let text = self.to_json()? + "\n";
        let bytes = match &passphrase {
            Some(passphrase) => passphrase::encrypt(text.as_bytes(), passphrase.clone())?,
            None => text.into_bytes(),
        };
        files::write_new(path, &bytes).map_err(|error| WriteError::File { path: path.to_owned(), error })?;
        let read = Self::read(path, || passphrase).map_err(|error| WriteError::Unreadable(Box::new(error)))?;
        if read == *self { Ok(()) } else { Err(WriteError::Differs(path.to_owned())) }
    }

    /// Reads a document. `passphrase` is called only if it is encrypted.
    ///
    /// # Errors
    /// [`ReadError`]: it cannot be read, is not a vault, or is damaged. Its records are not verified by this.
    pub fn read(path: &Path, passphrase: impl FnOnce() -> Option<SecretString>) -> Result<Self, ReadError> {
        let refuse = |problem: String| ReadError::NotADocument { path: path.to_owned(), problem };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes))
            .map_err(|error| ReadError::File { path: path.to_owned(), error })?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(refuse(format!("it has more than {MAX_DOCUMENT} bytes")));
        }
        let document: Self = match passphrase::encrypted(&bytes) {
            None => inputs::json_of(&bytes),
            Some(age) => {
                let passphrase = passphrase().ok_or_else(|| ReadError::PassphraseNeeded(path.to_owned()))?;
                let opened = passphrase::decrypt(age, passphrase)
                    .map_err(|error| ReadError::Decryption { path: path.to_owned(), error })?;
                inputs::json_of(&opened)
            }
        }
        .map_err(refuse)?;
        match document.hash {
            Some(hash) if hash != document.content_hash() => Err(ReadError::Changed(path.to_owned())),
            None if document.vault_version != Version(1) => Err(refuse("it has no `hash`".to_owned())),
            _ => Ok(document),
        }
    }

    /// The contents.
    pub fn into_contents(self) -> VaultContents {
        let Self { entries, prepared, recovered, .. } = self;
        VaultContents { entries, prepared, recovered, ..VaultContents::default() }
    }
}
