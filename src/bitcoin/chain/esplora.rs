//! An Esplora server, over HTTP. Its answers are trusted: an operator who needs proof runs a node.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::bitcoin::{
    BlockHash, FeeRate, OutPoint, Script, Transaction, Txid, Wtxid,
    block::Header,
    consensus::encode,
    hashes::{Hash, sha256},
};
use async_trait::async_trait;
use esplora_client::api::{BlockInfo, EsploraTx, TxStatus, Utxo};
use reqwest::{Client, Method, StatusCode, header::RETRY_AFTER, redirect};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::Instant;

use super::{
    Activity, BlockId, COINBASE_MATURITY, Chain, ChainError, ConfirmationTarget, Deposit, Place, Rejection, Spend,
    Tip, TransactionStatus, core::package_result, is_known_already,
};
use crate::{actors::transport::tls::Trust, protocol::update::BlockTimes};

const TIMEOUT: Duration = Duration::from_secs(30);

/// The largest answer that is read: a block in hexadecimal, and a margin.
const MAX_ANSWER: usize = 16 << 20;

/// The most pages of a script's history that are read at once, of 25 transactions each.
const MAX_PAGES: usize = 400;

/// How many transactions of the mempool a server lists at most for a script: there is no second page.
const MEMPOOL_PAGE: usize = 50;

/// The longest pause that a request waits for when a server asks for one (429, `Retry-After`), and the default pause if
/// the server gives no duration.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const USUAL_PAUSE: Duration = Duration::from_secs(2);

/// How often a request is tried that the server answers with 429.
const TRIES: usize = 4;

/// How often a query is repeated when a block arrives between its parts.
const ATTEMPTS: usize = 5;

/// An Esplora server.
#[derive(Clone, Debug)]
pub struct EsploraChain {
    url: String,
    http: Client,
    /// The end of the pause that the server asked for. It applies to all requests.
    pause: Arc<Mutex<Option<Instant>>>,
}

