//! `resolve`: the document of a DID.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;

use super::{ChainArg, Failure, fail, vault::VaultFailure};
use crate::{
    bitcoin::chain::SourceError,
    cas::{self, CasError, Location},
    controller::current::young,
    inputs::{self, InputError},
    protocol::{
        did::Did,
        resolution::{ErrorCode, Event, ResolutionError, ResolutionOptions, ResolutionResult, SidecarError},
        text::{shown, shown_within},
    },
    resolve::{Given, Outcome, Sources, explain},
    vault,
};

/// The characters of a malformed DID that are shown.
const MOST_SHOWN: usize = 200;

const EXAMPLES: &str = "\
Examples:
  The document, from its controller's Sidecar Data and your own node:
    btcr2-aggregation resolve did:btcr2:k1q... --sidecar alice.sidecar.json \\
        --chain 'core=http://127.0.0.1:8332?cookie=/home/me/.bitcoin/.cookie'
  Its history, from an Esplora server and a store of announcements and updates:
    btcr2-aggregation resolve did:btcr2:k1q... --chain esplora=https://esplora.example/api --cas dir=store --explain

Exit status: 0 when the DID is resolved, 1 when it is not (the error code and the reason are on standard error), 2 when the \
command was called wrongly. A node reads every block, unless it has -blockfilterindex=1.";

/// The arguments of `resolve`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ResolveArgs {
    /// The DID
    #[arg(value_name = "DID")]
    did: String,
    /// This version: 1 is the initial document
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Which version",
        conflicts_with = "version_time"
    )]
    version_id: Option<String>,
    /// The version that was in force at this time, in UTC: 2026-10-01T12:00:00Z
    #[arg(long, value_name = "TIME", help_heading = "Which version")]
    version_time: Option<String>,
    /// How many confirmations a signal needs to count
    #[arg(
        long, value_name = "N", help_heading = "Which version",
        default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..)
    )]
    min_conf: u32,
    /// Where to read the chain: core=http://user:password@host:port, core=http://host:port?cookie=PATH, or
    /// esplora=https://host/api
    #[arg(long, value_name = "KIND=URL", help_heading = "Sources", env = "BTCR2_CHAIN", hide_env_values = true)]
    chain: Option<ChainArg>,
    /// A file of Sidecar Data, as `sidecar` writes it, or a member's file of `join --out`; may be given several times
    #[arg(long = "sidecar", value_name = "FILE", help_heading = "Sources")]
    sidecars: Vec<PathBuf>,
    /// A member's state directory, also while `join` uses it; may be given several times
    #[arg(long = "state", value_name = "DIR", help_heading = "Sources", env = "BTCR2_STATE")]
    states: Vec<PathBuf>,
    /// A store of announcements and updates: dir=PATH, or ipfs=URL of an IPFS node's RPC API; may be given several times
    #[arg(long = "cas", value_name = "STORE", help_heading = "Sources")]
    cas: Vec<Location>,
    /// Print the whole resolution result (W3C DID Resolution) as one line of JSON
    #[arg(long, help_heading = "Output", conflicts_with = "explain")]
    json: bool,
    /// Print the history instead of the document: addresses, signals, data, and what is missing
    #[arg(long, help_heading = "Output")]
    explain: bool,
}

