//! Several agents as programs, in a standing cohort of a service on a node, behind an address that stays.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use futures::future::join_all;

use bitcoin::{Address, Amount, OutPoint, ScriptBuf, address::NetworkUnchecked};
use serde_json::Value;

use crate::{
    bitcoind_support::{TestChain, faucet::Faucet},
    member_support::{DEPTH, json},
    resolve_cli::ran,
    support::{
        PATIENCE, Program, Run, Service, clock::Clock, directory, identity, path, proxy::Proxy, verify::text,
    },
};

pub fn script(address: &str) -> ScriptBuf {
    address.parse::<Address<NetworkUnchecked>>().unwrap().assume_checked().script_pubkey()
}

/// A service at an address that stays, and how it is started.
pub struct Host {
    pub service: Service,
    pub proxy: Proxy,
    place: PathBuf,
    arguments: Vec<String>,
    /// The clock that it has from its next start on.
    pub clock: Option<Clock>,
}

impl Host {
    fn start(place: PathBuf, arguments: Vec<String>, seats: usize) -> Self {
        fs::create_dir_all(&place).unwrap();
        let service = Self::serve(&place, &arguments, seats, &[], None);
        Self { proxy: Proxy::to(service.address()), service, place, arguments, clock: None }
    }

    fn serve(place: &Path, arguments: &[String], seats: usize, more: &[&str], clock: Option<&Clock>) -> Service {
        let (state, seats) = (path(place, "state"), seats.to_string());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let size = ["--min-participants", &seats, "--max-participants", &seats, "--state", &state];
        Service::start_at(place, &[&arguments[..], &size].concat(), clock)
    }

    /// It stops, and starts again for cohorts of so many seats.
    pub fn again(&mut self, seats: usize, more: &[&str]) {
        self.service.program.kill();
        self.service = Self::serve(&self.place, &self.arguments, seats, more, self.clock.as_ref());
        self.proxy.retarget(self.service.address());
        self.proxy.cut();
    }

    pub fn program(&mut self) -> &mut Program {
        &mut self.service.program
    }
}

/// An agent and its directory.
pub struct Agent {
    pub place: PathBuf,
    program: Option<Program>,
    /// Its DIDs, with the files of their identities.
    pub dids: Vec<(String, String)>,
    /// The clock that it has from its next start on.
    pub clock: Option<Clock>,
}

impl Agent {
    pub fn state(&self) -> String {
        path(&self.place, "state")
    }

    /// Writes its file, for these services.
    pub fn configure(&self, source: &str, hosts: &[&Host], policy: &str) {
        let services = hosts
            .iter()
            .enumerate()
            .map(|(at, host)| format!("[[service]]\nname = \"service-{at}\"\nurl = \"{}\"\n", host.proxy.url()));
        let services: String = services.collect();
        let text = format!(
            "network = \"regtest\"\nchain = \"{source}\"\nchain-poll = \"200ms\"\nconfirmations = {DEPTH}\n{services}\
             [[seat]]\nname = \"home\"\nseed = \"seat.id\"\n[policy]\nleast-answer-time = \"1s\"\n{policy}\n"
        );
        fs::write(self.place.join("member.toml"), text).unwrap();
    }

    pub fn start(&mut self) {
        let (config, state) = (path(&self.place, "member.toml"), self.state());
        let arguments = ["member", "--config", &config, "--state", &state, "--json"];
        self.program = Some(Program::start_at(&arguments, self.clock.as_ref()));
        self.program().event("member-ready");
    }

    pub fn stop(&mut self) {
        let mut program = self.program.take().unwrap();
        program.signal("-TERM");
        assert!(program.ends_well());
    }

    pub fn program(&mut self) -> &mut Program {
        self.program.as_mut().unwrap()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.program.take().unwrap().kill();
    }

    /// A new seed in the place of the old one, which is lost.
    pub fn loses_its_seed(&self) {
        fs::remove_file(self.place.join("seat.id")).unwrap();
        identity(&self.place, "seat.id");
    }

