//! `watch`: watches a member's beacons on the chain.

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode, sync::Arc};

use clap::Args;
use serde_json::json;

use super::{
    ChainArg, Failure,
    check::{CheckFailure, CheckSources, Files},
    fail,
    vault::SourceArgs,
};
use crate::{
    actors::runtime::Clock,
    bitcoin::chain::{Chain, ChainError, SourceError},
    check::{Changes, Inspector, Status, Terms, evaluate, read_backup},
    config::Period,
    events::Printer,
    output,
    protocol::{did::Did, network::Network},
    telemetry::{Hangups, ignore_hangups},
    vault::{
        ReadError, VaultContents, Watcher,
        watch::{Severity, WatchNotice, beacons, initial_beacons},
    },
};

/// The exit status after an alarm or a warning.
const SOMETHING_WRONG: u8 = 3;

#[derive(Debug, Args)]
#[command(
    after_help = "ALARM: a spend from a beacon address announces what the vault has no data for, or was signed by \
    others and announces nothing. The beacons are those of the cohorts, and the DID's own three initial ones; for these only \
    announcements count, and known are the updates of the vault and those that `singleton --state` prepared.\n\
    WARNING: the timelock of a coin passes soon, or has passed. From then on the operator alone can spend from the beacon: \
    ask it to recover the coin. Taking the beacon out of the DID document does not help: every later signal of its address still \
    needs its data.\n\
    --check adds the questions of `check` about every DID of the vault, or that of --did: each change is reported. It reads the whole \
    history of the DID's addresses once, which takes a node without -blockfilterindex=1 long.\n\
    It works while `join` uses the state directory: it reads a copy.\n\
    Exit status with --once: 0 when all is well, 3 after an alarm, a problem or a warning, 1 when the chain or the vault could not be \
    read, or only in part, whatever else was found. Run it by cron with --once, more often than every --look-back blocks, or leave it running."
)]
pub(super) struct WatchArgs {
    #[command(flatten)]
    sources: SourceArgs,
    /// Where to read the chain: core=http://user:password@host:port, core=http://host:port?cookie=PATH,
    /// or esplora=https://host/api
    #[arg(long, value_name = "KIND=URL", env = "BTCR2_CHAIN", hide_env_values = true)]
    chain: ChainArg,
    /// This DID's beacons only
    #[arg(long, value_name = "DID")]
    did: Option<Did>,
    /// The network, where the vault has beacons on several
    #[arg(long, value_name = "N")]
    network: Option<Network>,
    /// Check the health of the DIDs too, as `check` does, at every look
    #[arg(long, help_heading = "Health")]
    check: bool,
    #[command(flatten)]
    health: CheckSources,
    /// Look once, and exit
    #[arg(long)]
    once: bool,
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "1m", conflicts_with = "once")]
    poll: Period,
    /// In how many of the last blocks to look for spends at first
    #[arg(long, value_name = "BLOCKS", default_value_t = 144)]
    look_back: u32,
    /// How many blocks before a timelock passes to warn
    #[arg(long, value_name = "BLOCKS", default_value_t = 144)]
    warn_blocks: u32,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Begin each line for people with the time (UTC). With --json every event has it anyway
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "BTCR2_TIMES")]
    times: Option<bool>,
}

