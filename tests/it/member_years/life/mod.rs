//! Agents with what they have announced, and the processes that die under them.

mod happenings;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use btcr2_aggregation::protocol::did::Did;
use futures::future::join_all;
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore, SeedableRng},
};
use serde_json::{Value, json};

use crate::{
    member_drills::world::{Agent, World},
    member_support::DEPTH,
    resolve_cli::Author,
    standing_processes::resolving::try_resolve_all,
    support::{Program, path, verify::text},
};

/// The seats of the first cohort: 0 and 4 are of agent 0, which has two seeds.
pub const SEATS: usize = 5;

/// The agents that have them.
const AGENTS: usize = 4;

/// So many EXTERNAL DIDs of each seat, beside a KEY DID.
const EXTERNALS: &str = "7";

/// So many seats can sign without the others.
const K: &str = "4";

/// How long one announcement may take on a busy machine, with restarts and fallbacks.
const PATIENCE: Duration = Duration::from_secs(180);

/// How many lines a process prints at most from when an update was passed until it dies. Most print as many for one number.
const LINES: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Service,
    Agent(usize),
}

/// A DID, and what resolvers have to return of it.
pub struct Lived {
    agent: usize,
    /// Its place in the agent's list.
    at: usize,
    seat: usize,
    is_external: bool,
    version: u64,
    /// The address of a cohort that its document lists.
    lists: Option<String>,
}

pub struct Life {
    name: String,
    kind: String,
    world: World,
    dice: ChaCha20Rng,
    dids: Vec<Lived>,
    /// The agents that run.
    agents: usize,
    /// How the service is started: its seats, and the cohort that it moves away from.
    seats: usize,
    succeeds: Option<String>,
    pub announced: usize,
    pub killed: usize,
}

/// The seeds of an agent: name, seat, and the directory of its KEY DIDs.
fn seeds(agent: usize) -> Vec<(&'static str, usize, &'static str)> {
    match agent {
        0 => vec![("home", 0, "dids"), ("second", 4, "more")],
        4 => vec![("home", 5, "dids")],
        agent => vec![("home", agent, "dids")],
    }
}

/// The addresses of cohorts that a document lists.
fn listed(document: &Value) -> Vec<&str> {
    let services = document["service"].as_array().unwrap().iter();
    let cohorts = services.filter(|service| ["CASBeacon", "SMTBeacon"].contains(&text(&service["type"])));
    cohorts.map(|service| text(&service["serviceEndpoint"]).trim_start_matches("bitcoin:")).collect()
}

impl Life {
    /// A cohort of five seats with a KEY DID and seven EXTERNAL DIDs each, which begin with its beacon.
    pub async fn new(name: &str, beacon: &str, seed: u64) -> Option<Self> {
        let times = ["--respond-time", "12s", "--confirm-time", "8s"];
        let terms = [&["--beacon", beacon, "--fallback-threshold", K][..], &times].concat();
        let world = World::new(name, AGENTS + 1, SEATS, &terms, "").await?;
        let mut life = Self {
            name: name.to_owned(),
            kind: format!("{}Beacon", beacon.to_uppercase()),
            world,
            dice: ChaCha20Rng::seed_from_u64(seed),
            dids: Vec::new(),
            agents: AGENTS,
            seats: SEATS,
            succeeds: None,
            announced: 0,
            killed: 0,
        };
        (0..=AGENTS).for_each(|agent| life.configure(agent));
        let world = &mut life.world;
        world.agents[..AGENTS].iter_mut().for_each(Agent::start);
        let formed = world.host.program().event("standing-formed");
        (world.cohort_id, world.address) =
            (text(&formed["cohortId"]).to_owned(), text(&formed["beaconAddress"]).to_owned());
        let address = world.address.clone();
        let coin = world.pay(&address, 200_000).await;
        world.host.program().event_where("coin-arrived", |event| event["outpoint"] == coin.to_string());
        let minted = world.agents[..AGENTS].iter_mut().enumerate().map(|(number, agent)| async move {
            let mut seats = Vec::new();
            for (seed, seat, _) in seeds(number) {
                agent.member(&["enrol", "--seat", seed]).await.succeeded();
                let before = agent.dids.len();
                agent.mint(EXTERNALS, &["--seat", seed]).await;
                seats.extend(agent.dids[before..].iter().map(|_| (number, seat)));
            }
            seats
        });
        for (at, (agent, seat)) in join_all(minted).await.into_iter().flat_map(|all| all.into_iter().enumerate()) {
            let lists = Some(address.clone());
            life.dids.push(Lived { agent, at, seat, is_external: true, version: 1, lists });
        }
        (0..AGENTS).for_each(|agent| life.counts_keys(agent));
        life.until_all_resolve(&[], &[]).await;
        Some(life)
    }

