//! What happens to agents in years: a reboot, a lost machine, an adopted beacon, a move, an exit.

use std::{collections::BTreeSet, fs, path::Path, time::Instant};

use bitcoin::{Amount, FeeRate};
use btcr2_aggregation::{
    actors::runtime::Randomness,
    protocol::{
        output::{Change, Coin, SingletonAnnouncement},
        update::add_beacon_service_patch,
    },
};
use serde_json::{Value, json};

use super::{AGENTS, Life, PATIENCE, SEATS, Victim, seeds};
use crate::{
    member_drills::world::Agent,
    member_support::json as shown,
    support::{clock::Clock, path, run_with, verify::text},
};

const SECRET: [(&str, &str); 1] = [("BTCR2_PASSPHRASE", "horse")];

impl Life {
    /// Clocks for the service and the agents, which are wrong in ways that the seed draws; none without libfaketime.
    fn wrong_clocks(&mut self) -> Vec<Clock> {
        let offsets = ["-3d", "+3d", "-90m", "+90m", "+0"];
        let (mut clocks, mut first) = (Vec::new(), "+0");
        for at in 0..=self.agents {
            let place = match at {
                0 => self.world.directory.join("one"),
                _ => self.world.agents[at - 1].place.clone(),
            };
            let Some(clock) = Clock::new("a reboot with clocks that jump", &place) else { return Vec::new() };
            // The first agent's always differs from the service's.
            let offset = match at {
                1 if first.starts_with('+') => "-3d",
                1 => "+3d",
                _ => offsets[self.below(offsets.len())],
            };
            if at == 0 {
                first = offset;
            }
            println!("{}: the clock of process {at} jumps by {offset}", self.name);
            clock.set(offset);
            match at {
                0 => self.world.host.clock = Some(clock.clone()),
                _ => self.world.agents[at - 1].clock = Some(clock.clone()),
            }
            clocks.push(clock);
        }
        clocks
    }

    /// While a number is open everything dies at once, the node too, and starts again, with clocks that are wrong until they are set.
    pub async fn reboots(&mut self, seats: &[usize]) {
        self.world.host.program().read();
        let updates = self.hand_over(seats).await;
        let lines = self.world.host.program().seen().len();
        while self.world.host.program().seen().len() == lines {
            self.world.host.program().any_where(|_| true);
        }
        self.world.host.program().kill();
        self.world.agents[..self.agents].iter_mut().for_each(Agent::kill);
        self.killed += 1 + self.agents;
        let node = self.world.blocks.node_mut();
        node.stop().await;
        node.start_again().await;
        let clocks = self.wrong_clocks();
        self.serve_again();
        self.world.agents[..self.agents].iter_mut().for_each(Agent::start);
        if !clocks.is_empty() {
            self.world.agents[0].program().event("clocks-differ");
        }
        clocks.iter().for_each(|clock| clock.set("+0"));
        self.until_all_resolve(&updates, &[]).await;
        self.announced += 1;
    }

    /// A backup of an agent that runs.
    pub async fn back_up(&self, agent: usize) -> String {
        let (file, state) = (path(&self.world.directory, "backup.age"), self.world.agents[agent].state());
        run_with(&["vault", "backup", &file, "--state", &state], &SECRET).succeeded();
        file
    }

    /// The machine of an agent is lost, and another one is made from a backup.
    pub async fn is_restored(&mut self, agent: usize, backup: &str) {
        let one = &mut self.world.agents[agent];
        one.kill();
        self.killed += 1;
        fs::remove_dir_all(&one.place).unwrap();
        let restored = self.world.directory.join("restored");
        let (old, new) = (one.place.display().to_string(), restored.display().to_string());
        let state = path(&restored, "state");
        run_with(&["vault", "restore", backup, "--state", &state, "--files", &new], &SECRET).succeeded();
        one.place = restored;
        for (_, file) in &mut one.dids {
            *file = file.replace(&old, &new);
            assert!(Path::new(file).exists(), "{file}");
        }
        one.start();
        one.program().event("seat-restored");
        // What was announced after the backup comes from the service.
        self.until_all_resolve(&[], &[]).await;
    }

