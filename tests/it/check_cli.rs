//! `check`, `watch --check` and `vault recover` on a real node.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use bitcoin::{FeeRate, Txid};
use btcr2_aggregation::{
    actors::{
        runtime::Randomness,
        state::{State, StateError},
    },
    check::Code,
    protocol::{
        beacon::Aggregation,
        hash::SignalBytes,
        key::SecretKey,
        output::{Change, SingletonAnnouncement},
        sidecar::plain_data,
        time::Timestamp,
        update::{SignedUpdate, add_beacon_service_patch},
    },
    vault::{VaultContents, VaultDocument, backups::Backups},
};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::{
    bitcoind_support::beacon::Beacon,
    resolve_cli::{Author, World, ran},
    support::{PATIENCE, Program, Run, contains, path, run_with},
    vault_support::{aggregated, entry, prepare, store},
};

const SECRET: &str = "1111111122222222333333334444444455555555666666667777777788888888";

/// A controller with an identity file and a state directory.
struct Controller {
    world: World,
    author: Author,
    identity: String,
    state: String,
}

impl Controller {
    async fn new(name: &str) -> Option<Self> {
        let world = World::core(&format!("check-{name}")).await?;
        let author = Author::of(SecretKey::from_hex(SECRET).unwrap());
        let (identity, state) = (path(&world.directory, "identity"), path(&world.directory, "state"));
        let made = ["identity", "new", "--secret-env", "SECRET", "--out", &identity];
        run_with(&made, &[("SECRET", SECRET)]).succeeded();
        Some(Self { world, author, identity, state })
    }

    fn sources(&self) -> [&str; 6] {
        ["--chain", &self.world.source, "--state", &self.state, "--identity", &self.identity]
    }

    async fn check(&self, arguments: &[&str]) -> Run {
        ran(&[&["check", self.author.did()], &self.sources()[..], arguments].concat()).await
    }

    /// The exit status and the report.
    async fn report(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let run = self.check(&[arguments, &["--json"]].concat()).await;
        (run.status, serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}")))
    }

    /// Stores an update in the vault that is announced without a cohort.
    async fn prepare(&self, update: &SignedUpdate) {
        prepare(&self.state, update).await;
    }

    /// Announces an update by the DID's own beacon, in a block.
    async fn singleton(&mut self, update: &SignedUpdate) -> Txid {
        self.world.singleton(&self.author, update).await
    }

    /// A signal in the mempool.
    async fn unconfirmed(&mut self, update: &SignedUpdate) -> Txid {
        let beacon = self.author.beacon();
        let coin = self.world.coin(&beacon.script_pubkey()).await;
        let rate = FeeRate::from_sat_per_vb_u32(2);
        let announcement = SingletonAnnouncement::new(beacon, &[coin], update, rate, &Change::Beacon).unwrap();
        let signed =
            announcement.sign(&self.author.key, &mut Randomness::Seeded([4; 32]).for_actor("unconfirmed")).unwrap();
        self.world.blocks.chain().submit(&signed).await.unwrap();
        signed.compute_txid()
    }

    async fn export(&self, file: &str) {
        ran(&["vault", "export", file, "--state", &self.state]).await.succeeded();
    }
}

fn findings<'a>(report: &'a Value, code: &str) -> Vec<&'a Value> {
    report["findings"].as_array().unwrap().iter().filter(|finding| finding["code"] == code).collect()
}

fn one<'a>(report: &'a Value, code: &str) -> &'a Value {
    let [finding] = findings(report, code)[..] else { panic!("{code}: {report:#}") };
    finding
}