impl EsploraChain {
    /// The server whose API is at `url`, without a trailing slash. No request is sent yet.
    ///
    /// # Errors
    /// [`ChainError::Misconfigured`] if no HTTP client can be created on this system.
    pub fn new(url: &str) -> Result<Self, ChainError> {
        let http = Trust::system()
            .http_client()
            .map_err(|error| ChainError::Misconfigured(error.to_string()))?
            .timeout(TIMEOUT)
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|error| ChainError::Misconfigured(error.to_string()))?;
        Ok(Self { url: url.to_owned(), http, pause: Arc::default() })
    }

    /// An answer, after the pauses that the server asks for, unless they are too long.
    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<(StatusCode, Vec<u8>), ChainError> {
        for _ in 0..TRIES {
            self.rest().await?;
            let (status, bytes, asked) = self.request_once(method.clone(), path, body.clone()).await?;
            if status != StatusCode::TOO_MANY_REQUESTS {
                return Ok((status, bytes));
            }
            let until = Instant::now() + asked.unwrap_or(USUAL_PAUSE);
            let mut pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
            *pause = Some(pause.map_or(until, |pause| pause.max(until)));
        }
        Err(ChainError::Unavailable(format!("{}: too many requests (429), even after pauses", self.url)))
    }

    /// Waits until the pause that the server asked for is over.
    async fn rest(&self) -> Result<(), ChainError> {
        let until = *self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(left) = until.map(|until| until.saturating_duration_since(Instant::now())) else { return Ok(()) };
        if left > LONGEST_PAUSE {
            let problem =
                format!("{}: too many requests (429): it wants a pause of {} s", self.url, left.as_secs());
            return Err(ChainError::Unavailable(problem));
        }
        tokio::time::sleep(left).await;
        Ok(())
    }

    /// An answer, and the pause that the server asks for.
    async fn request_once(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<(StatusCode, Vec<u8>, Option<Duration>), ChainError> {
        let unavailable = |error: &dyn fmt::Display| ChainError::Unavailable(format!("{}: {error}", self.url));
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.body(body);
        }
        let mut answer = request.send().await.map_err(|error| unavailable(&error))?;
        let status = answer.status();
        // The other form of the header, a date, gives the default pause.
        let pause = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let pause = pause.map(Duration::from_secs);
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| unavailable(&error))? {
            if bytes.len() + chunk.len() > MAX_ANSWER {
                return Err(ChainError::BadAnswer(format!("{}{path}: more than {MAX_ANSWER} bytes", self.url)));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok((status, bytes, pause))
    }

    fn bad_answer(&self, path: &str, error: &dyn fmt::Display) -> ChainError {
        ChainError::BadAnswer(format!("{}{path}: {error}", self.url))
    }

    /// The body of an answer; `None` for 404.
    async fn get(&self, path: &str) -> Result<Option<Vec<u8>>, ChainError> {
        match self.request(Method::GET, path, None).await? {
            (StatusCode::OK, body) => Ok(Some(body)),
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                Err(ChainError::Misconfigured(format!("{}: access denied", self.url)))
            }
            (status, _) => Err(ChainError::Unavailable(format!("{}{path}: HTTP status {status}", self.url))),
        }
    }

    async fn get_text(&self, path: &str) -> Result<Option<String>, ChainError> {
        let body = self.get(path).await?;
        body.map(|body| String::from_utf8(body).map_err(|error| self.bad_answer(path, &error))).transpose()
    }

    async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ChainError> {
        let body = self.get(path).await?.ok_or_else(|| {
            ChainError::Misconfigured(format!("{} has no {path}: is it the base of an Esplora API?", self.url))
        })?;
        serde_json::from_slice(&body).map_err(|error| self.bad_answer(path, &error))
    }

    async fn tip_hash(&self) -> Result<BlockHash, ChainError> {
        let path = "/blocks/tip/hash";
        let text = self.get_text(path).await?.ok_or_else(|| {
            ChainError::Misconfigured(format!("{} has no {path}: is it the base of an Esplora API?", self.url))
        })?;
        text.trim().parse().map_err(|error| self.bad_answer(path, &error))
    }

    /// The history of a script down to height `since`: mempool first, then from the newest block on.
    async fn history(&self, script: &str, since: u32) -> Result<Vec<EsploraTx>, ChainError> {
        let mut history: Vec<EsploraTx> = self.get_json(&format!("/scripthash/{script}/txs/mempool")).await?;
        if history.len() >= MEMPOOL_PAGE {
            let path = format!("/scripthash/{script}");
            let stats: ScriptStats = self.get_json(&path).await?;
            let (listed, all) = (history.len(), stats.mempool_stats.tx_count);
            if listed < all {
                return Err(ChainError::Unavailable(format!(
                    "{}: it lists {listed} of the {all} transactions of an address that wait in the mempool: wait until blocks have \
                     taken them, or ask a Bitcoin Core node instead",
                    self.url
                )));
            }
        }
        let mut page = format!("/scripthash/{script}/txs/chain");
        // The complete history, or an error: a missing entry might be a spend.
        let mut known: HashSet<Txid> = HashSet::new();
        for _ in 0..MAX_PAGES {
            let transactions: Vec<EsploraTx> = self.get_json(&page).await?;
            let Some(last) = transactions.last() else { return Ok(history) };
            let Some(height) = last.status.block_height else {
                return Err(self.bad_answer(&page, &"a transaction of a block without its height"));
            };
            if !transactions.iter().all(|transaction| known.insert(transaction.txid)) {
                return Err(self.bad_answer(&page, &"the page has what an earlier one had"));
            }
            page = format!("/scripthash/{script}/txs/chain/{}", last.txid);
            history.extend(transactions);
            if height < since {
                return Ok(history);
            }
        }
        Err(ChainError::Misconfigured(format!(
            "{}: an address has more than {} transactions since block {since}: ask a Bitcoin Core node instead",
            self.url,
            known.len()
        )))
    }

    /// The coins that no block has spent. A server lists them up to a limit (500 by default).
    async fn listed(&self, script: &str) -> Result<Option<Vec<Utxo>>, ChainError> {
        let path = format!("/scripthash/{script}/utxo");
        match self.request(Method::GET, &path, None).await? {
            (StatusCode::OK, body) => {
                serde_json::from_slice(&body).map(Some).map_err(|error| self.bad_answer(&path, &error))
            }
            // "Too many unspent transaction outputs (>500). Contact support to raise limits."
            (StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE, _) => Ok(None),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                Err(ChainError::Misconfigured(format!("{}: access denied", self.url)))
            }
            (status, _) => Err(ChainError::Unavailable(format!("{}{path}: HTTP status {status}", self.url))),
        }
    }

    async fn activity_at(&self, tip: Tip, script: &Script, since: u32) -> Result<Activity, ChainError> {
        let mut activity = Activity { tip, deposits: Vec::new(), spends: Vec::new() };
        for transaction in self.history(&script_hash(script), since).await? {
            let Some(place) = place(&transaction.status) else {
                let problem = format!("transaction {} is in a block that is not named", transaction.txid);
                return Err(self.bad_answer("/scripthash", &problem));
            };
            if place.block().is_some_and(|block| block.height < since) {
                continue;
            }
            for (vout, output) in (0..).zip(&transaction.vout) {
                if *output.scriptpubkey == *script {
                    let outpoint = OutPoint { txid: transaction.txid, vout };
                    let coinbase = transaction.vin.iter().any(|input| input.is_coinbase);
                    activity.deposits.push(Deposit { outpoint, value: output.value, place, coinbase });
                }
            }
            for input in &transaction.vin {
                let spends = match &input.prevout {
                    Some(prevout) => *prevout.scriptpubkey == *script,
                    None => !input.is_coinbase && self.pays(&input.txid, input.vout, script).await?,
                };
                if spends {
                    let outpoint = OutPoint { txid: input.txid, vout: input.vout };
                    activity.spends.push(Spend { outpoint, by: transaction.txid, place });
                }
            }
        }
        Ok(activity)
    }

    /// Whether an output pays to `script`, for a server that does not say what its inputs spend.
    async fn pays(&self, txid: &Txid, vout: u32, script: &Script) -> Result<bool, ChainError> {
        let parent = self.transaction(txid, None).await?;
        let vout = usize::try_from(vout).unwrap_or(usize::MAX);
        let output = parent.as_ref().and_then(|parent| parent.output.get(vout));
        let output =
            output.ok_or_else(|| self.bad_answer("/tx", &format!("output {vout} of {txid} is missing")))?;
        Ok(*output.script_pubkey == *script)
    }

    async fn coins_at(&self, tip: Tip, script: &Script) -> Result<Activity, ChainError> {
        // Mempool entries come from the history, which also shows what spends them.
        let mut activity = self.activity_at(tip, script, u32::MAX).await?;
        let Some(coins) = self.listed(&script_hash(script)).await? else {
            // Too many to be listed: the history has all of them.
            let mut activity = self.activity_at(tip, script, 0).await?;
            let in_block = |spend: &Spend| matches!(spend.place, Place::Block(_));
            let spent: HashSet<_> =
                activity.spends.iter().filter(|spend| in_block(spend)).map(|spend| spend.outpoint).collect();
            activity.deposits.retain(|deposit| !spent.contains(&deposit.outpoint));
            activity.spends.retain(|spend| !in_block(spend));
            return Ok(activity);
        };
        // The list omits coins that the mempool spends; they are unspent in the chain.
        for spend in activity.spends.clone() {
            if activity.deposits.iter().any(|deposit| deposit.outpoint == spend.outpoint) {
                continue;
            }
            let path = format!("/tx/{}", spend.outpoint.txid);
            let parent: EsploraTx = self.get_json(&path).await?;
            let vout = usize::try_from(spend.outpoint.vout).unwrap_or(usize::MAX);
            let output = parent.vout.get(vout).ok_or_else(|| self.bad_answer(&path, &"an output is missing"))?;
            if let Some(place) = place(&parent.status) {
                activity.deposits.push(Deposit::new(spend.outpoint, output.value, place));
            }
        }
        for coin in coins {
            let (Some(height), Some(hash)) = (coin.status.block_height, coin.status.block_hash) else { continue };
            let block = BlockId { height, hash };
            let mut deposit =
                Deposit::new(OutPoint { txid: coin.txid, vout: coin.vout }, coin.value, Place::Block(block));
            if tip.depth(&block) < COINBASE_MATURITY {
                let parent: EsploraTx = self.get_json(&format!("/tx/{}", coin.txid)).await?;
                deposit.coinbase = parent.vin.iter().any(|input| input.is_coinbase);
            }
            activity.deposits.push(deposit);
        }
        Ok(activity)
    }
}

