//! `vault import`: restores an exported vault.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use super::{VaultFailure, complete};
use crate::{
    actors::{
        runtime::Clock,
        state::{State, StateError},
    },
    error::ProgramError,
    passphrase,
    protocol::{did::Did, id::CohortId, time::Timestamp},
    storage,
    vault::{
        VaultContents, VaultDocument,
        backups::{Backup, Backups, Export, Restoration},
        import::{Plan, Terms, apply, plan},
        read_open,
    },
};

#[derive(Debug, Args)]
#[command(after_help = "\
Before anything is written, every map, proof, update and genesis document of the file is verified. Refused are parts that break a \
rule, entries of another DID than the directory's, another record of the same cohort, and two different updates of one version. What \
the directory has already stays, also where the file has something older; importing the same file again changes nothing.

The restored updates count as possibly announced: `join`, `update` and `singleton` sign no other update of their versions. That \
protects only from what the backup knows. If the lost vault approved an update after the backup was made, that update may be announced \
too, and a second, different one of its version ends the DID: before you sign the next update run `check`, and wait until every cohort that \
you joined after the backup has ended and its coin is spent. Exit status: 0 restored, 1 refused or failed, 2 wrong call.")]
pub(super) struct ImportArgs {
    /// The file that `vault export` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The state directory, which is made if it does not exist; no other program may use it
    #[arg(long, value_name = "DIR", env = "BTCR2_STATE")]
    state: PathBuf,
    /// This DID's entries only
    #[arg(long, value_name = "DID")]
    did: Option<Did>,
    /// The update that was approved in this cohort (`singleton` for one that was prepared without a cohort) will never be
    /// announced; may be given several times
    #[arg(long, value_name = "COHORT", allow_hyphen_values = true, value_delimiter = ',')]
    supersede: Vec<CohortId>,
    /// Leave out what breaks a rule, e.g. records of version 0.1, instead of refusing the file
    #[arg(long)]
    skip_invalid: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn import(args: &ImportArgs) -> Result<ExitCode, VaultFailure> {
    let document = VaultDocument::read(&args.file, || passphrase::passphrase("Passphrase of the vault: "))?;
    let exported_at = document.exported_at;
    let source = document.clone();
    if !args.state.exists() {
        // A refusal leaves no new directory behind.
        decide(args, &VaultContents::default(), document.clone(), None)?;
    }
    let state = open(&args.state).await?;
    let outcome = restore(args, &state, document).await;
    state.close().await;
    let (plan, damaged) = outcome?;
    record_export(args, source, exported_at, &plan)
        .map_err(|error| VaultFailure::File { path: args.state.clone(), error })?;
    report(args, exported_at, &plan);
    Ok(complete(&damaged))
}

/// How long to wait for a program that reads the directory, e.g. `watch`, and the pause between two attempts.
const WAIT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(100);

/// Opens the state directory of a member to write into its vault.
pub(super) async fn open(directory: &Path) -> Result<State, ProgramError> {
    let end = Instant::now() + WAIT;
    let opened = loop {
        match State::open(directory) {
            Err(StateError::Locked { .. }) if Instant::now() < end => tokio::time::sleep(PAUSE).await,
            opened => break opened,
        }
    };
    opened.map_err(|error| {
        let hint = match error {
            StateError::Locked { .. } => "; stop `join` first",
            _ => "",
        };
        ProgramError::State(format!("{error}{hint}"))
    })
}

fn decide(
    args: &ImportArgs,
    existing: &VaultContents,
    document: VaultDocument,
    owner: Option<&str>,
) -> Result<Plan, VaultFailure> {
    let terms =
        Terms { did: args.did.as_ref(), owner, superseded: &args.supersede, skips_invalid: args.skip_invalid };
    plan(existing, document, &terms)
        .map_err(|refusal| VaultFailure::Refused { path: args.file.clone(), refusal: Box::new(refusal) })
}

async fn restore(
    args: &ImportArgs,
    state: &State,
    document: VaultDocument,
) -> Result<(Plan, Vec<String>), VaultFailure> {
    let owner = storage::member_of(state).await?;
    let mut existing = VaultContents::default();
    read_open(state, &mut existing).await?;
    let exported_at = document.exported_at;
    let mut plan = decide(args, &existing, document, owner.as_deref())?;
    // Without one of its own, the file has no copy of the list: then the damage stays, and is reported.
    plan.replaces_prepared = !plan.prepared.is_empty() && storage::prepared(state).await.is_err();
    if plan.new_parts() > 0 {
        // Before the first write: an interruption does not hide the risk.
        record_restoration(args, exported_at, &plan)
            .map_err(|error| VaultFailure::File { path: args.state.clone(), error })?;
    }
    apply(state, &plan).await?;
    // Entries that were damaged, and of which the file had a copy, are not any more.
    let mut restored = VaultContents::default();
    read_open(state, &mut restored).await?;
    Ok((plan, restored.problems))
}

/// What the lost vault had approved after the backup is not known from now on.
fn record_restoration(args: &ImportArgs, exported_at: Option<Timestamp>, plan: &Plan) -> std::io::Result<()> {
    let at = Clock::system().now();
    Backups::change(&args.state, |backups| {
        for did in &plan.dids {
            let backup: &mut Backup = backups.entry(did.clone()).or_default();
            backup.restoration = Some(Restoration { at, exported_at });
        }
    })
}

/// The file is a backup of what it has: if the directory knows no later export, it is the last one.
fn record_export(
    args: &ImportArgs,
    source: VaultDocument,
    exported_at: Option<Timestamp>,
    plan: &Plan,
) -> std::io::Result<()> {
    let Some((hash, exported_at)) = source.hash.zip(exported_at) else { return Ok(()) };
    let mut exports = Export::of(&source.into_contents(), hash, exported_at);
    Backups::change(&args.state, |backups| {
        for did in &plan.dids {
            let Some(export) = exports.remove(did) else { continue };
            let backup: &mut Backup = backups.entry(did.clone()).or_default();
            if backup.export.as_ref().is_none_or(|known| known.at < export.at) {
                backup.export = Some(export);
            }
        }
    })
}

fn report(args: &ImportArgs, exported_at: Option<Timestamp>, plan: &Plan) {
    for invalid in &plan.skipped {
        err!("warning: left out: {invalid}");
    }
    if plan.replaces_prepared {
        err!(
            "warning: the directory's list of updates that were prepared without a cohort was damaged, and the file's is stored in its \
             place: what was prepared after the backup is not known any more, and may still be announced"
        );
    }
    for part in &plan.unverified {
        err!(
            "note: {part} could be verified in part only: the file does not lead to the document that its update starts from"
        );
    }
    let exported = exported_at.and_then(Timestamp::to_date);
    if args.json {
        out!(
            "{}",
            json!({
                "verified": plan.unverified.is_empty(), "new": plan.new_parts(), "known": plan.known, "skipped": plan.skipped.len(),
                "unverified": plan.unverified.len(), "dids": plan.dids, "exportedAt": exported,
            })
        );
    } else {
        let state = args.state.display();
        let (new, known, partly) = (plan.new_parts(), plan.known, plan.unverified.len());
        let verified = match partly {
            0 => "verified, and restored".to_owned(),
            _ => format!("{} verified, {partly} in part only, and restored", (new + known).saturating_sub(partly)),
        };
        out!("{verified} into {state}: {new} new or completed, {known} were there already");
    }
    let since = exported.map_or_else(|| "at an unknown time".to_owned(), |date| format!("at {date}"));
    err!(
        "note: the backup was made {since}. An update that was approved after that is not in it, and may be announced all the same: \
         a second, different one of its version would end the DID. Before you sign the next update, run `check`, and let the \
         cohorts end that you joined since"
    );
}
