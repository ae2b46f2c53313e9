//! The command line. Each command has its own file.

mod bans;
mod beacon;
mod cas;
mod check;
mod coins;
mod control;
mod cost;
mod ctl;
mod demo;
mod docs;
mod fund;
mod history;
mod identity;
mod invites;
mod join;
mod member;
mod records;
mod recover;
mod relay;
mod resolve;
mod resolver;
mod serve;
mod service_entry;
mod sidecar;
mod singleton;
mod state;
mod update;
mod vault;
mod watch;

use std::{convert::Infallible, fmt::Display, path::Path, process::ExitCode, str::FromStr, sync::Arc};

use clap::{Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Deserializer};

use crate::{
    bitcoin::chain::{ChainSource, SourceError},
    controller::Keys,
    error::ProgramError,
    keyfile::{self, KeyFile, KeyFileError},
    output,
    protocol::{identity::Identity, network::Network},
    telemetry::LogFormat,
};

/// The exit status of a command that was called wrongly.
const WRONG_CALL: u8 = 2;

/// Aggregation of did:btcr2 updates: many DID controllers share one Bitcoin transaction.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "Without a command, `demo` runs.\n\n\
    Exit status: 0 when the command succeeded, 1 when it failed, 2 when it was called wrongly; 3 when `watch \
    --once` found something wrong, or `check` warns.")]
struct Cli {
    /// The format of log lines on standard error; RUST_LOG selects what is logged
    #[arg(long, value_enum, global = true, default_value_t, env = "BTCR2_LOG")]
    log: LogFormat,
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    demo: demo::DemoArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole cohort in this process and verify its transaction
    Demo(demo::DemoArgs),
    /// Make and show identity files
    Identity(identity::IdentityArgs),
    /// Run an Aggregation Service over HTTP, over Nostr relays, or both
    Serve(Box<serve::ServeArgs>),
    /// Join a cohort of a service
    Join(Box<join::JoinArgs>),
    /// Run the agent of a controller in standing cohorts, and talk to it: updates, approvals, new DIDs
    Member(Box<member::MemberArgs>),
    /// Check whether a Nostr relay is fit for cohorts
    Relay(relay::RelayArgs),
    /// Show a state directory, move a cohort out of it or into it, and delete old archives
    State(state::StateArgs),
    /// Operate a running service: cohorts, templates, invites, bans, coins, settings
    Ctl(Box<ctl::CtlArgs>),
    /// Make, list and revoke tokens of a service's control API, and show its audit log; also while the service runs
    Control(control::ControlArgs),
    /// List the offences and bans of a service, show one, ban a subject, or lift a ban; also while the service runs
    Bans(bans::BansArgs),
    /// Make, list and revoke invites to a service that admits by them; also while the service runs
    Invites(invites::InvitesArgs),
    /// Announce an update without a cohort, from a Singleton beacon of the DID
    ///
    /// With --chain it resolves the DID, checks that resolvers would apply the update, finds the document's Singleton beacons and
    /// their coins, and makes the transaction: a PSBT for the wallet that has the key, signed with --sign, broadcast with --send.
    /// Without a chain it prepares the transaction for coins that are given, and without --coin it shows the addresses to fund.
    Singleton(Box<singleton::SingletonArgs>),
    /// Put and show content by its hash: announcements and updates, in a directory or an IPFS node
    Cas(cas::CasArgs),
    /// Pay to a beacon address from your own wallet, by a PSBT that is signed elsewhere
    Fund(fund::FundArgs),
    /// Fetch what a standing cohort has announced, for DIDs that are in it or have left it
    History(history::HistoryArgs),
    /// List a service's coins: change, coins left at beacon addresses, and recoverable coins; and spend them
    Coins(coins::CoinsArgs),
    /// List the coins of a cohort's beacon address, and recover those whose timelock has passed
    Recover(recover::RecoverArgs),
    /// Show and copy a member's stored data of its cohorts
    Vault(vault::VaultArgs),
    /// Write everything beyond the chain that a resolver needs for a DID
    Sidecar(sidecar::SidecarArgs),
    /// Print the document of a DID, or its history
    ///
    /// The chain has the signals of the DID's beacons. The updates that they announce are in Sidecar Data, in a member's state
    /// directory, or in content stores.
    Resolve(Box<resolve::ResolveArgs>),
    /// Prepare the next update of a DID: change a key, a service, a beacon, or deactivate it
    ///
    /// Resolves the current document, makes and signs the update, shows what it changes, and where it can be announced. A cohort or
    /// `singleton` announces it; nothing is sent here, unless --announce-by singleton --send is given.
    Update(Box<update::UpdateArgs>),
    /// List a cohort's beacon in the document of a DID: the guided first announcement
    Beacon(Box<update::BeaconArgs>),
    /// Check the health of a DID: does it resolve now and later, what may still be announced, coins, trust, backup
    ///
    /// For monitoring: the exit status is 0 when all is well, 3 after warnings, 1 after a problem or where something is unknown.
    Check(Box<check::CheckArgs>),
    /// Resolve DIDs for others over HTTP
    Resolver(resolver::ResolverArgs),
    /// Follow a member's beacons on the chain, and raise an alarm when they announce something that it did not approve
    Watch(Box<watch::WatchArgs>),
    /// Show what cohorts saved compared with a separate transaction for each member
    Cost(cost::CostArgs),
    /// Write man pages, shell completions, the page of every setting, or sample configurations
    Docs(docs::DocsArgs),
}

