//! `member`: the agent of a controller in standing cohorts, and the commands that talk to it.

mod dry_run;
mod leave;
mod mint;
mod settings;
mod show;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};

pub(super) use self::settings::{SECTIONS, Section};
#[cfg(test)]
pub(super) use self::settings::{check_file, policy_of};
use super::{ChainArg, Failure, WRONG_CALL, fail, singleton::SingletonFailure};
use crate::{
    error::ProgramError,
    events::Printer,
    member::{self, OfflineError},
    systemd,
    telemetry::{Hangups, ignore_hangups},
};

const EXAMPLES: &str = "\
Examples:
  Run the agent. It prints a line that begins with READY, and notifies systemd (Type=notify):
    btcr2-aggregation member --config member.toml --state member.state
  Put an update into the queue, and see how far it is; both also work while no agent runs:
    btcr2-aggregation update did:btcr2:k1q... rotate-key --identity dids/alice.id --chain ... --queue member.state
    btcr2-aggregation member queue --state member.state
  All DIDs leave a cohort, by its next announcement; and a DID whose cohort is dead leaves it by its own Singleton beacon:
    btcr2-aggregation member leave --all --cohort ID --state member.state
    btcr2-aggregation member rescue did:btcr2:x1q... --out rescue.json --chain ... --send --wait --state member.state
  Three new DIDs at no cost, in the cohort in which the agent has a seat:
    btcr2-aggregation member mint --state member.state --count 3

Exit status: 0 when it was stopped, or the command is done; 1 when it failed; 2 when it was called wrongly.";

/// Runs the agent of a controller in standing cohorts: seats, a queue of updates, decisions by a policy.
///
/// The file has [[service]], [[seat]], [policy] and [backup]: docs/member.md.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, subcommand_negates_reqs = true)]
pub(super) struct MemberArgs {
    #[command(subcommand)]
    command: Option<MemberCommand>,
    /// The TOML file of seats, services and policy
    #[arg(long, value_name = "FILE", env = "BTCR2_MEMBER_CONFIG", required = true)]
    config: Option<PathBuf>,
    /// The state directory: what the agent must never forget, the queue, Sidecar Data, and the control socket
    #[arg(long, value_name = "DIR", env = "BTCR2_STATE", required = true)]
    state: Option<PathBuf>,
    /// Where to read the chain, instead of the file's: core=URL or esplora=URL
    #[arg(long, value_name = "KIND=URL", env = "BTCR2_CHAIN", hide_env_values = true)]
    chain: Option<ChainArg>,
    /// Serve a page for a browser on this machine at this address [default with --console: 127.0.0.1:8087]
    ///
    /// DIDs, seats, queue, and what waits for your decision. Only a loopback address, e.g. for a tunnel (ssh -L). The agent prints an
    /// address by which one logs in once if it was started in a terminal, and `member console-url` prints others.
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "127.0.0.1:8087", env = "BTCR2_MEMBER_CONSOLE")]
    console: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Begin each line of text with the time (UTC)
    #[arg(long, env = "BTCR2_TIMES")]
    times: bool,
}

