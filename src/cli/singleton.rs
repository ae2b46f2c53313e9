//! `singleton`: announces an update without a cohort.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
};

use ::bitcoin::{Address, Amount, FeeRate, OutPoint, address::NetworkUnchecked, consensus::encode::serialize_hex};
use clap::{Args, ValueEnum};
use data_encoding::BASE64;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use serde::{Deserialize, Deserializer, de};
use serde_json::{Value, json};

use super::{ChainArg, fail, identity_of, refuse_risky, update::ledger_of};
use crate::{
    actors::state::{State, StateError},
    bitcoin::{
        chain::{ChainError, ConfirmationTarget},
        fees::sat_per_vb,
    },
    error::ProgramError,
    inputs,
    join::ledger::Ledger,
    protocol::{
        did::Did,
        document::{self, Concern},
        id::CohortId,
        identity::Identity,
        network::Network,
        output::{Change, Coin, InitialBeacon, InitialBeaconKind, SingletonAnnouncement},
        update::SignedUpdate,
    },
    singleton::{self, FallbackError, Prepared},
    storage,
    vault::Sources,
};

/// A rate above this is assumed to be a typing error: sat/vB.
const MAX_FEE_RATE: f64 = 10_000.0;

/// The arguments of `singleton`.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  \
    btcr2-aggregation singleton --identity alice.id --update update.json \\\n    \
    --coin 4a5e...:0:10000 --type p2wpkh --fee-rate 5 --sign --out announcement\n\n\
    Then: bitcoin-cli sendrawtransaction \"$(cat announcement/signed.hex)\"")]
pub(super) struct SingletonArgs {
    /// The DID whose update it is; with it alone nothing can be signed here
    #[arg(long, value_name = "DID", required_unless_present_any = ["identity", "secret_env"], conflicts_with_all = ["identity", "secret_env"])]
    did: Option<Did>,
    /// The identity file of the DID, see `identity new`
    #[arg(long, value_name = "FILE", env = "BTCR2_IDENTITY")]
    identity: Option<PathBuf>,
    /// Take the secret key from this environment variable instead of a file
    #[arg(long, value_name = "VAR", env = "BTCR2_SECRET_ENV")]
    secret_env: Option<String>,
    /// With --secret-env: the Bitcoin network of the DID [default: regtest]
    #[arg(long, value_name = "N", env = "BTCR2_NETWORK")]
    network: Option<Network>,
    /// The signed update, a JSON file, or a file of `update --out`
    #[arg(long, value_name = "FILE")]
    update: PathBuf,
    /// The member's state directory (`join --state`): the update is refused if another update of its version may be
    /// announced, or if it does not start from the document to which the announced ones lead; and it is recorded there
    #[arg(long, value_name = "DIR", env = "BTCR2_STATE")]
    state: Option<PathBuf>,
    /// With --state: an update that was approved in this cohort (`singleton` for one that this command prepared) will never be
    /// announced; may be given several times
    #[arg(long, value_name = "COHORT", allow_hyphen_values = true, value_delimiter = ',', requires = "state")]
    supersede: Vec<CohortId>,
    /// The document that the update starts from, where that is not the initial one: all rules are then checked
    #[arg(long, value_name = "FILE")]
    source_document: Option<PathBuf>,
    /// Announce it although it leaves the DID without a key or a beacon, adds a beacon twice, or publishes a secret key, or
    /// although it starts from another document than --state knows
    #[arg(long)]
    allow_risky_update: bool,
    /// The coin to spend: transaction id, output number and value in satoshi
    #[arg(long, value_name = "TXID:VOUT:SATS")]
    coin: Option<CoinText>,
    /// The beacon that has the coin
    #[arg(long = "type", value_enum, default_value = "p2wpkh")]
    kind: Kind,
    /// The fee rate in sat/vB, at least 1 [default: 2, or what --chain estimates]
    #[arg(long, value_name = "RATE", value_parser = fee_rate)]
    fee_rate: Option<FeeRate>,
    /// Use this chain's estimate and minimum: core=http://user:password@host:port, core=http://host:port?cookie=PATH,
    /// or esplora=https://host/api
    #[arg(long, value_name = "KIND=URL", env = "BTCR2_CHAIN", hide_env_values = true)]
    chain: Option<ChainArg>,
    /// The address for the change [default: the beacon]
    #[arg(long, value_name = "ADDRESS", value_parser = inputs::any_address)]
    change: Option<Address<NetworkUnchecked>>,
    /// The transaction that created the coin, a file of hex: it is checked, and put into the PSBT, which P2PKH needs
    #[arg(long, value_name = "FILE", requires = "coin")]
    funding_tx: Option<PathBuf>,
    /// Sign it with the identity's key
    #[arg(long, requires = "coin", conflicts_with = "did")]
    sign: bool,
    /// Write update.json, unsigned.hex, unsigned.psbt, signed.hex and README.txt into this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The kinds of address.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Pay to witness public key hash
    P2wpkh,
    /// Taproot, key path only
    P2tr,
    /// Pay to public key hash
    P2pkh,
}

