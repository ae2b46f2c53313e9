//! `singleton`: announces an update without a cohort.

mod offline;
mod online;
mod report;
mod send;
mod values;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use ::bitcoin::{Address, Txid, address::NetworkUnchecked};
use clap::{Args, Parser};
use serde_json::Value;

use self::values::{CoinText, Kind};
pub(in crate::cli) use self::{
    online::{Announcement, announce},
    send::SendArgs,
    values::{BeaconCoin, SatPerVb},
};
use super::{
    ChainArg, Failure, fail, keys_of,
    resolve::ResolveFailure,
    update::{Record, ledger_of},
};
use crate::{
    actors::runtime::Clock,
    bitcoin::chain::ChainError,
    cas::Location,
    controller::{CurrentError, Keys},
    error::ProgramError,
    inputs,
    join::ledger::Ledger,
    protocol::{
        did::Did,
        id::CohortId,
        network::Network,
        output::Change,
        update::{self, SignedUpdate},
    },
    singleton::{
        FallbackError, Prepared, bump::BumpError, choice::ChoiceError, order::OrderError, places::Place,
        standing::NotNext, write_fallback,
    },
};

const EXAMPLES: &str = "\
Examples:
  With a chain: the beacon and its coins are found, the update is checked against the current document, sent, and followed:
    btcr2-aggregation singleton --identity alice.id --state alice --update update.json \\
        --chain 'core=http://127.0.0.1:8332?cookie=/home/me/.bitcoin/.cookie' --send --wait
  A higher fee for the announcement that waits in the mempool:
    btcr2-aggregation singleton --identity alice.id --state alice --bump --fee-rate 20 --chain ... --send --wait
  Without a chain: a transaction of a coin that is known, to be sent by hand:
    btcr2-aggregation singleton --identity alice.id --update update.json \\
        --coin 4a5e...:0:10000 --type p2wpkh --fee-rate 5 --sign --out announcement
    bitcoin-cli sendrawtransaction \"$(cat announcement/signed.hex)\"

Exit status: 0 when the transaction is prepared, with --send when it is in the mempool or in a block, with --wait when it has its
confirmations; 1 when the chain or the node does not allow it (no coin, refused, not resolved, replaced); 2 when the update or the call
is refused. The result is on standard output, what --wait sees on standard error.";

