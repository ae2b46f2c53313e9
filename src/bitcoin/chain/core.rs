//! A Bitcoin Core node, over its RPC. It needs neither a wallet nor an index, but Bitcoin Core 29 or newer
//! (`getdescriptoractivity`).

mod answers;
mod call;
mod filters;
mod read;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ::bitcoin::{
    BlockHash, FeeRate, OutPoint, Script, ScriptBuf, Transaction, Txid, block::Header, consensus::encode,
};
use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

pub use self::call::CoreAuth;
use self::{
    answers::{ActivityInfo, BlockInfo, Estimate, Event, HeaderInfo, MempoolInfo, PackageInfo, Scan},
    call::{BLOCKS, CallError, Node, QUICK, code},
    read::{BLOCKS_A_CALL, Reading, by_script, collect, descriptor, still_downloads},
};
use super::{
    Activity, BlockId, Chain, ChainError, ConfirmationTarget, Deposit, Place, Rejection, Signals, Tip,
    TransactionStatus, is_known_already, signals_among,
};
use crate::protocol::update::BlockTimes;

/// The timeout of a scan of the UTXO set: minutes on the main network.
const SCAN: Duration = Duration::from_secs(1200);

/// For how many scripts one call reads them.
const SCRIPTS_A_CALL: usize = 500;

/// How many partly read ranges of blocks are stored.
const MAX_UNFINISHED: usize = 64;

/// How often a query is repeated when a block arrives between its parts.
const ATTEMPTS: usize = 5;

/// A Bitcoin Core node.
#[derive(Clone, Debug)]
pub struct CoreChain {
    node: Node,
    /// A node runs one scan at a time, and refuses a second one. Callers are served in order.
    scan: Arc<Semaphore>,
    /// The parts of long ranges of blocks that were read, for the next try.
    unfinished: Arc<Mutex<BTreeMap<(ScriptBuf, u32), Reading>>>,
}

impl CoreChain {
    /// The node whose RPC server is at `url`, `http://host:port`. No request is sent yet.
    pub fn new(url: impl Into<String>, auth: CoreAuth) -> Self {
        Self { node: Node { url: url.into(), auth }, scan: Arc::new(Semaphore::new(1)), unfinished: Arc::default() }
    }

    /// Checks that the node supports the needed calls, and that its chain is up to date.
    ///
    /// # Errors
    /// [`ChainError::Misconfigured`] if it is too old, [`ChainError::Unavailable`] while it still downloads the chain.
    pub async fn check_fitness(&self) -> Result<(), ChainError> {
        self.node.call::<ActivityInfo>("getdescriptoractivity", json!([[], []]), QUICK).await?;
        still_downloads(&self.node.chain_info().await?)
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
        let scan: Scan = self.node.call("scantxoutset", json!(["start", descriptors]), SCAN).await?;
        let mempool = self.node.activity_in(&[], scripts, true).await?;
        let tip = self.node.tip().await?;
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

fn moving() -> ChainError {
    ChainError::Unavailable("blocks arrive faster than the node answers".to_owned())
}

#[async_trait]
impl Chain for CoreChain {
    async fn tip(&self) -> Result<Tip, ChainError> {
        self.node.tip().await
    }

    async fn block_hash(&self, height: u32) -> Result<Option<BlockHash>, ChainError> {
        self.node.hash_at(height).await
    }

    async fn header(&self, hash: &BlockHash) -> Result<Option<Header>, ChainError> {
        match self.node.call::<String>("getblockheader", json!([hash, false]), QUICK).await {
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
            match self.node.activity_once(script, since, &mut reading).await {
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
                found = self.node.activities_once(some, since).await?;
                if found.is_some() {
                    break;
                }
            }
            activities.extend(found.ok_or_else(moving)?);
        }
        Ok(activities)
    }

    async fn block_times(&self, hash: &BlockHash) -> Result<Option<BlockTimes>, ChainError> {
        match self.node.call("getblockheader", json!([hash]), QUICK).await {
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
        self.node.transaction(txid, block).await
    }

    async fn status(&self, txid: &Txid, since: u32) -> Result<TransactionStatus, ChainError> {
        match self.node.call::<Value>("getmempoolentry", json!([txid]), QUICK).await {
            Ok(_) => return Ok(TransactionStatus::At(Place::Mempool)),
            Err(CallError::Node { code: code::INVALID_ADDRESS_OR_KEY, .. }) => {}
            Err(error) => return Err(error.into()),
        }
        // From the tip down: most queries are for recent transactions.
        let tip = self.node.tip().await?.block;
        let mut next = Some(tip.hash);
        while let Some(hash) = next {
            let block: BlockInfo = self.node.call("getblock", json!([hash, 1]), BLOCKS).await?;
            if block.tx.contains(txid) {
                return Ok(TransactionStatus::At(Place::Block(BlockId { height: block.height, hash })));
            }
            next = block.previousblockhash.filter(|_| block.height > since);
        }
        Ok(TransactionStatus::Unknown)
    }

    async fn fee_estimate(&self, target: ConfirmationTarget) -> Result<Option<FeeRate>, ChainError> {
        let estimate: Estimate = self.node.call("estimatesmartfee", json!([target.blocks()]), QUICK).await?;
        // BTC/kvB is 100,000 sat/vB; the type stores sat/kwu, of which 250 are a sat/vB.
        Ok(estimate.feerate.map(|rate| FeeRate::from_sat_per_kwu(rate.to_sat().div_ceil(4))))
    }

    async fn minimum_fee(&self) -> Result<Option<FeeRate>, ChainError> {
        let info: MempoolInfo = self.node.call("getmempoolinfo", json!([]), QUICK).await?;
        let least = info.mempoolminfee.max(info.minrelaytxfee);
        Ok(Some(FeeRate::from_sat_per_kwu(least.to_sat().div_ceil(4))))
    }

    async fn replacement_increment(&self) -> Result<Option<FeeRate>, ChainError> {
        let info: MempoolInfo = self.node.call("getmempoolinfo", json!([]), QUICK).await?;
        Ok(info.incrementalrelayfee.map(|rate| FeeRate::from_sat_per_kwu(rate.to_sat().div_ceil(4))))
    }

    async fn submit(&self, transaction: &Transaction) -> Result<(), ChainError> {
        let hex = encode::serialize_hex(transaction);
        match self.node.call::<Txid>("sendrawtransaction", json!([hex]), QUICK).await {
            Ok(_) => Ok(()),
            Err(error) => refused_unless_known(error),
        }
    }

    async fn submit_package(&self, parent: &Transaction, child: &Transaction) -> Result<(), ChainError> {
        let package = [encode::serialize_hex(parent), encode::serialize_hex(child)];
        let answer: PackageInfo = match self.node.call("submitpackage", json!([package]), QUICK).await {
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
