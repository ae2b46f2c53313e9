//! `demo`: a whole cohort in one command.

use std::{
    fs,
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::{
    demo::{
        self, DemoConfig, DemoError, DemoTransport, Progress, Report,
        standing::{self, StandingDemo, StandingReport},
    },
    protocol::{
        beacon::BeaconType,
        cohort::{
            event::SpendPath,
            standing::{Mode, StandingBeacon},
        },
    },
};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Beacon {
    /// A map from each DID to the hash of its update; every member sees every DID in it
    Cas,
    /// A sparse Merkle tree; a member sees its own proof only
    Smt,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SpendingPath {
    /// One MuSig2 signature of all members
    Key,
    /// One member goes silent after the nonces, the others sign on the k-of-n fallback leaf
    Fallback,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Network {
    /// Within this process
    Memory,
    /// Over HTTP, through real sockets of the loopback interface, on a free port
    Http,
    /// Over a Nostr relay in this process, on a free port, each participant with a connection of its own
    Nostr,
}

/// Runs an Aggregation Service and its participants as actors in this process, each participant with a real update, and
/// verifies the signed transaction by BIP-340 and by Bitcoin Core's consensus code. The coin is made up; nothing is
/// broadcast, and no file is written unless --out is given.
#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// How many members the cohort has, 1 to 1000; one of three or more has an EXTERNAL DID
    #[arg(long, value_name = "N", default_value_t = 5)]
    participants: usize,
    /// How many of them decline to update
    #[arg(long, value_name = "D", default_value_t = 0)]
    decline: usize,
    /// How the updates are aggregated into the signal
    #[arg(long, value_enum, default_value_t = Beacon::Cas)]
    beacon: Beacon,
    /// Which path of the beacon output the transaction takes
    #[arg(long, value_enum, default_value_t = SpendingPath::Key)]
    path: SpendingPath,
    /// How messages travel between the service and the participants
    #[arg(long, value_enum, default_value_t = Network::Memory)]
    transport: Network,
    /// Run a standing cohort: one address, several announcements, many DIDs of each seat
    #[arg(long, conflicts_with_all = ["decline", "path", "out"])]
    standing: bool,
    /// With --standing: how many announcements
    #[arg(long, value_name = "N", default_value_t = 3, requires = "standing")]
    announcements: usize,
    /// With --standing: how many DIDs each seat has
    #[arg(long, value_name = "N", default_value_t = 2, requires = "standing")]
    dids: usize,
    /// With --standing: how many DIDs of each seat are updated in each announcement
    #[arg(long, value_name = "N", default_value_t = 1, requires = "standing")]
    updates: usize,
    /// With --standing: how many seats are silent in every second announcement
    #[arg(long, value_name = "N", default_value_t = 0, requires = "standing")]
    absent: usize,
    /// With --standing: how many seats refuse to sign once
    #[arg(long, value_name = "N", default_value_t = 0, requires = "standing")]
    refuse: usize,
    /// Make every key and every nonce follow from this number, to see the same transaction again
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Write tx.hex and participant-<i>.json (DID, sidecar) into this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print one JSON object instead of text for people
    #[arg(long)]
    json: bool,
}

impl DemoArgs {
    fn config(&self) -> DemoConfig {
        DemoConfig {
            participants: self.participants,
            decline: self.decline,
            beacon: match self.beacon {
                Beacon::Cas => BeaconType::cas(),
                Beacon::Smt => BeaconType::smt(),
            },
            path: match self.path {
                SpendingPath::Key => SpendPath::KeyPath,
                SpendingPath::Fallback => SpendPath::ScriptPath,
            },
            transport: match self.transport {
                Network::Memory => DemoTransport::Memory,
                Network::Http => DemoTransport::Http,
                Network::Nostr => DemoTransport::Nostr,
            },
            seed: self.seed,
        }
    }
}

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Demo(#[from] DemoError),
    /// Not an error of the caller: the same call may succeed later, or on another disk.
    #[error("cannot write to {}: {cause}", directory.display())]
    Output { directory: PathBuf, cause: io::Error },
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Demo(DemoError::Config(_)) => 2,
            Self::Demo(_) | Self::Output { .. } => 1,
        }
    }
}