/// The format of a program's events.
#[derive(Clone, Copy, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Events {
    /// Lines for people
    Text,
    /// One JSON object a line; the last one is the result
    Json,
}

/// A chain as it was given. A parse error is reported without the text, which clap would print: it may contain a
/// password.
#[derive(Clone, Debug)]
struct ChainArg(Result<ChainSource, SourceError>);

impl ChainArg {
    fn source(&self) -> Result<&ChainSource, SourceError> {
        self.0.as_ref().map_err(Clone::clone)
    }
}

impl FromStr for ChainArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.parse()))
    }
}

impl<'de> Deserialize<'de> for ChainArg {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(String::deserialize(deserializer)?.parse()))
    }
}

/// Restarts this program with cleaned variables, in the same process if the system supports it, if environment
/// variables of this program have a newline at their end or a byte order mark, as files and secret stores add them.
/// clap reads variables by itself, and a process cannot change its own variables safely.
fn with_clean_variables() -> Option<ExitCode> {
    let clean = crate::inputs::unclean_variables("BTCR2_");
    if clean.is_empty() {
        return None;
    }
    let mut again = std::process::Command::new(std::env::current_exe().ok()?);
    again.args(std::env::args_os().skip(1)).envs(clean);
    #[cfg(unix)]
    let problem = {
        use std::os::unix::process::CommandExt;
        if let Some(name) = std::env::args_os().next() {
            again.arg0(name);
        }
        // Returns only if it failed.
        again.exec()
    };
    #[cfg(not(unix))]
    let problem = match again.status() {
        Ok(status) => return Some(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        Err(problem) => problem,
    };
    err!("warning: environment variables are taken with the newline at their end: {problem}");
    None
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let status = run();
    output::finish();
    status
}

fn run() -> ExitCode {
    if let Some(status) = with_clean_variables() {
        return status;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    crate::telemetry::init(cli.log);
    let status = match cli.command {
        // They continue without a reader, and their exit status is how the cohorts ended.
        Some(Command::Serve(args)) => return serve::main(*args),
        Some(Command::Join(args)) => return join::main(*args),
        Some(Command::Member(args)) => return member::main(*args),
        Some(Command::Demo(args)) => demo::main(&args),
        Some(Command::Identity(args)) => identity::main(&args),
        Some(Command::Relay(args)) => relay::main(&args),
        Some(Command::State(args)) => state::main(&args),
        Some(Command::Ctl(args)) => ctl::main(*args),
        Some(Command::Control(args)) => control::main(&args),
        Some(Command::Bans(args)) => bans::main(&args),
        Some(Command::Invites(args)) => invites::main(&args),
        Some(Command::Singleton(args)) => singleton::main(&args),
        Some(Command::Cas(args)) => cas::main(&args),
        Some(Command::Fund(args)) => fund::main(&args),
        Some(Command::History(args)) => history::main(&args),
        Some(Command::Coins(args)) => coins::main(&args),
        Some(Command::Recover(args)) => recover::main(&args),
        Some(Command::Cost(args)) => cost::main(&args),
        Some(Command::Vault(args)) => vault::main(&args),
        Some(Command::Sidecar(args)) => sidecar::main(&args),
        Some(Command::Resolve(args)) => resolve::main(&args),
        Some(Command::Update(args)) => update::main(&args),
        Some(Command::Beacon(args)) => update::beacon(*args),
        Some(Command::Check(args)) => check::main(&args),
        Some(Command::Resolver(args)) => resolver::main(&args),
        Some(Command::Watch(args)) => watch::main(&args),
        Some(Command::Docs(args)) => docs::main(&args),
        None => demo::main(&cli.demo),
    };
    output::status(status)
}

/// Prints clap's output: help and version, or an error of the arguments.
fn explain(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    if error.use_stderr() {
        return ExitCode::from(WRONG_CALL);
    }
    output::record(printed);
    output::status(ExitCode::SUCCESS)
}

/// Runs a command's work to its end on an actix system.
///
/// An actor that was started, but not polled before an error ended the work, is polled when it is dropped. It must find
/// the runtime then, otherwise it panics before the error is printed.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let system = actix_rt::System::new();
    let outcome = system.block_on(work);
    let runtime = system.runtime().tokio_runtime().handle().clone();
    let _inside = runtime.enter();
    drop(system);
    outcome
}

/// An error with the exit status of the program.
trait Failure: Display {
    /// The exit status: 2 when the program was called wrongly.
    fn status(&self) -> u8;
}

impl Failure for KeyFileError {
    fn status(&self) -> u8 {
        if matches!(self, Self::NoGenesis | Self::Beacon(_)) { WRONG_CALL } else { 1 }
    }
}

impl Failure for ProgramError {
    fn status(&self) -> u8 {
        if matches!(self, Self::Usage(_)) { 2 } else { 1 }
    }
}

fn fail(error: &impl Failure) -> ExitCode {
    err!("error: {error}");
    ExitCode::from(error.status())
}

/// Refuses an update that raises concerns, unless its controller confirms it.
fn refuse_risky<C: Display>(concerns: &[C], file: &Path, allowed: bool) -> Result<(), ProgramError> {
    if concerns.is_empty() || allowed {
        return Ok(());
    }
    let concerns: Vec<_> = concerns.iter().map(ToString::to_string).collect();
    Err(ProgramError::Usage(format!(
        "{}: {}; an announcement cannot be taken back: --allow-risky-update if that is intended",
        file.display(),
        concerns.join("; ")
    )))
}

/// The identity of a file, or of a secret in the environment (then a KEY DID on `network`).
fn identity_of(
    file: Option<&Path>,
    secret_env: Option<&str>,
    network: Option<Network>,
) -> Result<Identity, KeyFileError> {
    keys_of(file, secret_env, network).map(|(identity, _)| identity)
}

/// The same, with all keys that are known.
fn keys_of(
    file: Option<&Path>,
    secret_env: Option<&str>,
    network: Option<Network>,
) -> Result<(Identity, Keys), KeyFileError> {
    if file.is_some() && secret_env.is_some() {
        return Err(KeyFileError::TwoIdentities);
    }
    if let Some(name) = secret_env {
        let secret = keyfile::secret_from_env(name)?;
        let identity = keyfile::identity(secret, None, network.unwrap_or(Network::Regtest))?;
        let key = Arc::clone(identity.secret_key());
        return Ok((identity, Keys::One(key, format!("--secret-env {name}"))));
    }
    let path = file.ok_or(KeyFileError::NoIdentity)?;
    let file = KeyFile::read(path, || keyfile::passphrase("Passphrase: "))?;
    Ok((file.identity.clone(), Keys::File(Box::new(file), path.display().to_string())))
}
