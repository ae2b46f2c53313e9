//! A DID from its creation to its deactivation, updated by cohorts: `resolve` is right after each block, also from Sidecar Data alone.

use std::{fs, path::PathBuf};

use crate::{
    bitcoind_support::{TestChain, faucet::Faucet},
    resolve_cli::ran,
    support::{Program, Run, Service, cohort, contains, did_of, directory, identity, join, path, verify::text},
};
use bitcoin::{Address, Amount, ScriptBuf, address::NetworkUnchecked};
use btcr2_aggregation::protocol::{
    document::{InitialBeacon, InitialBeaconKind},
    key::SecretKey,
    network::Network,
};
use serde_json::{Value, json};

/// The confirmations that count for members.
const DEPTH: u32 = 2;

/// A version of the document, and its confirmations.
struct Announced {
    version: u32,
    confirmations: u32,
}

/// Alice's DID, the two others of her cohorts, and a node.
struct Life {
    blocks: TestChain,
    faucet: Faucet,
    directory: PathBuf,
    source: String,
    alice: String,
    state: String,
    bob: String,
    carol: String,
    /// What is announced to be found, in the order of versions.
    announced: Vec<Announced>,
    /// The cohorts that are over.
    over: Vec<String>,
    files: u32,
}

/// What the three do in a cohort.
struct Plan<'a> {
    alice: &'a [&'a str],
    bob: &'a [&'a str],
    carol: &'a [&'a str],
    /// Bob's program is killed before he can sign.
    bob_dies: bool,
}

impl Plan<'_> {
    const DECLINED: Plan<'static> =
        Plan { alice: &["--decline"], bob: &["--decline"], carol: &["--decline"], bob_dies: false };
}

fn script(address: &str) -> ScriptBuf {
    address.parse::<Address<NetworkUnchecked>>().unwrap().assume_checked().script_pubkey()
}

fn parsed(output: &str) -> Value {
    serde_json::from_str(output).unwrap()
}