    /// A registered KEY DID adds the beacon by its own Singleton beacon: its document is not used before.
    pub async fn adopt(&mut self, agent: usize) {
        let (_, seat, _) = seeds(agent)[0];
        let mut author = self.key_of(seat);
        let until = Instant::now() + PATIENCE;
        loop {
            let dids = shown(&["member", "dids", "--json", "--state", &self.world.agents[agent].state()]).await;
            let own = dids.as_array().unwrap().iter().find(|one| one["did"] == author.did()).unwrap();
            if !own["registeredIn"].as_array().unwrap().is_empty() {
                break;
            }
            assert!(Instant::now() < until, "{own:#}");
            actix_rt::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let address = self.world.address.clone();
        let update = author.update(add_beacon_service_patch(&author.did, &self.kind, &address));
        let beacon = author.beacon();
        let outpoint = self.world.pay(&beacon.address().to_string(), 20_000).await;
        let (coins, rate) = ([Coin { outpoint, value: Amount::from_sat(20_000) }], FeeRate::from_sat_per_vb_u32(2));
        let announcement = SingletonAnnouncement::new(beacon, &coins, &update, rate, &Change::Beacon).unwrap();
        let mut rng = Randomness::Seeded([9; 32]).for_actor("adoption");
        let signed = announcement.sign(&author.key, &mut rng).unwrap();
        self.world.blocks.chain().submit(&signed).await.unwrap();
        self.world.blocks.mine(2).await;
        // What resolvers need of it is in the file of its agent.
        self.world.agents[agent].stop();
        let place = self.dids.iter().position(|one| self.name_of(one) == author.did()).unwrap();
        let file = self.sidecar_file(&self.dids[place]);
        let known = fs::read(&file).map(|bytes| serde_json::from_slice(&bytes).unwrap());
        let mut sidecar: Value = known.unwrap_or_else(|_| json!({ "@context": "https://btcr2.dev/context/v1" }));
        sidecar["updates"] = json!([update.value()]);
        fs::write(&file, sidecar.to_string()).unwrap();
        self.world.agents[agent].start();
        let one = &mut self.dids[place];
        (one.version, one.lists) = (2, Some(address));
        self.until_all_resolve(&[], &[]).await;
    }

    /// The cohort moves to one of six seats, of which an agent that is new has one.
    pub async fn moves(&mut self, victims: &[Victim]) {
        let old = self.world.address.clone();
        self.seats = SEATS + 1;
        self.succeeds = Some(self.world.cohort_id.clone());
        self.serve_again();
        self.world.agents[AGENTS].start();
        self.agents = AGENTS + 1;
        self.counts_keys(AGENTS);
        let formed = self.world.host.program().event("standing-formed");
        (self.world.cohort_id, self.world.address) =
            (text(&formed["cohortId"]).to_owned(), text(&formed["beaconAddress"]).to_owned());
        for one in self.dids.iter_mut().filter(|one| one.lists.as_ref() == Some(&old)) {
            one.version += 1;
            one.lists = Some(self.world.address.clone());
        }
        self.until_all_resolve(&[], victims).await;
        self.announced += 1;
    }

    /// All DIDs of an agent leave the cohort.
    pub async fn leaves(&mut self, agent: usize, victims: &[Victim]) {
        let cohort = self.world.cohort_id.clone();
        self.world.agents[agent].member(&["leave", "--all", "--cohort", &cohort, "--json"]).await.succeeded();
        for one in self.dids.iter_mut().filter(|one| one.agent == agent && one.lists.is_some()) {
            one.version += 1;
            one.lists = None;
        }
        self.until_all_resolve(&[], victims).await;
        self.announced += 1;
        let state = self.world.agents[agent].state();
        let has_left = || async {
            let dids = shown(&["member", "dids", "--json", "--state", &state]).await;
            let left = |did: &Value| {
                let exits = did["exits"].as_array().into_iter().flatten();
                exits.into_iter().any(|exit| exit["step"] == "left")
            };
            dids.as_array().unwrap().iter().all(left)
        };
        self.world.mined_until("the DIDs have left", has_left).await;
    }

    /// No Singleton address of an EXTERNAL DID is in any transaction; that of the KEY DID that has adopted the beacon is.
    pub async fn nobody_paid(&self) {
        let node = self.world.blocks.node();
        assert_eq!(self.world.blocks.mempool().await, []);
        let tip = node.rpc("getblockcount", json!([])).await.as_u64().unwrap();
        let mut paid = BTreeSet::new();
        for height in 1..=tip {
            let hash = node.rpc("getblockhash", json!([height])).await;
            let block = node.rpc("getblock", json!([hash, 2])).await;
            let outputs = block["tx"].as_array().unwrap().iter().flat_map(|one| one["vout"].as_array().unwrap());
            paid.extend(outputs.filter_map(|output| Some(output["scriptPubKey"]["address"].as_str()?.to_owned())));
        }
        assert!(
            paid.contains(&self.key_of(1).beacon().address().to_string()) && paid.contains(&self.world.address)
        );
        let mut count = 0;
        for one in self.dids.iter().filter(|one| one.is_external) {
            let sidecar: Value = serde_json::from_slice(&fs::read(self.sidecar_file(one)).unwrap()).unwrap();
            let services = sidecar["genesisDocument"]["service"].as_array().unwrap().iter();
            for own in services.filter(|service| service["type"] == "SingletonBeacon") {
                let address = text(&own["serviceEndpoint"]).trim_start_matches("bitcoin:");
                assert!(!paid.contains(address), "{} has paid", self.name_of(one));
                count += 1;
            }
        }
        assert_eq!(count, 35);
    }
}