#[actix_rt::test]
async fn a_controller_is_warned_before_its_did_breaks() {
    let Some(mut alice) = Controller::new("alice").await else { return };
    let update = alice.author.note("second");
    alice.prepare(&update).await;
    // An update that may be announced, and no backup of it.
    let (status, report) = alice.report(&[]).await;
    assert_eq!(
        (status, &report["status"], &report["version"]),
        (Some(3), &json!("warning"), &json!(1)),
        "{report:#}"
    );
    assert_eq!(one(&report, "no-backup")["status"], "warning");
    assert_eq!(
        (&report["updates"][0]["standing"], &report["updates"][0]["version"]),
        (&json!("prepared"), &json!(2))
    );
    let accepted = alice.check(&["--accept", "no-backup"]).await.succeeded();
    contains(&accepted.stdout, &["accepted", "the vault was never exported", "all is well"]);
    let file = path(&alice.world.directory, "vault.json");
    alice.export(&file).await;
    let text = alice.check(&[]).await.succeeded().stdout;
    contains(&text, &["the DID resolves: version 1", "#initialKey", "SingletonBeacon bcrt1", "all is well"]);
    assert_eq!(alice.check(&["--quiet"]).await.succeeded().stdout, "");

    // Announced, and known: version 2.
    alice.singleton(&update).await;
    let (status, report) = alice.report(&["--min-conf", "1"]).await;
    assert_eq!(
        (status, &report["version"], &report["confirmations"]),
        (Some(0), &json!(2), &json!(1)),
        "{report:#}"
    );
    let own = alice.author.beacon().address().to_string();
    let beacon = report["beacons"].as_array().unwrap().iter().find(|beacon| beacon["address"] == own).unwrap();
    assert_eq!((&beacon["signals"], &beacon["ownKey"], &beacon["listed"]), (&json!(1), &json!(true), &json!(true)));
    assert!(beacon["confirmed"].as_u64().unwrap() > 0, "the change: {beacon}");
    let (status, report) = alice.report(&[]).await;
    assert_eq!((status, &one(&report, "young-version")["version"]), (Some(0), &json!(2)));

    // A signal whose data is missing: first in the mempool, then too young to count, then it counts.
    let third = alice.author.note("third");
    let txid = json!(alice.unconfirmed(&third).await);
    let (status, report) = alice.report(&["--min-conf", "2"]).await;
    assert_eq!((status, &one(&report, "unconfirmed-missing-data")["txid"]), (Some(3), &txid));
    alice.world.blocks.mine(1).await;
    let (status, report) = alice.report(&["--min-conf", "2"]).await;
    assert_eq!((status, &one(&report, "young-missing-data")["txid"]), (Some(3), &txid));
    assert_eq!(report["version"], 2, "it still resolves");
    let broken = alice.check(&["--min-conf", "1"]).await;
    assert_eq!(broken.status, Some(1), "{broken:?}");
    contains(&broken.stdout, &["PROBLEM", "MISSING_UPDATE_DATA", txid.as_str().unwrap(), "a backup of the vault"]);

    // A chain that does not answer is not a healthy one; a wrong call is neither.
    let silent = ["--chain", "esplora=http://127.0.0.1:1/api"];
    let fixed = ["check", alice.author.did(), "--state", &alice.state];
    let run = ran(&[&fixed[..], &silent].concat()).await;
    assert_eq!(run.status, Some(1), "{run:?}");
    contains(&run.stdout, &["UNKNOWN", "the chain cannot be read", "unknown: 1"]);
    contains(ran(&fixed).await.usage(), &["no chain"]);
    contains(alice.check(&["--accept", "weather"]).await.usage(), &["no-backup"]);

    // The vault is lost and restored.
    alice.prepare(&third).await;
    let second = path(&alice.world.directory, "second.json");
    let (status, report) = alice.report(&[]).await;
    assert_eq!((status, &one(&report, "backup-incomplete")["status"]), (Some(3), &json!("warning")));
    alice.export(&second).await;
    fs::remove_dir_all(&alice.state).unwrap();
    ran(&["vault", "import", &second, "--state", &alice.state]).await.succeeded();
    let (status, report) = alice.report(&["--min-conf", "1"]).await;
    assert_eq!((status, &report["version"]), (Some(0), &json!(3)), "{report:#}");
    contains(one(&report, "restored")["text"].as_str().unwrap(), &["from a backup of", "may still be announced"]);
}

