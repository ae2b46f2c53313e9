//! A standing cohort of programs on a node: a service behind an address that stays, and seats whose DIDs the test knows.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bitcoin::{Address, Amount, ScriptBuf, address::NetworkUnchecked};
use btcr2_aggregation::protocol::{
    cohort::standing::SeatSeed, did::Did, id::CohortId, key::SecretKey, network::Network, update::SignedUpdate,
};
use serde_json::{Value, json};

use super::resolving::resolve_all;
use crate::{
    bitcoind_support::{TestChain, beacon::key, faucet::Faucet},
    resolve_cli::{Author, ran},
    support::{PATIENCE, Program, Service, copy, directory, path, proxy::Proxy, run, verify::text},
};

/// The confirmations with which a transaction is final.
pub const DEPTH: u32 = 2;

pub fn script(address: &str) -> ScriptBuf {
    address.parse::<Address<NetworkUnchecked>>().unwrap().assume_checked().script_pubkey()
}

/// Writes an identity file.
fn write_identity(file: &Path, did: &Did, key: &SecretKey, genesis: Option<&Value>) {
    let mut identity = json!({ "version": 1, "did": did, "network": "regtest", "secretKey": &*key.to_hex() });
    if let Some(genesis) = genesis {
        identity["genesisDocument"] = genesis.clone();
    }
    fs::write(file, identity.to_string()).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A seat's program and its directory, with all that it must not lose.
pub struct Seat {
    pub place: PathBuf,
    pub key: SecretKey,
    program: Option<Program>,
}

impl Seat {
    pub fn file(&self, name: &str) -> String {
        path(&self.place, name)
    }

    /// The Sidecar Data of one of its DIDs.
    pub fn sidecar_file(&self, did: &Did) -> String {
        format!("{}/{}.json", self.file("out"), did.as_str().replace(':', "_"))
    }
}

/// A DID, what its controller has prepared, and what resolvers give.
pub struct Controlled {
    pub seat: usize,
    pub author: Author,
    identity: String,
    /// The version that resolvers gave last.
    pub version: usize,
}

impl Controlled {
    /// The version to which the prepared updates lead.
    pub fn prepared(&self) -> usize {
        self.author.documents.len()
    }

    pub fn sidecar(&self, seats: &[Seat]) -> Value {
        let file = seats[self.seat].sidecar_file(&self.author.did);
        serde_json::from_str(&fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"))).unwrap()
    }
}

/// How many seats, and how a test's service differs from others.
pub struct Setting<'a> {
    pub name: &'a str,
    pub beacon: &'a str,
    pub seats: usize,
    pub terms: &'a [&'a str],
}

pub struct World {
    pub directory: PathBuf,
    pub blocks: TestChain,
    pub faucet: Faucet,
    pub source: String,
    beacon: String,
    arguments: Vec<String>,
    hosts: u32,
    pub proxy: Proxy,
    pub service: Service,
    pub seats: Vec<Seat>,
    /// The keys of the seats in the cohort.
    keys: Vec<Value>,
    pub dids: Vec<Controlled>,
    pub address: String,
    pub cohort_id: String,
    /// The last number that was signed, and how many announcements are final.
    pub last: u64,
    pub announced: usize,
}

impl World {
    /// A service that waits for seats, with so many KEY DIDs each.
    pub async fn opened(setting: &Setting<'_>, keys: usize) -> Option<Self> {
        let &Setting { name, beacon, seats, terms } = setting;
        let blocks = TestChain::core(name).await?;
        let faucet = Faucet::new(&blocks, 12).await;
        let directory = directory(name);
        let node = blocks.node();
        let source = format!("core={}?cookie={}", node.url(), node.cookie_file().display());
        let (depth, many) = (DEPTH.to_string(), seats.to_string());
        let fixed = ["--chain", &source, "--chain-poll", "200ms", "--confirmations", &depth, "--standing"];
        let size = ["--beacon", beacon, "--min-participants", &many, "--max-participants", &many];
        let arguments: Vec<String> =
            [&fixed[..], &size, terms].concat().iter().map(|&argument| argument.to_owned()).collect();
        let service = Self::serve(&directory, &arguments, 0);
        let proxy = Proxy::to(service.address());
        let seat = |number: usize| {
            let place = directory.join(format!("seat-{number}"));
            for part in ["dids", "updates", "out"] {
                fs::create_dir_all(place.join(part)).unwrap();
            }
            let key = key(&format!("{name} seat {number}"));
            write_identity(&place.join("seat.id"), &Did::from_key(key.public_key(), Network::Regtest), &key, None);
            Seat { place, key, program: None }
        };
        let seats: Vec<Seat> = (0..seats).map(seat).collect();
        let mut world = Self {
            directory,
            source,
            beacon: format!("{}Beacon", beacon.to_uppercase()),
            arguments,
            hosts: 1,
            proxy,
            service,
            keys: Vec::new(),
            dids: Vec::new(),
            address: String::new(),
            cohort_id: String::new(),
            last: 0,
            announced: 0,
            faucet,
            blocks,
            seats,
        };
        for seat in 0..world.seats.len() {
            for one in 0..keys {
                world.control(seat, Author::key(&format!("{name} {seat} key {one}")));
            }
        }
        Some(world)
    }