    /// The controller of a seat's KEY DID.
    fn key_of(&self, seat: usize) -> Author {
        Author::key(&format!("{} key {seat}", self.name))
    }

    /// Writes an agent's file, and the KEY DIDs of its seats.
    fn configure(&self, agent: usize) {
        let place = &self.world.agents[agent].place;
        let mut file = format!(
            "network = \"regtest\"\nchain = \"{}\"\nchain-poll = \"200ms\"\nconfirmations = {DEPTH}\n\
             [policy]\nleast-answer-time = \"1s\"\n[[service]]\nname = \"one\"\nurl = \"{}\"\n",
            self.world.source,
            self.world.host.proxy.url()
        );
        for (name, seat, directory) in seeds(agent) {
            let seed = if name == "home" { "seat.id" } else { "second.id" };
            if !place.join(seed).exists() {
                crate::support::identity(place, seed);
            }
            file += &format!("[[seat]]\nname = \"{name}\"\nseed = \"{seed}\"\ndids = [\"{directory}\"]\n");
            fs::create_dir_all(place.join(directory)).unwrap();
            let author = self.key_of(seat);
            let secret = &*author.key.to_hex();
            let identity = json!({ "version": 1, "did": author.did, "network": "regtest", "secretKey": secret });
            let key = place.join(directory).join("key.id");
            fs::write(&key, identity.to_string()).unwrap();
            fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        }
        fs::write(place.join("member.toml"), file).unwrap();
    }

    /// The KEY DIDs of an agent count from now on.
    fn counts_keys(&mut self, agent: usize) {
        for (_, seat, directory) in seeds(agent) {
            let did = self.key_of(seat).did().to_owned();
            let one = &mut self.world.agents[agent];
            one.dids.push((did, path(&one.place, &format!("{directory}/key.id"))));
            let at = one.dids.len() - 1;
            self.dids.push(Lived { agent, at, seat, is_external: false, version: 1, lists: None });
        }
    }

    pub fn dids(&self) -> impl Iterator<Item = &str> {
        self.dids.iter().map(|one| self.name_of(one))
    }

    fn name_of(&self, one: &Lived) -> &str {
        &self.world.agents[one.agent].dids[one.at].0
    }

    fn sidecar_file(&self, one: &Lived) -> String {
        let state = self.world.agents[one.agent].state();
        format!("{state}/sidecars/{}.json", self.name_of(one).replace(':', "_"))
    }

    fn below(&mut self, end: usize) -> usize {
        self.dice.next_u32() as usize % end
    }

    /// All processes, in an order that the seed draws.
    pub fn shuffled(&mut self) -> Vec<Victim> {
        let mut all: Vec<Victim> = (0..self.agents).map(Victim::Agent).chain([Victim::Service]).collect();
        for last in (1..all.len()).rev() {
            let other = self.below(last + 1);
            all.swap(last, other);
        }
        all
    }

    pub fn drawn(&mut self, count: usize) -> Vec<Victim> {
        let mut all = self.shuffled();
        all.truncate(count);
        all
    }

    fn program(&mut self, victim: Victim) -> &mut Program {
        match victim {
            Victim::Service => self.world.host.program(),
            Victim::Agent(agent) => self.world.agents[agent].program(),
        }
    }

    fn serve_again(&mut self) {
        let (seats, succeeds) = (self.seats, self.succeeds.clone());
        let more: Vec<&str> = succeeds.as_ref().map_or_else(Vec::new, |old| vec!["--succeeds", old]);
        self.world.host.again(seats, &more);
    }

    /// SIGKILL, and a start with the same state directory.
    fn dies(&mut self, victim: Victim) {
        let last = self.program(victim).seen().last().map(|last| text(&last["event"]).to_owned());
        println!("{}: {victim:?} is killed behind {last:?}", self.name);
        self.killed += 1;
        match victim {
            Victim::Service => self.serve_again(),
            Victim::Agent(agent) => {
                self.world.agents[agent].kill();
                self.world.agents[agent].start();
            }
        }
    }

