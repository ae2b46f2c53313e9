//! `state`: shows and edits the contents of a state directory.

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Failure, fail,
    records::{Shown, shown},
};
use crate::{
    actors::{
        journal::{Journal, JournalError, StreamId},
        state::{
            State, StateError, StreamSummary,
            transfer::{CohortDocument, Imported, StreamDocument, TransferError},
        },
    },
    config::Span,
    files,
    inputs::{self, InputError},
    protocol::{id::CohortId, time::Timestamp},
};

#[derive(Debug, Args)]
#[command(
    after_help = "`list` and `show` work while a program uses the directory: they read a copy. The others need the program stopped.\n\
    Names are escaped as in a URL, so that names that peers have chosen cannot control the terminal."
)]
pub(super) struct StateArgs {
    #[command(subcommand)]
    command: StateCommand,
}

#[derive(Debug, Subcommand)]
enum StateCommand {
    /// List the streams: a service's cohorts, signing sessions, a participant's cohorts, standing cohorts and seats; also while the program runs
    List(ListArgs),
    /// Show the events of a cohort, one by one; also while the program runs
    Show(ShowArgs),
    /// Write all journal records of a cohort into one JSON document, and all boards of a standing cohort or a seat; stop the program first
    Export(ExportArgs),
    /// Import a cohort that was exported elsewhere; stop the program first. It must run in one place only: export it
    /// with --forget
    Import(ImportArgs),
    /// Delete streams that were archived long ago; stop the program first
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
struct DirectoryArgs {
    /// The state directory
    #[arg(long, value_name = "DIR", env = "BTCR2_STATE")]
    state: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    args: DirectoryArgs,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The cohort's identifier, as `state list` shows it
    #[arg(allow_hyphen_values = true)]
    cohort: String,
    #[command(flatten)]
    args: DirectoryArgs,
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// The cohort's identifier, as `state list` shows it
    #[arg(allow_hyphen_values = true)]
    cohort: String,
    /// Write to this file, which must not exist yet, instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Delete the cohort here when the file is written, because it continues elsewhere
    #[arg(long, requires = "out")]
    forget: bool,
    #[command(flatten)]
    args: DirectoryArgs,
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// The document that `state export` has written
    file: PathBuf,
    #[command(flatten)]
    args: DirectoryArgs,
}

#[derive(Debug, Args)]
struct PruneArgs {
    /// How long ago a stream must have been archived: 30d, 12h
    #[arg(long, value_name = "TIME")]
    older_than: Span,
    /// Only show what would be deleted
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    args: DirectoryArgs,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum StateFailure {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error("{0:?} cannot be the identifier of a cohort")]
    NotACohort(String),
    #[error("there is nothing of cohort {0} in {1}: `state list` shows what there is")]
    NoSuchCohort(String, PathBuf),
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("the cohort cannot be written as JSON: {0}")]
    Unwritable(serde_json::Error),
    #[error("{} is not an exported cohort: {problem}", path.display())]
    NotADocument { path: PathBuf, problem: String },
}

impl Failure for StateFailure {
    fn status(&self) -> u8 {
        if matches!(self, Self::NotACohort(_)) { 2 } else { 1 }
    }
}

