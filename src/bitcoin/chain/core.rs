//! A Bitcoin Core node, over its RPC. It needs neither a wallet nor an index, but Bitcoin Core 29 or newer
//! (`getdescriptoractivity`).

mod answers;
mod filters;

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ::bitcoin::{
    BlockHash, FeeRate, OutPoint, Script, ScriptBuf, Transaction, Txid, block::Header, consensus::encode,
};
use async_trait::async_trait;
use jsonrpc::{bitreq_http_async, client_async::Client};
use serde::de::DeserializeOwned;
use serde_json::{Value, json, value::to_raw_value};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use self::answers::{
    ActivityInfo, BlockInfo, ChainInfo, Estimate, Event, HeaderInfo, MempoolInfo, PackageInfo, Scan,
};
use super::{
    Activity, BlockId, COINBASE_MATURITY, Chain, ChainError, ConfirmationTarget, Deposit, Place, Rejection,
    Signals, Spend, Tip, TransactionStatus, is_known_already, signals_among,
};
use crate::protocol::update::BlockTimes;

/// The timeout of calls that a node answers from memory.
const QUICK: Duration = Duration::from_secs(30);

/// The timeout of calls that read blocks from disk.
const BLOCKS: Duration = Duration::from_secs(120);

/// The timeout of a scan of the UTXO set: minutes on the main network.
const SCAN: Duration = Duration::from_secs(1200);

/// How many blocks one call reads.
const BLOCKS_A_CALL: usize = 48;

/// For how many scripts one call reads them.
const SCRIPTS_A_CALL: usize = 500;

/// How many partly read ranges of blocks are stored.
const MAX_UNFINISHED: usize = 64;

/// How many blocks a node on regtest may know of without having them.
const BEHIND: u32 = 100;

/// How often a query is repeated when a block arrives between its parts.
const ATTEMPTS: usize = 5;

/// The credentials of a node.
#[derive(Clone)]
pub enum CoreAuth {
    /// The cookie file that a node writes at each start.
    Cookie(PathBuf),
    /// User and password.
    Password {
        /// The user.
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
    /// A node runs one scan at a time, and refuses a second one. Callers are served in order.
    scan: Arc<Semaphore>,
    /// The parts of long ranges of blocks that were read, for the next try.
    unfinished: Arc<Mutex<BTreeMap<(ScriptBuf, u32), Reading>>>,
}

/// A range of blocks that was partly read.
#[derive(Clone, Debug, Default)]
struct Reading {
    /// The blocks that were read, by height.
    blocks: BTreeMap<u32, BlockHash>,
    events: Vec<Event>,
}

impl CoreChain {
    /// The node whose RPC server is at `url`, `http://host:port`. No request is sent yet.
    pub fn new(url: impl Into<String>, auth: CoreAuth) -> Self {
        Self { url: url.into(), auth, scan: Arc::new(Semaphore::new(1)), unfinished: Arc::default() }
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
            // Read for each call, because the node writes a new one at each start. It is one line of a local file: the
            // read does not block for long.
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
            .map_err(|error| self.transport_error(method, error))?;
        match answer.result() {
            Ok(result) => Ok(result),
            Err(jsonrpc::Error::Rpc(error)) => Err(CallError::Node { code: error.code, message: error.message }),
            Err(error) => Err(bad_answer(method, &error)),
        }
    }

    fn unreachable(&self, problem: &dyn fmt::Display) -> CallError {
        CallError::Chain(ChainError::Unavailable(format!("the node at {}: {problem}", self.url)))
    }