    /// Services and seats run; the cohort forms of seats with so many KEY DIDs each.
    pub async fn formed(setting: &Setting<'_>, keys: usize, sat: u64) -> Option<Self> {
        let mut world = Self::opened(setting, keys).await?;
        (0..setting.seats).for_each(|seat| world.start(seat, &[]));
        world.forms();
        world.deposit(sat).await;
        Some(world)
    }

    /// The cohort forms of the seats that run, and their DIDs are registered.
    pub fn forms(&mut self) {
        let formed = self.service.program.event("standing-formed");
        (self.address, self.cohort_id) =
            (text(&formed["beaconAddress"]).to_owned(), text(&formed["cohortId"]).to_owned());
        for seat in 0..self.seats.len() {
            self.event(seat, "rows-acknowledged");
        }
        let service = Did::parse(&self.service.did).unwrap();
        let cohort_id = CohortId::parse(&self.cohort_id).unwrap();
        let key = |seat: &Seat| {
            let secret = SeatSeed::from_secret(&seat.key).seat_key(Network::Regtest, &service, &cohort_id).unwrap();
            json!(secret.public_key())
        };
        self.keys = self.seats.iter().map(key).collect();
    }

    /// The seats that a busy machine has kept from a number, but for `away`, have fetched what it announces.
    fn catch_up(&mut self, signed: &Value, away: Option<usize>) {
        for absent in signed["absent"].as_array().unwrap() {
            let seat = self.keys.iter().position(|key| key == absent).unwrap();
            if away != Some(seat) {
                self.program(seat).event_where("missed", |event| event["number"] == signed["number"]);
            }
        }
    }

    /// The state directory of the service.
    pub fn service_state(&self) -> String {
        path(&self.directory, &format!("host-{}.state", self.hosts - 1))
    }

    /// The service is another process now, with the same state directory.
    pub fn serve_again(&mut self) {
        self.service.program.kill();
        self.service = Self::serve(&self.directory, &self.arguments, self.hosts - 1);
        self.proxy.retarget(self.service.address());
        self.proxy.cut();
        self.service.program.event("standing-recovered");
    }

    /// The process of a service on its own host: with a state directory of its own.
    fn serve(directory: &Path, arguments: &[String], host: u32) -> Service {
        let state = path(directory, &format!("host-{host}.state"));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Service::start(directory, &[&arguments[..], &["--state", &state]].concat())
    }

    /// The service stops, and goes on at another host, where its cohort was imported from a document.
    pub fn move_by(&mut self, document: &str) {
        self.service.program.kill();
        let state = |host: u32| path(&self.directory, &format!("host-{host}.state"));
        let (old, new) = (state(self.hosts - 1), state(self.hosts));
        run(&["state", "export", &self.cohort_id, "--out", document, "--forget", "--state", &old]).succeeded();
        run(&["state", "import", document, "--state", &new]).succeeded();
        self.go_on();
    }

    /// The service dies, and another host goes on with a copy of its state directory, at another address behind the same proxy.
    pub fn take_over(&mut self) {
        self.service.program.kill();
        let state = |host: u32| path(&self.directory, &format!("host-{host}.state"));
        copy(&state(self.hosts - 1), &state(self.hosts));
        self.go_on();
    }

