//! `serve --standing` or a `join --standing` is killed (SIGKILL) while a number runs, behind a proxy that counts what passes between them, and
//! started again with its state directory. Every time the prepared updates are announced, and the DIDs resolve from what their seats have written.
//!
//! `cargo test` draws a few points. All of them take minutes: `CRASH_POINTS=all cargo test --test it standing_crashes -- --nocapture`.
#![cfg(unix)]

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use crate::{
    bitcoind_support::{TestChain, faucet::Faucet},
    resolve_cli::ran,
    support::{Program, Service, cohort, did_of, directory, identity, path, proxy::Proxy, verify::text},
};
use bitcoin::{Address, Amount, address::NetworkUnchecked};
use serde_json::{Value, json};

/// The confirmations with which a transaction is final.
const DEPTH: &str = "2";

const SEATS: usize = 3;

/// How long one announcement may take, the restart included, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// How many points are drawn without `CRASH_POINTS=all`.
const DRAWN: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Service,
    /// The first member.
    Member,
}

/// After so many chunks that have come from clients, or from the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    ToService(usize),
    FromService(usize),
}

#[derive(Default)]
struct Counted {
    to_service: usize,
    from_service: usize,
    /// Where the process with this id is killed.
    at: Option<(Point, u32)>,
    was_killed: bool,
}

/// Counts what passes, and kills.
#[derive(Clone, Default)]
struct Trap(Arc<Mutex<Counted>>);

impl Trap {
    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap()
    }

    fn arm(&self, at: Option<(Point, u32)>) {
        *self.lock() = Counted { at, ..Counted::default() };
    }

    /// Whether the connection is cut: its other end is dead.
    fn passes(&self, from_service: bool) -> bool {
        let mut counted = self.lock();
        let point = if from_service {
            counted.from_service += 1;
            Point::FromService(counted.from_service)
        } else {
            counted.to_service += 1;
            Point::ToService(counted.to_service)
        };
        let Some((_, id)) = counted.at.take_if(|(at, _)| *at == point) else { return false };
        // Its parent has not waited for it, so that the id is still its own.
        let pid = rustix::process::Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        counted.was_killed = true;
        true
    }

    fn proxy(&self, to: &Service) -> Proxy {
        let (client, server) = (self.clone(), self.clone());
        Proxy::cutting(
            to.address(),
            Box::new(move |_| client.passes(false)),
            Box::new(move |_| server.passes(true)),
        )
    }
}

struct Member {
    place: PathBuf,
    seat: String,
    program: Option<Program>,
    /// The identity file of the DID that is updated.
    did: String,
    version: u64,
}

impl Member {
    fn path(&self, name: &str) -> String {
        path(&self.place, name)
    }

    fn sidecar(&self) -> String {
        format!("{}/{}.json", self.path("out"), did_of(&self.did).replace(':', "_"))
    }
}

struct World {
    directory: PathBuf,
    blocks: TestChain,
    source: String,
    service: Service,
    beacon: &'static str,
    victim: Victim,
    trap: Trap,
    /// The first member's way to the service, and that of the others.
    proxies: [Proxy; 2],
    members: Vec<Member>,
    /// What was signed, by number: of the service, and of the first member.
    signed: [BTreeMap<u64, String>; 2],
}

impl World {
    async fn new(name: &str, beacon: &'static str, victim: Victim) -> Option<Self> {
        let blocks = TestChain::core(name).await?;
        let directory = directory(name);
        let source = format!("core={}?cookie={}", blocks.node().url(), blocks.node().cookie_file().display());
        let member = |number: usize| {
            let place = directory.join(format!("member-{number}"));
            fs::create_dir_all(place.join("dids")).unwrap();
            fs::create_dir_all(place.join("updates")).unwrap();
            let seat = identity(&place, "seat");
            identity(&place.join("dids"), "key.id");
            Member { place, seat, program: None, did: String::new(), version: 1 }
        };
        let members = (0..SEATS).map(member).collect();
        let service = serve(&directory, &source, beacon);
        let trap = Trap::default();
        let others = if victim == Victim::Service { trap.clone() } else { Trap::default() };
        let proxies = [trap.proxy(&service), others.proxy(&service)];
        let signed = [BTreeMap::new(), BTreeMap::new()];
        Some(Self { directory, blocks, source, service, beacon, victim, trap, proxies, members, signed })
    }

