//! `member enrol` and `member mint`: a seat first, then DIDs that begin with its beacon.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use clap::Args;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{MemberFailure, StateArgs};
use crate::{
    config::Span,
    error::ProgramError,
    inputs,
    member::{OfflineError, control::Request, offline},
    protocol::id::CohortId,
};

/// The pause between two questions to the agent.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Args, Debug)]
pub(super) struct EnrolArgs {
    #[command(flatten)]
    at: StateArgs,
    /// The seat's name in the agent's file; any, without it
    #[arg(long, value_name = "NAME")]
    seat: Option<String>,
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "1h")]
    timeout: Span,
}

#[derive(Args, Debug)]
pub(super) struct MintArgs {
    #[command(flatten)]
    at: StateArgs,
    /// How many DIDs; their files are called did-1.id, did-2.id and so on, after the last one that is there
    #[arg(long, value_name = "N", required_unless_present = "file", conflicts_with = "file")]
    count: Option<usize>,
    /// A file with a name on each line, one for each DID
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The seat's name in the agent's file, if there are several
    #[arg(long, value_name = "NAME")]
    seat: Option<String>,
    /// The cohort, if the seat is in several
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    cohort: Option<CohortId>,
    /// List no Singleton beacon of the DID's own key. If the cohort ends, the DID can never be updated again
    #[arg(long)]
    no_singleton: bool,
    /// How long to wait until the cohort has signed that they are registered. The agent goes on after that
    #[arg(long, value_name = "TIME", default_value = "1h")]
    timeout: Span,
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Asks the agent, which has to run.
async fn agent(at: &StateArgs, request: Request) -> Result<Value, MemberFailure> {
    let answer = offline(&at.state, request).await?;
    match answer.get("running") {
        Some(Value::Bool(false)) => Err(OfflineError::NeedsAgent.into()),
        _ => Ok(answer),
    }
}

pub(super) async fn enrol(args: &EnrolArgs) -> Result<(), MemberFailure> {
    let until = Instant::now() + args.timeout.0;
    loop {
        let status = agent(&args.at, Request::Status).await?;
        let seats =
            list(&status["seats"]).filter(|seat| args.seat.as_ref().is_none_or(|name| seat["name"] == **name));
        let formed =
            seats.flat_map(|seat| list(&seat["cohorts"])).filter(|cohort| cohort["beaconAddress"].is_string());
        let formed: Vec<&Value> = formed.collect();
        if !formed.is_empty() {
            for cohort in formed {
                let text = |name: &str| cohort[name].as_str().unwrap_or_default();
                match args.at.json {
                    true => out!("{cohort}"),
                    false => out!(
                        "cohort {} of {}: {} {}",
                        text("cohortId"),
                        text("service"),
                        text("beaconType"),
                        text("beaconAddress")
                    ),
                }
            }
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(MemberFailure::Failed("no cohort has formed in time: `member log` shows why".to_owned()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The names of the new DIDs.
fn names(args: &MintArgs, known: usize) -> Result<Vec<String>, MemberFailure> {
    let usage = |problem: String| MemberFailure::from(ProgramError::Usage(problem));
    match (&args.file, args.count) {
        (Some(path), _) => {
            let text = inputs::text(path).map_err(|error| usage(error.to_string()))?;
            Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
        }
        (None, Some(count)) => Ok((known + 1..=known + count).map(|number| format!("did-{number}")).collect()),
        (None, None) => Err(usage("--count N or --file FILE expected".to_owned())),
    }
}

/// How many DIDs the agent has made: the greatest number in the names of their files.
fn made_before(args: &MintArgs) -> usize {
    let minted = args.at.state.join(crate::member::MINTED);
    let directories = std::fs::read_dir(minted).into_iter().flatten().filter_map(Result::ok);
    let files = directories.flat_map(|seat| std::fs::read_dir(seat.path()).into_iter().flatten());
    let numbers = files.filter_map(|file| {
        let name = file.ok()?.file_name().into_string().ok()?;
        name.strip_prefix("did-")?.strip_suffix(".id")?.parse::<usize>().ok()
    });
    numbers.max().unwrap_or(0)
}

pub(super) async fn mint(args: MintArgs) -> Result<(), MemberFailure> {
    let names = names(&args, made_before(&args))?;
    let order = Request::Mint {
        seat: args.seat.clone(),
        cohort_id: args.cohort.clone(),
        names,
        no_singleton: args.no_singleton,
    };
    let made = agent(&args.at, order).await?;
    err!(
        "{} DIDs are made, in {}. They are not to be used before they are registered",
        list(&made["dids"]).count(),
        args.at.state.join(crate::member::MINTED).display()
    );
    if args.no_singleton {
        err!(
            "warning: they have no Singleton beacon: if the cohort ends, no update of them can be announced any more"
        );
    }
    let mut waiting: BTreeSet<String> =
        list(&made["dids"]).filter_map(|one| one["did"].as_str()).map(str::to_owned).collect();
    let until = Instant::now() + args.timeout.0;
    while !waiting.is_empty() {
        let dids = agent(&args.at, Request::Dids).await?;
        let registered = list(&dids).filter(|did| {
            let cohorts = list(&did["registeredIn"]);
            cohorts.into_iter().any(|cohort| *cohort == made["cohortId"])
        });
        let registered: BTreeSet<&str> = registered.filter_map(|did| did["did"].as_str()).collect();
        for one in list(&made["dids"]) {
            let did = one["did"].as_str().unwrap_or_default();
            if registered.contains(did) && waiting.remove(did) {
                match args.at.json {
                    true => out!("{}", json!({ "name": one["name"], "did": did, "file": one["file"] })),
                    false => out!("{did}  {}", one["file"].as_str().unwrap_or_default()),
                }
            }
        }
        if !waiting.is_empty() && Instant::now() >= until {
            return Err(MemberFailure::Failed(format!(
                "{} DIDs are not registered yet, and not to be used: the agent goes on (`member dids`, `member log`)",
                waiting.len()
            )));
        }
        if !waiting.is_empty() {
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}