    /// The next host, at another address behind the same proxy.
    fn go_on(&mut self) {
        self.service = Self::serve(&self.directory, &self.arguments, self.hosts);
        self.hosts += 1;
        self.proxy.retarget(self.service.address());
        self.proxy.cut();
        self.service.program.event("standing-recovered");
    }

    /// Pays to the cohort's address, and waits until the service counts it.
    pub async fn deposit(&mut self, sat: u64) {
        let outpoint = self.faucet.pay(&self.blocks, &script(&self.address), Amount::from_sat(sat)).await;
        self.blocks.mine(DEPTH).await;
        self.service.program.event_where("coin-arrived", |event| event["outpoint"] == outpoint.to_string());
    }

    pub fn control(&mut self, seat: usize, author: Author) {
        let dids = self.seats[seat].place.join("dids");
        let identity = dids.join(format!("{}.id", self.dids.len()));
        write_identity(&identity, &author.did, &author.key, author.genesis.as_ref());
        let identity = identity.to_str().unwrap().to_owned();
        self.dids.push(Controlled { seat, author, identity, version: 1 });
    }

    /// An EXTERNAL DID whose genesis document lists the beacon: its place in `dids`. Its seat registers it when it starts.
    pub fn mint(&mut self, seat: usize) -> usize {
        let name = format!("{} {seat} external {}", self.directory.display(), self.dids.len());
        let author = Author::external(&name, &self.beacon, &self.address);
        self.control(seat, author);
        self.dids.len() - 1
    }

    pub fn start(&mut self, seat: usize, more: &[&str]) {
        let one = &self.seats[seat];
        let (url, depth) = (self.proxy.url(), DEPTH.to_string());
        let identity = one.file("seat.id");
        let places: Vec<(&str, String)> =
            ["dids", "updates", "out", "state"].iter().map(|&part| (part, one.file(part))).collect();
        let places: Vec<String> = places.into_iter().flat_map(|(part, file)| [format!("--{part}"), file]).collect();
        let places: Vec<&str> = places.iter().map(String::as_str).collect();
        let fixed = ["join", "--standing", "--service", &url, "--identity", &identity, "--events", "json"];
        let chain = ["--chain", &self.source, "--chain-poll", "200ms", "--confirmations", &depth];
        let program = Program::start(&[&fixed[..], &places, &chain, more].concat());
        self.seats[seat].program = Some(program);
    }

    pub fn program(&mut self, seat: usize) -> &mut Program {
        self.seats[seat].program.as_mut().unwrap()
    }

    /// The program of a seat, which ends by itself.
    pub fn take(&mut self, seat: usize) -> Program {
        self.seats[seat].program.take().unwrap()
    }

    pub fn event(&mut self, seat: usize, name: &str) -> Value {
        self.program(seat).event(name)
    }

    /// Stops these seats.
    pub fn stop(&mut self, seats: &[usize]) {
        seats.iter().for_each(|seat| self.program(*seat).signal("-TERM"));
        for seat in seats {
            assert!(self.seats[*seat].program.take().unwrap().ends_well());
        }
    }

    fn put(&self, of: usize, update: &Value) {
        let controlled = &self.dids[of];
        let seat = &self.seats[controlled.seat];
        let name = format!("{of}-{}.json", controlled.prepared());
        // Not seen by the seat before it is whole.
        let made = path(&self.directory, &name);
        fs::write(&made, update.to_string()).unwrap();
        fs::rename(made, seat.place.join("updates").join(name)).unwrap();
    }

    /// The next update of a DID, which its seat announces.
    pub fn prepare(&mut self, of: usize, note: &str) -> SignedUpdate {
        let update = self.dids[of].author.note(note);
        self.put(of, update.value());
        update
    }

