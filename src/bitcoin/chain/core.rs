//! A Bitcoin Core node, over its RPC. It needs no wallet and no index, but Bitcoin Core 29 or newer
//! (`getdescriptoractivity`).

use std::{fmt, path::PathBuf, time::Duration};

use ::bitcoin::{
    Amount, BlockHash, FeeRate, OutPoint, Script, Transaction, Txid, block::Header, consensus::encode,
};
use async_trait::async_trait;
use jsonrpc::{bitreq_http_async, client_async::Client};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json, value::to_raw_value};
use zeroize::Zeroizing;

use super::{
    Activity, BlockId, Chain, ChainError, ConfirmationTarget, Deposit, Place, Rejection, Spend, Tip,
    TransactionStatus, is_known_already,
};

/// For calls that a node answers from memory.
const QUICK: Duration = Duration::from_secs(30);

/// For calls that read blocks from disk.
const BLOCKS: Duration = Duration::from_secs(120);

/// For a scan of all unspent outputs: minutes on the main network.
const SCAN: Duration = Duration::from_secs(1200);

/// How many blocks one call reads.
const BLOCKS_A_CALL: usize = 48;

/// How often to ask again when a block arrives between two parts of an answer.
const ATTEMPTS: usize = 5;

/// How to log in to a node.
#[derive(Clone)]
pub enum CoreAuth {
    /// By the cookie that a node writes whenever it starts.
    Cookie(PathBuf),
    /// By name and password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: Zeroizing<String>,
    },
}

impl fmt::Debug for CoreAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cookie(path) => write!(f, "Cookie({})", path.display()),
            Self::Password { user, .. } => write!(f, "Password({user})"),
        }
    }
}

/// A Bitcoin Core node.
#[derive(Clone, Debug)]
pub struct CoreChain {
    url: String,
    auth: CoreAuth,
}

impl CoreChain {
    /// The node whose RPC server is at `url`, `http://host:port`. Nothing is sent yet.
    pub fn new(url: impl Into<String>, auth: CoreAuth) -> Self {
        Self { url: url.into(), auth }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: &'static str,
        arguments: Value,
        timeout: Duration,
    ) -> Result<T, CallError> {
        let transport =
            bitreq_http_async::Builder::new().url(&self.url).map_err(|error| self.unreachable(&error))?;
        let transport = match &self.auth {
            // Read for each call: the node writes a new one whenever it starts. A line of a local file; it blocks nobody.
            CoreAuth::Cookie(path) => transport.cookie_auth(Zeroizing::new(
                std::fs::read_to_string(path)
                    .map_err(|error| {
                        let problem = format!("{}: {error} (is the node running?)", path.display());
                        CallError::Chain(ChainError::Unavailable(problem))
                    })?
                    .trim_end()
                    .to_owned(),
            )),
            CoreAuth::Password { user, password } => {
                transport.basic_auth(user.clone(), Some(String::clone(password)))
            }
        };
        let client = Client::with_transport(transport.timeout(timeout).build());
        let arguments = to_raw_value(&arguments).map_err(|error| bad_answer(method, &error))?;
        let request = client.build_request(method, Some(&arguments));
        let sent = tokio::time::timeout(timeout, client.send_request(request)).await;
        let answer = sent
            .map_err(|_| self.unreachable(&format!("no answer to {method} within {} s", timeout.as_secs())))?
            .map_err(|error| self.transport_error(error))?;
        match answer.result() {
            Ok(result) => Ok(result),
            Err(jsonrpc::Error::Rpc(error)) => Err(CallError::Node { code: error.code, message: error.message }),
            Err(error) => Err(bad_answer(method, &error)),
        }
    }

    fn unreachable(&self, problem: &dyn fmt::Display) -> CallError {
        CallError::Chain(ChainError::Unavailable(format!("the node at {}: {problem}", self.url)))
    }

