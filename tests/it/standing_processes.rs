//! Standing cohorts as programs on a node: `serve --standing` and three `join --standing`, whose DIDs resolve after every announcement from what
//! their seats have written alone.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{
    bitcoind_support::{TestChain, faucet::Faucet},
    resolve_cli::ran,
    support::{PATIENCE, Program, Service, cohort, did_of, directory, identity, path, verify::text},
};
use bitcoin::{Address, Amount, ScriptBuf, address::NetworkUnchecked};
use serde_json::Value;

/// The confirmations with which a transaction is final.
const DEPTH: &str = "2";

const SEATS: usize = 3;

fn script(address: &str) -> ScriptBuf {
    address.parse::<Address<NetworkUnchecked>>().unwrap().assume_checked().script_pubkey()
}

struct Member {
    seat: String,
    dids: String,
    updates: String,
    out: String,
    state: String,
    program: Option<Program>,
}

struct World {
    directory: PathBuf,
    blocks: TestChain,
    faucet: Faucet,
    source: String,
    service: Service,
    members: Vec<Member>,
    /// The last number that was announced.
    last: u64,
}

impl World {
    async fn new(name: &str, beacon: &str) -> Option<Self> {
        let blocks = TestChain::core(name).await?;
        let faucet = Faucet::new(&blocks, 4).await;
        let directory = directory(name);
        let node = blocks.node();
        let source = format!("core={}?cookie={}", node.url(), node.cookie_file().display());
        let member = |number: usize| {
            let place = directory.join(format!("member-{number}"));
            fs::create_dir_all(place.join("dids")).unwrap();
            fs::create_dir_all(place.join("updates")).unwrap();
            let seat = identity(&place, "seat");
            // Registered first: a KEY DID, which lists the beacon nowhere.
            identity(&place.join("dids"), "key.id");
            Member {
                seat,
                dids: path(&place, "dids"),
                updates: path(&place, "updates"),
                out: path(&place, "out"),
                state: path(&place, "state"),
                program: None,
            }
        };
        let members = (0..SEATS).map(member).collect();
        let service = Self::serve(&directory, &source, beacon);
        Some(Self { directory, blocks, faucet, source, service, members, last: 0 })
    }

    fn serve(directory: &std::path::Path, source: &str, beacon: &str) -> Service {
        let state = path(directory, "service.state");
        let chain = ["--chain", source, "--chain-poll", "200ms", "--confirmations", DEPTH, "--state", &state];
        let size = ["--min-participants", "3", "--max-participants", "3", "--fallback-threshold", "2"];
        let terms = ["--standing", "--beacon", beacon, "--min-interval", "1s", "--respond-time", "8s"];
        Service::start(directory, &[&chain[..], &size, &terms].concat())
    }

    fn start(&mut self, number: usize) {
        let member = &self.members[number];
        let places =
            ["--dids", &member.dids, "--updates", &member.updates, "--out", &member.out, "--state", &member.state];
        let chain = ["--chain", &self.source, "--chain-poll", "200ms", "--confirmations", DEPTH];
        let fixed =
            ["join", "--standing", "--service", &self.service.url, "--identity", &member.seat, "--events", "json"];
        self.members[number].program = Some(Program::start(&[&fixed[..], &places, &chain].concat()));
    }

    fn program(&mut self, number: usize) -> &mut Program {
        self.members[number].program.as_mut().unwrap()
    }

    fn stop(&mut self, number: usize) {
        let mut program = self.members[number].program.take().unwrap();
        program.signal("-TERM");
        assert!(program.ends_well());
    }

    /// An EXTERNAL DID of a member whose genesis document lists the beacon.
    fn mint(&self, number: usize, name: &str, beacon: &str) -> String {
        let dids = PathBuf::from(&self.members[number].dids);
        let key = identity(&self.directory, &format!("{number}-{name}.key"));
        cohort::listing(&dids, &format!("{name}.id"), &key, beacon)
    }

    fn sidecar(&self, number: usize, identity: &str) -> String {
        format!("{}/{}.json", self.members[number].out, did_of(identity).replace(':', "_"))
    }

    /// Prepares an update of a DID, which its seat announces.
    async fn update(&self, number: usize, identity: &str, note: &str) {
        let patch = path(&self.directory, &format!("{note}.patch"));
        let value = serde_json::json!([{ "op": "add", "path": "/note", "value": note }]);
        fs::write(&patch, value.to_string()).unwrap();
        let (did, sidecar) = (did_of(identity), self.sidecar(number, identity));
        // Not seen by the seat before it is whole.
        let (made, out) = (
            path(&self.directory, &format!("{note}.json")),
            format!("{}/{note}.json", self.members[number].updates),
        );
        ran(&[
            "update",
            &did,
            "--patch",
            &patch,
            "--identity",
            identity,
            "--chain",
            &self.source,
            "--min-conf",
            DEPTH,
            "--sidecar",
            &sidecar,
            "--out",
            &made,
        ])
        .await
        .succeeded();
        fs::rename(made, out).unwrap();
    }

