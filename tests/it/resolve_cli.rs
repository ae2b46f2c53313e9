//! The command `resolve`: on a real node, and on an Esplora server over one.

use std::{fs, path::PathBuf, sync::Arc};

use crate::bitcoind_support::{
    Bitcoind, TestChain,
    beacon::{Beacon, key},
    esplora::{self, EsploraServer, Settings},
    faucet::{Faucet, Wallet},
};
use crate::support::{Run, Service, directory, path, run, run_with};
use bitcoin::{Amount, FeeRate, ScriptBuf, Transaction, Txid};
use btcr2_aggregation::{
    actors::runtime::Randomness,
    cas::ContentHash,
    protocol::{
        beacon::{AggregateBeacon, CasBeacon, Slots, SmtBeacon},
        did::Did,
        document,
        hash::SignalBytes,
        key::SecretKey,
        network::Network,
        output::{Change, Coin, InitialBeacon, InitialBeaconKind, SingletonAnnouncement, build_beacon_transaction},
        sidecar::plain_data,
        update::{SignedUpdate, add_beacon_service_patch, build_update, sign_update},
    },
};
use serde_json::{Value, json};

const COIN: Amount = Amount::from_sat(60_000);

/// A controller, with all updates that it has announced or will announce.
pub struct Author {
    pub key: SecretKey,
    pub did: Did,
    pub genesis: Option<Value>,
    /// By version, 1 the first.
    pub documents: Vec<Value>,
    pub updates: Vec<SignedUpdate>,
}

impl Author {
    pub fn key(name: &str) -> Self {
        Self::of(key(name))
    }

    pub fn of(key: SecretKey) -> Self {
        let did = Did::from_key(key.public_key(), Network::Regtest);
        let initial = document::initial_document(&did, None).unwrap();
        Self { key, did, genesis: None, documents: vec![initial], updates: Vec::new() }
    }

    /// An EXTERNAL DID whose first document has a beacon of a cohort.
    pub fn external(name: &str, beacon_type: &str, address: &str) -> Self {
        let key = key(name);
        let mut genesis = document::genesis_document(&key.public_key(), Network::Regtest);
        let endpoint = format!("bitcoin:{address}");
        let service = json!({ "id": "did:btcr2:_#cohort", "type": beacon_type, "serviceEndpoint": endpoint });
        genesis["service"].as_array_mut().unwrap().push(service);
        let did = document::external_did(&genesis, Network::Regtest).unwrap();
        let initial = document::initial_document(&did, Some(&genesis)).unwrap();
        Self { key, did, genesis: Some(genesis), documents: vec![initial], updates: Vec::new() }
    }

    pub fn did(&self) -> &str {
        self.did.as_str()
    }

    pub fn beacon(&self) -> InitialBeacon {
        InitialBeacon::new(self.key.public_key(), Network::Regtest, InitialBeaconKind::P2wpkh)
    }

    pub fn update(&mut self, patch: Value) -> SignedUpdate {
        let (document, version) = (self.documents.last().unwrap(), self.documents.len() as u64);
        let unsigned = build_update(document, version, patch).unwrap();
        let method = format!("{}#initialKey", self.did);
        let mut rng = Randomness::Seeded([8; 32]).for_actor(self.did());
        let signed = sign_update(&unsigned, &self.did, &method, &self.key, &mut rng).unwrap();
        self.documents.push(unsigned.target_document().clone());
        self.updates.push(signed.clone());
        signed
    }

    pub fn note(&mut self, text: &str) -> SignedUpdate {
        self.update(json!([{ "op": "add", "path": "/note", "value": text }]))
    }

    /// The controller's Sidecar Data, with the data of its cohorts.
    pub fn sidecar(&self, more: Value) -> Value {
        let updates: Vec<_> = self.updates.iter().map(SignedUpdate::value).collect();
        let mut sidecar = json!({ "@context": "https://btcr2.dev/context/v1", "updates": updates });
        if let Some(genesis) = &self.genesis {
            sidecar["genesisDocument"] = genesis.clone();
        }
        sidecar.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        sidecar
    }
}

