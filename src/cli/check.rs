//! `check`: the health of a DID.

use std::{path::PathBuf, process::ExitCode};

use clap::{ArgAction, Args};
use serde_json::json;

use super::{
    ChainArg, Failure, fail,
    resolve::{ResolveFailure, given},
};
use crate::{
    actors::runtime::Clock,
    cas::{self, Cas, Location},
    check::{
        Code, InspectError, Inspection, Inspector, Report, Status, Terms, evaluate, label, read_files, read_member,
    },
    config::Span,
    keyfile::{KeyFile, KeyFileError},
    output, passphrase,
    protocol::{did::Did, id::CohortId, identity::Identity, key::PublicKey},
    resolve::Given,
    vault,
};

/// The exit status when there are warnings only, as that of `watch --once`.
const WARNINGS: u8 = 3;

const AFTER_HELP: &str = "\
It answers, each with what to do: does the DID resolve, with --min-conf confirmations and with one (a signal that is too young to count \
breaks it later if its data is missing); what may still be announced, by the vault; for each beacon of the document, and for each that \
was removed, its coins, its signals, whether their data is at hand, and from which block on its operator alone can announce; which key \
may sign now; and whether the vault has a complete backup. With the state directory of a `member` also the age of its last backup, which \
data of addresses that the DID has left it cannot fetch, and which services are silent.

Exit status, for monitoring: 0 all is well; 3 warnings only; 1 a problem (the DID does not resolve, or will not), or something is \
unknown, e.g. because the chain does not answer; 2 the command was called wrongly. --accept CODE takes a warning out of that: docs/operating.md \
describes the codes, --json has them, and `--accept help` lists them.

Example:
  btcr2-aggregation check did:btcr2:k1q... --identity alice.id --state alice \\
      --chain 'core=http://127.0.0.1:8332?cookie=/home/me/.bitcoin/.cookie'";

/// Where the data of a check is.
#[derive(Debug, Args)]
pub(super) struct CheckSources {
    /// The identity file, see `identity new`: whether its keys may sign, and are those of the Singleton beacons
    #[arg(long, value_name = "FILE", env = "BTCR2_IDENTITY", help_heading = "Health")]
    identity: Option<PathBuf>,
    /// A file of Sidecar Data, beside the vault; may be given several times
    #[arg(long = "sidecar", value_name = "FILE", help_heading = "Health")]
    sidecars: Vec<PathBuf>,
    /// A store of announcements and updates: dir=PATH, or ipfs=URL of an IPFS node's RPC API; may be given several times
    #[arg(long = "cas", value_name = "STORE", help_heading = "Health")]
    cas: Vec<Location>,
    /// How many confirmations a signal needs to count
    #[arg(
        long, value_name = "N", help_heading = "Health",
        default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub(super) min_conf: u32,
    /// Warn when the last verified export of the vault, or backup of an agent, is older than this, e.g. 30d, although it is complete
    #[arg(long, value_name = "TIME", help_heading = "Health")]
    max_backup_age: Option<Span>,
    /// The update that was approved in this cohort (`singleton` for one that was prepared without a cohort) will never be
    /// announced; may be given several times
    #[arg(long, value_name = "COHORT", allow_hyphen_values = true, value_delimiter = ',', help_heading = "Health")]
    supersede: Vec<CohortId>,
    /// A warning that is known and accepted, by its code, e.g. no-singleton: it does not count; may be given several times
    #[arg(long, value_name = "CODE", value_delimiter = ',', hide_possible_values = true, help_heading = "Health")]
    accept: Vec<Code>,
}

impl CheckSources {
    /// Whether there is an identity file.
    pub(super) const fn has_identity(&self) -> bool {
        self.identity.is_some()
    }

    pub(super) fn terms(&self, warn_blocks: u32) -> Terms {
        Terms {
            min_conf: self.min_conf,
            warn_blocks,
            max_backup_age: self.max_backup_age.map(|Span(age)| age),
            superseded: self.supersede.clone(),
            accepted: self.accept.iter().copied().collect(),
        }
    }

    pub(super) fn stores(&self) -> Result<Vec<std::sync::Arc<dyn Cas>>, ResolveFailure> {
        Ok(self.cas.iter().map(|location| location.store(cas::DEFAULT_TIMEOUT)).collect::<Result<_, _>>()?)
    }

    /// The Sidecar Data of the files, and the identity. `did` has to be its DID.
    pub(super) async fn files(&self, did: &Did) -> Result<Files, CheckFailure> {
        let mut files = given(&self.sidecars, &[], did).await?;
        let Some(path) = &self.identity else { return Ok(Files { given: files, keys: None, identity: None }) };
        let file = KeyFile::read(path, || passphrase::passphrase("Passphrase: "))?;
        let found = file.identity.did();
        if found != did {
            return Err(CheckFailure::OtherDid { path: path.clone(), found: found.clone(), did: did.clone() });
        }
        if let Some(genesis) = file.identity.genesis_document() {
            let refuse = |error| ResolveFailure::Sidecar { path: path.clone(), error };
            files.add(json!({ "genesisDocument": **genesis }), "the identity file").map_err(refuse)?;
        }
        let later = file.later().iter().map(|later| later.key.public_key());
        let keys = std::iter::once(file.identity.public_key()).chain(later).collect();
        Ok(Files { given: files, keys: Some(keys), identity: Some(file.identity) })
    }
}

