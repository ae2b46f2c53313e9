//! A resolver as a process, on a chain in memory behind the part of Esplora's API that it uses.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use actix_web::{
    App, HttpResponse, HttpServer,
    dev::ServerHandle,
    web::{self, Data, Path},
};
use bitcoin::{
    Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness,
    absolute::LockTime,
    consensus::encode::serialize,
    hashes::{Hash, sha256},
    transaction::Version,
};
use btcr2_aggregation::{
    actors::transport::tls::Trust,
    bitcoin::chain::{Chain, MemoryChain, signal_of},
    protocol::update::SignedUpdate,
};
use reqwest::{Client, Method, RequestBuilder, StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    resolve_cli::Author,
    support::{PATIENCE, Program},
};

/// The server, with a view into it.
pub struct Explorer {
    pub url: String,
    pub chain: MemoryChain,
    /// How many histories of addresses were read.
    histories: Arc<AtomicUsize>,
    reachable: Arc<AtomicBool>,
    /// Whether histories are answered.
    open: watch::Sender<bool>,
    handle: ServerHandle,
}

impl Drop for Explorer {
    fn drop(&mut self) {
        drop(self.handle.stop(false));
    }
}

#[derive(Clone)]
struct State {
    chain: MemoryChain,
    histories: Arc<AtomicUsize>,
    reachable: Arc<AtomicBool>,
    open: watch::Receiver<bool>,
}

impl Explorer {
    pub fn start() -> Self {
        let (open, opened) = watch::channel(true);
        let (chain, histories, reachable) = (MemoryChain::new(), Arc::default(), Arc::new(AtomicBool::new(true)));
        let state = State {
            chain: chain.clone(),
            histories: Arc::clone(&histories),
            reachable: Arc::clone(&reachable),
            open: opened,
        };
        let state = Data::new(state);
        let app = move || App::new().app_data(Data::clone(&state)).route("/{path:.*}", web::get().to(get));
        let server = HttpServer::new(app).workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", server.addrs()[0]);
        let server = server.run();
        let handle = server.handle();
        actix_rt::spawn(server);
        chain.mine(1, ScriptBuf::new().as_script());
        Self { url, chain, histories, reachable, open, handle }
    }

    pub fn histories(&self) -> usize {
        self.histories.load(Ordering::SeqCst)
    }

    pub fn set_reachable(&self, reachable: bool) {
        self.reachable.store(reachable, Ordering::SeqCst);
    }

    /// Whether histories are answered; otherwise who asks waits.
    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// Mines so many blocks.
    pub fn mine(&self, blocks: u32) {
        self.chain.mine(blocks, ScriptBuf::new().as_script());
    }

    /// Announces a signal at a script, in a block of its own.
    pub fn announce(&self, script: &ScriptBuf, signal: [u8; 32]) -> Txid {
        let previous_output: OutPoint = self.chain.mine(1, script)[0];
        let input = TxIn {
            previous_output,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::MAX,
            witness: Witness::new(),
        };
        let transaction = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![input],
            output: vec![TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::new_op_return(signal) }],
        };
        assert!(signal_of(&transaction).is_some());
        self.chain.mine_with(1, std::slice::from_ref(&transaction));
        transaction.compute_txid()
    }

    /// Announces an update by the DID's own beacon.
    pub fn singleton(&self, author: &Author, update: &SignedUpdate) -> Txid {
        self.announce(&author.beacon().script_pubkey(), *update.hash().as_bytes())
    }
}

/// All transactions with the height of their block, the newest first.
fn transactions(chain: &MemoryChain) -> Vec<(Transaction, u32)> {
    let blocks = (0..).map_while(|height| chain.block(height).map(|block| (height, block)));
    let all = blocks.flat_map(|(height, block)| block.txdata.into_iter().map(move |tx| (tx, height)));
    let mut all: Vec<_> = all.collect();
    all.reverse();
    all
}

fn history(chain: &MemoryChain, script_hash: &str) -> Vec<Value> {
    let all = transactions(chain);
    let by_id: HashMap<Txid, &Transaction> = all.iter().map(|(tx, _)| (tx.compute_txid(), tx)).collect();
    let prevout = |input: &TxIn| {
        let previous = &input.previous_output;
        by_id.get(&previous.txid).map(|tx| &tx.output[previous.vout as usize])
    };
    let pays = |output: &TxOut| sha256::Hash::hash(output.script_pubkey.as_bytes()).to_string() == script_hash;
    let output = |output: &TxOut| json!({ "value": output.value.to_sat(), "scriptpubkey": output.script_pubkey.to_hex_string() });
    let concerns = |tx: &Transaction| tx.output.iter().any(pays) || tx.input.iter().filter_map(prevout).any(pays);
    let shown = all.iter().filter(|(tx, _)| concerns(tx)).map(|(tx, height)| {
        let block = chain.block(*height).unwrap();
        let vin: Vec<_> = tx
            .input
            .iter()
            .map(|input| {
                json!({
                    "txid": input.previous_output.txid, "vout": input.previous_output.vout,
                    "prevout": prevout(input).map(output), "scriptsig": "", "sequence": input.sequence,
                    "is_coinbase": tx.is_coinbase(),
                })
            })
            .collect();
        json!({
            "txid": tx.compute_txid(), "version": tx.version, "locktime": tx.lock_time, "vin": vin,
            "vout": tx.output.iter().map(output).collect::<Vec<_>>(), "size": tx.total_size(),
            "weight": tx.weight(), "fee": 0,
            "status": {
                "confirmed": true, "block_height": height, "block_hash": block.block_hash(),
                "block_time": block.header.time,
            },
        })
    });
    shown.collect()
}