    fn transport_error(&self, error: jsonrpc::Error) -> CallError {
        let jsonrpc::Error::Transport(error) = error else {
            return bad_answer("a call", &error);
        };
        match error.downcast_ref::<bitreq_http_async::Error>() {
            Some(bitreq_http_async::Error::Http(http)) if matches!(http.status_code, 401 | 403) => {
                let problem = format!("the node at {} refuses our login; is it another node's cookie?", self.url);
                CallError::Chain(ChainError::Misconfigured(problem))
            }
            Some(bitreq_http_async::Error::Http(http)) => {
                self.unreachable(&format!("HTTP status {}", http.status_code))
            }
            _ => self.unreachable(&error),
        }
    }

    /// The block at `height`, `None` above the tip.
    async fn hash_at(&self, height: u32) -> Result<Option<BlockHash>, ChainError> {
        match self.call("getblockhash", json!([height]), QUICK).await {
            Ok(hash) => Ok(Some(hash)),
            Err(CallError::Node { code: code::INVALID_PARAMETER, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn header_info(&self, hash: &BlockHash) -> Result<HeaderInfo, ChainError> {
        Ok(self.call("getblockheader", json!([hash, true]), QUICK).await?)
    }

    async fn activity_in(
        &self,
        hashes: &[BlockHash],
        script: &Script,
        mempool: bool,
    ) -> Result<Vec<Event>, ChainError> {
        let arguments = json!([hashes, [descriptor(script)], mempool]);
        match self.call::<ActivityInfo>("getdescriptoractivity", arguments, BLOCKS).await {
            Ok(info) => Ok(info.activity),
            // A block that is no longer in the best chain: the caller asks again.
            Err(CallError::Node { code: code::INVALID_ADDRESS_OR_KEY | code::INVALID_PARAMETER, message }) => {
                Err(ChainError::Unavailable(message))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// One try at an answer that is true at one tip; `None` when the tip moved meanwhile.
    async fn activity_once(&self, script: &Script, since: u32) -> Result<Option<Activity>, ChainError> {
        let tip = self.tip().await?;
        let mut hashes = Vec::new();
        for height in since..=tip.block.height {
            match self.hash_at(height).await? {
                Some(hash) => hashes.push(hash),
                None => return Ok(None),
            }
        }
        let mut events = Vec::new();
        for chunk in hashes.chunks(BLOCKS_A_CALL) {
            events.extend(self.activity_in(chunk, script, false).await?);
        }
        events.extend(self.activity_in(&[], script, true).await?);
        if self.tip().await?.block != tip.block {
            return Ok(None);
        }
        Ok(Some(collect(tip, events)))
    }

    async fn coins_once(&self, script: &Script) -> Result<Option<Activity>, ChainError> {
        let scan: Scan = self.call("scantxoutset", json!(["start", [descriptor(script)]]), SCAN).await?;
        let mempool = self.activity_in(&[], script, true).await?;
        let tip = self.tip().await?;
        if tip.block.hash != scan.bestblock {
            return Ok(None);
        }
        let mut activity = collect(tip, mempool);
        let confirmed = scan.unspents.into_iter().map(|coin| Deposit {
            outpoint: OutPoint { txid: coin.txid, vout: coin.vout },
            value: coin.amount,
            place: Place::Block(BlockId { height: coin.height, hash: coin.blockhash }),
        });
        activity.deposits.splice(0..0, confirmed);
        Ok(Some(activity))
    }
}

fn moving() -> ChainError {
    ChainError::Unavailable("blocks arrive faster than the node answers".to_owned())
}

fn descriptor(script: &Script) -> String {
    format!("raw({})", script.to_hex_string())
}

fn collect(tip: Tip, events: Vec<Event>) -> Activity {
    let mut activity = Activity { tip, deposits: Vec::new(), spends: Vec::new() };
    let place = |block: Option<BlockHash>, height: Option<u32>| match (block, height) {
        (Some(hash), Some(height)) => Place::Block(BlockId { height, hash }),
        _ => Place::Mempool,
    };
    for event in events {
        match event {
            Event::Receive { amount, txid, vout, blockhash, height } => activity.deposits.push(Deposit {
                outpoint: OutPoint { txid, vout },
                value: amount,
                place: place(blockhash, height),
            }),
            Event::Spend { spend_txid, prevout_txid, prevout_vout, blockhash, height } => {
                activity.spends.push(Spend {
                    outpoint: OutPoint { txid: prevout_txid, vout: prevout_vout },
                    by: spend_txid,
                    place: place(blockhash, height),
                });
            }
        }
    }
    activity
}

#[async_trait]
impl Chain for CoreChain {
    async fn tip(&self) -> Result<Tip, ChainError> {
        let hash: BlockHash = self.call("getbestblockhash", json!([]), QUICK).await?;
        let header = self.header_info(&hash).await?;
        Ok(Tip { block: BlockId { height: header.height, hash }, median_time: header.mediantime })
    }

    async fn block_hash(&self, height: u32) -> Result<Option<BlockHash>, ChainError> {
        self.hash_at(height).await
    }

    async fn header(&self, hash: &BlockHash) -> Result<Option<Header>, ChainError> {
        match self.call::<String>("getblockheader", json!([hash, false]), QUICK).await {
            Ok(hex) => encode::deserialize_hex(&hex)
                .map(Some)
                .map_err(|error| ChainError::BadAnswer(format!("the header of {hash}: {error}"))),
            Err(CallError::Node { code: code::INVALID_ADDRESS_OR_KEY, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn coins(&self, script: &Script) -> Result<Activity, ChainError> {
        for _ in 0..ATTEMPTS {
            if let Some(activity) = self.coins_once(script).await? {
                return Ok(activity);
            }
        }
        Err(moving())
    }

    async fn activity(&self, script: &Script, since: u32) -> Result<Activity, ChainError> {
        for _ in 0..ATTEMPTS {
            if let Some(activity) = self.activity_once(script, since).await? {
                return Ok(activity);
            }
        }
        Err(moving())
    }

    async fn transaction(&self, txid: &Txid, block: Option<&BlockHash>) -> Result<Option<Transaction>, ChainError> {
        let arguments = match block {
            Some(block) => json!([txid, 0, block]),
            None => json!([txid, 0]),
        };
        match self.call::<String>("getrawtransaction", arguments, BLOCKS).await {
            Ok(hex) => encode::deserialize_hex(&hex)
                .map(Some)
                .map_err(|error| ChainError::BadAnswer(format!("transaction {txid}: {error}"))),
            Err(CallError::Node { code: code::INVALID_ADDRESS_OR_KEY, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn status(&self, txid: &Txid, since: u32) -> Result<TransactionStatus, ChainError> {
        match self.call::<Value>("getmempoolentry", json!([txid]), QUICK).await {
            Ok(_) => return Ok(TransactionStatus::At(Place::Mempool)),
            Err(CallError::Node { code: code::INVALID_ADDRESS_OR_KEY, .. }) => {}
            Err(error) => return Err(error.into()),
        }
        // From the tip down: what is asked for is mostly recent.
        let tip = self.tip().await?.block;
        let mut next = Some(tip.hash);
        while let Some(hash) = next {
            let block: BlockInfo = self.call("getblock", json!([hash, 1]), BLOCKS).await?;
            if block.tx.contains(txid) {
                return Ok(TransactionStatus::At(Place::Block(BlockId { height: block.height, hash })));
            }
            next = block.previousblockhash.filter(|_| block.height > since);
        }
        Ok(TransactionStatus::Unknown)
    }

    async fn fee_estimate(&self, target: ConfirmationTarget) -> Result<Option<FeeRate>, ChainError> {
        let estimate: Estimate = self.call("estimatesmartfee", json!([target.blocks()]), QUICK).await?;
        // BTC/kvB is 100,000 sat/vB; a rate is kept in sat/kwu, of which 250 are a sat/vB.
        Ok(estimate.feerate.map(|rate| FeeRate::from_sat_per_kwu(rate.to_sat().div_ceil(4))))
    }

    async fn submit(&self, transaction: &Transaction) -> Result<(), ChainError> {
        let hex = encode::serialize_hex(transaction);
        match self.call::<Txid>("sendrawtransaction", json!([hex]), QUICK).await {
            Ok(_) => Ok(()),
            Err(error) => refused_unless_known(error),
        }
    }

    async fn submit_package(&self, parent: &Transaction, child: &Transaction) -> Result<(), ChainError> {
        let package = [encode::serialize_hex(parent), encode::serialize_hex(child)];
        let answer: PackageInfo = match self.call("submitpackage", json!([package]), QUICK).await {
            Ok(answer) => answer,
            Err(error) => return refused_unless_known(error),
        };
        package_result(&answer.package_msg, answer.results.into_values().filter_map(|result| result.error))
    }
}

/// Whether a package was taken, by the message for all and the errors of each transaction.
pub(super) fn package_result(message: &str, errors: impl Iterator<Item = String>) -> Result<(), ChainError> {
    if message == "success" {
        return Ok(());
    }
    let errors: Vec<_> = errors.filter(|error| !is_known_already(error)).collect();
    let reason = if errors.is_empty() { message.to_owned() } else { errors.join("; ") };
    Err(Rejection::new(reason).into())
}

fn refused_unless_known(error: CallError) -> Result<(), ChainError> {
    match error {
        CallError::Node { code: code::ALREADY_IN_UTXO_SET, .. } => Ok(()),
        CallError::Node { code: code::VERIFY_ERROR | code::VERIFY_REJECTED, message } => {
            if is_known_already(&message) { Ok(()) } else { Err(Rejection::new(message).into()) }
        }
        error => Err(error.into()),
    }
}

/// Bitcoin Core's RPC error codes (`src/rpc/protocol.h`).
mod code {
    pub(super) const INVALID_ADDRESS_OR_KEY: i32 = -5;
    pub(super) const INVALID_PARAMETER: i32 = -8;
    pub(super) const VERIFY_ERROR: i32 = -25;
    pub(super) const VERIFY_REJECTED: i32 = -26;
    pub(super) const ALREADY_IN_UTXO_SET: i32 = -27;
    pub(super) const IN_WARMUP: i32 = -28;
    pub(super) const METHOD_NOT_FOUND: i32 = -32601;
}

/// Why a call has no result.
enum CallError {
    /// It did not get through.
    Chain(ChainError),
    /// The node says no.
    Node { code: i32, message: String },
}

fn bad_answer(method: &str, error: &dyn fmt::Display) -> CallError {
    CallError::Chain(ChainError::BadAnswer(format!("{method}: {error}")))
}

impl From<CallError> for ChainError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Chain(error) => error,
            CallError::Node { code: code::IN_WARMUP, message } => {
                Self::Unavailable(format!("the node is starting: {message}"))
            }
            CallError::Node { code: code::METHOD_NOT_FOUND, message } => {
                Self::Misconfigured(format!("{message}; Bitcoin Core 29 or newer is needed"))
            }
            CallError::Node { message, .. } => Self::Unavailable(message),
        }
    }
}

// Only what is used, so that other versions of the node are understood too.

#[derive(Deserialize)]
struct HeaderInfo {
    height: u32,
    mediantime: u32,
}

#[derive(Deserialize)]
struct BlockInfo {
    height: u32,
    tx: Vec<Txid>,
    previousblockhash: Option<BlockHash>,
}

#[derive(Deserialize)]
struct Scan {
    bestblock: BlockHash,
    unspents: Vec<ScannedCoin>,
}

#[derive(Deserialize)]
struct ScannedCoin {
    txid: Txid,
    vout: u32,
    #[serde(with = "::bitcoin::amount::serde::as_btc")]
    amount: Amount,
    height: u32,
    blockhash: BlockHash,
}

#[derive(Deserialize)]
struct ActivityInfo {
    activity: Vec<Event>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Event {
    Receive {
        #[serde(with = "::bitcoin::amount::serde::as_btc")]
        amount: Amount,
        txid: Txid,
        vout: u32,
        blockhash: Option<BlockHash>,
        height: Option<u32>,
    },
    Spend {
        spend_txid: Txid,
        prevout_txid: Txid,
        prevout_vout: u32,
        blockhash: Option<BlockHash>,
        height: Option<u32>,
    },
}

#[derive(Deserialize)]
struct Estimate {
    #[serde(default, with = "::bitcoin::amount::serde::as_btc::opt")]
    feerate: Option<Amount>,
}

#[derive(Deserialize)]
struct PackageInfo {
    package_msg: String,
    #[serde(rename = "tx-results", default)]
    results: std::collections::BTreeMap<String, PackageResult>,
}

#[derive(Deserialize)]
struct PackageResult {
    error: Option<String>,
}
