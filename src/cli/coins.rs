//! `coins`: lists and spends an operator's coins on the chain.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use ::bitcoin::{Address, Amount, FeeRate, Transaction, consensus::encode::serialize_hex};
use clap::Args;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::{Value, json};

use super::{ChainArg, fail, fund::first_rate, identity_of, recover::maturity_text, singleton::SatPerVb};
use crate::{
    bitcoin::{
        chain::{Activity, Chain, ChainError, ConfirmationTarget, Deposit},
        change::ChangeKey,
        fees::{FeePolicy, sat_per_vb},
        recovery::{CohortFile, Maturity, RecoverableCoin, plan, survey},
    },
    error::ProgramError,
    inputs,
    protocol::{identity::Identity, network::Network, output::Coin},
};

#[derive(Debug, Args)]
#[command(
    after_help = "Without --to the coins are listed: the change of announcements at the service's own address, and what is left at\n\
    the beacon addresses of --results, with the time from which each can be recovered. With --to the confirmed change is sent\n\
    there in one transaction, and each coin that can be recovered by one of its own.\n\n\
    Change that `serve --change` sent elsewhere is not listed. A node without an address index reads all\n\
    unspent outputs once for this: minutes on the main network."
)]
pub(super) struct CoinsArgs {
    /// Where to read the chain: core=http://user:password@host:port, core=http://host:port?cookie=PATH,
    /// or esplora=https://host/api
    #[arg(long, value_name = "KIND=URL", env = "BTCR2_CHAIN", hide_env_values = true)]
    chain: ChainArg,
    /// The service's identity file: its key is that of the change, and of recoveries unless `serve --recovery-key` named another
    #[arg(long, value_name = "FILE", env = "BTCR2_IDENTITY")]
    identity: Option<PathBuf>,
    /// Take the secret key (64 hex characters) from this environment variable
    #[arg(long, value_name = "VAR")]
    secret_env: Option<String>,
    /// The network [default: the identity's]
    #[arg(long, value_name = "N")]
    network: Option<Network>,
    /// The directory that `serve --out` wrote to: the beacon addresses of its cohorts
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// The address to send the spendable coins to
    #[arg(long, value_name = "ADDRESS")]
    to: Option<String>,
    /// The fee rate to pay, in sat/vB, instead of the chain's estimate; never less than the node's minimum
    #[arg(long, value_name = "RATE", requires = "to")]
    fee_rate: Option<SatPerVb>,
    /// The highest fee rate to pay, in sat/vB, even if the chain requires more
    #[arg(long, value_name = "RATE", default_value_t = 100)]
    max_fee_rate: u32,
    /// Sign and show the transactions, broadcast none
    #[arg(long, requires = "to")]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: &CoinsArgs) -> ExitCode {
    match super::block_on(coins(args)) {
        Ok(outcome) => {
            out!("{}", if args.json { outcome.json().to_string() } else { outcome.text() });
            if outcome.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => fail(&error),
    }
}

/// A coin at the service's own address.
struct ChangeCoin {
    deposit: Deposit,
    /// Whether it can be spent safely: an unconfirmed coin may be needed to bump its announcement.
    is_free: bool,
    state: String,
}

/// A coin left at a beacon address.
struct Left {
    file: CohortFile,
    coins: Vec<RecoverableCoin>,
    /// Whether this identity has the recovery key.
    is_ours: bool,
}

/// A signed transaction.
struct Made {
    what: String,
    result: Result<(Transaction, Amount), String>,
    /// Whether it was sent, or why not; `None` if it was not to be sent.
    sent: Option<Result<(), String>>,
}

struct Outcome {
    address: String,
    change: Vec<ChangeCoin>,
    left: Vec<Left>,
    rate: Option<FeeRate>,
    made: Vec<Made>,
}

fn usage(problem: impl std::fmt::Display) -> ProgramError {
    ProgramError::Usage(problem.to_string())
}

fn failed(error: &ChainError) -> ProgramError {
    ProgramError::Io { what: "the chain".to_owned(), error: std::io::Error::other(error.to_string()) }
}

async fn coins(args: &CoinsArgs) -> Result<Outcome, ProgramError> {
    let source = args.chain.source().map_err(|error| usage(format!("--chain: {error}")))?;
    let identity =
        identity_of(args.identity.as_deref(), args.secret_env.as_deref(), args.network).map_err(usage)?;
    let network = args.network.unwrap_or(identity.did().network());
    let to = match &args.to {
        Some(to) => {
            let address = inputs::address(to, network).map_err(|problem| usage(format!("--to {to}: {problem}")))?;
            Some(address)
        }
        None => None,
    };
    let ceiling = FeeRate::from_sat_per_vb_u32(args.max_fee_rate);
    let fees = FeePolicy::new(FeeRate::BROADCAST_MIN, ceiling, ConfirmationTarget::new(6))
        .and_then(|fees| args.fee_rate.map_or(Ok(fees), |rate| fees.starting_at(rate.0)))
        .map_err(usage)?;
    let files = match &args.results {
        Some(directory) => cohort_files(directory, network)?,
        None => Vec::new(),
    };
    let key = ChangeKey::new(identity.secret_key());
    let address =
        key.address(network).ok_or_else(|| ProgramError::Internal("a key without an address".to_owned()))?;
    let chain = source.connect(network).await.map_err(|error| failed(&error))?;
    let beacons = files.iter().map(|file| file.output.script_pubkey());
    let scripts: Vec<_> = std::iter::once(key.script_pubkey()).chain(beacons).map(ToOwned::to_owned).collect();
    let activities = chain.coins_of_all(&scripts).await.map_err(|error| failed(&error))?;
    let mut activities = activities.into_iter();
    let change = activities.next().map(|activity| change_coins(&activity)).unwrap_or_default();
    let mut left = Vec::new();
    for (file, activity) in files.into_iter().zip(activities) {
        let recovery = file.output.recovery().map(crate::protocol::output::RecoveryLeaf::key);
        let coins = survey(&file.output, &activity).unwrap_or_default();
        if !coins.is_empty() {
            left.push(Left { is_ours: recovery == Some(identity.public_key().x_only()), file, coins });
        }
    }
    let mut outcome = Outcome { address: address.to_string(), change, left, rate: None, made: Vec::new() };
    if let Some(to) = to {
        let rate = first_rate(&*chain, fees).await.map_err(|error| usage(format!("--max-fee-rate: {error}")))?;
        outcome.rate = Some(rate);
        outcome.make(&key, &identity, &to, rate);
        if !args.dry_run {
            outcome.send(&*chain).await;
        }
    }
    Ok(outcome)
}

fn change_coins(activity: &Activity) -> Vec<ChangeCoin> {
    let of = |deposit: &Deposit| {
        let spent = activity.spends.iter().find(|spend| spend.outpoint == deposit.outpoint);
        let (is_free, state) = match (spent, deposit.place.block()) {
            (Some(spend), _) => (false, format!("{}, in the mempool, spends it", spend.by)),
            (None, None) => {
                (false, "waits for its confirmation; it may be needed to bump its announcement".to_owned())
            }
            (None, Some(_)) if deposit.is_immature(&activity.tip) => {
                (false, "a block's reward, too young".to_owned())
            }
            (None, Some(block)) => (true, format!("can be spent, in block {}", block.height)),
        };
        ChangeCoin { deposit: *deposit, is_free, state }
    };
    activity.deposits.iter().map(of).collect()
}

/// The outputs of the cohorts in a directory of results, each address once.
fn cohort_files(directory: &Path, network: Network) -> Result<Vec<CohortFile>, ProgramError> {
    let io_error = |error| ProgramError::Io { what: directory.display().to_string(), error };
    let entries: Result<Vec<_>, _> = fs::read_dir(directory).map_err(io_error)?.collect();
    let mut paths: Vec<_> =
        entries.map_err(io_error)?.iter().map(|entry| entry.path().join(CohortFile::NAME)).collect();
    paths.push(directory.join(CohortFile::NAME));
    paths.retain(|path| path.is_file());
    paths.sort();
    let mut files: Vec<CohortFile> = Vec::new();
    for path in paths {
        let file: CohortFile = inputs::json(&path)?;
        let known = files.iter().any(|known| known.output.address() == file.output.address());
        if file.output.network() == network && !known {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(usage(format!(
            "no {} in {}: give the directory of `serve --out`",
            CohortFile::NAME,
            directory.display()
        )));
    }
    Ok(files)
}

impl Outcome {
    /// Signs transactions that spend all free coins.
    fn make(&mut self, key: &ChangeKey, identity: &Identity, to: &Address, rate: FeeRate) {
        let free = self
            .change
            .iter()
            .filter(|coin| coin.is_free)
            .map(|coin| Coin { outpoint: coin.deposit.outpoint, value: coin.deposit.value });
        let free: Vec<Coin> = free.collect();
        if !free.is_empty() {
            let result = key.sweep(&free, &to.script_pubkey(), rate);
            self.made.push(Made { what: format!("the change ({} coins)", free.len()), result, sent: None });
        }
        let mut rng = ChaCha20Rng::from_os_rng();
        for left in self.left.iter().filter(|left| left.is_ours) {
            let is_free = |coin: &&RecoverableCoin| {
                matches!(coin.maturity, Maturity::Mature { .. }) && coin.spent_by.is_none()
            };
            let mature: Vec<_> = left.coins.iter().filter(is_free).copied().collect();
            for recovery in plan(&left.file.output, &mature, &to.to_string(), rate, identity.secret_key(), &mut rng)
            {
                let fee = recovery.fee;
                let result =
                    recovery.transaction.map(|transaction| (transaction, fee)).map_err(|error| error.to_string());
                self.made.push(Made { what: recovery.coin.outpoint.to_string(), result, sent: None });
            }
        }
    }

    async fn send(&mut self, chain: &dyn Chain) {
        for made in &mut self.made {
            if let Ok((transaction, _)) = &made.result {
                made.sent = Some(chain.submit(transaction).await.map_err(|error| error.to_string()));
            }
        }
    }

    /// Whether a coin that was to be spent was not.
    fn failed(&self) -> bool {
        let wrong = |made: &Made| made.result.is_err() || matches!(made.sent, Some(Err(_)));
        self.made.iter().any(wrong) || self.rate.is_some() && self.made.is_empty()
    }

    fn json(&self) -> Value {
        let change = self.change.iter().map(|coin| {
            json!({
                "outpoint": coin.deposit.outpoint, "value": coin.deposit.value.to_sat(),
                "block": coin.deposit.place.block(), "spendable": coin.is_free,
            })
        });
        let left = self.left.iter().map(|left| {
            json!({
                "cohortId": left.file.cohort_id, "beaconAddress": left.file.output.address(), "coins": left.coins,
                "recoverable": left.is_ours,
            })
        });
        let made = self.made.iter().map(|made| {
            let mut json = json!({ "what": made.what, "sent": matches!(made.sent, Some(Ok(()))) });
            match &made.result {
                Ok((transaction, fee)) => {
                    json["txid"] = json!(transaction.compute_txid());
                    json["txHex"] = json!(serialize_hex(transaction));
                    json["fee"] = json!(fee.to_sat());
                }
                Err(error) => json["error"] = json!(error),
            }
            if let Some(Err(error)) = &made.sent {
                json["error"] = json!(error);
            }
            json
        });
        json!({
            "ok": !self.failed(),
            "change": { "address": self.address, "coins": change.collect::<Vec<_>>() },
            "beacons": left.collect::<Vec<_>>(),
            "feeRate": self.rate.map(sat_per_vb),
            "transactions": made.collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let total: Amount = self.change.iter().map(|coin| coin.deposit.value).sum();
        let mut lines = vec![format!("change at {}: {} sat", self.address, total.to_sat())];
        for coin in &self.change {
            lines.push(format!("  {}  {} sat  {}", coin.deposit.outpoint, coin.deposit.value.to_sat(), coin.state));
        }
        for left in &self.left {
            lines.push(format!("cohort {} at {}", left.file.cohort_id, left.file.output.address()));
            for coin in &left.coins {
                let whose = if left.is_ours { "" } else { " (with another key: see `recover`)" };
                let when = maturity_text(coin);
                lines.push(format!("  {}  {} sat  {when}{whose}", coin.outpoint, coin.value.to_sat()));
            }
        }
        for made in &self.made {
            lines.push(match (&made.result, &made.sent) {
                (Err(error), _) | (Ok(_), Some(Err(error))) => format!("{} is not spent: {error}", made.what),
                (Ok((transaction, fee)), sent) => {
                    let (txid, fee) = (transaction.compute_txid(), fee.to_sat());
                    match sent {
                        Some(_) => format!("{} is sent by {txid}, fee {fee} sat", made.what),
                        None => {
                            let hex = serialize_hex(transaction);
                            format!("{} would be sent by {txid}, fee {fee} sat:\n{hex}", made.what)
                        }
                    }
                }
            });
        }
        if self.rate.is_some() && self.made.is_empty() {
            lines.push("nothing can be spent now".to_owned());
        }
        lines.join("\n")
    }
}