/// Esplora's identifier of a script: its SHA-256 in the usual byte order.
fn script_hash(script: &Script) -> String {
    sha256::Hash::hash(script.as_bytes()).to_string()
}

fn place(status: &TxStatus) -> Option<Place> {
    match (status.confirmed, status.block_height, status.block_hash) {
        (false, ..) => Some(Place::Mempool),
        (true, Some(height), Some(hash)) => Some(Place::Block(BlockId { height, hash })),
        (true, ..) => None,
    }
}

#[async_trait]
impl Chain for EsploraChain {
    async fn tip(&self) -> Result<Tip, ChainError> {
        let hash = self.tip_hash().await?;
        let path = format!("/block/{hash}");
        let block: BlockInfo = self.get_json(&path).await?;
        let median_time = u32::try_from(block.mediantime).map_err(|error| self.bad_answer(&path, &error))?;
        Ok(Tip { block: BlockId { height: block.height, hash }, median_time })
    }

    async fn block_hash(&self, height: u32) -> Result<Option<BlockHash>, ChainError> {
        let path = format!("/block-height/{height}");
        let text = self.get_text(&path).await?;
        text.map(|text| text.trim().parse().map_err(|error| self.bad_answer(&path, &error))).transpose()
    }

    async fn header(&self, hash: &BlockHash) -> Result<Option<Header>, ChainError> {
        let path = format!("/block/{hash}/header");
        let text = self.get_text(&path).await?;
        text.map(|text| encode::deserialize_hex(text.trim()).map_err(|error| self.bad_answer(&path, &error)))
            .transpose()
    }

