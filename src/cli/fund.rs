//! `fund`: pays to a beacon address from the operator's own wallet, wherever its keys are.

use std::{path::PathBuf, process::ExitCode};

use ::bitcoin::{Amount, FeeRate, ScriptBuf, Transaction};
use clap::Args;
use serde_json::json;

use super::{ChainArg, fail, singleton::SatPerVb};
use crate::{
    bitcoin::{
        chain::{Chain, ChainError, ConfirmationTarget},
        deposit::{self, DepositError},
        fees::{FeePolicy, FeePolicyError},
    },
    error::ProgramError,
    files::write_whole,
    inputs,
    protocol::network::Network,
};

#[derive(Debug, Args)]
#[command(
    after_help = "First write a PSBT and sign it where the keys are (in a Core wallet: walletprocesspsbt), then submit it:\n\n  \
    fund --chain core=... --from ADDRESS --to BEACON_ADDRESS --amount 50000 --out deposit.psbt\n  \
    fund --chain core=... --submit deposit.signed.psbt"
)]
pub(super) struct FundArgs {
    /// Where to read the chain: core=http://user:password@host:port, core=http://host:port?cookie=PATH,
    /// or esplora=https://host/api
    #[arg(long, value_name = "KIND=URL", env = "BTCR2_CHAIN", hide_env_values = true)]
    chain: ChainArg,
    /// The network of the chain
    #[arg(long, value_name = "N", default_value = "regtest")]
    network: Network,
    /// The address that pays, P2WPKH or P2TR, and gets the change
    #[arg(long, value_name = "ADDRESS", required_unless_present = "submit", requires_all = ["to", "amount", "out"])]
    from: Option<String>,
    /// The beacon address
    #[arg(long, value_name = "ADDRESS")]
    to: Option<String>,
    /// The amount to pay, in satoshis
    #[arg(long, value_name = "SAT")]
    amount: Option<u64>,
    /// Where to write the PSBT, as base64
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Broadcast the signed and finalized PSBT of this file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "to", "amount", "out"])]
    submit: Option<PathBuf>,
    /// The fee rate to pay, in sat/vB, instead of the chain's estimate; never less than the node's minimum
    #[arg(long, value_name = "RATE", conflicts_with = "submit")]
    fee_rate: Option<SatPerVb>,
    /// The highest fee rate to pay, in sat/vB, even if the chain requires more
    #[arg(long, value_name = "RATE", default_value_t = 100)]
    max_fee_rate: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: &FundArgs) -> ExitCode {
    match super::block_on(fund(args)) {
        Ok(text) => {
            out!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn usage(problem: impl std::fmt::Display) -> ProgramError {
    ProgramError::Usage(problem.to_string())
}

fn io_error(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> ProgramError {
    let what = path.display().to_string();
    |error| ProgramError::Io { what, error }
}

/// An error of the chain or of this program, not of the command line.
fn failed(error: &ChainError) -> ProgramError {
    ProgramError::Io { what: "the chain".to_owned(), error: std::io::Error::other(error.to_string()) }
}

async fn fund(args: &FundArgs) -> Result<String, ProgramError> {
    let source = args.chain.source().map_err(|error| usage(format!("--chain: {error}")))?;
    if let Some(path) = &args.submit {
        let transaction = deposit::extract(inputs::bytes(path)?)
            .map_err(|error| usage(format!("{}: {error}", path.display())))?;
        let chain = source.connect(args.network).await.map_err(|error| failed(&error))?;
        chain.submit(&transaction).await.map_err(|error| failed(&error))?;
        return Ok(outcome(args, &transaction, "sent"));
    }
    let (Some(from), Some(to), Some(amount), Some(out)) = (&args.from, &args.to, args.amount, &args.out) else {
        return Err(usage("--from, --to, --amount and --out, or --submit"));
    };
    let (from, to) = (script("--from", from, args.network)?, script("--to", to, args.network)?);
    let ceiling = FeeRate::from_sat_per_vb_u32(args.max_fee_rate);
    let fees = FeePolicy::new(FeeRate::BROADCAST_MIN, ceiling, ConfirmationTarget::new(6))
        .and_then(|fees| args.fee_rate.map_or(Ok(fees), |rate| fees.starting_at(rate.0)))
        .map_err(usage)?;
    let chain = source.connect(args.network).await.map_err(|error| failed(&error))?;
    let wallet = chain.coins(&from).await.map_err(|error| failed(&error))?;
    let rate = first_rate(&*chain, fees).await.map_err(|error| usage(format!("--max-fee-rate: {error}")))?;
    let psbt =
        deposit::build(&wallet, &from, &to, Amount::from_sat(amount), rate).map_err(|error| match error {
            DepositError::InsufficientFunds { .. } => {
                ProgramError::Io { what: "--from".to_owned(), error: std::io::Error::other(error.to_string()) }
            }
            error => usage(error),
        })?;
    write_whole(out, (deposit::to_text(&psbt) + "\n").as_bytes()).map_err(io_error(out))?;
    Ok(outcome(args, &psbt.unsigned_tx, "to be signed"))
}

/// The rate to pay by `fees`, given the chain's estimate and minimum. Without an estimate it is the lowest rate.
pub(super) async fn first_rate(chain: &dyn Chain, fees: FeePolicy) -> Result<FeeRate, FeePolicyError> {
    let fees = fees.above(chain.minimum_fee().await.ok().flatten())?;
    Ok(fees.first(chain.fee_estimate(fees.target()).await.ok().flatten()))
}

fn script(field: &str, address: &str, network: Network) -> Result<ScriptBuf, ProgramError> {
    inputs::address(address, network)
        .map(|address| address.script_pubkey())
        .map_err(|problem| usage(format!("{field} {address}: {problem}")))
}

fn outcome(args: &FundArgs, transaction: &Transaction, state: &str) -> String {
    let txid = transaction.compute_txid();
    if args.json { json!({ "txid": txid, "state": state }).to_string() } else { format!("{txid} {state}") }
}