/// A chain with its sources, and a directory for files.
pub struct World {
    pub blocks: TestChain,
    faucet: Faucet,
    pub directory: PathBuf,
    pub source: String,
    _server: Option<EsploraServer>,
}

impl World {
    pub async fn core(name: &str) -> Option<Self> {
        let blocks = TestChain::core(&format!("resolve-{name}")).await?;
        let node = blocks.node();
        let source = format!("core={}?cookie={}", node.url(), node.cookie_file().display());
        Some(Self::new(&format!("resolve-core-{name}"), blocks, source, None).await)
    }

    pub async fn esplora(name: &str) -> Option<Self> {
        let node = Arc::new(Bitcoind::start(&format!("resolve-esplora-{name}")).await?);
        let server = esplora::serve(Arc::clone(&node), Arc::new(Settings::default()));
        let source = format!("esplora={}", server.url);
        Some(Self::new(&format!("resolve-esplora-{name}"), TestChain::Shared(node), source, Some(server)).await)
    }

    async fn new(name: &str, blocks: TestChain, source: String, server: Option<EsploraServer>) -> Self {
        let faucet = Faucet::new(&blocks, 12).await;
        Self { faucet, blocks, directory: directory(name), source, _server: server }
    }

    pub fn file(&self, name: &str, content: &Value) -> String {
        let file = path(&self.directory, name);
        fs::write(&file, content.to_string()).unwrap();
        file
    }

    pub async fn coin(&mut self, script: &ScriptBuf) -> Coin {
        let outpoint = self.faucet.pay(&self.blocks, script, COIN).await;
        self.blocks.mine(1).await;
        Coin { outpoint, value: COIN }
    }

    /// A coin in the mempool.
    pub async fn unconfirmed(&mut self, script: &ScriptBuf) -> Coin {
        Coin { outpoint: self.faucet.pay(&self.blocks, script, COIN).await, value: COIN }
    }

    /// A coin in a block that has nothing of the mempool.
    pub async fn coin_alone(&mut self, script: &ScriptBuf) -> Coin {
        let payment = self.faucet.payment(script, COIN);
        self.blocks.mine_with(1, std::slice::from_ref(&payment)).await;
        Coin { outpoint: bitcoin::OutPoint::new(payment.compute_txid(), 0), value: COIN }
    }

    /// Announces an update by the DID's own beacon, in a block.
    pub async fn singleton(&mut self, author: &Author, update: &SignedUpdate) -> Txid {
        let beacon = author.beacon();
        let coin = self.coin(&beacon.script_pubkey()).await;
        let rate = FeeRate::from_sat_per_vb_u32(2);
        let announcement = SingletonAnnouncement::new(beacon, &[coin], update, rate, &Change::Beacon).unwrap();
        let mut rng = Randomness::Seeded([9; 32]).for_actor("singleton");
        self.mined(announcement.sign(&author.key, &mut rng).unwrap()).await
    }

    /// Announces a signal by a cohort's beacon, in a block.
    pub async fn announce(&mut self, beacon: &Beacon, signal: SignalBytes) -> Txid {
        let coin = self.coin(&beacon.output.script_pubkey().to_owned()).await;
        let (change, rate) = (Change::To(Wallet::new(8).script()), FeeRate::from_sat_per_vb_u32(2));
        let unsigned = build_beacon_transaction(&beacon.output, &coin, &signal, rate, &change).unwrap();
        self.mined(beacon.sign(&unsigned, COIN)).await
    }

    pub async fn mined(&self, transaction: Transaction) -> Txid {
        self.blocks.chain().submit(&transaction).await.unwrap();
        self.blocks.mine(1).await;
        transaction.compute_txid()
    }

    /// Runs `resolve` with this chain, beside the server.
    pub async fn resolve(&self, did: &str, arguments: &[&str]) -> Run {
        ran(&[&["resolve", did, "--chain", &self.source], arguments].concat()).await
    }

    /// The document that it prints.
    pub async fn document(&self, author: &Author, arguments: &[&str]) -> Value {
        let run = self.resolve(author.did(), arguments).await.succeeded();
        serde_json::from_str(&run.stdout).unwrap()
    }

