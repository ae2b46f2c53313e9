//! The identity files of a member's DIDs.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    controller::Keys,
    error::ProgramError,
    keyfile::{self, KeyFile},
    standing::controller::ControlledDid,
};

/// The files in these places: files themselves, and the files `*.id` of directories, in the order of their names.
pub(super) fn files(places: &[PathBuf]) -> Result<Vec<PathBuf>, ProgramError> {
    let mut files = Vec::new();
    for place in places {
        let failed = |error| ProgramError::Io { what: place.display().to_string(), error };
        if !std::fs::metadata(place).map_err(failed)?.is_dir() {
            files.push(place.clone());
            continue;
        }
        let entries = std::fs::read_dir(place).map_err(failed)?;
        let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        found.retain(|path| path.extension().is_some_and(|extension| extension == "id"));
        found.sort();
        files.extend(found);
    }
    Ok(files)
}

/// The DID of a file, with its keys.
pub(super) fn read(path: &Path) -> Result<ControlledDid, ProgramError> {
    let file = KeyFile::read(path, || keyfile::passphrase(&format!("Passphrase of {}: ", path.display())));
    let file = file.map_err(|error| ProgramError::Usage(error.to_string()))?;
    let identity = file.identity.clone();
    Ok(ControlledDid { identity, keys: Arc::new(Keys::File(Box::new(file), path.display().to_string())) })
}
