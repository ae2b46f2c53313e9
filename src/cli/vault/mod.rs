//! `vault`: shows, exports and restores the stored data of a member.

mod backup;
mod export;
mod import;
mod recover;

use std::{io, path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Failure, WRONG_CALL, check::CheckFailure, fail, resolve::ResolveFailure};
use crate::{
    actors::state::vault::VaultEntry,
    controller::{AnnouncementState, Settled},
    error::ProgramError,
    passphrase::NewPassphraseError,
    protocol::{did::Did, id::CohortId, update::SignedUpdate},
    vault::{self, ReadError, RecoveredKind, Sources, WriteError, import::Refusal},
};

#[derive(Debug, Args)]
#[command(
    after_help = "`join --state` fills the vault: one entry for each cohort whose data the member approved, with an \
    update of its own or without. No other party has to store this data, and without it the DID does not resolve.\n\
    `list`, `show` and `export` work while `join` uses the state directory: they read a copy of it. `import` and `recover` write: stop \
    `join` first."
)]
pub(super) struct VaultArgs {
    #[command(subcommand)]
    command: VaultCommand,
}

#[derive(Debug, Subcommand)]
enum VaultCommand {
    /// List the entries: DID, cohort, update or none, signal, address, and the signed transaction if it was seen
    List(ListArgs),
    /// Show the stored data of a cohort: each member's file, with its Sidecar Data
    Show(ShowArgs),
    /// Copy the vault into one file, verify it, and record that: the backup. `sidecar`, `watch` and `vault list` take the file too
    Export(export::ExportArgs),
    /// Restore an exported vault into a state directory; everything is verified, and nothing newer is replaced
    Import(import::ImportArgs),
    /// Copy everything of a `member` into one encrypted file, keys included, and verify it
    Backup(backup::BackupArgs),
    /// Restore a backup of a `member` into new directories
    Restore(backup::RestoreArgs),
    /// After the loss of a vault: find what stores and files still have, verify and store it, and name what is lost
    Recover(Box<recover::RecoverArgs>),
}

/// The sources of the entries.
#[derive(Debug, Args)]
pub(super) struct SourceArgs {
    /// A member's state directory, also while `join` uses it; may be given several times
    #[arg(long = "state", value_name = "DIR", env = "BTCR2_STATE", required_unless_present = "vaults")]
    states: Vec<PathBuf>,
    /// A file that `vault export` wrote; may be given several times
    #[arg(long = "vault", value_name = "FILE")]
    vaults: Vec<PathBuf>,
}

impl SourceArgs {
    pub(super) fn sources(&self) -> Sources {
        Sources { states: self.states.clone(), files: self.vaults.clone() }
    }
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    sources: SourceArgs,
    /// This DID's entries only
    #[arg(long, value_name = "DID")]
    did: Option<Did>,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The cohort's identifier
    #[arg(allow_hyphen_values = true, value_parser = |text: &str| CohortId::parse(text))]
    cohort: CohortId,
    #[command(flatten)]
    sources: SourceArgs,
    /// This DID's entry only
    #[arg(long, value_name = "DID")]
    did: Option<Did>,
    /// Print one JSON array of the members' files
    #[arg(long)]
    json: bool,
}