    /// What is not as it has to be yet: an update that is not resolvable, or a DID that does not resolve to its last version.
    async fn outstanding(&self, updates: &[(usize, u64)]) -> Vec<String> {
        for (agent, id) in updates {
            let queue = self.world.agents[*agent].queue().await;
            let item = queue.iter().find(|item| item["id"] == *id).unwrap();
            assert!(item["stage"] != "refused", "{item:#}");
            if item["stage"] != "resolvable" {
                return vec![item.to_string()];
            }
        }
        let wanted = self.dids.iter().map(|one| {
            let sidecar = match fs::read(self.sidecar_file(one)) {
                Ok(bytes) => serde_json::from_slice(&bytes).unwrap(),
                // Resolvers need nothing of a KEY DID without updates.
                Err(_) => json!({ "@context": "https://btcr2.dev/context/v1" }),
            };
            (Did::parse(self.name_of(one)).unwrap(), sidecar)
        });
        let depth = DEPTH.parse().unwrap();
        let resolved = try_resolve_all(&*self.world.blocks.chain(), depth, wanted.collect()).await;
        let mut waiting = Vec::new();
        for (one, resolved) in self.dids.iter().zip(resolved) {
            let name = format!("{} of agent {}", self.name_of(one), one.agent);
            match resolved {
                Ok((version, _)) if version < one.version => {
                    waiting.push(format!("{name} has version {version} of {}", one.version));
                }
                Ok((version, document)) => {
                    assert_eq!(version, one.version, "{name}");
                    assert_eq!(listed(&document), Vec::from_iter(one.lists.as_deref()), "{name}");
                }
                Err(error) => waiting.push(error),
            }
        }
        waiting
    }

    /// Mines what is sent until everything resolves. The victims die meanwhile, each behind as many of its lines as the seed draws; one whose
    /// moment does not come dies at the end.
    async fn until_all_resolve(&mut self, updates: &[(usize, u64)], victims: &[Victim]) {
        let mut deaths = Vec::new();
        for victim in victims {
            let lines = self.below(LINES);
            let program = self.program(*victim);
            program.read();
            deaths.push((*victim, program.seen().len() + lines));
        }
        let until = Instant::now() + PATIENCE;
        for tick in 0_u32.. {
            let is_last = deaths.is_empty();
            for (victim, lines) in std::mem::take(&mut deaths) {
                let program = self.program(victim);
                program.read();
                if program.seen().len() > lines {
                    self.dies(victim);
                } else {
                    deaths.push((victim, lines));
                }
            }
            if !self.world.blocks.mempool().await.is_empty() {
                self.world.blocks.mine(2).await;
            }
            // To look at everything takes longer than between two lines.
            if is_last || tick % 50 == 49 {
                let outstanding = self.outstanding(updates).await;
                if outstanding.is_empty() && is_last {
                    return;
                }
                if outstanding.is_empty() {
                    std::mem::take(&mut deaths).into_iter().for_each(|(victim, _)| self.dies(victim));
                }
                if Instant::now() >= until {
                    self.fails(&outstanding);
                }
            }
            actix_rt::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// With what the processes have printed last.
    fn fails(&mut self, outstanding: &[String]) -> ! {
        for victim in (0..self.agents).map(Victim::Agent).chain([Victim::Service]) {
            let program = self.program(victim);
            program.read();
            let seen = program.seen();
            eprintln!("{victim:?}: {:#?}", &seen[seen.len().saturating_sub(12)..]);
        }
        panic!("not in {PATIENCE:?}: {outstanding:#?}");
    }

    /// An update of one DID of each of these seats is passed; with the numbers in the queues.
    async fn hand_over(&mut self, seats: &[usize]) -> Vec<(usize, u64)> {
        let mut updates = Vec::new();
        for seat in seats {
            let of_seat = |one: &&Lived| one.seat == *seat && one.lists.is_some();
            let count = self.dids.iter().filter(of_seat).count();
            if count == 0 {
                continue;
            }
            let drawn = self.below(count);
            let one = self.dids.iter().filter(of_seat).nth(drawn).unwrap();
            let (agent, at) = (one.agent, one.at);
            let name = format!("later-{}", self.announced);
            updates.push((agent, self.world.change(agent, at, &name).await));
            let one = self.dids.iter_mut().find(|one| (one.agent, one.at) == (agent, at)).unwrap();
            one.version += 1;
        }
        assert!(!updates.is_empty());
        updates
    }

    /// Seats announce, and processes die meanwhile.
    pub async fn announces(&mut self, seats: &[usize], victims: &[Victim]) {
        let updates = self.hand_over(seats).await;
        self.until_all_resolve(&updates, victims).await;
        self.announced += 1;
    }

    pub fn stop(mut self) {
        self.world.agents[..self.agents].iter_mut().for_each(Agent::stop);
    }
}