/// Why there is no resolution at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResolveFailure {
    #[error(
        "no chain: updates are announced on Bitcoin, so that no document is known without it: --chain core=URL or \
         --chain esplora=URL"
    )]
    NoChain,
    #[error("--chain: {0}")]
    Source(#[from] SourceError),
    #[error("{0}")]
    Options(ResolutionError),
    #[error("--sidecar {0}")]
    File(#[from] InputError),
    #[error("--sidecar {}: {error}", path.display())]
    Sidecar { path: PathBuf, error: SidecarError },
    #[error("--cas {0}")]
    Store(#[from] CasError),
    #[error("--state {}: {error}", path.display())]
    State { path: PathBuf, error: VaultFailure },
    #[error("the result cannot be written as JSON: {0}")]
    Unwritable(#[from] serde_json::Error),
}

impl Failure for ResolveFailure {
    fn status(&self) -> u8 {
        match self {
            Self::NoChain
            | Self::Source(_)
            | Self::Options(_)
            | Self::File(_)
            | Self::Sidecar { .. }
            | Self::Store(_) => 2,
            Self::State { .. } | Self::Unwritable(_) => 1,
        }
    }
}

pub(super) fn main(args: &ResolveArgs) -> ExitCode {
    super::block_on(run(args)).unwrap_or_else(|error| fail(&error))
}

async fn run(args: &ResolveArgs) -> Result<ExitCode, ResolveFailure> {
    // A wrong call is refused before any request is made.
    let options = options(args).map_err(ResolveFailure::Options)?;
    let source = args.chain.as_ref().ok_or(ResolveFailure::NoChain)?.source()?;
    let stores = args.cas.iter().map(|location| location.store(cas::DEFAULT_TIMEOUT));
    let stores = stores.collect::<Result<_, _>>()?;
    let did = match Did::parse(&args.did) {
        Ok(did) => did,
        Err(error) => {
            let did = shown_within(&args.did, MOST_SHOWN);
            return failed(args, &error.into(), &format!("{did}: "));
        }
    };
    let given = given(&args.sidecars, &args.states, &did).await?;
    let chain = match source.connect(did.network()).await {
        Ok(chain) => chain,
        Err(error) => return failed(args, &ResolutionError::Discovery(format!("{source}: {error}")), ""),
    };
    let (min_conf, sources) =
        (options.min_conf(), Sources { chain, chain_name: source.to_string(), stores, max_addresses: usize::MAX });
    let outcome = sources.resolve(did, options, &given).await;
    report(args, &outcome, &given, min_conf, &sources.chain_name)
}

fn options(args: &ResolveArgs) -> Result<ResolutionOptions, ResolutionError> {
    let mut options = ResolutionOptions::default().with_min_conf(args.min_conf.into())?;
    if let Some(version) = &args.version_id {
        options = options.with_version_id(version)?;
    }
    if let Some(time) = &args.version_time {
        options = options.with_version_time(time)?;
    }
    Ok(options)
}

/// The Sidecar Data of files and state directories.
pub(super) async fn given(sidecars: &[PathBuf], states: &[PathBuf], did: &Did) -> Result<Given, ResolveFailure> {
    let mut given = Given::default();
    for path in sidecars {
        let refuse = |error| ResolveFailure::Sidecar { path: path.clone(), error };
        given.add(inputs::json(path)?, &path.display().to_string()).map_err(refuse)?;
    }
    for path in states {
        let contents =
            vault_contents(path).await.map_err(|error| ResolveFailure::State { path: path.clone(), error })?;
        for problem in &contents.problems {
            err!("warning: --state {}: {}", path.display(), shown(problem));
        }
        let refuse = |error| ResolveFailure::Sidecar { path: path.clone(), error };
        given.add_vault(&contents, did, &format!("the state directory {}", path.display())).map_err(refuse)?;
    }
    match given.data().left_out() {
        0 => {}
        count => err!("warning: {count} entries of the Sidecar Data cannot be looked up, and are left out"),
    }
    Ok(given)
}

async fn vault_contents(path: &Path) -> Result<vault::VaultContents, VaultFailure> {
    Ok(vault::Sources { states: vec![path.to_owned()], files: Vec::new() }.read().await?)
}

/// Reports an error from before the resolution.
fn failed(args: &ResolveArgs, error: &ResolutionError, about: &str) -> Result<ExitCode, ResolveFailure> {
    if args.json {
        out!("{}", serde_json::to_string(&ResolutionResult::failed(error))?);
    }
    err!("error: {}: {about}{error}", error.code());
    Ok(ExitCode::FAILURE)
}

fn report(
    args: &ResolveArgs,
    outcome: &Outcome,
    given: &Given,
    min_conf: u64,
    chain: &str,
) -> Result<ExitCode, ResolveFailure> {
    let Outcome { resolution, problems, .. } = outcome;
    for problem in problems {
        err!("warning: {problem}");
    }
    if args.explain {
        out!("{}", explain(outcome, given, min_conf, chain).trim_end());
    } else if args.json {
        out!("{}", serde_json::to_string(&resolution.result())?);
    }
    match &resolution.outcome {
        Ok(resolved) => {
            if !args.explain && !args.json {
                out!("{}", serde_json::to_string_pretty(&resolved.document)?);
                if resolved.metadata.deactivated {
                    err!("warning: the DID is deactivated, by version {}", resolved.metadata.version_id);
                }
                notes(&resolution.history, min_conf);
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            err!("error: {}: {error}", error.code());
            if error.code() == ErrorCode::MissingUpdateData && !args.explain {
                err!("--explain shows every signal, and who may have what is missing");
            }
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Notes on signals that a person may have expected to count.
fn notes(history: &[Event], min_conf: u64) {
    match young(history) {
        0 => {}
        count => {
            err!("note: signals that have fewer than {min_conf} confirmations do not count: {count} (--min-conf)")
        }
    }
}