/// Why a member's data could not be shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum VaultFailure {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("nothing is stored of cohort {0}: `vault list` shows all entries")]
    NoSuchCohort(CohortId),
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("the vault cannot be written as JSON: {0}")]
    Unwritable(#[from] serde_json::Error),
    #[error(transparent)]
    Export(#[from] WriteError),
    #[error("{}: {refusal}", path.display())]
    Refused { path: PathBuf, refusal: Box<Refusal> },
    #[error(transparent)]
    NewPassphrase(#[from] NewPassphraseError),
    #[error(transparent)]
    Backup(#[from] crate::member::backup::BackupError),
    #[error("--encrypt: give the FILE to write")]
    NoFile,
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Resolve(#[from] Box<ResolveFailure>),
    #[error(transparent)]
    Sources(#[from] Box<CheckFailure>),
    #[error("the chain cannot be read: {0}")]
    Chain(String),
}

impl From<ResolveFailure> for VaultFailure {
    fn from(error: ResolveFailure) -> Self {
        Self::Resolve(Box::new(error))
    }
}

impl Failure for VaultFailure {
    fn status(&self) -> u8 {
        match self {
            Self::Refused { refusal, .. } if matches!(**refusal, Refusal::SeveralDids(_)) => WRONG_CALL,
            Self::NoFile | Self::Program(ProgramError::Usage(_)) => WRONG_CALL,
            Self::Resolve(error) => error.status(),
            Self::Sources(error) => error.status(),
            _ => 1,
        }
    }
}

pub(super) fn main(args: &VaultArgs) -> ExitCode {
    let outcome = super::block_on(async {
        match &args.command {
            VaultCommand::List(args) => list(args).await,
            VaultCommand::Show(args) => show(args).await,
            VaultCommand::Export(args) => export::export(args).await,
            VaultCommand::Import(args) => import::import(args).await,
            VaultCommand::Backup(args) => backup::backup(args).await,
            VaultCommand::Restore(args) => backup::restore(args).await,
            VaultCommand::Recover(args) => recover::recover(args).await,
        }
    });
    outcome.unwrap_or_else(|error| fail(&error))
}

/// Success, unless a stored entry cannot be read: the others were shown.
pub(super) fn complete(problems: &[String]) -> ExitCode {
    problems.iter().for_each(|problem| err!("error: {problem}"));
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn list(args: &ListArgs) -> Result<ExitCode, VaultFailure> {
    let contents = args.sources.sources().read().await?.only(args.did.as_ref());
    if args.json {
        out!("{}", Value::from_iter(contents.entries.iter().map(|entry| summary(entry, &contents.settled))));
        return Ok(complete(&contents.problems));
    }
    for did in contents.dids() {
        out!("{did}");
        for entry in contents.of(&did) {
            out!("{}", line(entry, &contents.settled));
            problems(entry).iter().for_each(|problem| out!("    NOT accepted by current resolvers: {problem}"));
        }
        for update in contents.prepared.iter().filter(|update| vault::target(update).as_ref() == Some(&did)) {
            let is_confirmed = contents.was_recovered(update.hash());
            out!("{}", prepared_line(update, is_confirmed, &contents.settled));
        }
        let documents = contents.recovered.iter().filter(|one| one.did == did && one.kind != RecoveredKind::Update);
        match documents.count() {
            0 => {}
            count => out!("  recovered announcements, proofs and genesis documents: {count}"),
        }
    }
    if contents.is_empty() {
        out!("nothing is stored");
    }
    Ok(complete(&contents.problems))
}

/// An update that was given to its controller, to be announced without a cohort or in a later one.
fn prepared_line(update: &SignedUpdate, is_confirmed: bool, settled: &[Settled]) -> String {
    let state =
        CohortId::parse("singleton").map(|alone| AnnouncementState::of(&alone, update, is_confirmed, settled));
    let state = state.map_or_else(|_| String::new(), |state| state.to_string());
    let version = update.target_version().map_or_else(|| "?".to_owned(), |version| version.to_string());
    format!("  without a cohort  version {version}  update {}  {state}", update.hash())
}

fn line(entry: &VaultEntry, settled: &[Settled]) -> String {
    let VaultEntry { record, txid, confirmed_height, .. } = entry;
    let state = AnnouncementState::of_entry(entry, settled).map_or_else(String::new, |state| format!("{state}: "));
    let what = match record.update.as_ref().and_then(|update| update.value()["targetVersionId"].as_u64()) {
        Some(version) => format!("version {version}"),
        None if record.included() => "an update".to_owned(),
        None => "declined".to_owned(),
    };
    format!(
        "  cohort {}  {:<10}  {}  signal {}  {}  {state}{}",
        record.cohort_id,
        what,
        record.conditions.beacon_type,
        record.signal,
        record.output.address(),
        match (txid, confirmed_height) {
            (Some(txid), None) => format!("signed as {txid}"),
            (Some(txid), Some(height)) => format!("confirmed as {txid} in block {height}"),
            (None, Some(height)) => format!("confirmed in block {height}"),
            (None, None) => "whether it was announced is not known".to_owned(),
        }
    )
}

/// Why no current resolver accepts an entry. This applies to all entries of versions before 0.2.0.
pub(super) fn problems(VaultEntry { record, genesis_document, .. }: &VaultEntry) -> Vec<String> {
    record.problems(genesis_document.as_ref())
}

fn summary(entry: &VaultEntry, settled: &[Settled]) -> Value {
    let VaultEntry { record, genesis_document, transcript, txid, confirmed_height } = entry;
    json!({
        "problems": problems(entry),
        "did": record.did,
        "service": record.service,
        "cohortId": record.cohort_id,
        "beaconType": record.conditions.beacon_type,
        "beaconAddress": record.output.address(),
        "signalHex": record.signal,
        "txid": txid,
        "confirmedHeight": confirmed_height,
        "included": record.included(),
        "state": AnnouncementState::of_entry(entry, settled),
        "targetVersionId": record.update.as_ref().map(|update| update.value()["targetVersionId"].clone()),
        "genesisDocument": genesis_document.is_some(),
        "transcript": transcript.is_some(),
    })
}

async fn show(args: &ShowArgs) -> Result<ExitCode, VaultFailure> {
    let contents = args.sources.sources().read().await?.only(args.did.as_ref());
    let files: Vec<Value> = contents.of_cohort(&args.cohort).map(VaultEntry::to_file).collect();
    if files.is_empty() {
        complete(&contents.problems);
        return Err(VaultFailure::NoSuchCohort(args.cohort.clone()));
    }
    if args.json {
        out!("{}", Value::Array(files));
    } else {
        for (entry, file) in contents.of_cohort(&args.cohort).zip(&files) {
            out!(
                "{}\n{}\n{}",
                entry.record.did,
                line(entry, &contents.settled),
                serde_json::to_string_pretty(file)?
            );
            problems(entry).iter().for_each(|problem| err!("warning: no current resolver accepts this: {problem}"));
        }
    }
    Ok(complete(&contents.problems))
}