    /// The same by the command `update`.
    pub async fn prepare_by_command(&mut self, of: usize, note: &str) {
        let controlled = &self.dids[of];
        let (did, identity) = (controlled.author.did().to_owned(), controlled.identity.clone());
        let sidecar = self.seats[controlled.seat].sidecar_file(&controlled.author.did);
        let (patch, made) = (path(&self.directory, "patch"), path(&self.directory, "made.json"));
        fs::write(&patch, json!([{ "op": "add", "path": "/note", "value": note }]).to_string()).unwrap();
        let _ = fs::remove_file(&made);
        let depth = DEPTH.to_string();
        let from = ["update", &did, "--patch", &patch, "--identity", &identity, "--sidecar", &sidecar];
        let chain = ["--chain", &self.source, "--min-conf", &depth, "--out", &made];
        ran(&[&from[..], &chain].concat()).await.succeeded();
        let file: Value = serde_json::from_str(&fs::read_to_string(&made).unwrap()).unwrap();
        // What the test would have made: the document that it leads to.
        self.dids[of].author.note(note);
        self.put(of, &file);
    }

    /// The next number that is signed.
    pub fn signed(&mut self) -> Value {
        let last = self.last;
        let signed =
            self.service.program.event_where("number-signed", |event| event["number"].as_u64() > Some(last));
        self.last = signed["number"].as_u64().unwrap();
        signed
    }

    /// Waits until a transaction is in the mempool.
    pub async fn sent(&self, signed: &Value) {
        let (until, txid) = (Instant::now() + PATIENCE, text(&signed["txid"]).parse().unwrap());
        while !self.blocks.mempool().await.contains(&txid) {
            assert!(Instant::now() < until, "nothing is sent: {signed:#}");
            actix_rt::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The next number is signed, gets into a block, and is final.
    pub async fn is_announced(&mut self) -> Value {
        let signed = self.signed();
        self.sent(&signed).await;
        self.blocks.mine(DEPTH).await;
        let number = signed["number"].clone();
        self.service.program.event_where("number-confirmed", |event| event["number"] == number);
        self.announced += 1;
        signed
    }

    /// Every DID resolves by what its seat has written alone, to what was announced: the one that resolvers gave before, or, where an update
    /// waits, one version more. The DIDs of `away` are left out: their seat has not come back.
    pub async fn resolve(&mut self, away: Option<usize>) {
        let present: Vec<usize> = (0..self.dids.len()).filter(|of| away != Some(self.dids[*of].seat)).collect();
        let wanted = present.iter().map(|of| {
            let controlled = &self.dids[*of];
            (controlled.author.did.clone(), controlled.sidecar(&self.seats))
        });
        let resolved = resolve_all(&*self.blocks.chain(), DEPTH, wanted.collect()).await;
        for (of, (version, document)) in present.into_iter().zip(resolved) {
            let controlled = &mut self.dids[of];
            let version = usize::try_from(version).unwrap();
            let (least, most) = (controlled.version, controlled.prepared().min(controlled.version + 1));
            assert!((least..=most).contains(&version), "{}: version {version}", controlled.author.did);
            assert_eq!(document["note"], controlled.author.documents[version - 1]["note"]);
            controlled.version = version;
            if version == controlled.prepared() && of % 10 != 0 {
                // It may stay, and does for some.
                let file = self.seats[controlled.seat].place.join("updates").join(format!("{of}-{version}.json"));
                let _ = fs::remove_file(file);
            }
        }
    }

    /// Announcements until every prepared update is final; after each of them every DID resolves. Returns the events of their numbers.
    pub async fn announce(&mut self, away: Option<usize>) -> Vec<Value> {
        let mut all = Vec::new();
        while self.dids.iter().any(|controlled| controlled.version < controlled.prepared()) {
            let signed = self.is_announced().await;
            self.catch_up(&signed, away);
            all.push(signed);
            self.resolve(away).await;
        }
        assert!(!all.is_empty());
        all
    }

    /// The command `resolve`, for one DID.
    pub async fn resolve_by_command(&self, of: usize) {
        let controlled = &self.dids[of];
        let sidecar = self.seats[controlled.seat].sidecar_file(&controlled.author.did);
        let depth = DEPTH.to_string();
        let fixed = ["resolve", controlled.author.did(), "--sidecar", &sidecar, "--json"];
        let run = ran(&[&fixed[..], &["--chain", &self.source, "--min-conf", &depth]].concat()).await;
        let resolved: Value = serde_json::from_str(&run.succeeded().stdout).unwrap();
        assert_eq!(text(&resolved["didDocumentMetadata"]["versionId"]), controlled.version.to_string());
        assert_eq!(resolved["didDocument"]["note"], controlled.author.documents[controlled.version - 1]["note"]);
    }
}