impl Life {
    /// Before the DID: a node, a key, and two others.
    async fn before(name: &str) -> Option<Self> {
        let blocks = TestChain::core(name).await?;
        let faucet = Faucet::new(&blocks, 12).await;
        let directory = directory(name);
        let node = blocks.node();
        let source = format!("core={}?cookie={}", node.url(), node.cookie_file().display());
        let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| identity(&directory, name));
        let state = format!("{alice}.state");
        Some(Self {
            blocks,
            faucet,
            directory,
            source,
            alice,
            state,
            bob,
            carol,
            announced: vec![Announced { version: 1, confirmations: DEPTH }],
            over: Vec::new(),
            files: 0,
        })
    }

    /// A service of cohorts of three, with a key of its own.
    fn service(&self, name: &str) -> (PathBuf, Service) {
        let directory = self.directory.join(name);
        fs::create_dir_all(&directory).unwrap();
        let size = ["--min-participants", "3", "--max-participants", "3"];
        let state = path(&directory, "state");
        let chain = ["--chain", &self.source, "--chain-poll", "200ms", "--state", &state];
        let service = Service::start(
            &directory,
            &[&chain[..], &size, &["--beacon", name, "--signing-timeout", "3s"]].concat(),
        );
        (directory, service)
    }

    fn file(&mut self, name: &str) -> String {
        self.files += 1;
        path(&self.directory, &format!("{}-{name}", self.files))
    }

    fn note(&mut self, note: &str) -> String {
        let file = self.file("patch");
        fs::write(&file, json!([{ "op": "add", "path": "/note", "value": note }]).to_string()).unwrap();
        file
    }

    /// A command of the controller.
    async fn command(&self, arguments: &[&str]) -> Run {
        let confirmations = DEPTH.to_string();
        let fixed = ["--state", &self.state, "--chain", &self.source, "--min-conf", &confirmations];
        ran(&[arguments, &fixed, &["--identity", &self.alice]].concat()).await
    }

    /// An update by that verb, for a cohort, and the file in which it is.
    async fn prepared(&mut self, verb: &[&str]) -> String {
        let (did, file) = (did_of(&self.alice), self.file("update.json"));
        let arguments = [&["update", &did], verb, &["--announce-by", "cohort", "--out", &file]].concat();
        let prepared = self.command(&arguments).await.succeeded();
        contains(&prepared.stderr, &["join --service URL", &file]);
        file
    }

    /// The resolution from these data, with so many confirmations.
    async fn resolved(&self, confirmations: u32, data: &[&str]) -> Value {
        let (did, confirmations) = (did_of(&self.alice), confirmations.to_string());
        let fixed = ["resolve", &did, "--chain", &self.source, "--min-conf", &confirmations, "--json"];
        parsed(&ran(&[&fixed, data].concat()).await.succeeded().stdout)
    }

    /// Where the data for a resolver are. Before the first cohort there are none but the genesis document of an EXTERNAL DID.
    fn data(&self) -> [&str; 2] {
        if fs::exists(&self.state).unwrap() { ["--state", &self.state] } else { ["--sidecar", &self.alice] }
    }

    /// What resolvers return is what was announced, with the state directory and with Sidecar Data alone.
    async fn check(&mut self) {
        let sidecar = self.file("sidecar.json");
        let did = did_of(&self.alice);
        let data = self.data();
        let mut sources = vec![data];
        if data[0] == "--state" {
            ran(&["sidecar", "--did", &did, "--state", &self.state, "--out", &sidecar]).await.succeeded();
            sources.push(["--sidecar", &sidecar]);
        }
        for confirmations in 1..=DEPTH {
            let counts = self.announced.iter().filter(|one| one.confirmations >= confirmations);
            let expected = counts.map(|one| one.version).max().unwrap().to_string();
            for data in &sources {
                let resolved = self.resolved(confirmations, data).await;
                let version = &resolved["didDocumentMetadata"]["versionId"];
                assert_eq!(*version, expected, "{confirmations} confirmations, {data:?}: {resolved:#}");
            }
        }
    }

    /// A block with what is in the mempool, after which all is as it should be.
    async fn block(&mut self) {
        self.blocks.mine(1).await;
        self.announced.iter_mut().for_each(|one| one.confirmations += 1);
        self.check().await;
    }

    /// The next version is in the mempool: it comes into a block, and counts when that is deep enough.
    async fn next_version(&mut self) {
        let version = self.announced.last().unwrap().version + 1;
        self.announced.push(Announced { version, confirmations: 0 });
        self.check().await;
        for _ in 0..DEPTH {
            self.block().await;
        }
    }

    fn joins(&self, service: &Service, identity: &str, arguments: &[&str]) -> Program {
        let (state, confirmations) = (format!("{identity}.state"), DEPTH.to_string());
        let chain = ["--chain", &self.source, "--chain-poll", "200ms", "--confirmations", &confirmations];
        join(&service.url, identity, &[&["--state", &state][..], &chain, arguments].concat())
    }

    /// A cohort from its advert to the depth that counts. Returns the result of alice's program.
    async fn cohort(&mut self, service: &mut Service, plan: Plan<'_>, announces: bool) -> Value {
        let alice = self.joins(service, &self.alice, plan.alice);
        let mut bob = self.joins(service, &self.bob, plan.bob);
        let carol = self.joins(service, &self.carol, plan.carol);
        let program = &mut service.program;
        let over = self.over.clone();
        let formed =
            program.event_where("keygen-complete", |event| !over.iter().any(|id| event["cohortId"] == **id));
        let id = text(&formed["cohortId"]).to_owned();
        let of_cohort = |event: &Value| event["cohortId"] == id;
        program.event_where("validation-complete", of_cohort);
        if plan.bob_dies {
            bob.kill();
        }
        let coin = script(text(&formed["beaconAddress"]));
        self.faucet.pay(&self.blocks, &coin, Amount::from_sat(60_000)).await;
        self.block().await;
        program.event_where("announcement-broadcast", of_cohort);
        let path = if plan.bob_dies { "script-path" } else { "key-path" };
        assert_eq!(program.event_where("result", of_cohort)["path"], path);
        if announces {
            self.next_version().await;
        } else {
            self.block().await;
            self.block().await;
        }
        self.over.push(id);
        // A member that was missing finds out, when it starts again, how the cohort has ended.
        let bob = if plan.bob_dies { self.joins(service, &self.bob, plan.bob) } else { bob };
        let ends = actix_rt::task::spawn_blocking(move || {
            [bob, carol].into_iter().for_each(|other| drop(other.result()));
            alice.result()
        });
        ends.await.unwrap()
    }

    /// An update of alice by a cohort, while the others decline. Resolvers return it.
    async fn updates(&mut self, service: &mut Service, arguments: &[&str], bob_dies: bool) {
        let result = self.cohort(service, Plan { alice: arguments, bob_dies, ..Plan::DECLINED }, true).await;
        let version = self.announced.last().unwrap().version.to_string();
        assert_eq!((&result["included"], &result["resolvable"]), (&json!(true), &json!(true)), "{result:#}");
        assert_eq!(result["versionId"], version, "{result:#}");
    }

    async fn document(&self) -> Value {
        self.resolved(DEPTH, &self.data()).await["didDocument"].take()
    }

    /// The types and addresses of the beacons that are not Singleton beacons.
    async fn cohort_beacons(&self) -> Vec<(String, String)> {
        let document = self.document().await;
        let services = document["service"].as_array().unwrap().iter();
        let of = |service: &Value| {
            let endpoint = text(&service["serviceEndpoint"]).strip_prefix("bitcoin:").unwrap();
            (text(&service["type"]).to_owned(), endpoint.to_owned())
        };
        services.map(of).filter(|(kind, _)| kind != "SingletonBeacon").collect()
    }

    /// From the first listed cohort on.
    async fn lives(mut self, mut first: Service, address: &str) {
        let listed = (String::from("CASBeacon"), address.to_owned());
        assert_eq!(self.cohort_beacons().await, std::slice::from_ref(&listed));

        // Three cohorts: one as it should be, one that she declines, one in which a member is missing.
        let note = self.note("first");
        self.updates(&mut first, &["--update", &note], false).await;
        assert_eq!(self.document().await["note"], "first");
        let other = self.note("of bob");
        let bob = ["--update", &other, "--allow-unlisted-beacon"];
        let declined = self.cohort(&mut first, Plan { bob: &bob, ..Plan::DECLINED }, false).await;
        assert_eq!((&declined["ok"], &declined["included"]), (&json!(true), &json!(false)), "{declined:#}");
        let note = self.note("without bob");
        self.updates(&mut first, &["--update", &note], true).await;
        assert_eq!(self.document().await["note"], "without bob");

        // Another key, which signs from then on.
        let rotation = self.prepared(&["rotate-key"]).await;
        self.updates(&mut first, &["--update", &rotation], false).await;
        let version = self.announced.last().unwrap().version;
        let document = self.document().await;
        assert!(text(&document["capabilityInvocation"][0]).ends_with(&format!("#key-{version}")), "{document:#}");

        // A second cohort, of another service and another kind. Its members and terms determine its address.
        let (service, mut second) = self.service("smt");
        let members = [&*self.alice, &*self.bob, &*self.carol];
        let other = cohort::address(&path(&service, "service"), &members);
        let beacon = self.prepared(&["add-beacon", &format!("{other},smt")]).await;
        self.updates(&mut first, &["--update", &beacon], false).await;
        let added = (String::from("SMTBeacon"), other.clone());
        assert_eq!(self.cohort_beacons().await, [listed, added.clone()]);

        // It removes the first one, whose earlier signals still count.
        let removal = self.prepared(&["remove-beacon", address]).await;
        self.updates(&mut second, &["--update", &removal, "--beacon", "smt"], false).await;
        assert_eq!(self.cohort_beacons().await, [added]);

        // The end. Every version is there for who asks.
        let deactivation = self.prepared(&["deactivate"]).await;
        self.updates(&mut second, &["--update", &deactivation, "--beacon", "smt"], false).await;
        let last = self.announced.last().unwrap().version;
        let state = self.state.clone();
        for version in 1..=last {
            let wanted = version.to_string();
            let data = ["--state", &*state, "--version-id", &wanted];
            let resolved = self.resolved(DEPTH, &data).await;
            let metadata = &resolved["didDocumentMetadata"];
            assert_eq!(metadata["versionId"], wanted, "{resolved:#}");
            assert_eq!(metadata["deactivated"] == true, version == last, "{resolved:#}");
        }
    }
}

