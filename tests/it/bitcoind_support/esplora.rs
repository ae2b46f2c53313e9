//! The part of Esplora's API that is used, served over a real node: a block explorer without its index.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
    sync::{Arc, Mutex},
};

use actix_web::{
    App, HttpResponse, HttpServer,
    dev::ServerHandle,
    web::{self, Data, Path},
};
use bitcoin::{
    Block, BlockHash, OutPoint, Transaction, Txid,
    consensus::encode::{deserialize_hex, serialize},
    hashes::{Hash, sha256},
};
use serde_json::{Value, json};

use super::Bitcoind;

/// A server that is stopped when this is dropped.
pub struct EsploraServer {
    pub url: String,
    handle: ServerHandle,
}

impl Drop for EsploraServer {
    fn drop(&mut self) {
        drop(self.handle.stop(false));
    }
}

#[derive(Default)]
pub struct Settings {
    /// The rates that it claims, sat/vB by target.
    pub fees: Mutex<BTreeMap<u16, f64>>,
    /// Whether it is a server without support for packages.
    pub without_packages: bool,
    /// How many coins of an address it lists at most.
    pub most_coins: Option<usize>,
    /// How many of the next requests it refuses for now (429), and the value of `Retry-After`.
    pub busy: Mutex<(u32, Option<u32>)>,
    /// Whether it returns the first page of a history for every page.
    pub turns_no_page: bool,
    /// Whether it omits the outputs that inputs spend.
    pub hides_prevouts: bool,
}

struct Explorer {
    node: Arc<Bitcoind>,
    blocks: Mutex<HashMap<BlockHash, Block>>,
    settings: Arc<Settings>,
}

/// A block with its height.
type Mined = (u32, BlockHash, u32);

impl Explorer {
    async fn text(&self, method: &str, arguments: Value) -> String {
        self.node.rpc(method, arguments).await.as_str().unwrap().to_owned()
    }

    /// All transactions with their blocks, the newest block first, the mempool before it.
    async fn transactions(&self) -> Vec<(Transaction, Option<Mined>)> {
        let mut all = Vec::new();
        let mempool: Vec<Txid> = serde_json::from_value(self.node.rpc("getrawmempool", json!([])).await).unwrap();
        for txid in mempool {
            all.push((deserialize_hex(&self.text("getrawtransaction", json!([txid])).await).unwrap(), None));
        }
        let tip = self.node.rpc("getblockcount", json!([])).await.as_u64().unwrap();
        let mut hash: BlockHash = self.text("getblockhash", json!([tip])).await.parse().unwrap();
        for height in (1..=u32::try_from(tip).unwrap()).rev() {
            let known = self.blocks.lock().unwrap().get(&hash).cloned();
            let block = match known {
                Some(block) => block,
                None => deserialize_hex(&self.text("getblock", json!([hash, 0])).await).unwrap(),
            };
            self.blocks.lock().unwrap().insert(hash, block.clone());
            let mined = (height, hash, block.header.time);
            hash = block.header.prev_blockhash;
            all.extend(block.txdata.into_iter().map(|transaction| (transaction, Some(mined))));
        }
        all
    }

    async fn json_of(&self, wanted: impl Fn(&Transaction, &HashMap<Txid, Transaction>) -> bool) -> Vec<Value> {
        let all = self.transactions().await;
        let by_id: HashMap<Txid, Transaction> = all.iter().map(|(tx, _)| (tx.compute_txid(), tx.clone())).collect();
        let mut found: Vec<Value> = all
            .iter()
            .filter(|(tx, _)| wanted(tx, &by_id))
            .map(|(tx, mined)| json_of(tx, *mined, &by_id))
            .collect();
        if self.settings.hides_prevouts {
            for input in found.iter_mut().flat_map(|tx| tx["vin"].as_array_mut().unwrap()) {
                input["prevout"] = Value::Null;
            }
        }
        found
    }

