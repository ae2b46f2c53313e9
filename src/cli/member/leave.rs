//! `member leave` and `member rescue`: a DID gets out of a cohort, by an announcement of that cohort or by its own Singleton beacon.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use serde_json::{Value, json};

use super::{
    super::singleton,
    MemberFailure, StateArgs,
    show::{field, list},
};
use crate::{
    error::ProgramError,
    files::write_new,
    inputs,
    member::{control::Request, offline},
    protocol::{did::Did, id::CohortId, text::shown},
    shell::quoted,
};

#[derive(Args, Debug)]
pub(super) struct LeaveArgs {
    /// The DIDs
    #[arg(value_name = "DID", required_unless_present = "all", conflicts_with = "all")]
    dids: Vec<Did>,
    /// All DIDs that are registered in the cohort. The seat stays: it is a key of the output, and goes on signing
    #[arg(long)]
    all: bool,
    /// The cohort
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    cohort: CohortId,
    /// The cohort whose beacon takes the place of the other: the DIDs have to be registered there. Without it the beacon is removed
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    to: Option<CohortId>,
    #[command(flatten)]
    at: StateArgs,
}

#[derive(Args, Debug)]
pub(super) struct RescueArgs {
    /// The DID
    #[arg(value_name = "DID")]
    did: Did,
    /// The dead cohort, if the document lists the beacons of several
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    cohort: Option<CohortId>,
    /// With --cohort: its address, where the seat in it is lost. What it has announced since is fetched from the service then, as long as that
    /// serves its history
    #[arg(long, value_name = "ADDRESS", requires = "cohort")]
    address: Option<String>,
    /// The cohort whose beacon takes the place of the dead one: the DID has to be registered there. Without it the beacon is removed
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    to: Option<CohortId>,
    /// Prepare no new update, but the one that was submitted to a cohort and may still be announced: the same one elsewhere does no harm
    #[arg(long, conflicts_with_all = ["cohort", "to"])]
    pending: bool,
    /// Where to write the update, for `singleton --update`
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where to read the chain: core=URL or esplora=URL. With it the transaction is made, from a coin at a Singleton beacon of the DID
    #[arg(long, value_name = "KIND=URL", env = "BTCR2_CHAIN", hide_env_values = true)]
    chain: Option<String>,
    /// How many confirmations a signal needs to count
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    min_conf: u32,
    /// The Singleton beacon that announces, by the id of its service or its address [default: the one that has coins]
    #[arg(long, value_name = "ID", requires = "chain")]
    service: Option<String>,
    /// The fee rate in sat/vB [default: what the chain estimates, or 2]
    #[arg(long, value_name = "RATE", requires = "chain")]
    fee_rate: Option<String>,
    /// Sign and broadcast the transaction
    #[arg(long, requires = "chain")]
    send: bool,
    /// With --send: wait until N blocks confirm it, 6 unless stated
    #[arg(long, value_name = "N", requires = "send", num_args = 0..=1, default_missing_value = "6")]
    wait: Option<u32>,
    /// With --wait: how often to query the chain [default: 30s]
    #[arg(long, value_name = "TIME", requires = "wait", hide_short_help = true)]
    chain_poll: Option<String>,
    #[command(flatten)]
    at: StateArgs,
}

pub(super) async fn leave(args: LeaveArgs) -> Result<(), MemberFailure> {
    let LeaveArgs { dids, all, cohort, to, at } = args;
    let left = offline(&at.state, Request::Leave { dids, all, cohort_id: cohort, to }).await?;
    if at.json {
        out!("{left}");
    } else {
        for one in list(&left["leaving"]) {
            let how = match one["update"].as_u64() {
                Some(update) => format!("by update {update} in the queue"),
                None => "its document does not list the address: it is unregistered".to_owned(),
            };
            out!("{}  {}  {how}", field(one, "did"), field(one, "step"));
        }
    }
    let refused: Vec<&Value> = list(&left["refused"]).collect();
    for one in &refused {
        err!("{} stays: {}", field(one, "did"), field(one, "reason"));
    }
    match refused.len() {
        0 => Ok(()),
        count => Err(MemberFailure::Failed(format!("{count} DIDs stay"))),
    }
}

/// Writes the update; one that was written before is left as it is.
fn write(path: &Path, rescue: &Value) -> Result<(), MemberFailure> {
    let file = json!({
        "update": rescue["update"], "sourceDocument": rescue["sourceDocument"], "sidecar": rescue["sidecar"],
    });
    if path.exists() {
        let known: Value =
            inputs::json(path).map_err(|error| MemberFailure::from(ProgramError::Usage(error.to_string())))?;
        if known["update"] == file["update"] {
            return Ok(());
        }
        let problem = format!("--out {}: it exists, and has another update: give another name", path.display());
        return Err(ProgramError::Usage(problem).into());
    }
    write_new(path, format!("{file:#}\n").as_bytes())
        .map_err(|error| ProgramError::Io { what: path.display().to_string(), error }.into())
}

/// What `singleton` is called with.
fn call(args: &RescueArgs, rescue: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut words = vec!["--identity".to_owned(), text(&rescue["identity"])];
    words.extend(["--update".to_owned(), args.out.display().to_string()]);
    words.extend(["--min-conf".to_owned(), args.min_conf.to_string()]);
    let given = [
        ("--chain", args.chain.clone()),
        ("--service", args.service.clone()),
        ("--fee-rate", args.fee_rate.clone()),
        ("--chain-poll", args.chain_poll.clone()),
        ("--wait", args.wait.map(|blocks| blocks.to_string())),
    ];
    for (flag, value) in given {
        words.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
    }
    words.extend(args.send.then(|| "--send".to_owned()));
    words.extend(args.at.json.then(|| "--json".to_owned()));
    words
}

pub(super) async fn rescue(args: RescueArgs) -> Result<ExitCode, MemberFailure> {
    let request = Request::Rescue {
        did: args.did.clone(),
        cohort_id: args.cohort.clone(),
        address: args.address.clone(),
        to: args.to.clone(),
        pending: args.pending,
    };
    let rescue = offline(&args.at.state, request).await?;
    write(&args.out, &rescue)?;
    err!(
        "the update to version {} is in {}. From now on the agent submits no other one of that version",
        field(&rescue, "versionId"),
        args.out.display()
    );
    if args.chain.is_some() {
        let done = singleton::announce_file(&call(&args, &rescue)).await;
        return done.map_err(|error| {
            err!("when a coin is there, the same command goes on: the update stays the same");
            error.into()
        });
    }
    if args.at.json {
        out!("{rescue}");
        return Ok(ExitCode::SUCCESS);
    }
    out!("It is announced with a coin at one of these Singleton beacons:");
    for beacon in list(&rescue["beacons"]) {
        let whose = if beacon["own"] == true { "" } else { ", by the wallet that has its key (PSBT)" };
        out!("  {} {}{whose}", field(beacon, "id"), field(beacon, "address"));
    }
    let words: Vec<String> = call(&args, &rescue).iter().map(|word| quoted(&shown(word))).collect();
    out!("  btcr2-aggregation singleton {} --chain KIND=URL --send --wait", words.join(" "));
    Ok(ExitCode::SUCCESS)
}