    /// Makes DIDs, and waits until they are registered.
    pub async fn mint(&mut self, count: &str, more: &[&str]) {
        let minted = self.member(&[&["mint", "--count", count, "--json"], more].concat()).await.succeeded();
        let lines = minted.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        self.dids.extend(lines.map(|one| (text(&one["did"]).to_owned(), text(&one["file"]).to_owned())));
    }

    /// A command of `member`, whatever its end is.
    pub async fn member(&self, arguments: &[&str]) -> Run {
        ran(&[&["member"], arguments, &["--state", &self.state()]].concat()).await
    }

    pub async fn queue(&self) -> Vec<Value> {
        json(&["member", "queue", "--all", "--json", "--state", &self.state()]).await.as_array().unwrap().clone()
    }

    /// What `check` finds of a DID, by code.
    pub async fn check(&self, did: &str, source: &str) -> Vec<String> {
        let run =
            ran(&["check", did, "--state", &self.state(), "--chain", source, "--min-conf", DEPTH, "--json"]).await;
        let report: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}"));
        let findings = report["findings"].as_array().unwrap().iter();
        findings.map(|finding| text(&finding["code"]).to_owned()).collect()
    }
}

pub struct World {
    pub directory: PathBuf,
    pub blocks: TestChain,
    faucet: Faucet,
    pub source: String,
    pub host: Host,
    pub agents: Vec<Agent>,
    pub cohort_id: String,
    pub address: String,
}

impl World {
    /// A service, and agents that are not started. The first `seats` of them make a cohort.
    pub async fn new(name: &str, agents: usize, seats: usize, terms: &[&str], policy: &str) -> Option<Self> {
        let blocks = TestChain::core(name).await?;
        let faucet = Faucet::new(&blocks, 12).await;
        let directory = directory(name);
        let node = blocks.node();
        let source = format!("core={}?cookie={}", node.url(), node.cookie_file().display());
        let host = Host::start(directory.join("one"), Self::arguments(&source, terms), seats);
        let agent = |number: usize| {
            let place = directory.join(format!("agent-{number}"));
            fs::create_dir_all(&place).unwrap();
            identity(&place, "seat.id");
            Agent { place, program: None, dids: Vec::new(), clock: None }
        };
        let agents: Vec<Agent> = (0..agents).map(agent).collect();
        agents.iter().for_each(|agent| agent.configure(&source, &[&host], policy));
        let (cohort_id, address) = (String::new(), String::new());
        Some(Self { directory, blocks, faucet, source, host, agents, cohort_id, address })
    }

    fn arguments(source: &str, terms: &[&str]) -> Vec<String> {
        let fixed = ["--chain", source, "--chain-poll", "200ms", "--confirmations", DEPTH, "--standing"];
        let arguments = [&fixed[..], &["--min-interval", "1s"], terms].concat();
        arguments.into_iter().map(str::to_owned).collect()
    }

    /// Another service.
    pub fn other_host(&self, name: &str, seats: usize, terms: &[&str]) -> Host {
        Host::start(self.directory.join(name), Self::arguments(&self.source, terms), seats)
    }

    /// The service starts again, and its cohort gets a successor of so many seats.
    pub fn succeeds(&mut self, seats: usize) {
        self.host.again(seats, &["--succeeds", &self.cohort_id]);
    }

    /// The first agents form the cohort, whose coin is paid, and have so many DIDs each.
    pub async fn formed(name: &str, agents: usize, seats: usize, terms: &[&str], dids: &str) -> Option<Self> {
        let mut world = Self::new(name, agents, seats, terms, "").await?;
        world.agents[..seats].iter_mut().for_each(Agent::start);
        let formed = world.host.program().event("standing-formed");
        (world.cohort_id, world.address) =
            (text(&formed["cohortId"]).to_owned(), text(&formed["beaconAddress"]).to_owned());
        for agent in &mut world.agents[..seats] {
            agent.program().event("seat-formed");
        }
        let address = world.address.clone();
        let coin = world.pay(&address, 100_000).await;
        world.host.program().event_where("coin-arrived", |event| event["outpoint"] == coin.to_string());
        // No number opens before enough seats have a DID.
        join_all(world.agents[..seats].iter_mut().map(|agent| agent.mint(dids, &[]))).await;
        Some(world)
    }