    fn start(&mut self, number: usize) {
        let member = &self.members[number];
        let url = self.proxies[usize::from(number > 0)].url();
        let (dids, updates, out, state) =
            (member.path("dids"), member.path("updates"), member.path("out"), member.path("state"));
        let places = ["--dids", &dids, "--updates", &updates, "--out", &out, "--state", &state];
        let chain = ["--chain", &self.source, "--chain-poll", "200ms", "--confirmations", DEPTH];
        let fixed = ["join", "--standing", "--service", &url, "--identity", &member.seat, "--events", "json"];
        self.members[number].program = Some(Program::start(&[&fixed[..], &places, &chain].concat()));
    }

    /// The cohort forms, and each member registers a DID whose genesis document lists the beacon.
    async fn form(&mut self) {
        let mut faucet = Faucet::new(&self.blocks, 4).await;
        (0..SEATS).for_each(|number| self.start(number));
        let formed = self.service.program.event("standing-formed");
        let address = text(&formed["beaconAddress"]).to_owned();
        for member in &mut self.members {
            member.program.as_mut().unwrap().event("rows-acknowledged");
        }
        let script = address.parse::<Address<NetworkUnchecked>>().unwrap().assume_checked().script_pubkey();
        faucet.pay(&self.blocks, &script, Amount::from_sat(1_000_000)).await;
        self.blocks.mine(2).await;
        self.service.program.event("coin-arrived");
        let listed = format!("{address},{}", self.beacon);
        for number in 0..SEATS {
            let mut program = self.members[number].program.take().unwrap();
            program.signal("-TERM");
            assert!(program.ends_well());
            let key = identity(&self.directory, &format!("{number}.key"));
            self.members[number].did =
                cohort::listing(&self.members[number].place.join("dids"), "listed.id", &key, &listed);
            self.start(number);
            self.members[number].program.as_mut().unwrap().event("rows-acknowledged");
        }
    }

    /// The next version of a member's DID is prepared, for its seat to announce.
    async fn update(&mut self, number: usize) {
        let member = &self.members[number];
        let note = format!("{number}-{}", member.version + 1);
        let patch = path(&self.directory, &format!("{note}.patch"));
        fs::write(&patch, json!([{ "op": "add", "path": "/note", "value": note }]).to_string()).unwrap();
        let (did, sidecar) = (did_of(&member.did), member.sidecar());
        let made = path(&self.directory, &format!("{note}.json"));
        let signs = ["update", &did, "--patch", &patch, "--identity", &member.did, "--out", &made];
        let reads = ["--chain", &self.source, "--min-conf", DEPTH, "--sidecar", &sidecar];
        ran(&[&signs[..], &reads].concat()).await.succeeded();
        // Not seen by the seat before it is whole.
        fs::rename(made, member.path(&format!("updates/{note}.json"))).unwrap();
        self.members[number].version += 1;
    }

    /// Whether the DID of a member has the version that was prepared last, by what its seat has written alone.
    async fn is_announced(&self, number: usize) -> bool {
        let member = &self.members[number];
        let (did, sidecar) = (did_of(&member.did), member.sidecar());
        let reads = ["--chain", &self.source, "--min-conf", DEPTH, "--sidecar", &sidecar, "--json"];
        let run = ran(&[&["resolve", did.as_str()][..], &reads].concat()).await;
        // Until a seat that was away has what it has missed, its DID does not resolve.
        let Ok(resolved) = serde_json::from_str::<Value>(&run.stdout) else { return false };
        let version = member.version.to_string();
        resolved["didDocumentMetadata"]["versionId"] == version.as_str()
    }

    /// The victim has died, and starts again.
    fn restart(&mut self) {
        match self.victim {
            Victim::Service => {
                self.note();
                self.service.program.kill();
                self.service = serve(&self.directory, &self.source, self.beacon);
                self.proxies.iter().for_each(|proxy| proxy.retarget(self.service.address()));
                self.service.program.event("standing-recovered");
            }
            Victim::Member => {
                self.note();
                self.members[0].program.take().unwrap().kill();
                self.start(0);
            }
        }
    }

