//! An agent as a program, in a standing cohort of one seat on a node.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    bitcoind_support::{TestChain, faucet::Faucet},
    resolve_cli::ran,
    support::{PATIENCE, Program, Service, directory, identity, path, verify::text},
};
use bitcoin::{Address, Amount, ScriptBuf, address::NetworkUnchecked};
use serde_json::Value;

/// The confirmations with which a transaction is final.
pub const DEPTH: &str = "2";

fn script(address: &str) -> ScriptBuf {
    address.parse::<Address<NetworkUnchecked>>().unwrap().assume_checked().script_pubkey()
}

/// A command's output as JSON.
pub async fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&ran(arguments).await.succeeded().stdout).unwrap()
}

/// A node, a service with one seat, and an agent.
pub struct World {
    pub directory: PathBuf,
    pub blocks: TestChain,
    faucet: Faucet,
    pub source: String,
    pub service: Service,
    pub state: String,
    pub config: String,
    pub agent: Option<Program>,
}

impl World {
    /// The agent has the settings of `policy` too.
    pub async fn new(name: &str, policy: &str) -> Option<Self> {
        Self::with_terms(name, policy, &[]).await
    }

    /// The same with other terms of the service.
    pub async fn with_terms(name: &str, policy: &str, terms: &[&str]) -> Option<Self> {
        let blocks = TestChain::core(name).await?;
        let faucet = Faucet::new(&blocks, 4).await;
        let directory = directory(name);
        let node = blocks.node();
        let source = format!("core={}?cookie={}", node.url(), node.cookie_file().display());
        let state = path(&directory, "service.state");
        let chain = ["--chain", &source, "--chain-poll", "200ms", "--confirmations", DEPTH, "--state", &state];
        let size = ["--min-participants", "1", "--max-participants", "1"];
        let fixed = ["--standing", "--absent", "wait", "--min-interval", "1s", "--respond-time", "20s"];
        let service = Service::start(&directory, &[&chain[..], &size, &fixed, terms].concat());
        identity(&directory, "seat.id");
        let world = Self {
            state: path(&directory, "state"),
            config: path(&directory, "member.toml"),
            directory,
            blocks,
            faucet,
            source,
            service,
            agent: None,
        };
        world.configure(policy);
        Some(world)
    }

    /// Writes the agent's file, with these lines of its policy and what follows them.
    pub fn configure(&self, policy: &str) {
        let text = format!(
            "network = \"regtest\"\nchain = \"{}\"\nchain-poll = \"200ms\"\nconfirmations = {DEPTH}\n\
             [[service]]\nname = \"one\"\nurl = \"{}\"\ndid = \"{}\"\n\
             [[seat]]\nname = \"home\"\nseed = \"seat.id\"\n\
             [policy]\nleast-answer-time = \"1s\"\n{policy}\n",
            self.source, self.service.url, self.service.did
        );
        fs::write(&self.config, text).unwrap();
    }

    pub fn start(&mut self) {
        self.agent = Some(self.launched(&self.config, &self.state));
        self.program().event("member-ready");
    }

    pub fn launched(&self, config: &str, state: &str) -> Program {
        let mut command = crate::support::command(&["member", "--config", config, "--state", state, "--json"]);
        command.env("BTCR2_PASSPHRASE", "horse");
        Program::launch(command)
    }

    pub fn program(&mut self) -> &mut Program {
        self.agent.as_mut().unwrap()
    }

    pub fn stop(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.signal("-TERM");
        assert!(agent.ends_well());
    }

    pub fn kill(&mut self) {
        self.agent.take().unwrap().kill();
    }

    /// Starts the agent, which gets its seat, and pays to the beacon.
    pub async fn formed(&mut self) -> String {
        self.start();
        self.funded().await
    }

    /// Waits until the cohort has formed, and pays to its beacon.
    pub async fn funded(&mut self) -> String {
        let formed = self.service.program.event("standing-formed");
        let address = text(&formed["beaconAddress"]).to_owned();
        self.program().event("seat-formed");
        self.faucet.pay(&self.blocks, &script(&address), Amount::from_sat(100_000)).await;
        self.blocks.mine(2).await;
        self.service.program.event("coin-arrived");
        address
    }

    /// New DIDs, with the files of their identities.
    pub async fn mint(&self, count: &str) -> Vec<(String, String)> {
        let run = ran(&["member", "mint", "--state", &self.state, "--count", count, "--json"]).await.succeeded();
        let lines = run.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|one| (text(&one["did"]).to_owned(), text(&one["file"]).to_owned())).collect()
    }

    /// Hands an update over: a service with that name is added.
    pub async fn hand_over(&self, (did, file): &(String, String), service: &str) -> crate::support::Run {
        let verb = ["add-service", service, "--type", "X", "--endpoint", "https://x.example"];
        let fixed = ["update", did, "--identity", file, "--chain", &self.source, "--min-conf", DEPTH];
        ran(&[&fixed[..], &["--queue", &self.state], &verb].concat()).await
    }

    /// The queue, also what is over.
    pub async fn queue(&self) -> Vec<Value> {
        let queue = json(&["member", "queue", "--all", "--json", "--state", &self.state]).await;
        queue.as_array().unwrap().clone()
    }

    /// Waits for a step of an update.
    pub fn step(&mut self, id: u64, stage: &str) -> Value {
        self.program().event_where("update-step", |event| event["id"] == id && event["stage"] == stage)
    }

    /// What is sent gets into a block, and is final.
    pub async fn mined(&self) {
        let until = Instant::now() + PATIENCE;
        while self.blocks.mempool().await.is_empty() {
            assert!(Instant::now() < until, "nothing is sent");
            actix_rt::time::sleep(Duration::from_millis(50)).await;
        }
        self.blocks.mine(2).await;
    }

    /// Mines what is sent until an update is at that stage.
    pub async fn mined_until(&mut self, id: u64, stage: &str) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            if !self.blocks.mempool().await.is_empty() {
                self.blocks.mine(2).await;
            }
            let queue = self.queue().await;
            if let Some(item) = queue.iter().find(|item| item["id"] == id && item["stage"] == stage) {
                return item.clone();
            }
            assert!(Instant::now() < until, "update {id} is not {stage}: {queue:#?}");
            actix_rt::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The version and the names of the services that resolvers return, from what the agent has written alone.
    pub async fn resolved(&self, did: &str, state: &str) -> (String, Vec<String>) {
        let sidecar = format!("{state}/sidecars/{}.json", did.replace(':', "_"));
        let chain = ["--chain", &self.source, "--min-conf", DEPTH, "--sidecar", &sidecar, "--json"];
        let resolved = json(&[&["resolve", did][..], &chain].concat()).await;
        let services = resolved["didDocument"]["service"].as_array().unwrap().iter();
        let names = services.filter(|service| service["type"] == "X").map(|service| {
            let id = text(&service["id"]);
            id.rsplit_once('#').map_or(id, |(_, name)| name).to_owned()
        });
        (text(&resolved["didDocumentMetadata"]["versionId"]).to_owned(), names.collect())
    }
}

/// The first request that waits for a decision.
pub async fn pending(state: &str) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let pending = json(&["member", "pending", "--json", "--state", state]).await;
        if let Some(first) = pending.as_array().unwrap().first() {
            return first.clone();
        }
        assert!(Instant::now() < until, "nothing waits");
        actix_rt::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The control socket of a state directory.
pub fn socket(state: &str) -> PathBuf {
    Path::new(state).join("control.sock")
}
