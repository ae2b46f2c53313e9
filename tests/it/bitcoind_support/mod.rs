//! A real Bitcoin Core node on regtest, and a chain in memory: mining, reorganizations, and a faucet.

pub mod beacon;
pub mod esplora;
pub mod faucet;

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bitcoin::{ScriptBuf, Transaction, Txid};
use btcr2_aggregation::bitcoin::chain::{Chain, CoreAuth, CoreChain, MemoryChain};
use serde_json::{Value, json};

/// How long something that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A node that runs, and is stopped when this is dropped.
pub struct Bitcoind {
    child: Child,
    binary: PathBuf,
    directory: PathBuf,
    port: u16,
    extra: Vec<String>,
    http: reqwest::Client,
}

/// `BITCOIND`, else `bitcoind` from PATH, else the one that is shared beside the repository.
fn binary() -> Option<PathBuf> {
    if let Some(named) = env::var_os("BITCOIND") {
        return Some(PathBuf::from(named));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/bin/bitcoind");
    env::split_paths(&path).map(|directory| directory.join("bitcoind")).chain([beside]).find(|file| file.is_file())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Bitcoind {
    /// A node with nothing but the genesis block. `None`, with a message, when there is no bitcoind.
    pub async fn start(name: &str) -> Option<Self> {
        Self::start_with(name, &[]).await
    }

    pub async fn start_with(name: &str, extra: &[&str]) -> Option<Self> {
        let Some(binary) = binary() else {
            println!("skipped: {name}: no bitcoind (BITCOIND, PATH, ../shared/bin/bitcoind)");
            return None;
        };
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bitcoind").join(name);
        if directory.exists() {
            fs::remove_dir_all(&directory).unwrap();
        }
        fs::create_dir_all(&directory).unwrap();
        let extra: Vec<String> = extra.iter().map(|&argument| argument.to_owned()).collect();
        // The port was free a moment ago; if another process has taken it since, try the next one.
        for _ in 0..5 {
            let port = free_port();
            let mut node = Self {
                child: spawn(&binary, &directory, port, &extra),
                binary: binary.clone(),
                directory: directory.clone(),
                port,
                extra: extra.clone(),
                http: btcr2_aggregation::actors::transport::tls::Trust::system()
                    .http_client()
                    .unwrap()
                    .build()
                    .unwrap(),
            };
            if node.is_ready().await {
                return Some(node);
            }
        }
        panic!("bitcoind does not start; see {}", directory.display());
    }

    /// Waits until the node answers; false when it ended instead.
    async fn is_ready(&mut self) -> bool {
        let until = Instant::now() + PATIENCE;
        loop {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            // It answers before it has read its stored mempool.
            let mempool = self.try_rpc("getmempoolinfo", json!([])).await;
            if mempool.is_ok_and(|mempool| mempool["loaded"] == true) {
                return true;
            }
            assert!(Instant::now() < until, "bitcoind does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends the node as an operator does.
    pub async fn stop(&mut self) {
        let _ = self.try_rpc("stop", json!([])).await;
        let until = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "bitcoind does not stop");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts it again with the same data, at the same address.
    pub async fn start_again(&mut self) {
        self.child = spawn(&self.binary, &self.directory, self.port, &self.extra);
        assert!(self.is_ready().await, "bitcoind does not start again");
    }

    /// The same, with additional arguments for this run.
    pub async fn start_again_with(&mut self, extra: &[&str]) {
        let extra: Vec<String> =
            self.extra.iter().cloned().chain(extra.iter().map(|&one| one.to_owned())).collect();
        self.child = spawn(&self.binary, &self.directory, self.port, &extra);
        assert!(self.is_ready().await, "bitcoind does not start again");
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn cookie_file(&self) -> PathBuf {
        self.directory.join("regtest/.cookie")
    }

    fn cookie(&self) -> Option<String> {
        fs::read_to_string(self.cookie_file()).ok()
    }

    pub fn chain(&self) -> CoreChain {
        CoreChain::new(self.url(), CoreAuth::Cookie(self.cookie_file()))
    }

    /// A call that must succeed.
    pub async fn rpc(&self, method: &str, arguments: Value) -> Value {
        self.try_rpc(method, arguments.clone())
            .await
            .unwrap_or_else(|error| panic!("{method} {arguments}: {error}"))
    }

    pub async fn try_rpc(&self, method: &str, arguments: Value) -> Result<Value, String> {
        let cookie = self.cookie().ok_or("no cookie")?;
        let (user, password) = cookie.split_once(':').ok_or("no cookie")?;
        let request = json!({ "jsonrpc": "2.0", "id": 0, "method": method, "params": arguments });
        let sent = self
            .http
            .post(self.url())
            .basic_auth(user, Some(password))
            .timeout(PATIENCE)
            .body(request.to_string())
            .send()
            .await
            .map_err(|error| error.to_string())?;
        let answer = sent.bytes().await.map_err(|error| error.to_string())?;
        let mut answer: Value = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
        match answer.get("error") {
            None | Some(Value::Null) => Ok(answer["result"].take()),
            Some(error) => Err(error.to_string()),
        }
    }

    /// The result of `testmempoolaccept` for a transaction.
    pub async fn mempool_accepts(&self, transaction: &Transaction) -> Value {
        let hex = bitcoin::consensus::encode::serialize_hex(transaction);
        self.rpc("testmempoolaccept", json!([[hex]])).await[0].take()
    }
}

fn spawn(binary: &Path, directory: &Path, port: u16, extra: &[String]) -> Child {
    let log = fs::File::options().create(true).append(true).open(directory.join("output")).unwrap();
    Command::new(binary)
        .arg("-regtest")
        .arg(format!("-datadir={}", directory.display()))
        .arg(format!("-rpcport={port}"))
        .args(["-rpcbind=127.0.0.1", "-rpcallowip=127.0.0.1", "-listen=0", "-connect=0", "-dnsseed=0", "-server=1"])
        .args(["-rpcthreads=4", "-dbcache=4", "-par=1", "-persistmempool=1"])
        .args(extra)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Drop for Bitcoind {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Makes every block unique, also those that replace others.
static BLOCKS: AtomicU32 = AtomicU32::new(0);

/// A script that is never spent, a different one each time.
fn burn() -> ScriptBuf {
    ScriptBuf::new_op_return(BLOCKS.fetch_add(1, Ordering::Relaxed).to_be_bytes())
}

/// The miner of a [`TestChain`].
pub enum Kind<'a> {
    Memory(&'a MemoryChain),
    Node(&'a Bitcoind),
}

/// A chain whose blocks the test makes.
pub enum TestChain {
    Memory(MemoryChain),
    Core(Bitcoind),
    /// A node that other tests use too.
    Shared(Arc<Bitcoind>),
}

impl TestChain {
    pub fn memory() -> Self {
        Self::Memory(MemoryChain::new())
    }

    pub async fn core(name: &str) -> Option<Self> {
        Bitcoind::start(name).await.map(Self::Core)
    }

    pub fn chain(&self) -> Arc<dyn Chain> {
        match self {
            Self::Memory(chain) => Arc::new(chain.clone()),
            Self::Core(node) => Arc::new(node.chain()),
            Self::Shared(node) => Arc::new(node.chain()),
        }
    }

    /// The miner.
    pub fn kind(&self) -> Kind<'_> {
        match self {
            Self::Memory(chain) => Kind::Memory(chain),
            Self::Core(node) => Kind::Node(node),
            Self::Shared(node) => Kind::Node(node),
        }
    }

    /// The node that mines.
    pub fn node(&self) -> &Bitcoind {
        match self.kind() {
            Kind::Node(node) => node,
            Kind::Memory(_) => panic!("a node expected"),
        }
    }

    /// The node of a chain that does not share it, to stop and start it.
    pub fn node_mut(&mut self) -> &mut Bitcoind {
        match self {
            Self::Core(node) => node,
            _ => panic!("a node of one's own expected"),
        }
    }

    /// Mines so many blocks; the first one contains the mempool.
    pub async fn mine(&self, blocks: u32) {
        self.mine_to(blocks, &burn()).await;
    }

    pub async fn mine_to(&self, blocks: u32, script: &ScriptBuf) {
        match self.kind() {
            Kind::Memory(chain) => {
                chain.mine(blocks, script);
            }
            Kind::Node(node) => {
                node.rpc("generatetodescriptor", json!([blocks, format!("raw({})", script.to_hex_string())])).await;
            }
        }
    }

    /// Mines so many blocks without the mempool.
    pub async fn mine_empty(&self, blocks: u32) {
        self.mine_with(blocks, &[]).await;
    }

    /// Mines so many blocks, the first of which contains exactly these transactions.
    pub async fn mine_with(&self, blocks: u32, transactions: &[Transaction]) {
        match self.kind() {
            Kind::Memory(chain) => {
                chain.mine_with(blocks, transactions);
            }
            Kind::Node(node) => {
                let mut hex: Vec<_> = transactions.iter().map(bitcoin::consensus::encode::serialize_hex).collect();
                for _ in 0..blocks {
                    let output = format!("raw({})", burn().to_hex_string());
                    node.rpc("generateblock", json!([output, std::mem::take(&mut hex)])).await;
                }
            }
        }
    }

    /// Invalidates the last blocks; their transactions return to the mempool.
    pub async fn take_back(&self, blocks: u32) {
        match self.kind() {
            Kind::Memory(chain) => chain.take_back(blocks),
            Kind::Node(node) => {
                let height = node.rpc("getblockcount", json!([])).await.as_u64().unwrap();
                let hash = node.rpc("getblockhash", json!([height + 1 - u64::from(blocks)])).await;
                node.rpc("invalidateblock", json!([hash])).await;
            }
        }
    }

    pub async fn mempool(&self) -> Vec<Txid> {
        match self.kind() {
            Kind::Memory(chain) => chain.mempool().iter().map(Transaction::compute_txid).collect(),
            Kind::Node(node) => serde_json::from_value(node.rpc("getrawmempool", json!([])).await).unwrap(),
        }
    }
}
