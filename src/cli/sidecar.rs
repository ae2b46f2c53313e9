//! `sidecar`: the whole Sidecar Data of a DID, for a resolver.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{
    Failure, fail,
    state::write_new,
    vault::{SourceArgs, VaultFailure, complete, problems},
};
use crate::{protocol::did::Did, vault::sidecar::Sidecar};

#[derive(Debug, Args)]
#[command(after_help = "The result is one JSON object: `genesisDocument` (EXTERNAL DIDs), `updates` by version, \
    `casUpdates` (CAS Announcements) and `smtProofs`. Give it to a resolver with the DID.\n\
    Updates that were announced without a cohort are in the vault if `update` or `singleton` had its --state; others must be added.")]
pub(super) struct SidecarArgs {
    /// The DID
    #[arg(long, value_name = "DID")]
    did: Did,
    #[command(flatten)]
    sources: SourceArgs,
    /// Write to this file, which must not exist yet, instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Why there is no Sidecar Data.
#[derive(Debug, thiserror::Error)]
enum SidecarFailure {
    #[error(transparent)]
    Vault(#[from] VaultFailure),
    #[error("nothing is stored for {0}: `vault list` shows the DIDs with entries")]
    NoSuchDid(Did),
}

impl Failure for SidecarFailure {
    fn status(&self) -> u8 {
        1
    }
}

pub(super) fn main(args: &SidecarArgs) -> ExitCode {
    super::block_on(run(args)).unwrap_or_else(|error| fail(&error))
}

async fn run(args: &SidecarArgs) -> Result<ExitCode, SidecarFailure> {
    let contents = args.sources.sources().read().await.map_err(VaultFailure::from)?;
    if contents.clone().only(Some(&args.did)).is_empty() {
        complete(&contents.problems);
        return Err(SidecarFailure::NoSuchDid(args.did.clone()));
    }
    let Sidecar { data, missing_versions } = contents.sidecar(&args.did);
    let text = serde_json::to_string_pretty(&data).map_err(VaultFailure::from)?;
    match &args.out {
        Some(path) => {
            write_new(path, &text).map_err(|error| VaultFailure::File { path: path.clone(), error })?;
        }
        None => out!("{text}"),
    }
    for entry in contents.of(&args.did) {
        for problem in problems(entry) {
            let cohort = &entry.record.cohort_id;
            err!("warning: no current resolver accepts the stored data of cohort {cohort}: {problem}");
        }
    }
    if !missing_versions.is_empty() {
        let versions: Vec<_> = missing_versions.iter().map(u64::to_string).collect();
        err!("warning: no update to version {}: add what was announced without a cohort", versions.join(", "));
    }
    Ok(complete(&contents.problems))
}