    fn transport_error(&self, method: &str, error: jsonrpc::Error) -> CallError {
        let jsonrpc::Error::Transport(error) = error else {
            return bad_answer(method, &error);
        };
        match error.downcast_ref::<bitreq_http_async::Error>() {
            Some(bitreq_http_async::Error::Http(http)) if http.status_code == 401 => match &self.auth {
                // A node writes its cookie some time after it starts to listen. Until then the file has the cookie of
                // its previous run.
                CoreAuth::Cookie(path) => self.unreachable(&format!(
                    "it refuses the cookie in {}: the file is from a previous run, if the node is starting, or \
                     from another node",
                    path.display()
                )),
                CoreAuth::Password { user, .. } => {
                    let problem = format!("the node at {} refuses the user {user} or the password", self.url);
                    CallError::Chain(ChainError::Misconfigured(problem))
                }
            },
            Some(bitreq_http_async::Error::Http(http)) if http.status_code == 403 => {
                let problem = format!(
                    "the node at {} forbids {method}: its -rpcwhitelist must name it for this user, and its \
                     -rpcallowip this address",
                    self.url
                );
                CallError::Chain(ChainError::Misconfigured(problem))
            }
            Some(bitreq_http_async::Error::Http(http)) => {
                self.unreachable(&format!("HTTP status {}", http.status_code))
            }
            _ => self.unreachable(&error),
        }
    }