#[actix_rt::test]
async fn a_conflict_in_the_mempool_is_a_problem() {
    let Some(mut alice) = Controller::new("mempool").await else { return };
    let other = Author::of(SecretKey::from_hex(SECRET).unwrap()).note("other");
    let update = alice.author.note("second");
    for update in [&update, &other] {
        alice.prepare(update).await;
    }
    alice.singleton(&update).await;
    alice.export(&path(&alice.world.directory, "vault.json")).await;
    let (status, report) = alice.report(&["--min-conf", "1"]).await;
    assert_eq!((status, &one(&report, "superseded-update")["status"]), (Some(3), &json!("warning")), "{report:#}");
    alice.unconfirmed(&other).await;
    let (status, report) = alice.report(&["--min-conf", "1", "--supersede", "singleton"]).await;
    contains(one(&report, "will-not-resolve")["text"].as_str().unwrap(), &["in the mempool", "LATE_PUBLISHING"]);
    assert_eq!((status, &report["version"]), (Some(1), &json!(2)), "it still resolves");
    // Both are announced, whatever is stated of them.
    assert_eq!(findings(&report, "contradiction").len(), 2);
    alice.world.blocks.mine(1).await;
    let (_, report) = alice.report(&["--min-conf", "1"]).await;
    contains(one(&report, "does-not-resolve")["text"].as_str().unwrap(), &["LATE_PUBLISHING"]);
}

/// A controller with a round in each of two cohorts, whose beacons its document lists: an update by the map, none in the tree.
struct Rounds {
    alice: Controller,
    map: Beacon,
    map_data: Value,
    /// The controller's own proof, and that of the other member.
    proofs: [Value; 2],
    tree_signal: Txid,
}

async fn rounds(name: &str) -> Option<Rounds> {
    let mut alice = Controller::new(name).await?;
    let other = Author::key("another member");
    let (map, tree) = (Beacon::new("map", 2, 12), Beacon::new("tree", 2, 400));
    for (kind, beacon) in [("CASBeacon", &map), ("SMTBeacon", &tree)] {
        let patch = add_beacon_service_patch(&alice.author.did, kind, beacon.output.address());
        let update = alice.author.update(patch);
        alice.prepare(&update).await;
        alice.singleton(&update).await;
    }
    let update = alice.author.note("by a cohort");
    let announced = aggregated("CASBeacon", &[(&alice.author, Some(&update)), (&other, None)]);
    let declined = aggregated("SMTBeacon", &[(&alice.author, None), (&other, Some(&update))]);
    let entries = [
        entry(&alice.author, "map", &map, "CASBeacon", Some(&update), &announced),
        entry(&alice.author, "tree", &tree, "SMTBeacon", None, &declined),
    ];
    store(&alice.state, &entries).await;
    alice.world.announce(&map, announced.signal).await;
    let tree_signal = alice.world.announce(&tree, declined.signal).await;
    let plain = |author: &Author, of: &Aggregation| plain_data(of.data.for_member(&author.did).unwrap());
    let proofs = [plain(&alice.author, &declined), plain(&other, &declined)];
    let map_data = plain(&alice.author, &announced);
    Some(Rounds { alice, map, map_data, proofs, tree_signal })
}

