//! `vault backup` and `vault restore`: everything of a `member`, in one encrypted file.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use serde_json::json;

use super::VaultFailure;
use crate::{
    actors::state::State,
    member::{
        backup::{self, Backup, BackupError},
        control::Request,
        offline,
    },
    passphrase,
    vault::{VaultContents, read_open},
};

#[derive(Debug, Args)]
#[command(after_help = "\
The file has the records of the seats, the queue, the counts of the policy, the boards, the Sidecar Data, the configuration, and the identity \
files: seeds and keys included, so that a new machine needs nothing else. It is encrypted with a passphrase, from BTCR2_PASSPHRASE or a \
prompt. Before success is printed (exit status 0) it is read, decrypted and restored in memory. Also while `member` runs.")]
pub(super) struct BackupArgs {
    /// Write to this file, which must not exist yet
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The state directory of a `member`
    #[arg(long, value_name = "DIR", env = "BTCR2_STATE")]
    state: PathBuf,
    /// Leave out the boards of numbers: large, and not needed to go on. What the DIDs need of them is in their Sidecar Data
    #[arg(long)]
    no_boards: bool,
    /// Print one JSON object about the file
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The lost member may have signed something after the backup. Until every coin that the addresses have at the first start is spent, the restored \
seats submit only the identical updates of the backup, and no others. Never start it while the old one may run.")]
pub(super) struct RestoreArgs {
    /// The file of `vault backup`, or of a member's [backup] directory
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The state directory to make
    #[arg(long, value_name = "DIR", env = "BTCR2_STATE")]
    state: PathBuf,
    /// The directory to make for the configuration and the identity files
    #[arg(long, value_name = "DIR")]
    files: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn summary(backup: &Backup) -> serde_json::Value {
    let [seats, updates, sidecars, files] = backup.counts();
    json!({ "at": backup.at.to_date(), "seats": seats, "updates": updates, "sidecars": sidecars, "files": files })
}

fn line(what: &str, path: &Path, backup: &Backup) -> String {
    let [seats, updates, sidecars, files] = backup.counts();
    format!(
        "{what} {}: {seats} seats, {updates} updates, Sidecar Data of {sidecars} DIDs, {files} files",
        path.display()
    )
}

pub(super) async fn backup(args: &BackupArgs) -> Result<ExitCode, VaultFailure> {
    let passphrase = passphrase::new_passphrase("Passphrase for the backup: ")?;
    let state = State::open_to_read(&args.state).map_err(BackupError::from)?;
    let written = backup::write(&state, &args.file, passphrase, !args.no_boards).await;
    let mut contents = VaultContents::default();
    let read = read_open(&state, &mut contents).await;
    state.close().await;
    let written = written?;
    read?;
    backup::record_export(&args.state, &contents, written.at)
        .map_err(|error| VaultFailure::File { path: args.state.clone(), error })?;
    // For `member status`. The file is there, whether or not it is recorded.
    if let Err(error) = offline(&args.state, Request::BackupMade { at: written.at }).await {
        err!("warning: the backup could not be recorded in {}: {error}", args.state.display());
    }
    match args.json {
        true => out!("{}", summary(&written)),
        false => out!("{}", line("written and verified:", &args.file, &written)),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn restore(args: &RestoreArgs) -> Result<ExitCode, VaultFailure> {
    let passphrase = passphrase::passphrase("Passphrase of the backup: ");
    let passphrase = passphrase.ok_or_else(|| BackupError::NoPassphrase(args.file.clone()))?;
    let read = backup::read(&args.file, passphrase).await?;
    backup::restore(&read, &args.state, &args.files).await?;
    match args.json {
        true => out!("{}", summary(&read)),
        false => out!("{}", line("restored into", &args.state, &read)),
    }
    err!(
        "note: the backup is of {}. What the lost member signed after that is unknown here: the seats submit only its updates until every \
         coin of their addresses is spent",
        read.at.to_date().unwrap_or_else(|| "an unknown time".to_owned())
    );
    err!(
        "      start it with: member --config {}/member.toml --state {}",
        args.files.display(),
        args.state.display()
    );
    Ok(ExitCode::SUCCESS)
}