    /// The next announcement gets into a block, and is final.
    async fn announced(&mut self) -> Value {
        let last = self.last;
        let signed =
            self.service.program.event_where("number-signed", |event| event["number"].as_u64() > Some(last));
        self.last = signed["number"].as_u64().unwrap();
        let until = Instant::now() + PATIENCE;
        while self.blocks.mempool().await.is_empty() {
            assert!(Instant::now() < until, "nothing is sent: {signed:#}");
            actix_rt::time::sleep(Duration::from_millis(50)).await;
        }
        self.blocks.mine(2).await;
        let number = signed["number"].clone();
        self.service.program.event_where("number-confirmed", |event| event["number"] == number);
        signed
    }

    async fn resolved(&self, number: usize, identity: &str) -> (String, Value) {
        let (did, sidecar) = (did_of(identity), self.sidecar(number, identity));
        let run =
            ran(&["resolve", &did, "--chain", &self.source, "--min-conf", DEPTH, "--sidecar", &sidecar, "--json"])
                .await;
        let resolved: Value = serde_json::from_str(&run.succeeded().stdout).unwrap();
        (text(&resolved["didDocumentMetadata"]["versionId"]).to_owned(), resolved["didDocument"]["note"].clone())
    }
}

async fn announces_for_years(name: &str, beacon: &str) {
    let Some(mut world) = World::new(name, beacon).await else { return };
    (0..SEATS).for_each(|number| world.start(number));
    let formed = world.service.program.event("standing-formed");
    let address = text(&formed["beaconAddress"]).to_owned();
    for number in 0..SEATS {
        world.program(number).event("rows-acknowledged");
    }
    world.faucet.pay(&world.blocks, &script(&address), Amount::from_sat(100_000)).await;
    world.blocks.mine(2).await;
    world.service.program.event("coin-arrived");
    // EXTERNAL DIDs whose first document lists the beacon, registered by a seat that starts again.
    let listed = format!("{address},{beacon}");
    let mut dids = Vec::new();
    for number in 0..SEATS {
        world.stop(number);
        dids.push([world.mint(number, "first", &listed), world.mint(number, "second", &listed)]);
        world.start(number);
        world.program(number).event("rows-acknowledged");
    }
    // One announcement of two seats, one of one, by key path.
    world.update(0, &dids[0][0], "one").await;
    world.update(1, &dids[1][0], "two").await;
    let mut left = 2;
    while left > 0 {
        let signed = world.announced().await;
        assert_eq!(signed["mode"], "key", "{signed:#}");
        left = 0;
        for (number, note) in [(0, "one"), (1, "two")] {
            let (version, found) = world.resolved(number, &dids[number][0]).await;
            if version == "1" {
                left += 1;
            } else {
                assert_eq!((version.as_str(), found), ("2", note.into()));
            }
        }
    }
    // A seat is absent: its DIDs resolve too, once it has come back.
    world.stop(2);
    world.update(0, &dids[0][0], "three").await;
    let signed = world.announced().await;
    assert_eq!(signed["mode"], "fallback", "{signed:#}");
    assert_eq!(world.resolved(0, &dids[0][0]).await, ("3".to_owned(), "three".into()));
    world.start(2);
    let absent = signed["number"].clone();
    world.program(2).event_where("missed", |event| event["number"] == absent);
    // The service is another process now, with the same state.
    world.service.program.kill();
    world.service = World::serve(&world.directory, &world.source, beacon);
    world.service.program.event("standing-recovered");
    (0..SEATS).for_each(|number| world.stop(number));
    (0..SEATS).for_each(|number| world.start(number));
    world.update(2, &dids[2][1], "four").await;
    world.announced().await;
    assert_eq!(world.resolved(2, &dids[2][1]).await, ("2".to_owned(), "four".into()));
    // What was never updated resolves all the same: its data show that.
    for (number, dids) in dids.iter().enumerate() {
        let identity = if number == 2 { &dids[0] } else { &dids[1] };
        assert_eq!(world.resolved(number, identity).await.0, "1", "seat {number}");
    }
}

#[actix_rt::test]
async fn a_cas_cohort_announces_for_years() {
    announces_for_years("standing-cas", "cas").await;
}

#[actix_rt::test]
async fn an_smt_cohort_announces_for_years() {
    announces_for_years("standing-smt", "smt").await;
}