impl Kind {
    const fn beacon(self) -> InitialBeaconKind {
        match self {
            Self::P2wpkh => InitialBeaconKind::P2wpkh,
            Self::P2tr => InitialBeaconKind::P2tr,
            Self::P2pkh => InitialBeaconKind::P2pkh,
        }
    }
}

/// `TXID:VOUT:SATS`.
#[derive(Clone, Copy, Debug)]
struct CoinText(Coin);

impl FromStr for CoinText {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (outpoint, sats) = text.rsplit_once(':')?;
            let outpoint: OutPoint = outpoint.parse().ok()?;
            let value = Amount::from_sat(sats.parse().ok()?);
            (value <= Amount::MAX_MONEY).then_some(Self(Coin { outpoint, value }))
        };
        parse().ok_or("TXID:VOUT:SATS expected: 64 hex characters, an output number, a value in satoshi")
    }
}

/// A coin on one of a DID's initial beacons, `TYPE:TXID:VOUT:SATS`.
#[derive(Clone, Copy, Debug)]
pub(super) struct BeaconCoin(pub(super) InitialBeaconKind, pub(super) Coin);

impl FromStr for BeaconCoin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(kind, coin)| Some((Kind::from_str(kind, true).ok()?, coin)));
        let (kind, coin) = parts.ok_or("TYPE:TXID:VOUT:SATS expected, with p2wpkh, p2tr or p2pkh as TYPE")?;
        let CoinText(coin) = coin.parse()?;
        Ok(Self(kind.beacon(), coin))
    }
}

impl<'de> Deserialize<'de> for BeaconCoin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A fee rate as people write it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SatPerVb(pub(super) FeeRate);

impl Default for SatPerVb {
    fn default() -> Self {
        Self(FeeRate::from_sat_per_vb_u32(2))
    }
}

impl FromStr for SatPerVb {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        fee_rate(text).map(Self)
    }
}

impl<'de> Deserialize<'de> for SatPerVb {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        f64::deserialize(deserializer)?.to_string().parse().map_err(de::Error::custom)
    }
}

