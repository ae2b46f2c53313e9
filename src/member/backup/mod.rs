//! Backups of a member: one encrypted file with everything that an agent needs.
//!
//! The file is an age file (a passphrase) of a JSON object: the journal of the seats, the tables of the state directory (queue, counts, boards,
//! log), the Sidecar Data, the configuration and the identity files as they are on disk. It is verified before success is reported: what was
//! written is read, decrypted, and restored in memory.

mod continuous;
mod document;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
};

use age::secrecy::SecretString;
use serde_json::Value;

pub use self::{continuous::Backups as ContinuousBackups, document::Backup};
use super::{
    config::{MemberConfig, SIDECARS},
    restored, tally,
};
use crate::{
    actors::state::{State, StateError, transfer::TransferError},
    files::write_new,
    passphrase::{self, DecryptionError},
    protocol::{
        did::Did,
        hash::{DocumentHash, sha256},
        time::Timestamp,
    },
    vault::{
        VaultContents,
        backups::{Backups, Export},
    },
};

/// The key of the places of files in the member's table.
const FILES: &str = "files";

/// The key of the time of the last backup in the member's table.
const LAST: &str = "last-backup";

/// Why there is no backup, or none is restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The journal cannot be used.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The state directory is not a member's.
    #[error("{} is not the state directory of a `member`", .0.display())]
    NotAMember(PathBuf),
    /// The file cannot be opened.
    #[error("{}: {error}", path.display())]
    Decryption {
        /// The file.
        path: PathBuf,
        /// Why.
        error: DecryptionError,
    },
    /// The file is not encrypted, or of another kind.
    #[error("{}: not a backup of a member", .0.display())]
    Format(PathBuf),
    /// What is in it cannot be restored.
    #[error("the backup cannot be restored: {0}")]
    Content(String),
    /// There is no passphrase.
    #[error("{} is encrypted: give its passphrase in the environment variable BTCR2_PASSPHRASE, or run this in a terminal", .0.display())]
    NoPassphrase(PathBuf),
    /// It cannot be encrypted.
    #[error("it cannot be encrypted: {0}")]
    Encryption(String),
    /// There is something already.
    #[error("{} exists already: a backup is restored into a new directory", .0.display())]
    Exists(PathBuf),
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BackupError + '_ {
    move |error| BackupError::Io { path: path.to_owned(), error }
}

/// Stores where the files of a member are, so that a backup has them.
///
/// # Errors
/// Why that is not stored.
pub(super) async fn remember(state: &State, config: &MemberConfig, files: &[PathBuf]) -> Result<(), String> {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let mut places: Vec<PathBuf> = files.iter().map(absolute).collect();
    places.push(absolute(&config.out));
    let out = places.pop();
    let value = serde_json::to_vec(&(out, places)).map_err(|error| error.to_string())?;
    state.table(tally::TABLE).put(FILES, value).await.map_err(|error| error.to_string())
}

/// The directory of Sidecar Data, and the files, of a state directory.
async fn places(state: &State) -> Result<(PathBuf, Vec<PathBuf>), BackupError> {
    let not_ours = || BackupError::NotAMember(state.dir().to_owned());
    let value = state.table(tally::TABLE).get(FILES).await?.ok_or_else(not_ours)?;
    let (out, files): (Option<PathBuf>, _) = serde_json::from_slice(&value).map_err(|_| not_ours())?;
    Ok((out.unwrap_or_else(|| state.dir().join(SIDECARS)), files))
}

/// The Sidecar Data that an agent has of a DID; none where there is no file that can be read.
pub(super) async fn sidecar(state: &State, did: &Did) -> Option<Value> {
    let (out, _) = places(state).await.ok()?;
    let name = format!("{}.json", did.as_str().replace(':', "_"));
    serde_json::from_slice(&std::fs::read(out.join(name)).ok()?).ok()
}