    /// The result that it prints with `--json`.
    async fn result(&self, did: &str, arguments: &[&str]) -> (Option<i32>, Value) {
        let run = self.resolve(did, &[arguments, &["--json"]].concat()).await;
        assert_eq!(run.stdout.lines().count(), 1, "{run:?}");
        (run.status, serde_json::from_str(&run.stdout).unwrap())
    }
}

pub async fn ran(arguments: &[&str]) -> Run {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    actix_rt::task::spawn_blocking(move || run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()))
        .await
        .unwrap()
}

/// Runs a test on each kind of source.
macro_rules! on_every_source {
    ($($name:ident)*) => {
        mod core { $(#[actix_rt::test] async fn $name() {
            if let Some(world) = super::World::core(stringify!($name)).await { super::$name(world).await; }
        })* }
        mod esplora_server { $(#[actix_rt::test] async fn $name() {
            if let Some(world) = super::World::esplora(stringify!($name)).await { super::$name(world).await; }
        })* }
    };
}

on_every_source! {
    a_did_without_updates_resolves_to_its_template
    an_update_counts_when_it_is_deep_enough
    each_member_of_a_cohort_resolves_from_its_own_file
}

async fn a_did_without_updates_resolves_to_its_template(world: World) {
    let author = Author::key("fresh");
    assert_eq!(world.document(&author, &[]).await, author.documents[0]);
    let (status, result) = world.result(author.did(), &[]).await;
    assert_eq!(status, Some(0));
    assert_eq!(result["didResolutionMetadata"], json!({ "contentType": "application/did" }));
    assert_eq!(result["didDocument"], author.documents[0]);
    assert_eq!(
        result["didDocumentMetadata"],
        json!({ "versionId": "1", "confirmations": 0, "deactivated": false })
    );
    let shown = world.resolve(author.did(), &["--explain"]).await.succeeded().stdout;
    let services = author.documents[0]["service"].as_array().unwrap();
    for service in services {
        let address = service["serviceEndpoint"].as_str().unwrap().strip_prefix("bitcoin:").unwrap();
        let id = service["id"].as_str().unwrap().strip_prefix(author.did()).unwrap();
        assert!(shown.contains(&format!("SingletonBeacon {address} ({id}): no signal")), "{shown}");
    }
    assert!(
        services.len() == 3 && shown.contains("from the identifier") && shown.contains("Result: version 1"),
        "{shown}"
    );
}