    /// The block at `height`; `None` above the tip.
    async fn hash_at(&self, height: u32) -> Result<Option<BlockHash>, ChainError> {
        match self.call("getblockhash", json!([height]), QUICK).await {
            Ok(hash) => Ok(Some(hash)),
            Err(CallError::Node { code: code::INVALID_PARAMETER, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Checks that the node supports the needed calls, and that its chain is up to date.
    ///
    /// # Errors
    /// [`ChainError::Misconfigured`] if it is too old, [`ChainError::Unavailable`] while it still downloads the chain.
    pub async fn check_fitness(&self) -> Result<(), ChainError> {
        self.call::<ActivityInfo>("getdescriptoractivity", json!([[], []]), QUICK).await?;
        still_downloads(&self.chain_info().await?)
    }

    async fn chain_info(&self) -> Result<ChainInfo, ChainError> {
        Ok(self.call("getblockchaininfo", json!([]), QUICK).await?)
    }

    /// The error for pruned blocks: the node's message, and the blocks that it has.
    async fn pruned(&self, message: &str) -> ChainError {
        match self.chain_info().await {
            Ok(ChainInfo { blocks, pruneheight: Some(first), .. }) => {
                ChainError::Pruned(format!("{message}; it has blocks {first} to {blocks}"))
            }
            _ => ChainError::Pruned(message.to_owned()),
        }
    }

    async fn activity_in(
        &self,
        hashes: &[BlockHash],
        scripts: &[&Script],
        mempool: bool,
    ) -> Result<Vec<Event>, ChainError> {
        let descriptors: Vec<_> = scripts.iter().copied().map(descriptor).collect();
        let arguments = json!([hashes, descriptors, mempool]);
        match self.call::<ActivityInfo>("getdescriptoractivity", arguments, BLOCKS).await {
            Ok(info) => Ok(info.activity),
            Err(CallError::Node { code: code::MISC_ERROR, message }) if message.contains("pruned") => {
                Err(self.pruned(&message).await)
            }
            // The block is no longer in the best chain: the caller repeats the query.
            Err(CallError::Node { code: code::INVALID_ADDRESS_OR_KEY | code::INVALID_PARAMETER, message }) => {
                Err(ChainError::Unavailable(message))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// One try to read everything at a single tip; `None` if the tip changed meanwhile. Blocks that were read before
    /// that, or before an error, are not read again by the next try.
    async fn activity_once(
        &self,
        script: &Script,
        since: u32,
        reading: &mut Reading,
    ) -> Result<Option<Activity>, ChainError> {
        let tip = self.tip().await?;
        self.forget_stale(reading).await?;
        let mut next = reading.blocks.last_key_value().map_or(since, |(height, _)| height + 1);
        while next <= tip.block.height {
            let mut chunk = Vec::new();
            for height in (next..=tip.block.height).take(BLOCKS_A_CALL) {
                match self.hash_at(height).await? {
                    Some(hash) => chunk.push((height, hash)),
                    None => return Ok(None),
                }
            }
            let hashes: Vec<_> = chunk.iter().map(|(_, hash)| *hash).collect();
            reading.events.extend(self.activity_in(&hashes, &[script], false).await?);
            next += u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            reading.blocks.extend(chunk);
        }
        let mempool = self.activity_in(&[], &[script], true).await?;
        if self.tip().await?.block != tip.block {
            return Ok(None);
        }
        let mut activity = collect(tip, reading.events.iter().cloned().chain(mempool));
        self.find_coinbases(&mut activity).await?;
        Ok(Some(activity))
    }

    /// Marks the deposits that are coinbase outputs of recent blocks, which the node's answer does not show.
    async fn find_coinbases(&self, activity: &mut Activity) -> Result<(), ChainError> {
        let tip = activity.tip;
        let mut known: BTreeMap<Txid, bool> = BTreeMap::new();
        for deposit in &mut activity.deposits {
            let Some(block) = deposit.place.block().filter(|block| tip.depth(block) < COINBASE_MATURITY) else {
                continue;
            };
            let txid = deposit.outpoint.txid;
            deposit.coinbase = match known.get(&txid) {
                Some(coinbase) => *coinbase,
                // The node reads a single transaction of the block for this.
                None => {
                    let found = self.transaction(&txid, Some(&block.hash)).await?;
                    *known.entry(txid).or_insert(found.is_some_and(|transaction| transaction.is_coinbase()))
                }
            };
        }
        Ok(())
    }

    /// Drops the blocks that are no longer in the best chain.
    async fn forget_stale(&self, reading: &mut Reading) -> Result<(), ChainError> {
        while let Some((&height, &hash)) = reading.blocks.last_key_value() {
            if self.hash_at(height).await? == Some(hash) {
                break;
            }
            reading.blocks.remove(&height);
            reading.events.retain(|event| event.block() != Some(hash));
        }
        Ok(())
    }

    /// Like [`Self::activity_once`], for several scripts.
    async fn activities_once(&self, scripts: &[&Script], since: u32) -> Result<Option<Vec<Activity>>, ChainError> {
        let tip = self.tip().await?;
        let (mut events, mut next) = (Vec::new(), since);
        while next <= tip.block.height {
            let mut hashes = Vec::new();
            for height in (next..=tip.block.height).take(BLOCKS_A_CALL) {
                match self.hash_at(height).await? {
                    Some(hash) => hashes.push(hash),
                    None => return Ok(None),
                }
            }
            next += u32::try_from(hashes.len()).unwrap_or(u32::MAX);
            events.extend(self.activity_in(&hashes, scripts, false).await?);
        }
        events.extend(self.activity_in(&[], scripts, true).await?);
        if self.tip().await?.block != tip.block {
            return Ok(None);
        }
        let mut activities = Vec::with_capacity(scripts.len());
        for events in by_script(scripts, events)? {
            let mut activity = collect(tip, events);
            self.find_coinbases(&mut activity).await?;
            activities.push(activity);
        }
        Ok(Some(activities))
    }

    fn unfinished(&self) -> MutexGuard<'_, BTreeMap<(ScriptBuf, u32), Reading>> {
        // No code panics while it holds the lock.
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the blocks that were read for the next try, if there are many.
    fn put_back(&self, key: (ScriptBuf, u32), reading: Reading) {
        let mut unfinished = self.unfinished();
        if reading.blocks.len() >= BLOCKS_A_CALL {
            while unfinished.len() >= MAX_UNFINISHED {
                unfinished.pop_first();
            }
            unfinished.insert(key, reading);
        }
    }

    async fn coins_once(&self, scripts: &[&Script]) -> Result<Option<Vec<Activity>>, ChainError> {
        let descriptors: Vec<_> = scripts.iter().copied().map(descriptor).collect();
        let scan: Scan = self.call("scantxoutset", json!(["start", descriptors]), SCAN).await?;
        let mempool = self.activity_in(&[], scripts, true).await?;
        let tip = self.tip().await?;
        if tip.block.hash != scan.bestblock {
            return Ok(None);
        }
        let mut confirmed: BTreeMap<ScriptBuf, Vec<Deposit>> = BTreeMap::new();
        for coin in scan.unspents {
            confirmed.entry(coin.script).or_default().push(Deposit {
                outpoint: OutPoint { txid: coin.txid, vout: coin.vout },
                value: coin.amount,
                place: Place::Block(BlockId { height: coin.height, hash: coin.blockhash }),
                coinbase: coin.coinbase,
            });
        }
        let waiting = by_script(scripts, mempool)?;
        let of = |(script, events): (&&Script, Vec<Event>)| {
            let mut activity = collect(tip, events);
            activity.deposits.splice(0..0, confirmed.remove(*script).unwrap_or_default());
            activity
        };
        Ok(Some(scripts.iter().zip(waiting).map(of).collect()))
    }
}

/// The events of each script, in the order of `scripts`.
fn by_script(scripts: &[&Script], events: impl IntoIterator<Item = Event>) -> Result<Vec<Vec<Event>>, ChainError> {
    let mut of: BTreeMap<&Script, Vec<Event>> = scripts.iter().map(|script| (*script, Vec::new())).collect();
    for event in events {
        let Some(script) = event.script() else {
            let problem = "getdescriptoractivity: an event without its script".to_owned();
            return Err(ChainError::BadAnswer(problem));
        };
        if let Some(of) = of.get_mut(script.as_script()) {
            of.push(event);
        }
    }
    Ok(scripts.iter().map(|script| of.get(*script).cloned().unwrap_or_default()).collect())
}

/// An error while the node verifies or downloads the chain. On regtest blocks are mined on demand: an old tip is normal
/// there, fewer blocks than headers are not.
fn still_downloads(info: &ChainInfo) -> Result<(), ChainError> {
    let behind = info.headers.saturating_sub(info.blocks) > BEHIND;
    if if info.chain == "regtest" { behind } else { info.initialblockdownload } {
        let percent = info.verificationprogress * 100.0;
        let (blocks, headers) = (info.blocks, info.headers);
        let problem = format!("the node still reads the chain: {blocks} of {headers} blocks, {percent:.1} %");
        return Err(ChainError::Unavailable(problem));
    }
    Ok(())
}

fn moving() -> ChainError {
    ChainError::Unavailable("blocks arrive faster than the node answers".to_owned())
}

fn descriptor(script: &Script) -> String {
    format!("raw({})", script.to_hex_string())
}

fn collect(tip: Tip, events: impl IntoIterator<Item = Event>) -> Activity {
    let mut activity = Activity { tip, deposits: Vec::new(), spends: Vec::new() };
    let place = |block: Option<BlockHash>, height: Option<u32>| match (block, height) {
        (Some(hash), Some(height)) => Place::Block(BlockId { height, hash }),
        _ => Place::Mempool,
    };
    for event in events {
        match event {
            Event::Receive { amount, txid, vout, blockhash, height, .. } => {
                let outpoint = OutPoint { txid, vout };
                activity.deposits.push(Deposit::new(outpoint, amount, place(blockhash, height)));
            }
            Event::Spend { spend_txid, prevout_txid, prevout_vout, blockhash, height, .. } => {
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
        let info = self.chain_info().await?;
        // A restarted node knows all its headers at once, and loads its blocks one by one. A block that is not loaded
        // yet must not look missing.
        still_downloads(&info)?;
        let hash = info.bestblockhash;
        Ok(Tip { block: BlockId { height: info.blocks, hash }, median_time: info.mediantime })
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
        let mut activities = self.coins_of_all(&[script.to_owned()]).await?;
        activities.pop().ok_or_else(|| ChainError::BadAnswer("scantxoutset: no answer".to_owned()))
    }

    async fn coins_of_all(&self, scripts: &[ScriptBuf]) -> Result<Vec<Activity>, ChainError> {
        let scripts: Vec<&Script> = scripts.iter().map(ScriptBuf::as_script).collect();
        let mut activities = Vec::with_capacity(scripts.len());
        for some in scripts.chunks(SCRIPTS_A_CALL) {
            let _turn = self.scan.acquire().await;
            let mut found = None;
            for _ in 0..ATTEMPTS {
                found = self.coins_once(some).await?;
                if found.is_some() {
                    break;
                }
            }
            activities.extend(found.ok_or_else(moving)?);
        }
        Ok(activities)
    }

    async fn activity(&self, script: &Script, since: u32) -> Result<Activity, ChainError> {
        let key = (script.to_owned(), since);
        let mut reading = self.unfinished().remove(&key).unwrap_or_default();
        for _ in 0..ATTEMPTS {
            match self.activity_once(script, since, &mut reading).await {
                Ok(Some(activity)) => return Ok(activity),
                Ok(None) => {}
                Err(error) => {
                    self.put_back(key, reading);
                    return Err(error);
                }
            }
        }
        self.put_back(key, reading);
        Err(moving())
    }

    async fn activities(&self, scripts: &[ScriptBuf], since: u32) -> Result<Vec<Activity>, ChainError> {
        let scripts: Vec<&Script> = scripts.iter().map(ScriptBuf::as_script).collect();
        let mut activities = Vec::with_capacity(scripts.len());
        for some in scripts.chunks(SCRIPTS_A_CALL) {
            // If many blocks were read for one script, only the failed part is read again.
            if let [script] = some {
                activities.push(self.activity(script, since).await?);
                continue;
            }
            let mut found = None;
            for _ in 0..ATTEMPTS {
                found = self.activities_once(some, since).await?;
                if found.is_some() {
                    break;
                }
            }
            activities.extend(found.ok_or_else(moving)?);
        }
        Ok(activities)
    }

    async fn block_times(&self, hash: &BlockHash) -> Result<Option<BlockTimes>, ChainError> {
        match self.call("getblockheader", json!([hash]), QUICK).await {
            Ok(HeaderInfo { time, mediantime }) => Ok(Some(BlockTimes { time, mediantime })),
            Err(CallError::Node { code: code::INVALID_ADDRESS_OR_KEY, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn signals(&self, scripts: &[ScriptBuf], since: u32) -> Result<Vec<Signals>, ChainError> {
        let mut found = Vec::with_capacity(scripts.len());
        for scripts in scripts.chunks(SCRIPTS_A_CALL) {
            let some: Vec<&Script> = scripts.iter().map(ScriptBuf::as_script).collect();
            let activities = match self.activities_by_filters(&some, since).await? {
                Some(activities) => activities,
                None => self.activities(scripts, since).await?,
            };
            found.extend(signals_among(self, &activities).await?);
        }
        Ok(found)
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
        // From the tip down: most queries are for recent transactions.
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
        // BTC/kvB is 100,000 sat/vB; the type stores sat/kwu, of which 250 are a sat/vB.
        Ok(estimate.feerate.map(|rate| FeeRate::from_sat_per_kwu(rate.to_sat().div_ceil(4))))
    }

    async fn minimum_fee(&self) -> Result<Option<FeeRate>, ChainError> {
        let info: MempoolInfo = self.call("getmempoolinfo", json!([]), QUICK).await?;
        let least = info.mempoolminfee.max(info.minrelaytxfee);
        Ok(Some(FeeRate::from_sat_per_kwu(least.to_sat().div_ceil(4))))
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

/// Whether a package was accepted, from the overall message and the error of each transaction.
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
    pub(super) const MISC_ERROR: i32 = -1;
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
    /// The request failed.
    Chain(ChainError),
    /// The node returned an error.
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
            CallError::Node { code: code::MISC_ERROR, message } if message.contains("pruned") => {
                Self::Pruned(message)
            }
            CallError::Node { code: code::METHOD_NOT_FOUND, message } => {
                Self::Misconfigured(format!("{message}; Bitcoin Core 29 or newer is needed"))
            }
            CallError::Node { message, .. } => Self::Unavailable(message),
        }
    }
}