    /// The history of the script of that hash.
    async fn history(&self, script_hash: &str) -> Vec<Value> {
        let pays = |output: &bitcoin::TxOut| {
            sha256::Hash::hash(output.script_pubkey.as_bytes()).to_string() == script_hash
        };
        self.json_of(|tx, by_id| {
            tx.output.iter().any(pays)
                || tx.input.iter().any(|input| prevout(&input.previous_output, by_id).is_some_and(pays))
        })
        .await
    }
}

fn prevout<'a>(outpoint: &OutPoint, by_id: &'a HashMap<Txid, Transaction>) -> Option<&'a bitcoin::TxOut> {
    by_id.get(&outpoint.txid)?.output.get(outpoint.vout as usize)
}

fn status(mined: Option<Mined>) -> Value {
    match mined {
        Some((height, hash, time)) => {
            json!({ "confirmed": true, "block_height": height, "block_hash": hash, "block_time": time })
        }
        None => json!({ "confirmed": false }),
    }
}

fn json_of(tx: &Transaction, mined: Option<Mined>, by_id: &HashMap<Txid, Transaction>) -> Value {
    let output = |output: &bitcoin::TxOut| json!({ "value": output.value.to_sat(), "scriptpubkey": output.script_pubkey.to_hex_string() });
    let vin: Vec<_> = tx
        .input
        .iter()
        .map(|input| {
            let previous = &input.previous_output;
            json!({
                "txid": previous.txid, "vout": previous.vout, "prevout": prevout(previous, by_id).map(output),
                "scriptsig": input.script_sig.to_hex_string(), "sequence": input.sequence,
                "is_coinbase": tx.is_coinbase(),
            })
        })
        .collect();
    json!({
        "txid": tx.compute_txid(), "version": tx.version, "locktime": tx.lock_time, "vin": vin,
        "vout": tx.output.iter().map(output).collect::<Vec<_>>(), "size": tx.total_size(),
        "weight": tx.weight(), "fee": 0, "status": status(mined),
    })
}

fn refused(error: impl Display) -> HttpResponse {
    HttpResponse::BadRequest().body(error.to_string())
}