#[actix_rt::test]
async fn beacons_are_trusted_and_needed_also_when_removed() {
    let Some(Rounds { mut alice, map, .. }) = rounds("cohorts").await else { return };
    alice.export(&path(&alice.world.directory, "vault.json")).await;
    let young = ["--min-conf", "1"];
    let (status, report) = alice.report(&young).await;
    assert_eq!((status, &report["version"]), (Some(0), &json!(4)), "{report:#}");
    let state = |report: &Value| {
        let beacons = report["beacons"].as_array().unwrap();
        beacons.iter().find(|beacon| beacon["address"] == map.output.address()).unwrap().clone()
    };
    assert_eq!(
        (&state(&report)["operator"]["recoveryBlocks"], &state(&report)["signals"]),
        (&json!(12), &json!(1))
    );
    // Anyone can pay to the address: then it is the operator's coin, from a block on.
    alice.world.coin(&map.output.script_pubkey().to_owned()).await;
    let (status, report) = alice.report(&["--min-conf", "1", "--warn-blocks", "11"]).await;
    let height = alice.world.blocks.chain().tip().await.unwrap().block.height;
    assert_eq!(
        (status, &state(&report)["operator"]["coins"][0]["aloneFrom"]),
        (Some(3), &json!(height + 12)),
        "{report:#}"
    );
    assert_eq!(findings(&report, "operator-soon").len(), 1);
    assert_eq!(alice.report(&["--min-conf", "1", "--warn-blocks", "10"]).await.0, Some(0));
    alice.world.blocks.mine(11).await;
    let run = alice.check(&young).await;
    contains(
        &run.stdout,
        &["WARNING", "alone can spend", &format!("now (from block {} on)", height + 12), "cannot forge"],
    );

    // The beacon is removed, and then announces something that the vault has no data of.
    let services = alice.author.documents.last().unwrap()["service"].as_array().unwrap();
    let index = services.iter().position(|service| service["type"] == "CASBeacon").unwrap();
    let update = alice.author.update(json!([{ "op": "remove", "path": format!("/service/{index}") }]));
    alice.prepare(&update).await;
    alice.singleton(&update).await;
    let (_, report) = alice.report(&young).await;
    assert_eq!((&report["version"], &state(&report)["listed"]), (&json!(5), &json!(false)));
    let foreign = alice.world.announce(&map, SignalBytes::from_bytes([9; 32])).await;
    let (status, report) = alice.report(&young).await;
    let missing = one(&report, "missing-data");
    assert_eq!((status, &missing["txid"]), (Some(1), &json!(foreign)));
    assert_eq!((&missing["address"], &state(&report)["missing"]), (&json!(map.output.address()), &json!(1)));
}

