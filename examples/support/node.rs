//! A Bitcoin Core node on regtest, for examples. It needs no wallet.

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bitcoin::{
    Address, Amount, Network, OutPoint, ScriptBuf, Transaction, TxIn, TxOut, Witness, absolute::LockTime,
    consensus::encode::serialize_hex, opcodes::OP_TRUE, script::Builder, transaction::Version,
};
use serde_json::{Value, json};

use super::Outcome;

/// A running node. It is stopped when this is dropped.
pub struct Node {
    child: Child,
    directory: PathBuf,
    port: u16,
    http: reqwest::Client,
}

/// `BITCOIND`, or `bitcoind` from the PATH, or the one that is shared beside the repository.
fn binary() -> Option<PathBuf> {
    if let Some(named) = env::var_os("BITCOIND") {
        return Some(PathBuf::from(named));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/bin/bitcoind");
    env::split_paths(&path).map(|directory| directory.join("bitcoind")).chain([beside]).find(|file| file.is_file())
}

/// The script that anyone can satisfy.
fn anyone() -> ScriptBuf {
    Builder::new().push_opcode(OP_TRUE).into_script()
}

impl Node {
    /// A node in a new directory, with so many blocks that the coin of the first can be spent; `None` if there is no
    /// bitcoind.
    pub async fn start() -> Outcome<Option<Self>> {
        let Some(binary) = binary() else { return Ok(None) };
        let directory = env::temp_dir().join(format!("btcr2-example-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        // The port may be taken by another process before the node opens it; the node then ends.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new(binary)
            .args(["-regtest", "-server=1", "-listen=0", "-connect=0", "-dnsseed=0", "-rpcbind=127.0.0.1"])
            .args(["-rpcallowip=127.0.0.1", "-dbcache=4", "-par=1"])
            .arg(format!("-datadir={}", directory.display()))
            .arg(format!("-rpcport={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let http = btcr2_aggregation::actors::transport::tls::Trust::system().http_client()?.build()?;
        let mut node = Self { child, directory, port, http };
        for _ in 0..1200 {
            if node.child.try_wait()?.is_some() {
                break;
            }
            if node.call("getmempoolinfo", json!([])).await.is_ok_and(|mempool| mempool["loaded"] == true) {
                node.mine(101).await?;
                return Ok(Some(node));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err("bitcoind does not start".into())
    }

    /// The address of its RPC server.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The file with the credentials of its RPC server.
    pub fn cookie(&self) -> PathBuf {
        self.directory.join("regtest/.cookie")
    }

    /// Mines blocks whose coins are for anyone.
    pub async fn mine(&self, blocks: u32) -> Outcome<Value> {
        let anyone = Address::p2wsh(&anyone(), Network::Regtest);
        self.call("generatetoaddress", json!([blocks, anyone.to_string()])).await
    }

    /// Pays the coin of the first block to an address, in a new block. Once only.
    pub async fn pay(&self, address: &str) -> Outcome<()> {
        let first = self.call("getblockhash", json!([1])).await?;
        let block = self.call("getblock", json!([first])).await?;
        let coin = block["tx"][0].as_str().ok_or("the first block has no transaction")?.parse()?;
        let transaction = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![TxIn {
                previous_output: OutPoint { txid: coin, vout: 0 },
                witness: Witness::from_slice(&[anyone().as_bytes()]),
                ..TxIn::default()
            }],
            output: vec![TxOut {
                value: Amount::from_sat(4_999_990_000),
                script_pubkey: address.parse::<Address<_>>()?.require_network(Network::Regtest)?.script_pubkey(),
            }],
        };
        self.call("sendrawtransaction", json!([serialize_hex(&transaction)])).await?;
        self.mine(1).await.map(drop)
    }

    /// Calls a method of its RPC server.
    pub async fn call(&self, method: &str, arguments: Value) -> Outcome<Value> {
        let cookie = fs::read_to_string(self.cookie())?;
        let (user, password) = cookie.split_once(':').ok_or("no cookie")?;
        let request = json!({ "jsonrpc": "2.0", "id": 0, "method": method, "params": arguments });
        let request = self.http.post(self.url()).basic_auth(user, Some(password)).body(request.to_string());
        let mut answer: Value = serde_json::from_slice(&request.send().await?.bytes().await?)?;
        match answer.get("error") {
            None | Some(Value::Null) => Ok(answer["result"].take()),
            Some(error) => Err(format!("{method}: {error}").into()),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It is only needed for this process.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}