    async fn block_times(&self, hash: &BlockHash) -> Result<Option<BlockTimes>, ChainError> {
        let path = format!("/block/{hash}");
        let Some(body) = self.get(&path).await? else { return Ok(None) };
        let block: BlockInfo = serde_json::from_slice(&body).map_err(|error| self.bad_answer(&path, &error))?;
        let seconds = |time: u64| u32::try_from(time).map_err(|error| self.bad_answer(&path, &error));
        Ok(Some(BlockTimes { time: seconds(block.timestamp)?, mediantime: seconds(block.mediantime)? }))
    }

    async fn coins(&self, script: &Script) -> Result<Activity, ChainError> {
        for _ in 0..ATTEMPTS {
            let activity = self.coins_at(self.tip().await?, script).await?;
            if self.tip_hash().await? == activity.tip.block.hash {
                return Ok(activity);
            }
        }
        Err(ChainError::Unavailable(format!("{}: blocks arrive faster than it answers", self.url)))
    }

    async fn activity(&self, script: &Script, since: u32) -> Result<Activity, ChainError> {
        for _ in 0..ATTEMPTS {
            let activity = self.activity_at(self.tip().await?, script, since).await?;
            if self.tip_hash().await? == activity.tip.block.hash {
                return Ok(activity);
            }
        }
        Err(ChainError::Unavailable(format!("{}: blocks arrive faster than it answers", self.url)))
    }

