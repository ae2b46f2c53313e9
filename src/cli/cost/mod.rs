//! `cost`: what cohorts saved, from the results that `serve --out` wrote; what standing cohorts cost, from a state directory; and what one
//! would cost.

mod estimate;
mod ledger;
mod text;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use ::bitcoin::{Address, Amount, Transaction, address::NetworkUnchecked, consensus::encode::deserialize_hex};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Value, json};

use super::{ChainArg, Failure, fail, singleton::SatPerVb};
use crate::{
    bitcoin::announcement::change_of,
    cost::{Announced, OUTCOME_FILE, Savings, WalletKind, savings},
    error::ProgramError,
    inputs,
    protocol::network::Network,
};

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "The comparison is at each cohort's own fee rate: its transaction against one singleton transaction\n\
    (one input, change, OP_RETURN of 32 bytes) for every member that announced an update.\n\n\
    An update counts once: in the first cohort that announced it. The first update of a DID at a beacon has to be announced\n\
    by a singleton transaction too, from a beacon that the document lists already: that is part of the cohort's cost, unless\n\
    --listed states that the documents list the beacon.\n\n\
    `serve` writes the end of an announcement, and the fees of its children, beside the result (announced.json).\n\
    A cohort whose announcement failed saved nothing and is left out. Without that file the end is not known yet."
)]
pub(super) struct CostArgs {
    #[command(subcommand)]
    command: Option<CostCommand>,
    /// The directory that `serve --out` wrote to, or that of one cohort in it
    #[arg(required = true)]
    directory: Option<PathBuf>,
    /// What a member's own wallet would spend
    #[arg(long, value_enum, default_value_t)]
    wallet: WalletKind,
    /// The members' documents list their beacons already: first updates need no singleton transaction of their own
    #[arg(long)]
    listed: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum CostCommand {
    /// Show what standing cohorts have cost, from the state directory of `serve --standing`, `member` or `join --standing`; also while it runs
    Ledger(ledger::LedgerArgs),
    /// Compute what a standing cohort would cost, compared with a Singleton transaction for each update
    Estimate(estimate::EstimateArgs),
}

/// How a cohort's announcement ended, according to the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Ending {
    Final,
    Failed,
    Unknown,
}

/// A cohort's result.
struct Read {
    cohort_id: String,
    beacon: String,
    /// The updates that it announced: DID and hash.
    updates: Vec<(String, String)>,
    vsize: u64,
    fee: Amount,
    child_fee: Amount,
    change: Option<ChangeAt>,
    ending: Ending,
}

/// The output with the change of an announcement.
#[derive(Clone, Debug, Serialize)]
struct ChangeAt {
    address: String,
    /// In satoshis, if known: the fees of children come out of it.
    value: u64,
}

/// The evaluation of a cohort.
struct Counted {
    cohort_id: String,
    saved: Savings,
    change: Option<ChangeAt>,
    /// Updates that an earlier cohort had announced.
    repeats: usize,
    ending: Ending,
}

