//! When a member's vault was exported last, and from what it was restored: recorded beside the database of the state directory,
//! so that an export works while `join` uses it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::VaultContents;
use crate::{
    files::write_whole,
    protocol::{did::Did, hash::DocumentHash, time::Timestamp},
};

/// The file's name in the state directory.
const FILE: &str = "backups.json";

/// A verified export of a DID's entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Export {
    /// When the vault was read for it.
    pub at: Timestamp,
    /// The hash of its contents, as the file states it.
    pub hash: DocumentHash,
    /// What it has: see [`VaultContents::items`].
    pub items: BTreeSet<DocumentHash>,
}

/// A restoration of a DID's entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Restoration {
    /// When it was done.
    pub at: Timestamp,
    /// When the vault that was restored had been exported; `None` if it was recovered from what others had, or is of an old
    /// version.
    pub exported_at: Option<Timestamp>,
}

/// What is recorded of a DID.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backup {
    /// The last verified export.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<Export>,
    /// The last restoration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restoration: Option<Restoration>,
}

/// What is recorded of every DID of a state directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Backups(pub BTreeMap<Did, Backup>);

impl Backups {
    /// Reads the record. A directory without one has none.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn read(directory: &Path) -> io::Result<Self> {
        match fs::read(directory.join(FILE)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// What is recorded of `did` in any of these directories: the newest of each.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn of<'a>(directories: impl IntoIterator<Item = &'a Path>, did: &Did) -> io::Result<Backup> {
        let mut newest = Backup::default();
        for directory in directories {
            let Some(Backup { export, restoration }) = Self::read(directory)?.0.remove(did) else { continue };
            newest.export = newest.export.into_iter().chain(export).max_by_key(|export| export.at);
            newest.restoration = newest.restoration.into_iter().chain(restoration).max_by_key(|one| one.at);
        }
        Ok(newest)
    }

    /// Changes the record. A record that is damaged is replaced: exports can be made again.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn change(directory: &Path, change: impl FnOnce(&mut BTreeMap<Did, Backup>)) -> io::Result<()> {
        let mut backups = match Self::read(directory) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Self::default(),
            read => read?,
        };
        change(&mut backups.0);
        write_whole(&directory.join(FILE), &serde_json::to_vec(&backups)?)
    }
}

impl Export {
    /// The record of an export of `contents`, by DID.
    pub fn of(contents: &VaultContents, hash: DocumentHash, at: Timestamp) -> BTreeMap<Did, Self> {
        let of_did = |did: Did| {
            let items = contents.clone().only(Some(&did)).items();
            (did, Self { at, hash, items })
        };
        contents.dids().into_iter().map(of_did).collect()
    }
}