/// The state directory of a command.
#[derive(Args, Debug)]
struct StateArgs {
    /// The agent's state directory. If the agent runs, it answers; otherwise the directory is read or written
    #[arg(long, value_name = "DIR", env = "BTCR2_STATE")]
    state: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum MemberCommand {
    /// Show the seats, the queue's counts, and what waits for a decision
    Status(StateArgs),
    /// List the updates in the queue, and how far each is
    Queue(show::QueueArgs),
    /// Take back an update that was not submitted yet
    Cancel(show::IdArgs),
    /// Show the last lines of the agent's log
    Log(show::LogArgs),
    /// List the requests that wait for a decision
    Pending(StateArgs),
    /// Approve a request
    Approve(show::IdArgs),
    /// Reject a request
    Reject(show::RejectArgs),
    /// Print an address of the agent's page (`member --console`) by which a browser logs in once, within a quarter of an hour
    ConsoleUrl(StateArgs),
    /// Write a backup now, into the directory of [backup] in the agent's file
    Backup(StateArgs),
    /// Show an update of the queue, and what it changes in the document
    Show(show::IdArgs),
    /// List the DIDs, and the cohorts in which they are registered
    Dids(StateArgs),
    /// Print what would be done for an advert or a request to sign, and why
    DryRun(dry_run::DryRunArgs),
    /// Wait until the agent has a seat in a cohort that has formed, and print its beacon
    Enrol(mint::EnrolArgs),
    /// Take DIDs out of a cohort: an update removes its beacon, or puts that of another cohort in its place; then they are unregistered
    Leave(leave::LeaveArgs),
    /// Save a DID whose cohort is dead: the update that takes its beacon out, for the DID's own Singleton beacon
    Rescue(leave::RescueArgs),
    /// Make EXTERNAL DIDs that begin with the cohort's beacon, register them, and print those that are registered
    Mint(mint::MintArgs),
}

/// Why a command has not done what it was asked for.
#[derive(Debug, thiserror::Error)]
enum MemberFailure {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Agent(#[from] OfflineError),
    #[error(transparent)]
    Singleton(#[from] SingletonFailure),
    #[error("{0}")]
    Failed(String),
}

impl Failure for MemberFailure {
    fn status(&self) -> u8 {
        match self {
            Self::Program(error) => error.status(),
            Self::Singleton(error) => error.status(),
            Self::Agent(OfflineError::NotAMember(_)) => WRONG_CALL,
            Self::Agent(_) | Self::Failed(_) => 1,
        }
    }
}

pub(super) fn main(args: MemberArgs) -> ExitCode {
    let MemberArgs { command, config, state, chain, console, json, times } = args;
    let Some(command) = command else {
        let (Some(config), Some(state)) = (config, state) else {
            return fail(&ProgramError::Usage("--config FILE and --state DIR are missing".to_owned()));
        };
        let given = settings::Given { config: &config, state: &state, chain: chain.as_ref(), console, json, times };
        let outcome = settings::config(&given).and_then(run);
        return outcome.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS);
    };
    let outcome: Result<ExitCode, MemberFailure> = super::block_on(async {
        let done = match command {
            MemberCommand::Status(args) => show::status(&args).await,
            MemberCommand::Queue(args) => show::queue(args).await,
            MemberCommand::Cancel(args) => show::cancel(args).await,
            MemberCommand::Log(args) => show::log(args).await,
            MemberCommand::Pending(args) => show::pending(&args).await,
            MemberCommand::Approve(args) => show::approve(args).await,
            MemberCommand::Reject(args) => show::reject(args).await,
            MemberCommand::ConsoleUrl(args) => show::console_url(&args).await,
            MemberCommand::Backup(args) => show::backup(&args).await,
            MemberCommand::Show(args) => show::show(args).await,
            MemberCommand::Dids(args) => show::dids(&args).await,
            MemberCommand::DryRun(args) => dry_run::dry_run(&args),
            MemberCommand::Enrol(args) => mint::enrol(&args).await,
            MemberCommand::Mint(args) => mint::mint(args).await,
            MemberCommand::Leave(args) => leave::leave(args).await,
            MemberCommand::Rescue(args) => return leave::rescue(args).await,
        };
        done.map(|()| ExitCode::SUCCESS)
    });
    crate::output::status(match outcome {
        Ok(status) => status,
        Err(error) => fail(&error),
    })
}

fn run(config: member::MemberConfig) -> Result<(), ProgramError> {
    let printer = Printer::new(config.json).with_times(config.times);
    super::block_on(async {
        let hangups = Hangups::new();
        let stop = crate::telemetry::stop_signal();
        tokio::select! {
            outcome = member::run(config, stop) => outcome,
            never = ignore_hangups(hangups, printer) => match never {},
            // An agent that waits for a disk or a service is alive: only an event loop that stands still is not.
            never = systemd::beat() => match never {},
        }
    })
}