async fn get(explorer: Data<Explorer>, path: Path<String>) -> HttpResponse {
    if let (left @ 1.., pause) = &mut *explorer.settings.busy.lock().unwrap() {
        *left -= 1;
        let mut answer = HttpResponse::TooManyRequests();
        pause.map(|pause| answer.insert_header(("retry-after", pause.to_string())));
        return answer.body("slow down");
    }
    let node = &explorer.node;
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["blocks", "tip", "hash"] => HttpResponse::Ok().body(explorer.text("getbestblockhash", json!([])).await),
        ["block", hash] => match node.try_rpc("getblockheader", json!([hash])).await {
            Ok(header) => HttpResponse::Ok().json(json!({
                "id": hash, "height": header["height"], "version": header["version"], "timestamp": header["time"],
                "tx_count": header["nTx"], "size": 0, "weight": 0, "merkle_root": header["merkleroot"],
                "previousblockhash": header["previousblockhash"], "mediantime": header["mediantime"],
                "nonce": header["nonce"], "bits": 0x207f_ffff, "difficulty": header["difficulty"],
            })),
            Err(_) => HttpResponse::NotFound().body("Block not found"),
        },
        ["block", hash, "header"] => match node.try_rpc("getblockheader", json!([hash, false])).await {
            Ok(header) => HttpResponse::Ok().body(header.as_str().unwrap().to_owned()),
            Err(_) => HttpResponse::NotFound().body("Block not found"),
        },
        ["block-height", height] => {
            match node.try_rpc("getblockhash", json!([height.parse::<u32>().unwrap()])).await {
                Ok(hash) => HttpResponse::Ok().body(hash.as_str().unwrap().to_owned()),
                Err(_) => HttpResponse::NotFound().body("Block not found"),
            }
        }
        ["scripthash", hash, "txs", "mempool"] => {
            let mut history = explorer.history(hash).await;
            history.retain(|tx| tx["status"]["confirmed"] == false);
            HttpResponse::Ok().json(history)
        }
        ["scripthash", hash, "txs", "chain", last @ ..] => {
            let mut history = explorer.history(hash).await;
            history.retain(|tx| tx["status"]["confirmed"] == true);
            let last = if explorer.settings.turns_no_page { &[] } else { last };
            let after =
                last.first().map_or(0, |last| history.iter().position(|tx| tx["txid"] == **last).unwrap() + 1);
            // Esplora's pages are of 25; smaller ones here, so that a test can reach the next.
            HttpResponse::Ok().json(history.into_iter().skip(after).take(3).collect::<Vec<_>>())
        }
        ["scripthash", hash, "utxo"] => {
            let all = explorer.transactions().await;
            let spent: Vec<OutPoint> =
                all.iter().flat_map(|(tx, _)| tx.input.iter().map(|input| input.previous_output)).collect();
            let coins = all.iter().flat_map(|(tx, mined)| {
                let txid = tx.compute_txid();
                (0u32..).zip(&tx.output).map(move |(vout, output)| (OutPoint { txid, vout }, output, mined))
            });
            let coins = coins.filter(|(outpoint, output, _)| {
                sha256::Hash::hash(output.script_pubkey.as_bytes()).to_string() == **hash
                    && !spent.contains(outpoint)
            });
            let coins: Vec<_> = coins
                .map(|(outpoint, output, mined)| {
                    json!({
                        "txid": outpoint.txid, "vout": outpoint.vout, "value": output.value.to_sat(),
                        "status": status(*mined),
                    })
                })
                .collect();
            if explorer.settings.most_coins.is_some_and(|most| coins.len() > most) {
                return refused("Too many unspent transaction outputs (>500). Contact support to raise limits.");
            }
            HttpResponse::Ok().json(coins)
        }
        ["tx", txid] => {
            let txid: Txid = txid.parse().unwrap();
            match explorer.json_of(|tx, _| tx.compute_txid() == txid).await.as_slice() {
                [tx] => HttpResponse::Ok().json(tx),
                _ => HttpResponse::NotFound().body("Transaction not found"),
            }
        }
        ["tx", txid, "raw"] => {
            let txid: Txid = txid.parse().unwrap();
            match explorer.transactions().await.iter().find(|(tx, _)| tx.compute_txid() == txid) {
                Some((tx, _)) => HttpResponse::Ok().body(serialize(tx)),
                None => HttpResponse::NotFound().body("Transaction not found"),
            }
        }
        ["fee-estimates"] => HttpResponse::Ok().json(&*explorer.settings.fees.lock().unwrap()),
        _ => HttpResponse::NotFound().body("endpoint does not exist"),
    }
}

async fn post(explorer: Data<Explorer>, path: Path<String>, body: String) -> HttpResponse {
    match path.as_str() {
        "tx" => match explorer.node.try_rpc("sendrawtransaction", json!([body])).await {
            Ok(txid) => HttpResponse::Ok().body(txid.as_str().unwrap().to_owned()),
            Err(error) => refused(format!("sendrawtransaction RPC error: {error}")),
        },
        "txs/package" if !explorer.settings.without_packages => {
            let package: Vec<String> = serde_json::from_str(&body).unwrap();
            match explorer.node.try_rpc("submitpackage", json!([package])).await {
                Ok(result) => HttpResponse::Ok().json(result),
                Err(error) => refused(error),
            }
        }
        _ => HttpResponse::NotFound().body("endpoint does not exist"),
    }
}

/// Serves a node's chain.
pub fn serve(node: Arc<Bitcoind>, settings: Arc<Settings>) -> EsploraServer {
    let explorer = Data::new(Explorer { node, blocks: Mutex::default(), settings });
    let server = HttpServer::new(move || {
        App::new()
            .app_data(Data::clone(&explorer))
            .route("/api/{path:.*}", web::get().to(get))
            .route("/api/{path:.*}", web::post().to(post))
    })
    .workers(1)
    .disable_signals()
    .bind("127.0.0.1:0")
    .unwrap();
    let url = format!("http://{}/api", server.addrs()[0]);
    let server = server.run();
    let handle = server.handle();
    actix_rt::spawn(server);
    EsploraServer { url, handle }
}