    /// What service and first member have signed so far: one transaction of each number, in all their lives.
    fn note(&mut self) {
        let member = self.members[0].program.as_mut().unwrap();
        let [of_service, of_member] = &mut self.signed;
        for (program, name, known) in
            [(&mut self.service.program, "number-signed", of_service), (member, "seat-signed", of_member)]
        {
            program.read();
            for event in program.seen().iter().filter(|event| event["event"] == name) {
                let (number, txid) = (event["number"].as_u64().unwrap(), text(&event["txid"]).to_owned());
                let first = known.entry(number).or_insert_with(|| txid.clone());
                assert_eq!(*first, txid, "{name}: two transactions of number {number}");
            }
        }
    }

    /// One announcement of two members' updates, in which the victim is killed at a point. Returns whether it was.
    async fn announces(&mut self, point: Option<Point>) -> bool {
        self.update(0).await;
        self.update(1).await;
        let id = match self.victim {
            Victim::Service => self.service.program.id(),
            Victim::Member => self.members[0].program.as_ref().unwrap().id(),
        };
        self.trap.arm(point.map(|point| (point, id)));
        // After seventeen kills in a row an announcement once took more than 60 s.
        let until = Instant::now() + 3 * PATIENCE;
        let mut has_died = false;
        let mut left = vec![0, 1];
        while !left.is_empty() {
            assert!(Instant::now() < until, "not announced: {left:?}");
            if self.trap.lock().was_killed && !std::mem::replace(&mut has_died, true) {
                self.restart();
            }
            if self.blocks.mempool().await.is_empty() {
                actix_rt::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            self.blocks.mine(2).await;
            // What is in these blocks is known; of a seat that is starting its data come a little later.
            for _ in 0..40 {
                let mut still = Vec::new();
                for number in left {
                    if !self.is_announced(number).await {
                        still.push(number);
                    }
                }
                left = still;
                if left.is_empty()
                    || !self.blocks.mempool().await.is_empty()
                    || self.trap.lock().was_killed != has_died
                {
                    break;
                }
                actix_rt::time::sleep(Duration::from_millis(100)).await;
            }
        }
        self.note();
        has_died
    }
}

fn serve(directory: &Path, source: &str, beacon: &str) -> Service {
    let state = path(directory, "service.state");
    let chain = ["--chain", source, "--chain-poll", "200ms", "--confirmations", DEPTH, "--state", &state];
    let size = ["--min-participants", "3", "--max-participants", "3", "--fallback-threshold", "2"];
    let terms = ["--standing", "--beacon", beacon, "--min-interval", "1s", "--respond-time", "8s"];
    Service::start(directory, &[&chain[..], &size, &terms].concat())
}

async fn matrix(name: &str, beacon: &'static str, victim: Victim) {
    let Some(mut world) = World::new(name, beacon, victim).await else { return };
    world.form().await;
    // The first one only counts.
    world.announces(None).await;
    let (to, from) = {
        let counted = world.trap.lock();
        (counted.to_service, counted.from_service)
    };
    let mut points: Vec<Point> = (1..=to).map(Point::ToService).chain((1..=from).map(Point::FromService)).collect();
    if !env::var("CRASH_POINTS").is_ok_and(|points| points == "all") {
        let step = (points.len() / DRAWN).max(1);
        points = points.into_iter().skip(step / 2).step_by(step).collect();
    }
    let mut killed = 0;
    for point in &points {
        println!("{name}: {victim:?} is killed behind {point:?}");
        killed += usize::from(world.announces(Some(*point)).await);
    }
    println!("{name}: {victim:?} was killed at {killed} of {} points", points.len());
    assert!(killed > 0);
    for number in 0..SEATS {
        let until = Instant::now() + PATIENCE;
        while !world.is_announced(number).await {
            assert!(Instant::now() < until, "member {number}");
            actix_rt::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[actix_rt::test]
async fn a_service_that_is_killed_announces_all_the_same() {
    matrix("standing-killed-service", "smt", Victim::Service).await;
}

#[actix_rt::test]
async fn a_member_that_is_killed_is_announced_all_the_same() {
    matrix("standing-killed-member", "cas", Victim::Member).await;
}