    async fn transaction(
        &self,
        txid: &Txid,
        _block: Option<&BlockHash>,
    ) -> Result<Option<Transaction>, ChainError> {
        let path = format!("/tx/{txid}/raw");
        let bytes = self.get(&path).await?;
        bytes.map(|bytes| encode::deserialize(&bytes).map_err(|error| self.bad_answer(&path, &error))).transpose()
    }

    async fn status(&self, txid: &Txid, _since: u32) -> Result<TransactionStatus, ChainError> {
        let path = format!("/tx/{txid}");
        let Some(body) = self.get(&path).await? else { return Ok(TransactionStatus::Unknown) };
        let transaction: EsploraTx =
            serde_json::from_slice(&body).map_err(|error| self.bad_answer(&path, &error))?;
        let place = place(&transaction.status).ok_or_else(|| self.bad_answer(&path, &"confirmed in no block"))?;
        Ok(TransactionStatus::At(place))
    }

    async fn fee_estimate(&self, target: ConfirmationTarget) -> Result<Option<FeeRate>, ChainError> {
        let estimates: HashMap<u16, f64> = self.get_json("/fee-estimates").await?;
        // The rate of the longest target that is not above ours.
        let best =
            estimates.iter().filter(|(blocks, _)| **blocks <= target.blocks()).max_by_key(|(blocks, _)| **blocks);
        Ok(best.and_then(|(_, rate)| sat_per_vb(*rate)))
    }

    async fn submit(&self, transaction: &Transaction) -> Result<(), ChainError> {
        let (status, body) = self.request(Method::POST, "/tx", Some(encode::serialize_hex(transaction))).await?;
        refused_unless_known(status, &body)
    }

    async fn submit_package(&self, parent: &Transaction, child: &Transaction) -> Result<(), ChainError> {
        let package = serde_json::json!([encode::serialize_hex(parent), encode::serialize_hex(child)]);
        let path = "/txs/package";
        let (status, body) = self.request(Method::POST, path, Some(package.to_string())).await?;
        if status == StatusCode::NOT_FOUND {
            // A server without package support: sufficient if the mempool accepts the parent by itself.
            self.submit(parent).await?;
            return self.submit(child).await;
        }
        if status != StatusCode::OK {
            return refused_unless_known(status, &body);
        }
        let answer: Package = serde_json::from_slice(&body).map_err(|error| self.bad_answer(path, &error))?;
        package_result(&answer.package_msg, answer.results.into_values().filter_map(|result| result.error))
    }
}

/// Parses a rate of a server; `None` if it is not a valid rate.
fn sat_per_vb(rate: f64) -> Option<FeeRate> {
    // A float that exceeds the integer becomes the largest integer.
    (rate.is_finite() && rate > 0.0).then(|| FeeRate::from_sat_per_kwu((rate * 250.0).ceil() as u64))
}

fn refused_unless_known(status: StatusCode, body: &[u8]) -> Result<(), ChainError> {
    let text: String = String::from_utf8_lossy(body).chars().take(500).collect();
    match status {
        StatusCode::OK => Ok(()),
        _ if is_known_already(&text) => Ok(()),
        StatusCode::BAD_REQUEST => Err(Rejection::new(text).into()),
        status => Err(ChainError::Unavailable(format!("HTTP status {status}: {text}"))),
    }
}

#[derive(Deserialize)]
struct ScriptStats {
    mempool_stats: TxCount,
}

#[derive(Deserialize)]
struct TxCount {
    tx_count: usize,
}

#[derive(Deserialize)]
struct Package {
    package_msg: String,
    #[serde(rename = "tx-results", default)]
    results: HashMap<Wtxid, PackageResult>,
}

#[derive(Deserialize)]
struct PackageResult {
    error: Option<String>,
}

#[cfg(test)]
mod tests;