async fn get(state: Data<State>, path: Path<String>) -> HttpResponse {
    if !state.reachable.load(Ordering::SeqCst) {
        return HttpResponse::BadGateway().finish();
    }
    let chain = &state.chain;
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["blocks", "tip", "hash"] => HttpResponse::Ok().body(chain.tip().await.unwrap().block.hash.to_string()),
        ["block-height", height] => match chain.block(height.parse().unwrap()) {
            Some(block) => HttpResponse::Ok().body(block.block_hash().to_string()),
            None => HttpResponse::NotFound().body("Block not found"),
        },
        ["block", hash] => {
            let hash = hash.parse().unwrap();
            let times = chain.block_times(&hash).await.unwrap().unwrap();
            let mut blocks = (0..).map_while(|height| chain.block(height).map(|block| (height, block)));
            let (height, block) = blocks.find(|(_, block)| block.block_hash() == hash).unwrap();
            HttpResponse::Ok().json(json!({
                "id": hash, "height": height, "version": block.header.version, "timestamp": times.time,
                "tx_count": block.txdata.len(), "size": 0, "weight": 0, "merkle_root": block.header.merkle_root,
                "previousblockhash": block.header.prev_blockhash, "mediantime": times.mediantime,
                "nonce": block.header.nonce, "bits": block.header.bits, "difficulty": 0,
            }))
        }
        ["scripthash", _, "txs", "mempool"] => {
            state.histories.fetch_add(1, Ordering::SeqCst);
            state.open.clone().wait_for(|open| *open).await.unwrap();
            HttpResponse::Ok().json(json!([]))
        }
        ["scripthash", hash, "txs", "chain"] => HttpResponse::Ok().json(history(chain, hash)),
        ["scripthash", _, "txs", "chain", _] => HttpResponse::Ok().json(json!([])),
        ["tx", txid, "raw"] => {
            let txid: Txid = txid.parse().unwrap();
            let all = transactions(chain);
            let (found, _) = all.iter().find(|(tx, _)| tx.compute_txid() == txid).unwrap();
            HttpResponse::Ok().body(serialize(found))
        }
        _ => HttpResponse::NotFound().body("endpoint does not exist"),
    }
}

/// A resolver that runs.
pub struct Resolver {
    pub program: Program,
    pub url: String,
    pub metrics_url: String,
    pub resolving: Value,
    http: Client,
}

/// An answer.
#[derive(Debug)]
pub struct Answered {
    pub status: StatusCode,
    pub content_type: String,
    pub headers: reqwest::header::HeaderMap,
    pub body: String,
}

impl Answered {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn error(&self) -> String {
        self.json()["didResolutionMetadata"]["error"]["title"].as_str().unwrap_or_default().to_owned()
    }
}

impl Resolver {
    pub async fn start(explorer: &Explorer, arguments: &[&str]) -> Self {
        Self::start_trusting(explorer, arguments, &Trust::system()).await
    }

    /// One that is asked by a client which trusts these certificates.
    pub async fn start_trusting(explorer: &Explorer, arguments: &[&str], trust: &Trust) -> Self {
        let chain = format!("esplora={}", explorer.url);
        let fixed = ["resolver", "serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
        let fixed = [&fixed[..], &["--events", "json", "--chain", &chain], arguments].concat();
        let arguments: Vec<String> = fixed.iter().map(|argument| (*argument).to_owned()).collect();
        let started = actix_rt::task::spawn_blocking(move || {
            let mut program = Program::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
            let resolving = program.event("resolving");
            let metrics = program.event("metrics");
            (program, resolving, metrics)
        });
        let (program, resolving, metrics) = started.await.unwrap();
        let text = |event: &Value| event["url"].as_str().unwrap().to_owned();
        let (url, metrics_url) = (text(&resolving), text(&metrics));
        Self { program, url, metrics_url, resolving, http: trust.http_client().unwrap().build().unwrap() }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    pub async fn get(&self, did_and_query: &str) -> Answered {
        answered(self.request(Method::GET, &format!("/1.0/identifiers/{did_and_query}"))).await
    }

    pub async fn accepting(&self, did_and_query: &str, accept: &str) -> Answered {
        let path = format!("/1.0/identifiers/{did_and_query}");
        answered(self.request(Method::GET, &path).header("accept", accept)).await
    }

    pub async fn post(&self, did_and_query: &str, body: impl Into<reqwest::Body>) -> Answered {
        answered(self.request(Method::POST, &format!("/1.0/identifiers/{did_and_query}")).body(body)).await
    }

    /// A page of the metrics server.
    pub async fn page(&self, path: &str) -> String {
        let answer = self.http.get(format!("{}{path}", self.metrics_url)).send().await.unwrap();
        answer.text().await.unwrap()
    }

    /// The value of a metric.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.page("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until a metric has at least that value.
    pub async fn metric_reaches(&self, name: &str, value: f64) {
        let until = Instant::now() + PATIENCE;
        while self.metric(name).await < value {
            assert!(Instant::now() < until, "{name} does not reach {value}");
            actix_rt::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub async fn answered(request: RequestBuilder) -> Answered {
    let answer = request.send().await.unwrap();
    let headers = answer.headers().clone();
    let content_type = headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap().to_owned());
    Answered {
        status: answer.status(),
        content_type: content_type.unwrap_or_default(),
        headers,
        body: answer.text().await.unwrap(),
    }
}