    /// Pays to an address, in a block that is deep enough.
    pub async fn pay(&mut self, address: &str, sat: u64) -> OutPoint {
        let coin = self.faucet.pay(&self.blocks, &script(address), Amount::from_sat(sat)).await;
        self.blocks.mine(2).await;
        coin
    }

    /// Adds a service to a document: its number in the queue of the agent.
    pub async fn change(&self, agent: usize, did: usize, name: &str) -> u64 {
        let one = &self.agents[agent];
        let (did, file) = &one.dids[did];
        let verb = ["add-service", name, "--type", "X", "--endpoint", "https://x.example"];
        let fixed = ["update", did, "--identity", file, "--chain", &self.source, "--min-conf", DEPTH];
        ran(&[&fixed[..], &["--queue", &one.state()], &verb].concat()).await.succeeded();
        one.queue().await.last().unwrap()["id"].as_u64().unwrap()
    }

    /// Waits until a signed transaction is in the mempool.
    pub async fn sent(&mut self, signed: &Value) {
        let (until, txid) = (Instant::now() + PATIENCE, text(&signed["txid"]).parse().unwrap());
        while !self.blocks.mempool().await.contains(&txid) {
            self.host.program().read();
            assert!(Instant::now() < until, "{signed:#} is not sent: {:#?}", self.host.program().seen());
            actix_rt::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Mines what is sent, until something is so.
    pub async fn mined_until<F: Future<Output = bool>>(&self, what: &str, mut is_so: impl FnMut() -> F) {
        let until = Instant::now() + PATIENCE;
        while !is_so().await {
            assert!(Instant::now() < until, "{what}");
            if !self.blocks.mempool().await.is_empty() {
                self.blocks.mine(2).await;
            }
            actix_rt::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Mines what is sent until an update of an agent is resolvable.
    pub async fn resolvable(&self, agent: usize, id: u64) {
        let one = &self.agents[agent];
        let is_so =
            || async { one.queue().await.iter().any(|item| item["id"] == id && item["stage"] == "resolvable") };
        self.mined_until(&format!("update {id} of agent {agent}"), is_so).await;
    }

    /// The version that resolvers return from what the agent has written alone, and the addresses of cohorts that the document lists.
    pub async fn resolved(&self, agent: usize, did: usize) -> (String, Vec<String>) {
        let one = &self.agents[agent];
        let did = &one.dids[did].0;
        let sidecar = format!("{}/sidecars/{}.json", one.state(), did.replace(':', "_"));
        let chain = ["--chain", &self.source, "--min-conf", DEPTH, "--sidecar", &sidecar, "--json"];
        let resolved = json(&[&["resolve", did][..], &chain].concat()).await;
        let services = resolved["didDocument"]["service"].as_array().unwrap().iter();
        let cohorts = services.filter(|service| ["CASBeacon", "SMTBeacon"].contains(&text(&service["type"])));
        let address = |service: &Value| text(&service["serviceEndpoint"]).trim_start_matches("bitcoin:").to_owned();
        (text(&resolved["didDocumentMetadata"]["versionId"]).to_owned(), cohorts.map(address).collect())
    }

    /// Every DID resolves, and lists these addresses of cohorts.
    pub async fn all_list(&self, agents: &[usize], addresses: &[&str]) {
        for agent in agents {
            for did in 0..self.agents[*agent].dids.len() {
                let (_, listed) = self.resolved(*agent, did).await;
                assert_eq!(listed, addresses, "DID {did} of agent {agent}");
            }
        }
    }
}