/// Why a member's beacons cannot be watched.
#[derive(Debug, thiserror::Error)]
enum WatchFailure {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{0}")]
    Damaged(String),
    #[error("the vault has beacons on {0}: choose one with --network")]
    SeveralNetworks(String),
    #[error("there is nothing to watch: the vault has no beacon of that DID and network")]
    NothingToWatch,
    #[error("--chain: {0}")]
    Source(#[from] SourceError),
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Check(#[from] CheckFailure),
    #[error("--identity is one DID's, and the vault has several: choose one with --did")]
    SeveralDids,
}

impl Failure for WatchFailure {
    fn status(&self) -> u8 {
        match self {
            Self::SeveralNetworks(_) | Self::SeveralDids | Self::Source(_) => 2,
            Self::Check(error) => error.status(),
            Self::Read(_) | Self::Damaged(_) | Self::NothingToWatch | Self::Chain(_) => 1,
        }
    }
}

pub(super) fn main(args: &WatchArgs) -> ExitCode {
    let outcome = super::block_on(async {
        let hangups = Hangups::new();
        tokio::select! {
            outcome = watch(args) => outcome,
            () = crate::telemetry::stop_signal() => Ok(ExitCode::SUCCESS),
            never = ignore_hangups(hangups, printer(args)) => match never {},
        }
    });
    outcome.unwrap_or_else(|error| fail(&error))
}

fn printer(args: &WatchArgs) -> Printer {
    Printer::new(args.json).with_times(args.times.unwrap_or(false))
}

async fn watch(args: &WatchArgs) -> Result<ExitCode, WatchFailure> {
    let source = args.chain.source()?;
    let printer = printer(args);
    let mut contents = read(args).await?;
    if let Some(problem) = contents.problems.first() {
        // An unreadable entry might be an approval: every alarm would be in doubt.
        return Err(WatchFailure::Damaged(problem.clone()));
    }
    let network = network(args, &contents)?;
    let of_network = |contents: &VaultContents| {
        let entries = || contents.entries.iter().filter(|entry| entry.record.output.network() == network);
        let mut found = beacons(entries());
        found.extend(initial_beacons(entries(), &contents.prepared));
        found
    };
    let found = of_network(&contents);
    if found.is_empty() && !args.check {
        return Err(WatchFailure::NothingToWatch);
    }
    let chain = connect(args, source, network, &printer).await?;
    let mut health = match args.check {
        true => Some(Health::new(args, &contents, network, &chain, &source.to_string()).await?),
        false => None,
    };
    let mut watcher = Watcher::new(chain, args.look_back, args.warn_blocks);
    watcher.follow(found);
    printer.result(
        &json!({ "event": "watching", "network": network, "beacons": watcher.len() }),
        &format!("watching {} beacons on {network}", watcher.len()),
    );
    if args.once {
        let notices = watcher.poll().await?;
        notices.iter().for_each(|notice| printer.watch_notice(notice));
        let health = match &mut health {
            Some(health) => health.look(&printer, &contents).await?,
            None => Counts::default(),
        };
        return Ok(result(&printer, &notices, health));
    }
    let mut reached = true;
    loop {
        match watcher.poll().await {
            Ok(notices) => {
                reached = true;
                notices.iter().for_each(|notice| printer.watch_notice(notice));
                if let Some(health) = &mut health {
                    health.look_again(&printer, &contents).await;
                }
                if output::lost() {
                    // Alarms would be lost: the exit status reports it.
                    return Ok(ExitCode::FAILURE);
                }
            }
            Err(error) if error.is_transient() => {
                if std::mem::replace(&mut reached, false) {
                    printer.warn(&format!("the chain does not answer: {error}"));
                }
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(args.poll.0).await;
        // What `join` stores meanwhile is known before its announcement can be on the chain. A copy is read while
        // `join` runs; if none can be made, the entries of the previous read stay.
        match read(args).await {
            Ok(read) => {
                contents = after(&printer, &contents, read);
                watcher.follow(of_network(&contents));
            }
            Err(error) if error.is_in_use() => tracing::info!(%error, "the vault is not read again yet"),
            Err(error) => printer.warn(&format!("the vault cannot be read again: {error}")),
        }
    }
}

/// The vault as it was just read. While a part of it cannot be read, what was read of that before is watched on: its beacons can still
/// be spent from.
fn after(printer: &Printer, before: &VaultContents, read: VaultContents) -> VaultContents {
    if read.problems.is_empty() {
        return read;
    }
    for problem in read.problems.iter().filter(|problem| !before.problems.contains(problem)) {
        printer.warn(&format!(
            "a part of the vault cannot be read: {problem}. What was read of it before is still watched; restore it from a backup: `vault \
             import`"
        ));
    }
    read.with_earlier(before)
}

async fn read(args: &WatchArgs) -> Result<VaultContents, ReadError> {
    Ok(args.sources.sources().read().await?.only(args.did.as_ref()))
}

fn network(args: &WatchArgs, contents: &VaultContents) -> Result<Network, WatchFailure> {
    if let Some(network) = args.network {
        return Ok(network);
    }
    if let Some(did) = args.did.as_ref().filter(|_| args.check) {
        return Ok(did.network());
    }
    let mut networks: Vec<Network> = contents.entries.iter().map(|entry| entry.record.output.network()).collect();
    if args.check {
        networks.extend(contents.dids().iter().map(Did::network));
    }
    let names: BTreeSet<String> = networks.iter().map(Network::to_string).collect();
    if names.len() > 1 {
        let names: Vec<_> = names.into_iter().collect();
        return Err(WatchFailure::SeveralNetworks(names.join(", ")));
    }
    networks.first().copied().ok_or(WatchFailure::NothingToWatch)
}

/// Connects. Retries a chain that does not answer, unless it is to look only once.
async fn connect(
    args: &WatchArgs,
    source: &crate::bitcoin::chain::ChainSource,
    network: Network,
    printer: &Printer,
) -> Result<Arc<dyn Chain>, ChainError> {
    let mut warned = false;
    loop {
        match source.connect(network).await {
            Err(error) if error.is_transient() && !args.once => {
                if !std::mem::replace(&mut warned, true) {
                    printer.warn(&format!("the chain does not answer: {error}"));
                }
                tokio::time::sleep(args.poll.0).await;
            }
            outcome => return outcome,
        }
    }
}

/// The health of the DIDs of a vault, again and again.
struct Health {
    terms: Terms,
    /// Where the backups are recorded.
    states: Vec<PathBuf>,
    dids: Vec<(Inspector, Changes)>,
}

impl Health {
    async fn new(
        args: &WatchArgs,
        contents: &VaultContents,
        network: Network,
        chain: &Arc<dyn Chain>,
        chain_name: &str,
    ) -> Result<Self, WatchFailure> {
        let dids: Vec<Did> = match &args.did {
            Some(did) => vec![did.clone()],
            None => contents.dids().into_iter().filter(|did| did.network() == network).collect(),
        };
        if dids.is_empty() {
            return Err(WatchFailure::NothingToWatch);
        }
        if dids.len() > 1 && args.health.has_identity() {
            return Err(WatchFailure::SeveralDids);
        }
        let mut inspectors = Vec::with_capacity(dids.len());
        for did in dids {
            let Files { given: files, keys, .. } = args.health.files(&did).await?;
            let stores = args.health.stores().map_err(CheckFailure::from)?;
            let (chain, vault) = ((Arc::clone(chain), chain_name.to_owned()), args.sources.sources());
            let inspector = Inspector::new(did, chain, stores, files, vault, keys);
            inspectors.push((inspector, Changes::default()));
        }
        let states = args.sources.sources().states;
        Ok(Self { terms: args.health.terms(args.warn_blocks), states, dids: inspectors })
    }

    /// Reports what has changed, and counts what is not as it should be.
    async fn look(&mut self, printer: &Printer, contents: &VaultContents) -> Result<Counts, CheckFailure> {
        let mut counts = Counts::default();
        for (inspector, changes) in &mut self.dids {
            let did = inspector.did();
            let files = (Some(contents.clone().only(Some(did))), read_backup(&self.states, did)?);
            let inspection = inspector.look_with(files, Clock::system().now(), self.terms.min_conf).await?;
            let report = evaluate(&inspection.view(&self.terms));
            changes.since(&report).iter().for_each(|notice| printer.notice(notice, notice.text()));
            counts.alarms += report.with(Status::Problem).count();
            counts.unknown += report.with(Status::Unknown).count();
            counts.warnings += report.with(Status::Warning).count();
        }
        Ok(counts)
    }

    /// The same, in a program that goes on after an error.
    async fn look_again(&mut self, printer: &Printer, contents: &VaultContents) {
        if let Err(error) = self.look(printer, contents).await {
            printer.warn(&format!("the health of the DID cannot be checked: {error}"));
        }
    }
}

/// What one look has found.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// Alarms, and problems of the health.
    alarms: usize,
    warnings: usize,
    /// What could not be read.
    unknown: usize,
}

impl Counts {
    /// The exit status of `--once`.
    fn status(self) -> u8 {
        match self {
            Self { unknown: 1.., .. } => 1,
            Self { alarms: 0, warnings: 0, .. } => 0,
            _ => SOMETHING_WRONG,
        }
    }
}

fn result(printer: &Printer, notices: &[WatchNotice], health: Counts) -> ExitCode {
    let count = |severity| notices.iter().filter(|notice| notice.severity() == severity).count();
    let alarms = count(Severity::Alarm) + health.alarms;
    let warnings = count(Severity::Warning) + health.warnings;
    let status = Counts { alarms, warnings, ..health }.status();
    // What is not known may be an alarm.
    let (ok, alarms) = (status == 0, alarms + health.unknown);
    let text = match (ok, health.unknown) {
        (true, _) => "all is well".to_owned(),
        (false, 0) => format!("{alarms} alarms, {warnings} warnings"),
        (false, unknown) => format!("{alarms} alarms ({unknown} of them unknown), {warnings} warnings"),
    };
    printer.result(&json!({ "event": "result", "ok": ok, "alarms": alarms, "warnings": warnings }), &text);
    ExitCode::from(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_is_a_failure_of_the_look() {
        let of = |alarms, warnings, unknown| Counts { alarms, warnings, unknown }.status();
        assert_eq!([of(0, 0, 0), of(0, 1, 0), of(1, 0, 0)], [0, 3, 3]);
        assert_eq!([of(0, 0, 1), of(1, 1, 1)], [1, 1]);
    }
}