pub(super) fn main(args: &DemoArgs) -> ExitCode {
    let config = args.config();
    let ran = if args.standing { run_standing(args, config.transport) } else { run(args, &config) };
    match ran {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            if args.json {
                out!("{}", json!({ "ok": false, "error": error.to_string() }));
            }
            err!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: &DemoArgs, config: &DemoConfig) -> Result<bool, Failure> {
    config.check()?;
    if let Some(directory) = &args.out {
        // Before the round: a large one takes long, and its result would be lost.
        fs::create_dir_all(directory).map_err(|cause| Failure::Output { directory: directory.clone(), cause })?;
    }
    if config.transport == DemoTransport::Http {
        crate::telemetry::raise_open_files();
    }
    let line = ProgressLine::new();
    let report = super::block_on(demo::run(config, |progress| line.show(progress)))?;
    line.finish();
    if let Some(directory) = &args.out {
        report.write_to(directory).map_err(|cause| Failure::Output { directory: directory.clone(), cause })?;
    }
    if args.json {
        out!("{}", report.to_json(config.path));
    } else {
        print_account(&report, args);
    }
    Ok(report.ok(config.path))
}

fn run_standing(args: &DemoArgs, transport: DemoTransport) -> Result<bool, Failure> {
    let config = StandingDemo {
        seats: args.participants,
        dids: args.dids,
        announcements: args.announcements,
        updates: args.updates,
        absent: args.absent,
        refuse: args.refuse,
        beacon: match args.beacon {
            Beacon::Cas => StandingBeacon::Cas,
            Beacon::Smt => StandingBeacon::Smt,
        },
        transport,
        shares_boards: true,
        seed: args.seed,
    };
    config.check()?;
    if transport == DemoTransport::Http {
        crate::telemetry::raise_open_files();
    }
    let report = super::block_on(standing::run(&config, |step| {
        if io::stderr().is_terminal() {
            err!("{step}");
        }
    }))?;
    if args.json {
        out!("{}", report.to_json(config.announcements));
    } else {
        print_standing(&report);
    }
    Ok(report.ok(config.announcements))
}

fn print_standing(report: &StandingReport) {
    let mark = |good: bool| if good { "yes" } else { "NO" };
    out!("Standing cohort");
    out!("  address      {}", report.address);
    out!("  seats        {}, {} DIDs in all", report.seats, report.dids);
    out!("               {} seats together can spend, and can end every DID of the cohort", report.spenders);
    out!(
        "  formed in    {:.2} s, DIDs registered in {:.2} s",
        report.formation.as_secs_f64(),
        report.registration.as_secs_f64()
    );
    for one in &report.announcements {
        let (txid, mode) = (one.transaction.compute_txid(), one.mode);
        let how = match mode {
            Mode::Key => "all seats, one MuSig2 signature".to_owned(),
            Mode::Fallback => format!("{} seats on the fallback leaf", report.spenders),
        };
        out!("  number {:<5} {txid}", one.number);
        out!(
            "               {} updates, {} seats silent, {} vB, {:.2} s",
            one.updates,
            one.absent,
            one.transaction.vsize(),
            one.elapsed.as_secs_f64()
        );
        out!("               signed by {how}");
        out!(
            "               verified: Bitcoin Core consensus {}, data of the seats that took part {}",
            mark(one.consensus),
            mark(one.data)
        );
    }
    if report.failed > 0 {
        out!("  failed       {} numbers, whose coin the next one has spent", report.failed);
    }
    out!("  the coin is made up: nothing is broadcast, and a signed transaction counts as final");
}

/// A live line on standard error, if that is a terminal.
struct ProgressLine(Option<ProgressBar>);

impl ProgressLine {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{spinner} {msg:32} {bar:30} {pos}/{len}  {elapsed}");
        Self(std::io::stderr().is_terminal().then_some(style).and_then(Result::ok).map(|style| {
            let bar = ProgressBar::new(0).with_style(style);
            bar.enable_steady_tick(std::time::Duration::from_millis(100));
            bar
        }))
    }

    fn show(&self, progress: Progress) {
        if let Some(bar) = &self.0 {
            bar.set_length(progress.of as u64);
            bar.set_position(progress.done as u64);
            bar.set_message(progress.phase);
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn print_account(report: &Report, args: &DemoArgs) {
    let mark = |good: bool| if good { "yes" } else { "NO" };
    let signed = &report.signed;
    let members = report.members.len();
    let declined = report.declined();
    let fee = report.prevout.value - signed.transaction.output.iter().map(|output| output.value).sum();
    out!("Cohort {}", report.cohort_id);
    out!(
        "  beacon       {}, {members} members: {} updated, {declined} declined",
        report.beacon_type,
        members - declined
    );
    out!("  address      {}", report.output.address());
    out!("  signal       {}", report.signal);
    out!("  transaction  {}", signed.transaction.compute_txid());
    out!("               {} vB, fee {} sat (the coin is made up)", signed.transaction.vsize(), fee.to_sat());
    match signed.path {
        SpendPath::KeyPath => out!("  signed by    all {members} members, one MuSig2 signature (key path)"),
        SpendPath::ScriptPath => {
            let silent = signed.holdouts.len();
            let names: Vec<_> = signed.holdouts.iter().map(ToString::to_string).collect();
            out!("  signed by    {} of {members} members on the fallback leaf (script path)", signed.signers.len());
            out!("  silent       {silent}: {}", names.join(", "));
        }
    }
    out!("  transcript   {} messages, head signed by the service", report.transcript_size);
    out!("  verified     BIP-340: {}", mark(report.verified.bip340));
    out!("               Bitcoin Core consensus: {}", mark(report.verified.consensus));
    out!("               every member's sidecar: {}", mark(report.verified.sidecars));
    out!("  time         {:.2} s", report.elapsed.as_secs_f64());
    if let Some(directory) = &args.out {
        out!("  written      {}/tx.hex, participant-<i>.json", directory.display());
    }
}