#[actix_rt::test]
async fn after_a_loss_stores_are_used_and_the_rest_is_named() {
    let Some(Rounds { mut alice, map_data, proofs, tree_signal, .. }) = rounds("recovery").await else { return };
    let height = alice.world.blocks.chain().tip().await.unwrap().block.height;
    let store = format!("dir={}", path(&alice.world.directory, "store"));
    for (index, content) in alice.author.updates.iter().map(SignedUpdate::value).chain([&map_data]).enumerate() {
        let file = alice.world.file(&format!("content-{index}"), content);
        ran(&["cas", "put", &file, "--cas", &store]).await.succeeded();
    }
    fs::remove_dir_all(&alice.state).unwrap();
    let did = alice.author.did().to_owned();
    let (chain, state) = (alice.world.source.clone(), alice.state.clone());
    let fixed = ["vault", "recover", &did, "--chain", &chain, "--state", &state, "--min-conf", "1"];
    let recover = async |arguments: &[&str]| ran(&[&fixed[..], arguments].concat()).await;
    // Nothing can be had from nowhere.
    let run = recover(&[]).await;
    assert!(
        run.status == Some(1) && run.stdout.contains("stored in") && run.stdout.contains(": 0 updates"),
        "{run:?}"
    );

    // That is a loss too.
    let known = Backups::of([Path::new(&state)], &alice.author.did).unwrap();
    assert!(known.restoration.is_some(), "{known:?}");

    // The store has everything but the proof, which only its tree's builder and a backup have.
    let run = recover(&["--cas", &store, "--json"]).await;
    let shown: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((run.status, &shown["updates"], &shown["documents"]), (Some(1), &json!(3), &json!(1)), "{shown:#}");
    let missing = &shown["missing"][0];
    assert_eq!(
        (&missing["data"], &missing["txid"], &missing["height"]),
        (&json!("smt-proof"), &json!(tree_signal), &json!(height))
    );
    assert_eq!(shown["missing"].as_array().unwrap().len(), 1);
    // Another member's proof is not this DID's.
    let foreign = alice.world.file("foreign.json", &json!({ "smtProofs": [proofs[1]] }));
    let run = recover(&["--sidecar", &foreign]).await;
    assert_eq!(run.status, Some(1), "{run:?}");
    contains(
        &run.stdout,
        &[
            "MISSING",
            "the SMT proof, with its nonce,",
            &tree_signal.to_string(),
            "only the service that built the tree",
        ],
    );
    let file = alice.world.file("proof.json", &json!({ "smtProofs": proofs }));
    let run = recover(&["--sidecar", &file]).await.succeeded();
    contains(&run.stderr, &["resolves from the state directory alone: version 4", "approved last is not known"]);

    // From the vault alone; what is not known any more is stated.
    let (status, report) = alice.report(&["--min-conf", "1"]).await;
    assert_eq!((status, &report["version"]), (Some(3), &json!(4)), "{report:#}");
    assert_eq!(one(&report, "restored")["status"], "warning");
    assert_eq!((findings(&report, "terms-unknown").len(), findings(&report, "not-in-vault").len()), (2, 0));
    // A recovered update is possibly announced: no other one of its version is prepared.
    let other = Author::of(SecretKey::from_hex(SECRET).unwrap()).note("other");
    let other = VaultContents { prepared: vec![other], ..VaultContents::default() };
    let other = VaultDocument::new(other, Timestamp::from_secs(1_800_000_000)).to_json().unwrap();
    let other = alice.world.file("other.json", &serde_json::from_str(&other).unwrap());
    let refused = ran(&["vault", "import", &other, "--state", &state]).await;
    contains(&refused.stderr, &["two different updates of version 2"]);
    // The recovered vault has a complete backup.
    let file = path(&alice.world.directory, "vault.json");
    alice.export(&file).await;
    let copy = path(&alice.world.directory, "copy");
    ran(&["vault", "import", &file, "--state", &copy]).await.succeeded();
    alice.state = copy;
    assert_eq!(alice.report(&["--min-conf", "1", "--accept", "terms-unknown"]).await.0, Some(0));

    // A DID that is deactivated needs its data all the same.
    let last = alice.author.update(json!([{ "op": "add", "path": "/deactivated", "value": true }]));
    alice.prepare(&last).await;
    alice.singleton(&last).await;
    alice.export(&path(&alice.world.directory, "last.json")).await;
    let (status, report) = alice.report(&["--min-conf", "1", "--accept", "terms-unknown"]).await;
    assert_eq!(
        (status, &report["deactivated"], &report["version"]),
        (Some(0), &json!(true), &json!(5)),
        "{report:#}"
    );
    let run = recover(&["--cas", &store, "--json"]).await;
    let shown: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((run.status, &shown["missing"][0]["data"]), (Some(1), &json!("update")), "{shown:#}");
    let last = alice.world.file("last-update.json", &json!({ "updates": [last.value()] }));
    let run = recover(&["--sidecar", &last]).await.succeeded();
    contains(&run.stderr, &["version 5, which deactivates it"]);
    let watch =
        ["watch", "--check", "--once", "--json", "--chain", &chain, "--state", &alice.state, "--min-conf", "1"];
    let events = ran(&[&watch[..], &["--did", &did, "--accept", "terms-unknown"]].concat()).await.events();
    assert!(
        events.iter().any(|event| event["event"] == "finding" && event["code"] == "deactivated"),
        "{events:#?}"
    );
}