pub(super) fn main(args: &StateArgs) -> ExitCode {
    let outcome = super::block_on(async {
        match &args.command {
            StateCommand::List(args) => list(args).await,
            StateCommand::Show(args) => show(args).await,
            StateCommand::Export(args) => export(args).await,
            StateCommand::Import(args) => import(args).await,
            StateCommand::Prune(args) => prune(args).await,
        }
    });
    outcome.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

async fn list(ListArgs { args }: &ListArgs) -> Result<(), StateFailure> {
    let streams = State::open_to_read(&args.state)?.streams().await?;
    if args.json {
        out!("{}", Value::from_iter(streams.iter().map(summary)));
        return Ok(());
    }
    out!("{:>8}  {:>10}  {:<20}  STREAM", "RECORDS", "BYTES", "ARCHIVED");
    for StreamSummary { stream, size, archived, .. } in &streams {
        let archived = archived.map_or_else(|| "live".to_owned(), time);
        match size {
            Ok(size) => out!("{:>8}  {:>10}  {archived:<20}  {}", size.records, size.bytes, stream.escaped()),
            Err(problem) => out!("{:>8}  {:>10}  {:<20}  {}: {problem}", "-", "-", "damaged", stream.escaped()),
        }
    }
    Ok(())
}

fn summary(StreamSummary { stream, size, archived, .. }: &StreamSummary) -> Value {
    let mut summary = json!({ "stream": stream.escaped().to_string() });
    match size {
        Ok(size) => {
            summary["records"] = size.records.into();
            summary["bytes"] = size.bytes.into();
        }
        Err(problem) => summary["damaged"] = problem.as_str().into(),
    }
    if let Some(at) = archived {
        summary["archived"] = at.as_millis().into();
    }
    summary
}

async fn show(ShowArgs { cohort, args }: &ShowArgs) -> Result<(), StateFailure> {
    let state = State::open_to_read(&args.state)?;
    let document = find(&state, cohort, args).await?;
    if args.json {
        out!("{}", serde_json::to_string(&document).map_err(StateFailure::Unwritable)?);
        return Ok(());
    }
    for StreamDocument { name, archived, records } in &document.streams {
        let archived = archived.map(|at| format!(" (archived {})", time(at))).unwrap_or_default();
        out!("{}{archived}", StreamId::new(name.as_str()).escaped());
        for (number, record) in records.iter().enumerate() {
            let Shown { at, kind, details } = shown(record.get());
            let line = format!("{number:>6}  {:<20}  {kind:<24}  {details}", at.map_or_else(String::new, time));
            out!("{}", line.trim_end());
        }
    }
    if let (Some(first), Some(last)) = (document.boards.first(), document.boards.last()) {
        let (count, bytes) =
            (document.boards.len(), document.boards.iter().map(|board| board.text.len()).sum::<usize>());
        out!("boards of numbers {} to {}: {count}, {bytes} bytes", first.number, last.number);
    }
    Ok(())
}

async fn export(ExportArgs { cohort, out, forget, args }: &ExportArgs) -> Result<(), StateFailure> {
    let state = State::open_existing(&args.state)?;
    let document = find(&state, cohort, args).await?;
    let text = serde_json::to_string_pretty(&document).map_err(StateFailure::Unwritable)?;
    let Some(path) = out else {
        out!("{text}");
        return Ok(());
    };
    write_new(path, &text).map_err(|error| StateFailure::File { path: path.clone(), error })?;
    if *forget {
        state.forget(document.streams.iter().map(|stream| StreamId::new(stream.name.as_str()))).await?;
    }
    let (streams, out) = (document.streams.len(), path.display().to_string());
    if args.json {
        out!("{}", json!({ "streams": streams, "out": out, "forgotten": forget }));
    } else {
        let here = if *forget { "forgotten here" } else { "still here: run it in one place only" };
        out!("{streams} streams written to {out}, {here}");
    }
    Ok(())
}

/// Writes a line into a new file, for this user only; complete, and on disk when this returns.
pub(super) fn write_new(path: &Path, text: &str) -> io::Result<()> {
    files::write_new(path, format!("{text}\n").as_bytes())
}

async fn import(ImportArgs { file, args }: &ImportArgs) -> Result<(), StateFailure> {
    let document: CohortDocument = inputs::json(file).map_err(|error| match error {
        InputError::Io { path, error } => StateFailure::File { path, error },
        InputError::Content { path, problem } => StateFailure::NotADocument { path, problem },
    })?;
    let state = State::open(&args.state)?;
    let Imported { new, known, .. } = state.import(&document).await?;
    let cohort = StreamId::new(document.cohort_id.as_str());
    let cohort = cohort.escaped();
    if args.json {
        out!("{}", json!({ "cohortId": cohort.to_string(), "new": new, "known": known }));
    } else {
        out!("cohort {cohort}: {new} streams imported, {known} were already present");
    }
    Ok(())
}

async fn prune(PruneArgs { older_than, dry_run, args }: &PruneArgs) -> Result<(), StateFailure> {
    let state = State::open_existing(&args.state)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let before = Timestamp::default() + now.saturating_sub(older_than.0);
    let old: Vec<StreamId> = state
        .journal()
        .archived()
        .await?
        .into_iter()
        .filter(|archived| archived.at < before)
        .map(|archived| archived.stream)
        .collect();
    if !dry_run {
        state.forget(old.iter().cloned()).await?;
    }
    let names: Vec<String> = old.iter().map(|stream| stream.escaped().to_string()).collect();
    if args.json {
        out!("{}", json!({ "forgotten": names, "dryRun": dry_run }));
    } else {
        names.iter().for_each(|name| out!("{name}"));
        let done = if *dry_run { "would be forgotten" } else { "forgotten" };
        out!("{done}: {}, archived before {}", names.len(), time(before));
    }
    Ok(())
}

async fn find(state: &State, cohort: &str, args: &DirectoryArgs) -> Result<CohortDocument, StateFailure> {
    let none = || StateFailure::NoSuchCohort(cohort.to_owned(), args.state.clone());
    // In the escaped form of `state list`, or unescaped.
    let shown = StreamId::from_escaped(cohort).and_then(|name| CohortId::parse(name.as_str()).ok());
    let plain = CohortId::parse(cohort).ok();
    let mut ids: Vec<CohortId> = shown.into_iter().chain(plain).collect();
    ids.dedup();
    if ids.is_empty() {
        return Err(StateFailure::NotACohort(cohort.to_owned()));
    }
    for id in &ids {
        if let Some(document) = state.export(id).await? {
            return Ok(document);
        }
    }
    Err(none())
}

/// A time for people, in UTC. A time outside of the calendar is shown as a number.
pub(super) fn time(at: Timestamp) -> String {
    let year_10000 = Duration::from_secs(253_402_300_800);
    match Duration::from_millis(at.as_millis()) {
        since if since < year_10000 => humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string(),
        _ => at.as_millis().to_string(),
    }
}
