//! `cost`: what cohorts saved, from the results that `serve --out` wrote.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use ::bitcoin::{Amount, Transaction, consensus::encode::deserialize_hex};
use clap::Args;
use serde_json::{Value, json};

use super::fail;
use crate::{
    cost::{Announced, Savings, WalletKind, savings},
    error::ProgramError,
    inputs,
};

#[derive(Debug, Args)]
#[command(
    after_help = "The comparison is at each cohort's own fee rate: its transaction against one singleton transaction\n\
    (one input, change, OP_RETURN of 32 bytes) for every member that announced an update.\n\n\
    A result is written when a cohort has signed. Whether its transaction was announced, and what was paid to bump it,\n\
    is not in it: cohorts that were signed and never announced are counted, children that paid for others are not."
)]
pub(super) struct CostArgs {
    /// The directory that `serve --out` wrote to, or that of one cohort in it
    directory: PathBuf,
    /// What a member's own wallet would spend
    #[arg(long, value_enum, default_value_t)]
    wallet: WalletKind,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: &CostArgs) -> ExitCode {
    match cost(args) {
        Ok(text) => {
            out!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn cost(args: &CostArgs) -> Result<String, ProgramError> {
    let mut cohorts = Vec::new();
    for directory in directories(&args.directory)? {
        let (cohort_id, announced) = read(&directory)?;
        cohorts.push((cohort_id, savings(&announced, args.wallet)));
    }
    if cohorts.is_empty() {
        let problem = format!("no results in {}: give the directory of `serve --out`", args.directory.display());
        return Err(ProgramError::Usage(problem));
    }
    let total: i64 = cohorts.iter().map(|(_, saved)| saved.saved).sum();
    let updates: u64 = cohorts.iter().map(|(_, saved)| saved.updates).sum();
    if args.json {
        let cohorts: Vec<_> = cohorts.iter().map(|(id, saved)| json!({ "cohortId": id, "cost": saved })).collect();
        let total = json!({ "saved": total, "updates": updates });
        return Ok(json!({ "wallet": args.wallet, "cohorts": cohorts, "total": total }).to_string());
    }
    let mut lines: Vec<_> = cohorts.iter().map(|(id, saved)| line(id, saved)).collect();
    lines.push(format!("in all: {total} sat saved on {updates} updates"));
    Ok(lines.join("\n"))
}

fn line(cohort_id: &str, saved: &Savings) -> String {
    format!(
        "cohort {cohort_id}\n  {} updates for {} sat ({:.1} sat each) at {:.2} sat/vB; {} singletons of {} sat: \
         {} sat saved, {} vB of block space",
        saved.updates,
        saved.paid.to_sat(),
        saved.paid_each,
        saved.fee_rate,
        saved.updates,
        saved.singleton.to_sat(),
        saved.saved,
        saved.saved_vsize,
    )
}

/// The directories of cohorts with a result.
fn directories(root: &Path) -> Result<Vec<PathBuf>, ProgramError> {
    if root.join("result.json").is_file() {
        return Ok(vec![root.to_owned()]);
    }
    let io_error = |error| ProgramError::Io { what: root.display().to_string(), error };
    let entries: Result<Vec<_>, _> = fs::read_dir(root).map_err(io_error)?.collect();
    let mut found: Vec<_> = entries.map_err(io_error)?.into_iter().map(|entry| entry.path()).collect();
    found.retain(|directory| directory.join("result.json").is_file());
    found.sort();
    Ok(found)
}

fn read(directory: &Path) -> Result<(String, Announced), ProgramError> {
    let file = directory.join("result.json");
    let wrong = |problem: &str| ProgramError::Usage(format!("{}: {problem}", file.display()));
    let result = read_json(&file)?;
    let cohort_id = result["cohortId"].as_str().ok_or_else(|| wrong("no cohortId"))?.to_owned();
    let hex = result["txHex"].as_str().ok_or_else(|| wrong("no txHex"))?;
    let transaction: Transaction = deserialize_hex(hex).map_err(|error| wrong(&format!("txHex: {error}")))?;
    let value =
        result["prevout"]["value"].as_u64().map(Amount::from_sat).ok_or_else(|| wrong("no prevout.value"))?;
    let paid: Amount = transaction.output.iter().map(|output| output.value).sum();
    let fee = value.checked_sub(paid).ok_or_else(|| wrong("the transaction pays more than its coin holds"))?;
    let vsize = u64::try_from(transaction.vsize()).unwrap_or(u64::MAX);
    Ok((cohort_id, Announced { updates: updates(directory)?, vsize, fee }))
}

/// How many updates a cohort announced: the entries of its map, or the proofs that include one.
fn updates(directory: &Path) -> Result<u64, ProgramError> {
    let announcement = directory.join("announcement.json");
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    if announcement.is_file() {
        return Ok(count(read_json(&announcement)?.as_object().map_or(0, serde_json::Map::len)));
    }
    let proofs = directory.join("proofs");
    let io_error = |error| ProgramError::Io { what: proofs.display().to_string(), error };
    let mut included = 0;
    for entry in fs::read_dir(&proofs).map_err(io_error)? {
        let proof = read_json(&entry.map_err(io_error)?.path())?;
        included += u64::from(proof.get("updateId").is_some());
    }
    Ok(included)
}

fn read_json(file: &Path) -> Result<Value, ProgramError> {
    Ok(inputs::json(file)?)
}