#[actix_rt::test]
async fn the_genesis_document_of_an_external_did_is_recovered() {
    let Some(world) = World::core("check-external").await else { return };
    let external = Author::external("recovered", "CASBeacon", Beacon::new("external", 2, 144).output.address());
    let (state, store) = (path(&world.directory, "state"), format!("dir={}", path(&world.directory, "store")));
    let file = world.file("genesis.json", external.genesis.as_ref().unwrap());
    ran(&["cas", "put", &file, "--cas", &store]).await.succeeded();
    let fixed = ["vault", "recover", external.did(), "--chain", &world.source, "--state", &state];
    let lost = ran(&fixed).await;
    assert!(lost.status == Some(1) && lost.stdout.contains("MISSING   the genesis document"), "{lost:?}");
    ran(&[&fixed[..], &["--cas", &store]].concat()).await.succeeded();
    assert_eq!(world.document(&external, &["--state", &state]).await, external.documents[0]);
    // It is part of the Sidecar Data, and of the backup.
    let sidecar = ran(&["sidecar", "--did", external.did(), "--state", &state]).await.succeeded().stdout;
    let sidecar: Value = serde_json::from_str(&sidecar).unwrap();
    assert_eq!(&sidecar["genesisDocument"], external.genesis.as_ref().unwrap());
    let vault = path(&world.directory, "vault.json");
    ran(&["vault", "export", &vault, "--state", &state]).await.succeeded();
    contains(&fs::read_to_string(&vault).unwrap(), &["\"recovered\":[{"]);
}

/// Makes the list of prepared updates unreadable.
async fn damage(directory: &str) {
    let until = Instant::now() + PATIENCE;
    let state = loop {
        match State::open(directory) {
            Err(StateError::Locked { .. }) if Instant::now() < until => {
                actix_rt::time::sleep(Duration::from_millis(20)).await;
            }
            opened => break opened.unwrap(),
        }
    };
    state.table("program").put("prepared", "no JSON").await.unwrap();
    state.close().await;
}

#[actix_rt::test]
async fn watch_reports_changes_of_the_health_beside_a_member() {
    let Some(mut alice) = Controller::new("watch").await else { return };
    let update = alice.author.note("second");
    alice.prepare(&update).await;
    alice.export(&path(&alice.world.directory, "vault.json")).await;
    // As `join` holds it.
    let held = State::open(&alice.state).unwrap();
    let more = ["--check", "--json", "--poll", "200ms", "--min-conf", "2", "--did", alice.author.did()];
    let mut watch = Program::start(&[&["watch"], &alice.sources()[..], &more].concat());
    let first = watch.event_where("finding", |event| event["code"] == "resolves");
    assert_eq!((&first["version"], &first["status"]), (&json!(1), &json!("ok")));
    assert_eq!(watch.event_where("finding", |event| event["code"] == "pending-update")["version"], 2);
    alice.singleton(&update).await;
    watch.event_where("finding", |event| event["code"] == "young-version");
    // Data is missing, and then it is there.
    let third = alice.author.note("third");
    let txid = json!(alice.singleton(&third).await);
    let event = watch.event_where("finding", |event| event["code"] == "young-missing-data");
    assert_eq!((&event["txid"], &event["status"]), (&txid, &json!("warning")));
    watch.event_where("finding", |event| event["code"] == "resolves" && event["version"] == 2);
    held.close().await;
    alice.prepare(&third).await;
    let event = watch.event_where("finding-cleared", |event| event["code"] == "young-missing-data");
    assert_eq!(event["txid"], txid);
    let resolved = watch.seen().iter().filter(|event| event["code"] == "resolves").count();
    assert_eq!(resolved, 2, "changes only: {:#?}", watch.seen());
    // What cannot be read any more is still known to the program.
    damage(&alice.state).await;
    let event = watch.event_where("warning", |event| event["message"].as_str().unwrap().contains("prepared"));
    contains(event["message"].as_str().unwrap(), &["What was read of it before is still watched"]);
    watch.event_where("finding", |event| event["code"] == "vault-damaged");
    let missing = |event: &&Value| event["event"] == "finding" && event["code"] == "young-missing-data";
    assert_eq!(watch.seen().iter().filter(missing).count(), 1, "{:#?}", watch.seen());
}

#[test]
fn every_code_is_documented() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating.md")).unwrap();
    for code in Code::value_variants() {
        let name = code.to_possible_value().unwrap();
        assert!(page.contains(&format!("| `{}` |", name.get_name())), "{code:?}");
    }
}
