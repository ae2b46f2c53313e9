//! `update`: prepares the next update of a DID, from what its controller wants to change.

mod adopt;
mod announce;
mod by_singleton;
mod cohort;
mod new_key;
mod prepare;
mod record;
mod report;
mod verbs;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};

pub(super) use self::{
    adopt::{BeaconArgs, main as beacon},
    record::{Record, is_new, ledger_of},
};
use self::{new_key::KeyError, verbs::Verb};
use super::{
    ChainArg, Failure, fail,
    resolve::ResolveFailure,
    singleton::{SendArgs, SingletonFailure},
};
use crate::{
    cas::Location,
    controller::{CurrentError, NotAuthorized},
    error::ProgramError,
    keyfile::KeyFileError,
    protocol::{did::Did, id::CohortId},
};

const EXAMPLES: &str = "\
Examples:
  What would change; nothing is written:
    btcr2-aggregation update did:btcr2:k1q... rotate-key --identity alice.id --state alice \\
        --chain 'core=http://127.0.0.1:8332?cookie=/home/me/.bitcoin/.cookie'
  The update and the Sidecar Data, in a file for `singleton --update`, `join --update` and `resolve --sidecar`:
    btcr2-aggregation update did:btcr2:k1q... add-beacon bcrt1p...,cas --identity alice.id --state alice \\
        --chain esplora=https://esplora.example/api --out update.json --announce-by singleton
  The same, announced at once from a Singleton beacon of the document, and followed to its sixth confirmation:
    btcr2-aggregation update did:btcr2:k1q... rotate-key --identity alice.id --state alice \\
        --chain esplora=https://esplora.example/api --out update.json --announce-by singleton --send --wait

  Put into the queue of an agent, which announces it in a standing cohort:
    btcr2-aggregation update did:btcr2:k1q... rotate-key --identity alice.id --chain esplora=https://esplora.example/api \\
        --queue member.state

Exit status: 0 when the update is prepared (with --send announced, with --wait confirmed), 1 when the DID is not resolved or a file cannot be used, 2 when the update is refused \
or the command was called wrongly.";

/// The arguments of `update`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct UpdateArgs {
    /// The DID
    #[arg(value_name = "DID")]
    did: Did,
    /// Make the changes of this JSON Patch (RFC 6902), instead of a command's
    #[arg(long, value_name = "FILE")]
    patch: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    common: CommonArgs,
}

/// The arguments that may stand behind the command too.
#[derive(Debug, Args)]
struct CommonArgs {
    /// The identity file, see `identity new`. The key that signs is the one that the current document authorizes
    #[arg(long, value_name = "FILE", env = "BTCR2_IDENTITY", global = true, help_heading = "Keys")]
    identity: Option<PathBuf>,
    /// Take the secret key that signs from this environment variable instead of a file
    #[arg(long, value_name = "VAR", env = "BTCR2_SECRET_ENV", global = true, help_heading = "Keys")]
    secret_env: Option<String>,
    /// Where to read the chain: core=http://user:password@host:port, core=http://host:port?cookie=PATH, or
    /// esplora=https://host/api
    #[arg(
        long,
        value_name = "KIND=URL",
        env = "BTCR2_CHAIN",
        hide_env_values = true,
        global = true,
        help_heading = "Current document"
    )]
    chain: Option<ChainArg>,
    /// A file of Sidecar Data, or of an earlier `update --out`; may be given several times
    #[arg(long = "sidecar", value_name = "FILE", global = true, help_heading = "Current document")]
    sidecars: Vec<PathBuf>,
    /// The member's state directory (`join --state`), a source of Sidecar Data: the update is refused if another update of
    /// its version may be announced, and it is recorded there. It is made if it does not exist
    #[arg(long, value_name = "DIR", env = "BTCR2_STATE", global = true, help_heading = "Current document")]
    state: Option<PathBuf>,
    /// With --state: an update that was approved in this cohort (`singleton` for one that was prepared without a cohort) will
    /// never be announced; may be given several times
    #[arg(
        long,
        value_name = "COHORT",
        allow_hyphen_values = true,
        value_delimiter = ',',
        global = true,
        help_heading = "Current document"
    )]
    supersede: Vec<CohortId>,
    /// A store of announcements and updates: dir=PATH, or ipfs=URL of an IPFS node's RPC API; may be given several times
    #[arg(long = "cas", value_name = "STORE", global = true, help_heading = "Current document")]
    cas: Vec<Location>,
    /// How many confirmations a signal needs to count
    #[arg(
        long, value_name = "N", global = true, help_heading = "Current document",
        default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..)
    )]
    min_conf: u32,
    /// Prepare an update that leaves the DID without a beacon or without a key that can update it, adds a beacon twice, or
    /// publishes a secret key; or although a signal with too few confirmations to count cannot be applied
    #[arg(long, global = true, help_heading = "Output")]
    allow_risky_document: bool,
    /// Write the signed update and the Sidecar Data to this file, which must not exist yet
    #[arg(long, value_name = "FILE", global = true, help_heading = "Output")]
    out: Option<PathBuf>,
    /// Print the signed update and the Sidecar Data as one line of JSON; with --send the announcement is another line
    #[arg(long, global = true, help_heading = "Output")]
    json: bool,
    /// Print the command that announces the update in this way. With --send and `singleton` it is announced at once
    #[arg(long, value_enum, value_name = "WAY", global = true, help_heading = "Output")]
    announce_by: Option<Way>,
    /// Put the update into the queue of the agent with this state directory (`member --state`), which announces it in a standing cohort.
    /// If the document has changed by then, the agent makes the same change on the newer one, or refuses the update with the reason. It
    /// need not run now. Its Sidecar Data are taken into account
    #[arg(long, value_name = "DIR", global = true, help_heading = "Output")]
    queue: Option<PathBuf>,
    #[command(flatten)]
    announcement: SendArgs,
}

impl CommonArgs {
    /// Whether the update leaves this program.
    const fn gives_out(&self) -> bool {
        self.out.is_some() || self.json || self.queue.is_some()
    }
}

/// The ways to announce an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// From a Singleton beacon of the DID's own key
    Singleton,
    /// In a cohort whose address is a beacon of the current document
    Cohort,
}

/// Why there is no update.
#[derive(Debug, thiserror::Error)]
enum UpdateFailure {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Source(#[from] ResolveFailure),
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Announcement(#[from] SingletonFailure),
    #[error(transparent)]
    Queue(#[from] crate::member::OfflineError),
    #[error("{0}")]
    Unresolved(String),
    #[error("{0}")]
    Refused(String),
}

impl From<NotAuthorized> for UpdateFailure {
    fn from(error: NotAuthorized) -> Self {
        Self::Key(error.into())
    }
}

impl From<CurrentError> for UpdateFailure {
    fn from(error: CurrentError) -> Self {
        match error {
            CurrentError::Deactivated { .. } => Self::Refused(error.to_string()),
            error => Self::Unresolved(error.to_string()),
        }
    }
}

impl Failure for UpdateFailure {
    fn status(&self) -> u8 {
        match self {
            Self::Program(error) => error.status(),
            Self::Source(error) => error.status(),
            Self::KeyFile(error) => error.status(),
            Self::Announcement(error) => error.status(),
            Self::Unresolved(_) | Self::Queue(_) => 1,
            Self::Key(_) | Self::Refused(_) => 2,
        }
    }
}

/// Runs the command.
pub(super) fn main(args: &UpdateArgs) -> ExitCode {
    match super::block_on(prepare::run(args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&error),
    }
}
