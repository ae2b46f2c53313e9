//! `recover`: lists and recovers the coins of a cohort's beacon address.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use ::bitcoin::{FeeRate, consensus::encode::serialize_hex};
use clap::Args;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde_json::{Value, json};

use super::{ChainArg, Failure, fail, fund::first_rate, identity_of, singleton::SatPerVb};
use crate::{
    bitcoin::{
        chain::{Activity, ChainError, ConfirmationTarget, SourceError},
        fees::{FeePolicy, FeePolicyError},
        recovery::{CohortFile, Maturity, RecoverableCoin, Recovery, plan, survey},
    },
    inputs::{self, InputError},
    keyfile::KeyFileError,
    protocol::{
        key::{PublicKey, XOnlyKey},
        network::Network,
        output::{BeaconOutput, KeyAggregation, RecoverySequence, ScriptTree},
    },
};

#[derive(Debug, Args)]
#[command(
    after_help = "Without --to the coins are listed, with the height and the time from which each can be recovered.\n\
    With --to the recoverable coins are sent there, each by its own transaction; --dry-run signs and shows the\n\
    transactions, and broadcasts none. Coins that a transaction in the mempool spends are skipped: it may be the cohort's\n\
    announcement. --replace takes them too.\n\n\
    The cohort's output is derived from its keys and terms: from the file output.json that the service stored, or from\n\
    --keys, --recovery-key and --recovery-sequence."
)]
pub(super) struct RecoverArgs {
    /// Where to read the chain: core=http://user:password@host:port, core=http://host:port?cookie=PATH,
    /// or esplora=https://host/api
    #[arg(long, value_name = "KIND=URL", env = "BTCR2_CHAIN", hide_env_values = true)]
    chain: ChainArg,
    /// The file output.json of the cohort
    #[arg(long, value_name = "FILE", conflicts_with_all = ["keys", "recovery_key", "recovery_sequence"])]
    cohort: Option<PathBuf>,
    /// The cohort's public keys, 33 bytes in hex each, in any order
    #[arg(long, value_name = "KEY,KEY", value_delimiter = ',', value_parser = inputs::public_key, requires_all = ["recovery_key", "recovery_sequence"])]
    keys: Vec<PublicKey>,
    /// The key of the recovery leaf, 32 bytes in hex
    #[arg(long, value_name = "KEY", value_parser = inputs::x_only_key, requires = "keys")]
    recovery_key: Option<XOnlyKey>,
    /// The timelock of the recovery leaf, in blocks
    #[arg(long, value_name = "BLOCKS", requires = "keys")]
    recovery_sequence: Option<u16>,
    /// k of the fallback leaf, if the cohort's advert named one
    #[arg(long, value_name = "K", requires = "keys")]
    fallback_threshold: Option<u16>,
    /// The network of the cohort, with --keys
    #[arg(long, value_name = "N", default_value = "regtest")]
    network: Network,
    /// The address to send the recoverable coins to
    #[arg(long, value_name = "ADDRESS")]
    to: Option<String>,
    /// The identity file with the recovery key, which is the service's own unless `serve --recovery-key` named another
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Take the recovery key (64 hex characters) from this environment variable
    #[arg(long, value_name = "VAR")]
    secret_env: Option<String>,
    /// The number of blocks within which it is to be confirmed
    #[arg(long, value_name = "BLOCKS", default_value_t = 6)]
    target: u16,
    /// The fee rate to pay, in sat/vB, instead of the chain's estimate; never less than the node's minimum
    #[arg(long, value_name = "RATE", requires = "to")]
    fee_rate: Option<SatPerVb>,
    /// The lowest fee rate to pay, in sat/vB
    #[arg(long, value_name = "RATE", default_value_t = 1)]
    min_fee_rate: u32,
    /// The highest fee rate to pay, in sat/vB, even if the chain requires more
    #[arg(long, value_name = "RATE", default_value_t = 100)]
    max_fee_rate: u32,
    /// Also take coins that a transaction in the mempool spends, which may be the announcement: it is replaced
    #[arg(long, requires = "to")]
    replace: bool,
    /// Sign and show the transactions, broadcast none
    #[arg(long, requires = "to")]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Why the coins of a cohort cannot be listed or recovered.
#[derive(Debug, thiserror::Error)]
enum RecoverError {
    #[error("which cohort: give --cohort output.json, or --keys with --recovery-key and --recovery-sequence")]
    NoCohort,
    #[error("{path}: {problem}")]
    CohortFile { path: PathBuf, problem: String },
    #[error("keys and terms make no beacon output: {0}")]
    Output(String),
    #[error("the beacon output has no recovery leaf: only all members together can spend it")]
    NoRecoveryLeaf,
    #[error("the key is not the recovery key of this cohort, which is {0}")]
    OtherKey(XOnlyKey),
    #[error("--to {address}: {problem}")]
    Destination { address: String, problem: String },
    #[error(transparent)]
    Key(#[from] KeyFileError),
    #[error(transparent)]
    Fees(#[from] FeePolicyError),
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("--chain: {0}")]
    Source(#[from] SourceError),
}

impl Failure for RecoverError {
    fn status(&self) -> u8 {
        match self {
            Self::NoCohort
            | Self::CohortFile { .. }
            | Self::Output(_)
            | Self::NoRecoveryLeaf
            | Self::Destination { .. }
            | Self::Fees(_)
            | Self::Source(_) => 2,
            Self::OtherKey(_) | Self::Key(_) | Self::Chain(_) => 1,
        }
    }
}

pub(super) fn main(args: &RecoverArgs) -> ExitCode {
    match super::block_on(recover(args)) {
        Ok(outcome) => {
            out!("{}", if args.json { outcome.json().to_string() } else { outcome.text() });
            if outcome.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => fail(&error),
    }
}

/// A recovery and its result.
struct Made {
    recovery: Recovery,
    /// Sent, refused, or not to be sent.
    sent: Option<Result<(), ChainError>>,
}

struct Outcome {
    output: BeaconOutput,
    activity: Activity,
    coins: Vec<RecoverableCoin>,
    /// The fee rate, if coins are to be recovered.
    rate: Option<FeeRate>,
    made: Vec<Made>,
}

async fn recover(args: &RecoverArgs) -> Result<Outcome, RecoverError> {
    let source = args.chain.source()?;
    let output = output_of(args)?;
    let leaf = output.recovery().ok_or(RecoverError::NoRecoveryLeaf)?;
    let (floor, ceiling) =
        (FeeRate::from_sat_per_vb_u32(args.min_fee_rate), FeeRate::from_sat_per_vb_u32(args.max_fee_rate));
    let mut fees = FeePolicy::new(floor, ceiling, ConfirmationTarget::new(args.target))?;
    if let Some(rate) = args.fee_rate {
        fees = fees.starting_at(rate.0)?;
    }
    let destination = match &args.to {
        Some(address) => Some(
            inputs::address(address, output.network())
                .map_err(|problem| RecoverError::Destination { address: address.clone(), problem })?
                .to_string(),
        ),
        None => None,
    };
    // All input is validated before the node gets a slow query.
    let key = match &args.to {
        Some(_) => Some(identity_of(args.identity.as_deref(), args.secret_env.as_deref(), Some(output.network()))?),
        None => None,
    };
    if key.as_ref().is_some_and(|identity| identity.public_key().x_only() != leaf.key()) {
        return Err(RecoverError::OtherKey(leaf.key()));
    }
    let chain = source.connect(output.network()).await?;
    let activity = chain.coins(output.script_pubkey()).await?;
    let coins = survey(&output, &activity).ok_or(RecoverError::NoRecoveryLeaf)?;
    let mut outcome = Outcome { output, activity, coins, rate: None, made: Vec::new() };
    let (Some(destination), Some(identity)) = (&destination, key) else { return Ok(outcome) };

    let rate = first_rate(&*chain, fees).await?;
    let mature = |coin: &&RecoverableCoin| matches!(coin.maturity, Maturity::Mature { .. });
    // A transaction in the mempool may be the announcement, which is worth more than an early recovery.
    let free = |coin: &&RecoverableCoin| coin.spent_by.is_none() || args.replace;
    let mature: Vec<_> = outcome.coins.iter().filter(mature).filter(free).copied().collect();
    let mut rng = ChaCha20Rng::from_os_rng();
    outcome.rate = Some(rate);
    for recovery in plan(&outcome.output, &mature, destination, rate, identity.secret_key(), &mut rng) {
        let sent = match &recovery.transaction {
            Ok(transaction) if !args.dry_run => Some(chain.submit(transaction).await),
            _ => None,
        };
        outcome.made.push(Made { recovery, sent });
    }
    Ok(outcome)
}

fn output_of(args: &RecoverArgs) -> Result<BeaconOutput, RecoverError> {
    if let Some(path) = &args.cohort {
        let refuse = |problem: String| RecoverError::CohortFile { path: path.clone(), problem };
        let file: CohortFile = inputs::json(path).map_err(|error| match error {
            InputError::Io { error, .. } => refuse(error.to_string()),
            InputError::Content { problem, .. } => refuse(problem),
        })?;
        return Ok(file.output);
    }
    let (Some(recovery_key), Some(blocks)) = (args.recovery_key, args.recovery_sequence) else {
        return Err(RecoverError::NoCohort);
    };
    let refuse = |problem: &dyn std::fmt::Display| RecoverError::Output(problem.to_string());
    let tree = ScriptTree::FallbackAndRecovery {
        recovery_key,
        recovery_sequence: RecoverySequence::try_from(u64::from(blocks)).map_err(|error| refuse(&error))?,
        fallback_threshold: args.fallback_threshold,
    };
    let aggregation = KeyAggregation::new(args.keys.iter().copied()).map_err(|error| refuse(&error))?;
    BeaconOutput::new(Arc::new(aggregation), args.network, &tree).map_err(|error| refuse(&error))
}

impl Outcome {
    /// Whether coins were to be recovered and none could be.
    fn found_nothing(&self) -> bool {
        self.rate.is_some() && self.made.is_empty()
    }

    /// Whether a recovery failed.
    fn failed(&self) -> bool {
        self.found_nothing()
            || self.made.iter().any(|made| made.recovery.transaction.is_err() || matches!(made.sent, Some(Err(_))))
    }

    fn json(&self) -> Value {
        let made: Vec<_> = self
            .made
            .iter()
            .map(|made| {
                let mut json = json!({
                    "outpoint": made.recovery.coin.outpoint,
                    "fee": made.recovery.fee.to_sat(),
                    "sent": matches!(made.sent, Some(Ok(()))),
                });
                match &made.recovery.transaction {
                    Ok(transaction) => {
                        json["txid"] = json!(transaction.compute_txid());
                        json["txHex"] = json!(serialize_hex(transaction));
                    }
                    Err(error) => json["error"] = json!({ "code": error.code(), "detail": error.to_string() }),
                }
                if let Some(Err(error)) = &made.sent {
                    json["error"] = json!({ "detail": error.to_string() });
                }
                json
            })
            .collect();
        json!({
            "ok": !self.failed(),
            "beaconAddress": self.output.address(),
            "tip": self.activity.tip,
            "coins": self.coins,
            "feeRate": self.rate.map(crate::bitcoin::fees::sat_per_vb),
            "recoveries": made,
            "nothingToRecover": self.found_nothing(),
        })
    }

    fn text(&self) -> String {
        let height = self.activity.tip.block.height;
        let mut lines = vec![format!("{} at height {height}", self.output.address())];
        if self.coins.is_empty() {
            lines.push("  no coins".to_owned());
        }
        for coin in &self.coins {
            lines.push(format!("  {}  {} sat  {}", coin.outpoint, coin.value.to_sat(), maturity_text(coin)));
        }
        for made in &self.made {
            let coin = made.recovery.coin.outpoint;
            lines.push(match (&made.recovery.transaction, &made.sent) {
                (Err(error), _) => format!("{coin} is not recovered: {error}"),
                (Ok(transaction), None) => format!(
                    "{coin} would be recovered by {}, fee {} sat:\n{}",
                    transaction.compute_txid(),
                    made.recovery.fee.to_sat(),
                    serialize_hex(transaction)
                ),
                (Ok(transaction), Some(Ok(()))) => {
                    format!(
                        "{coin} is recovered by {}, fee {} sat",
                        transaction.compute_txid(),
                        made.recovery.fee.to_sat()
                    )
                }
                (Ok(_), Some(Err(error))) => format!("{coin} is not recovered: {error}"),
            });
        }
        if self.found_nothing() {
            lines.push("nothing can be recovered now: no coin is mature and free".to_owned());
        }
        lines.join("\n")
    }
}

/// When a coin can be recovered, for people.
pub(super) fn maturity_text(coin: &RecoverableCoin) -> String {
    let maturity = match coin.maturity {
        Maturity::Unconfirmed => "waits for its confirmation".to_owned(),
        Maturity::Waiting { height, blocks, expected } => {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(expected);
            let time = humantime::format_rfc3339_seconds(time);
            format!("can be recovered at height {height}, in {blocks} blocks, about {time}")
        }
        Maturity::Mature { .. } => "can be recovered now".to_owned(),
    };
    match coin.spent_by {
        Some(txid) => format!("{maturity}; {txid}, in the mempool, spends it (see --replace)"),
        None => maturity,
    }
}