fn fee_rate(text: &str) -> Result<FeeRate, String> {
    match text.parse::<f64>() {
        // A kilo weight unit is 250 vB. In this range the product is exact enough and fits.
        Ok(rate) if (1.0..=MAX_FEE_RATE).contains(&rate) => {
            Ok(FeeRate::from_sat_per_kwu((rate * 250.0).ceil() as u64))
        }
        _ => Err(format!("a number between 1 and {MAX_FEE_RATE} expected, in sat/vB")),
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

/// Runs the command: 0 when the transaction is prepared, 2 when the request cannot be fulfilled.
pub(super) fn main(args: &SingletonArgs) -> ExitCode {
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// The DID of the update, alone or with its key.
enum Who {
    Did(Did),
    Identity(Identity),
}

impl Who {
    fn did(&self) -> &Did {
        match self {
            Self::Did(did) => did,
            Self::Identity(identity) => identity.did(),
        }
    }
}

fn run(args: &SingletonArgs) -> Result<(), ProgramError> {
    let who = match &args.did {
        Some(did) => Who::Did(did.clone()),
        None => {
            let identity = identity_of(args.identity.as_deref(), args.secret_env.as_deref(), args.network);
            Who::Identity(identity.map_err(|error| ProgramError::Usage(error.to_string()))?)
        }
    };
    let did = who.did();
    let (update, from) = read_update(&args.update)?;
    let known = match &args.state {
        Some(directory) => Some(super::block_on(known(did, directory, &args.supersede))?),
        None => None,
    };
    let source = source(args, known.as_ref(), &update, from)?;
    singleton::check_update(did, &update, source.as_ref())?;
    let mut concerns: Vec<String> =
        singleton::concerns(did, &update, source.as_ref())?.iter().map(Concern::to_string).collect();
    if let Some(ledger) = &known {
        if let Some(contradiction) = ledger.contradiction(&update) {
            return Err(ProgramError::Usage(format!(
                "{contradiction}. If that one will never be announced: --supersede COHORT"
            )));
        }
        if !ledger.knows(&update) {
            concerns.extend(doubts(ledger, source.as_ref(), &update));
        }
    }
    refuse_risky(&concerns, &args.update, args.allow_risky_update)?;
    if update.target_version().is_some_and(|version| version > 2) {
        let service = args.kind.beacon().service();
        err!(
            "note: a resolver looks at the beacons of the current document: make sure that it still has #{service}"
        );
    }
    let prepared = match &args.coin {
        Some(CoinText(coin)) => Some(prepare(args, &who, *coin, &update)?),
        None => None,
    };
    // Before the transaction is returned: it may be announced from then on.
    if let (Some(directory), Some(ledger)) = (&args.state, &known)
        && !ledger.knows(&update)
    {
        super::block_on(record(directory, &update))?;
    }
    if let Some(directory) = &args.out {
        let written = singleton::write_fallback(directory, did, &update, prepared.as_ref());
        let files = written.map_err(|error| ProgramError::Io { what: directory.display().to_string(), error })?;
        for file in files {
            err!("written  {}", file.display());
        }
    }
    let shown =
        Shown { did, update: &update, beacons: singleton::initial_beacons(did)?, prepared: prepared.as_ref() };
    if args.json {
        out!("{}", shown.to_json())
    } else {
        out!("{}", shown.to_text())
    }
    Ok(())
}

/// The known updates of `did` in the state directory of its member.
async fn known(did: &Did, directory: &Path, superseded: &[CohortId]) -> Result<Ledger, ProgramError> {
    let state = |error: &dyn std::fmt::Display| ProgramError::State(error.to_string());
    let sources = Sources { states: vec![directory.to_owned()], ..Sources::default() };
    let contents = sources.read().await.map_err(|error| state(&error))?.only(Some(did));
    if let Some(problem) = contents.problems.first() {
        return Err(state(problem));
    }
    let initial = document::initial_document(did, None).map_err(|_| FallbackError::External(did.clone()))?;
    Ok(ledger_of(initial, contents, superseded))
}

/// Persists in the member's state directory that the update may be announced from now on.
async fn record(directory: &Path, update: &SignedUpdate) -> Result<(), ProgramError> {
    let open = |error: StateError| {
        let hint = if matches!(error, StateError::Locked { .. }) {
            "; stop `join` first: the update must be recorded, so that `join` signs no other one of its version"
        } else {
            ""
        };
        ProgramError::State(format!("{error}{hint}"))
    };
    let state = State::open(directory).map_err(open)?;
    let recorded = storage::prepare(&state, update).await;
    state.close().await;
    recorded
}

/// The document that the update starts from, and its version: as given, or as the announced updates lead to it.
fn source(
    args: &SingletonArgs,
    known: Option<&Ledger>,
    update: &SignedUpdate,
    from: Option<Value>,
) -> Result<Option<(Value, u64)>, ProgramError> {
    let version = update.target_version().map_or(1, |target| target.saturating_sub(1));
    let given = match &args.source_document {
        Some(path) => Some(inputs::json(path).map_err(|error| ProgramError::Usage(error.to_string()))?),
        None => from,
    };
    if let Some(document) = given {
        return Ok(Some((document, version)));
    }
    Ok(known.map(Ledger::current).filter(|(_, current)| *current == version))
}

/// Why the update is not the next one, according to the state directory. An update that is already announced may be
/// announced again.
fn doubts(ledger: &Ledger, source: Option<&(Value, u64)>, update: &SignedUpdate) -> Option<String> {
    let (_, current) = ledger.current();
    let target = update.target_version()?;
    if target <= current {
        return None;
    }
    match source {
        Some((document, version)) => ledger.doubts(document, *version),
        None => ledger.doubts(&Value::Null, target - 1),
    }
}

fn prepare(args: &SingletonArgs, who: &Who, coin: Coin, update: &SignedUpdate) -> Result<Prepared, ProgramError> {
    let did = who.did();
    let beacon = InitialBeacon::of(did, args.kind.beacon()).ok_or_else(|| FallbackError::External(did.clone()))?;
    let change = match &args.change {
        Some(address) => {
            let address = inputs::on_network(address.clone(), did.network());
            Change::To(address.map_err(|error| ProgramError::Usage(format!("--change: {error}")))?.script_pubkey())
        }
        None => Change::Beacon,
    };
    let rate = super::block_on(rate(args, did.network()))?;
    let mut announcement =
        SingletonAnnouncement::new(beacon, coin, update, rate, &change).map_err(FallbackError::from)?;
    if let Some(path) = &args.funding_tx {
        let funding = inputs::transaction(path).map_err(|error| ProgramError::Usage(error.to_string()))?;
        announcement = announcement.with_funding(funding).map_err(FallbackError::from)?;
    }
    let signed = match who {
        Who::Identity(identity) if args.sign => {
            Some(singleton::sign(&announcement, identity.secret_key(), &mut ChaCha20Rng::from_os_rng())?)
        }
        _ => None,
    };
    Ok(Prepared { announcement, signed })
}

/// The rate to pay: the requested rate, if the chain accepts it; otherwise the chain's estimate, up to 100 sat/vB.
async fn rate(args: &SingletonArgs, network: Network) -> Result<FeeRate, ProgramError> {
    let usage = |problem: String| ProgramError::Usage(problem);
    let usual = SatPerVb::default().0;
    let Some(chain) = &args.chain else { return Ok(args.fee_rate.unwrap_or(usual)) };
    let source = chain.source().map_err(|error| usage(format!("--chain: {error}")))?;
    let unanswered = |error: ChainError| ProgramError::Io {
        what: "the chain".to_owned(),
        error: std::io::Error::other(error.to_string()),
    };
    let chain = source.connect(network).await.map_err(unanswered)?;
    let minimum = chain.minimum_fee().await.map_err(unanswered)?.unwrap_or(FeeRate::ZERO);
    match args.fee_rate {
        Some(rate) if rate < minimum => {
            let (rate, minimum) = (sat_per_vb(rate), sat_per_vb(minimum));
            Err(usage(format!("--fee-rate {rate}: the node takes nothing below {minimum} sat/vB now")))
        }
        Some(rate) => Ok(rate),
        None => {
            let estimate = chain.fee_estimate(ConfirmationTarget::new(6)).await.ok().flatten().unwrap_or(usual);
            Ok(estimate.min(FeeRate::from_sat_per_vb_u32(100)).max(minimum).max(FeeRate::BROADCAST_MIN))
        }
    }
}

/// The update, and the document that it starts from if the file has it.
fn read_update(path: &Path) -> Result<(SignedUpdate, Option<Value>), ProgramError> {
    let mut value: Value = inputs::json(path).map_err(|error| ProgramError::Usage(error.to_string()))?;
    let mut source = None;
    if let Some(update) = value.get_mut("update").map(Value::take) {
        source = value.get_mut("sourceDocument").map(Value::take);
        value = update;
    }
    let update = SignedUpdate::from_value(value);
    let update = update.map_err(|error| ProgramError::Usage(format!("{}: {error}", path.display())))?;
    Ok((update, source))
}

/// The output of the command.
struct Shown<'a> {
    did: &'a Did,
    update: &'a SignedUpdate,
    beacons: [InitialBeacon; 3],
    prepared: Option<&'a Prepared>,
}

impl Shown<'_> {
    /// `None` while it depends on the signature, as for P2PKH.
    fn txid(prepared: &Prepared) -> Option<String> {
        let unsigned = prepared.announcement.unsigned();
        let segwit = prepared.announcement.beacon().kind() != InitialBeaconKind::P2pkh;
        prepared.signed.as_ref().or(segwit.then_some(unsigned)).map(|tx| tx.compute_txid().to_string())
    }

    fn to_json(&self) -> Value {
        let beacon = |beacon: &InitialBeacon| json!({ "service": format!("{}#{}", self.did, beacon.kind().service()), "address": beacon.address().to_string() });
        let mut shown = json!({
            "did": self.did,
            "updateHash": self.update.hash(),
            "beacons": self.beacons.iter().map(beacon).collect::<Vec<_>>(),
        });
        if let Some(prepared) = self.prepared {
            let announcement = &prepared.announcement;
            shown["transaction"] = json!({
                "beacon": beacon(announcement.beacon()),
                "signalHex": announcement.signal(),
                "txid": Self::txid(prepared),
                "fee": announcement.fee().to_sat(),
                "maxVsize": announcement.max_vsize(),
                "unsignedHex": serialize_hex(announcement.unsigned()),
                "psbt": BASE64.encode(&announcement.to_psbt().serialize()),
                "signedHex": prepared.signed.as_ref().map(serialize_hex),
            });
        }
        shown
    }

    fn to_text(&self) -> String {
        let mut lines = vec![format!("did          {}", self.did), format!("update       {}", self.update.hash())];
        let Some(prepared) = self.prepared else {
            lines.extend(
                self.beacons.iter().map(|beacon| format!("{:12} {}", beacon.kind().service(), beacon.address())),
            );
            lines.push(
                "Send a coin to one of these, then give it as --coin TXID:VOUT:SATS with its --type.".to_owned(),
            );
            return lines.join("\n");
        };
        let announcement = &prepared.announcement;
        let beacon = announcement.beacon();
        lines.push(format!("beacon       {} {}", beacon.kind().service(), beacon.address()));
        lines.push(format!("signal       {}", announcement.signal()));
        if let Some(txid) = Self::txid(prepared) {
            lines.push(format!("transaction  {txid}"));
        }
        lines.push(format!(
            "fee          {} sat, at most {} vB",
            announcement.fee().to_sat(),
            announcement.max_vsize()
        ));
        lines.push(format!("unsigned     {}", serialize_hex(announcement.unsigned())));
        lines.push(format!("psbt         {}", BASE64.encode(&announcement.to_psbt().serialize())));
        if let Some(signed) = &prepared.signed {
            lines.push(format!("signed       {}", serialize_hex(signed)));
        }
        lines.join("\n")
    }
}