async fn an_update_counts_when_it_is_deep_enough(mut world: World) {
    let mut author = Author::key("updated");
    let update = author.note("second");
    world.singleton(&author, &update).await;
    let file = world.file("sidecar.json", &author.sidecar(json!({})));
    let sidecar = ["--sidecar", file.as_str()];
    let with = |more: &[&'static str]| [&sidecar[..], more].concat();
    // One confirmation: whether it counts depends on the request, and is not an error either way.
    let young = world.resolve(author.did(), &sidecar).await.succeeded();
    assert_eq!(serde_json::from_str::<Value>(&young.stdout).unwrap(), author.documents[0]);
    assert!(young.stderr.contains("fewer than 6 confirmations"), "{young:?}");
    assert_eq!(world.document(&author, &with(&["--min-conf", "1"])).await, author.documents[1]);
    let shown = world.resolve(author.did(), &with(&["--explain"])).await.succeeded().stdout;
    assert!(shown.contains("IGNORED: 1 of 6 confirmations"), "{shown}");

    world.blocks.mine(4).await;
    assert_eq!(world.document(&author, &sidecar).await, author.documents[0]);
    world.blocks.mine(1).await;
    assert_eq!(world.document(&author, &sidecar).await, author.documents[1]);
    let (_, result) = world.result(author.did(), &sidecar).await;
    let metadata = &result["didDocumentMetadata"];
    assert_eq!((&metadata["versionId"], &metadata["confirmations"]), (&json!("2"), &json!(6)));
    // Versions by number and by time; the median time itself counts as after.
    let updated = metadata["updated"].as_str().unwrap();
    assert_eq!(world.document(&author, &with(&["--version-id", "1"])).await, author.documents[0]);
    let at = [&sidecar[..], &["--version-time", updated]].concat();
    assert_eq!(world.document(&author, &at).await, author.documents[1]);
    let before = with(&["--version-time", "2011-02-03T04:05:06Z"]);
    assert_eq!(world.document(&author, &before).await, author.documents[0]);
    let (status, result) = world.result(author.did(), &with(&["--version-id", "3"])).await;
    assert_eq!((status, &result["didDocument"]), (Some(1), &Value::Null));
    assert_eq!(result["didResolutionMetadata"]["error"]["title"], "NOT_FOUND");

    let last = author.update(json!([{ "op": "add", "path": "/deactivated", "value": true }]));
    world.singleton(&author, &last).await;
    let file = world.file("sidecar.json", &author.sidecar(json!({})));
    let run = world.resolve(author.did(), &["--sidecar", &file, "--min-conf", "1"]).await.succeeded();
    assert!(run.stderr.contains("deactivated, by version 3"), "{run:?}");
    let shown =
        world.resolve(author.did(), &["--sidecar", &file, "--min-conf", "1", "--explain"]).await.succeeded();
    assert!(shown.stdout.contains("Result: version 3: the DID is DEACTIVATED"), "{shown:?}");
}

async fn each_member_of_a_cohort_resolves_from_its_own_file(mut world: World) {
    for (kind, aggregate) in [("CASBeacon", &CasBeacon as &dyn AggregateBeacon), ("SMTBeacon", &SmtBeacon)] {
        let beacon = Beacon::new(kind, 3, 144);
        let address = beacon.output.address().to_owned();
        // One adds the beacon by its own update, one has it in its first document, and one of that kind has nothing to announce.
        let mut adopting = Author::key(&format!("{kind} adopting"));
        let adoption = adopting.update(add_beacon_service_patch(&adopting.did, kind, &address));
        world.singleton(&adopting, &adoption).await;
        let mut born = Author::external(&format!("{kind} born"), kind, &address);
        let declining = Author::external(&format!("{kind} declining"), kind, &address);
        let (third, second) = (adopting.note("third"), born.note("second"));
        let slots: Slots = [
            (adopting.did.clone(), Some(*third.hash())),
            (born.did.clone(), Some(*second.hash())),
            (declining.did.clone(), None),
        ]
        .into();
        let aggregation = aggregate.aggregate(&slots, &mut Randomness::Seeded([3; 32]).for_actor(kind)).unwrap();
        let txid = world.announce(&beacon, aggregation.signal).await;
        for author in [&adopting, &born, &declining] {
            let data = plain_data(aggregation.data.for_member(&author.did).unwrap());
            let list = if kind == "CASBeacon" { "casUpdates" } else { "smtProofs" };
            let file = world.file("own.json", &author.sidecar(json!({ list: [data] })));
            let given = ["--min-conf", "1", "--sidecar", file.as_str()];
            assert_eq!(&world.document(author, &given).await, author.documents.last().unwrap(), "{kind}");
            let shown =
                world.resolve(author.did(), &[&given[..], &["--explain"]].concat()).await.succeeded().stdout;
            assert!(shown.contains(&txid.to_string()) && shown.contains(&format!("{kind} {address}")), "{shown}");
            assert!(shown.contains(&format!("what it announces is from {file}")), "{shown}");
            let genesis = if author.genesis.is_some() { &file } else { "the identifier" };
            assert!(shown.contains(&format!("The initial document (version 1) is from {genesis}.")), "{shown}");
            assert_eq!(shown.contains("it announces no update of this DID"), author.updates.is_empty(), "{shown}");
            // Without the data of the cohort its members do not resolve, whether they declined or not.
            let file = world.file("own.json", &author.sidecar(json!({})));
            let (status, result) = world.result(author.did(), &["--min-conf", "1", "--sidecar", &file]).await;
            assert_eq!(status, Some(1));
            assert_eq!(result["didResolutionMetadata"]["error"]["title"], "MISSING_UPDATE_DATA", "{kind}");
        }
    }
}

#[actix_rt::test]
async fn missing_data_is_named_with_advice() {
    let Some(mut world) = World::core("missing").await else { return };
    let mut author = Author::key("missing");
    let update = author.note("second");
    let txid = world.singleton(&author, &update).await;
    let height = world.blocks.chain().tip().await.unwrap().block.height;
    let young = ["--min-conf", "1"];
    let run = world.resolve(author.did(), &young).await;
    assert_eq!((run.status, run.stdout.as_str()), (Some(1), ""), "{run:?}");
    assert!(run.stderr.contains("error: MISSING_UPDATE_DATA: ") && run.stderr.contains("--explain"), "{run:?}");
    let (status, result) = world.result(author.did(), &young).await;
    let error = &result["didResolutionMetadata"]["error"];
    assert_eq!(
        (status, &error["title"], &result["didDocument"]),
        (Some(1), &json!("MISSING_UPDATE_DATA"), &Value::Null)
    );

    let shown = world.resolve(author.did(), &["--min-conf", "1", "--explain"]).await;
    assert_eq!(shown.status, Some(1));
    let (hash, cid) = (update.hash().to_string(), ContentHash::from(*update.hash()).cid());
    for part in [
        txid.to_string(),
        author.beacon().address().to_string(),
        format!("Block {height}, "),
        format!("MISSING: the update {hash}"),
        format!("cas show {hash} --cas STORE"),
        cid,
        format!("sidecar --did {} --state DIR", author.did()),
        "Result: MISSING_UPDATE_DATA".to_owned(),
    ] {
        assert!(shown.stdout.contains(&part), "{part} is missing in {}", shown.stdout);
    }
    // Of an EXTERNAL DID the genesis document.
    let external = Author::external("unpublished", "CASBeacon", author.beacon().address().to_string().as_str());
    let shown = world.resolve(external.did(), &["--explain"]).await;
    assert_eq!(shown.status, Some(1));
    assert!(shown.stdout.contains("genesisDocument") && shown.stderr.contains("error: NOT_FOUND"), "{shown:?}");
}

#[actix_rt::test]
async fn data_comes_from_content_stores() {
    let Some(mut world) = World::core("sources").await else { return };
    let mut author = Author::key("sources");
    let update = author.note("second");
    world.singleton(&author, &update).await;
    let file = world.file("update.json", update.value());

    let (store, empty) = (format!("dir={}", path(&world.directory, "store")), path(&world.directory, "empty"));
    fs::create_dir(&empty).unwrap();
    let young = ["--min-conf", "1", "--cas", &format!("dir={empty}"), "--cas", &store];
    // A store that is not there yet is named, and has nothing.
    let run = world.resolve(author.did(), &young).await;
    assert!(
        run.status == Some(1) && run.stderr.contains(&format!("warning: {} was not found: {store}", update.hash())),
        "{run:?}"
    );
    ran(&["cas", "put", &file, "--cas", &store]).await.succeeded();
    assert_eq!(world.document(&author, &young).await, author.documents[1]);
    let shown = world.resolve(author.did(), &[&young[..], &["--explain"]].concat()).await.succeeded().stdout;
    assert!(shown.contains(&format!("to version 2, from {store}")), "{shown}");
    // A file whose content does not have the hash of its name is missing.
    let content = path(&world.directory, "store") + "/" + &ContentHash::from(*update.hash()).hex();
    fs::write(&content, "{}").unwrap();
    let run = world.resolve(author.did(), &young).await;
    assert!(run.status == Some(1) && run.stderr.contains("MISSING_UPDATE_DATA"), "{run:?}");
}

#[actix_rt::test]
async fn data_comes_from_a_member_s_state_directory() {
    const SECRET: &str = "b7e151628aed2a6abf7158809cf4f3c762e7160f38b4da56a784d9045190cfef";
    let Some(mut world) = World::core("state").await else { return };
    let mut author = Author::of(SecretKey::from_hex(SECRET).unwrap());
    let identity = path(&world.directory, "identity");
    let made = ["identity", "new", "--secret-env", "SECRET", "--out", &identity];
    run_with(&made, &[("SECRET", SECRET)]).succeeded();
    let state = path(&world.directory, "state");
    let given = ["--min-conf", "1", "--state", &state];
    let missing = world.resolve(author.did(), &given).await;
    assert!(missing.status == Some(1) && missing.stderr.contains(&state), "{missing:?}");

    // The update of a cohort, whose coin is made up; announced once from the DID's own beacon.
    let patch = world.file("patch.json", &json!([{ "op": "add", "path": "/note", "value": "second" }]));
    let service = Service::once(&world.directory, 1, &[]);
    let joined =
        service.join(&identity, &["--update", &patch, "--state", &state, "--allow-unlisted-beacon"]).result();
    service.program.result();
    let second = SignedUpdate::from_value(joined["sidecar"]["updates"][0].clone()).unwrap();
    author.note("second");
    world.singleton(&author, &second).await;
    assert_eq!(world.document(&author, &given).await, author.documents[1]);
    let shown = world.resolve(author.did(), &[&given[..], &["--explain"]].concat()).await.succeeded().stdout;
    assert!(shown.contains(&format!("to version 2, from the state directory {state}")), "{shown}");

    // An update that was prepared without a cohort is there too.
    let third = author.note("third");
    world.singleton(&author, &third).await;
    let missing = world.resolve(author.did(), &given).await;
    assert!(missing.status == Some(1) && missing.stderr.contains("MISSING_UPDATE_DATA"), "{missing:?}");
    let file = world.file("update.json", third.value());
    ran(&["singleton", "--did", author.did(), "--update", &file, "--state", &state]).await.succeeded();
    assert_eq!(world.document(&author, &given).await, author.documents[2]);
}

#[actix_rt::test]
async fn a_malformed_call_is_refused() {
    let directory = directory("resolve-refused");
    let author = Author::key("refused");
    let did = author.did();
    // No server listens there, and none is asked.
    let chain = ["--chain", "esplora=http://127.0.0.1:1/api"];
    let refused = async |arguments: &[&str], why: &str| {
        let run = ran(&[&["resolve"], arguments].concat()).await;
        assert!(run.usage().contains(why), "{why:?} is missing in {}", run.stderr);
    };
    refused(&[], "<DID>").await;
    refused(&[did], "no chain").await;
    refused(&[did, "--chain", "bitcoin"], "--chain").await;
    let with = |more: &[&'static str]| [&[did], &chain[..], more].concat();
    refused(&with(&["--version-id", "two"]), "versionId").await;
    refused(&with(&["--version-time", "yesterday"]), "versionTime").await;
    refused(&with(&["--version-id", "2", "--version-time", "2026-10-01T12:00:00Z"]), "cannot be used with").await;
    refused(&with(&["--min-conf", "0"]), "--min-conf").await;
    refused(&with(&["--json", "--explain"]), "cannot be used with").await;
    refused(&with(&["--cas", "s3=bucket"]), "dir=PATH or ipfs=URL").await;
    refused(&with(&["--sidecar", "/nowhere/at-all"]), "/nowhere/at-all").await;
    for (text, why) in [("no JSON", "not JSON"), ("[]", "not an object"), (r#"{ "updates": 1 }"#, "not an array")] {
        let file = path(&directory, "sidecar");
        fs::write(&file, text).unwrap();
        refused(&[&with(&[])[..], &["--sidecar", &file]].concat(), why).await;
    }
}

#[actix_rt::test]
async fn a_malformed_did_and_a_silent_chain_have_their_codes() {
    let author = Author::key("codes");
    for (did, code) in [("did:btcr2:k1qqq\u{202e}", "INVALID_DID"), (author.did(), "INTERNAL_ERROR")] {
        let run = ran(&["resolve", did, "--chain", "esplora=http://127.0.0.1:1/api", "--json"]).await;
        assert_eq!(run.status, Some(1), "{run:?}");
        assert!(run.stderr.starts_with(&format!("error: {code}: ")) && !run.all().contains('\u{202e}'), "{run:?}");
        let result: Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(result["didResolutionMetadata"]["error"]["title"], code);
    }
}