pub(super) fn main(args: &CostArgs) -> ExitCode {
    match &args.command {
        Some(CostCommand::Ledger(args)) => return ledger::main(args),
        Some(CostCommand::Estimate(args)) => return estimate::main(args),
        None => {}
    }
    match cost(args) {
        Ok(text) => {
            out!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn cost(args: &CostArgs) -> Result<String, ProgramError> {
    let (mut cohorts, mut failed) = (Vec::new(), Vec::new());
    let (mut announced, mut members) = (BTreeSet::new(), BTreeSet::new());
    let root = args.directory.as_ref().ok_or_else(|| ProgramError::Usage("a directory expected".to_owned()))?;
    let directories = directories(root)?;
    if directories.is_empty() {
        let problem = format!("no results in {}: give the directory of `serve --out`", root.display());
        return Err(ProgramError::Usage(problem));
    }
    for directory in directories {
        let Read { cohort_id, beacon, updates, vsize, fee, child_fee, change, ending } = read(&directory)?;
        if ending == Ending::Failed {
            failed.push(cohort_id);
            continue;
        }
        let (all, mut new, mut first) = (updates.len(), 0, 0);
        for (did, hash) in updates {
            let is_first = members.insert((beacon.clone(), did.clone()));
            if announced.insert((did, hash)) {
                new += 1;
                first += u64::from(is_first && !args.listed);
            }
        }
        let repeats = all - new;
        let new = u64::try_from(new).unwrap_or(u64::MAX);
        let counted = Announced { updates: new, first_updates: first, vsize, fee, child_fee };
        cohorts.push(Counted { cohort_id, saved: savings(&counted, args.wallet), change, repeats, ending });
    }
    let total: i64 = cohorts.iter().map(|counted| counted.saved.saved).sum();
    let updates: u64 = cohorts.iter().map(|counted| counted.saved.updates).sum();
    if args.json {
        let json = |counted: &Counted| {
            let Counted { cohort_id, saved, change, repeats, ending } = counted;
            json!({ "cohortId": cohort_id, "cost": saved, "change": change, "repeats": repeats, "announcement": ending })
        };
        let cohorts: Vec<_> = cohorts.iter().map(json).collect();
        let total = json!({ "saved": total, "updates": updates });
        return Ok(json!({ "wallet": args.wallet, "cohorts": cohorts, "notAnnounced": failed, "total": total })
            .to_string());
    }
    let mut lines: Vec<_> = cohorts.iter().map(line).collect();
    lines.extend(
        failed.iter().map(|cohort_id| format!("cohort {cohort_id}\n  was not announced, and saved nothing")),
    );
    lines.push(format!("in all: {total} sat saved on {updates} updates"));
    Ok(lines.join("\n"))
}

fn line(counted: &Counted) -> String {
    let Counted { cohort_id, saved, change, repeats, ending } = counted;
    let mut line = format!(
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
    );
    if saved.child_fees > Amount::ZERO {
        line += &format!("\n  of these {} sat by children that bumped it", saved.child_fees.to_sat());
    }
    if saved.first_updates > 0 {
        let (first, paid) = (saved.first_updates, saved.first_singletons.to_sat());
        line += &format!(
            "\n  of these {paid} sat for the singletons that {first} first updates need all the same (--listed if they do not)"
        );
    }
    if let Some(ChangeAt { address, value }) = change {
        line += &format!("\n  change of {value} sat went to {address}");
    }
    if *repeats > 0 {
        line += &format!("\n  {repeats} updates not counted: an earlier cohort announced them");
    }
    if *ending == Ending::Unknown {
        line += "\n  it is not known yet whether it was announced, nor what bumps cost";
    }
    line
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
    // In the order of signing: a repeated update is counted in the first cohort.
    let signed_at =
        |directory: &PathBuf| fs::metadata(directory.join("result.json")).and_then(|file| file.modified()).ok();
    found.sort_by_cached_key(|directory| (signed_at(directory), directory.clone()));
    Ok(found)
}

fn read(directory: &Path) -> Result<Read, ProgramError> {
    let file = directory.join("result.json");
    let wrong = |problem: &str| ProgramError::Usage(format!("{}: {problem}", file.display()));
    let result = read_json(&file)?;
    let text = |name: &str| result[name].as_str().map(str::to_owned).ok_or_else(|| wrong(&format!("no {name}")));
    let transaction: Transaction =
        deserialize_hex(&text("txHex")?).map_err(|error| wrong(&format!("txHex: {error}")))?;
    let value =
        result["prevout"]["value"].as_u64().map(Amount::from_sat).ok_or_else(|| wrong("no prevout.value"))?;
    let paid: Amount = transaction.output.iter().map(|output| output.value).sum();
    let fee = value.checked_sub(paid).ok_or_else(|| wrong("the transaction pays more than its coin holds"))?;
    let outcome = directory.join(OUTCOME_FILE);
    let outcome = if outcome.is_file() { read_json(&outcome)? } else { Value::Null };
    Ok(Read {
        cohort_id: text("cohortId")?,
        beacon: text("beaconAddress")?,
        updates: updates(directory)?,
        vsize: u64::try_from(transaction.vsize()).unwrap_or(u64::MAX),
        fee,
        change: change(&transaction, &text("beaconAddress")?, &outcome),
        child_fee: Amount::from_sat(outcome["childFee"].as_u64().unwrap_or_default()),
        ending: match outcome["event"].as_str() {
            Some("announcement-final") => Ending::Final,
            Some("announcement-failed") => Ending::Failed,
            _ => Ending::Unknown,
        },
    })
}

/// The change: from the end of the announcement, otherwise from the transaction; the network is that of the beacon.
fn change(transaction: &Transaction, beacon: &str, outcome: &Value) -> Option<ChangeAt> {
    if let (Some(address), Some(value)) = (outcome["changeAddress"].as_str(), outcome["change"].as_u64()) {
        return Some(ChangeAt { address: address.to_owned(), value });
    }
    let output = change_of(transaction)?;
    let beacon: Address<NetworkUnchecked> = beacon.parse().ok()?;
    let networks = [Network::Bitcoin, Network::Testnet3, Network::Regtest].map(Network::to_bitcoin);
    let network = networks.into_iter().find(|network| beacon.is_valid_for_network(*network))?;
    let address = Address::from_script(&output.script_pubkey, network).ok()?.to_string();
    Some(ChangeAt { address, value: output.value.to_sat() })
}

/// The updates that a cohort announced, as DID and hash: the entries of its map, or the proofs that include one.
fn updates(directory: &Path) -> Result<Vec<(String, String)>, ProgramError> {
    let announcement = directory.join("announcement.json");
    let hash = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    if announcement.is_file() {
        let map = read_json(&announcement)?;
        let entries = map.as_object().into_iter().flatten();
        return Ok(entries.map(|(did, update)| (did.clone(), hash(update))).collect());
    }
    let proofs = directory.join("proofs");
    let io_error = |error| ProgramError::Io { what: proofs.display().to_string(), error };
    let mut included = Vec::new();
    for entry in fs::read_dir(&proofs).map_err(io_error)? {
        let path = entry.map_err(io_error)?.path();
        if let Some(update) = read_json(&path)?.get("updateId") {
            let did = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            included.push((did, hash(update)));
        }
    }
    Ok(included)
}

fn read_json(file: &Path) -> Result<Value, ProgramError> {
    Ok(inputs::json(file)?)
}