/// Writes a backup of a state directory, which another process may use, and verifies it. What it has.
///
/// # Errors
/// [`BackupError`]. The file is not there then.
pub async fn write(
    state: &State,
    file: &Path,
    passphrase: SecretString,
    with_boards: bool,
) -> Result<Backup, BackupError> {
    let (out, files) = places(state).await?;
    let backup = Backup::of(state, &out, &files, with_boards).await?;
    let bytes = backup.to_bytes()?;
    let given = passphrase.clone();
    let sealed = tokio::task::spawn_blocking(move || passphrase::encrypt(&bytes, given)).await;
    let sealed = sealed.map_err(|error| BackupError::Encryption(error.to_string()))?;
    let sealed = sealed.map_err(|error| BackupError::Encryption(error.to_string()))?;
    write_new(file, &sealed).map_err(io_error(file))?;
    let verified = match read(file, passphrase).await {
        Ok(read) => read.verify().await.and_then(|()| match read == backup {
            true => Ok(()),
            false => Err(BackupError::Content("what was written is not what was to be written".to_owned())),
        }),
        Err(error) => Err(error),
    };
    if let Err(error) = verified {
        // A file that cannot be restored must not be mistaken for a backup.
        let _ = std::fs::remove_file(file);
        return Err(error);
    }
    Ok(backup)
}

/// Reads a backup.
///
/// # Errors
/// [`BackupError`].
pub async fn read(file: &Path, passphrase: SecretString) -> Result<Backup, BackupError> {
    let bytes = std::fs::read(file).map_err(io_error(file))?;
    let path = file.to_owned();
    let opened = tokio::task::spawn_blocking(move || {
        let age = passphrase::encrypted(&bytes).ok_or_else(|| BackupError::Format(path.clone()))?;
        passphrase::decrypt(age, passphrase).map_err(|error| BackupError::Decryption { path, error })
    });
    let opened = opened.await.map_err(|error| BackupError::Content(error.to_string()))??;
    Backup::from_bytes(&opened).ok_or_else(|| BackupError::Format(file.to_owned()))
}

/// Restores a backup into new directories: the state with its Sidecar Data, and the configuration with the identities. The state is marked, so
/// that its seats are careful at the first start.
///
/// # Errors
/// [`BackupError`].
pub async fn restore(backup: &Backup, state: &Path, files: &Path) -> Result<(), BackupError> {
    if let Some(there) = [state, files].into_iter().find(|path| path.exists()) {
        return Err(BackupError::Exists(there.to_owned()));
    }
    backup.verify().await?;
    backup.write_files(state, files)?;
    let opened = State::open(state)?;
    let done = async {
        backup.write_state(&opened).await?;
        restored::mark(&opened).await.map_err(BackupError::Content)
    };
    let done = done.await;
    opened.close().await;
    done
}

/// Records beside the database of a state directory that a backup has these updates, so that `check` can warn.
///
/// # Errors
/// Those of the file system.
pub fn record_export(directory: &Path, contents: &VaultContents, at: Timestamp) -> io::Result<()> {
    let hashes: Vec<u8> = contents.items().iter().flat_map(|hash| *hash.as_bytes()).collect();
    let mut exports = Export::of(contents, DocumentHash::from_bytes(sha256(&hashes)), at);
    Backups::change(directory, |backups| {
        for did in contents.dids() {
            if let Some(export) = exports.remove(&did) {
                backups.entry(did).or_default().export = Some(export);
            }
        }
    })
}

/// Stores that there is a backup of that time.
///
/// # Errors
/// [`StateError`].
pub async fn record(state: &State, at: Timestamp) -> Result<(), StateError> {
    state.table(tally::TABLE).put(LAST, at.as_millis().to_be_bytes().to_vec()).await
}

/// When the last backup was made, as far as the state directory knows.
///
/// # Errors
/// [`StateError`].
pub async fn last(state: &State) -> Result<Option<Timestamp>, StateError> {
    let bytes = state.table(tally::TABLE).get(LAST).await?;
    Ok(bytes.and_then(|bytes| Some(Timestamp::from_millis(u64::from_be_bytes(bytes.try_into().ok()?)))))
}