/// The arguments of `singleton`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct SingletonArgs {
    /// The DID whose update it is; with it alone nothing can be signed here
    #[arg(long, value_name = "DID", required_unless_present_any = ["identity", "secret_env"], conflicts_with_all = ["identity", "secret_env"])]
    did: Option<Did>,
    /// The identity file of the DID, see `identity new`. Of its keys the one of the beacon's address signs
    #[arg(long, value_name = "FILE", env = "BTCR2_IDENTITY")]
    identity: Option<PathBuf>,
    /// Take the secret key from this environment variable instead of a file
    #[arg(long, value_name = "VAR", env = "BTCR2_SECRET_ENV")]
    secret_env: Option<String>,
    /// With --secret-env: the Bitcoin network of the DID [default: regtest]
    #[arg(long, value_name = "N", env = "BTCR2_NETWORK")]
    network: Option<Network>,
    /// The signed update, a JSON file, or a file of `update --out`
    #[arg(long, value_name = "FILE", required_unless_present = "bump")]
    update: Option<PathBuf>,
    /// Instead of a new announcement: replace the one that waits in the mempool, or the one with this transaction id, by one of the
    /// same coins and the same signal with a higher fee
    #[arg(long, value_name = "TXID", num_args = 0..=1, requires = "chain", conflicts_with_all = ["coins", "kind", "service", "change", "funding_tx"])]
    bump: Option<Option<Txid>>,
    /// The member's state directory (`join --state`): the update is refused if another update of its version may be
    /// announced, or if it does not start from the document to which the announced ones lead; and it is recorded there. With
    /// --chain also a source of Sidecar Data
    #[arg(long, value_name = "DIR", env = "BTCR2_STATE")]
    state: Option<PathBuf>,
    /// With --state: an update that was approved in this cohort (`singleton` for one that this command prepared) will never be
    /// announced; may be given several times
    #[arg(long, value_name = "COHORT", allow_hyphen_values = true, value_delimiter = ',', requires = "state")]
    supersede: Vec<CohortId>,
    /// The document that the update starts from, where that is not the initial one: all rules are then checked. With --chain it
    /// has to be the one that resolvers have
    #[arg(long, value_name = "FILE")]
    source_document: Option<PathBuf>,
    /// Announce it although it leaves the DID without a key or a beacon, adds a beacon twice, or publishes a secret key; although
    /// its proof expires or was just created; although it starts from another document than --state knows; or, with --chain, although
    /// it is versions ahead of the current document
    /// or another announcement waits in the mempool, or is not known here, or cannot be applied
    #[arg(long)]
    allow_risky_update: bool,
    /// A coin to spend: transaction id, output number and value in satoshi; may be given several times. With --chain: only
    /// these, in this order [default with --chain: all of the beacon, at most the 20 largest]
    #[arg(long = "coin", value_name = "TXID:VOUT:SATS")]
    coins: Vec<CoinText>,
    /// The kind of the beacon's address [default without --chain: p2wpkh]
    #[arg(long = "type", value_enum)]
    kind: Option<Kind>,
    /// Where to read the chain: core=http://user:password@host:port, core=http://host:port?cookie=PATH, or
    /// esplora=https://host/api. The DID is resolved, its Singleton beacons and their coins are found, and the fee is estimated
    #[arg(long, value_name = "KIND=URL", env = "BTCR2_CHAIN", hide_env_values = true)]
    chain: Option<ChainArg>,
    /// With --chain: a file of Sidecar Data, or of `update --out`; may be given several times
    #[arg(long = "sidecar", value_name = "FILE", requires = "chain")]
    sidecars: Vec<PathBuf>,
    /// With --chain: a store of announcements and updates: dir=PATH, or ipfs=URL of an IPFS node's RPC API; may be given several
    /// times
    #[arg(long = "cas", value_name = "STORE", requires = "chain")]
    cas: Vec<Location>,
    /// With --chain: how many confirmations a signal needs to count
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    min_conf: u32,
    /// The address for the change [default: the beacon]
    #[arg(long, value_name = "ADDRESS", value_parser = inputs::any_address)]
    change: Option<Address<NetworkUnchecked>>,
    /// A transaction that created coins, a file of hex: it is checked, and put into the PSBT, which P2PKH needs; may be given several
    /// times. With --chain these are read from the chain
    #[arg(long, value_name = "FILE", requires = "coins")]
    funding_tx: Vec<PathBuf>,
    /// Sign it with the key of the beacon's address
    #[arg(long, conflicts_with = "did")]
    sign: bool,
    #[command(flatten)]
    announcement: SendArgs,
    /// Write update.json, unsigned.hex, unsigned.psbt, signed.hex and README.txt into this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Why an update is not announced.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum SingletonFailure {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Source(#[from] ResolveFailure),
    #[error(transparent)]
    Current(#[from] CurrentError),
    #[error("{0}; nothing is announced")]
    NotNext(#[from] NotNext),
    #[error(transparent)]
    Order(#[from] OrderError),
    #[error(transparent)]
    Bump(#[from] BumpError),
    #[error("the chain: {0}")]
    Chain(#[from] ChainError),
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    Refused(String),
}

impl Failure for SingletonFailure {
    fn status(&self) -> u8 {
        let of = |may_pass: bool| if may_pass { 1 } else { 2 };
        match self {
            Self::Program(error) => error.status(),
            Self::Source(error) => error.status(),
            Self::Current(error) => of(!matches!(error, CurrentError::Deactivated { .. })),
            Self::NotNext(_) | Self::Refused(_) => 2,
            Self::Order(error) => of(error.may_pass()),
            Self::Bump(error) => of(error.may_pass()),
            Self::Chain(_) | Self::Failed(_) => 1,
        }
    }
}

impl From<FallbackError> for ProgramError {
    fn from(error: FallbackError) -> Self {
        match error {
            FallbackError::Document(_) | FallbackError::Invalid(_) => Self::Internal(error.to_string()),
            error => Self::Usage(error.to_string()),
        }
    }
}

impl From<FallbackError> for SingletonFailure {
    fn from(error: FallbackError) -> Self {
        Self::Program(error.into())
    }
}

impl From<ChoiceError> for SingletonFailure {
    fn from(error: ChoiceError) -> Self {
        Self::Order(error.into())
    }
}

/// Runs the command.
pub(super) fn main(args: &SingletonArgs) -> ExitCode {
    match super::block_on(run(args)) {
        Ok(status) => status,
        Err(error) => fail(&error),
    }
}

/// Announces the update of a file, as `singleton` does with these arguments. No state directory of the environment is used: the caller has
/// recorded the update.
pub(in crate::cli) async fn announce_file(arguments: &[String]) -> Result<ExitCode, SingletonFailure> {
    /// The arguments alone.
    #[derive(Parser)]
    struct Call {
        #[command(flatten)]
        args: SingletonArgs,
    }
    let words = std::iter::once("singleton").chain(arguments.iter().map(String::as_str));
    let call = Call::try_parse_from(words).map_err(|error| SingletonFailure::Refused(error.to_string()))?;
    run(&SingletonArgs { state: None, secret_env: None, ..call.args }).await
}

async fn run(args: &SingletonArgs) -> Result<ExitCode, SingletonFailure> {
    args.announcement.check().map_err(SingletonFailure::Refused)?;
    let (did, keys) = who(args)?;
    match (&args.chain, &args.bump, &args.update) {
        (Some(chain), Some(txid), _) => online::bump(args, chain, *txid, &did, keys.as_ref()).await,
        (Some(chain), None, Some(path)) => online::run(args, chain, path, &did, keys.as_ref()).await,
        (None, None, Some(path)) => {
            if args.announcement.send {
                return Err(SingletonFailure::Refused(
                    "--send needs a chain: --chain core=URL or --chain esplora=URL".to_owned(),
                ));
            }
            offline::run(args, path, &did, keys.as_ref()).await
        }
        // clap requires them.
        _ => Err(SingletonFailure::Refused("give --update FILE, or --bump with --chain".to_owned())),
    }
}

/// The DID, and its controller's keys if they are given.
fn who(args: &SingletonArgs) -> Result<(Did, Option<Keys>), SingletonFailure> {
    if let Some(did) = &args.did {
        return Ok((did.clone(), None));
    }
    let keys = keys_of(args.identity.as_deref(), args.secret_env.as_deref(), args.network);
    let (identity, keys) = keys.map_err(usage)?;
    Ok((identity.did().clone(), Some(keys)))
}

fn usage(error: impl std::fmt::Display) -> SingletonFailure {
    SingletonFailure::Refused(error.to_string())
}

/// The destination of the change.
fn change(args: &SingletonArgs, did: &Did) -> Result<Change, SingletonFailure> {
    match &args.change {
        Some(address) => match inputs::on_network(address.clone(), did.network()) {
            Ok(address) => Ok(Change::To(address.script_pubkey())),
            Err(error) => Err(usage(format!("--change: {error}"))),
        },
        None => Ok(Change::Beacon),
    }
}

/// A file of an update.
struct UpdateFile {
    update: SignedUpdate,
    /// The document that it starts from.
    source: Option<Value>,
    /// The Sidecar Data that are in the file.
    sidecar: Option<Value>,
}

fn read_update(path: &Path) -> Result<UpdateFile, SingletonFailure> {
    let mut value: Value = inputs::json(path).map_err(usage)?;
    let (mut source, mut sidecar) = (None, None);
    if let Some(update) = value.get_mut("update").map(Value::take) {
        source = value.get_mut("sourceDocument").map(Value::take);
        sidecar = value.get_mut("sidecar").map(Value::take);
        value = update;
    }
    let update = SignedUpdate::from_value(value).map_err(|error| usage(format!("{}: {error}", path.display())))?;
    Ok(UpdateFile { update, source, sidecar })
}

/// Writes the files of --out.
fn write(
    args: &SingletonArgs,
    did: &Did,
    update: &SignedUpdate,
    places: &[Place],
    prepared: Option<&Prepared>,
) -> Result<(), SingletonFailure> {
    let Some(directory) = &args.out else { return Ok(()) };
    let written = write_fallback(directory, did, update, places, prepared);
    let files = written.map_err(|error| ProgramError::Io { what: directory.display().to_string(), error })?;
    files.iter().for_each(|file| err!("written  {}", file.display()));
    Ok(())
}

/// Refuses an update whose proof may not be valid in the block that announces it: when that will be is not known.
fn refuse_expiring(args: &SingletonArgs, update: &SignedUpdate) -> Result<(), SingletonFailure> {
    match update::refuse_expiring(update, Clock::system().now()) {
        Err(error) if !args.allow_risky_update => {
            Err(usage(format!("{error}; --allow-risky-update announces it all the same")))
        }
        Err(error) => {
            err!("warning: {error}");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Refuses an update if another one of its version may be announced.
fn refuse_contradiction(ledger: &Ledger, update: &SignedUpdate) -> Result<(), SingletonFailure> {
    match ledger.contradiction(update) {
        Some(contradiction) => {
            Err(usage(format!("{contradiction}. If that one will never be announced: --supersede COHORT")))
        }
        None => Ok(()),
    }
}

/// Persists in the state directory that the update may be announced from now on, unless another one of its version was recorded
/// there in the meantime.
async fn record(
    directory: &Path,
    did: &Did,
    initial: Value,
    update: &SignedUpdate,
    superseded: &[CohortId],
) -> Result<(), SingletonFailure> {
    let record = Record::open(directory, did).await?;
    let recorded = async {
        record.check()?;
        let ledger = ledger_of(initial, &record, superseded);
        refuse_contradiction(&ledger, update)?;
        Ok(record.add(update, &ledger.settled()).await?)
    };
    let recorded = recorded.await;
    record.close().await;
    recorded
}
