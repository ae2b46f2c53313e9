//! Backups after each change, in a directory that has a bounded number of them.

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::{BackupError, io_error};
use crate::{
    actors::{runtime::Clock, state::State},
    member::{config::BackupSettings, notice::MemberNotice, report::Reporter, source::BeforeSubmission},
    vault::VaultContents,
};

/// The names of the files begin with it; the time follows, so that they sort by age.
const PREFIX: &str = "member-";
const SUFFIX: &str = ".age";

/// Backups of a running member.
pub struct Backups {
    settings: BackupSettings,
    state: State,
    reporter: Reporter,
    /// One at a time.
    writing: tokio::sync::Mutex<()>,
}

impl Backups {
    pub(crate) fn new(settings: BackupSettings, state: State, reporter: Reporter) -> Self {
        Self { settings, state, reporter, writing: tokio::sync::Mutex::new(()) }
    }

    /// Writes a backup after each change, for as long as it is polled.
    pub(crate) async fn follow(&self) {
        loop {
            self.reporter.has_changed().await;
            // More changes follow: one backup has them all.
            tokio::time::sleep(self.settings.pause).await;
            // Reported by it.
            let _ = self.write().await;
        }
    }

    /// Writes a backup now, and reports that. Its file.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub(crate) async fn write(&self) -> Result<String, String> {
        match self.now().await {
            Ok(file) => {
                self.reporter.notice(&MemberNotice::BackupWritten { file: file.clone() });
                Ok(file)
            }
            Err(error) => {
                let problem = error.to_string();
                self.reporter.notice(&MemberNotice::BackupFailed { problem: problem.clone() });
                Err(problem)
            }
        }
    }

    /// Writes a backup, and removes the oldest. Its file.
    async fn now(&self) -> Result<String, BackupError> {
        let _writing = self.writing.lock().await;
        let directory = &self.settings.directory;
        std::fs::create_dir_all(directory).map_err(io_error(directory))?;
        let at = Clock::system().now();
        let file = directory.join(format!("{PREFIX}{:015}{SUFFIX}", at.as_millis()));
        // A copy: one moment of all streams and tables.
        let dir = self.state.dir().to_owned();
        let copied = tokio::task::spawn_blocking(move || State::open_to_read(dir)).await;
        let copy = copied.map_err(|error| BackupError::Content(error.to_string()))??;
        let written = super::write(&copy, &file, self.settings.passphrase.clone(), false).await;
        let mut contents = VaultContents::default();
        let read = crate::vault::read_open(&copy, &mut contents).await;
        copy.close().await;
        written?;
        read.map_err(|error| BackupError::Content(error.to_string()))?;
        super::record_export(self.state.dir(), &contents, at).map_err(io_error(self.state.dir()))?;
        super::record(&self.state, at).await?;
        let files = existing(directory)?;
        for old in files.iter().take(files.len().saturating_sub(self.settings.keep.max(1))) {
            std::fs::remove_file(old).map_err(io_error(old))?;
        }
        Ok(file.display().to_string())
    }
}

/// The backups in a directory, the oldest first.
fn existing(directory: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let entries = std::fs::read_dir(directory).map_err(io_error(directory))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
    });
    files.sort();
    Ok(files)
}

#[async_trait]
impl BeforeSubmission for Backups {
    async fn ready(&self) -> Result<(), String> {
        self.now().await.map(drop).map_err(|error| format!("no backup of it was written: {error}"))
    }
}