/// What files have.
pub(super) struct Files {
    /// Their Sidecar Data.
    pub(super) given: Given,
    /// All keys of the identity file.
    pub(super) keys: Option<Vec<PublicKey>>,
    /// The identity.
    pub(super) identity: Option<Identity>,
}

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct CheckArgs {
    /// The DID
    #[arg(value_name = "DID")]
    did: Did,
    /// Where to read the chain: core=http://user:password@host:port, core=http://host:port?cookie=PATH, or
    /// esplora=https://host/api
    #[arg(long, value_name = "KIND=URL", env = "BTCR2_CHAIN", hide_env_values = true)]
    chain: Option<ChainArg>,
    /// The member's state directory, also while `join` uses it; may be given several times
    #[arg(long = "state", value_name = "DIR", env = "BTCR2_STATE")]
    states: Vec<PathBuf>,
    /// How many blocks before a timelock passes to warn
    #[arg(long, value_name = "BLOCKS", default_value_t = 144)]
    warn_blocks: u32,
    #[command(flatten)]
    sources: CheckSources,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Print only what is not as it should be
    #[arg(long, short, action = ArgAction::SetTrue, conflicts_with = "json")]
    quiet: bool,
}

/// Why nothing can be checked.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckFailure {
    #[error(transparent)]
    Source(#[from] ResolveFailure),
    #[error(transparent)]
    Key(#[from] KeyFileError),
    #[error("{} is the identity of {found}, not of {did}", path.display())]
    OtherDid { path: PathBuf, found: Did, did: Did },
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error("the result cannot be written as JSON: {0}")]
    Unwritable(#[from] serde_json::Error),
}

impl Failure for CheckFailure {
    fn status(&self) -> u8 {
        match self {
            Self::Source(error) => error.status(),
            Self::Key(error) => error.status(),
            Self::OtherDid { .. } => 2,
            Self::Inspect(_) | Self::Unwritable(_) => 1,
        }
    }
}

pub(super) fn main(args: &CheckArgs) -> ExitCode {
    super::block_on(run(args)).unwrap_or_else(|error| fail(&error))
}

async fn run(args: &CheckArgs) -> Result<ExitCode, CheckFailure> {
    let (did, terms) = (&args.did, args.sources.terms(args.warn_blocks));
    let source = args.chain.as_ref().ok_or(ResolveFailure::NoChain)?.source().map_err(ResolveFailure::from)?;
    let (stores, now) = (args.sources.stores()?, Clock::system().now());
    let Files { given: files, keys, .. } = args.sources.files(did).await?;
    let vault = vault::Sources { states: args.states.clone(), files: Vec::new() };
    let inspection = match source.connect(did.network()).await {
        Ok(chain) => {
            let chain = (chain, source.to_string());
            let mut inspector = Inspector::new(did.clone(), chain, stores, files, vault, keys);
            inspector.look(now, terms.min_conf).await?
        }
        Err(error) => {
            let problem = format!("{source}: {error}");
            let member = read_member(&vault.states, did).await?;
            let read = read_files(&vault, did).await?;
            Inspection::without_chain(did.clone(), now, problem, read, keys).with_member(member)
        }
    };
    let report = evaluate(&inspection.view(&terms));
    if args.json {
        out!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report, args.quiet);
    }
    Ok(match report.status {
        Status::Ok => ExitCode::SUCCESS,
        Status::Warning => ExitCode::from(WARNINGS),
        Status::Unknown | Status::Problem => ExitCode::FAILURE,
    })
}

fn print(report: &Report, quiet: bool) {
    if !quiet {
        let at = report.height.map_or_else(String::new, |height| format!(" at block {height}"));
        out!("{}{at}", report.did);
    }
    for finding in &report.findings {
        let is_fine = finding.status == Status::Ok || finding.accepted;
        if quiet && is_fine {
            continue;
        }
        out!("{:<8}  {}", label(finding), finding.text);
        if let Some(advice) = &finding.advice {
            out!("{:<8}  -> {advice}", "");
        }
    }
    if quiet || output::lost() {
        return;
    }
    let count = |status| report.with(status).count();
    out!(
        "{}",
        match report.status {
            Status::Ok => "all is well".to_owned(),
            _ => format!(
                "problems: {}, unknown: {}, warnings: {}",
                count(Status::Problem),
                count(Status::Unknown),
                count(Status::Warning)
            ),
        }
    );
}