#[actix_rt::test]
async fn a_key_did_lives_by_cohorts() {
    let Some(mut life) = Life::before("life-key").await else { return };
    life.check().await;

    // A first cohort, of which alice learns the address. No document lists it: that of carol either, who announces there all the same.
    let (_, mut service) = life.service("cas");
    let note = life.note("of carol");
    let carol = ["--update", &note, "--allow-unlisted-beacon"];
    let met = life.cohort(&mut service, Plan { carol: &carol, ..Plan::DECLINED }, false).await;
    let (cohort, address) = (text(&met["cohortId"]), text(&met["beaconAddress"]).to_owned());

    // She lists it, by a transaction of her own.
    let key = SecretKey::from_hex(&cohort::secret(&life.alice)).unwrap();
    let singleton = InitialBeacon::new(key.public_key(), Network::Regtest, InitialBeaconKind::P2wpkh);
    life.faucet.pay(&life.blocks, &singleton.script_pubkey(), Amount::from_sat(20_000)).await;
    life.block().await;
    let out = life.file("adoption.json");
    let adopted = life.command(&["beacon", "adopt", cohort, "--out", &out, "--send"]).await.succeeded();
    contains(&adopted.stdout, &[&address]);
    assert_eq!(life.blocks.mempool().await.len(), 1);
    life.next_version().await;

    life.lives(service, &address).await;
}

#[actix_rt::test]
async fn an_external_did_lives_by_cohorts_without_a_singleton_transaction() {
    let Some(mut life) = Life::before("life-external").await else { return };
    let (directory, service) = life.service("cas");
    let members = [&*life.alice, &*life.bob, &*life.carol];
    let address = cohort::address(&path(&directory, "service"), &members);
    // Its first document lists the cohort of its key.
    life.alice = cohort::listing(&life.directory, "external", &life.alice, &address);
    life.state = format!("{}.state", life.alice);
    life.check().await;
    life.lives(service, &address).await;
}
